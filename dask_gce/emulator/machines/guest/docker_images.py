"""The images of the stand-in for ``docker``: which exist, and which the machine has.

An image exists when its name matches one of the emulator's patterns; there is nothing behind it.
The machine has those that were pulled on it, until it is deleted.

Source of the words: what docker 27 writes where its output is no terminal.
"""

from __future__ import annotations

import fnmatch
import json
import os
from collections.abc import Callable
from typing import Any

from . import machine_files as machine
from .containers import digest

__all__ = ["details", "image_error", "is_here", "pull"]

#: How many layers each image is said to have.
LAYERS = 3


def image_error(image: str) -> str | None:
    """Say, in docker's words, that an image does not exist.

    Parameters
    ----------
    image : str
        The reference as it was typed.

    Returns
    -------
    str or None
        The sentence; None for an image that exists.
    """
    with open(f"{os.environ['LOCAL_GCE_BIN']}/.images", encoding="utf-8") as file:
        patterns = json.load(file)
    tagged = _tagged(image)
    if any(fnmatch.fnmatchcase(name, one) for one in patterns for name in (image, tagged)):
        return None
    repository = _repository(tagged)
    if any(fnmatch.fnmatchcase(repository, one.rpartition(":")[0]) for one in patterns):
        return f"manifest for {tagged} not found: manifest unknown: manifest unknown"
    return (
        f"pull access denied for {repository}, repository does not exist or may require "
        "'docker login': denied: requested access to the resource is denied"
    )


def is_here(image: str) -> bool:
    """Tell whether an image was pulled on this machine.

    Parameters
    ----------
    image : str
        The reference as it was typed.

    Returns
    -------
    bool
        Whether it was.
    """
    return os.path.exists(_record(image))


def pull(image: str, say: Callable[[str], None]) -> None:
    """Pull an image that exists.

    Parameters
    ----------
    image : str
        The reference as it was typed.
    say : callable
        Called with each line of progress.
    """
    tagged = _tagged(image)
    path = _repository(tagged)
    registry, slash, name = path.partition("/")
    if not slash or not ({".", ":"} & set(registry) or registry == "localhost"):
        name = path if slash else f"library/{path}"
    say(f"{tagged[len(path) + 1 :]}: Pulling from {name}")
    if is_here(image):
        status = f"Image is up to date for {tagged}"
    else:
        layers = [digest(f"{tagged} {number}")[:12] for number in range(LAYERS)]
        for layer in layers:
            say(f"{layer}: Pulling fs layer")
        for layer in layers:
            for step in ("Verifying Checksum", "Download complete", "Pull complete"):
                say(f"{layer}: {step}")
        os.makedirs(os.path.dirname(_record(image)), exist_ok=True)
        with open(_record(image), "w", encoding="utf-8") as file:
            file.write(tagged)
        status = f"Downloaded newer image for {tagged}"
    say(f"Digest: sha256:{digest(tagged)}")
    say(f"Status: {status}")


def details(image: str) -> dict[str, Any] | None:
    """Describe an image as ``docker image inspect`` does.

    Parameters
    ----------
    image : str
        The reference as it was typed.

    Returns
    -------
    dict or None
        The description; None for an image that the machine does not have.
    """
    if not is_here(image):
        return None
    return {
        "Id": f"sha256:{digest(image)}",
        "RepoTags": [image],
        "Architecture": {"x86_64": "amd64", "aarch64": "arm64"}.get(os.uname().machine, ""),
        "Os": "linux",
        "Config": {"Entrypoint": None, "Cmd": None, "Env": None, "WorkingDir": "", "User": ""},
    }


def _tagged(image: str) -> str:
    return image if ":" in image.rpartition("/")[2] or "@" in image else f"{image}:latest"


def _repository(tagged: str) -> str:
    return tagged.partition("@")[0] if "@" in tagged else tagged.rpartition(":")[0]


def _record(image: str) -> str:
    return f"{machine.disk()}/images/{digest(_tagged(image))}"
