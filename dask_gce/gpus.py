"""What follows from the GPUs of workers' machines, and whether they can have those.

Owns two things. What a machine with GPUs means for Dask: one worker for each, of dask-cuda's class.
And the refusals: GPUs that a machine type cannot be given, and boot images without a driver for
them. The tables are in `families`; other hardware is the matter of `hardware`.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Sequence
from typing import Any

from dask_gce import families, images
from dask_gce.contradictions import check_together
from dask_gce.errors import SettingsError
from dask_gce.placement import Location, MachineShape
from dask_gce.settings import Settings
from dask_gce.shares import CUDA_WORKERS, gpus_of
from dask_gce.sources import refusal

__all__ = ["check_gpus", "complete_for_gpus"]

logger = logging.getLogger(__name__)

_GPU_IMAGE = "deeplearning-platform-release/common-cu128-ubuntu-2204-nvidia-570"


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


def check_gpus(
    settings: Settings, schedulers: Sequence[Location], workers: Sequence[Location]
) -> None:
    """Check that workers' machines can have the GPUs asked for, and a driver for them.

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
        If Compute Engine would refuse such a machine, or it would have no driver. The message
        names the setting and what would do.
    """
    there = schedulers if settings.single_node else workers
    shapes = list(dict.fromkeys(location.shape for location in there))
    for shape in shapes:
        _check_accelerators(settings, shape)
    for shape in shapes:
        if gpus_of(settings, shape, workers=True):
            _check_driver(settings, shape)
            return


def _check_accelerators(settings: Settings, shape: MachineShape) -> None:
    kind, count = settings.worker_accelerator_type, settings.worker_accelerator_count
    if kind is None or not count:
        return
    key, family = "worker_accelerator_type", families.family_of(shape.name)
    if shape.gpus and (kind.removesuffix("-vws"), count) == (shape.gpu_type, shape.gpus):
        return  # what it comes with may be named, and -vws asks for a licence with it
    if shape.gpus:
        raise _refuse(
            settings,
            key,
            f"{shape.name} comes with its GPUs ({shape.gpus} of {shape.gpu_type}); leave it out",
        )
    if family in families.NO_GPUS:
        raise _refuse(
            settings,
            key,
            f"{shape.name} can have no GPUs; they are added to machine types of N1, such as "
            "n1-standard-8, or come with those of A2, A3, G2 and their like",
        )
    if family != "n1":
        return  # a series that is newer than this package
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
        logger.warning(
            "secure_boot loads signed software only, and drivers of Deep Learning images may have "
            "no signature: if the GPUs do not come up, leave it out, or boot "
            "Container-Optimized OS."
        )


def _refuse(settings: Settings, key: str, reason: str) -> SettingsError:
    return refusal(key, settings.sources[key], reason)
