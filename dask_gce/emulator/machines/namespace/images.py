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

from dask_gce.emulator.machines.namespace.debian import bootstrap, find_obstacle, read_release
from dask_gce.emulator.machines.namespace.store import load_images

__all__ = ["ensure_image", "image_folder", "make_once"]

RECIPE = Path(__file__).parent / "recipe"

#: Raised where the same recipe is to give another image.
_FORMAT = 2
#: Seconds after which an image that nobody used is in the way.
_EXPIRY = 30 * 86400.0


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

    def build(folder: Path) -> None:
        obstacle = find_obstacle()
        if obstacle is not None:
            raise RuntimeError(f"The machine image cannot be made. {obstacle}")
        say("Making the machine image, once; this takes about a minute.")
        started = time.monotonic()
        root = folder / "root"
        bootstrap(root, _packages(), say, customize=RECIPE / "customize.sh")
        _install_uv(root, folder / "wheels")
        load_images(root, folder / "store")
        say(f"The machine image is made, after {time.monotonic() - started:.0f} s.")

    return make_once(image_folder(), build, say)


def image_folder() -> Path:
    """Return where the machine image of this recipe and this host is, or will be.

    Returns
    -------
    Path
        A folder of the user's cache.
    """
    cache = Path(platformdirs.user_cache_dir("dask-gce", appauthor=False))
    return cache / "machines" / _digest()


def make_once(folder: Path, build: Callable[[Path], None], say: Callable[[str], None]) -> Path:
    """Make a folder unless it is there, whole or not at all, and only once at a time.

    Parameters
    ----------
    folder : Path
        The folder. Others beside it that were not asked for in a month are removed.
    build : callable
        Fills the empty folder that it is given.
    say : callable
        Told if another process makes it at the moment.

    Returns
    -------
    Path
        The folder.
    """
    if not folder.exists():
        folder.parent.mkdir(parents=True, exist_ok=True)
        with _only_builder(folder.parent / "lock", say):
            if not folder.exists():
                _make(folder, build)
                _sweep(folder)
    os.utime(folder)
    return folder


def _make(folder: Path, build: Callable[[Path], None]) -> None:
    building = folder.with_name(f"{folder.name}.building")
    shutil.rmtree(building, ignore_errors=True)  # of a builder that was killed
    building.mkdir()
    try:
        build(building)
        building.rename(folder)
    except BaseException:
        shutil.rmtree(building, ignore_errors=True)
        raise


def _packages() -> list[str]:
    lines = (RECIPE / "packages.txt").read_text("utf-8").splitlines()
    return [line for line in lines if line and not line.startswith("#")]


def _install_uv(root: Path, wheels: Path) -> None:
    """Give the image uv: this environment's own, or what pip fetches as it is configured to."""
    folders = (str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath))
    found = shutil.which("uv", path=os.pathsep.join(folders))
    uv = _fetch_uv(wheels) if found is None else Path(found)
    installed = root / "usr/local/bin/uv"
    shutil.copyfile(uv, installed)
    installed.chmod(0o755)
    shutil.rmtree(wheels, ignore_errors=True)


def _fetch_uv(wheels: Path) -> Path:
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
        raise RuntimeError(
            f"pip could not fetch uv for the machine image; install uv yourself.\n{done.stdout}"
        )
    (wheel,) = wheels.glob("uv-*.whl")
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (each for each in archive.namelist() if each.endswith(".data/scripts/uv"))
        return Path(archive.extract(name, wheels))


def _digest() -> str:
    parts = [str(_FORMAT), read_release().get("VERSION_CODENAME", ""), platform.machine()]
    digest = hashlib.sha256("\n".join(parts).encode())
    for file in sorted(RECIPE.rglob("*")):
        if file.is_file():
            content = file.read_bytes()
            digest.update(f"{file.relative_to(RECIPE)} {len(content)}\n".encode() + content)
    return digest.hexdigest()[:16]


@contextlib.contextmanager
def _only_builder(lock: Path, say: Callable[[str], None]) -> Iterator[None]:
    with lock.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say("Waiting for another process that makes this.")
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _sweep(current: Path) -> None:
    """Remove what nobody has asked for in a long time."""
    now = time.time()
    for other in current.parent.iterdir():
        if other.is_dir() and other != current and now - other.stat().st_mtime > _EXPIRY:
            shutil.rmtree(other, ignore_errors=True)
