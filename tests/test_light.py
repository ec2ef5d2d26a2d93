"""A cluster with hundreds of real workers, whose machines share two processes."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable

import pytest
from distributed import Client, wait

from dask_gce import GCECluster
from dask_gce.emulator import ComputeEmulator, Timings

SETTINGS = {
    "project": "local-project",
    "zone": "us-central1-a",
    "machine_type": "e2-standard-4",
    "silence_logs": logging.WARNING,
    "quiet": True,
    "asynchronous": True,
    "api_rate": 1000,
    "api_connections": 100,
}


async def addresses_by_name(client: Client) -> dict[str, str]:
    """Return the addresses of all workers, as the scheduler knows them."""
    return await client.run_on_scheduler(
        lambda dask_scheduler: {w.name: w.address for w in dask_scheduler.workers.values()}
    )


async def until(condition: Callable[[], object], timeout: float = 600) -> None:
    deadline = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        await asyncio.sleep(0.05)


# Alone on two cores a thousand take half a minute; on a machine that does other things, minutes.
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("workers", [200, 1000])
async def test_many_real_workers_join_compute_and_leave_by_name(workers):
    async with ComputeEmulator("light", timings=Timings(stopping=2)) as emulator:
        async with (
            GCECluster(n_workers=workers, api_endpoint=emulator.endpoint, **SETTINGS) as cluster,
            Client(cluster, asynchronous=True) as client,
        ):
            await client.wait_for_workers(workers, timeout=900)
            known = await addresses_by_name(client)
            assert set(known) == set(cluster.worker_spec)
            addresses = {
                each["name"]: each["networkInterfaces"][0]["networkIP"]
                for each in emulator.instances()
            }
            assert all(f"//{addresses[name]}:" in address for name, address in known.items())

            futures = client.map(lambda x: x * x, range(2 * workers))
            await wait(futures)
            # One half goes, and whatever only it held must have moved to the other.
            leaving = sorted(known)[: workers // 2]
            await cluster.scale_down(leaving)
            await until(lambda: len(cluster.scheduler_info["workers"]) == workers - len(leaving))
            results = await client.gather(futures)
            assert results == [x * x for x in range(2 * workers)]
            staying = await addresses_by_name(client)
            assert set(staying) == set(known) - set(leaving) == set(cluster.worker_spec)
            assert not cluster.failures
        await until(lambda: not emulator.leftovers())
