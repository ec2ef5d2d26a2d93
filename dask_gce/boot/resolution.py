"""What becomes of the setting ``environment``, found out once for all machines of a cluster.

Owns the way from what a user named, or has installed, to a file as uv and pip read it and to wheels
that no index has. What a machine makes of that is in ``dask_gce/guest/install.py`` and ``vm.sh``.

Everything here blocks, and may build packages for a minute: use a thread on an event loop.
"""

from __future__ import annotations

import importlib.metadata
import platform
import re
import sys
import zipfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit
from urllib.request import url2pathname

from packaging.markers import default_environment
from packaging.requirements import InvalidRequirement, Requirement
from packaging.utils import canonicalize_name
from packaging.version import InvalidVersion, Version

from dask_gce.boot import requirements
from dask_gce.boot.distributions import Installed, Inventory, take_inventory
from dask_gce.boot.environment import Environment
from dask_gce.boot.listings import read_lock, read_requirements
from dask_gce.boot.wheels import Wheel, build_wheel, pack_installed, read_wheel
from dask_gce.errors import SettingsError

__all__ = ["resolve"]

#: What scheduler, workers and client exchange messages with.
_WIRE: Final = ("dask", "distributed", "cloudpickle", "msgpack", "lz4", "zstandard")
#: What the official container image has beside it, as far as the client has it too.
_COMPANIONS: Final = ("bokeh", "numpy", "pandas", "pyarrow")
#: Without these there is no scheduler that could hand out anything.
_ROOTS: Final[tuple[str, ...]] = ("dask", "distributed")
_REQUIREMENTS: Final = "requirements.txt"
_LOCK: Final = "pylock.toml"
_EXACT: Final = "--no-deps"
_HASHED: Final = "--require-hashes"


def resolve(
    environment: str | tuple[str, ...] | None,
    *,
    runtime: str,
    tell: Callable[[str], object] = lambda text: None,
    inventory: Callable[[], Inventory] = take_inventory,
) -> Environment | None:
    """Find out what is to be installed, and build what has to be built here.

    Parameters
    ----------
    environment : str or tuple of str or None
        The setting.
    runtime : {"container", "vm"}
        Where Dask runs: in a container the packages are added to the image's.
    tell : callable
        Told of what takes time, in a sentence.
    inventory : callable
        Looks at what is installed here.

    Returns
    -------
    Environment or None
        The environment; None if nothing is to be installed.

    Raises
    ------
    SettingsError
        If a file cannot be read, a package cannot be built, or Dask would not be among them.
    """
    alone = runtime == "vm"
    if environment is None:
        return _minimum() if alone else None
    if environment == requirements.SYNC:
        return _synced(inventory(), tell)
    if not isinstance(environment, str):
        return _listed(list(environment), Path(), alone, tell)
    path = Path(environment).expanduser()
    if requirements.is_lock_file(environment):
        return _locked(path, alone)
    return _listed(read_requirements(path), path.parent, alone, tell)


def _python() -> str:
    major, minor, _ = platform.python_version_tuple()
    return f"{major}.{minor}"


def _pins(names: Iterable[str]) -> list[str]:
    """Return the client's own versions of distributions, of those that it has."""
    pins = []
    for name in names:
        try:
            pins.append(f"{name}=={_public(importlib.metadata.version(name))}")
        except importlib.metadata.PackageNotFoundError:
            continue
    return pins


def _public(version: str) -> str:
    # "2.3.0+cu121" is on no common index; asked for without its end, it is found where it exists.
    try:
        return Version(version).public
    except InvalidVersion:
        return version  # of old tools; who installed it from an index did so by that name


def _text(lines: Iterable[str]) -> str:
    return "".join(f"{line}\n" for line in lines)


def _minimum() -> Environment:
    lines = _pins([*_WIRE, *_COMPANIONS])
    summary = f"the client's Dask with {len(lines) - 2} more packages"
    return Environment(_python(), _REQUIREMENTS, _text(lines), summary=summary)


# -- what is installed here -----------------------------------------------------------------------


def _synced(inventory: Inventory, tell: Callable[[str], object]) -> Environment:
    lines: list[str] = []
    wheels: list[Wheel] = []
    roots = _closure(inventory.installed)
    for each in inventory.installed:
        if each.origin == "index":
            lines.append(f"{each.name}=={_public(each.version)}")
        elif each.origin == "url":
            lines.append(f"{each.name} @ {each.source}")
        elif each.name in roots:
            raise SettingsError(
                f"environment: {each.name} {each.version} is not installed from an index. Machines "
                "need it before they can get anything from here: install a release of it, or a "
                f"commit ({each.name} @ git+https://...).",
                key="environment",
            )
        else:
            wheels.append(_wheel(each, tell))
    # What works together here is what is asked for there, even where a resolver would object. On
    # another system the set has to be completed, with what only Linux needs.
    options = (_EXACT,) if sys.platform == "linux" else ()
    summary = f"sync: {len(lines)} packages, {len(wheels)} local wheels"
    return Environment(
        _python(),
        _REQUIREMENTS,
        _text(lines),
        options,
        tuple(wheels),
        summary,
        left_out=inventory.left_out,
    )


def _wheel(each: Installed, tell: Callable[[str], object]) -> Wheel:
    if each.origin == "files":
        return pack_installed(each.distribution)
    tell(f"Building a wheel of {each.name} {each.version}")
    return build_wheel(Path(each.source))


def _closure(installed: Iterable[Installed]) -> frozenset[str]:
    """Return the names of all that Dask itself needs."""
    known = {each.name: each.distribution for each in installed}
    found: set[str] = set()
    waiting = [name for name in _ROOTS if name in known]
    while waiting:
        name = waiting.pop()
        if name not in found and name in known:
            found.add(name)
            waiting.extend(each.name for each in _needs(known[name].requires or (), ()))
    return frozenset(found)


def _needs(texts: Iterable[str], extras: Iterable[str]) -> Iterator[Requirement]:
    """Return what a distribution needs on Linux, each with its name as indexes write it."""
    here = {str(name): str(value) for name, value in default_environment().items()}
    linux = {**here, "sys_platform": "linux", "platform_system": "Linux", "os_name": "posix"}
    for text in texts:
        try:
            each = Requirement(text)
        except InvalidRequirement:
            continue
        wanted = ["", *extras]
        if each.marker and not any(each.marker.evaluate({**linux, "extra": e}) for e in wanted):
            continue
        each.marker = None
        each.name = canonicalize_name(each.name)
        yield each


# -- what the user has listed ---------------------------------------------------------------------


def _listed(
    given: list[str], folder: Path, alone: bool, tell: Callable[[str], object]
) -> Environment:
    lines: list[str] = []
    wheels: list[Wheel] = []
    needs: list[Requirement] = []
    named: set[str] = set()
    for line in given:
        if requirements.is_local(line):
            wheel, extras = _local(line, folder, tell)
            wheels.append(wheel)
            named.add(canonicalize_name(wheel.name.partition("-")[0]))
            needs.extend(_needs(_wheel_requires(wheel), extras))
        else:
            lines.append(line)
            named.update(_names(line))
    # Wheels from here are installed without what they need, which comes with all the rest.
    mine = {canonicalize_name(wheel.name.partition("-")[0]) for wheel in wheels}
    hashed = any("--hash=" in line for line in lines)
    if hashed:
        # Which has its own pin of each.
        _refuse_unhashed(needs, named)
    else:
        lines += dict.fromkeys(str(each) for each in needs if each.name not in mine)
    named.update(each.name for each in needs)
    if local_roots := mine.intersection(_ROOTS):
        raise SettingsError(
            f"environment: {min(local_roots)} is a folder of yours. Machines need it before they "
            "can get anything from here: name a release of it, or a commit (git+https://...).",
            key="environment",
        )
    if alone and not named.intersection(_ROOTS):
        if hashed:
            raise SettingsError(
                "environment: the requirements file has no dask[distributed] in it, without which "
                "no machine can start; add it with its hashes.",
                key="environment",
            )
        lines += _pins(_ROOTS)
    elif alone and "distributed" not in named and not hashed:
        lines.append("distributed")
    summary = f"{len(lines)} requirements, {len(wheels)} local wheels"
    options = (_HASHED,) if hashed else ()
    return Environment(_python(), _REQUIREMENTS, _text(lines), options, tuple(wheels), summary)


def _refuse_unhashed(needs: Iterable[Requirement], named: set[str]) -> None:
    """Refuse what machines would refuse: with hashes, everything needs some."""
    if missing := sorted({each.name for each in needs} - named):
        raise SettingsError(
            f"environment: the requirements file has hashes, but no line for {', '.join(missing)}, "
            "which your own packages need; add it with its hashes.",
            key="environment",
        )


def _local(
    requirement: str, folder: Path, tell: Callable[[str], object]
) -> tuple[Wheel, tuple[str, ...]]:
    """Return the wheel of a folder or file of this machine, and the extras that are asked for."""
    text, extras = requirements.split_path(requirement)
    plain = url2pathname(urlsplit(text).path) if text.startswith("file:") else text
    path = folder / Path(plain).expanduser()
    if path.suffix == ".whl" and path.is_file():
        return read_wheel(path), extras
    if not path.is_dir():
        raise SettingsError(
            f"environment: {requirement!r} is {path.absolute()}, where there is neither a folder "
            "nor a wheel.",
            key="environment",
        )
    tell(f"Building a wheel of {path}")
    return build_wheel(path.absolute()), extras


def _wheel_requires(wheel: Wheel) -> list[str]:
    if wheel.path is None:
        return []
    with zipfile.ZipFile(wheel.path) as archive:
        name = next(each for each in archive.namelist() if each.endswith(".dist-info/METADATA"))
        text = archive.read(name).decode("utf-8", errors="replace")
    header = text.partition("\n\n")[0]
    return [line.partition(":")[2].strip() for line in header.splitlines() if _REQUIRES(line)]


_REQUIRES: Final = re.compile(r"Requires-Dist:").match


def _names(line: str) -> set[str]:
    """Return the distribution that a line names, with the one that its extras bring."""
    try:
        found = Requirement(re.split(r"\s(?:--|#)|^[-#]", line, maxsplit=1)[0])
    except InvalidRequirement:
        return set()
    name = canonicalize_name(found.name)
    with_distributed = name == "dask" and found.extras & {"distributed", "complete", "diagnostics"}
    return {name, "distributed"} if with_distributed else {name}


def _locked(path: Path, alone: bool) -> Environment:
    text, names = read_lock(path)
    if alone and not names.issuperset(_ROOTS):
        raise SettingsError(
            f"environment: {path.name} has no dask[distributed] in it, without which no machine "
            "can start; add it and lock again.",
            key="environment",
        )
    return Environment(_python(), _LOCK, text, summary=f"{len(names)} locked packages")
