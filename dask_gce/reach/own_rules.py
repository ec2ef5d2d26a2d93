"""The firewall rules that clusters have made, found again and deleted.

Rules have no labels: they are found by their names, and known by their descriptions, as anybody can
do who may list them. Which of them nobody needs any more is judged elsewhere.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass

from dask_gce import tags
from dask_gce.compute import Compute
from dask_gce.errors import GCEError, PermissionDenied
from dask_gce.reach.admission import RULE_FIELDS, Rule, parse_rule
from dask_gce.reach.firewall_rules import Mark, parse_mark, render_delete

__all__ = ["OwnRule", "delete_rules", "left_behind", "list_own_rules", "remove_rules"]

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class OwnRule:
    """A rule that some cluster of ours has made.

    Parameters
    ----------
    rule : Rule
        The rule.
    mark : Mark
        Whose it is.
    project : str
        The project that it belongs to.
    """

    rule: Rule
    mark: Mark
    project: str


async def list_own_rules(
    compute: Compute, identity: str = "", project: str | None = None
) -> list[OwnRule]:
    """Find the rules that clusters have made.

    Parameters
    ----------
    compute : Compute
        The Compute API.
    identity : str
        The identity of one cluster; empty for all clusters.
    project : str or None
        The project to look in; None for that of the client.

    Returns
    -------
    list of OwnRule
        The rules, by name. One that somebody has named like ours is none of them.

    Raises
    ------
    GCEError
        If Compute Engine does not answer or refuses.
    """
    fields = ",".join(RULE_FIELDS)
    found = await compute.list_firewalls(tags.rule_filter(identity), fields, project)
    rules = [
        OwnRule(rule, mark, project or compute.project)
        for rule in map(parse_rule, found)
        if (mark := parse_mark(rule.description)) is not None and identity in ("", mark.identity)
    ]
    return sorted(rules, key=lambda each: each.rule.name)


async def delete_rules(
    compute: Compute,
    rules: Collection[tuple[str, str]],
    gone: Callable[[str], object] = lambda name: None,
) -> list[GCEError]:
    """Begin to delete firewall rules, side by side.

    Parameters
    ----------
    compute : Compute
        The Compute API.
    rules : collection of tuple
        Name and project of each. One that does not exist counts as deleted.
    gone : callable
        Told the name of each that was deleted.

    Returns
    -------
    list of GCEError
        An error for each that could not be deleted, with the command that does it by hand.
    """

    async def delete(name: str, project: str) -> None:
        try:
            await compute.delete_firewall(name, project)
        except GCEError as error:
            raise left_behind([(name, project)], error) from error
        gone(name)

    outcomes = await asyncio.gather(
        *(delete(*each) for each in list(rules)), return_exceptions=True
    )
    errors = []
    for outcome in outcomes:
        if isinstance(outcome, GCEError):
            errors.append(outcome)
        elif isinstance(outcome, BaseException):
            raise outcome
    return errors


async def remove_rules(
    compute: Compute,
    cluster: str,
    identity: str,
    projects: Iterable[str],
    *,
    going: Collection[str] = (),
) -> list[GCEError]:
    """Delete all rules of a cluster, whoever has made them.

    Where the caller may not list rules, those are deleted that the cluster itself may have made.
    Who may not delete them either is told how to look, and nothing more: most likely the cluster
    was made without.

    Parameters
    ----------
    compute : Compute
        The Compute API.
    cluster : str
        The cluster's name.
    identity : str
        Its identity.
    projects : iterable of str
        The projects that may have its rules.
    going : collection of str
        The names of rules that are being deleted already.

    Returns
    -------
    list of GCEError
        What could not be deleted, with the commands that do it by hand.
    """
    errors: list[GCEError] = []
    for project in projects:
        try:
            found = await list_own_rules(compute, identity, project)
        except PermissionDenied as error:
            guessed = [(name, project) for name in tags.rule_names(cluster, identity)]
            if await delete_rules(compute, guessed):
                logger.warning("%s", left_behind(guessed, error))
        except GCEError as error:
            errors.append(
                GCEError(
                    f"Firewall rules of cluster {cluster} may be left in project {project}: {error}"
                )
            )
        else:
            errors += await delete_rules(
                compute,
                [(each.rule.name, each.project) for each in found if each.rule.name not in going],
            )
    return errors


def left_behind(rules: Sequence[tuple[str, str]], error: GCEError) -> GCEError:
    """Tell how to delete by hand what could not be deleted.

    Parameters
    ----------
    rules : sequence of tuple
        Name and project of each rule, at least one, all of one project.
    error : GCEError
        Why.

    Returns
    -------
    GCEError
        The same, with the command.
    """
    names = [name for name, _ in rules]
    return GCEError(
        f"{error}\nFirewall rules may be left: {', '.join(names)}. They cost nothing, but let "
        f"somebody in. Delete them: {render_delete(names, rules[0][1])}"
    )
