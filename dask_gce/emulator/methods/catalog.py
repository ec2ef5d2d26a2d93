"""Methods that only look: projects, zones, regions, machine, accelerator and disk types."""

from __future__ import annotations

from typing import Any

from dask_gce.emulator.catalog import accelerators, machine_types
from dask_gce.emulator.catalog.places import (
    REGIONS,
    UNLIMITED,
    ZONES,
    region_resource,
    zone_resource,
)
from dask_gce.emulator.disks import DISK_TYPES
from dask_gce.emulator.errors import not_found
from dask_gce.emulator.links import number_of
from dask_gce.emulator.query import aggregate, listing
from dask_gce.emulator.quota import DEFAULT_FIREWALLS, GLOBAL
from dask_gce.emulator.routing import AGGREGATED, LIST, Call, Route

Resource = dict[str, Any]

#: From this version on, quotas are asked of the Cloud Quotas API and no longer shown here.
_WITHOUT_QUOTAS = "2026-10-01-preview"


def _project(call: Call) -> Resource:
    project, quota = call.project, call.cloud.conditions.quota
    limits = {
        "CPUS_ALL_REGIONS": UNLIMITED,
        "FIREWALLS": DEFAULT_FIREWALLS,
        **quota.limits(GLOBAL),
    }
    usage = quota.usage(project.id, GLOBAL) | {"FIREWALLS": float(len(project.firewalls))}
    shown: Resource = {
        "kind": "compute#project",
        "id": str(project.number),
        "creationTimestamp": "2026-01-01T00:00:00.000-08:00",
        "name": project.id,
        "commonInstanceMetadata": {"kind": "compute#metadata", "fingerprint": "AAAAAAAAAAA="},
        "defaultServiceAccount": project.service_account,
        "xpnProjectStatus": "UNSPECIFIED_XPN_PROJECT_STATUS",
        "defaultNetworkTier": "PREMIUM",
        "vmDnsSetting": "ZONAL_ONLY",
        "selfLink": call.cloud.url(project.path),
        "quotas": [
            {"metric": "NETWORKS", "limit": 15.0, "usage": float(len(project.networks))},
            *(
                {"metric": metric, "limit": limit, "usage": usage.get(metric, 0.0)}
                for metric, limit in limits.items()
            ),
        ],
    }
    if call.version == _WITHOUT_QUOTAS:
        del shown["quotas"]
    return shown


def _region(call: Call, region: str) -> Resource:
    quota, project = call.cloud.conditions.quota, call.project.id
    shown = region_resource(
        call.cloud.base_url,
        project,
        region,
        limits=quota.limits(region),
        usage=quota.usage(project, region),
    )
    if call.version == _WITHOUT_QUOTAS:
        del shown["quotas"]
    return shown


def _get_region(call: Call) -> Resource:
    return _region(call, call.region)


def _list_regions(call: Call) -> Resource:
    return listing(call, "regionList", [_region(call, one) for one in REGIONS])


def _get_zone(call: Call) -> Resource:
    return zone_resource(call.cloud.base_url, call.project.id, call.params["zone"])


def _list_zones(call: Call) -> Resource:
    project = call.project.id
    return listing(
        call, "zoneList", [zone_resource(call.cloud.base_url, project, one) for one in ZONES]
    )


def _machine_types(call: Call, zone: str) -> list[Resource]:
    return [
        one.resource(call.cloud.base_url, call.project.id, zone)
        for one in machine_types.MACHINE_TYPES.values()
    ]


def _get_machine_type(call: Call) -> Resource:
    project = call.project.id
    found = machine_types.find(project, call.zone, call.params["machineType"])
    return found.resource(call.cloud.base_url, project, call.zone)


def _list_machine_types(call: Call) -> Resource:
    return listing(call, "machineTypeList", _machine_types(call, call.zone))


def _aggregated_machine_types(call: Call) -> Resource:
    scopes = {f"zones/{zone}": _machine_types(call, zone) for zone in ZONES}
    return aggregate(call, "machineTypeAggregatedList", "machineTypes", scopes)


def _accelerator_types(call: Call, zone: str) -> list[Resource]:
    return [
        one.resource(call.cloud.base_url, call.project.id, zone)
        for one in accelerators.ACCELERATOR_TYPES.values()
    ]


def _get_accelerator_type(call: Call) -> Resource:
    project = call.project.id
    found = accelerators.find(project, call.zone, call.params["acceleratorType"])
    return found.resource(call.cloud.base_url, project, call.zone)


def _list_accelerator_types(call: Call) -> Resource:
    return listing(call, "acceleratorTypeList", _accelerator_types(call, call.zone))


def _aggregated_accelerator_types(call: Call) -> Resource:
    scopes = {f"zones/{zone}": _accelerator_types(call, zone) for zone in ZONES}
    return aggregate(call, "acceleratorTypeAggregatedList", "acceleratorTypes", scopes)


def _disk_type(call: Call, name: str) -> Resource:
    zone_url = call.cloud.url(f"{call.project.path}/zones/{call.zone}")
    description, default_size, sizes = DISK_TYPES[name]
    return {
        "kind": "compute#diskType",
        "id": str(number_of(f"disk type {name}") % 100_000),
        "creationTimestamp": "1969-12-31T16:00:00.000-08:00",
        "name": name,
        "description": description,
        "validDiskSize": sizes,
        "defaultDiskSizeGb": str(default_size),
        "zone": zone_url,
        "selfLink": f"{zone_url}/diskTypes/{name}",
    }


def _get_disk_type(call: Call) -> Resource:
    name = call.params["diskType"]
    if name not in DISK_TYPES:
        raise not_found(f"{call.project.path}/zones/{call.zone}/diskTypes/{name}")
    return _disk_type(call, name)


def _list_disk_types(call: Call) -> Resource:
    return listing(call, "diskTypeList", [_disk_type(call, name) for name in DISK_TYPES])


_PROJECT = "projects/{project}"
_ZONE = f"{_PROJECT}/zones/{{zone}}"

ROUTES = [
    Route("compute.projects.get", "GET", _PROJECT, _project),
    Route("compute.regions.get", "GET", f"{_PROJECT}/regions/{{region}}", _get_region),
    Route("compute.regions.list", "GET", f"{_PROJECT}/regions", _list_regions, LIST),
    Route("compute.zones.get", "GET", _ZONE, _get_zone),
    Route("compute.zones.list", "GET", f"{_PROJECT}/zones", _list_zones, LIST),
    Route(
        "compute.machineTypes.get",
        "GET",
        f"{_ZONE}/machineTypes/{{machineType}}",
        _get_machine_type,
    ),
    Route("compute.machineTypes.list", "GET", f"{_ZONE}/machineTypes", _list_machine_types, LIST),
    Route(
        "compute.machineTypes.aggregatedList",
        "GET",
        f"{_PROJECT}/aggregated/machineTypes",
        _aggregated_machine_types,
        AGGREGATED,
    ),
    Route(
        "compute.acceleratorTypes.get",
        "GET",
        f"{_ZONE}/acceleratorTypes/{{acceleratorType}}",
        _get_accelerator_type,
    ),
    Route(
        "compute.acceleratorTypes.list",
        "GET",
        f"{_ZONE}/acceleratorTypes",
        _list_accelerator_types,
        LIST,
    ),
    Route(
        "compute.acceleratorTypes.aggregatedList",
        "GET",
        f"{_PROJECT}/aggregated/acceleratorTypes",
        _aggregated_accelerator_types,
        AGGREGATED,
    ),
    Route("compute.diskTypes.get", "GET", f"{_ZONE}/diskTypes/{{diskType}}", _get_disk_type),
    Route("compute.diskTypes.list", "GET", f"{_ZONE}/diskTypes", _list_disk_types, LIST),
]
