"""The gcloud command line drives the local Compute Engine, unchanged.

One process costs about a second, so each command checks as much as it can.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess

import pytest
from rest import PROJECT, ZONE

pytestmark = [
    pytest.mark.gcloud,
    pytest.mark.skipif(shutil.which("gcloud") is None, reason="gcloud is not on this machine"),
]


@pytest.fixture
def gcloud(emulator, tmp_path):
    """Return a function that runs ``gcloud compute ...`` and returns its JSON, or its text."""
    settings = {
        "core/project": PROJECT,
        "core/disable_usage_reporting": "true",
        "core/disable_prompts": "true",
        "component_manager/disable_update_check": "true",
        "api_endpoint_overrides/compute": f"{emulator.endpoint}/compute/v1/",
        "auth/disable_credentials": "true",
        "compute/zone": ZONE,
    }
    environment = {
        key: value for key, value in os.environ.items() if not key.startswith("CLOUDSDK_")
    }
    environment["CLOUDSDK_CONFIG"] = str(tmp_path)
    for name, value in settings.items():
        section, key = name.split("/")
        environment[f"CLOUDSDK_{section.upper()}_{key.upper()}"] = value

    def run(*arguments, text=False):
        options = [] if text else ["--format=json"]
        finished = subprocess.run(
            ["gcloud", "compute", *arguments, *options],
            env=environment,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert finished.returncode == 0, finished.stderr
        return finished.stdout if text else json.loads(finished.stdout)

    return run


def test_instances_from_beginning_to_end(emulator, gcloud):
    common = ["--machine-type=e2-small"]
    created = gcloud(
        "instances", "create", "a", "b", *common, "--labels=team=x", "--metadata=k=v w",
        "--provisioning-model=SPOT", "--instance-termination-action=DELETE",
    )  # fmt: skip
    assert {one["name"]: one["status"] for one in created} == {"a": "RUNNING", "b": "RUNNING"}
    assert {one["scheduling"]["provisioningModel"] for one in created} == {"SPOT"}

    out = gcloud(
        "instances",
        "bulk",
        "create",
        "--predefined-names=w-1,w-2,w-3",
        f"--zone={ZONE}",
        *common,
        text=True,
    )
    assert all(name in out for name in ("w-1", "w-2", "w-3"))

    listed = gcloud("instances", "list", "--filter=labels.team=x OR name=w-2")
    assert sorted(one["name"] for one in listed) == ["a", "b", "w-2"]

    described = gcloud("instances", "describe", "a")
    assert described["metadata"]["items"] == [{"key": "k", "value": "v w"}]
    gcloud("instances", "get-serial-port-output", "w-1", text=True)

    gcloud("instances", "delete", "a", "b", "w-1", "w-2", "w-3", text=True)
    assert not emulator.leftovers()
    assert emulator.requests["compute.instances.bulkInsert"] == 1
    assert emulator.requests["compute.instances.delete"] == 5


def test_the_catalogue(gcloud):
    zones = {one["name"] for one in gcloud("zones", "list")}
    assert ZONE in zones
    regions = {one["name"]: one for one in gcloud("regions", "list")}
    assert regions["us-central1"]["status"] == "UP"
    types = gcloud("machine-types", "list", f"--zones={ZONE}", "--filter=name=e2-standard-4")
    assert [one["guestCpus"] for one in types] == [4]
    families = {one["family"] for one in gcloud("images", "list")}
    assert {"cos-stable", "debian-12", "ubuntu-2404-lts-amd64"} <= families


def test_images_from_beginning_to_end(emulator, gcloud):
    gcloud("instances", "create", "a", "--machine-type=e2-small")
    gcloud("instances", "stop", "a", text=True)
    (image,) = gcloud(
        "images", "create", "i", "--source-disk=a", f"--source-disk-zone={ZONE}",
        "--family=ours", "--labels=team=x",
    )  # fmt: skip
    assert (image["status"], image["family"], image["labels"]) == ("READY", "ours", {"team": "x"})
    listed = gcloud("images", "list", "--no-standard-images")
    assert [one["name"] for one in listed] == ["i"]
    assert gcloud("images", "describe-from-family", "ours")["name"] == "i"
    (made,) = gcloud("instances", "create", "b", "--machine-type=e2-small", "--image-family=ours")
    assert made["disks"][0]["diskSizeGb"] == "10"
    gcloud("images", "delete", "i", text=True)
    gcloud("instances", "delete", "a", "b", text=True)
    assert not emulator.leftovers()
