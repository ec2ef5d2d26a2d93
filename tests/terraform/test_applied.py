"""What the real Terraform makes of an exported document, with the stand-in for the provider."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import math
import re
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import terraform_command
from exports import CLUSTERS, document_of, export
from records import compute_of
from terraform_command import Terraform, terraform_at

from dask_gce import names
from dask_gce.blueprint import Blueprint
from dask_gce.boot.dask_config import changed_configuration
from dask_gce.connection_content import parse
from dask_gce.emulator import ComputeEmulator
from dask_gce.instance import build_insert
from dask_gce.mix import Mix
from dask_gce.placement import Location, MachineShape
from dask_gce.settings import Settings
from dask_gce.startup import Tls

OBSTACLE = terraform_command.find_obstacle()
pytestmark = [
    pytest.mark.skipif(OBSTACLE is not None, reason=str(OBSTACLE)),
    # Terraform, several times, beside whatever else this computer does.
    pytest.mark.timeout(600),
]

SHAPE = MachineShape("e2-small", 2, 2 * 2**30)


@pytest.fixture
def terraform(emulator: ComputeEmulator, tmp_path: Path) -> Iterator[Terraform]:
    """Return a Terraform whose resources are made on paper."""
    with terraform_at(tmp_path, emulator.endpoint) as running:
        yield running


def items_of(body: dict[str, Any]) -> dict[str, str]:
    return {each["key"]: each["value"] for each in body["metadata"]["items"]}


def plain(items: dict[str, str], identity: str) -> dict[str, str]:
    """Return metadata items without what may be written in two ways, and means the same."""
    # An identity that begins with a letter need not be quoted in a filter.
    return {
        key: value.replace(f'= "{identity}"', f"= {identity}")
        for key, value in items.items()
        if key not in ("dask-gce-tls", "dask-gce-env")
    }


@pytest.mark.parametrize("name", CLUSTERS)
def test_terraform_takes_every_document(emulator, tmp_path, name):
    asyncio.run(export(emulator, tmp_path, **CLUSTERS[name]))
    with terraform_at(tmp_path, emulator.endpoint) as terraform:
        verdict = terraform.read("validate")
    assert verdict["valid"], verdict["diagnostics"]
    assert not verdict["diagnostics"]


def test_terraform_asks_for_the_machines_that_a_cluster_asks_for(terraform, emulator, tmp_path):
    fixed = asyncio.run(
        export(
            emulator,
            tmp_path,
            machine_type="e2-small",
            n_workers=1,
            env_vars={"GREETING": 'it\'s "${HOME}" $${x} %{if} \n é'},
            worker_options={"resources": {"${count.index}": 1}},
            network_tags=["team"],
            max_lifetime="2 hours",
        )
    )
    terraform.run("apply", "-auto-approve")
    made = {each["name"]: each for each in emulator.instances()}
    assert made.keys() == {"grid-scheduler", "grid-worker-0"}
    scheduler, worker = made["grid-scheduler"], made["grid-worker-0"]
    identity = scheduler["labels"][names.ID_LABEL]
    assert re.fullmatch("[0-9a-f]{32}", identity)

    told = json.loads((tmp_path / "certificates.auto.tfvars.json").read_text())["certificates"]
    blueprint = Blueprint(
        settings=dataclasses.replace(fixed.settings, preemption_notice=False),
        project="local-project",
        cluster="grid",
        identity=identity,
        owner=str(fixed.connection["owner"]),
        client="detached",
        tls={
            role: Tls(told["ca"], told[role]["certificate"], told[role]["key"])
            for role in ("scheduler", "worker")
        },
        configuration=changed_configuration(),
    )
    place = Location("us-central1-a", SHAPE)
    host = scheduler["networkInterfaces"][0]["networkIP"]
    wanted = {
        "grid-scheduler": blueprint.scheduler("grid-scheduler", place),
        "grid-worker-0": blueprint.worker("grid-worker-0", place, f"tls://{host}:8786"),
    }
    for name, spec in wanted.items():
        body = build_insert(dataclasses.replace(spec, expires=7200), now=0)
        found = made[name]
        of_secrets = {key for key in items_of(body) if key in ("dask-gce-tls", "dask-gce-env")}
        for key in of_secrets:
            # Terraform writes JSON in another spelling.
            assert json.loads(items_of(found)[key]) == json.loads(items_of(body)[key])
        for items in (items_of(found), items_of(body)):
            for key in of_secrets:
                assert "\n" not in items[key]
        assert plain(items_of(found), identity) == plain(items_of(body), identity)
        assert sorted(found["tags"]["items"]) == sorted(body["tags"]["items"])
        assert found["scheduling"]["maxRunDuration"]["seconds"] == "7200"
        assert body["scheduling"].items() <= found["scheduling"].items()
        assert body["labels"].items() <= found["labels"].items()
        more = found["labels"].keys() - body["labels"].keys()
        assert more == {names.DECLARED_LABEL, "goog-terraform-provisioned"}
        assert found["machineType"].endswith("/e2-small")
        assert found["disks"][0]["autoDelete"] is True
    assert worker["networkInterfaces"][0]["accessConfigs"]

    # Nothing that is the provider's to say is taken for a difference.
    terraform.run("plan", "-detailed-exitcode")
    check_outputs(terraform, identity, told, fixed.settings)
    terraform.run("destroy", "-auto-approve")
    assert not [each for each in emulator.instances() if each["status"] != "STOPPING"]


def check_outputs(
    terraform: Terraform, identity: str, told: dict[str, Any], settings: Settings
) -> None:
    outputs = {key: each["value"] for key, each in terraform.read("output").items()}
    scheduler = outputs["scheduler"]
    assert scheduler["address"] == f"tls://{scheduler['external_ip']}:8786"
    assert scheduler["internal_address"] == f"tls://{scheduler['internal_ip']}:8786"
    assert outputs["dashboard"] == f"http://{scheduler['external_ip']}:8787/status"
    assert outputs["workers"].keys() == {"grid-worker-0"}
    assert outputs["workers"]["grid-worker-0"]["zone"] == "us-central1-a"

    text = json.dumps(outputs["connection"]).encode()
    connection = parse(Path("connection"), text)
    assert (connection.cluster, connection.identity) == ("grid", identity)
    assert connection.client_tls is not None
    assert connection.client_tls.key == told["client"]["key"]
    restored = connection.restore_settings()
    assert restored.env_vars == settings.env_vars
    assert restored.worker_options == settings.worker_options
    assert restored.n_workers == settings.n_workers
    assert restored.max_lifetime == 7200


def test_more_workers_leave_those_that_are_there(terraform, emulator, tmp_path):
    settings = {
        **CLUSTERS["spot"],
        "n_workers": 3,
        "zone": ["us-central1-b", "us-central1-a"],
        "allow_cross_zone": True,
        "security": False,
        "instance_overrides": {"metadata": {"items": []}},
    }
    asyncio.run(export(emulator, tmp_path, **settings))
    mix = Mix(True, 0.7, least=2)
    before: set[str] = set()
    for count in (3, 11):
        terraform.run("apply", "-auto-approve", f"-var=n_workers={count}")
        workers = [each for each in emulator.instances() if "worker" in each["name"]]
        on_demand = [each for each in workers if "spot" not in each["name"]]
        assert len(workers) == count
        assert len(on_demand) == mix.on_demand(count)
        for each in workers:
            number = int(each["name"].rpartition("-")[2])
            assert each["zone"].endswith(("us-central1-b", "us-central1-a")[number % 2])
            model = each["scheduling"].get("provisioningModel", "STANDARD")
            assert model == ("STANDARD" if each in on_demand else "SPOT")
        now = {each["id"] for each in workers}
        assert before <= now
        before = now
    outputs = terraform.read("output")
    told = outputs["workers"]["value"].values()
    assert sum(each["spot"] for each in told) == 11 - mix.on_demand(11)


def test_regions_take_turns_and_whoever_is_told_is_let_in(terraform, emulator, tmp_path):
    zones = ["us-central1-a", "us-east1-b", "europe-west1-b"]
    asyncio.run(
        export(
            emulator,
            tmp_path,
            n_workers=5,
            zone=zones,
            allow_cross_zone=True,
            subnetwork="default",
            security=False,
        )
    )
    told = json.dumps(["203.0.113.0/24", "2001:db8::/48"])
    terraform.run("apply", "-auto-approve", f"-var=allow_ingress_from={told}")
    workers = {each["name"]: each for each in emulator.instances() if "worker" in each["name"]}
    assert len(workers) == 5
    for number in range(5):
        assert workers[f"grid-worker-{number}"]["zone"].endswith(zones[number % 3])
    assert len(terraform.read("output")["workers"]["value"]) == 5

    async def ours() -> dict[str, Any]:
        async with compute_of(emulator) as compute:
            rules = await compute.list_firewalls()
        return {each["name"]: each for each in rules if each["name"].startswith("grid-")}

    rules = asyncio.run(ours())
    identity = workers["grid-worker-0"]["labels"][names.ID_LABEL]
    stem = f"grid-{identity[:8]}-clients"
    assert rules[stem]["sourceRanges"] == ["203.0.113.0/24"]
    assert rules[f"{stem}-v6"]["sourceRanges"] == ["2001:db8::/48"]
    assert rules[stem]["targetTags"] == [f"grid-{identity[:8]}-scheduler"]
    # A workspace's name is a part of names.
    terraform.run("plan", workspace="Evening", status=1)


def test_processes_share_machines_and_a_wrong_number_is_refused(terraform, emulator, tmp_path):
    asyncio.run(export(emulator, tmp_path, n_workers=5, processes=2, max_workers=6))
    terraform.run("apply", "-auto-approve")
    assert len(emulator.instances()) == 1 + math.ceil(5 / 2)
    for wrong in ("-1", "1.5", "7"):
        terraform.run("plan", f"-var=n_workers={wrong}", status=1)
    terraform.run("plan", "-var=name=Grid", status=1)


def disks_of(emulator: ComputeEmulator) -> dict[str, dict[str, Any]]:
    url = f"{emulator.endpoint}/compute/v1/projects/local-project/zones/us-central1-a/disks"
    with urllib.request.urlopen(url, timeout=60) as answer:  # noqa: S310 - of this computer
        return {each["name"]: each for each in json.load(answer)["items"]}


def test_new_keys_make_the_cluster_anew_and_new_labels_do_not(
    terraform, emulator, tmp_path, monkeypatch
):
    from dask_gce.terraform.files import write_certificates

    asyncio.run(export(emulator, tmp_path, n_workers=1))
    terraform.run("apply", "-auto-approve")
    first = {each["name"]: each["id"] for each in emulator.instances()}
    # Somebody else writes it anew, who is in the labels of the disks as well.
    monkeypatch.setenv("LOGNAME", "ada")
    terraform.write(asyncio.run(document_of(emulator, n_workers=1, labels={"team": "search"})))
    terraform.run("apply", "-auto-approve")
    before = {each["name"]: each for each in emulator.instances()}
    assert {name: each["id"] for name, each in before.items()} == first
    for each in before.values():
        assert (each["labels"]["team"], each["labels"][names.OWNER_LABEL]) == ("search", "ada")
    path = tmp_path / "certificates.auto.tfvars.json"
    write_certificates(path, "grid", 1, overwrite=True)
    terraform.run("apply", "-auto-approve")
    after = {each["name"]: each for each in emulator.instances() if each["status"] != "STOPPING"}
    assert before.keys() == after.keys()
    disks = disks_of(emulator)
    for name, machine in after.items():
        assert machine["id"] != before[name]["id"]
        assert disks[name]["labels"][names.ID_LABEL] == machine["labels"][names.ID_LABEL]
        assert disks[name]["labels"]["team"] == "search"
        assert machine["labels"][names.ID_LABEL] != before[name]["labels"][names.ID_LABEL]
        assert items_of(machine)["dask-gce-tls"] != items_of(before[name])["dask-gce-tls"]
