"""What runs: the clusters of a project, found by one call, chosen by name, deleted by whoever asks.

The machines' labels are the only database; `cluster_records` reads them. Which clusters nobody
needs any more is judged in `sweeping`; how to connect to one is up to `cluster`.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

from dask_gce import names
from dask_gce.cluster_records import RECORD_FIELDS, ClusterRecord, read_records
from dask_gce.compute import Compute
from dask_gce.errors import ClusterNotFound, GCEError, SettingsError
from dask_gce.reach.own_rules import remove_rules
from dask_gce.removal import Removal, remove_in_order

__all__ = ["Inventory", "delete_cluster", "find_cluster", "list_clusters"]

#: How many digits of an identity are shown: enough to tell it from the others of its name.
_SHOWN: Final = 8


@dataclass(frozen=True)
class Inventory:
    """The clusters of a project.

    Parameters
    ----------
    project : str
        The project ID.
    clusters : tuple of ClusterRecord
        The clusters, by name and owner, the oldest first among those of one name.
    unreachable : frozenset of str
        Zones that did not answer. What they hold is unknown, not gone.
    """

    project: str
    clusters: tuple[ClusterRecord, ...]
    unreachable: frozenset[str] = frozenset()

    def to_json(self) -> dict[str, Any]:
        """Return it in the types of JSON.

        Returns
        -------
        dict
            ``project``, ``clusters`` and ``unreachable_zones``.
        """
        return {
            "project": self.project,
            "clusters": [each.to_json() for each in self.clusters],
            "unreachable_zones": sorted(self.unreachable),
        }


async def list_clusters(compute: Compute, name: str | None = None) -> Inventory:
    """Find the clusters of a project, or those of one name.

    One call, whatever the number of zones and clusters; another for each further 500 instances.

    Parameters
    ----------
    compute : Compute
        The Compute API of the project.
    name : str or None
        The name to look for; None for all clusters.

    Returns
    -------
    Inventory
        What was found.

    Raises
    ------
    GCEError
        If Compute Engine does not answer or refuses.
    """
    if name is None:
        wanted = f"labels.{names.CLUSTER_LABEL}:*"
    else:
        wanted = names.label_filter({names.CLUSTER_LABEL: name})
    found, unreachable = await compute.aggregated_list_instances(
        wanted, fields=",".join(RECORD_FIELDS)
    )
    return Inventory(compute.project, read_records(compute.project, found), unreachable)


def find_cluster(
    inventory: Inventory, name: str, *, owner: str | None = None, identity: str | None = None
) -> ClusterRecord:
    """Choose one cluster by its name.

    One that is on its way out does not stand in the way of another of its name.

    Parameters
    ----------
    inventory : Inventory
        What there is.
    name : str
        The cluster's name.
    owner : str or None
        Whose it is, in any spelling; None if that does not matter.
    identity : str or None
        Its identity or the beginning of it; None if that does not matter.

    Returns
    -------
    ClusterRecord
        The cluster.

    Raises
    ------
    ClusterNotFound
        If there is none; the message names zones that did not answer and clusters of similar names.
    SettingsError
        If there are several; the message tells them apart.
    """
    same_name = [each for each in inventory.clusters if each.name == name]
    found = [
        each
        for each in same_name
        if (owner is None or each.owner == names.label_value(owner))
        and (identity is None or each.identity.startswith(identity.lower()))
    ]
    if not found:
        raise ClusterNotFound(_not_found(inventory, name, same_name), cluster=name)
    # What somebody has labelled by hand is meant only where there is nothing else.
    found = [each for each in found if each.identity] or found
    staying = [each for each in found if each.state != "stopping"]
    if len(staying) > 1:
        raise SettingsError(
            f"name = {name!r}: {len(staying)} clusters of project {inventory.project} have this "
            f"name:\n{_describe(staying)}\nSay which by the beginning of its id: --id "
            f"{staying[0].identity[:_SHOWN]}",
            key="name",
        )
    return staying[0] if staying else max(found, key=lambda each: each.created)


async def delete_cluster(compute: Compute, record: ClusterRecord) -> None:
    """Delete a cluster's firewall rules, then all its machines, and make sure that they go.

    Machines that were added since are deleted too; another cluster of its name is left alone, and
    so are machines that were given a cluster's label by hand.

    Parameters
    ----------
    compute : Compute
        The Compute API of the cluster's project.
    record : ClusterRecord
        The cluster.

    Raises
    ------
    GCEError
        If it is not certain that all are deleted, or if they are not ours to delete; with the
        commands that do it by hand. Machines go whether or not rules do.
    """
    if not record.identity:
        raise GCEError(_not_ours(record))
    label = names.label_filter({names.CLUSTER_LABEL: record.name, names.ID_LABEL: record.identity})
    # The empty name stands for all other zones: the cluster may have grown into them since.
    zones = (*record.zones, "")
    await remove_in_order(
        partial(_remove_rules, compute, record),
        partial(Removal(compute, record.name, label, lambda: zones).delete_all, ()),
    )


async def _remove_rules(compute: Compute, record: ClusterRecord) -> None:
    errors = await remove_rules(compute, record.name, record.identity, record.rule_projects)
    if len(errors) == 1:
        raise errors[0]
    if errors:
        raise GCEError("\n".join(map(str, errors))) from errors[0]


def _describe(records: Iterable[ClusterRecord]) -> str:
    return "\n".join(
        f"  id {each.identity[:_SHOWN] or '(none)'}, owner {each.owner or '(unknown)'}, "
        f"{each.age().total_seconds() / 3600:.1f} hours old, {each.state}"
        for each in records
    )


def _not_ours(record: ClusterRecord) -> str:
    lines = [
        f"What is labelled as cluster {record.name} has no id, so it was labelled by hand, and is "
        "not deleted. If nobody needs it:"
    ]
    for zone in record.zones:
        found = " ".join(each.name for each in record.machines if each.zone == zone)
        lines.append(
            f"gcloud compute instances delete {found} --zone {zone} --project {record.project}"
        )
    return "\n".join(lines)


def _not_found(inventory: Inventory, name: str, same_name: Sequence[ClusterRecord]) -> str:
    sentences = [f"No cluster {name!r} runs in project {inventory.project}."]
    if same_name:
        sentences = [f"No such cluster {name!r} runs in project {inventory.project}, but:"]
        sentences.append(f"\n{_describe(same_name)}\n")
    else:
        near = difflib.get_close_matches(name, {each.name for each in inventory.clusters})
        if near:
            sentences.append(f"Did you mean {' or '.join(map(repr, near))}?")
    if inventory.unreachable:
        silent = sorted(inventory.unreachable)
        sentences.append(
            f"What zone {', '.join(silent)} holds is not known: no answer came from there."
        )
    sentences.append("To see which there are: dask gce list")
    return " ".join(sentences)
