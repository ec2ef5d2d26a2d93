"""The address by which the outside world knows this computer: whom a firewall rule is to let in.

Owns the order in which that is found out. What the user has typed counts, and then nobody is asked.
A local Compute Engine is asked by itself, and nobody else is then. Otherwise the services of
``client_address_services`` are asked in their order, and the first answer that is one public
IPv4 address counts. For whoever answers decides who may knock at the scheduler's door, they are
asked over HTTPS, and an answer is an address or none at all.
"""

from __future__ import annotations

import asyncio
import importlib
import ipaddress
import logging
from dataclasses import dataclass
from typing import Any, Final

from dask_gce.errors import GCEError
from dask_gce.settings import Settings

__all__ = ["OwnAddress", "find_own_address", "parse_address"]

logger = logging.getLogger(__name__)

#: Seconds that one service may take, from the look-up of its name to the end of its answer.
PATIENCE = 3.0
#: The same for a local Compute Engine: whoever made this setting has started it, so it will answer,
#: however busy this computer is.
LOCAL_PATIENCE = 60.0

#: Bytes of an answer that are read. No address is longer, and none is told in more.
_LONGEST: Final = 256

_REMEDY: Final = (
    "Set allow_ingress_from to the address from which you reach the Internet, such as "
    "'203.0.113.7', or take a way that needs none: connect='iap'."
)


@dataclass(frozen=True)
class OwnAddress:
    """An address of this computer, as others see it.

    Parameters
    ----------
    address : str
        An IPv4 address.
    source : str
        Who has told it.
    """

    address: str
    source: str


async def find_own_address(settings: Settings, *, token: str | None = None) -> OwnAddress:
    """Find out from which address this computer reaches the cluster's machines.

    Not to be asked where ``allow_ingress_from`` tells who is let in.

    Parameters
    ----------
    settings : Settings
        The cluster's settings.
    token : str or None
        The bearer token of a local Compute Engine; None if it wants none. No other service is sent
        any.

    Returns
    -------
    OwnAddress
        The address, and who has told it.

    Raises
    ------
    GCEError
        If nobody tells it. The message names those who were asked, what they said, and the
        remedy.
    """
    # Importing it takes a quarter of a second.
    aiohttp = await asyncio.to_thread(importlib.import_module, "aiohttp")
    if settings.is_local:
        source = f"{settings.api_endpoint}/client-address"
        headers = {} if token is None else {"Authorization": f"Bearer {token}"}
        # A proxy must neither see nor fail what stays on this computer.
        async with aiohttp.ClientSession(headers=headers, trust_env=False) as session:
            found = await _ask(aiohttp, session, source, LOCAL_PATIENCE, public=False)
        if found is not None:
            return OwnAddress(found, "the local Compute Engine")
        raise GCEError(
            f"The local Compute Engine does not tell this computer's address ({source}); is it of "
            f"the same version? {_REMEDY}"
        )
    services = settings.client_address_services
    if services:
        # Behind a company's proxy it is the proxy that knows the way out.
        async with aiohttp.ClientSession(trust_env=True) as session:
            for service in services:
                found = await _ask(aiohttp, session, service, PATIENCE, public=True)
                if found is not None:
                    return OwnAddress(found, service)
    asked = f"asked: {', '.join(services)}" if services else "client_address_services names nobody"
    raise GCEError(
        "The address of this computer, which the firewall is to let in, could not be found out "
        f"({asked}). {_REMEDY}"
    )


def parse_address(answer: bytes, *, public: bool = True) -> str | None:
    """Read what a service says.

    Parameters
    ----------
    answer : bytes
        The body of its answer.
    public : bool
        Whether only an address counts that the Internet knows.

    Returns
    -------
    str or None
        An IPv4 address; None if it is anything else, or anything more.

    Examples
    --------
    >>> parse_address(b"8.8.8.8\\n"), parse_address(b"10.0.0.1"), parse_address(b"0.0.0.0/0")
    ('8.8.8.8', None, None)
    """
    try:
        address = ipaddress.IPv4Address(answer.decode("ascii").strip())
    except ValueError:
        return None
    if address.is_unspecified or address.is_multicast:
        return None
    return str(address) if address.is_global or not public else None


async def _ask(
    aiohttp: Any, session: Any, url: str, patience: float, *, public: bool
) -> str | None:
    """Ask one service; None if it does not tell."""
    try:
        async with session.get(
            url, timeout=aiohttp.ClientTimeout(total=patience), allow_redirects=False
        ) as answer:
            body = await _read(answer)
            found = parse_address(body, public=public) if answer.status == 200 else None
    # ValueError for what only shows when it is used, such as an address in no known encoding.
    except (aiohttp.ClientError, asyncio.TimeoutError, OSError, ValueError) as error:
        logger.info("%s does not tell this computer's address: %s", url, error)
        return None
    if found is None:
        logger.info("%s does not tell this computer's address", url)
    return found


async def _read(answer: Any) -> bytes:
    """Return a short body; of a longer one enough to be none."""
    body = b""
    while len(body) <= _LONGEST and (more := await answer.content.read(_LONGEST + 1 - len(body))):
        body += more
    return body
