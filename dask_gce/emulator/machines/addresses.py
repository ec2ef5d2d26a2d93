"""The addresses that machines get: a private range on paper, the loopback network for real ones.

Owns which address is free, and the claim that keeps two emulators on one host apart. Who has an
address, and what listens there, is the business of the machine kinds.
"""

from __future__ import annotations

import errno
import random
import socket
from collections import deque
from ipaddress import IPv4Address, IPv4Network
from typing import Protocol

from dask_gce.emulator.machine import AddressTaken
from dask_gce.emulator.record import InstanceRecord

__all__ = ["Leases", "LoopbackAddresses", "PrivateAddresses"]

#: The port on which an emulator holds a socket in every loopback block it uses.
CLAIM_PORT = 16924

#: Compute Engine's auto mode networks lie in 10.128.0.0/9; this much of it suffices for any test.
PRIVATE_NETWORK = IPv4Network("10.128.0.0/15")

#: Reserved for benchmarks (RFC 2544), so that nothing real answers there. As large as the above.
EXTERNAL_NETWORK = IPv4Network("198.18.0.0/15")


class PrivateAddresses:
    """Addresses of 10.128.0.0/15, given out in order and again when they are free.

    Examples
    --------
    >>> pool = PrivateAddresses()
    >>> pool.allocate(), pool.allocate()
    ('10.128.0.2', '10.128.0.3')
    """

    def __init__(self) -> None:
        self.shared = False
        # The first is the network, the second the gateway, as in every subnetwork of Google's.
        self._fresh = int(PRIVATE_NETWORK.network_address) + 2
        self._last = int(PRIVATE_NETWORK.broadcast_address) - 2
        self._released: deque[str] = deque()
        self._used: set[str] = set()

    def allocate(self, requested: str | None = None) -> str:
        """Return a free address.

        Parameters
        ----------
        requested : str or None
            The address that is wanted.

        Returns
        -------
        str
            The requested address, or any.

        Raises
        ------
        ValueError
            The requested address lies outside the range or is in use, or none is left.
        """
        if requested is not None:
            if IPv4Address(requested) not in PRIVATE_NETWORK:
                raise ValueError(f"address {requested} is not in {PRIVATE_NETWORK}")
            if requested in self._used:
                raise AddressTaken(requested)
            self._used.add(requested)
            return requested
        while True:
            if self._fresh <= self._last:
                address = str(IPv4Address(self._fresh))
                self._fresh += 1
            elif self._released:
                address = self._released.popleft()
            else:
                raise ValueError(f"every address of {PRIVATE_NETWORK} is in use")
            if address not in self._used:
                self._used.add(address)
                return address

    def release(self, address: str) -> None:
        """Take an address back; one that is not in use is ignored.

        Parameters
        ----------
        address : str
            The address.
        """
        if address in self._used:
            self._used.remove(address)
            self._released.append(address)

    @staticmethod
    def external(internal: str) -> str:
        """Return the external address that belongs to an internal one.

        Parameters
        ----------
        internal : str
            An address of this pool.

        Returns
        -------
        str
            Its partner in 198.18.0.0/15.

        Examples
        --------
        >>> PrivateAddresses.external("10.128.0.2")
        '198.18.0.2'
        """
        offset = int(IPv4Address(internal)) - int(PRIVATE_NETWORK.network_address)
        return str(IPv4Address(int(EXTERNAL_NETWORK.network_address) + offset))


class LoopbackAddresses:
    """Addresses of 127.0.0.0/8 that no other emulator on this host uses.

    Linux answers on all of 127.0.0.0/8. A bound socket on :data:`CLAIM_PORT` of a block's first
    address marks the block (a /24) as taken; the kernel drops the mark with the process.
    Where only 127.0.0.1 exists (macOS), every machine gets 127.0.0.1 and ports tell them apart.
    """

    def __init__(self) -> None:
        self._claims: list[socket.socket] = []
        self._free: deque[str] = deque()
        self._used: set[str] = set()
        self._shared = not _can_bind("127.18.0.2")

    @property
    def shared(self) -> bool:
        """Whether all machines share 127.0.0.1."""
        return self._shared

    def allocate(self, requested: str | None = None) -> str:
        """Return a free loopback address.

        Parameters
        ----------
        requested : str or None
            The address that is wanted; it must be a loopback address.

        Returns
        -------
        str
            The requested address, or any.

        Raises
        ------
        ValueError
            The requested address is not to be had.
        """
        if requested is not None:
            if not IPv4Address(requested).is_loopback:
                raise ValueError(
                    f"address {requested} is not to be had: process machines live in 127.0.0.0/8"
                )
            if requested in self._used or (not self._shared and not _can_bind(requested)):
                raise AddressTaken(requested)
            if not self._shared:
                self._used.add(requested)
                return requested
        if self._shared:
            return "127.0.0.1"
        while True:
            if not self._free:
                self._claim_block()
            address = self._free.popleft()
            if address not in self._used:
                self._used.add(address)
                return address

    def release(self, address: str) -> None:
        """Take an address back; one that is not in use is ignored.

        Parameters
        ----------
        address : str
            The address.
        """
        if address in self._used:
            self._used.remove(address)
            self._free.append(address)

    def close(self) -> None:
        """Give all blocks back. May be called twice."""
        while self._claims:
            self._claims.pop().close()
        self._free.clear()
        self._used.clear()

    def _claim_block(self) -> None:
        for _ in range(10_000):
            # Low second bytes are where people and distributions put things of their own.
            second, third = random.randint(16, 254), random.randint(0, 255)  # noqa: S311 # no secret
            claim = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
            try:
                claim.bind((f"127.{second}.{third}.1", CLAIM_PORT))
            except OSError as error:
                claim.close()
                if error.errno == errno.EADDRINUSE:
                    continue
                raise
            self._claims.append(claim)
            self._free.extend(f"127.{second}.{third}.{last}" for last in range(2, 255))
            return
        raise ValueError("no free block of loopback addresses: other emulators hold all of them")


class Pool(Protocol):
    """Where addresses come from."""

    @property
    def shared(self) -> bool:
        """Whether all have the same address."""

    def allocate(self, requested: str | None = None) -> str:
        """Return a free address, or the requested one.

        Parameters
        ----------
        requested : str or None
            The address that is wanted.

        Returns
        -------
        str
            The address.
        """

    def release(self, address: str) -> None:
        """Take an address back.

        Parameters
        ----------
        address : str
            The address.
        """


class Leases:
    """Which addresses each instance holds, one for every network interface, and which are reserved.

    A reserved address is given to nobody but to who requests it, and stays reserved after that.

    Parameters
    ----------
    pool : Pool
        Where the addresses come from.
    """

    def __init__(self, pool: Pool) -> None:
        self._pool = pool
        # Records are no keys; the record beside its addresses keeps its id() from being another's.
        self._held: dict[int, tuple[InstanceRecord, list[str]]] = {}
        self._reserved: set[str] = set()

    def allocate(self, record: InstanceRecord, requested: str | None) -> str:
        """Return one more address for an instance.

        Parameters
        ----------
        record : InstanceRecord
            The instance.
        requested : str or None
            The address that is wanted; None takes any.

        Returns
        -------
        str
            The address.

        Raises
        ------
        AddressTaken
            Another instance has the requested address.
        ValueError
            The requested address cannot be had, or none is left.
        """
        if requested is not None and requested in self._reserved and not self._pool.shared:
            if self._has(requested):
                raise AddressTaken(requested)
            address = requested
        else:
            address = self._pool.allocate(requested)
        self._held.setdefault(id(record), (record, []))[1].append(address)
        return address

    def release(self, record: InstanceRecord) -> None:
        """Take back all addresses of an instance; one that has none is ignored.

        Parameters
        ----------
        record : InstanceRecord
            The instance.
        """
        for address in self._held.pop(id(record), (record, []))[1]:
            if address not in self._reserved:
                self._pool.release(address)

    def reserve(self, requested: str | None) -> str:
        """Keep an address for whoever requests it.

        Parameters
        ----------
        requested : str or None
            The address that is wanted, which an instance may hold already; None takes any.

        Returns
        -------
        str
            The address.

        Raises
        ------
        ValueError
            It is reserved already, cannot be had, or none is left.
        """
        if requested is not None and requested in self._reserved and not self._pool.shared:
            raise AddressTaken(requested)
        kept = requested is not None and self._has(requested)
        address = requested if kept and requested else self._pool.allocate(requested)
        self._reserved.add(address)
        return address

    def unreserve(self, address: str) -> None:
        """Keep an address no longer; who holds it keeps it.

        Parameters
        ----------
        address : str
            The address; one that is not reserved is ignored.
        """
        if address in self._reserved:
            self._reserved.remove(address)
            if not self._has(address):
                self._pool.release(address)

    def _has(self, address: str) -> bool:
        """Tell whether an instance holds an address."""
        return any(address in addresses for _, addresses in self._held.values())


def _can_bind(address: str) -> bool:
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        try:
            probe.bind((address, 0))
        except OSError:
            return False
        return True
