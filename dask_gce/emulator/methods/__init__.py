"""The methods of the API, by resource. Each module hands out its routes."""

from __future__ import annotations

from dask_gce.emulator.methods import catalog, disks, images, instances, networks, operations
from dask_gce.emulator.routing import Route

#: Every method of the local Compute Engine.
ROUTES: list[Route] = [
    *catalog.ROUTES,
    *disks.ROUTES,
    *images.ROUTES,
    *instances.ROUTES,
    *networks.ROUTES,
    *operations.ROUTES,
]
