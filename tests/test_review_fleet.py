"""What a harsh reader of the fleet found: each test failed once."""

from __future__ import annotations

import asyncio
import itertools
import socket
import time
from dataclasses import replace
from types import SimpleNamespace

import pytest
from clusters import BULK, DELETE, INSERT, cluster_on, is_worker, worker_machines
from distributed import Client
from distributed.security import Security
from fleets import QUICK, ZONE, Cloud, a_fleet, gone, numbered, request, running, until, workers
from google.auth.credentials import AnonymousCredentials

import dask_gce.attendance
import dask_gce.batch
import dask_gce.fleet
import dask_gce.insertion
import dask_gce.probing
from dask_gce import shared_plan
from dask_gce.compute import Compute
from dask_gce.emulator import ComputeEmulator, Fault, Timings
from dask_gce.errors import InstanceLost, StartTimeout, TransportError
from dask_gce.instance import Instance
from dask_gce.reach.approach import Approach
from dask_gce.reach.route import Route
from dask_gce.scheduler import GCEScheduler
from dask_gce.settings import Settings


@pytest.fixture
def quick_inserts(monkeypatch):
    """Repeat inserts soon, and wait little for lists of operations."""
    monkeypatch.setattr(dask_gce.batch, "LAG", 0.02)
    monkeypatch.setattr(dask_gce.insertion, "FIRST_PAUSE", 0.2)


# -- inserts that nobody wants any more -----------------------------------------------------------


async def test_an_insert_that_is_wanted_no_more_is_not_repeated(quick_inserts):
    async with Cloud() as cloud:
        insert = "compute.instances.insert"
        # Late, the repeat would make an instance that no record knows, after the last look.
        cloud.faults.add(Fault(insert, status=503, times=2), Fault(insert, delay=0.5))
        async with a_fleet(cloud.endpoint, call_timeout=0.01) as fleet:
            accepted = fleet.request(*workers("vm"), 60)
            await until(lambda: cloud.asked("instances.insert"))
            await fleet.delete("vm")
            asked = cloud.requests[insert]
            await asyncio.sleep(0.3)
            assert cloud.requests[insert] == asked
            assert accepted.cancelled()
        await gone(cloud)


async def test_what_is_repeated_for_others_is_not_over(quick_inserts):
    async with Cloud(replace(QUICK, pending=0.2)) as cloud:
        bulk = "compute.instances.bulkInsert"
        cloud.faults.add(Fault(bulk, status=503), Fault(bulk, delay=0.3))
        async with a_fleet(cloud.endpoint, call_timeout=0.01) as fleet:
            for spec in workers(*numbered(2)):
                fleet.request(spec, 60)
            await until(lambda: cloud.asked("instances.bulkInsert"))
            first = asyncio.ensure_future(fleet.delete("vm-0"))
            await until(lambda: cloud.requests[bulk] == 2)
            await fleet.delete_all()
            await first
        await gone(cloud)
        # No delete overtook the insert: they went out when its operation had ended.
        order = [each.method_id.removeprefix("compute.") for each in cloud.log]
        done = [b'"status": "DONE"' in each.response_body for each in cloud.log]
        assert done.index(True) < order.index("instances.delete")


# -- what is asked while others wait --------------------------------------------------------------


async def test_failures_are_told_in_time_whatever_the_details_take(monkeypatch):
    monkeypatch.setattr(dask_gce.fleet, "DETAILS_WITHIN", 0.2)
    async with Cloud() as cloud, a_fleet(cloud.endpoint, call_timeout=30) as fleet:
        names = numbered(4)
        await request(fleet, workers(*names), timeout=0.3)
        await running(fleet, *names)
        cloud.faults.add(
            Fault("compute.instances.getGuestAttributes", status=503, times=99),
            Fault("compute.instances.getSerialPortOutput", status=503, times=99),
        )
        await asyncio.sleep(0.3)
        began = time.monotonic()
        failures = await fleet.check(names)
        assert time.monotonic() - began < 20
        assert {type(each) for each in failures} == {StartTimeout}
        assert len(failures) == 4


async def test_a_list_that_takes_too_long_is_no_answer(monkeypatch):
    monkeypatch.setattr(dask_gce.fleet, "LISTED_WITHIN", 0.2)
    async with Cloud() as cloud, a_fleet(cloud.endpoint, call_timeout=5) as fleet:
        await request(fleet, workers("vm"))
        await running(fleet, "vm")
        cloud.faults.add(Fault("compute.instances.list", status=503, times=99))
        with pytest.raises(TransportError, match=r"within 0\.2 s"):
            await fleet.look()
        assert not fleet.members["vm"].missed
        cloud.faults.clear()


async def test_a_slow_bulk_insert_is_one_question(monkeypatch):
    async with Cloud(replace(QUICK, pending=0.5)) as cloud, a_fleet(cloud.endpoint) as fleet:
        names = numbered(20)
        cloud.faults.add(Fault("compute.zoneOperations.wait", status=503))
        await request(fleet, workers(*names))
        await until(lambda: not fleet.following)
        for member in fleet.members.values():
            member.missed = dask_gce.fleet.MISSES  # lists lag behind
        assert await fleet.check(names) == []
        assert len(cloud.asked("zoneOperations.get")) == 1


async def test_calls_that_are_called_off_leave_their_turns_to_others():
    async with Cloud() as cloud:
        credentials = AnonymousCredentials()
        async with Compute(
            "local-project", endpoint=cloud.endpoint, credentials=credentials, rate=10
        ) as one:
            calls = [asyncio.ensure_future(one.delete_instance(ZONE, "vm")) for _ in range(150)]
            await until(lambda: cloud.asked("instances.delete"))
            for call in calls:
                call.cancel()
            await asyncio.wait(calls)
            began = time.monotonic()
            await one.delete_instance(ZONE, "vm")
            # The others' turns would take fifteen seconds.
            assert time.monotonic() - began < 12


# -- reaching the scheduler -----------------------------------------------------------------------


async def test_an_address_without_a_route_does_not_hide_that_the_scheduler_failed(monkeypatch):
    # For so long such an address keeps whoever asks there.
    monkeypatch.setattr(dask_gce.probing, "PROBE_TIMEOUT", 60.0)
    with socket.create_server(("127.0.0.2", 0), backlog=0) as full:
        port = full.getsockname()[1]
        # With a full backlog further connections wait for an answer that does not come.
        fillers = [socket.socket() for _ in range(3)]
        for filler in fillers:
            filler.setblocking(False)
            filler.connect_ex(("127.0.0.2", port))
        settings = Settings.load(scheduler_port=port, security=False)
        asked = asyncio.Event()
        approach = Approach(
            Route("external", "it is a test"),
            settings,
            "p",
            security=Security(require_encryption=False),
        )
        find_obstacle = approach.find_obstacle

        async def asking():
            asked.set()
            return await find_obstacle()

        monkeypatch.setattr(approach, "find_obstacle", asking)
        instance = Instance("s", ZONE, "RUNNING", internal_ip="127.0.0.1", external_ip="127.0.0.2")
        scheduler = GCEScheduler(
            name="s",
            fleet=SimpleNamespace(members={"s": SimpleNamespace(instance=instance)}),
            blueprint=SimpleNamespace(
                settings=settings, scheduler=lambda name, location: SimpleNamespace(name=name)
            ),
            placement=None,
            location=None,
            approach=approach,
            moved=None,
        )
        reaching = asyncio.ensure_future(scheduler._wait_until_reachable())
        await asked.wait()
        began = time.monotonic()
        scheduler.failure = InstanceLost("It is gone.", name="s")
        with pytest.raises(InstanceLost):
            await reaching
        assert time.monotonic() - began < 30
        for filler in fillers:
            filler.close()


# -- without a scheduler --------------------------------------------------------------------------


async def test_without_its_scheduler_a_cluster_keeps_and_makes_no_machines(light):
    async with cluster_on(light, n_workers=2) as cluster:
        await cluster.wait_for_workers(2)
        asked = light.requests[INSERT] + light.requests[BULK]
        # Those that die with it are not replaced either.
        light.power_off(min(cluster.workers))
        light.delete(cluster.scheduler.name, user="colleague@example.org")
        await until(lambda: not cluster.workers)
        with pytest.raises(InstanceLost, match=cluster.scheduler.name):
            cluster.scale(4)
        cluster.scale(0)
        assert not cluster.plan
        assert light.requests[INSERT] + light.requests[BULK] == asked
        assert not {event.instance for event in cluster.events if event.what == "retired"}


CLOSED = ValueError("IOStream is not idle; cannot convert to SSL")


async def test_a_connection_that_is_closed_before_tls_begins_is_made_again(light, monkeypatch):
    monkeypatch.setattr(dask_gce.attendance, "RECONNECT_AFTER", 0.01)
    async with cluster_on(light) as cluster:
        connect, numbers = cluster.scheduler_comm.live_comm, itertools.count()

        async def closed_at_first():
            # More than once: what the cluster saves on its scheduler connects as well.
            if next(numbers) < 3:
                raise CLOSED
            return await connect()

        monkeypatch.setattr(cluster.scheduler_comm, "live_comm", closed_at_first)
        cluster._watch_worker_status_comm.abort()
        await until(lambda: any(event.what == "reconnected" for event in cluster.events))
        cluster.scale(1)
        await cluster.wait_for_workers(1)


async def test_a_worker_goes_although_a_connection_was_closed_before_tls(light, monkeypatch):
    async with cluster_on(light, n_workers=2) as cluster:
        await cluster.wait_for_workers(2)
        retire, numbers = cluster.scheduler_comm.retire_workers, itertools.count()

        async def closed_at_first(**asked):
            if not next(numbers):
                raise CLOSED
            return await retire(**asked)

        monkeypatch.setattr(
            cluster.scheduler_comm, "retire_workers", closed_at_first, raising=False
        )
        cluster.scale(1)
        await until(lambda: any(event.what == "kept" for event in cluster.events))
        await until(lambda: len(cluster.workers) == 1)


async def test_a_plan_is_not_told_if_the_connection_is_closed_before_tls():
    class Closing:
        async def set_metadata(self, **asked):
            raise CLOSED

    assert not await shared_plan.publish(Closing(), shared_plan.SharedPlan(3, "someone/1"))


# -- letting go -----------------------------------------------------------------------------------


async def test_a_worker_that_arrives_while_its_machine_goes_gets_nothing_to_lose(discovery):
    with ComputeEmulator("light", timings=Timings(booting=2, stopping=1)) as light:
        async with (
            cluster_on(light, n_workers=1) as cluster,
            Client(cluster, asynchronous=True) as client,
        ):
            await cluster.wait_for_workers(1)
            cluster.scale(2)
            await until(lambda: len(worker_machines(light)) == 2)
            (late,) = cluster.plan - cluster.observed
            light.faults.add(Fault(DELETE, status=503, match=is_worker, times=99))
            cluster.scale(1)
            arrived = [False]

            def note(event):
                arrived[0] |= event.instance == late and event.what == "ready"

            cluster.events.listen(note)
            await until(lambda: arrived[0] and late not in cluster.observed)
            # Without its worker it may be off already, but it is not deleted.
            assert late in {each["name"] for each in light.instances()}
            futures = await client.scatter(list(range(20)))
            light.faults.clear()  # the delete succeeds when it is next repeated
            await until(lambda: late not in {each["name"] for each in light.instances()})
            assert await client.gather(futures) == list(range(20))
        await gone(light)
