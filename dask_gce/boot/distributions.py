"""What this process has installed, and where each distribution came from.

Owns the look at `importlib.metadata`. Distributions are told apart by what a machine can do about
them: fetch the same version from an index, fetch it from the repository of its source, or get it
from here. What cannot run on Linux, or is of no use there, is left out, each with its reason.

Modules that lie about on ``sys.path`` without metadata, such as one beside a notebook, belong to no
distribution and are not seen.

Sources: `Recording the direct URL
<https://packaging.python.org/en/latest/specifications/direct-url/>`_, `Environment markers
<https://packaging.python.org/en/latest/specifications/dependency-specifiers/#environment-markers>`_.
"""

from __future__ import annotations

import importlib.metadata
import json
import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Literal
from urllib.parse import urlsplit
from urllib.request import url2pathname

from packaging.markers import default_environment
from packaging.requirements import InvalidRequirement, Requirement
from packaging.utils import canonicalize_name

from dask_gce.boot.requirements import has_credentials
from dask_gce.errors import SettingsError

__all__ = ["Installed", "Inventory", "take_inventory"]

#: The sender itself, of which a machine needs nothing: its programs there come with the metadata.
_OURS: Final = "dask-gce"
#: What installs, which the machine has of its own; but for those that something installed needs.
_INSTALLERS: Final = frozenset({"pip", "setuptools", "uv", "wheel"})
#: Distributions that exist for one other system only.
_ELSEWHERE: Final = frozenset(
    {
        "appnope",
        "macfsevents",
        "pyobjc",
        "pyobjc-core",
        "pywin32",
        "pywin32-ctypes",
        "pywinpty",
        "win32-setctime",
        "winloop",
        "wmi",
    }
)
#: Distributions of conda's own world, which no other index has.
_OF_CONDA: Final = frozenset(
    {
        "anaconda-anon-usage",
        "anaconda-navigator",
        "conda",
        "conda-build",
        "conda-libmamba-solver",
        "libmambapy",
        "mamba",
        "mambapy",
        "menuinst",
    }
)


@dataclass(frozen=True)
class Installed:
    """A distribution that machines are to have too.

    Parameters
    ----------
    name : str
        Its name.
    version : str
        Its version.
    origin : {"index", "url", "folder", "files"}
        An index has it; a machine can fetch its ``source``; it is edited in the folder ``source``;
        or its installed files are what a machine can get.
    source : str
        The URL or folder; empty for an index and for files.
    distribution : importlib.metadata.Distribution
        Its files.
    """

    name: str
    version: str
    origin: Literal["index", "url", "folder", "files"]
    source: str
    distribution: importlib.metadata.Distribution = field(repr=False, compare=False)


@dataclass(frozen=True)
class Inventory:
    """All that is installed.

    Parameters
    ----------
    installed : tuple of Installed
        What machines are to have too, sorted by name.
    left_out : mapping of str to str
        What they are not to have, with the reason.
    """

    installed: tuple[Installed, ...]
    left_out: Mapping[str, str]


def take_inventory(paths: Iterable[str] | None = None, *, key: str = "environment") -> Inventory:
    """Look at what is installed.

    Parameters
    ----------
    paths : iterable of str, optional
        Folders in which to look, instead of ``sys.path``.
    key : str
        The setting to name in errors.

    Returns
    -------
    Inventory
        What was found.

    Raises
    ------
    SettingsError
        If something came from a URL with a password in it.
    """
    found: dict[str, importlib.metadata.Distribution] = {}
    for each in importlib.metadata.distributions(path=list(sys.path if paths is None else paths)):
        name = each.metadata["Name"]
        # pip leaves what it could not delete under a name with a tilde, which nobody imports.
        if name and not _is_rest(each):
            # The first on the path is the one that is imported.
            found.setdefault(canonicalize_name(name), each)
    needed, elsewhere = _needs(found.values())
    installed: list[Installed] = []
    left_out: dict[str, str] = {}
    for name, distribution in sorted(found.items()):
        reason = _reason_against(name, distribution, needed, elsewhere)
        if reason is None:
            installed.append(_classify(name, distribution, key))
        elif reason:
            left_out[name] = reason
    return Inventory(tuple(installed), left_out)


def _is_rest(distribution: importlib.metadata.Distribution) -> bool:
    return Path(getattr(distribution, "_path", "")).name.startswith("~")


def _needs(
    distributions: Iterable[importlib.metadata.Distribution],
) -> tuple[frozenset[str], frozenset[str]]:
    """Return what distributions need on Linux, and what only on the system that this is."""
    here = {str(name): str(value) for name, value in default_environment().items()}
    linux = {**here, "sys_platform": "linux", "platform_system": "Linux", "os_name": "posix"}
    on_linux, only_here = set(), set()
    for requirement in _requirements(distributions):
        name, marker = canonicalize_name(requirement.name), requirement.marker
        if marker is None or marker.evaluate({**linux, "extra": ""}):
            on_linux.add(name)
        elif marker.evaluate({**here, "extra": ""}):
            only_here.add(name)
    return frozenset(on_linux), frozenset(only_here - on_linux)


def _requirements(
    distributions: Iterable[importlib.metadata.Distribution],
) -> Iterator[Requirement]:
    for distribution in distributions:
        for text in distribution.requires or ():
            try:
                yield Requirement(text)
            except InvalidRequirement:
                continue  # of old tools; whoever installed it could not read it either


def _reason_against(
    name: str,
    distribution: importlib.metadata.Distribution,
    needed: frozenset[str],
    elsewhere: frozenset[str],
) -> str | None:
    """Return why machines are not to have a distribution; an empty text for no news."""
    if name == _OURS or (name in _INSTALLERS and name not in needed):
        return ""
    if name in _ELSEWHERE or name.startswith("pyobjc-framework-"):
        return "it does not exist for Linux"
    if name in elsewhere:
        return "nothing needs it on Linux"
    if name in _OF_CONDA:
        return "it is part of conda, and no other index has it"
    return None


def _classify(name: str, distribution: importlib.metadata.Distribution, key: str) -> Installed:
    version = distribution.version
    folder = _legacy_folder(distribution)
    if folder is not None:
        return Installed(name, version, "folder", str(folder), distribution)
    if (distribution.read_text("INSTALLER") or "").strip() == "conda":
        # The URL that conda's packages carry is that of the machine which built them.
        return Installed(name, version, "index", "", distribution)
    text = distribution.read_text("direct_url.json")
    if text is None:
        return Installed(name, version, "index", "", distribution)
    return _from_url(name, distribution, json.loads(text), key)


def _legacy_folder(distribution: importlib.metadata.Distribution) -> Path | None:
    """Return the folder of what ``setup.py develop`` installed, which left no other trace."""
    path = getattr(distribution, "_path", None)
    if path is None or not str(path).endswith(".egg-info"):
        return None
    folder = Path(path).parent
    projects = [each for each in (folder, folder.parent) if (each / "setup.py").is_file()]
    return projects[0] if projects else None


def _from_url(
    name: str, distribution: importlib.metadata.Distribution, direct: Mapping[str, Any], key: str
) -> Installed:
    url, version = str(direct.get("url", "")), distribution.version
    if has_credentials(url):
        # Not repeated here, nor sent anywhere.
        raise SettingsError(
            f"{key}: {name} {version} is installed from a URL with a password or token in it, "
            "which would be readable in the metadata of every machine. Install it without (let git "
            "or a keyring know the password), or name the packages in a list.",
            key=key,
        )
    parts = urlsplit(url)
    inner = f"#subdirectory={direct['subdirectory']}" if direct.get("subdirectory") else ""
    if "vcs_info" in direct and parts.scheme == "https":
        vcs = direct["vcs_info"]
        full = f"{vcs['vcs']}+{url}@{vcs['commit_id']}{inner}"
        return Installed(name, version, "url", full, distribution)
    # What only this user can fetch, as by SSH, is here in its files: nothing has to build it again.
    if parts.scheme == "file":
        if direct.get("dir_info", {}).get("editable"):
            folder = url2pathname(parts.path)
            return Installed(name, version, "folder", folder, distribution)
        return Installed(name, version, "files", "", distribution)
    if parts.scheme == "https" and "vcs_info" not in direct:
        digest = direct.get("archive_info", {}).get("hashes", {}).get("sha256")
        inner = inner or (f"#sha256={digest}" if digest else "")
        return Installed(name, version, "url", url + inner, distribution)
    return Installed(name, version, "files", "", distribution)
