"""What a machine keeps of its certificates: for root alone, through reboots, shown to nobody."""

from __future__ import annotations

import base64
import json
import os
import re
from pathlib import Path
from typing import Any

import pytest
from scripted_api import Answer, Request, ScriptedAPI
from startup_scripts import ScriptedMachine

from dask_gce.startup import SECRET_ITEMS, LocalWorkers, Payload, Tls, bundle

TLS = Tls("the ca\n", "the certificate\n", "the key of the scheduler\n")
LOCAL = Tls("the ca\n", "another certificate\n", "the key of the workers\n")
#: An account, whose token opens nothing.
ACCOUNT = [{"email": "robot@p.iam.gserviceaccount.com", "scopes": ["cloud-platform"]}]

#: Where they are, in the folder of a scripted machine.
STATE = "kept-gce/secrets"


def payload(**changes: Any) -> Payload:
    fields: dict[str, Any] = {
        "role": "scheduler",
        "project": "p",
        "container_image": "ghcr.io/dask/dask:latest",
        "spec": {"cls": "distributed.Scheduler", "opts": {}},
        "tls": TLS,
        "local": LocalWorkers({"cls": "distributed.Nanny", "opts": {}}, 1, LOCAL),
    }
    return Payload(**{**fields, **changes})


def kept(machine: ScriptedMachine) -> dict[str, str]:
    """Return what is kept, and see that it is root's alone."""
    state = machine.folder / STATE
    assert state.stat().st_mode & 0o777 == 0o700
    for file in state.iterdir():
        assert (file.stat().st_mode & 0o777, file.stat().st_uid) == (0o600, os.getuid())
    return {file.name: file.read_text() for file in state.iterdir()}


HANDED = f"{bundle(TLS)}\n{bundle(LOCAL)}\n"


async def test_they_outlive_a_boot_when_the_metadata_has_them_no_more(tmp_path: Path) -> None:
    machine = ScriptedMachine(tmp_path)
    assert await machine.boot(payload()) == 0, machine.console
    assert machine.guest["stdin"] == HANDED
    assert kept(machine) == {"tls": bundle(TLS), "local-tls": bundle(LOCAL), "machine": "1"}
    (machine.folder / "guest.json").unlink()
    assert await machine.boot(payload(), without=SECRET_ITEMS) == 0, machine.console
    assert machine.guest["stdin"] == HANDED
    assert kept(machine) == {"tls": bundle(TLS), "local-tls": bundle(LOCAL), "machine": "1"}


async def test_nothing_of_them_is_shown_even_when_the_script_is_traced(tmp_path: Path) -> None:
    machine = ScriptedMachine(tmp_path)
    assert await machine.boot(payload(), trace=True) == 0, machine.console
    assert "+ keep_secrets" in machine.console
    told = [machine.console, json.dumps(machine.calls), json.dumps(machine.guest["texts"])]
    for folder, _, names in os.walk(tmp_path / "tmp"):
        told += [(Path(folder) / name).read_text() for name in names]
    assert "key of the" not in "".join(told)


async def test_a_machine_that_never_had_them_says_so(tmp_path: Path) -> None:
    machine = ScriptedMachine(tmp_path)
    assert await machine.boot(payload(), without=SECRET_ITEMS) == 1
    assert machine.phases[-1].startswith("failed: this machine has no certificates")
    assert not machine.called("docker", "run")


#: A ``curl`` to which the metadata server does not tell what is asked for.
DEAF_CURL = """#!/bin/sh
case " $* " in
*{silent}*) exit 7 ;;
esac
exec /usr/bin/curl "$@"
"""


async def test_a_silent_metadata_server_costs_no_certificate(tmp_path: Path) -> None:
    machine = ScriptedMachine(tmp_path)
    assert await machine.boot(payload()) == 0, machine.console
    before = kept(machine)
    curl = tmp_path / "bin" / "curl"
    curl.write_text(DEAF_CURL.format(silent="/computeMetadata/v1/instance/id"))
    curl.chmod(0o755)
    assert await machine.boot(payload(), without=SECRET_ITEMS) == 1
    assert machine.phases[-1] == "failed: the metadata server does not answer"
    assert kept(machine) == before
    curl.unlink()
    assert await machine.boot(payload(), without=SECRET_ITEMS) == 0, machine.console
    assert machine.guest["stdin"] == HANDED


async def test_half_of_a_certificate_is_none(tmp_path: Path) -> None:
    machine = ScriptedMachine(tmp_path)
    assert await machine.boot(payload()) == 0, machine.console
    before = kept(machine)
    # What a boot leaves that is cut short while it fetches them.
    (machine.folder / STATE / "tls.new").write_text(bundle(TLS)[:9])
    curl = tmp_path / "bin" / "curl"
    curl.write_text(DEAF_CURL.format(silent="/attributes/dask-gce-tls"))
    curl.chmod(0o755)
    assert await machine.boot(payload()) == 1
    assert machine.phases[-1] == "failed: the certificates could not be read"
    assert kept(machine) == before


async def test_those_of_another_machine_on_the_disk_are_not_taken(tmp_path: Path) -> None:
    machine = ScriptedMachine(tmp_path)
    assert await machine.boot(payload()) == 0
    assert await machine.boot(payload(), without=SECRET_ITEMS, id="2") == 1
    assert kept(machine) == {}


async def test_without_tls_nothing_is_kept_or_handed_over(tmp_path: Path) -> None:
    machine = ScriptedMachine(tmp_path)
    assert await machine.boot(payload()) == 0
    # The disk of a cluster that was encrypted, in one that is not.
    assert await machine.boot(payload(tls=None, local=None)) == 0, machine.console
    assert machine.guest["stdin"] == ""
    assert kept(machine) == {}


async def test_a_disk_image_has_none(tmp_path: Path) -> None:
    machine = ScriptedMachine(tmp_path)
    assert await machine.boot(payload()) == 0
    assert await machine.boot(payload(tls=None, local=None), builder=True) == 0, machine.console
    assert "sealed" in machine.phases
    assert not (machine.folder / STATE).exists()


class Vault:
    """A Secret Manager with what the test puts into it."""

    def __init__(self, *, refusals: int = 0) -> None:
        self.refusals = refusals

    def __call__(self, request: Request) -> Answer:
        if self.refusals:
            self.refusals -= 1
            return Answer({"error": {"code": 403, "status": "PERMISSION_DENIED"}}, 403)
        name = request.path.removeprefix("/v1/").removesuffix(":access")
        text = bundle(TLS) if "scheduler" in name else bundle(LOCAL)
        data = base64.b64encode(text.encode()).decode()
        return Answer(
            text=json.dumps({"name": name, "payload": {"data": data, "dataCrc32c": "1"}}, indent=2)
        )


def in_vault(api: ScriptedAPI) -> Payload:
    secrets = {role: f"projects/p/secrets/c-{role}/versions/1" for role in ("scheduler", "worker")}
    return payload(secrets=secrets, secrets_endpoint=api.endpoint)


@pytest.mark.parametrize("refusals", [0, 3])
async def test_they_are_read_from_secret_manager_once(tmp_path: Path, refusals: int) -> None:
    machine = ScriptedMachine(tmp_path)
    with ScriptedAPI(Vault(refusals=refusals)) as api:
        status = await machine.boot(in_vault(api), trace=True, serviceAccounts=ACCOUNT)
        assert status == 0, machine.console
        assert machine.guest["stdin"] == HANDED
        # A policy takes a while until everybody knows it.
        assert len(api.requests) == 2 + refusals
        assert await machine.boot(in_vault(api), serviceAccounts=ACCOUNT) == 0
        assert machine.guest["stdin"] == HANDED
        assert len(api.requests) == 2 + refusals
    assert api.requests[-1].path == "/v1/projects/p/secrets/c-worker/versions/1:access"
    token = api.requests[0].headers["authorization"].removeprefix("Bearer ")
    assert len(token) > 10
    assert not re.search(
        rf"key of the|{re.escape(token)}|{base64.b64encode(b'the key').decode()}", machine.console
    )


async def test_who_may_not_read_them_says_so(tmp_path: Path) -> None:
    machine = ScriptedMachine(tmp_path)
    with ScriptedAPI(Vault(refusals=1000)) as api:
        assert await machine.boot(in_vault(api), serviceAccounts=ACCOUNT) == 1
    assert machine.phases[-1] == (
        "failed: the service account cannot read the secret "
        "projects/p/secrets/c-scheduler/versions/1"
    )
    # It was tried for as long as a policy may take.
    assert sum(float(words[0]) for words in machine.called("sleep")[:-1]) > 100
