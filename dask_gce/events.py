"""What happened to a cluster's machines: a log of events, kept for the user.

Pure: it records and counts, and decides nothing. What failed is kept beside it as errors, in
``cluster.failures``.
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import datetime, timezone
from typing import overload

from dask_gce.html_tables import render_table

__all__ = ["Event", "EventLog"]

logger = logging.getLogger(__name__)

#: How many events are kept; the oldest go first. And how many a notebook shows, the last.
KEPT, SHOWN = 10_000, 100


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
        What happened, in a word or two: ``"requested"``, ``"provisioning"``, ``"running"``,
        ``"booting"``, ``"ready"``, ``"failed"``, ``"lost"``, ``"kept"``, ``"retired"``,
        ``"deleted"`` (of the cluster: all its machines are), ``"blocked"``,
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
        The first of those who :meth:`listen`.

    Examples
    --------
    >>> log = EventLog()
    >>> log.note("dask-1f-worker-9c", "ready")
    >>> [event.what for event in log], len(log), log[-1].instance
    (['ready'], 1, 'dask-1f-worker-9c')
    >>> [event.what for event in log[-3:]]
    ['ready']
    """

    def __init__(self, listener: Callable[[Event], object] | None = None) -> None:
        self._events: deque[Event] = deque(maxlen=KEPT)
        # Replaced, never changed: events are noted in one thread while others begin to listen.
        self._listeners: tuple[Callable[[Event], object], ...] = ()
        self._lock = threading.Lock()
        if listener is not None:
            self.listen(listener)

    def listen(self, listener: Callable[[Event], object]) -> Callable[[], None]:
        """Have something called with each event as it is noted.

        Parameters
        ----------
        listener : callable
            Called with each :class:`Event`, in the thread that notes it, mostly that of the event
            loop: it must neither wait nor take long. What it raises is logged.

        Returns
        -------
        callable
            Ends it; may be called again.

        Examples
        --------
        >>> log, heard = EventLog(), []
        >>> stop = log.listen(lambda event: heard.append(event.what))
        >>> log.note("dask-1f-worker-9c", "requested")
        >>> stop()
        >>> log.note("dask-1f-worker-9c", "ready")
        >>> heard
        ['requested']
        """

        # The same callable may listen twice, and each ends by itself.
        def call(event: Event) -> None:
            listener(event)

        def stop() -> None:
            with self._lock:
                self._listeners = tuple(each for each in self._listeners if each is not call)

        with self._lock:
            self._listeners = (*self._listeners, call)
        return stop

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
        for listener in self._listeners:
            try:
                listener(event)
            except Exception:
                # Who looks on must not change what happens.
                logger.exception("What listens to events failed at: %s", event)

    def __len__(self) -> int:
        return len(self._events)

    def __iter__(self) -> Iterator[Event]:
        # A copy: events come in while the user reads.
        return iter(self._events.copy())

    @overload
    def __getitem__(self, index: int) -> Event: ...
    @overload
    def __getitem__(self, index: slice) -> list[Event]: ...
    def __getitem__(self, index: int | slice) -> Event | list[Event]:
        return list(self)[index] if isinstance(index, slice) else self._events[index]

    def __repr__(self) -> str:
        return "\n".join(map(str, self)) or "no events"

    def _repr_html_(self) -> str:
        events = list(self)
        more = len(events) - SHOWN
        return render_table(
            ("time (UTC)", "machine or cluster", "what", "why"),
            (
                (f"{each.time:%Y-%m-%d %H:%M:%S}", each.instance, each.what, each.why)
                for each in events[-SHOWN:]
            ),
            f"and {more} earlier" if more > 0 else "",
        )
