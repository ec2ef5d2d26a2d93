"""Whether the machines can be made: boot image, machine types, quotas and a reservation."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from typing import Any, Final

from dask_gce.checks.finding import Finding, failed, ok, unknown
from dask_gce.checks.view import View, last_part, project_of
from dask_gce.errors import APIError, NotFound, SettingsError
from dask_gce.families import family_of
from dask_gce.fit import check_fit
from dask_gce.gpus import check_gpus, complete_for_gpus
from dask_gce.hardware import check_hardware, check_image
from dask_gce.images import for_architecture
from dask_gce.placement import Location, MachineShape
from dask_gce.settings import Settings

__all__ = ["check_boot_image", "check_machine_types", "check_quota", "check_reservation", "demand"]

#: Series whose vCPUs are counted together. The others have a metric of their own, or none that
#: Compute Engine shows: https://cloud.google.com/compute/resource-usage#cpu_quota
_SHARED_CPUS: Final = frozenset({"e2", "f1", "g1", "n1"})
#: Series that boot from pd-standard when nobody chooses a disk, as the API's reference says.
_STANDARD_DISK: Final = frozenset({"e2", "f1", "g1", "n1", "n2", "n2d", "t2a", "t2d", "m1"})
_DISK_METRICS: Final = {
    "pd-standard": "DISKS_TOTAL_GB",
    "pd-balanced": "SSD_TOTAL_GB",
    "pd-ssd": "SSD_TOTAL_GB",
}
#: Of all regions together; shown with the project.
_EVERYWHERE: Final = frozenset({"CPUS_ALL_REGIONS", "GPUS_ALL_REGIONS"})


async def check_boot_image(view: View) -> Finding:
    """Look whether the boot image exists, and fits machine types and disk.

    Parameters
    ----------
    view : View
        The project.

    Returns
    -------
    Finding
        What was found.
    """
    settings = view.settings
    schedulers, workers = await _locations_or_none(view)
    architecture = workers[0].shape.architecture if workers else "X86_64"
    image = for_architecture(settings.source_image, architecture)
    project, name = project_of(image) or view.project, last_part(image)
    family = "/family/" in image
    try:
        if family:
            found = await view.compute.get_image_from_family(project, name)
        else:
            found = await view.compute.get_image(name, project)
    except NotFound:
        what = "family of images" if family else "image"
        return failed(
            "image",
            f"source_image = {image!r}: project {project} has no such {what}. Choose one that "
            "the command lists.",
            shlex.join(["gcloud", "compute", "images", "list", f"--project={project}"])
            + ("" if _is_public(project) else " --no-standard-images"),
        )
    try:
        check_image(settings, found, [*schedulers, *workers])
    except SettingsError as error:
        return failed("image", str(error))
    return ok("image", f"{found.get('name', name)} of project {project}")


def _is_public(project: str) -> bool:
    return project.endswith("-cloud")


async def _locations_or_none(view: View) -> tuple[list[Location], list[Location]]:
    try:
        return await view.find_locations()
    except (SettingsError, APIError):
        # Which the check of machine types says.
        return [], []


async def check_machine_types(view: View) -> Finding:
    """Look whether the zones offer the machine types, and whether the workers fit them.

    Parameters
    ----------
    view : View
        The project.

    Returns
    -------
    Finding
        What was found.
    """
    settings = view.settings
    types = tuple(dict.fromkeys([*settings.scheduler_machine_type, *settings.worker_machine_type]))
    listing = shlex.join(
        [
            *("gcloud", "compute", "machine-types", "list", f"--project={view.project}"),
            f"--filter=name=({' '.join(types)})",
        ]
    )
    try:
        schedulers, workers = await view.find_locations()
    except SettingsError as error:
        return failed("machine-types", str(error).splitlines()[0], listing)
    try:
        check_hardware(settings, schedulers, workers)
        check_gpus(settings, schedulers, workers)
        check_fit(complete_for_gpus(settings, schedulers, workers), schedulers, workers)
    except SettingsError as error:
        return failed("machine-types", str(error))
    found = {(each.zone, each.machine_type) for each in [*schedulers, *workers]}
    text = ", ".join(f"{name} in {zone}" for zone, name in sorted(found))
    missing = [
        f"{name} in {zone}" for zone in settings.zone for name in types if (zone, name) not in found
    ]
    return ok("machine-types", text + (f"; not: {', '.join(missing)}" if missing else ""))


def demand(settings: Settings, machines: int, shapes: Mapping[str, MachineShape]) -> dict[str, int]:
    """Return what a cluster would count for each quota, all of it in one region.

    Parameters
    ----------
    settings : Settings
        The cluster's settings.
    machines : int
        How many machines it begins with.
    shapes : mapping of str to MachineShape
        The machine types of ``"scheduler"`` and ``"worker"``.

    Returns
    -------
    dict of str to int
        Amounts by metric.
    """
    counts = {"scheduler": 1, "worker": machines - 1}
    amounts: dict[str, int] = {"INSTANCES": machines}
    if settings.external_ip:
        amounts["IN_USE_ADDRESSES"] = machines

    def add(metric: str, amount: int) -> None:
        if amount:
            amounts[metric] = amounts.get(metric, 0) + amount

    spot = (settings.instance_overrides.get("scheduling") or {}).get("provisioningModel") == "SPOT"
    for role, count in counts.items():
        shape = shapes[role]
        family = family_of(shape.name)
        shared = family in _SHARED_CPUS
        metric = "CPUS" if shared else f"{family.upper()}_CPUS"
        add("PREEMPTIBLE_CPUS" if spot else metric, shape.cpus * count)
        add("CPUS_ALL_REGIONS", shape.cpus * count)
        disk = settings.boot_disk_type or ("pd-standard" if family in _STANDARD_DISK else "")
        if disk in _DISK_METRICS:
            add(_DISK_METRICS[disk], settings.boot_disk_size * count)
        for model, number in _gpus(settings, role, shape).items():
            gpus = f"NVIDIA_{model}_GPUS"
            add(f"PREEMPTIBLE_{gpus}" if spot else gpus, number * count)
            add("GPUS_ALL_REGIONS", number * count)
    return amounts


def _gpus(settings: Settings, role: str, shape: MachineShape) -> dict[str, int]:
    gpus = {shape.gpu_type: shape.gpus}
    if settings.worker_accelerator_type and (role == "worker" or settings.single_node):
        gpus[settings.worker_accelerator_type] = settings.worker_accelerator_count
    models = {}
    for name, count in gpus.items():
        if count and name.startswith("nvidia-"):
            model = name.removeprefix("nvidia-").removeprefix("tesla-")
            model = "h100" if model == "h100-80gb" else model
            models[model.upper().replace("-", "_")] = count
    return models


async def check_quota(view: View) -> Finding:
    """Look whether the quotas of the first region leave room for the cluster.

    Parameters
    ----------
    view : View
        The project.

    Returns
    -------
    Finding
        What was found.
    """
    schedulers, workers = await _locations_or_none(view)
    if not (schedulers and workers):
        return unknown("quota", "Without machine types there is nothing to count.")
    region = schedulers[0].region
    needed = demand(
        view.settings,
        view.machines,
        {"scheduler": schedulers[0].shape, "worker": workers[0].shape},
    )
    quotas = _quotas(await view.get_region(region))
    quotas.update(
        {key: value for key, value in _quotas(await view.get_project()).items() if key in needed}
    )
    if not quotas:
        return unknown(
            "quota",
            "This version of the Compute API does not show quotas.",
            f"gcloud beta quotas info list --service=compute.googleapis.com "
            f"--project={shlex.quote(view.project)}",
        )
    lacking = []
    repair = []
    for metric, amount in needed.items():
        limit, usage = quotas.get(metric, (float("inf"), 0.0))
        if usage + amount > limit:
            lacking.append(f"{metric} leaves {max(0.0, limit - usage):g}, and {amount} are needed")
            repair.append(_raise_command(view.project, region, metric, int(usage + amount)))
    where = f"in {region}, for {view.machines} machines"
    if lacking:
        return failed("quota", f"{'; '.join(lacking)} ({where}).", *repair)
    unseen = sorted(set(needed) - set(quotas))
    return ok(
        "quota",
        f"enough of {', '.join(sorted(set(needed) & set(quotas)))} {where}"
        + (f"; not shown by Compute Engine: {', '.join(unseen)}" if unseen else ""),
    )


def _quotas(resource: Mapping[str, Any]) -> dict[str, tuple[float, float]]:
    return {
        str(each["metric"]): (float(each.get("limit", 0)), float(each.get("usage", 0)))
        for each in resource.get("quotas") or ()
    }


def _raise_command(project: str, region: str, metric: str, wanted: int) -> str:
    name = metric.replace("_", "-")
    everywhere = metric in _EVERYWHERE
    return shlex.join(
        [
            *("gcloud", "beta", "quotas", "preferences", "create"),
            "--service=compute.googleapis.com",
            f"--quota-id={name}-per-project" + ("" if everywhere else "-region"),
            f"--preferred-value={wanted}",
            *(() if everywhere else (f"--dimensions=region={region}",)),
            f"--project={project}",
        ]
    )


async def check_reservation(view: View) -> Finding:
    """Look whether the reservation exists and has machines left.

    Parameters
    ----------
    view : View
        The project.

    Returns
    -------
    Finding
        What was found.
    """
    settings = view.settings
    link = settings.reservation or ""
    project, name = project_of(link) or view.project, last_part(link)
    wanted = view.machines if settings.single_node else view.machines - 1
    for zone in settings.zone:
        try:
            found = await view.compute.get_reservation(zone, name, project)
        except NotFound:
            continue
        # Of a reservation without numbers, as one for a future time, nothing is known.
        part = found.get("specificReservation") or {}
        kind = (part.get("instanceProperties") or {}).get("machineType", "")
        left = int(part.get("count", 0)) - int(part.get("inUseCount", 0))
        if kind and kind not in settings.worker_machine_type:
            return failed(
                "reservation",
                f"{name} in zone {zone} is of {kind}, and the workers' machines are "
                f"{' or '.join(settings.worker_machine_type)}: set worker_machine_type to {kind}.",
            )
        if part and left < wanted:
            return failed(
                "reservation",
                f"{name} in zone {zone} has {left} machines left, and {wanted} are needed.",
                shlex.join(
                    [
                        *("gcloud", "compute", "reservations", "update", name),
                        f"--vm-count={int(part.get('count', 0)) + wanted - left}",
                        *(f"--zone={zone}", f"--project={project}"),
                    ]
                ),
            )
        return ok(
            "reservation", f"{name} in zone {zone}" + (f", {left} machines left" if part else "")
        )
    return failed(
        "reservation",
        f"reservation = {link!r}: project {project} has none of this name in "
        f"{', '.join(settings.zone)}.",
        shlex.join(
            [
                *("gcloud", "compute", "reservations", "create", name),
                *(f"--vm-count={max(1, wanted)}", f"--zone={settings.zone[0]}"),
                *(f"--machine-type={settings.worker_machine_type[0]}", f"--project={project}"),
                "--require-specific-reservation",
            ]
        ),
    )
