"""What is told of Spot machines before anybody asks for them: how likely, how long, how dear.

Owns: the scores and prices that a test sets, and those that follow from the capacity where nothing
is set. The methods that tell them are in `methods.advice`.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass, replace
from typing import Any

from dask_gce.emulator.capacity import Capacity
from dask_gce.emulator.catalog.machine_types import MachineType, resolve
from dask_gce.emulator.catalog.places import REGIONS, ZONES

#: The obtainability where there is room for all, for some and for none, out of 1:
#: https://cloud.google.com/compute/docs/instances/view-vm-availability
LIKELY, PARTLY, UNLIKELY = 0.9, 0.5, 0.1

#: How long most Spot machines are expected to run, in seconds; there are no other values.
UPTIMES = (60, 600, 3600)

#: US dollars an hour for a vCPU, a GB of memory and a GPU of a Spot machine: plausible, no more.
_CPU, _GB, _GPU = 0.007, 0.001, 0.12


@dataclass(frozen=True)
class Outlook:
    """What is told of one machine type in one place.

    Parameters
    ----------
    obtainability : float or None
        How likely it is that as many can be had, from 0 to 1; None follows from the capacity.
    uptime : int
        Seconds for which most are expected to run.
    preemption_rate : float
        How many of those that ended were preempted, from 0 to 1.
    price : float or None
        US dollars an hour; None follows from the machine type.
    """

    obtainability: float | None = None
    uptime: int = UPTIMES[-1]
    preemption_rate: float = 0.05
    price: float | None = None


class Advice:
    """What ``advice.capacity`` and ``advice.capacityHistory`` tell.

    It may be changed at any time and from any thread. What it says binds nobody: whether machines
    can be had is up to the capacity.

    Examples
    --------
    >>> advice = Advice()
    >>> advice.set("us-central1-a", "n2-standard-8", obtainability=0.2, uptime=600)
    >>> advice.set("us-central1", "n2-standard-8", price=0.08)
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._outlooks: dict[tuple[str, str | None], Outlook] = {}

    def set(
        self,
        place: str,
        machine_type: str | None = None,
        *,
        obtainability: float | None = None,
        uptime: int | None = None,
        preemption_rate: float | None = None,
        price: float | None = None,
    ) -> None:
        """Say what is told of Spot machines; what is not given stays.

        Parameters
        ----------
        place : str
            A zone, or a region for all of its zones that nothing else is said of.
        machine_type : str or None
            The machine type; None for all that nothing else is said of.
        obtainability : float or None
            How likely it is that as many as asked for can be had, from 0 to 1.
        uptime : int or None
            Seconds for which most are expected to run: 60, 600 or 3600.
        preemption_rate : float or None
            How many of those that ended were preempted, from 0 to 1.
        price : float or None
            US dollars an hour, for a region.

        Raises
        ------
        ValueError
            There is no such place or machine type, or a value cannot be.
        """
        if place not in ZONES and place not in REGIONS:
            raise ValueError(f"there is no zone or region {place!r}")
        if machine_type is not None and resolve(machine_type) is None:
            raise ValueError(f"there is no machine type {machine_type!r}")
        for name, share in (
            ("obtainability", obtainability),
            ("preemption_rate", preemption_rate),
        ):
            if share is not None and not 0 <= share <= 1:
                raise ValueError(f"{name} is a number from 0 to 1, not {share!r}")
        if uptime is not None and uptime not in UPTIMES:
            raise ValueError(f"uptime is one of {', '.join(map(str, UPTIMES))}, not {uptime!r}")
        if price is not None and (place in ZONES or not price > 0):
            raise ValueError("a price is a positive number, and that of a region")
        given: dict[str, Any] = {
            "obtainability": obtainability,
            "uptime": uptime,
            "preemption_rate": preemption_rate,
            "price": price,
        }
        changes = {name: value for name, value in given.items() if value is not None}
        with self._lock:
            key = place, machine_type
            self._outlooks[key] = replace(self._outlooks.get(key, Outlook()), **changes)

    def clear(self) -> None:
        """Forget everything that was set."""
        with self._lock:
            self._outlooks.clear()

    def outlook(
        self, place: str, machine_type: MachineType, capacity: Capacity, size: int = 1
    ) -> Outlook:
        """Return what is told of a machine type in a place.

        Parameters
        ----------
        place : str
            A zone or a region.
        machine_type : MachineType
            The machine type.
        capacity : Capacity
            What the zones have to give, from which the obtainability follows where none is set.
        size : int
            How many machines are wanted.

        Returns
        -------
        Outlook
            It, with nothing left open.
        """
        name, region = machine_type.name, ZONES.get(place, place)
        with self._lock:
            found = [
                self._outlooks[key]
                for key in ((place, name), (place, None), (region, name), (region, None))
                if key in self._outlooks
            ]
        chosen = found[0] if found else Outlook()
        # A price is the region's, whatever is said of the zone.
        price = next((each.price for each in found if each.price is not None), None)
        if price is None:
            price = (
                _CPU * machine_type.guest_cpus
                + _GB * machine_type.memory_mb / 1024
                + _GPU * machine_type.accelerators
            )
        likely = chosen.obtainability
        if likely is None:
            likely = _likely(capacity, place, name, size)
        return replace(chosen, obtainability=likely, price=round(price, 6))


def _likely(capacity: Capacity, place: str, machine_type: str, size: int) -> float:
    zones = REGIONS.get(place, (place,))
    rooms = [capacity.left(zone, machine_type, spot=True) for zone in zones]
    if None in rooms:
        return LIKELY
    left = sum(room or 0 for room in rooms)
    return LIKELY if left >= size else PARTLY if left else UNLIKELY
