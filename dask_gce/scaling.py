"""A cluster's workers: how many there should be, and what is done about the difference.

Owns the plan (`worker_spec`) and its correction. Nothing here waits for a machine: the plan changes
at once, inserts and removals run beside each other, and whatever fails comes back as a change of
the plan. What a machine is made of is in `blueprint`, what becomes of it in `fleet`.
"""

from __future__ import annotations

import asyncio
import logging
import math
import operator
import pickle
import threading
import time
import weakref
from collections.abc import Collection, Coroutine, Mapping
from functools import partial
from typing import Any, cast

from dask.utils import parse_bytes
from distributed.core import Status
from distributed.deploy.adaptive import Adaptive
from distributed.deploy.cluster import Cluster
from distributed.deploy.spec import SpecCluster
from distributed.utils import NoOpAwaitable

from dask_gce import names
from dask_gce.decisions import decider, mark_decisions
from dask_gce.errors import (
    APIError,
    CredentialsError,
    GCEError,
    InstanceLost,
    SettingsError,
)
from dask_gce.events import EventLog
from dask_gce.failures import Cause, cause_of
from dask_gce.fleet import Fleet
from dask_gce.placement import Location
from dask_gce.preparation import Preparation
from dask_gce.recovery import Recovery
from dask_gce.scheduler import GCEScheduler
from dask_gce.settings import Settings
from dask_gce.watcher import Watcher
from dask_gce.worker import GCEWorker

logger = logging.getLogger(__name__)

#: Adaptive defaults for machines that take a minute to boot. Dask's own are made for processes
#: that start in a second: it would give a VM three seconds to prove that it is needed.
ADAPTIVE_DEFAULTS: Mapping[str, Any] = {
    "interval": "5s",
    "wait_count": 24,
    "target_duration": "3 minutes",
}

#: Seconds until a worker that the scheduler did not let go is asked again: at first, and at most.
RETIRE_AGAIN, RETIRE_AT_LAST = 2.0, 10.0

#: Seconds for which one failure that was told speaks for those that follow it: a zone of a thousand
#: machines may be preempted at once. All are in `failures` and `events`.
TOLD_FOR = 1.0

#: Failures that ``cluster.failures`` keeps; the oldest go first. Each carries the end of a console.
KEPT_FAILURES = 1000

#: Workers made in one turn of the loop, so that a thousand do not hold it.
WORKERS_PER_TURN = 50

#: Seconds that a worker must stay to count as started. One that ends sooner has failed to start.
STEADY = 10.0

#: Workers of one machine are told apart from others by their host, on the scheduler, which has
#: Dask but not this package: so the key must be something that unpickles there.
BY_MACHINE = operator.attrgetter("host")


class ScalingCluster(SpecCluster):
    """What `GCECluster` knows of its workers.

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
        self.settings = settings
        #: What happened to the cluster's machines, oldest first.
        self.events = EventLog()
        #: What went wrong with machines of this cluster, oldest first; as many as are kept.
        self.failures: list[GCEError] = []
        # Why there is no scheduler any more. Without it nothing is worth its machine.
        self._lost: GCEError | None = None
        self._prepared: Preparation | None = None
        self._fleet: Fleet | None = None
        # Workers to start with, and machines there should be.
        self._wanted = settings.n_workers
        self._target = 0
        self._plan_lock = threading.RLock()
        self._recovery = Recovery(name, limit=settings.worker_start_failure_limit)
        self._restoring: asyncio.TimerHandle | None = None
        # Machines that are being let go: whether they were named by the user.
        self._leaving: set[str] = set()
        self._named: set[str] = set()
        self._kept: set[str] = set()
        # Machines without a worker that could be asked to go.
        self._gone: set[str] = set()
        self._blocked = ""
        self._again_in = RETIRE_AGAIN / 2
        self._told = -math.inf
        # Whether the scheduler knows no worker.
        self._deserted = asyncio.Event()
        self._deserted.set()
        self._watcher = Watcher(
            machines=lambda: set(self.workers) & set(self.worker_spec),
            registered=self._registered,
            processes=lambda: self._prepared.blueprint.processes if self._prepared else 1,
            drop=self._drop,
            after=self._note_steady,
        )
        self._tasks: set[asyncio.Task[Any]] = set()
        super().__init__(name=name, **options)

    # -- what there is ----------------------------------------------------------------------------

    @property
    def _ready(self) -> Preparation:
        if self._prepared is None:
            raise GCEError(f"Cluster {self.name} has not started; await it before you scale it.")
        return self._prepared

    @property
    def plan(self) -> set[str]:
        """The names of the workers that should be there."""
        return self._workers_of(list(self.worker_spec))

    @property
    def requested(self) -> set[str]:
        """The names of the workers whose machines were asked for."""
        return self._workers_of([name for name in list(self.workers) if name in self.worker_spec])

    def _workers_of(self, machines: Collection[str]) -> set[str]:
        """Return the names of the Dask workers on machines."""
        suffixes = self._prepared.blueprint.suffixes if self._prepared else ()
        if not suffixes:
            return set(machines)
        return {name + suffix for name in machines for suffix in suffixes}

    def _machine_of(self, worker: str) -> str:
        """Return the name of the machine that a Dask worker is on."""
        if worker in self.worker_spec or worker in self.workers:
            return worker
        suffixes = self._prepared.blueprint.suffixes if self._prepared else ()
        machine, hyphen, number = worker.rpartition("-")
        return machine if hyphen + number in suffixes else worker

    def _registered(self) -> dict[str, int]:
        """Return the machines whose workers the scheduler knows, and how many it knows."""
        found: dict[str, int] = {}
        # A copy: scale() runs in the user's thread, while workers come and go in the loop's.
        for worker in list(self.scheduler_info["workers"].values()):
            machine = self._machine_of(str(worker["name"]))
            found[machine] = found.get(machine, 0) + 1
        return found

    def _is_overruled(self, adaptive: Any) -> bool:
        """Tell whether a decision comes from an adaptive object that was stopped meanwhile."""
        if adaptive is None:
            return False
        return adaptive is not self._adaptive or getattr(adaptive, "state", "") == "stopped"

    @property
    def _adapts(self) -> bool:
        return bool(self._adaptive and self._adaptive.periodic_callback)

    # -- scaling ----------------------------------------------------------------------------------

    def scale(self, n: int = 0, memory: int | str | None = None, cores: int | None = None) -> Any:
        """Scale to a number of workers; returns at once, machines follow.

        Going down, workers that have not arrived go first, then idle ones. Workers are retired, so
        that their results move to those that stay.

        Parameters
        ----------
        n : int
            Number of workers. With several ``processes`` a machine it is rounded up to whole
            machines.
        memory : int or str, optional
            As many workers as have this much memory together, in bytes or as ``"100 GB"``.
        cores : int, optional
            As many workers as have this many threads together.

        Returns
        -------
        awaitable or None
            Something to await when the cluster is asynchronous.

        Raises
        ------
        SettingsError
            If the number is not a whole number from zero on, or more than ``max_workers``.
        GCEError
            If the cluster is closed, or has lost its scheduler.
        WorkersFailed
            If workers could not be started so often that no more were; the next call tries again.
        """
        adapting = decider() is not None
        if self._is_overruled(decider()):
            return NoOpAwaitable() if self.asynchronous else None
        n = _whole_number(n)
        if memory is not None:
            n = max(n, math.ceil(parse_bytes(memory) / self._memory_per_worker()))
        if cores is not None:
            n = max(n, math.ceil(cores / self._threads_per_worker()))
        most = self.settings.max_workers
        if most is not None and n > most:
            raise SettingsError(
                f"scale({n}): max_workers = {most} allows no more; raise it to scale further.",
                key="max_workers",
            )
        if n and self.status in (Status.closing, Status.closing_gracefully, Status.closed):
            raise GCEError(f"scale({n}): cluster {self.name} is closed; make a new one.")
        if n and self._lost is not None:
            raise self._lost
        exhausted = self._recovery.exhausted
        machines = self._machines_for(n, adapting=adapting)
        if not adapting:
            # Whoever asks anew has a reason to believe that it works now.
            self._recovery.reset()
            if exhausted is not None and n:
                raise exhausted
        with self._plan_lock:
            if self._prepared is None:
                self._wanted = n  # by a cluster that has yet to start
                return NoOpAwaitable() if self.asynchronous else None
            self._target = machines
            self._trim(machines)
            if not adapting or not self._recovery.pause(time.monotonic()):
                self._fill()
        if self.loop is not None:
            self.loop.add_callback(self._correct_state)
        return NoOpAwaitable() if self.asynchronous else None

    def _machines_for(self, n: int, *, adapting: bool) -> int:
        """Return how many machines have that many workers."""
        processes = self._prepared.blueprint.processes if self._prepared else 1
        machines = math.ceil(n / processes)
        limit = self.settings.max_workers
        if limit is not None:
            machines = min(machines, limit // processes)
        if adapting and self._adaptive is not None and self._adaptive.maximum < math.inf:
            # Whole machines must not take an adaptive cluster over its maximum.
            machines = min(machines, max(1, int(self._adaptive.maximum) // processes))
        return machines

    def _trim(self, machines: int) -> None:
        """Take surplus machines out of the plan: those that have not arrived, then the newest."""
        surplus = len(self.worker_spec) - machines
        if surplus <= 0:
            return
        arrived = self._registered()
        newest = list(reversed(self.worker_spec))
        newest.sort(key=lambda name: name in arrived)
        for name in newest[:surplus]:
            self.worker_spec.pop(name, None)

    def _fill(self) -> None:
        """Plan new machines up to the target."""
        while len(self.worker_spec) < self._target:
            self.worker_spec.update(self.new_worker_spec())

    def _new_worker_name(self, worker_number: int) -> str:
        return names.instance_name(self.name, "worker")

    async def scale_down(self, workers: Collection[str]) -> None:
        """Let workers go, by name.

        Parameters
        ----------
        workers : collection of str
            Names of workers, or of machines. A machine with several workers goes when all of them
            are named.
        """
        named, overruled = set(map(str, workers)), self._is_overruled(decider())
        with self._plan_lock:
            for machine in self._whole_machines(named):
                if machine in self.workers:
                    self._named.add(machine)
                if self.worker_spec.pop(machine, None) is not None and not overruled:
                    self._target = max(0, self._target - 1)
            if overruled:
                # The workers have been retired already.
                self._fill()
        await self._correct_state()

    def _whole_machines(self, named: set[str]) -> list[str]:
        """Return the machines that go when these workers, or machines, are to go."""
        machines = dict.fromkeys(map(self._machine_of, sorted(named)))
        whole = [each for each in machines if each in named or self._workers_of([each]) <= named]
        if self._adapts and self._prepared is not None:
            # Of workers that have not arrived Adaptive names any, without regard to machines.
            late = set(machines) - set(whole) - self._registered().keys()
            count = sum(len(self._workers_of([each]) & named) for each in late)
            whole += sorted(late)[: count // self._prepared.blueprint.processes]
        return whole

    def _threads_per_worker(self) -> int:
        prepared = self._ready
        return prepared.blueprint.nthreads(prepared.workers.locations[0].shape)

    def _memory_per_worker(self) -> int:
        prepared = self._ready
        return prepared.blueprint.memory(prepared.workers.locations[0].shape)

    def adapt(
        self,
        Adaptive: type[Adaptive] = Adaptive,
        minimum: float = 0,
        maximum: float = math.inf,
        minimum_cores: int | None = None,
        maximum_cores: int | None = None,
        minimum_memory: str | None = None,
        maximum_memory: str | None = None,
        **options: Any,
    ) -> Adaptive:
        """Let the number of workers follow the work.

        Parameters
        ----------
        Adaptive : type
            Class that decides, :class:`distributed.deploy.Adaptive` or one of your own.
        minimum : int
            Fewest workers.
        maximum : int
            Most workers; ``max_workers`` if there is that.
        minimum_cores : int, optional
            Fewest threads, over all workers.
        maximum_cores : int, optional
            Most threads, over all workers.
        minimum_memory : str, optional
            Least memory, over all workers, such as ``"10 GB"``.
        maximum_memory : str, optional
            Most memory, over all workers.
        **options
            What the class takes. Unless given, a decision is made every 5 s (``interval``), a
            worker goes when it was idle at 24 of them (``wait_count``), and workers are added for
            work that would take longer than 3 minutes (``target_duration``): machines take a minute
            to boot and are billed for at least one.

        Returns
        -------
        Adaptive
            The object that decides.

        Raises
        ------
        SettingsError
            If more workers are asked for than ``max_workers`` allows.
        """
        most = self.settings.max_workers
        if most is not None:
            asked = {"minimum": minimum, "maximum": maximum}
            for key, value in asked.items():
                if value is not None and most < value < math.inf:
                    raise SettingsError(
                        f"adapt({key}={value}): max_workers = {most} allows no more.",
                        key="max_workers",
                    )
            maximum = min(maximum, most)
        defaults = dict(ADAPTIVE_DEFAULTS)
        if self._prepared is not None and self._prepared.blueprint.processes > 1:
            # The workers of one machine go together, or not at all.
            defaults["worker_key"] = BY_MACHINE
        # As scale(): whoever asks anew has a reason to believe that it works now.
        self._recovery.reset()
        # Cluster keeps the options of earlier calls, so that two calls would be mixed.
        self._adaptive_options: dict[str, Any] = {}
        adaptive = super().adapt(
            Adaptive,
            minimum,
            maximum,
            minimum_cores,
            maximum_cores,
            minimum_memory,
            maximum_memory,
            **{**defaults, **options},
        )
        mark_decisions(adaptive)
        return adaptive

    # -- correcting -------------------------------------------------------------------------------

    def _correct_state(self) -> asyncio.Future[None]:
        # Several may wait for one correction; one that is cancelled does not take it with it.
        return asyncio.shield(super()._correct_state())

    async def _correct_state_internal(self) -> None:
        """Begin to make the machines what the plan says; waits for none of them.

        Differs from SpecCluster's, which holds a lock over all of it, in that everything runs
        beside everything else; that workers are retired by name (it passes names where addresses
        are expected, and retires nobody); and that one whom the scheduler does not let go is kept.
        """
        self._correct_state_waiting = None
        if self._prepared is None or self.status not in (Status.starting, Status.running):
            return
        surplus = set(self.workers) - set(self.worker_spec) - self._leaving
        if surplus:
            self._leaving |= surplus
            self._spawn(self._let_go(surplus))
        await self._add_workers()

    def _spawn(self, work: Coroutine[Any, Any, Any]) -> None:
        """Run something beside everything else; it ends with the cluster."""
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            logger.error("Something went wrong in cluster %s", self.name, exc_info=error)

    async def _add_workers(self) -> None:
        """Ask for the machines that are planned and not there."""
        made = 0
        for name in list(self.worker_spec):
            spec = self.worker_spec.get(name)
            if spec is None or name in self.workers:
                continue
            worker = spec["cls"](
                self._scheduler.contact_address,
                **{"name": name, "location": self._choose_location(), **spec.get("options", {})},
            )
            worker._cluster = weakref.ref(self)
            self._created.add(worker)
            self.workers[name] = worker
            worker.request().add_done_callback(partial(self._asked, worker))
            made += 1
            if made % WORKERS_PER_TURN == 0:
                await asyncio.sleep(0)
        if made:
            self._watcher.disturb()

    @property
    def _scheduler(self) -> GCEScheduler:
        return cast(GCEScheduler, self.scheduler)

    def _choose_location(self) -> Location:
        """Return where the next worker is made."""
        workers = self._ready.workers
        zone = None if self.settings.allow_cross_zone else self._scheduler.location.zone
        chosen = workers.choose(zone)
        if chosen is None:
            # All are short of machines, which after a pause is no reason not to ask again.
            chosen = next(each for each in workers.locations if zone in (None, each.zone))
        return chosen

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

    # -- letting go -------------------------------------------------------------------------------

    async def _let_go(self, machines: set[str]) -> None:
        """Retire the workers of machines and delete those that the scheduler lets go."""
        try:
            await self._prefer_idle(machines)
            arrived = machines & self._registered().keys()
            # Nothing keeps those that have not arrived; while they wait they might.
            await asyncio.gather(
                self._remove_workers(machines - arrived), self._let_arrived_go(machines, arrived)
            )
        finally:
            self._leaving -= machines
            if not machines.isdisjoint(self.workers.keys() - self.worker_spec.keys()):
                # Whatever came in between, a machine that nobody wants is not forgotten.
                self._try_again()

    async def _let_arrived_go(self, machines: set[str], arrived: set[str]) -> None:
        asked = set() if self._lost is not None else arrived - self._gone
        kept = await self._retire(asked)
        self._kept = (self._kept - arrived) | kept
        if kept:
            # Asked again while the others may still be on their way out.
            machines -= kept
            self._leaving -= kept
            self._try_again()
        for name in asked - kept:
            self.events.note(name, "retired")
        await self._remove_workers(arrived - kept)

    def _try_again(self) -> None:
        self._again_in = min(2 * self._again_in, RETIRE_AT_LAST) if self._kept else RETIRE_AGAIN
        asyncio.get_running_loop().call_later(self._again_in, self._correct_state_soon)

    async def _prefer_idle(self, machines: set[str]) -> None:
        """Exchange machines that were chosen by their age only for those that have least to do."""
        comm, registered = self.scheduler_comm, self._registered()
        free = machines & registered.keys() - self._named - self._kept - self._gone
        if not free or comm is None or len(free) == len(registered):
            return
        workers = len(self.scheduler_info["workers"])
        processes = self._ready.blueprint.processes
        try:
            idle = await comm.workers_to_close(
                target=workers - len(free) * processes,
                key=pickle.dumps(BY_MACHINE) if processes > 1 else None,
                attribute="name",
            )
        except OSError as error:
            logger.info("The scheduler does not tell who is idle: %s", error)
            return
        chosen = list(dict.fromkeys(self._machine_of(str(worker)) for worker in idle))[: len(free)]
        with self._plan_lock:
            better = [name for name in chosen if name not in free and name in self.worker_spec]
            worse = [name for name in free if name not in chosen]
            for old, new in zip(worse, better, strict=False):
                self.worker_spec[old] = self.worker_spec.pop(new)
                machines.remove(old)
                machines.add(new)
                self._leaving.discard(old)
                self._leaving.add(new)

    async def _retire(self, machines: set[str]) -> set[str]:
        """Have the scheduler move workers' results elsewhere; return whom it did not let go."""
        if not machines or self.status != Status.running or self.scheduler_comm is None:
            return set()
        workers = self._workers_of(machines)
        try:
            retired = await self.scheduler_comm.retire_workers(
                names=list(workers), close_workers=True
            )
        except OSError as error:
            logger.warning("The scheduler could not retire %d workers: %s", len(workers), error)
            kept = machines & self._registered().keys()
            self._note_kept(kept, "the scheduler does not answer")
            return kept
        gone = {str(worker["name"]) for worker in retired.values()}
        present = {str(worker["name"]) for worker in self.scheduler_info["workers"].values()}
        kept = {self._machine_of(worker) for worker in (workers - gone) & present}
        self._note_kept(kept, "it holds results that fit nowhere else")
        return kept

    def _note_kept(self, machines: set[str], why: str) -> None:
        new = sorted(machines - self._kept)
        for name in new:
            self.events.note(name, "kept", why)
        if new:
            self._log(
                f"{len(new)} machines are kept for the time being, for example {new[0]}: {why}."
            )

    async def _remove_workers(self, names: Collection[str]) -> None:
        await asyncio.gather(*map(self._remove_worker, names))

    async def _remove_worker(self, name: str) -> None:
        worker = self.workers.get(name)
        if worker is not None:
            await worker.close()
            self.workers.pop(name, None)
            self._created.discard(worker)
            self._named.discard(name)
            self._gone.discard(name)
            self.events.note(name, "deleted")

    # -- failing ----------------------------------------------------------------------------------

    def _drop(self, name: str, failure: GCEError) -> None:
        """Take a machine that failed out of the plan, and see to its replacement."""
        with self._plan_lock:
            if self.worker_spec.pop(name, None) is None:
                return  # it was on its way out, or has been reported
        now = time.monotonic()
        member = self._fleet.members.get(name) if self._fleet is not None else None
        ready = member.ready_since if member is not None else None
        started = ready is not None and now - ready > STEADY
        if isinstance(failure, InstanceLost):
            self._gone.add(name)
        self._keep(failure)
        self.events.note(name, "lost" if started else "failed", _first_line(failure))
        if started:
            if now - self._told > TOLD_FOR:
                self._log(str(failure))
                self._told = now
            # An adaptive cluster decides anew whether it needs another.
            pause = math.inf if self._adapts else 0.0
        elif self._goes_elsewhere(name, failure):
            pause = 0.0
        else:
            asked = member.inserted if member is not None else now
            known = self._recovery.attempts
            self._recovery.failed(failure, asked=asked, now=now, lasting=_is_lasting(failure))
            if self._recovery.attempts > known:
                # One of the attempt speaks for all; the others are in `failures`.
                self._log(str(failure))
                if self._recovery.exhausted is not None:
                    self.events.note(self.name, "gave up", _first_line(self._recovery.exhausted))
            pause = self._recovery.pause(now)
        # Soon, not now: this is called from the midst of other things.
        asyncio.get_running_loop().call_soon(self._correct_state_soon)
        if pause < math.inf:
            self._restore_in(pause)

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
        zone = None if self.settings.allow_cross_zone else self._scheduler.location.zone
        if worker.location.zone != self._scheduler.location.zone and zone is not None:
            return True  # the scheduler has moved since
        return placement.choose(zone) is not None or self._move_scheduler(reason)

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
        with self._plan_lock:
            self._fill()
        self._correct_state_soon()

    def _correct_state_soon(self) -> None:
        if self.status in (Status.starting, Status.running):
            self._correct_state()

    def _note_steady(self) -> None:
        """Forget failures once a worker that was asked for after them has come and stayed."""
        if self._recovery.attempts and self._fleet is not None:
            now = time.monotonic()
            for member in self._fleet.members.values():
                if member.ready_since is not None and now - member.ready_since > STEADY:
                    self._recovery.stayed(asked=member.inserted)

    # -- what the scheduler tells -----------------------------------------------------------------

    def _update_worker_status(self, op: str, msg: Any) -> None:
        # Not SpecCluster's, which would close a lost worker but leave it in the plan.
        if op == "remove":
            worker = self.scheduler_info["workers"].get(msg)
            if worker is not None and self._machine_of(str(worker["name"])) in self.worker_spec:
                self._watcher.disturb()
            Cluster._update_worker_status(self, op, msg)
            if not self.scheduler_info["workers"]:
                self._deserted.set()
            return
        self._deserted.clear()
        arriving = {self._machine_of(str(each["name"])) for each in msg["workers"].values()}
        Cluster._update_worker_status(self, op, msg)
        self._note_arrival(arriving)
        if late := arriving & self._leaving:
            # Its machine is about to be deleted: it must not be given anything to lose.
            self._spawn(self._retire(late))

    def _note_arrival(self, machines: Collection[str]) -> None:
        """Mark the machines ready all of whose workers have arrived."""
        if self._fleet is None:
            return
        processes = self._ready.blueprint.processes
        if processes == 1:
            for name in machines:
                self._fleet.mark_ready(name)
            return
        registered = self._registered()
        for name in machines:
            if registered.get(name, 0) >= processes:
                self._fleet.mark_ready(name)


async def _delete_quietly(fleet: Fleet, name: str) -> None:
    try:
        await fleet.delete(name)
    except GCEError as error:
        # It is no longer on record, so that the next look finds and deletes it.
        logger.warning("Instance %s could not be deleted yet: %s", name, error)


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0]


def _is_lasting(failure: GCEError) -> bool:
    """Tell whether asking again cannot help: the request itself is wrong, or not allowed."""
    reason = failure.__cause__ if isinstance(failure.__cause__, GCEError) else failure
    if isinstance(reason, SettingsError | CredentialsError):
        return True
    if cause_of(reason) in (Cause.PERMISSION, Cause.ABSENT):
        return True
    return isinstance(reason, APIError) and reason.status == 400


def _whole_number(n: Any) -> int:
    try:
        number = operator.index(n)
    except TypeError:
        number = -1
    if number < 0 or isinstance(n, bool):
        raise SettingsError(
            f"scale(n={n!r}): the number of workers is a whole number from 0 on.", key="n"
        )
    return number
