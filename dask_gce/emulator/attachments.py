"""The disks a new instance asks for: every check Compute Engine makes of them beforehand.

Makes nothing; `lifecycle` makes and attaches the disks that are planned here.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from dask_gce.emulator.attributes import check_labels
from dask_gce.emulator.catalog import images
from dask_gce.emulator.catalog.machine_types import MachineType
from dask_gce.emulator.disks import (
    DISK_TYPES,
    DiskPlan,
    check_disk_type,
    check_fit,
    check_size,
    default_disk_type,
)
from dask_gce.emulator.errors import bad_request, invalid, not_found
from dask_gce.emulator.links import check_name, path_of

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
        image = images.from_link(project.id, params["sourceImage"], f"{where}.sourceImage")
        if image.architecture != machine_type.architecture:
            raise invalid(
                f"{where}.sourceImage",
                params["sourceImage"],
                f"The image's architecture {image.architecture} does not match that of machine"
                f" type {machine_type.name}, {machine_type.architecture}.",
            )
    elif shown["boot"]:
        raise invalid(f"{where}.sourceImage", "", "A boot disk needs an image.")
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
        shown["licenses"] = [cloud.url(image.license_path)]
        shown["guestOsFeatures"] = image.guest_features
        shown["architecture"] = image.architecture
    labels = check_labels(params.get("labels", {}), f"{where}.labels")
    return AttachedPlan(
        shown,
        new=DiskPlan(name, size, disk_type, image, labels, params.get("description", "")),
    )
