"""Who is at the other end of a loopback connection.

Owns the look into the kernel's tables. The emulator listens where every user of the host can
connect, but its API boots what it is sent, and metadata may hold keys: both answer only those users
who are entitled to it.

Source: https://docs.kernel.org/networking/proc_net_tcp.html
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Collection
from ipaddress import IPv4Address
from pathlib import Path
from weakref import WeakKeyDictionary

__all__ = ["Peers", "socket_owner"]

_TABLE = Path("/proc/net/tcp")

#: States of connections whose other end may still read: ESTABLISHED; FIN_WAIT1 and FIN_WAIT2, when
#: it has said all that it has to say; CLOSE_WAIT.
_OPEN = frozenset({"01", "04", "05", "08"})

#: The inode of a socket whose process has closed it. The kernel says that it is user 0's.
_NOBODYS = "0"


class Peers:
    """Tells which connections are an entitled user's, and asks the kernel once for each."""

    def __init__(self) -> None:
        self._owners: WeakKeyDictionary[asyncio.BaseTransport, int | None] = WeakKeyDictionary()

    async def admit(self, transport: asyncio.BaseTransport | None, users: Collection[int]) -> bool:
        """Tell whether a connection is to be served.

        Parameters
        ----------
        transport : asyncio.BaseTransport or None
            The connection; None if it has ended.
        users : collection of int
            The users who are entitled.

        Returns
        -------
        bool
            Whether it is one of theirs. True where the system does not tell whose it is; False if
            the other end is closed, so that nobody could read an answer.
        """
        if transport is None:
            return False
        if sys.platform != "linux":
            return True
        if transport not in self._owners:
            ends = [transport.get_extra_info(end)[:2] for end in ("peername", "sockname")]
            # In a thread: the kernel needs milliseconds, and longer the more connections there are.
            self._owners[transport] = await asyncio.to_thread(socket_owner, *ends)
        return self._owners[transport] in users


def socket_owner(peer: tuple[str, int], own: tuple[str, int]) -> int | None:
    """Return the user who holds the other end of a connection.

    Parameters
    ----------
    peer : tuple of str and int
        IPv4 address and port of the other end.
    own : tuple of str and int
        IPv4 address and port of this end.

    Returns
    -------
    int or None
        The user ID; None if the other end is closed.
    """
    # A socket for both versions of IP is in the other table, with its address mapped.
    tables = ((_TABLE, b""), (_TABLE.with_name("tcp6"), bytes(10) + b"\xff\xff"))
    # Twice, because the table comes in pieces, between which a line may move to where we have been.
    for _ in range(2):
        for table, prefix in tables:
            wanted = [_spell(prefix, *peer), _spell(prefix, *own)]
            try:
                lines = table.read_text("ascii").splitlines()[1:]
            except OSError:
                continue
            for line in lines:
                # sl local_address rem_address st tx_queue:rx_queue tr:tm->when retrnsmt uid
                # timeout inode ...
                fields = line.split(maxsplit=10)
                if fields[1:3] == wanted and fields[3] in _OPEN and fields[9] != _NOBODYS:
                    return int(fields[7])
    return None


def _spell(prefix: bytes, address: str, port: int) -> str:
    # The kernel prints every four bytes as one number of the machine's byte order.
    packed = prefix + IPv4Address(address).packed
    words = [packed[at : at + 4] for at in range(0, len(packed), 4)]
    spelled = "".join(f"{int.from_bytes(word, sys.byteorder):08X}" for word in words)
    return f"{spelled}:{port:04X}"
