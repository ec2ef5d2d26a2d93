"""Overlays: folders that can be written over ones that stay as they are.

Owns how the kernel is asked for one. What lies over what is decided by :mod:`roots` and :mod:`cos`.

Source: https://docs.kernel.org/filesystems/overlayfs.html
"""

from __future__ import annotations

import os
import stat

from . import kernel

__all__ = ["hide", "overlay"]


def overlay(lower: str, upper: str, work: str, target: str, flags: int = 0) -> None:
    """Mount a folder that can be written over one that stays as it is.

    Parameters
    ----------
    lower : str
        The folder that stays.
    upper : str
        Where changes go; made where it is missing.
    work : str
        A folder for the kernel's own use on the same file system; made where it is missing.
    target : str
        Where to mount.
    flags : int
        What is not allowed there.
    """
    for folder in (upper, work):
        os.makedirs(folder, exist_ok=True)
    # The root of the overlay has the mode and the owner of the upper folder.
    there = os.stat(lower)
    os.chmod(upper, there.st_mode & 0o7777)
    os.chown(upper, there.st_uid, there.st_gid)
    layers = {"lowerdir": lower, "upperdir": upper, "workdir": work}
    options = ",".join(f"{name}={_escape(folder)}" for name, folder in layers.items())
    kernel.mount("overlay", target, "overlay", flags, options)


def hide(lower: str, upper: str, path: str) -> None:
    """Let an overlay not show a file, and a folder empty; unlike a mount, nobody can take it away.

    Parameters
    ----------
    lower : str
        The folder that stays as it is.
    upper : str
        Where changes go. What has changed at the path already stays as it is.
    path : str
        The absolute path in the overlay, without links. What does not exist is ignored.
    """
    if not os.path.lexists(f"{lower}{path}") or os.path.lexists(f"{upper}{path}"):
        return
    parents = path.split("/")[1:-1]
    for count in range(len(parents) + 1):
        parent = "/" + "/".join(parents[:count])
        _copy_folder(lower, upper, parent)
        if os.path.islink(f"{upper}{parent}") or not os.path.isdir(f"{upper}{parent}"):
            return  # A guest has put something else there, which hides it and must not be followed.
    if os.path.isdir(f"{lower}{path}"):
        _copy_folder(lower, upper, path)
        os.setxattr(f"{upper}{path}", "trusted.overlay.opaque", b"y")
    else:
        os.mknod(f"{upper}{path}", stat.S_IFCHR, os.makedev(0, 0))


def _copy_folder(lower: str, upper: str, path: str) -> None:
    if not os.path.lexists(f"{upper}{path}"):
        there = os.stat(f"{lower}{path}")
        os.mkdir(f"{upper}{path}")
        os.chmod(f"{upper}{path}", there.st_mode & 0o7777)
        os.chown(f"{upper}{path}", there.st_uid, there.st_gid)


def _escape(path: str) -> str:
    for sign in "\\:,":
        path = path.replace(sign, f"\\{sign}")
    return path
