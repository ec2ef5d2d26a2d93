"""The methods of the API, by resource. Each module hands out its routes."""

from __future__ import annotations

from dask_gce.emulator.methods import (
    addresses,
    advice,
    catalog,
    disks,
    images,
    instances,
    networks,
    operations,
    reservations,
    routers,
)
from dask_gce.emulator.routing import Route
from dask_gce.emulator.services import (
    cloud_billing,
    resource_manager,
    secret_manager,
    service_accounts,
    service_usage,
)

#: Every method of the local Compute Engine, and of Google's other APIs beside it.
ROUTES: list[Route] = [
    *addresses.ROUTES,
    *advice.ROUTES,
    *catalog.ROUTES,
    *disks.ROUTES,
    *images.ROUTES,
    *instances.ROUTES,
    *networks.ROUTES,
    *operations.ROUTES,
    *reservations.ROUTES,
    *routers.ROUTES,
    *cloud_billing.ROUTES,
    *resource_manager.ROUTES,
    *secret_manager.ROUTES,
    *service_accounts.ROUTES,
    *service_usage.ROUTES,
]
