"""How instances end without their owner's request, and who the operations list says it was."""

from __future__ import annotations

import asyncio
import json
import time
from dataclasses import replace

import machine_bench
import pytest
from rest import ACCOUNT, PROJECT, ZONE, ObservedKind, Rest, instance, properties

from dask_gce.emulator import ComputeEmulator, Fault, Timings

INSTANCES = f"zones/{ZONE}/instances"


def until(condition, seconds=30.0):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "did not happen in time"
        time.sleep(0.005)


@pytest.fixture
def kind():
    return ObservedKind()


@pytest.fixture
def rest(kind, discovery):
    timings = Timings(latency=0, provisioning=0.02, staging=0.1, deleting=0.02)
    with ComputeEmulator(kind, timings=timings) as emulator:
        rest = Rest(emulator)
        yield rest
        gone = [rest.delete(f"{INSTANCES}/{name}") for name in rest.names()]
        for operation in gone:
            rest.wait(operation)
        assert not emulator.leftovers()


def why(rest, *names):
    """Return the operations of instances as (instance, operation type, user), oldest first."""
    text = f'targetLink eq ".*/instances/({"|".join(names)})"'
    found = rest.get(f"zones/{ZONE}/operations", filter=text).get("items", [])
    found.sort(key=lambda one: one["insertTime"])
    return [
        (one["targetLink"].rsplit("/", 1)[1], one["operationType"], one["user"]) for one in found
    ]


def status(rest, name):
    return rest.instance(name)["status"]


def go_on(rest, operation):
    """Wait until an operation has done what it can; what holds it up, if anything, goes on then."""
    path = f"zones/{ZONE}/operations/{operation['name']}"
    # On a busy computer it may be done before anybody looks.
    until(lambda: rest.get(path)["status"] != "PENDING")


def test_a_host_error_restarts_an_instance_that_wants_it(rest, kind):
    rest.insert(name="a")
    with kind.holding("boot"):
        with kind.holding("kill"):
            rest.emulator.host_error("a")
            until(lambda: status(rest, "a") == "REPAIRING")
        until(lambda: status(rest, "a") == "STAGING")
    until(lambda: status(rest, "a") == "RUNNING")
    assert kind.machines["a"].deeds == ["boot", "kill", "boot"]
    assert [one[1:] for one in why(rest, "a")[1:]] == [
        ("compute.instances.hostError", "system"),
        ("compute.instances.automaticRestart", "system"),
    ]


@pytest.mark.parametrize("scheduling", [{"automaticRestart": False}, {"provisioningModel": "SPOT"}])
def test_a_host_error_terminates_an_instance_that_does_not_restart(rest, kind, scheduling):
    rest.insert(name="a", scheduling=scheduling)
    rest.emulator.host_error("a")
    until(lambda: status(rest, "a") == "TERMINATED")
    assert kind.machines["a"].deeds == ["boot", "kill"]
    assert why(rest, "a")[1:] == [("a", "compute.instances.hostError", "system")]
    # It is off: there is nothing left to break.
    rest.emulator.host_error("a")
    until(
        lambda: all(
            one["status"] == "DONE" for one in rest.get(f"zones/{ZONE}/operations")["items"]
        )
    )
    assert kind.machines["a"].deeds == ["boot", "kill"]


def test_an_instance_that_is_stopped_is_not_restarted(rest, kind):
    rest.insert(name="a")
    with kind.holding("kill"):
        rest.emulator.host_error("a")
        until(lambda: status(rest, "a") == "REPAIRING")
        # It has its turn after the error, and before the restart.
        stop = rest.post(f"{INSTANCES}/a/stop")
        go_on(rest, stop)
    rest.wait(stop)
    until(lambda: not any("operation" in one for one in rest.emulator.leftovers()))
    assert why(rest, "a")[-1][1] == "compute.instances.automaticRestart"
    assert status(rest, "a") == "TERMINATED"
    assert kind.machines["a"].deeds == ["boot", "kill", "stop 5"]


@pytest.mark.parametrize("end", ["stop", "delete"])
def test_stopping_or_deleting_wins_over_an_automatic_restart(rest, kind, end):
    rest.insert(name="a")
    path = f"{INSTANCES}/a"
    with kind.holding("boot"):
        rest.emulator.host_error("a")
        until(lambda: status(rest, "a") == "STAGING")
        ending = rest.post(f"{path}/stop") if end == "stop" else rest.delete(path)
        go_on(rest, ending)
    rest.wait(ending)
    until(lambda: not any("operation" in one for one in rest.emulator.leftovers()))
    assert rest.names() == (["a"] if end == "stop" else [])
    assert end == "delete" or status(rest, "a") == "TERMINATED"


def test_a_guest_that_powers_off_leaves_its_name(rest, kind):
    rest.insert(name="a")
    rest.insert(name="b")
    kind.machines["a"].on_exit("poweroff")
    rest.emulator.power_off("b")
    for name in ("a", "b"):
        until(lambda name=name: status(rest, name) == "TERMINATED")
        assert why(rest, name)[1:] == [(name, "compute.instances.guestTerminate", "system")]
    # A guest that reboots is no news to Compute Engine.
    rest.wait(rest.post(f"{INSTANCES}/a/start"))
    before = why(rest, "a")
    kind.machines["a"].on_exit("reboot")
    until(lambda: kind.machines["a"].deeds[-2:] == ["kill", "boot"])
    assert why(rest, "a") == before


def test_a_guest_that_powers_off_while_it_is_deleted_ends_once(rest, kind):
    rest.insert(name="a")
    with kind.holding("stop"):
        deletion = rest.delete(f"{INSTANCES}/a")
        until(lambda: status(rest, "a") == "STOPPING")
        kind.machines["a"].on_exit("poweroff")
    rest.wait(deletion)
    until(lambda: not any("operation" in one for one in rest.emulator.leftovers()))
    assert [one[1] for one in why(rest, "a")] == ["insert", "delete"]


@pytest.mark.parametrize("how", ["poweroff", "reboot"])
def test_what_a_guest_did_before_a_reset_is_not_done_to_it_after(rest, kind, how):
    rest.insert(name="a")
    with kind.holding("kill"):
        reset = rest.post(f"{INSTANCES}/a/reset")
        until(lambda: kind.machines["a"].deeds == ["boot", "kill"])
        kind.machines["a"].on_exit(how)
    rest.wait(reset)
    # Its turn comes after what the guest has done.
    rest.wait(rest.post(f"{INSTANCES}/a/reset"))
    assert kind.machines["a"].deeds == ["boot", *["kill", "boot"] * 2]
    assert [one[1] for one in why(rest, "a")] == ["insert", "reset", "reset"]


def test_the_longest_run_time_is_an_operation_of_the_system(discovery):
    timings = Timings(latency=0, run_duration_scale=0.005)
    with ComputeEmulator("paper", timings=timings) as emulator:
        rest = Rest(emulator)
        scheduling = {"maxRunDuration": {"seconds": "30"}, "instanceTerminationAction": "DELETE"}
        rest.insert(name="a", scheduling=scheduling)
        until(lambda: not rest.names())
        assert why(rest, "a")[1:] == [("a", "compute.instances.terminateOnSchedule", "system")]


def test_the_filter_tells_who_ended_which_of_many(rest):
    names = [f"w-{index}" for index in range(6)]
    body = {
        "count": "6",
        "perInstanceProperties": {name: {} for name in names},
        "instanceProperties": properties(scheduling={"provisioningModel": "SPOT"}),
    }
    rest.wait(rest.post(f"{INSTANCES}/bulkInsert", body))
    rest.emulator.delete("w-1", user="colleague@example.org")
    rest.emulator.preempt("w-2")
    rest.wait(rest.delete(f"{INSTANCES}/w-3"))
    until(lambda: rest.names() == ["w-0", "w-2", "w-4", "w-5"])
    mine = f"local@{PROJECT}.iam.gserviceaccount.com"
    found = [one for one in why(rest, "w-1", "w-2", "w-3", "w-") if one[1] != "insert"]
    assert sorted(found) == [
        ("w-1", "delete", "colleague@example.org"),
        ("w-2", "compute.instances.preempted", "system"),
        ("w-3", "delete", mine),
    ]
    with pytest.raises(LookupError, match="w-1"):
        rest.emulator.delete("w-1", user="me")


def test_a_guest_that_deletes_itself_does_so_as_its_service_account(rest, kind):
    account = rest.get("")["defaultServiceAccount"]
    rest.insert(name="a", serviceAccounts=[ACCOUNT])
    headers = {"Authorization": f"Bearer {kind.token('a')}"}
    path = f"/compute/v1/projects/{PROJECT}/{INSTANCES}/a"
    status_, body, _ = rest.raw("DELETE", path, headers=headers)
    assert status_ == 200
    rest.wait(json.loads(body))
    assert [(one[1], one[2] == account) for one in why(rest, "a")] == [
        ("insert", False),
        ("delete", True),
    ]


@pytest.mark.parametrize("verb", ["delete", "stop", "reset"])
def test_an_operation_that_fails_leaves_the_instance_as_it_was(rest, kind, verb):
    error = {"code": "RESOURCE_OPERATION_RATE_EXCEEDED", "message": "Too often."}
    rest.emulator.faults.add(Fault(f"compute.instances.{verb}", operation_errors=[error]))
    rest.insert(name="a")
    before = rest.instance("a")
    path = f"{INSTANCES}/a"

    def call():
        return rest.wait(rest.delete(path) if verb == "delete" else rest.post(f"{path}/{verb}"))

    done = call()
    assert done["error"]["errors"] == [error] and done["httpErrorStatusCode"] == 429
    assert not rest.emulator.faults.unused()
    assert rest.instance("a") == before and before["status"] == "RUNNING"
    assert kind.machines["a"].deeds == ["boot"]
    # Once, as scripted.
    assert "error" not in call()
    if verb == "delete":
        assert not rest.names()


def test_a_start_that_fails_leaves_the_instance_off(rest):
    error = {"code": "INTERNAL_ERROR", "message": "No."}
    rest.emulator.faults.add(Fault("compute.instances.start", operation_errors=[error], delay=0.05))
    rest.insert(name="a")
    rest.wait(rest.post(f"{INSTANCES}/a/stop"))
    began = time.monotonic()
    assert rest.wait(rest.post(f"{INSTANCES}/a/start"))["error"]["errors"] == [error]
    assert time.monotonic() - began >= 0.05
    assert status(rest, "a") == "TERMINATED"


NOTICED = {
    "provisioningModel": "SPOT",
    "instanceTerminationAction": "DELETE",
    "preemptionNoticeDuration": {"seconds": "120"},
}


def test_a_preemption_with_notice_is_told_before_it_is_done(discovery, kind):
    timings = Timings(latency=0, deleting=0.02, run_duration_scale=1 / 1200)
    with ComputeEmulator(kind, timings=timings) as emulator:
        rest = Rest(emulator)
        rest.insert(name="a", scheduling=NOTICED)
        rest.insert(name="b", scheduling=NOTICED)
        record = kind.machines["a"].record
        emulator.preempt("b", notice=3600)
        emulator.preempt("a")
        assert record.preempted
        until(lambda: rest.names() == ["b"])
        assert ("a", "compute.instances.preempted", "system") in why(rest, "a")
        # Until its time has come it runs, and nothing is done to it; told again, that counts.
        assert status(rest, "b") == "RUNNING" and kind.machines["b"].deeds == ["boot"]
        assert kind.machines["b"].record.preempted
        assert [one[1] for one in why(rest, "b")] == ["insert"]
        emulator.preempt("b", notice=0)
        until(lambda: not rest.names())


def test_an_end_of_its_own_comes_before_that_of_a_notice(rest, kind):
    rest.insert(name="a", scheduling={**NOTICED, "instanceTerminationAction": "STOP"})
    rest.emulator.preempt("a", notice=3600)
    rest.emulator.power_off("a")
    until(lambda: status(rest, "a") == "TERMINATED")
    assert [one[1] for one in why(rest, "a")] == ["insert", "compute.instances.guestTerminate"]
    # When it runs again, that is over.
    rest.wait(rest.post(f"{INSTANCES}/a/start"))
    assert not kind.machines["a"].record.preempted


def test_maintenance_is_told_and_moves_or_ends_an_instance(rest, kind):
    stays = {"onHostMaintenance": "TERMINATE", "automaticRestart": False}
    rest.insert(name="moves")
    rest.insert(name="ends", scheduling=stays)
    rest.insert(name="returns", scheduling={**stays, "automaticRestart": True})
    records = {name: kind.machines[name].record for name in ("moves", "ends", "returns")}
    for name in records:
        rest.emulator.maintain(name, notice=3600)
    assert [records[name].maintenance_event for name in ("moves", "ends", "returns")] == [
        "MIGRATE_ON_HOST_MAINTENANCE",
        *["TERMINATE_ON_HOST_MAINTENANCE"] * 2,
    ]
    for name in records:
        rest.emulator.maintain(name, notice=0)
    until(lambda: records["moves"].maintenance_event == "NONE")
    until(lambda: status(rest, "ends") == "TERMINATED")
    until(lambda: kind.machines["returns"].deeds == ["boot", "stop 5", "boot"])
    until(lambda: status(rest, "returns") == "RUNNING")
    assert records["returns"].maintenance_event == "NONE"
    assert status(rest, "moves") == "RUNNING" and kind.machines["moves"].deeds == ["boot"]
    assert [one[1] for one in why(rest, "moves")][1:] == [
        "compute.instances.migrateOnHostMaintenance"
    ]
    assert [one[1] for one in why(rest, "returns")][1:] == [
        "compute.instances.terminateOnHostMaintenance",
        "compute.instances.automaticRestart",
    ]
    # One that is off has no host.
    rest.emulator.maintain("ends", notice=0)
    assert [one[1] for one in why(rest, "ends")][1:] == [
        "compute.instances.terminateOnHostMaintenance"
    ]


def test_no_death_without_an_instance():
    with ComputeEmulator("paper") as emulator:
        deaths = emulator.host_error, emulator.preempt, emulator.maintain, emulator.power_off
        for kill in deaths:
            with pytest.raises(LookupError, match="'a'"):
                kill("a")


# The operating system boots ------------------------------------------------------------------

BOOTING = Timings(latency=0, provisioning=0.01, staging=0.01, deleting=0.01, booting=0.25)


def test_a_machine_begins_when_its_operating_system_has_booted(kind, discovery):
    with ComputeEmulator(kind, timings=BOOTING) as emulator:
        rest = Rest(emulator)
        assert "error" not in rest.insert(name="a")
        machine = kind.machines["a"]
        until(lambda: machine.deeds == ["boot"])
        # So it does each time.
        rest.wait(rest.post(f"{INSTANCES}/a/reset"))
        until(lambda: machine.deeds == ["boot", "kill", "boot"])
        assert machine.statuses == ["RUNNING"] * 3
        _, killed, booted = machine.moments
        assert booted - killed > 0.9 * BOOTING.booting


@pytest.mark.parametrize("end", ["power off", "delete", "host error"])
async def test_a_machine_that_ends_while_it_boots_never_begins(kind, discovery, end):
    # In this loop, where what delays the end delays the boot as well. Whatever holds up the whole
    # process must not take as long as a boot.
    timings = replace(BOOTING, booting=1.5)
    async with ComputeEmulator(kind, timings=timings) as emulator:
        body = instance("a", scheduling={"automaticRestart": False})
        insert = asyncio.create_task(asyncio.to_thread(Rest(emulator).post, INSTANCES, body))
        await machine_bench.until(lambda: kind.machines)
        machine = kind.machines["a"]
        while machine.record.resource["status"] != "RUNNING":
            await machine.record.wait_for_change(machine.record.version, None)
        began = time.monotonic()
        if end == "power off":
            emulator.power_off("a")
        elif end == "delete":
            emulator.delete("a", user="colleague@example.org")
        else:
            emulator.host_error("a")
        left = [] if end == "delete" else ["TERMINATED"]

        def shown():
            return [one["status"] for one in emulator.instances()]

        await machine_bench.until(lambda: shown() == left)
        await asyncio.sleep(began + timings.booting + 0.05 - time.monotonic())
        assert "boot" not in machine.deeds
        assert shown() == left
        await insert


def test_a_machine_that_breaks_after_it_was_said_to_run_is_off(discovery, caplog):
    with ComputeEmulator(ObservedKind(broken=True), timings=BOOTING) as emulator:
        rest = Rest(emulator)
        assert "error" not in rest.insert(name="a")
        until(lambda: status(rest, "a") == "TERMINATED")
        rest.wait(rest.delete(f"{INSTANCES}/a"))
        assert not emulator.leftovers()
    assert "no such device" in caplog.text


def test_closing_while_machines_boot_leaves_nothing(kind, discovery):
    with ComputeEmulator(kind, timings=replace(BOOTING, booting=60)) as emulator:
        rest = Rest(emulator)
        rest.insert(name="a")
        rest.post(INSTANCES, instance(name="b"))
    assert kind.machines["a"].deeds == [] and not emulator.leftovers()


# Latency by method ---------------------------------------------------------------------------


def test_each_method_has_its_latency(discovery):
    latencies = {"compute.instances.insert": 0.3, "compute.instances.list": 0.15}
    with ComputeEmulator("paper", timings=Timings(latency=0, latencies=latencies)) as emulator:
        rest = Rest(emulator)
        took = {}
        for name, call, most in (
            ("insert", lambda: rest.post(INSTANCES, instance()), None),
            ("list", rest.names, 0.3),
            ("get", lambda: rest.instance("a"), 0.15),
        ):
            found = []
            # A busy computer makes calls take longer, and none of them less long.
            while not found or (most is not None and min(found) >= most and len(found) < 100):
                began = time.monotonic()
                call()
                found.append(time.monotonic() - began)
            took[name] = min(found)
        assert took["insert"] >= 0.3 > took["list"] >= 0.15 > took["get"]
        assert rest.emulator.requests["compute.instances.insert"] == 1


def test_latency_is_for_methods_that_exist():
    with pytest.raises(ValueError, match=r"compute\.instance\.insert"):
        ComputeEmulator("paper", timings=Timings(latencies={"compute.instance.insert": 1}))
    with pytest.raises(ValueError, match="negative"):
        Timings(latencies={"compute.instances.insert": -1})
