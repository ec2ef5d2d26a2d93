"""Methods of reservations, of which the local Compute Engine knows the names."""

from __future__ import annotations

from typing import Any

from dask_gce.emulator.errors import not_found
from dask_gce.emulator.links import number_of
from dask_gce.emulator.routing import Call, Route


def _get(call: Call) -> dict[str, Any]:
    name = call.params["reservation"]
    if name not in call.cloud.conditions.reservations:
        raise not_found(call.path)
    zone = call.cloud.url(f"{call.project.path}/zones/{call.zone}")
    return {
        "kind": "compute#reservation",
        "id": str(number_of(f"reservation {name}")),
        "creationTimestamp": "2026-01-01T00:00:00.000-08:00",
        "name": name,
        "status": "READY",
        "zone": zone,
        "selfLink": f"{zone}/reservations/{name}",
    }


ROUTES = [
    Route(
        "compute.reservations.get",
        "GET",
        "projects/{project}/zones/{zone}/reservations/{reservation}",
        _get,
    ),
]
