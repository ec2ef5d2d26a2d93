"""Dask workers on an instance of their own."""

from __future__ import annotations

from dask_gce.blueprint import Blueprint
from dask_gce.fleet import Fleet
from dask_gce.placement import Location
from dask_gce.process import GCEProcess


class GCEWorker(GCEProcess):
    """A worker, or as many as ``processes`` says, on an instance of its own.

    It is started once Compute Engine has accepted the request. The machine then boots, waits for
    the scheduler's port and registers; the cluster watches over that.

    Parameters
    ----------
    scheduler : str
        The scheduler's address as workers see it.
    name : str
        The instance's name, and the Dask worker's; with several workers these have ``-0``, ``-1``
        and so on behind it.
    fleet : Fleet
        The cluster's instances.
    blueprint : Blueprint
        How the cluster's machines are made.
    location : Location
        Where this one is made.
    """

    def __init__(
        self, scheduler: str, *, name: str, fleet: Fleet, blueprint: Blueprint, location: Location
    ) -> None:
        spec = blueprint.worker(name, location, scheduler)
        super().__init__(fleet, spec, location, blueprint.settings.worker_start_timeout)
