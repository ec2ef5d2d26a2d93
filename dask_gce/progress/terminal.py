"""Progress on a terminal: a region that changes in place, and goes when nobody waits any more."""

from __future__ import annotations

import contextlib
import logging
import sys
import threading
import time
from collections.abc import Iterator
from datetime import datetime, timezone
from typing import Any, ClassVar

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.spinner import Spinner
from rich.table import Table
from rich.text import Text

from dask_gce.machine_states import MachineState, render_time
from dask_gce.progress.choice import is_terminal
from dask_gce.progress.display import Display, describe
from dask_gce.progress.lines import SummaryDisplay
from dask_gce.state_board import StateBoard
from dask_gce.terminal import harmless

__all__ = ["TerminalDisplay", "render"]

#: How many machines are shown by name, and how wide the bar is, in columns.
SHOWN, BAR = 8, 40

#: The colour of each state, and its place in the bar: what is done first.
COLOURS = {
    "running": "green",
    "leaving": "yellow",
    "starting": "cyan",
    "image": "blue",
    "booting": "magenta",
    "provisioning": "bright_black",
    "requested": "bright_black",
    "failed": "red",
    "lost": "red",
}


class TerminalDisplay:
    """A region of the terminal that shows all states by numbers, and some machines by name.

    There is one on the screen at a time; what else is to be shown meanwhile waits until that is
    closed.

    Parameters
    ----------
    board : StateBoard
        The states of the cluster's machines.
    title : str
        What is going on.
    wanted : int
        How many workers are waited for.
    """

    in_thread: ClassVar[bool] = True
    afterwards: ClassVar[type[Display] | None] = SummaryDisplay

    #: Held by the one that is on the screen.
    _screen: ClassVar[threading.Lock] = threading.Lock()

    def __init__(self, board: StateBoard, title: str, wanted: int) -> None:
        self._board = board
        self._title = title
        self._wanted = wanted
        self._since = time.monotonic()
        self._spinner = Spinner("dots")
        self._console = Console(stderr=True)
        self._live: Live | None = None
        # What was standard output and standard error, and what is while the region is drawn.
        self._streams: list[tuple[Any, Any]] = []

    def update(self) -> None:
        """Draw the region anew."""
        # The terminal may have been closed.
        with contextlib.suppress(OSError, ValueError):
            if self._live is None:
                self._live = self._begin()
            if self._live is None:
                return
            self._live.update(
                render(self._board, self._title, self._wanted, self._spinner), refresh=True
            )

    def _begin(self) -> Live | None:
        """Draw a region from now on, unless another one is on the screen."""
        live = Live(
            console=self._console,
            # No thread of its own.
            auto_refresh=False,
            # The region goes, and what it has come to is written instead.
            transient=True,
            # What others print meanwhile is to be above it, unless it goes elsewhere.
            redirect_stdout=is_terminal(sys.stdout),
            redirect_stderr=True,
        )
        if not self._screen.acquire(blocking=False):
            return None
        self._live, before = live, (sys.stdout, sys.stderr)
        live.start()
        self._streams = list(zip(before, (sys.stdout, sys.stderr), strict=True))
        for was, is_now in self._streams:
            _lead_logs(was, is_now)
        return live

    def close(self, summary: str) -> None:
        """Take the region away, and write what has come of it.

        Parameters
        ----------
        summary : str
            What has come of it; empty if there is nothing to say.
        """
        with contextlib.suppress(OSError, ValueError):
            if self._live is not None:
                try:
                    self._live.stop()
                finally:
                    for was, is_now in self._streams:
                        _lead_logs(is_now, was)
                    self._live, self._streams = None, []
                    self._screen.release()
        SummaryDisplay(self._board, self._title, self._wanted).close(summary)


def _lead_logs(before: Any, after: Any) -> None:
    """Have logs go where print() goes: past it they would be drawn over, and nobody read them.

    Dask's own go to the standard error of the moment at which it was imported.
    """
    if before is None or before is after:
        return
    for handler in set(_log_handlers()):
        if getattr(handler, "stream", None) is before:
            # It flushes what it has, to a terminal that may be gone.
            with contextlib.suppress(OSError, ValueError):
                handler.setStream(after)


def _log_handlers() -> Iterator[logging.StreamHandler[Any]]:
    # A copy: whatever is imported meanwhile makes a logger.
    for logger in (logging.getLogger(), *logging.Logger.manager.loggerDict.copy().values()):
        if isinstance(logger, logging.Logger):
            for handler in logger.handlers:
                if isinstance(handler, logging.StreamHandler):
                    yield handler


def render(
    board: StateBoard,
    title: str,
    wanted: int,
    spinner: Spinner | None = None,
    *,
    now: datetime | None = None,
) -> RenderableType:
    """Draw how far a cluster is.

    Parameters
    ----------
    board : StateBoard
        The states of its machines.
    title : str
        What is going on.
    wanted : int
        How many workers are waited for.
    spinner : rich.spinner.Spinner, optional
        What shows that time goes on.
    now : datetime.datetime, optional
        The time, in UTC; the clock's by default.

    Returns
    -------
    rich.console.RenderableType
        As large for a thousand machines as for eight.
    """
    now = datetime.now(timezone.utc) if now is None else now
    head = Table.grid(padding=(0, 1))
    elapsed = "" if board.began is None else render_time((now - board.began).total_seconds())
    head.add_row(spinner or "", Text(harmless(title), style="bold"), Text(elapsed, style="dim"))
    shown = board.pick(SHOWN)
    lines: list[RenderableType] = [head]
    if wanted:
        lines.append(_bar(board, wanted))
    lines.append(Text(f"  {describe(board, wanted)}", no_wrap=True, overflow="ellipsis"))
    if shown:
        lines += _machines(shown, now)
    if (more := sum(board.counts().values()) - board.counts().get("deleted", 0) - len(shown)) > 0:
        lines.append(
            Text(f"  and {more} more {'machine' if more == 1 else 'machines'}", style="dim")
        )
    return Group(*lines)


def _bar(board: StateBoard, wanted: int) -> Text:
    """Draw how many workers are in which state, of those that there are to be."""
    workers = board.workers_by_state()
    states = [state for state in COLOURS if state not in ("failed", "lost") and workers.get(state)]
    whole = max(wanted, sum(workers[state] for state in states))
    bar, before, drawn = Text("  "), 0, 0
    for state in states:
        before += workers[state]
        until = BAR * before // whole
        bar.append("━" * (until - drawn), style=COLOURS[state])
        drawn = until
    bar.append("━" * (BAR - drawn), style="grey23")
    return bar


def _machines(machines: list[MachineState], now: datetime) -> list[Text]:
    """Draw a line for each machine; what does not fit is cut off at the end, not in the midst."""
    names = [harmless(each.name) for each in machines]
    times = [render_time(each.age(now)) for each in machines]
    wide, long = max(map(len, names)), max(map(len, times))
    broad = max(len(each.state) for each in machines)
    lines = []
    for each, name, time_ in zip(machines, names, times, strict=True):
        line = Text(f"  {name:{wide}}  ", no_wrap=True, overflow="ellipsis")
        line.append(f"{each.state:{broad}}", style=COLOURS.get(each.state, ""))
        line.append(f"  {time_:>{long}}  ")
        line.append(_trail(each), style="dim")
        lines.append(line)
    return lines


def _trail(machine: MachineState) -> str:
    """Say what a machine has told, and how long after it was asked for it came how far."""
    times = [
        f"{state} +{seconds:.0f}s"
        for state in machine.times
        if state != "requested" and (seconds := machine.seconds(state)) is not None
    ]
    return "; ".join(filter(None, [machine.detail, ", ".join(times)]))
