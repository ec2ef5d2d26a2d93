"""A Dask scheduler on an instance of its own."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

from distributed.core import Status

from dask_gce import names
from dask_gce.blueprint import Blueprint
from dask_gce.errors import GCEError, InstanceError
from dask_gce.failures import Cause, cause_of
from dask_gce.fleet import Fleet
from dask_gce.member import Member
from dask_gce.placement import Location, Placement
from dask_gce.probing import answers_at, leads_to_local_engine
from dask_gce.process import GCEProcess

logger = logging.getLogger(__name__)

#: Seconds between attempts to reach a booting scheduler: quick at first, since the local Compute
#: Engine and warm images boot in a second, and never slower than this.
FIRST_PAUSE, LONGEST_PAUSE = 0.1, 0.3


class GCEScheduler(GCEProcess):
    """The cluster's scheduler.

    It is started once its port answers through the route that the client will use. Where there is
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
    moved : callable or None
        Called when it moves, with the name it leaves, so that its workers move with it; None for
        one that exists and therefore does not move.
    """

    def __init__(
        self,
        *,
        name: str,
        fleet: Fleet,
        blueprint: Blueprint,
        placement: Placement,
        location: Location,
        moved: Callable[[str], None] | None,
    ) -> None:
        spec = blueprint.scheduler(name, location)
        super().__init__(fleet, spec, location, blueprint.settings.start_timeout)
        self.blueprint = blueprint
        self._placement = placement
        self._moved = moved
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
                host = await self._wait_until_reachable()
                break
            except GCEError as error:
                if not self._move(error):
                    self.status = Status.failed
                    raise
        port = self.blueprint.settings.scheduler_port
        self.address = self.external_address = f"{self.blueprint.protocol}://{host}:{port}"
        self.status = Status.running

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
        self.location = location
        name = names.instance_name(self.fleet.cluster, "scheduler")
        left, self.spec = self.name, self.blueprint.scheduler(name, location)
        self._moved(left)
        return True

    async def _wait_until_reachable(self) -> str:
        pause = FIRST_PAUSE
        member = self.fleet.members[self.name]
        port = self.blueprint.settings.scheduler_port
        # Side by side, each at its own pace: an address that this process has no route to swallows
        # what is sent there, and keeps a probe for seconds.
        probes: dict[str, asyncio.Future[bool]] = {}
        try:
            while True:
                if self.failure is not None:
                    raise self.failure
                for host in self._hosts(member):
                    if host not in probes:
                        probes[host] = asyncio.ensure_future(answers_at(host, port))
                if probes:
                    await asyncio.wait(
                        probes.values(), timeout=pause, return_when=asyncio.FIRST_COMPLETED
                    )
                for host in [host for host, probe in probes.items() if probe.done()]:
                    if probes.pop(host).result():
                        self.fleet.mark_ready(self.name)
                        return host
                await asyncio.sleep(pause)
                pause = min(pause * 1.2, LONGEST_PAUSE)
        finally:
            for probe in probes.values():
                probe.cancel()
            if probes:
                await asyncio.wait(probes.values())

    def _hosts(self, member: Member) -> list[str]:
        """Return the addresses through which this process may reach the scheduler, once known.

        From outside the network only the external one answers. From inside it is the internal
        one: firewall rules for a network's own addresses do not cover the way round.
        """
        instance = member.instance
        if instance is None or instance.status != "RUNNING":
            return []
        hosts = [host for host in (instance.external_ip, instance.internal_ip) if host]
        if self.blueprint.settings.is_local:
            return [host for host in hosts if leads_to_local_engine(host)]
        return hosts
