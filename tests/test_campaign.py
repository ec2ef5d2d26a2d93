"""A few seeds of the fault campaign, and by name what longer runs of it have shown.

More seeds: ``python tests/campaign.py --minutes 60``.
"""

from __future__ import annotations

import asyncio
import time

import dask
import pytest
from campaign import Campaign, write_script
from distributed import Client
from distributed.deploy import Adaptive
from tornado.iostream import IOStream, StreamClosedError

import dask_gce.replacement
from dask_gce import GCECluster
from dask_gce.emulator import ComputeEmulator, Fault
from dask_gce.errors import InstanceLost, WorkersFailed

#: Each of them has shown a defect once.
SEEDS = (1, 11, 16, 20, 28, 51)

SETTINGS = {
    "project": "local-project",
    "machine_type": "e2-small",
    "worker_class": "distributed.Worker",
    "asynchronous": True,
    "quiet": True,
}


@pytest.fixture(autouse=True)
def impatience():
    """Miss a worker sooner than after 15 s."""
    with dask.config.set({"distributed.deploy.lost-worker-timeout": "2 s"}):
        yield


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.timeout(600)
async def test_whatever_befalls_it(seed):
    await Campaign(write_script(seed)).run()


@pytest.mark.timeout(600)
async def test_whatever_befalls_machines_of_their_own():
    await Campaign(write_script(101, machines="process")).run()


def test_scripts_are_told_by_their_seed_alone():
    assert write_script(7) == write_script(7)
    assert write_script(7) != write_script(8)


async def until(holds, told=lambda: "", seconds=120):
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline, told()
        await asyncio.sleep(0.02)


@pytest.fixture
def streams_that_say_so(monkeypatch):
    """Have a connection that ended as it was made fail as any other, which Dask tries again.

    Tornado says ValueError of one that its peer closes before TLS begins, as a dying scheduler may.
    Dask's client takes that for a defect, and can then never be closed.
    """
    start_tls = IOStream.start_tls

    def start_unless_closed(stream, *arguments, **options):
        if stream.closed():
            raise StreamClosedError(real_error=stream.error)
        return start_tls(stream, *arguments, **options)

    monkeypatch.setattr(IOStream, "start_tls", start_unless_closed)


@pytest.mark.usefixtures("streams_that_say_so")
@pytest.mark.parametrize("end", ["preempt", "power_off", "delete"])
async def test_without_its_scheduler_a_cluster_says_so_and_ends(end):
    options = {"user": "colleague@example.org"} if end == "delete" else {}
    async with ComputeEmulator("light") as emulator:
        async with GCECluster(n_workers=1, api_endpoint=emulator.endpoint, **SETTINGS) as cluster:
            async with Client(cluster, asynchronous=True) as client:
                await client.wait_for_workers(1, timeout=120)
                waiting = asyncio.ensure_future(cluster.wait_for_workers(2, timeout=60))
                await asyncio.sleep(0)
                getattr(emulator, end)(cluster.scheduler.name, **options)
                began = time.monotonic()
                with pytest.raises(InstanceLost) as caught:
                    await waiting
                assert time.monotonic() - began < 45
                assert caught.value.name == cluster.scheduler.name
                assert caught.value in cluster.failures
            began = time.monotonic()
            await cluster.close()
            assert time.monotonic() - began < 25
        await until(lambda: not emulator.leftovers(), emulator.leftovers)


async def test_a_loss_after_a_new_start_is_made_good_at_once(monkeypatch):
    # However long it takes until a loss is noticed: the worker has not stayed.
    monkeypatch.setattr(dask_gce.replacement, "STEADY", 600.0)
    async with (
        ComputeEmulator("light") as emulator,
        GCECluster(
            n_workers=2, worker_start_failure_limit=1, api_endpoint=emulator.endpoint, **SETTINGS
        ) as cluster,
    ):
        await cluster.wait_for_workers(2, timeout=120)
        first, second = cluster.worker_spec
        # Too soon to count as started: the cluster gives up.
        emulator.delete(first, user="colleague@example.org")
        with pytest.raises(WorkersFailed):
            await cluster.wait_for_workers(3, timeout=120)
        with pytest.raises(WorkersFailed):
            cluster.scale(1)
        cluster.scale(1)
        emulator.delete(second, user="colleague@example.org")
        await until(lambda: second not in cluster.worker_spec)
        await until(lambda: cluster.worker_spec, lambda: repr(cluster.events))
        await cluster.wait_for_workers(1, timeout=120)


class Undecided(Adaptive):
    """Decides when it is told to."""

    decided: asyncio.Event

    async def target(self):
        await self.decided.wait()
        return 3


async def test_a_decision_of_a_stopped_adaptive_overrules_nobody():
    async with (
        ComputeEmulator("light") as emulator,
        GCECluster(api_endpoint=emulator.endpoint, **SETTINGS) as cluster,
    ):
        adaptive = cluster.adapt(Undecided, maximum=3, interval="10 minutes")
        adaptive.decided = asyncio.Event()
        deciding = asyncio.ensure_future(adaptive.adapt())
        await asyncio.sleep(0)
        adaptive.stop()
        cluster.scale(1)
        adaptive.decided.set()
        await deciding
        assert len(cluster.plan) == 1
        await cluster.wait_for_workers(1, timeout=120)

        # One that was not stopped is heeded.
        adaptive = cluster.adapt(Undecided, maximum=3, interval="10 minutes")
        adaptive.decided = asyncio.Event()
        adaptive.decided.set()
        await adaptive.adapt()
        assert len(cluster.plan) == 3


async def test_a_machine_that_is_kept_is_asked_again_while_another_goes():
    async with (
        ComputeEmulator("light") as emulator,
        GCECluster(n_workers=2, api_endpoint=emulator.endpoint, **SETTINGS) as cluster,
        Client(cluster, asynchronous=True) as client,
    ):
        await client.wait_for_workers(2, timeout=120)
        held = await client.scatter(b"only here")
        emulator.faults.add(Fault("compute.instances.delete", delay=4.0))
        cluster.scale(0)
        await until(lambda: any(event.what == "kept" for event in cluster.events))
        assert await held == b"only here"
        # For longer than it takes to ask again, and less than the other takes to go.
        await asyncio.sleep(2.5)
        del held
        await until(lambda: not cluster.workers, lambda: repr(cluster.events))


async def test_what_is_off_and_was_not_deleted_is_not_left():
    errors = [{"code": "INTERNAL_ERROR", "message": "It was not to be."}]
    async with ComputeEmulator("light") as emulator:
        async with GCECluster(n_workers=1, api_endpoint=emulator.endpoint, **SETTINGS) as cluster:
            await cluster.wait_for_workers(1, timeout=120)
            emulator.faults.add(Fault("compute.instances.delete", operation_errors=errors))
            cluster.scale(0)
            await until(lambda: "TERMINATED" in {each["status"] for each in emulator.instances()})
        await until(lambda: not emulator.leftovers(), emulator.leftovers)
