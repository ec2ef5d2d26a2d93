"""The network of namespace machines, seen from the emulator.

Owns what is done when instances and firewall rules come and go, and the services that machines find
in their network: metadata, names, the Compute API. What there is, is read by :mod:`view`; packets
are let through by :mod:`firewall`; devices and routes are made by :mod:`vpc.network`.

Changes are taken up together, a moment after they were made: a thousand instances cost one set of
rules, not a thousand.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
from collections.abc import Awaitable, Callable, Collection, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from dask_gce.emulator.machines.addresses import LoopbackAddresses, PrivateAddresses
from dask_gce.emulator.machines.namespace.dns import (
    Names,
    NameServer,
    check_installed,
    collect_names,
)
from dask_gce.emulator.machines.namespace.firewall import CLIENT, open_ports, render
from dask_gce.emulator.machines.namespace.forwards import Forwards, Target, wait_connected
from dask_gce.emulator.machines.namespace.shared_metadata import SharedMetadata
from dask_gce.emulator.machines.namespace.view import View, look
from dask_gce.emulator.machines.namespace.vpc_process import VPCProcess, VPCProcessGone
from dask_gce.emulator.machines.supervision import isolated_python
from dask_gce.emulator.network import Network, ServeAPI

if TYPE_CHECKING:
    from dask_gce.emulator.cloud import Cloud

__all__ = ["Fabric"]

logger = logging.getLogger(__name__)

METADATA = "169.254.169.254"

#: Seconds between looks at the ports on which machines listen, a matter of microseconds each.
_TICK = 0.1

_ENTER = Path(__file__).parent / "enter.py"


class Fabric(Network):
    """The network of an emulator's machines.

    Parameters
    ----------
    vpc : VPCProcess
        The process that holds it.
    client_inside : bool
        Whether clients run inside, by :meth:`client_command`. Otherwise they are on the host, where
        external addresses are loopback addresses.
    """

    client_address = CLIENT

    def __init__(self, vpc: VPCProcess, *, client_inside: bool = False) -> None:
        self._vpc = vpc
        self._inside = client_inside
        self._metadata = SharedMetadata()
        self._name_server = NameServer(self._names_of)
        self._forwards = Forwards(self._connect)
        self._loopback: LoopbackAddresses | None = None
        self._external: dict[str, str] = {}
        self._names: dict[str, Names] = {}
        self._wanted: dict[Target, tuple[str, int]] = {}
        self._namespace = -1
        self._api: tuple[int, ServeAPI] | None = None
        self._attached: dict[int, str] = {}
        self._ends = 0
        #: What ends the API's listeners: in the machines by number, and None for the client's.
        self._unserve: dict[int | None, Callable[[], Awaitable[None]]] = {}
        self._cloud: Cloud | None = None
        self._version = 0
        self._done = 0
        self._failure: Exception | None = None
        self._loaded = ""
        self._news = asyncio.Event()
        self._progress = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []

    async def open(self) -> None:
        """Start the services. The VPC process runs already.

        Raises
        ------
        RuntimeError
            Something that is needed is not installed.
        """
        check_installed()
        self._loopback = LoopbackAddresses()
        self._namespace = await asyncio.to_thread(self._vpc.client_namespace)
        await self._metadata.start(await self._socket(self._vpc.listen, "tcp", METADATA, 80))
        udp = await self._socket(self._vpc.listen, "udp", METADATA, 53)
        try:
            tcp = await self._socket(self._vpc.listen, "tcp", METADATA, 53)
        except BaseException:
            udp.close()
            raise
        await self._name_server.start(udp, tcp)
        self._tasks.append(asyncio.create_task(self._follow()))
        if not self._inside:
            self._tasks.append(asyncio.create_task(self._forward()))

    async def close(self) -> None:
        """Stop the services, before the VPC process ends. May be called twice."""
        tasks, self._tasks = self._tasks, []
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)
        self._progress.set()
        while self._unserve:  # of which machines that end take theirs themselves
            _, end = self._unserve.popitem()
            await end()
        await self._forwards.close()
        await self._name_server.close()
        await self._metadata.close()
        if self._namespace >= 0:
            os.close(self._namespace)
            self._namespace = -1
        if self._loopback is not None:
            self._loopback.close()
        self._external.clear()

    # What the emulator's state means

    def changed(self, cloud: Cloud) -> None:
        """Learn that instances, networks or firewall rules came or went.

        Parameters
        ----------
        cloud : Cloud
            The emulator's state, which is read a moment later.
        """
        self._cloud = cloud
        self._version += 1
        self._news.set()

    async def settled(self) -> None:
        """Wait until packets go where the last change says.

        Raises
        ------
        RuntimeError
            The kernel does not take the rules.
        """
        version = self._version
        while self._done < version and any(not task.done() for task in self._tasks):
            await self._progress.wait()
        if self._failure is not None:
            raise RuntimeError(f"the network's rules are not in force: {self._failure}")

    async def _follow(self) -> None:
        while True:
            await self._news.wait()
            self._news.clear()
            version, cloud = self._version, self._cloud
            try:
                if cloud is not None:
                    await self._take_up(cloud)
                self._failure = None
            except VPCProcessGone as error:
                logger.error("The network of the machines does not change any more: %s", error)
                self._failure = error
            self._done = version
            self._progress.set()
            self._progress = asyncio.Event()

    async def _take_up(self, cloud: Cloud) -> None:
        view = look(cloud)
        records = {
            instance.resource["networkInterfaces"][0]["networkIP"]: instance.record
            for project in cloud.projects.values()
            for instances in project.instances.values()
            for instance in instances.values()
        }
        self._metadata.update(records)
        self._names = collect_names(view)
        reserved = {
            one.internal
            for project in cloud.projects.values()
            for addresses in project.addresses.values()
            for one in addresses.values()
        }
        self._release(reserved.union(view.addresses))
        self._wanted = self._plan_forwards(view)
        self._forwards.retain(self._wanted)
        ruleset = render(view)
        if ruleset != self._loaded:
            await asyncio.to_thread(self._vpc.apply, ruleset)
            self._loaded = ruleset

    def _names_of(self, address: str) -> Names | None:
        return self._names.get(address)

    # External addresses, and the host

    def external_address(self, internal: str) -> str:
        """Return the external address of an internal one.

        Parameters
        ----------
        internal : str
            An address of a machine.

        Returns
        -------
        str
            Where clients reach the machine, be they on the host or inside.

        Raises
        ------
        ValueError
            The host has no address left.
        """
        if self._inside or self._loopback is None:
            return PrivateAddresses.external(internal)
        if internal not in self._external:
            self._external[internal] = self._loopback.allocate()
        return self._external[internal]

    def _release(self, kept: Collection[str]) -> None:
        for internal in [one for one in self._external if one not in kept]:
            if self._loopback is not None:
                self._loopback.release(self._external[internal])
            del self._external[internal]

    def _plan_forwards(self, view: View) -> dict[Target, tuple[str, int]]:
        """Return which port of which machine is wanted at which address and port of the host."""
        return {
            (self._external[one.address], port): (one.address, port)
            for one in view.interfaces
            if one.external and one.address in self._external
            for port in open_ports(view, one)
        }

    async def _forward(self) -> None:
        """Listen on the host wherever machines listen."""
        while True:
            if self._wanted or self._forwards.open:
                ends = self._ends
                try:
                    there = await asyncio.to_thread(self._vpc.listening)
                except VPCProcessGone:
                    return
                if ends != self._ends:
                    continue  # what was seen may be of a machine that is off by now
                await self._forwards.update(
                    {
                        place: (PrivateAddresses.external(address), port)
                        for place, (address, port) in self._wanted.items()
                        if port in there.get(address, ())
                    }
                )
            await asyncio.sleep(_TICK)

    async def _connect(self, address: str, port: int, tunnel: bool = False) -> socket.socket:
        try:
            return await self._socket(self._vpc.connect, address, port, tunnel)
        except VPCProcessGone as error:
            raise ConnectionRefusedError(str(error)) from error

    async def connect(self, address: str, port: int) -> socket.socket:
        """Connect to a machine in the name of Identity-Aware Proxy, from 35.235.240.0/20.

        Parameters
        ----------
        address : str
            The machine's internal address.
        port : int
            The TCP port.

        Returns
        -------
        socket
            The connection, which does not block. No rule, no connection: it takes for ever then.

        Raises
        ------
        OSError
            Nobody listens there, or the machine is off.
        """
        begun = await self._connect(address, port, tunnel=True)
        try:
            await wait_connected(begun)
        except BaseException:
            begun.close()
            raise
        return begun

    # The Compute API

    async def offer_api(self, port: int, serve: ServeAPI) -> None:
        """Let guests and clients inside reach the Compute API at their 127.0.0.1.

        Parameters
        ----------
        port : int
            The API's port.
        serve : callable
            Answers on one more listener.
        """
        self._api = port, serve
        self._unserve[None] = await serve(await self._socket(self._vpc.listen_client, port))

    @property
    def api_port(self) -> int | None:
        """The port of their loopback addresses on which machines call the Compute API."""
        return None if self._api is None else self._api[0]

    async def attached(self, slot: int, address: str, listener: socket.socket | None) -> None:
        """Serve a machine that was switched on a moment ago.

        Parameters
        ----------
        slot : int
            Its number.
        address : str
            Its internal address.
        listener : socket or None
            Where it calls the Compute API.
        """
        await self.detached(slot)
        self._attached[slot] = address
        if self._api is not None and listener is not None:
            self._unserve[slot] = await self._api[1](listener)

    async def detached(self, slot: int) -> None:
        """Serve a machine no longer: it is off.

        Parameters
        ----------
        slot : int
            Its number; one that is not served is ignored.
        """
        if slot in self._attached:
            address = self._attached.pop(slot)
            self._ends += 1
            self._forwards.retain(
                {place for place, (behind, _) in self._wanted.items() if behind != address}
            )
            self._metadata.hang_up(address)
        if slot in self._unserve:
            await self._unserve.pop(slot)()

    def client_command(self, command: Sequence[str]) -> list[str]:
        """Return the command line that runs a program inside, as a client on the internet.

        Parameters
        ----------
        command : sequence of str
            The program and its arguments.

        Returns
        -------
        list of str
            The command line, to be run on the host while the emulator is open.
        """
        namespace = f"/proc/{os.getpid()}/fd/{self._namespace}"
        return [*isolated_python(), str(_ENTER), namespace, *command]

    @staticmethod
    async def _socket(call: Callable[..., socket.socket], *arguments: object) -> socket.socket:
        """Have a socket opened; it is closed again where nobody waits for it any more."""
        opening = asyncio.ensure_future(asyncio.to_thread(call, *arguments))
        try:
            return await asyncio.shield(opening)
        except asyncio.CancelledError:
            opening.add_done_callback(_close)
            raise


def _close(opening: asyncio.Future[socket.socket]) -> None:
    with contextlib.suppress(VPCProcessGone):
        opening.result().close()
