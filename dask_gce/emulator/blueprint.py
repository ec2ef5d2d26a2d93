"""From a request body to what a new instance will be: every check Compute Engine makes beforehand.

Owns: the checks of `instances.insert` and of a bulk insert's ``instanceProperties``, which differ
in the form of some references only. Makes nothing; `lifecycle` builds from a blueprint.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from dask_gce.emulator.attachments import AttachedPlan, plan_disks
from dask_gce.emulator.attributes import (
    check_labels,
    check_metadata,
    check_service_accounts,
    check_tags,
)
from dask_gce.emulator.catalog import machine_types
from dask_gce.emulator.catalog.machine_types import MachineType
from dask_gce.emulator.catalog.places import region_of
from dask_gce.emulator.errors import invalid, required
from dask_gce.emulator.hardware import check_accelerators, check_local_ssds, check_placement
from dask_gce.emulator.links import fingerprint, last_segment, path_of
from dask_gce.emulator.networks import find_network, find_subnetwork
from dask_gce.emulator.quota import Demand, demand_of
from dask_gce.emulator.reserved import find_reserved
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
    demand : Demand
        What it counts for quotas.
    """

    machine_type: MachineType
    shared: Resource
    interfaces: list[Resource]
    disks: list[AttachedPlan]
    demand: Demand


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
    accelerators = check_accelerators(
        cloud,
        project,
        zone,
        body.get("guestAccelerators", []),
        machine_type=machine_type,
        field=field,
        bulk=bulk,
    )
    disks = body.get("disks", [])
    check_local_ssds(machine_type, sum(one.get("type") == "SCRATCH" for one in disks))
    check_placement(body, machine_type, field, reservations=cloud.conditions.reservations)
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
            accelerated=bool(accelerators),
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
        shared["guestAccelerators"] = accelerators
    interfaces = _interfaces(cloud, project, zone, body.get("networkInterfaces", []), field)
    return Blueprint(
        machine_type,
        shared,
        interfaces,
        plan_disks(
            cloud,
            project,
            zone,
            disks,
            machine_type=machine_type,
            field=field,
            bulk=bulk,
        ),
        demand_of(
            machine_type,
            spot=shared["scheduling"]["preemptible"],
            addresses=sum(len(one.get("accessConfigs", ())) for one in interfaces),
            gpus={
                last_segment(one["acceleratorType"]): one["acceleratorCount"]
                for one in accelerators
            },
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
            wanted = interface["networkIP"]
            static = find_reserved(project, region, wanted, f"{where}.networkIP")
            if static is not None and static.external:
                raise invalid(f"{where}.networkIP", wanted, "It is an external address.")
            made["networkIP"] = wanted if static is None else static.address
        if "nicType" in interface:
            made["nicType"] = interface["nicType"]
        if interface.get("accessConfigs"):
            if len(interface["accessConfigs"]) > 1:
                raise invalid(f"{where}.accessConfigs", "", "At most one access config is allowed.")
            for config in interface["accessConfigs"]:
                if "natIP" in config:
                    _take_external(project, region, config["natIP"], made, where)
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


def _take_external(project: Project, region: str, text: str, made: Resource, where: str) -> None:
    """Give an interface the internal address that a static external one stands for."""
    field = f"{where}.accessConfigs[0].natIP"
    static = find_reserved(project, region, text, field)
    if static is None or not static.external:
        raise invalid(
            field, text, f"The specified external IP address '{text}' was not found in '{region}'."
        )
    if made.setdefault("networkIP", static.internal) != static.internal:
        raise invalid(
            field,
            text,
            f"The local Compute Engine reaches it through {static.internal} only: leave out"
            " networkIP.",
        )
