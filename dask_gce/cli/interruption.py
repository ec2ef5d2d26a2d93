"""How commands end before their time: Ctrl-C and SIGTERM.

Owns the handling of both signals, by commands that have something to clean up and by those that
have not. The exit status that follows is the matter of the group of commands.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import Coroutine, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any, TypeVar

import click

__all__ = ["run_to_the_end", "run_while_wanted", "terminable"]

T = TypeVar("T")

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


@contextmanager
def terminable() -> Iterator[None]:
    """Let SIGTERM end what runs meanwhile as Ctrl-C does: with an exception."""

    def end(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt(number)

    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


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
        click.echo("Interrupted.", err=True)
        sys.stdout.flush()
        os._exit(128 + signal.SIGINT)


def run_to_the_end(work: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine that cleans up when it is cancelled, and let it do so.

    Ctrl-C or SIGTERM cancels it once. Whoever presses Ctrl-C again is told to be patient, since
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
                click.echo("Still cleaning up, so that nothing stays that costs money.", err=True)

        for number in _SIGNALS:
            loop.add_signal_handler(number, receive, number)
        try:
            return await task
        finally:
            for number in _SIGNALS:
                loop.remove_signal_handler(number)

    try:
        return asyncio.run(supervise())
    except asyncio.CancelledError:
        raise KeyboardInterrupt(received[0]) from None
