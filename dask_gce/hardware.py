"""Whether the machines of a cluster can have what its settings ask of the hardware.

Owns the refusals: what Compute Engine would turn down, or what would boot and then not work, is
told before anything is created. The tables are in `families`, GPUs are the matter of `gpus`; how
threads and memory are shared is that of `shares` and `fit`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from dask_gce import families, images
from dask_gce.errors import SettingsError
from dask_gce.placement import Location, MachineShape
from dask_gce.settings import Settings
from dask_gce.sources import refusal

__all__ = ["check_hardware", "check_image", "doubt_architecture"]

_NUMBERS = "https://docs.cloud.google.com/compute/docs/disks/local-ssd#choose_number_local_ssds"


def check_hardware(
    settings: Settings, schedulers: Sequence[Location], workers: Sequence[Location]
) -> None:
    """Check that the machine types can be combined with what is asked of them.

    Parameters
    ----------
    settings : Settings
        The cluster's settings.
    schedulers : sequence of Location
        Where the scheduler may be.
    workers : sequence of Location
        Where workers may be.

    Raises
    ------
    SettingsError
        If Compute Engine would refuse such a machine, or it could not do its work. The message
        names the setting and what would do.
    """
    of_all = _shapes([*schedulers, *workers])
    of_workers = _shapes(schedulers if settings.single_node else workers)
    for shape in of_workers:
        _check_local_ssds(settings, shape)
    for shape in of_all:
        _check_boot_disk(settings, shape)
        if settings.confidential and families.confidential_type(shape.name) is None:
            raise _refuse(
                settings,
                "confidential",
                f"{shape.name} is not known as a Confidential VM; choose a machine type of N2D, "
                "C2D, C3D or C4D, or c3-standard (instance_overrides can ask for newer ones)",
            )
        if (
            settings.min_cpu_platform is not None
            and families.family_of(shape.name) in families.NO_CPU_PLATFORM
        ):
            raise _refuse(
                settings,
                "min_cpu_platform",
                f"{shape.name} has no choice of CPU platforms; leave it out, or choose a machine "
                "type such as n2-standard-4 for scheduler and workers",
            )
        _check_architecture(settings, shape)


def _shapes(locations: Sequence[Location]) -> list[MachineShape]:
    return list(dict.fromkeys(location.shape for location in locations))


def _check_local_ssds(settings: Settings, shape: MachineShape) -> None:
    count = settings.local_ssds
    if count in (0, shape.local_ssds):
        return  # those that it comes with may be asked for
    if shape.local_ssds:
        raise _refuse(
            settings,
            "local_ssds",
            f"{shape.name} comes with its {shape.local_ssds} local SSDs, which are used without "
            "being asked for; leave it out",
        )
    counts = families.local_ssd_counts(shape.name, shape.cpus)
    if counts is None or count in counts:
        return
    remedy = (
        f"it can have {', '.join(map(str, counts))}"
        if counts
        else "choose one of N1, N2, N2D, C2 or C2D, or one that comes with them (its name ends in "
        "-lssd), or leave it out"
    )
    raise _refuse(
        settings, "local_ssds", f"{shape.name} cannot have {count}: {remedy} (see {_NUMBERS})"
    )


def _check_boot_disk(settings: Settings, shape: MachineShape) -> None:
    if settings.boot_disk_type is None:
        return
    instead = families.unfit_boot_disk(shape.name, settings.boot_disk_type)
    if instead is not None:
        raise _refuse(
            settings,
            "boot_disk_type",
            f"{shape.name} cannot boot from {settings.boot_disk_type}; choose {instead!r}, or "
            "leave it out",
        )


def _check_architecture(settings: Settings, shape: MachineShape) -> None:
    image = images.for_architecture(settings.source_image, shape.architecture)
    known = images.architecture_of(image)
    if known is not None and known != shape.architecture:
        raise _mismatch(settings, shape, known)


def check_image(
    settings: Settings, image: Mapping[str, Any], locations: Sequence[Location]
) -> None:
    """Check what Compute Engine says of a boot image against machine types and the disk's size.

    Parameters
    ----------
    settings : Settings
        The cluster's settings.
    image : mapping
        A ``compute#image`` resource.
    locations : sequence of Location
        Where machines may boot from it.

    Raises
    ------
    SettingsError
        If it is for other processors than the machines have, or larger than their disks.
    """
    known = image.get("architecture")
    for shape in _shapes(locations):
        if known in ("ARM64", "X86_64") and known != shape.architecture:
            raise _mismatch(settings, shape, str(known))
    least = int(image.get("diskSizeGb", 0))
    if least > settings.boot_disk_size:
        raise _refuse(
            settings,
            "boot_disk_size",
            f"{settings.boot_disk_size} GB is less than the {least} GB of the image "
            f"{image.get('name', settings.source_image)}",
        )


def _mismatch(settings: Settings, shape: MachineShape, architecture: str) -> SettingsError:
    other = "an image for Arm" if shape.architecture == "ARM64" else "an image for x86"
    example = (
        "'cos-cloud/cos-arm64-stable'"
        if shape.architecture == "ARM64"
        else "'cos-cloud/cos-stable'"
    )
    return _refuse(
        settings,
        "source_image",
        f"{settings.source_image} is for {architecture}, and {shape.name} is {shape.architecture}; "
        f"choose {other} such as {example}, or another machine type",
    )


def doubt_architecture(settings: Settings, locations: Sequence[Location]) -> str:
    """Say so where the default container image is not known to run on the machines.

    Parameters
    ----------
    settings : Settings
        The cluster's settings.
    locations : sequence of Location
        Where machines may be.

    Returns
    -------
    str
        What is doubtful, and the remedy; empty if nothing is.
    """
    arm = [shape.name for shape in _shapes(locations) if shape.architecture == "ARM64"]
    image = settings.container_image or ""
    if arm and settings.runtime == "container" and image.startswith(images.OFFICIAL_IMAGE):
        return (
            f"Dask publishes {image} for x86, and {arm[0]} is Arm: the machines may not find an "
            "image to pull. Set container_image to one of your own, or runtime to 'vm'."
        )
    return ""


def _refuse(settings: Settings, key: str, reason: str) -> SettingsError:
    return refusal(key, settings.sources[key], reason)
