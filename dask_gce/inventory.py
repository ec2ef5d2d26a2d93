"""What runs: the clusters of a project, read back from their machines' labels.

Owns the one call that finds them all, how machines become clusters, the state of a cluster, how one
is chosen by its name, and its deletion by whoever asks. The labels are the only database. Which of
them nobody needs any more is judged in `sweeping`; how to connect to one is up to `cluster`.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from typing import Any, Final, Literal

from dask_gce import names
from dask_gce.compute import Compute
from dask_gce.errors import ClusterNotFound, GCEError, SettingsError
from dask_gce.prices import hourly_price
from dask_gce.removal import Removal

__all__ = [
    "INVENTORY_FIELDS",
    "ClusterRecord",
    "ClusterState",
    "Inventory",
    "Machine",
    "delete_cluster",
    "find_cluster",
    "list_clusters",
]

ClusterState = Literal["running", "starting", "no-scheduler", "stopping", "stopped"]

#: What is asked of each instance. Metadata, which may be 512 KiB each, stays where it is.
INVENTORY_FIELDS: Final = (
    "name",
    "status",
    "zone",
    "machineType",
    "creationTimestamp",
    "labels",
    "scheduling(provisioningModel,preemptible)",
    "networkInterfaces(networkIP,accessConfigs(natIP))",
)

# https://docs.cloud.google.com/compute/docs/instances/instance-lifecycle
_GOING: Final = frozenset({"PENDING_STOP", "STOPPING", "SUSPENDING", "DEPROVISIONING"})
_OFF: Final = frozenset({"STOPPED", "SUSPENDED", "TERMINATED"})

#: How many digits of an identity are shown: enough to tell it from the others of its name.
_SHOWN: Final = 8

#: Seconds since 1970 up to the year 9999: what `datetime` can hold.
_LAST_SECOND: Final = 253_402_300_799


@dataclass(frozen=True)
class Machine:
    """One instance of a cluster.

    Parameters
    ----------
    name : str
        Its name.
    zone : str
        Its zone.
    role : str
        ``"scheduler"`` or ``"worker"``; empty if its label says neither.
    status : str
        What Compute Engine says of it, for example ``"RUNNING"``.
    machine_type : str
        Its machine type.
    spot : bool
        Whether Compute Engine may take it away at any time.
    created : datetime.datetime
        When it was asked for, in UTC.
    internal_ip : str or None
        Its address in its network, once it has one.
    external_ip : str or None
        Its external address, if it has one.
    """

    name: str
    zone: str
    role: str
    status: str
    machine_type: str
    spot: bool
    created: datetime
    internal_ip: str | None = None
    external_ip: str | None = None

    @property
    def on(self) -> bool:
        """Whether it runs or is about to."""
        return self.status not in _GOING | _OFF

    @property
    def hourly_price(self) -> float | None:
        """What an hour of it costs in US dollars, as `prices` knows it; None if it does not."""
        return hourly_price(self.machine_type, self.zone, spot=self.spot)

    def to_json(self) -> dict[str, Any]:
        """Return it in the types of JSON.

        Returns
        -------
        dict
            Keys like the fields, the time in ISO 8601, the price in US dollars.
        """
        return {
            "name": self.name,
            "zone": self.zone,
            "role": self.role,
            "status": self.status,
            "machine_type": self.machine_type,
            "spot": self.spot,
            "created": _iso(self.created),
            "internal_ip": self.internal_ip,
            "external_ip": self.external_ip,
            "hourly_price": _rounded(self.hourly_price),
        }


@dataclass(frozen=True)
class ClusterRecord:
    """One cluster, as its machines' labels tell.

    Parameters
    ----------
    name : str
        The cluster's name.
    identity : str
        What tells it from other clusters of that name; empty for machines that somebody has given
        a cluster's label by hand.
    project : str
        The project ID.
    owner : str
        Who made it, as a label value; empty if unknown.
    client : str
        Which process made it, as `client` writes it; empty if unknown.
    expires : datetime.datetime or None
        When it is past its use, in UTC; None if it does not say.
    machines : tuple of Machine
        Its machines, the scheduler first; never empty.
    """

    name: str
    identity: str
    project: str
    owner: str
    client: str
    expires: datetime | None
    machines: tuple[Machine, ...]

    @property
    def scheduler(self) -> Machine | None:
        """The machine with the scheduler, one that is on if there is one."""
        found = [each for each in self.machines if each.role == "scheduler"]
        return next((each for each in found if each.on), found[0] if found else None)

    @property
    def workers(self) -> tuple[Machine, ...]:
        """The machines that are there for workers only."""
        return tuple(each for each in self.machines if each.role == "worker")

    @property
    def zones(self) -> tuple[str, ...]:
        """Where its machines are."""
        return tuple(sorted({each.zone for each in self.machines}))

    @property
    def machine_types(self) -> tuple[str, ...]:
        """Which machine types it has."""
        return tuple(sorted({each.machine_type for each in self.machines}))

    @property
    def created(self) -> datetime:
        """When its first machine was asked for."""
        return min(each.created for each in self.machines)

    @property
    def state(self) -> ClusterState:
        """What its machines amount to, in a word.

        ``"running"``: the scheduler's machine is on. ``"starting"``: it is being made or repaired.
        ``"no-scheduler"``: machines are on, but no scheduler's; the cluster is half made, or lost
        its scheduler. ``"stopping"``: all are on their way out. ``"stopped"``: all are off but
        still there, and their disks cost money.
        """
        if any(each.on for each in self.machines):
            scheduler = self.scheduler
            if scheduler is None or not scheduler.on:
                return "no-scheduler"
            return "running" if scheduler.status == "RUNNING" else "starting"
        return "stopping" if any(each.status in _GOING for each in self.machines) else "stopped"

    @property
    def hourly_price(self) -> float | None:
        """What an hour of the machines that are on costs in US dollars; None if unknown of one."""
        prices = [each.hourly_price for each in self.machines if each.on]
        known = [price for price in prices if price is not None]
        return sum(known) if len(known) == len(prices) else None

    def age(self, now: datetime | None = None) -> timedelta:
        """Return how long ago its first machine was asked for.

        Parameters
        ----------
        now : datetime.datetime or None
            The time, with its zone; None for the clock's.

        Returns
        -------
        datetime.timedelta
            The age; never less than zero, whatever this computer's clock shows.
        """
        return max(timedelta(0), (now or datetime.now(timezone.utc)) - self.created)

    def to_json(self) -> dict[str, Any]:
        """Return it in the types of JSON.

        Returns
        -------
        dict
            Keys like the fields and properties, times in ISO 8601, prices in US dollars an hour.
        """
        return {
            "name": self.name,
            "id": self.identity,
            "project": self.project,
            "owner": self.owner,
            "client": self.client,
            "state": self.state,
            "created": _iso(self.created),
            "expires": None if self.expires is None else _iso(self.expires),
            "zones": list(self.zones),
            "machine_types": list(self.machine_types),
            "hourly_price": _rounded(self.hourly_price),
            "machines": [each.to_json() for each in self.machines],
        }


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
        wanted, fields=",".join(INVENTORY_FIELDS)
    )
    return Inventory(compute.project, _group(compute.project, found), unreachable)


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
    """Delete all machines of a cluster and make sure that they go.

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
        commands that do it by hand.
    """
    if not record.identity:
        raise GCEError(_not_ours(record))
    label = names.label_filter({names.CLUSTER_LABEL: record.name, names.ID_LABEL: record.identity})
    # The empty name stands for all other zones: the cluster may have grown into them since.
    zones = (*record.zones, "")
    await Removal(compute, record.name, label, lambda: zones).delete_all(())


def _group(project: str, found: Iterable[Mapping[str, Any]]) -> tuple[ClusterRecord, ...]:
    clusters: dict[tuple[str, str], list[Mapping[str, Any]]] = {}
    for data in found:
        labels = data["labels"]
        key = (labels[names.CLUSTER_LABEL], labels.get(names.ID_LABEL, ""))
        clusters.setdefault(key, []).append(data)
    records = [
        _record(project, name, identity, members) for (name, identity), members in clusters.items()
    ]
    return tuple(sorted(records, key=lambda e: (e.name, e.owner, e.created, e.identity)))


def _record(
    project: str, name: str, identity: str, found: Sequence[Mapping[str, Any]]
) -> ClusterRecord:
    # What labels tell of the cluster is the same on all of them, unless somebody changed one.
    ordered = sorted(found, key=lambda data: (_role(data) != "scheduler", data["name"]))
    labels = [data["labels"] for data in ordered]
    # The latest counts, so that a machine that was given more time speaks for all.
    ends = [end for each in labels if (end := _expiry(each.get(names.EXPIRES_LABEL, "")))]
    return ClusterRecord(
        name=name,
        identity=identity,
        project=project,
        owner=_first(labels, names.OWNER_LABEL),
        client=_first(labels, names.CLIENT_LABEL),
        expires=max(ends, default=None),
        machines=tuple(map(_machine, ordered)),
    )


def _first(labels: Iterable[Mapping[str, str]], key: str) -> str:
    return next((each[key] for each in labels if each.get(key)), "")


def _role(data: Mapping[str, Any]) -> str:
    role = str(data["labels"].get(names.ROLE_LABEL, ""))
    return role if role in ("scheduler", "worker") else ""


def _expiry(text: str) -> datetime | None:
    if not (text.isascii() and text.isdecimal()) or int(text) > _LAST_SECOND:
        return None
    return datetime.fromtimestamp(int(text), timezone.utc)


def _machine(data: Mapping[str, Any]) -> Machine:
    scheduling = data.get("scheduling") or {}
    interface = (data.get("networkInterfaces") or [{}])[0]
    access = (interface.get("accessConfigs") or [{}])[0]
    # Python 3.10 does not read the Z of ISO 8601.
    created = datetime.fromisoformat(str(data["creationTimestamp"]).replace("Z", "+00:00"))
    return Machine(
        name=str(data["name"]),
        zone=str(data["zone"]).rpartition("/")[2],
        role=_role(data),
        status=str(data.get("status", "")),
        machine_type=str(data.get("machineType", "")).rpartition("/")[2],
        spot=scheduling.get("provisioningModel") == "SPOT" or bool(scheduling.get("preemptible")),
        created=created.astimezone(timezone.utc),
        internal_ip=interface.get("networkIP") or None,
        external_ip=access.get("natIP") or None,
    )


def _iso(moment: datetime) -> str:
    return moment.astimezone(timezone.utc).isoformat(timespec="seconds").replace("+00:00", "Z")


def _rounded(price: float | None) -> float | None:
    return None if price is None else round(price, 6)


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
