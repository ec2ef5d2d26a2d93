"""The store of container images that all machines share and none can write to.

Owns how container images get into a store: by the machine image's own podman, outside any machine.
"""

from __future__ import annotations

import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

__all__ = ["load_images", "run_in_image"]

_RECIPE = Path(__file__).parent / "recipe"


def load_images(root: Path, store: Path, archives: Sequence[Path] = ()) -> None:
    """Load container images into a store, which is made if there is none.

    Parameters
    ----------
    root : Path
        The files of the machine image.
    store : Path
        The folder of the store; no machine may run that uses it.
    archives : sequence of Path
        Archives as ``docker save`` writes them. The names of their images are in them.

    Raises
    ------
    RuntimeError
        An image cannot be loaded; says what podman said.
    """
    store.mkdir(parents=True, exist_ok=True)
    folders = {str(store): "/opt/store", str(_RECIPE): "/srv/recipe"}
    inside = []
    for archive in archives:
        parent = folders.setdefault(str(archive.parent), f"/srv/{len(folders)}")
        inside.append(f"{parent}/{archive.name}")
    run_in_image(root, ["sh", "/srv/recipe/load.sh", *inside], folders)


def run_in_image(root: Path, command: Sequence[str], folders: Mapping[str, str]) -> str:
    """Run a command, as root, in a throw-away copy of the machine image.

    It has the host's network. Only what it writes to the folders stays.

    Parameters
    ----------
    root : Path
        The files of the machine image.
    command : sequence of str
        The command and its arguments.
    folders : mapping of str to str
        Which folder of the host is to be seen where, both absolute.

    Returns
    -------
    str
        What it printed.

    Raises
    ------
    RuntimeError
        It failed; says what it printed.
    """
    done = subprocess.run(
        [
            *("unshare", "--mount", "--pid", "--ipc", "--fork", "--kill-child", "--mount-proc"),
            *("sh", str(_RECIPE / "enter.sh"), str(root)),
            *(f"{source}:{target}" for source, target in folders.items()),
            *("--", *command),
        ],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        check=False,
    )
    if done.returncode != 0:
        raise RuntimeError(f"{command[0]} failed in the machine image:\n{done.stdout.strip()}")
    return done.stdout
