"""What tests on real machines need before the first of them boots, made once and kept.

Owns the folder of wheels from which machines install, and the store of container images from which
they run: this environment's packages, as they are, in an image under the names that a cluster
would ask for. `ci/machines.sh` runs this as a program, so that no test waits for a download; a test
is skipped where something is missing, and says what.
"""

from __future__ import annotations

import functools
import hashlib
import importlib.metadata
import io
import json
import platform
import subprocess
import sys
import sysconfig
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import platformdirs
import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import dask_gce.images
from dask_gce.emulator.machines.namespace import debian, images, store

#: A Debian with Python, and one with this environment's Dask. No registry has them.
BASE_IMAGE = "localhost/dask-gce-base:debian"
DASK_IMAGE = "localhost/dask-gce-test:latest"
#: What the second of them holds, with all that it requires.
CONTENTS = ("distributed", "bokeh", "joblib", "numpy", "scikit-learn")

_FORMAT = "1"
#: The same of what is in the images besides packages.
_STORE = "2"
_USER = 1000
_PATH = "/opt/dask/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


def find_obstacle() -> str | None:
    """Tell why no real machine can be booted by a test; None if one can."""
    if sys.platform != "linux" or debian.read_release().get("ID") != "debian":
        return "real machines take a Debian"
    if not _is_root():
        return "real machines take root"
    if not image_folder().exists():
        return "the machine image is not made; run ci/machines.sh"
    if not wheels_folder().exists():
        return "the wheels of this environment are not there; run ci/machines.sh"
    if not _same_python():
        return "the machine image has another Python than this environment"
    if not store_folder().exists():
        return "the container images are not made; run ci/machines.sh"
    return None


def _same_python() -> bool:
    python = image_folder() / "root/usr/bin/python3"
    return python.is_symlink() and python.readlink().name == "python{}.{}".format(*sys.version_info)


def _is_root() -> bool:
    return Path("/proc/self").stat().st_uid == 0


def shared_folders() -> dict[str, Path]:
    """Return which folders of the host the machines of tests see, and where."""
    return {"/opt/store": store_folder(), "/srv/wheels": wheels_folder()}


@functools.cache
def image_folder() -> Path:
    """Return where the machine image is; also where a test has another cache folder meanwhile."""
    return images.image_folder()


@functools.cache
def wheels_folder() -> Path:
    """Return where the wheels of all packages of this environment are."""
    return _cache() / f"wheels-{_digest(sys.version, *pins(_installed()))}"


@functools.cache
def store_folder() -> Path:
    """Return where the store with the container images is."""
    parts = (_STORE, image_folder().name, *pins(requirements(CONTENTS)), *_names())
    return _cache() / f"store-{_digest(*parts)}"


def prepare(say: Callable[[str], None]) -> None:
    """Make whatever is missing; takes minutes the first time."""
    image = images.ensure_image(say)
    images.make_once(wheels_folder(), lambda folder: _make_wheels(folder, say), say)
    if _same_python():
        images.make_once(store_folder(), lambda folder: _make_store(folder, image, say), say)
    else:
        say("No container images: the machine image has another Python than this environment.")


def _make_wheels(folder: Path, say: Callable[[str], None]) -> None:
    say("Collecting the wheels of this environment.")
    listed = folder / "requirements.txt"
    listed.write_text("\n".join([*pins(_installed()), "uv"]), "utf-8")
    pip = (sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet", "wheel")
    where = ("--no-deps", f"--wheel-dir={folder}", f"--requirement={listed}")
    subprocess.run([*pip, *where], stdin=subprocess.DEVNULL, check=True)
    listed.unlink()


def _make_store(folder: Path, image: Path, say: Callable[[str], None]) -> None:
    say("Making the container images.")
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix="store-") as scratch:
        base, dask = Path(scratch, "base.tar"), Path(scratch, "dask.tar")
        _make_base(base, say)
        _make_environment(dask, image / "root", Path(scratch, "dask"))
        config = {"Env": [f"PATH={_PATH}", "LANG=C.UTF-8"], "Cmd": ["bash"]}
        user = {"User": str(_USER), "WorkingDir": "/home/dask"}
        archives = [
            write_archive(Path(scratch, "base-image.tar"), [BASE_IMAGE], config, [base]),
            write_archive(
                Path(scratch, "dask-image.tar"), _names(), {**config, **user}, [base, dask]
            ),
        ]
        store.load_images(image / "root", folder, archives)


def _make_base(archive: Path, say: Callable[[str], None]) -> None:
    customize = archive.with_suffix(".sh")
    customize.write_text(f'chroot "$1" useradd --create-home --uid {_USER} dask\n', "utf-8")
    debian.bootstrap(archive, ("python3", "ca-certificates"), say, customize=customize)


def _make_environment(archive: Path, root: Path, folder: Path) -> None:
    folder.mkdir()
    make = (
        "uv --quiet venv --python=/usr/bin/python3 --clear /opt/dask && "
        "uv --quiet pip install --python=/opt/dask --compile-bytecode --link-mode=copy "
        '--no-deps "$@"'
    )
    store.run_in_image(
        root,
        ["sh", "-c", make, "sh", *pins(requirements(CONTENTS))],
        {str(wheels_folder()): "/srv/wheels", str(folder): "/opt/dask"},
    )
    with tarfile.open(archive, "w") as layer:
        layer.add(folder, "opt/dask", filter=_as_root)


def write_archive(
    file: Path, names: Iterable[str], config: dict[str, Any], layers: list[Path]
) -> Path:
    """Write an image as ``docker save`` does."""
    identifiers = [f"sha256:{_file_digest(layer)}" for layer in layers]
    image = {
        "architecture": {"x86_64": "amd64", "aarch64": "arm64"}[platform.machine()],
        "os": "linux",
        "created": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "config": config,
        "rootfs": {"type": "layers", "diff_ids": identifiers},
        # An engine builds on nothing whose layers it cannot account for.
        "history": [{"created_by": layer.name} for layer in layers],
    }
    manifest = {
        "Config": "config.json",
        "RepoTags": list(names),
        "Layers": [layer.name for layer in layers],
    }
    with tarfile.open(file, "w") as archive:
        for layer in layers:
            archive.add(layer, layer.name)
        for name, content in (("config.json", image), ("manifest.json", [manifest])):
            data = json.dumps(content).encode()
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return file


def _names() -> list[str]:
    """Return the names of the Dask image: its own, and that of the official one that fits."""
    version = importlib.metadata.version("dask")
    return [DASK_IMAGE, dask_gce.images.official_image(version, sys.version_info[:2])]


def _installed() -> dict[str, importlib.metadata.Distribution]:
    """Return the installed distributions that others can install too."""
    found = {}
    # Not the path of modules: it has checkouts, and under pytest others than elsewhere.
    folders = sorted({sysconfig.get_path("purelib"), sysconfig.get_path("platlib")})
    for each in importlib.metadata.distributions(path=folders):
        local = each.read_text("direct_url.json") is not None
        if not local and each.metadata["Name"]:
            found[canonicalize_name(each.metadata["Name"])] = each
    return found


def requirements(names: Iterable[str]) -> dict[str, importlib.metadata.Distribution]:
    """Return distributions with all that they require, as it is installed."""
    installed, found = _installed(), {}
    waiting = [Requirement(name) for name in names]
    while waiting:
        requirement = waiting.pop()
        name = canonicalize_name(requirement.name)
        if name in found or name not in installed:
            continue
        found[name] = installed[name]
        for text in installed[name].requires or ():
            required = Requirement(text)
            if required.marker is None or required.marker.evaluate({"extra": ""}):
                waiting.append(required)
    return found


def pins(distributions: dict[str, importlib.metadata.Distribution]) -> list[str]:
    """Return distributions as requirements of exactly these versions."""
    return sorted(f"{name}=={each.version}" for name, each in distributions.items())


def _as_root(member: tarfile.TarInfo) -> tarfile.TarInfo:
    member.uid = member.gid = 0
    member.uname = member.gname = "root"
    return member


def _file_digest(file: Path) -> str:
    digest = hashlib.sha256()
    with file.open("rb") as content:
        while block := content.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _digest(*parts: str) -> str:
    return hashlib.sha256("\n".join((_FORMAT, *parts)).encode()).hexdigest()[:16]


def _cache() -> Path:
    return Path(platformdirs.user_cache_dir("dask-gce", appauthor=False)) / "tests"


#: Of what a test needs that boots real machines.
needs_namespaces = pytest.mark.skipif(find_obstacle() is not None, reason=str(find_obstacle()))


def main() -> str | None:
    """Make whatever is missing; return what kept this from it."""
    try:
        prepare(lambda line: print(f"machines: {line}", flush=True))
    except (RuntimeError, subprocess.CalledProcessError) as error:
        return f"machines: not ready, so their tests are skipped. {error}"
    return None


if __name__ == "__main__":
    sys.exit(main())
