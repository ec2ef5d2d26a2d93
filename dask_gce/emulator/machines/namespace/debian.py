"""This host's Debian as the source of others: a tree of files made of its packages.

Owns what is read from the host (its release, where apt gets packages, how it reaches them) and the
run of mmdebstrap. What the packages are for is the caller's.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

__all__ = ["bootstrap", "find_obstacle", "read_release"]

_OS_RELEASE = Path("/etc/os-release")
_APT = Path("/etc/apt")
# Administrators' programs are not on every PATH.
_PATH = f"{os.environ.get('PATH', os.defpath)}:/usr/sbin:/sbin"
# Nobody reads manuals on a machine.
_EXCLUDED = ("doc", "i18n", "info", "locale", "man")


def find_obstacle() -> str | None:
    """Tell what keeps this host from making a Debian.

    Returns
    -------
    str or None
        A sentence with the remedy; None if nothing does.
    """
    if sys.platform != "linux" or read_release().get("ID") != "debian":
        return "This takes a Debian. Use machines of kind 'process'."
    if os.geteuid() != 0:
        return "This takes root. Run the local Compute Engine as root."
    packages = {"mmdebstrap": "mmdebstrap", "unshare": "util-linux"}
    missing = [name for name in packages if shutil.which(name, path=_PATH) is None]
    if missing:
        needed = " ".join(packages[name] for name in missing)
        return f"There is no {' and no '.join(missing)} here. Run: apt-get install {needed}"
    if not _sources():
        return f"apt has no sources in {_APT}. Add your mirror of Debian there."
    return None


def read_release() -> dict[str, str]:
    """Return what os-release(5) says of this host; nothing where there is no such file.

    Returns
    -------
    dict of str to str
        Its fields, such as ``VERSION_CODENAME``.
    """
    if not _OS_RELEASE.exists():
        return {}
    pairs = (line.partition("=") for line in _OS_RELEASE.read_text("utf-8").splitlines())
    return {name: value.strip("\"'") for name, _, value in pairs}


def bootstrap(
    target: Path,
    packages: Sequence[str],
    say: Callable[[str], None],
    *,
    customize: Path | None = None,
) -> None:
    """Make a Debian of this host's release.

    Parameters
    ----------
    target : Path
        The folder to make, or the archive if its name ends in ``.tar``.
    packages : sequence of str
        Packages beside the essential ones.
    say : callable
        Told in a sentence each how far it is.
    customize : Path or None
        A shell script that is run at the end, with the tree's root as its argument.

    Raises
    ------
    RuntimeError
        It cannot be made; says what mmdebstrap said.
    """
    obstacle = find_obstacle()
    if obstacle is not None:
        raise RuntimeError(obstacle)
    configuration = target.with_name(f"{target.name}.apt.conf")
    configuration.touch(mode=0o600)
    configuration.write_text(_apt_configuration(), "utf-8")
    command = [
        # Whatever an installation starts or mounts ends with it, also when it is killed.
        *("unshare", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc"),
        *("mmdebstrap", "--mode=root", "--variant=minbase"),
        f"--include={','.join(packages)}",
        f"--aptopt={configuration}",
        *(f"--dpkgopt=path-exclude=/usr/share/{name}/*" for name in _EXCLUDED),
        *([] if customize is None else [f'--customize-hook=sh "{customize}" "$1"']),
        # How the host reaches its sources is the host's business, also once the tree is made.
        '--customize-hook=rm -rf "$1"/etc/apt/sources.list "$1"/etc/apt/sources.list.d/*',
        '--customize-hook=rm -f "$1"/etc/apt/apt.conf.d/99mmdebstrap',
        '--customize-hook=rm -f "$1"/etc/dpkg/dpkg.cfg.d/99mmdebstrap',
        *(read_release()["VERSION_CODENAME"], str(target), *map(str, _sources())),
    ]
    try:
        _run(command, say)
    finally:
        configuration.unlink()


def _run(command: Sequence[str], say: Callable[[str], None]) -> None:
    lines: list[str] = []
    with subprocess.Popen(
        command,
        env=_environment(),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
    ) as process:
        try:
            lines.extend(_follow(process.stdout or (), say))
        except BaseException:
            process.kill()
            raise
    if process.returncode != 0:
        end = "\n".join(line for line in lines[-20:] if line)
        raise RuntimeError(f"mmdebstrap could not make a Debian. It said:\n{end}")


def _environment() -> dict[str, str]:
    return {**os.environ, "PATH": _PATH, "LC_ALL": "C.UTF-8"}


def _follow(output: Iterable[str], say: Callable[[str], None]) -> Iterable[str]:
    for raw in output:
        line = raw.rstrip()
        yield line
        if line.startswith("I: ") and line.endswith("..."):
            say(line[3].upper() + line[4:])


def _apt_configuration() -> str:
    """Return what apt is told here about proxies, certificates and patience."""
    done = subprocess.run(
        ["apt-config", "dump", "Acquire"],
        env=_environment(),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=True,
    )
    kept = ("Acquire::http", "Acquire::Retries", "Acquire::Check-Valid-Until")
    return "".join(f"{line}\n" for line in done.stdout.splitlines() if line.startswith(kept))


def _sources() -> list[Path]:
    """Return the files with this host's own apt sources."""
    parts = _APT / "sources.list.d"
    files = [_APT / "sources.list", *sorted(parts.glob("*.list")), *sorted(parts.glob("*.sources"))]
    return [file for file in files if file.is_file() and _has_entries(file)]


def _has_entries(file: Path) -> bool:
    lines = file.read_text("utf-8", "replace").splitlines()
    return any(line.strip() and not line.lstrip().startswith("#") for line in lines)
