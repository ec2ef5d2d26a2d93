"""Whom a cluster's firewall has to let in to the scheduler, by the way that clients take.

Owns the order: whoever was typed counts, then what the way asks for. How this computer's own
address is found out is left to `own_address`.
"""

from __future__ import annotations

import asyncio

from dask_gce.credentials import access_token, load_credentials
from dask_gce.reach.firewall_needs import IAP_RANGE
from dask_gce.reach.own_address import find_own_address
from dask_gce.reach.route import Route
from dask_gce.settings import Settings

__all__ = ["find_clients"]


async def find_clients(settings: Settings, route: Route) -> tuple[str, ...]:
    """Find out from where the scheduler has to be reached.

    Parameters
    ----------
    settings : Settings
        The cluster's settings.
    route : Route
        The way from this process to the scheduler.

    Returns
    -------
    tuple of str
        Ranges of addresses. None for the inside of the network, whose own rules count there, and
        none without ``firewall``, since then nobody outside is to be asked.

    Raises
    ------
    GCEError
        If nobody tells this computer's address, with the remedy.
    """
    typed = settings.allow_ingress_from
    if route.kind == "iap":
        return tuple(dict.fromkeys((IAP_RANGE, *(typed or ()))))
    if typed is not None:
        return typed
    if route.kind == "internal" or not settings.firewall:
        return ()
    # Only a local Compute Engine wants a token; Google's are for nobody else.
    token = await asyncio.to_thread(_token, settings) if settings.is_local else None
    return ((await find_own_address(settings, token=token)).address,)


def _token(settings: Settings) -> str | None:
    return access_token(load_credentials(settings))
