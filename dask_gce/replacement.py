"""What follows from a failure: who is dropped from the plan, and where and when another is made.

Owns the watch over machines and the decision whether to ask again. When that is, and when it is
given up, is counted in `recovery`; where machines are to be had is known to `placement`.
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
import weakref
from functools import partial
from typing import Any

from distributed.core import Status

from dask_gce.errors import (
    APIError,
    CredentialsError,
    GCEError,
    InstanceLost,
    OperationError,
    SettingsError,
)
from dask_gce.failures import Cause, cause_of
from dask_gce.fleet import Fleet
from dask_gce.insertion import refuses_notice
from dask_gce.instance import Instance
from dask_gce.placement import Location
from dask_gce.recovery import Recovery
from dask_gce.settings import Settings
from dask_gce.sharing import SharedCluster
from dask_gce.watcher import Watcher
from dask_gce.worker import GCEWorker

logger = logging.getLogger(__name__)

#: Seconds until watching goes on after an error that nobody foresaw.
WATCH_AGAIN = 2.0

#: Seconds for which one failure that was told speaks for those that follow it: a zone of a thousand
#: machines may be preempted at once. All are in `failures` and `events`.
TOLD_FOR = 1.0

#: Failures that ``cluster.failures`` keeps; the oldest go first. Each carries the end of a console.
KEPT_FAILURES = 1000

#: Seconds that a worker must stay to count as started. One that ends sooner has failed to start.
STEADY = 10.0


class ReplacingCluster(SharedCluster):
    """A cluster that replaces workers that failed.

    Parameters
    ----------
    settings : Settings
        The cluster's settings.
    name : str
        The cluster's name.
    **options
        What SpecCluster takes.
    """

    def __init__(self, settings: Settings, name: str, **options: Any) -> None:
        self._recovery = Recovery(name, limit=settings.worker_start_failure_limit)
        self._restoring: asyncio.TimerHandle | None = None
        self._blocked = ""
        self._told = -math.inf
        # Machines whose preemption has been counted.
        self._preempted: set[str] = set()
        # Where Spot machines were that are lost for another reason, as far as is known.
        self._lost_from: dict[str, Location] = {}
        # Whether the scheduler knows no worker.
        self._deserted = asyncio.Event()
        self._deserted.set()
        self._watching: asyncio.Task[None] | None = None
        self._closing: asyncio.Task[None] | None = None
        self._watcher = Watcher(
            machines=lambda: set(self.workers) & set(self.worker_spec),
            registered=self._registered,
            processes=lambda: self._prepared.blueprint.processes if self._prepared else 1,
            drop=self._drop,
            after=self._note_steady,
        )
        super().__init__(settings, name, **options)

    @property
    def _adapts(self) -> bool:
        return bool(self._adaptive and self._adaptive.periodic_callback)

    def _watch(self, fleet: Fleet) -> None:
        """Watch the machines for as long as the cluster lives: every deadline depends on it."""
        if self._closing is None:
            self._watching = asyncio.ensure_future(
                self._watcher.run(fleet, lambda: self._scheduler.name)
            )
            self._watching.add_done_callback(partial(self._watch_again, fleet))

    def _watch_again(self, fleet: Fleet, watching: asyncio.Task[None]) -> None:
        if not watching.cancelled() and (error := watching.exception()) is not None:
            logger.error("Watching cluster %s failed, and goes on.", self.name, exc_info=error)
            asyncio.get_running_loop().call_later(WATCH_AGAIN, self._watch, fleet)

    def _add_worker(self, name: str, spec: dict[str, Any]) -> None:
        """Ask for the machine of one that is planned, or take note of it if it exists."""
        worker: Any = self._draw_worker(name, spec)
        worker._cluster = weakref.ref(self)
        self._created.add(worker)
        self.workers[name] = worker
        worker.request().add_done_callback(partial(self._asked, worker))

    def _draw_worker(self, name: str, spec: dict[str, Any]) -> GCEWorker:
        """Return the machine of one that is planned, which nobody has asked for yet."""
        worker: GCEWorker = spec["cls"](
            self._scheduler.contact_address,
            **{"name": name, "location": self._choose_location(), **spec.get("options", {})},
        )
        if not worker.location.spot:
            self._on_demand.add(name)
        return worker

    def _plan_machine(self, fleet: Fleet, instance: Instance, location: Location) -> None:
        with self._plan_lock:
            super()._plan_machine(fleet, instance, location)
            # At once: only what has a worker here is deleted when it goes from the plan again.
            self._add_worker(instance.name, self.worker_spec[instance.name])

    def _asked(self, worker: GCEWorker, request: asyncio.Future[None]) -> None:
        """Take note of what Compute Engine said to the request of a worker's machine."""
        if request.cancelled():
            return
        if (error := request.exception()) is None:
            if worker.status == Status.created:
                worker.status = Status.running
            return
        worker.status = Status.failed
        if isinstance(error, GCEError):
            self._drop(worker.name, error)

    def _drop(self, name: str, failure: GCEError) -> None:
        """Take a machine that failed out of the plan, and see to its replacement."""
        with self._plan_lock:
            if self.worker_spec.pop(name, None) is None:
                return  # it was on its way out, or has been reported
        now = time.monotonic()
        member = self._fleet.members.get(name) if self._fleet is not None else None
        ready = member.ready_since if member is not None else None
        started = ready is not None and now - ready > STEADY
        taken = _is_preempted(failure, spot=member is not None and member.spec.spot)
        if isinstance(failure, InstanceLost):
            self._gone.add(name)
        worker = self.workers.get(name)
        if taken:
            self._note_preemption(name)
        elif worker is not None and isinstance(failure, InstanceLost):
            # It may yet be told that it was taken away.
            self._lost_from[name] = worker.location
            if len(self._lost_from) > KEPT_FAILURES:
                del self._lost_from[next(iter(self._lost_from))]
        self._keep(failure)
        self.events.note(name, "lost" if started else "failed", _first_line(failure))
        if started:
            if now - self._told > TOLD_FOR:
                self._log(str(failure))
                self._told = now
            # An adaptive cluster decides anew whether it needs another.
            pause = math.inf if self._adapts else 0.0
        elif self._leaves_losses or self._goes_elsewhere(name, failure):
            # Another process may have let it go. Failures are counted by whoever sees to the plan.
            pause = 0.0
        elif member is not None and member.spec.preemption_notice and _forgoes(failure):
            pause = 0.0  # the next request is another one
        elif taken:
            asked = member.inserted if member is not None else now
            self._recovery.preempted(failure, asked=asked, now=now)
            self._tell_of_exhaustion()
            pause = self._recovery.pause(now)
        else:
            asked = member.inserted if member is not None else now
            known = self._recovery.attempts
            self._recovery.failed(failure, asked=asked, now=now, lasting=_is_lasting(failure))
            if self._recovery.attempts > known:
                # One of the attempt speaks for all; the others are in `failures`.
                self._log(str(failure))
                self._tell_of_exhaustion()
            pause = self._recovery.pause(now)
        # Soon, not now: this is called from the midst of other things.
        asyncio.get_running_loop().call_soon(self._correct_state_soon)
        if pause < math.inf:
            self._restore_in(pause)

    def _tell_of_exhaustion(self) -> None:
        if self._recovery.exhausted is not None:
            self.events.note(self.name, "gave up", _first_line(self._recovery.exhausted))

    def _note_preemption(self, name: str) -> None:
        """Count a Spot machine that is taken away, and leave places alone that take too many."""
        worker = self.workers.get(name)
        location = self._lost_from.pop(name, None) if worker is None else worker.location
        if location is None or not location.spot or name in self._preempted:
            return
        self._preempted.add(name)
        there = sum(
            each.location == location
            for other, each in self.workers.items()
            if other in self.worker_spec and other != name
        )
        blocked = self._ready.workers.note_preemption(location, there=there)
        if blocked:
            self.events.note(self.name, "blocked", blocked)

    def _keep(self, failure: GCEError) -> None:
        self.failures.append(failure)
        del self.failures[:-KEPT_FAILURES]

    def _lose(self, failure: GCEError) -> None:
        """Take note that the scheduler is gone: let all workers go, and make no more."""
        self._lost = failure
        self._keep(failure)
        if self._adaptive is not None:
            self._adaptive.stop()
        with self._plan_lock:
            self._target = 0
            self.worker_spec.clear()
        self._correct_state_soon()

    def _goes_elsewhere(self, name: str, failure: GCEError) -> bool:
        """Leave a place alone that has no machines to give; tell whether there is another."""
        worker = self.workers.get(name)
        reason = failure.__cause__ if isinstance(failure.__cause__, GCEError) else failure
        if worker is None or cause_of(reason) not in (Cause.CAPACITY, Cause.QUOTA):
            return False
        placement = self._ready.workers
        blocked = placement.block(worker.location, reason)
        if blocked != self._blocked:
            self._blocked = blocked
            self.events.note(self.name, "blocked", f"{blocked}: {_first_line(reason)}")
        if worker.location.zone != (self._only_zone or worker.location.zone):
            return True  # the scheduler has moved since
        spot = worker.location.spot
        if self._find_place(spot=spot) is not None:
            return True
        # One that takes its machines away has some at least.
        last = placement.choose_blocked(self._only_zone, spot=spot)
        return not placement.is_blocked(last) or self._move_scheduler(reason)

    def _move_scheduler(self, reason: GCEError) -> bool:
        """Have a scheduler that is still booting move where workers are to be had."""
        scheduler, fleet = self._scheduler, self._fleet
        if scheduler.status == Status.running or fleet is None or self.settings.allow_cross_zone:
            return False
        workers = [fleet.members.get(name) for name in self.worker_spec]
        if any(member is not None and member.failure is None for member in workers):
            return False  # some machines are to be had here
        placement, zone = self._ready.schedulers, scheduler.location.zone
        for location in placement.locations:
            if location.zone == zone:
                placement.block(location, reason)
        if placement.choose() is None:
            return False
        scheduler.failure = reason
        return True

    def _follow_scheduler(self, left: str) -> None:
        """Plan all workers anew where the scheduler has moved."""
        with self._plan_lock:
            self.worker_spec.clear()
            self._fill()
        self._correct_state_soon()
        if self._fleet is not None:
            self._spawn(_delete_quietly(self._fleet, left))

    def _restore_in(self, seconds: float) -> None:
        """Bring the plan back to the target after a pause."""
        loop = asyncio.get_running_loop()
        if self._restoring is not None:
            if self._restoring.when() <= loop.time() + seconds:
                return
            # The long pause after giving up is over when the user asks anew.
            self._restoring.cancel()
        self._restoring = loop.call_later(seconds, self._restore)

    def _restore(self) -> None:
        self._restoring = None
        if self._recovery.exhausted is not None:
            return
        pause = self._recovery.pause(time.monotonic())
        if pause > 0:
            self._restore_in(pause)
            return
        self._spawn(self._replace())

    async def _replace(self) -> None:
        if await self._learn_plan():
            with self._plan_lock:
                self._fill()
            self._correct_state_soon()
        else:
            # Failures are counted by whoever sees to it.
            self._recovery.reset()

    def _note_steady(self) -> None:
        """Forget failures once a worker that was asked for after them has come and stayed."""
        if (self._recovery.attempts or self._recovery.taken) and self._fleet is not None:
            now = time.monotonic()
            for member in self._fleet.members.values():
                if member.ready_since is not None and now - member.ready_since > STEADY:
                    self._recovery.stayed(asked=member.inserted)


async def _delete_quietly(fleet: Fleet, name: str) -> None:
    try:
        await fleet.delete(name)
    except GCEError as error:
        # It is no longer on record, so that the next look finds and deletes it.
        logger.warning("Instance %s could not be deleted yet: %s", name, error)


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0]


def _is_preempted(failure: GCEError, *, spot: bool) -> bool:
    if isinstance(failure, InstanceLost):
        return failure.preempted
    # What becomes of the insert of a Spot machine that is taken away before it has ended.
    reason = failure.__cause__
    return spot and isinstance(reason, OperationError) and reason.code == "UNSUPPORTED_OPERATION"


def _forgoes(failure: GCEError) -> bool:
    """Tell whether a machine failed for a notice that is not asked for any more."""
    return isinstance(failure.__cause__, GCEError) and refuses_notice(failure.__cause__)


def _is_lasting(failure: GCEError) -> bool:
    """Tell whether asking again cannot help: the request itself is wrong, or not allowed."""
    reason = failure.__cause__ if isinstance(failure.__cause__, GCEError) else failure
    if isinstance(reason, SettingsError | CredentialsError):
        return True
    if cause_of(reason) in (Cause.PERMISSION, Cause.ABSENT):
        return True
    return isinstance(reason, APIError) and reason.status == 400
