"""Images on real machines: a disk image with an environment on it, and a container image, built."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import container_images
import machines
import pytest
from clusters import PATIENCE, cluster_on, until
from fleets import WORKER
from records import compute_of, labels_of

from dask_gce import image_build
from dask_gce.emulator import ComputeEmulator
from dask_gce.emulator.machines.namespace import images
from dask_gce.emulator.machines.namespace.kind import NamespaceKind
from dask_gce.image_build import build_image
from dask_gce.instance import build_insert
from dask_gce.settings import Settings

BUILD = f"""#!/bin/bash
set -e
docker build --quiet --layers=false --build-arg BASE={machines.BASE_IMAGE} --tag localhost/built \\
  --volume /srv/wheels:/srv/wheels:ro --volume /etc/uv:/etc/uv:ro \\
  --volume /usr/local/bin/uv:/usr/local/bin/uv:ro /srv/images
docker run --rm --network none localhost/built sh -c '
dask spec --help | head -n 1
touch /opt/dask/x 2>/dev/null || echo read-only
exec python3 -c "
import bokeh, gcsfs, getpass, lz4, os, zstandard
from distributed import Client
with Client(processes=False, dashboard_address=None) as client:
    print(1, client.submit(sum, range(10)).result(), getpass.getuser(), os.getcwd())
"'
"""


def console(emulator: ComputeEmulator, name: str) -> str:
    """Return what a machine has said so far."""
    instances = emulator._open_cloud().projects["local-project"].instances
    (found,) = (held[name] for held in instances.values() if name in held)
    return found.record.serial.read()[0].decode(errors="replace")


@machines.needs_namespaces
@pytest.mark.timeout(600)
async def test_a_cluster_boots_from_an_image_with_its_environment(namespace_emulator, monkeypatch):
    monkeypatch.setattr(image_build, "INTERVAL", 0.2)
    how = {"runtime": "vm", "machine_type": "e2-medium", "start_timeout": "5 minutes"}
    async with compute_of(namespace_emulator) as compute:
        settings = Settings.load(api_endpoint=namespace_emulator.endpoint, **how)
        made = await build_image(compute, settings, name="with-dask")
    assert made.runtime == "vm"
    # What must not be the same on two machines is not on the disk.
    (disk,) = set(namespace_emulator._open_cloud().shelf._held.values())
    assert (disk.folder / "upper/etc/machine-id").read_text() == ""
    assert not [*disk.folder.glob("upper/var/log/journal/*")]
    assert all(not log.stat().st_size for log in disk.folder.glob("upper/var/log/*.log"))
    await until(lambda: len(namespace_emulator.leftovers()) == 1)
    options = {**how, "source_image": made.source_image, "n_workers": 1}
    async with cluster_on(namespace_emulator, **options) as cluster:
        await cluster.wait_for_workers(1)
        said = {
            each["name"]: console(namespace_emulator, each["name"])
            for each in namespace_emulator.instances()
        }
        assert len(said) == 2
        for text in said.values():
            assert "is on this machine already, so it is not built" in text
            assert "environment-building" not in text
    async with compute_of(namespace_emulator) as compute:
        operation = await compute.delete_image(made.name)
        await compute.wait_operation(operation, PATIENCE)
    await until(lambda: not namespace_emulator.leftovers())


@pytest.fixture
def with_recipes(discovery) -> Iterator[ComputeEmulator]:
    """Return a local Compute Engine whose machines see the recipes, and wheels to build from."""
    kind = NamespaceKind(
        image=images.image_folder(),
        shared_folders={
            **machines.shared_folders(),
            "/srv/wheels": container_images.wheels_folder(),
            "/srv/images": container_images.IMAGES,
        },
    )
    with ComputeEmulator(kind) as running:
        yield running
    assert not running.leftovers()


@pytest.mark.skipif(
    container_images.find_obstacle() is not None, reason=str(container_images.find_obstacle())
)
@pytest.mark.timeout(600)
async def test_the_container_image_is_built_and_works(with_recipes):
    spec = replace(WORKER, name="m", labels=labels_of(), metadata={"startup-script": BUILD})
    async with compute_of(with_recipes) as compute:
        await compute.insert_instance(spec.zone, build_insert(spec))
    await until(lambda: "Finished running startup scripts." in console(with_recipes, "m"), 500)
    said = console(with_recipes, "m")
    assert "1 45 dask /home/dask" in said, said[-5000:]
    assert "Usage: dask spec" in said
    assert "startup-script: read-only" in said, said[-5000:]
    assert "startup-script exit status 0" in said
