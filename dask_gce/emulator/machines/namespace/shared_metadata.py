"""The metadata server of all machines of a network: one listener, and the address tells who asks.

Owns which machine a request is from. What it is answered is the business of
:class:`metadata.MetadataServer`, of which every machine has its own.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Mapping
from weakref import WeakSet

from aiohttp import web

from dask_gce.emulator.machines.metadata import MetadataServer
from dask_gce.emulator.record import InstanceRecord

__all__ = ["SharedMetadata"]


class SharedMetadata:
    """Serves the metadata of every machine that can connect."""

    def __init__(self) -> None:
        self._servers: dict[str, tuple[InstanceRecord, MetadataServer]] = {}
        self._connections: dict[str, WeakSet[asyncio.BaseTransport]] = {}
        self._runner: web.ServerRunner | None = None

    async def start(self, listener: socket.socket) -> None:
        """Answer.

        Parameters
        ----------
        listener : socket
            Where the machines connect, with addresses that they cannot choose. It is closed with
            the server.
        """
        # As in MetadataServer: requests that wait for a change do not hold up the end.
        runner = web.ServerRunner(
            web.Server(self._handle, access_log=None, handler_cancellation=True),
            shutdown_timeout=0.01,
        )
        try:
            await runner.setup()
            await web.SockSite(runner, listener, backlog=1024).start()
        except BaseException:
            listener.close()
            await runner.cleanup()
            raise
        self._runner = runner

    async def close(self) -> None:
        """Stop listening and end every request. May be called twice."""
        runner, self._runner = self._runner, None
        if runner is not None:
            await runner.cleanup()

    def update(self, records: Mapping[str, InstanceRecord]) -> None:
        """Know the machines that there are.

        Parameters
        ----------
        records : mapping of str to InstanceRecord
            The instance that has each address.
        """
        for address in [one for one in self._servers if one not in records]:
            del self._servers[address]
            self.hang_up(address)
        for address, record in records.items():
            held = self._servers.get(address)
            # An address may have passed on to another instance meanwhile.
            if held is None or held[0] is not record:
                server = MetadataServer(record, address, None)
                self._servers[address] = record, server

    def hang_up(self, address: str) -> None:
        """End the requests of a machine that is off, which did not live to end them.

        Parameters
        ----------
        address : str
            Its address.
        """
        for transport in self._connections.pop(address, ()):
            if isinstance(transport, asyncio.Transport):
                transport.abort()

    async def _handle(self, request: web.BaseRequest) -> web.StreamResponse:
        address = request.remote or ""
        held = self._servers.get(address)
        if held is None or request.transport is None:
            return web.Response(status=403, text="No machine has this address.\n")
        self._connections.setdefault(address, WeakSet()).add(request.transport)
        return await held[1].handle(request)
