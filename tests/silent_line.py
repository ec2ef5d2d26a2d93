"""The line between a client and everybody else: it counts what is asked, and can fall silent.

All connections of a client lead through it, to Compute Engine and to the scheduler alike. While it
is silent nobody at either end learns anything: no connection is closed, none is refused, and one
that is begun is never answered. That is what a computer meets whose network is gone, and what its
peers see of it. Owns both ends: `Line` in the process that watches, `take_line` in the client.
"""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any, Literal

#: What an HTTP request begins with.
VERBS = (b"GET ", b"POST ", b"PUT ", b"PATCH ", b"DELETE ")

#: A port at which nobody listens.
REFUSED = 1

#: When in the course of a request something is to happen: before it arrives, when it has arrived
#: and nobody has heard the answer, or when the answer has come.
Point = Literal["asked", "sent", "answered"]


class Line:
    """A line for one client, which runs in a thread of its own.

    Parameters
    ----------
    api : int
        The port at which Compute Engine answers.
    folder : Path
        Where its Unix socket goes.
    """

    def __init__(self, api: int, folder: Path) -> None:
        self.control = folder / "line"
        self.requests = 0
        self._api = api
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="line")
        self._flows = asyncio.Event()
        # The far ends of connections that the client is about to make, and where they are, by the
        # port that it comes from.
        self._far_ends: dict[int, tuple[asyncio.StreamReader, asyncio.StreamWriter, int]] = {}
        self._tasks: set[asyncio.Task[Any]] = set()
        self._servers: list[asyncio.Server] = []
        self._armed: tuple[Point, int, Callable[[], object]] | None = None
        self._nowhere: list[socket.socket] = []

    def __enter__(self) -> Line:
        self._thread.start()
        asyncio.run_coroutine_threadsafe(self._open(), self._loop).result()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        asyncio.run_coroutine_threadsafe(self._close(), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def cut(self) -> None:
        """Fall silent: at once where a request is in hand, which then goes no further."""
        if threading.current_thread() is self._thread:
            self._flows.clear()
        else:
            self._loop.call_soon_threadsafe(self._flows.clear)

    def mend(self) -> None:
        """Pass on what has come meanwhile, and all that comes."""
        self._loop.call_soon_threadsafe(self._flows.set)

    def arm(self, point: Point, number: int, action: Callable[[], object]) -> None:
        """Have something happen in the course of a request to Compute Engine.

        Parameters
        ----------
        point : {"asked", "sent", "answered"}
            When in its course.
        number : int
            Which request, counted from now; 1 is the next.
        action : callable
            What happens. It is called once, in the line's thread.
        """

        def arm() -> None:
            self._armed = (point, self.requests + number, action)

        self._loop.call_soon_threadsafe(arm)

    async def _open(self) -> None:
        self._flows.set()
        relay = await asyncio.start_server(self._relay, "127.0.0.1", 0)
        self._port = relay.sockets[0].getsockname()[1]
        control = await asyncio.start_unix_server(self._answer, self.control)
        self._servers = [relay, control]
        # Whoever knocks where the queue is full is not answered at all.
        listener = socket.socket()
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        self._nowhere = [listener]
        for _ in range(3):
            knocking = socket.socket()
            knocking.setblocking(False)
            knocking.connect_ex(listener.getsockname())
            self._nowhere.append(knocking)

    async def _close(self) -> None:
        for server in self._servers:
            server.close()
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)
        for _, far_writer, _ in self._far_ends.values():
            far_writer.transport.abort()
        for each in self._nowhere:
            each.close()

    def _keep(self) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Tell the client where to connect instead, once it is known where that is to lead."""
        self._keep()
        try:
            while line := await reader.readline():
                own, host, port = line.decode().split()
                leads_to = self._silence
                if self._flows.is_set():
                    leads_to = await self._reach_out(int(own), host, int(port))
                writer.write(b"%d\n" % leads_to)
                await writer.drain()
        except OSError:
            pass  # it was killed
        finally:
            writer.close()

    async def _reach_out(self, own: int, host: str, port: int) -> int:
        """Connect to where a connection is to lead; whoever is refused there is refused here."""
        try:
            self._far_ends[own] = (*await asyncio.open_connection(host, port), port)
        except OSError:
            return REFUSED
        return self._port

    @property
    def _silence(self) -> int:
        port: int = self._nowhere[0].getsockname()[1]
        return port

    async def _relay(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._keep()
        peer = writer.get_extra_info("peername")
        if peer is None or peer[1] not in self._far_ends:
            writer.transport.abort()
            return
        far_reader, far_writer, port = self._far_ends.pop(peer[1])
        asks = port == self._api
        try:
            await asyncio.gather(
                self._pump(reader, far_writer, asks=asks),
                self._pump(far_reader, writer, answers=asks),
            )
        except OSError:
            # One end was reset: so is the other, but nobody hears of it while the line is silent.
            await self._flows.wait()
        finally:
            writer.transport.abort()
            far_writer.transport.abort()

    async def _pump(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        *,
        asks: bool = False,
        answers: bool = False,
    ) -> None:
        while True:
            data = await reader.read(2**16)
            await self._flows.wait()
            if asks and data.startswith(VERBS):
                self.requests += 1
                self._reach("asked")
            # What was done at that moment may have cut the line, or ended who asked.
            await self._flows.wait()
            if not data:
                writer.write_eof()
                return
            writer.write(data)
            await writer.drain()
            if asks and data.startswith(VERBS):
                self._reach("sent")
            if answers:
                self._reach("answered")

    def _reach(self, point: Point) -> None:
        if self._armed is not None:
            wanted, number, action = self._armed
            if wanted == point and self.requests >= number:
                self._armed = None
                action()


def take_line(control: str) -> None:
    """Have all TCP connections of this process lead through a line, from now on.

    Parameters
    ----------
    control : str
        The line's Unix socket.
    """
    line = socket.socket(socket.AF_UNIX)
    line.connect(control)
    answers = line.makefile("rb")
    lock = threading.Lock()
    plain = socket.socket.__mro__[1]

    def lead(one: socket.socket, address: Any) -> Any:
        if one.family != socket.AF_INET or one.type != socket.SOCK_STREAM:
            return address
        if one.getsockname()[1] == 0:
            one.bind(("127.0.0.1", 0))
        with lock:
            line.sendall(f"{one.getsockname()[1]} {address[0]} {address[1]}\n".encode())
            return ("127.0.0.1", int(answers.readline()))

    def connect(one: socket.socket, address: Any) -> None:
        plain.connect(one, lead(one, address))  # type: ignore[attr-defined]

    def connect_ex(one: socket.socket, address: Any) -> int:
        code: int = plain.connect_ex(one, lead(one, address))  # type: ignore[attr-defined]
        return code

    socket.socket.connect = connect  # type: ignore[method-assign]
    socket.socket.connect_ex = connect_ex  # type: ignore[method-assign]
