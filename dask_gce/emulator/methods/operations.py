"""Methods of zone, region and global operations."""

from __future__ import annotations

from typing import Any

from dask_gce.emulator.query import aggregate, listing
from dask_gce.emulator.routing import AGGREGATED, LIST, Call, Route


def _get(call: Call) -> dict[str, Any]:
    found = call.cloud.operations.find(call.project.id, call.scope, call.params["operation"])
    return found.resource


async def _wait(call: Call) -> dict[str, Any]:
    found = call.cloud.operations.find(call.project.id, call.scope, call.params["operation"])
    await found.wait(call.cloud.timings.operation_wait)
    return found.resource


def _list(call: Call) -> dict[str, Any]:
    log = call.cloud.operations.log(call.project.id, call.scope)
    return listing(call, "operationList", [one.resource for one in log.values()])


def _delete(call: Call) -> None:
    found = call.cloud.operations.find(call.project.id, call.scope, call.params["operation"])
    del call.cloud.operations.log(call.project.id, call.scope)[found.name]


def _aggregated(call: Call) -> dict[str, Any]:
    operations = call.cloud.operations
    project = call.project.id
    scopes = {
        scope: [one.resource for one in operations.log(project, scope).values()]
        for scope in sorted(operations.scopes(project))
    }
    return aggregate(call, "operationAggregatedList", "operations", scopes)


def _collection(name: str, scope: str) -> list[Route]:
    one = f"projects/{{project}}/{scope}/operations/{{operation}}"
    return [
        Route(f"compute.{name}.get", "GET", one, _get),
        Route(f"compute.{name}.wait", "POST", f"{one}/wait", _wait),
        Route(f"compute.{name}.delete", "DELETE", one, _delete),
        Route(
            f"compute.{name}.list", "GET", f"projects/{{project}}/{scope}/operations", _list, LIST
        ),
    ]


ROUTES = [
    *_collection("zoneOperations", "zones/{zone}"),
    *_collection("regionOperations", "regions/{region}"),
    *_collection("globalOperations", "global"),
    Route(
        "compute.globalOperations.aggregatedList",
        "GET",
        "projects/{project}/aggregated/operations",
        _aggregated,
        AGGREGATED,
    ),
]
