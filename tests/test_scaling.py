"""The plan of workers: how it changes, what follows from it, and that it loses no result."""

from __future__ import annotations

import asyncio
import math
from datetime import datetime, timezone

import dask
import pytest
from clusters import (
    BULK,
    DELETE,
    INSERT,
    cluster_on,
    until,
    until_at_work,
    worker_machines,
)
from distributed import Client
from distributed.deploy.adaptive import Adaptive
from hypothesis import given
from hypothesis import strategies as st

import dask_gce.events
import dask_gce.replacement
from dask_gce.errors import GCEError, SettingsError, WorkersFailed
from dask_gce.events import Event, EventLog
from dask_gce.recovery import LONGEST_PAUSE, PAUSE_AFTER_LIMIT, Recovery

# -- one machine, one worker ----------------------------------------------------------------------


async def test_scaling_changes_the_plan_at_once_and_asks_once(paper_workers):
    async with cluster_on(paper_workers) as cluster:
        cluster.scale(2)
        assert len(cluster.plan) == 2
        assert not cluster.requested
        cluster.scale(5)
        cluster.scale(4)
        await cluster
        assert cluster.plan == cluster.requested == set(cluster.workers)
        await until(lambda: len(worker_machines(paper_workers)) == 4)
        assert paper_workers.requests[BULK] == 1
        # None of them has booted, nor ever will: the next change acts all the same.
        await cluster.scale(6)
        await until(lambda: len(worker_machines(paper_workers)) == 6)
        assert paper_workers.requests[BULK] == 2
        cluster.scale(0)
        assert not cluster.plan
        await until(lambda: not worker_machines(paper_workers))
        assert paper_workers.requests[DELETE] == 6
        assert not cluster.failures


async def test_what_is_taken_back_before_it_was_asked_for_is_never_asked_for(paper_workers):
    async with cluster_on(paper_workers) as cluster:
        cluster.scale(3)
        cluster.scale(0)
        await cluster
        cluster.scale(1)
        await cluster
        cluster.scale(0)
        await until(lambda: not cluster.workers)
        assert paper_workers.requests[BULK] == 0
        assert paper_workers.requests[INSERT] <= 2
        await until(lambda: not worker_machines(paper_workers))


async def test_a_machine_that_is_let_go_counts_no_longer(paper_workers):
    """Going down and up again at once asks for new machines; those that leave do not come back."""
    async with cluster_on(paper_workers, n_workers=2) as cluster:
        await until(lambda: len(worker_machines(paper_workers)) == 2)
        first = cluster.plan
        cluster.scale(0)
        cluster.scale(2)
        assert not cluster.plan & first
        await until(lambda: worker_machines(paper_workers) == cluster.plan)


async def test_forty_become_ten_and_no_result_is_lost(light):
    async with (
        cluster_on(light, n_workers=40, api_rate=math.inf) as cluster,
        Client(cluster, asynchronous=True) as client,
    ):
        await client.wait_for_workers(40, timeout=120)
        await until_at_work(client, 40)
        futures = await client.scatter(list(range(400)))
        holders = await client.who_has(futures)
        assert len({where for each in holders.values() for where in each}) == 40
        cluster.scale(10)
        assert len(cluster.plan) == 10
        await until(lambda: len(worker_machines(light)) == 10)
        assert await client.gather(futures) == list(range(400))
        await until(lambda: cluster.observed == cluster.plan)
        assert cluster.plan == worker_machines(light)
        assert not cluster.failures


async def test_scaling_up_again_spares_what_is_kept(light):
    """A machine that is kept for its results goes once they are released, whatever comes."""
    async with (
        cluster_on(light, n_workers=1) as cluster,
        Client(cluster, asynchronous=True) as client,
    ):
        await client.wait_for_workers(1)
        (kept,) = cluster.plan
        future = await client.scatter(7)
        cluster.scale(0)
        await until(lambda: any(event.what == "kept" for event in cluster.events))
        assert worker_machines(light) == {kept}
        cluster.scale(1)
        assert kept not in cluster.plan
        await until(lambda: worker_machines(light) == cluster.plan)
        # Its result has moved to the new worker.
        assert await future == 7


@pytest.mark.parametrize("n", [11, 100])
async def test_more_than_the_cap_is_refused_and_changes_nothing(paper_workers, n):
    async with cluster_on(paper_workers, max_workers=10) as cluster:
        with pytest.raises(SettingsError, match="max_workers = 10") as caught:
            cluster.scale(n)
        assert caught.value.key == "max_workers"
        with pytest.raises(SettingsError, match="max_workers = 10"):
            cluster.adapt(maximum=n)
        assert not cluster.plan
        assert cluster.adapt(interval="1h").maximum == 10


# -- several workers on one machine ---------------------------------------------------------------


async def test_workers_are_counted_and_whole_machines_made(light):
    async with (
        cluster_on(light, n_workers=3, processes=2, machine_type="e2-standard-4") as cluster,
        Client(cluster, asynchronous=True) as client,
    ):
        await client.wait_for_workers(4)
        assert len(cluster.worker_spec) == 2
        expected = {f"{name}-{number}" for name in cluster.worker_spec for number in (0, 1)}
        assert cluster.plan == cluster.requested == cluster.observed == expected
        assert worker_machines(light) == set(cluster.worker_spec) == set(cluster.workers)
        assert "workers=4, threads=8" in repr(cluster)
        assert "Workers: 4<" in cluster._scaling_status()

        addresses = set(cluster.scheduler_info["workers"])
        # What a machine wrote is of both.
        logs = await cluster.get_logs(cluster=False, scheduler=False)
        assert set(logs) == addresses | set(cluster.worker_spec)

        # A worker has half of the machine's four threads.
        cluster.scale(cores=7)
        assert len(cluster.plan) == 4
        cluster.scale(cores=9)
        assert len(cluster.plan) == 6
        cluster.scale(memory=cluster._memory_per_worker() * 3)
        assert len(cluster.plan) == 4
        cluster.scale(2)
        assert len(cluster.plan) == 2
        await until(lambda: cluster.observed == cluster.plan)
        await until(lambda: worker_machines(light) == set(cluster.worker_spec))


async def test_a_machine_goes_when_all_its_workers_are_named(light):
    async with cluster_on(light, n_workers=6, processes=2) as cluster:
        await cluster.wait_for_workers(6)
        first, second, third = cluster.worker_spec
        await cluster.scale_down([f"{first}-0"])
        assert len(cluster.plan) == 6
        await cluster.scale_down([f"{first}-0", f"{first}-1", f"{second}-1"])
        assert set(cluster.worker_spec) == {second, third}
        await cluster.scale_down([third])
        assert cluster.plan == {f"{second}-0", f"{second}-1"}
        await until(lambda: worker_machines(light) == {second})
        await until(lambda: cluster.observed == cluster.plan)
        # Nothing is made in their place.
        assert cluster._target == 1


class Fixed(Adaptive):
    """Wants as many workers as it is told."""

    wanted = 0

    async def target(self):
        return self.wanted


async def test_adaptive_takes_whole_machines(light):
    async with (
        cluster_on(light, n_workers=4, processes=2) as cluster,
        Client(cluster, asynchronous=True) as client,
    ):
        await client.wait_for_workers(4)
        futures = await client.scatter(list(range(20)))
        adaptive = cluster.adapt(Adaptive=Fixed, interval="1h", wait_count=1)
        # Three workers are a machine and a half.
        adaptive.wanted = 3
        await adaptive.adapt()
        assert len(cluster.plan) == len(cluster.observed) == 4
        adaptive.wanted = 2
        await adaptive.adapt()
        assert len(cluster.plan) == 2
        await until(lambda: worker_machines(light) == set(cluster.worker_spec))
        await until(lambda: cluster.observed == cluster.plan)
        assert await client.gather(futures) == list(range(20))


async def test_adaptive_takes_back_machines_that_have_not_arrived(paper_workers):
    """It names any of their workers, hardly ever all of one machine."""
    async with cluster_on(paper_workers, n_workers=16, processes=4) as cluster:
        await until(lambda: len(worker_machines(paper_workers)) == 4)
        adaptive = cluster.adapt(Adaptive=Fixed, interval="1h", wait_count=1)
        adaptive.wanted = 8
        await adaptive.adapt()
        assert len(cluster.plan) == 8
        await until(lambda: worker_machines(paper_workers) == set(cluster.worker_spec))


async def test_one_lost_machine_is_replaced_by_one(light, monkeypatch):
    monkeypatch.setattr(dask_gce.replacement, "STEADY", 0.0)
    with dask.config.set({"distributed.deploy.lost-worker-timeout": "100ms"}):
        async with (
            cluster_on(light, n_workers=4, processes=2) as cluster,
            Client(cluster, asynchronous=True) as client,
        ):
            await client.wait_for_workers(4)
            lost, stays = cluster.worker_spec
            light.power_off(lost)
            await until(lambda: lost not in cluster.worker_spec)
            await until(lambda: len(cluster.worker_spec) == 2)
            await until(lambda: cluster.observed == cluster.plan)
            assert stays in cluster.worker_spec
            # The old one is switched off only: it has a disk, and must be deleted.
            await until(lambda: lost not in {each["name"] for each in light.instances()})
            assert worker_machines(light) == set(cluster.worker_spec)
            assert [failure.name for failure in cluster.failures] == [lost]


async def test_a_machine_that_lost_one_of_its_workers_is_replaced_by_a_whole_one(light):
    with dask.config.set({"distributed.deploy.lost-worker-timeout": "200ms"}):
        async with (
            cluster_on(light, n_workers=4, processes=2) as cluster,
            Client(cluster, asynchronous=True) as client,
        ):
            await client.wait_for_workers(4)
            half, stays = cluster.worker_spec
            futures = await client.scatter(list(range(20)))
            await client.retire_workers(names=[f"{half}-0"], close_workers=True)
            await until(lambda: half not in cluster.worker_spec)
            await until(lambda: len(cluster.plan) == 4 and cluster.observed == cluster.plan)
            assert stays in cluster.worker_spec
            # The worker that was left on it has been retired, not lost.
            assert await client.gather(futures) == list(range(20))
            await until(lambda: worker_machines(light) == set(cluster.worker_spec))
            assert [failure.name for failure in cluster.failures] == [half]


# -- when failed workers are asked for again ------------------------------------------------------


def recovery(limit=3, draw=lambda: 1.0):
    return Recovery("dask-1", limit=limit, draw=draw)


def test_pauses_grow_until_no_more_are_tried():
    one = recovery(limit=4)
    pauses = []
    for now in (0.0, 100.0, 200.0, 300.0):
        one.failed(ValueError("no"), asked=now, now=now + 1)
        pauses.append(one.pause(now + 1))
    assert pauses == [2.0, 4.0, 8.0, PAUSE_AFTER_LIMIT]
    assert isinstance(one.exhausted, WorkersFailed)
    assert "4 times in a row" in str(one.exhausted)
    assert str(one.exhausted.__cause__) == "no"


def test_what_repeating_does_not_mend_is_not_repeated():
    one = recovery(limit=10)
    one.failed(ValueError("wrong"), asked=0.0, now=1.0, lasting=True)
    assert "repeating does not mend" in str(one.exhausted)
    assert one.pause(1.0) == PAUSE_AFTER_LIMIT


def test_one_that_was_asked_for_before_the_failure_forgives_nothing():
    one = recovery()
    one.failed(ValueError("no"), asked=1.0, now=2.0)
    one.stayed(asked=1.5)
    assert one.attempts == 1
    one.stayed(asked=2.5)
    assert one.attempts == 0
    assert one.pause(2.5) == 0


@given(
    failures=st.lists(st.tuples(st.floats(0, 1e3), st.floats(0, 1e3)), min_size=1, max_size=60),
    limit=st.integers(1, 10),
    draw=st.floats(0, 1),
)
def test_attempts_are_counted_and_pauses_bounded(failures, limit, draw):
    one = recovery(limit, lambda: draw)
    now = counted = 0.0
    attempts = 0
    for ago, later in failures:
        now += later
        asked = now - ago
        one.failed(ValueError("no"), asked=asked, now=now)
        # Of all that were asked for between two failures that count, one counts.
        counts = not attempts or asked > counted
        if counts:
            attempts, counted = attempts + 1, now
        assert one.attempts == attempts
        assert (one.exhausted is not None) == (attempts >= limit)
        longest = LONGEST_PAUSE if attempts < limit else PAUSE_AFTER_LIMIT
        assert 0 <= one.pause(now) <= longest + 1e-6
        if counts:
            assert one.pause(now) >= 1.0 - 1e-6
    one.reset()
    assert (one.attempts, one.exhausted, one.pause(now)) == (0, None, 0)


@given(machines=st.integers(1, 1000), limit=st.integers(2, 5))
def test_a_thousand_refusals_of_one_request_are_one_attempt(machines, limit):
    one = recovery(limit)
    for number in range(machines):
        one.failed(ValueError("no"), asked=0.0, now=1.0 + number / 1e6)
    assert one.attempts == 1
    assert one.exhausted is None


# -- the log of events ----------------------------------------------------------------------------


def test_events_read_like_a_list_and_tell_a_listener():
    heard = []
    log = EventLog(heard.append)
    assert repr(log) == "no events"
    assert not list(log)
    log.note("vm-1", "requested")
    log.note("vm-1", "failed", "no machines")
    assert len(log) == 2
    assert [event.what for event in log] == ["requested", "failed"]
    assert heard == list(log)
    assert (log[-1].instance, log[-1].why) == ("vm-1", "no machines")
    assert repr(log).splitlines()[1].endswith("Z vm-1 failed: no machines")
    age = datetime.now(timezone.utc) - log[0].time
    assert 0 <= age.total_seconds() < 60


def test_the_oldest_events_go_first(monkeypatch):
    monkeypatch.setattr(dask_gce.events, "KEPT", 3)
    log = EventLog()
    for number in range(5):
        log.note(f"vm-{number}", "ready")
    assert [event.instance for event in log] == ["vm-2", "vm-3", "vm-4"]


def test_events_may_come_in_while_they_are_read():
    log = EventLog()
    log.note("vm-1", "ready")
    for event in log:
        assert isinstance(event, Event)
        log.note("vm-2", "ready")
    assert len(log) == 2


async def test_a_cluster_notes_what_happens_to_a_machine(light):
    async with cluster_on(light) as cluster:
        cluster.scale(1)
        await cluster.wait_for_workers(1)
        (name,) = cluster.plan
        cluster.scale(0)
        await until(lambda: not cluster.workers)
        told = [event.what for event in cluster.events if event.instance == name]
        # Its worker may arrive before the next look shows that the machine runs, or so late that
        # the machine is asked how far it is.
        told = [what for what in told if what not in ("provisioning", "running", "booting")]
        assert told == ["requested", "ready", "retired", "deleted"]
        assert isinstance(cluster.failures, list)
        assert not cluster.failures
        with pytest.raises(GCEError, match="closed"):
            closing = asyncio.ensure_future(cluster.wait_for_workers(1))
            await asyncio.sleep(0)
            await cluster.close()
            await closing
