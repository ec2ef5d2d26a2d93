"""``plan``: for Dask a set, for people a question that is asked of a cluster, or of the class.

Dask's adaptive object reads ``cluster.plan``, the names of the workers that should be there.
Called, the same name answers what a start would do: ``cluster.plan()`` for that cluster, and
``GCECluster.plan(n_workers=4)`` for one that there is not.
"""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from types import MethodType
from typing import Any

from dask_gce.assembly import AssembledCluster
from dask_gce.declaration.cluster_plan import ClusterPlan
from dask_gce.declaration.declare import declare, declare_running
from dask_gce.plan import PlannedCluster
from dask_gce.settings import Settings
from dask_gce.sources import DEFAULTS

__all__ = ["Plan", "PlannedWorkers"]


class PlannedWorkers(set[str]):
    """The names of the workers that should be there; called, what a start of them would do.

    Parameters
    ----------
    workers : iterable of str
        The names.
    cluster : AssembledCluster
        Whose they are.
    """

    def __init__(self, workers: Iterable[str], cluster: AssembledCluster) -> None:
        super().__init__(workers)
        self._cluster = cluster

    def __call__(self) -> Any:
        """Tell what a start of the cluster as it is meant to be now would do.

        Returns
        -------
        ClusterPlan or awaitable
            The plan; something to await when the cluster is asynchronous.
        """
        return self._cluster.sync(declare_running, self._cluster)

    def __repr__(self) -> str:
        return repr(set(self))

    def __reduce__(self) -> tuple[Any, ...]:
        # A copy, or what comes out of a pickle, has no cluster.
        return set, (list(self),)


class Plan:
    """The attribute ``plan`` of a cluster and of its class."""

    def __get__(self, cluster: AssembledCluster | None, owner: type[Any]) -> Any:
        """Return what is asked of a class, or the planned workers of a cluster."""
        if cluster is None:
            return MethodType(plan, owner)
        workers = PlannedCluster.plan.fget  # type: ignore[attr-defined]  # a property
        return PlannedWorkers(workers(cluster), cluster)


def plan(
    cls: type[Any],
    n_workers: int | None = None,
    *,
    shutdown_on_close: bool | None = None,
    asynchronous: bool = False,
    **settings: Any,
) -> Any:
    """Tell what a cluster with these settings would be. Nothing is created.

    Everything that a start looks up is looked up, and the requests that it would make are written
    down: those for machines, firewall rules and secrets, with their bodies. Random parts of names
    are drawn anew by each plan and each start.

    Of a cluster that there is, ``cluster.plan()`` tells the same.

    Parameters
    ----------
    cls : type
        The class that is asked.
    n_workers : int, optional
        Workers to start with.
    shutdown_on_close : bool, optional
        False for a cluster that is to outlive the process that makes it.
    asynchronous : bool
        Return something to await, instead of waiting.
    **settings
        What `GCECluster` takes; what is not given comes from the configuration. What is no setting,
        such as ``quiet``, makes no difference.

    Returns
    -------
    ClusterPlan or awaitable
        What it would be.

    Raises
    ------
    SettingsError
        If a setting is unknown or impossible, or if no zone offers the machine types.
    CredentialsError
        If no credentials or no project can be found.
    GCEError
        If Compute Engine does not answer, or refuses what a start cannot do without.

    Examples
    --------
    >>> from dask_gce import GCECluster
    >>> plan = GCECluster.plan(n_workers=4, machine_type="e2-standard-8")  # doctest: +SKIP
    >>> print(plan)  # doctest: +SKIP
    """
    # What else makes a cluster object, and makes no difference to its machines.
    beside = inspect.signature(cls).parameters.keys() - DEFAULTS.keys()
    detached = shutdown_on_close is False or settings.get("create_mode", "create") != "create"
    loaded = Settings.load(
        n_workers=n_workers,
        **{key: value for key, value in settings.items() if key not in beside},
    )
    planning = declare(loaded, detached=detached)
    if asynchronous:
        return planning
    # In a thread, for where an event loop runs already, as in a notebook.
    with ThreadPoolExecutor(1, "dask-gce-plan") as pool:
        found: ClusterPlan = pool.submit(asyncio.run, planning).result()
    return found
