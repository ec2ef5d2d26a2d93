"""Prefect in a virtual environment of its own, made once and kept: it brings eighty packages.

Owns where it is, which versions are in it, and what is said where it cannot be made. Dask and all
else that this package requires are there in the versions that are here. This package itself is
not, as on machines.

`ci/machines.sh` runs this as a program, so that no test waits for a download.
"""

from __future__ import annotations

import functools
import hashlib
import importlib.metadata
import os
import shutil
import subprocess
import sys
import venv
from collections.abc import Callable
from pathlib import Path

import machines
import platformdirs

from dask_gce.emulator.machines.namespace.images import make_once

#: What is asked for, and the versions of that and of what it needs.
ASKED = ("prefect", "prefect-dask")
VERSIONS = Path(__file__).parent / "prefect.txt"

_FORMAT = "2"
_SECONDS = 300

#: Fails at once where packages do not fit each other. The server is an application of FastAPI's.
_TRY = "import prefect_dask; from prefect.server.api.server import create_app; create_app()"


def find_obstacle() -> str | None:
    """Tell why Prefect cannot be run by a test; None if it can."""
    if python().exists():
        return None
    told = _reason()
    if told.exists():
        return f"Prefect could not be installed: {told.read_text('utf-8')}"
    return "Prefect is not installed; run ci/machines.sh"


@functools.cache
def folder() -> Path:
    """Return where it is; also where a test has another cache folder meanwhile."""
    parts = (_FORMAT, sys.version, VERSIONS.read_text("utf-8"), *_ours())
    digest = hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]
    cache = Path(platformdirs.user_cache_dir("dask-gce", appauthor=False)) / "tests"
    return cache / f"prefect-{digest}"


def python() -> Path:
    """Return the Python that has it."""
    return folder() / "bin" / "python"


def _reason() -> Path:
    return folder().with_suffix(".txt")


@functools.cache
def _ours() -> list[str]:
    """Return what this package requires, as it is installed."""
    required = importlib.metadata.requires("dask-gce") or []
    names = [each for each in required if "extra ==" not in each]
    return machines.pins(machines.requirements(names))


def prepare(say: Callable[[str], None]) -> None:
    """Make it, unless that has been done.

    Raises
    ------
    RuntimeError
        If it cannot be made; the message says why.
    """
    reason = _reason()
    try:
        make_once(folder(), lambda building: _make(building, say), say)
    except (OSError, RuntimeError, subprocess.SubprocessError) as error:
        why = _explain(error)
        reason.write_text(why, "utf-8")
        raise RuntimeError(why) from error
    reason.unlink(missing_ok=True)


def _make(building: Path, say: Callable[[str], None]) -> None:
    say("Installing Prefect into an environment of its own.")
    venv.EnvBuilder(with_pip=False, symlinks=True).create(building)
    there = str(building / "bin" / "python")
    pip = (sys.executable, "-m", "pip", "--python", there, "--disable-pip-version-check")
    what = (f"--constraint={VERSIONS}", *ASKED, *_ours())
    _run(*pip, "--no-input", "--quiet", "install", "--prefer-binary", *what)
    for program in (building / "bin").iterdir():
        # They name the Python that runs them, which will be in another folder.
        if not program.is_symlink():
            told = program.read_bytes().replace(bytes(building), bytes(folder()))
            program.write_bytes(told)
    scratch = building / "try"
    _run(there, "-c", _TRY, variables=private(scratch))
    shutil.rmtree(scratch, ignore_errors=True)


def private(home: Path) -> dict[str, str]:
    """Return variables by which Prefect keeps to a folder, and to this computer."""
    return {
        "PATH": os.environ.get("PATH", os.defpath),
        "HOME": str(home),
        "PREFECT_HOME": str(home),
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "DO_NOT_TRACK": "1",
        "NO_PROXY": "*",
    }


def _run(*command: str, variables: dict[str, str] | None = None) -> None:
    subprocess.run(
        command,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        env=variables,
        timeout=_SECONDS,
        check=True,
    )


def _explain(error: Exception) -> str:
    """Return the last that was said before something failed."""
    said = getattr(error, "stderr", None) or str(error)
    lines = [each.strip() for each in str(said).splitlines() if each.strip()]
    # pip's warnings are of the index, and come before.
    return lines[-1] if lines else type(error).__name__


def main() -> str | None:
    """Make it; return what kept this from it."""
    try:
        prepare(lambda line: print(f"prefect: {line}", flush=True))
    except RuntimeError as error:
        return f"prefect: not installed, so its test is skipped. {error}"
    return None


if __name__ == "__main__":
    sys.exit(main())
