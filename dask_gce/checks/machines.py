"""Whether the machines can be made: boot image, machine types, quotas and a reservation."""

from __future__ import annotations

import shlex
from collections import Counter
from collections.abc import Mapping

from dask_gce.checks.finding import Finding, failed, ok, unknown
from dask_gce.checks.view import View, last_part, project_of
from dask_gce.errors import APIError, NotFound, SettingsError
from dask_gce.fit import check_fit
from dask_gce.gpus import check_gpus, complete_for_gpus
from dask_gce.hardware import check_hardware, check_image
from dask_gce.images import for_architecture
from dask_gce.mix import Mix
from dask_gce.placement import Location, MachineShape
from dask_gce.quota import Quotas, machine_demand, parse_quotas
from dask_gce.settings import Settings
from dask_gce.shortages import EVERYWHERE, raise_command

__all__ = ["check_boot_image", "check_machine_types", "check_quota", "check_reservation", "demand"]


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


def demand(
    settings: Settings,
    machines: int,
    shapes: Mapping[str, MachineShape],
    quotas: Quotas | None = None,
) -> dict[str, int]:
    """Return what a cluster would count for each quota, all of it in one region.

    Parameters
    ----------
    settings : Settings
        The cluster's settings.
    machines : int
        How many machines it begins with.
    shapes : mapping of str to MachineShape
        The machine types of ``"scheduler"`` and ``"worker"``.
    quotas : Quotas or None
        What the project may use: without a quota for Spot machines these count like the others.

    Returns
    -------
    dict of str to int
        Amounts by metric.
    """
    typed = (settings.instance_overrides.get("scheduling") or {}).get("provisioningModel") == "SPOT"
    mix = Mix(bool(settings.spot), settings.spot_fraction, settings.min_on_demand)
    on_demand = mix.on_demand(machines - 1)
    amounts: Counter[str] = Counter()
    for role, count, spot in (
        ("scheduler", 1, typed),
        ("worker", on_demand, typed),
        ("worker", machines - 1 - on_demand, True),
    ):
        added = settings.worker_accelerator_type
        if role == "scheduler" and not settings.single_node:
            added = None
        one = machine_demand(
            shapes[role],
            spot=spot,
            external_ip=settings.external_ip,
            gpus={added: settings.worker_accelerator_count} if added else None,
            boot_disk_type=settings.boot_disk_type,
            boot_disk_size=settings.boot_disk_size,
        )
        counted = one.amounts if quotas is None else one.in_terms_of(quotas)
        for metric, amount in counted.items():
            amounts[metric] += amount * count
    return {metric: amount for metric, amount in amounts.items() if amount}


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
    quotas = parse_quotas(await view.get_region(region))
    quotas.update(
        (metric, amounts)
        for metric, amounts in parse_quotas(await view.get_project()).items()
        if metric in EVERYWHERE
    )
    needed = demand(
        view.settings,
        view.machines,
        {"scheduler": schedulers[0].shape, "worker": workers[0].shape},
        Quotas(region, quotas),
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
            repair.append(raise_command(view.project, region, metric, int(usage + amount)))
    where = f"in {region}, for {view.machines} machines"
    if lacking:
        return failed("quota", f"{'; '.join(lacking)} ({where}).", *repair)
    unseen = sorted(set(needed) - set(quotas))
    return ok(
        "quota",
        f"enough of {', '.join(sorted(set(needed) & set(quotas)))} {where}"
        + (f"; not shown by Compute Engine: {', '.join(unseen)}" if unseen else ""),
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
