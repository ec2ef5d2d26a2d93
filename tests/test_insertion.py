"""Machines come into being in a few calls, and nobody is in doubt about what became of a call."""

from __future__ import annotations

import asyncio
import socket
import time
from contextlib import AsyncExitStack
from dataclasses import replace

import pytest
from fleets import (
    OTHER_ZONE,
    QUICK,
    SINGLE,
    WORKER,
    ZONE,
    Cloud,
    a_fleet,
    codes,
    failed,
    gone,
    look_until,
    numbered,
    request,
    running,
    until,
    workers,
)
from scripted_api import FastClock

from dask_gce import batch, insertion, removal
from dask_gce import fleet as fleet_module
from dask_gce.emulator import Fault
from dask_gce.errors import (
    APIError,
    InstanceError,
    OutOfCapacity,
    QuotaExceeded,
    ServerFault,
    TransportError,
)


@pytest.fixture(autouse=True)
def soon(monkeypatch):
    """Repeat and look again after milliseconds."""
    monkeypatch.setattr(insertion, "FIRST_PAUSE", 0.02)
    monkeypatch.setattr(removal, "FIRST_PAUSE", 0.02)


@pytest.fixture
async def cloud():
    async with Cloud() as running:
        yield running
        await gone(running)


@pytest.fixture
async def fleet(cloud):
    async with a_fleet(cloud.endpoint) as fleet:
        yield fleet


# -- how many calls -------------------------------------------------------------------------------


async def test_all_of_one_turn_are_one_call(cloud, fleet):
    names = numbered(5)
    assert await request(fleet, workers(*names)) == [None] * 5
    await running(fleet, *names)
    (asked,) = cloud.asked("instances.bulkInsert")
    assert set(asked.request["perInstanceProperties"]) == set(names)
    assert (asked.request["count"], asked.request["minCount"]) == ("5", "1")
    assert not cloud.asked("instances.insert")


async def test_a_queue_that_grows_over_several_turns_is_one_call(cloud, fleet):
    specs = workers(*numbered(6))
    asked = []
    for spec in specs:
        asked.append(fleet.request(spec, 60))
        await asyncio.sleep(0)
    await asyncio.gather(*asked)
    assert [each.request["count"] for each in cloud.asked("instances.bulkInsert")] == ["6"]
    # What comes later is a call of its own.
    await request(fleet, workers("late", "later"))
    assert [each.request["count"] for each in cloud.asked("instances.bulkInsert")] == ["6", "2"]


async def test_one_is_a_plain_insert(cloud, fleet):
    await request(fleet, workers("vm"))
    assert [each.request["name"] for each in cloud.asked("instances.insert")] == ["vm"]
    assert not cloud.asked("instances.bulkInsert")


@pytest.mark.parametrize("other", [{"zone": OTHER_ZONE}, {"machine_type": "e2-medium"}])
async def test_each_location_is_a_call_of_its_own(cloud, fleet, other):
    specs = [*workers("a-0", "a-1"), *workers("b-0", "b-1", **other)]
    await request(fleet, specs)
    bodies = [each.request for each in cloud.asked("instances.bulkInsert")]
    asked = sorted(sorted(body["perInstanceProperties"]) for body in bodies)
    assert asked == [["a-0", "a-1"], ["b-0", "b-1"]]


async def test_what_a_bulk_does_not_know_is_inserted_one_by_one(cloud, fleet):
    names = numbered(3)
    assert await request(fleet, workers(*names, template=SINGLE)) == [None] * 3
    assert {each.request["name"] for each in cloud.asked("instances.insert")} == set(names)
    assert not cloud.asked("instances.bulkInsert")
    await running(fleet, *names)


async def test_asking_again_is_the_same_request(cloud, fleet):
    (spec,) = workers("vm")
    assert fleet.request(spec, 60) is fleet.request(spec, 60)
    await fleet.request(spec, 60)
    # And once it was accepted.
    await fleet.request(spec, 60)
    assert len(cloud.asked("instances.insert")) == 1


async def test_taken_back_in_the_same_turn_it_is_not_asked_for(cloud, fleet):
    specs = workers(*numbered(3))
    asked = [fleet.request(spec, 60) for spec in specs]
    await fleet.delete("vm-1")
    await asyncio.gather(asked[0], asked[2])
    assert asked[1].cancelled()
    (call,) = cloud.asked("instances.bulkInsert")
    assert set(call.request["perInstanceProperties"]) == {"vm-0", "vm-2"}
    assert not cloud.asked("instances.delete")


async def test_no_more_than_ten_bulks_at_a_time():
    # Compute Engine refuses an eleventh.
    async with Cloud(replace(QUICK, provisioning=0.1)) as cloud:
        async with a_fleet(cloud.endpoint) as fleet:
            specs = []
            for number in range(12):
                # Batches are told apart by identity.
                specs += workers(*numbered(2, f"vm-{number}"), labels=dict(WORKER.labels))
            assert await request(fleet, specs) == [None] * 24
            assert [each.status for each in cloud.asked("instances.bulkInsert")] == [200] * 12
            await running(fleet, *(spec.name for spec in specs))
        await gone(cloud)


# -- calls that do not get through ----------------------------------------------------------------

METHODS = pytest.mark.parametrize(
    ("method", "count"), [("instances.insert", 1), ("instances.bulkInsert", 3)]
)


@METHODS
async def test_an_answer_that_is_lost_makes_no_second_machine(cloud, fleet, method, count):
    names = numbered(count)
    cloud.faults.add(Fault(f"compute.{method}", drop="after", times=2))
    assert await request(fleet, workers(*names)) == [None] * count
    asked = cloud.asked(method)
    assert [each.status for each in asked] == [0, 0, 200]
    assert len({each.query["requestId"] for each in asked}) == 1
    await running(fleet, *names)
    assert cloud.alive() == set(names)


@METHODS
@pytest.mark.parametrize("status", [500, 503])
async def test_a_server_fault_is_asked_again(cloud, fleet, method, count, status):
    cloud.faults.add(Fault(f"compute.{method}", status=status, times=2))
    assert await request(fleet, workers(*numbered(count))) == [None] * count
    asked = cloud.asked(method)
    assert [each.status for each in asked] == [status, status, 200]
    assert len({each.query["requestId"] for each in asked}) == 1


async def test_over_the_rate_is_asked_again_in_the_next_minute(cloud):
    clock = FastClock()
    cloud.faults.add(
        Fault("compute.instances.bulkInsert", status=403, reason="rateLimitExceeded"),
        Fault("compute.instances.bulkInsert", status=429, reason="rateLimitExceeded"),
    )
    async with a_fleet(cloud.endpoint, clock=clock, call_timeout=300) as fleet:
        assert await request(fleet, workers(*numbered(2))) == [None] * 2
        assert [each.status for each in cloud.asked("instances.bulkInsert")] == [403, 429, 200]
        # The clock stood ten seconds before a full minute.
        assert clock.time() >= 60 + 60


async def test_a_refused_connection_is_tried_again():
    async with AsyncExitStack() as stack:
        # As long as it is bound nobody else gets the port, and whoever connects is refused.
        taken = stack.enter_context(socket.socket())
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
        cloud = Cloud(port=port)
        async with a_fleet(f"http://127.0.0.1:{port}") as fleet:
            asked = fleet.request(*workers("vm"), 60)
            await asyncio.sleep(0.1)
            assert not asked.done()
            taken.close()
            await stack.enter_async_context(cloud)
            await asked
            await running(fleet, "vm")
        await gone(cloud)


async def test_the_deadline_ends_the_repeats(cloud, fleet):
    cloud.faults.add(Fault("compute.instances.bulkInsert", status=503, times=99))
    began = time.monotonic()
    refusals = await request(fleet, workers(*numbered(2)), timeout=1.0)
    # Each pause is twice the one before: the last that fits ends in the second half.
    assert 0.45 < time.monotonic() - began < 10
    assert [type(each) for each in refusals] == [ServerFault, ServerFault]
    assert 1 < len(cloud.asked("instances.bulkInsert")) < 8
    # It may have worked, for all that is known: so it is on record.
    assert set(fleet.members) == {"vm-0", "vm-1"}
    failures = await failed(fleet, "vm-0", "vm-1")
    assert all(isinstance(each.__cause__, ServerFault) for each in failures.values())


async def test_nobody_answering_until_the_deadline_is_a_failure(cloud, fleet):
    cloud.faults.add(Fault("compute.instances.insert", drop=True, times=99))
    (refusal,) = await request(fleet, workers("vm"), timeout=0.2)
    assert isinstance(refusal, TransportError)


@METHODS
@pytest.mark.parametrize(
    ("status", "reason", "error"),
    [(403, "quotaExceeded", QuotaExceeded), (400, "invalid", APIError)],
)
async def test_a_refusal_is_final(cloud, fleet, method, count, status, reason, error):
    names = numbered(count)
    fault = Fault(f"compute.{method}", status=status, reason=reason, message="So not.", times=99)
    cloud.faults.add(fault)
    refusals = await request(fleet, workers(*names))
    assert [type(each) for each in refusals] == [error] * count
    # A quota may suffice for some of them.
    tries = 2 if reason == "quotaExceeded" and count > 1 else 1
    assert len(cloud.asked(method)) == tries
    # Asking again tells the same, and makes no call.
    with pytest.raises(error):
        await fleet.request(workers(*names)[0], 60)
    assert len(cloud.asked(method)) == tries
    failures = await failed(fleet, *names)
    assert "So not." in str(failures["vm-0"])
    for name in names:
        await fleet.delete(name)
    assert not fleet.members
    # There is nothing to delete, and that is known.
    assert not cloud.asked("instances.delete")


@pytest.mark.parametrize(("status", "reason"), [(403, "forbidden"), (409, "alreadyExists")])
async def test_a_refusal_undoes_no_attempt_before_it(cloud, fleet, status, reason):
    cloud.faults.add(
        Fault("compute.instances.insert", drop="after"),
        Fault("compute.instances.insert", status=status, reason=reason),
    )
    (refusal,) = await request(fleet, workers("vm"))
    assert isinstance(refusal, APIError)
    assert cloud.alive() == {"vm"}
    await fleet.delete("vm")
    # By its name where it must be ours, else by its labels.
    assert len(cloud.asked("instances.delete")) == (status == 403)
    await look_until(fleet, lambda: not cloud.alive())


# -- operations that fail -------------------------------------------------------------------------


async def test_a_bulk_that_comes_in_part(cloud, fleet):
    names = numbered(5)
    cloud.capacity.set(ZONE, instances=3)
    assert await request(fleet, workers(*names)) == [None] * 5
    await until(lambda: sum(each.failure is not None for each in fleet.members.values()) == 2)
    lacking = [name for name in names if fleet.members[name].failure is not None]
    failures = await failed(fleet, *lacking)
    assert all(type(each) is InstanceError for each in failures.values())
    assert all(isinstance(each.__cause__, OutOfCapacity) for each in failures.values())
    assert codes(failures.values()) == ["ZONE_RESOURCE_POOL_EXHAUSTED"] * 2
    assert all(name in str(each) and ZONE in str(each) for name, each in failures.items())
    await running(fleet, *(set(names) - set(lacking)))
    # Those that never were need no delete.
    for name in lacking:
        await fleet.delete(name)
    assert not cloud.asked("instances.delete")


async def test_a_bulk_that_fails_as_a_whole(cloud, fleet):
    names = numbered(4)
    cloud.capacity.set(ZONE, instances=0)
    assert await request(fleet, workers(*names)) == [None] * 4
    failures = await failed(fleet, *names)
    # Why, and not that too few came.
    assert codes(failures.values()) == ["ZONE_RESOURCE_POOL_EXHAUSTED"] * 4


@pytest.mark.parametrize("there", [0, 1])
async def test_nobody_is_taken_for_lost_while_the_reason_is_being_learned(cloud, fleet, there):
    cloud.capacity.set(ZONE, instances=there)
    listing, may_list = fleet.compute.list_group_operations, asyncio.Event()

    async def late(operation):
        await may_list.wait()
        return await listing(operation)

    fleet.compute.list_group_operations = late
    names = numbered(3)
    await request(fleet, workers(*names))
    await until(lambda: cloud.asked("zoneOperations.wait"))
    for _ in range(fleet_module.MISSES + 1):
        await fleet.look()
        assert await fleet.check(names) == []
    may_list.set()
    await until(lambda: not fleet.following)
    failures = await fleet.check(names)
    assert codes(failures) == ["ZONE_RESOURCE_POOL_EXHAUSTED"] * (3 - there)


async def test_a_bulk_of_whose_end_nothing_can_be_learned(cloud, fleet):
    cloud.capacity.set(ZONE, instances=0)
    denied = {"status": 403, "reason": "forbidden", "times": 99}
    cloud.faults.add(Fault("compute.zoneOperations.list", **denied))
    await request(fleet, workers(*numbered(2)))
    # Then the list of instances tells.
    assert "no longer exists" in str((await failed(fleet, "vm-0", "vm-1"))["vm-0"])


async def test_an_insert_that_nobody_waits_for_is_looked_at(cloud, fleet):
    # Of many single inserts only a few are followed; of the others the list tells.
    names = numbered(3 * insertion.SINGLES)
    exceeded = {"code": "QUOTA_EXCEEDED", "message": "Quota 'CPUS' exceeded."}
    late = [name for name in names if int(name[3:]) >= insertion.SINGLES]
    fails = {"operation_errors": [exceeded], "times": 99, "match": late.__contains__}
    cloud.faults.add(Fault("compute.instances.insert", **fails))
    await request(fleet, workers(*names, template=SINGLE))
    failures = await failed(fleet, *late)
    assert codes(failures.values()) == ["QUOTA_EXCEEDED"] * len(late)
    assert "Quota 'CPUS' exceeded." in str(failures[late[0]])


# -- stopping -------------------------------------------------------------------------------------


@METHODS
async def test_stopping_while_an_insert_is_on_its_way(method, count, monkeypatch):
    monkeypatch.setattr(batch, "LAG", 0.0)
    async with Cloud(replace(QUICK, pending=0.1)) as cloud:
        # The request is carried out after the fleet was told to end.
        cloud.faults.add(Fault(f"compute.{method}", delay=0.2))
        async with a_fleet(cloud.endpoint) as fleet:
            asked = [fleet.request(spec, 60) for spec in workers(*numbered(count))]
            await until(lambda: cloud.requests[f"compute.{method}"])
            await fleet.delete_all()
            assert not fleet.members
            # Nobody waits for an answer that nobody reads.
            assert all(each.cancelled() for each in asked)
        await gone(cloud)
        # No delete overtook the insert: they went out when its operation had ended.
        order = [each.method_id.removeprefix("compute.") for each in cloud.log]
        operations = [number for number, name in enumerate(order) if "Operations" in name]
        ended = [n for n in operations if b'"status": "DONE"' in cloud.log[n].response_body]
        assert order.index(method) < ended[0] < order.index("instances.delete")


async def test_stopping_leaves_what_was_not_asked_for(cloud, fleet):
    asked = [fleet.request(spec, 60) for spec in workers(*numbered(3))]
    await fleet.delete_all()
    assert all(each.cancelled() for each in asked)
    assert not cloud.asked("instances.bulkInsert")
    with pytest.raises(Exception, match="closed"):
        fleet.request(*workers("late"), 60)


async def test_whoever_waits_may_stop_waiting(cloud, fleet):
    cloud.faults.add(Fault("compute.instances.insert", delay=0.1))
    (spec,) = workers("vm")
    waiting = asyncio.ensure_future(asyncio.wait_for(fleet.request(spec, 60), 0.03))
    await asyncio.wait({waiting})
    assert isinstance(waiting.exception(), asyncio.TimeoutError)
    await running(fleet, "vm")
    assert cloud.alive() == {"vm"}
