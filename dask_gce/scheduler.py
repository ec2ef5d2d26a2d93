"""A Dask scheduler on an instance of its own."""

from __future__ import annotations

import asyncio
import contextlib

from distributed.core import Status

from dask_gce.blueprint import Blueprint
from dask_gce.errors import GCEError
from dask_gce.fleet import Fleet
from dask_gce.member import Member
from dask_gce.process import GCEProcess

#: Seconds between looks at a booting scheduler: quick at first, since the local Compute Engine and
#: warm images boot in a second, and never slower than this.
FIRST_PAUSE, LONGEST_PAUSE = 0.1, 2.0

#: Seconds after which a connection attempt counts as unanswered.
PROBE_TIMEOUT = 3.0


class GCEScheduler(GCEProcess):
    """The cluster's scheduler.

    It is started once its port answers through the route that the client will use.

    Parameters
    ----------
    name : str
        The instance's name.
    fleet : Fleet
        The cluster's instances.
    blueprint : Blueprint
        How the cluster's machines are made.
    """

    def __init__(self, *, name: str, fleet: Fleet, blueprint: Blueprint) -> None:
        super().__init__(fleet, blueprint.scheduler(name), blueprint.settings.start_timeout)
        self.blueprint = blueprint
        #: Where workers find it.
        self.contact_address = blueprint.address(name)

    async def start(self) -> None:
        """Boot the scheduler and wait until it can be reached.

        Raises
        ------
        GCEError
            If the instance was refused, failed, or was not ready within ``start_timeout``. The
            message carries its boot phase and the end of its serial console.
        """
        await super().start()
        self.status = Status.starting
        try:
            host = await self._wait_until_reachable()
        except GCEError:
            self.status = Status.failed
            raise
        port = self.blueprint.settings.scheduler_port
        self.address = self.external_address = f"{self.blueprint.protocol}://{host}:{port}"
        self.status = Status.running

    async def _wait_until_reachable(self) -> str:
        pause = FIRST_PAUSE
        member = self.fleet.members[self.name]
        port = self.blueprint.settings.scheduler_port
        while True:
            # A look that was not answered tells nothing; the deadline is checked all the same.
            with contextlib.suppress(GCEError):
                await self.fleet.look()
            hosts = self._hosts(member)
            answers = await asyncio.gather(*(_answers(host, port) for host in hosts))
            for host, answered in zip(hosts, answers, strict=True):
                if answered:
                    self.fleet.mark_ready(self.name)
                    return host
            failures = await self.fleet.check(only=[self.name])
            if failures:
                raise failures[0]
            await asyncio.sleep(pause)
            pause = min(pause * 1.5, LONGEST_PAUSE)

    def _hosts(self, member: Member) -> list[str]:
        """Return the addresses through which this process may reach the scheduler, once known.

        From outside the network only the external one answers. From inside it is the internal
        one: firewall rules for a network's own addresses do not cover the way round.
        """
        instance = member.instance
        if instance is None or instance.status != "RUNNING":
            return []
        return [host for host in (instance.external_ip, instance.internal_ip) if host]


async def _answers(host: str, port: int) -> bool:
    try:
        _, writer = await asyncio.wait_for(asyncio.open_connection(host, port), PROBE_TIMEOUT)
    except (OSError, asyncio.TimeoutError):
        return False
    writer.close()
    with contextlib.suppress(OSError):
        await writer.wait_closed()
    return True
