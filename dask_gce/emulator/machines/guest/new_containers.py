"""Making a container that does not run yet.

Owns the clean environment that it gets, and which folders it can have: it runs without a file
system of its own. What is known of it from then on is :mod:`containers`.
"""

from __future__ import annotations

import json
import os
from dataclasses import asdict

from . import machine_files as machine
from .containers import Container, ContainerError, find

__all__ = ["create"]


def create(
    *,
    image: str,
    command: list[str],
    name: str,
    environment: dict[str, str],
    folder: str,
    restart: str,
    transient: bool,
    volumes: list[str],
    scratch: list[str],
) -> Container:
    """Make a container that does not run yet.

    Parameters
    ----------
    image : str
        The image's reference.
    command : list of str
        What to run.
    name : str
        Its name; empty takes one of its own.
    environment : dict of str
        The variables that were given.
    folder : str
        Working directory; empty takes the home.
    restart : str
        The restart policy.
    transient : bool
        Whether to remove it when it ends.
    volumes : list of str
        ``SOURCE:TARGET[:OPTIONS]`` each.
    scratch : list of str
        ``TARGET[:OPTIONS]`` of each folder that is there for the container only.

    Returns
    -------
    Container
        The container.

    Raises
    ------
    ContainerError
        The name is in use, or a volume cannot be had here.
    """
    for volume in volumes:
        _check_volume(volume)
    for target in scratch:
        _make_scratch(target)
    identity = os.urandom(32).hex()
    name = name or f"local_{identity[:8]}"
    taken = find(name)
    if taken is not None:
        raise ContainerError(
            f'Conflict. The container name "/{name}" is already in use by container '
            f'"{taken.id}". You have to remove (or rename) that container to be able to reuse '
            "that name."
        )
    home = f"{machine.disk()}/home"
    clean = {name: os.environ[name] for name in machine.VARIABLES if name in os.environ}
    clean |= {
        "PATH": os.environ["LOCAL_GCE_PATH"],
        "LOCAL_GCE_PATH": os.environ["LOCAL_GCE_PATH"],
        "PYTHONPATH": os.environ["LOCAL_GCE_SITE"],
        "LOCAL_GCE_SITE": os.environ["LOCAL_GCE_SITE"],
        # A real container is a file system of its own: nothing here may compile beside its sources.
        "PYTHONDONTWRITEBYTECODE": "1",
        "HOME": home,
        "TMPDIR": f"{machine.disk()}/tmp",  # noqa: S108 # the machine's own
        "HOSTNAME": machine.hostname().partition(".")[0],
        "LANG": "C.UTF-8",
    }
    clean |= environment
    if "PYTHONPATH" in environment:
        clean["PYTHONPATH"] = f"{os.environ['LOCAL_GCE_SITE']}:{environment['PYTHONPATH']}"
    container = Container(identity, name, image, command, clean, folder or home, restart, transient)
    os.makedirs(container.path, mode=0o700)
    container.write("config", json.dumps(asdict(container)))
    return container


def _make_scratch(text: str) -> None:
    """Make a folder where a container would have a file system in memory."""
    path, _, options = text.partition(":")
    mode = dict(each.partition("=")[::2] for each in options.split(",")).get("mode", "1777")
    try:
        if not os.path.isdir(path):
            os.makedirs(path)
            os.chmod(path, int(mode, 8))
    except OSError as error:
        raise ContainerError(
            f"tmpfs {path}: the local Compute Engine runs containers without a file system of "
            f"their own, and there is no such folder on the machine: {error.strerror}"
        ) from error


def _check_volume(volume: str) -> None:
    source, _, rest = volume.partition(":")
    target = rest.partition(":")[0] or source
    if not source.startswith("/"):
        raise ContainerError(
            f"volume {volume}: the local Compute Engine has no named volumes; mount a folder"
        )
    if source.startswith("/var/lib/nvidia/") and not os.path.exists(source):
        return  # the driver of GPUs that a local machine has in name only
    if source != target and not (os.path.exists(target) and os.path.samefile(source, target)):
        raise ContainerError(
            f"volume {volume}: the local Compute Engine runs containers without a file system of "
            "their own, so that a path in the container must be the same as on the machine"
        )
    if not os.path.lexists(source):
        try:
            os.makedirs(source)
        except OSError as error:
            raise ContainerError(
                f"error while creating mount source path '{source}': {error.strerror}"
            ) from error
