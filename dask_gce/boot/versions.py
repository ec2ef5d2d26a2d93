"""The client's versions, as the machines of its cluster are told them.

Owns what is compared and which setting a user changes when versions differ. What a difference means
is decided on the machine, by ``guest/versions.py``, before Dask starts there.

The names are those of the packages that `distributed.versions` compares between a client and its
scheduler, and of the compression libraries that `distributed.protocol.compression` looks for.
"""

from __future__ import annotations

import importlib.metadata
import json
import platform
from collections.abc import Sequence
from functools import lru_cache
from typing import Final

__all__ = ["COMPARED", "client_versions", "expectation"]

#: What is compared, besides Python.
COMPARED: Final = (
    "dask",
    "distributed",
    "cloudpickle",
    "msgpack",
    "toolz",
    "tornado",
    "lz4",
    "python-snappy",
    "zstandard",
)


@lru_cache
def client_versions() -> dict[str, str | None]:
    """Return this process's versions.

    Returns
    -------
    dict of str to (str or None)
        Versions of Python and of the packages, by name; None for those that are not installed.

    Examples
    --------
    >>> list(client_versions())[:3]
    ['python', 'dask', 'distributed']
    """
    found: dict[str, str | None] = {"python": platform.python_version()}
    for name in COMPARED:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = None
    return found


def expectation(runtime: str, container_image: str | None, needed: Sequence[str] = ()) -> str:
    """Write down what a machine compares itself with.

    Parameters
    ----------
    runtime : str
        Where Dask runs on the machine, ``"container"`` or ``"vm"``.
    container_image : str or None
        The container image, to be named when it does not fit.
    needed : sequence of str
        Packages that must be there, whatever their version.

    Returns
    -------
    str
        JSON with the client's ``versions``, what is ``needed`` and, for advice, the ``setting`` to
        change.

    Examples
    --------
    >>> json.loads(expectation("container", "mine:1"))["setting"]
    'another container_image than mine:1, one'
    """
    setting = (
        f"another container_image than {container_image}, one"
        if runtime == "container"
        else "an environment"
    )
    told = {"setting": setting, "versions": client_versions(), "needed": list(needed)}
    return json.dumps(told)
