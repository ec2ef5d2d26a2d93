"""Which of this process's Dask configuration applies to a cluster's machines as well.

What was changed below ``distributed`` says how schedulers and workers are to work, wherever they
are: shares of memory, time-outs, failures that are allowed. What leads to files or hosts around
here, or is about security, says nothing of other machines and stays.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import dask.config

__all__ = ["changed_configuration"]

#: What stays here: it names files, modules or hosts of this computer, or is decided by the cluster.
STAYS = frozenset(
    {
        "distributed.client",
        "distributed.comm.require-encryption",
        "distributed.comm.tls",
        "distributed.dashboard",
        "distributed.diagnostics",
        "distributed.nanny.preload",
        "distributed.nanny.preload-argv",
        "distributed.scheduler.contact-address",
        "distributed.scheduler.dashboard",
        "distributed.scheduler.http",
        "distributed.scheduler.preload",
        "distributed.scheduler.preload-argv",
        "distributed.version",
        "distributed.worker.http",
        "distributed.worker.preload",
        "distributed.worker.preload-argv",
    }
)


def changed_configuration() -> dict[str, Any]:
    """Return what was changed of the defaults of ``distributed``, and applies to machines.

    Returns
    -------
    dict
        Configuration as Dask reads it from a file; empty if nothing was changed. Only what can be
        written as JSON.

    Examples
    --------
    >>> import distributed
    >>> with dask.config.set({"distributed.worker.memory.target": 0.5}):
    ...     changed_configuration()["distributed"]["worker"]["memory"]
    {'target': 0.5}
    """
    defaults = dask.config.merge(*dask.config.defaults)
    changed = _difference(
        "distributed",
        dask.config.get("distributed", default={}),
        defaults.get("distributed", {}),
    )
    return {"distributed": changed} if changed else {}


def _difference(key: str, values: Mapping[str, Any], defaults: Mapping[str, Any]) -> dict[str, Any]:
    # Dask takes hyphens and underscores for the same.
    known = {name.replace("_", "-"): default for name, default in defaults.items()}
    found: dict[str, Any] = {}
    for spelt, value in values.items():
        name = spelt.replace("_", "-")
        path, default = f"{key}.{name}", known.get(name)
        if path in STAYS:
            continue
        if isinstance(value, Mapping) and isinstance(default, Mapping):
            inner = _difference(path, value, default)
            if inner:
                found[name] = inner
        elif value != default and _is_json(value):
            found[name] = value
    return found


def _is_json(value: Any) -> bool:
    try:
        json.dumps(value, allow_nan=False)
    except (TypeError, ValueError):
        return False
    return True
