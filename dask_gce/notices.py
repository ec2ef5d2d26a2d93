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

__all__ = ["NoticedCluster"]

#: How a machine says that Compute Engine takes it away because it is Spot.
PREEMPTION = "preempted"


class NoticedCluster(ReplacingCluster):
    """A cluster that replaces machines before they are gone."""

    #: Machines whose notice has been taken note of, of those that the scheduler still tells of.
    _noticed: frozenset[str] = frozenset()

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
        with self._plan_lock:
            planned = self.worker_spec.pop(machine, None) is not None
        if not planned and machine != self._scheduler.name:
            return  # it was on its way out, or is known to be lost
        preempted = why == PREEMPTION
        what = f"{PREEMPTED if preempted else why} in {seconds:.0f} s"
        self.events.note(machine, "preempting" if preempted else "leaving", what)
        if not planned:
            return  # the scheduler's: whoever has it stays with it to the end
        # Not to be exchanged for one that is idle.
        self._named.add(machine)
        if preempted:
            self._note_preemption(machine)
        member = self._fleet.members.get(machine) if self._fleet is not None else None
        zone = "" if member is None else member.zone
        failure = InstanceLost(
            f"The worker {machine} (project {self._ready.blueprint.project}, zone {zone}) is "
            f"about to go: {what}. Its results move to the others meanwhile.",
            name=machine,
            zone=zone,
        )
        failure.preempted = preempted
        self._keep(failure)
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
