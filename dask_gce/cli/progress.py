"""What a command tells while it waits: on standard error, and only if the wait is long.

On a terminal one line changes in place; elsewhere each change is a line. What goes wrong with a
machine is told in any case, at once.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from dask_gce.cli.output import note
from dask_gce.terminal import harmless

if TYPE_CHECKING:
    from dask_gce.cluster import GCECluster
    from dask_gce.events import Event

__all__ = ["Progress", "following", "tell_boots"]

#: Seconds that a command may take without a word.
SILENCE = 2.0

#: Seconds between looks at the cluster.
INTERVAL = 0.25

#: Events that a user wants to know of even if all ends well.
NOTABLE = frozenset({"blocked", "disconnected", "failed", "gave up", "lost", "moved", "unknown"})


class Progress:
    """One line about how far something has come.

    Parameters
    ----------
    title : str
        What is going on.
    """

    def __init__(self, title: str) -> None:
        from rich.console import Console

        self._title = title
        self._since = time.monotonic()
        self._console = Console(stderr=True)
        self._status = self._console.status(title)
        self._shown = ""

    def tell(self, text: str) -> None:
        """Say how far it has come, if it has taken long enough to be of interest.

        Parameters
        ----------
        text : str
            How far.
        """
        if time.monotonic() - self._since < SILENCE or text == self._shown:
            return
        self._shown = text
        if self._console.is_terminal and not self._console.is_dumb_terminal:
            with contextlib.suppress(OSError):  # as in `close`
                self._status.update(f"{self._title}: {text}")
                self._status.start()
        else:
            note(f"{self._title}: {text}")

    def close(self) -> None:
        """Take the line away."""
        # The terminal may have been closed meanwhile.
        with contextlib.suppress(OSError):
            self._status.stop()


@asynccontextmanager
async def following(cluster: GCECluster, title: str, wanted: int) -> AsyncIterator[None]:
    """Tell what a cluster does meanwhile.

    Parameters
    ----------
    cluster : GCECluster
        The cluster, asynchronous.
    title : str
        What is going on.
    wanted : int
        How many workers are waited for.

    Yields
    ------
    None
        While it is followed.
    """
    progress = Progress(title)
    task = asyncio.ensure_future(_follow(cluster, progress, wanted))
    try:
        yield
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task
        progress.close()


def tell_boots(events: Iterable[Event]) -> str:
    """Say how far machines are that boot.

    Parameters
    ----------
    events : iterable of Event
        What has happened, oldest first.

    Returns
    -------
    str
        The last phase that one of them told which is not ready yet; empty if none did.

    Examples
    --------
    >>> from dask_gce.events import Event
    >>> tell_boots([Event("w1", "booting", "image-pulling"), Event("w2", "booting", "starting"),
    ...             Event("w2", "ready")])
    'image-pulling'
    """
    phases: dict[str, str] = {}
    for event in events:
        # The last one told is the last in the mapping.
        phases.pop(event.instance, None)
        if event.what == "booting":
            phases[event.instance] = event.why
    return harmless(next(reversed(phases.values()), ""))


async def _follow(cluster: GCECluster, progress: Progress, wanted: int) -> None:
    told = 0
    while True:
        events = list(cluster.events)
        for event in events[told:]:
            if event.what in NOTABLE:
                note(str(event))
        told = len(events)
        if cluster.scheduler_comm is None:
            # A machine tells how far it is only when it takes its time.
            phase = tell_boots(event for event in events if "-scheduler-" in event.instance)
            what = phase or (events[-1].what if events else "")
            progress.tell(f"the scheduler, {what}" if what else "preparing")
        else:
            phase = tell_boots(events)
            count = f"{len(cluster.scheduler_info['workers'])} of {wanted} workers"
            progress.tell(f"{count}, {phase}" if phase else count)
        await asyncio.sleep(INTERVAL)
