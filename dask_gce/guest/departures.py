"""Let the workers of machines that are taken away go without losing what they hold: a preload.

A machine that learns that it will be taken away says so to the scheduler. From then on its workers
get nothing new to do; what waits there goes to others, what runs there may end, results are copied
to workers that stay, also to those that come later. Once a worker has nothing left that is its own
alone, or shortly before its end, it is closed.

``Scheduler.retire_workers`` is not used for that: it gives a worker back to work when there is
nobody to take its results yet, leaves all of them where one is an actor, and counts a worker as
done while tasks still run there.

Runs with Dask but without the package that sent it.
"""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import logging
import time
from collections.abc import Collection, Generator
from typing import Any

from distributed.active_memory_manager import (
    ActiveMemoryManagerExtension,
    ActiveMemoryManagerPolicy,
)
from distributed.core import Status
from distributed.diagnostics.plugin import SchedulerPlugin
from distributed.scheduler import Scheduler, TaskState, WorkerState
from distributed.stealing import WorkStealing

logger = logging.getLogger("distributed.scheduler.dask_gce_departures")

#: Seconds between two looks at workers that are leaving, at least; and this many times as long as
#: a look takes, so that the scheduler always has time for others.
INTERVAL, EASE = 0.05, 10
#: Seconds a machine stays listed after its end, for a client that asks now and then.
LISTED = 60.0
#: Workers are closed this share of the notice before its end, and this many seconds at least and
#: at most: a worker that is gone before its machine is not taken for one that died of its tasks.
SHARE, SOONEST, LATEST = 0.1, 0.5, 5.0
#: A worker that has nothing left is closed when a client has heard that its machine leaves, which
#: then knows why it goes, or after this share of the notice, and so many seconds at most; at once
#: where that is less than the last of these.
UNHEARD, UNHEARD_AT_MOST, HASTE = 1 / 6, 20.0, 2.0
#: Results that are sent on their way in one look.
AT_A_TIME = 5_000
#: Seconds after which a result that has not arrived is asked for again: so many, and one more for
#: that many bytes under way.
AGAIN, BYTES_A_SECOND = 5.0, 25e6
#: Seconds after which a task that could not be taken back, for it runs, is asked for again.
TAKE_AGAIN = 5.0


def _expected() -> dict[str, Any]:
    """Return how this version of Dask is told that a worker does not go because of its tasks."""
    known = inspect.signature(Scheduler.remove_worker).parameters
    return {"expected": True} if "expected" in known else {"safe": True}


class Departure:
    """A machine that will be taken away."""

    def __init__(self, machine: str, seconds: float, why: str) -> None:
        self.machine = machine
        self.why = why
        self.ends = self.closes = self.opens = 0.0
        self.heard = False
        self.set(seconds)

    def set(self, seconds: float) -> None:
        """Set how many seconds are left."""
        now = time.monotonic()
        patience = min(UNHEARD * seconds, UNHEARD_AT_MOST)
        self.opens = now + (patience if patience > HASTE else 0.0)
        self.ends = now + seconds
        self.closes = self.ends - min(max(SHARE * seconds, SOONEST), LATEST)

    def may_close(self, now: float, is_done: bool) -> bool:
        """Tell whether a worker may be closed that has something left or has not."""
        return now >= self.closes or (is_done and (self.heard or now >= self.opens))

    def concerns(self, worker: WorkerState) -> bool:
        """Tell whether a worker is one of this machine's, by its name."""
        name = str(worker.name)
        rest = name[len(self.machine) :]
        return name.startswith(self.machine) and (
            not rest or (rest[0] == "-" and rest[1:].isdecimal())
        )


class Evacuation(ActiveMemoryManagerPolicy):
    """Copies what only leaving workers hold to others."""

    def __init__(self, departures: Departures) -> None:
        self._departures = departures
        #: By key of a result that is on its way: to whom, and until when that is believed.
        self._sent: dict[Any, tuple[WorkerState, float]] = {}

    def run(self) -> Generator[Any, WorkerState | None, None]:
        """Suggest what to copy."""
        now = time.monotonic()
        leaving = self._departures.leaving
        self._sent = {
            key: (recipient, until)
            for key, (recipient, until) in self._sent.items()
            if until > now and recipient not in leaving
        }
        begun: dict[Any, WorkerState] = {}
        size = 0
        for worker in leaving:
            for task in worker.has_what:
                if len(begun) == AT_A_TIME:
                    break
                if task.key in self._sent or task.key in begun or self._departures.is_safe(task):
                    continue
                recipient = yield "replicate", task, None
                if recipient is not None:
                    begun[task.key] = recipient
                    size += max(task.nbytes, 0)
        until = time.monotonic() + AGAIN + size / BYTES_A_SECOND
        self._sent.update({key: (recipient, until) for key, recipient in begun.items()})


class Departures(SchedulerPlugin):
    """Attends to the workers of machines that are taken away."""

    name = "dask-gce-departures"

    def __init__(self, scheduler: Scheduler) -> None:
        self._scheduler = scheduler
        self._expected = _expected()
        self._machines: dict[str, Departure] = {}
        #: The workers that are leaving, as of the last look.
        self.leaving: Collection[WorkerState] = ()
        self._manager = ActiveMemoryManagerExtension(
            scheduler, policies={Evacuation(self)}, register=False, start=False
        )
        #: By key of a task that runs, when it may be asked for again.
        self._running: dict[Any, float] = {}
        self._closing: dict[str, asyncio.Future[Any]] = {}
        self._names: dict[str, str] = {}
        self._stealing: WorkStealing | None = None
        self._attending: asyncio.Task[None] | None = None
        #: By key, after whose loss it is to be computed again.
        self._lost: dict[Any, str] = {}
        self._recomputed: dict[str, int] = {}

    # What machines and clients ask ---------------------------------------------------------------

    async def leave(self, machine: str, seconds: float, why: str) -> dict[str, int]:
        """Let the workers of a machine go that will be taken away.

        Return how many there are, and how many workers stay.
        """
        seconds = max(float(seconds), 0.0)
        known = self._machines.get(machine)
        if known is None:
            known = self._machines[machine] = Departure(machine, seconds, str(why))
            logger.info("%s will be taken away in %.0f s: %s", machine, seconds, why)
        elif time.monotonic() + seconds < known.ends:
            # What is told twice, because the first answer was lost, is told later.
            known.set(seconds)
            known.why = str(why)
        if self._attending is None or self._attending.done():
            self._attending = asyncio.ensure_future(self._attend())
        self._look()
        count = sum(map(known.concerns, self._scheduler.workers.values()))
        return {"workers": count, "staying": len(self._scheduler.running)}

    def status(self) -> dict[str, Any]:
        """Tell a client which machines are leaving, and how many results were computed again."""
        now = time.monotonic()
        for each in self._machines.values():
            each.heard = True
        leaving = {
            each.machine: {"in": max(each.ends - now, 0.0), "why": each.why}
            for each in self._machines.values()
            if now < each.ends + LISTED
        }
        return {
            "leaving": leaving,
            "recomputed": sum(self._recomputed.values()),
            "recomputed_after": dict(self._recomputed),
        }

    # Who leaves, and what they hold --------------------------------------------------------------

    def _departure(self, worker: WorkerState) -> Departure | None:
        name = str(worker.name)
        found = self._machines.get(name) or self._machines.get(name.rpartition("-")[0])
        return found if found is not None and found.concerns(worker) else None

    def is_safe(self, task: TaskState) -> bool:
        """Tell whether a result need not be copied: somebody who stays has it, or it cannot be."""
        return bool(task.actor) or any(holder not in self.leaving for holder in task.who_has or ())

    def _is_done(self, worker: WorkerState) -> bool:
        """Tell whether a worker has nothing left that is its own alone."""
        # Actors and what runs stay until the end: neither can be moved.
        return not (worker.processing or worker.actors) and all(map(self.is_safe, worker.has_what))

    # What is done about it -----------------------------------------------------------------------

    async def _attend(self) -> None:
        while self._machines:
            began = time.monotonic()
            try:
                self._look()
            except Exception:
                # The scheduler has others to care for, and the next look may succeed.
                logger.exception("Workers that are leaving could not be looked at")
            await asyncio.sleep(max(INTERVAL, EASE * (time.monotonic() - began)))

    def _look(self) -> None:
        now = time.monotonic()
        for each in [one for one in self._machines.values() if now > one.ends + LISTED]:
            del self._machines[each.machine]
        found = ((each, self._departure(each)) for each in self._scheduler.workers.values())
        leaving = {worker: departure for worker, departure in found if departure is not None}
        self.leaving = leaving.keys()
        if not leaving:
            self._running.clear()
            return
        for worker in leaving:
            self._hold(worker)
        done = {worker for worker in leaving if self._is_done(worker)}
        if len(done) < len(leaving):
            self._manager.run_once()
            for worker in leaving:
                self._take_back(worker, now)
        for worker, departure in leaving.items():
            if departure.may_close(now, worker in done):
                self._close(worker)

    def _hold(self, worker: WorkerState) -> None:
        """Let a worker get nothing new to do, and begin nothing of what it has."""
        if worker.status not in (Status.running, Status.paused):
            return
        stimulus = f"dask-gce-leave-{time.time()}"
        self._scheduler.handle_worker_status_change(Status.closing_gracefully, worker, stimulus)
        self._scheduler.stream_comms[worker.address].send(
            {
                "op": "worker-status-change",
                "status": Status.closing_gracefully.name,
                "stimulus_id": stimulus,
            }
        )

    def _take_back(self, worker: WorkerState, now: float) -> None:
        """Give what waits on a worker to others; the worker is asked, for it may run by now."""
        if not worker.processing:
            return
        stealing = self._stealing = self._stealing or self._scheduler.extensions.get("stealing")
        if stealing is None:
            # Switched off by the user: this one does what it is asked, and balances nothing.
            stealing = self._stealing = WorkStealing(self._scheduler)
        load = {each: len(each.processing) / each.nthreads for each in self._scheduler.running}
        for task in list(worker.processing):
            if task.actor or task in worker.long_running or task in stealing.in_flight:
                continue
            if self._running.get(task.key, 0.0) > now:
                continue
            valid = self._scheduler.valid_workers(task)
            takers = load.keys() if valid is None else load.keys() & valid
            if not takers and task.loose_restrictions:
                takers = load.keys()
            if not takers:
                continue
            taker = min(takers, key=load.__getitem__)
            load[taker] += 1 / taker.nthreads
            self._running[task.key] = now + TAKE_AGAIN
            stealing.move_task_request(task, worker, taker)

    def _close(self, worker: WorkerState) -> None:
        if worker.address in self._closing:
            return

        def forget(done: asyncio.Future[Any]) -> None:
            del self._closing[worker.address]
            if not done.cancelled() and done.exception() is not None:
                logger.error("Worker %s could not be closed", worker, exc_info=done.exception())

        removing = self._scheduler.remove_worker(
            worker.address,
            stimulus_id=f"dask-gce-leave-{time.time()}",
            close=True,
            **self._expected,
        )
        self._closing[worker.address] = asyncio.ensure_future(removing)
        self._closing[worker.address].add_done_callback(forget)

    # What is computed again ----------------------------------------------------------------------

    def log_event(self, topic: str, msg: Any) -> None:
        """Note which results go with a worker, before the scheduler has them computed again."""
        if topic != "all" or not isinstance(msg, dict) or msg.get("action") != "remove-worker":
            return
        lost = msg.get("lost-computed-tasks") or ()
        if not lost:
            return
        address = str(msg.get("worker"))
        name = self._names.get(address, address)
        tasks = self._scheduler.tasks
        stack = [tasks[key] for key in lost if key in tasks]
        while stack:
            task = stack.pop()
            self._lost[task.key] = name
            # What they were made of is not kept once they are there, and is needed again.
            stack += (
                each
                for each in task.dependencies
                if each.state == "released" and each.key not in self._lost
            )

    def transition(self, key: Any, start: str, finish: str, *args: Any, **kwargs: Any) -> None:
        """Count what is there a second time."""
        if not self._lost or key not in self._lost:
            return
        if finish == "memory":
            name = self._lost.pop(key)
            self._recomputed[name] = self._recomputed.get(name, 0) + 1
        elif finish == "forgotten":
            del self._lost[key]

    # The scheduler's life ------------------------------------------------------------------------

    def add_worker(self, scheduler: Scheduler, worker: str) -> None:
        """Note a worker's name; one that comes late from a machine that leaves is held at once."""
        state = scheduler.workers[worker]
        self._names[worker] = str(state.name)
        if self._departure(state) is not None:
            self._hold(state)

    def remove_worker(self, scheduler: Scheduler, worker: str, **kwargs: Any) -> None:
        """Forget a worker's name."""
        self._names.pop(worker, None)

    def restart(self, scheduler: Scheduler) -> None:
        """Forget what was lost: nobody waits for it any more."""
        self._lost.clear()

    async def close(self) -> None:
        """End what goes on."""
        self._machines.clear()
        if self._attending is not None:
            self._attending.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._attending


async def dask_setup(scheduler: Scheduler) -> None:
    """Let the scheduler hear of machines that are taken away."""
    departures = Departures(scheduler)
    scheduler.add_plugin(departures)
    scheduler.extensions[Departures.name] = departures
    scheduler.handlers["dask_gce_leave"] = departures.leave
