"""A cluster's machines: on record before they exist, judged by what is known, and deleted."""

from __future__ import annotations

import asyncio
import time

import pytest
from google.auth.credentials import AnonymousCredentials

import dask_gce.exit
from dask_gce.compute import Compute
from dask_gce.emulator import ComputeEmulator, Fault
from dask_gce.errors import (
    APIError,
    GCEError,
    InstanceError,
    InstanceLost,
    QuotaExceeded,
    ServerFault,
    StartTimeout,
)
from dask_gce.fleet import Fleet
from dask_gce.instance import InstanceSpec

ZONE = "us-central1-a"
LABELS = {"dask-gce-cluster": "dask-1", "dask-gce-id": "1", "dask-gce-role": "worker"}


def spec(name, **changes):
    fields = {
        "project": "local-project",
        "zone": ZONE,
        "machine_type": "e2-small",
        "source_image": "projects/cos-cloud/global/images/family/cos-stable",
        "boot_disk_size": 10,
        "network": "default",
        "labels": LABELS,
        "metadata": {"enable-guest-attributes": "TRUE"},
    }
    return InstanceSpec(name, **{**fields, **changes})


@pytest.fixture
async def paper():
    async with ComputeEmulator("paper") as emulator:
        yield emulator


@pytest.fixture
async def compute(paper):
    credentials = AnonymousCredentials()
    async with Compute("local-project", endpoint=paper.endpoint, credentials=credentials) as verbs:
        yield verbs


@pytest.fixture
async def fleet(compute):
    fleet = Fleet(compute, "dask-1", ZONE, "1")
    yield fleet
    await fleet.delete_all()


async def running(fleet, *names):
    deadline = time.monotonic() + 10
    while True:
        await fleet.look()
        seen = [fleet.members[name].instance for name in names]
        if all(each is not None and each.status == "RUNNING" for each in seen):
            return
        assert time.monotonic() < deadline
        await asyncio.sleep(0.02)


async def left(paper, *names):
    """Wait until the instances with these names, and no others, are left."""
    deadline = time.monotonic() + 10
    while {each["name"] for each in paper.instances()} != set(names):
        assert time.monotonic() < deadline, paper.leftovers()
        await asyncio.sleep(0.02)


async def test_one_look_sees_all_with_one_call(paper, fleet):
    await asyncio.gather(*(fleet.insert(spec(f"vm-{i}"), 10) for i in range(5)))
    await running(fleet, *(f"vm-{i}" for i in range(5)))
    calls = paper.requests["compute.instances.list"]
    await fleet.look()
    assert paper.requests["compute.instances.list"] == calls + 1
    assert await fleet.check(list(fleet.members)) == []


async def test_asking_again_is_the_same_request(paper, fleet):
    first, again = await asyncio.gather(*(fleet.insert(spec("vm"), 10) for _ in range(2)))
    assert first is again
    assert paper.requests["compute.instances.insert"] == 1


async def test_cancelling_an_insert_does_not_lose_the_machine(paper, fleet):
    paper.faults.add(Fault(method="compute.instances.insert", delay=0.3))
    inserting = asyncio.ensure_future(fleet.insert(spec("vm"), 10))
    await asyncio.sleep(0.1)
    inserting.cancel()
    assert "vm" in fleet.members
    await fleet.delete_all()
    await left(paper)
    assert paper.requests["compute.instances.insert"] == 1


async def test_a_refused_insert_is_not_on_record(paper, fleet):
    paper.faults.add(Fault(method="compute.instances.insert", status=403, reason="quotaExceeded"))
    with pytest.raises(QuotaExceeded):
        await fleet.insert(spec("vm"), 10)
    assert not fleet.members


async def test_somebody_elses_machine_of_that_name_is_left_alone(paper, compute, fleet):
    other = Fleet(compute, "other", ZONE, "2")
    await other.insert(spec("vm", labels={"dask-gce-cluster": "other", "dask-gce-id": "2"}), 10)
    with pytest.raises(APIError):
        await fleet.insert(spec("vm"), 10)
    await fleet.delete_all()
    await left(paper, "vm")
    await other.delete_all()


async def test_an_insert_that_may_have_worked_stays_on_record(paper, fleet):
    paper.faults.add(
        Fault(method="compute.instances.insert", status=501, reason="notImplemented", times=99)
    )
    with pytest.raises(ServerFault):
        await fleet.insert(spec("vm"), 10)
    assert "vm" in fleet.members


async def test_what_stops_is_lost(paper, fleet, compute):
    await fleet.insert(spec("vm"), 10)
    await running(fleet, "vm")
    fleet.mark_ready("vm")
    paper.preempt("vm")
    while fleet.members["vm"].instance is not None and not fleet.members["vm"].instance.ended:
        await fleet.look()
    (failure,) = await fleet.check(["vm"])
    assert isinstance(failure, InstanceLost)
    assert failure.name == "vm"


async def test_what_is_gone_is_lost(paper, fleet, compute):
    await fleet.insert(spec("vm"), 10)
    await running(fleet, "vm")
    await compute.delete_instance(ZONE, "vm")
    failures = []
    while not failures:
        await fleet.look()
        failures = await fleet.check(["vm"])
    assert isinstance(failures[0], InstanceLost)


async def test_one_list_without_it_is_not_believed(paper, fleet):
    await fleet.insert(spec("vm"), 10)
    await running(fleet, "vm")
    member = fleet.members["vm"]
    member.instance, member.missed = None, 1
    assert await fleet.check(["vm"]) == []
    assert fleet.unsettled


async def test_deletes_that_are_not_certain_are_not_done_with(paper, fleet):
    await fleet.insert(spec("vm"), 10)
    paper.faults.add(Fault(method="compute.instances.list", status=403, reason="forbidden"))
    with pytest.raises(GCEError, match=r"gcloud compute instances list .*=dask-1"):
        await fleet.delete_all()
    assert any(duty.owner is fleet for duty in dask_gce.exit._duties.values())


async def test_a_zone_that_does_not_answer_is_unknown_not_empty(paper, fleet):
    await fleet.insert(spec("vm"), 10)
    await running(fleet, "vm")
    paper.faults.add(Fault(method="compute.instances.list", status=403, reason="forbidden"))
    with pytest.raises(GCEError):
        await fleet.look()
    assert fleet.members["vm"].instance is not None
    assert await fleet.check(["vm"]) == []


async def test_what_is_not_ready_in_time_has_failed(fleet):
    await fleet.insert(spec("slow"), 0.2)
    await fleet.insert(spec("quick"), 0.2)
    await running(fleet, "slow", "quick")
    fleet.mark_ready("quick")
    await asyncio.sleep(0.2)
    (failure,) = await fleet.check(["slow", "quick"])
    assert isinstance(failure, StartTimeout)
    assert failure.name == "slow"
    assert "within 0.2 s" in str(failure)
    assert fleet.waiting == ["slow"]


async def test_a_failed_operation_is_a_failure_with_its_cause(paper, fleet):
    paper.faults.add(
        Fault(
            method="compute.instances.insert",
            operation_errors=[{"code": "QUOTA_EXCEEDED", "message": "Quota 'CPUS' exceeded."}],
        )
    )
    await fleet.insert(spec("vm"), 10)
    failures = []
    while not failures:
        await fleet.look()
        failures = await fleet.check(["vm"])
    assert isinstance(failures[0], InstanceError)
    assert failures[0].__cause__.code == "QUOTA_EXCEEDED"
    assert "Quota 'CPUS' exceeded." in str(failures[0])


async def test_phases_are_asked_for_a_few_at_a_time(paper, fleet):
    names = [f"vm-{i}" for i in range(12)]
    await asyncio.gather(*(fleet.insert(spec(name), 10) for name in names))
    await running(fleet, *names)
    for _ in range(3):
        before = paper.requests["compute.instances.getGuestAttributes"]
        await fleet.check(names)
        assert paper.requests["compute.instances.getGuestAttributes"] - before == 8
    # In turns: nobody is asked a third time before everybody was asked twice.
    assert {member.asked for member in fleet.members.values()} == {2}


async def test_deleting_twice_and_what_is_gone_is_no_error(paper, fleet, compute):
    await fleet.insert(spec("vm"), 10)
    await running(fleet, "vm")
    await compute.delete_instance(ZONE, "vm")
    await fleet.delete("vm")
    await fleet.delete("vm")
    await fleet.delete("never-heard-of")
    assert not fleet.members


async def test_what_is_in_no_record_is_found_by_its_label(paper, compute):
    first, second = Fleet(compute, "dask-1", ZONE, "1"), Fleet(compute, "dask-1", ZONE, "1")
    await first.insert(spec("vm"), 10)
    await running(first, "vm")
    await second.delete_all()
    await left(paper)
    await first.delete_all()


async def test_what_cannot_be_deleted_is_named_with_the_command_that_does_it(paper, fleet):
    await fleet.insert(spec("vm"), 10)
    await running(fleet, "vm")
    paper.faults.add(Fault(method="compute.instances.delete", status=403, reason="forbidden"))
    with pytest.raises(
        GCEError,
        match="gcloud compute instances delete vm --zone us-central1-a --project local-project",
    ):
        await fleet.delete_all()
    assert "vm" in fleet.members


async def test_deleted_without_a_loop(paper, fleet):
    await fleet.insert(spec("vm"), 10)
    await running(fleet, "vm")
    fleet.members.clear()
    await asyncio.to_thread(fleet.delete_now)
    await left(paper)
