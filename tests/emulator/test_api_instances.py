"""Instances: what an insert must say, how they live and go."""

from __future__ import annotations

import asyncio
import time
import uuid
from datetime import datetime, timedelta, timezone

import machine_bench
import pytest
from rest import ZONE, ObservedKind, Refused, Rest, boot_disk, instance

from dask_gce.emulator import ComputeEmulator, Fault, Timings, run_limit
from dask_gce.emulator.record import InstanceRecord


def until(condition, seconds=30.0):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "did not happen in time"
        time.sleep(0.005)


@pytest.fixture
def rest(emulator):
    return Rest(emulator)


def test_an_instance_goes_through_its_states(rest, monkeypatch):
    seen = []
    touch = InstanceRecord.touch

    def note(record):
        touch(record)
        status = record.resource["status"]
        seen.extend([status] if status not in seen else [])

    monkeypatch.setattr(InstanceRecord, "touch", note)
    operation = rest.post(f"zones/{ZONE}/instances", instance())
    assert operation["operationType"] == "insert"
    done = rest.wait(operation)
    assert done["progress"] == 100 and "error" not in done
    assert done["insertTime"] <= done["startTime"] <= done["endTime"]
    assert done["targetId"] == rest.instance("a")["id"]
    rest.wait(rest.delete(f"zones/{ZONE}/instances/a"))
    assert seen == ["STAGING", "RUNNING", "STOPPING"]
    with pytest.raises(Refused) as caught:
        rest.instance("a")
    assert (caught.value.status, caught.value.reason) == (404, "notFound")
    assert not rest.emulator.leftovers()


@pytest.mark.parametrize(
    ("what", "status"),
    [("pending", "PROVISIONING"), ("provisioning", "PROVISIONING"), ("staging", "STAGING")],
)
def test_each_state_takes_its_time(what, status, discovery):
    with ComputeEmulator("paper", timings=Timings(**{what: 60})) as emulator:
        rest = Rest(emulator)
        operation = rest.post(f"zones/{ZONE}/instances", instance())
        path = f"zones/{ZONE}/operations/{operation['name']}"
        begun = "PENDING" if what == "pending" else "RUNNING"
        until(lambda: rest.get(path)["status"] == begun)
        until(lambda: rest.instance("a")["status"] == status)


def test_a_deletion_takes_its_time(discovery):
    with ComputeEmulator("paper", timings=Timings(deleting=60)) as emulator:
        rest = Rest(emulator)
        rest.insert()
        rest.delete(f"zones/{ZONE}/instances/a")
        until(lambda: rest.instance("a")["status"] == "STOPPING")


def test_an_instance_shows_what_was_asked_for(rest):
    rest.insert(
        labels={"x": "y"},
        tags={"items": ["dask"]},
        metadata={"items": [{"key": "k", "value": "v\n$(x)"}]},
        serviceAccounts=[
            {"email": "default", "scopes": ["https://www.googleapis.com/auth/cloud-platform"]}
        ],
        networkInterfaces=[{"accessConfigs": [{"type": "ONE_TO_ONE_NAT", "name": "nat"}]}],
        shieldedInstanceConfig={"enableSecureBoot": True},
    )
    shown = rest.instance("a")
    assert shown["labels"] == {"x": "y"}
    assert shown["tags"]["items"] == ["dask"]
    assert shown["metadata"]["items"] == [{"key": "k", "value": "v\n$(x)"}]
    assert shown["serviceAccounts"][0]["email"].endswith("-compute@developer.gserviceaccount.com")
    assert shown["shieldedInstanceConfig"] == {"enableSecureBoot": True}
    interface = shown["networkInterfaces"][0]
    assert interface["network"].endswith("/global/networks/default")
    assert interface["networkIP"].startswith("10.128.")
    assert interface["accessConfigs"][0]["natIP"]
    assert shown["machineType"].endswith(f"/zones/{ZONE}/machineTypes/e2-standard-4")
    disk = shown["disks"][0]
    assert disk["source"].endswith(f"/zones/{ZONE}/disks/a") and disk["diskSizeGb"] == "10"
    assert "initializeParams" not in disk
    rest.wait(rest.delete(f"zones/{ZONE}/instances/a"))


def spot(**fields):
    return {"scheduling": {"provisioningModel": "SPOT", **fields}}


@pytest.mark.parametrize(
    ("fields", "status", "reason", "word"),
    [
        ({"name": "Upper"}, 400, "invalid", "resource.name"),
        ({"name": "a" * 64}, 400, "invalid", "resource.name"),
        ({"name": ""}, 400, "invalid", "resource.name"),
        ({"machineType": ""}, 400, "required", "machineType"),
        ({"machineType": "e2-small"}, 400, "invalid", "malformed"),
        ({"machineType": "zones/us-east1-b/machineTypes/e2-small"}, 400, "invalid", "zone"),
        ({"machineType": f"zones/{ZONE}/machineTypes/e9-x"}, 404, "notFound", "e9-x"),
        ({"machineType": f"zones/{ZONE}/machineTypes/n2-custom-3-4096"}, 400, "invalid", "vCPUs"),
        ({"disks": []}, 400, "invalid", "disks"),
        ({"disks": [{"initializeParams": {}}]}, 400, "invalid", "Boot disk"),
        (
            {"disks": [boot_disk(sourceImage="global/images/family/nothing")]},
            404,
            "notFound",
            "nothing",
        ),
        ({"disks": [boot_disk(sourceImage="what is this")]}, 400, "invalid", "malformed"),
        ({"disks": [boot_disk(diskSizeGb="9")]}, 400, "invalid", "image size"),
        ({"disks": [boot_disk(diskSizeGb="65537")]}, 400, "invalid", "65536"),
        ({"disks": [boot_disk(diskType="pd-ssd")]}, 400, "invalid", "malformed"),
        ({"disks": [boot_disk(diskType=f"zones/{ZONE}/diskTypes/pd-x")]}, 404, "notFound", "pd-x"),
        (
            {
                "machineType": f"zones/{ZONE}/machineTypes/n4-standard-2",
                "disks": [boot_disk(diskType=f"zones/{ZONE}/diskTypes/pd-standard")],
            },
            400,
            "badRequest",
            "cannot be used by n4-standard-2",
        ),
        (
            {"machineType": f"zones/{ZONE}/machineTypes/t2a-standard-1"},
            400,
            "invalidResourceUsage",
            "architecture",
        ),
        ({"networkInterfaces": []}, 400, "invalid", "network interface"),
        ({"networkInterfaces": [{"network": "global/networks/x"}]}, 404, "notFound", "networks/x"),
        (
            {"networkInterfaces": [{"subnetwork": "regions/us-central1/subnetworks/x"}]},
            404,
            "notFound",
            "subnetworks/x",
        ),
        (
            {"networkInterfaces": [{"subnetwork": "regions/us-east1/subnetworks/default"}]},
            400,
            "invalid",
            "region",
        ),
        ({"networkInterfaces": [{"networkIP": "8.8.8.8"}]}, 400, "invalid", "networkIP"),
        ({"labels": {"Team": "x"}}, 400, "invalid", "Label key"),
        ({"labels": {"team": "X y"}}, 400, "invalid", "Label value"),
        ({"labels": {f"k{index}": "" for index in range(65)}}, 400, "invalid", "64"),
        ({"tags": {"items": ["Tag"]}}, 400, "invalid", "tags"),
        ({"metadata": {"items": [{"key": "a b", "value": ""}]}}, 400, "invalid", "key"),
        (
            {"metadata": {"items": [{"key": "a", "value": "x"}, {"key": "a", "value": "y"}]}},
            400,
            "invalid",
            "duplicate",
        ),
        ({"metadata": {"items": [{"key": "a", "value": "x" * 262_145}]}}, 400, "invalid", "262144"),
        (
            {"metadata": {"items": [{"key": f"k{i}", "value": "é" * 131_072} for i in range(3)]}},
            400,
            "invalid",
            "524288",
        ),
        (
            {"serviceAccounts": [{"email": "default", "scopes": ["cloud-platform"]}]},
            400,
            "invalid",
            "scope",
        ),
        ({"serviceAccounts": [{"email": "default"}]}, 400, "required", "scopes"),
        ({"serviceAccounts": [{"email": "me", "scopes": ["x"]}]}, 400, "invalid", "email"),
        (spot(automaticRestart=True), 400, "invalid", "automaticRestart"),
        (spot(onHostMaintenance="MIGRATE"), 400, "invalid", "onHostMaintenance"),
        ({"scheduling": {"instanceTerminationAction": "DELETE"}}, 400, "invalid", "termination"),
        ({"scheduling": {"maxRunDuration": {"seconds": "29"}}}, 400, "invalid", "30"),
        *(
            ({"scheduling": {"terminationTime": text}}, 400, "invalid", "RFC 3339")
            for text in (
                "tomorrow",
                "2999-01-01",
                "2999-01-01T00:00:00",
                "2999-01-01 00:00:00Z",
                "2999-13-01T00:00:00Z",
                "2999-01-01T24:00:00Z",
                "2999-01-01T00:00:00+25:00",
                "2999-01-01T00:00:00.Z",
                "2999-W01-1T00:00:00Z",
            )
        ),
        ({"scheduling": {"terminationTime": "2026-01-01T00:00:00Z"}}, 400, "invalid", "future"),
        (
            {"scheduling": {"preemptible": True, "maxRunDuration": {"seconds": "60"}}},
            400,
            "invalid",
            "preemptible",
        ),
    ],
)
def test_an_impossible_insert_is_refused(rest, fields, status, reason, word):
    with pytest.raises(Refused, match=word) as caught:
        rest.post(f"zones/{ZONE}/instances", instance(**fields))
    assert (caught.value.status, caught.value.reason) == (status, reason)
    assert not rest.emulator.leftovers()


def test_an_unknown_zone_is_a_wrong_value_but_for_the_zone_itself(rest):
    for zone in ("us-central1-z", "nowhere"):
        message = f"Invalid value for field 'zone': '{zone}'. Unknown zone."
        with pytest.raises(Refused, match=message) as caught:
            rest.get(f"zones/{zone}/instances")
        assert (caught.value.status, caught.value.reason) == (400, "invalid")
        with pytest.raises(Refused, match=f"zones/{zone}") as caught:
            rest.get(f"zones/{zone}")
        assert caught.value.status == 404


def test_a_taken_name_is_a_conflict(rest):
    rest.insert()
    with pytest.raises(Refused) as caught:
        rest.insert()
    assert (caught.value.status, caught.value.reason) == (409, "alreadyExists")
    rest.wait(rest.delete(f"zones/{ZONE}/instances/a"))


def test_the_same_request_id_is_the_same_operation(rest):
    request_id = str(uuid.uuid4())
    path = f"zones/{ZONE}/instances"
    first = rest.post(path, instance(), requestId=request_id)
    again = rest.post(path, instance(), requestId=request_id)
    # By which a client whose answer was lost finds out whether its request took effect.
    found = rest.get(
        path.replace("instances", "operations"), filter=f'clientOperationId = "{request_id}"'
    )
    assert [each["name"] for each in found["items"]] == [first["name"]]
    assert again["name"] == first["name"]
    rest.wait(first)
    assert rest.names() == ["a"]
    deletion = rest.delete(f"{path}/a", requestId=(other := str(uuid.uuid4())))
    rest.wait(deletion)
    # The instance is gone, and still the request is the one that deleted it.
    assert rest.delete(f"{path}/a", requestId=other)["name"] == deletion["name"]
    # Another method, another resource of the same method: no repetition, but a mistake.
    for call in (
        lambda: rest.post(path, instance(), requestId=other),
        lambda: rest.delete(f"{path}/b", requestId=other),
    ):
        with pytest.raises(Refused, match=f"DELETE projects/.*{path}/a") as caught:
            call()
        assert (caught.value.status, caught.value.reason) == (400, "invalid")
    assert not rest.names()
    for bad in ("1234", str(uuid.UUID(int=0))):
        with pytest.raises(Refused, match="requestId"):
            rest.post(path, instance(), requestId=bad)


def test_disks_go_with_their_instance_only_if_they_are_to(rest):
    data = {"initializeParams": {"diskSizeGb": "20"}}
    rest.insert(
        disks=[boot_disk(), data, {"type": "SCRATCH", "autoDelete": True}],
        machineType=f"zones/{ZONE}/machineTypes/n1-standard-4",
    )
    assert rest.names("disks") == ["a", "a-1"]
    with pytest.raises(Refused, match="already being used") as caught:
        rest.delete(f"zones/{ZONE}/disks/a-1")
    assert caught.value.reason == "resourceInUseByAnotherResource"
    rest.wait(rest.delete(f"zones/{ZONE}/instances/a"))
    assert rest.names("disks") == ["a-1"]
    assert rest.emulator.leftovers() == [f"disk a-1 in my-project/{ZONE} exists"]
    # A disk of that name is attached, not made anew.
    rest.insert(disks=[boot_disk(), {"initializeParams": {"diskName": "a-1"}, "autoDelete": True}])
    shown = rest.instance("a")["disks"][1]
    assert shown["source"].endswith("/disks/a-1") and shown["diskSizeGb"] == "20"
    with pytest.raises(Refused, match="already being used"):
        rest.insert(name="b", disks=[boot_disk(diskName="a-1")])
    rest.wait(rest.delete(f"zones/{ZONE}/instances/a"))
    assert not rest.emulator.leftovers()


def test_an_insert_whose_disk_is_in_use_leaves_nothing(rest):
    rest.insert(name="o1", disks=[boot_disk(diskName="o2")])
    before = rest.emulator.leftovers()
    for disks in ([boot_disk()], [boot_disk(diskName="new"), {"source": f"zones/{ZONE}/disks/o2"}]):
        with pytest.raises(Refused, match=r"already being used by '.*/o1'") as caught:
            rest.insert(name="o2", disks=disks)
        assert caught.value.reason == "resourceInUseByAnotherResource"
    with pytest.raises(Refused, match="already being used"):
        rest.insert(name="p", disks=[boot_disk(), {"initializeParams": {"diskName": "p"}}])
    assert rest.emulator.leftovers() == before
    rest.wait(rest.delete(f"zones/{ZONE}/instances/o1"))
    assert not rest.emulator.leftovers()


def test_an_insert_whose_second_address_cannot_be_had_frees_the_first(rest):
    mine = {"networkIP": "10.128.0.9"}
    with pytest.raises(Refused, match="networkIP"):
        rest.insert(networkInterfaces=[mine, {"networkIP": "8.8.8.8"}])
    assert not rest.emulator.leftovers()
    rest.insert(networkInterfaces=[mine])
    rest.wait(rest.delete(f"zones/{ZONE}/instances/a"))
    assert not rest.emulator.leftovers()


def test_metadata_and_labels_change_with_the_right_fingerprint_only(rest):
    rest.insert(labels={"x": "y"})
    path = f"zones/{ZONE}/instances/a"
    stale = rest.instance("a")
    items = [{"key": "k", "value": "v"}]
    fingerprint = stale["metadata"]["fingerprint"]
    rest.wait(rest.post(f"{path}/setMetadata", {"fingerprint": fingerprint, "items": items}))
    body = {"labels": {"z": "w"}, "labelFingerprint": stale["labelFingerprint"]}
    rest.wait(rest.post(f"{path}/setLabels", body))
    shown = rest.instance("a")
    assert shown["metadata"]["items"] == items and shown["labels"] == {"z": "w"}
    for method, late in (
        ("setMetadata", {"fingerprint": fingerprint, "items": []}),
        ("setLabels", body),
    ):
        with pytest.raises(Refused) as caught:
            rest.post(f"{path}/{method}", late)
        assert (caught.value.status, caught.value.reason) == (412, "conditionNotMet")
    assert rest.instance("a") == shown
    assert len({one["fingerprint"] for one in (stale, shown)}) == 2
    rest.wait(rest.delete(path))


def test_metadata_is_written_without_a_fingerprint_only_where_there_is_none(rest):
    rest.insert()
    path = f"zones/{ZONE}/instances/a/setMetadata"
    items = [{"key": "k", "value": "v"}]
    assert "error" not in rest.wait(rest.post(path, {"items": items}))
    # It is accepted, as Compute Engine accepts it, and fails.
    failed = rest.wait(rest.post(path, {"items": []}))
    assert failed["error"]["errors"][0]["code"] == "CONDITION_NOT_MET"
    assert failed["httpErrorStatusCode"] == 412
    assert rest.instance("a")["metadata"]["items"] == items
    rest.wait(rest.delete(f"zones/{ZONE}/instances/a"))


@pytest.mark.parametrize("method", ["setMetadata", "setLabels"])
def test_of_two_changes_at_once_the_second_fails(discovery, method):
    with ComputeEmulator("paper", timings=Timings(pending=0.3)) as emulator:
        rest = Rest(emulator)
        rest.insert(labels={"x": "y"})
        held = rest.instance("a")
        bodies = [
            {
                "setMetadata": {
                    "fingerprint": held["metadata"]["fingerprint"],
                    "items": [{"key": "k", "value": value}],
                },
                "setLabels": {
                    "labelFingerprint": held["labelFingerprint"],
                    "labels": {"k": value},
                },
            }[method]
            for value in ("1", "2")
        ]
        path = f"zones/{ZONE}/instances/a/{method}"
        begun = [rest.post(path, body) for body in bodies]
        errors = [rest.wait(one).get("error", {}).get("errors", []) for one in begun]
        assert [[one["code"] for one in each] for each in errors] == [[], ["CONDITION_NOT_MET"]]
        shown = rest.instance("a")
        found = shown["metadata"]["items"] if method == "setMetadata" else shown["labels"]
        assert found in ([{"key": "k", "value": "1"}], {"k": "1"})


def test_a_change_that_fails_changes_nothing(rest):
    rest.insert()
    before = rest.instance("a")
    error = {"code": "RESOURCE_OPERATION_RATE_EXCEEDED", "message": "Too often."}
    rest.emulator.faults.add(
        *(
            Fault(f"compute.instances.{one}", operation_errors=[error])
            for one in ("setMetadata", "setLabels")
        )
    )
    path = f"zones/{ZONE}/instances/a"
    body = {"fingerprint": before["metadata"]["fingerprint"], "items": [{"key": "k", "value": "v"}]}
    assert rest.wait(rest.post(f"{path}/setMetadata", body))["error"]["errors"] == [error]
    body = {"labelFingerprint": before["labelFingerprint"], "labels": {"k": "v"}}
    assert rest.wait(rest.post(f"{path}/setLabels", body))["error"]["errors"] == [error]
    assert not rest.emulator.faults.unused() and rest.instance("a") == before


@pytest.mark.parametrize(
    "items",
    [
        [{"key": "k", "value": "x" * 262_145}],
        [{"key": f"k{number}", "value": "x" * 262_000} for number in range(3)],
        [{"key": "a.b", "value": "x"}],
        [{"key": "k" * 129, "value": "x"}],
        [{"key": "k", "value": "1"}, {"key": "k", "value": "2"}],
    ],
)
def test_metadata_that_is_too_large_or_malformed_is_refused(rest, items):
    rest.insert()
    before = rest.instance("a")
    body = {"fingerprint": before["metadata"]["fingerprint"], "items": items}
    with pytest.raises(Refused) as caught:
        rest.post(f"zones/{ZONE}/instances/a/setMetadata", body)
    assert (caught.value.status, caught.value.reason) == (400, "invalid")
    assert rest.instance("a") == before


def test_who_waits_inside_the_machine_sees_the_change(discovery):
    kind = ObservedKind()
    with ComputeEmulator(kind, timings=Timings(latency=0)) as emulator:
        rest = Rest(emulator)
        rest.insert()
        record = kind.machines["a"].record
        version = record.version
        waiting = asyncio.run_coroutine_threadsafe(
            record.wait_for_change(version, 60), emulator._loop
        )
        fingerprint = rest.instance("a")["metadata"]["fingerprint"]
        body = {"fingerprint": fingerprint, "items": [{"key": "k", "value": "v"}]}
        rest.wait(rest.post(f"zones/{ZONE}/instances/a/setMetadata", body))
        assert waiting.result(60) is True
        assert record.metadata == {"k": "v"}


@pytest.fixture
def kind():
    return ObservedKind()


@pytest.fixture
def observed(kind, discovery):
    """A REST client of an emulator whose machines can be looked at, with the instance a."""
    with ComputeEmulator(kind, timings=Timings(stopping=7)) as emulator:
        rest = Rest(emulator)
        rest.insert(metadata={"items": [{"key": "enable-guest-attributes", "value": "TRUE"}]})
        yield rest
        if rest.names():
            rest.wait(rest.delete(f"zones/{ZONE}/instances/a"))
        assert not emulator.leftovers()


def test_stop_start_and_reset_move_the_machine(observed, kind):
    path = f"zones/{ZONE}/instances/a"
    address = observed.instance("a")["networkInterfaces"][0]["networkIP"]
    observed.wait(observed.post(f"{path}/stop"))
    assert observed.instance("a")["status"] == "TERMINATED"
    with pytest.raises(Refused, match="not ready"):
        observed.post(f"{path}/reset")
    observed.wait(observed.post(f"{path}/start"))
    observed.wait(observed.post(f"{path}/reset"))
    shown = observed.instance("a")
    assert shown["status"] == "RUNNING"
    assert shown["networkInterfaces"][0]["networkIP"] == address
    assert kind.machines["a"].deeds == ["boot", "stop 7", "boot", "kill", "boot"]


def test_a_guest_that_powers_off_is_terminated_and_one_that_reboots_runs(observed, kind):
    kind.machines["a"].on_exit("reboot")
    until(lambda: kind.machines["a"].deeds == ["boot", "kill", "boot"])
    assert observed.instance("a")["status"] == "RUNNING"
    kind.machines["a"].on_exit("poweroff")
    until(lambda: observed.instance("a")["status"] == "TERMINATED")
    assert observed.instance("a")["lastStopTimestamp"]


@pytest.mark.parametrize("how", ["start", "reset", "reboot"])
def test_an_instance_that_cannot_boot_again_is_terminated(how, kind, discovery, caplog):
    with ComputeEmulator(kind) as emulator:
        rest = Rest(emulator)
        path = f"zones/{ZONE}/instances/a"
        rest.insert(scheduling={"maxRunDuration": {"seconds": "60"}})
        machine = kind.machines["a"]
        if how == "start":
            rest.wait(rest.post(f"{path}/stop"))
        machine.broken = True
        if how == "reboot":
            machine.on_exit("reboot")
        else:
            done = rest.wait(rest.post(f"{path}/{how}"))
            assert done["error"]["errors"][0]["code"] == "INTERNAL_ERROR"
        until(lambda: rest.instance("a")["status"] == "TERMINATED")
        assert not machine.powered
        assert rest.instance("a")["resourceStatus"]["scheduling"] == {}
        # It is as good as any that was stopped.
        machine.broken = False
        assert "error" not in rest.wait(rest.post(f"{path}/start"))
        assert rest.instance("a")["status"] == "RUNNING"
    assert "no such device" in caplog.text


def test_serial_output_by_offset(observed, kind):
    path = f"zones/{ZONE}/instances/a/serialPort"
    kind.machines["a"].record.serial.write(b"hello\nworld\n")
    whole = observed.get(path)
    assert (whole["contents"], whole["start"], whole["next"]) == ("hello\nworld\n", "0", "12")
    assert observed.get(path, start=6)["contents"] == "world\n"
    kind.machines["a"].record.serial.write(b"x" * (1024 * 1024))
    assert observed.get(path, start=6)["start"] == "12"
    assert observed.get(path, port=2)["contents"] == ""
    with pytest.raises(Refused, match="range"):
        observed.get(path, port=5)


def test_guest_attributes(observed, kind):
    path = f"zones/{ZONE}/instances/a/getGuestAttributes"
    with pytest.raises(Refused) as caught:
        observed.get(path, queryPath="dask-gce/")
    assert caught.value.reason == "notFound"
    kind.machines["a"].record.guest_attributes["dask-gce"] = {"phase": "running", "port": "8786"}
    found = observed.get(path, queryPath="dask-gce/")
    assert found["queryPath"] == "dask-gce/"
    assert found["queryValue"]["items"] == [
        {"namespace": "dask-gce", "key": "phase", "value": "running"},
        {"namespace": "dask-gce", "key": "port", "value": "8786"},
    ]
    one = observed.get(path, variableKey="dask-gce/phase")
    assert one["variableValue"] == "running"
    with pytest.raises(Refused):
        observed.get(path, queryPath="other/")


def test_guest_attributes_must_be_enabled(rest):
    rest.insert()
    with pytest.raises(Refused) as caught:
        rest.get(f"zones/{ZONE}/instances/a/getGuestAttributes", queryPath="dask-gce/")
    assert caught.value.status == 412
    rest.wait(rest.delete(f"zones/{ZONE}/instances/a"))


def limited(**more):
    """Return the scheduling of an instance whose longest run time is 30 s."""
    return {
        "maxRunDuration": {"seconds": "30"},
        "instanceTerminationAction": "DELETE",
        **more,
    }


def test_the_longest_run_time_is_shown_while_an_instance_is_on(rest):
    rest.insert(scheduling=limited(maxRunDuration={"seconds": "3600"}))
    path = f"zones/{ZONE}/instances/a"
    shown = rest.instance("a")
    started, end = (
        datetime.fromisoformat(text.replace("Z", "+00:00"))
        for text in (
            shown["lastStartTimestamp"],
            shown["resourceStatus"]["scheduling"]["terminationTimestamp"],
        )
    )
    assert (end - started).total_seconds() == pytest.approx(3600, abs=60)
    rest.wait(rest.post(f"{path}/stop"))
    assert rest.instance("a")["resourceStatus"]["scheduling"] == {}
    rest.wait(rest.delete(path))


@pytest.mark.parametrize("action", ["DELETE", "STOP"])
def test_the_longest_run_time_ends_an_instance(action, discovery):
    with ComputeEmulator("paper", timings=Timings(run_duration_scale=0.01)) as emulator:
        rest = Rest(emulator)
        rest.insert(scheduling=limited(instanceTerminationAction=action))
        if action == "DELETE":
            until(lambda: not emulator.leftovers())
            assert not rest.names()
        else:
            until(lambda: rest.instance("a")["status"] == "TERMINATED")
            # It counts from each start anew.
            assert "error" not in rest.wait(rest.post(f"zones/{ZONE}/instances/a/start"))
            until(lambda: rest.instance("a")["status"] == "TERMINATED")


def test_a_limit_is_changed_while_an_instance_is_off_only(rest):
    path = f"zones/{ZONE}/instances/a"
    rest.insert(scheduling=limited(maxRunDuration={"seconds": "3600"}))
    held = rest.instance("a")["scheduling"]
    # The rest can be changed while it runs.
    calm = {**held, "onHostMaintenance": "TERMINATE"}
    assert "error" not in rest.wait(rest.post(f"{path}/setScheduling", calm))
    assert rest.instance("a")["scheduling"] == calm
    longer = {**calm, "maxRunDuration": {"seconds": "7200"}}
    never = {"automaticRestart": False}
    soon = {"provisioningModel": "SPOT", "maxRunDuration": {"seconds": "3600"}}
    for changed in (longer, never, soon):
        with pytest.raises(Refused, match="cannot be changed while the instance is running"):
            rest.post(f"{path}/setScheduling", changed)
    with pytest.raises(Refused, match="Must be between"):
        rest.post(f"{path}/setScheduling", {**calm, "maxRunDuration": {"seconds": "1"}})
    assert rest.instance("a")["scheduling"] == calm
    rest.wait(rest.post(f"{path}/stop"))
    assert "error" not in rest.wait(rest.post(f"{path}/setScheduling", longer))
    assert rest.instance("a")["scheduling"] == longer
    assert rest.instance("a")["resourceStatus"]["scheduling"] == {}
    rest.wait(rest.delete(path))


def ends(rest) -> datetime:
    text = rest.instance("a")["resourceStatus"]["scheduling"]["terminationTimestamp"]
    return datetime.fromisoformat(text.replace("Z", "+00:00"))


def test_where_it_is_told_to_it_changes_the_limit_of_an_instance_that_runs(rest):
    path = f"zones/{ZONE}/instances/a"
    rest.emulator.lenient.add("compute.instances.setScheduling")
    rest.insert(scheduling=limited(maxRunDuration={"seconds": "3600"}))
    before = ends(rest)
    longer = limited(maxRunDuration={"seconds": "7200"})
    assert "error" not in rest.wait(rest.post(f"{path}/setScheduling", longer))
    # It counts from its start, not from the change.
    assert (ends(rest) - before).total_seconds() == pytest.approx(3600, abs=1)
    shorter = limited(maxRunDuration={"seconds": "3600"})
    rest.wait(rest.post(f"{path}/setScheduling", {**shorter, "instanceTerminationAction": "STOP"}))
    assert (ends(rest) - before).total_seconds() == pytest.approx(0, abs=1)
    rest.wait(rest.delete(path))


class Later(datetime):
    """An hour later."""

    @classmethod
    def now(cls, tz=None):
        return super().now(tz) + timedelta(hours=1)


@pytest.mark.parametrize("form", ["{:%Y-%m-%dT%H:%M:%S}.{:%f}999Z", "{:%Y-%m-%dT%H:%M:%S}.5+00:00"])
def test_the_termination_time_ends_an_instance(rest, form, monkeypatch):
    end = form.format(*[datetime.now(timezone.utc) + timedelta(hours=1)] * 2)
    scheduling = {"terminationTime": end, "instanceTerminationAction": "DELETE"}
    rest.insert(scheduling=scheduling)
    shown = rest.instance("a")["resourceStatus"]["scheduling"]
    assert shown == {"terminationTimestamp": end}
    # The same for one that comes to run when the hour is over.
    monkeypatch.setattr(run_limit, "datetime", Later)
    rest.insert(name="b", scheduling=scheduling)
    until(lambda: rest.names() == ["a"])
    rest.wait(rest.delete(f"zones/{ZONE}/instances/a"))
    assert not rest.emulator.leftovers()


async def test_the_longest_run_time_does_not_count_while_an_instance_is_off(kind, discovery):
    # In this loop, where what delays the end of the guest delays that of the time as well.
    timings = Timings(pending=0, run_duration_scale=0.02)
    async with ComputeEmulator(kind, timings=timings) as emulator:
        path, body = f"zones/{ZONE}/instances", instance("a", scheduling=limited())
        insert = asyncio.create_task(asyncio.to_thread(Rest(emulator).post, path, body))
        await machine_bench.until(lambda: kind.machines)
        record = kind.machines["a"].record
        while record.resource["status"] != "RUNNING":
            await record.wait_for_change(record.version, None)
        began = time.monotonic()
        emulator.power_off("a")
        await machine_bench.until(lambda: record.resource["status"] == "TERMINATED")
        await asyncio.sleep(began + 0.7 - time.monotonic())
        assert [one["status"] for one in emulator.instances()] == ["TERMINATED"]
        await insert


def test_a_preempted_instance_is_told_and_taken(kind, discovery):
    with ComputeEmulator(kind) as emulator:
        rest = Rest(emulator)
        rest.insert(**spot(instanceTerminationAction="DELETE"))
        assert rest.instance("a")["scheduling"]["preemptible"] is True
        emulator.preempt("a")
        until(lambda: not rest.names())
        assert kind.machines["a"].record.preempted
        operations = rest.get(f"zones/{ZONE}/operations")["items"]
        assert {one["operationType"] for one in operations} >= {"compute.instances.preempted"}
        with pytest.raises(LookupError):
            emulator.preempt("a")


def test_deleting_during_creation_ends_both(discovery):
    with ComputeEmulator("paper", timings=Timings(provisioning=30)) as emulator:
        rest = Rest(emulator)
        creation = rest.post(f"zones/{ZONE}/instances", instance())
        rest.wait(rest.delete(f"zones/{ZONE}/instances/a"))
        assert rest.wait(creation)["error"]["errors"][0]["code"] == "RESOURCE_NOT_FOUND"
        assert not emulator.leftovers()


def test_two_deletions_end_together(observed, kind):
    path = f"zones/{ZONE}/instances/a"
    with kind.holding("stop"):
        first, second = observed.delete(path), observed.delete(path)
    assert "error" not in observed.wait(first) and "error" not in observed.wait(second)


def test_a_protected_instance_is_not_deleted(rest):
    rest.insert(deletionProtection=True)
    with pytest.raises(Refused, match="protected"):
        rest.delete(f"zones/{ZONE}/instances/a")
    assert rest.instance("a")["status"] == "RUNNING"


def test_an_instance_whose_machine_cannot_boot_goes_away(discovery, caplog):
    with ComputeEmulator(ObservedKind(broken=True)) as emulator:
        rest = Rest(emulator)
        done = rest.insert()
        assert done["error"]["errors"][0]["code"] == "INTERNAL_ERROR"
        assert not emulator.leftovers()
    assert "no such device" in caplog.text
