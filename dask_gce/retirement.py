"""How workers are let go: retired by name, their machines deleted once the scheduler agrees.

Owns the choice of those who have least to do, and that a machine whose workers hold the only copy
of a result stays. Who is to go is decided in `scaling` and `replacement`.
"""

from __future__ import annotations

import asyncio
import logging
import operator
import pickle
from collections.abc import Collection, Sequence
from typing import Any

from distributed.core import Status

from dask_gce.plan import PlannedCluster
from dask_gce.probing import UNREACHABLE
from dask_gce.settings import Settings

logger = logging.getLogger(__name__)

#: Seconds until a worker that the scheduler did not let go is asked again: at first, and at most.
RETIRE_AGAIN, RETIRE_AT_LAST = 2.0, 10.0

#: Workers of one machine are told apart from others by their host, on the scheduler, which has
#: Dask but not this package: so the key must be something that unpickles there.
BY_MACHINE = operator.attrgetter("host")


class RetiringCluster(PlannedCluster):
    """A cluster that lets workers go without losing what they hold.

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
        self._again_in = RETIRE_AGAIN / 2
        super().__init__(settings, name, **options)

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
        # With Spot machines among them, all in their order: one is exchanged for one of its kind.
        target = 0 if self.settings.spot else workers - len(free) * processes
        try:
            idle = await comm.workers_to_close(
                target=target,
                key=pickle.dumps(BY_MACHINE) if processes > 1 else None,
                attribute="name",
            )
        except UNREACHABLE as error:
            logger.info("The scheduler does not tell who is idle: %s", error)
            return
        idlest = list(dict.fromkeys(self._machine_of(str(worker)) for worker in idle))
        for on_demand in (False, True):
            old = {name for name in free if (name in self._on_demand) is on_demand}
            new = [name for name in idlest if (name in self._on_demand) is on_demand][: len(old)]
            self._exchange(machines, old, new)

    def _exchange(self, machines: set[str], free: set[str], chosen: Sequence[str]) -> None:
        """Let others go than those that were free to be exchanged."""
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
        except UNREACHABLE as error:
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
            self._on_demand.discard(name)
            self.events.note(name, "deleted")
