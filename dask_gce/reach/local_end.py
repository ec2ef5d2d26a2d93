"""The local end of a tunnel: one accepted TCP connection, with back-pressure in both directions.

Owns: the bytes that have come from it and are not sent yet, pausing it, and the ways in which it
ends. Leaves what becomes of the bytes to `passage`.

asyncio's streams would do, but for two things: they copy each byte twice more, and before Python
3.12 a connection whose task ends in the wrong turn is left to the garbage collector.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
from collections import deque
from collections.abc import Callable

__all__ = ["LocalEnd"]

#: Bytes that may wait in either direction before whoever sends them has to.
HELD = 256 * 1024
#: Seconds for the other side to end as well, once it has been told that nothing more comes: a
#: connection that is closed with bytes unread is reset, and takes away bytes on their way to it.
LINGER = 5.0
#: With these SO_LINGER options a socket that is closed says that the connection broke.
_RESET = struct.pack("ii", 1, 0)


class LocalEnd(asyncio.Protocol):
    """One local connection.

    Parameters
    ----------
    welcome : callable
        Called with this object once the connection stands.
    farewell : callable
        Called with this object once it is gone.

    Attributes
    ----------
    stirred : asyncio.Event
        Set whenever something has changed; cleared by who waits for it.
    ended : bool
        Whether no more will come from it.
    ended_at : float
        When that was, in the loop's time.
    lost : bool
        Whether it is gone altogether.
    """

    def __init__(
        self, welcome: Callable[[LocalEnd], None], farewell: Callable[[LocalEnd], None]
    ) -> None:
        self.stirred = asyncio.Event()
        self.ended = False
        self.ended_at = 0.0
        self.lost = False
        self._welcome = welcome
        self._farewell = farewell
        self._transport: asyncio.Transport | None = None
        self._pieces: deque[memoryview] = deque()
        self._pending = 0
        self._is_paused = False
        self._is_discarding = False
        self._writable = asyncio.Event()
        self._writable.set()
        self._gone = asyncio.Event()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin."""
        assert isinstance(transport, asyncio.Transport)  # noqa: S101 # asyncio promises it to a Protocol
        self._transport = transport
        transport.set_write_buffer_limits(HELD)
        self._welcome(self)

    def data_received(self, data: bytes) -> None:
        """Keep what has come."""
        if self._is_discarding:
            return
        self._pieces.append(memoryview(data))
        self._pending += len(data)
        if self._pending >= HELD and self._transport is not None:
            self._transport.pause_reading()
            self._is_paused = True
        self.stirred.set()

    def eof_received(self) -> bool:
        """Note that no more comes, and keep the other direction open."""
        self._end()
        return True

    def connection_lost(self, error: Exception | None) -> None:
        """Note that it is gone."""
        self.lost = True
        self._writable.set()
        self._gone.set()
        self._end()
        self._farewell(self)

    def pause_writing(self) -> None:
        """Note that it takes no more for now."""
        self._writable.clear()

    def resume_writing(self) -> None:
        """Note that it takes more."""
        self._writable.set()
        self.stirred.set()

    def _end(self) -> None:
        if not self.ended:
            self.ended = True
            self.ended_at = asyncio.get_running_loop().time()
        self.stirred.set()

    @property
    def pending(self) -> int:
        """How many bytes have come and were not taken."""
        return self._pending

    @property
    def full(self) -> bool:
        """Whether it takes no more for now."""
        return not self._writable.is_set()

    def take(self, limit: int) -> memoryview | None:
        """Take the next bytes that have come.

        Parameters
        ----------
        limit : int
            How many, at most; one or more.

        Returns
        -------
        memoryview or None
            One byte or more, never to be changed; None if there are none.
        """
        if not self._pieces:
            return None
        piece = self._pieces[0]
        if len(piece) > limit:
            self._pieces[0] = piece[limit:]
            piece = piece[:limit]
        else:
            self._pieces.popleft()
        self._pending -= len(piece)
        if self._is_paused and self._pending <= HELD // 2:
            self._resume()
        return piece

    def _resume(self) -> None:
        self._is_paused = False
        if self._transport is not None and not self._transport.is_closing():
            self._transport.resume_reading()

    def write(self, content: memoryview) -> None:
        """Give it bytes; whoever finds it `full` then waits until it has `drained`.

        Parameters
        ----------
        content : memoryview
            The bytes. Those for a connection that is gone are dropped.
        """
        if self._transport is not None and not self._transport.is_closing():
            self._transport.write(content)

    async def drained(self) -> None:
        """Wait until it takes more, or is gone."""
        await self._writable.wait()

    def stop_reading(self) -> None:
        """Take nothing more from it; what has come can still be taken."""
        if self._transport is not None and not self._transport.is_closing():
            self._transport.pause_reading()
        self._is_paused = False

    async def finish(self) -> None:
        """End it once it has taken all that it was given.

        What still comes from it is dropped: nobody is there any more to get it.
        """
        transport = self._transport
        if transport is None or self.lost:
            return
        self._is_discarding = True
        self._pieces.clear()
        self._pending = 0
        with contextlib.suppress(OSError):  # it was reset in this very turn
            transport.write_eof()
        if not self.ended:
            self._resume()
            await self._until_ended()
        transport.close()
        await self._gone.wait()

    async def _until_ended(self) -> None:
        loop = asyncio.get_running_loop()
        deadline = loop.time() + LINGER
        timer = loop.call_at(deadline, self.stirred.set)
        try:
            # Whoever does not take what it was given has not got to the end either.
            while not self.ended and (loop.time() < deadline or self.full):
                self.stirred.clear()
                await self.stirred.wait()
        finally:
            timer.cancel()

    def reset(self) -> None:
        """Break it off, so that nobody takes what has come of a message for all of it."""
        transport = self._transport
        if transport is None or self.lost:
            return
        inner: socket.socket | None = transport.get_extra_info("socket")
        if inner is not None:
            with contextlib.suppress(OSError):  # it is gone already
                inner.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
        transport.abort()

    def abort(self) -> None:
        """Close it now, whatever it still had to take."""
        if self._transport is not None and not self.lost:
            self._transport.abort()
