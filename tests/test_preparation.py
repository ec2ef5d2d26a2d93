"""What a cluster finds out first: which places there are, at no cost."""

from __future__ import annotations

import itertools

import pytest
from networks import make_network

from dask_gce.emulator import Fault
from dask_gce.errors import PermissionDenied, SettingsError
from dask_gce.preparation import open_compute, prepare
from dask_gce.settings import Settings

A, B = "us-central1-a", "us-central1-b"


@pytest.fixture(autouse=True)
def plain_surroundings(monkeypatch):
    monkeypatch.delenv("GOOGLE_CLOUD_PROJECT", raising=False)


@pytest.fixture
def locations(emulator):
    async def find(**settings):
        chosen = Settings.load(api_endpoint=emulator.endpoint, security=False, **settings)
        compute = await open_compute(chosen)
        try:
            preparation = await prepare(compute, chosen, "dask-1")
        finally:
            await compute.close()
        return [
            [(each.zone, each.machine_type) for each in placement.locations]
            for placement in (preparation.schedulers, preparation.workers)
        ]

    return find


def missing(machine_type, position):
    """Let a zone lack a machine type: the one whose turn it is when that type is asked for."""
    turns = itertools.count()
    return Fault(
        "compute.machineTypes.get",
        status=404,
        reason="notFound",
        match=lambda name: name == machine_type and next(turns) == position,
    )


async def test_zones_count_before_machine_types(locations, emulator):
    scheduler, workers = await locations(
        zone=[B, A],
        scheduler_machine_type="e2-small",
        worker_machine_type=["e2-standard-4", "e2-small"],
    )
    assert scheduler == [(B, "e2-small"), (A, "e2-small")]
    assert workers == [
        (B, "e2-standard-4"),
        (B, "e2-small"),
        (A, "e2-standard-4"),
        (A, "e2-small"),
    ]
    # Each type is asked for once, whatever it is for.
    assert emulator.requests["compute.machineTypes.get"] == 4


async def test_what_does_not_exist_is_left_out(locations):
    scheduler, workers = await locations(
        zone=["us-central1-z", A],
        scheduler_machine_type=["z9-standard-1", "e2-small"],
        worker_machine_type=["e2-standard-4", "z9-standard-1"],
    )
    assert scheduler == [(A, "e2-small")]
    assert workers == [(A, "e2-standard-4")]


@pytest.mark.parametrize(
    ("cross", "schedulers"), [(False, [B]), (True, [A, B])], ids=["one zone", "across zones"]
)
async def test_a_cluster_stays_in_one_zone_unless_told(locations, emulator, cross, schedulers):
    emulator.faults.add(missing("n2-standard-8", 0))
    found = await locations(
        zone=[A, B],
        scheduler_machine_type="e2-small",
        worker_machine_type="n2-standard-8",
        allow_cross_zone=cross,
        api_connections=1,  # so that the first zone is asked first
    )
    assert found == [[(zone, "e2-small") for zone in schedulers], [(B, "n2-standard-8")]]


async def test_roles_that_exist_in_different_zones_only_need_leave_to_be_apart(locations, emulator):
    settings = {
        "zone": [A, B],
        "scheduler_machine_type": "e2-small",
        "worker_machine_type": "n2-standard-8",
        "api_connections": 1,
    }
    emulator.faults.add(missing("n2-standard-8", 0), missing("e2-small", 1))
    with pytest.raises(SettingsError, match="allow_cross_zone"):
        await locations(**settings)
    assert not emulator.faults.unused()
    emulator.faults.add(missing("n2-standard-8", 0), missing("e2-small", 1))
    found = await locations(**settings, allow_cross_zone=True)
    assert found == [[(A, "e2-small")], [(B, "n2-standard-8")]]


async def test_types_that_no_zone_has_are_named(locations):
    with pytest.raises(SettingsError) as caught:
        await locations(zone=[A, B], worker_machine_type=["z9-standard-1", "z9-standard-2"])
    assert caught.value.key == "zone"
    assert f"{A}, {B}: none offers" in str(caught.value)
    assert "z9-standard-1 or z9-standard-2" in str(caught.value)
    assert "allow_cross_zone" not in str(caught.value)


async def test_a_network_that_is_not_there_is_refused(locations, emulator):
    path = "projects/local-project/global/networks/nope"
    for settings in (
        {"network": path},
        {"instance_overrides": {"networkInterfaces": [{"network": path}]}},
    ):
        with pytest.raises(SettingsError, match="network = 'nope'") as caught:
            await locations(zone=A, **settings)
        assert caught.value.key == "network"
    # Who may not look at it may use it all the same.
    emulator.permissions.deny("compute.networks.get")
    assert await locations(zone=A, network="nope", machine_type="e2-small")


async def test_a_network_without_rules_is_one(locations, emulator):
    await make_network(emulator, "bare")
    assert await locations(zone=A, network="bare", machine_type="e2-small")
    assert emulator.requests["compute.networks.get"] == 1
    # One that has rules is there.
    assert await locations(zone=A, machine_type="e2-small")
    assert emulator.requests["compute.networks.get"] == 1


async def test_a_refusal_for_other_reasons_is_not_an_absence(locations, emulator):
    emulator.faults.add(
        Fault("compute.machineTypes.get", status=403, reason="forbidden", message="No.")
    )
    with pytest.raises(PermissionDenied, match="No"):
        await locations(zone=[A, B])
