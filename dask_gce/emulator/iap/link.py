"""One websocket of a session.

Owns: writing to it, counting what it carries, and ending it as the script or the session says.
"""

from __future__ import annotations

import asyncio
import contextlib
import select
from typing import Any

from aiohttp import WSMsgType, web

from dask_gce.emulator.iap.frames import Closed, Code
from dask_gce.emulator.iap.script import Tunnels
from dask_gce.emulator.iap.session import Session

__all__ = ["CLOSING", "Link"]

#: Seconds that a client may take to answer when its websocket is closed, all that it was sent
#: before included.
CLOSING = 30.0


class Link:
    """One websocket.

    Parameters
    ----------
    websocket : aiohttp.web.WebSocketResponse
        The websocket.
    transport : asyncio.Transport
        Its connection. Data is written to it directly, as complete frames.
    token : str
        The bearer token that came with it; empty without one.
    script : Tunnels
        What is to happen to it.
    """

    def __init__(
        self,
        websocket: web.WebSocketResponse,
        transport: asyncio.Transport,
        token: str,
        script: Tunnels,
    ) -> None:
        self.token = token
        #: Set when it does nothing more.
        self.left = asyncio.Event()
        self._websocket = websocket
        self._transport = transport
        self._script = script
        self._carried = 0
        self._expired = False
        self._ending: asyncio.Future[int] = asyncio.get_running_loop().create_future()

    @property
    def is_deserted(self) -> bool:
        """Whether the client has hung up, though that was not noticed yet.

        While a machine takes nothing the websocket is not read, and so not heard to end.
        """
        connection = self._transport.get_extra_info("socket")
        if self._transport.is_closing() or connection.fileno() < 0:
            return True
        if not hasattr(select, "POLLRDHUP"):
            return False
        look = select.poll()
        look.register(connection.fileno(), select.POLLRDHUP)
        return bool(look.poll(0))

    def send(self, frames: bytes, size: int) -> None:
        """Send frames, unless it is about to end.

        Parameters
        ----------
        frames : bytes
            The frames.
        size : int
            Bytes of data in them.
        """
        if not self._ending.done() and not self._transport.is_closing():
            self._transport.write(frames)
            self.note(size)

    def note(self, size: int) -> None:
        """Count what was carried, and let happen what the script says.

        Parameters
        ----------
        size : int
            Bytes of data.
        """
        self._carried += size
        if not size or self._ending.done():
            return
        if self._script.is_cut_after(self._carried):
            self.cut()
        elif self.token and self._script.has_expired_after(self._carried):
            self._expired = True
            self.close(Code.REAUTHENTICATION_REQUIRED)

    def cut(self) -> None:
        """Break the connection off, without a word."""
        if not self._ending.done():
            self._script.count("cuts")
            self._ending.set_result(Code.BROKEN_OFF)
        self._transport.abort()

    def close(self, code: int) -> None:
        """Close it in order; the first code counts.

        Parameters
        ----------
        code : int
            Why.
        """
        if not self._ending.done():
            self._ending.set_result(code)

    async def serve(self, session: Session) -> None:
        """Carry what comes, until it ends, and tell the session what that means.

        Parameters
        ----------
        session : Session
            The session, which it is attached to.
        """
        reading = asyncio.ensure_future(self._read(session))
        either: list[asyncio.Future[Any]] = [reading, self._ending]
        try:
            await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
            if not reading.done():
                reading.cancel()
                await asyncio.wait([reading])
            code, reason = self._outcome(reading)
            if code is None:
                session.end()
            elif code == Code.BROKEN_OFF:
                self._transport.abort()
            elif code == Code.REAUTHENTICATION_REQUIRED:
                session.expired_token = self.token if self._expired else ""
                await self.say_goodbye(code)
            elif code == session.over:
                # Who does not hear that the machine has ended may not have all that it said.
                if await self.say_goodbye(code):
                    session.end()
            else:
                session.end()
                await self.say_goodbye(code, reason)
        finally:
            reading.cancel()
            self.left.set()
            session.detach(self)

    def _outcome(self, reading: asyncio.Future[bool]) -> tuple[int | None, str]:
        """Return with which code to close, and why; None if the client has closed."""
        outcome: tuple[int | None, str] = None, ""
        try:
            if not reading.cancelled() and not reading.result():
                outcome = Code.BROKEN_OFF, ""
        except Closed as error:
            outcome = error.code, str(error)
        return (self._ending.result(), "") if self._ending.done() else outcome

    async def _read(self, session: Session) -> bool:
        """Read to the end; return whether the client has closed in order."""
        while True:
            message = await self._websocket.receive()
            if message.type is WSMsgType.BINARY:
                self.note(await session.take(message.data))
            elif message.type is WSMsgType.TEXT:
                raise Closed(Code.INVALID_WEBSOCKET_OPCODE, "Messages are binary.")
            else:
                return message.type is WSMsgType.CLOSE

    async def say_goodbye(self, code: int, reason: str = "") -> bool:
        """Close the websocket and wait for the client's answer.

        Parameters
        ----------
        code : int
            Why.
        reason : str
            The same in words.

        Returns
        -------
        bool
            Whether it answered.
        """
        self._script.count(f"close {int(code)}")
        with contextlib.suppress(asyncio.TimeoutError):
            await asyncio.wait_for(
                self._websocket.close(code=code, message=reason.encode()), CLOSING
            )
        self._transport.abort()
        return self._websocket.close_code not in (None, Code.BROKEN_OFF)
