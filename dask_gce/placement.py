"""Where a machine may be made, and which of these places have none to give at the moment.

Owns the list of locations in the user's order of preference and what is blocked for a while after
Compute Engine ran short, or kept taking Spot machines away. Which locations there are is found out
in `preparation`; when to ask again is decided by whoever asked.
"""

from __future__ import annotations

import math
import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from dask_gce.errors import GCEError, OperationError, QuotaExceeded
from dask_gce.failures import Cause, cause_of
from dask_gce.preemptions import Preemptions

__all__ = ["Location", "MachineShape", "Placement", "memory_with"]

#: What the operating system and the container engine keep for themselves: at least this much
#: memory, in bytes, or this share of a large machine.
SYSTEM_MEMORY = 256 * 2**20
SYSTEM_MEMORY_SHARE = 0.05


@dataclass(frozen=True)
class MachineShape:
    """What a machine type offers, as ``machineTypes.get`` tells.

    Parameters
    ----------
    name : str
        The machine type's name.
    cpus : int
        Its vCPUs.
    memory : int
        Its memory in bytes.
    architecture : str
        ``"X86_64"`` or ``"ARM64"``.
    gpus : int
        How many GPUs it comes with.
    gpu_type : str
        Their type; empty when it comes with none.
    local_ssds : int
        How many local SSDs it comes with.
    """

    name: str
    cpus: int
    memory: int
    architecture: str = "X86_64"
    gpus: int = 0
    gpu_type: str = ""
    local_ssds: int = 0

    @classmethod
    def parse(cls, data: Mapping[str, Any]) -> MachineShape:
        """Read a machine type from API JSON.

        Parameters
        ----------
        data : mapping
            A ``compute#machineType`` resource.

        Returns
        -------
        MachineShape
            Its shape.
        """
        accelerators = [
            each
            for each in data.get("accelerators") or ()
            # The others are TPUs, which are nothing that a driver or dask-cuda knows.
            if str(each.get("guestAcceleratorType", "")).startswith("nvidia-")
        ] or [{}]
        return cls(
            str(data["name"]),
            int(data["guestCpus"]),
            int(data["memoryMb"]) * 2**20,
            str(data.get("architecture") or "X86_64"),
            int(accelerators[0].get("guestAcceleratorCount", 0)),
            str(accelerators[0].get("guestAcceleratorType", "")),
            int((data.get("bundledLocalSsds") or {}).get("partitionCount", 0)),
        )

    @property
    def usable_memory(self) -> int:
        """Memory for Dask in bytes: all but what the system keeps."""
        return self.memory - max(SYSTEM_MEMORY, int(self.memory * SYSTEM_MEMORY_SHARE))


def memory_with(usable: int) -> int:
    """Return how much memory a machine must have to leave so much for Dask.

    Parameters
    ----------
    usable : int
        Memory for Dask in bytes.

    Returns
    -------
    int
        Memory of the machine in bytes.

    Examples
    --------
    >>> MachineShape("m", 4, memory_with(2**30)).usable_memory == 2**30
    True
    """
    return max(usable + SYSTEM_MEMORY, math.ceil(usable / (1 - SYSTEM_MEMORY_SHARE)))


@dataclass(frozen=True)
class Location:
    """A zone and a machine type that is offered there, on demand or as Spot.

    Parameters
    ----------
    zone : str
        The zone's name.
    shape : MachineShape
        The machine type.
    spot : bool
        Whether a machine there is Spot.

    Examples
    --------
    >>> location = Location("us-central1-a", MachineShape("e2-standard-4", 4, 16 * 2**30))
    >>> location.region, location.machine_type
    ('us-central1', 'e2-standard-4')
    """

    zone: str
    shape: MachineShape
    spot: bool = False

    @property
    def region(self) -> str:
        """The region of the zone."""
        return self.zone.rpartition("-")[0]

    @property
    def machine_type(self) -> str:
        """The machine type's name."""
        return self.shape.name

    def __str__(self) -> str:
        return f"{self._what} in zone {self.zone}"

    @property
    def _what(self) -> str:
        return f"Spot {self.machine_type}" if self.spot else self.machine_type

    @property
    def in_region(self) -> str:
        """Its machine type in all zones of its region, in words."""
        return f"{self._what} in region {self.region}"


class Placement:
    """The places where machines of one role may be made, in order of preference.

    Each place counts twice: there may be machines on demand where there are no Spot machines.

    Parameters
    ----------
    locations : sequence of Location
        The places, the preferred one first; whether they are Spot is asked for later.
    blocked_for : float
        Seconds that a place without machines is left alone.
    clock : callable
        Returns seconds that never go back.

    Examples
    --------
    >>> shape = MachineShape("e2-standard-4", 4, 16 * 2**30)
    >>> placement = Placement([Location("us-central1-a", shape), Location("us-central1-b", shape)])
    >>> placement.block(placement.locations[0], OperationError("x", code="GPU_STOCKOUT"))
    'e2-standard-4 in zone us-central1-a for 5 minutes'
    >>> placement.choose().zone
    'us-central1-b'
    """

    def __init__(
        self,
        locations: Sequence[Location],
        *,
        blocked_for: float = 300.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.locations = tuple(locations)
        self._blocked_for = blocked_for
        self._clock = clock
        self._blocked_until: dict[Location, float] = {}
        # Where they are to be had, but are taken away too often.
        self._avoided_until: dict[Location, float] = {}
        self._preemptions = Preemptions()

    def choose(self, zone: str | None = None, *, spot: bool = False) -> Location | None:
        """Return the preferred place that is not blocked.

        Parameters
        ----------
        zone : str or None
            The only zone to consider; None for all.
        spot : bool
            Whether the machine is to be Spot.

        Returns
        -------
        Location or None
            The place; None if all are blocked or none is in that zone.
        """
        for location in self._places(zone, spot):
            if not self.is_blocked(location) and not self._is_avoided(location):
                return location
        return None

    def choose_blocked(self, zone: str | None = None, *, spot: bool = False) -> Location:
        """Return the place to ask again when all are blocked.

        Parameters
        ----------
        zone : str or None
            The only zone to consider; None for all.
        spot : bool
            Whether the machine is to be Spot.

        Returns
        -------
        Location
            One that has machines, even if it takes them away; else the preferred one.
        """
        places = self._places(zone, spot)
        return next((each for each in places if not self.is_blocked(each)), places[0])

    def _places(self, zone: str | None, spot: bool) -> list[Location]:
        return [replace(e, spot=spot) for e in self.locations if zone in (None, e.zone)]

    def is_blocked(self, location: Location) -> bool:
        """Tell whether a place has no machines, as far as is known.

        Parameters
        ----------
        location : Location
            The place.

        Returns
        -------
        bool
            Whether it is blocked. One that only takes its machines away too often is not.
        """
        return self._blocked_until.get(location, -math.inf) > self._clock()

    def _is_avoided(self, location: Location) -> bool:
        return self._avoided_until.get(location, -math.inf) > self._clock()

    def note_preemption(self, location: Location, *, there: int) -> str:
        """Take note of a Spot machine that Compute Engine takes away.

        Parameters
        ----------
        location : Location
            Where it was.
        there : int
            How many other Spot machines of the cluster are still there.

        Returns
        -------
        str
            What is left alone from now on, for how long and why, in words; empty if nothing is, or
            has been before.
        """
        rate = self._preemptions.note(location, there=there, now=self._clock())
        if not rate.block or self._is_avoided(location):
            return ""
        self._avoided_until[location] = self._clock() + rate.block
        return f"{location} for {_duration(rate.block)}: {rate}"

    def block(self, location: Location, error: GCEError) -> str:
        """Leave a place alone for a while, and all others that the same reason holds for.

        No capacity is a matter of one machine type in one zone, and of Spot machines or of those on
        demand. A quota belongs to a region, or to the project in all regions together; the error's
        details say which. Spot machines count to quotas of their own, but to the ordinary ones
        where a project has none: https://docs.cloud.google.com/compute/resource-usage

        Parameters
        ----------
        location : Location
            Where a machine could not be made.
        error : GCEError
            Why not.

        Returns
        -------
        str
            What was blocked and how long, in words.

        Raises
        ------
        ValueError
            If the error is about something else than capacity or quota: no other place would help.
        """
        cause = cause_of(error)
        if cause is Cause.CAPACITY:
            matched = [e for e in self._places(None, location.spot) if e == location]
            what = str(location)
        elif cause is Cause.QUOTA and _in_all_regions(error):
            matched = self._of_kinds(_kinds(location, error))
            what = "every machine type in every zone"
        elif cause is Cause.QUOTA:
            kinds = self._of_kinds(_kinds(location, error))
            matched = [each for each in kinds if each.region == location.region]
            what = f"every machine type in region {location.region}"
            if not _counts_machines(error):
                # Of others that count to the same, smaller ones may still fit.
                matched = [each for each in matched if each.machine_type == location.machine_type]
                what = location.in_region
        else:
            raise ValueError(f"{type(error).__name__} ({cause.value}) is no reason to move on")
        until = self._clock() + self._blocked_for
        self._blocked_until.update(dict.fromkeys(matched, until))
        return f"{what} for {_duration(self._blocked_for)}"

    def _of_kinds(self, kinds: frozenset[bool]) -> list[Location]:
        return [each for spot in sorted(kinds) for each in self._places(None, spot)]

    def first_free_after(self) -> float | None:
        """Tell when to try again.

        Returns
        -------
        float or None
            Seconds until the first block ends; None if nothing is blocked.
        """
        now = self._clock()
        ends = [*self._blocked_until.values(), *self._avoided_until.values()]
        return min((end - now for end in ends if end > now), default=None)


def _counts_machines(error: GCEError) -> bool:
    """Tell whether a quota counts each machine the same, whatever its type is."""
    named = _metrics(error)
    return bool(named) and all(re.search("INSTANCES|IN_USE_ADDRESSES", each) for each in named)


def _kinds(location: Location, error: GCEError) -> frozenset[bool]:
    """Tell for which machines a quota does not suffice: for Spot ones, others, or both.

    Processors, GPUs and local SSDs of Spot machines have metrics of their own, ``PREEMPTIBLE_CPUS``
    and so on; whatever else there is, such as addresses, is counted together.
    """
    named = _metrics(error)
    if not named or any("PREEMPTIBLE" in each for each in named):
        # Without a name the other kind is worth a try.
        return frozenset({location.spot})
    if location.spot or any("ALL_REGIONS" in each for each in named):
        # There is no quota for Spot machines: they count to the same.
        return frozenset({True, False})
    own = all(re.search(r"CPUS|GPUS|LOCAL_SSD", each) for each in named)
    return frozenset({False}) if own else frozenset({True, False})


def _in_all_regions(error: GCEError) -> bool:
    """Tell whether a quota counts the whole project.

    An operation names it, for example ``"limitName": "CPUS-ALL-REGIONS-per-project"`` and
    ``"metricName": "compute.googleapis.com/cpus_all_regions"``.
    """
    return any("ALL_REGIONS" in each for each in _metrics(error))


def _metrics(error: GCEError) -> list[str]:
    """Return how the quotas are called that an error names, in upper case with underscores."""
    if isinstance(error, QuotaExceeded) and error.metric:
        return [error.metric]
    if not isinstance(error, OperationError):
        # A request that is refused says "Quota 'CPUS' exceeded", and nothing else of it.
        return [each.upper() for each in re.findall(r"[Qq]uota '([\w-]+)'", error.message)]
    found = []
    for each in error.errors:
        quotas = [detail.get("quotaInfo", {}) for detail in each.get("errorDetails", ())]
        found += [str(e[key]) for e in quotas for key in ("limitName", "metricName") if e.get(key)]
    return [each.upper().replace("-", "_") for each in found]


def _duration(seconds: float) -> str:
    if seconds >= 120 and seconds % 60 == 0:
        return f"{seconds / 60:g} minutes"
    return f"{seconds:g} seconds"
