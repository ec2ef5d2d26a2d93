"""What an emulator can leave on the host, by what name it is known, and its removal.

Owns the claim: a folder whose name says which process made it, and control groups of the same
name. Everything else of the machines (processes, mounts, networks) ends with the VPC process. A
claim whose process is gone belongs to nobody and is swept by the next emulator.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import time

from .cgroups import remove_groups

__all__ = ["Claim", "sweep"]

#: Seconds that the keeper of a dead emulator may take for its own cleaning.
KEEPER_LIMIT = 15.0

_NAME = re.compile(r"dask-gce-(\d+)-(\d+)-\w+")


class Claim:
    """A folder for the files of an emulator's machines.

    Parameters
    ----------
    folder : str
        The folder, which exists.
    """

    def __init__(self, folder: str) -> None:
        self.folder = folder
        self.name = os.path.basename(folder)

    @classmethod
    def make(cls, base: str) -> Claim:
        """Make a folder in the name of this process.

        Parameters
        ----------
        base : str
            The folder that holds all claims; made where it is missing.

        Returns
        -------
        Claim
            The claim.
        """
        number = 0
        while True:
            number += 1
            os.makedirs(base, mode=0o700, exist_ok=True)
            folder = f"{base}/dask-gce-{os.getpid()}-{_start_time(os.getpid())}-{number}"
            # The last one to clean up may have taken the base away.
            with contextlib.suppress(FileExistsError, FileNotFoundError):
                os.mkdir(folder, 0o700)
                return cls(folder)

    @property
    def owned(self) -> bool:
        """Whether the process that made it still runs."""
        match = _NAME.fullmatch(self.name)
        return match is None or _start_time(int(match[1])) == match[2]

    def open_owner(self) -> int:
        """Return a descriptor that can be read once the process that made it has ended.

        Returns
        -------
        int
            The descriptor.

        Raises
        ------
        ProcessLookupError
            It has ended already.
        """
        match = _NAME.fullmatch(self.name)
        if match is None:
            raise ProcessLookupError(f"{self.name} names no process")
        descriptor = os.pidfd_open(int(match[1]))
        if not self.owned:
            os.close(descriptor)
            raise ProcessLookupError(f"the process of {self.name} has ended")
        return descriptor

    def note_keeper(self) -> None:
        """Write down that this process cleans up in the end."""
        with open(f"{self.folder}/keeper", "w", encoding="ascii") as file:
            file.write(f"{os.getpid()} {_start_time(os.getpid())}")

    @property
    def kept(self) -> bool:
        """Whether its keeper still runs."""
        try:
            with open(f"{self.folder}/keeper", encoding="ascii") as file:
                pid, _, started = file.read().partition(" ")
        except FileNotFoundError:
            return False
        return bool(started) and _start_time(int(pid)) == started

    def clean_up(self) -> None:
        """Remove the control groups, with whoever is in them, and the folder."""
        remove_groups(self.name)
        shutil.rmtree(self.folder, ignore_errors=True)
        with contextlib.suppress(OSError):  # others have claims there, too
            os.rmdir(os.path.dirname(self.folder))


def sweep(base: str) -> list[str]:
    """Remove what emulators have left that are gone.

    Parameters
    ----------
    base : str
        The folder that holds all claims.

    Returns
    -------
    list of str
        The claims that were removed.
    """
    swept = []
    try:
        names = os.listdir(base)
    except FileNotFoundError:  # the last one to clean up has taken it away
        return []
    for name in names:
        claim = Claim(f"{base}/{name}")
        if claim.owned:
            continue
        deadline = time.monotonic() + KEEPER_LIMIT
        while claim.kept and time.monotonic() < deadline:
            time.sleep(0.02)
        claim.clean_up()
        swept.append(name)
    return swept


def _start_time(pid: int) -> str:
    """Return when a process started, in the kernel's ticks; empty when it does not run."""
    try:
        with open(f"/proc/{pid}/stat", encoding="utf-8", errors="replace") as file:
            # The name in brackets may hold anything, also brackets; proc(5) counts from there.
            state, *fields = file.read().rpartition(")")[2].split()
            # A dead one may wait for a parent that never asks for it.
            return "" if state in "ZX" else fields[18]
    except (FileNotFoundError, ProcessLookupError):
        return ""
