"""A Dask scheduler on an instance of its own, and when it counts as reached."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable

from distributed.core import Status

from dask_gce import names
from dask_gce.blueprint import Blueprint
from dask_gce.errors import GCEError, InstanceError, StartTimeout
from dask_gce.failures import Cause, cause_of
from dask_gce.fleet import Fleet
from dask_gce.instance import Instance
from dask_gce.placement import Location, Placement
from dask_gce.process import GCEProcess
from dask_gce.reach.approach import Approach

logger = logging.getLogger(__name__)

#: Seconds between attempts to reach a booting scheduler: quick at first, since the local Compute
#: Engine and warm images boot in a second, and never slower than this.
FIRST_PAUSE, LONGEST_PAUSE = 0.1, 0.3

#: What instances show that have got the host they run on. Before, an insert may still fail.
PLACED = frozenset({"STAGING", "RUNNING"})

#: Seconds for an attempt under way when the time is over and none has ended before.
LAST_KNOCK = 10.0


class GCEScheduler(GCEProcess):
    """The cluster's scheduler.

    It is started once it answers through the route that the client will use. Workers find it at its
    internal address, whichever that is. Where there is
    no capacity or quota for it, it moves to the next location, under a new name.

    Parameters
    ----------
    name : str
        The instance's name.
    fleet : Fleet
        The cluster's instances.
    blueprint : Blueprint
        How the cluster's machines are made.
    placement : Placement
        Where it may be made.
    location : Location
        Where it is made first.
    approach : Approach
        How the client reaches it.
    moved : callable or None
        Called when it moves, with the name it leaves, so that its workers move with it; None for
        one that exists and therefore does not move.
    explain : callable
        Tells what the firewall may keep out; an empty text if nothing.
    admit : callable or None
        Has let in who is to reach it, once its machine is certain to come to be; None where that
        has been done.
    """

    def __init__(
        self,
        *,
        name: str,
        fleet: Fleet,
        blueprint: Blueprint,
        placement: Placement,
        location: Location,
        approach: Approach,
        moved: Callable[[str], None] | None,
        explain: Callable[[], str] = lambda: "",
        admit: Callable[[], Awaitable[None]] | None = None,
    ) -> None:
        spec = blueprint.scheduler(name, location)
        super().__init__(fleet, spec, location, blueprint.settings.start_timeout)
        self.blueprint = blueprint
        #: How the client reaches it; closed by the cluster.
        self.approach = approach
        # What was in the way when it was last asked.
        self._obstacle = ""
        self._placement = placement
        self._moved = moved
        self._explain_firewall = explain
        self._admit = admit
        # Why who is to reach it could not be let in; another place would not help.
        self._shut_out: GCEError | None = None
        #: Set by the cluster: why the scheduler has failed, or why it is in the wrong place.
        self.failure: GCEError | None = None

    @property
    def contact_address(self) -> str:
        """Where workers find it; known before it exists."""
        return self.blueprint.address(self.name, self.location.zone)

    async def start(self) -> None:
        """Boot the scheduler and wait until it can be reached.

        Raises
        ------
        GCEError
            If the instance was refused, failed, or was not ready within ``start_timeout``. The
            message carries its boot phase and the end of its serial console.
        """
        while True:
            try:
                await super().start()
                self.status = Status.starting
                await self._wait_until_reachable()
                break
            except GCEError as error:
                if error is self._shut_out or not self._move(error):
                    self.status = Status.failed
                    raise
        self.address = self.external_address = self._reached_at()
        self.status = Status.running

    def _reached_at(self) -> str:
        """Return where the client finds it, once it has been reached."""
        place = self.approach.address(self.blueprint.settings.scheduler_port)
        if place is None:
            raise GCEError(f"The way to the scheduler {self.name} was closed.")
        host, port = place
        return f"{self.blueprint.protocol}://{host}:{port}"

    def _move(self, error: GCEError) -> bool:
        """Move on to the next location, if that may help."""
        reason = error.__cause__ if isinstance(error.__cause__, GCEError) else error
        if self._moved is None or cause_of(reason) not in (Cause.CAPACITY, Cause.QUOTA):
            return False
        if self.failure is None or isinstance(self.failure, InstanceError):
            # Else it was the workers' machines that are not to be had here.
            self._placement.block(self.location, reason)
        location = self._placement.choose()
        if location is None or location == self.location:
            return False
        self.fleet.events.note(
            self.name, "moved", f"to {location.machine_type} in {location.zone}: {reason}"
        )
        self.failure = None
        self._obstacle = ""
        self.location = location
        name = names.instance_name(self.fleet.cluster, "scheduler")
        left, self.spec = self.name, self.blueprint.scheduler(name, location)
        self._moved(left)
        return True

    async def _wait_until_reachable(self) -> None:
        pause = FIRST_PAUSE
        member = self.fleet.members[self.name]
        # Beside the rest: what keeps this process from reaching it must not hide that it failed.
        knocking: asyncio.Task[str] | None = None
        admitting: asyncio.Task[None] | None = None
        try:
            while True:
                instance = member.instance
                if admitting is None and instance is not None and instance.status in PLACED:
                    # Compute Engine ends machines after some time, but not firewall rules: whoever
                    # dies at any moment leaves no rule without a machine that removes it.
                    admitting = asyncio.ensure_future(self._let_in())
                if admitting is not None and admitting.done():
                    admitting.result()
                if knocking is None and instance is not None and instance.status == "RUNNING":
                    knocking = asyncio.ensure_future(self._knock(instance))
                if isinstance(self.failure, StartTimeout) and knocking and not self._obstacle:
                    # Else nobody would learn what is in the way.
                    await asyncio.wait({knocking}, timeout=LAST_KNOCK)
                    self._obstacle = knocking.result() if knocking.done() else ""
                if self.failure is not None:
                    raise await self._explain(self.failure)
                if knocking is not None:
                    await asyncio.wait({knocking}, timeout=pause)
                if knocking is not None and knocking.done():
                    self._obstacle, knocking = knocking.result(), None
                    if not self._obstacle and admitting is not None and admitting.done():
                        self.fleet.mark_ready(self.name)
                        return
                await asyncio.sleep(pause)
                pause = min(pause * 1.2, LONGEST_PAUSE)
        finally:
            for task in (knocking, admitting):
                if task is not None:
                    task.cancel()
                    await asyncio.gather(task, return_exceptions=True)

    async def _let_in(self) -> None:
        if self._admit is None:
            return
        try:
            await self._admit()
        except GCEError as error:
            self._shut_out = error
            raise
        self._admit = None

    async def _knock(self, instance: Instance) -> str:
        """Go to the machine and ask its scheduler; return what is in the way, if anything."""
        await self.approach.open(instance)
        return await self.approach.find_obstacle()

    async def _explain(self, failure: GCEError) -> GCEError:
        """Add to an error what kept this process from reaching a scheduler that may well run."""
        if not isinstance(failure, StartTimeout) or not self._obstacle:
            return failure
        place = self.approach.describe(self.blueprint.settings.scheduler_port)
        error = StartTimeout(
            f"{failure.message}\nThe way to it is {self.approach.route}. "
            f"From here {place} was asked: {self._obstacle.rstrip('.')}.\n"
            f"{self._explain_firewall()}".rstrip(),
            name=failure.name,
            zone=failure.zone,
            phase=failure.phase,
            serial_tail=failure.serial_tail,
        )
        error.__cause__ = failure.__cause__
        return error
