"""Dask clusters on Google Compute Engine.

``GCECluster`` makes a scheduler and workers on Compute Engine, connects clients to them over TLS,
scales them and leaves nothing behind. ``dask_gce.emulator`` is a local Compute Engine to try it on.

Names are imported when they are first used (:pep:`562`), so that ``import dask_gce`` stays cheap.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from dask_gce._version import __version__

if TYPE_CHECKING:
    from dask_gce.cluster import GCECluster
    from dask_gce.decorator import requires_cluster
    from dask_gce.estimation import Estimate, estimate_cost
    from dask_gce.scheduler import GCEScheduler
    from dask_gce.sweeper import sweep
    from dask_gce.worker import GCEWorker

__all__ = [
    "Estimate",
    "GCECluster",
    "GCEScheduler",
    "GCEWorker",
    "__version__",
    "estimate_cost",
    "requires_cluster",
    "sweep",
]

_HOMES = {
    "Estimate": "dask_gce.estimation",
    "GCECluster": "dask_gce.cluster",
    "GCEScheduler": "dask_gce.scheduler",
    "GCEWorker": "dask_gce.worker",
    "estimate_cost": "dask_gce.estimation",
    "requires_cluster": "dask_gce.decorator",
    "sweep": "dask_gce.sweeper",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOMES])
