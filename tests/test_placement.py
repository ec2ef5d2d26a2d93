"""Machines go to the first place that has some, and come back to it after a while."""

from __future__ import annotations

import pytest

from dask_gce.errors import APIError, OperationError, OutOfCapacity, QuotaExceeded, ServerFault
from dask_gce.placement import Location, MachineShape, Placement

GIB = 2**30
SMALL, LARGE = MachineShape("e2-small", 2, 2 * GIB), MachineShape("e2-standard-4", 4, 16 * GIB)
A, B, F = "us-central1-a", "us-central1-b", "us-central2-f"
LOCATIONS = [Location(zone, shape) for zone in (A, B, F) for shape in (LARGE, SMALL)]

STOCKOUT = OutOfCapacity("x", code="ZONE_RESOURCE_POOL_EXHAUSTED")
QUOTA = OperationError("x", code="QUOTA_EXCEEDED", errors=[{"code": "QUOTA_EXCEEDED"}])


class Time:
    now = 1000.0

    def __call__(self):
        return self.now


@pytest.fixture
def time():
    return Time()


@pytest.fixture
def placement(time):
    return Placement(LOCATIONS, clock=time)


def place(placement, zone=None):
    chosen = placement.choose(zone)
    return chosen and (chosen.zone, chosen.machine_type)


def test_a_shape_is_read_from_the_api():
    answer = {"name": "e2-standard-4", "guestCpus": 4, "memoryMb": 16384}
    assert MachineShape.parse(answer) == LARGE


@pytest.mark.parametrize(
    ("memory", "usable"), [(GIB, GIB - 256 * 2**20), (16 * GIB, 16 * GIB - int(0.8 * GIB))]
)
def test_the_system_keeps_some_memory(memory, usable):
    assert MachineShape("m", 1, memory).usable_memory == usable


def test_the_first_place_is_chosen(placement):
    assert place(placement) == (A, "e2-standard-4")
    assert place(placement, F) == (F, "e2-standard-4")
    assert place(placement, "us-east1-b") is None
    assert Placement([]).choose() is None


def test_no_capacity_is_a_matter_of_one_type_in_one_zone(placement):
    assert (
        placement.block(LOCATIONS[0], STOCKOUT)
        == "e2-standard-4 in zone us-central1-a for 5 minutes"
    )
    assert place(placement) == (A, "e2-small")
    placement.block(LOCATIONS[1], STOCKOUT)
    assert place(placement) == (B, "e2-standard-4")
    assert place(placement, A) is None


@pytest.mark.parametrize(
    "error", [QUOTA, QuotaExceeded("x", status=403, reason="quotaExceeded")], ids=["later", "now"]
)
def test_a_quota_is_a_matter_of_one_type_in_one_region(placement, error):
    text = placement.block(LOCATIONS[0], error)
    assert text == "e2-standard-4 in region us-central1 for 5 minutes"
    assert place(placement) == (A, "e2-small")
    assert place(placement, B) == (B, "e2-small")
    assert place(placement, F) == (F, "e2-standard-4")


@pytest.mark.parametrize(
    "quota",
    [
        {"limitName": "CPUS-ALL-REGIONS-per-project"},
        {"metricName": "compute.googleapis.com/cpus_all_regions"},
        {"limitName": "GPUS_ALL_REGIONS"},
    ],
)
def test_a_quota_of_all_regions_leaves_no_place(placement, quota):
    details = [{"errorInfo": {"reason": "x"}}, {"quotaInfo": quota}]
    error = OperationError("x", code="QUOTA_EXCEEDED", errors=[{"errorDetails": details}])
    assert placement.block(LOCATIONS[0], error) == "every machine type in every zone for 5 minutes"
    assert place(placement) is None


def test_a_quota_of_one_region_is_not_one_of_all(placement):
    details = [{"quotaInfo": {"limitName": "CPUS-per-project-region", "metricName": "x/cpus"}}]
    error = OperationError("x", code="QUOTA_EXCEEDED", errors=[{"errorDetails": details}])
    placement.block(LOCATIONS[0], error)
    assert place(placement, F) == (F, "e2-standard-4")


def refused(metric):
    error = QuotaExceeded("x", status=403, reason="quotaExceeded")
    error.metric = metric
    return error


def test_a_refused_request_names_its_quota_too(placement):
    text = placement.block(LOCATIONS[0], refused("CPUS_ALL_REGIONS"))
    assert text == "every machine type in every zone for 5 minutes"
    assert place(placement) is None


@pytest.mark.parametrize("metric", ["INSTANCES", "IN_USE_ADDRESSES"])
def test_a_quota_of_machines_is_a_matter_of_a_region(placement, metric):
    text = placement.block(LOCATIONS[0], refused(metric))
    assert text == "every machine type in region us-central1 for 5 minutes"
    assert place(placement) == (F, "e2-standard-4")


def test_a_quota_of_processors_leaves_smaller_machines(placement):
    placement.block(LOCATIONS[0], refused("CPUS"))
    assert place(placement) == (A, "e2-small")


def test_a_block_ends_and_can_be_prolonged(placement, time):
    assert placement.first_free_after() is None
    placement.block(LOCATIONS[0], STOCKOUT)
    time.now += 200
    placement.block(LOCATIONS[1], STOCKOUT)
    assert placement.first_free_after() == 100
    placement.block(LOCATIONS[0], STOCKOUT)
    assert placement.first_free_after() == 300
    time.now += 299.9
    assert place(placement, A) is None
    time.now += 0.1
    assert place(placement, A) == (A, "e2-standard-4")
    assert placement.first_free_after() is None


def test_a_place_of_another_role_can_be_blocked_too(time):
    placement = Placement(LOCATIONS[:1], blocked_for=90, clock=time)
    assert (
        placement.block(LOCATIONS[5], STOCKOUT) == "e2-small in zone us-central2-f for 90 seconds"
    )
    assert place(placement) == (A, "e2-standard-4")
    assert placement.first_free_after() is None


@pytest.mark.parametrize(
    "error",
    [
        APIError("x", status=400, reason="invalid"),
        ServerFault("x", status=503),
        OperationError("x", code="PERMISSIONS_ERROR"),
    ],
)
def test_other_errors_would_be_the_same_elsewhere(placement, error):
    with pytest.raises(ValueError, match="no reason to move on"):
        placement.block(LOCATIONS[0], error)
    assert place(placement) == (A, "e2-standard-4")
