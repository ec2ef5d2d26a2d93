"""Listeners that end without losing anybody.

Owns the first step, which is the same for all of them. The rest belongs to those who listen.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from typing import Protocol

__all__ = ["stop_accepting"]


class _Listener(Protocol):
    def fileno(self) -> int: ...


def stop_accepting(listeners: Iterable[_Listener]) -> asyncio.Future[None]:
    """Let an event loop accept nobody more, so that the server of the listeners can be closed.

    Whom the loop has accepted in this turn becomes a connection of the server's in the next one. Of
    a server that is closed by then asyncio makes none, and forgets to close the socket.

    Parameters
    ----------
    listeners : iterable of sockets
        Where the running loop accepts connections.

    Returns
    -------
    asyncio.Future
        Done a turn later. Whoever does not wait closes the server by ``loop.call_soon``.
    """
    loop = asyncio.get_running_loop()
    for listener in listeners:
        loop.remove_reader(listener)
    turn = loop.create_future()
    loop.call_soon(_end, turn)
    return turn


def _end(turn: asyncio.Future[None]) -> None:
    if not turn.done():
        turn.set_result(None)
