"""Overlays: folders that can be written over ones that stay as they are.

Owns how the kernel is asked for one. What lies over what is decided by :mod:`roots` and :mod:`cos`.

Source: https://docs.kernel.org/filesystems/overlayfs.html
"""

from __future__ import annotations

import os

from . import kernel

__all__ = ["overlay"]


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


def _escape(path: str) -> str:
    for sign in "\\:,":
        path = path.replace(sign, f"\\{sign}")
    return path
