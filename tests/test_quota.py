"""Quotas: what they leave room for is asked for, and less where that is refused all the same."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from dataclasses import replace

import pytest
from clusters import cluster_on, until, worker_machines
from fleets import (
    CLUSTER,
    OTHER_ZONE,
    WORKER,
    ZONE,
    Cloud,
    Once,
    gone,
    look_until,
    numbered,
    request,
    running,
    workers,
)
from google.auth.credentials import AnonymousCredentials
from scripted_api import Answer, ScriptedAPI, make_compute

from dask_gce import quota
from dask_gce.compute import Compute
from dask_gce.emulator import Fault
from dask_gce.errors import APIError, QuotaExceeded
from dask_gce.events import EventLog
from dask_gce.fleet import Fleet
from dask_gce.hardware_fields import Hardware
from dask_gce.placement import MachineShape
from dask_gce.quota import Demand, Quotas, QuotaView, machine_demand, read_quotas, room_for
from dask_gce.shortages import Shortage

REGION, EAST = "us-central1", "us-east1-b"
SMALL = MachineShape("e2-small", 2, 2**31)
BIG = MachineShape("n2-standard-8", 8, 2**35)
BULK = "instances.bulkInsert"
#: Where nothing is ready in time, this machine is busy; and where nothing comes, it never does.
PATIENCE = 120.0


@pytest.fixture(autouse=True)
def patient(monkeypatch):
    monkeypatch.setattr(quota, "READ_WITHIN", PATIENCE)
    # One look for all that a test asks for, however long that takes.
    monkeypatch.setattr(quota, "GOOD_FOR", 10 * PATIENCE)


# -- what there is room for -----------------------------------------------------------------------


def quotas(**amounts):
    """Return quotas: the limit of each metric, or limit and usage."""
    return Quotas(
        REGION,
        {name: each if isinstance(each, tuple) else (each, 0) for name, each in amounts.items()},
    )


@pytest.mark.parametrize(
    ("there", "options", "machines", "metric"),
    [
        ({}, {}, 100, None),
        ({"CPUS": 8}, {}, 100, None),
        ({"N2_CPUS": (100, 20)}, {}, 10, "N2_CPUS"),
        ({"N2_CPUS": (100, 120)}, {}, 0, "N2_CPUS"),
        ({"N2_CPUS": 800}, {}, 100, None),
        ({"N2_CPUS": 400, "CPUS_ALL_REGIONS": 320, "INSTANCES": 45}, {}, 40, "CPUS_ALL_REGIONS"),
        ({"N2_CPUS": 400, "INSTANCES": 45}, {}, 45, "INSTANCES"),
        ({"IN_USE_ADDRESSES": (8, 1)}, {"external_ip": True}, 7, "IN_USE_ADDRESSES"),
        ({"IN_USE_ADDRESSES": (8, 1)}, {}, 100, None),
        (
            {"SSD_TOTAL_GB": 1000},
            {"boot_disk_type": "pd-ssd", "boot_disk_size": 30},
            33,
            "SSD_TOTAL_GB",
        ),
        ({"DISKS_TOTAL_GB": 900}, {"boot_disk_size": 30}, 30, "DISKS_TOTAL_GB"),
        # Spot machines count to quotas of their own where there are some, else like the others.
        ({"N2_CPUS": 80, "PREEMPTIBLE_CPUS": 400}, {"spot": True}, 50, "PREEMPTIBLE_CPUS"),
        ({"N2_CPUS": 80, "PREEMPTIBLE_CPUS": 0}, {"spot": True}, 10, "N2_CPUS"),
        ({"N2_CPUS": 80, "PREEMPTIBLE_CPUS": 40}, {}, 10, "N2_CPUS"),
        ({"NVIDIA_T4_GPUS": 6}, {"gpus": {"nvidia-tesla-t4": 2}}, 3, "NVIDIA_T4_GPUS"),
        (
            {"NVIDIA_T4_GPUS": 6, "PREEMPTIBLE_NVIDIA_T4_GPUS": 8, "GPUS_ALL_REGIONS": 10},
            {"gpus": {"nvidia-tesla-t4": 2}, "spot": True},
            4,
            "PREEMPTIBLE_NVIDIA_T4_GPUS",
        ),
    ],
)
def test_what_there_is_room_for(there, options, machines, metric):
    room = room_for(quotas(**there), machine_demand(BIG, **options), 100)
    assert room.machines == machines
    assert (room.shortage.metric if room.shortage else None) == metric


def test_what_was_asked_for_since_takes_room():
    room = room_for(quotas(CPUS=100), Demand({"CPUS": 2}), 60, taken={"CPUS": 20})
    assert room.machines == 40
    assert str(room.shortage) == "quota CPUS in region us-central1: limit 100, used 20, wanted 120"


def test_a_machine_counts_as_what_it_is():
    view = QuotaView(None, {"n2-standard-8": BIG})
    spec = replace(WORKER, machine_type="n2-standard-8", spot=True, external_ip=True)
    assert view.demand(spec).amounts["PREEMPTIBLE_CPUS"] == 8
    assert view.demand(spec).amounts["IN_USE_ADDRESSES"] == 1
    for scheduling in ({"provisioningModel": "SPOT"}, {"preemptible": True}):
        typed = replace(spec, spot=False, overrides={"scheduling": scheduling})
        assert view.demand(typed) == view.demand(spec)
    added = Hardware("projects/p/zones/z/acceleratorTypes/nvidia-l4", 2)
    assert view.demand(replace(spec, hardware=added)).amounts["PREEMPTIBLE_NVIDIA_L4_GPUS"] == 2
    # Of a type that is not known it is known that it is a machine.
    assert view.demand(replace(spec, machine_type="z9")).amounts == {"INSTANCES": 1}


# -- what is told of a quota ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        ("No.", None),
        ("Quota 'CPUS' exceeded.", Shortage("CPUS")),
        (
            "Quota 'N2_CPUS' exceeded.  Limit: 8.0 in region us-west1.",
            Shortage("N2_CPUS", "us-west1", 8.0),
        ),
        ("Quota 'GPUS_ALL_REGIONS' exceeded.", Shortage("GPUS_ALL_REGIONS", "global")),
    ],
)
def test_what_a_refusal_tells(said, expected):
    assert Shortage.of_sentence(said) == expected
    assert Shortage.of_errors([{"message": "Else."}, {"message": said}]) == expected


def test_a_limit_that_is_no_number_is_not_known():
    info = {"limitName": "CPUS-ALL-REGIONS-per-project", "limit": "many"}
    found = Shortage.of_errors([{"errorDetails": [{"quotaInfo": info}]}])
    assert found == Shortage("CPUS_ALL_REGIONS", "global")
    assert str(found) == "quota CPUS_ALL_REGIONS in all regions together"
    # How much to ask for is not known either.
    assert "gcloud" not in found.next_step("mine")
    step = replace(found, wanted=64.0).next_step("mine")
    assert "--quota-id=CPUS-ALL-REGIONS-per-project --preferred-value=64 --project=mine" in step


# -- looking --------------------------------------------------------------------------------------


async def test_a_look_at_a_region_and_at_all_together():
    async with Cloud() as cloud:
        cloud.quota.set(REGION, "CPUS", 24)
        cloud.quota.set("global", "CPUS_ALL_REGIONS", 32)
        async with make_compute(cloud.endpoint) as compute:
            found = await read_quotas(compute, REGION)
            assert found.amounts["CPUS"] == (24.0, 0.0)
            assert found.amounts["CPUS_ALL_REGIONS"] == (32.0, 0.0)
            # Half of it is better than nothing.
            cloud.permissions.deny("compute.projects.get")
            found = await read_quotas(compute, REGION)
            assert "CPUS" in found.amounts and "CPUS_ALL_REGIONS" not in found.amounts
            cloud.permissions.deny("compute.regions.get")
            assert await read_quotas(compute, REGION) is None


async def test_a_project_counts_what_is_global_under_the_names_of_regions():
    """Addresses of load balancers are no machines', and metrics of all regions are no region's."""
    regional = {"metric": "IN_USE_ADDRESSES", "limit": 500.0, "usage": 3.0}
    everywhere = {"metric": "CPUS_ALL_REGIONS", "limit": 64.0, "usage": 4.0}

    def tell(asked):
        wrong = {"limit": 1.0, "usage": 1.0}
        if "/regions/" in asked.path:
            return Answer({"quotas": [regional, {**everywhere, **wrong}]})
        return Answer({"quotas": [{**regional, **wrong}, everywhere]})

    with ScriptedAPI(tell) as api:
        async with make_compute(api.endpoint) as compute:
            found = await read_quotas(compute, REGION)
    assert found.amounts == {"IN_USE_ADDRESSES": (500.0, 3.0), "CPUS_ALL_REGIONS": (64.0, 4.0)}


@pytest.mark.parametrize(
    "told",
    [{}, {"quotas": []}, {"quotas": [{"metric": "CPUS"}, {"limit": 8.0}]}],
    ids=["without", "empty", "half"],
)
async def test_an_api_without_quotas(told):
    with ScriptedAPI(lambda asked: Answer(told)) as api:
        async with make_compute(api.endpoint) as compute:
            assert await read_quotas(compute, REGION) is None


async def test_a_look_that_does_not_end_is_given_up():
    async with Cloud() as cloud, make_compute(cloud.endpoint) as compute:
        await compute.open()
        never = asyncio.Event()

        async def hang(*arguments):
            await never.wait()

        compute.get_region = hang
        found = await read_quotas(compute, REGION, within=2.0)
        assert found is None or "CPUS" not in found.amounts
        compute.get_project = hang
        assert await read_quotas(compute, REGION, within=0.1) is None


# -- asking for what fits -------------------------------------------------------------------------


@pytest.fixture
async def cloud():
    async with Cloud() as running:
        yield running
        await gone(running)


@asynccontextmanager
async def a_fleet(cloud):
    """Make a fleet that looks at quotas; at the end its machines are deleted."""
    async with Compute(
        "local-project",
        credentials=AnonymousCredentials(),
        endpoint=cloud.endpoint,
        rate=10_000,
        policy=Once(),
    ) as compute:
        await compute.open()
        view = QuotaView(compute, {"e2-small": SMALL})
        fleet = Fleet(compute, CLUSTER, "1", events=EventLog(), quota=view)
        yield fleet
        await fleet.delete_all()


@pytest.fixture
async def fleet(cloud):
    async with a_fleet(cloud) as fleet:
        yield fleet


def counts(cloud):
    """Return how many machines each bulk insert was for."""
    return [int(each.request["count"]) for each in cloud.asked(BULK)]


def parts(fleet):
    """Return which parts of what was asked for could be had, in words."""
    return [each.why for each in fleet.events if each.what == "partly made"]


def looks(cloud):
    return cloud.requests["compute.regions.get"]


async def test_of_five_thousand_those_are_asked_for_that_there_is_room_for(cloud, fleet):
    cloud.quota.set(REGION, "CPUS", 121)
    names = numbered(5000)
    refusals = await request(fleet, workers(*names))
    assert counts(cloud) == [60] and looks(cloud) == 1
    refused = [each for each in refusals if each is not None]
    assert len(refused) == 4940 and {type(each) for each in refused} == {QuotaExceeded}
    error = refused[0]
    assert (error.metric, error.region) == ("CPUS", REGION)
    assert (error.limit, error.usage, error.wanted) == (121.0, 0.0, 10_000.0)
    text = str(error)
    assert "there is room for 60 of 5000" in text and "limit 121, used 0, wanted 10000" in text
    assert "https://console.cloud.google.com/iam-admin/quotas?project=local-project" in text
    assert "--preferred-value=10000 --dimensions=region=us-central1" in text
    assert parts(fleet) == [f"60 of 5000 e2-small in {ZONE}: {text}"]
    await running(fleet, *names[:60])
    # Of the others it is certain that they never were.
    await asyncio.gather(*(fleet.delete(name) for name in names[60:]))
    assert not cloud.asked("instances.delete") and len(fleet.members) == 60


async def test_without_room_nothing_is_asked(cloud, fleet):
    cloud.quota.set("global", "CPUS_ALL_REGIONS", 1)
    refusals = await request(fleet, workers(*numbered(100)))
    assert {(type(each), each.metric, each.region) for each in refusals} == {
        (QuotaExceeded, "CPUS_ALL_REGIONS", "global")
    }
    # The errors say it all.
    assert counts(cloud) == [] and parts(fleet) == []


async def test_a_few_machines_are_not_kept_waiting(cloud, fleet):
    await request(fleet, workers(*numbered(5)))
    assert counts(cloud) == [5] and not looks(cloud)


async def test_a_few_that_are_too_many_are_asked_for_again(cloud, fleet):
    cloud.quota.set(REGION, "CPUS", 7)
    refusals = await request(fleet, workers(*numbered(5)))
    assert counts(cloud) == [5, 3] and looks(cloud) == 1
    assert [each is None for each in refusals] == [True] * 3 + [False] * 2
    # What Compute Engine said, and what was seen beside.
    assert "limit 7, used 0, wanted 10" in str(refusals[4])
    assert isinstance(refusals[4].__cause__, QuotaExceeded)
    ids = [each.query["requestId"] for each in cloud.asked(BULK)]
    assert len(set(ids)) == 2


async def test_where_no_quota_is_to_be_seen_it_is_found_by_halves(cloud, fleet):
    cloud.permissions.deny("compute.regions.get", "compute.projects.get")
    cloud.quota.set(REGION, "CPUS", 100)
    refusals = await request(fleet, workers(*numbered(150)))
    assert counts(cloud) == [150, 75, 37]
    assert sum(each is None for each in refusals) == 37
    # It was looked for before, and after the refusal.
    assert looks(cloud) == 2
    assert (refusals[-1].metric, refusals[-1].limit, refusals[-1].usage) == ("CPUS", 100.0, None)
    assert refusals[-1].wanted == 300.0


async def test_what_is_used_is_told_late(cloud, fleet):
    cloud.quota.set(REGION, "CPUS", 120)
    await request(fleet, workers(*numbered(10, "before")))

    async def stale(region):
        return {"quotas": [{"metric": "CPUS", "limit": 120.0, "usage": 0.0}]}

    fleet.compute.get_region = stale
    refusals = await request(fleet, workers(*numbered(100)))
    # There seems to be room for 60; a little less is tried first.
    assert counts(cloud) == [10, 60, 56, 49]
    assert sum(each is None for each in refusals) == 49
    assert parts(fleet)[0].startswith(f"49 of 100 e2-small in {ZONE}: ")


async def test_a_refusal_that_nothing_helps_against_is_final(cloud, fleet):
    cloud.faults.add(Fault(f"compute.{BULK}", status=403, reason="quotaExceeded", times=99))
    refusals = await request(fleet, workers(*numbered(5000)))
    assert {type(each) for each in refusals} == {QuotaExceeded}
    asked = counts(cloud)
    assert asked == sorted(set(asked), reverse=True) and asked[-1] == 1
    assert len(asked) < 20


async def test_a_request_that_may_have_taken_effect_is_not_made_smaller(cloud, fleet, monkeypatch):
    monkeypatch.setattr("dask_gce.insertion.FIRST_PAUSE", 0.02)
    cloud.faults.add(
        Fault(f"compute.{BULK}", drop="after"),
        Fault(f"compute.{BULK}", status=403, reason="quotaExceeded"),
    )
    refusals = await request(fleet, workers(*numbered(3)))
    assert [type(each) for each in refusals] == [QuotaExceeded] * 3
    assert counts(cloud) == [3, 3]
    assert len({each.query["requestId"] for each in cloud.asked(BULK)}) == 1


async def test_a_refusal_for_another_reason_is_final_for_the_rest_too(cloud, fleet):
    cloud.quota.set(REGION, "CPUS", 20)
    cloud.faults.add(
        Fault(f"compute.{BULK}", status=403, reason="quotaExceeded"),
        Fault(f"compute.{BULK}", status=400, reason="invalid"),
    )
    refusals = await request(fleet, workers(*numbered(20)))
    assert counts(cloud) == [20, 10]
    assert [type(each) for each in refusals] == [APIError] * 10 + [QuotaExceeded] * 10


async def test_zones_of_a_region_share_its_quota(cloud, fleet):
    cloud.quota.set(REGION, "CPUS", 300)
    asked = [*workers(*numbered(100, "a")), *workers(*numbered(100, "b"), zone=OTHER_ZONE)]
    refusals = await request(fleet, asked)
    # One look for both, and no refusal of Compute Engine's.
    assert sorted(counts(cloud)) == [50, 100] and looks(cloud) == 1
    assert sum(each is None for each in refusals) == 150


async def test_what_was_refused_takes_no_room_from_the_request_in_its_place(cloud, fleet):
    # Enough for all of them, but not twice.
    cloud.quota.set(REGION, "PREEMPTIBLE_CPUS", 240)
    message = "Invalid value for field 'resource.scheduling.preemptionNoticeDuration': ''."
    cloud.faults.add(Fault(f"compute.{BULK}", status=400, reason="invalid", message=message))
    specs = [replace(each, spot=True, preemption_notice=True) for each in workers(*numbered(100))]
    assert await request(fleet, specs) == [None] * 100
    assert counts(cloud) == [100, 100] and looks(cloud) == 1 and parts(fleet) == []


async def test_regions_have_quotas_of_their_own(cloud, fleet):
    cloud.quota.set(REGION, "CPUS", 100)
    asked = [*workers(*numbered(100, "a")), *workers(*numbered(100, "b"), zone=EAST)]
    refusals = await request(fleet, asked)
    assert sorted(counts(cloud)) == [50, 100] and looks(cloud) == 2
    assert {each.region for each in refusals if each is not None} == {REGION}


async def test_what_is_taken_back_during_the_look_is_not_asked_for(cloud, fleet):
    looked, may_tell = asyncio.Event(), asyncio.Event()
    look = fleet.compute.get_region

    async def late(region):
        looked.set()
        await may_tell.wait()
        return await look(region)

    fleet.compute.get_region = late
    names = numbered(100)
    asked = asyncio.ensure_future(request(fleet, workers(*names)))
    await looked.wait()
    await fleet.delete(names[7])
    may_tell.set()
    refusals = await asked
    assert [index for index, each in enumerate(refusals) if each is not None] == [7]
    (sent,) = cloud.asked(BULK)
    assert set(sent.request["perInstanceProperties"]) == set(names) - {names[7]}
    await look_until(fleet, lambda: len(cloud.alive()) == 99)


async def test_a_zone_that_has_a_part_gives_it(cloud, fleet):
    cloud.capacity.set(ZONE, instances=60)
    names = numbered(100)
    assert await request(fleet, workers(*names)) == [None] * 100
    await until(lambda: parts(fleet))
    (told,) = parts(fleet)
    assert told.startswith(f"60 of 100 e2-small in {ZONE}: ")
    assert "ZONE_RESOURCE_POOL_EXHAUSTED" in told
    there = [name for name in names if fleet.members[name].failure is None]
    assert len(there) == 60
    await running(fleet, *there)


# -- a cluster ------------------------------------------------------------------------------------


async def test_what_one_quota_has_no_room_for_another_machine_type_has(paper_workers):
    # Two for the scheduler.
    paper_workers.quota.set(REGION, "CPUS", 42)
    options = {
        "machine_type": None,
        "scheduler_machine_type": "e2-small",
        "worker_machine_type": ["e2-small", "n2-standard-2"],
    }
    async with cluster_on(paper_workers, **options) as cluster:
        cluster.scale(100)
        await until(lambda: len(worker_machines(paper_workers)) == 100)
        kinds = [
            each["machineType"].rpartition("/")[2]
            for each in paper_workers.instances()
            if "-worker-" in each["name"]
        ]
        assert (kinds.count("e2-small"), kinds.count("n2-standard-2")) == (20, 80)
        assert {(type(each), each.metric) for each in cluster.failures} == {(QuotaExceeded, "CPUS")}
        (part,) = [each for each in cluster.events if each.what == "partly made"]
        assert part.why.startswith("20 of 100 e2-small")
        (blocked,) = [each for each in cluster.events if each.what == "blocked"]
        assert "e2-small in region us-central1" in blocked.why
