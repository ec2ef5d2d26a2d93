"""The image that machines of kind ``namespace`` boot: a Debian with what Google's images have.

Owns how the recipe beside this module becomes a folder of files, once, and where it is kept. What
is in the image is the recipe's, how it is booted the kind's.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import platform
import shutil
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import platformdirs

__all__ = ["ensure_image", "find_obstacle", "image_folder"]

RECIPE = Path(__file__).parent / "recipe"

#: Raised where the same recipe is to give another image.
_FORMAT = 1
_EXPIRY = 30 * 86400.0
_OS_RELEASE = Path("/etc/os-release")
_APT = Path("/etc/apt")
# Administrators' programs are not on every PATH.
_PATH = f"{os.environ.get('PATH', os.defpath)}:/usr/sbin:/sbin"


def ensure_image(say: Callable[[str], None]) -> Path:
    """Return the folder of the machine image, which is made first if there is none.

    Takes a minute and the network the first time. The image is made of the packages that this
    host's own apt sources offer, and kept in the user's cache folder under a digest of the recipe.

    Parameters
    ----------
    say : callable
        Told in a sentence each what goes on, if it takes long.

    Returns
    -------
    Path
        A folder with the image's files in ``root``, and an empty store of container images in
        ``store``.

    Raises
    ------
    RuntimeError
        There is no image and none can be made here; says what to do.
    """
    folder = image_folder()
    if not folder.exists():
        obstacle = find_obstacle()
        if obstacle is not None:
            raise RuntimeError(f"The machine image cannot be made: {obstacle}")
        folder.parent.mkdir(parents=True, exist_ok=True)
        with _only_builder(folder.parent, say):
            if not folder.exists():
                _build(folder, say)
                _sweep(folder)
    os.utime(folder)
    return folder


def image_folder() -> Path:
    """Return where the machine image of this recipe and this host is, or will be.

    Returns
    -------
    Path
        A folder of the user's cache.
    """
    cache = Path(platformdirs.user_cache_dir("dask-gce", appauthor=False))
    return cache / "machines" / _digest()


def find_obstacle() -> str | None:
    """Tell what keeps this host from making a machine image.

    Returns
    -------
    str or None
        A sentence with the remedy; None if nothing does.
    """
    if sys.platform != "linux" or _release().get("ID") != "debian":
        return "this takes a Debian. Use machines of kind 'process'."
    if os.geteuid() != 0:
        return "this takes root. Run the local Compute Engine as root."
    missing = [name for name in ("mmdebstrap", "unshare") if _which(name) is None]
    if missing:
        packages = " ".join(name.replace("unshare", "util-linux") for name in missing)
        return f"there is no {' and no '.join(missing)} here. Run: apt-get install {packages}"
    if not _sources():
        return f"apt has no sources in {_APT}. Add your mirror of Debian there."
    return None


def _build(folder: Path, say: Callable[[str], None]) -> None:
    """Make the image beside its place and move it there when all is well."""
    building = folder.with_suffix(".building")
    shutil.rmtree(building, ignore_errors=True)  # of a builder that was killed
    building.mkdir(mode=0o700)
    started = time.monotonic()
    say("Making the machine image, once; this takes about a minute.")
    try:
        root, store = building / "root", building / "store"
        uv = _find_uv(building)
        _bootstrap(root, building / "apt.conf", say)
        shutil.copy(uv, root / "usr/local/bin/uv")
        (root / "usr/local/bin/uv").chmod(0o755)
        store.mkdir()
        for name in ("apt.conf", "wheels"):
            leftover = building / name
            shutil.rmtree(leftover) if leftover.is_dir() else leftover.unlink(missing_ok=True)
        building.chmod(0o755)
        building.rename(folder)
    except BaseException:
        shutil.rmtree(building, ignore_errors=True)
        raise
    say(f"The machine image is in {folder}, after {time.monotonic() - started:.0f} s.")


def _bootstrap(root: Path, configuration: Path, say: Callable[[str], None]) -> None:
    packages = [
        line
        for line in (RECIPE / "packages.txt").read_text("utf-8").splitlines()
        if line and not line.startswith("#")
    ]
    configuration.write_text(_apt_configuration(), "utf-8")
    command = [
        # Whatever a package's installation starts or mounts ends with it, also if it is killed.
        *("unshare", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc"),
        *("mmdebstrap", "--mode=root", "--variant=minbase", "--format=directory"),
        f"--include={','.join(packages)}",
        f"--aptopt={configuration}",
        # Nobody reads manuals on a machine.
        *(f"--dpkgopt=path-exclude=/usr/share/{name}/*" for name in ("doc", "info", "locale")),
        *(f"--dpkgopt=path-exclude=/usr/share/{name}/*" for name in ("man", "i18n")),
        f'--customize-hook=sh "{RECIPE}/customize.sh" "$1"',
        _release()["VERSION_CODENAME"],
        str(root),
        *map(str, _sources()),
    ]
    environment = {**os.environ, "PATH": _PATH, "LC_ALL": "C.UTF-8"}
    lines: list[str] = []
    with subprocess.Popen(
        command,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
    ) as process:
        try:
            for line in process.stdout or ():
                lines.append(line.rstrip())
                if line.startswith("I: ") and line.rstrip().endswith("..."):
                    say(f"The machine image: {line[3:].rstrip()}")
        except BaseException:
            process.kill()
            raise
    if process.returncode != 0:
        end = "\n".join(line for line in lines[-20:] if line)
        raise RuntimeError(f"mmdebstrap could not make the machine image. It said:\n{end}")


def _find_uv(building: Path) -> Path:
    """Return the program uv, of this environment or fetched as pip is configured to."""
    found = _which("uv", f"{Path(sys.executable).parent}:{_PATH}")
    if found is not None:
        return Path(found).resolve()
    wheels = building / "wheels"
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet"]
    done = subprocess.run(
        [*pip, "download", "--no-deps", "--only-binary=:all:", f"--dest={wheels}", "uv"],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        raise RuntimeError(f"pip could not fetch uv for the machine image: {done.stdout.strip()}")
    (wheel,) = wheels.glob("uv-*.whl")
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (each for each in archive.namelist() if each.endswith(".data/scripts/uv"))
        return Path(archive.extract(name, wheels))


def _apt_configuration() -> str:
    """Return what apt is told here about proxies, retries and certificates."""
    done = subprocess.run(
        ["apt-config", "dump", "Acquire"],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=True,
    )
    kept = ("Acquire::http", "Acquire::https", "Acquire::Retries", "Acquire::Check-Valid-Until")
    return "".join(f"{line}\n" for line in done.stdout.splitlines() if line.startswith(kept))


def _sources() -> list[Path]:
    """Return the files with this host's own apt sources."""
    parts = _APT / "sources.list.d"
    files = [_APT / "sources.list", *sorted(parts.glob("*.list")), *sorted(parts.glob("*.sources"))]
    return [file for file in files if file.is_file() and _has_entries(file)]


def _has_entries(file: Path) -> bool:
    lines = file.read_text("utf-8", "replace").splitlines()
    return any(line.strip() and not line.lstrip().startswith("#") for line in lines)


def _release() -> dict[str, str]:
    if not _OS_RELEASE.exists():
        return {}
    pairs = (line.partition("=") for line in _OS_RELEASE.read_text("utf-8").splitlines())
    return {name: value.strip("\"'") for name, _, value in pairs}


def _digest() -> str:
    parts = [str(_FORMAT), _release().get("VERSION_CODENAME", ""), platform.machine()]
    digest = hashlib.sha256("\n".join(parts).encode())
    for file in sorted(RECIPE.rglob("*")):
        if file.is_file():
            content = file.read_bytes()
            digest.update(f"{file.relative_to(RECIPE)} {len(content)}\n".encode() + content)
    return digest.hexdigest()[:16]


def _which(program: str, path: str = _PATH) -> str | None:
    return shutil.which(program, path=path)


@contextlib.contextmanager
def _only_builder(folder: Path, say: Callable[[str], None]) -> Iterator[None]:
    with (folder / "lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say("Waiting for another process that makes the machine image.")
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _sweep(current: Path) -> None:
    """Remove images of other recipes that nobody has used for long."""
    now = time.time()
    for other in current.parent.iterdir():
        if other.is_dir() and other != current and now - other.stat().st_mtime > _EXPIRY:
            shutil.rmtree(other, ignore_errors=True)
