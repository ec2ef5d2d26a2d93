"""One request asks for many instances, or honestly for none."""

from __future__ import annotations

import asyncio
import dataclasses
import time

import pytest
from discovery import check_value, document

from dask_gce.blueprint import Blueprint
from dask_gce.bulk import BULK_LIMIT, INSTANCE_PROPERTIES, batches, build_bulk_insert
from dask_gce.compute import Compute
from dask_gce.credentials import load_credentials
from dask_gce.instance import InstanceSpec
from dask_gce.placement import Location, MachineShape
from dask_gce.settings import Settings

SPEC = InstanceSpec(
    name="dask-1-worker-0",
    project="p",
    zone="europe-west4-b",
    machine_type="n2-custom-8-16384",
    source_image="projects/cos-cloud/global/images/family/cos-stable",
    boot_disk_size=30,
    boot_disk_type="pd-ssd",
    subnetwork="inner",
    tags=("dask",),
    labels={"dask-gce-cluster": "dask-1"},
    metadata={"startup-script": "#!/bin/bash\n"},
    service_account="default",
    scopes=("https://www.googleapis.com/auth/cloud-platform",),
)


def named(count, spec=SPEC):
    return [dataclasses.replace(spec, name=f"dask-1-worker-{number}") for number in range(count)]


def body(**overrides):
    built = build_bulk_insert(named(2, dataclasses.replace(SPEC, overrides=overrides)))
    if built is not None:
        assert [*check_value({"$ref": "BulkInsertInstanceResource"}, built, "body")] == []
    return built


def properties(**overrides):
    return body(**overrides)["instanceProperties"]


def test_body_is_complete():
    labels = {"dask-gce-cluster": "dask-1"}
    assert body() == {
        "count": "2",
        "minCount": "1",
        "perInstanceProperties": {"dask-1-worker-0": {}, "dask-1-worker-1": {}},
        "instanceProperties": {
            "machineType": "n2-custom-8-16384",
            "disks": [
                {
                    "boot": True,
                    "autoDelete": True,
                    "initializeParams": {
                        "sourceImage": "projects/cos-cloud/global/images/family/cos-stable",
                        "diskSizeGb": "30",
                        "diskType": "pd-ssd",
                        "labels": labels,
                    },
                }
            ],
            "networkInterfaces": [
                {
                    "subnetwork": "regions/europe-west4/subnetworks/inner",
                    "accessConfigs": [{"type": "ONE_TO_ONE_NAT", "name": "external-nat"}],
                }
            ],
            "labels": labels,
            "metadata": {
                "items": [
                    {"key": "google-logging-enabled", "value": "true"},
                    {"key": "startup-script", "value": "#!/bin/bash\n"},
                ]
            },
            "scheduling": {"automaticRestart": False},
            "tags": {"items": ["dask"]},
            "serviceAccounts": [
                {
                    "email": "default",
                    "scopes": ["https://www.googleapis.com/auth/cloud-platform"],
                }
            ],
        },
    }


def test_what_can_be_said_for_many_is_googles_list():
    schemas = document()["schemas"]
    shared = set(schemas["Instance"]["properties"]) & set(
        schemas["InstanceProperties"]["properties"]
    )
    assert shared == INSTANCE_PROPERTIES


def test_local_ssds_are_asked_for_in_bulk():
    local = dataclasses.replace(SPEC, local_ssds=1)
    built = build_bulk_insert(named(2, local))
    assert [*check_value({"$ref": "BulkInsertInstanceResource"}, built, "body")] == []
    assert built["instanceProperties"]["disks"][1]["initializeParams"] == {"diskType": "local-ssd"}


def test_urls_become_names():
    found = properties(
        machineType="zones/europe-west4-b/machineTypes/g2-standard-4",
        guestAccelerators=[
            {"acceleratorType": "projects/p/zones/z/acceleratorTypes/l4", "acceleratorCount": 1}
        ],
        resourcePolicies=["projects/p/regions/r/resourcePolicies/compact", "spread"],
        disks=[
            {
                "boot": True,
                "initializeParams": {
                    "sourceImage": "global/images/mine",
                    "diskType": "zones/europe-west4-b/diskTypes/pd-balanced",
                    "resourcePolicies": ["regions/r/resourcePolicies/daily"],
                },
            },
            {"type": "SCRATCH", "interface": "NVME"},
        ],
    )
    assert found["machineType"] == "g2-standard-4"
    assert found["guestAccelerators"] == [{"acceleratorType": "l4", "acceleratorCount": 1}]
    assert found["resourcePolicies"] == ["compact", "spread"]
    boot = found["disks"][0]["initializeParams"]
    assert (boot["diskType"], boot["resourcePolicies"]) == ("pd-balanced", ["daily"])
    assert boot["sourceImage"] == "global/images/mine"


@pytest.mark.parametrize(
    "overrides",
    [
        {"scheduling": {"provisioningModel": "SPOT", "instanceTerminationAction": "DELETE"}},
        {"minCpuPlatform": "Intel Ice Lake"},
        {"disks": [{"boot": True, "diskEncryptionKey": {"kmsKeyName": "projects/p/k"}}]},
    ],
)
def test_what_bulk_inserts_can_do_is_done_in_bulk(overrides):
    found = properties(**overrides)
    assert {key: found[key] for key in overrides}.keys() == overrides.keys()


@pytest.mark.parametrize(
    "overrides",
    [
        {"deletionProtection": True},
        {"hostname": "a.example.com"},
        {"displayDevice": {"enableDisplay": True}},
        {"params": {"resourceManagerTags": {"tagKeys/1": "tagValues/2"}}},
        {"disks": [{"boot": True}, {"source": "zones/z/disks/data", "mode": "READ_ONLY"}]},
        {"disks": [{"boot": True, "initializeParams": {"sourceSnapshot": "global/snapshots/s"}}]},
        {"disks": [{"boot": True, "diskEncryptionKey": {"rawKey": "c2VjcmV0"}}]},
        {
            "disks": [
                {"initializeParams": {"sourceImageEncryptionKey": {"rsaEncryptedKey": "c2VjcmV0"}}}
            ]
        },
        {"scheduling": {"nodeAffinities": [{"key": "k", "operator": "IN", "values": ["v"]}]}},
    ],
)
def test_what_bulk_inserts_cannot_do_is_not_tried(overrides):
    assert body(**overrides) is None


def test_batches_hold_what_differs_by_name_only():
    elsewhere = dataclasses.replace(SPEC, zone="europe-west4-c")
    private = dataclasses.replace(SPEC, external_ip=False)
    specs = [*named(3), *named(2, elsewhere), *named(1, private)]
    # As they come in: mixed.
    mixed = [specs[number] for number in (0, 3, 5, 1, 4, 2)]
    assert batches(mixed) == [specs[:3], specs[3:5], specs[5:]]
    assert batches([]) == []


def test_batches_do_not_exceed_the_limit_of_a_call():
    found = batches(named(2 * BULK_LIMIT + 1))
    assert [len(batch) for batch in found] == [BULK_LIMIT, BULK_LIMIT, 1]
    assert len({spec.name for batch in found for spec in batch}) == 2 * BULK_LIMIT + 1


async def test_three_machines_of_one_request_boot(process_emulator, monkeypatch):
    monkeypatch.delenv("GOOGLE_CLOUD_PROJECT", raising=False)
    settings = Settings.load(
        api_endpoint=process_emulator.endpoint, security=False, worker_start_timeout=0.2
    )
    blueprint = Blueprint(settings, settings.project, "dask-1", "c0ffee")
    zone = "us-central1-a"
    location = Location(zone, MachineShape("e2-small", 2, 2 * 2**30))
    spec = blueprint.worker("dask-1-worker-a", location, "tcp://127.0.0.1:1")
    # Who waits for a moment only is to say so, before its machine ends for taking so long.
    metadata = {key: text for key, text in spec.metadata.items() if "timeout" not in key}
    spec = dataclasses.replace(spec, metadata=metadata)
    specs = [dataclasses.replace(spec, name=f"dask-1-worker-{each}") for each in "abc"]
    (batch,) = batches(specs)
    async with Compute(
        settings.project,
        credentials=load_credentials(settings),
        endpoint=settings.api_endpoint,
    ) as compute:
        operation = await compute.bulk_insert_instances(zone, build_bulk_insert(batch))
        await compute.wait_operation(operation, 60)
        try:
            waiting = {spec.name for spec in specs}
            deadline = time.monotonic() + 60
            while waiting and time.monotonic() < deadline:
                for name in sorted(waiting):
                    console, _ = await compute.get_serial_port_output(zone, name)
                    # The end of the guest's whole way, told by its own program.
                    if "dask-gce phase: failed: no scheduler at 127.0.0.1:1" in console:
                        waiting.discard(name)
                await asyncio.sleep(0.1)
            assert not waiting
        finally:
            for spec in specs:
                await compute.delete_instance(zone, spec.name)
