"""The recipes in ``images/``: well-formed, locked, and what they make works."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

import dask
import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from dask_gce.blueprint import Blueprint
from dask_gce.boot.resolution import resolve
from dask_gce.image_build import builder_spec
from dask_gce.placement import Location, MachineShape
from dask_gce.settings import Settings

ROOT = Path(__file__).parents[1]
IMAGES = ROOT / "images"
CONTAINERS = [IMAGES, IMAGES / "gpu"]
SHAPE = MachineShape("e2-standard-4", 4, 16 * 2**30)

#: https://docs.docker.com/reference/dockerfile/, as far as podman has it too.
INSTRUCTIONS = {"ARG", "COPY", "ENV", "FROM", "RUN", "USER", "WORKDIR"}


def instructions(folder: Path) -> list[tuple[str, str]]:
    """Return the instructions of a Dockerfile with their arguments."""
    text = (folder / "Dockerfile").read_text("utf-8")
    lines = [line for line in text.splitlines() if line.strip() and not line.startswith("#")]
    joined = re.sub(r"\\\n\s*", "", "\n".join(lines))
    found = [line.partition(" ")[::2] for line in joined.splitlines()]
    return [(name, argument.strip()) for name, argument in found]


def locked(folder: Path) -> dict[str, list[tuple[Requirement, int]]]:
    """Return what a lock has of each distribution: requirement, and number of hashes."""
    text = (folder / "requirements.txt").read_text("utf-8")
    found: dict[str, list[tuple[Requirement, int]]] = {}
    for entry in re.sub(r"\\\n", "", text).splitlines():
        if not entry.startswith("#"):
            line, *hashes = entry.split("--hash=")
            requirement = Requirement(line.strip())
            found.setdefault(canonicalize_name(requirement.name), []).append(
                (requirement, len([one for one in hashes if one.startswith("sha256:")]))
            )
    return found


@pytest.mark.parametrize("folder", CONTAINERS, ids=lambda folder: folder.name)
def test_dockerfiles_are_well_formed(folder):
    found = instructions(folder)
    names = [name for name, _ in found]
    assert set(names) <= INSTRUCTIONS
    assert names[0] == "ARG"
    stages = [argument.split() for name, argument in found if name == "FROM"]
    assert stages == [["${BASE}", "AS", "build"], ["${BASE}"]]
    declared = {argument.partition("=")[0] for name, argument in found if name == "ARG"}
    used = set(re.findall(r"\$\{(\w+)\}", " ".join(argument for _, argument in found)))
    assert used <= declared
    for name, argument in found:
        if name == "COPY" and not argument.startswith("--from=build"):
            assert (folder / argument.split()[0]).is_file()
    # Who starts it is not root, whatever the base is.
    users = [argument for name, argument in found if name == "USER"]
    assert users == ["dask"]
    assert names.index("USER") > max(i for i, name in enumerate(names) if name == "RUN")
    bases = [argument for name, argument in found if argument.startswith("BASE=")]
    assert not any(base.endswith(":latest") or ":" not in base for base in bases)


@pytest.mark.parametrize("folder", CONTAINERS, ids=lambda folder: folder.name)
def test_locks_are_those_of_their_sources(folder):
    source = (folder / "requirements.in").read_bytes()
    lock = (folder / "requirements.txt").read_text("utf-8")
    digest = hashlib.sha256(source).hexdigest()
    assert lock.startswith(f"# sha256 of requirements.in: {digest}\n"), "run make images-lock"
    # Who builds says where packages come from; hashes say that they are the same everywhere.
    assert "//" not in lock and "index" not in lock.lower()
    versions = locked(folder)
    for text in source.decode().splitlines():
        if text and not text.startswith("#"):
            wanted = Requirement(text)
            for requirement, _ in versions[canonicalize_name(wanted.name)]:
                (one,) = requirement.specifier
                assert one.operator == "=="
                assert wanted.specifier.contains(one.version)
    assert all(hashes for entries in versions.values() for _, hashes in entries)


def test_the_gpu_image_has_one_worker_for_each_gpu():
    versions = locked(IMAGES / "gpu")
    assert {"dask-cuda", "cupy-cuda12x", "distributed"} <= set(versions)
    assert versions["dask"][0][0].specifier == versions["distributed"][0][0].specifier


@pytest.mark.parametrize("name", ["container", "vm", "gpu"])
def test_settings_for_disk_images_make_a_builder(name, monkeypatch):
    monkeypatch.chdir(ROOT)
    config = yaml.safe_load((IMAGES / "disk" / f"{name}.yaml").read_text("utf-8"))
    with dask.config.set(config):
        settings = Settings.load()
    given = config["gce"]
    assert settings.machine_type == (given["machine-type"],)
    environment = resolve(settings.environment, runtime=settings.runtime)
    blueprint = Blueprint(settings, "p", "dask-image-1", "a" * 32, environment=environment)
    spec = builder_spec(blueprint, Location("us-central1-a", SHAPE))
    assert spec.boot_disk_size == given["boot-disk-size"]
    assert spec.source_image.endswith(given["source-image"].partition("/")[2])
    metadata = spec.metadata
    if name == "container":
        assert metadata["dask-gce-image"] == settings.container_image
    else:
        lock = ROOT / given["environment"]
        assert "dask==" in metadata["dask-gce-requirements"]
        assert locked(lock.parent).keys() >= {"dask", "distributed"}
