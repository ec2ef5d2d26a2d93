"""How many more machines the quotas of a project leave room for.

Owns: what a machine counts for each quota, and the one look at the quotas. It is tolerant of their
absence: versions of the Compute API from 2026-10 on show none, not everybody may see them, and what
is used is told late. So what is found here saves requests that would be refused as a whole, and
decides nothing: whoever is refused all the same asks for less, see `insertion`.

Source: `Allocation quotas <https://docs.cloud.google.com/compute/resource-usage>`_.
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final

from dask_gce.compute import Compute
from dask_gce.errors import GCEError
from dask_gce.families import family_of
from dask_gce.instance import InstanceSpec, is_spot
from dask_gce.names import region_of
from dask_gce.placement import MachineShape
from dask_gce.shortages import EVERYWHERE, GLOBAL, Shortage

__all__ = [
    "LARGE",
    "Demand",
    "QuotaView",
    "Quotas",
    "Room",
    "machine_demand",
    "parse_quotas",
    "read_quotas",
    "room_for",
]

logger = logging.getLogger(__name__)

#: From how many machines in one request on quotas are looked at before. For fewer, a refusal and
#: another request cost no more than the two looks would; so many take a minute to come anyway.
LARGE: Final = 100

#: Seconds that a look may take.
READ_WITHIN: Final = 5.0

#: Seconds for which a look is good for further requests, which belong to the same scale-up: the
#: types and zones of one cluster, or more than one request can hold.
GOOD_FOR: Final = 10.0

#: Series whose vCPUs are counted together. The others have a metric of their own, or none that
#: Compute Engine shows: https://docs.cloud.google.com/compute/resource-usage#cpu_quota
_SHARED_CPUS: Final = frozenset({"e2", "f1", "g1", "n1"})
#: Series that boot from pd-standard when nobody chooses a disk, as the API's reference says.
_STANDARD_DISK: Final = frozenset({"e2", "f1", "g1", "n1", "n2", "n2d", "t2a", "t2d", "m1"})
_DISK_METRICS: Final = {
    "pd-standard": "DISKS_TOTAL_GB",
    "pd-balanced": "SSD_TOTAL_GB",
    "pd-ssd": "SSD_TOTAL_GB",
}
_SPOT: Final = "PREEMPTIBLE_"

#: Limit and usage by metric.
Amounts = Mapping[str, tuple[float, float]]


@dataclass(frozen=True)
class Demand:
    """What a machine counts for quotas.

    Parameters
    ----------
    amounts : mapping
        Amounts by metric.
    instead : mapping
        The metric that is counted in the place of one for Spot machines where a project has not
        been given that.
    """

    amounts: Mapping[str, int]
    instead: Mapping[str, str] = field(default_factory=dict)

    def in_terms_of(self, quotas: Quotas) -> dict[str, int]:
        """Return it by the metrics that count in a project.

        Parameters
        ----------
        quotas : Quotas
            What the project may use.

        Returns
        -------
        dict of str to int
            Amounts by metric.
        """
        counted: dict[str, int] = {}
        for metric, amount in self.amounts.items():
            limit, _ = quotas.amounts.get(metric, (math.inf, 0.0))
            name = metric if limit > 0 else self.instead.get(metric, metric)
            counted[name] = counted.get(name, 0) + amount
        return counted


def machine_demand(
    shape: MachineShape,
    *,
    spot: bool = False,
    external_ip: bool = False,
    gpus: Mapping[str, int] | None = None,
    boot_disk_type: str | None = None,
    boot_disk_size: int = 0,
) -> Demand:
    """Return what a machine counts for each quota.

    Parameters
    ----------
    shape : MachineShape
        Its machine type.
    spot : bool
        Whether it is a Spot machine. These have quotas of their own in projects that have been
        given some, and count like others elsewhere.
    external_ip : bool
        Whether it has an external address.
    gpus : mapping or None
        How many GPUs are added to it, by type.
    boot_disk_type : str or None
        The type of its boot disk; None if the series decides.
    boot_disk_size : int
        The size of its boot disk in GB.

    Returns
    -------
    Demand
        Amounts by metric.

    Examples
    --------
    >>> found = machine_demand(MachineShape("n2-standard-8", 8, 2**35), spot=True, external_ip=True)
    >>> found.amounts
    {'INSTANCES': 1, 'IN_USE_ADDRESSES': 1, 'PREEMPTIBLE_CPUS': 8, 'CPUS_ALL_REGIONS': 8}
    >>> found.instead
    {'PREEMPTIBLE_CPUS': 'N2_CPUS'}
    """
    family = family_of(shape.name)
    amounts, instead = {"INSTANCES": 1}, {}
    if external_ip:
        amounts["IN_USE_ADDRESSES"] = 1

    def count(metric: str, amount: int, of_spot: str) -> None:
        if spot:
            instead[of_spot] = metric
        amounts[of_spot if spot else metric] = amount

    shared = family in _SHARED_CPUS
    count("CPUS" if shared else f"{family.upper()}_CPUS", shape.cpus, f"{_SPOT}CPUS")
    amounts["CPUS_ALL_REGIONS"] = shape.cpus
    disk = boot_disk_type or ("pd-standard" if family in _STANDARD_DISK else "")
    if boot_disk_size and disk in _DISK_METRICS:
        amounts[_DISK_METRICS[disk]] = boot_disk_size
    for name, number in {shape.gpu_type: shape.gpus, **(gpus or {})}.items():
        if number and name.startswith("nvidia-"):
            model = name.removeprefix("nvidia-").removeprefix("tesla-")
            model = "h100" if model == "h100-80gb" else model
            metric = f"NVIDIA_{model.upper().replace('-', '_')}_GPUS"
            count(metric, number, f"{_SPOT}{metric}")
            amounts["GPUS_ALL_REGIONS"] = amounts.get("GPUS_ALL_REGIONS", 0) + number
    return Demand(amounts, instead)


def _demand_of(spec: InstanceSpec, shape: MachineShape) -> Demand:
    scheduling = spec.overrides.get("scheduling") or {}
    typed = isinstance(scheduling, Mapping) and is_spot(spec.overrides)
    hardware = spec.hardware
    added = str(hardware.accelerator_type or "").rpartition("/")[2]
    return machine_demand(
        shape,
        spot=spec.spot or typed,
        external_ip=spec.external_ip,
        gpus={added: hardware.accelerator_count} if added else None,
        boot_disk_type=spec.boot_disk_type,
        boot_disk_size=spec.boot_disk_size,
    )


def parse_quotas(resource: Mapping[str, Any]) -> dict[str, tuple[float, float]]:
    """Read the quotas of a region or of a project.

    Parameters
    ----------
    resource : mapping
        A ``compute#region`` or ``compute#project`` resource.

    Returns
    -------
    dict
        Limit and usage by metric; empty where none are shown.

    Examples
    --------
    >>> parse_quotas({"quotas": [{"metric": "CPUS", "limit": 24.0, "usage": 4.0}, {"metric": "X"}]})
    {'CPUS': (24.0, 4.0)}
    """
    found = {}
    for each in resource.get("quotas") or ():
        try:
            # A usage of zero may be left out; what has no limit is none.
            found[str(each["metric"])] = float(each["limit"]), float(each.get("usage") or 0.0)
        except (KeyError, TypeError, ValueError):
            continue
    return found


@dataclass(frozen=True)
class Quotas:
    """What a project may use in a region and uses there, as of one moment.

    Parameters
    ----------
    region : str
        The region.
    amounts : mapping
        Limit and usage by metric, those of all regions together among them.
    """

    region: str
    amounts: Amounts


async def read_quotas(
    compute: Compute, region: str, *, within: float | None = None
) -> Quotas | None:
    """Look at the quotas of a region and of all regions together.

    Parameters
    ----------
    compute : Compute
        The Compute API.
    region : str
        The region.
    within : float or None
        Seconds that it may take; None for the usual.

    Returns
    -------
    Quotas or None
        What there is; None if nothing is to be seen, whatever the reason.
    """
    within = READ_WITHIN if within is None else within
    looks = [
        asyncio.ensure_future(compute.get_region(region)),
        asyncio.ensure_future(compute.get_project()),
    ]
    try:
        await asyncio.wait(looks, timeout=within)
    finally:
        for look in looks:
            look.cancel()
    await asyncio.wait(looks)
    amounts: dict[str, tuple[float, float]] = {}
    for look, everywhere in zip(looks, (False, True), strict=True):
        if look.cancelled():
            logger.info("The quotas of region %s were not told within %g s", region, within)
        elif isinstance(error := look.exception(), GCEError):
            logger.info("The quotas of region %s cannot be seen: %s", region, error)
        else:
            found = parse_quotas(look.result())
            amounts.update({k: v for k, v in found.items() if (k in EVERYWHERE) is everywhere})
    return Quotas(region, amounts) if amounts else None


@dataclass(frozen=True)
class Room:
    """How many machines there is room for.

    Parameters
    ----------
    machines : int
        The number, at most as many as are wanted.
    shortage : Shortage or None
        What there is not enough of; None if there is room for all.
    """

    machines: int
    shortage: Shortage | None = None


def room_for(
    quotas: Quotas,
    demand: Demand,
    wanted: int,
    *,
    taken: Mapping[str, int] | None = None,
) -> Room:
    """Tell how many machines quotas leave room for.

    Parameters
    ----------
    quotas : Quotas
        What there is.
    demand : Demand
        What a machine counts; metrics that are not shown limit nothing.
    wanted : int
        How many machines are wanted.
    taken : mapping or None
        What was asked for since the quotas were looked at, by metric.

    Returns
    -------
    Room
        How many of them there is room for, and what limits them.

    Examples
    --------
    >>> quotas = Quotas("us-central1", {"CPUS": (100.0, 8.0), "INSTANCES": (1000.0, 1.0)})
    >>> demand = Demand({"CPUS": 4, "INSTANCES": 1})
    >>> room = room_for(quotas, demand, 50)
    >>> room.machines, str(room.shortage)
    (23, 'quota CPUS in region us-central1: limit 100, used 8, wanted 200')
    >>> room_for(quotas, demand, 23)
    Room(machines=23, shortage=None)
    """
    least = Room(wanted)
    for metric, amount in demand.in_terms_of(quotas).items():
        if metric not in quotas.amounts or amount <= 0:
            continue
        limit, usage = quotas.amounts[metric]
        usage += (taken or {}).get(metric, 0)
        machines = max(0, math.floor((limit - usage) / amount + 1e-9))
        if machines < least.machines:
            where = GLOBAL if metric in EVERYWHERE else quotas.region
            least = Room(machines, Shortage(metric, where, limit, usage, float(amount * wanted)))
    return least


@dataclass
class _Look:
    """What a look has found, and what was asked for since."""

    quotas: Quotas | None
    at: float
    taken: Counter[str] = field(default_factory=Counter)


class QuotaView:
    """What a cluster knows of the quotas of its regions.

    Parameters
    ----------
    compute : Compute
        The Compute API.
    shapes : mapping
        The cluster's machine types, by name; of others nothing is known but that they are machines.
    clock : callable
        Returns seconds that never go back.
    """

    def __init__(
        self,
        compute: Compute,
        shapes: Mapping[str, MachineShape],
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._compute = compute
        self._shapes = dict(shapes)
        self._clock = clock
        self._looks: dict[str, _Look] = {}
        self._locks: dict[str, asyncio.Lock] = {}

    def demand(self, spec: InstanceSpec) -> Demand:
        """Return what a machine counts for each quota.

        Parameters
        ----------
        spec : InstanceSpec
            The machine.

        Returns
        -------
        Demand
            Amounts by metric.
        """
        shape = self._shapes.get(spec.machine_type)
        return Demand({"INSTANCES": 1}) if shape is None else _demand_of(spec, shape)

    def complete(self, shortage: Shortage, spec: InstanceSpec, count: int) -> Shortage:
        """Add what is known to what a refusal has told.

        Parameters
        ----------
        shortage : Shortage
            What the refusal names.
        spec : InstanceSpec
            One of the machines that were asked for.
        count : int
            How many there were.

        Returns
        -------
        Shortage
            With what is used and what was wanted, as far as that is known.
        """
        demand, look = self.demand(spec), self._looks.get(region_of(spec.zone))
        limit = usage = None
        amounts: Mapping[str, int] = demand.amounts
        if look is not None and look.quotas is not None:
            limit, usage = look.quotas.amounts.get(shortage.metric, (None, None))
            amounts = demand.in_terms_of(look.quotas)
        each = amounts.get(shortage.metric, demand.amounts.get(shortage.metric))
        return replace(
            shortage,
            limit=limit if shortage.limit is None else shortage.limit,
            usage=usage,
            wanted=None if each is None else float(each * count),
        )

    async def take(self, specs: Sequence[InstanceSpec], *, refused: bool = False) -> Room | None:
        """Tell for how many machines there is room, and count them as taken.

        Parameters
        ----------
        specs : sequence of InstanceSpec
            The machines, which differ in their names only.
        refused : bool
            Whether a request for all of them has just been refused, so that what was found before
            is not right any more.

        Returns
        -------
        Room or None
            How much room there is; None if nothing is known.
        """
        region = region_of(specs[0].zone)
        # One look for all that ask at the same time.
        async with self._locks.setdefault(region, asyncio.Lock()):
            look = self._looks.get(region)
            if look is None or refused or self._clock() - look.at > GOOD_FOR:
                quotas = await read_quotas(self._compute, region)
                look = self._looks[region] = _Look(quotas, self._clock())
            if look.quotas is None:
                return None
            demand = self.demand(specs[0])
            room = room_for(look.quotas, demand, len(specs), taken=look.taken)
            for metric, amount in demand.in_terms_of(look.quotas).items():
                look.taken[metric] += amount * room.machines
            return room

    def give_back(self, spec: InstanceSpec, machines: int) -> None:
        """Count machines as taken no more, since they were not made.

        Parameters
        ----------
        spec : InstanceSpec
            One of the machines.
        machines : int
            How many they are.
        """
        look = self._looks.get(region_of(spec.zone))
        if look is not None and look.quotas is not None:
            for metric, amount in self.demand(spec).in_terms_of(look.quotas).items():
                look.taken[metric] = max(0, look.taken[metric] - amount * machines)
