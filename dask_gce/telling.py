"""What a cluster tells its user of its machines while they come.

Owns when that is: while something waits for them, and in the background where more of them were
asked for. How it looks is in `progress`. What goes wrong is told by whoever notices it.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import datetime
from typing import Any

from dask_gce.jupyter_server import JupyterCluster
from dask_gce.progress.choice import choose_display
from dask_gce.progress.display import Display
from dask_gce.progress.showing import CLOSED_WITHIN, Showing, showing

#: Seconds between looks whether there is something to tell for which nobody waits.
PAUSE = 0.5


class TellingCluster(JupyterCluster):
    """A cluster that shows how far its machines are."""

    #: How many wait for machines, each with a display.
    _watched = 0
    #: Since when those were wanted of which it was told that they have come.
    _told_of: datetime | None = None
    #: What shows that the cluster grows by itself, and which adaptive object makes it grow.
    _growing_by_itself: tuple[object, type[Display]] | None = None

    @property
    def _display(self) -> type[Display] | None:
        return None if self.quiet else choose_display(self.settings.progress)

    @asynccontextmanager
    async def _shown_while(self, title: str, wanted: int) -> AsyncIterator[None]:
        """Show how far the machines are while somebody waits for them."""
        self._watched += 1
        try:
            async with showing(
                self._display, self._board, title, wanted, summary=self._take_summary
            ):
                yield
        finally:
            self._watched -= 1

    def _take_summary(self) -> str:
        """Return what has come, once; empty while more is to come."""
        board = self._board
        if board.growing or not board.running_workers or board.began in (None, self._told_of):
            return ""
        self._told_of = board.began
        return board.summary()

    async def _tell_growth(self) -> None:
        """Tell of machines for which nobody waits, where that disturbs nobody."""
        while True:
            kind = getattr(self._display, "afterwards", None)
            if kind is not None and self._is_worth_shown_while():
                await self._tell_once(kind)
            await asyncio.sleep(PAUSE)

    def _is_worth_shown_while(self) -> bool:
        board = self._board
        return board.growing and not self._watched and not board.gave_up and self._lost is None

    def _in_one_output(self, kind: type[Display]) -> type[Display]:
        """Return the display that a night of `adapt` does not fill a notebook with."""
        adaptive, sharing = self._adaptive, getattr(kind, "sharing", None)
        if not self._adapts or sharing is None:
            return kind
        if self._growing_by_itself is None or self._growing_by_itself[0] is not adaptive:
            self._growing_by_itself = adaptive, sharing()
        return self._growing_by_itself[1]

    async def _tell_once(self, kind: type[Display]) -> None:
        kind = self._in_one_output(kind)
        wanted = self._board.wanted_workers
        shown = Showing(kind, self._board, str(self.name), wanted)
        text = ""
        try:
            await shown.run(
                lambda: not self._is_worth_shown_while() or self._board.wanted_workers != wanted
            )
            if not self._watched:
                text = self._take_summary()
        finally:
            await shown.close(text)

    def wait_for_workers(self, n_workers: int, timeout: Any = None) -> Any:
        """Wait until the cluster has so many workers, and show how far they are.

        Parameters
        ----------
        n_workers : int
            How many.
        timeout : float or str, optional
            How long to wait at most, in seconds or as ``"5 minutes"``; as long as there is hope by
            default.

        Returns
        -------
        awaitable or None
            Something to await when the cluster is asynchronous.

        Raises
        ------
        asyncio.TimeoutError
            If they are not there in time.
        GCEError
            If there is no hope: workers have failed too often, or the cluster has ended.
        """
        try:
            return super().wait_for_workers(n_workers, timeout)
        except KeyboardInterrupt:
            # What is written next, the traceback first, must not meet what is drawn.
            deadline = time.monotonic() + CLOSED_WITHIN
            while self._watched and time.monotonic() < deadline:
                time.sleep(0.01)
            raise

    async def _wait_for_workers(self, n_workers: int = 0, timeout: Any = None) -> None:
        if len(self.scheduler_info["workers"]) >= n_workers:
            await super()._wait_for_workers(n_workers, timeout)
            return
        async with self._shown_while(str(self.name), n_workers):
            await super()._wait_for_workers(n_workers, timeout)
