"""Watches a cluster's workers while it lives.

Owns the comparison of two views: what Compute Engine says of the machines, and whom the scheduler
knows. Whoever should be a worker and is none any more, or does not become one in time, is reported
with the reason. What follows from that is the cluster's business.
"""

from __future__ import annotations

import asyncio
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

#: Looks in a row without an answer after which the user is told.
WARN_AFTER = 5


class Watcher:
    """Watches the workers of one cluster.

    Parameters
    ----------
    workers : callable
        Returns the names of the workers that should be there.
    registered : callable
        Returns the names of the workers that the scheduler knows.
    drop : callable
        Told the name of an instance that failed, and why.
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
        self._silent = 0

    def disturb(self) -> None:
        """Look soon: something has changed."""
        self._disturbed.set()

    async def run(self, fleet: Fleet, scheduler: str) -> None:
        """Watch until cancelled.

        Parameters
        ----------
        fleet : Fleet
            The cluster's instances.
        scheduler : str
            The name of the scheduler's instance, which is watched too.
        """
        while True:
            tick = BUSY_TICK if fleet.unsettled or self._unregistered else QUIET_TICK
            # Not wait_for, which before Python 3.12 can swallow the cancellation that ends this.
            disturbed = asyncio.ensure_future(self._disturbed.wait())
            try:
                await asyncio.wait({disturbed}, timeout=tick)
            finally:
                disturbed.cancel()
            self._disturbed.clear()
            await self._look(fleet)
            await self._compare(fleet, scheduler)
            await asyncio.sleep(SHORTEST_TICK)

    async def _look(self, fleet: Fleet) -> None:
        try:
            await fleet.look()
        except GCEError as error:
            # What was seen last stays, and deadlines go on.
            self._silent += 1
            level = logging.WARNING if self._silent == WARN_AFTER else logging.INFO
            logger.log(level, "Compute Engine does not tell how the instances are: %s", error)
        else:
            self._silent = 0

    async def _compare(self, fleet: Fleet, scheduler: str) -> None:
        for name in self._registered():
            fleet.mark_ready(name)
        for failure in await fleet.check(only=[scheduler, *self._workers()]):
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
