"""What runs is read back from labels: every cluster once, each told from the others."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import datetime, timedelta, timezone

import pytest
from fleets import OTHER_ZONE, QUICK, ZONE, Cloud
from records import AGGREGATED, NOON, compute_of, insert, labels_of, machine, record

from dask_gce import names, removal
from dask_gce.emulator import Fault
from dask_gce.errors import ClusterNotFound, GCEError, SettingsError
from dask_gce.inventory import Inventory, delete_cluster, find_cluster, list_clusters


@pytest.fixture(autouse=True)
def soon(monkeypatch):
    """Look again after milliseconds."""
    monkeypatch.setattr(removal, "FIRST_PAUSE", 0.02)
    monkeypatch.setattr(removal, "DELETE_AGAIN", 0.1)


@pytest.fixture
async def cloud():
    async with Cloud(QUICK) as running:
        yield running


@pytest.fixture
async def compute(cloud):
    async with compute_of(cloud) as compute:
        yield compute


# -- the list -------------------------------------------------------------------------------------


async def test_one_call_finds_all_clusters_of_all_zones(cloud, compute):
    for number in range(5):
        zone = (ZONE, OTHER_ZONE)[number % 2]
        labels = labels_of(f"grid-{number}", "scheduler", f"{number}" * 32)
        await insert(cloud, compute, f"vm-{number}", labels, zone, wait=False)
    found = await list_clusters(compute)
    assert [each.name for each in found.clusters] == [f"grid-{number}" for number in range(5)]
    assert cloud.requests[AGGREGATED] == 1
    assert not found.unreachable


async def test_a_cluster_is_read_back_whole(cloud, compute):
    labels = labels_of(client="1234abcd-77-1700000000", expires="1800000000", owner="Ada L.")
    spot = {"scheduling": {"provisioningModel": "SPOT", "instanceTerminationAction": "DELETE"}}
    head = {**labels, names.ROLE_LABEL: "scheduler"}
    await insert(cloud, compute, "z-scheduler", head)
    await insert(cloud, compute, "a-worker", labels, OTHER_ZONE, spot)
    (found,) = (await list_clusters(compute)).clusters
    assert (found.name, found.identity, found.project) == ("grid", "a" * 32, "local-project")
    assert (found.owner, found.client) == ("ada-l", "1234abcd-77-1700000000")
    assert found.expires == datetime.fromtimestamp(1_800_000_000, timezone.utc)
    assert [each.name for each in found.machines] == ["z-scheduler", "a-worker"]
    scheduler, worker = found.machines
    assert found.scheduler is scheduler
    assert found.workers == (worker,)
    assert (scheduler.spot, worker.spot) == (False, True)
    assert worker.zone == OTHER_ZONE
    assert worker.machine_type == "e2-small"
    assert worker.internal_ip
    assert worker.external_ip
    assert found.zones == (ZONE, OTHER_ZONE)
    assert found.state == "running"
    assert timedelta(0) <= found.age() < timedelta(minutes=1)


async def test_no_metadata_is_asked_for(cloud, compute):
    await insert(cloud, compute, "vm", labels_of())
    await list_clusters(compute)
    (asked,) = cloud.asked("instances.aggregatedList")
    (instance,) = asked.response["items"][f"zones/{ZONE}"]["instances"]
    assert "labels" in instance
    assert "metadata" not in instance
    assert "canIpForward" not in instance


async def test_clusters_of_equal_name_are_two(cloud, compute):
    await insert(cloud, compute, "vm-1", labels_of(identity="1" * 32, owner="ada"))
    await insert(cloud, compute, "vm-2", labels_of(identity="2" * 32, owner="bob"))
    await insert(cloud, compute, "vm-3", labels_of("other", identity="3" * 32))
    found = await list_clusters(compute, "grid")
    assert [each.owner for each in found.clusters] == ["ada", "bob"]


async def test_labels_typed_by_hand_do_no_harm(cloud, compute):
    await insert(cloud, compute, "by-hand", {names.CLUSTER_LABEL: "grid"})
    await insert(cloud, compute, "odd", labels_of(role="", expires="soon", identity="1" * 32))
    odd = {**labels_of(expires="9" * 40, identity="2" * 32), names.ROLE_LABEL: "boss"}
    await insert(cloud, compute, "odder", odd)
    records = {each.machines[0].name: each for each in (await list_clusters(compute)).clusters}
    assert set(records) == {"by-hand", "odd", "odder"}
    assert records["by-hand"].identity == records["by-hand"].owner == ""
    assert records["odd"].expires is records["odder"].expires is None
    assert records["odder"].machines[0].role == ""


async def test_zones_that_do_not_answer_are_told(cloud, compute):
    cloud.unreachable.add(OTHER_ZONE)
    found = await list_clusters(compute)
    assert found.unreachable == {OTHER_ZONE}
    assert found.to_json()["unreachable_zones"] == [OTHER_ZONE]


async def test_the_list_survives_json(cloud, compute):
    await insert(cloud, compute, "vm", labels_of(role="scheduler", expires="1800000000"))
    data = (await list_clusters(compute)).to_json()
    assert json.loads(json.dumps(data)) == data
    (cluster,) = data["clusters"]
    assert cluster["expires"] == "2027-01-15T08:00:00Z"
    assert cluster["created"].endswith("Z")
    assert cluster["machines"][0]["role"] == "scheduler"
    assert cluster["hourly_price"] == cluster["machines"][0]["hourly_price"] == 0.016753


# -- states ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("machines", "state"),
    [
        ([("scheduler", "RUNNING"), ("worker", "PROVISIONING")], "running"),
        ([("scheduler", "STAGING"), ("worker", "RUNNING")], "starting"),
        ([("scheduler", "REPAIRING")], "starting"),
        ([("worker", "PROVISIONING"), ("worker", "RUNNING")], "no-scheduler"),
        ([("scheduler", "STOPPING"), ("worker", "RUNNING")], "no-scheduler"),
        ([("scheduler", "TERMINATED"), ("worker", "RUNNING")], "no-scheduler"),
        ([("scheduler", "TERMINATED"), ("scheduler", "RUNNING")], "running"),
        ([("scheduler", "STOPPING"), ("worker", "TERMINATED")], "stopping"),
        ([("scheduler", "TERMINATED"), ("worker", "STOPPED")], "stopped"),
        ([("worker", "SUSPENDED")], "stopped"),
    ],
)
def test_the_state_follows_from_the_machines(machines, state):
    assert record(*(machine(role=role, status=status) for role, status in machines)).state == state


def test_age_is_that_of_the_first_machine_and_never_negative():
    cluster = record(machine(created=NOON), machine(created=NOON + timedelta(hours=3)))
    assert cluster.age(NOON + timedelta(hours=5)) == timedelta(hours=5)
    assert cluster.age(NOON - timedelta(hours=5)) == timedelta(0)


def test_the_price_is_that_of_what_is_on_or_unknown():
    small = machine().hourly_price
    assert small == pytest.approx(0.01675, rel=0.01)
    assert record(machine(), machine(), machine(status="STOPPED")).hourly_price == 2 * small
    spot = replace(machine(), spot=True)
    assert spot.hourly_price is None
    assert record(machine(), spot).hourly_price is None
    assert record(machine(), replace(spot, status="TERMINATED")).hourly_price == small


# -- one of them ----------------------------------------------------------------------------------

ADAS = record(identity="1" * 32, owner="ada")
BOBS = record(identity="2" * 32, owner="bob")


def test_a_cluster_is_found_by_name_owner_and_beginning_of_its_id():
    there = Inventory("p", (ADAS, BOBS, record(name="other")))
    assert find_cluster(there, "other").name == "other"
    assert find_cluster(there, "grid", owner="Bob") is BOBS
    assert find_cluster(there, "grid", identity="111") is ADAS


def test_several_of_a_name_are_told_apart():
    with pytest.raises(SettingsError) as caught:
        find_cluster(Inventory("p", (ADAS, BOBS)), "grid")
    assert caught.value.key == "name"
    for part in ("11111111", "22222222", "ada", "bob", "--id 11111111", "hours old"):
        assert part in str(caught.value)


def test_what_is_ending_does_not_stand_in_the_way():
    ending = record(machine(status="STOPPING"), identity="3" * 32)
    assert find_cluster(Inventory("p", (ending, ADAS)), "grid") is ADAS
    assert find_cluster(Inventory("p", (ending,)), "grid") is ending


def test_what_is_not_there_is_said_with_what_is():
    there = Inventory("p", (ADAS,), frozenset({OTHER_ZONE}))
    with pytest.raises(ClusterNotFound) as caught:
        find_cluster(there, "gird")
    assert caught.value.cluster == "gird"
    for part in ("project p", "Did you mean 'grid'?", OTHER_ZONE, "dask gce list"):
        assert part in str(caught.value)
    with pytest.raises(ClusterNotFound, match="id 11111111, owner ada"):
        find_cluster(there, "grid", owner="carl")


# -- deleting -------------------------------------------------------------------------------------


async def test_a_cluster_is_deleted_with_what_it_grew_since(cloud, compute):
    await insert(cloud, compute, "vm-1", labels_of())
    await insert(cloud, compute, "vm-2", labels_of(identity="b" * 32))
    await insert(cloud, compute, "by-hand", {names.CLUSTER_LABEL: "grid"})
    found = find_cluster(await list_clusters(compute), "grid", identity="aa")
    await insert(cloud, compute, "vm-3", labels_of(), OTHER_ZONE)
    await delete_cluster(compute, found)
    assert cloud.alive() == {"vm-2", "by-hand"}


async def test_machines_labelled_by_hand_are_not_ours_to_delete(cloud, compute):
    for name, zone in (("a", ZONE), ("b", OTHER_ZONE), ("c", ZONE)):
        await insert(cloud, compute, name, {names.CLUSTER_LABEL: "grid"}, zone)
    found = find_cluster(await list_clusters(compute), "grid")
    with pytest.raises(GCEError, match=f"instances delete a c --zone {ZONE} --project "):
        await delete_cluster(compute, found)
    assert cloud.alive() == {"a", "b", "c"}
    # Nor do they stand in the way of one that is.
    await insert(cloud, compute, "vm", labels_of())
    found = find_cluster(await list_clusters(compute), "grid")
    await delete_cluster(compute, found)
    assert cloud.alive() == {"a", "b", "c"}


async def test_a_delete_that_is_refused_is_said(cloud, compute):
    await insert(cloud, compute, "vm", labels_of())
    (found,) = (await list_clusters(compute)).clusters
    denied = {"status": 403, "reason": "forbidden", "message": "You may not."}
    cloud.faults.add(Fault("compute.instances.delete", **denied, times=1))
    with pytest.raises(GCEError, match="may be left, and cost money"):
        await delete_cluster(compute, found)
    assert cloud.alive() == {"vm"}


async def test_a_zone_that_falls_silent_is_said(cloud, compute):
    await insert(cloud, compute, "vm", labels_of())
    (found,) = (await list_clusters(compute)).clusters
    cloud.unreachable.add(ZONE)
    with pytest.raises(GCEError, match="did not answer"):
        await delete_cluster(compute, found)
