"""Requests are what Compute Engine takes, and nothing a user overrides loses us an instance."""

from __future__ import annotations

import copy
import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dask_gce.emulator.partial import apply_mask, parse_mask
from dask_gce.emulator.scheduling import check_scheduling
from dask_gce.errors import SettingsError
from dask_gce.instance import (
    INSTANCE_FIELDS,
    InstanceSpec,
    build_insert,
    merge_patch,
    parse_instance,
)

SPEC = InstanceSpec(
    name="dask-1-worker-2",
    project="p",
    zone="europe-west4-b",
    machine_type="n2-custom-8-16384",
    source_image="projects/cos-cloud/global/images/family/cos-stable",
    boot_disk_size=30,
    network="default",
    tags=("dask",),
    labels={"dask-gce-cluster": "dask-1"},
    metadata={"startup-script": "#!/bin/bash\n"},
    service_account="default",
    scopes=("https://www.googleapis.com/auth/cloud-platform",),
)


@pytest.mark.parametrize(
    ("left", "seconds"), [(3600, "3600"), (0.2, "30"), (-60, "30"), (29.5, "30"), (1e9, "10368000")]
)
def test_compute_engine_deletes_the_instance_when_its_time_is_up(left, seconds):
    body = build_insert(dataclasses.replace(SPEC, expires=1_800_000_000), now=1_800_000_000 - left)
    assert body["scheduling"] == {
        "automaticRestart": False,
        "maxRunDuration": {"seconds": seconds},
        "instanceTerminationAction": "DELETE",
    }


OUR_LIMIT = {"maxRunDuration": {"seconds": "60"}, "instanceTerminationAction": "DELETE"}


@pytest.mark.parametrize(
    ("theirs", "expected"),
    [
        ({"maxRunDuration": {"seconds": "90"}}, {**OUR_LIMIT, "maxRunDuration": {"seconds": "90"}}),
        ({"maxRunDuration": None}, {}),
        (
            {"maxRunDuration": None, "provisioningModel": "SPOT"},
            {"provisioningModel": "SPOT", "instanceTerminationAction": "DELETE"},
        ),
        (
            {"terminationTime": "2030-01-01T00:00:00Z"},
            {"terminationTime": "2030-01-01T00:00:00Z", "instanceTerminationAction": "DELETE"},
        ),
        ({"preemptible": True}, {"preemptible": True, "instanceTerminationAction": "DELETE"}),
        (
            {"preemptible": True, "provisioningModel": "SPOT"},
            {**OUR_LIMIT, "preemptible": True, "provisioningModel": "SPOT"},
        ),
        ({"instanceTerminationAction": "STOP"}, {**OUR_LIMIT, "instanceTerminationAction": "STOP"}),
    ],
)
def test_overrides_change_the_limit_of_the_run_time(theirs, expected):
    spec = dataclasses.replace(SPEC, expires=60, overrides={"scheduling": theirs})
    body = build_insert(spec, now=0)
    assert body["scheduling"] == {"automaticRestart": False, **expected}
    check_scheduling(body["scheduling"], "scheduling", accelerated=False)


def test_body_is_complete():
    assert build_insert(SPEC) == {
        "name": "dask-1-worker-2",
        "machineType": "zones/europe-west4-b/machineTypes/n2-custom-8-16384",
        "disks": [
            {
                "boot": True,
                "autoDelete": True,
                "initializeParams": {
                    "sourceImage": "projects/cos-cloud/global/images/family/cos-stable",
                    "diskSizeGb": "30",
                    "labels": {"dask-gce-cluster": "dask-1"},
                },
            }
        ],
        "networkInterfaces": [
            {
                "network": "global/networks/default",
                "accessConfigs": [{"type": "ONE_TO_ONE_NAT", "name": "external-nat"}],
            }
        ],
        "labels": {"dask-gce-cluster": "dask-1"},
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
    }


def test_what_is_not_chosen_is_not_sent():
    bare = dataclasses.replace(
        SPEC, external_ip=False, network=None, tags=(), service_account=None, scopes=()
    )
    body = build_insert(bare)
    assert body["networkInterfaces"] == [{}]
    assert "tags" not in body
    assert "serviceAccounts" not in body
    assert "diskType" not in body["disks"][0]["initializeParams"]


def test_logs_go_to_cloud_logging_if_somebody_may_send_them_and_nobody_objects():
    def logging(**changes):
        body = build_insert(dataclasses.replace(SPEC, **changes))
        items = {item["key"]: item["value"] for item in body["metadata"]["items"]}
        return items.get("google-logging-enabled")

    assert logging() == "true"
    assert logging(service_account=None) is None
    item = {"key": "google-logging-enabled", "value": "false"}
    assert logging(overrides={"metadata": {"items": [item]}}) == "false"


def test_local_ssds_are_scratch_disks_without_labels():
    body = build_insert(dataclasses.replace(SPEC, local_ssds=2))
    local_ssd = {
        "type": "SCRATCH",
        "interface": "NVME",
        "autoDelete": True,
        "initializeParams": {"diskType": "zones/europe-west4-b/diskTypes/local-ssd"},
    }
    assert body["disks"][1:] == [local_ssd, local_ssd]
    assert body["disks"][0]["boot"] is True


def test_disk_type_and_subnetwork_are_partial_urls():
    body = build_insert(dataclasses.replace(SPEC, boot_disk_type="pd-ssd", subnetwork="inner"))
    assert body["disks"][0]["initializeParams"]["diskType"] == (
        "zones/europe-west4-b/diskTypes/pd-ssd"
    )
    # The subnetwork implies its network: the default network's name would contradict it.
    assert body["networkInterfaces"][0]["subnetwork"] == "regions/europe-west4/subnetworks/inner"
    assert "network" not in body["networkInterfaces"][0]


def test_shared_vpc_url_is_passed_as_it_is():
    url = "projects/host/regions/europe-west4/subnetworks/shared"
    body = build_insert(dataclasses.replace(SPEC, subnetwork=url))
    assert body["networkInterfaces"][0]["subnetwork"] == url


def test_overrides_reach_every_depth():
    body = build_insert(
        dataclasses.replace(
            SPEC,
            overrides={
                "scheduling": {"provisioningModel": "SPOT"},
                "tags": None,
                "minCpuPlatform": "Intel Ice Lake",
            },
        )
    )
    assert body["scheduling"] == {"automaticRestart": False, "provisioningModel": "SPOT"}
    assert body["minCpuPlatform"] == "Intel Ice Lake"
    assert "tags" not in body


LABELS = {
    "dask-gce-cluster": "grid",
    "dask-gce-id": "3f9a61c2d4e5f607",
    "dask-gce-role": "worker",
}


def test_only_the_clusters_own_machines_have_its_tags():
    def tags(**labels):
        return build_insert(dataclasses.replace(SPEC, labels=labels))["tags"]["items"]

    assert tags(**LABELS) == ["dask", "grid-3f9a61c2"]
    scheduler = {**LABELS, "dask-gce-role": "scheduler"}
    assert tags(**scheduler) == ["dask", "grid-3f9a61c2", "grid-3f9a61c2-scheduler"]
    # What makes a disk image belongs to no cluster.
    assert tags(**{**LABELS, "dask-gce-role": "builder"}) == ["dask"]
    assert tags() == ["dask"]


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ({}, ["dask", "grid-3f9a61c2"]),
        ({"tags": None}, ["grid-3f9a61c2"]),
        ({"tags": {"items": ["mine"]}}, ["mine", "grid-3f9a61c2"]),
        ({"tags": {"items": ["grid-3f9a61c2", "mine"]}}, ["grid-3f9a61c2", "mine"]),
    ],
)
def test_overrides_cannot_hide_the_instance_from_the_clusters_firewall_rules(override, expected):
    spec = dataclasses.replace(SPEC, labels=LABELS, overrides=override)
    assert build_insert(spec)["tags"]["items"] == expected


def test_tags_that_are_none_are_told():
    spec = dataclasses.replace(SPEC, labels=LABELS, overrides={"tags": {"items": "mine"}})
    with pytest.raises(SettingsError, match=r"tags.items must be a list, but holds a str"):
        build_insert(spec)


def test_overrides_cannot_hide_the_instance_from_us():
    body = build_insert(
        dataclasses.replace(
            SPEC,
            overrides={
                "name": "other",
                "labels": None,
                "metadata": {"items": [{"key": "k", "value": "v"}, {"key": "startup-script"}]},
            },
        )
    )
    assert body["name"] == SPEC.name
    assert body["labels"] == dict(SPEC.labels)
    items = {item["key"]: item.get("value") for item in body["metadata"]["items"]}
    assert items == {
        "k": "v",
        "startup-script": "#!/bin/bash\n",
        "google-logging-enabled": "true",
    }


def test_disks_of_ones_own_go_with_the_instance_and_carry_its_labels():
    disks = [
        {"boot": True, "initializeParams": {"sourceImage": "i"}},
        {"initializeParams": {"labels": {"team": "nine"}}, "autoDelete": False},
        {"source": "zones/z/disks/data"},
    ]
    body = build_insert(dataclasses.replace(SPEC, overrides={"disks": disks}))
    assert [disk.get("autoDelete") for disk in body["disks"]] == [True, False, None]
    assert body["disks"][0]["initializeParams"]["labels"] == dict(SPEC.labels)
    assert body["disks"][1]["initializeParams"]["labels"] == {"team": "nine", **SPEC.labels}


@pytest.mark.parametrize(
    "overrides",
    [
        {"labels": "x"},
        {"metadata": "x"},
        {"metadata": {"items": "x"}},
        {"metadata": {"items": [{"value": "SECRET"}]}},
        {"disks": "x"},
    ],
)
def test_what_cannot_be_there_is_named(overrides):
    with pytest.raises(SettingsError, match="instance_overrides: ") as caught:
        build_insert(dataclasses.replace(SPEC, overrides=overrides))
    assert "SECRET" not in str(caught.value) + repr(dataclasses.replace(SPEC, overrides=overrides))


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3)
    ),
    max_leaves=8,
)
OBJECTS = st.dictionaries(st.text(max_size=3), JSON, max_size=4)


@given(OBJECTS, OBJECTS)
def test_merge_patch_is_rfc_7396(target, patch):
    before = copy.deepcopy((target, patch))
    merged = merge_patch(target, patch)
    assert (target, patch) == before
    assert merge_patch(merged, {}) == merged
    for key, value in patch.items():
        if value is None:
            assert key not in merged
        elif not isinstance(value, dict):
            assert merged[key] == value
    assert {k: v for k, v in merged.items() if k not in patch} == {
        k: v for k, v in target.items() if k not in patch
    }


@pytest.mark.parametrize(
    ("status", "ended"),
    [("PROVISIONING", False), ("STAGING", False), ("RUNNING", False), ("TERMINATED", True),
     ("STOPPING", True)],
)  # fmt: skip
def test_parse_instance(status, ended):
    instance = parse_instance(
        {
            "name": "a",
            "zone": "https://www.googleapis.com/compute/v1/projects/p/zones/us-east1-b",
            "status": status,
            "networkInterfaces": [
                {"networkIP": "10.128.0.2", "accessConfigs": [{"natIP": "203.0.113.7"}]}
            ],
        }
    )
    assert (instance.zone, instance.internal_ip, instance.external_ip) == (
        "us-east1-b",
        "10.128.0.2",
        "203.0.113.7",
    )
    assert instance.ended is ended


def test_parse_instance_without_addresses():
    instance = parse_instance({"name": "a", "status": "PROVISIONING"})
    assert instance.internal_ip is None
    assert instance.external_ip is None


def test_what_is_read_is_all_that_is_asked_for():
    instance = {
        "name": "a",
        "zone": "zones/us-east1-b",
        "status": "RUNNING",
        "labels": {"dask-gce-cluster": "dask-1"},
        "metadata": {
            "fingerprint": "aGFzaA==",
            "items": [{"key": "startup-script", "value": "#!/bin/bash"}],
        },
        "networkInterfaces": [
            {
                "name": "nic0",
                "networkIP": "10.128.0.2",
                "accessConfigs": [{"name": "external-nat", "natIP": "203.0.113.7"}],
            }
        ],
    }
    masked = apply_mask(parse_mask(",".join(INSTANCE_FIELDS)), instance)
    assert parse_instance(masked) == parse_instance(instance)
    assert masked["networkInterfaces"] == [
        {"networkIP": "10.128.0.2", "accessConfigs": [{"natIP": "203.0.113.7"}]}
    ]
    assert masked["metadata"] == {"fingerprint": "aGFzaA=="}
    assert set(masked) == {"name", "zone", "status", "networkInterfaces", "metadata"}
