"""In which state each machine of a cluster is, and since when: read from the cluster's events.

Pure: it follows events and counts. What it is told and asked costs the same however many machines
there are, but for the list of all of them.
"""

from __future__ import annotations

import itertools
import threading
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from datetime import datetime, timezone
from typing import TYPE_CHECKING

from dask_gce.machine_states import (
    BOOTING_STATES,
    ENDED_STATES,
    STATES,
    WAY_IN,
    MachineFacts,
    MachineState,
    render_time,
)
from dask_gce.terminal import harmless

if TYPE_CHECKING:
    from dask_gce.events import Event

__all__ = ["KEPT", "StateBoard"]

#: How many machines that are no more are remembered; the oldest go first.
KEPT = 200

#: What machines are shown first of, when only a few can be: what went wrong, then what is furthest.
_SHOWN_FIRST = ("failed", "lost", "leaving", *reversed(BOOTING_STATES), "running")

#: Phases of the boot in which a machine gets what Dask runs in.
_IMAGE_PHASES = ("driver-", "image-", "environment-")

#: Phases in which Dask itself starts, and has yet to register with its scheduler.
_STARTING_PHASES = ("starting", "running")


@dataclass
class _Expectation:
    """How many workers there should be, and since when more of them than there are."""

    workers: int = 0
    began: datetime | None = None
    met: datetime | None = None
    #: When the last machine came.
    came: datetime | None = None
    #: Whether they were asked for then; others were found, and asked for nobody knows when.
    timed: bool = True
    #: When it began and was met the time before, and whether that was timed.
    before: tuple[datetime | None, datetime | None, bool] = (None, None, True)

    @property
    def under_way(self) -> bool:
        """Whether more workers are expected than there are."""
        return self.began is not None and self.met is None

    def begin(self, time: datetime, *, timed: bool) -> None:
        """Expect more workers from now on."""
        if not self.under_way:
            self.before = self.began, self.met, self.timed
        self.began, self.met, self.timed = time, None, timed

    def settle(self) -> None:
        """Be content with those that have come; of the time since then nobody waited for them."""
        if self.began is not None and self.came is not None and self.came >= self.began:
            self.met = self.came
        else:
            self.began, self.met, self.timed = self.before


@dataclass
class _Group:
    """The machines in one state, in the order in which they came into it."""

    names: dict[str, None] = field(default_factory=dict)
    workers: Counter[str] = field(default_factory=Counter)
    machines: Counter[str] = field(default_factory=Counter)
    cores: int = 0
    memory: int = 0

    def change(self, machine: MachineState, by: int) -> None:
        if by > 0:
            self.names[machine.name] = None
        else:
            del self.names[machine.name]
        self.machines[machine.role] += by
        self.workers[machine.role] += by * machine.workers
        if machine.workers:
            self.cores += by * machine.cores
            self.memory += by * machine.memory


class StateBoard:
    """The states of all machines of a cluster. May be told and asked from any thread.

    Parameters
    ----------
    facts : callable, optional
        Returns the `MachineFacts` of a machine of that name, None if there are none.
    cluster : str
        The cluster's name, under which events come that concern all its machines.

    Examples
    --------
    >>> from dask_gce.events import EventLog
    >>> log, board = EventLog(), StateBoard()
    >>> stop = log.listen(board.take)
    >>> log.note("dask-1f-worker-9c", "requested", "e2-small in us-central1-a")
    >>> log.note("dask-1f-worker-9c", "booting", "image-pulling: 1 of 3 layers")
    >>> log.note("dask-1f-worker-2a", "requested", "e2-small in us-central1-a")
    >>> print(*board.machines(), sep="\\n")
    dask-1f-worker-9c image: image-pulling: 1 of 3 layers
    dask-1f-worker-2a requested
    >>> log.note("dask-1f-worker-9c", "ready")
    >>> board.counts(), board.running_workers
    ({'requested': 1, 'running': 1}, 1)
    """

    def __init__(
        self, facts: Callable[[str], MachineFacts | None] = lambda name: None, cluster: str = ""
    ) -> None:
        self._facts = facts
        self._cluster = cluster
        self._lock = threading.RLock()
        self._machines: dict[str, MachineState] = {}
        self._groups = {state: _Group() for state in STATES}
        # The scheduler's machine, and the one that told a phase last.
        self._scheduler = self._told = ""
        # Those that are no more, the oldest first.
        self._ended: dict[str, None] = {}
        # Those on their way in that another process has made, and the workers they are to have.
        self._found: set[str] = set()
        self._found_workers = 0
        self._expected = _Expectation()
        #: Grows with every change.
        self.version = 0
        #: Whether another process has made the scheduler's machine, which may run since long.
        self.scheduler_was_found = False
        #: Why no more machines are asked for; empty as long as there is no reason.
        self.gave_up = ""

    # -- what is told -----------------------------------------------------------------------------

    def take(self, event: Event) -> None:
        """Follow an event.

        Parameters
        ----------
        event : Event
            What happened.
        """
        with self._lock:
            machine = self._machines.get(event.instance)
            if machine is None:
                self._take_first(event)
            else:
                self._follow(machine, event)

    def _take_first(self, event: Event) -> None:
        """Follow the event of a machine that is new, or one that concerns all."""
        if event.what in ("requested", "found"):
            role = "scheduler" if "-scheduler-" in event.instance else "worker"
            facts = self._facts(event.instance) or MachineFacts(role, workers=role == "worker")
            since = facts.requested or event.time
            if facts.role == "scheduler":
                self.scheduler_was_found = event.what == "found"
            if event.what == "found":
                self._found.add(event.instance)
                self._found_workers += facts.workers
            self._put(
                MachineState(
                    name=event.instance,
                    role=facts.role,
                    state="requested",
                    since=since,
                    times={"requested": since},
                    zone=facts.zone,
                    machine_type=facts.machine_type,
                    cores=facts.cores,
                    memory=facts.memory,
                    spot=facts.spot,
                    workers=facts.workers,
                )
            )
        elif event.instance != self._cluster:
            pass  # one that is forgotten, or that was never asked for
        elif event.what == "gave up":
            self.gave_up = harmless(event.why)
            self.version += 1
        elif event.what == "deleted":
            living = [each for each in self._machines.values() if each.state not in ENDED_STATES]
            for each in living:
                self._move(each, "deleted", event.time, "")

    def _follow(self, machine: MachineState, event: Event) -> None:
        what, why = event.what, harmless(event.why)
        if machine.state in ENDED_STATES:
            return  # that it is deleted too is no news
        if what == "running":
            self._advance(machine, "booting", event.time)
        elif what == "provisioning":
            self._advance(machine, "provisioning", event.time)
        elif what == "booting":
            self._told = machine.name
            # These phases are the state itself, and "running" is said before Dask has registered.
            detail = "" if why in _STARTING_PHASES else why
            self._advance(machine, _state_of_phase(why), event.time, detail)
        elif what == "ready":
            self._advance(machine, "running", event.time)
        elif what in ("leaving", "preempting", "retired"):
            self._move(machine, "leaving", event.time, why)
        elif what == "kept":
            # To where it was when it was to go; some are on their way in then.
            back = max(set(machine.times).intersection(WAY_IN), key=WAY_IN.index)
            self._move(machine, back, event.time, why)
        elif what in ("disconnected", "reconnected"):
            self._move(machine, machine.state, event.time, what if what[0] == "d" else "")
        elif what == "moved":
            # It could not be had where it was asked for; another one has taken its place.
            self._move(machine, "failed", event.time, f"moved {why}")
        elif what in ENDED_STATES:
            self._move(machine, what, event.time, why)

    def _advance(self, machine: MachineState, state: str, time: datetime, detail: str = "") -> None:
        """Let a machine that is on its way in go on, but never back: news may come late."""
        if machine.state not in WAY_IN:
            return
        here, there = WAY_IN.index(machine.state), WAY_IN.index(state)
        if there > here or (there == here and detail):
            self._move(machine, state, time, detail)

    def _move(self, machine: MachineState, state: str, time: datetime, detail: str) -> None:
        self._groups[machine.state].change(machine, -1)
        if state == machine.state:
            moved = replace(machine, detail=detail)
        else:
            times = {**machine.times}
            times.setdefault(state, time)
            moved = replace(machine, state=state, since=time, times=times, detail=detail)
        self._put(moved)
        if state not in BOOTING_STATES and machine.name in self._found:
            self._found.remove(machine.name)
            self._found_workers -= machine.workers
        if state in ENDED_STATES:
            self._ended[moved.name] = None
            if len(self._ended) > KEPT:
                self._forget(next(iter(self._ended)))
        if state == "running":
            if machine.state in BOOTING_STATES:
                self._expected.came = time
            self._see_whether_met(time)

    def _put(self, machine: MachineState) -> None:
        self._machines[machine.name] = machine
        if machine.role == "scheduler" and machine.state == "requested":
            self._scheduler = machine.name  # the latest: one may move
        self._groups[machine.state].change(machine, +1)
        self.version += 1

    def _forget(self, name: str) -> None:
        del self._ended[name]
        machine = self._machines.pop(name)
        self._groups[machine.state].change(machine, -1)

    def expect(self, workers: int, now: datetime | None = None) -> None:
        """Take note of how many workers there should be.

        Parameters
        ----------
        workers : int
            How many.
        now : datetime.datetime, optional
            Since when, in UTC; from now on by default.
        """
        with self._lock:
            time, expected = now or _now(), self._expected
            self.gave_up = ""
            expected.workers = workers
            if workers > self.running_workers:
                # Those that are found were asked for before, by somebody else.
                more = workers > self.running_workers + self._found_workers
                if not expected.under_way or (more and not expected.timed):
                    expected.begin(time, timed=more)
            elif expected.under_way:
                expected.settle()
            self.version += 1

    def _see_whether_met(self, time: datetime) -> None:
        expected = self._expected
        if expected.under_way and self.running_workers >= expected.workers:
            expected.met = time

    # -- what is asked ----------------------------------------------------------------------------

    @property
    def wanted_workers(self) -> int:
        """How many workers there should be."""
        return self._expected.workers

    @property
    def running_workers(self) -> int:
        """How many workers are on machines that run."""
        return self._groups["running"].workers.total()

    @property
    def began(self) -> datetime | None:
        """When more workers were last asked for than there were; None if that never was."""
        return self._expected.began

    @property
    def growing(self) -> bool:
        """Whether more workers were asked for than have come."""
        return self._expected.under_way

    def scheduler(self) -> MachineState | None:
        """Return the scheduler's machine; None before it is asked for."""
        with self._lock:
            return self._machines.get(self._scheduler)

    def told_last(self) -> MachineState | None:
        """Return the machine on its way in that told a phase last; None if none did."""
        with self._lock:
            machine = self._machines.get(self._told)
            on_its_way = machine is not None and machine.state in BOOTING_STATES
            return machine if on_its_way else None

    def machines(self) -> list[MachineState]:
        """Return all machines, in the order in which they were asked for.

        Returns
        -------
        list of MachineState
            Also some of those that are no more.
        """
        with self._lock:
            return list(self._machines.values())

    def knows(self, name: str) -> bool:
        """Tell whether a machine is among those that :meth:`machines` returns.

        Parameters
        ----------
        name : str
            Its name.

        Returns
        -------
        bool
            Whether it is.
        """
        with self._lock:
            return name in self._machines

    def counts(self, role: str | None = None) -> dict[str, int]:
        """Count machines by state.

        Parameters
        ----------
        role : str, optional
            Count those of one role only.

        Returns
        -------
        dict of str to int
            How many are in each state that there are any in, in order of the states.
        """
        with self._lock:
            counts = {
                state: group.machines.total() if role is None else group.machines[role]
                for state, group in self._groups.items()
            }
        return {state: count for state, count in counts.items() if count}

    def workers_by_state(self) -> dict[str, int]:
        """Count the workers that machines have or are to have, by the machine's state.

        Returns
        -------
        dict of str to int
            How many, in order of the states, for those that there are any in.
        """
        with self._lock:
            counts = {state: group.workers.total() for state, group in self._groups.items()}
        return {state: count for state, count in counts.items() if count}

    def pick(self, count: int) -> list[MachineState]:
        """Return those machines that are of most interest, without those that are deleted.

        Parameters
        ----------
        count : int
            How many at most.

        Returns
        -------
        list of MachineState
            Those that failed since more workers were asked for, then those that are on their way,
            the furthest first, and the latest that run.
        """
        with self._lock:
            names = itertools.chain.from_iterable(
                self._newest(state, count)
                if state in (*ENDED_STATES, "running")
                else itertools.islice(self._groups[state].names, count)
                for state in _SHOWN_FIRST
            )
            return [self._machines[name] for name in itertools.islice(names, count)]

    def _newest(self, state: str, count: int) -> list[str]:
        names = itertools.islice(reversed(self._groups[state].names), count)
        began = self._expected.began
        if state == "running" or began is None:
            return list(names)
        return [name for name in names if self._machines[name].since >= began]

    def failures(self) -> int:
        """Count the machines that failed or were lost since more workers were asked for.

        Returns
        -------
        int
            How many, as far as they are remembered.
        """
        with self._lock:
            return sum(len(self._newest(state, KEPT)) for state in ("failed", "lost"))

    def summary(self) -> str:
        """Say what there is, and how long it took to come.

        Returns
        -------
        str
            For example ``"8 workers, 32 cores, 128 GB in 41 s"``; without the time where they were
            asked for by another process.
        """
        with self._lock:
            group, expected = self._groups["running"], self._expected
            workers = group.workers.total()
            if not workers:
                return "no workers"
            text = f"{_plural(workers, 'worker')}"
            if group.cores:
                text += f", {_plural(group.cores, 'core')}"
            if group.memory:
                text += f", {group.memory / 2**30:.6g} GB"
            if expected.timed and expected.began is not None and expected.met is not None:
                text += f" in {render_time((expected.met - expected.began).total_seconds())}"
            return text


def _state_of_phase(phase: str) -> str:
    """Return the state of a machine that boots by the phase that it tells."""
    if phase.startswith(_IMAGE_PHASES):
        return "image"
    return "starting" if phase.startswith(_STARTING_PHASES) else "booting"


def _plural(count: int, what: str) -> str:
    return f"{count} {what}" if count == 1 else f"{count} {what}s"


def _now() -> datetime:
    return datetime.now(timezone.utc)
