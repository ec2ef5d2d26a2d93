"""A local Compute Engine: the v1 API on loopback, and a real machine behind every instance."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dask_gce.emulator.capacity import Capacity
    from dask_gce.emulator.dispatch import Exchange
    from dask_gce.emulator.emulator import ComputeEmulator
    from dask_gce.emulator.faults import Fault
    from dask_gce.emulator.iam import Permissions
    from dask_gce.emulator.iap.script import Tunnels
    from dask_gce.emulator.quota import Quota
    from dask_gce.emulator.rate_limits import RateLimits
    from dask_gce.emulator.service_states import ServiceStates
    from dask_gce.emulator.timings import Timings
    from dask_gce.emulator.unreachable import Unreachable

__all__ = [
    "Capacity",
    "ComputeEmulator",
    "Exchange",
    "Fault",
    "Permissions",
    "Quota",
    "RateLimits",
    "ServiceStates",
    "Timings",
    "Tunnels",
    "Unreachable",
]

_HOMES = {
    "Capacity": "capacity",
    "ComputeEmulator": "emulator",
    "Exchange": "dispatch",
    "Fault": "faults",
    "Permissions": "iam",
    "Quota": "quota",
    "RateLimits": "rate_limits",
    "ServiceStates": "service_states",
    "Timings": "timings",
    "Tunnels": "iap.script",
    "Unreachable": "unreachable",
}


def __getattr__(name: str) -> Any:
    # aiohttp's server is loaded when it is used, not when the package is imported (PEP 562).
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
