"""The folders of process machines, and the environment their guests live in.

Owns the files that the emulator lays out: one folder an emulator, one a machine, the stand-in
commands, the name table. Nothing here starts a process.

::

    FOLDER/                 the emulator's; removed by the supervisor, whatever ends the emulator
      bin/                  stand-ins for the host commands that startup scripts call
      hosts                 the name table of all machines
      machines/NUMBER-NAME/
        curl/.curlrc        leads curl to the machine's metadata server
        disk/               all that the guest may write: home, tmp, run, calls
      images/NUMBER/        the copy of a disk, for new machines to begin with
"""

from __future__ import annotations

import itertools
import json
import os
import shlex
import sys
import threading
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from dask_gce.emulator.machines.disk_copies import PASSING, copy_tree
from dask_gce.emulator.machines.guest.commands import COMMANDS
from dask_gce.emulator.machines.supervision import isolated_python

__all__ = ["Layout"]

_MACHINES = Path(__file__).parent

_STAND_IN = "import sys; sys.path.insert(0, sys.argv.pop(1)); from guest.commands import main; main"

#: Where the standard commands are.
SYSTEM_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

#: The names of the metadata server, as the guests' name tables on Compute Engine have them.
METADATA_NAMES = ("metadata.google.internal", "metadata", "169.254.169.254")


class Layout:
    """The files of one emulator's machines.

    Parameters
    ----------
    folder : Path
        The emulator's folder, which exists and is empty.
    shared : bool
        Whether the guests are other users of the host than the emulator.
    """

    def __init__(self, folder: Path, *, shared: bool) -> None:
        self.folder = folder
        self._shared = shared
        # Of folders that threads make at the same time.
        self._numbers = itertools.count(1)
        self._writing = threading.Lock()

    @property
    def hosts(self) -> Path:
        """The name table."""
        return self.folder / "hosts"

    def prepare(self, container_images: Sequence[str]) -> None:
        """Lay out what all machines share.

        Parameters
        ----------
        container_images : sequence of str
            Shell patterns of the container images that exist.
        """
        # Another user's guests must get through, but need not see what else is there.
        self.folder.chmod(0o711 if self._shared else 0o700)
        for name in ("bin", "machines"):
            (self.folder / name).mkdir(mode=0o755)
        (self.folder / "images").mkdir(mode=0o700)
        self.write_hosts({})
        (self.folder / "bin" / ".images").write_text(json.dumps(list(container_images)), "utf-8")
        for command in COMMANDS:
            # A shell in between, because a "#!" line bounds the interpreter's path.
            words = [*isolated_python(), "-c", f"{_STAND_IN}({command!r})", str(_MACHINES)]
            stand_in = self.folder / "bin" / command
            stand_in.write_text(f'#!/bin/sh\nexec {shlex.join(words)} "$@"\n', "utf-8")
            stand_in.chmod(0o755)

        if not (Path(sys.executable).parent / "python").exists():
            # Every image with a Python in it has this name; some distributions do not.
            (self.folder / "bin" / "python").symlink_to(sys.executable)

    def write_hosts(self, names: Mapping[str, Iterable[str]]) -> None:
        """Replace the name table in one step.

        Parameters
        ----------
        names : mapping of str to iterable of str
            The names of each address.
        """
        lines = [" ".join([address, *known]) for address, known in names.items()]
        fresh = self.folder / "hosts.new"
        # Who is interrupted while it is written does not interrupt the writing.
        with self._writing:
            fresh.write_text("".join(f"{line}\n" for line in lines), "utf-8")
            fresh.chmod(0o644)
            fresh.replace(self.hosts)

    def add_machine(self, name: str, uid: int | None, image: Path | None = None) -> Path:
        """Make a machine's folder and its disk.

        Parameters
        ----------
        name : str
            The instance's name.
        uid : int or None
            The user of the host that the guest is; None for the emulator's user.
        image : Path or None
            The copy of a disk that its own begins with; None for an empty one.

        Returns
        -------
        Path
            The folder.
        """
        folder = self.folder / "machines" / f"{next(self._numbers)}-{name}"
        folder.mkdir(mode=0o755)
        (folder / "curl").mkdir(mode=0o755)
        disk = folder / "disk"
        # Made closed, then given away: nobody can put a link into the guest's folder in between.
        disk.mkdir(mode=0o700)
        for part in (disk / "home", disk / "tmp", disk):
            part.mkdir(mode=0o700, exist_ok=True)
            if uid is not None:
                os.chown(part, uid, uid)
        if image is not None:
            copy_tree(image, disk, uid=uid)
        return folder

    def copy_disk(self, folder: Path) -> Path:
        """Copy what a machine's disk holds, but for what does not outlive a boot.

        Parameters
        ----------
        folder : Path
            The machine's folder.

        Returns
        -------
        Path
            The copy.
        """
        copy = self.folder / "images" / str(next(self._numbers))
        copy.mkdir(mode=0o700)
        copy_tree(folder / "disk", copy, uid=None, without=PASSING)
        return copy

    def environment(self, folder: Path, hostname: str, address: str, port: int) -> dict[str, str]:
        """Write the machine's own files and return its guest's environment.

        Parameters
        ----------
        folder : Path
            The machine's folder.
        hostname : str
            Its zonal DNS name.
        address : str
            Its internal address.
        port : int
            The port of its metadata server.

        Returns
        -------
        dict of str
            The whole environment: nothing of the emulator's own is in it.
        """
        (folder / "curl" / ".curlrc").write_text(
            "".join(f'connect-to = "{name}:80:{address}:{port}"\n' for name in METADATA_NAMES),
            "utf-8",
        )
        disk = folder / "disk"
        metadata = f"{address}:{port}"
        stand_ins, python = str(self.folder / "bin"), str(Path(sys.executable).parent)
        site = str(_MACHINES / "guest" / "site")
        return {
            "PATH": f"{stand_ins}:{python}:{SYSTEM_PATH}",
            "HOME": str(disk / "home"),
            "TMPDIR": str(disk / "tmp"),
            "XDG_CACHE_HOME": str(disk / "home/.cache"),
            "XDG_CONFIG_HOME": str(disk / "home/.config"),
            "XDG_DATA_HOME": str(disk / "home/.local/share"),
            "XDG_STATE_HOME": str(disk / "home/.local/state"),
            "XDG_RUNTIME_DIR": str(disk / "run"),
            "LANG": "C.UTF-8",
            "PYTHONDONTWRITEBYTECODE": "1",
            "PYTHONPATH": site,
            "CURL_HOME": str(folder / "curl"),
            "GCE_METADATA_HOST": metadata,
            "GCE_METADATA_IP": metadata,
            "GCE_METADATA_ROOT": metadata,
            "LOCAL_GCE_ADDRESS": address,
            "LOCAL_GCE_BIN": stand_ins,
            "LOCAL_GCE_DISK": str(disk),
            # What a container finds: the emulator's Python stands for the image's.
            "LOCAL_GCE_PATH": f"{python}:{stand_ins}:{SYSTEM_PATH}",
            "LOCAL_GCE_SITE": site,
            "LOCAL_GCE_HOSTNAME": hostname,
            "LOCAL_GCE_HOSTS": str(self.hosts),
        }
