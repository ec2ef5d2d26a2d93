"""Progress where nobody watches a terminal: one line for each change, in a log for example."""

from __future__ import annotations

import contextlib
import sys
import time
from typing import ClassVar

from dask_gce.progress.display import Display, describe
from dask_gce.state_board import StateBoard
from dask_gce.terminal import harmless

__all__ = ["LinesDisplay", "SummaryDisplay", "tell"]

#: Seconds between two lines: at first, at most, and how the first grows into the second. Of a
#: thousand workers that come one after the other nobody wants to read a thousand lines.
FIRST_PAUSE, LONGEST_PAUSE, GROWTH = 1.0, 30.0, 1.25


def tell(text: str) -> None:
    """Write a line to standard error, if there is still somebody to read it.

    Parameters
    ----------
    text : str
        The line.
    """
    if sys.stderr is None:
        return  # print() would take standard output
    # A terminal that was closed is no reason to stop halfway.
    with contextlib.suppress(OSError, ValueError):
        print(harmless(text), file=sys.stderr, flush=True)


class LinesDisplay:
    """One line for each change, and fewer the longer it takes.

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
    afterwards: ClassVar[type[Display] | None]

    def __init__(self, board: StateBoard, title: str, wanted: int) -> None:
        self._board = board
        self._title = title
        self._wanted = wanted
        self._told = ""
        self._pause = FIRST_PAUSE
        self._next = 0.0

    def update(self) -> None:
        """Write a line, if something has changed and the last one is some time ago."""
        now = time.monotonic()
        if now < self._next:
            return
        text = describe(self._board, self._wanted)
        if text == self._told:
            return
        self._told = text
        self._next = now + self._pause
        self._pause = min(self._pause * GROWTH, LONGEST_PAUSE)
        tell(f"{self._title}: {text}")

    def close(self, summary: str) -> None:
        """Write what has come of it.

        Parameters
        ----------
        summary : str
            What has come of it; empty if there is nothing to say.
        """
        if summary:
            tell(f"{self._title}: {summary}")


class SummaryDisplay:
    """Nothing but what has come of it: for a terminal on which the user types again.

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

    def __init__(self, board: StateBoard, title: str, wanted: int) -> None:
        self._title = title

    def update(self) -> None:
        """Show nothing: whatever is drawn now would be in the midst of what the user types."""

    def close(self, summary: str) -> None:
        """Write what has come of it.

        Parameters
        ----------
        summary : str
            What has come of it; empty if there is nothing to say.
        """
        if summary:
            tell(f"{self._title}: {summary}")


LinesDisplay.afterwards = LinesDisplay
