"""A second far end of IAP for tests: RFC 6455 and the relay protocol by hand, on asyncio's streams.

It shares no code with the package nor with the local Compute Engine, so that neither can hide the
other's mistakes. It checks what a client sends, and breaks off where a test tells it to.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import hashlib
import itertools
import os
import ssl
import struct
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from urllib.parse import parse_qs, urlsplit

GUID = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
PIECE = 16384
#: Seconds until the end of what was received is acknowledged.
TAIL = 0.01


@dataclass
class Request:
    """A handshake that was received."""

    path: str
    query: dict[str, str]
    headers: dict[str, str]


class WebSocket:
    """A server's side of one websocket."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer
        self.is_closing = False
        self._draining = asyncio.Lock()

    async def receive(self) -> tuple[int, bytes]:
        """Return the opcode and payload of the next frame."""
        first, second = await self.reader.readexactly(2)
        assert first & 0x80, "a client that sends in fragments"
        assert second & 0x80, "a client that does not mask"
        length = second & 0x7F
        if length == 126:
            (length,) = struct.unpack(">H", await self.reader.readexactly(2))
        elif length == 127:
            (length,) = struct.unpack(">Q", await self.reader.readexactly(8))
        key = await self.reader.readexactly(4)
        content = await self.reader.readexactly(length)
        mask = int.from_bytes((key * (length // 4 + 1))[:length], "big")
        return first & 0x0F, (int.from_bytes(content, "big") ^ mask).to_bytes(length, "big")

    @staticmethod
    def frame(opcode: int, content: bytes) -> bytes:
        """Return a frame."""
        length = len(content)
        if length < 126:
            return bytes((0x80 | opcode, length)) + content
        if length < 65536:
            return struct.pack(">BBH", 0x80 | opcode, 126, length) + content
        return struct.pack(">BBQ", 0x80 | opcode, 127, length) + content

    async def send(self, content: bytes, opcode: int = 2) -> None:
        """Send a frame."""
        self.writer.write(self.frame(opcode, content))
        # Before Python 3.11 only one may wait at a time.
        async with self._draining:
            await self.writer.drain()

    async def close(self, code: int | None, reason: str = "") -> None:
        """Send a close frame."""
        if self.is_closing:
            return
        self.is_closing = True
        content = b"" if code is None else struct.pack(">H", code) + reason.encode()
        await self.send(content, 8)

    async def refuse(self, code: int, reason: str = "") -> None:
        """Send a close frame, and wait until the client has hung up."""
        await self.close(code, reason)
        while await self.reader.read(65536):
            pass

    def break_off(self, half_a_frame: bytes = b"") -> None:
        """Drop the connection without a word, or in the middle of one."""
        if half_a_frame:
            self.writer.write(self.frame(2, half_a_frame)[: len(half_a_frame) // 2])
        self.is_closing = True
        self.writer.transport.abort()


@dataclass(eq=False)
class Session:
    """A connection to the instance."""

    sid: str
    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter
    received: int = 0
    #: What the client has not confirmed, and where that begins.
    base: int = 0
    kept: bytearray = field(default_factory=bytearray)
    ended: bool = False
    changed: asyncio.Event = field(default_factory=asyncio.Event)
    pump: asyncio.Task[None] | None = None
    socket: WebSocket | None = None


class IapDouble:
    """A far end whose instances all are one address.

    Attributes
    ----------
    backend
        Where the instances' ports are: an address that is connected to.
    refusals
        What becomes of the next handshakes: an HTTP status, or a close code after the handshake.
    cuts
        After how many bytes in both directions, each time counted from the last, the connection
        breaks; in the middle of a frame.
    cut_code
        The close code with which it breaks, or None for none.
    ack_every
        Bytes after which it acknowledges, or None for never.
    window
        Bytes that it sends without an acknowledgement.
    is_rude
        Whether it closes right after the last DATA.
    is_mute
        Whether it leaves pings unanswered.
    token
        The token that it asks for.
    inject
        Called with each websocket once it is connected.
    """

    def __init__(self, *, tls: ssl.SSLContext | None = None) -> None:
        self.backend: tuple[str, int] = ("127.0.0.1", 0)
        self.refusals: list[int] = []
        self.cuts: Iterable[int] = ()
        self.cut_code: int | None = None
        self.ack_every: int | None = 32768
        self.window = 1_500_000
        self.is_rude = False
        self.is_mute = False
        self.token: str | None = None
        self.inject: Callable[[WebSocket], None] | None = None
        self.requests: list[Request] = []
        self.sessions: dict[str, Session] = {}
        self.pings = 0
        self.pongs: list[bytes] = []
        self.closes: list[int] = []
        self.broken: list[str] = []
        #: Set when a websocket ends, in whatever way.
        self.parted = asyncio.Event()
        self._tls = tls
        self._numbers = itertools.count()
        self._left: float | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._server: asyncio.Server | None = None

    async def __aenter__(self) -> IapDouble:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0, ssl=self._tls)
        self.port = self._server.sockets[0].getsockname()[1]
        scheme = "ws" if self._tls is None else "wss"
        self.endpoint = f"{scheme}://127.0.0.1:{self.port}/v4"
        return self

    async def __aexit__(self, *exc: object) -> None:
        assert self._server is not None
        self._server.close()
        for task in self._tasks:
            task.cancel()
        for session in self.sessions.values():
            if session.pump is not None:
                session.pump.cancel()
                await asyncio.wait([session.pump])
            session.writer.transport.abort()
        if self._tasks:
            await asyncio.wait(self._tasks)
        await self._server.wait_closed()

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.ensure_future(self._serve(reader, writer))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            head = await reader.readuntil(b"\r\n\r\n")
            refusal = await self._answer(head, writer)
            if refusal is None:
                return
            socket = WebSocket(reader, writer)
            if refusal:
                await socket.refuse(refusal, "as the test says")
            else:
                await self._talk(socket, self.requests[-1])
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        except AssertionError as error:
            self.broken.append(str(error))
        finally:
            writer.transport.abort()
            self.parted.set()

    async def _answer(self, head: bytes, writer: asyncio.StreamWriter) -> int | None:
        """Answer the handshake; return the close code that is to follow, 0 for none."""
        first, *lines = head.decode("latin-1").split("\r\n")
        method, target, _ = first.split(" ")
        assert method == "GET"
        headers = {
            name.lower(): value.strip()
            for name, _, value in (line.partition(":") for line in lines if line)
        }
        parts = urlsplit(target)
        query = {name: values[-1] for name, values in parse_qs(parts.query).items()}
        self.requests.append(Request(parts.path, query, headers))
        refusal = self.refusals.pop(0) if self.refusals else 0
        if self.token is not None and headers.get("authorization") != f"Bearer {self.token}":
            refusal = 401
        if 100 <= refusal < 1000:
            writer.write(f"HTTP/1.1 {refusal} No\r\nContent-Length: 0\r\n\r\n".encode())
            await writer.drain()
            return None
        assert headers["upgrade"] == "websocket"
        assert headers["sec-websocket-version"] == "13"
        assert headers["sec-websocket-protocol"] == "relay.tunnel.cloudproxy.app"
        assert headers["origin"] == "bot:iap-tunneler"
        digest = hashlib.sha1(headers["sec-websocket-key"].encode() + GUID)  # noqa: S324 # RFC 6455
        accept = base64.b64encode(digest.digest()).decode()
        writer.write(
            "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            f"Sec-WebSocket-Accept: {accept}\r\n"
            "Sec-WebSocket-Protocol: relay.tunnel.cloudproxy.app\r\n\r\n".encode()
        )
        await writer.drain()
        return refusal

    async def _talk(self, socket: WebSocket, request: Request) -> None:
        session = await self._session(socket, request)
        if session is None:
            return
        if self.inject is not None:
            self.inject(socket)
        session.socket = socket
        sending = asyncio.ensure_future(self._send(socket, session))
        try:
            await self._receive(socket, session)
        finally:
            sending.cancel()
            with contextlib.suppress(asyncio.CancelledError, ConnectionError):
                await sending
            socket.is_closing = True

    async def _session(self, socket: WebSocket, request: Request) -> Session | None:
        """Return the session after having said so, or None after having refused."""
        query = request.query
        if request.path == "/v4/connect":
            assert query["newWebsocket"] == "True"
            assert set(query) == {
                "project",
                "port",
                "newWebsocket",
                "zone",
                "instance",
                "interface",
            }
            try:
                reader, writer = await asyncio.open_connection(*self.backend)
            except OSError:
                await socket.refuse(4003, "failed to connect to backend")
                return None
            sid = f"session {next(self._numbers)} &=+"
            session = Session(sid, reader, writer)
            self.sessions[sid] = session
            session.pump = asyncio.ensure_future(self._pump(session))
            await socket.send(struct.pack(">HI", 1, len(sid)) + sid.encode())
            return session
        assert request.path == "/v4/reconnect", request.path
        assert set(query) == {"sid", "ack", "newWebsocket", "zone"}
        resumed = self.sessions.get(query["sid"])
        if resumed is None:
            await socket.refuse(4001)
            return None
        if resumed.socket is not None and not resumed.socket.is_closing:
            # The client knows sooner than this end that the last one is gone.
            resumed.socket.break_off()
        self._confirm(resumed, int(query["ack"]))
        await socket.send(struct.pack(">HQ", 2, resumed.received))
        return resumed

    async def _pump(self, session: Session) -> None:
        """Read from the instance."""
        with contextlib.suppress(ConnectionError):
            while data := await session.reader.read(65536):
                while len(session.kept) > self.window:
                    session.changed.clear()
                    await session.changed.wait()
                session.kept += data
                session.changed.set()
        session.ended = True
        session.changed.set()

    async def _send(self, socket: WebSocket, session: Session) -> None:
        position = session.base
        while not socket.is_closing:
            session.changed.clear()
            while position < session.base + len(session.kept):
                start = position - session.base
                piece = bytes(session.kept[start : start + PIECE])
                frame = struct.pack(">HI", 4, len(piece)) + piece
                if self._is_to_cut(len(piece)):
                    await self._cut(socket, frame)
                    return
                position += len(piece)
                await socket.send(frame)
            if session.ended and (self.is_rude or not session.kept):
                await socket.close(1000)
                return
            await session.changed.wait()

    async def _receive(self, socket: WebSocket, session: Session) -> None:
        acknowledged = session.received
        tail: asyncio.TimerHandle | None = None

        def acknowledge() -> None:
            nonlocal acknowledged, tail
            acknowledged, tail = session.received, None
            if not socket.is_closing:
                socket.writer.write(socket.frame(2, struct.pack(">HQ", 7, acknowledged)))

        while True:
            opcode, content = await socket.receive()
            if opcode == 8:
                if not socket.is_closing:
                    # The client hangs up: this is the end of the session.
                    self.closes.append(struct.unpack(">H", content[:2])[0] if content else 1005)
                    session.writer.write_eof()
                    socket.is_closing = True
                    await socket.send(content[:2], 8)
                return
            if opcode == 9:
                self.pings += 1
                if not self.is_mute:
                    # Not waiting for whoever is in the way: the next one is to be counted, too.
                    socket.writer.write(socket.frame(10, content))
                continue
            if opcode == 10:
                self.pongs.append(content)
                continue
            assert opcode == 2, f"opcode {opcode}"
            (tag,) = struct.unpack(">H", content[:2])
            if tag == 7:
                assert len(content) == 10
                self._confirm(session, struct.unpack(">Q", content[2:])[0])
                continue
            assert tag == 4, f"tag {tag}"
            (length,) = struct.unpack(">I", content[2:6])
            assert 0 < length <= PIECE
            assert len(content) == 6 + length
            if self._is_to_cut(length):
                await self._cut(socket, b"")
                return
            session.received += length
            session.writer.write(content[6:])
            await session.writer.drain()
            if self.ack_every is None:
                continue
            if session.received - acknowledged >= self.ack_every:
                acknowledge()
            elif tail is None:
                tail = asyncio.get_running_loop().call_later(TAIL, acknowledge)

    def _confirm(self, session: Session, count: int) -> None:
        assert session.base <= count <= session.base + len(session.kept), "a wrong ACK"
        del session.kept[: count - session.base]
        session.base = count
        session.changed.set()

    def _is_to_cut(self, count: int) -> bool:
        if self._left is None:
            self.cuts = iter(self.cuts)
            self._left = next(self.cuts, float("inf"))
        self._left -= count
        if self._left > 0:
            return False
        self._left = None
        return True

    async def _cut(self, socket: WebSocket, frame: bytes) -> None:
        if self.cut_code is None:
            socket.break_off(frame)
        else:
            await socket.close(self.cut_code)


def random_bytes(count: int) -> bytes:
    """Return bytes that do not repeat."""
    return os.urandom(count)
