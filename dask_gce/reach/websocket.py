"""The end of a websocket: how it came, and how to bring it about.

Owns: reading what a websocket says last, where aiohttp says too much or too little, hanging up, and
breaking off. Leaves how websockets begin to `far_end`.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from typing import TYPE_CHECKING

from dask_gce.reach.frames import LongClose
from dask_gce.reach.refusals import CUT

if TYPE_CHECKING:
    from aiohttp import ClientWebSocketResponse, WSMessage

__all__ = ["Closed", "drop", "hang_up", "read_close"]

#: Seconds that the far end has to agree to a websocket's end.
GOODBYE = 2.0


class Closed:
    """How a websocket ended.

    Parameters
    ----------
    code : int
        The close code.
    reason : str
        The far end's words.
    """

    def __init__(self, code: int, reason: str = "") -> None:
        self.code = code
        self.reason = reason


def read_close(message: WSMessage, announced: LongClose | None) -> Closed:
    """Tell how a websocket ended from the last thing it said.

    Parameters
    ----------
    message : aiohttp.WSMessage
        A message that is not binary.
    announced : LongClose or None
        What the far end said before.

    Returns
    -------
    Closed
        The code and the reason.
    """
    from aiohttp import WebSocketError, WSMsgType

    if message.type is WSMsgType.CLOSE:
        if announced is not None:
            return Closed(announced.code, announced.reason)
        # aiohttp makes 0 of a close frame without a code, which RFC 6455 calls 1005.
        return Closed(message.data or 1005, message.extra or "")
    if message.type is WSMsgType.TEXT:
        return Closed(1003, "a text message, where all are binary")
    if message.type is WSMsgType.ERROR and isinstance(message.data, WebSocketError):
        return Closed(message.data.code, str(message.data))
    # Not `close_code`: aiohttp says 1000 of a connection that ends without a close frame.
    return Closed(CUT)


async def hang_up(websocket: ClientWebSocketResponse) -> None:
    """Close a websocket, and wait only a moment for the far end to agree.

    Parameters
    ----------
    websocket : aiohttp.ClientWebSocketResponse
        The websocket, in whatever state.
    """
    with contextlib.suppress(asyncio.TimeoutError):
        await asyncio.wait_for(websocket.close(), GOODBYE)


def drop(websocket: ClientWebSocketResponse) -> None:
    """Break a websocket off without a word: a close frame would end the session as well.

    Parameters
    ----------
    websocket : aiohttp.ClientWebSocketResponse
        The websocket, in whatever state.
    """
    connection = websocket.get_extra_info("socket")
    if connection is not None:
        with contextlib.suppress(OSError):  # it is gone already
            connection.shutdown(socket.SHUT_RDWR)
