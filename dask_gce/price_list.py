"""Google's price list: read page by page, kept for a day.

Owns the requests and the file in which the list is kept, for it is long: some ten answers of
thousands of SKUs, of which a few thousand prices remain. What a SKU means is in `cost.skus`. Lists
are public: the same for all projects, and whoever may ask at all may read them.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import threading
import time
from collections.abc import Callable, Mapping
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, Final

from platformdirs import user_data_path

from dask_gce.cost.skus import (
    COMPUTE_ENGINE,
    SKU_FIELDS,
    dump_tariff,
    parse_skus,
    restore_tariff,
    select_skus,
)
from dask_gce.errors import CredentialsError, GCEError, TransportError
from dask_gce.policy import Failure, RetryPolicy
from dask_gce.prices import Tariff
from dask_gce.private_files import read_private, write_private
from dask_gce.services import Services, load_services
from dask_gce.settings import Settings

__all__ = ["kept_tariff", "learn_tariff", "price_list_path", "read_tariff"]

logger = logging.getLogger(__name__)

#: Seconds for which a list that was read is believed.
KEPT_FOR: Final = 24 * 3600.0

#: SKUs in an answer: the most that there can be.
PAGE: Final = 5000

#: Answers after which a list that has no end is left alone, and seconds after which a slow one is.
MOST_PAGES: Final = 100
READ_WITHIN: Final = 120.0

#: The most that a kept list may have, in bytes.
_LIMIT: Final = 8 * 2**20


class _Briefly(RetryPolicy):
    """Repeats a call but once: there is a table without it, and threads are to come to an end."""

    def delay(self, failure: Failure, attempt: int, *, now: float) -> float | None:
        return None if attempt else super().delay(failure, attempt, now=now)


def price_list_path() -> Path:
    """Return where the list is kept, in US dollars, whether it is there or not.

    Returns
    -------
    pathlib.Path
        A path in the user's data folder.
    """
    return user_data_path("dask-gce", appauthor=False) / "prices" / "usd.json"


async def learn_tariff(settings: Settings, project: str) -> Tariff | None:
    """Return Google's list: the one that is kept, else read anew.

    Cancelled, it waits for nothing that is under way.

    Parameters
    ----------
    settings : Settings
        The cluster's settings.
    project : str
        The project that asks.

    Returns
    -------
    Tariff or None
        The list; None if it cannot be read, which is logged.
    """
    loop = asyncio.get_running_loop()
    learnt: asyncio.Future[Tariff | None] = loop.create_future()

    def tell(tariff: Tariff | None) -> None:
        if not learnt.done():
            learnt.set_result(tariff)

    def learn() -> None:
        tariff = None
        try:
            tariff = _learn(settings, project)
        finally:
            # The loop may be closed by now.
            with contextlib.suppress(RuntimeError):
                loop.call_soon_threadsafe(tell, tariff)

    # Neither a cluster's end nor the interpreter's is to wait for a list of prices.
    threading.Thread(target=learn, name="dask-gce-prices", daemon=True).start()
    return await learnt


def _learn(settings: Settings, project: str) -> Tariff | None:
    if (kept := kept_tariff(settings)) is not None:
        return kept
    try:
        services = load_services(settings, project, policy=_Briefly())
        try:
            tariff = read_tariff(services)
        finally:
            services.close_now()
    except GCEError as error:
        logger.info("Google's price list is not read: %s", error)
        return None
    if not settings.is_local:
        _keep(tariff)
    return tariff


def read_tariff(services: Services, *, page: int = PAGE) -> Tariff:
    """Read Google's list; blocks for seconds.

    Parameters
    ----------
    services : Services
        Google's other APIs.
    page : int
        How many SKUs to ask for at a time.

    Returns
    -------
    Tariff
        The list, as of today.

    Raises
    ------
    GCEError
        If the Cloud Billing API does not answer, refuses, or does not come to an end.
    """
    chosen: list[Mapping[str, Any]] = []
    token = ""
    deadline = time.monotonic() + READ_WITHIN
    for _ in range(MOST_PAGES):
        answer = services.call_now(
            "cloudbilling",
            "GET",
            f"/v1/services/{COMPUTE_ENGINE}/skus",
            params={
                "currencyCode": "USD",
                "pageSize": str(page),
                "fields": SKU_FIELDS,
                **({"pageToken": token} if token else {}),
            },
            action="read the price list",
            timeout=max(1.0, deadline - time.monotonic()),
        )
        chosen += select_skus(answer.get("skus") or [])
        token = str(answer.get("nextPageToken") or "")
        if not token:
            return Tariff(parse_skus(chosen), datetime.now(timezone.utc).date(), live=True)
        if time.monotonic() > deadline:
            raise TransportError(f"Google's price list did not come within {READ_WITHIN:g} s.")
    raise TransportError(f"Google's price list has not ended after {MOST_PAGES} pages.")


def kept_tariff(settings: Settings, *, clock: Callable[[], float] = time.time) -> Tariff | None:
    """Return the list that was read last, if it is not a day old; asks nobody, blocks a little.

    Parameters
    ----------
    settings : Settings
        Whether prices are read at all, and from whom. The list of a local Compute Engine, which
        invents it, is not kept.
    clock : callable
        Returns seconds since 1970.

    Returns
    -------
    Tariff or None
        The list, if there is one.
    """
    if not settings.live_prices or settings.is_local:
        return None
    with contextlib.suppress(FileNotFoundError, CredentialsError, ValueError):
        kept = json.loads(read_private(price_list_path(), _LIMIT))
        read_at = kept.get("read_at") if isinstance(kept, dict) else None
        if isinstance(read_at, float | int) and 0 <= clock() - read_at < KEPT_FOR:
            return restore_tariff(kept)
    return None


def _keep(tariff: Tariff) -> None:
    content = json.dumps({"read_at": time.time(), **dump_tariff(tariff)}, separators=(",", ":"))
    try:
        write_private(price_list_path(), content.encode())
    except CredentialsError as error:
        logger.info("Google's price list is not kept: %s", error)
