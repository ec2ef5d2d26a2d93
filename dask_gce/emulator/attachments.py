"""The disks of an instance: planned, checked, made, attached and let go.

A plan is made of what a request says, before anything else is known; whether each disk can be had
is asked of the state, after which nothing is refused any more. `lifecycle` says when.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from dask_gce.emulator.attributes import check_labels
from dask_gce.emulator.catalog.machine_types import MachineType
from dask_gce.emulator.disks import (
    DISK_TYPES,
    DiskPlan,
    attach,
    check_disk_type,
    check_fit,
    check_size,
    default_disk_type,
    detach,
)
from dask_gce.emulator.errors import bad_request, in_use, invalid, not_found
from dask_gce.emulator.hardware import check_architecture
from dask_gce.emulator.images import from_link
from dask_gce.emulator.links import check_name, last_segment, path_of

if TYPE_CHECKING:
    from dask_gce.emulator.cloud import Cloud, Project

Resource = dict[str, Any]


@dataclass(frozen=True)
class AttachedPlan:
    """How one disk hangs on the instance.

    Parameters
    ----------
    shown : dict
        The ``attachedDisk`` as the instance shows it, still without its source.
    existing : str or None
        The name of a disk that exists already.
    new : DiskPlan or None
        The disk to be made; None for an existing one and for local SSD.
    """

    shown: Resource
    existing: str | None = None
    new: DiskPlan | None = None


def plan_disks(
    cloud: Cloud,
    project: Project,
    zone: str,
    asked: list[Resource],
    *,
    machine_type: MachineType,
    field: str,
    bulk: bool,
) -> list[AttachedPlan]:
    """Return how the disks of a new instance hang on it.

    Parameters
    ----------
    cloud : Cloud
        The state.
    project : Project
        Where it is to be.
    zone : str
        The zone, which exists.
    asked : list of dict
        The ``AttachedDisk`` objects from the request.
    machine_type : MachineType
        The instance's machine type.
    field : str
        The field that holds them, without ``.disks``, for refusals.
    bulk : bool
        Whether disk types are names, as bulk inserts want them, or links.

    Returns
    -------
    list of AttachedPlan
        A plan for each disk.

    Raises
    ------
    APIError
        There is no boot disk, or a disk is impossible.
    """
    if not asked:
        raise invalid(f"{field}.disks", "", "No disks are specified.")
    # Without a word about it, the first disk is the one to boot from.
    boots = [disk.get("boot", False) for disk in asked]
    if not any(boots):
        raise invalid(f"{field}.disks", "", "Boot disk must be specified.")
    if sum(boots) > 1 or not boots[0]:
        raise invalid(f"{field}.disks", "", "Boot disk must be the first disk and the only one.")
    return [
        _disk(
            cloud,
            project,
            zone,
            disk,
            index=index,
            machine_type=machine_type,
            field=f"{field}.disks[{index}]",
            bulk=bulk,
        )
        for index, disk in enumerate(asked)
    ]


def _disk(
    cloud: Cloud,
    project: Project,
    zone: str,
    disk: Resource,
    *,
    index: int,
    machine_type: MachineType,
    field: str,
    bulk: bool,
) -> AttachedPlan:
    scratch = disk.get("type") == "SCRATCH"
    shown: Resource = {
        "kind": "compute#attachedDisk",
        "type": "SCRATCH" if scratch else "PERSISTENT",
        "mode": disk.get("mode", "READ_WRITE"),
        "deviceName": disk.get("deviceName", f"persistent-disk-{index}"),
        "index": index,
        "boot": disk.get("boot", False),
        "autoDelete": disk.get("autoDelete", False) or scratch,
        "interface": disk.get("interface", "NVME" if scratch else "SCSI"),
    }
    if "source" in disk:
        match = re.fullmatch(
            rf"(?:{re.escape(project.path)}/)?zones/{zone}/disks/([^/]+)", path_of(disk["source"])
        )
        if match is None:
            raise invalid(f"{field}.source", disk["source"], "The URL is malformed.")
        if match[1] not in project.disks.get(zone, {}):
            raise not_found(f"{project.path}/zones/{zone}/disks/{match[1]}")
        return AttachedPlan(shown, existing=match[1])
    params = disk.get("initializeParams", {})
    where = f"{field}.initializeParams"
    image = None
    if "sourceImage" in params:
        image = from_link(cloud, project.id, params["sourceImage"], f"{where}.sourceImage")
        if shown["boot"]:
            check_architecture(image.architecture, machine_type)
    elif shown["boot"]:
        raise invalid(f"{where}.sourceImage", "", "A boot disk needs an image.")
    if scratch and shown["boot"]:
        raise bad_request("Local SSD disks cannot be boot disks.")
    if scratch:
        shown["diskSizeGb"] = str(DISK_TYPES["local-ssd"][1])
        return AttachedPlan(shown)
    disk_type = default_disk_type(machine_type.family)
    if "diskType" in params:
        disk_type = check_disk_type(
            project, zone, params["diskType"], f"{where}.diskType", bare=bulk
        )
        if disk_type == "local-ssd":
            raise bad_request("Local SSD disks must be of type SCRATCH.")
        check_fit(machine_type, disk_type)
    size = check_size(
        params.get("diskSizeGb", disk.get("diskSizeGb")), image, f"{where}.diskSizeGb"
    )
    name = params.get("diskName")
    if name is not None:
        check_name(name, f"{where}.diskName")
    shown["diskSizeGb"] = str(size)
    if image:
        shown["licenses"] = image.licenses(cloud.base_url)
        shown["guestOsFeatures"] = image.guest_features
        shown["architecture"] = image.architecture
    labels = check_labels(params.get("labels", {}), f"{where}.labels")
    return AttachedPlan(
        shown,
        new=DiskPlan(name, size, disk_type, image, labels, params.get("description", "")),
    )


def name_disks(
    project: Project, zone: str, instance: str, plans: Sequence[AttachedPlan]
) -> list[str | None]:
    """Return the names of the disks of a new instance, if it can have them all.

    Parameters
    ----------
    project : Project
        Where it is to be.
    zone : str
        The zone.
    instance : str
        The instance's name.
    plans : sequence of AttachedPlan
        How its disks hang on it.

    Returns
    -------
    list of str or None
        A name for each plan; None for local SSD.

    Raises
    ------
    APIError
        An instance uses one of the disks already.
    """
    disks = project.disks.get(zone, {})
    names: list[str | None] = []
    for index, plan in enumerate(plans):
        name = plan.existing
        if plan.new is not None:
            name = plan.new.name or (instance if index == 0 else f"{instance}-{index}")
        users = disks.get(name or "", {}).get("users", [])
        if users or (name is not None and name in names):
            where = f"{project.path}/zones/{zone}"
            user = path_of(users[0]) if users else f"{where}/instances/{instance}"
            raise in_use(f"{where}/disks/{name}", user)
        names.append(name)
    return names


def attach_disks(
    cloud: Cloud,
    project: Project,
    zone: str,
    plans: Sequence[AttachedPlan],
    *,
    names: Sequence[str | None],
    user: str,
) -> list[Resource]:
    """Make and attach the disks of a new instance.

    Parameters
    ----------
    cloud : Cloud
        The state.
    project : Project
        Where it is.
    zone : str
        The zone.
    plans : sequence of AttachedPlan
        How its disks hang on it.
    names : sequence of str or None
        Their names, which :func:`name_disks` found.
    user : str
        The instance's link.

    Returns
    -------
    list of dict
        The ``attachedDisk`` objects, as the instance shows them.
    """
    disks = project.disks.setdefault(zone, {})
    shown = []
    for plan, name in zip(plans, names, strict=True):
        attached = dict(plan.shown)
        if name is not None:
            # A disk of that name is attached instead of made: the rule of `diskName`.
            if name not in disks and plan.new is not None:
                plan.new.make(cloud, project, zone, name)
            disk = disks[name]
            attach(disk, user)
            attached["source"] = disk["selfLink"]
            attached["diskSizeGb"] = disk["sizeGb"]
        shown.append(attached)
    return shown


def release_disks(
    project: Project, zone: str, attached: Sequence[Resource], user: str
) -> list[str]:
    """Detach the disks of an instance that goes, and delete those that go with it.

    Parameters
    ----------
    project : Project
        Where it was.
    zone : str
        The zone.
    attached : sequence of dict
        Its ``attachedDisk`` objects.
    user : str
        The instance's link.

    Returns
    -------
    list of str
        The IDs of those that are deleted.
    """
    disks = project.disks.get(zone, {})
    deleted = []
    for one in attached:
        name = last_segment(one.get("source", ""))
        if name in disks:
            detach(disks[name], user)
            if one["autoDelete"]:
                deleted.append(str(disks.pop(name)["id"]))
    return deleted
