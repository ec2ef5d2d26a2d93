"""Allocation quotas: how much of everything a project may use.

Owns: what an instance counts for which metric, the limits, what is used. Limits that nobody has set
are shown by ``regions.get`` as far beyond what anybody asks for, and not enforced; but for firewall
rules, of which a project has `DEFAULT_FIREWALLS`. Sources:
https://cloud.google.com/compute/resource-usage and the metrics of the discovery document's
``Quota``.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Mapping
from dataclasses import dataclass

from dask_gce.emulator.catalog.machine_types import MachineType
from dask_gce.emulator.catalog.places import REGIONS
from dask_gce.emulator.errors import APIError

#: Where the metrics of all regions together belong.
GLOBAL = "global"

#: Families whose vCPUs have a metric of their own. Those of the newest are the Cloud Quotas API's
#: business and counted in all regions together only.
_OWN_CPUS = frozenset({"a2", "c2", "c2d", "c3", "n2", "n2d", "t2a", "t2d"})
_SHARED_CPUS = frozenset({"e2", "f1", "g1", "n1"})

_REGIONAL = frozenset(
    {
        *("CPUS", "PREEMPTIBLE_CPUS", "INSTANCES", "IN_USE_ADDRESSES"),
        *("INTERNAL_ADDRESSES", "STATIC_ADDRESSES"),
        *(f"{family.upper()}_CPUS" for family in _OWN_CPUS),
    }
)
_GPUS = re.compile(r"(?:PREEMPTIBLE_)?NVIDIA_[A-Z0-9_]+_GPUS")
_EVERYWHERE = frozenset({"CPUS_ALL_REGIONS", "FIREWALLS", "GPUS_ALL_REGIONS"})

#: How many firewall rules a project may have where nobody has set another limit.
DEFAULT_FIREWALLS = 200.0

Amounts = Mapping[str, float]


@dataclass(frozen=True)
class Demand:
    """What one instance counts.

    Parameters
    ----------
    existing : mapping
        Amounts by metric, for as long as it exists.
    running : mapping
        Amounts by metric, for as long as it is on.
    """

    existing: Amounts
    running: Amounts

    def charge(self, quota: Quota, project: str, region: str, count: int = 1) -> None:
        """Count instances that are about to exist, or refuse all of them.

        Parameters
        ----------
        quota : Quota
            What the project may use.
        project : str
            The project.
        region : str
            The region.
        count : int
            How many instances.

        Raises
        ------
        QuotaExceeded
            It would be more than the project may use.
        """
        quota.charge(project, region, self.existing, self.running, count=count)


def demand_of(
    machine_type: MachineType, *, spot: bool, addresses: int, gpus: Mapping[str, int]
) -> Demand:
    """Return what an instance counts.

    Parameters
    ----------
    machine_type : MachineType
        Its machine type, with the GPUs that come with it.
    spot : bool
        Whether it can be preempted.
    addresses : int
        How many external addresses it has.
    gpus : mapping
        How many GPUs are added to it, by type.

    Returns
    -------
    Demand
        The amounts.

    Examples
    --------
    >>> from dask_gce.emulator.catalog.machine_types import MACHINE_TYPES
    >>> type_ = MACHINE_TYPES["n2-standard-8"]
    >>> demand_of(type_, spot=False, addresses=0, gpus={}).running
    {'CPUS_ALL_REGIONS': 8, 'N2_CPUS': 8}
    """
    cpus, family = machine_type.guest_cpus, machine_type.family
    running: dict[str, float] = {"CPUS_ALL_REGIONS": cpus}
    if spot:
        running["PREEMPTIBLE_CPUS"] = cpus
    elif family in _OWN_CPUS:
        running[f"{family.upper()}_CPUS"] = cpus
    elif family in _SHARED_CPUS:
        running["CPUS"] = cpus
    built_in = {machine_type.accelerator: machine_type.accelerators}
    for name, count in {**built_in, **gpus}.items():
        if count and name.startswith("nvidia-"):
            model = name.removeprefix("nvidia-").removeprefix("tesla-")
            model = "h100" if model == "h100-80gb" else model
            metric = f"NVIDIA_{model.upper().replace('-', '_')}_GPUS"
            running[f"PREEMPTIBLE_{metric}" if spot else metric] = count
            running["GPUS_ALL_REGIONS"] = running.get("GPUS_ALL_REGIONS", 0) + count
    if addresses:
        running["IN_USE_ADDRESSES"] = addresses
    return Demand({"INSTANCES": 1}, running)


class QuotaExceeded(APIError):
    """A project may not use as much.

    Parameters
    ----------
    metric : str
        The metric.
    region : str
        The region, or ``"global"``.
    limit : float
        How much it may use.
    """

    def __init__(self, metric: str, region: str, limit: float) -> None:
        place = "globally" if region == GLOBAL else f"in region {region}"
        super().__init__(
            403, "quotaExceeded", f"Quota '{metric}' exceeded.  Limit: {limit:.1f} {place}."
        )
        name = metric.replace("_", "-")
        #: The same as an operation tells it, in ``errorDetails[].quotaInfo``.
        self.info = {
            "metricName": f"compute.googleapis.com/{metric.lower()}",
            "limitName": f"{name}-per-project" + ("" if region == GLOBAL else "-region"),
            "dimensions": {GLOBAL: GLOBAL} if region == GLOBAL else {"region": region},
            "limit": limit,
        }


class Quota:
    """How much every project may use in each region; whatever it wants where nothing is set.

    It may be changed at any time and from any thread. What is used already stays when a limit is
    set below it.

    Examples
    --------
    >>> quota = Quota()
    >>> quota.set("us-central1", "CPUS", 64)
    >>> quota.set("global", "CPUS_ALL_REGIONS", 256)
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        # By region and metric.
        self._limits: dict[tuple[str, str], float] = {}
        # By project, region and metric.
        self._used: dict[tuple[str, str, str], float] = {}

    def set(self, region: str, metric: str, limit: float | None) -> None:
        """Say how much a project may use.

        Parameters
        ----------
        region : str
            The region, or ``"global"`` for what counts in all of them together.
        metric : str
            The metric: ``INSTANCES``, ``IN_USE_ADDRESSES``, ``STATIC_ADDRESSES`` (external ones),
            ``INTERNAL_ADDRESSES`` (static ones), ``CPUS``, ``PREEMPTIBLE_CPUS``, ``N2_CPUS``
            and its like, ``NVIDIA_T4_GPUS`` and its like; ``CPUS_ALL_REGIONS``,
            ``GPUS_ALL_REGIONS`` and ``FIREWALLS`` are global.
        limit : float or None
            How much; None sets no limit.

        Raises
        ------
        ValueError
            There is no such region, no such metric there, or the limit is negative.
        """
        if region != GLOBAL and region not in REGIONS:
            raise ValueError(f"there is no region {region!r}")
        known = _EVERYWHERE if region == GLOBAL else _REGIONAL
        if metric not in known and (region == GLOBAL or not _GPUS.fullmatch(metric)):
            raise ValueError(
                f"there is no metric {metric!r} in {region}: there are {', '.join(sorted(known))}"
                + ("" if region == GLOBAL else " and those of GPUs")
            )
        if limit is not None and not limit >= 0:
            raise ValueError(f"a quota cannot be {limit!r}")
        with self._lock:
            self._limits.pop((region, metric), None)
            if limit is not None:
                self._limits[region, metric] = float(limit)

    def clear(self) -> None:
        """Forget every limit."""
        with self._lock:
            self._limits.clear()

    def limits(self, region: str) -> dict[str, float]:
        """Return the limits that are set.

        Parameters
        ----------
        region : str
            The region, or ``"global"``.

        Returns
        -------
        dict
            The limits, by metric.
        """
        with self._lock:
            return {
                metric: limit for (where, metric), limit in self._limits.items() if where == region
            }

    def usage(self, project: str, region: str) -> dict[str, float]:
        """Return what a project uses.

        Parameters
        ----------
        project : str
            The project.
        region : str
            The region, or ``"global"``.

        Returns
        -------
        dict
            Amounts by metric.
        """
        with self._lock:
            return {
                metric: float(amount)
                for (who, where, metric), amount in self._used.items()
                if (who, where) == (project, region)
            }

    def charge(self, project: str, region: str, *amounts: Amounts, count: int = 1) -> None:
        """Count what is about to be used, or refuse all of it.

        Parameters
        ----------
        project : str
            The project.
        region : str
            The region.
        *amounts : mapping
            Amounts by metric.
        count : int
            How many instances will use that each.

        Raises
        ------
        QuotaExceeded
            It would be more than the project may use.
        """
        with self._lock:
            for metric, amount in (one for each in amounts for one in each.items()):
                where = GLOBAL if metric in _EVERYWHERE else region
                limit = self._limits.get((where, metric))
                used = self._used.get((project, where, metric), 0)
                if limit is not None and used + amount * count > limit:
                    raise QuotaExceeded(metric, where, limit)
            self._add(project, region, amounts, count)

    def release(self, project: str, region: str, *amounts: Amounts) -> None:
        """Count what is no longer used.

        Parameters
        ----------
        project : str
            The project.
        region : str
            The region.
        *amounts : mapping
            Amounts by metric.
        """
        with self._lock:
            self._add(project, region, amounts, -1)

    def _add(self, project: str, region: str, amounts: tuple[Amounts, ...], count: int) -> None:
        for metric, amount in (one for each in amounts for one in each.items()):
            where = GLOBAL if metric in _EVERYWHERE else region
            key = project, where, metric
            self._used[key] = self._used.get(key, 0) + amount * count
