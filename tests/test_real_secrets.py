"""Certificates on machines with systemd: from Secret Manager, kept through a reset, not shown."""

from __future__ import annotations

import asyncio

import pytest
from adapting import LONG
from clusters import until
from machines import DASK_IMAGE, needs_namespaces
from test_secrets import (
    SECRET_MANAGER,
    answer_of,
    boot_again,
    in_metadata,
    pieces,
    processes,
    wanted,
)

from dask_gce import GCECluster
from dask_gce.emulator import ComputeEmulator

pytestmark = [needs_namespaces, pytest.mark.timeout(600)]


async def test_a_scheduler_reads_its_key_once_and_keeps_it(
    namespace_emulator: ComputeEmulator,
) -> None:
    emulator = namespace_emulator
    wishes = {
        **wanted(emulator, SECRET_MANAGER),
        "container_image": DASK_IMAGE,
        "machine_type": "e2-medium",
        "n_workers": 0,
    }
    async with GCECluster(**wishes) as cluster:
        name, zone = cluster._scheduler.name, cluster._scheduler.location.zone
        compute = cluster._ready.compute
        assert await answer_of(cluster)
        assert not in_metadata(emulator)

        async def console() -> str:
            return (await compute.get_serial_port_output(zone, name))[0]

        assert emulator.requests["secretmanager.projects.secrets.versions.access"] == 1
        await boot_again(emulator, cluster, name)
        loop = asyncio.get_running_loop()
        deadline = loop.time() + LONG
        while (await console()).count("dask-gce phase: running") < 2 or not await answer_of(
            cluster
        ):
            assert loop.time() < deadline, await console()
            await asyncio.sleep(0.5)
        # It is on the disk by then.
        assert emulator.requests["secretmanager.projects.secrets.versions.access"] == 1
        told = await console() + "\n".join(await asyncio.to_thread(lambda: [*processes()]))
        told += repr(await compute.get_guest_attributes(zone, name))
        assert not [key[:6] for key in pieces(cluster) if key in told]
    await until(lambda: emulator.instances() == [], LONG)
