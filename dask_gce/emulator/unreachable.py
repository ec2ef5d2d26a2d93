"""Zones that do not answer.

Owns: which they are, and the refusal of requests that go there. Their instances live on; nobody can
ask about them.
"""

from __future__ import annotations

from collections.abc import Iterator

from dask_gce.emulator.catalog.places import ZONES
from dask_gce.emulator.errors import APIError


class Unreachable:
    """The zones that do not answer: lists of all zones leave them out and say so.

    It may be changed at any time and from any thread.

    Examples
    --------
    >>> unreachable = Unreachable()
    >>> unreachable.add("us-central1-b")
    >>> list(unreachable)
    ['us-central1-b']
    """

    def __init__(self) -> None:
        # Replaced, never changed, so that no thread sees it half-way.
        self._zones: frozenset[str] = frozenset()

    def add(self, zone: str) -> None:
        """Let a zone answer no more.

        Parameters
        ----------
        zone : str
            The zone.

        Raises
        ------
        ValueError
            There is no such zone.
        """
        if zone not in ZONES:
            raise ValueError(f"there is no zone {zone!r}")
        self._zones |= {zone}

    def remove(self, zone: str) -> None:
        """Let a zone answer again.

        Parameters
        ----------
        zone : str
            The zone.

        Raises
        ------
        ValueError
            It does answer.
        """
        if zone not in self._zones:
            raise ValueError(f"zone {zone!r} is not unreachable")
        self._zones -= {zone}

    def clear(self) -> None:
        """Let every zone answer again."""
        self._zones = frozenset()

    def __contains__(self, zone: object) -> bool:
        return zone in self._zones

    def __iter__(self) -> Iterator[str]:
        return iter(sorted(self._zones))

    def __repr__(self) -> str:
        return f"<Unreachable {sorted(self._zones)}>"

    def check(self, zone: str) -> None:
        """Refuse a request to a zone that does not answer.

        Parameters
        ----------
        zone : str
            The zone.

        Raises
        ------
        APIError
            It does not answer.
        """
        if zone in self._zones:
            raise APIError(503, "backendError", f"Zone {zone} is currently unreachable.")
