"""How many workers a cluster should have, and that it gets them.

Owns what the user says (`scale`, `scale_down`, `adapt`) and the correction of what there is by what
there should be. Nothing here waits for a machine: the plan changes at once, inserts and removals
run beside each other, and whatever fails comes back as a change of the plan.
"""

from __future__ import annotations

import asyncio
import math
import operator
import time
from collections.abc import Callable, Collection, Mapping
from typing import Any

from dask.utils import parse_bytes, parse_timedelta
from distributed.core import Status
from distributed.deploy.adaptive import Adaptive
from distributed.deploy.cluster import Cluster
from distributed.utils import NoOpAwaitable

from dask_gce.budget import BudgetedCluster
from dask_gce.decisions import decider, keep_kinds, mark_decisions
from dask_gce.errors import GCEError, SettingsError
from dask_gce.retirement import BY_MACHINE
from dask_gce.shares import Share, local_share, share

#: Adaptive defaults for machines that take a minute to boot. Dask's own are made for processes
#: that start in a second: it would give a VM three seconds to prove that it is needed.
ADAPTIVE_DEFAULTS: Mapping[str, Any] = {
    "interval": "5s",
    "wait_count": 24,
    "target_duration": "3 minutes",
}

#: Seconds between looks whether a change has been made.
SETTLED_PAUSE = 0.1

#: Workers made in one turn of the loop, so that a thousand do not hold it.
WORKERS_PER_TURN = 50


class ScalingCluster(BudgetedCluster):
    """What `GCECluster` knows of its workers."""

    def _is_overruled(self, adaptive: Any) -> bool:
        """Tell whether a decision comes from an adaptive object that was stopped meanwhile."""
        if adaptive is None:
            return False
        return adaptive is not self._adaptive or getattr(adaptive, "state", "") == "stopped"

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
        CostLimitExceeded
            If so many cost more an hour than ``max_hourly_cost``.
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
            n = max(n, self._workers_with(parse_bytes(memory), lambda each: each.memory))
        if cores is not None:
            n = max(n, self._workers_with(cores, lambda each: each.nthreads))
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
        machines = self._within_limit(n, machines, adapting=adapting)
        if not adapting:
            # Whoever asks anew has a reason to believe that it works now.
            self._recovery.reset()
            if exhausted is not None and n:
                raise exhausted
        with self._plan_lock:
            if self._prepared is None:
                self._wanted = n  # by a cluster that has yet to start
                return NoOpAwaitable() if self.asynchronous else None
            self._target, self._untold = machines, True
            self._trim(machines)
            if not adapting or not self._recovery.pause(time.monotonic()):
                self._fill()
        if self.loop is not None:
            self.loop.add_callback(self._carry_out)
        return NoOpAwaitable() if self.asynchronous else None

    async def _carry_out(self) -> None:
        # First said, then done: whoever misses a machine asks whether it was wanted so.
        await self._tell_plan()
        await self._correct_state()

    def _workers_with(self, amount: int, of: Callable[[Share], int]) -> int:
        """Return how many workers have so much of something together."""
        prepared, here = self._ready, self._local_count
        if here:
            shape = prepared.schedulers.locations[0].shape
            amount -= here * of(local_share(self.settings, shape))
        return here + max(0, math.ceil(amount / of(self._worker_share())))

    def _worker_share(self) -> Share:
        return share(self.settings, self._ready.workers.locations[0].shape)

    def _threads_per_worker(self) -> int:
        return self._worker_share().nthreads

    def _memory_per_worker(self) -> int:
        return self._worker_share().memory

    def _machines_for(self, n: int, *, adapting: bool) -> int:
        """Return how many machines have that many workers."""
        processes = self._prepared.blueprint.processes if self._prepared else 1
        # Those on the scheduler's machine are there anyway.
        here = self._local_count
        machines = math.ceil(max(0, n - here) / processes)
        limit = self.settings.max_workers
        if limit is not None:
            machines = min(machines, (limit - here) // processes)
        if adapting and self._adaptive is not None and self._adaptive.maximum < math.inf:
            # Whole machines must not take an adaptive cluster over its maximum.
            least = 0 if here else 1
            most = max(0, int(self._adaptive.maximum) - here)
            machines = min(machines, max(least, most // processes))
        return machines

    async def scale_down(self, workers: Collection[str]) -> None:
        """Let workers go, by name.

        Parameters
        ----------
        workers : collection of str
            Names of workers, or of machines. A machine with several workers goes when all of them
            are named. Workers on the scheduler's machine stay.
        """
        named, overruled = set(map(str, workers)), self._is_overruled(decider())
        with self._plan_lock:
            for machine in self._whole_machines(named):
                if machine in self.workers:
                    self._named.add(machine)
                if self.worker_spec.pop(machine, None) is not None and not overruled:
                    self._target, self._untold = max(0, self._target - 1), True
            if overruled:
                # The workers have been retired already.
                self._fill()
        await self._carry_out()

    def _whole_machines(self, named: set[str]) -> list[str]:
        """Return the machines that go when these workers, or machines, are to go."""
        machines = dict.fromkeys(map(self._machine_of, sorted(named)))
        whole = [each for each in machines if each in named or self._workers_of([each]) <= named]
        if self._adapts and self._prepared is not None:
            # Of workers that have not arrived Adaptive names any, without regard to machines.
            registered = self._registered()
            late = set(machines) - set(whole) - registered.keys()
            count = sum(len(self._workers_of([each]) & named) for each in late)
            whole += sorted(late)[: count // self._prepared.blueprint.processes]
            # Nor to which of them are Spot. Those that have arrived are retired already.
            whole.sort(key=lambda name: name not in registered)
            chosen = self._choose_leaving(whole, len(whole))
            whole = [each for each in whole if each in chosen or each in registered]
        return whole

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
        # Workers on the scheduler's machine are there in any case; the scheduler names none of them
        # when it is asked who may go.
        maximum = max(maximum, self._local_count)
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
        if self.settings.spot:
            keep_kinds(adaptive, self._choose_workers_leaving)
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

    async def _add_workers(self) -> None:
        """Ask for the machines that are planned and not there."""
        made = 0
        for name in list(self.worker_spec):
            spec = self.worker_spec.get(name)
            if spec is None or name in self.workers:
                continue
            self._add_worker(name, spec)
            made += 1
            if made % WORKERS_PER_TURN == 0:
                await asyncio.sleep(0)
        if made:
            self._watcher.disturb()

    def settle(self, timeout: float | str = "10 minutes") -> Any:
        """Wait until what `scale` asked for is on its way: requests accepted, surplus deleted.

        For what ends right after it has scaled, since nothing more is done by a cluster object that
        is gone.

        Parameters
        ----------
        timeout : float or str
            How long to wait, in seconds or as ``"5 minutes"``.

        Returns
        -------
        awaitable or None
            Something to await when the cluster is asynchronous.

        Raises
        ------
        GCEError
            If it takes longer; the message names a machine that is waited for.
        """
        return self.sync(self._settle, float(parse_timedelta(timeout)))

    async def _settle(self, timeout: float) -> None:
        deadline = time.monotonic() + timeout
        await self._carry_out()
        while self.status == Status.running and self._lost is None:
            unsettled = self._unsettled()
            if not unsettled and not (self._fleet and self._fleet.following):
                return
            if time.monotonic() > deadline:
                one = next(iter(sorted(unsettled)), "an insert that has not ended")
                raise GCEError(
                    f"Cluster {self.name} has not settled within {timeout:g} s: {len(unsettled)} "
                    f"machines are on their way in or out, for example {one}. See cluster.events."
                )
            await asyncio.sleep(SETTLED_PAUSE)

    def _unsettled(self) -> set[str]:
        """Return the machines that are being let go, or were not asked for yet."""
        asked_for = {name for name, each in self.workers.items() if each.status != Status.created}
        wanted = set(self.worker_spec)
        return self._leaving | (set(self.workers) - wanted) | (wanted - asked_for)

    # -- what the scheduler tells -----------------------------------------------------------------

    def _update_worker_status(self, op: str, msg: Any) -> None:
        # Not SpecCluster's, which would close a lost worker but leave it in the plan.
        if op == "remove":
            worker = self.scheduler_info["workers"].get(msg)
            if worker is None:
                return  # it is known already, from having asked
            if self._machine_of(str(worker["name"])) in self.worker_spec:
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
