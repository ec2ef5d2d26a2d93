"""Methods of zonal persistent disks."""

from __future__ import annotations

import asyncio
from typing import Any

from dask_gce.emulator.attributes import check_labels
from dask_gce.emulator.catalog.places import ZONES
from dask_gce.emulator.disks import DiskPlan, check_disk_type, check_size
from dask_gce.emulator.errors import already_exists, in_use, not_found, required
from dask_gce.emulator.images import from_link
from dask_gce.emulator.links import check_name, path_of
from dask_gce.emulator.operations import Operation
from dask_gce.emulator.query import aggregate, listing
from dask_gce.emulator.routing import AGGREGATED, LIST, MUTATION, Call, Route

Resource = dict[str, Any]


def _find(call: Call) -> Resource:
    name = call.params["disk"]
    found = call.project.disks.get(call.zone, {}).get(name)
    if found is None:
        raise not_found(f"{call.project.path}/zones/{call.zone}/disks/{name}")
    return found


def _insert(call: Call) -> Operation:
    if not call.body:
        raise required("resource")
    project, zone, body = call.project, call.zone, call.body
    name = check_name(body.get("name", ""))
    source = body.get("sourceImage", call.query.get("sourceImage"))
    where = "resource.sourceImage"
    image = from_link(call.cloud, project.id, source, where) if source else None
    disk_type = "pd-standard"
    if "type" in body:
        disk_type = check_disk_type(project, zone, body["type"], "resource.type", bare=False)
    plan = DiskPlan(
        name,
        check_size(body.get("sizeGb"), image, "resource.sizeGb"),
        disk_type,
        image,
        check_labels(body.get("labels", {}), "resource.labels"),
        body.get("description", ""),
    )
    if name in project.disks.get(zone, {}):
        raise already_exists(f"{project.path}/zones/{zone}/disks/{name}")
    disk = plan.make(call.cloud, project, zone, name)
    disk["status"] = "CREATING"

    async def work(operation: Operation) -> None:
        await asyncio.sleep(call.cloud.timings.creating)
        disk["status"] = "READY"

    return call.begin("insert", f"disks/{name}", work, target_id=disk["id"])


def _delete(call: Call) -> Operation:
    disk = _find(call)
    if disk.get("users"):
        raise in_use(path_of(disk["selfLink"]), path_of(disk["users"][0]))
    disk["status"] = "DELETING"
    disks = call.project.disks[call.zone]

    async def work(operation: Operation) -> None:
        await asyncio.sleep(call.cloud.timings.creating)
        if disks.get(disk["name"]) is disk:
            del disks[disk["name"]]
            await call.cloud.shelf.drop(disk["id"])

    return call.begin("delete", f"disks/{disk['name']}", work, target_id=disk["id"])


def _list(call: Call) -> Resource:
    return listing(call, "diskList", call.project.disks.get(call.zone, {}).values())


def _aggregated(call: Call) -> Resource:
    scopes = {f"zones/{zone}": call.project.disks.get(zone, {}).values() for zone in ZONES}
    return aggregate(call, "diskAggregatedList", "disks", scopes)


_ALL = "projects/{project}/zones/{zone}/disks"

ROUTES = [
    Route("compute.disks.insert", "POST", _ALL, _insert, MUTATION | {"sourceImage"}, "Disk"),
    Route("compute.disks.get", "GET", f"{_ALL}/{{disk}}", _find),
    Route("compute.disks.list", "GET", _ALL, _list, LIST),
    Route(
        "compute.disks.aggregatedList",
        "GET",
        "projects/{project}/aggregated/disks",
        _aggregated,
        AGGREGATED,
    ),
    Route("compute.disks.delete", "DELETE", f"{_ALL}/{{disk}}", _delete, MUTATION),
]
