"""Firewall rules that nobody needs any more: which they are, and their deletion.

Owns what is particular to rules; the judgement is in `orphanhood`. A cluster removes its own rules
(`reach.firewall`), its scheduler's machine those of a client that is gone, and whoever deletes a
cluster deletes them with it. What is left is of machines that could not, and of processes that had
connected from elsewhere. Rules cost nothing, but let somebody in, and the quota of a project is
small.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import Any

from dask_gce import tags
from dask_gce.client import ClientState, client_state
from dask_gce.compute import Compute
from dask_gce.errors import GCEError, PermissionDenied
from dask_gce.inventory import Inventory
from dask_gce.orphanhood import Origin, explain_leftover, is_judged, moment
from dask_gce.reach.own_rules import OwnRule, delete_rules, list_own_rules

__all__ = ["OrphanedRule", "delete_orphaned_rules", "find_orphaned_rules", "list_rules"]


@dataclass(frozen=True)
class OrphanedRule:
    """A firewall rule that nobody needs any more.

    Parameters
    ----------
    own : OwnRule
        The rule, and whose it was.
    reason : str
        Why nobody needs it, as the end of a sentence that begins with its name.
    """

    own: OwnRule
    reason: str

    def to_json(self) -> dict[str, Any]:
        """Return it in the types of JSON.

        Returns
        -------
        dict
            ``name``, ``project``, ``cluster``, ``id``, ``owner`` and ``reason``.
        """
        return {
            "name": self.own.rule.name,
            "project": self.own.project,
            "cluster": self.own.mark.cluster,
            "id": self.own.mark.identity,
            "owner": self.own.mark.owner,
            "reason": self.reason,
        }


async def list_rules(compute: Compute) -> list[OwnRule]:
    """Return the rules of clusters in a project.

    To be asked before the machines are, so that those of a rule that is found are found too.

    Parameters
    ----------
    compute : Compute
        The Compute API of the project. Rules of shared networks are in their host project.

    Returns
    -------
    list of OwnRule
        What there is; nothing where the caller may not look.

    Raises
    ------
    GCEError
        If Compute Engine does not answer, or refuses for another reason than permissions.
    """
    try:
        return await list_own_rules(compute)
    except PermissionDenied:
        return []


def find_orphaned_rules(
    rules: Iterable[OwnRule],
    inventory: Inventory,
    *,
    now: datetime | None = None,
    owner: str | None = None,
    everybody: bool = False,
    client_state: Callable[[str], ClientState] = client_state,
) -> list[OrphanedRule]:
    """Find the rules that nobody needs any more.

    That is a rule whose cluster has no machines, and one of a process of this computer that had
    connected to a cluster and has ended. It is never a rule whose process lives, unless its cluster
    should have ended long ago; or one that something declares, which would make it again.

    Parameters
    ----------
    rules : iterable of OwnRule
        Those there are; listed before the machines were.
    inventory : Inventory
        The clusters that have machines.
    now : datetime.datetime or None
        The time, with its zone; None for the clock's.
    owner : str or None
        Whose to judge, in any spelling; None for those of who runs this process.
    everybody : bool
        Judge everybody's.
    client_state : callable
        Tells of the process in a mark what `client.client_state` does.

    Returns
    -------
    list of OrphanedRule
        Those that nobody needs. While a zone does not answer there are none: machines that need
        them may be there.
    """
    if inventory.unreachable:
        return []
    now = now or datetime.now(timezone.utc)
    alive = {record.identity for record in inventory.clusters}
    found = []
    for each in rules:
        origin = _origin(each)
        if each.mark.declared or not is_judged(origin, owner, everybody):
            continue
        if each.mark.identity not in alive:
            reason = explain_leftover(origin, now, client_state)
        elif _is_of_one_who_joined(each) and client_state(origin.client) == "gone":
            reason = "let in a process of this computer that has ended"
        else:
            reason = ""  # the cluster's own rules are deleted with it
        if reason:
            found.append(OrphanedRule(each, reason))
    return found


def _origin(own: OwnRule) -> Origin:
    mark = own.mark
    return Origin(mark.cluster, mark.owner, mark.client, own.rule.created, moment(mark.expires))


def _is_of_one_who_joined(own: OwnRule) -> bool:
    mark = own.mark
    return own.rule.name not in tags.rule_names(mark.cluster, mark.identity)


async def delete_orphaned_rules(compute: Compute, rules: Iterable[OrphanedRule]) -> None:
    """Delete rules; one that is gone already is no error.

    Parameters
    ----------
    compute : Compute
        The Compute API.
    rules : iterable of OrphanedRule
        Which.

    Raises
    ------
    GCEError
        If some could not be deleted, with the commands that do it by hand.
    """
    errors = await delete_rules(compute, [(each.own.rule.name, each.own.project) for each in rules])
    if errors:
        raise GCEError("\n".join(map(str, errors))) from errors[0]
