"""What happened to a cluster's machines: a log of events, kept for the user.

Pure: it records and counts, and decides nothing. What failed is kept beside it as errors, in
``cluster.failures``.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import datetime, timezone

__all__ = ["Event", "EventLog"]

#: How many events are kept; the oldest go first.
KEPT = 10_000


def _now() -> datetime:
    return datetime.now(timezone.utc)


@dataclass(frozen=True, slots=True)
class Event:
    """Something that happened to a machine, or to all of them.

    Parameters
    ----------
    instance : str
        The instance, or the cluster's name for what concerns all of it.
    what : str
        What happened, in a word or two: ``"requested"``, ``"running"``, ``"booting"``, ``"ready"``,
        ``"failed"``, ``"lost"``, ``"kept"``, ``"retired"``, ``"deleted"``, ``"blocked"``,
        ``"partly made"``, ``"moved"``, ``"gave up"``, ``"unknown"``, ``"found"``,
        ``"disconnected"`` or ``"reconnected"``; of Spot machines ``"ordered"``, ``"preempting"``
        and ``"unnoticed"``, of others that will be taken away ``"leaving"``; of the way to the
        scheduler ``"route"``, ``"firewall"``, ``"tunnel waiting"``, ``"tunnel failed"``,
        ``"tunnel cut"`` and ``"tunnel resumed"``; of the cluster's certificates ``"secured"``,
        ``"unscrubbed"``, ``"expiring"`` and ``"expired"``; of its limits ``"ending"``,
        ``"ended"``, ``"cleared"`` and ``"extended"``; of its cost ``"cost"`` and
        ``"cost limit"``; ``"recomputed"``; and of what earlier clusters have left ``"swept"``.
    why : str
        The reason, where there is one to tell; for ``"booting"`` the phase of the boot.
    time : datetime.datetime
        When it was noticed, in UTC.

    Examples
    --------
    >>> event = Event("dask-1f-worker-9c", "lost", "preempted by Compute Engine",
    ...               datetime(2026, 1, 2, 3, 4, 5, tzinfo=timezone.utc))
    >>> print(event)
    2026-01-02 03:04:05Z dask-1f-worker-9c lost: preempted by Compute Engine
    """

    instance: str
    what: str
    why: str = ""
    time: datetime = field(default_factory=_now)

    def __str__(self) -> str:
        why = f": {self.why}" if self.why else ""
        return f"{self.time:%Y-%m-%d %H:%M:%S}Z {self.instance} {self.what}{why}"


class EventLog:
    """The last events of a cluster, oldest first. Reads like a list.

    Parameters
    ----------
    listener : callable, optional
        Called with each :class:`Event` as it is noted.

    Examples
    --------
    >>> log = EventLog()
    >>> log.note("dask-1f-worker-9c", "ready")
    >>> [event.what for event in log], len(log), log[-1].instance
    (['ready'], 1, 'dask-1f-worker-9c')
    """

    def __init__(self, listener: Callable[[Event], None] | None = None) -> None:
        self._events: deque[Event] = deque(maxlen=KEPT)
        self._listener = listener

    def note(self, instance: str, what: str, why: str = "") -> None:
        """Add an event.

        Parameters
        ----------
        instance : str
            The instance, or the cluster's name.
        what : str
            What happened.
        why : str
            The reason.
        """
        event = Event(instance, what, why)
        self._events.append(event)
        if self._listener is not None:
            self._listener(event)

    def __len__(self) -> int:
        return len(self._events)

    def __iter__(self) -> Iterator[Event]:
        # A copy: events come in while the user reads.
        return iter(self._events.copy())

    def __getitem__(self, index: int) -> Event:
        return self._events[index]

    def __repr__(self) -> str:
        return "\n".join(map(str, self)) or "no events"
