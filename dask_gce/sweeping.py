"""What nobody needs any more: which clusters are orphans, and their deletion.

Owns the judgement, from what `inventory` lists and `client` tells, and that it is made anew at the
last moment before a cluster is deleted. The deletion itself is that of `inventory`; the sweep of a
whole project is in `sweeper`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from typing import Any, Final

from dask_gce import names
from dask_gce.client import ClientState, client_state, current_user
from dask_gce.cluster_records import ClusterRecord
from dask_gce.compute import Compute
from dask_gce.connections import load_connection
from dask_gce.errors import CredentialsError, SettingsError
from dask_gce.inventory import Inventory, delete_cluster, list_clusters
from dask_gce.orphanhood import is_over

__all__ = ["Orphan", "delete_orphan", "find_orphans"]

#: How long machines may be without a scheduler before nobody is believed to need them: a
#: scheduler's machine is asked for together with the first workers' and is there within minutes.
GRACE: Final = timedelta(minutes=15)


@dataclass(frozen=True)
class Orphan:
    """A cluster that nobody needs any more.

    Parameters
    ----------
    record : ClusterRecord
        The cluster.
    reason : str
        Why nobody needs it, as the end of a sentence that begins with its name.
    """

    record: ClusterRecord
    reason: str

    def to_json(self) -> dict[str, Any]:
        """Return it in the types of JSON.

        Returns
        -------
        dict
            The cluster's keys, and ``reason``.
        """
        return {**self.record.to_json(), "reason": self.reason}


def find_orphans(
    inventory: Inventory,
    *,
    now: datetime | None = None,
    owner: str | None = None,
    everybody: bool = False,
    client_state: Callable[[str], ClientState] = client_state,
) -> list[Orphan]:
    """Find the clusters that nobody needs any more.

    That is a cluster past its end, one whose process has ended on this computer, one without a
    scheduler for 15 minutes, and one whose machines are all off, its scheduler's too. It is never a
    cluster whose process lives, unless Compute Engine should have ended it a quarter of an hour
    ago; one that others can connect to and that has no end; or machines that were given a cluster's
    label by hand; or a cluster that something declares, which makes its machines again or starts
    them, and which alone ends it. While a zone does not answer, a scheduler that is not seen may be
    there.

    Parameters
    ----------
    inventory : Inventory
        What there is.
    now : datetime.datetime or None
        The time, with its zone; None for the clock's.
    owner : str or None
        Whose clusters to judge, in any spelling; None for those of who runs this process.
    everybody : bool
        Judge everybody's clusters, also those of unknown owners.
    client_state : callable
        Tells of the process in a cluster's label what `client.client_state` does.

    Returns
    -------
    list of Orphan
        What was found, in the order of the inventory.
    """
    now = now or datetime.now(timezone.utc)
    whose = names.label_value(current_user() if owner is None else owner)
    found = []
    for record in inventory.clusters:
        if everybody or (record.owner and record.owner == whose):
            reason = _reason(record, inventory.unreachable, now, client_state)
            if reason:
                found.append(Orphan(record, reason))
    return found


async def delete_orphan(
    compute: Compute,
    orphan: Orphan,
    *,
    client_state: Callable[[str], ClientState] = client_state,
) -> bool:
    """Delete an orphan, if it still is one.

    Parameters
    ----------
    compute : Compute
        The Compute API of its project.
    orphan : Orphan
        What was found; it is looked at again.
    client_state : callable
        Tells of the process in a cluster's label what `client.client_state` does.

    Returns
    -------
    bool
        Whether it was deleted; False if it is gone already, or somebody needs it after all.

    Raises
    ------
    GCEError
        If it is not certain that all its machines are deleted, with the commands that tell and do
        it by hand.
    """
    inventory = await list_clusters(compute, orphan.record.name)
    for still in await asyncio.to_thread(
        find_orphans, inventory, everybody=True, client_state=client_state
    ):
        if still.record.identity == orphan.record.identity:
            await delete_cluster(compute, still.record)
            return True
    return False


def _can_be_joined(record: ClusterRecord) -> bool:
    """Tell whether this computer has what it takes to connect to a cluster."""
    try:
        return load_connection(record.name, record.project).identity == record.identity
    except (CredentialsError, SettingsError):
        return False


def _reason(
    record: ClusterRecord,
    unreachable: frozenset[str],
    now: datetime,
    client_state: Callable[[str], ClientState],
) -> str:
    """Return why nobody needs a cluster; empty if somebody may."""
    # Without an identity it is not ours, or cannot be told from another of its name.
    if not record.identity or unreachable & set(record.zones):
        return ""
    if record.declared:
        # Machines of its own may be off, and are started again; it is ended by who declares it.
        return ""
    client = client_state(record.client)
    if client == "gone" and _can_be_joined(record):
        client = "detached"  # it was left on purpose, after it was made
    if record.expires is not None and is_over(record.expires, client, now):
        return f"was to end at {record.expires:%Y-%m-%d %H:%M} UTC"
    if client == "alive":
        return ""
    if client == "gone":
        return "was made by a process of this computer that has ended"
    if record.state == "stopped" and record.scheduler is not None and not unreachable:
        # Nothing switches a scheduler on again. It could not delete itself, as its limits say.
        return "has ended, but its machines are only off, whose disks still cost money"
    # What is not seen in one zone may be in another that does not answer.
    youngest = max(each.created for each in record.machines)
    if unreachable or now - youngest <= GRACE:
        return ""
    if record.state == "no-scheduler":
        return "has no scheduler"
    if record.state == "stopped":
        return "has only machines that are off, whose disks still cost money"
    return ""
