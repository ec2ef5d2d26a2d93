"""What a command tells while it waits: on standard error, and only if the wait is long.

How far a cluster is shows as in Python, see `dask_gce.progress`; what goes wrong with a machine is
told at once. For what is no cluster there is one line, which changes in place on a terminal.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from dask_gce.cli.output import note
from dask_gce.progress.choice import choose_display
from dask_gce.progress.showing import SILENCE, showing

if TYPE_CHECKING:
    from dask_gce.cluster import GCECluster
    from dask_gce.events import Event

__all__ = ["Progress", "following"]

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
    """Tell what a cluster does meanwhile, as its setting ``progress`` says.

    Parameters
    ----------
    cluster : GCECluster
        The cluster, asynchronous, which is quiet itself.
    title : str
        What is going on.
    wanted : int
        How many workers are waited for.

    Yields
    ------
    None
        While it is followed.
    """
    display = choose_display(cluster.settings.progress)
    board = cluster.board
    stop = cluster.events.listen(_tell_notable) if display is not None else lambda: None
    before = board.began

    def summary() -> str:
        came = board.began != before and not board.growing and board.running_workers
        return board.summary() if came else ""

    try:
        async with showing(display, board, title, wanted, summary=summary):
            yield
    finally:
        stop()


def _tell_notable(event: Event) -> None:
    if event.what in NOTABLE:
        note(str(event))
