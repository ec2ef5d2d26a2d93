"""One sweep of a project: all that nobody needs any more, found and deleted.

Owns the order: what has no machines is listed before the machines are, clusters go before what they
leave, and one thing that cannot be deleted does not keep the others. What nobody needs is judged in
`sweeping`, `rule_sweeping` and `secret_sweeping`.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any

from dask_gce.client import current_user
from dask_gce.cluster_records import ClusterRecord
from dask_gce.compute import Compute
from dask_gce.connections import delete_connection, load_connection
from dask_gce.errors import CredentialsError, GCEError, SettingsError
from dask_gce.inventory import delete_cluster, list_clusters
from dask_gce.preparation import open_compute
from dask_gce.rule_sweeping import (
    OrphanedRule,
    delete_orphaned_rules,
    find_orphaned_rules,
    list_rules,
)
from dask_gce.secret_sweeping import (
    SecretRecord,
    delete_secrets,
    find_orphaned_secrets,
    list_secrets,
)
from dask_gce.services import Services, load_services
from dask_gce.settings import Settings
from dask_gce.sweeping import Orphan, delete_orphan, find_orphans

__all__ = ["Sweep", "delete_all_of", "delete_found", "find_all", "sweep", "sweep_at_start"]

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Sweep:
    """What a sweep has deleted, or would.

    Parameters
    ----------
    project : str
        The project ID.
    clusters : tuple of Orphan
        Clusters, with the reason why nobody needs them.
    rules : tuple of OrphanedRule
        Firewall rules of clusters that are gone.
    secrets : tuple of SecretRecord
        Secrets of clusters that are gone.
    unreachable : frozenset of str
        Zones that did not answer; what they hold is not judged.
    """

    project: str
    clusters: tuple[Orphan, ...] = ()
    rules: tuple[OrphanedRule, ...] = ()
    secrets: tuple[SecretRecord, ...] = ()
    unreachable: frozenset[str] = frozenset()

    def __bool__(self) -> bool:
        return bool(self.clusters or self.rules or self.secrets)

    def __str__(self) -> str:
        lines = [f"cluster {each.record.name} {each.reason}" for each in self.clusters]
        lines += [f"firewall rule {each.own.rule.name} {each.reason}" for each in self.rules]
        lines += [f"secret {each.name} is of cluster {each.cluster}" for each in self.secrets]
        return "; ".join(lines) or "nothing"

    def to_json(self) -> dict[str, Any]:
        """Return it in the types of JSON.

        Returns
        -------
        dict
            ``project``, ``clusters``, ``firewall_rules``, ``secrets`` and ``unreachable_zones``.
        """
        return {
            "project": self.project,
            "clusters": [each.to_json() for each in self.clusters],
            "firewall_rules": [each.to_json() for each in self.rules],
            "secrets": [each.to_json() for each in self.secrets],
            "unreachable_zones": sorted(self.unreachable),
        }


async def find_all(
    compute: Compute, services: Services, *, owner: str | None = None, everybody: bool = False
) -> Sweep:
    """Find all that nobody needs any more, with three calls.

    Parameters
    ----------
    compute : Compute
        The Compute API of the project.
    services : Services
        Google's other APIs.
    owner : str or None
        Whose to judge, in any spelling; None for those of who runs this process.
    everybody : bool
        Judge everybody's.

    Returns
    -------
    Sweep
        What was found.

    Raises
    ------
    SettingsError
        If it is not known who runs this process, and neither `owner` nor `everybody` is given.
    GCEError
        If Compute Engine does not answer or refuses.
    """
    if not everybody and not (current_user() if owner is None else owner):
        raise SettingsError(
            "owner: the user of this process has no name, so none of the clusters is known to be "
            "theirs. Say whose to sweep, or everybody's.",
            key="owner",
        )
    # Before the machines, so that nothing is taken for left whose machines came in between.
    secrets, rules = await asyncio.gather(list_secrets(services), list_rules(compute))
    inventory = await list_clusters(compute)

    def judge() -> Sweep:
        whose: dict[str, Any] = {"owner": owner, "everybody": everybody}
        return Sweep(
            compute.project,
            tuple(find_orphans(inventory, **whose)),
            tuple(find_orphaned_rules(rules, inventory, **whose)),
            tuple(find_orphaned_secrets(secrets, inventory, **whose)),
            inventory.unreachable,
        )

    return await asyncio.to_thread(judge)


async def delete_found(
    compute: Compute,
    services: Services,
    found: Sweep,
    tell: Callable[[str], object] = lambda text: None,
) -> tuple[Sweep, list[GCEError]]:
    """Delete what was found, if nobody needs it still.

    Parameters
    ----------
    compute : Compute
        The Compute API of the project.
    services : Services
        Google's other APIs.
    found : Sweep
        What was found. Clusters are looked at again.
    tell : callable
        Told what is done.

    Returns
    -------
    tuple
        What was deleted, and an error for each part that may be left.
    """
    clusters: list[Orphan] = []
    errors: list[GCEError] = []
    for orphan in found.clusters:
        record = orphan.record
        tell(f"Deleting {record.name} ...")
        try:
            if not await delete_orphan(compute, orphan):
                tell(f"{record.name} is gone already, or needed after all.")
                continue
            clusters.append(orphan)
            await _delete_rest(services, record)
        except GCEError as error:
            errors.append(error)
    deleted = replace(found, clusters=tuple(clusters))
    try:
        await delete_orphaned_rules(compute, found.rules)
    except GCEError as error:
        errors.append(error)
        deleted = replace(deleted, rules=())
    try:
        await delete_secrets(services, found.secrets)
    except GCEError as error:
        errors.append(error)
        deleted = replace(deleted, secrets=())
    return deleted, errors


async def delete_all_of(compute: Compute, services: Services, record: ClusterRecord) -> None:
    """Delete a cluster, its firewall rules, its secrets and this computer's file of it.

    Parameters
    ----------
    compute : Compute
        The Compute API of its project.
    services : Services
        Google's other APIs.
    record : ClusterRecord
        The cluster.

    Raises
    ------
    GCEError
        If it is not certain that all is deleted.
    """
    await delete_cluster(compute, record)
    await _delete_rest(services, record)


async def _delete_rest(services: Services, record: ClusterRecord) -> None:
    try:
        await delete_secrets(services, await list_secrets(services, record.identity))
    finally:
        # There is nothing left to connect to, whatever Secret Manager says.
        await asyncio.to_thread(_forget, record)


def _forget(record: ClusterRecord) -> None:
    """Delete the connection file, unless it is for another cluster of that name."""
    try:
        another = load_connection(record.name, record.project).identity != record.identity
    except CredentialsError:
        # There is none, or none that anybody could use.
        another = False
    if not another:
        delete_connection(record.name, record.project)


def sweep(
    *,
    owner: str | None = None,
    everybody: bool = False,
    dry_run: bool = False,
    asynchronous: bool = False,
    **settings: Any,
) -> Any:
    """Delete what clusters have left that nobody needs any more.

    That are clusters past their end, clusters whose process has ended on this computer, clusters
    that have no scheduler or are switched off; and the firewall rules and secrets of clusters that
    have no machines. Only yours, unless told otherwise. It is the same as ``dask gce sweep``.

    Parameters
    ----------
    owner : str, optional
        Whose, as ``dask gce list`` shows it; by default those of who runs this process.
    everybody : bool
        Everybody's.
    dry_run : bool
        Delete nothing, and return what would be.
    asynchronous : bool
        Return something to await, instead of waiting.
    **settings
        Settings of the configuration page, such as ``project`` or ``api_endpoint``.

    Returns
    -------
    Sweep or awaitable
        What was deleted, or with `dry_run` would be; true if that is anything.

    Raises
    ------
    SettingsError
        If a setting is wrong, or if it is not known whose to sweep.
    CredentialsError
        If no credentials or no project can be found.
    GCEError
        If it is not certain that all is deleted; with the commands that tell and do it by hand. One
        thing that cannot be deleted does not keep the others.

    Examples
    --------
    >>> import dask_gce
    >>> print(dask_gce.sweep(dry_run=True))  # doctest: +SKIP
    cluster grid was made by a process of this computer that has ended
    """
    loaded = Settings.load(**settings)
    sweeping = _sweep(loaded, owner, everybody, dry_run)
    if asynchronous:
        return sweeping
    # In a thread, for where an event loop runs already, as in a notebook.
    with ThreadPoolExecutor(1, "dask-gce-sweep") as pool:
        return pool.submit(asyncio.run, sweeping).result()


async def _sweep(settings: Settings, owner: str | None, everybody: bool, dry_run: bool) -> Sweep:
    compute = await open_compute(settings)
    try:
        async with await asyncio.to_thread(load_services, settings, compute.project) as services:
            found = await find_all(compute, services, owner=owner, everybody=everybody)
            if dry_run:
                return found
            deleted, errors = await delete_found(compute, services, found)
    finally:
        await compute.close()
    if errors:
        raise GCEError("\n".join(map(str, errors))) from errors[0]
    return deleted


async def sweep_at_start(
    compute: Compute,
    settings: Settings,
    identity: str,
    note: Callable[[str], object],
) -> None:
    """Sweep what is left of the clusters of this user, beside the start of another.

    Never raises for what Google says: that is a warning, and the start goes on.

    Parameters
    ----------
    compute : Compute
        The Compute API of the new cluster, closed by that.
    settings : Settings
        Its settings.
    identity : str
        Its identity: it is not swept itself, whatever its labels say.
    note : callable
        Told what was deleted.
    """
    try:
        load = asyncio.to_thread(load_services, settings, compute.project)
        async with await load as services:
            found = _without(await find_all(compute, services), identity)
            deleted, errors = await delete_found(compute, services, found)
    except GCEError as error:
        logger.warning("What earlier clusters have left was not swept: %s", error)
        return
    if deleted:
        note(str(deleted))
    for each in errors:
        logger.warning("Something that earlier clusters have left may stay: %s", each)


def _without(found: Sweep, identity: str) -> Sweep:
    """Leave one cluster out."""
    return replace(
        found,
        clusters=tuple(each for each in found.clusters if each.record.identity != identity),
        rules=tuple(each for each in found.rules if each.own.mark.identity != identity),
        secrets=tuple(each for each in found.secrets if each.identity != identity),
    )
