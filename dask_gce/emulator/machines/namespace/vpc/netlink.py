"""Network devices, addresses and routes, as the kernel is asked for them: rtnetlink.

Owns the messages and their answers. Which devices there are is the business of :mod:`network`. The
standard tool for this, iproute2, would be a process for each of a machine's two namespaces, and may
not be installed.

Source: rtnetlink(7) and https://docs.kernel.org/userspace-api/netlink/intro.html
"""

from __future__ import annotations

import os
import socket
import struct
from collections.abc import Iterable
from ipaddress import IPv4Network
from types import TracebackType

__all__ = ["Netlink"]

# linux/netlink.h and linux/rtnetlink.h
_NLMSG_ERROR = 2
_REQUEST, _ACK, _CREATE, _EXCLUSIVE = 0x1, 0x4, 0x400, 0x200
_NEW_LINK, _DEL_LINK, _NEW_ADDRESS, _NEW_ROUTE = 16, 17, 20, 24
_SCOPE_UNIVERSE, _SCOPE_LINK = 0, 253
_MAIN_TABLE, _PROTOCOL_BOOT, _UNICAST = 254, 3, 1

# linux/if_link.h, linux/if_addr.h, linux/veth.h; attributes that hold attributes have a flag
_NESTED = 0x8000
_LINK_ADDRESS, _LINK_NAME, _LINK_MTU, _LINK_INFO, _LINK_NAMESPACE = 1, 3, 4, 18, 28
_INFO_KIND, _INFO_DATA, _VETH_PEER = 1, 2, 1
_ADDRESS, _LOCAL = 1, 2
_ROUTE_TO, _ROUTE_DEVICE, _ROUTE_VIA, _ROUTE_SOURCE = 1, 4, 5, 7
_UP = 1


def _attribute(kind: int, value: bytes) -> bytes:
    return struct.pack("=HH", len(value) + 4, kind) + value + bytes(-len(value) % 4)


def _nested(kind: int, *attributes: bytes) -> bytes:
    return _attribute(kind | _NESTED, b"".join(attributes))


def _link(index: int = 0, *, up: bool = False) -> bytes:
    return struct.pack("=BxHiII", socket.AF_UNSPEC, 0, index, _UP if up else 0, _UP if up else 0)


class Netlink:
    """Changes the network namespace in which it was made, wherever its thread goes later.

    Examples
    --------
    >>> with Netlink() as netlink:
    ...     netlink.fileno() > 0
    True
    """

    def __init__(self) -> None:
        self._socket = socket.socket(
            socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, socket.NETLINK_ROUTE
        )
        self._sequence = 0

    def __enter__(self) -> Netlink:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the socket. May be called twice."""
        self._socket.close()

    def fileno(self) -> int:
        """Return the socket's descriptor.

        Returns
        -------
        int
            The descriptor; -1 once it is closed.
        """
        return self._socket.fileno()

    def add_veth(self, name: str, peer: str, namespace: int, mac: bytes, mtu: int) -> None:
        """Make a pair of devices: one here, and its peer in another namespace.

        Parameters
        ----------
        name : str
            The name of the device here.
        peer : str
            The name of the one there.
        namespace : int
            A descriptor of the network namespace there.
        mac : bytes
            The hardware address of the one there.
        mtu : int
            The longest packet of both, in bytes.
        """
        length = _attribute(_LINK_MTU, struct.pack("=I", mtu))
        other = _link() + b"".join(
            [
                _attribute(_LINK_NAME, peer.encode() + b"\0"),
                _attribute(_LINK_ADDRESS, mac),
                _attribute(_LINK_NAMESPACE, struct.pack("=i", namespace)),
                length,
            ]
        )
        self._ask(
            _NEW_LINK,
            _CREATE | _EXCLUSIVE,
            _link(),
            _attribute(_LINK_NAME, name.encode() + b"\0"),
            length,
            _nested(
                _LINK_INFO,
                _attribute(_INFO_KIND, b"veth"),
                _nested(_INFO_DATA, _nested(_VETH_PEER, other)),
            ),
        )

    def remove(self, name: str) -> None:
        """Remove a device, and its peer with it.

        Parameters
        ----------
        name : str
            Its name.
        """
        self._ask(_DEL_LINK, 0, _link(), _attribute(_LINK_NAME, name.encode() + b"\0"))

    def bring_up(self, name: str) -> None:
        """Switch a device on.

        Parameters
        ----------
        name : str
            Its name.
        """
        self._ask(_NEW_LINK, 0, _link(up=True), _attribute(_LINK_NAME, name.encode() + b"\0"))

    def add_address(self, index: int, address: str) -> None:
        """Give a device an address, and no network with it.

        Parameters
        ----------
        index : int
            The device's number.
        address : str
            The IPv4 address.
        """
        packed = socket.inet_aton(address)
        self._ask(
            _NEW_ADDRESS,
            _CREATE,
            struct.pack("=BBBBI", socket.AF_INET, 32, 0, _SCOPE_UNIVERSE, index),
            _attribute(_LOCAL, packed),
            _attribute(_ADDRESS, packed),
        )

    def add_route(
        self, to: str, index: int, *, via: str | None = None, source: str | None = None
    ) -> None:
        """Lead packets out through a device.

        Parameters
        ----------
        to : str
            Their destinations, such as ``10.128.0.2/32``.
        index : int
            The device's number.
        via : str or None
            The next hop; None when they are on the device's own link.
        source : str or None
            The address from which this namespace's own packets come; None leaves it to the kernel.
        """
        network = IPv4Network(to)
        attributes = [_attribute(_ROUTE_DEVICE, struct.pack("=I", index))]
        if network.prefixlen:
            attributes.append(_attribute(_ROUTE_TO, network.network_address.packed))
        for kind, address in ((_ROUTE_VIA, via), (_ROUTE_SOURCE, source)):
            if address is not None:
                attributes.append(_attribute(kind, socket.inet_aton(address)))
        scope = _SCOPE_LINK if via is None else _SCOPE_UNIVERSE
        header = struct.pack(
            "=BBBBBBBBI",
            *(socket.AF_INET, network.prefixlen, 0, 0, _MAIN_TABLE, _PROTOCOL_BOOT, scope),
            *(_UNICAST, 0),
        )
        self._ask(_NEW_ROUTE, _CREATE, header, *attributes)

    def _ask(self, kind: int, flags: int, header: bytes, *attributes: bytes) -> None:
        self._sequence += 1
        body = header + b"".join(attributes)
        flags |= _REQUEST | _ACK
        self._socket.send(
            struct.pack("=IHHII", len(body) + 16, kind, flags, self._sequence, 0) + body
        )
        for sequence, number in _outcomes(self._socket.recv(65536)):
            if sequence == self._sequence and number:
                raise OSError(number, os.strerror(number))


def _outcomes(data: bytes) -> Iterable[tuple[int, int]]:
    """Yield the sequence number and the error number of each answer."""
    while len(data) >= 16:
        length, kind, _, sequence, _ = struct.unpack_from("=IHHII", data)
        if kind == _NLMSG_ERROR:
            yield sequence, -struct.unpack_from("=i", data, 16)[0]
        data = data[(length + 3) // 4 * 4 :]
