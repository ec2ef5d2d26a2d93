"""Watches a cluster's machines while it lives.

Owns the comparison of two views: what Compute Engine says of the machines, and whom the scheduler
knows. Whoever should be a worker and is none any more, or does not become one in time, is reported
with the reason. What follows from that is the cluster's business.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Collection, Mapping

import dask
from dask.utils import parse_timedelta

from dask_gce.errors import GCEError, InstanceError, InstanceLost
from dask_gce.fleet import Fleet
from dask_gce.member import Member

logger = logging.getLogger(__name__)

#: Seconds between looks right after a change and while machines are on their way; and how the
#: first grows into the second.
FIRST_TICK, BUSY_TICK, GROWTH = 0.25, 1.0, 1.5

#: Seconds between looks while Compute Engine will tell that an insert has ended, and in quiet.
FOLLOWED_TICK, QUIET_TICK = 3.0, 5.0

#: Seconds between looks at least, however much happens.
SHORTEST_TICK = 0.1

#: Looks in a row without an answer after which the user is told.
WARN_AFTER = 5


class Watcher:
    """Watches the machines of one cluster.

    Parameters
    ----------
    machines : callable
        Returns the names of the worker machines that should be there.
    registered : callable
        Returns the names of those of whose workers the scheduler knows some, and how many.
    processes : callable
        Returns how many workers each machine has.
    drop : callable
        Told the name of an instance that failed, and why.
    after : callable
        Called after each look.
    """

    def __init__(
        self,
        *,
        machines: Callable[[], Collection[str]],
        registered: Callable[[], Mapping[str, int]],
        processes: Callable[[], int],
        drop: Callable[[str, GCEError], None],
        after: Callable[[], None] = lambda: None,
    ) -> None:
        self._machines = machines
        self._registered = registered
        self._processes = processes
        self._drop = drop
        self._after = after
        self._disturbed = asyncio.Event()
        self._unregistered: dict[str, float] = {}
        self._tick = FIRST_TICK
        self._silent = 0

    def disturb(self) -> None:
        """Look soon: something has changed."""
        self._disturbed.set()

    async def run(self, fleet: Fleet, scheduler: Callable[[], str]) -> None:
        """Watch until cancelled.

        Parameters
        ----------
        fleet : Fleet
            The cluster's instances.
        scheduler : callable
            Returns the name of the scheduler's instance, which is watched too.
        """
        while True:
            # Not wait_for, which before Python 3.12 can swallow the cancellation that ends this.
            disturbed = asyncio.ensure_future(self._disturbed.wait())
            try:
                await asyncio.wait({disturbed}, timeout=self._next_tick(fleet))
            finally:
                disturbed.cancel()
            self._disturbed.clear()
            if fleet.members:
                await self._look(fleet)
                await self._compare(fleet, scheduler())
                self._after()
            await asyncio.sleep(SHORTEST_TICK)

    def _next_tick(self, fleet: Fleet) -> float:
        if not fleet.unsettled and not self._unregistered:
            self._tick = FIRST_TICK
            return QUIET_TICK
        if fleet.following:
            self._tick = FIRST_TICK
            return FOLLOWED_TICK
        tick = self._tick
        self._tick = min(tick * GROWTH, BUSY_TICK)
        return tick

    async def _look(self, fleet: Fleet) -> None:
        try:
            await fleet.look()
        except GCEError as error:
            # What was seen last stays, and deadlines go on.
            self._silent += 1
            if self._silent == WARN_AFTER:
                why = f"Compute Engine does not tell how the instances are: {error}"
                logger.warning("%s", why)
                fleet.events.note(fleet.cluster, "unknown", why)
        else:
            self._silent = 0

    async def _compare(self, fleet: Fleet, scheduler: str) -> None:
        for failure in await fleet.check(only=[scheduler, *self._machines()]):
            self._drop(failure.name, failure)

        now = asyncio.get_running_loop().time()
        registered, processes = self._registered(), self._processes()
        waiting = set(fleet.waiting)
        short = {
            name
            for name in self._machines()
            if name not in waiting and registered.get(name, 0) < processes
        }
        self._unregistered = {name: self._unregistered.get(name, now) for name in short}
        # How long a worker may be away is Dask's own setting: a nanny restarts its worker.
        patience = parse_timedelta(dask.config.get("distributed.deploy.lost-worker-timeout"))
        lost = [name for name, since in self._unregistered.items() if now - since > patience]
        if not lost:
            return
        # Their consoles go with them.
        await fleet.inspect(lost)
        registered = self._registered()
        for name in lost:
            member = fleet.members.get(name)
            if member is not None and registered.get(name, 0) < processes:
                self._drop(name, _loss(member, registered.get(name, 0), patience))


def _loss(member: Member, left: int, patience: float) -> InstanceError:
    """Make the error of a machine that workers have left."""
    name, zone = member.name, member.zone
    cls: type[InstanceError]
    if left:
        cls, text = (
            InstanceError,
            f"Some workers of {name} left the scheduler {patience:g} s ago and did not come back. "
            f"The {left} others are retired, and the instance in zone {zone} is replaced.",
        )
    else:
        cls, text = (
            InstanceLost,
            f"The worker {name} left the scheduler {patience:g} s ago and did not come "
            f"back. Its instance in zone {zone} is deleted.",
        )
    if member.tail:
        text += f"\nIts serial console ends with:\n{member.tail}"
    return cls(text, name=name, zone=zone, phase=member.phase, serial_tail=member.tail)
