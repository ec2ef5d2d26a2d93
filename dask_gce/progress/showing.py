"""When progress is shown: while somebody waits long enough for it to be of interest.

Owns the times: nothing in the first seconds unless something is wrong, and a few drawings a second
however much happens.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from datetime import datetime, timezone
from functools import partial
from typing import Any

from dask_gce.progress.display import Display
from dask_gce.state_board import StateBoard

__all__ = ["Showing", "showing"]

logger = logging.getLogger(__name__)

#: Seconds that something may take without a word.
SILENCE = 2.0

#: Seconds between drawings.
INTERVAL = 0.25

#: Seconds that a display may take to close: a terminal that is stopped keeps nobody.
CLOSED_WITHIN = 2.0


class Showing:
    """One display, from the moment at which it is of interest to its end.

    Parameters
    ----------
    kind : type
        The display.
    board : StateBoard
        The states of the cluster's machines.
    title : str
        What is going on.
    wanted : int
        How many workers are waited for.
    """

    def __init__(self, kind: type[Display], board: StateBoard, title: str, wanted: int) -> None:
        self._kind = kind
        self._board = board
        self._title = title
        self._wanted = wanted
        self._since = time.monotonic()
        self._display: Display | None = None
        self._under_way: asyncio.Future[None] | None = None

    async def run(self, until: Callable[[], bool] = lambda: False) -> None:
        """Show it until something is true, or until it is cancelled.

        Parameters
        ----------
        until : callable
            Tells whether it is over.
        """
        while not until():
            if self._display is None and self._is_of_interest():
                self._display = self._kind(self._board, self._title, self._wanted)
            if self._display is not None:
                await self._do(self._display.update)
            await asyncio.sleep(INTERVAL)

    async def close(self, summary: str) -> None:
        """Show no more.

        Parameters
        ----------
        summary : str
            What has come of it, which stays; empty if there is nothing to say.
        """
        if self._display is None and summary and self._is_of_interest():
            self._display = self._kind(self._board, self._title, self._wanted)
        if self._under_way is not None:
            await asyncio.wait({self._under_way}, timeout=CLOSED_WITHIN)
        display, self._display = self._display, None
        if display is not None:
            closing = asyncio.ensure_future(self._do(display.close, summary))
            closing.add_done_callback(_note_failure)
            await asyncio.wait({closing}, timeout=CLOSED_WITHIN)

    def _is_of_interest(self) -> bool:
        if self._board.failures() or self._board.gave_up:
            return True
        began = self._board.began
        waited = time.monotonic() - self._since
        if began is not None and self._board.growing:
            waited = max(waited, (datetime.now(timezone.utc) - began).total_seconds())
        return waited >= SILENCE

    async def _do(self, what: Callable[..., None], *arguments: Any) -> None:
        if not getattr(self._kind, "in_thread", False):
            what(*arguments)
            return
        try:
            working = asyncio.get_running_loop().run_in_executor(None, partial(what, *arguments))
        except RuntimeError:
            return  # the interpreter ends, and there are no more threads
        # It goes on when this is cancelled, and is waited for by `close`.
        self._under_way = working
        await asyncio.shield(working)


@asynccontextmanager
async def showing(
    kind: type[Display] | None,
    board: StateBoard,
    title: str,
    wanted: int,
    *,
    summary: Callable[[], str] = lambda: "",
) -> AsyncIterator[None]:
    """Show how far a cluster is meanwhile.

    Parameters
    ----------
    kind : type or None
        The display, None for silence.
    board : StateBoard
        The states of the cluster's machines.
    title : str
        What is going on.
    wanted : int
        How many workers are waited for.
    summary : callable
        Returns what to say at the end, if it is a good one.

    Yields
    ------
    None
        While it is shown.
    """
    if kind is None:
        yield
        return
    shown = Showing(kind, board, title, wanted)
    drawing = asyncio.ensure_future(shown.run())
    text = ""
    try:
        yield
        text = summary()
    finally:
        drawing.cancel()
        await _to_its_end(_finish(shown, drawing, text))


async def _finish(shown: Showing, drawing: asyncio.Task[None], summary: str) -> None:
    await asyncio.wait({drawing})
    _note_failure(drawing)
    await shown.close(summary)


def _note_failure(drawing: asyncio.Future[None]) -> None:
    """Log what went wrong with a display: who looks on must not change what happens."""
    if not drawing.cancelled() and (error := drawing.exception()) is not None:
        logger.error("Progress cannot be shown.", exc_info=error)


async def _to_its_end(work: Coroutine[Any, Any, None]) -> None:
    """Do something that takes a moment, and be cancelled after that: no region stays behind."""
    working, cancelled = asyncio.ensure_future(work), False
    while not working.done():
        try:
            await asyncio.shield(working)
        except asyncio.CancelledError:
            cancelled = True
    if cancelled:
        raise asyncio.CancelledError
