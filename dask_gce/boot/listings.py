"""The files in which a user lists packages: requirements files and lock files.

Owns reading them, and the refusal of what would mean something here only. Which of the lines are
folders that become wheels is the matter of `resolution`.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from packaging.utils import canonicalize_name

from dask_gce.boot.requirements import has_credentials, is_local, parse_requirement, secret
from dask_gce.errors import SettingsError

__all__ = ["read_lock", "read_requirements"]


def read_requirements(path: Path) -> list[str]:
    """Read a requirements file, with all that it includes.

    Parameters
    ----------
    path : Path
        The file.

    Returns
    -------
    list of str
        Its requirements and options, a line each. Folders are paths that `is_local` knows.

    Raises
    ------
    SettingsError
        If it cannot be read, or has a line that no machine could follow.
    """
    return list(_lines(path, _read(path), ()))


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise SettingsError(
            f"environment: {path.absolute()} cannot be read: {error}.", key="environment"
        ) from error


def _lines(path: Path, text: str, seen: tuple[Path, ...]) -> Iterator[str]:
    # A line that ends in a backslash goes on in the next.
    for raw in re.sub(r"\\\r?\n", " ", text).splitlines():
        line = re.sub(r"(^|\s)#.*$", "", raw).strip()
        if not line:
            continue
        option, _, value = line.partition(" ")
        if option.startswith("--") and "=" in option:
            option, _, value = line.partition("=")
        value = value.strip()
        if option in ("-r", "--requirement"):
            inner = path.parent / value
            if inner.resolve() not in (*seen, path.resolve()):
                yield from _lines(inner, _read(inner), (*seen, path.resolve()))
        elif option in ("-c", "--constraint"):
            raise SettingsError(
                f"environment: {path.name} refers to the constraints {value}, which would stay "
                f"here. Make one file of both: uv pip compile {path.name} -o pinned.txt",
                key="environment",
            )
        elif option in ("-e", "--editable"):
            yield _in_folder(path, value)
        elif line.startswith("-"):
            if has_credentials(line):
                raise secret("environment")
            yield line
        else:
            yield _in_folder(path, line)


def _in_folder(path: Path, line: str) -> str:
    """Return a requirement, checked; a path with the folder of the file that it is relative to."""
    requirement = re.split(r"\s--", line, maxsplit=1)[0].strip()
    plain = requirement.partition("[")[0]
    if not is_local(line) and "@" not in line and (path.parent / plain).is_dir() and "/" in line:
        requirement = f"./{requirement}"
    parse_requirement(requirement)
    if re.match(r"\.{1,2}([/\\\[]|$)", requirement):
        return f"{path.parent.absolute()}/{requirement}"
    return line


def read_lock(path: Path) -> tuple[str, frozenset[str]]:
    """Read a lock file.

    Parameters
    ----------
    path : Path
        The file.

    Returns
    -------
    text : str
        What is in it.
    names : frozenset of str
        The packages that it locks.

    Raises
    ------
    SettingsError
        If it cannot be read, or has a package from a path of this machine or a password in it.
    """
    text = _read(path)
    if has_credentials(text):
        raise secret("environment")
    packages = _parse_toml(path, text).get("packages", [])
    for each in packages:
        places = [each.get("directory"), each.get("archive"), each.get("sdist"), each.get("vcs")]
        if any(place and "path" in place for place in [*places, *each.get("wheels", [])]):
            raise SettingsError(
                f"environment: {path.name} has {each.get('name')} from a path of this machine. "
                "Lock without it, or list requirements, in which folders may be named.",
                key="environment",
            )
    return text, frozenset(canonicalize_name(str(each.get("name", ""))) for each in packages)


def _parse_toml(path: Path, text: str) -> dict[str, Any]:
    if sys.version_info >= (3, 11):
        import tomllib
    else:
        import tomli as tomllib
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise SettingsError(
            f"environment: {path.absolute()} is no TOML: {error}.", key="environment"
        ) from error
