"""Hardware in the local Compute Engine: GPU types, and what goes with which machine type."""

from __future__ import annotations

import pytest
from rest import IMAGE, ZONE, Refused, Rest

from dask_gce import families
from dask_gce.emulator.catalog.accelerators import ACCELERATOR_TYPES
from dask_gce.emulator.catalog.machine_types import MACHINE_TYPES
from dask_gce.emulator.catalog.places import ZONES
from dask_gce.emulator.errors import APIError
from dask_gce.emulator.hardware import check_local_ssds

SSD = {"type": "SCRATCH", "interface": "NVME"}
STAY = {"onHostMaintenance": "TERMINATE"}
BOOT = {"boot": True, "autoDelete": True, "initializeParams": {"sourceImage": IMAGE}}


@pytest.fixture
def rest(emulator):
    return Rest(emulator)


def on(machine_type, **fields):
    return {"machineType": f"zones/{ZONE}/machineTypes/{machine_type}", **fields}


def gpus(count, name="nvidia-tesla-t4"):
    link = f"zones/{ZONE}/acceleratorTypes/{name}"
    return {"guestAccelerators": [{"acceleratorType": link, "acceleratorCount": count}]}


def with_disk(kind):
    made = {"sourceImage": IMAGE, "diskType": f"zones/{ZONE}/diskTypes/{kind}"}
    return {**BOOT, "initializeParams": made}


def test_accelerator_types(rest):
    found = rest.get(f"zones/{ZONE}/acceleratorTypes/nvidia-tesla-t4")
    assert (found["name"], found["maximumCardsPerInstance"]) == ("nvidia-tesla-t4", 4)
    listed = rest.get(f"zones/{ZONE}/acceleratorTypes")["items"]
    assert [each["name"] for each in listed] == sorted(ACCELERATOR_TYPES)
    every = rest.get("aggregated/acceleratorTypes", filter="name = nvidia-l4")["items"]
    assert len(every) == len(ZONES)
    with pytest.raises(Refused) as caught:
        rest.get(f"zones/{ZONE}/acceleratorTypes/nvidia-voodoo")
    assert caught.value.status == 404


def test_an_instance_shows_its_gpus(rest):
    rest.insert(**on("n1-standard-8", scheduling=STAY, **gpus(2)))
    (shown,) = rest.instance("a")["guestAccelerators"]
    assert shown["acceleratorType"].endswith(f"/zones/{ZONE}/acceleratorTypes/nvidia-tesla-t4")
    assert shown["acceleratorCount"] == 2
    # Those that come with a machine type are shown like those that were asked for.
    rest.insert(name="b", **on("g2-standard-24", scheduling=STAY))
    (shown,) = rest.instance("b")["guestAccelerators"]
    assert shown["acceleratorType"].endswith("/nvidia-l4")
    rest.insert(name="c", **on("g2-standard-24", scheduling=STAY, **gpus(2, "nvidia-l4")))
    assert rest.instance("c")["guestAccelerators"] == [shown]


@pytest.mark.parametrize(
    ("fields", "status", "reason", "part"),
    [
        (on("n1-standard-8", **gpus(1)), 400, "invalid", "do not support live migration"),
        (on("g2-standard-4"), 400, "invalid", "do not support live migration"),
        (
            on("n1-standard-8", scheduling=STAY, **gpus(1, "nvidia-voodoo")),
            404,
            "notFound",
            "acceleratorTypes/nvidia-voodoo",
        ),
        (
            on("e2-standard-8", scheduling=STAY, **gpus(1)),
            400,
            "badRequest",
            "[e2-standard-8, nvidia-tesla-t4] features are not compatible",
        ),
        (
            on("n1-highmem-8", scheduling=STAY, **gpus(1, "nvidia-tesla-a100")),
            400,
            "badRequest",
            "features are not compatible for creating instance",
        ),
        (on("n1-standard-8", scheduling=STAY, **gpus(3)), 400, "invalid", "one of [1, 2, 4]"),
        (
            on("n1-standard-16", scheduling=STAY, **gpus(1, "nvidia-tesla-v100")),
            400,
            "invalid",
            "At most 12 vCPUs can be used along with 1 accelerator cards",
        ),
        (
            on("n1-standard-8", guestAccelerators=[{"acceleratorType": "nvidia-tesla-t4"}]),
            400,
            "invalid",
            "malformed",
        ),
        (on("e2-small", disks=[BOOT, SSD]), 400, "badRequest", "[e2-small, local-ssd] features"),
        (
            on("n2-standard-16", disks=[BOOT, SSD]),
            400,
            "badRequest",
            "should be one of [0, 2, 4, 8, 16, 24], while [1] is requested",
        ),
        (on("c3-standard-8-lssd", disks=[BOOT, SSD]), 400, "badRequest", "local-ssd"),
        (
            on(
                "n2-standard-2",
                reservationAffinity={
                    "consumeReservationType": "SPECIFIC_RESERVATION",
                    "key": "compute.googleapis.com/reservation-name",
                    "values": ["mine"],
                },
            ),
            400,
            "invalid",
            "Specified reservations [mine] do not exist",
        ),
        (
            on(
                "e2-small",
                scheduling=STAY,
                confidentialInstanceConfig={"confidentialInstanceType": "SEV"},
            ),
            400,
            "badRequest",
            "e2-small, confidential",
        ),
        (
            on("c2d-standard-2", confidentialInstanceConfig={"enableConfidentialCompute": True}),
            400,
            "invalid",
            "live migration",
        ),
        (on("e2-small", minCpuPlatform="Intel Skylake"), 400, "badRequest", "min-cpu-platform"),
        (on("n2-standard-2", minCpuPlatform="Intel 486"), 400, "invalid", "CPU platform"),
        (on("t2a-standard-1"), 400, "invalidResourceUsage", "architecture (X86_64)"),
    ],
)
def test_what_does_not_go_together_is_refused(rest, fields, status, reason, part):
    with pytest.raises(Refused) as caught:
        rest.insert(**fields)
    assert (caught.value.status, caught.value.reason) == (status, reason)
    assert part in caught.value.message
    assert not rest.emulator.leftovers()


def test_what_goes_together_is_made(rest):
    rest.emulator.reservations.add("mine")
    rest.insert(
        **on(
            "n2d-standard-16",
            disks=[BOOT, SSD, SSD],
            scheduling=STAY,
            confidentialInstanceConfig={"confidentialInstanceType": "SEV"},
            minCpuPlatform="AMD Milan",
            reservationAffinity={
                "consumeReservationType": "SPECIFIC_RESERVATION",
                "key": "compute.googleapis.com/reservation-name",
                "values": ["projects/host/reservations/mine"],
            },
        )
    )
    shown = rest.instance("a")
    assert [each["type"] for each in shown["disks"]] == ["PERSISTENT", "SCRATCH", "SCRATCH"]
    assert shown["cpuPlatform"] == "AMD Milan"
    image = IMAGE.replace("/cos-stable", "/cos-arm64-stable")
    arm = {**BOOT, "initializeParams": {"sourceImage": image}}
    rest.insert(name="b", **on("n4a-standard-2", disks=[arm]))


@pytest.mark.parametrize(
    "fields",
    [
        on("n2d-standard-2", confidentialInstanceConfig={"confidentialInstanceType": "SEV"}),
        on(
            "a3-highgpu-1g",
            scheduling=STAY,
            confidentialInstanceConfig={"confidentialInstanceType": "TDX"},
        ),
        on("c4-standard-4", minCpuPlatform="Intel Emerald Rapids"),
        on("t2d-standard-1", minCpuPlatform="AMD Milan"),
        on("g4-standard-48", scheduling=STAY, disks=[BOOT, SSD, SSD]),
        on("g2-standard-24", scheduling=STAY, **gpus(2, "nvidia-l4-vws")),
        on("h3-standard-88", disks=[with_disk("pd-balanced")]),
        on("a3-highgpu-8g", scheduling=STAY, disks=[with_disk("pd-ssd")]),
    ],
)
def test_what_google_allows_is_not_refused(rest, fields):
    rest.insert(**fields)
    shown = rest.instance("a")
    assert shown.get("minCpuPlatform") == fields.get("minCpuPlatform")
    if "guestAccelerators" in fields:
        (one,) = shown["guestAccelerators"]
        assert one["acceleratorType"].endswith("/nvidia-l4-vws")


def test_machine_types_tell_what_comes_with_them(rest):
    found = rest.get(f"zones/{ZONE}/machineTypes/c3-standard-8-lssd")
    assert found["bundledLocalSsds"] == {"defaultInterface": "NVME", "partitionCount": 2}
    assert "bundledLocalSsds" not in rest.get(f"zones/{ZONE}/machineTypes/c3-standard-8")
    assert rest.get(f"zones/{ZONE}/machineTypes/n4a-standard-8")["architecture"] == "ARM64"


def test_both_tables_of_local_ssds_agree():
    """The cluster's tables and these were written down apart from each other."""
    for one in MACHINE_TYPES.values():
        if one.local_ssds:
            continue
        allowed = families.local_ssd_counts(one.name, one.guest_cpus)
        if allowed is None:
            continue  # left to Compute Engine
        for count in range(1, 25):
            try:
                check_local_ssds(one, count)
            except APIError:
                assert count not in allowed, (one.name, count)
            else:
                assert count in allowed, (one.name, count)


def test_both_tables_of_gpus_agree():
    added = {name: each.vcpus for name, each in ACCELERATOR_TYPES.items() if each.vcpus}
    assert {name: dict(each) for name, each in families.ATTACHED_GPUS.items()} == added
    with_gpus = {each.family for each in MACHINE_TYPES.values() if each.accelerators} | {"n1"}
    assert {each.family for each in MACHINE_TYPES.values()} - with_gpus <= families.NO_GPUS
    assert not with_gpus & families.NO_GPUS
