"""The traps of SpecCluster, one test each: every one fails when its remedy is taken out.

SpecCluster was written for processes that start in a second, never fail and cost nothing. What it
does to machines that take a minute, fail one by one and cost money was found by experiment. Traps
without a test of that name here:

=== ==========================================================================================
P12 Thread pools and name look-ups do not work at exit: test_every_exit, test_exit_without_close.
P14 Asynchronous clusters are not closed at exit: the same, case "asynchronous".
P15 Ctrl-C in a constructor leaves machines: test_every_exit, test_interrupt_in_the_constructor.
P28 A worker that is told to end drops its data. Whatever we remove is retired first: P1. Machines
    that Compute Engine takes back are another matter: their data is computed again.
=== ==========================================================================================
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from http.client import HTTPConnection
from urllib.parse import urlsplit

import dask
import pytest
from clusters import (
    BULK,
    DELETE,
    INSERT,
    PATIENCE,
    break_operations,
    cluster_on,
    hold_first,
    is_worker,
    machine_stalls,
    refuse,
    settings,
    until,
    until_at_work,
    wait_until,
    worker_machines,
)
from distributed import Client, Event
from distributed.core import Status
from distributed.deploy.adaptive import Adaptive
from google.auth.credentials import AnonymousCredentials
from test_every_exit import assert_all_gone, run

import dask_gce.recovery
import dask_gce.replacement
import dask_gce.scaling
from dask_gce import GCECluster, names
from dask_gce.compute import Compute
from dask_gce.emulator import ComputeEmulator, Fault, Timings
from dask_gce.errors import APIError, GCEError, InstanceLost, QuotaExceeded, WorkersFailed
from dask_gce.fleet import Fleet
from dask_gce.instance import InstanceSpec
from dask_gce.startup import Payload, build_metadata, scheduler_spec
from dask_gce.trust import establish_trust


@pytest.fixture
def quick_recovery(monkeypatch):
    """Ask again soon for workers that failed, and miss lost ones soon."""
    monkeypatch.setattr(dask_gce.recovery, "FIRST_PAUSE", 0.1)
    monkeypatch.setattr(dask_gce.replacement, "STEADY", 0.0)
    with dask.config.set({"distributed.deploy.lost-worker-timeout": "100ms"}):
        yield


async def keep_busy(client, worker):
    """Give a worker work that lasts until the event it returns is set."""
    started, over = [await Event(client=client) for _ in range(2)]

    def work(started, over):
        Event(started).set()
        Event(over).wait()

    known = client.cluster.scheduler_info["workers"]
    (address,) = [address for address, each in known.items() if each["name"] == worker]
    future = client.submit(work, started.name, over.name, workers=[address], pure=False)
    await started.wait()
    return over, future


async def test_p01_scaling_down_retires_workers_by_name(light):
    """SpecCluster passes names where addresses are expected, retires nobody and loses results."""
    async with (
        cluster_on(light, n_workers=3) as cluster,
        Client(cluster, asynchronous=True) as client,
    ):
        await client.wait_for_workers(3, timeout=PATIENCE)
        await until_at_work(client, 3)
        futures = await client.scatter(list(range(30)))
        held = await client.who_has(futures)
        assert len({where for each in held.values() for where in each}) == 3
        cluster.scale(1)
        await until(lambda: len(worker_machines(light)) == 1)
        assert await client.gather(futures) == list(range(30))


async def test_p02_idle_workers_go_first(light):
    """SpecCluster removes the newest workers, whatever they are doing."""
    async with (
        cluster_on(light, n_workers=3) as cluster,
        Client(cluster, asynchronous=True) as client,
    ):
        await client.wait_for_workers(3, timeout=PATIENCE)
        newest = list(cluster.worker_spec)[-1]
        event, future = await keep_busy(client, newest)
        cluster.scale(1)
        await until(lambda: len(worker_machines(light)) == 1)
        assert cluster.plan == worker_machines(light) == {newest}
        await event.set()
        await future


async def test_p03_those_who_have_not_arrived_go_before_those_who_have(light):
    """With keys that are no worker names, SpecCluster removes live workers as "not launched"."""
    async with cluster_on(light) as cluster:
        held, _ = hold_first(cluster._fleet.compute, "insert_instance")
        cluster.scale(1)
        await held.wait()
        (late,) = cluster.worker_spec
        cluster.scale(2)
        await cluster.wait_for_workers(1, timeout=PATIENCE)
        (early,) = cluster.observed
        assert list(cluster.worker_spec) == [late, early]
        cluster.scale(1)
        assert cluster.plan == {early}
        assert cluster.observed == {early}
        await until(lambda: set(cluster.workers) == {early})
        assert cluster.observed == {early}


async def test_p04_adaptive_knows_whom_it_has(light):
    """With keys that are no worker names, Adaptive closes running workers as "not arrived"."""
    async with (
        cluster_on(light, n_workers=2) as cluster,
        Client(cluster, asynchronous=True) as client,
    ):
        await client.wait_for_workers(2, timeout=PATIENCE)
        for busy in sorted(cluster.plan):
            adaptive = cluster.adapt(interval="1h", wait_count=1)
            event, future = await keep_busy(client, busy)
            decided = await adaptive.recommendations(1)
            (idle,) = cluster.plan - {busy}
            assert decided == {"status": "down", "workers": [idle]}
            await event.set()
            await future
            del future


@pytest.mark.parametrize("adapts", [False, True], ids=["scale", "adapt"])
async def test_p05_a_failed_worker_is_asked_for_again(light, quick_recovery, adapts):
    """SpecCluster keeps a worker that failed to start in the plan, and never tries again."""
    async with cluster_on(light) as cluster:
        break_operations(light)
        if adapts:
            cluster.adapt(minimum=1, interval="50ms")
        else:
            cluster.scale(1)
        await until(lambda: cluster.failures)
        await cluster.wait_for_workers(1, timeout=PATIENCE)
        assert len(cluster.failures) == 1
        assert cluster.failures[0].name not in cluster.plan
        assert cluster.plan == cluster.observed == worker_machines(light)


async def test_p06_however_often_it_is_awaited_a_machine_is_asked_for_once(light):
    """SpecCluster starts every worker again each time the cluster is awaited, as clients do."""
    async with cluster_on(light) as cluster:
        held, leave = hold_first(cluster._fleet.compute, "insert_instance")
        cluster.scale(1)
        await cluster
        await held.wait()
        (worker,) = cluster.workers.values()
        assert worker.status == Status.created
        async with Client(cluster, asynchronous=True):
            starting = asyncio.gather(cluster, cluster, worker, worker.start(), worker.start())
            await cluster
            leave.set()
            await starting
            await cluster.wait_for_workers(1, timeout=PATIENCE)
            await worker.start()
    assert light.requests[INSERT] == 2


def test_p07_whoever_waits_is_told_why_workers_failed(paper_workers):
    """With SpecCluster, a failure that scale() causes is only seen in a log."""
    with GCECluster(**settings(paper_workers, asynchronous=False)) as cluster:
        refuse(paper_workers)
        cluster.scale(1)
        with pytest.raises(WorkersFailed, match="Invalid value") as caught:
            cluster.wait_for_workers(1, timeout=PATIENCE)
        assert isinstance(caught.value.__cause__, APIError)
        assert caught.value.__cause__ is cluster.failures[-1]
        told = [(event.instance, event.what) for event in cluster.events]
        assert any(is_worker(name) and what == "failed" for name, what in told)
        assert (cluster.name, "gave up") in told
        # Nobody may have waited: the next who asks is told as well, and the one after that served.
        with pytest.raises(WorkersFailed):
            cluster.scale(1)
        cluster.scale(1)
        wait_until(lambda: len(worker_machines(paper_workers)) == 1)


def test_p08_one_bad_worker_does_not_close_the_cluster(paper_workers):
    """SpecCluster closes everything when one of the first workers cannot be made."""
    refuse(paper_workers, times=2)
    with GCECluster(**settings(paper_workers, n_workers=1, asynchronous=False)) as cluster:
        wait_until(lambda: cluster.failures)
        assert cluster.status == Status.running

    async def main():
        async with cluster_on(paper_workers, n_workers=1) as cluster:
            await until(lambda: cluster.failures)
            assert cluster.status == Status.running

    asyncio.run(main())


async def test_p09_nothing_waits_for_a_machine(paper_workers):
    """SpecCluster holds a lock until all workers have started; scale() and close() wait for it."""
    async with cluster_on(paper_workers) as cluster:
        held, leave = hold_first(cluster._fleet.compute, "insert_instance")
        cluster.scale(1)
        await held.wait()
        cluster.scale(3)
        await until(lambda: paper_workers.requests[BULK] == 1)
        assert len(cluster.requested) == 3
        await until(lambda: len(worker_machines(paper_workers)) == 2)
        # These two boot, and will for ever.
        cluster.scale(1)
        await until(lambda: paper_workers.requests[DELETE] == 2)
        # The first insert has not even left.
        leave.set()


async def test_p10_a_delete_that_is_refused_stops_nothing(light):
    """When a worker's close() raises, SpecCluster stays `closing`; closing again never ends."""
    async with cluster_on(light, n_workers=1) as cluster:
        await cluster.wait_for_workers(1, timeout=PATIENCE)
        scheduler = cluster.scheduler.name
        light.faults.add(Fault(DELETE, status=403, reason="forbidden", match=is_worker))
        cluster.scale(0)
        await until(lambda: not cluster.workers)
        # Its worker has ended, and so has the machine, but its disk would cost money for ever.
        await until(lambda: [each["name"] for each in light.instances()] == [scheduler])
        cluster.scale(1)
        await cluster.wait_for_workers(1, timeout=PATIENCE)
        await cluster.close()
        await cluster.close()
        assert cluster.status == Status.closed


async def test_p11_every_object_is_closed_whatever_became_of_its_machine(light, caplog):
    """SpecCluster asserts that every worker it made is closed, and else stays `closing`."""
    cluster = await cluster_on(light, n_workers=1)
    await cluster.wait_for_workers(1, timeout=PATIENCE)
    refuse(light)
    cluster.scale(2)
    await until(lambda: cluster.failures)
    made = [*cluster._created, cluster.scheduler]
    light.faults.add(Fault(DELETE, status=403, reason="forbidden", times=100))
    with pytest.raises(GCEError, match="may be left"):
        await cluster.close()
    assert cluster.status == Status.failed
    # So would the interpreter's exit try again.
    light.faults.clear()
    await cluster.close()
    assert cluster.status == Status.closed
    assert {process.status for process in made} == {Status.closed}
    await asyncio.wait_for(asyncio.gather(*(process.finished() for process in made)), PATIENCE)
    await cluster.close()


async def test_p13_exit_waits_for_no_deletion(discovery):
    """Dask gives all clusters ten seconds at exit, in which a machine is not gone yet."""
    labels = {"dask-gce-cluster": "dask-1", "dask-gce-id": "1", "dask-gce-role": "worker"}
    image = "projects/cos-cloud/global/images/family/cos-stable"
    with ComputeEmulator("paper", timings=Timings(deleting=60)) as emulator:
        compute = Compute(
            "local-project", endpoint=emulator.endpoint, credentials=AnonymousCredentials()
        )
        async with compute:
            fleet = Fleet(compute, "dask-1", "1")
            for number in range(3):
                spec = InstanceSpec(
                    f"vm-{number}",
                    "local-project",
                    "us-central1-a",
                    "e2-small",
                    image,
                    10,
                    network="default",
                    labels=labels,
                    metadata={},
                )
                fleet.request(spec, 30)
            await until(lambda: len(emulator.instances()) == 3)
            began = time.monotonic()
            await asyncio.to_thread(fleet.delete_now)
            assert time.monotonic() - began < 30
            assert {each["status"] for each in emulator.instances()} == {"STOPPING"}


async def test_p16_a_lost_worker_is_replaced(light, quick_recovery):
    """SpecCluster leaves a worker that was lost in the plan, and makes no other."""
    # Who deleted it is told by Compute Engine, that it is away by the scheduler: first come.
    with dask.config.set({"distributed.deploy.lost-worker-timeout": "60s"}):
        async with cluster_on(light, n_workers=1) as cluster:
            await cluster.wait_for_workers(1, timeout=PATIENCE)
            (lost,) = cluster.plan
            light.delete(lost, user="colleague@example.org")
            await until(lambda: lost not in cluster.plan)
            # Between the two there is none.
            await until(
                lambda: cluster.plan and cluster.observed == cluster.plan == worker_machines(light)
            )
            assert len(cluster.plan) == 1
            await until(lambda: lost not in cluster.workers)
            (failure,) = cluster.failures
            assert isinstance(failure, InstanceLost)
            assert failure.name == lost
            (event,) = [event for event in cluster.events if event.what == "lost"]
            assert "colleague@example.org" in event.why


async def test_p17_a_lost_machine_with_several_workers_is_replaced(light, quick_recovery):
    """SpecCluster does not find the machine of a worker that is one of several."""
    async with cluster_on(light, n_workers=2, processes=2) as cluster:
        await cluster.wait_for_workers(2, timeout=PATIENCE)
        (lost,) = cluster.worker_spec
        assert cluster.observed == {f"{lost}-0", f"{lost}-1"}
        light.preempt(lost)
        await until(lambda: lost not in cluster.worker_spec and lost not in cluster.workers)
        await until(lambda: cluster.plan and cluster.observed == cluster.plan)
        (new,) = cluster.worker_spec
        assert cluster.observed == {f"{new}-0", f"{new}-1"}
        assert worker_machines(light) == {new}


class Greedy(Adaptive):
    """Wants a hundred workers."""

    async def target(self):
        return 100


async def test_p18_adaptive_counts_workers_and_not_machines(paper_workers):
    """With several workers a machine, SpecCluster plans more of them than Adaptive's maximum."""
    async with cluster_on(paper_workers, processes=2) as cluster:
        adaptive = cluster.adapt(Adaptive=Greedy, interval="1h", maximum=5)
        await adaptive.adapt()
        await until(lambda: len(worker_machines(paper_workers)) == 2)
        assert len(cluster.plan) == 4
        # Nor does it go on asking for a fifth.
        await adaptive.adapt()
        await cluster
        assert len(cluster.plan) == 4


async def test_p19_machines_that_boot_are_given_their_time(paper_workers):
    """Adaptive's own defaults take machines back three seconds after they were asked for."""
    async with cluster_on(paper_workers, n_workers=2) as cluster:
        adaptive = cluster.adapt(interval="1h")
        per_decision = dask_gce.scaling.ADAPTIVE_DEFAULTS["interval"]
        decisions = 60 // int(per_decision.removesuffix("s"))
        for _ in range(decisions):
            await adaptive.adapt()
        assert len(cluster.plan) == 2
        for _ in range(decisions):
            await adaptive.adapt()
        assert not cluster.plan


async def test_p20_what_adaptive_suffers_is_told(paper_workers):
    """Errors of an adaptive cluster only reach a log, or stop it without a word."""
    async with cluster_on(paper_workers) as cluster:
        refuse(paper_workers, times=100)
        adaptive = cluster.adapt(minimum=1, interval="20ms")
        with pytest.raises(WorkersFailed, match="Invalid value"):
            await cluster.wait_for_workers(1, timeout=PATIENCE)
        assert {"failed", "gave up"} <= {event.what for event in cluster.events}
        decided = len(adaptive.log)
        await until(lambda: len(adaptive.log) > decided)
        assert adaptive.state == "running"
        # It does not go on asking, which nobody would see.
        assert paper_workers.requests[INSERT] == 2


async def test_p21_a_lost_connection_is_made_again(light):
    """SpecCluster never hears of workers again once its connection has ended."""
    async with cluster_on(light) as cluster:
        cluster._watch_worker_status_comm.abort()
        await until(lambda: any(event.what == "reconnected" for event in cluster.events))
        cluster.scale(1)
        await cluster.wait_for_workers(1, timeout=PATIENCE)
        assert cluster.observed == cluster.plan
        told = [event.what for event in cluster.events if event.instance == cluster.scheduler.name]
        assert told[-2:] == ["disconnected", "reconnected"]


async def test_p22_a_scheduler_that_is_gone_is_noticed_and_not_called(light):
    """SpecCluster stays `running` without its scheduler, and takes half a minute to close."""
    cluster = await cluster_on(light, n_workers=1)
    await cluster.wait_for_workers(1, timeout=PATIENCE)
    light.delete(cluster.scheduler.name, user="colleague@example.org")
    await until(lambda: cluster.failures)
    (failure,) = cluster.failures
    assert isinstance(failure, InstanceLost)
    assert failure.name == cluster.scheduler.name
    with pytest.raises(InstanceLost):
        await cluster.wait_for_workers(2, timeout=5)
    began = time.monotonic()
    await cluster.close()
    assert time.monotonic() - began < 25


def test_p23_a_failed_start_raises_its_own_error_and_leaves_no_loop(paper_workers):
    """SpecCluster wraps every error in a RuntimeError, and leaves its loop's thread."""

    def loops():
        return {each for each in threading.enumerate() if each.name.startswith("IO loop")}

    before = loops()
    paper_workers.faults.add(Fault(INSERT, status=403, reason="quotaExceeded", message="No."))
    with pytest.raises(QuotaExceeded):
        GCECluster(**settings(paper_workers, asynchronous=False))
    wait_until(lambda: loops() <= before)


async def test_p24_the_dashboard_is_where_its_link_says(light):
    """Cluster makes the dashboard's link of a host and a port that need not be reachable."""
    async with cluster_on(light, dashboard_port=8790) as cluster:
        assert ":8790/" in cluster.dashboard_link

        def get():
            link = urlsplit(cluster.dashboard_link)
            with contextlib.closing(HTTPConnection(link.hostname, link.port)) as connection:
                connection.request("GET", link.path)
                return connection.getresponse().status

        assert await asyncio.to_thread(get) == 200


async def test_p25_adapting_again_starts_from_the_defaults(paper_workers):
    """Cluster keeps the options of every adapt(), and mixes them with those of the next."""
    async with cluster_on(paper_workers) as cluster:
        first = cluster.adapt(maximum=3, wait_count=7, interval="20ms")
        await until(lambda: first.state == "running")
        second = cluster.adapt(minimum=1)
        assert first.state == "stopped"
        assert (second.minimum, second.maximum) == (1, float("inf"))
        assert (second.wait_count, second.interval) == (24, 5)


async def test_p26_the_event_loop_is_never_held(discovery):
    """All clusters and clients of a process share a loop: a call that blocks stops heartbeats."""
    slow = dict.fromkeys((INSERT, BULK, DELETE, "compute.instances.list"), 1.0)
    with (
        machine_stalls() as stalled,
        ComputeEmulator("paper-workers", timings=Timings(latencies=slow)) as emulator,
    ):
        longest = 0.0

        async def watch():
            nonlocal longest
            while True:
                before = time.monotonic()
                await asyncio.sleep(0.01)
                longest = max(longest, time.monotonic() - before)

        async with cluster_on(emulator, n_workers=1) as cluster:
            watching = asyncio.ensure_future(watch())
            cluster.scale(5)
            await until(lambda: len(worker_machines(emulator)) == 5)
            cluster.scale(3)
            await until(lambda: len(worker_machines(emulator)) == 3)
        watching.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await watching
        # Every call takes a second. What every thread suffers is the machine's doing.
        assert longest < 0.8 + stalled()


def test_p27_every_role_has_a_certificate_of_its_own():
    """Security.temporary() gives every machine one certificate, which is its own authority."""
    trust = establish_trust(True, "dask-1")
    machines = trust.machines
    assert set(machines) == {"scheduler", "worker"}
    certificates = {each.certificate for each in machines.values()} | {trust.client.tls_client_cert}
    keys = {each.key for each in machines.values()} | {trust.client.tls_client_key}
    assert len(certificates) == len(keys) == 3
    assert machines["worker"].ca == machines["scheduler"].ca not in certificates
    # A machine cannot pass for the scheduler, or for a client, with what it is given.
    assert trust.client.tls_client_key not in repr(machines["worker"].key)


async def test_p29_a_workers_name_is_text_and_its_options_are_data(light):
    """Names of digits become numbers on the way, and JSON on a command line must be quoted."""
    assert not any(names.instance_name("dask-1", "worker").isdigit() for _ in range(100))
    odd = 'it\'s "$HOME" `id`\n{}'
    options = {"resources": {odd: 1}}
    async with cluster_on(light, n_workers=1, worker_options=options) as cluster:
        await cluster.wait_for_workers(1, timeout=PATIENCE)
        (worker,) = cluster.scheduler_info["workers"].values()
        assert worker["resources"] == {odd: 1}
        (name,) = cluster.worker_spec
        assert worker["name"] == name
        assert type(worker["name"]) is str


def test_p30_no_scheduler_ends_behind_its_users_back():
    """A scheduler with an idle timeout forgets who is connected, and whose results it keeps."""
    spec = scheduler_spec(protocol="tcp", port=8786, dashboard_port=8787, options={})
    metadata = build_metadata(Payload("scheduler", "project", "image", spec))
    assert "idle" not in metadata["dask-gce-spec"]


def test_p31_a_cluster_that_is_forgotten_still_has_its_machines(process_emulator):
    """Dask knows its clusters weakly, so that one that was garbage collected is never closed."""
    program = """
import gc
async def main():
    await GCECluster(n_workers=1, asynchronous=True, **settings)
asyncio.run(main())
gc.collect()
"""
    run(process_emulator, program)
    assert_all_gone(process_emulator)
