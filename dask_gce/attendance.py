"""What a cluster does while it runs: listens to its scheduler, answers those who wait.

Owns the connection to the scheduler, which may be lost and found again, and what is said when the
scheduler itself is lost. What becomes of workers is in `replacement`.
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from typing import Any

from dask.utils import parse_timedelta
from distributed.core import Status, rpc
from distributed.objects import SchedulerInfo
from distributed.utils import format_dashboard_link

from dask_gce import expiry, shared_plan
from dask_gce.assembly import AssembledCluster
from dask_gce.errors import CredentialsError, GCEError, StartTimeout, TunnelError
from dask_gce.probing import UNREACHABLE
from dask_gce.scheduler_rpc import SchedulerRPC
from dask_gce.trust import end_of

logger = logging.getLogger(__name__)

#: Seconds between attempts to reach a scheduler that was lost from sight.
RECONNECT_AFTER = 2.0

#: Seconds between questions which workers there are, where others may be told instead of us; and as
#: many more for each thousand workers.
FOLLOW_AFTER = 1.0


class AttendedCluster(AssembledCluster):
    """A cluster that stays in touch with its scheduler."""

    _scheduler_rpc: SchedulerRPC | None = None
    #: Whether the scheduler left the last question unanswered which workers there are.
    _unanswered = False
    #: Why nobody can connect any more: the certificates have ended.
    _expired: CredentialsError | None = None
    #: Since when it has told nothing of its workers, on the monotonic clock; None while it does.
    _silent_since: float | None = None

    @property
    def scheduler_comm(self) -> Any:
        """The connections to the scheduler, a `SchedulerRPC`; None before it has started."""
        return self._scheduler_rpc

    @scheduler_comm.setter
    def scheduler_comm(self, plain: rpc | None) -> None:
        # SpecCluster makes its own, once the scheduler's address is known.
        self._scheduler_rpc = None if plain is None else SchedulerRPC(plain)

    def _drop(self, name: str, failure: GCEError) -> None:
        """Take a machine that failed out of the plan; without its scheduler the cluster is lost."""
        scheduler = self._scheduler
        if name != scheduler.name:
            if isinstance(failure, StartTimeout) and self._is_deaf:
                # It may work, for others or unknown to us: whether it has come is not known.
                self._grant_time(name)
            else:
                super()._drop(name, failure)
        elif self.status == Status.starting:
            scheduler.failure = failure  # its start() raises it
        elif self._lost is None:
            self.events.note(name, "lost", str(failure).partition("\n")[0])
            self._log(str(failure))
            self._lose(failure)
            # Where the tunnels led to, there is nothing any more.
            self._spawn(scheduler.approach.close())

    @property
    def _is_deaf(self) -> bool:
        """Whether the scheduler, though it may be there, tells nothing of its workers."""
        listening = self._watch_worker_status_task
        silent = self._unanswered or (listening is not None and listening.done())
        return silent and self._lost is None

    def _grant_time(self, name: str) -> None:
        if self._fleet is not None and name in self._fleet.members:
            self._fleet.members[name].inserted = time.monotonic()

    def _note_silence(self, since: float) -> None:
        if self._silent_since is None:
            self._silent_since = since

    def _note_voice(self) -> None:
        """Let the time in which nothing was heard count for no machine that is to come."""
        since = self._silent_since
        if since is None or self._is_deaf or self._fleet is None:
            return
        self._silent_since, now = None, time.monotonic()
        for name in self._fleet.waiting:
            member = self._fleet.members[name]
            member.inserted += now - max(since, member.inserted)

    async def _watch_worker_status(self, comm: Any) -> None:
        await super()._watch_worker_status(comm)
        # The scheduler has gone, or the network has, or we have.
        if self.status == Status.running:
            self._note_silence(time.monotonic())
            self._watcher.disturb()
            self._spawn(self._reconnect())

    async def _reconnect(self) -> None:
        """Listen to the scheduler again, as after a laptop's sleep, unless it is gone."""
        scheduler, connections = self._scheduler, self.scheduler_comm
        self.events.note(scheduler.name, "disconnected")
        while self.status == Status.running and self._lost is None and connections is not None:
            if self._expired is not None:
                self.events.note(scheduler.name, "gave up", str(self._expired))
                if self.shutdown_on_close:
                    self._lose(self._expired)
                return
            if await self.reaches_scheduler():
                try:
                    comm = await connections.live_comm()
                    comm.name = "Cluster worker status"
                    await comm.write({"op": "subscribe_worker_status"})
                    self.scheduler_info = SchedulerInfo(await comm.read())
                except UNREACHABLE as error:
                    logger.info("The scheduler does not answer yet: %s", error)
                else:
                    self._watch_worker_status_comm = comm
                    self._watch_worker_status_task = asyncio.ensure_future(
                        self._watch_worker_status(comm)
                    )
                    self.events.note(scheduler.name, "reconnected")
                    self._note_arrival(set(self._registered()))
                    self._note_voice()
                    self._watcher.disturb()
                    return
            await asyncio.sleep(RECONNECT_AFTER)

    async def reaches_scheduler(self) -> bool:
        """Tell whether the scheduler answers from here.

        Returns
        -------
        bool
            Whether it does, by the way that the cluster has taken.
        """
        try:
            return not await self._scheduler.approach.find_obstacle()
        except TunnelError as error:
            # A right may be given back.
            logger.info("%s", error)
            return False

    async def _follow_certificates(self) -> None:
        """Say when the certificates end: now, a day before, and once they have."""
        blueprint = self._ready.blueprint
        end = end_of(self._ready.client_tls, *blueprint.tls.values())
        if end is None:
            return
        until = f"its certificates are valid until {expiry.moment(end)}"
        self.events.note(self.name, "secured", until)
        if blueprint.expires is None or end.timestamp() < blueprint.expires:
            # Else the cluster itself ends before them.
            await expiry.wait_until(end - expiry.NOTICE)
            self._warn("expiring", expiry.describe_approach(self.name, end))
        await expiry.wait_until(end)
        text = expiry.describe_end(self.name, end)
        self._expired = CredentialsError(text)
        self._recovery.forbid(text)
        self._warn("expired", text)

    def _warn(self, what: str, text: str) -> None:
        self.events.note(self.name, what, text)
        self._log(text)
        if self.quiet:  # else it has been printed
            logger.warning("%s", text)

    async def _follow_workers(self) -> None:
        """Learn of workers also when the scheduler tells somebody else.

        It tells only one, whoever has subscribed last: its plugin has one name for all
        (``WorkerStatusPlugin`` in distributed/scheduler.py).
        """
        while self._lost is None:
            await asyncio.sleep(FOLLOW_AFTER + len(self.scheduler_info["workers"]) / 1000)
            asked = time.monotonic()
            try:
                known = self.scheduler_info["workers"]
                if (await self._ask("ncores")).keys() != known.keys():
                    self._compare((await self._ask("identity"))["workers"])
            except UNREACHABLE as error:
                logger.info("The scheduler does not tell its workers: %s", error)
                self._unanswered = True
                self._note_silence(asked)
            else:
                self._unanswered = False
                self._note_voice()

    async def _ask(self, what: str) -> Any:
        return await shared_plan.answer(getattr(self.scheduler_comm, what)())

    def _compare(self, workers: dict[str, Any]) -> None:
        known = self.scheduler_info["workers"]
        for address in known.keys() - workers.keys():
            self._update_worker_status("remove", address)
        if new := {each: workers[each] for each in workers.keys() - known.keys()}:
            self._update_worker_status("add", {"workers": new})

    async def _wait_for_workers(self, n_workers: int = 0, timeout: Any = None) -> None:
        loop = asyncio.get_running_loop()
        seconds = parse_timedelta(timeout) if timeout else None
        deadline = math.inf if seconds is None else loop.time() + seconds
        # From what the scheduler has told: asking it each time costs a tenth of a core.
        while (count := len(self.scheduler_info["workers"])) < n_workers:
            if self._lost is not None:
                raise self._lost
            if self._recovery.exhausted is not None:
                raise self._recovery.exhausted
            if self._closing is not None:
                raise GCEError(f"Cluster {self.name} was closed; {count} workers had arrived.")
            if loop.time() > deadline:
                raise asyncio.TimeoutError(
                    f"Only {count} of {n_workers} workers of {self.name} arrived within "
                    f"{seconds:g} s; {len(self._fleet.waiting) if self._fleet else 0} machines are "
                    f"still on their way, {len(self.failures)} have failed (see cluster.events)."
                )
            await asyncio.sleep(0.05)

    @property
    def dashboard_link(self) -> str:
        """The dashboard's address, as a browser on this computer reaches it."""
        scheduler = self.scheduler
        if scheduler is None or scheduler.approach.route.kind != "iap":
            return str(super().dashboard_link)
        place = scheduler.approach.address(self.settings.dashboard_port)
        # Where the port is taken Dask chooses another one, to which neither a tunnel nor a firewall
        # rule leads; at this one is somebody else.
        there = self.scheduler_info["services"].get("dashboard")
        if place is None or there != self.settings.dashboard_port:
            return ""
        return str(format_dashboard_link(*place))
