"""Ports of machines on the host: how a client there reaches them.

Owns the listeners on loopback addresses of the host, and the bytes between them and the machines. A
listener is there while a rule lets the client in and the guest listens, so that whoever connects is
refused when the machine would refuse. Connections to machines begin in the client's namespace,
where the rules hold for them as for anybody's.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
import struct
from collections.abc import Awaitable, Callable, Collection, Coroutine, Mapping
from functools import partial

from dask_gce.emulator.listeners import stop_accepting
from dask_gce.emulator.machines.peers import Peers

__all__ = ["Forwards", "Target", "wait_connected"]

logger = logging.getLogger(__name__)

#: An IPv4 address and a TCP port.
Target = tuple[str, int]

#: Bytes that are read at a time.
_PIECE = 256 * 1024

#: Seconds that the machine may take to accept.
_CONNECTING = 20.0

#: SO_LINGER with no time: what was not read is lost, and the peer learns that the machine is gone.
_RESET = struct.pack("ii", 1, 0)


class Forwards:
    """Listens on the host for the machines.

    Parameters
    ----------
    connect : callable
        Begins a connection from the client's namespace to an address and a port.
    """

    def __init__(self, connect: Callable[[str, int], Awaitable[socket.socket]]) -> None:
        self._connect = connect
        self._peers = Peers()
        self._servers: dict[Target, asyncio.Server] = {}
        self._targets: dict[Target, Target] = {}
        self._refused: set[Target] = set()
        self._relays: set[asyncio.Task[None]] = set()

    @property
    def open(self) -> Collection[Target]:
        """Where the host listens."""
        return self._servers.keys()

    async def update(self, targets: Mapping[Target, Target]) -> None:
        """Listen where it is wanted and nowhere else; connections that are there go on.

        Parameters
        ----------
        targets : mapping of Target to Target
            The machine's external address and port behind each address and port of the host.
        """
        self.retain(targets)
        self._refused &= targets.keys()
        self._targets = dict(targets)
        for place in targets:
            if place in self._servers or place in self._refused:
                continue
            try:
                await self._listen(place)
            except OSError as error:
                if place not in self._targets:
                    continue  # its machine went off meanwhile
                # Somebody else has the port on all addresses of the host, as its SSH server may.
                logger.info("The host does not listen on %s:%d: %s", *place, error)
                self._refused.add(place)

    async def _listen(self, place: Target) -> None:
        server = await asyncio.start_server(
            partial(self._accept, place), *place, limit=_PIECE, start_serving=False
        )
        if place not in self._targets:
            server.close()  # its machine went off meanwhile
            return
        # Noted first: who is interrupted while it begins to serve has something to close.
        self._servers[place] = server
        try:
            await server.start_serving()
        except OSError:
            self._servers.pop(place).close()
            raise

    def retain(self, places: Collection[Target]) -> None:
        """Listen nowhere else any more.

        Parameters
        ----------
        places : collection of Target
            Where to go on.
        """
        for place in [one for one in self._servers if one not in places]:
            server = self._servers.pop(place)
            stop_accepting(server.sockets)
            asyncio.get_running_loop().call_soon(server.close)
        for place in [one for one in self._targets if one not in places]:
            del self._targets[place]

    async def close(self) -> None:
        """Stop listening and end every connection. May be called twice."""
        await self.update({})
        for _ in range(2):
            await asyncio.sleep(0)  # whoever was accepted last has a relay then
        for task in tuple(self._relays):
            task.cancel()
        if self._relays:
            await asyncio.wait(self._relays)

    def _accept(
        self, place: Target, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        task = asyncio.ensure_future(self._relay(place, reader, writer))
        self._relays.add(task)
        task.add_done_callback(self._relays.discard)
        # A relay that is cancelled before its first turn ends nothing itself.
        task.add_done_callback(lambda _: writer.close())

    async def _relay(
        self, place: Target, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        whole = False
        try:
            if not await self._peers.admit(writer.transport, {os.geteuid()}):
                return
            there = await asyncio.wait_for(self._reach(self._targets.get(place)), _CONNECTING)
            try:
                await _both(_copy(reader, there[1]), _copy(there[0], writer))
                whole = True
            finally:
                await _end(there[1], whole)
        except (OSError, asyncio.TimeoutError) as error:
            logger.debug("A connection to %s:%d ended: %s", *place, error)
        finally:
            await _end(writer, whole)

    async def _reach(
        self, target: Target | None
    ) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        if target is None:
            raise ConnectionRefusedError("the machine does not listen there any more")
        begun = await self._connect(*target)
        try:
            await wait_connected(begun)
            return await asyncio.open_connection(sock=begun, limit=_PIECE)
        except BaseException:
            begun.close()
            raise


async def wait_connected(begun: socket.socket) -> None:
    """Wait until a connection that was begun has been accepted.

    Parameters
    ----------
    begun : socket
        The connection, which does not block.

    Raises
    ------
    OSError
        It was refused, or did not get there.
    """
    loop = asyncio.get_running_loop()
    ready = asyncio.Event()
    loop.add_writer(begun, ready.set)
    try:
        await ready.wait()
    finally:
        loop.remove_writer(begun)
    number = begun.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
    if number:
        raise OSError(number, os.strerror(number))


async def _both(*ways: Coroutine[None, None, None]) -> None:
    """Go both ways to the end; where one breaks off, so does the other."""
    tasks = [asyncio.ensure_future(way) for way in ways]
    try:
        await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Pass on what comes until there is no more, and then that there is no more."""
    while data := await reader.read(_PIECE):
        writer.write(data)
        await writer.drain()
    with contextlib.suppress(OSError):  # who has closed needs not be told
        writer.write_eof()


async def _end(writer: asyncio.StreamWriter, whole: bool) -> None:
    connection = writer.get_extra_info("socket")
    if not whole and connection.fileno() >= 0:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
        writer.transport.abort()
    writer.close()
    with contextlib.suppress(OSError):
        await writer.wait_closed()
