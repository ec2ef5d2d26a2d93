"""Copies of the disks of process machines: what images of such machines hold.

Owns the copying of a folder that a guest has written, by an emulator that may have more rights than
the guest: no link is followed, and nothing but folders, files and links is taken along.
"""

from __future__ import annotations

import os
import shutil
import stat
from collections.abc import Awaitable, Callable, Collection
from pathlib import Path

from dask_gce.emulator.machine import Contents

__all__ = ["DiskCopy", "copy_tree"]

#: What of a disk does not outlive a boot, or is the emulator's own note.
PASSING = frozenset({"run", "tmp", "calls"})


class DiskCopy(Contents):
    """The copy of a disk.

    Parameters
    ----------
    folder : Path
        The folder that holds it.
    remove : callable
        Removes the folder.
    """

    def __init__(self, folder: Path, remove: Callable[[], Awaitable[None]]) -> None:
        self.folder = folder
        self._remove = remove

    async def discard(self) -> None:
        """Remove it."""
        await self._remove()


def copy_tree(
    source: Path, target: Path, *, uid: int | None, without: Collection[str] = ()
) -> None:
    """Copy what is in a folder into another one.

    Parameters
    ----------
    source : Path
        The folder, which a guest may have written.
    target : Path
        Where to; it exists, and only the caller writes there.
    uid : int or None
        Whose the copies are to be, user and group; None for the caller's.
    without : collection of str
        Names in the folder to leave out.

    Raises
    ------
    OSError
        Something cannot be read.
    """
    descriptor = os.open(source, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        _copy(descriptor, target, uid, without)
    finally:
        os.close(descriptor)


def _copy(folder: int, target: Path, uid: int | None, without: Collection[str]) -> None:
    for name in os.listdir(folder):
        if name in without:
            continue
        mode = os.stat(name, dir_fd=folder, follow_symlinks=False).st_mode
        path = target / name
        if stat.S_ISLNK(mode):
            path.symlink_to(os.readlink(name, dir_fd=folder))
        elif stat.S_ISDIR(mode):
            flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
            below = os.open(name, flags, dir_fd=folder)
            try:
                path.mkdir(mode=0o700, exist_ok=True)
                _copy(below, path, uid, ())
            finally:
                os.close(below)
            path.chmod(mode & 0o777)
        elif stat.S_ISREG(mode):
            # Should it have become a pipe meanwhile, nobody waits for its other end.
            flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
            content = os.fdopen(os.open(name, flags, dir_fd=folder), "rb")
            with content, path.open("wb") as copy:
                shutil.copyfileobj(content, copy)
            path.chmod(mode & 0o777)
        else:
            continue
        if uid is not None:
            os.chown(path, uid, uid, follow_symlinks=False)
