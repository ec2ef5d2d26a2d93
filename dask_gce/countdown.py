"""How long a cluster still has: what its scheduler tells of its limits, and the words for it.

Pure: it reads and counts. Who asks, and what follows, is in `limits`; who keeps the limits is the
scheduler's machine (``guest/guard.py``) and, for the lifetime, Compute Engine.
"""

from __future__ import annotations

import html
import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any, Final

__all__ = ["NAMES", "Limits", "Status", "named_limit", "notice", "spell"]

#: The settings that end a cluster.
NAMES: Final = ("idle_timeout", "no_client_timeout", "max_lifetime")

#: Seconds before an end at which it is told, and the share of a limit too short for that.
_NOTICE: Final = {"idle_timeout": 120.0, "no_client_timeout": 120.0, "max_lifetime": 600.0}
_SHARE: Final = 0.2

#: Seconds from which on a countdown shows whole minutes.
_FEW: Final = 120.0


@dataclass(frozen=True, slots=True)
class Limits:
    """How long a cluster still has by each of its limits.

    Parameters
    ----------
    idle_timeout : float or None
        Seconds left if its scheduler gets nothing to do; None if it has something to do, if there
        is no such limit, or if that is not known.
    no_client_timeout : float or None
        Seconds left if no client connects; None as above.
    max_lifetime : float or None
        Seconds left of its life; None as above.

    Examples
    --------
    >>> limits = Limits(idle_timeout=241.3, max_lifetime=86000)
    >>> print(limits)
    ends in 4 min: idle_timeout
    >>> print(Limits())
    no end in sight
    """

    idle_timeout: float | None = None
    no_client_timeout: float | None = None
    max_lifetime: float | None = None

    @property
    def nearest(self) -> tuple[str, float] | None:
        """Which limit ends the cluster first, and in how many seconds; None without an end."""
        known = [(left, each) for each in NAMES if (left := getattr(self, each)) is not None]
        return (min(known)[1], min(known)[0]) if known else None

    def after(self, seconds: float) -> Limits:
        """Return what is left when some time has passed.

        Parameters
        ----------
        seconds : float
            The time.

        Returns
        -------
        Limits
            What is left, never less than nothing.
        """
        lefts = {each: getattr(self, each) for each in NAMES}
        return Limits(
            **{each: None if s is None else max(0.0, s - seconds) for each, s in lefts.items()}
        )

    def to_json(self) -> dict[str, float | None]:
        """Return it in the types of JSON.

        Returns
        -------
        dict
            Whole seconds by limit.
        """
        lefts = {each.name: getattr(self, each.name) for each in fields(self)}
        return {each: None if left is None else round(left) for each, left in lefts.items()}

    def __str__(self) -> str:
        if (nearest := self.nearest) is None:
            return "no end in sight"
        limit, left = nearest
        # Seconds are of interest only when there are few.
        return f"ends in {spell(left if left < _FEW else left - left % 60)}: {limit}"

    def render_row(self) -> str:
        """Return a row for the table that a notebook shows of a cluster.

        Returns
        -------
        str
            HTML; empty without an end.
        """
        if self.nearest is None:
            return ""
        return (
            '<tr><td style="text-align: left;" colspan="2"><strong>Limits:</strong> '
            f"{html.escape(str(self))}</td></tr>"
        )


@dataclass(frozen=True, slots=True)
class Status:
    """What a scheduler tells whoever attends it.

    Parameters
    ----------
    limits : Limits
        What is left.
    ending : str
        Why the cluster ends now, the limit first; empty if it does not.
    leaving : mapping
        Machines that are about to be taken away: in how many seconds, and why.
    recomputed : int
        Tasks that were computed again because a machine took their results with it.
    """

    limits: Limits = field(default_factory=Limits)
    ending: str = ""
    leaving: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    recomputed: int = 0

    @classmethod
    def parse(cls, answer: Any) -> Status | None:
        """Read an answer of the scheduler's.

        Parameters
        ----------
        answer : object
            What it said.

        Returns
        -------
        Status or None
            The same; None if it is something else, as of a scheduler that keeps no limits.

        Examples
        --------
        >>> Status.parse({"ends_in": {"idle_timeout": 30}, "ending": ""}).limits.nearest
        ('idle_timeout', 30.0)
        """
        if not isinstance(answer, Mapping) or not isinstance(answer.get("ends_in"), Mapping):
            return None
        lefts = {each: _seconds(answer["ends_in"].get(each)) for each in NAMES}
        leaving, recomputed = answer.get("leaving"), answer.get("recomputed")
        return cls(
            Limits(**lefts),
            str(answer.get("ending") or ""),
            leaving if isinstance(leaving, Mapping) else {},
            recomputed if isinstance(recomputed, int) else 0,
        )


def _seconds(value: Any) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return max(0.0, float(value))


def named_limit(reason: str) -> str:
    """Return the limit that a reason begins with.

    Parameters
    ----------
    reason : str
        For example ``"idle_timeout: the scheduler had nothing to do for 20 minutes"``.

    Returns
    -------
    str
        The limit; empty if it names none.
    """
    name = reason.partition(":")[0].strip()
    return name if name in NAMES else ""


def notice(limit: str, seconds: float) -> float:
    """Return how long before an end it is told.

    Parameters
    ----------
    limit : str
        Which limit.
    seconds : float
        What the limit is.

    Returns
    -------
    float
        Seconds.

    Examples
    --------
    >>> notice("idle_timeout", 1200), notice("idle_timeout", 60), notice("max_lifetime", 86400)
    (120.0, 12.0, 600.0)
    """
    return min(_NOTICE[limit], _SHARE * seconds)


def spell(seconds: float) -> str:
    """Write a time as people say it, in its two largest units.

    Parameters
    ----------
    seconds : float
        The time.

    Returns
    -------
    str
        The same.

    Examples
    --------
    >>> [spell(each) for each in (0, 59.4, 60, 3900, 90000)]
    ['0 s', '59 s', '1 min', '1 h 5 min', '1 d 1 h']
    """
    left, parts = max(0, round(seconds)), []
    for unit, size in (("d", 86_400), ("h", 3_600), ("min", 60), ("s", 1)):
        count, left = divmod(left, size)
        if count:
            parts.append(f"{count} {unit}")
    return " ".join(parts[:2]) or "0 s"
