"""One Dask process, or several, on one instance, as SpecCluster sees it.

Owns the promises that SpecCluster silently relies on: starting twice is starting once, and closing
never raises, whatever state the instance is in. What the two roles do in between is in `scheduler`
and `worker`.
"""

from __future__ import annotations

import asyncio
import logging

from distributed.core import Status
from distributed.deploy.spec import ProcessInterface

from dask_gce.errors import GCEError
from dask_gce.fleet import Fleet
from dask_gce.instance import InstanceSpec
from dask_gce.placement import Location

logger = logging.getLogger(__name__)


class GCEProcess(ProcessInterface):
    """A Dask process on an instance of its own.

    Parameters
    ----------
    fleet : Fleet
        The cluster's instances.
    spec : InstanceSpec
        The instance to make.
    location : Location
        Where, for when there is no capacity.
    timeout : float
        Seconds until the process must be ready.
    """

    def __init__(
        self, fleet: Fleet, spec: InstanceSpec, location: Location, timeout: float
    ) -> None:
        super().__init__()
        self.fleet = fleet
        self.spec = spec
        self.location = location
        self.timeout = timeout

    @property
    def name(self) -> str:
        """The name of the instance, of the spec's key and of the Dask worker: one string."""
        return self.spec.name

    def request(self) -> asyncio.Future[None]:
        """Ask Compute Engine for the instance, together with all asked for in this turn.

        Returns
        -------
        asyncio.Future
            Done when the request is accepted; fails with a GCEError when it was refused.
        """
        return self.fleet.request(self.spec, self.timeout)

    async def start(self) -> None:
        """Ask Compute Engine for the instance; returns once the request is accepted.

        Raises
        ------
        GCEError
            If it was refused.
        """
        try:
            # Shielded: whoever waits no longer does not take the request back.
            await asyncio.shield(self.request())
        except GCEError:
            # Otherwise SpecCluster would call start() again each time the cluster is awaited.
            self.status = Status.failed
            raise
        await super().start()

    async def close(self) -> None:
        """Delete the instance. Never raises, and may be called again."""
        try:
            await self.fleet.delete(self.name)
        except GCEError as error:
            # It is no longer on record, so that the next look finds and deletes it.
            logger.warning("Instance %s could not be deleted yet: %s", self.name, error)
        finally:
            await super().close()

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.name}: status={self.status.name}>"
