"""What is asked of the hardware: in the request, or refused before there is one."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from dask_gce import families
from dask_gce.blueprint import Blueprint
from dask_gce.emulator.catalog import machine_types
from dask_gce.errors import SettingsError
from dask_gce.hardware import check_hardware, check_image, doubt_architecture
from dask_gce.instance import build_insert
from dask_gce.placement import Location, MachineShape
from dask_gce.preparation import open_compute, prepare
from dask_gce.settings import Settings

ZONE = "us-central1-a"
TCP = "tcp://scheduler:8786"


def location(name: str, **changes: Any) -> Location:
    found = machine_types.resolve(name)
    if found is None:
        return Location(ZONE, MachineShape(name, **{"cpus": 8, "memory": 2**35, **changes}))
    shape = MachineShape.parse(found.resource("http://x", "p", ZONE))
    return Location(ZONE, dataclasses.replace(shape, **changes))


def check(machine_type: str, scheduler: str = "e2-small", **settings: Any) -> None:
    check_hardware(
        Settings.load(machine_type=machine_type, **settings),
        [location(scheduler)],
        [location(machine_type)],
    )


def refusal(machine_type: str, key: str, **settings: Any) -> str:
    with pytest.raises(SettingsError) as caught:
        check(machine_type, **settings)
    assert caught.value.key == key
    assert f"{key} (" in str(caught.value)  # where it came from
    return str(caught.value)


def bodies(machine_type: str, scheduler: str = "e2-small", **settings: Any) -> list[dict[str, Any]]:
    """Return the requests for a scheduler and for a worker."""
    blueprint = Blueprint(Settings.load(**settings), "p", "dask-1", "id")
    return [
        build_insert(blueprint.scheduler("s", location(scheduler))),
        build_insert(blueprint.worker("w", location(machine_type), TCP)),
    ]


# -- architecture ---------------------------------------------------------------------------------


@pytest.mark.parametrize("arm", ["t2a-standard-4", "c4a-standard-4", "n4a-standard-4"])
def test_an_arm_machine_boots_an_arm_image_beside_an_x86_scheduler(arm):
    place = location(arm, architecture="ARM64")
    blueprint = Blueprint(Settings.load(), "p", "dask-1", "id")
    assert blueprint.worker("w", place, TCP).source_image.endswith("/family/cos-arm64-stable")
    assert blueprint.scheduler("s", location("e2-small")).source_image.endswith("/cos-stable")
    check_hardware(Settings.load(), [location("e2-small")], [place])
    blueprint = Blueprint(Settings.load(runtime="vm"), "p", "dask-1", "id")
    assert blueprint.worker("w", place, TCP).source_image.endswith("/family/debian-12-arm64")


def test_an_image_for_other_processors_is_refused():
    message = refusal("t2a-standard-4", "source_image", source_image="debian-cloud/debian-13")
    assert "X86_64" in message and "ARM64" in message and "cos-arm64-stable" in message
    message = refusal("e2-small", "source_image", source_image="cos-cloud/cos-arm64-stable")
    assert "'cos-cloud/cos-stable'" in message


def test_of_an_own_image_its_resource_tells():
    settings = Settings.load(source_image="family/mine", boot_disk_size=30)
    arm, x86 = location("t2a-standard-4"), location("e2-small")
    check_hardware(settings, [x86], [arm])  # its name tells nothing
    image = {"name": "mine-1", "architecture": "ARM64", "diskSizeGb": "10"}
    check_image(settings, image, [arm])
    with pytest.raises(SettingsError, match="is for ARM64, and e2-small is X86_64"):
        check_image(settings, image, [arm, x86])
    check_image(settings, {**image, "architecture": "ARCHITECTURE_UNSPECIFIED"}, [arm, x86])
    with pytest.raises(SettingsError, match="30 GB is less than the 50 GB of the image mine-1"):
        check_image(settings, {**image, "diskSizeGb": "50"}, [arm])


async def test_a_cluster_asks_for_its_own_image_and_only_for_that(emulator):
    async def prepared(**settings):
        chosen = Settings.load(
            api_endpoint=emulator.endpoint, security=False, machine_type="e2-small", **settings
        )
        compute = await open_compute(chosen)
        try:
            return await prepare(compute, chosen, "dask-1")
        finally:
            await compute.close()

    await prepared()
    assert emulator.requests["compute.images.getFromFamily"] == 0
    with pytest.raises(SettingsError, match="no such family of images") as caught:
        await prepared(source_image="family/mine")
    assert caught.value.key == "source_image"
    assert emulator.requests["compute.images.getFromFamily"] == 1
    for image in ("global/images/mine", "projects/local-project/global/images/mine"):
        with pytest.raises(SettingsError, match="no such image"):
            await prepared(source_image=image)
    # Of those of another project only Compute Engine knows whether they can be used.
    await prepared(source_image="projects/other/global/images/mine")
    assert emulator.requests["compute.images.get"] == 2


def test_the_official_container_image_is_not_known_to_be_for_arm():
    arm = [location("t2a-standard-4")]
    assert not doubt_architecture(Settings.load(), [location("e2-small")])
    assert not doubt_architecture(Settings.load(container_image="mine:1"), arm)
    assert not doubt_architecture(Settings.load(runtime="vm"), arm)
    doubt = doubt_architecture(Settings.load(), arm)
    assert "t2a-standard-4 is Arm" in doubt
    assert "container_image" in doubt


# -- disks ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("machine_type", "disk", "instead"),
    [
        ("c4-standard-8", "pd-ssd", "hyperdisk-balanced"),
        ("n4-standard-8", "pd-standard", "hyperdisk-balanced"),
        ("c3-standard-8", "pd-standard", "pd-balanced"),
        ("g2-standard-8", "pd-standard", "pd-balanced"),
    ],
)
def test_a_boot_disk_that_the_series_lacks_is_refused(machine_type, disk, instead):
    assert repr(instead) in refusal(machine_type, "boot_disk_type", boot_disk_type=disk)
    settings = Settings.load(boot_disk_type=instead)
    check_hardware(settings, [location("e2-small")], [location(machine_type)])


@pytest.mark.parametrize(
    ("machine_type", "count", "allowed"),
    [
        ("n2-standard-16", 1, "2, 4, 8, 16, 24"),
        ("n2-standard-96", 8, "16, 24"),
        ("n2d-standard-8", 3, "1, 2, 4, 8, 16, 24"),
        ("c2-standard-60", 4, "it can have 8"),
        ("n1-standard-8", 9, "7, 8, 16"),
        ("a2-highgpu-4g", 2, "4, 8"),
        ("e2-standard-4", 1, "-lssd"),
        ("c3-standard-8", 1, "-lssd"),
        ("n4-standard-8", 1, "-lssd"),
    ],
)
def test_local_ssds_come_in_certain_numbers(machine_type, count, allowed):
    assert allowed in refusal(machine_type, "local_ssds", local_ssds=count)


@pytest.mark.parametrize(
    ("machine_type", "count"),
    [
        ("n2-standard-16", 2),
        ("n1-standard-4", 3),
        ("e2-standard-4", 0),
        ("z9-standard-8", 5),
        # https://docs.cloud.google.com/compute/docs/disks/add-local-ssd
        ("g4-standard-48", 4),
        ("c3-standard-8-lssd", 2),
    ],
)
def test_local_ssds_in_a_number_that_is_or_may_be_right_are_asked_for(machine_type, count):
    settings = Settings.load(local_ssds=count)
    check_hardware(settings, [location("e2-small")], [location(machine_type)])


def test_local_ssds_are_the_workers():
    def counts(**settings):
        machines = bodies("n2-standard-16", "n2-standard-16", local_ssds=2, **settings)
        return [[each.get("type") for each in body["disks"]].count("SCRATCH") for body in machines]

    assert counts() == [0, 2]
    assert counts(single_node=True)[0] == 2


def test_local_ssds_that_come_with_a_machine_type_are_not_asked_for():
    place = location("c3-standard-8-lssd", local_ssds=2)
    check_hardware(Settings.load(), [location("e2-small")], [place])
    with pytest.raises(SettingsError, match="comes with its 2 local SSDs"):
        check_hardware(Settings.load(local_ssds=4), [location("e2-small")], [place])


def test_each_number_of_local_ssds_is_told_for_each_vcpu_count():
    """No gap between the lines of the tables."""
    for one in machine_types.MACHINE_TYPES.values():
        counts = families.local_ssd_counts(one.name, one.guest_cpus)
        if one.family in {"n1", "n2", "n2d", "c2", "c2d"}:
            assert counts, one.name


# -- placement and trust --------------------------------------------------------------------------


def test_nothing_is_asked_for_by_default():
    for body in bodies("e2-standard-4", max_lifetime=float("inf")):
        for key in ("minCpuPlatform", "reservationAffinity", "confidentialInstanceConfig"):
            assert key not in body
        assert "shieldedInstanceConfig" not in body and "guestAccelerators" not in body
        assert body["scheduling"] == {"automaticRestart": False}


def test_a_reservation_is_for_the_workers():
    scheduler, worker = bodies("n2-standard-8", reservation="mine")
    assert "reservationAffinity" not in scheduler
    assert worker["reservationAffinity"] == {
        "consumeReservationType": "SPECIFIC_RESERVATION",
        "key": "compute.googleapis.com/reservation-name",
        "values": ["mine"],
    }
    shared = bodies("n2-standard-8", reservation="projects/host/reservations/mine")[1]
    assert shared["reservationAffinity"]["values"] == ["projects/host/reservations/mine"]
    alone = bodies("n2-standard-8", reservation="mine", single_node=True)[0]
    assert alone["reservationAffinity"]["values"] == ["mine"]


@pytest.mark.parametrize(
    ("machine_type", "technology"), [("n2d-standard-4", "SEV"), ("c3-standard-4", "TDX")]
)
def test_confidential_machines_have_their_series_technology_and_stay_on_their_host(
    machine_type, technology
):
    for body in bodies(machine_type, machine_type, confidential=True):
        assert body["confidentialInstanceConfig"] == {"confidentialInstanceType": technology}
        assert body["scheduling"]["onHostMaintenance"] == "TERMINATE"
    check_hardware(
        Settings.load(confidential=True), [location(machine_type)], [location(machine_type)]
    )


def test_what_cannot_be_confidential_is_refused():
    assert "e2-small is not known" in refusal("n2d-standard-4", "confidential", confidential=True)


def test_secure_boot_and_the_cpu_platform_are_for_all_machines():
    for body in bodies("n2-standard-8", "n2-standard-2", secure_boot=True):
        assert body["shieldedInstanceConfig"]["enableSecureBoot"] is True
    for body in bodies("n2-standard-8", min_cpu_platform="Intel Ice Lake"):
        assert body["minCpuPlatform"] == "Intel Ice Lake"


def test_a_series_without_cpu_platforms_is_refused():
    message = refusal("n2-standard-8", "min_cpu_platform", min_cpu_platform="Intel Ice Lake")
    assert "e2-small" in message
    check("n2-standard-8", "n1-standard-1", min_cpu_platform="Intel Ice Lake")
    check("t2d-standard-8", "n1-standard-1", min_cpu_platform="AMD Milan")


def test_overrides_win():
    settings = {"secure_boot": True, "min_cpu_platform": "Intel Ice Lake"}
    overrides = {
        "minCpuPlatform": "Intel Sapphire Rapids",
        "shieldedInstanceConfig": {"enableVtpm": False},
    }
    body = bodies("n2-standard-8", instance_overrides=overrides, **settings)[1]
    assert body["minCpuPlatform"] == "Intel Sapphire Rapids"
    assert body["shieldedInstanceConfig"] == {
        "enableSecureBoot": True,
        "enableVtpm": False,
        "enableIntegrityMonitoring": True,
    }
