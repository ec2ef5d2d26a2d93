r"""The network between the machines: devices, routes, and sockets opened on behalf of the emulator.

Owns the fabric, which is the network namespace of the VPC process itself, the client's namespace,
which stands for the internet, and that of Identity-Aware Proxy, from which tunnels come. Whose
packets get through says the ruleset, which the emulator writes (:mod:`firewall`) and
`Network.apply` loads. Every machine is reached through a device of its own and has a /32 address,
as on Compute Engine: machines meet nobody but the fabric. There is no way out to the host or
beyond.

::

    machine 10.128.0.2 --eth0======vm1-- fabric --client======eth0-- client 198.51.100.2
    machine 10.128.0.3 --eth0======vm2--/   \--iap-----eth0-- tunnels 35.235.240.2
                            169.254.169.254 on its lo

Nothing here waits: the VPC process serves all machines, one request at a time.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import os
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from ipaddress import IPv4Network
from pathlib import Path

from .listening import ListeningPorts
from .netlink import Netlink

__all__ = ["CLIENT", "Network"]

#: Where every machine finds its metadata server and its name server.
METADATA = "169.254.169.254"

#: The client's address and its gateway's, of a range for documentation (RFC 5737).
CLIENT, _CLIENT_GATEWAY = "198.51.100.2", "198.51.100.1"

#: Where tunnels come from, of the range that Google's come from
#: (https://cloud.google.com/iap/docs/using-tcp-forwarding), and their gateway.
_TUNNELS, _TUNNELS_GATEWAY = "35.235.240.2", "35.235.240.1"

#: The machines' internal addresses and the external ones, as :class:`addresses.PrivateAddresses`
#: gives them out.
_INTERNAL, _EXTERNAL = "10.128.0.0/15", "198.18.0.0/15"

#: Bytes; that of Compute Engine's networks, unless they say otherwise.
_MTU = 1460

_CLONE_NEWNET = 0x40000000
_SIOCGSKNS = 0x894C

#: Nobody's packets get anywhere until the emulator has said whose do.
_CLOSED = "table ip vpc { chain forward { type filter hook forward priority 0; policy drop; }; }\n"

_libc = ctypes.CDLL(None, use_errno=True)


def _check(status: int) -> None:
    if status:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


def _own_namespace() -> int:
    """Return a descriptor of the network namespace that the process is in, without /proc."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        return fcntl.ioctl(probe, _SIOCGSKNS)


@dataclass(frozen=True)
class _Guest:
    """What is held of a connected machine; its namespace lives as long as this."""

    address: str
    device: str
    namespace: int
    ports: ListeningPorts

    def close(self) -> None:
        os.close(self.namespace)
        self.ports.close()


class Network:
    """The network of one VPC. To be made in the network namespace that becomes the fabric."""

    def __init__(self) -> None:
        self._fabric = _own_namespace()
        self._client = self._iap = -1
        self._netlink = Netlink()
        self._loopback = socket.if_nametoindex("lo")
        self._gateways: set[str] = set()
        self._guests: dict[int, _Guest] = {}
        self._count = 0

    def set_up(self) -> None:
        """Make the fabric and the namespaces of the client and of tunnels.

        Raises
        ------
        OSError
            The kernel refused, or ``nft`` is not installed.
        """
        # A machine cannot send in another's name, and so not ask for another's metadata.
        for setting, value in (
            ("ipv4/conf/all/rp_filter", "1"),
            ("ipv4/ip_forward", "1"),
            ("ipv6/conf/all/disable_ipv6", "1"),
            ("ipv6/conf/default/disable_ipv6", "1"),
        ):
            path = Path("/proc/sys/net", setting)
            if path.exists():
                path.write_text(value, "ascii")
        self.apply(_CLOSED)
        self._netlink.bring_up("lo")
        for address in (METADATA, _CLIENT_GATEWAY, _TUNNELS_GATEWAY):
            self._netlink.add_address(self._loopback, address)
        self._client = self._new_namespace()
        self._connect_namespace(
            "client", self._client, CLIENT, _CLIENT_GATEWAY, IPv4Network(_EXTERNAL)
        )
        self._iap = self._new_namespace()
        self._connect_namespace(
            "iap", self._iap, _TUNNELS, _TUNNELS_GATEWAY, IPv4Network(_INTERNAL)
        )

    def _new_namespace(self) -> int:
        _check(_libc.unshare(_CLONE_NEWNET))
        try:
            return _own_namespace()
        finally:
            _check(_libc.setns(self._fabric, _CLONE_NEWNET))

    @contextmanager
    def _inside(self, namespace: int) -> Iterator[None]:
        """Be in another namespace: of a process by its pidfd, or by the namespace's descriptor."""
        _check(_libc.setns(namespace, _CLONE_NEWNET))
        try:
            yield
        finally:
            _check(_libc.setns(self._fabric, _CLONE_NEWNET))

    def _connect_namespace(
        self, device: str, namespace: int, address: str, gateway: str, reach: IPv4Network
    ) -> None:
        # Google derives the hardware address from the internal one in the same way.
        mac = b"\x42\x01" + socket.inet_aton(address)
        self._netlink.add_veth(device, "eth0", namespace, mac, _MTU)
        self._netlink.bring_up(device)
        index = socket.if_nametoindex(device)
        self._netlink.add_route(f"{address}/32", index, source=gateway)
        with self._inside(namespace), Netlink() as there:
            index = socket.if_nametoindex("eth0")
            there.bring_up("lo")
            there.bring_up("eth0")
            there.add_address(index, address)
            there.add_route(f"{gateway}/32", index)
            there.add_route(str(reach), index, via=gateway)

    def attach(self, pid: int, slot: int, address: str) -> None:
        """Connect a machine.

        Parameters
        ----------
        pid : int
            A process in the machine's network namespace, which has no ``eth0`` yet.
        slot : int
            A number for the machine. What had it before is detached now. Until it is detached the
            machine's namespace is held, whether or not anything runs in it.
        address : str
            Its internal address.

        Raises
        ------
        OSError
            The process is gone, or the kernel refused; nothing is connected then.
        """
        self.detach(slot)
        # As on Compute Engine the gateway is the first address of the subnetwork.
        subnet = IPv4Network(f"{address}/20", strict=False)
        gateway = str(subnet.network_address + 1)
        if gateway not in self._gateways:
            self._netlink.add_address(self._loopback, gateway)
            self._gateways.add(gateway)
        # The kernel removes a dead namespace's device some time later: no name is used again.
        self._count += 1
        device = f"vm{self._count}"
        pidfd = os.pidfd_open(pid)
        try:
            with self._inside(pidfd):
                guest = _Guest(address, device, _own_namespace(), ListeningPorts())
        finally:
            os.close(pidfd)
        self._guests[slot] = guest
        try:
            self._connect_namespace(
                device, guest.namespace, address, gateway, IPv4Network("0.0.0.0/0")
            )
        except BaseException:
            self.detach(slot)
            raise

    def detach(self, slot: int) -> None:
        """Disconnect a machine; one that is not connected is ignored.

        Parameters
        ----------
        slot : int
            Its number.
        """
        guest = self._guests.pop(slot, None)
        if guest is None:
            return
        guest.close()
        try:
            self._netlink.remove(guest.device)
        except OSError as error:
            # It went with the machine's namespace, or was never made.
            if error.errno != errno.ENODEV:
                raise

    def apply(self, ruleset: str) -> None:
        """Load rules into the fabric, all of them or none.

        Parameters
        ----------
        ruleset : str
            What ``nft -f`` reads.

        Raises
        ------
        OSError
            There is no ``nft``, or it refused the rules.
        """
        done = subprocess.run(
            ["nft", "-f", "-"], input=ruleset, capture_output=True, text=True, check=False
        )
        if done.returncode:
            raise OSError(errno.EINVAL, f"nft refused the rules: {done.stderr.strip()}")

    def listen(self, kind: str, address: str, port: int) -> socket.socket:
        """Open a listener in the fabric.

        Parameters
        ----------
        kind : str
            ``"tcp"`` or ``"udp"``.
        address : str
            The IPv4 address.
        port : int
            The port; 0 takes a free one.

        Returns
        -------
        socket
            The socket, which does not block.
        """
        return _listen(kind, address, port)

    def listen_client(self, port: int) -> socket.socket:
        """Open a listener on the client's loopback address.

        Parameters
        ----------
        port : int
            The TCP port.

        Returns
        -------
        socket
            The socket, which does not block.
        """
        with self._inside(self._client):
            return _listen("tcp", "127.0.0.1", port)

    def listen_machine(self, slot: int, port: int) -> socket.socket:
        """Open a listener on a machine's loopback address.

        Parameters
        ----------
        slot : int
            The machine's number.
        port : int
            The TCP port.

        Returns
        -------
        socket
            The socket, which does not block.

        Raises
        ------
        ValueError
            No such machine is connected.
        """
        if slot not in self._guests:
            raise ValueError(f"no machine is connected as number {slot}")
        with self._inside(self._guests[slot].namespace):
            return _listen("tcp", "127.0.0.1", port)

    def listening(self) -> dict[str, list[int]]:
        """Return on which TCP ports the machines listen.

        Returns
        -------
        dict
            The ports that are open to others, by the machine's address.
        """
        return {guest.address: guest.ports.at(guest.address) for guest in self._guests.values()}

    def connect(self, address: str, port: int, *, tunnel: bool = False) -> socket.socket:
        """Begin a TCP connection from outside, which the rules of the network apply to.

        Parameters
        ----------
        address : str
            The IPv4 address: a machine's external one, or the internal one if it is a tunnel.
        port : int
            The port.
        tunnel : bool
            Whether it comes from Identity-Aware Proxy, not from the client.

        Returns
        -------
        socket
            The socket, which does not block. It is connected when it can be written to and has no
            ``SO_ERROR``.

        Raises
        ------
        OSError
            There is no way to that address.
        """
        with self._inside(self._iap if tunnel else self._client):
            opened = _socket(socket.SOCK_STREAM)
        try:
            with contextlib.suppress(BlockingIOError):
                opened.connect((address, port))
        except BaseException:
            opened.close()
            raise
        return opened

    def client_namespace(self) -> int:
        """Return the client's network namespace, for a process that is to live there.

        Returns
        -------
        int
            A descriptor for ``setns``, which stays this object's.
        """
        return self._client


def _socket(kind: int) -> socket.socket:
    return socket.socket(socket.AF_INET, kind | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)


def _listen(kind: str, address: str, port: int) -> socket.socket:
    opened = _socket(socket.SOCK_STREAM if kind == "tcp" else socket.SOCK_DGRAM)
    try:
        if kind == "tcp":
            opened.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        opened.bind((address, port))
        if kind == "tcp":
            opened.listen(1024)
    except BaseException:
        opened.close()
        raise
    return opened
