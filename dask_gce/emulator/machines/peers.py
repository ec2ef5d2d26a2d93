"""Whose socket is at the other end of a loopback connection.

Owns the look into the kernel's table. A metadata server listens where every user of the host can
connect, but answers only its guest and the emulator's user: metadata may hold keys.

Source: https://docs.kernel.org/networking/proc_net_tcp.html
"""

from __future__ import annotations

import sys
from ipaddress import IPv4Address
from pathlib import Path

__all__ = ["socket_owner"]

_TABLE = Path("/proc/net/tcp")


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
        The user ID; None where the system does not tell (not Linux) or the other end is closed, so
        that nobody could read an answer.
    """
    wanted = [_spell(*peer), _spell(*own)]
    try:
        table = _TABLE.read_text("ascii")
    except OSError:
        return None
    for line in table.splitlines()[1:]:
        # sl local_address rem_address st tx_queue:rx_queue tr:tm->when retrnsmt uid ...
        fields = line.split(maxsplit=8)
        if fields[1:3] == wanted:
            return int(fields[7])
    return None


def _spell(address: str, port: int) -> str:
    # The kernel prints the four bytes as one number of the machine's byte order.
    return f"{int.from_bytes(IPv4Address(address).packed, sys.byteorder):08X}:{port:04X}"
