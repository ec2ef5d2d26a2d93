"""The end of machines with nobody there to end them: what they delete, and that they do end."""

from __future__ import annotations

import json
import shutil
import subprocess
from dataclasses import replace
from typing import Any

import pytest
from clusters import DELETE, until
from fleets import WORKER
from guests import Guest
from ports import quiet_port
from records import compute_of
from startup_scripts import ScriptedMachine

from dask_gce.emulator import ComputeEmulator, Fault
from dask_gce.instance import build_insert
from dask_gce.leavings import render_leavings
from dask_gce.settings import Settings
from dask_gce.startup import Limits, Payload, guest_file, scheduler_spec

PROJECT, ZONE = "local-project", "us-east1-b"
IDENTITY, OTHER = "3f9a61c2" * 4, "3f9a61c2" + "0" * 24
#: The machine of `ScriptedMachine`.
SELF = "dask-1-worker-2"
ACCOUNT = [{"email": "default", "scopes": ["https://www.googleapis.com/auth/cloud-platform"]}]


def payload(emulator: ComputeEmulator | None = None, **changes: Any) -> Payload:
    """Return what a scheduler runs that is to delete the rest of its cluster."""
    settings = Settings.load(project=PROJECT, service_account="default", secrets="secret-manager")
    fields: dict[str, Any] = {
        "role": "scheduler",
        "project": PROJECT,
        "container_image": "ghcr.io/dask/dask:latest",
        "spec": scheduler_spec(protocol="tls", port=8786, dashboard_port=8787, options={}),
        "limits": Limits(leavings=render_leavings(settings, PROJECT, "grid", IDENTITY)),
    }
    if emulator is not None:
        fields["endpoint"] = emulator.endpoint
    return Payload(**{**fields, **changes})


async def fill(emulator: ComputeEmulator, *schedulers: str) -> None:
    """Make machines and rules of a cluster, and some of another that is called alike."""
    async with compute_of(emulator) as compute:
        for name, identity in (
            (SELF, IDENTITY),
            *((f"grid-worker-{number}", IDENTITY) for number in range(3)),
            *((name, IDENTITY) for name in schedulers),
            ("others-worker", OTHER),
        ):
            role = "scheduler" if name in (SELF, *schedulers) else "worker"
            labels = {
                "dask-gce-id": identity,
                "dask-gce-cluster": "grid",
                "dask-gce-role": role,
            }
            spec = replace(WORKER, name=name, zone=ZONE, project=PROJECT, labels=labels)
            made = await compute.insert_instance(ZONE, build_insert(spec))
            await compute.wait_operation(made, 60)
        for purpose, identity in (("clients", IDENTITY), ("clients-7c2e", IDENTITY), ("x", "")):
            mark = json.dumps({"dask-gce-cluster": "grid", "dask-gce-id": identity or OTHER})
            rule = {
                "name": f"grid-3f9a61c2-{purpose if identity else 'machines'}",
                "network": "global/networks/default",
                "allowed": [{"IPProtocol": "tcp", "ports": ["8786"]}],
                "sourceRanges": ["203.0.113.7/32"],
                "description": mark,
            }
            await compute.wait_operation(await compute.insert_firewall(rule), 60)


def left(emulator: ComputeEmulator) -> set[str]:
    """Return the names of the machines and the rules that there are."""
    words = (each.split() for each in emulator.leftovers())
    return {
        each[1] if each[0] == "instance" else each[2]
        for each in words
        if each[0] in ("instance", "firewall")
    }


OTHERS = {"others-worker", "grid-3f9a61c2-machines"}


# -- what goes -------------------------------------------------------------------------------------


async def test_a_schedulers_machine_deletes_what_its_cluster_leaves_and_nothing_else(
    emulator, tmp_path
):
    await fill(emulator)
    machine = ScriptedMachine(tmp_path)
    assert await machine.boot(payload(emulator), serviceAccounts=ACCOUNT) == 0, machine.console
    await until(lambda: left(emulator) == OTHERS)
    assert emulator.requests["compute.firewalls.delete"] == 2
    # Nothing is said of the token, and nothing asked for twice that was answered.
    assert "the-accounts-token" not in machine.console + json.dumps(machine.calls)


async def test_a_scheduler_beside_another_one_ends_alone(emulator, tmp_path):
    await fill(emulator, "grid-scheduler-2")
    before = left(emulator)
    machine = ScriptedMachine(tmp_path)
    assert await machine.boot(payload(emulator), serviceAccounts=ACCOUNT) == 0, machine.console
    await until(lambda: left(emulator) == before - {SELF})
    assert "the cluster has another scheduler" in machine.console
    assert emulator.requests[DELETE] == 1


async def test_a_list_without_a_filter_is_never_asked_for(emulator, tmp_path):
    await fill(emulator)
    before = left(emulator)
    machine = ScriptedMachine(tmp_path)
    limits = Limits(leavings=f"machines {PROJECT}\nrules {PROJECT} ")
    ending = payload(emulator, limits=limits)
    assert await machine.boot(ending, serviceAccounts=ACCOUNT) == 0, machine.console
    await until(lambda: left(emulator) == before - {SELF})


async def test_what_is_not_permitted_is_a_line_and_no_more(emulator, tmp_path):
    await fill(emulator)
    emulator.permissions.deny("compute.firewalls.*", "compute.instances.list")
    machine = ScriptedMachine(tmp_path)
    assert await machine.boot(payload(emulator), serviceAccounts=ACCOUNT) == 0, machine.console
    await until(lambda: SELF not in left(emulator))
    assert "Required 'compute.instances.list' permission" in machine.console
    assert "Required 'compute.firewalls.list' permission" in machine.console
    assert len(left(emulator)) == 3 + 2 + len(OTHERS)


async def test_who_may_delete_nothing_powers_off_at_once(emulator, tmp_path):
    await fill(emulator)
    emulator.permissions.deny("compute.instances.delete")
    machine = ScriptedMachine(tmp_path)
    assert await machine.boot(payload(emulator), serviceAccounts=ACCOUNT) == 0, machine.console
    assert machine.called("poweroff") == [[]]
    # It has tried one of the others, and itself.
    assert emulator.requests[DELETE] == 2
    assert "600" not in [seconds for (seconds,) in machine.called("sleep")]


async def test_a_worker_deletes_itself_alone(emulator, tmp_path):
    await fill(emulator)
    machine = ScriptedMachine(tmp_path)
    worker = payload(emulator, role="worker", scheduler={"host": "s", "port": 1, "timeout": 1})
    assert await machine.boot(worker, serviceAccounts=ACCOUNT) == 0, machine.console
    await until(lambda: SELF not in left(emulator))
    assert emulator.requests[DELETE] == 1
    assert len(left(emulator)) == 3 + 2 + len(OTHERS)


async def test_a_server_that_fails_is_asked_again(emulator, tmp_path):
    await fill(emulator)
    emulator.faults.add(Fault(DELETE, status=503, match=lambda name: name == SELF, times=3))
    machine = ScriptedMachine(tmp_path)
    worker = payload(emulator, role="worker", scheduler={"host": "s", "port": 1, "timeout": 1})
    assert await machine.boot(worker, serviceAccounts=ACCOUNT) == 0, machine.console
    await until(lambda: SELF not in left(emulator))
    assert machine.called("sleep")[:3] == [["1"], ["2"], ["4"]]


async def test_a_machine_that_is_not_deleted_after_all_powers_off(emulator, tmp_path):
    await fill(emulator)
    error = {"code": "INTERNAL_ERROR", "message": "Internal error."}
    emulator.faults.add(Fault(DELETE, operation_errors=[error], match=lambda name: name == SELF))
    machine = ScriptedMachine(tmp_path)
    assert await machine.boot(payload(emulator), serviceAccounts=ACCOUNT) == 0, machine.console
    assert machine.called("poweroff") == [[]]
    assert machine.called("sleep")[-1] == ["600"]


async def test_a_system_that_does_not_power_off_is_made_to(tmp_path):
    machine = ScriptedMachine(tmp_path, status={"poweroff": 1})
    assert await machine.boot(payload()) == 0, machine.console
    assert machine.called("poweroff") == [[], ["--force"], ["--force", "--force"]]


PAGES = {
    "": {"items": [{"name": "a"}, {"name": "b-2"}], "nextPageToken": "two/+="},
    "two/+=": {"items": [{"name": "c"}]},
}


@pytest.mark.parametrize("indent", [None, 2])
def test_lists_are_read_to_their_last_page_however_they_are_written(tmp_path, indent):
    for token, page in PAGES.items():
        (tmp_path / f"page-{len(token)}").write_text(json.dumps(page, indent=indent))
    program = guest_file("ending.sh") + (
        'ask() { local token="${*: -1}"; case $token in pageToken=*) token=${token#*=} ;; '
        "*) token= ;; esac; "
        'cat "$0/page-${#token}"; }\n'
        "matches name URL filter items/name"
    )
    done = subprocess.run(
        [shutil.which("bash") or "bash", "-c", program, str(tmp_path)],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.split() == ["a", "b-2", "c"]


# -- what hangs ------------------------------------------------------------------------------------

#: An engine that pulls until the machine is switched off.
HANGING_ENGINE = """#!/bin/sh
PATH=/usr/bin:/bin
case $1 in
pull) until grep --quiet poweroff {folder}/calls; do sleep 0.05; done; exit 1 ;;
*) exit 1 ;;
esac
"""


async def test_a_boot_that_hangs_ends(tmp_path):
    machine = ScriptedMachine(tmp_path)
    machine._command("docker", HANGING_ENGINE)
    limits = Limits(boot_timeout=1)
    await machine.boot(payload(limits=limits))
    assert "failed: Dask did not start within 1 s" in machine.phases
    assert machine.called("poweroff")


async def test_a_startup_script_that_is_killed_does_not_keep_its_machine(tmp_path):
    machine = ScriptedMachine(tmp_path)
    # The startup script is the engine's parent, or that of a part of it.
    kill = (
        "#!/bin/bash\n[ $1 != pull ] || kill -9 $(cat {folder}/script)\n"
        "case $1 in pull) sleep 1 ;; esac\nexit 1\n"
    )
    machine._command("docker", kill)
    limits = Limits(boot_timeout=1000)
    assert (
        await machine.boot(
            payload(limits=limits),
            replacing={"set -u\n": f"set -u\necho $$ >{tmp_path}/script\n", "-rt 60": "-rt 0.5"},
        )
        == -9
    )
    assert "dask-gce: the startup script was ended" in machine.console
    assert machine.called("poweroff") == [[]]


#: A `dask` of which nobody ever hears.
SILENT = """#!{python}
# {output} {status}
import os, time
parent = os.getppid()
while os.getppid() == parent:
    time.sleep(0.05)
"""


async def test_dask_that_never_answers_is_ended(tmp_path):
    guest = Guest(tmp_path, dask=SILENT)
    port = quiet_port()
    spec = scheduler_spec(protocol="tcp", port=port, dashboard_port=0, options={})
    ending = payload(container_image=None, spec=spec, limits=Limits(boot_timeout=1))
    status, _, console = await guest.run(ending)
    assert status == 113, console
    assert "failed: Dask did not start within 1 s" in console
