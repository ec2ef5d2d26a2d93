"""A package of one's own works on local machines, on top of an image and beside the scheduler."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from typing import Any

import pytest
from clusters import PATIENCE, settings
from distributed import Client
from projects import make_project

from dask_gce import GCECluster
from dask_gce.emulator import ComputeEmulator
from dask_gce.errors import InstanceError

#: What an environment on top of an image is made of.
PLACE = "dask-gce-environments"


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Make a package that this process can import, and no machine."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    folder = make_project(
        tmp_path / "src",
        "travelling",
        # Classes of a package are pickled by name, also in a graph that the scheduler unpickles.
        code="class Number(int):\n    def double(self):\n        return Number(2 * self)\n"
        "def place():\n    return __file__\n",
    )
    monkeypatch.syspath_prepend(str(folder))
    yield folder, importlib.import_module("travelling")
    sys.modules.pop("travelling", None)


async def test_it_reaches_workers_the_scheduler_and_those_who_come_later(
    process_emulator: ComputeEmulator, project: tuple[Path, Any]
) -> None:
    folder, travelling = project
    async with (
        GCECluster(
            **settings(process_emulator, n_workers=1, environment=[str(folder)], security=True)
        ) as cluster,
        Client(cluster, asynchronous=True) as client,
    ):
        await client.wait_for_workers(1, timeout=PATIENCE)
        number = await client.submit(travelling.Number.double, travelling.Number(21))
        assert (number, type(number)) == (42, travelling.Number)
        cluster.scale(2)
        await client.wait_for_workers(2, timeout=PATIENCE)
        places = await client.run(travelling.place)
        assert len(places) == 2
        assert all(PLACE in where for where in places.values())
        assert PLACE in await client.run_on_scheduler(travelling.place)


async def test_it_reaches_workers_beside_the_scheduler(
    process_emulator: ComputeEmulator, project: tuple[Path, Any]
) -> None:
    folder, travelling = project
    async with (
        GCECluster(
            **settings(process_emulator, single_node=True, environment=[str(folder)])
        ) as cluster,
        Client(cluster, asynchronous=True) as client,
    ):
        await client.wait_for_workers(1, timeout=PATIENCE)
        assert all(PLACE in where for where in (await client.run(travelling.place)).values())


async def test_what_cannot_be_installed_fails_with_the_installers_reason(
    process_emulator: ComputeEmulator, tmp_path: Path
) -> None:
    requirements = tmp_path / "requirements.txt"
    # No machine asks an index for it.
    requirements.write_text("--no-index\nthere-is-no-such-package==1.0\n")
    with pytest.raises(InstanceError) as caught:
        async with GCECluster(**settings(process_emulator, environment=requirements)):
            pass
    assert "cannot be added to the container image" in caught.value.phase
    assert "there-is-no-such-package" in caught.value.phase
    assert "check environment" in str(caught.value)


async def test_what_the_image_has_is_not_installed(process_emulator: ComputeEmulator) -> None:
    import dask

    pins = [f"dask=={dask.__version__}"]
    async with (
        GCECluster(**settings(process_emulator, environment=pins)) as cluster,
        Client(cluster, asynchronous=True) as client,
    ):
        prefix = await client.run_on_scheduler(lambda: sys.prefix)
    assert PLACE not in prefix
