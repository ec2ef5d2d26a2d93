"""Where a machine may be made, and which of these places have none to give at the moment.

Owns the list of locations in the user's order of preference and what is blocked for a while after
Compute Engine ran short. Which locations there are is found out in `preparation`; when to ask again
is decided by whoever asked.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from dask_gce.errors import GCEError, OperationError
from dask_gce.failures import Cause, cause_of

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


class Placement:
    """The places where machines of one role may be made, in order of preference.

    Parameters
    ----------
    locations : sequence of Location
        The places, the preferred one first.
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

    def choose(self, zone: str | None = None) -> Location | None:
        """Return the preferred place that is not blocked.

        Parameters
        ----------
        zone : str or None
            The only zone to consider; None for all.

        Returns
        -------
        Location or None
            The place; None if all are blocked or none is in that zone.
        """
        now = self._clock()
        for location in self.locations:
            if zone in (None, location.zone) and self._blocked_until.get(location, now) <= now:
                return location
        return None

    def block(self, location: Location, error: GCEError) -> str:
        """Leave a place alone for a while, and all others that the same reason holds for.

        No capacity is a matter of one machine type in one zone. A quota belongs to a region, or to
        the project in all regions together; the error's details say which.
        https://docs.cloud.google.com/compute/resource-usage

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
            matched = [each for each in self.locations if each == location]
            what = f"{location.machine_type} in zone {location.zone}"
        elif cause is Cause.QUOTA and _in_all_regions(error):
            matched = list(self.locations)
            what = "every machine type in every zone"
        elif cause is Cause.QUOTA:
            matched = [each for each in self.locations if _share_quota(each, location)]
            what = f"{location.machine_type} in region {location.region}"
        else:
            raise ValueError(f"{type(error).__name__} ({cause.value}) is no reason to move on")
        until = self._clock() + self._blocked_for
        self._blocked_until.update(dict.fromkeys(matched, until))
        return f"{what} for {_duration(self._blocked_for)}"

    def first_free_after(self) -> float | None:
        """Tell when to try again.

        Returns
        -------
        float or None
            Seconds until the first block ends; None if nothing is blocked.
        """
        now = self._clock()
        return min((end - now for end in self._blocked_until.values() if end > now), default=None)


def _share_quota(one: Location, other: Location) -> bool:
    return (one.region, one.machine_type) == (other.region, other.machine_type)


def _in_all_regions(error: GCEError) -> bool:
    """Tell whether a quota counts the whole project.

    An operation names it, for example ``"limitName": "CPUS-ALL-REGIONS-per-project"`` and
    ``"metricName": "compute.googleapis.com/cpus_all_regions"``.
    """
    if not isinstance(error, OperationError):
        return False
    for each in error.errors:
        for detail in each.get("errorDetails", ()):
            quota = detail.get("quotaInfo", {})
            for key in ("limitName", "metricName"):
                if "ALL_REGIONS" in str(quota.get(key, "")).upper().replace("-", "_"):
                    return True
    return False


def _duration(seconds: float) -> str:
    if seconds >= 120 and seconds % 60 == 0:
        return f"{seconds / 60:g} minutes"
    return f"{seconds:g} seconds"
