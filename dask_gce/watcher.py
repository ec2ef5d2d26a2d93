"""Watches a cluster's workers while it lives.

Owns the comparison of two views: what Compute Engine says of the machines, and whom the scheduler
knows. Whoever should be a worker and is none any more, or does not become one in time, is reported
with the reason. What follows from that is the cluster's business.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Collection

import dask
from dask.utils import parse_timedelta

from dask_gce.errors import GCEError, InstanceLost
from dask_gce.fleet import Fleet

logger = logging.getLogger(__name__)

#: Seconds between looks while machines are on their way, and when all is quiet.
BUSY_TICK, QUIET_TICK = 1.0, 15.0

#: Seconds between looks at least, however many workers come and go.
SHORTEST_TICK = 0.2


class Watcher:
    """Watches the workers of one cluster.

    Parameters
    ----------
    workers : callable
        Returns the names of the workers that should be there.
    registered : callable
        Returns the names of the workers that the scheduler knows.
    drop : callable
        Told the name of a worker that failed, and why.
    """

    def __init__(
        self,
        *,
        workers: Callable[[], Collection[str]],
        registered: Callable[[], Collection[str]],
        drop: Callable[[str, GCEError], None],
    ) -> None:
        self._workers = workers
        self._registered = registered
        self._drop = drop
        self._disturbed = asyncio.Event()
        self._unregistered: dict[str, float] = {}

    def disturb(self) -> None:
        """Look soon: something has changed."""
        self._disturbed.set()

    async def run(self, fleet: Fleet) -> None:
        """Watch until cancelled.

        Parameters
        ----------
        fleet : Fleet
            The cluster's instances.
        """
        while True:
            tick = BUSY_TICK if fleet.waiting or self._unregistered else QUIET_TICK
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(self._disturbed.wait(), tick)
            self._disturbed.clear()
            try:
                await fleet.look()
            except GCEError as error:
                logger.info("Compute Engine did not tell how the instances are: %s", error)
            else:
                await self._compare(fleet)
            await asyncio.sleep(SHORTEST_TICK)

    async def _compare(self, fleet: Fleet) -> None:
        for name in self._registered():
            fleet.mark_ready(name)
        for failure in await fleet.check(only=list(self._workers())):
            self._drop(failure.name, failure)

        now = asyncio.get_running_loop().time()
        absent = set(self._workers()) - set(self._registered()) - set(fleet.waiting)
        self._unregistered = {name: self._unregistered.get(name, now) for name in absent}
        # How long a worker may be away is Dask's own setting: a nanny restarts its worker.
        patience = parse_timedelta(dask.config.get("distributed.deploy.lost-worker-timeout"))
        for name, since in self._unregistered.items():
            if now - since > patience:
                text = (
                    f"The worker {name} left the scheduler {patience:g} s ago and did not come "
                    f"back. Its instance in zone {fleet.zone} is deleted."
                )
                self._drop(name, InstanceLost(text, name=name, zone=fleet.zone))
