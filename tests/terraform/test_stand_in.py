"""The stand-in for the google provider: it takes what the real one takes, and keeps its word."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import terraform_command
from terraform_command import Terraform, terraform_at

from dask_gce.emulator import ComputeEmulator

OBSTACLE = terraform_command.find_obstacle()
pytestmark = pytest.mark.skipif(OBSTACLE is not None, reason=str(OBSTACLE))

MACHINE: dict[str, Any] = {
    "count": 2,
    "name": "${terraform.workspace}-worker-${count.index}",
    "zone": "us-central1-a",
    "machine_type": "e2-small",
    "labels": {"team": "grid"},
    "tags": ["dask", "grid"],
    "metadata": {"script": "echo '$${HOME}'", "keys": "${var.keys}"},
    "metadata_startup_script": "true",
    "boot_disk": {
        "auto_delete": True,
        "initialize_params": {
            "image": "projects/cos-cloud/global/images/family/cos-stable",
            "size": 20,
            "type": "pd-balanced",
        },
    },
    "network_interface": [
        {"network": "projects/my-project/global/networks/default", "access_config": [{}]}
    ],
    "scheduling": {
        "automatic_restart": False,
        "instance_termination_action": "DELETE",
        "max_run_duration": {"seconds": 3600},
        "on_host_maintenance": "TERMINATE",
        "preemptible": True,
        "provisioning_model": "SPOT",
    },
    "service_account": {"scopes": ["https://www.googleapis.com/auth/cloud-platform"]},
    "shielded_instance_config": {"enable_secure_boot": True},
    "lifecycle": {"ignore_changes": ['metadata["keys"]']},
}
DOCUMENT: dict[str, Any] = {
    "terraform": {"required_providers": {"google": {"source": "hashicorp/google"}}},
    "provider": {"google": {"project": "my-project", "region": "us-central1"}},
    "variable": {"keys": {"type": "string", "sensitive": True, "default": "a private key"}},
    "resource": {
        "google_compute_address": {
            "host": {"name": "${terraform.workspace}-host", "address_type": "INTERNAL"}
        },
        "google_compute_firewall": {
            "open": {
                "name": "${terraform.workspace}-open",
                "network": "default",
                "allow": [{"protocol": "tcp", "ports": ["8786", "8787"]}, {"protocol": "icmp"}],
                "source_ranges": ["10.0.0.0/8"],
                "target_tags": ["dask"],
            }
        },
        "google_compute_instance": {
            "worker": MACHINE,
            "host": {
                **MACHINE,
                "count": 1,
                "name": "${terraform.workspace}-host",
                "network_interface": {
                    "network": "default",
                    "network_ip": "${google_compute_address.host.address}",
                },
            },
        },
        "google_secret_manager_secret": {
            "keys": {
                "secret_id": "${terraform.workspace}-keys",
                "replication": {"user_managed": {"replicas": [{"location": "us-central1"}]}},
            }
        },
        "google_secret_manager_secret_version": {
            "keys": {
                "secret": "${google_secret_manager_secret.keys.id}",
                "secret_data": "${var.keys}",
            }
        },
        "google_secret_manager_secret_iam_member": {
            "keys": {
                "secret_id": "${google_secret_manager_secret.keys.id}",
                "role": "roles/secretmanager.secretAccessor",
                "member": "serviceAccount:somebody@my-project.iam.gserviceaccount.com",
            }
        },
    },
    "output": {"addresses": {"value": "${google_compute_instance.worker[*].name}"}},
}
DIFFERENT = 2


@pytest.fixture
def terraform(emulator: ComputeEmulator, tmp_path: Path) -> Iterator[Terraform]:
    """Return a Terraform whose resources are made on paper."""
    with terraform_at(tmp_path, emulator.endpoint) as running:
        yield running


def test_what_is_applied_is_there_as_it_was_written_and_goes_again(
    terraform: Terraform, emulator: ComputeEmulator
) -> None:
    terraform.write(DOCUMENT)
    assert terraform.read("validate")["valid"]
    terraform.run("apply", "-auto-approve")

    machines = {each["name"]: each for each in emulator.instances()}
    assert set(machines) == {"default-worker-0", "default-worker-1", "default-host"}
    worker, host = machines["default-worker-0"], machines["default-host"]
    assert worker["labels"] == {"team": "grid", "goog-terraform-provisioned": "true"}
    assert worker["scheduling"]["maxRunDuration"]["seconds"] == "3600"
    assert worker["scheduling"]["provisioningModel"] == "SPOT"
    assert worker["tags"]["items"] == ["dask", "grid"]
    assert worker["disks"][0]["diskSizeGb"] == "20"
    items = {each["key"]: each["value"] for each in worker["metadata"]["items"]}
    assert items == {
        "keys": "a private key",
        "script": "echo '${HOME}'",
        "startup-script": "true",
    }
    assert "accessConfigs" in worker["networkInterfaces"][0]
    assert "accessConfigs" not in host["networkInterfaces"][0]
    state = terraform.read("show")["values"]["root_module"]["resources"]
    address = next(each for each in state if each["type"] == "google_compute_address")
    assert host["networkInterfaces"][0]["networkIP"] == address["values"]["address"]
    assert terraform.read("output", "addresses") == ["default-worker-0", "default-worker-1"]

    terraform.run("plan", "-detailed-exitcode")
    terraform.run("destroy", "-auto-approve")
    assert emulator.instances() == []
    assert terraform.read("show").get("values") is None


def test_what_others_change_is_seen_but_for_what_is_to_be_ignored(
    terraform: Terraform, emulator: ComputeEmulator
) -> None:
    document = copy.deepcopy(DOCUMENT)
    document["resource"] = {"google_compute_instance": {"worker": {**MACHINE, "count": 1}}}
    terraform.write(document)
    terraform.run("apply", "-auto-approve")
    state = json.loads((terraform.folder / "terraform.tfstate").read_text("utf-8"))
    path = state["resources"][0]["instances"][0]["attributes"]["id"]

    set_metadata(emulator, path, script="echo '${HOME}'")
    terraform.run("plan", "-detailed-exitcode")
    set_metadata(emulator, path, script="echo something else")
    terraform.run("plan", "-detailed-exitcode", status=DIFFERENT)
    terraform.run("apply", "-auto-approve")
    items = {each["key"]: each["value"] for each in emulator.instances()[0]["metadata"]["items"]}
    # What was to be ignored has not come back.
    assert items == {"script": "echo '${HOME}'", "startup-script": "true"}
    terraform.run("destroy", "-auto-approve")


def set_metadata(emulator: ComputeEmulator, path: str, **items: str) -> None:
    """Set a machine's metadata, as a client does who takes the keys out."""
    from google_api import Api

    api = Api(emulator.endpoint)
    before = api.call("GET", f"compute/v1/{path}")["metadata"]["fingerprint"]
    kept = [{"key": key, "value": value} for key, value in items.items()]
    kept.append({"key": "startup-script", "value": "true"})
    api.change("POST", f"compute/v1/{path}/setMetadata", {"items": kept, "fingerprint": before})


#: What no machine can have: where, what, and the word by which it is refused.
WRONG: dict[str, tuple[tuple[str, ...], Any, str]] = {
    "unknown": (("machine_tipe",), "e2-small", "machine_tipe"),
    "inside": (("scheduling", "max_run_duration", "hours"), 1, "hours"),
    "list": (("tags",), {"a": 1}, "set of string"),
    "flag": (("scheduling", "preemptible"), "perhaps", "bool"),
    "twice": (("boot_disk",), [{}, {}], "boot_disk"),
    "script": (("metadata", "startup-script"), "true", "metadata_startup_script"),
    "missing": (("machine_type",), None, "machine_type"),
    "computed": (("cpu_platform",), "any", "cpu_platform"),
}


def test_what_the_provider_does_not_take_is_refused_by_name(terraform: Terraform) -> None:
    machines: dict[str, Any] = {"good": MACHINE}
    for name, (path, value, _) in WRONG.items():
        machines[name] = where = copy.deepcopy(MACHINE)
        for each in path[:-1]:
            where = where[each]
        where[path[-1]] = value
    document = {key: each for key, each in DOCUMENT.items() if key != "output"}
    terraform.write({**document, "resource": {"google_compute_instance": machines}})
    with terraform.start("validate", "-json") as running:
        output, _ = running.communicate(timeout=terraform_command.PATIENCE)
    found = json.loads(output)
    assert not found["valid"]
    refused: dict[str, str] = dict.fromkeys(machines, "")
    for each in found["diagnostics"]:
        resource = each["snippet"]["context"].split(".")[2]
        refused[resource] += json.dumps(each)
    assert not refused.pop("good")
    for name, (_, _, word) in WRONG.items():
        assert word in refused[name], name


def test_no_error_of_the_api_is_swallowed(terraform: Terraform, emulator: ComputeEmulator) -> None:
    document = copy.deepcopy(DOCUMENT)
    document["resource"] = {
        "google_compute_instance": {"worker": {**MACHINE, "machine_type": "e2-tiny"}}
    }
    terraform.write(document)
    with terraform.start("apply", "-auto-approve") as running:
        _, errors = running.communicate(timeout=terraform_command.PATIENCE)
    assert running.returncode == 1
    assert "e2-tiny" in errors
    assert emulator.instances() == []
