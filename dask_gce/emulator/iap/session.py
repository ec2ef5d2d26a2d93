"""One connection to a machine, and the client that it belongs to, whichever websocket that uses.

Owns: what was read of the machine and not yet confirmed by the client, the counts of both
directions, back-pressure, the end. A session outlives its websocket for a while: the next one goes
on where the counts say. What is held of a session is bounded by `WINDOW`, and what the machine has
not taken yet by asyncio's own buffer: the websocket is read no further then.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, cast

from dask_gce.emulator.iap import frames
from dask_gce.emulator.iap.frames import Closed, Code, Tag

if TYPE_CHECKING:
    from dask_gce.emulator.iap.link import Link

__all__ = ["WINDOW", "Session"]

#: Bytes that are sent beyond what the client has confirmed: where Google's far end stalls, as IAP
#: Desktop's authors have seen it. What is read in one piece may come on top.
WINDOW = 3 * 2**19

#: Seconds after which the client is told what has arrived though it is little.
_TELLING = 0.1

#: Seconds without a word of the client's after which the end is told, though it has not confirmed
#: the last data yet: some confirm no more often than every mebibyte.
_LINGER = 2.0

#: Seconds that the machine may take for what the client said last.
_FLUSHING = 30.0

#: How a connection to a machine that vanished is noticed: when nothing was said for 10 seconds,
#: three questions 5 seconds apart; what is not confirmed for 25 seconds.
_ALIVE = {"TCP_KEEPIDLE": 10, "TCP_KEEPINTVL": 5, "TCP_KEEPCNT": 3, "TCP_USER_TIMEOUT": 25_000}


class Session(asyncio.Protocol):
    """What carries the bytes of one connection.

    Parameters
    ----------
    sid : str
        Its ID, by which it can be taken up again.
    resuming : float
        Seconds for which it can be.
    on_end : callable
        Told once, when it can be taken up no more.
    """

    def __init__(self, sid: str, resuming: float, on_end: Callable[[Session], None]) -> None:
        self.sid = sid
        self.link: Link | None = None
        #: The token with which it can be taken up no more.
        self.expired_token = ""
        #: Why the machine's side has ended; None while it has not.
        self.over: Code | None = None
        #: Set when the connection to the machine is gone.
        self.gone = asyncio.Event()
        self._resuming = resuming
        self._on_end = on_end
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.Transport | None = None
        self._writable = asyncio.Event()
        self._ended = False
        self._timer: asyncio.TimerHandle | None = None
        self._telling: asyncio.TimerHandle | None = None
        # From the machine: what was read, what is confirmed, what is kept and where that begins.
        self._read = 0
        self._confirmed = 0
        self._kept: deque[bytes] = deque()
        self._kept_from = 0
        self._paused = False
        # From the client: what has arrived, and what it was told of that.
        self._arrived = 0
        self._told = 0

    # The machine's side

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin.

        Parameters
        ----------
        transport : asyncio.BaseTransport
            The connection to the machine.
        """
        self._transport = cast(asyncio.Transport, transport)
        self._writable.set()
        connection = transport.get_extra_info("socket")
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for name, value in _ALIVE.items():
            if hasattr(socket, name):
                connection.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)

    def data_received(self, data: bytes) -> None:
        """Pass on what the machine says.

        Parameters
        ----------
        data : bytes
            It.
        """
        self._kept.append(data)
        self._read += len(data)
        self._regulate()
        if self.link is not None:
            self.link.send(frames.data(data), len(data))

    def eof_received(self) -> bool:
        """Note that the machine says no more; it may still listen.

        Returns
        -------
        bool
            True: the connection stays.
        """
        self._finish(Code.NORMAL)
        return True

    def connection_lost(self, error: Exception | None) -> None:
        """Note that the connection to the machine is gone.

        Parameters
        ----------
        error : Exception or None
            Why, None if it was closed in order.
        """
        if isinstance(error, BrokenPipeError):
            self._finish(Code.DESTINATION_WRITE_FAILED)
        else:
            self._finish(Code.NORMAL if error is None else Code.DESTINATION_READ_FAILED)
        self._writable.set()
        if self._ended:
            self._cancel_timers()
        self.gone.set()

    def pause_writing(self) -> None:
        """Take no more from the client: the machine does not."""
        self._writable.clear()

    def resume_writing(self) -> None:
        """Take more from the client."""
        self._writable.set()

    def _regulate(self) -> None:
        """Read of the machine while the client keeps up with it."""
        full = self._read - self._confirmed >= WINDOW
        if full == self._paused or self._transport is None or self._transport.is_closing():
            return
        self._paused = full
        if full:
            self._transport.pause_reading()
        else:
            self._transport.resume_reading()

    def _finish(self, code: Code) -> None:
        if self.over is None:
            self.over = code
            self._tell_end()

    def _tell_end(self) -> None:
        """Close the websocket once the machine has ended and the client has what it said.

        A client that still has to confirm, and finds the connection closed, may throw away what it
        has not looked at yet: gcloud does.
        """
        if self.over is None or self.link is None:
            return
        if self._timer is not None:
            self._timer.cancel()
        if self._read - self._confirmed <= frames.ACK_UNIT:
            self.link.close(self.over)
        else:
            self._timer = self._loop.call_later(_LINGER, self.link.close, self.over)

    # The client's side

    def check_place(self, confirmed: int) -> None:
        """Refuse to go on where that cannot be.

        Parameters
        ----------
        confirmed : int
            Bytes that the client has of the machine.

        Raises
        ------
        Closed
            The client cannot have so much, or the rest was not kept.
        """
        if confirmed > self._read:
            raise Closed(Code.INVALID_ACK, "The client has more than was sent.")
        if confirmed < self._confirmed:
            raise Closed(Code.FAILED_TO_REWIND, "The client has confirmed more before.")

    def attach(self, link: Link, confirmed: int | None = None) -> None:
        """Go on with a websocket.

        Parameters
        ----------
        link : Link
            The websocket.
        confirmed : int or None
            Bytes that the client has of the machine; None if it is the first websocket.
        """
        if confirmed is None:
            first = frames.connected(self.sid)
        else:
            first = frames.reconnected(self._arrived)
        self._cancel_timers()
        self.link = link
        self._told = self._arrived
        link.send(first, 0)
        if confirmed is not None:
            self._forget(confirmed)
        skip = self._confirmed - self._kept_from
        for piece in tuple(self._kept):
            view = memoryview(piece)[skip:]
            link.send(frames.data(view), len(view))
            skip = 0
        self._tell_end()

    def detach(self, link: Link) -> None:
        """Wait for another websocket, but not for ever.

        Parameters
        ----------
        link : Link
            The websocket that has ended; any but its own is ignored.
        """
        if self.link is link:
            self.link = None
            self._cancel_timers()
            if not self._ended:
                self._timer = self._loop.call_later(self._resuming, self.end)

    async def take(self, message: bytes) -> int:
        """Do what a message of the client's says, as soon as the machine is ready for it.

        Parameters
        ----------
        message : bytes
            The message.

        Returns
        -------
        int
            Bytes of data that it brought.

        Raises
        ------
        Closed
            No client may send that.
        """
        tag, content = frames.parse(message)
        if isinstance(content, memoryview):
            await self._writable.wait()
            if self._transport is not None and not self._transport.is_closing():
                self._transport.write(content)
            self._arrived += len(content)
            if self._arrived - self._told > frames.ACK_UNIT:
                self._tell()
            elif self._telling is None:
                self._telling = self._loop.call_later(_TELLING, self._tell)
            return len(content)
        if tag is Tag.ACK:
            if content > self._read:
                raise Closed(Code.INVALID_ACK, "More was confirmed than was sent.")
            if content < self._confirmed:
                raise Closed(Code.BAD_ACK, "Less was confirmed than before.")
            self._forget(content)
            self._tell_end()
        return 0

    def _forget(self, confirmed: int) -> None:
        """Keep no longer what the client has."""
        self._confirmed = confirmed
        while self._kept and self._kept_from + len(self._kept[0]) <= confirmed:
            self._kept_from += len(self._kept.popleft())
        self._regulate()

    def _tell(self) -> None:
        if self._telling is not None:
            self._telling.cancel()
            self._telling = None
        if self.link is not None and self._told < self._arrived:
            self._told = self._arrived
            self.link.send(frames.acknowledgement(self._arrived), 0)

    # The end

    def end(self) -> None:
        """End for good: what the client said is still passed on. May be called twice."""
        if self._ended:
            return
        self._ended = True
        self._cancel_timers()
        self._kept.clear()
        self._on_end(self)
        if self._transport is not None:
            # Nobody wants to know any more what the machine says.
            with contextlib.suppress(RuntimeError):
                self._transport.pause_reading()
            self._transport.close()
            self._timer = self._loop.call_later(_FLUSHING, self.abort)

    def abort(self) -> None:
        """End at once, whatever is on its way."""
        self.end()
        self._cancel_timers()
        if self._transport is not None:
            self._transport.abort()

    def _cancel_timers(self) -> None:
        for timer in (self._timer, self._telling):
            if timer is not None:
                timer.cancel()
        self._timer = self._telling = None
