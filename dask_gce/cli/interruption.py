"""How commands end before their time: Ctrl-C, SIGTERM and a terminal that is closed.

Owns the handling of these signals, by commands that have something to clean up and by those that
have not. The exit status that follows is the matter of the group of commands.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
from collections.abc import Awaitable, Coroutine, Iterator
from types import FrameType
from typing import Any, Final, TypeVar

from dask_gce.cli.output import note

__all__ = ["finish", "interruptible", "run_to_the_end", "run_while_wanted", "terminable"]

T = TypeVar("T")

#: SIGHUP is what a command gets when its terminal is closed or the connection to it lost.
_SIGNALS: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def _heeded() -> list[signal.Signals]:
    """Return the signals that end a command; nohup, for one, has SIGHUP ignored."""
    return [each for each in _SIGNALS if signal.getsignal(each) is not signal.SIG_IGN]


@contextlib.contextmanager
def terminable() -> Iterator[None]:
    """Let other signals end what runs meanwhile as Ctrl-C does: with an exception."""

    def end(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt(number)

    before = {each: signal.signal(each, end) for each in _heeded()}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def interruptible() -> Iterator[None]:
    """Let Ctrl-C interrupt what blocks an event loop, such as a question.

    asyncio would only cancel what the loop runs, and the loop waits for the answer.
    """
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def run_while_wanted(work: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine that has nothing to clean up; Ctrl-C ends the process there and then.

    Python would first wait for the threads that wait for an answer which nobody wants any more.

    Parameters
    ----------
    work : coroutine
        What to run.

    Returns
    -------
    object
        What it returns.
    """
    try:
        return asyncio.run(work)
    except KeyboardInterrupt:
        note("Interrupted.")
        sys.stdout.flush()
        os._exit(128 + signal.SIGINT)


async def finish(work: Awaitable[None]) -> None:
    """Bring something to an end, whether or not that is cancelled meanwhile.

    Parameters
    ----------
    work : awaitable
        What to finish.
    """
    task = asyncio.ensure_future(work)
    while not task.done():
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.shield(task)
    await task


def run_to_the_end(work: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine that cleans up when it is cancelled, and let it do so.

    The first signal cancels it. Whoever presses Ctrl-C again is told to be patient, since
    what would be cut short is the deletion of machines that cost money.

    Parameters
    ----------
    work : coroutine
        What to run.

    Returns
    -------
    object
        What it returns.

    Raises
    ------
    KeyboardInterrupt
        If it was cancelled by a signal, once it has cleaned up; with the signal's number.
    """
    received: list[int] = []

    async def supervise() -> T:
        loop = asyncio.get_running_loop()
        task = asyncio.ensure_future(work)

        def receive(number: int) -> None:
            received.append(number)
            if len(received) == 1:
                task.cancel()
            else:
                note("Still cleaning up, so that nothing stays that costs money.")

        heeded = _heeded()
        for number in heeded:
            loop.add_signal_handler(number, receive, number)
        try:
            return await task
        finally:
            for number in heeded:
                loop.remove_signal_handler(number)

    try:
        return asyncio.run(supervise())
    except asyncio.CancelledError:
        raise KeyboardInterrupt(received[0]) from None
