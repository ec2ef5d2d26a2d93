"""The verbs for instances that the interpreter's exit needs, on the calling thread.

They need neither an event loop nor the pool of threads: both are gone in an ``atexit`` handler,
where a `concurrent.futures.ThreadPoolExecutor` takes no more work, and from Python 3.12 on a thread
may not be started at all. They work after `Compute.close` too.
"""

from __future__ import annotations

import collections
import contextlib
import threading
from collections.abc import Iterable
from typing import Any

from dask_gce.errors import GCEError, NotFound, TransportError
from dask_gce.instance_calls import (
    aggregated_list_call,
    delete_call,
    instance_key,
    list_call,
    merge_scopes,
)
from dask_gce.policy import Deadline
from dask_gce.verbs import Verbs

__all__ = ["InstanceVerbsNow"]

#: How long after the deadline a thread is waited for whose last exchange is under way, in seconds.
PATIENCE = 2.0


class InstanceVerbsNow(Verbs):
    """The synchronous verbs of `Compute` for instances.

    Parameters
    ----------
    project : str
        Project ID.
    caller : Caller
        Makes the calls.
    """

    def list_instances_now(
        self, zone: str, filter: str, deadline: float, fields: str | None = None
    ) -> list[dict[str, Any]]:
        """Return the instances of a zone.

        Parameters
        ----------
        zone : str
            Zone name.
        filter : str
            An AIP-160 filter; empty for all.
        deadline : float
            When to give up, on the clock of :func:`time.monotonic`.
        fields : str or None
            A field mask, as for `list_instances`.

        Returns
        -------
        list of dict
            ``compute#instance`` resources, from all pages.
        """
        pages = self._pages_now(
            list_call(self.project, zone, filter, fields), self._deadline(deadline)
        )
        return [item for page in pages for item in page.get("items", ())]

    def aggregated_list_instances_now(
        self, filter: str, deadline: float, fields: str | None = None
    ) -> tuple[list[dict[str, Any]], frozenset[str]]:
        """Return the instances of all zones.

        Parameters
        ----------
        filter : str
            An AIP-160 filter; empty for all.
        deadline : float
            When to give up, on the clock of :func:`time.monotonic`.
        fields : str or None
            A field mask of one instance, as for `aggregated_list_instances`.

        Returns
        -------
        instances : list of dict
            ``compute#instance`` resources, from all pages.
        unreachable : frozenset of str
            Zones that did not answer. What they hold is unknown, not gone.
        """
        call = aggregated_list_call(self.project, filter, fields)
        return merge_scopes(self._pages_now(call, self._deadline(deadline)))

    def delete_instances_now(
        self, items: Iterable[tuple[str, str]], deadline: float, parallel: int = 16
    ) -> list[GCEError]:
        """Begin to delete instances, side by side, and do not wait until they are gone.

        One that does not exist counts as deleted. Where no threads can be had, the calling thread
        deletes them one after the other.

        Parameters
        ----------
        items : iterable of tuple
            Zone and name of each; the first go first.
        deadline : float
            When to give up, on the clock of :func:`time.monotonic`.
        parallel : int
            How many deletes may be under way at a time.

        Returns
        -------
        list of GCEError
            One for each instance whose delete was not accepted, in the order of the items, with its
            name in the message.
        """
        until = self._deadline(deadline)
        todo = list(items)
        outcomes: dict[int, GCEError | None] = {}
        waiting = collections.deque(range(len(todo)))

        def work() -> None:
            while True:
                try:
                    index = waiting.popleft()
                except IndexError:
                    return
                try:
                    self._delete_now(*todo[index], until)
                except GCEError as error:
                    outcomes[index] = error
                else:
                    outcomes[index] = None

        threads: list[threading.Thread] = []
        # The calling thread works too.
        for number in range(1, min(parallel, len(todo))):
            # One that does not come to its end must not hold the interpreter.
            thread = threading.Thread(target=work, name=f"dask-gce-delete-{number}", daemon=True)
            try:
                thread.start()
            except RuntimeError:
                # "can't create new thread at interpreter shutdown", or no more may be had.
                break
            threads.append(thread)
        work()
        for thread in threads:
            thread.join(until.remaining + PATIENCE)
        return [
            error
            for index, (zone, name) in enumerate(todo)
            if (error := outcomes.get(index, _unknown(self.project, zone, name))) is not None
        ]

    def _delete_now(self, zone: str, name: str, until: Deadline) -> None:
        self._caller.settled_now(instance_key(zone, name), until)
        with contextlib.suppress(NotFound):
            self._caller.answer_now(delete_call(self.project, zone, name, None), until)

    def _deadline(self, at: float) -> Deadline:
        return Deadline(at, self._caller.clock.monotonic)


def _unknown(project: str, zone: str, name: str) -> TransportError:
    return TransportError(
        f"No answer came in time to delete instance {name} in zone {zone} of project {project}; "
        "it may go on living."
    )
