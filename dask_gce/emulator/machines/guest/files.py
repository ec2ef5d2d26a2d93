"""Removing what a guest has left on its disk.

Owns the one way to remove a folder that its owner has locked itself out of.
"""

from __future__ import annotations

import contextlib
import os
import shutil

__all__ = ["remove_tree"]


def remove_tree(folder: str) -> None:
    """Remove a folder with all that is in it, also folders that forbid it; nobody may be using it.

    Parameters
    ----------
    folder : str
        The folder; one that does not exist is ignored.
    """
    shutil.rmtree(folder, ignore_errors=True)
    if not os.path.lexists(folder):
        return
    # A guest may have taken its own rights away; links are never followed.
    for parent, names, _ in os.walk(folder):
        for name in names:
            path = f"{parent}/{name}"
            if not os.path.islink(path):
                with contextlib.suppress(OSError):
                    os.chmod(path, 0o700)
    shutil.rmtree(folder, ignore_errors=True)
