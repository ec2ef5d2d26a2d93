"""Why nobody needs what a cluster has left behind, be it a firewall rule or a secret.

Owns that judgement, which is the same for whatever carries a cluster's marks and is no machine.
What there is, and how it is deleted, is in `rule_sweeping` and `secret_sweeping`; which clusters
nobody needs is judged in `sweeping`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from typing import Final

from dask_gce import names
from dask_gce.client import ClientState, current_user

__all__ = ["EXPIRED_GRACE", "GRACE", "Origin", "explain_leftover", "is_judged", "is_over", "moment"]

#: How long something may be without a machine: secrets are made before the first one, which may
#: wait for capacity, and lists lag behind.
GRACE: Final = timedelta(minutes=15)

#: How long after its end something is left to a process that lives: clocks differ, and Compute
#: Engine takes its time to delete machines.
EXPIRED_GRACE: Final = timedelta(minutes=15)

#: Seconds since 1970 up to the year 9999: what `datetime` can hold.
_LAST_SECOND: Final = 253_402_300_799


@dataclass(frozen=True)
class Origin:
    """Where something comes from, as its labels or its description tell.

    Parameters
    ----------
    cluster : str
        The cluster's name.
    owner : str
        Who made it, as a label value.
    client : str
        Which process made it, as `client` tells.
    created : datetime.datetime or None
        When it was made, with its zone; None if that is not told.
    expires : datetime.datetime or None
        When its cluster is past its use; None if that is not told.
    """

    cluster: str
    owner: str
    client: str
    created: datetime | None
    expires: datetime | None = None


def is_judged(origin: Origin, owner: str | None, everybody: bool) -> bool:
    """Tell whether something is of somebody whose things are to be judged.

    Parameters
    ----------
    origin : Origin
        Where it comes from.
    owner : str or None
        Whose to judge, in any spelling; None for those of who runs this process.
    everybody : bool
        Judge everybody's, also those of unknown owners.

    Returns
    -------
    bool
        Whether to judge it.
    """
    whose = names.label_value(current_user() if owner is None else owner)
    return everybody or bool(whose and origin.owner == whose)


def explain_leftover(
    origin: Origin,
    now: datetime,
    client_state: Callable[[str], ClientState],
) -> str:
    """Return why nobody needs something whose cluster has no machines.

    Parameters
    ----------
    origin : Origin
        Where it comes from.
    now : datetime.datetime
        The time, with its zone.
    client_state : callable
        Tells of the process in a mark what `client.client_state` does.

    Returns
    -------
    str
        The end of a sentence that begins with its name; empty if somebody may need it.
    """
    state = client_state(origin.client)
    if is_over(origin.expires, state, now):
        return "is of a cluster that was to end"
    if state == "alive":
        return ""
    if state == "gone":
        return "was made by a process of this computer that has ended"
    if origin.created is not None and now - origin.created > GRACE:
        return f"is of cluster {origin.cluster}, which has no machines"
    return ""


def is_over(expires: datetime | None, state: ClientState, now: datetime) -> bool:
    """Tell whether the end of something has come, also for a process that lives.

    Parameters
    ----------
    expires : datetime.datetime or None
        When it is past its use; None for never.
    state : {"alive", "gone", "detached", "unknown"}
        What is known of the process that made it.
    now : datetime.datetime
        The time, with its zone.

    Returns
    -------
    bool
        Whether it is past its use.
    """
    if expires is None:
        return False
    return expires + (EXPIRED_GRACE if state == "alive" else timedelta(0)) <= now


def moment(seconds: int | None) -> datetime | None:
    """Return a moment that is told in seconds.

    Parameters
    ----------
    seconds : int or None
        Seconds since 1970 UTC, from whoever may have written them; None for none.

    Returns
    -------
    datetime.datetime or None
        The moment in UTC; None where there is none, or none before the year 10000.

    Examples
    --------
    >>> moment(0)
    datetime.datetime(1970, 1, 1, 0, 0, tzinfo=datetime.timezone.utc)
    >>> moment(10**15)
    """
    if seconds is None or not 0 <= seconds <= _LAST_SECOND:
        return None
    return datetime.fromtimestamp(seconds, timezone.utc)
