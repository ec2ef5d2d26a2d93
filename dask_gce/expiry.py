"""When a cluster's certificates end: what is said of it, and waiting for it.

Owns the words and the clock. When that moment is, is read from the certificates in `trust`; what
follows from it is the cluster's business.

A connection that is there outlives its certificates, since TLS looks at them only as it begins. New
ones are refused, and everything in Dask makes new ones: workers that fetch from each other, clients
that come back after a laptop's sleep. So the end has to be known before.
"""

from __future__ import annotations

import asyncio
from datetime import datetime, timedelta, timezone
from typing import Final

__all__ = ["NOTICE", "describe_approach", "describe_end", "moment", "wait_until"]

#: How long before the end it is told: over a night, and not so long that it is forgotten again.
NOTICE: Final = timedelta(days=1)

#: Seconds between looks at the clock. A computer that sleeps does not count what it sleeps.
LOOK_AGAIN: Final = 300.0


def _now() -> datetime:
    return datetime.now(timezone.utc)


async def wait_until(end: datetime) -> None:
    """Wait for a moment of the wall clock, also while the computer sleeps now and then.

    Parameters
    ----------
    end : datetime.datetime
        The moment, with a time zone; one that is past is not waited for.
    """
    while True:
        left = (end - _now()).total_seconds()
        if left <= 0:
            return
        await asyncio.sleep(min(left, LOOK_AGAIN))


def moment(end: datetime) -> str:
    """Write a moment as people read it.

    Parameters
    ----------
    end : datetime.datetime
        The moment, with a time zone.

    Returns
    -------
    str
        The same, in UTC.

    Examples
    --------
    >>> moment(datetime(2026, 11, 28, 9, 30, tzinfo=timezone.utc))
    '2026-11-28 09:30 UTC'
    """
    return f"{end.astimezone(timezone.utc):%Y-%m-%d %H:%M} UTC"


def describe_approach(cluster: str, end: datetime) -> str:
    """Say that certificates are about to end, and what to do.

    Parameters
    ----------
    cluster : str
        The cluster's name.
    end : datetime.datetime
        When they end.

    Returns
    -------
    str
        Sentences for the user.
    """
    return (
        f"The certificates of cluster {cluster} end at {moment(end)}. From then on nobody can "
        "connect to it, and no worker can join it. Bring its work to an end before, and make a new "
        "cluster; one that is to last longer takes max_lifetime, or certificates of your own."
    )


def describe_end(cluster: str, end: datetime) -> str:
    """Say that certificates have ended, and what to do.

    Parameters
    ----------
    cluster : str
        The cluster's name.
    end : datetime.datetime
        When they ended.

    Returns
    -------
    str
        Sentences for the user.
    """
    return (
        f"The certificates of cluster {cluster} ended at {moment(end)}, so nobody can connect to "
        f"it any more and no worker can join it. Close it, or delete it (dask gce delete {cluster}"
        "), and make a new one."
    )
