"""What the zones have to give.

Owns: how many instances there may be of a machine type in a zone, Spot ones or others, and how many
there are. An
instance holds its place from the acceptance of its insert until it is off or gone; who asks is the
business of `claims`.
"""

from __future__ import annotations

import threading
from collections import Counter

from dask_gce.emulator.catalog.machine_types import resolve
from dask_gce.emulator.catalog.places import ZONES


class Capacity:
    """How many instances the zones can hold; as many as anybody wants where nothing is set.

    It may be changed at any time and from any thread. What is there already stays when a limit is
    set below it.

    Examples
    --------
    >>> capacity = Capacity()
    >>> capacity.set("us-central1-a", instances=600)
    >>> capacity.set("us-central1-a", "n2-standard-8", instances=0)
    >>> capacity.left("us-central1-a"), capacity.left("us-central1-a", "n2-standard-8")
    (600, 0)
    >>> capacity.left("us-central1-b") is None
    True
    >>> capacity.set("us-central1-b", instances=0, spot=True)
    >>> capacity.left("us-central1-b", spot=True), capacity.left("us-central1-b", spot=False)
    (0, None)
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        # By zone, machine type and whether they are Spot; None is all of them together.
        self._limits: dict[tuple[str, str | None, bool | None], int] = {}
        self._held: Counter[tuple[str, str | None, bool | None]] = Counter()

    def set(
        self,
        zone: str,
        machine_type: str | None = None,
        *,
        instances: int | None,
        spot: bool | None = None,
    ) -> None:
        """Say how many instances a zone can hold.

        Parameters
        ----------
        zone : str
            The zone.
        machine_type : str or None
            The machine type whose instances count; None counts all.
        instances : int or None
            How many there may be at a time, of all projects together; None sets no limit.
        spot : bool or None
            Whether it is Spot instances that count, or all but these; None counts all.

        Raises
        ------
        ValueError
            There is no such zone or machine type, or the number is negative.
        """
        _check(zone, machine_type)
        if instances is not None and instances < 0:
            raise ValueError(f"a zone cannot hold {instances} instances")
        with self._lock:
            self._limits.pop((zone, machine_type, spot), None)
            if instances is not None:
                self._limits[zone, machine_type, spot] = instances

    def clear(self) -> None:
        """Forget every limit."""
        with self._lock:
            self._limits.clear()

    def left(
        self, zone: str, machine_type: str | None = None, *, spot: bool | None = None
    ) -> int | None:
        """Return how many more instances a zone can hold.

        Parameters
        ----------
        zone : str
            The zone.
        machine_type : str or None
            Their machine type; None asks what is left in the zone for all types together.
        spot : bool or None
            Whether they are Spot; None asks what is left for Spot and others together.

        Returns
        -------
        int or None
            The number; None where there is no limit.

        Raises
        ------
        ValueError
            There is no such zone or machine type.
        """
        _check(zone, machine_type)
        with self._lock:
            return self._left(zone, machine_type, spot)

    def _left(self, zone: str, machine_type: str | None, spot: bool | None) -> int | None:
        left = [
            max(0, self._limits[key] - self._held[key])
            for key in _keys(zone, machine_type, spot)
            if key in self._limits
        ]
        return min(left, default=None)

    def take(self, zone: str, machine_type: str, *, spot: bool = False) -> bool:
        """Take a place for an instance, if there is one.

        Parameters
        ----------
        zone : str
            The zone.
        machine_type : str
            The machine type.
        spot : bool
            Whether it is Spot.

        Returns
        -------
        bool
            Whether there was one.
        """
        with self._lock:
            if self._left(zone, machine_type, spot) == 0:
                return False
            self._held.update(_keys(zone, machine_type, spot))
            return True

    def give_back(self, zone: str, machine_type: str, *, spot: bool = False) -> None:
        """Give a place back.

        Parameters
        ----------
        zone : str
            The zone.
        machine_type : str
            The machine type.
        spot : bool
            Whether it is Spot.
        """
        with self._lock:
            self._held.subtract(_keys(zone, machine_type, spot))


def _keys(
    zone: str, machine_type: str | None, spot: bool | None
) -> set[tuple[str, str | None, bool | None]]:
    """Return under which of the limits such an instance falls."""
    return {(zone, a, b) for a in (None, machine_type) for b in (None, spot)}


def _check(zone: str, machine_type: str | None) -> None:
    if zone not in ZONES:
        raise ValueError(f"there is no zone {zone!r}")
    if machine_type is not None and resolve(machine_type) is None:
        raise ValueError(f"there is no machine type {machine_type!r}")
