"""A cluster as its machines' labels tell of it: what is known without connecting to it.

Owns how machines become clusters, and the state of a cluster. What asks for the machines, and
chooses among the clusters, is `inventory`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta, timezone
from typing import Any, Final, Literal

from dask_gce import names
from dask_gce.cost.charges import Charge
from dask_gce.instance import is_spot
from dask_gce.prices import billed_size, hourly_price

__all__ = ["RECORD_FIELDS", "ClusterRecord", "ClusterState", "Machine", "read_records"]

ClusterState = Literal["running", "starting", "building", "no-scheduler", "stopping", "stopped"]

#: What is asked of each instance. Metadata, which may be 512 KiB each, stays where it is.
RECORD_FIELDS: Final = (
    "name",
    "status",
    "zone",
    "machineType",
    "creationTimestamp",
    "lastStartTimestamp",
    "lastStopTimestamp",
    "labels",
    "guestAccelerators(acceleratorType,acceleratorCount)",
    "disks(type,diskSizeGb)",
    "scheduling(provisioningModel,preemptible)",
    "networkInterfaces(network,networkIP,accessConfigs(natIP))",
)

# https://docs.cloud.google.com/compute/docs/instances/instance-lifecycle
_GOING: Final = frozenset({"PENDING_STOP", "STOPPING", "SUSPENDING", "DEPROVISIONING"})
_OFF: Final = frozenset({"STOPPED", "SUSPENDED", "TERMINATED"})

#: The limit that labels tell of.
LIFETIME: Final = "max_lifetime"

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
        ``"scheduler"``, ``"worker"`` or ``"builder"``; empty if its label says none of them.
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
    network_project : str
        The project that its network belongs to, and the network's firewall rules; empty if that is
        not told.
    charge : Charge or None
        What is charged for of it.
    started, stopped : datetime.datetime or None
        When it was started and stopped last, in UTC; None if that is not told.
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
    network_project: str = ""
    charge: Charge | None = None
    started: datetime | None = None
    stopped: datetime | None = None

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
    ends : mapping of str to datetime.datetime
        When its limits end it, as things are, by their settings' names. Labels tell the lifetime
        only; `ends` asks for the others.
    declared : str
        By what it is declared that makes its machines again when they are deleted, for example
        ``"terraform"``; empty for a cluster that nothing makes again.
    """

    name: str
    identity: str
    project: str
    owner: str
    client: str
    expires: datetime | None
    machines: tuple[Machine, ...]
    ends: Mapping[str, datetime] = field(default_factory=dict)
    declared: str = ""

    @property
    def next_end(self) -> tuple[str, datetime] | None:
        """Which of its limits ends it first, and when; None if none does, as far as is known."""
        ends = dict(self.ends)
        if self.expires is not None:
            ends.setdefault(LIFETIME, self.expires)
        return min(ends.items(), key=lambda each: each[1], default=None)

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
    def rule_projects(self) -> tuple[str, ...]:
        """Where its firewall rules may be: in its project, or in that of a shared network."""
        return tuple(sorted({self.project, *(e.network_project for e in self.machines)} - {""}))

    @property
    def created(self) -> datetime:
        """When its first machine was asked for."""
        return min(each.created for each in self.machines)

    @property
    def state(self) -> ClusterState:
        """What its machines amount to, in a word.

        ``"running"``: the scheduler's machine is on. ``"starting"``: it is being made or repaired.
        ``"building"``: a disk image is being made, in the end of a machine that is off.
        ``"no-scheduler"``: machines are on, but no scheduler's; the cluster is half made, or lost
        its scheduler. ``"stopping"``: all are on their way out. ``"stopped"``: all are off but
        still there, and their disks cost money.
        """
        if any(each.role == "builder" and each.status not in _GOING for each in self.machines):
            return "building"
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
            "declared": self.declared or None,
            "state": self.state,
            "created": _iso(self.created),
            "expires": None if self.expires is None else _iso(self.expires),
            "ends": {limit: _iso(end) for limit, end in sorted(self.ends.items())},
            "zones": list(self.zones),
            "machine_types": list(self.machine_types),
            "hourly_price": _rounded(self.hourly_price),
            "machines": [each.to_json() for each in self.machines],
        }


def read_records(project: str, found: Iterable[Mapping[str, Any]]) -> tuple[ClusterRecord, ...]:
    """Read clusters from the labels of their machines.

    Parameters
    ----------
    project : str
        The project ID.
    found : iterable of mapping
        Instances that have the label of some cluster, with at least `RECORD_FIELDS`.

    Returns
    -------
    tuple of ClusterRecord
        The clusters, by name and owner, the oldest first among those of one name.
    """
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
        declared=_first(labels, names.DECLARED_LABEL),
    )


def _first(labels: Iterable[Mapping[str, str]], key: str) -> str:
    return next((each[key] for each in labels if each.get(key)), "")


def _role(data: Mapping[str, Any]) -> str:
    role = str(data["labels"].get(names.ROLE_LABEL, ""))
    return role if role in ("scheduler", "worker", "builder") else ""


def _expiry(text: str) -> datetime | None:
    if not (text.isascii() and text.isdecimal()) or int(text) > _LAST_SECOND:
        return None
    return datetime.fromtimestamp(int(text), timezone.utc)


def _machine(data: Mapping[str, Any]) -> Machine:
    interface = (data.get("networkInterfaces") or [{}])[0]
    access = (interface.get("accessConfigs") or [{}])[0]
    created = _moment(data["creationTimestamp"])
    zone = str(data["zone"]).rpartition("/")[2]
    machine_type = str(data.get("machineType", "")).rpartition("/")[2]
    return Machine(
        name=str(data["name"]),
        zone=zone,
        role=_role(data),
        status=str(data.get("status", "")),
        machine_type=machine_type,
        spot=is_spot(data),
        created=created,
        internal_ip=interface.get("networkIP") or None,
        external_ip=access.get("natIP") or None,
        network_project=_project(str(interface.get("network", ""))),
        charge=_charge(data, zone, machine_type, address="natIP" in access),
        started=_moment(data["lastStartTimestamp"]) if data.get("lastStartTimestamp") else None,
        stopped=_moment(data["lastStopTimestamp"]) if data.get("lastStopTimestamp") else None,
    )


def _moment(text: Any) -> datetime:
    # Python 3.10 does not read the Z of ISO 8601.
    moment = datetime.fromisoformat(str(text).replace("Z", "+00:00"))
    return moment.astimezone(timezone.utc)


def _charge(data: Mapping[str, Any], zone: str, machine_type: str, *, address: bool) -> Charge:
    size = billed_size(machine_type)
    # Those that a machine type comes with are told too.
    shown = data.get("guestAccelerators") or () if size is None or not size.gpus else ()
    gpus = [(str(e["acceleratorType"]).rpartition("/")[2], e["acceleratorCount"]) for e in shown]
    disks = data.get("disks") or ()
    return Charge(
        machine_type,
        zone,
        spot=is_spot(data),
        gpu_type=gpus[0][0] if gpus else "",
        gpus=int(gpus[0][1]) if gpus else 0,
        local_ssds=sum(each.get("type") == "SCRATCH" for each in disks),
        # Of what type a disk is, its machine does not tell.
        disk_size=sum(int(e.get("diskSizeGb", 0)) for e in disks if e.get("type") != "SCRATCH"),
        address=address,
    )


def _project(url: str) -> str:
    """Return the project in a resource's URL."""
    return url.partition("/projects/")[2].partition("/")[0]


def _iso(moment: datetime) -> str:
    return moment.astimezone(timezone.utc).isoformat(timespec="seconds").replace("+00:00", "Z")


def _rounded(price: float | None) -> float | None:
    return None if price is None else round(price, 6)
