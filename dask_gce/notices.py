"""What follows when a machine says that it will be taken away soon.

Owns what the cluster does between such a notice and the machine's end: it is planned no more and
replaced at once, and goes when its results have moved. The machine tells the scheduler by itself,
which begins to move them; how workers are let go is in `retirement`.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Mapping
from typing import Any

from dask_gce.errors import InstanceLost
from dask_gce.operation import PREEMPTED
from dask_gce.replacement import ReplacingCluster
from dask_gce.settings import Settings

__all__ = ["NoticedCluster"]

#: Seconds between looks whether the workers of a machine have gone.
DEPARTED_AFTER = 0.25

#: Seconds after its end that a machine's workers still have before they are retired as others are.
GRACE = 1.0

#: How a machine says that Compute Engine takes it away because it is Spot.
PREEMPTION = "preempted"


class NoticedCluster(ReplacingCluster):
    """A cluster that replaces machines before they are gone.

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
        # Machines of whom the scheduler tells, which have been taken note of.
        self._noticed: frozenset[str] = frozenset()
        # Until when each machine has time to let its workers go, on the loop's clock.
        self._departing: dict[str, float] = {}
        super().__init__(settings, name, **options)

    def _note_departures(self, leaving: Mapping[str, Mapping[str, Any]]) -> None:
        """Take note of the machines that will be taken away; telling it again changes nothing.

        Parameters
        ----------
        leaving : mapping of str to mapping
            By machine what it has said: ``in``, the seconds that are left, and ``why``:
            ``"preempted"``, ``"maintenance"`` or something else.
        """
        new = leaving.keys() - self._noticed
        self._noticed = frozenset(leaving)
        for machine in sorted(new):
            notice = leaving[machine]
            self._depart(machine, max(0.0, float(notice.get("in") or 0.0)), str(notice["why"]))

    def _depart(self, machine: str, seconds: float, why: str) -> None:
        preempted = why == PREEMPTION
        what = f"{PREEMPTED if preempted else why} in {seconds:.0f} s"
        if machine == self._scheduler.name:
            # Whoever has it stays with it to the end.
            self.events.note(machine, "leaving", what)
            return
        with self._plan_lock:
            planned = self.worker_spec.pop(machine, None) is not None
        if preempted:
            # Also if its loss was seen before, as one that ends by itself.
            self._note_preemption(machine)
        if not planned:
            return  # it is on its way out, or known to be lost
        self.events.note(machine, "preempting" if preempted else "leaving", what)
        member = self._fleet.members.get(machine) if self._fleet is not None else None
        zone = "" if member is None else member.zone
        failure = InstanceLost(
            f"The worker {machine} (project {self._ready.blueprint.project}, zone {zone}) is "
            f"about to go: {what}. Its results move to others meanwhile.",
            name=machine,
            zone=zone,
        )
        failure.preempted = preempted
        self._keep(failure)
        self._see_off(machine, seconds)
        pause = 0.0
        if preempted and member is not None and not member.ready and not self._leaves_losses:
            now = time.monotonic()
            self._recovery.preempted(failure, asked=member.inserted, now=now)
            self._tell_of_exhaustion()
            pause = self._recovery.pause(now)
        elif self._adapts:
            # It decides anew whether it needs another.
            pause = math.inf
        asyncio.get_running_loop().call_soon(self._correct_state_soon)
        if pause < math.inf:
            self._restore_in(pause)

    def _see_off(self, machine: str, seconds: float) -> None:
        """Leave it to the scheduler to let a machine's workers go, for as long as there is time."""
        if machine not in self.workers or machine in self._leaving:
            return
        # Not to be exchanged for one that is idle.
        self._named.add(machine)
        self._leaving.add(machine)
        if not self._departing:
            self._spawn(self._await_departures())
        self._departing[machine] = asyncio.get_running_loop().time() + seconds + GRACE

    async def _await_departures(self) -> None:
        """Delete machines whose workers have gone; what is late goes the usual way."""
        loop = asyncio.get_running_loop()
        while self._departing:
            await asyncio.sleep(DEPARTED_AFTER)
            registered, now = self._registered(), loop.time()
            gone = {name for name in self._departing if name not in registered}
            over = gone | {name for name, end in self._departing.items() if end <= now}
            if self._lost is not None:
                over = set(self._departing)  # there is nobody who would let them go
            for name in over:
                del self._departing[name]
            for name in gone & self._arrived_once():
                self.events.note(name, "retired")
            self._leaving -= over
            if over:
                self._correct_state_soon()

    def _arrived_once(self) -> set[str]:
        """Return the machines that had workers."""
        members = {} if self._fleet is None else self._fleet.members
        return {name for name, member in members.items() if member.ready}
