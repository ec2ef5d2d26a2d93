"""When the clusters of a project end: what their schedulers' machines publish of their limits.

Owns one read for each cluster that runs, side by side and not for long. It is good to know and no
more, so whatever fails is passed over: the lifetime, which the labels tell, is known in any case.
"""

from __future__ import annotations

import asyncio
import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import replace
from datetime import datetime, timezone
from typing import Any, Final

from dask_gce.cluster_records import ClusterRecord
from dask_gce.compute import Compute
from dask_gce.countdown import NAMES
from dask_gce.errors import GCEError
from dask_gce.startup import PHASE_NAMESPACE

__all__ = ["parse_ends", "read_ends"]

#: The guest attribute, which ``guest/guard.py`` writes.
KEY: Final = "limits"

#: Seconds that all reads together may take.
READ_WITHIN: Final = 5.0

#: Reads at a time.
LANES: Final = 16


async def read_ends(
    compute: Compute, records: Iterable[ClusterRecord]
) -> tuple[ClusterRecord, ...]:
    """Complete clusters by what their schedulers' machines tell of their ends.

    Parameters
    ----------
    compute : Compute
        The Compute API of their project.
    records : iterable of ClusterRecord
        The clusters.

    Returns
    -------
    tuple of ClusterRecord
        The same ones in the same order, those that run with their ends if they were told in time.
    """
    found = list(records)
    lanes = asyncio.Semaphore(LANES)

    async def read(number: int) -> None:
        record = found[number]
        scheduler = record.scheduler
        if scheduler is None or record.state != "running":
            return
        async with lanes:
            try:
                told = await compute.get_guest_attributes(
                    scheduler.zone, scheduler.name, f"{PHASE_NAMESPACE}/{KEY}"
                )
            except GCEError:
                return
        found[number] = replace(record, ends=parse_ends(told.get(KEY, "")))

    reads = [asyncio.ensure_future(read(number)) for number in range(len(found))]
    if reads:
        try:
            await asyncio.wait(reads, timeout=READ_WITHIN)
        finally:
            for each in reads:
                each.cancel()
            await asyncio.gather(*reads, return_exceptions=True)
    return tuple(found)


def parse_ends(text: str) -> dict[str, datetime]:
    """Read what a machine has published.

    Parameters
    ----------
    text : str
        JSON: seconds since 1970 UTC by limit, or null.

    Returns
    -------
    dict of str to datetime.datetime
        When each limit ends the cluster, as things are; empty if that cannot be read.

    Examples
    --------
    >>> parse_ends('{"idle_timeout": 1800000000, "max_lifetime": null}')
    {'idle_timeout': datetime.datetime(2027, 1, 15, 8, 0, tzinfo=datetime.timezone.utc)}
    """
    try:
        told = json.loads(text)
    except ValueError:
        return {}
    if not isinstance(told, Mapping):
        return {}
    return {name: end for name in NAMES if (end := _moment(told.get(name))) is not None}


def _moment(seconds: Any) -> datetime | None:
    if isinstance(seconds, bool) or not isinstance(seconds, int | float):
        return None
    if not math.isfinite(seconds):
        return None
    try:
        return datetime.fromtimestamp(seconds, timezone.utc)
    except (OverflowError, OSError, ValueError):  # what machines write may be anything
        return None
