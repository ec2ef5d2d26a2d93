"""What a test may leave behind: nothing.

Owns: the snapshot of this process, its descendants, its temporary folder and its shared memory
before a test, and the comparison after it.
"""

from __future__ import annotations

import asyncio
import copy
import ctypes
import gc
import multiprocessing
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Collection, Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

import dask.config
import psutil

#: Threads that belong to a library and end with the interpreter, by the beginning of their name.
KNOWN_THREADS = (
    "Dask-Offload",  # distributed's pool for (de)serialisation
    "IO loop",  # distributed's shared loop for synchronous clients
    "Profile",  # distributed's statistical profiler
    "TCP-Executor",  # distributed's pool for name look-ups
    "asyncio-waitpid",  # asyncio's child watcher, until its process is reaped
)

#: Environment variables that pytest itself changes.
KNOWN_VARIABLES = frozenset({"PYTEST_CURRENT_TEST"})

#: Entries of the temporary folder that outlive a test on purpose.
KNOWN_FILES = ("pytest-of-",)

#: The user's data folder for the length of a run, in the temporary folder.
DATA_FOLDER = "data"

#: Seconds that endings which were begun may take.
PATIENCE = 60.0


#: From linux/prctl.h.
_PR_SET_CHILD_SUBREAPER = 36

#: Shared memory, which outlives its processes; Linux only.
_SHARED_MEMORY = Path("/dev/shm")


def adopt_orphans(wanted: bool) -> None:
    """Become the parent of all processes that lose theirs, so that none escapes; Linux only."""
    if sys.platform == "linux":
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.prctl(_PR_SET_CHILD_SUBREAPER, int(wanted), 0, 0, 0) != 0:
            raise OSError(ctypes.get_errno(), "prctl(PR_SET_CHILD_SUBREAPER) failed")


def _children() -> set[str]:
    found = set()
    for process in psutil.Process().children(recursive=True):
        try:
            found.add(f"process {process.pid} ({' '.join(process.cmdline())[:120]})")
        except psutil.ZombieProcess:
            if not _bury(process.pid):
                found.add(f"process {process.pid} (zombie)")
        except psutil.NoSuchProcess:
            continue
    return found


def _bury(pid: int) -> bool:
    """Take leave of an adopted process that has ended; return False for one of somebody else."""
    own = {one.pid for one in multiprocessing.active_children()}
    # Not isinstance: that asks every object for its class, and a weak proxy of nothing raises.
    own |= {one.pid for one in gc.get_objects() if issubclass(type(one), subprocess.Popen)}
    if pid in own:
        return False
    try:
        return os.waitpid(pid, os.WNOHANG)[0] == pid
    except ChildProcessError:
        return False


def _threads() -> set[str]:
    return {
        f"thread {thread.ident} ({thread.name})"
        for thread in threading.enumerate()
        if not thread.name.startswith(KNOWN_THREADS)
    }


def _sockets() -> set[str]:
    found = set()
    for connection in psutil.Process().net_connections(kind="inet"):
        local = ":".join(map(str, connection.laddr))
        remote = ":".join(map(str, connection.raddr))
        found.add(f"socket {local} -> {remote or connection.status}")
    return found


def _files(folder: Path) -> set[str]:
    found = {path for path in folder.iterdir() if not path.name.startswith(KNOWN_FILES)}
    # Folders for connection files stay, but no connection file does.
    data = folder / DATA_FOLDER
    found = (found - {data}) | {path for path in data.rglob("*") if not path.is_dir()}
    return {f"file {path}" for path in found}


def _shared_memory() -> set[str]:
    found = set()
    for path in _SHARED_MEMORY.glob("*"):
        with suppress(FileNotFoundError):
            if path.lstat().st_uid == os.geteuid():
                found.add(f"shared memory {path}")
    return found


def used_by_others(own: Collection[int]) -> set[str]:
    """Return the shared memory that is in use, but by none of these processes; Linux only.

    The folder is the same for all programs of a user.
    """
    ours: set[int] = set()
    theirs: set[int] = set()
    for pid in psutil.pids():
        try:
            lines = Path(f"/proc/{pid}/maps").read_text().splitlines()
        except OSError:
            continue  # it has ended, or is somebody else's
        for line in lines:
            # The name may be the one before the file got its own, as a semaphore's is.
            _, _, _, _, inode, *name = line.split(maxsplit=5)
            if name and name[0].startswith(f"{_SHARED_MEMORY}/"):
                (ours if pid in own else theirs).add(int(inode))
    found = set()
    for path in _SHARED_MEMORY.glob("*"):
        with suppress(FileNotFoundError):
            if path.lstat().st_ino in theirs - ours:
                found.add(f"shared memory {path}")
    return found


def _descriptors() -> set[str]:
    found = set()
    for path in Path("/proc/self/fd").glob("*"):
        # Each look is a descriptor itself, and gone when it is read.
        with suppress(FileNotFoundError):
            target = str(path.readlink())
            # Internet sockets are told by their addresses; other sockets and pollers belong to
            # event loops, and those of distributed's threads stay.
            if not target.startswith(("socket:", "anon_inode:[eventpoll]")):
                found.add(f"descriptor {path.name} ({target})")
    return found


class Snapshot:
    """What there is before a test.

    Parameters
    ----------
    folder : Path
        The folder for temporary files.
    """

    def __init__(self, folder: Path) -> None:
        self._looks: list[Callable[[], set[str]]] = [
            _children,
            _threads,
            _sockets,
            _shared_memory,
            _descriptors,
            lambda: _files(folder),
        ]
        self._before = [look() for look in self._looks]
        self._environment = _environment()
        self._config: dict[str, Any] = copy.deepcopy(dask.config.config)

    def leftovers(self) -> list[str]:
        """Return a sentence for everything that is there now and was not before."""
        deadline = time.monotonic() + PATIENCE
        while True:
            found = sorted(
                one
                for look, before in zip(self._looks, self._before, strict=True)
                for one in look() - before
            )
            if any(one.startswith("shared memory") for one in found):
                own = {each.pid for each in psutil.Process().children(recursive=True)}
                others = used_by_others({os.getpid(), *own})
                found = [one for one in found if one not in others]
            if not found or time.monotonic() > deadline:
                break
            # What only a caught error's traceback still held is no leftover. Whatever should have
            # been closed and was not warns when it is collected, and warnings are errors here.
            gc.collect()
            # What a test ended may need a moment to be gone: nothing tells when a socket is.
            time.sleep(0.02)
        found += _changes("environment variable", self._environment, _environment())
        found += _changes("dask.config", self._config, dask.config.config)
        return found


def _environment() -> dict[str, str]:
    return {key: value for key, value in os.environ.items() if key not in KNOWN_VARIABLES}


def _changes(what: str, before: dict[str, Any], after: dict[str, Any]) -> Iterable[str]:
    for key in sorted({*before, *after}):
        if before.get(key) != after.get(key):
            yield f"{what} {key} changed"


def other_tasks() -> set[asyncio.Task[Any]]:
    """Return the tasks of the running loop but for the one that asks."""
    current = asyncio.current_task()
    return {task for task in asyncio.all_tasks() if task is not current}
