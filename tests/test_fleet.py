"""A cluster's machines as one thing: seen with one call, judged by what is known, capped."""

from __future__ import annotations

import asyncio
import time
from dataclasses import replace

import pytest
from fleets import (
    OTHER_ZONE,
    QUICK,
    SCHEDULER,
    ZONE,
    Cloud,
    a_fleet,
    failed,
    gone,
    look_until,
    numbered,
    request,
    running,
    until,
    workers,
)

from dask_gce import fleet as fleet_module
from dask_gce import removal
from dask_gce.emulator import Fault
from dask_gce.errors import GCEError, InstanceError, InstanceLost, StartTimeout
from dask_gce.watcher import Watcher


@pytest.fixture(autouse=True)
def soon(monkeypatch):
    """Look again after milliseconds."""
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


def happened(fleet, what):
    return [event for event in fleet.events if event.what == what]


# -- seeing ---------------------------------------------------------------------------------------


async def test_one_look_is_one_call(cloud, fleet):
    await request(fleet, workers(*numbered(5)))
    await running(fleet, *numbered(5))
    await until(lambda: not fleet.following)
    before = len(cloud.log)
    await fleet.look()
    (look,) = cloud.log[before:]
    assert look.method_id == "compute.instances.list"
    # What Dask does not need, such as half a megabyte of metadata a machine, is not sent.
    seen = look.response["items"][0]
    assert set(seen) == {
        "name",
        "status",
        "zone",
        "networkInterfaces",
        "metadata",
        "scheduling",
        "creationTimestamp",
    }
    assert set(seen["metadata"]) == {"fingerprint"}
    assert await fleet.check(list(fleet.members)) == []


async def test_one_look_at_several_zones_is_one_call(cloud, fleet):
    await request(fleet, [*workers("here"), *workers("there", zone=OTHER_ZONE)])
    await running(fleet, "here", "there")
    await until(lambda: not fleet.following)
    before = len(cloud.log)
    await fleet.look()
    assert [each.method_id for each in cloud.log[before:]] == ["compute.instances.aggregatedList"]


async def test_what_happens_is_noted(cloud, fleet):
    await request(fleet, workers("vm"))
    assert fleet.waiting == ["vm"]
    await running(fleet, "vm")
    assert fleet.unsettled
    for _ in range(2):
        fleet.mark_ready("vm")
    assert fleet.waiting == []
    assert not fleet.unsettled
    fleet.mark_ready("never-heard-of")
    # Whether a look comes between the answer and the machine's host is not certain.
    noted = [
        (event.instance, event.what)
        for event in fleet.events
        if event.what not in ("requested", "provisioning")
    ]
    assert noted == [("vm", "running"), ("vm", "ready")]


async def test_that_a_machine_gets_its_host_is_told_once(cloud, fleet, monkeypatch):
    await request(fleet, workers("vm"))
    (seen,) = (await fleet.compute.list_instances(ZONE, fleet._label))[:1] or [{"name": "vm"}]
    statuses = iter(["PROVISIONING", "STAGING", "RUNNING", "RUNNING"])

    async def listed(*_):
        return [{**seen, "zone": f"zones/{ZONE}", "status": next(statuses)}]

    with monkeypatch.context() as patch:
        patch.setattr(fleet.compute, "list_instances", listed)
        for _ in range(4):
            await fleet.look()
    noted = [event.what for event in fleet.events]
    assert noted == ["requested", "provisioning", "running"]


async def test_without_an_answer_nothing_is_known(cloud, fleet):
    await request(fleet, workers("vm"))
    await running(fleet, "vm")
    seen = fleet.members["vm"].instance
    cloud.faults.add(Fault("compute.instances.list", status=503, times=9))
    for _ in range(fleet_module.MISSES + 1):
        with pytest.raises(GCEError):
            await fleet.look()
    assert fleet.members["vm"].instance is seen
    assert await fleet.check(["vm"]) == []
    cloud.faults.clear()


async def test_a_zone_that_does_not_answer_is_unknown_and_not_empty(cloud, fleet):
    await request(fleet, [*workers("here"), *workers("there", zone=OTHER_ZONE)])
    await running(fleet, "here", "there")
    cloud.unreachable.add(OTHER_ZONE)
    cloud.unreachable.add("europe-west1-b")  # where the cluster has nothing
    for _ in range(fleet_module.MISSES + 1):
        await fleet.look()
    assert await fleet.check(list(fleet.members)) == []
    assert fleet.members["there"].missed == 0
    # Told once, and again when it happens again.
    (event,) = happened(fleet, "unknown")
    assert event.instance == "dask-1"
    assert f"zone {OTHER_ZONE} does not answer" in event.why
    cloud.unreachable.clear()
    await fleet.look()
    cloud.unreachable.add(OTHER_ZONE)
    await fleet.look()
    assert len(happened(fleet, "unknown")) == 2
    cloud.unreachable.clear()


async def test_what_was_asked_for_after_a_look_began_is_not_missed(cloud, fleet):
    await request(fleet, workers("first"))
    await running(fleet, "first")
    listing = fleet.compute.list_instances

    async def late(*arguments):
        found = await listing(*arguments)
        await request(fleet, workers("second"))
        return found

    fleet.compute.list_instances = late
    await fleet.look()
    assert (fleet.members["second"].missed, fleet.members["second"].instance) == (0, None)
    fleet.compute.list_instances = listing


async def test_three_lists_without_it_are_believed(cloud, fleet):
    await request(fleet, workers("vm", "other"))
    await running(fleet, "vm", "other")
    for name in ("vm", "other"):
        fleet.mark_ready(name)
    await until(lambda: not fleet.following)
    cloud.delete("vm", user="colleague@example.org")
    await until(lambda: len(cloud.instances()) == 1)
    for missed in (1, 2):
        await fleet.look()
        assert fleet.members["vm"].missed == missed
        assert fleet.unsettled
        if not fleet.members["vm"].instance.ended:
            assert await fleet.check(["vm", "other"]) == []
    await fleet.look()
    (failure,) = await fleet.check(["vm", "other"])
    assert isinstance(failure, InstanceLost)


# -- judging --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("end", "words"),
    [
        (Cloud.preempt, "preempted by Compute Engine"),
        (Cloud.power_off, "it powered itself off"),
        (lambda cloud, name: cloud.delete(name, user="eve@example.org"), "deleted by eve@exam"),
    ],
    ids=["preempted", "powered off", "deleted"],
)
async def test_who_ended_it_is_told(cloud, fleet, end, words):
    await request(fleet, workers("vm", "other"))
    await running(fleet, "vm", "other")
    end(cloud, "vm")
    failure = (await failed(fleet, "vm"))["vm"]
    assert isinstance(failure, InstanceLost)
    assert (failure.name, failure.zone) == ("vm", ZONE)
    first = str(failure).partition("\n")[0]
    assert first.startswith("The worker vm (project local-project, zone us-central1-a) failed: it ")
    assert words in first


async def test_a_host_that_fails_ends_what_does_not_restart(cloud, fleet):
    overrides = {"scheduling": {"automaticRestart": False}}
    await request(fleet, workers("vm", "other", overrides=overrides))
    await running(fleet, "vm", "other")
    cloud.host_error("vm")
    failure = (await failed(fleet, "vm"))["vm"]
    assert "it is TERMINATED: its host failed (compute.instances.hostError)" in str(failure)


async def test_a_host_that_fails_and_restarts_is_no_end():
    async with Cloud(replace(QUICK, pending=1.0)) as cloud:
        async with a_fleet(cloud.endpoint) as fleet:
            # Off by default: a machine that comes back has forgotten what it knew.
            restarts = {"scheduling": {"automaticRestart": True}}
            await request(fleet, workers("vm", overrides=restarts))
            await running(fleet, "vm")
            cloud.host_error("vm")
            await look_until(fleet, lambda: fleet.members["vm"].instance.status == "REPAIRING")
            assert await fleet.check(["vm"]) == []
            await look_until(fleet, lambda: fleet.members["vm"].instance.status == "RUNNING")
        await gone(cloud)


async def test_who_ended_many_is_asked_with_few_calls(cloud, fleet):
    names = numbered(20)
    await request(fleet, workers(*names))
    await running(fleet, *names)
    for name in names:
        cloud.preempt(name)
    await look_until(fleet, lambda: all(each.instance.ended for each in fleet.members.values()))
    await until(lambda: not fleet.following)
    before = len(cloud.log)
    failures = await fleet.check(names)
    assert all("preempted" in str(failure) for failure in failures)
    asked = [each.method_id for each in cloud.log[before:]]
    assert asked.count("compute.zoneOperations.list") == 1
    # One reason explains all: the consoles of a few are read.
    assert asked.count("compute.instances.getSerialPortOutput") == fleet_module.DETAILED
    assert len(asked) <= 1 + 2 * fleet_module.DETAILED


async def test_without_the_operations_the_reason_is_missing_and_nothing_else(cloud, fleet):
    await request(fleet, workers("vm"))
    await running(fleet, "vm")
    cloud.faults.add(Fault("compute.zoneOperations.list", status=403, reason="forbidden", times=99))
    cloud.preempt("vm")
    failure = (await failed(fleet, "vm"))["vm"]
    assert isinstance(failure, InstanceLost)
    assert "gcloud compute operations list --filter=targetLink:vm" in str(failure)


async def test_what_is_not_ready_in_time_has_failed(cloud, fleet):
    await request(fleet, workers("slow", "quick"), timeout=60)
    await running(fleet, "slow", "quick")
    fleet.mark_ready("quick")
    assert await fleet.check(["slow", "quick"]) == []
    for member in fleet.members.values():
        member.inserted -= 60
    failure = (await failed(fleet, "slow"))["slow"]
    assert isinstance(failure, StartTimeout)
    assert "it was not ready within 60 s" in str(failure)
    assert "Last boot phase: none reported." in str(failure)
    assert "startup script has not reported" in str(failure)


async def test_only_those_that_are_asked_about_are_judged(cloud, fleet):
    await request(fleet, workers("one", "other"), timeout=0.01)
    await asyncio.sleep(0.02)
    assert [each.name for each in await fleet.check(["one", "never-heard-of"])] == ["one"]


async def test_phases_are_asked_for_a_few_at_a_time(cloud, fleet, monkeypatch):
    names = numbered(6)
    await request(fleet, workers(*names))
    await running(fleet, *names)
    # Whoever has just come up is not asked at all.
    assert await fleet.check(names) == []
    assert not cloud.asked("instances.getGuestAttributes")
    monkeypatch.setattr(fleet_module, "PHASE_AFTER", 0.0)
    for times in range(1, 4):
        await fleet.check(names)
        asked = len(cloud.asked("instances.getGuestAttributes"))
        assert asked == times * fleet_module.PHASES_PER_LOOK
    # In turns.
    assert {member.asked for member in fleet.members.values()} == {1}
    for name in names:
        fleet.mark_ready(name)
    await fleet.check(names)
    assert len(cloud.asked("instances.getGuestAttributes")) == asked


async def test_how_far_a_boot_has_come_is_an_event_for_each_change(cloud, fleet, monkeypatch):
    monkeypatch.setattr(fleet_module, "PHASE_AFTER", 0.0)
    await request(fleet, workers("vm"))
    await running(fleet, "vm")
    phases = iter(["image-pulling", "image-pulling: 1 of 3 layers"] * 2)

    async def attributes(*_):
        return {"phase": next(phases)}

    fleet.compute.get_guest_attributes = attributes
    for _ in range(2):
        assert await fleet.check(["vm"]) == []
    told = [event.why for event in fleet.events if event.what == "booting"]
    assert told == ["image-pulling", "image-pulling: 1 of 3 layers"]

    async def same(*_):
        return {"phase": "image-pulling: 1 of 3 layers"}

    fleet.compute.get_guest_attributes = same
    assert await fleet.check(["vm"]) == []
    assert len([event for event in fleet.events if event.what == "booting"]) == 2


async def test_who_is_ready_before_it_tells_its_phase_does_not_boot(cloud, fleet, monkeypatch):
    monkeypatch.setattr(fleet_module, "PHASE_AFTER", 0.0)
    await request(fleet, workers("vm"))
    await running(fleet, "vm")

    async def attributes(*_):
        fleet.mark_ready("vm")
        return {"phase": "starting"}

    fleet.compute.get_guest_attributes = attributes
    assert await fleet.check(["vm"]) == []
    assert [event.what for event in fleet.events][-1] == "ready"


async def test_a_failed_phase_is_a_failure(cloud, fleet, monkeypatch):
    monkeypatch.setattr(fleet_module, "PHASE_AFTER", 0.0)
    await request(fleet, workers("vm"))
    await running(fleet, "vm")

    async def attributes(*_):
        return {"phase": "failed: container_image x cannot be pulled: no"}

    fleet.compute.get_guest_attributes = attributes
    (failure,) = await fleet.check(["vm"])
    assert type(failure) is InstanceError
    assert failure.phase == "failed: container_image x cannot be pulled: no"
    assert "check container_image" in str(failure)


# -- the cap --------------------------------------------------------------------------------------


@pytest.fixture
async def capped(cloud):
    async with a_fleet(cloud.endpoint, max_workers=2) as fleet:
        yield fleet


async def test_no_more_workers_than_the_cap(cloud, capped):
    (scheduler,) = workers("scheduler", template=SCHEDULER)
    asked = [capped.request(spec, 60) for spec in [scheduler, *workers(*numbered(4))]]
    await asked[0]
    await running(capped, "scheduler")
    # The scheduler is none of them.
    await look_until(capped, lambda: cloud.alive() == {"scheduler", "vm-0", "vm-1"})
    for _ in range(3):
        await capped.look()
    await asyncio.gather(*asked[:3])
    assert not any(each.done() for each in asked[3:])
    # One goes, one comes.
    await capped.delete("vm-0")
    await look_until(capped, lambda: cloud.alive() == {"scheduler", "vm-1", "vm-2"})
    # One is lost, one comes.
    cloud.preempt("vm-1")
    await look_until(capped, lambda: cloud.alive() >= {"scheduler", "vm-2", "vm-3"})


async def test_what_is_held_back_can_be_taken_back(cloud, capped):
    asked = [capped.request(spec, 60) for spec in workers(*numbered(3))]
    await look_until(capped, lambda: len(cloud.alive()) == 2)
    await capped.delete("vm-2")
    assert asked[2].cancelled()
    assert set(capped.members) == {"vm-0", "vm-1"}


async def test_what_is_held_back_goes_with_the_cluster(cloud, capped):
    asked = [capped.request(spec, 60) for spec in workers(*numbered(3))]
    await look_until(capped, lambda: len(cloud.alive()) == 2)
    await capped.delete_all()
    assert asked[2].cancelled()
    await capped.look()
    assert len(cloud.asked("instances.bulkInsert")) == 1
    assert not cloud.asked("instances.insert")


async def test_waiting_for_room_too_long_is_told(cloud, capped):
    for spec in workers(*numbered(2)):
        capped.request(spec, 60)
    await look_until(capped, lambda: len(cloud.alive()) == 2)
    capped.request(*workers("late"), 0.1)
    await asyncio.sleep(0.1)
    failure = (await failed(capped, "late"))["late"]
    assert isinstance(failure, StartTimeout)
    assert "max_workers = 2 left no room for it within 0.1 s" in str(failure)


async def test_strays_count(cloud, capped, monkeypatch):
    # What the cloud has counts, not what is remembered.
    async with a_fleet(cloud.endpoint, delete_at_exit=False) as forgetful:
        await request(forgetful, workers("stray"))
        await running(forgetful, "stray")
        forgetful.members.clear()
        forgetful._zones.clear()
    cloud.faults.add(Fault("compute.instances.delete", status=403, reason="forbidden"))
    asked = [capped.request(spec, 60) for spec in workers(*numbered(2))]
    await capped.look()
    await asked[0]
    await capped.look()
    assert not asked[1].done()
    assert cloud.alive() == {"stray", "vm-0"}
    monkeypatch.setattr(removal, "DELETE_AGAIN", 0.0)
    await look_until(capped, lambda: cloud.alive() == {"vm-0", "vm-1"})


async def test_what_cannot_be_seen_counts(cloud, capped):
    specs = [*workers("here"), *workers("there", zone=OTHER_ZONE)]
    for spec in specs:
        capped.request(spec, 60)
    await look_until(capped, lambda: len(cloud.alive()) == 2)
    await running(capped, "here", "there")
    cloud.unreachable.add(OTHER_ZONE)
    late = capped.request(*workers("late"), 60)
    for _ in range(fleet_module.MISSES + 1):
        await capped.look()
    assert not late.done()
    cloud.unreachable.clear()


async def test_what_is_on_its_way_counts(cloud, capped):
    inserting, may_insert = capped.compute.bulk_insert_instances, asyncio.Event()

    async def late(*arguments, **options):
        await may_insert.wait()
        return await inserting(*arguments, **options)

    capped.compute.bulk_insert_instances = late
    asked = [capped.request(spec, 60) for spec in workers(*numbered(3))]
    for _ in range(3):
        await capped.look()
    assert not cloud.instances()
    may_insert.set()
    await asyncio.gather(*asked[:2])
    assert not asked[2].done()
    assert len(cloud.instances()) == 2


async def test_what_was_refused_takes_no_room(cloud, capped):
    cloud.faults.add(Fault("compute.instances.bulkInsert", status=403, reason="forbidden"))
    asked = [capped.request(spec, 60) for spec in workers(*numbered(3))]
    await look_until(capped, asked[2].done)
    assert [each.exception() is None for each in asked] == [False, False, True]


# -- what it costs --------------------------------------------------------------------------------


async def test_calls_for_two_hundred_machines():
    async with Cloud(replace(QUICK, provisioning=1.0)) as cloud:
        async with a_fleet(cloud.endpoint) as fleet:
            failures = []
            watcher = Watcher(
                machines=lambda: list(fleet.members),
                registered=lambda: {name: 1 for name in fleet.members if name not in fleet.waiting},
                processes=lambda: 1,
                drop=lambda name, failure: failures.append(failure),
            )
            fleet._insertion._changed = watcher.disturb
            watching = asyncio.ensure_future(watcher.run(fleet, lambda: "scheduler"))
            names = numbered(200)
            began = time.monotonic()
            assert await request(fleet, workers(*names)) == [None] * 200
            await until(
                lambda: all(fleet.members[name].running_since is not None for name in names)
            )
            took = time.monotonic() - began
            # One after the other they would take more than three minutes.
            assert took < 30
            calls = {each.method_id.removeprefix("compute.") for each in cloud.log}
            assert calls <= {"instances.bulkInsert", "zoneOperations.wait", "instances.list"}
            # On a busy machine they take longer to run, and one look a second is made meanwhile.
            assert len(cloud.log) <= 6 + took
            watching.cancel()
            await asyncio.wait({watching})
            assert not failures
        await gone(cloud)
