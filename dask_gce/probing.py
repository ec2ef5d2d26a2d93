"""Whether something listens at an address, and whether it is an address to ask at all."""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import socket
from typing import Final

__all__ = ["UNREACHABLE", "answers_at", "leads_to_local_engine"]

#: Seconds after which an address that swallows what is sent there counts as silent.
PROBE_TIMEOUT = 3.0
#: What a call to a scheduler raises that goes at that moment. Tornado says ValueError of a
#: connection that is closed before TLS begins (``IOStream.start_tls``), and Dask passes it on.
UNREACHABLE: Final = (OSError, ValueError)
#: Where a local Compute Engine puts its clients, if it gives them a network: a range that belongs
#: to nobody, for documentation (RFC 5737).
CLIENTS = ipaddress.ip_network("198.51.100.0/24")


async def answers_at(host: str, port: int) -> bool:
    """Tell whether something listens there.

    Parameters
    ----------
    host : str
        An IP address.
    port : int
        A port.

    Returns
    -------
    bool
        Whether a connection was accepted.
    """
    try:
        _, writer = await asyncio.wait_for(asyncio.open_connection(host, port), PROBE_TIMEOUT)
    except (OSError, asyncio.TimeoutError):
        return False
    writer.close()
    with contextlib.suppress(OSError):
        await writer.wait_closed()
    return True


def leads_to_local_engine(host: str) -> bool:
    """Tell whether what is sent to an address stays with a local Compute Engine.

    Its machines have addresses that may be somebody else's outside its network: whatever is sent
    there would leave this computer, and whoever answers is a stranger.

    Parameters
    ----------
    host : str
        An IP address of one of its machines.

    Returns
    -------
    bool
        Whether it is a loopback address, or this process lives in the local engine's network.

    Examples
    --------
    >>> leads_to_local_engine("127.18.0.2"), leads_to_local_engine("203.0.113.7")
    (True, False)
    """
    if ipaddress.ip_address(host).is_loopback:
        return True
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as lookup:
        try:
            # Sends nothing: it only asks the system by which way it would go.
            lookup.connect((host, 9))
        except OSError:
            return False
        return ipaddress.ip_address(lookup.getsockname()[0]) in CLIENTS
