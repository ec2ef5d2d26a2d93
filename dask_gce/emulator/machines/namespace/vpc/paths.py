"""Paths of a machine, seen from the host.

Owns where a path leads before the machine's root is the root. What a guest has left on its disk
may be links to anywhere, and what a launcher writes at the next boot must not follow them out.
"""

from __future__ import annotations

import errno
import os

__all__ = ["make_folder", "within"]

#: As the kernel's own limit; see path_resolution(7).
_MOST_LINKS = 40


def within(root: str, path: str) -> str:
    """Return where a machine's path is on the host; links count from the machine's root.

    Parameters
    ----------
    root : str
        Where the machine's root is mounted. Nothing in it may change meanwhile.
    path : str
        The path as the machine knows it. It needs not exist.

    Returns
    -------
    str
        A path below the root, without links.

    Raises
    ------
    OSError
        The links lead in a circle.
    """
    done: list[str] = []
    waiting = path.split("/")[::-1]
    links = 0
    while waiting:
        part = waiting.pop()
        if part in ("", "."):
            continue
        if part == "..":
            del done[-1:]
            continue
        place = "/".join((root, *done, part))
        if not os.path.islink(place):
            done.append(part)
            continue
        links += 1
        if links > _MOST_LINKS:
            raise OSError(errno.ELOOP, f"{path}: {os.strerror(errno.ELOOP)}")
        link = os.readlink(place)
        if link.startswith("/"):
            done.clear()
        waiting += link.split("/")[::-1]
    return "/".join((root, *done))


def make_folder(root: str, path: str) -> str:
    """Make a folder of a machine where there is none; links count from the machine's root.

    Where a guest has left links that lead in a circle, or something else than folders, it is
    removed: a launcher mounts at this path, and a machine boots whatever its guest has done to it.

    Parameters
    ----------
    root : str
        Where the machine's root is mounted. Nothing in it may change meanwhile.
    path : str
        The path as the machine knows it.

    Returns
    -------
    str
        A path below the root, without links.
    """
    try:
        folder = within(root, path)
        os.makedirs(folder, exist_ok=True)
    except OSError as error:
        if error.errno not in (errno.ELOOP, errno.ENOTDIR, errno.EEXIST):
            raise
        folder = root
        for part in path.split("/"):
            folder = f"{folder}/{part}"
            if os.path.islink(folder) or not os.path.isdir(folder):
                if os.path.lexists(folder):
                    os.unlink(folder)
                os.mkdir(folder)
    return folder
