"""What a cluster's settings ask of the hardware, and whether its machines have that.

Owns two things. What follows for Dask from the GPUs that workers' machines have: one worker for
each, of dask-cuda's class. And the refusals: what Compute Engine would turn down, or what would
boot and then not work, is told before anything is created. The tables are in `families`; how
threads and memory are shared is the matter of `shares` and `fit`.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Mapping, Sequence
from typing import Any

from dask_gce import families, images
from dask_gce.contradictions import check_together
from dask_gce.errors import SettingsError
from dask_gce.placement import Location, MachineShape
from dask_gce.settings import Settings
from dask_gce.shares import CUDA_WORKERS
from dask_gce.sources import place

__all__ = ["check_hardware", "check_image", "complete_for_gpus", "gpus_of"]

logger = logging.getLogger(__name__)

_NUMBERS = "https://docs.cloud.google.com/compute/docs/disks/local-ssd#choose_number_local_ssds"
_GPU_IMAGE = "deeplearning-platform-release/common-cu128-ubuntu-2204-nvidia-570"


def gpus_of(settings: Settings, shape: MachineShape, *, workers: bool) -> int:
    """Return how many GPUs a machine has.

    Parameters
    ----------
    settings : Settings
        The cluster's settings.
    shape : MachineShape
        The machine.
    workers : bool
        Whether it is one of those that are for workers, so that GPUs are added to it.

    Returns
    -------
    int
        Those that it comes with, and those that are added.
    """
    return shape.gpus + (settings.worker_accelerator_count if workers else 0)


def complete_for_gpus(
    settings: Settings, schedulers: Sequence[Location], workers: Sequence[Location]
) -> Settings:
    """Return the settings with what follows from the GPUs of the workers' machines.

    What the user chose stays: the class of the workers, and with another class than dask-cuda's
    their number too.

    Parameters
    ----------
    settings : Settings
        The cluster's settings.
    schedulers : sequence of Location
        Where the scheduler may be.
    workers : sequence of Location
        Where workers may be.

    Returns
    -------
    Settings
        The same, or with as many ``processes`` as GPUs and dask-cuda's ``worker_class``.

    Raises
    ------
    SettingsError
        If the machine types have different numbers of GPUs, or the numbers of workers and GPUs
        contradict each other.
    """
    there = schedulers if settings.single_node else workers
    counts = {each.shape.name: gpus_of(settings, each.shape, workers=True) for each in there}
    numbers = set(counts.values())
    chosen = _is_chosen(settings, "worker_class")
    if (chosen and settings.worker_class not in CUDA_WORKERS) or numbers == {0}:
        return settings
    key = "workers_on_scheduler" if settings.single_node else "processes"
    if len(numbers) > 1:
        shown = ", ".join(f"{name} has {count}" for name, count in counts.items())
        type_key = "scheduler_machine_type" if settings.single_node else "worker_machine_type"
        raise _refuse(
            settings,
            type_key,
            f"a machine has one worker for each GPU, and the number must be the same on all "
            f"({shown}); choose machine types with the same number of GPUs, or set worker_class, "
            "for example to 'distributed.Nanny'",
        )
    (gpus,) = numbers
    own = next((each for each in (key, "processes") if _is_chosen(settings, each)), None)
    if own is not None and getattr(settings, own) != gpus:
        raise _refuse(
            settings,
            own,
            f"{getattr(settings, own)} workers do not share the {gpus} GPUs of {', '.join(counts)} "
            f"one to one; leave {own} out to have {gpus}, or set worker_class, for example to "
            "'distributed.Nanny', which leaves the GPUs to your own code",
        )
    reason = f"{gpus} GPUs of {', '.join(counts)}"
    changes: dict[str, Any] = {"processes": gpus}
    if not chosen:
        changes["worker_class"] = CUDA_WORKERS[0]
    if settings.single_node:
        changes["workers_on_scheduler"] = gpus
        if not _is_chosen(settings, "n_workers"):
            changes["n_workers"] = gpus
    changed = {each: value for each, value in changes.items() if value != getattr(settings, each)}
    complete = dataclasses.replace(
        settings,
        **changed,
        sources={**settings.sources, **dict.fromkeys(changed, reason)},
    )
    _check_cuda_options(complete)
    values = {
        field.name: getattr(complete, field.name)
        for field in dataclasses.fields(complete)
        if field.name != "sources"
    }
    check_together(values, complete.sources)
    return complete


def _check_cuda_options(settings: Settings) -> None:
    where = "container_image" if settings.runtime == "container" else "environment"
    official = (settings.container_image or "").startswith(images.OFFICIAL_IMAGE)
    extra = {"EXTRA_PIP_PACKAGES", "EXTRA_CONDA_PACKAGES"} & settings.env_vars.keys()
    if settings.environment is None and (where == "environment" or (official and not extra)):
        raise _refuse(
            settings,
            where,
            "workers with GPUs are of dask-cuda's class, which is not in it; choose one with "
            "dask-cuda (such as the images of RAPIDS), name 'dask-cuda' in environment, or set "
            "worker_class, for example to 'distributed.Nanny'",
        )
    resources = settings.worker_options.get("resources")
    if resources is not None and not isinstance(resources, str):
        raise _refuse(
            settings,
            "worker_options",
            "dask_cuda.CUDAWorker takes resources as text; write them as 'GPU=1'",
        )


def _is_chosen(settings: Settings, key: str) -> bool:
    """Tell whether a user chose a setting, rather than that it follows from others."""
    # As in "workers_on_scheduler (processes (default))".
    return not settings.sources[key].rstrip(")").endswith("default")


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
        _check_accelerators(settings, shape)
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
    gpus = [shape for shape in of_workers if gpus_of(settings, shape, workers=True)]
    if gpus:
        _check_driver(settings, gpus[0])


def _shapes(locations: Sequence[Location]) -> list[MachineShape]:
    return list(dict.fromkeys(location.shape for location in locations))


def _check_accelerators(settings: Settings, shape: MachineShape) -> None:
    kind, count = settings.worker_accelerator_type, settings.worker_accelerator_count
    if kind is None or not count:
        return
    key, family = "worker_accelerator_type", families.family_of(shape.name)
    if shape.gpus or family in families.GPUS_BUILT_IN:
        raise _refuse(
            settings,
            key,
            f"{shape.name} comes with its GPUs ({shape.gpus} of {shape.gpu_type}); leave it out",
        )
    if family != "n1":
        raise _refuse(
            settings,
            key,
            f"{shape.name} can have no GPUs; they are added to machine types of N1, such as "
            "n1-standard-8, or come with those of A2, A3, G2 and their like",
        )
    known = families.ATTACHED_GPUS.get(kind.removesuffix("-vws"))
    if known is None:
        return  # a type that is newer than this package
    if count not in known:
        allowed = ", ".join(map(str, known))
        raise _refuse(
            settings,
            "worker_accelerator_count",
            f"a machine can have {allowed} {kind}, not {count}",
        )
    if shape.cpus > known[count]:
        raise _refuse(
            settings,
            "worker_accelerator_count",
            f"with {count} {kind} a machine has at most {known[count]} vCPUs, and {shape.name} has "
            f"{shape.cpus}; choose a smaller machine type, or more GPUs",
        )


def _check_local_ssds(settings: Settings, shape: MachineShape) -> None:
    count = settings.local_ssds
    if not count:
        return
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


def _check_driver(settings: Settings, shape: MachineShape) -> None:
    image = settings.source_image
    if settings.runtime == "vm" and image == images.parse_source_image(images.VM_IMAGE):
        raise _refuse(
            settings,
            "source_image",
            f"it has no driver for the GPUs of {shape.name}; with runtime 'vm' choose an image "
            f"that has or installs one, such as {_GPU_IMAGE!r} with boot_disk_size=50",
        )
    if settings.secure_boot and "/deeplearning-platform-release/" in f"/{image}":
        raise _refuse(
            settings,
            "secure_boot",
            "Deep Learning images install a driver without a signature, which secure boot does not "
            "load; leave it out, or boot Container-Optimized OS",
        )


def warn_of_architecture(settings: Settings, locations: Sequence[Location]) -> None:
    """Say so where the default container image is not known to run on the machines.

    Parameters
    ----------
    settings : Settings
        The cluster's settings.
    locations : sequence of Location
        Where machines may be.
    """
    arm = [shape.name for shape in _shapes(locations) if shape.architecture == "ARM64"]
    image = settings.container_image or ""
    if arm and settings.runtime == "container" and image.startswith(images.OFFICIAL_IMAGE):
        logger.warning(
            "Dask publishes %s for x86, and %s is Arm: the machines may not find an image to pull. "
            "Set container_image to one of your own, or runtime to 'vm'.",
            image,
            arm[0],
        )


def _refuse(settings: Settings, key: str, reason: str) -> SettingsError:
    return SettingsError(f"{key} ({place(key, settings.sources[key])}): {reason}.", key=key)
