"""What there is not enough of: capacity, quota, requests a minute, zones that answer."""

from __future__ import annotations

import http.client
import uuid

import pytest
from rest import PROJECT, ZONE, ObservedKind, Refused, Rest, instance, properties

from dask_gce.emulator import ComputeEmulator, Fault, Timings, rate_limits
from dask_gce.emulator.methods.bulk import MOST_AT_ONCE
from dask_gce.emulator.rate_limits import GROUPS

OTHER = "us-central1-b"
INSTANCES = f"zones/{ZONE}/instances"
DATED = {"X-Goog-Api-Version": "2026-09-01"}


#: There is much to wait for here, and nothing to look at meanwhile.
QUICK = Timings(latency=0, pending=0.001, provisioning=0.01, staging=0.01, deleting=0.01)


@pytest.fixture
def rest(discovery):
    with ComputeEmulator("paper", timings=QUICK) as emulator:
        yield from used(emulator)


def used(emulator):
    """Yield a client, and look whether everything that was taken comes back."""
    rest = Rest(emulator)
    yield rest
    emulator.unreachable.clear()
    emulator.rate_limits.clear()
    for zone in (ZONE, OTHER):
        found = rest.get(f"zones/{zone}/instances").get("items", [])
        gone = [rest.delete(f"zones/{zone}/instances/{one['name']}") for one in found]
        for operation in gone:
            rest.wait(operation)
    assert not emulator.leftovers()
    usage = {one["metric"]: one["usage"] for one in rest.get("regions/us-central1")["quotas"]}
    assert not any(usage.values()), usage
    emulator.capacity.set(ZONE, instances=7)
    assert emulator.capacity.left(ZONE) == 7


def bulk(count, least=1, zone=ZONE, first="w", **fields):
    return f"zones/{zone}/instances/bulkInsert", {
        "count": str(count),
        "minCount": str(least),
        "perInstanceProperties": {f"{first}-{index}": {} for index in range(count)},
        "instanceProperties": properties(**fields),
    }


def children(rest, operation, zone=ZONE):
    group = operation["operationGroupId"]
    text = f'(operationGroupId = "{group}") (operationType = insert)'
    return rest.get(f"zones/{zone}/operations", filter=text)["items"]


def codes(operation):
    return [one["code"] for one in operation.get("error", {}).get("errors", [])]


# Capacity ------------------------------------------------------------------------------------


def test_a_bulk_insert_gets_what_is_left_and_its_other_children_fail(rest):
    rest.emulator.capacity.set(ZONE, instances=6)
    done = rest.wait(rest.post(*bulk(10)))
    assert "error" not in done
    failed = [one for one in children(rest, done) if "error" in one]
    assert len(failed) == 4 and len(rest.names()) == 6
    assert {tuple(codes(one)) for one in failed} == {("ZONE_RESOURCE_POOL_EXHAUSTED",)}
    assert failed[0]["httpErrorStatusCode"] == 503
    assert f"projects/{PROJECT}/zones/{ZONE}" in failed[0]["error"]["errors"][0]["message"]
    assert rest.emulator.capacity.left(ZONE) == 0


def test_a_bulk_insert_that_gets_nothing_fails_and_says_why_in_second_place(rest):
    rest.emulator.capacity.set(ZONE, instances=0)
    done = rest.wait(rest.post(*bulk(3)))
    assert codes(done) == ["VM_MIN_COUNT_NOT_REACHED", "ZONE_RESOURCE_POOL_EXHAUSTED"]
    assert not rest.names()


def test_a_bulk_insert_below_its_minimum_gives_back_what_it_took(rest):
    rest.emulator.capacity.set(ZONE, instances=2)
    done = rest.wait(rest.post(*bulk(3, least=3)))
    assert codes(done)[0] == "VM_MIN_COUNT_NOT_REACHED"
    assert not rest.names() and rest.emulator.capacity.left(ZONE) == 2


def test_capacity_changes_while_it_runs_and_comes_back_by_deleting(rest):
    capacity = rest.emulator.capacity
    rest.insert(name="a")
    capacity.set(ZONE, instances=1)
    assert codes(rest.insert(name="b")) == ["ZONE_RESOURCE_POOL_EXHAUSTED"]
    rest.wait(rest.delete(f"{INSTANCES}/a"))
    assert not codes(rest.insert(name="c"))
    capacity.set(ZONE, instances=None)
    assert capacity.left(ZONE) is None
    assert not codes(rest.insert(name="d"))
    # Less than there is: what there is stays.
    capacity.set(ZONE, instances=0)
    assert rest.names() == ["c", "d"] and capacity.left(ZONE) == 0


def test_capacity_of_one_machine_type_or_zone_says_nothing_of_others(rest):
    capacity = rest.emulator.capacity
    capacity.set(ZONE, "n2-standard-8", instances=0)
    wanted = {"machineType": f"zones/{ZONE}/machineTypes/n2-standard-8"}
    assert codes(rest.insert(name="a", **wanted)) == ["ZONE_RESOURCE_POOL_EXHAUSTED"]
    assert not codes(rest.insert(name="b"))
    capacity.set(ZONE, instances=1)
    assert codes(rest.insert(name="c")) == ["ZONE_RESOURCE_POOL_EXHAUSTED"]
    path, body = bulk(1, zone=OTHER)
    assert "error" not in rest.wait(rest.post(path, body))
    assert capacity.left(OTHER) is None
    assert capacity.left(ZONE) == capacity.left(ZONE, "e2-small") == 0


def test_a_stopped_instance_gives_its_place_away_and_may_not_get_one_again(rest):
    rest.emulator.capacity.set(ZONE, instances=1)
    rest.insert(name="a")
    rest.wait(rest.post(f"{INSTANCES}/a/stop"))
    rest.insert(name="b")
    assert codes(rest.wait(rest.post(f"{INSTANCES}/a/start"))) == ["ZONE_RESOURCE_POOL_EXHAUSTED"]
    assert rest.instance("a")["status"] == "TERMINATED"
    usage = {one["metric"]: one["usage"] for one in rest.get("regions/us-central1")["quotas"]}
    assert usage["CPUS"] == 4.0
    rest.wait(rest.delete(f"{INSTANCES}/b"))
    assert not codes(rest.wait(rest.post(f"{INSTANCES}/a/start")))
    assert rest.emulator.capacity.left(ZONE) == 0


def test_an_instance_that_fails_by_a_fault_takes_no_place(rest):
    rest.emulator.capacity.set(ZONE, instances=1)
    error = {"code": "INTERNAL_ERROR", "message": "No."}
    rest.emulator.faults.add(Fault("compute.instances.insert", operation_errors=[error]))
    assert codes(rest.insert(name="a")) == ["INTERNAL_ERROR"]
    assert not codes(rest.insert(name="b"))


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (("nowhere", None, 1), "zone 'nowhere'"),
        ((ZONE, "e9-small", 1), "e9-small"),
        ((ZONE, None, -1), "-1"),
    ],
)
def test_senseless_capacity_is_refused(arguments, word):
    zone, machine_type, instances = arguments
    with pytest.raises(ValueError, match=word):
        ComputeEmulator("paper").capacity.set(zone, machine_type, instances=instances)


# Quota ---------------------------------------------------------------------------------------


def test_what_goes_beyond_a_quota_is_refused_as_a_whole_and_at_once(rest):
    rest.emulator.quota.set("us-central1", "CPUS", 16)
    rest.insert(name="a")
    with pytest.raises(Refused) as caught:
        rest.post(*bulk(4))
    assert (caught.value.status, caught.value.reason) == (403, "quotaExceeded")
    assert caught.value.message == "Quota 'CPUS' exceeded.  Limit: 16.0 in region us-central1."
    assert rest.names() == ["a"]
    # Three more fit, of whichever zone of the region, and then none.
    assert "error" not in rest.wait(rest.post(*bulk(3, zone=OTHER)))
    with pytest.raises(Refused, match="CPUS"):
        rest.insert(name="b")
    shown = {one["metric"]: one for one in rest.get("regions/us-central1")["quotas"]}
    assert (shown["CPUS"]["limit"], shown["CPUS"]["usage"]) == (16.0, 16.0)
    assert shown["INSTANCES"]["usage"] == 4.0
    # Another region has its own.
    body = instance(name="e", machineType="zones/us-east1-b/machineTypes/e2-standard-4")
    rest.wait(rest.post("zones/us-east1-b/instances", body))
    rest.wait(rest.delete("zones/us-east1-b/instances/e"))
    rest.wait(rest.delete(f"{INSTANCES}/a"))
    assert not codes(rest.insert(name="b"))


@pytest.mark.parametrize(
    ("region", "metric", "fields"),
    [
        ("us-central1", "INSTANCES", {}),
        ("us-central1", "N2_CPUS", {"machineType": "n2-standard-8"}),
        ("us-central1", "PREEMPTIBLE_CPUS", {"scheduling": {"provisioningModel": "SPOT"}}),
        (
            "us-central1",
            "IN_USE_ADDRESSES",
            {"networkInterfaces": [{"accessConfigs": [{"name": "nat"}]}]},
        ),
        (
            "us-central1",
            "NVIDIA_L4_GPUS",
            {"machineType": "g2-standard-4", "scheduling": {"onHostMaintenance": "TERMINATE"}},
        ),
        (
            "us-central1",
            "PREEMPTIBLE_NVIDIA_T4_GPUS",
            {
                "machineType": "n1-standard-4",
                "scheduling": {"provisioningModel": "SPOT"},
                "guestAccelerators": [
                    {"acceleratorType": "nvidia-tesla-t4", "acceleratorCount": 1}
                ],
            },
        ),
        ("global", "CPUS_ALL_REGIONS", {"machineType": "n4-standard-2"}),
        ("global", "GPUS_ALL_REGIONS", {"machineType": "a2-highgpu-1g"}),
    ],
)
def test_each_metric_counts_what_it_says(rest, region, metric, fields):
    if metric == "GPUS_ALL_REGIONS":
        fields = {**fields, "scheduling": {"onHostMaintenance": "TERMINATE"}}
    rest.emulator.quota.set(region, metric, 0)
    with pytest.raises(Refused, match=f"'{metric}'") as caught:
        rest.post(*bulk(2, **fields))
    assert caught.value.reason == "quotaExceeded"
    rest.emulator.quota.set(region, metric, None)
    assert "error" not in rest.wait(rest.post(*bulk(1, **fields)))


def test_an_instance_that_is_off_counts_as_an_instance_only(rest):
    rest.emulator.quota.set("us-central1", "CPUS", 4)
    rest.insert(name="a")
    rest.wait(rest.post(f"{INSTANCES}/a/stop"))
    rest.insert(name="b")
    done = rest.wait(rest.post(f"{INSTANCES}/a/start"))
    assert codes(done) == ["QUOTA_EXCEEDED"] and done["httpErrorStatusCode"] == 403
    assert done["error"]["errors"][0]["errorDetails"][0]["quotaInfo"] == {
        "metricName": "compute.googleapis.com/cpus",
        "limitName": "CPUS-per-project-region",
        "dimensions": {"region": "us-central1"},
        "limit": 4.0,
    }
    usage = {one["metric"]: one["usage"] for one in rest.get("regions/us-central1")["quotas"]}
    assert (usage["CPUS"], usage["INSTANCES"]) == (4.0, 2.0)


def test_what_is_refused_or_fails_gives_its_quota_back(rest):
    rest.emulator.quota.set("us-central1", "INSTANCES", 3)
    rest.insert(name="w-0")
    with pytest.raises(Refused, match="networkIP"):
        rest.insert(name="a", networkInterfaces=[{"networkIP": "8.8.8.8"}])
    # One name is taken, and one of the other two gets the address: one instance more.
    body = bulk(2, networkInterfaces=[{"networkIP": "10.128.0.99"}])
    rest.wait(rest.post(*body))
    assert rest.names() == ["w-0", "w-1"]
    usage = {one["metric"]: one["usage"] for one in rest.get("regions/us-central1")["quotas"]}
    assert (usage["INSTANCES"], usage["CPUS"]) == (2.0, 8.0)


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (("nowhere", "CPUS", 1), "region 'nowhere'"),
        (("us-central1", "CPU", 1), "metric 'CPU'"),
        (("us-central1", "CPUS_ALL_REGIONS", 1), "us-central1"),
        (("global", "CPUS", 1), "global"),
        (("us-central1", "CPUS", -1), "-1"),
    ],
)
def test_senseless_quota_is_refused(arguments, word):
    with pytest.raises(ValueError, match=word):
        ComputeEmulator("paper").quota.set(*arguments)


# Rate quotas ---------------------------------------------------------------------------------


class Clock:
    """Stands for the module `time`: what it says lasts until it is set."""

    def __init__(self):
        self.now = 0.0

    def time(self):
        return self.now


def test_requests_beyond_a_rate_are_refused_until_the_next_minute(discovery, monkeypatch):
    clock = Clock()
    monkeypatch.setattr(rate_limits, "time", clock)
    with ComputeEmulator("paper", timings=Timings(minute=0.5)) as emulator:
        rest = Rest(emulator)
        emulator.rate_limits.set("reads_per_region", 3)
        clock.now = 7.0
        for _ in range(3):
            rest.names()
        clock.now = 7.4
        with pytest.raises(Refused, match="reads_per_region") as caught:
            rest.get(f"zones/{OTHER}/instances")
        assert (caught.value.status, caught.value.reason) == (403, "rateLimitExceeded")
        # Neither another region, nor another project, nor another group.
        rest.get("zones/us-east1-b/instances")
        rest.call("GET", f"/compute/v1/projects/other-project/{INSTANCES}")
        rest.post(INSTANCES, instance())
        rest.get("aggregated/instances")
        clock.now = 7.5
        rest.names()
        emulator.rate_limits.set("reads_per_region", None)
        for _ in range(5):
            rest.names()


@pytest.mark.parametrize("group", GROUPS)
def test_every_group_has_its_requests(rest, group):
    operation = rest.post(INSTANCES, instance())
    rest.wait(operation)
    path = f"zones/{ZONE}/operations/{operation['name']}"
    calls = {
        "writes_per_region": lambda: rest.post(*bulk(1)),
        "reads_per_region": lambda: rest.instance("a"),
        "operation_read_requests_per_region": lambda: rest.get(path),
        "heavy_weight_read_requests_per_region": lambda: rest.post(f"{path}/wait"),
        "get_serial_port_output_requests_per_region": lambda: rest.get(f"{INSTANCES}/a/serialPort"),
        "default_per_region": lambda: rest.get(f"{INSTANCES}/a/getGuestAttributes"),
        "heavy_weight_read_requests": lambda: rest.get("aggregated/instances"),
    }
    rest.emulator.rate_limits.set(group, 0)
    for name, call in calls.items():
        reason = None
        try:
            call()
        except Refused as refusal:
            reason = refusal.reason
        assert (reason == "rateLimitExceeded") == (name == group), (name, reason)


def test_senseless_rates_are_refused():
    limits = ComputeEmulator("paper").rate_limits
    with pytest.raises(ValueError, match="writes_per_region"):
        limits.set("writes", 1)
    with pytest.raises(ValueError, match="-1"):
        limits.set("writes_per_region", -1)
    with pytest.raises(ValueError, match="minute"):
        Timings(minute=0)


def test_only_so_many_bulk_inserts_go_on_at_once(discovery):
    kind = ObservedKind()
    with ComputeEmulator(kind, timings=QUICK) as emulator:
        rest = Rest(emulator)
        with kind.holding("boot"):
            begun = [rest.post(*bulk(1, first=f"b{index}")) for index in range(MOST_AT_ONCE)]
            with pytest.raises(Refused, match="at most 10") as caught:
                rest.post(*bulk(1))
        assert (caught.value.status, caught.value.reason) == (403, "rateLimitExceeded")
        for one in begun:
            rest.wait(one)
        assert "error" not in rest.wait(rest.post(*bulk(1)))


# Zones that do not answer --------------------------------------------------------------------


def test_a_zone_that_does_not_answer_is_named_and_left_out(rest):
    rest.insert(name="a")
    rest.wait(rest.post(*bulk(2, zone=OTHER)))
    rest.emulator.unreachable.add(OTHER)
    answer = rest.call("GET", "aggregated/instances", headers=DATED)
    assert answer["unreachables"] == [f"projects/{PROJECT}/zones/{OTHER}"]
    assert answer["items"][f"zones/{OTHER}"]["warning"]["code"] == "UNREACHABLE"
    assert "instances" not in answer["items"][f"zones/{OTHER}"]
    assert [one["name"] for one in answer["items"][f"zones/{ZONE}"]["instances"]] == ["a"]
    page = rest.call("GET", "aggregated/instances", headers=DATED, query={"maxResults": 1})
    assert "nextPageToken" not in page
    for call in (
        lambda: rest.get(f"zones/{OTHER}/instances"),
        lambda: rest.get(f"zones/{OTHER}/instances/w-0"),
        lambda: rest.get(f"zones/{OTHER}/operations"),
        lambda: rest.delete(f"zones/{OTHER}/instances/w-0"),
        lambda: rest.post(*bulk(1, zone=OTHER, first="x")),
    ):
        with pytest.raises(Refused, match=OTHER) as caught:
            call()
        assert caught.value.status == 503
    # The zone itself and its neighbour are known.
    assert rest.get(f"zones/{OTHER}")["status"] == "UP"
    assert rest.names() == ["a"]
    assert OTHER in rest.emulator.unreachable and list(rest.emulator.unreachable) == [OTHER]
    rest.emulator.unreachable.remove(OTHER)
    answer = rest.call("GET", "aggregated/instances", headers=DATED)
    assert "unreachables" not in answer
    assert len(answer["items"][f"zones/{OTHER}"]["instances"]) == 2


def test_the_undated_api_answers_in_part_only_where_it_is_asked_to(rest):
    rest.emulator.unreachable.add(OTHER)
    with pytest.raises(Refused) as caught:
        rest.get("aggregated/instances")
    assert caught.value.status == 503
    answer = rest.get("aggregated/instances", returnPartialSuccess="True")
    assert answer["unreachables"]


def test_senseless_zones_are_refused():
    unreachable = ComputeEmulator("paper").unreachable
    with pytest.raises(ValueError, match="nowhere"):
        unreachable.add("nowhere")
    with pytest.raises(ValueError, match="not unreachable"):
        unreachable.remove(ZONE)


def test_who_has_the_answer_finds_every_instance(discovery):
    with ComputeEmulator("paper", timings=QUICK) as emulator:
        Rest(emulator).post(*bulk(1500))
        assert len(emulator.instances()) == 1500


# Answers that are lost -----------------------------------------------------------------------


def test_a_bulk_insert_whose_answer_was_lost_is_not_made_twice(rest):
    # More than are begun at a stretch.
    path, body = bulk(60)
    request_id = str(uuid.uuid4())
    rest.emulator.faults.add(Fault("compute.instances.bulkInsert", drop="after"))
    with pytest.raises((http.client.RemoteDisconnected, ConnectionResetError)):
        rest.post(path, body, requestId=request_id)
    again = rest.post(path, body, requestId=request_id)
    done = rest.wait(again)
    assert again["operationType"] == "bulkInsert" and "error" not in done
    assert rest.post(path, body, requestId=request_id)["name"] == again["name"]
    assert len(rest.names()) == len(children(rest, done)) == 60
    parents = rest.get(f"zones/{ZONE}/operations", filter="operationType = bulkInsert")
    assert len(parents["items"]) == 1
