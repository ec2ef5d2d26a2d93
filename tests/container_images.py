"""The wheels that the images in ``images/`` are built from in tests, fetched once and kept.

`ci/machines.sh` runs this as a program, so that no test waits for a download; a test is skipped
where they are missing, and says so.
"""

from __future__ import annotations

import hashlib
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import machines
import platformdirs

from dask_gce.emulator.machines.namespace import images

IMAGES = Path(__file__).parents[1] / "images"
_LOCK = IMAGES / "requirements.txt"


def wheels_folder() -> Path:
    """Return where the wheels of the lock are, for this Python."""
    digest = hashlib.sha256(_LOCK.read_bytes() + sys.version.encode()).hexdigest()[:16]
    cache = Path(platformdirs.user_cache_dir("dask-gce", appauthor=False))
    return cache / "tests" / f"images-{digest}"


def find_obstacle() -> str | None:
    """Tell why no container image can be built by a test; None if one can."""
    if not wheels_folder().exists():
        return machines.find_obstacle() or "the wheels are not there; run ci/machines.sh"
    return machines.find_obstacle()


def prepare(say: Callable[[str], None]) -> None:
    """Fetch what is missing, from where pip is configured to."""
    images.make_once(wheels_folder(), lambda folder: _fetch(folder, say), say)


def _fetch(folder: Path, say: Callable[[str], None]) -> None:
    say("Fetching the wheels of the container image.")
    pip = (sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet", "download")
    what = ("--require-hashes", "--only-binary=:all:", f"--requirement={_LOCK}")
    subprocess.run([*pip, *what, f"--dest={folder}"], stdin=subprocess.DEVNULL, check=True)


def main() -> str | None:
    """Fetch what is missing; return what kept this from it."""
    try:
        prepare(lambda line: print(f"images: {line}", flush=True))
    except (OSError, subprocess.CalledProcessError) as error:
        return f"images: no wheels, so that building them is not tested. {error}"
    return None


if __name__ == "__main__":
    sys.exit(main())
