"""From a request body to what a new instance will be: every check Compute Engine makes beforehand.

Owns: the checks of `instances.insert` and of a bulk insert's ``instanceProperties``, which differ
in the form of some references only. Makes nothing; `lifecycle` builds from a blueprint.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from dask_gce.emulator.attributes import (
    check_labels,
    check_metadata,
    check_service_accounts,
    check_tags,
)
from dask_gce.emulator.catalog import images, machine_types
from dask_gce.emulator.catalog.machine_types import MachineType
from dask_gce.emulator.catalog.places import region_of
from dask_gce.emulator.disks import (
    DISK_TYPES,
    DiskPlan,
    check_disk_type,
    check_fit,
    check_size,
    default_disk_type,
)
from dask_gce.emulator.errors import bad_request, invalid, not_found, required
from dask_gce.emulator.links import check_name, fingerprint, last_segment, path_of
from dask_gce.emulator.networks import find_network, find_subnetwork
from dask_gce.emulator.scheduling import check_scheduling

if TYPE_CHECKING:
    from dask_gce.emulator.cloud import Cloud, Project

Resource = dict[str, Any]

#: Fields that an instance shows as they were sent.
_VERBATIM = (
    "advancedMachineFeatures",
    "canIpForward",
    "confidentialInstanceConfig",
    "deletionProtection",
    "description",
    "displayDevice",
    "hostname",
    "keyRevocationActionType",
    "minCpuPlatform",
    "networkPerformanceConfig",
    "privateIpv6GoogleAccess",
    "reservationAffinity",
    "resourcePolicies",
    "shieldedInstanceConfig",
    "workloadIdentityConfig",
)


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


@dataclass(frozen=True)
class Blueprint:
    """What a new instance will be, but for its name.

    Parameters
    ----------
    machine_type : MachineType
        Its size.
    shared : dict
        The fields that do not depend on name or address. Several instances share the values, which
        are replaced, never changed.
    interfaces : list of dict
        Its network interfaces, still without addresses.
    disks : list of AttachedPlan
        Its disks.
    """

    machine_type: MachineType
    shared: Resource
    interfaces: list[Resource]
    disks: list[AttachedPlan]


def draw(cloud: Cloud, project: Project, zone: str, body: Resource, *, bulk: bool) -> Blueprint:
    """Return the blueprint of an instance.

    Parameters
    ----------
    cloud : Cloud
        The state.
    project : Project
        Where it is to be.
    zone : str
        The zone, which exists.
    body : dict
        ``Instance`` or, for a bulk insert, ``InstanceProperties``.
    bulk : bool
        Whether machine and disk types are names, as bulk inserts want them, or links.

    Returns
    -------
    Blueprint
        The blueprint.

    Raises
    ------
    APIError
        Something in the body is missing, malformed, contradictory or refers to nothing.
    """
    field = "resource.instanceProperties" if bulk else "resource"
    machine_type = _machine_type(project, zone, body.get("machineType", ""), field, bulk=bulk)
    zone_url = cloud.url(f"{project.path}/zones/{zone}")
    labels = check_labels(body.get("labels", {}), f"{field}.labels")
    accelerators = body.get("guestAccelerators", [])
    shared: Resource = {
        "machineType": f"{zone_url}/machineTypes/{machine_type.name}",
        "zone": zone_url,
        "canIpForward": False,
        "deletionProtection": False,
        "startRestricted": False,
        "cpuPlatform": body.get("minCpuPlatform", "Intel Broadwell"),
        "tags": check_tags(body.get("tags", {}), f"{field}.tags"),
        "metadata": check_metadata(body.get("metadata", {}), f"{field}.metadata"),
        "labelFingerprint": fingerprint(labels),
        "scheduling": check_scheduling(
            body.get("scheduling", {}),
            f"{field}.scheduling",
            accelerated=bool(accelerators or machine_type.accelerators),
        ),
        **{name: body[name] for name in _VERBATIM if name in body},
    }
    if labels:
        shared["labels"] = labels
    accounts = check_service_accounts(
        body.get("serviceAccounts", []), f"{field}.serviceAccounts", project.service_account
    )
    if accounts:
        shared["serviceAccounts"] = accounts
    if accelerators:
        shared["guestAccelerators"] = [
            {
                "acceleratorType": f"{zone_url}/acceleratorTypes/"
                + last_segment(one.get("acceleratorType", "")),
                "acceleratorCount": one.get("acceleratorCount", 0),
            }
            for one in accelerators
        ]
    return Blueprint(
        machine_type,
        shared,
        _interfaces(cloud, project, zone, body.get("networkInterfaces", []), field),
        _disks(
            cloud,
            project,
            zone,
            body.get("disks", []),
            machine_type=machine_type,
            field=field,
            bulk=bulk,
        ),
    )


def _machine_type(project: Project, zone: str, link: str, field: str, *, bulk: bool) -> MachineType:
    field = f"{field}.machineType"
    if not link:
        raise required(field)
    name = link
    if bulk:
        if "/" in link:
            raise invalid(field, link, "Bulk inserts take the name of a machine type, no URL.")
    else:
        match = re.fullmatch(
            rf"(?:{re.escape(project.path)}/)?zones/([^/]+)/machineTypes/([^/]+)", path_of(link)
        )
        if match is None:
            raise invalid(field, link, "The URL is malformed.")
        if match[1] != zone:
            raise invalid(field, link, f"The machine type must be in zone {zone}.")
        name = match[2]
    return machine_types.find(project.id, zone, name)


def _interfaces(
    cloud: Cloud, project: Project, zone: str, asked: list[Resource], field: str
) -> list[Resource]:
    if not asked:
        raise invalid(
            f"{field}.networkInterfaces", "", "At least one network interface is required."
        )
    region = region_of(project.id, zone)
    shown = []
    for index, interface in enumerate(asked):
        where = f"{field}.networkInterfaces[{index}]"
        if "subnetwork" in interface:
            subnetwork = find_subnetwork(
                cloud, project, region, interface["subnetwork"], f"{where}.subnetwork"
            )
        else:
            network = find_network(
                project, interface.get("network", "global/networks/default"), f"{where}.network"
            )
            if not network["autoCreateSubnetworks"]:
                raise invalid(
                    where,
                    "",
                    "Subnetwork should be specified for custom subnetmode network",
                )
            subnetwork = project.subnetworks[region][network["name"]]
        if "network" in interface:
            given = path_of(interface["network"])
            if last_segment(given) != last_segment(subnetwork["network"]):
                raise invalid(f"{where}.network", given, "It does not contain the subnetwork.")
        made: Resource = {
            "kind": "compute#networkInterface",
            "name": f"nic{index}",
            "network": subnetwork["network"],
            "subnetwork": subnetwork["selfLink"],
            "stackType": interface.get("stackType", "IPV4_ONLY"),
        }
        if "networkIP" in interface:
            made["networkIP"] = interface["networkIP"]
        if "nicType" in interface:
            made["nicType"] = interface["nicType"]
        if interface.get("accessConfigs"):
            if len(interface["accessConfigs"]) > 1:
                raise invalid(f"{where}.accessConfigs", "", "At most one access config is allowed.")
            made["accessConfigs"] = [
                {
                    "kind": "compute#accessConfig",
                    "type": "ONE_TO_ONE_NAT",
                    "name": one.get("name", "external-nat"),
                    "networkTier": one.get("networkTier", "PREMIUM"),
                }
                for one in interface["accessConfigs"]
            ]
        shown.append(made)
    return shown


def _disks(
    cloud: Cloud,
    project: Project,
    zone: str,
    asked: list[Resource],
    *,
    machine_type: MachineType,
    field: str,
    bulk: bool,
) -> list[AttachedPlan]:
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
