"""Bulk inserts: names, child operations, minimum counts, per-instance failure, scale."""

from __future__ import annotations

import time

import pytest
from rest import IMAGE, ZONE, Refused, Rest, boot_disk, properties

from dask_gce.emulator import Fault

PATH = f"zones/{ZONE}/instances/bulkInsert"


@pytest.fixture
def rest(emulator):
    return Rest(emulator)


@pytest.fixture
def clean(rest):
    """Delete what a test leaves, all at once."""
    yield
    deletions = [rest.delete(f"zones/{ZONE}/instances/{name}") for name in rest.names()]
    for one in deletions:
        rest.wait(one)
    assert not rest.emulator.leftovers()


def children(rest, operation):
    group = operation["operationGroupId"]
    text = f'operationGroupId eq ".*\\b{group}\\b.*" AND operationType eq insert'
    found = rest.get(f"zones/{ZONE}/operations", filter=text).get("items", [])
    return {one["targetLink"].rsplit("/", 1)[-1]: one for one in found}


def status(operation):
    metadata = operation["instancesBulkInsertOperationMetadata"]["perLocationStatus"]
    return metadata[f"zones/{ZONE}"]


@pytest.mark.usefixtures("clean")
def test_named_instances_each_have_a_child_operation(rest):
    names = {"dask-1-worker-x": {}, "dask-1-worker-y": {"hostname": "y.example.org"}}
    body = {"perInstanceProperties": names, "instanceProperties": properties(labels={"c": "1"})}
    done = rest.wait(rest.post(PATH, {"count": "2", **body}))
    assert done["operationType"] == "bulkInsert" and "error" not in done
    assert status(done)["status"] == "DONE" and status(done)["createdVmCount"] == 2
    found = children(rest, done)
    assert set(found) == set(names)
    for name, child in found.items():
        assert child["operationType"] == "insert" and child["status"] == "DONE"
        shown = rest.instance(name)
        assert child["targetId"] == shown["id"]
        assert shown["labels"] == {"c": "1"} and shown["status"] == "RUNNING"
        assert shown["machineType"].endswith(f"zones/{ZONE}/machineTypes/e2-standard-4")
    assert rest.instance("dask-1-worker-y")["hostname"] == "y.example.org"
    addresses = [one["networkInterfaces"][0]["networkIP"] for one in rest.emulator.instances()]
    assert len(set(addresses)) == 2


@pytest.mark.usefixtures("clean")
def test_a_name_pattern_goes_on_after_the_largest_number(rest):
    body = {"count": "2", "namePattern": "w-###-x", "instanceProperties": properties()}
    rest.wait(rest.post(PATH, body))
    rest.wait(rest.post(PATH, body))
    assert rest.names() == ["w-001-x", "w-002-x", "w-003-x", "w-004-x"]


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"namePattern": "w"}, "namePattern"),
        ({"namePattern": "w-#-#"}, "namePattern"),
        ({"namePattern": "W-#"}, "namePattern"),
        ({"namePattern": None}, "namePattern"),
        ({"perInstanceProperties": {"a": {}}}, "exclude"),
        ({"namePattern": None, "perInstanceProperties": {"A": {}, "b": {}}}, "perInstance"),
        ({"namePattern": None, "perInstanceProperties": {"a": {}}}, "count"),
        ({"count": "0"}, "count"),
        ({"count": "5001"}, "5000"),
        ({"minCount": "3"}, "minCount"),
        ({"instanceProperties": None}, "instanceProperties"),
        ({"locationPolicy": {}}, "regional"),
        ({"sourceInstanceTemplate": "global/instanceTemplates/t"}, "templates"),
        (
            {"instanceProperties": properties(machineType=f"zones/{ZONE}/machineTypes/e2-small")},
            "no URL",
        ),
        (
            {
                "instanceProperties": properties(
                    disks=[boot_disk(diskType=f"zones/{ZONE}/diskTypes/pd-ssd")]
                )
            },
            "diskType",
        ),
        ({"instanceProperties": properties(machineType="e9-small")}, "e9-small"),
    ],
)
def test_an_impossible_bulk_insert_is_refused_as_a_whole(rest, change, word):
    body = {"count": "2", "namePattern": "w-#", "instanceProperties": properties(), **change}
    body = {key: value for key, value in body.items() if value is not None}
    with pytest.raises(Refused, match=word) as caught:
        rest.post(PATH, body)
    assert caught.value.status in (400, 404)
    assert not rest.emulator.leftovers()


EXHAUSTED = {"code": "ZONE_RESOURCE_POOL_EXHAUSTED", "message": "The zone does not have enough."}


def three(least):
    return {
        "count": "3",
        "minCount": str(least),
        "perInstanceProperties": {"x": {}, "y": {}, "z": {}},
        "instanceProperties": properties(),
    }


@pytest.mark.usefixtures("clean")
def test_one_instance_fails_and_the_others_live(rest):
    fault = Fault(
        "compute.instances.bulkInsert", operation_errors=[EXHAUSTED], match=lambda name: name == "y"
    )
    rest.emulator.faults.add(fault)
    assert rest.emulator.faults.unused() == [fault]
    done = rest.wait(rest.post(PATH, three(1)))
    assert not rest.emulator.faults.unused()
    assert "error" not in done
    assert (status(done)["createdVmCount"], status(done)["failedToCreateVmCount"]) == (2, 1)
    found = children(rest, done)
    assert found["y"]["error"]["errors"] == [EXHAUSTED]
    assert (found["y"]["httpErrorStatusCode"], found["y"]["progress"]) == (503, 100)
    assert "error" not in found["x"]
    assert rest.names() == ["x", "z"] and rest.names("disks") == ["x", "z"]


def test_too_few_instances_are_all_rolled_back(rest):
    fault = Fault("compute.instances.bulkInsert", operation_errors=[EXHAUSTED], times=2)
    rest.emulator.faults.add(fault)
    done = rest.wait(rest.post(PATH, three(2)))
    codes = [one["code"] for one in done["error"]["errors"]]
    # The first error hides the cause; the cause comes after it.
    assert codes == ["VM_MIN_COUNT_NOT_REACHED", "ZONE_RESOURCE_POOL_EXHAUSTED"]
    assert status(done)["deletedVmCount"] == 1 and status(done)["failedToCreateVmCount"] == 2
    assert not rest.names()
    assert not rest.emulator.leftovers()


@pytest.mark.usefixtures("clean")
def test_a_taken_name_fails_alone(rest):
    rest.insert(name="x")
    done = rest.wait(rest.post(PATH, three(1)))
    assert children(rest, done)["x"]["error"]["errors"][0]["code"] == "RESOURCE_ALREADY_EXISTS"
    assert rest.names() == ["x", "y", "z"]


@pytest.mark.usefixtures("clean")
def test_an_address_that_cannot_be_had_fails_alone(rest):
    body = three(1)
    body["instanceProperties"]["networkInterfaces"] = [{"networkIP": "10.128.0.9"}]
    done = rest.wait(rest.post(PATH, body))
    assert status(done)["createdVmCount"] == 1
    failed = [one for one in children(rest, done).values() if "error" in one]
    assert {one["error"]["errors"][0]["code"] for one in failed} == {
        "IP_IN_USE_BY_ANOTHER_RESOURCE"
    }


@pytest.mark.parametrize("disk", ["new", "existing"])
def test_a_disk_that_cannot_be_shared_goes_to_one_instance_alone(rest, disk):
    if disk == "new":
        disks = [boot_disk(diskName="fixed")]
    else:
        rest.wait(rest.post(f"zones/{ZONE}/disks", {"name": "fixed"}))
        disks = [boot_disk(), {"source": f"zones/{ZONE}/disks/fixed", "autoDelete": True}]
    body = {**three(1), "instanceProperties": properties(disks=disks)}
    done = rest.wait(rest.post(PATH, body))
    assert (status(done)["createdVmCount"], status(done)["failedToCreateVmCount"]) == (1, 2)
    failed = [one for one in children(rest, done).values() if "error" in one]
    assert {one["error"]["errors"][0]["code"] for one in failed} == {
        "RESOURCE_IN_USE_BY_ANOTHER_RESOURCE"
    }
    assert rest.names() == ["x"]
    rest.wait(rest.delete(f"zones/{ZONE}/instances/x"))
    # Neither disks nor machines of instances that never were.
    assert not rest.emulator.leftovers()


def test_thousands_of_instances(rest):
    body = {
        "count": "5000",
        "namePattern": "w-####",
        "instanceProperties": properties(
            disks=[boot_disk(sourceImage=IMAGE)],
            metadata={"items": [{"key": "startup-script", "value": "x" * 1000}]},
        ),
    }
    began = time.process_time()
    operation = rest.post(PATH, body)
    done = rest.wait(operation)
    assert "error" not in done and status(done)["createdVmCount"] == 5000
    took = time.process_time() - began
    found = rest.get(f"zones/{ZONE}/instances", fields="items/status,nextPageToken")
    assert len(found["items"]) == 500 and found["nextPageToken"]
    # A second for each thousand; a square law would take minutes. Of the processor's time, since
    # what others take of it tells nothing, and twice that, since they cool its caches.
    assert took < 10.0
    assert len(rest.emulator.instances()) == 5000
