"""Whether a Dask server listens at an address, and whether it is an address to ask at all."""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import logging
import os
import socket
import ssl
from typing import Final

__all__ = ["UNREACHABLE", "find_refusal", "knock", "leads_to_local_engine"]

logger = logging.getLogger(__name__)

#: Seconds after which an address that swallows what is sent there counts as silent.
PROBE_TIMEOUT = 3.0
#: Seconds for an address that has answered before, maybe through a tunnel.
REFUSAL_TIMEOUT = 10.0
#: Seconds that a connection may take to be closed.
FAREWELL = 1.0
#: What a call to a scheduler raises that goes at that moment. Tornado says ValueError of a
#: connection that is closed before TLS begins (``IOStream.start_tls``), and Dask passes it on.
UNREACHABLE: Final = (OSError, ValueError)
#: Where a local Compute Engine puts its clients, if it gives them a network: a range that belongs
#: to nobody, for documentation (RFC 5737).
CLIENTS = ipaddress.ip_network("198.51.100.0/24")


async def knock(
    host: str,
    port: int,
    context: ssl.SSLContext | None = None,
    *,
    timeout: float | None = None,
) -> str:
    """Find out why no Dask server answers, if none does; one that refuses this client does.

    A connection that is made and closed at once would tell less, and more to others: a tunnel takes
    every connection, and a scheduler that wants TLS complains of each that does not begin it. A
    Dask server speaks first, so its first byte is waited for.

    Parameters
    ----------
    host : str
        An IP address.
    port : int
        A port.
    context : ssl.SSLContext or None
        What the client shows, and whom it trusts; None for plain TCP.
    timeout : float or None
        Seconds after which an address that swallows what is sent there counts as silent; None for
        `PROBE_TIMEOUT`.

    Returns
    -------
    str
        The reason, the end of a sentence; empty if one answers.
    """
    seconds = PROBE_TIMEOUT if timeout is None else timeout
    try:
        await asyncio.wait_for(_hear(host, port, context), seconds)
    except asyncio.TimeoutError:
        return f"there is no answer within {seconds:g} s"
    except (ssl.SSLEOFError, ssl.SSLZeroReturnError):
        return "the connection is closed before TLS is agreed on"
    except ssl.SSLError as error:
        # Somebody is there, and waiting does not change what they think of each other. Whoever
        # connects next is told by Dask.
        logger.info("What answers at %s:%s is refused, or refuses: %s", host, port, error)
    except OSError as error:
        # asyncio has the address in the place of the system's words.
        return os.strerror(error.errno) if error.errno else str(error) or type(error).__name__
    return ""


async def find_refusal(host: str, port: int, context: ssl.SSLContext) -> ssl.SSLError | None:
    """Find out whether a Dask server and this client refuse each other's certificates, and why.

    Dask tells less. In TLS 1.3 a client learns that its own certificate was refused only when it
    reads, and whoever writes first may find nothing but a closed connection.

    Parameters
    ----------
    host : str
        An IP address.
    port : int
        A port.
    context : ssl.SSLContext
        What the client shows, and whom it trusts.

    Returns
    -------
    ssl.SSLError or None
        What OpenSSL says; None if nobody refuses anybody, or nobody answers.
    """
    try:
        await asyncio.wait_for(_hear(host, port, context), REFUSAL_TIMEOUT)
    except (ssl.SSLEOFError, ssl.SSLZeroReturnError):
        return None
    except ssl.SSLError as error:
        return error
    except (OSError, asyncio.TimeoutError):
        return None
    return None


async def _hear(host: str, port: int, context: ssl.SSLContext | None) -> None:
    reader, writer = await asyncio.open_connection(host, port, ssl=context)
    try:
        if not await reader.read(1):
            raise ConnectionAbortedError("the connection is closed without a word")
    finally:
        writer.close()
        # The other side need not say good-bye.
        with contextlib.suppress(OSError, asyncio.TimeoutError):
            await asyncio.wait_for(writer.wait_closed(), FAREWELL)
        writer.transport.abort()


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
