"""The far end of the measurements: a process that sends and takes bytes, by websocket and plainly.

It is the instance as well: between it and what it sends lies no connection that would be measured
with the rest. A conversation begins with nine bytes: ``d`` and how many bytes to send, or ``u`` and
how many to take, which it confirms with one byte.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import struct
from multiprocessing.connection import Connection

from aiohttp import WSMsgType, web

#: Bytes in a DATA frame, bytes after which it acknowledges, and bytes it sends unacknowledged.
PIECE, ACK_AFTER, WINDOW = 16384, 32768, 1_500_000
#: What it sends, over and over.
PATTERN = bytes(range(256)) * 4096


class Session:
    """A conversation, over as many websockets as it takes."""

    def __init__(self, cut_every: int) -> None:
        self.cut_every = cut_every
        self.taken = bytearray()
        self.received = 0
        self.confirmed = 0
        self.changed = asyncio.Event()

    def _count(self) -> int:
        return int(struct.unpack(">Q", self.taken[1:9])[0])

    def _to_send(self) -> int:
        if len(self.taken) < 9:
            return 0
        if self.taken[:1] == b"d":
            return self._count()
        return int(self.received - 9 == self._count())

    async def send(self, websocket: web.WebSocketResponse) -> None:
        """Send from where the client stands, as far as the websocket goes."""
        position = sent_before = self.confirmed
        view = memoryview(PATTERN)
        while True:
            self.changed.clear()
            total = self._to_send()
            while position < total and position - self.confirmed < WINDOW:
                start = position % len(PATTERN)
                piece = view[start : start + min(PIECE, total - position)]
                await websocket.send_bytes(struct.pack(">HI", 4, len(piece)) + piece)
                position += len(piece)
                if self.cut_every and position - sent_before >= self.cut_every:
                    websocket.get_extra_info("socket").shutdown(2)
                    return
            await self.changed.wait()

    async def receive(self, websocket: web.WebSocketResponse) -> None:
        """Take what comes, until the websocket ends."""
        told = self.received
        async for message in websocket:
            if message.type is not WSMsgType.BINARY:
                continue
            content: bytes = message.data
            if content[1] == 7:
                self.confirmed = struct.unpack(">Q", content[2:])[0]
            else:
                if len(self.taken) < 9:
                    self.taken += content[6:]
                self.received += len(content) - 6
                if self.received - told >= ACK_AFTER:
                    told = self.received
                    await websocket.send_bytes(struct.pack(">HQ", 7, told))
            self.changed.set()


class FarEnd:
    """Answers ``/v4/connect`` and ``/v4/reconnect``, and plain connections."""

    def __init__(self) -> None:
        self.sessions: dict[str, Session] = {}
        self.cut_every = 0
        self._numbers = itertools.count()

    async def answer(self, request: web.Request) -> web.WebSocketResponse:
        """Serve a websocket."""
        websocket = web.WebSocketResponse(protocols=("relay.tunnel.cloudproxy.app",), timeout=1.0)
        await websocket.prepare(request)
        if request.path.endswith("/connect"):
            sid = f"{next(self._numbers)}"
            session = self.sessions[sid] = Session(self.cut_every)
            await websocket.send_bytes(struct.pack(">HI", 1, len(sid)) + sid.encode())
        else:
            session = self.sessions[request.query["sid"]]
            session.confirmed = int(request.query["ack"])
            await websocket.send_bytes(struct.pack(">HQ", 2, session.received))
        sending = asyncio.ensure_future(session.send(websocket))
        try:
            await session.receive(websocket)
        finally:
            sending.cancel()
            with contextlib.suppress(asyncio.CancelledError, ConnectionError):
                await sending
        return websocket

    async def talk(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Serve a plain connection."""
        what, count = struct.unpack(">cQ", await reader.readexactly(9))
        if what == b"d":
            view = memoryview(PATTERN)
            for start in range(0, count, len(PATTERN)):
                writer.write(view[: count - start])
                await writer.drain()
        else:
            while count:
                count -= len(await reader.read(2**18))
            writer.write(b"!")
        await reader.read()
        writer.close()


def run(pipe: Connection) -> None:
    """Tell both ports, then set what is asked for, until None comes."""
    asyncio.run(_run(pipe))


async def _run(pipe: Connection) -> None:
    far_end = FarEnd()
    app = web.Application()
    app.router.add_get("/v4/connect", far_end.answer)
    app.router.add_get("/v4/reconnect", far_end.answer)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    plain = await asyncio.start_server(far_end.talk, "127.0.0.1", 0, limit=2**18)
    pipe.send((runner.addresses[0][1], plain.sockets[0].getsockname()[1]))
    while (cut_every := await asyncio.to_thread(pipe.recv)) is not None:
        far_end.cut_every = cut_every
        pipe.send(cut_every)
    plain.close()
    await runner.cleanup()
