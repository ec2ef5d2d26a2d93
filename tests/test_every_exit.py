"""However a process ends that has a cluster, no machine is left.

Most cases are a process of their own; the local Compute Engine outlives it and tells what is left.
"""

from __future__ import annotations

import asyncio
import signal
import subprocess
import sys
import time

import pytest
from clusters import PATIENCE, until
from interruption import HEARS

from dask_gce import GCECluster, names, sweep
from dask_gce.compute import Compute
from dask_gce.connections import delete_connection, list_connections
from dask_gce.emulator import ComputeEmulator, Fault, Timings
from dask_gce.errors import GCEError

INSERT, BULK = "compute.instances.insert", "compute.instances.bulkInsert"
DELETE, LIST = "compute.instances.delete", "compute.instances.list"
RULES, RULE = "compute.firewalls.list", "compute.firewalls.insert"
RULES_GO = "compute.firewalls.delete"

PREAMBLE = """
import asyncio, sys, threading, time
from dask_gce import GCECluster
settings = dict(api_endpoint={endpoint!r}, machine_type="e2-small", quiet=True)
def ready():
    print("ready", flush=True)
def end():
    print(time.monotonic(), flush=True)
"""


@pytest.fixture
def slow_deletes(discovery):
    """Return a local Compute Engine with real schedulers, on which deletes take their time."""
    timings = Timings(latencies={DELETE: 0.3})
    with ComputeEmulator("paper-workers", timings=timings) as emulator:
        yield emulator


def run(emulator, program, *, interrupt_at=None, by=signal.SIGINT):
    """Run a program; interrupt it once, when the emulator has seen a call or something is so."""
    process = subprocess.Popen(
        [sys.executable, "-c", HEARS + PREAMBLE.format(endpoint=emulator.endpoint) + program],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    with process:
        try:
            if interrupt_at is not None:
                deadline = time.monotonic() + PATIENCE
                while not (
                    interrupt_at() if callable(interrupt_at) else emulator.requests[interrupt_at]
                ):
                    # What ends before has something to say.
                    assert process.poll() is None, process.communicate()[1]
                    assert time.monotonic() < deadline
                    time.sleep(0.01)
                process.send_signal(by)
            output, errors = process.communicate(timeout=200)
        finally:
            process.kill()
    return process.returncode, output, errors


def assert_all_gone(emulator):
    deadline = time.monotonic() + PATIENCE
    while left := emulator.leftovers():
        assert time.monotonic() < deadline, left
        time.sleep(0.05)


@pytest.mark.parametrize(
    "program",
    [
        pytest.param("cluster = GCECluster(n_workers=1, **settings)\nend()", id="no close"),
        pytest.param(
            "cluster = GCECluster(n_workers=1, **settings)\nend()\nraise ValueError('mine')",
            id="exception",
        ),
        pytest.param(
            "async def main():\n"
            "    global cluster\n"
            "    cluster = await GCECluster(n_workers=1, asynchronous=True, **settings)\n"
            "    end()\n"
            "asyncio.run(main())",
            id="asynchronous",
        ),
        pytest.param(
            "cluster = GCECluster(n_workers=1, **settings)\n"
            "from distributed import Client\nclient = Client(cluster)\n"
            "client.submit(sum, [1]).result()\nend()",
            id="with client",
        ),
    ],
)
def test_exit_without_close(process_emulator, program):
    _, ended, errors = run(process_emulator, program)
    # Whatever hangs at the exit does so for a minute.
    assert time.monotonic() - float(ended) < 55, errors
    assert "cannot schedule new futures" not in errors
    assert process_emulator.requests[INSERT] > 0
    assert_all_gone(process_emulator)


def test_exit_without_close_tells_what_it_cost(process_emulator):
    program = """
cluster = GCECluster(**{**settings, "quiet": "quiet" in sys.argv})
cluster.events.listen(lambda event: print("event", event.what, flush=True))
"""
    _, said, errors = run(process_emulator, program)
    # Once, whoever sees to the end.
    assert said.count("machine minutes in") == 1 and said.count("event cost") == 1, (said, errors)
    _, said, errors = run(process_emulator, "import sys; sys.argv.append('quiet')" + program)
    assert "machine minutes in" not in said and said.count("event cost") == 1, (said, errors)
    assert_all_gone(process_emulator)


def test_a_forked_child_deletes_nothing(process_emulator):
    program = """
import os
from distributed.deploy.spec import SpecCluster
cluster = GCECluster(**settings)
child = os.fork()
if child == 0:
    # Else its exit would wait for loops that it has not inherited.
    sys.exit(len(SpecCluster._instances))
_, status = os.waitpid(child, 0)
assert status == 0, status
print([each["status"] for each in json.load(urllib.request.urlopen(
    settings["api_endpoint"] + "/compute/v1/projects/local-project/zones/us-central1-a/instances"
))["items"]])
cluster.close()
"""
    _, output, errors = run(process_emulator, "import json, urllib.request" + program)
    assert output == "['RUNNING']\n", errors
    assert_all_gone(process_emulator)


def test_a_program_hears_ctrl_c_that_python_ignored(emulator):
    program = """
class Finalized:
    def __del__(self):
        raise KeyboardInterrupt
Finalized()
time.sleep(280)  # for longer than it is waited for
"""
    status, _, errors = run(emulator, program)
    assert status != 0
    assert "Exception ignored in" in errors
    assert errors.rstrip().endswith("KeyboardInterrupt")


def test_interrupt_in_the_constructor(process_emulator):
    status, _, errors = run(
        process_emulator,
        "GCECluster(n_workers=1, scheduler_options={'preload': 'import time; time.sleep(60)'},"
        " **settings)",
        interrupt_at=INSERT,
    )
    assert status != 0
    assert "KeyboardInterrupt" in errors
    assert_all_gone(process_emulator)


@pytest.mark.parametrize("call", ["compute.machineTypes.get", RULES, RULE, INSERT, BULK, LIST])
def test_interrupt_in_each_phase_of_the_constructor(emulator, call):
    # On paper no scheduler ever answers.
    status, _, errors = run(emulator, "GCECluster(n_workers=2, **settings)", interrupt_at=call)
    assert status != 0
    assert "KeyboardInterrupt" in errors
    assert_all_gone(emulator)


@pytest.mark.parametrize(
    "program",
    [
        pytest.param(
            "cluster = GCECluster(**settings)\ncluster.scale(2)\ntime.sleep(60)", id="synchronous"
        ),
        pytest.param(
            "async def main():\n"
            "    async with GCECluster(asynchronous=True, **settings) as cluster:\n"
            "        cluster.scale(2)\n"
            "        await asyncio.sleep(60)\n"
            "asyncio.run(main())",
            id="asynchronous",
        ),
        pytest.param(
            "cluster = GCECluster(**settings)\ncluster.scale(2)\ncluster.wait_for_workers(2)",
            id="waiting",
        ),
    ],
)
def test_interrupt_while_scaling(slow_deletes, program):
    # The insert is carried out when the interpreter is on its way out.
    slow_deletes.faults.add(Fault(BULK, delay=0.5))
    status, _, errors = run(slow_deletes, program, interrupt_at=BULK)
    assert status != 0
    assert "KeyboardInterrupt" in errors
    assert "cannot schedule new futures" not in errors
    assert_all_gone(slow_deletes)


@pytest.mark.parametrize(
    "program",
    [
        pytest.param("cluster = GCECluster(n_workers=2, **settings)\ncluster.close()", id="close"),
        pytest.param("with GCECluster(n_workers=2, **settings):\n    pass", id="with"),
        pytest.param(
            "async def main():\n"
            "    async with GCECluster(n_workers=2, asynchronous=True, **settings) as cluster:\n"
            "        pass\n"
            "asyncio.run(main())",
            id="asynchronous",
        ),
    ],
)
def test_interrupt_while_closing(slow_deletes, program):
    status, _, errors = run(slow_deletes, program, interrupt_at=DELETE)
    assert status != 0
    assert "KeyboardInterrupt" in errors
    assert_all_gone(slow_deletes)


def test_what_nobody_can_delete_at_the_exit_is_told(slow_deletes):
    slow_deletes.faults.add(Fault(DELETE, status=403, reason="forbidden", times=2))
    _, _, errors = run(slow_deletes, "cluster = GCECluster(name='mine', **settings)")
    assert "gcloud compute instances list --project local-project" in errors
    assert "--filter=labels.dask-gce-cluster=mine" in errors
    (left,) = slow_deletes.instances()
    assert f"gcloud compute instances delete {left['name']} --zone us-central1-a" in errors


def test_left_running_on_purpose(slow_deletes):
    program = "cluster = GCECluster(n_workers=2, shutdown_on_close=False, **settings)\nready()"
    run(slow_deletes, program)
    assert not slow_deletes.requests[DELETE]
    assert len(slow_deletes.instances()) == 3
    assert any(each.startswith("firewall rule") for each in slow_deletes.leftovers())
    # Other processes can connect to it.
    ((project, name),) = list_connections()
    assert delete_connection(name, project)


@pytest.mark.parametrize("by", ["os._exit", "SIGKILL"])
def test_what_a_killed_process_leaves_is_found_by_its_labels(slow_deletes, by):
    program = "import os\ncluster = GCECluster(name='mine', n_workers=2, **settings)\n"
    if by == "os._exit":
        run(slow_deletes, program + "os._exit(1)")
    else:
        # The workers' insert is carried out, but nobody can read the answer.
        slow_deletes.faults.add(Fault(BULK, drop="after", times=99))

        def made():
            return len(slow_deletes.instances()) == 3

        run(slow_deletes, program, interrupt_at=made, by=signal.SIGKILL)
    assert not slow_deletes.requests[DELETE]
    left = slow_deletes.instances()
    labels = [each["labels"] for each in left]
    assert {each[names.CLUSTER_LABEL] for each in labels} == {"mine"}
    assert len({each[names.ID_LABEL] for each in labels}) == 1
    assert sorted(each[names.ROLE_LABEL] for each in labels) == ["scheduler", "worker", "worker"]
    assert all(names.OWNER_LABEL in each for each in labels)
    # Their disks go with them.
    assert all(disk["autoDelete"] for each in left for disk in each["disks"])


@pytest.mark.parametrize("held", [INSERT, BULK, RULE, RULES_GO, DELETE])
def test_what_a_killed_process_leaves_is_swept(slow_deletes, held):
    # Who asks is killed meanwhile, and what it asks for is done no more.
    slow_deletes.faults.add(Fault(held, delay=PATIENCE))
    program = "cluster = GCECluster(name='mine', n_workers=2, **settings)\ncluster.close()"
    status, _, errors = run(slow_deletes, program, interrupt_at=held, by=signal.SIGKILL)
    assert status == -signal.SIGKILL, errors
    roles = [each["labels"][names.ROLE_LABEL] for each in slow_deletes.instances()]
    if held in (RULE, RULES_GO):
        # There is a machine that would remove the rule, and ends by itself.
        assert "scheduler" in roles
    deadline = time.monotonic() + PATIENCE
    while slow_deletes.leftovers():
        assert time.monotonic() < deadline, slow_deletes.leftovers()
        sweep(project="local-project", api_endpoint=slow_deletes.endpoint)
        time.sleep(0.1)


# -- in this process ------------------------------------------------------------------------------

SETTINGS = {"machine_type": "e2-small", "n_workers": 2, "quiet": True}

FAILURES = {
    "look-up": Fault("compute.machineTypes.get", status=403, reason="forbidden"),
    "rule refused": Fault(RULE, status=403, reason="forbidden"),
    "rule failed": Fault(RULE, operation_errors=[{"code": "INTERNAL_ERROR", "message": "Failed."}]),
    "insert refused": Fault(INSERT, status=403, reason="forbidden"),
    "insert failed": Fault(
        INSERT, operation_errors=[{"code": "INTERNAL_ERROR", "message": "Failed."}]
    ),
}


@pytest.mark.parametrize("phase", FAILURES)
def test_a_constructor_that_fails(emulator, phase):
    emulator.faults.add(FAILURES[phase])
    with pytest.raises(GCEError):
        GCECluster(api_endpoint=emulator.endpoint, **SETTINGS)
    assert not emulator.faults.unused()
    assert_all_gone(emulator)


@pytest.mark.parametrize("phase", FAILURES)
async def test_a_start_that_fails(emulator, phase):
    emulator.faults.add(FAILURES[phase])
    cluster = GCECluster(api_endpoint=emulator.endpoint, asynchronous=True, **SETTINGS)
    with pytest.raises(GCEError):
        await cluster
    assert cluster.status.name == "closed"
    await cluster.close()
    with pytest.raises(GCEError, match="is closed"):
        await cluster
    assert_all_gone(emulator)


def test_settings_that_are_wrong_cost_no_call(emulator):
    with pytest.raises(GCEError):
        GCECluster(api_endpoint=emulator.endpoint, machine_tpye="e2-small")
    assert not emulator.requests


async def test_rules_are_asked_for_once_the_schedulers_machine_is_certain(emulator, monkeypatch):
    verb = Compute.insert_firewall
    arrived, go = asyncio.Event(), asyncio.Event()
    machines = []

    async def late(*arguments):
        # Compute Engine ends a machine in time, and the machine the rules.
        machines.extend(each["status"] for each in emulator.instances())
        arrived.set()
        await go.wait()
        return await verb(*arguments)

    monkeypatch.setattr(Compute, "insert_firewall", late)
    cluster = GCECluster(api_endpoint=emulator.endpoint, asynchronous=True, **SETTINGS)

    async def start():
        await cluster

    starting = asyncio.ensure_future(start())
    try:
        await until(arrived.is_set)
        assert set(machines) & {"STAGING", "RUNNING"}
        # On record before it is sent: whoever is interrupted now deletes it.
        assert len(cluster._prepared.firewall.recorded) == 1
        assert not emulator.requests[RULE]
        go.set()
        await until(lambda: emulator.requests[RULE])
    finally:
        go.set()
        starting.cancel()
        await asyncio.wait({starting})
    assert_all_gone(emulator)


async def test_closing_what_never_started(emulator):
    cluster = GCECluster(api_endpoint=emulator.endpoint, asynchronous=True, **SETTINGS)
    await asyncio.gather(cluster.close(), cluster.close())
    await cluster.close()
    assert not emulator.requests
    with pytest.raises(GCEError, match="is closed"):
        await cluster


@pytest.mark.parametrize("call", ["compute.machineTypes.get", RULES, RULE, INSERT, BULK, LIST])
async def test_closing_in_each_phase_of_the_start(emulator, call):
    cluster = GCECluster(api_endpoint=emulator.endpoint, asynchronous=True, **SETTINGS)

    async def start():
        await cluster

    starting = asyncio.ensure_future(start())
    await until(lambda: emulator.requests[call])
    # Two at once, and one of them gives up waiting.
    hasty = asyncio.ensure_future(cluster.close())
    await asyncio.sleep(0)
    hasty.cancel()
    await asyncio.gather(cluster.close(), cluster.close())
    with pytest.raises(GCEError, match="was closed while it was starting"):
        await starting
    assert cluster.status.name == "closed"
    assert_all_gone(emulator)
    await asyncio.wait({hasty})


@pytest.mark.parametrize("call", ["compute.machineTypes.get", RULES, RULE, INSERT, BULK, LIST])
async def test_cancelling_in_each_phase_of_the_start(emulator, call):
    cluster = GCECluster(api_endpoint=emulator.endpoint, asynchronous=True, **SETTINGS)

    async def start():
        await cluster

    starting = asyncio.ensure_future(start())
    await until(lambda: emulator.requests[call])
    starting.cancel()
    await asyncio.wait({starting})
    assert starting.cancelled()
    assert cluster.status.name == "closed"
    assert_all_gone(emulator)
