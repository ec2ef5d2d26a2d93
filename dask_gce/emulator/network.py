"""What the emulator asks of the network between its machines.

Owns the contract, and the network of machines that share the host's: there is nothing to do. Like
the machines' kinds (`machine`), networks are told and asked, and look at the state themselves.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Awaitable, Callable, Sequence
from ipaddress import IPv4Address
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from dask_gce.emulator.cloud import Cloud

__all__ = ["Network", "ServeAPI"]

#: Answers the Compute API on one more listener; what it returns ends that.
ServeAPI = Callable[[socket.socket], Awaitable[Callable[[], Awaitable[None]]]]


class Network:
    """The network of machines that use the host's, and are reached as the host's programs are."""

    #: The address from which clients come, as the machines and the firewall rules see it.
    client_address = "127.0.0.1"

    async def offer_api(self, port: int, serve: ServeAPI) -> None:
        """Let guests reach the Compute API at 127.0.0.1, where that is not the host's.

        Called once, when the machines' kind has started.

        Parameters
        ----------
        port : int
            The API's port.
        serve : callable
            Answers on one more listener. Whoever comes through it is taken for a guest.
        """

    def changed(self, cloud: Cloud) -> None:
        """Learn that instances, networks or firewall rules came or went.

        Called often, and before the machine of a new instance boots.

        Parameters
        ----------
        cloud : Cloud
            The emulator's state, to be read later and not now.
        """

    async def settled(self) -> None:
        """Wait until packets go where the last change says.

        Raises
        ------
        RuntimeError
            They cannot be made to.
        """

    def client_command(self, command: Sequence[str]) -> list[str]:
        """Return the command line that runs a program where clients reach the machines.

        Parameters
        ----------
        command : sequence of str
            The program and its arguments.

        Returns
        -------
        list of str
            The command line, to be run on the host.
        """
        return list(command)

    async def connect(self, address: str, port: int) -> socket.socket:
        """Connect to a machine in the name of Identity-Aware Proxy.

        Where the network is its own, the connection comes from 35.235.240.0/20 and needs a firewall
        rule; without one it is never made.

        Parameters
        ----------
        address : str
            The machine's internal IPv4 address.
        port : int
            The TCP port.

        Returns
        -------
        socket
            The connection, which does not block.

        Raises
        ------
        OSError
            Nobody listens there, or there is no machine to listen.
        """
        if not IPv4Address(address).is_loopback:
            # On the host's network such an address may be anybody's.
            raise ConnectionRefusedError("the machine is only written down")
        connection = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        try:
            connection.setblocking(False)
            await asyncio.get_running_loop().sock_connect(connection, (address, port))
        except BaseException:
            connection.close()
            raise
        return connection
