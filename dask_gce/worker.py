"""A Dask worker on an instance of its own."""

from __future__ import annotations

from dask_gce.blueprint import Blueprint
from dask_gce.fleet import Fleet
from dask_gce.process import GCEProcess


class GCEWorker(GCEProcess):
    """A worker on an instance of its own.

    It is started once Compute Engine has accepted the request. The machine then boots, waits for
    the scheduler's port and registers; the cluster watches over that.

    Parameters
    ----------
    scheduler : str
        The scheduler's address as workers see it.
    name : str
        The instance's and the Dask worker's name.
    fleet : Fleet
        The cluster's instances.
    blueprint : Blueprint
        How the cluster's machines are made.
    """

    def __init__(self, scheduler: str, *, name: str, fleet: Fleet, blueprint: Blueprint) -> None:
        timeout = blueprint.settings.worker_start_timeout
        super().__init__(fleet, blueprint.worker(name, scheduler), timeout)
