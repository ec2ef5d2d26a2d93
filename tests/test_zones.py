"""Where machines are to be had: clusters move on, by zone and by machine type, and say so."""

from __future__ import annotations

import time

import pytest
from clusters import PATIENCE, cluster_on, until, wait_until, worker_machines
from distributed import Client

from dask_gce import GCECluster, removal
from dask_gce.emulator import ComputeEmulator, Fault
from dask_gce.errors import InstanceError, OutOfCapacity, QuotaExceeded, WorkersFailed

A, B, EAST = "us-central1-a", "us-central1-b", "us-east1-b"
SCHEDULER, SMALL, OTHER = "e2-medium", "e2-small", "e2-highcpu-2"


@pytest.fixture
async def light():
    """Return a local Compute Engine whose workers are real, but share two processes."""
    async with ComputeEmulator("light") as emulator:
        yield emulator
        await until(lambda: not emulator.leftovers())


def where(emulator):
    """Return the zone and machine type of each machine by its name, but of those on their way out.

    Whoever reads them may be in the emulator's loop or not.
    """
    return {
        each["name"]: (each["zone"].rpartition("/")[2], each["machineType"].rpartition("/")[2])
        for each in emulator.instances()
        if each["status"] != "STOPPING"
    }


def places(emulator, role):
    return sorted(place for name, place in where(emulator).items() if f"-{role}-" in name)


def happened(cluster, what):
    return [event for event in cluster.events if event.what == what]


def roles(**more):
    return {"machine_type": None, "scheduler_machine_type": SCHEDULER, **more}


# -- the scheduler --------------------------------------------------------------------------------


async def test_a_scheduler_that_is_not_to_be_had_moves_and_its_workers_follow(light):
    light.capacity.set(A, instances=0)
    async with cluster_on(light, n_workers=2, zone=[A, B]) as cluster:
        await cluster.wait_for_workers(2, timeout=PATIENCE)
        assert places(light, "scheduler") == [(B, SMALL)]
        assert places(light, "worker") == [(B, SMALL)] * 2
        (moved,) = happened(cluster, "moved")
        # Under a new name: the old one may have been given away already.
        assert moved.instance != cluster.scheduler.name
        assert moved.why.startswith(f"to {SMALL} in {B}: ")
        assert "ZONE_RESOURCE_POOL_EXHAUSTED" in moved.why
        assert cluster.scheduler.name in cluster.scheduler.contact_address
        assert B in cluster.scheduler.contact_address
        assert set(where(light)) == {cluster.scheduler.name, *cluster.plan}
        async with Client(cluster, asynchronous=True) as client:
            assert await client.submit(sum, [1, 2, 3]) == 6
        # What comes later comes there, too.
        cluster.scale(3)
        await cluster.wait_for_workers(3, timeout=PATIENCE)
        assert places(light, "worker") == [(B, SMALL)] * 3


async def test_a_booting_scheduler_moves_where_workers_are_to_be_had(light):
    light.capacity.set(A, SMALL, instances=0)
    options = roles(worker_machine_type=SMALL)
    async with cluster_on(light, n_workers=2, zone=[A, B], **options) as cluster:
        await cluster.wait_for_workers(2, timeout=PATIENCE)
        assert places(light, "scheduler") == [(B, SCHEDULER)]
        assert places(light, "worker") == [(B, SMALL)] * 2
        assert len(happened(cluster, "moved")) == 1


def test_a_scheduler_that_is_to_be_had_nowhere_raises(emulator):
    # Paper: no machine gets as far as to boot.
    for zone in (A, B):
        emulator.capacity.set(zone, instances=0)
    with pytest.raises(InstanceError, match="ZONE_RESOURCE_POOL_EXHAUSTED") as caught:
        GCECluster(
            n_workers=2,
            zone=[A, B],
            machine_type=[SMALL, OTHER],
            api_endpoint=emulator.endpoint,
            quiet=True,
        )
    assert isinstance(caught.value.__cause__, OutOfCapacity)
    # No place was tried twice. Where neither type is to be had for workers, one try is enough.
    assert 2 <= emulator.requests["compute.instances.insert"] <= 4
    wait_until(lambda: not emulator.leftovers())


async def test_the_quota_of_a_region_counts_for_all_its_zones():
    asked = []
    async with ComputeEmulator("light", observers=[asked.append]) as light:
        light.quota.set("us-central1", "CPUS", 0)
        options = {"zone": [A, B, EAST], "allow_cross_zone": True}
        async with cluster_on(light, n_workers=1, **options) as cluster:
            await cluster.wait_for_workers(1, timeout=PATIENCE)
            assert places(light, "scheduler") == [(EAST, SMALL)]
            assert places(light, "worker") == [(EAST, SMALL)]
            (moved,) = happened(cluster, "moved")
            assert "quotaExceeded" in moved.why
        await until(lambda: not light.leftovers())
    # Nobody asked in B, which has the quota of A.
    paths = {each.path for each in asked if each.method_id == "compute.instances.insert"}
    assert {path.split("/")[-2] for path in paths} == {A, EAST}


# -- workers --------------------------------------------------------------------------------------


async def test_workers_move_on_to_another_machine_type(light):
    light.capacity.set(A, SMALL, instances=1)
    options = roles(worker_machine_type=[SMALL, OTHER])
    async with cluster_on(light, n_workers=3, zone=A, **options) as cluster:
        await cluster.wait_for_workers(3, timeout=PATIENCE)
        assert places(light, "worker") == [(A, OTHER)] * 2 + [(A, SMALL)]
        assert places(light, "scheduler") == [(A, SCHEDULER)]
        # Two were refused, for one reason.
        (blocked,) = happened(cluster, "blocked")
        assert blocked.instance == cluster.name
        assert blocked.why.startswith(f"{SMALL} in zone {A} for 5 minutes: ")
        assert "ZONE_RESOURCE_POOL_EXHAUSTED" in blocked.why
        assert len(cluster.failures) == 2
        assert all(isinstance(each.__cause__, OutOfCapacity) for each in cluster.failures)
        # It costs no attempt to be sent elsewhere.
        assert cluster._recovery.attempts == 0


async def test_workers_move_on_to_another_zone_if_they_may(light):
    light.capacity.set(A, SMALL, instances=0)
    options = roles(worker_machine_type=SMALL, allow_cross_zone=True)
    async with cluster_on(light, n_workers=2, zone=[A, B], **options) as cluster:
        await cluster.wait_for_workers(2, timeout=PATIENCE)
        assert places(light, "scheduler") == [(A, SCHEDULER)]
        assert places(light, "worker") == [(B, SMALL)] * 2
        async with Client(cluster, asynchronous=True) as client:
            assert await client.submit(sum, [1, 2, 3]) == 6
        # Losses are seen in every zone, with one call for all of them.
        (lost, _) = sorted(cluster.plan)
        before = light.requests["compute.instances.list"]
        light.preempt(lost)
        await until(lambda: lost not in cluster.plan)
        await cluster.wait_for_workers(2, timeout=PATIENCE)
        await until(lambda: len(places(light, "worker")) == 2)
        assert light.requests["compute.instances.list"] == before


async def test_workers_stay_with_their_scheduler_unless_they_may_leave(light):
    async with cluster_on(light, zone=[A, B], worker_start_failure_limit=1) as cluster:
        light.capacity.set(A, instances=1)
        cluster.scale(2)
        with pytest.raises(WorkersFailed, match="ZONE_RESOURCE_POOL_EXHAUSTED") as caught:
            await cluster.wait_for_workers(2, timeout=PATIENCE)
        assert isinstance(caught.value.__cause__, InstanceError)
        assert isinstance(caught.value.__cause__.__cause__, OutOfCapacity)
        (gave_up,) = happened(cluster, "gave up")
        assert gave_up.instance == cluster.name
        assert places(light, "worker") == []
        # The next call says it once more, the one after that tries again.
        light.capacity.clear()
        with pytest.raises(WorkersFailed):
            cluster.scale(2)
        cluster.scale(2)
        await cluster.wait_for_workers(2, timeout=PATIENCE)
        assert places(light, "worker") == [(A, SMALL)] * 2


async def test_a_quota_sends_workers_elsewhere(light):
    exceeded = {"status": 403, "reason": "quotaExceeded", "message": "Quota 'CPUS' exceeded."}
    options = roles(worker_machine_type=[SMALL, OTHER])
    async with cluster_on(light, zone=A, **options) as cluster:
        # Neither for two, nor for one of them.
        light.faults.add(Fault("compute.instances.bulkInsert", **exceeded, times=2))
        cluster.scale(2)
        await cluster.wait_for_workers(2, timeout=PATIENCE)
        assert places(light, "worker") == [(A, OTHER)] * 2
        assert all(isinstance(each, QuotaExceeded) for each in cluster.failures)
        (blocked,) = happened(cluster, "blocked")
        assert blocked.why.startswith(f"{SMALL} in region us-central1 for 5 minutes: ")


async def test_a_block_ends(light):
    light.capacity.set(A, SMALL, instances=0)
    options = roles(worker_machine_type=[SMALL, OTHER])
    async with cluster_on(light, n_workers=1, zone=A, **options) as cluster:
        await cluster.wait_for_workers(1, timeout=PATIENCE)
        light.capacity.clear()
        cluster.scale(2)
        await cluster.wait_for_workers(2, timeout=PATIENCE)
        assert places(light, "worker") == [(A, OTHER)] * 2
        # Five minutes later the preferred machine type is asked for again.
        cluster._prepared.workers._clock = lambda: time.monotonic() + 301
        cluster.scale(3)
        await cluster.wait_for_workers(3, timeout=PATIENCE)
        assert places(light, "worker") == [(A, OTHER)] * 2 + [(A, SMALL)]


async def test_the_cap_counts_what_does_not_go(monkeypatch):
    monkeypatch.setattr(removal, "DELETE_AGAIN", 1.0)
    fails = [{"code": "INTERNAL_ERROR", "message": "It failed."}]
    async with ComputeEmulator("paper-workers") as emulator:
        async with cluster_on(emulator, n_workers=2, zone=A, max_workers=2) as cluster:
            await until(lambda: len(happened(cluster, "running")) == 3)
            emulator.faults.add(Fault("compute.instances.delete", operation_errors=fails))
            cluster.scale(1)
            await until(lambda: happened(cluster, "deleted"))
            # It is still there. Another one would be one too many.
            cluster.scale(2)
            most = 0

            def arrived():
                nonlocal most
                there = worker_machines(emulator)
                most = max(most, len(there))
                return there == cluster.plan

            await until(arrived)
            assert most == 2
            assert not emulator.faults.unused()
        await until(lambda: not emulator.leftovers())
