"""Wheels of packages that no index has: built from a folder, or packed again as installed.

Owns the wheels of this machine, and the cache in which they stay for the next cluster. What has to
become a wheel is decided in `resolution`; how it gets to the machines in `shipping`.

A build is a process of its own, with the tools that the user has: uv, else pip. Both fetch what the
package's own build system needs from wherever they are configured to. A package that was installed
from a folder or a file but cannot be edited there is packed from its installed files, for these are
what works here: its folder may be gone or be another version by now.

Sources: `The wheel format
<https://packaging.python.org/en/latest/specifications/binary-distribution-format/>`_ and `Recording
installed projects <https://packaging.python.org/en/latest/specifications/recording-installed-packages/>`_.
"""

from __future__ import annotations

import base64
import hashlib
import importlib.metadata
import importlib.util
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from packaging.utils import InvalidWheelFilename, canonicalize_name, parse_wheel_filename
from platformdirs import user_cache_path

from dask_gce.errors import SettingsError

__all__ = ["Wheel", "build_wheel", "pack_installed", "read_wheel"]

#: Folders that do not end in a wheel, wherever in a project they are.
_NOT_SOURCE: Final = frozenset(
    {
        ".git",
        ".hg",
        ".mypy_cache",
        ".nox",
        ".pytest_cache",
        ".ruff_cache",
        ".tox",
        ".venv",
        "__pycache__",
    }
)
#: Folders beside the project's pyproject.toml that hold what was made of it. Elsewhere they may be
#: packages.
_MADE: Final = frozenset({"build", "dist", "node_modules", "venv"})
#: What an installer wrote about itself, and what it writes anew where the wheel is installed.
_INSTALLERS: Final = frozenset({"INSTALLER", "RECORD", "REQUESTED", "direct_url.json"})
#: Lines of a failed build that an error repeats.
_TAIL: Final = 15
# ZIP has no time before this one; the same content is to be the same file.
_EPOCH: Final = (1980, 1, 1, 0, 0, 0)


@dataclass(frozen=True)
class Wheel:
    """A wheel that machines get from the client.

    Parameters
    ----------
    name : str
        The file's name.
    size : int
        Its size in bytes.
    sha256 : str
        The digest of its content.
    path : Path or None
        Where it is here; None in a process that did not make it.
    """

    name: str
    size: int
    sha256: str
    path: Path | None = field(default=None, compare=False)

    def dump(self) -> dict[str, Any]:
        """Write as JSON data all that a machine has to know.

        Returns
        -------
        dict of str to object
            Name, size and digest.
        """
        return {"name": self.name, "size": self.size, "sha256": self.sha256}


def read_wheel(path: Path, *, key: str = "environment") -> Wheel:
    """Look at a wheel.

    Parameters
    ----------
    path : Path
        The file.
    key : str
        The setting to name in errors.

    Returns
    -------
    Wheel
        The wheel.

    Raises
    ------
    SettingsError
        If no machine of the cluster could install it.
    """
    try:
        _, _, _, tags = parse_wheel_filename(path.name)
    except InvalidWheelFilename as error:
        raise SettingsError(f"{key}: {path} is no wheel: {error}.", key=key) from error
    if not any(tag.platform == "any" or "linux" in tag.platform for tag in tags):
        raise SettingsError(
            f"{key}: {path.name} holds code that was compiled for {platform.system()}, and the "
            "machines run Linux. Publish a wheel for Linux, or put the package into an image.",
            key=key,
        )
    digest, size = hashlib.sha256(), 0
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
            size += len(block)
    return Wheel(path.name, size, digest.hexdigest(), path)


def build_wheel(source: Path, *, key: str = "environment") -> Wheel:
    """Build the wheel of a project, unless one of the same content was built before.

    Parameters
    ----------
    source : Path
        The project's folder.
    key : str
        The setting to name in errors.

    Returns
    -------
    Wheel
        The wheel, in the user's cache.

    Raises
    ------
    SettingsError
        If there is no such project, or nothing here can build it.
    """
    if not any((source / name).is_file() for name in ("pyproject.toml", "setup.py")):
        raise SettingsError(
            f"{key}: {source} has no pyproject.toml and no setup.py, so that it is no package.",
            key=key,
        )
    # A wheel may depend on the Python that built it.
    version = f"{sys.implementation.cache_tag}-{_source_digest(source)[:32]}"
    folder = _cache() / version
    for known in sorted(folder.glob("*.whl")):
        return read_wheel(known, key=key)
    _cache().mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=_cache(), prefix="building-") as building:
        _build(source, Path(building), key)
        built = sorted(Path(building).glob("*.whl"))
        if not built:
            raise SettingsError(f"{key}: building {source} gave no wheel.", key=key)
        wheel = read_wheel(built[0], key=key)
        folder.mkdir(exist_ok=True)
        # Two processes that build the same one after another both end with a whole file.
        return read_wheel(built[0].replace(folder / wheel.name), key=key)


def _cache() -> Path:
    return user_cache_path("dask_gce") / "wheels"


def _build(source: Path, folder: Path, key: str) -> None:
    what = str(source)
    uv = shutil.which("uv")
    if uv is not None:
        command = [uv, "build", "--wheel", "--no-progress", "--python", sys.executable]
        command += ["--out-dir", str(folder), "--", what]
    elif importlib.util.find_spec("pip") is not None:
        command = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-input", "--quiet"]
        command += ["--disable-pip-version-check", "--wheel-dir", str(folder), "--", what]
    else:
        raise SettingsError(
            f"{key}: to build {what}, install uv or pip into this environment.", key=key
        )
    done = subprocess.run(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        check=False,
    )
    if done.returncode != 0:
        tail = "\n".join(done.stdout.strip().splitlines()[-_TAIL:])
        raise SettingsError(f"{key}: {what} could not be built into a wheel:\n{tail}", key=key)


def _source_digest(folder: Path) -> str:
    """Return the digest of all that may end in the wheel of a project."""
    digest = hashlib.sha256()
    for path in _source_files(folder):
        content = hashlib.sha256()
        with path.open("rb") as file:
            while block := file.read(1 << 20):
                content.update(block)
        name = path.relative_to(folder).as_posix()
        digest.update(f"{name}\0{content.hexdigest()}\n".encode(errors="surrogateescape"))
    return digest.hexdigest()


def _source_files(folder: Path) -> Iterator[Path]:
    for here, folders, files in os.walk(folder):
        folders[:] = sorted(
            each
            for each in folders
            if each not in _NOT_SOURCE
            and not (each in _MADE and Path(here) == folder)
            and not each.endswith((".egg-info", ".dist-info"))
        )
        yield from (Path(here, each) for each in sorted(files) if Path(here, each).is_file())
    # A version may be made of the last commit and its tags.
    git = folder / ".git"
    yield from (git / each for each in ("logs/HEAD", "packed-refs") if (git / each).is_file())


def pack_installed(
    distribution: importlib.metadata.Distribution, *, key: str = "environment"
) -> Wheel:
    """Make a wheel of the files of an installed distribution.

    Parameters
    ----------
    distribution : importlib.metadata.Distribution
        The distribution.
    key : str
        The setting to name in errors.

    Returns
    -------
    Wheel
        The wheel, in the user's cache.

    Raises
    ------
    SettingsError
        If its installer did not record its files, or if they are for another system.
    """
    name, version = distribution.metadata["Name"], distribution.version
    tags = _tags(distribution)
    if distribution.files is None or not tags:
        raise SettingsError(
            f"{key}: {name} {version} was not installed from an index, and its installer recorded "
            "no list of its files; install it anew with pip or uv.",
            key=key,
        )
    escaped = canonicalize_name(name).replace("-", "_")
    file_name = f"{escaped}-{version.replace('-', '_')}-{tags}.whl"
    data = f"{escaped}-{version.replace('-', '_')}.data"
    contents: dict[str, bytes] = {}
    for path in distribution.files:
        target = _target(str(path.as_posix()), data, _entry_points(distribution))
        located = Path(str(path.locate()))
        if target is not None and located.is_file():
            contents[target] = located.read_bytes()
    information = next((name for name in contents if name.endswith(".dist-info/WHEEL")), None)
    if information is None:
        raise SettingsError(f"{key}: {name} {version} is not installed completely.", key=key)
    record = f"{information.rpartition('/')[0]}/RECORD"
    lines = [f"{name},{_record_digest(content)}" for name, content in sorted(contents.items())]
    contents[record] = "".join(f"{line}\n" for line in [*lines, f"{record},,"]).encode()
    digest = hashlib.sha256(contents[record]).hexdigest()
    folder = _cache() / f"packed-{digest[:32]}"
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / file_name).exists():
        with tempfile.TemporaryDirectory(dir=folder) as packing:
            packed = Path(packing, file_name)
            with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
                for name, content in contents.items():
                    archive.writestr(zipfile.ZipInfo(name, _EPOCH), content, zipfile.ZIP_DEFLATED)
            packed.replace(folder / file_name)
    return read_wheel(folder / file_name, key=key)


def _tags(distribution: importlib.metadata.Distribution) -> str:
    """Return the tags of a wheel's name, from what its metadata says of them."""
    wheel = distribution.read_text("WHEEL") or ""
    tags = [line.partition(":")[2].strip() for line in wheel.splitlines() if line[:4] == "Tag:"]
    parts = [tag.split("-") for tag in tags if tag.count("-") == 2]
    # "py2-none-any" and "py3-none-any" are written as one, "py2.py3-none-any".
    return "-".join(".".join(dict.fromkeys(column)) for column in zip(*parts, strict=True))


def _entry_points(distribution: importlib.metadata.Distribution) -> frozenset[str]:
    groups = ("console_scripts", "gui_scripts")
    return frozenset(each.name for each in distribution.entry_points if each.group in groups)


def _target(path: str, data: str, scripts: frozenset[str]) -> str | None:
    """Return where an installed file was in its wheel; None for what the wheel did not have."""
    parts = path.split("/")
    if "__pycache__" in parts or path.endswith(".pyc"):
        return None
    if parts[0] != "..":
        made = parts[0].endswith(".dist-info") and len(parts) == 2 and parts[1] in _INSTALLERS
        return None if made else path
    outside = [part for part in parts if part != ".."]
    if outside[0] in ("bin", "Scripts"):
        name = outside[-1]
        known = name in scripts or name.removesuffix(".exe") in scripts
        return None if known else f"{data}/scripts/{name}"
    return f"{data}/data/{'/'.join(outside)}"


def _record_digest(content: bytes) -> str:
    digest = base64.urlsafe_b64encode(hashlib.sha256(content).digest()).rstrip(b"=")
    return f"sha256={digest.decode()},{len(content)}"
