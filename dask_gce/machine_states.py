"""The states that a machine goes through, and what is known of one machine: plain values."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timezone

__all__ = [
    "BOOTING_STATES",
    "ENDED_STATES",
    "STATES",
    "WAY_IN",
    "MachineFacts",
    "MachineState",
    "render_time",
]

#: What a machine goes through on its way in. It may skip states, but never goes back.
WAY_IN = ("requested", "provisioning", "booting", "image", "starting", "running")

#: All states, in order.
STATES = (*WAY_IN, "leaving", "deleted", "failed", "lost")

#: Those of machines that are on their way in.
BOOTING_STATES = WAY_IN[:-1]

#: Those of machines that are no more.
ENDED_STATES = ("deleted", "failed", "lost")


@dataclass(frozen=True, slots=True)
class MachineFacts:
    """What is known of a machine from the request that made it.

    Parameters
    ----------
    role : str
        ``"scheduler"`` or ``"worker"``.
    zone : str
        Its zone.
    machine_type : str
        Its machine type.
    cores : int
        Its vCPUs.
    memory : int
        Its memory in bytes.
    spot : bool
        Whether Compute Engine may take it away at any time.
    workers : int
        How many Dask workers it is to have.
    requested : datetime.datetime or None
        When it was asked for, if another process did that.
    """

    role: str
    zone: str = ""
    machine_type: str = ""
    cores: int = 0
    memory: int = 0
    spot: bool = False
    workers: int = 1
    requested: datetime | None = None


@dataclass(frozen=True, slots=True)
class MachineState:
    """A machine of a cluster, as far as is known.

    Parameters
    ----------
    name : str
        The instance's name.
    role : str
        ``"scheduler"`` or ``"worker"``.
    state : str
        On its way in ``"requested"``, ``"provisioning"``, ``"booting"``, ``"image"`` (it gets the
        image or the environment that Dask runs in), ``"starting"`` (Dask starts, and has not
        registered) and ``"running"``; on its way out ``"leaving"``; and then ``"deleted"``,
        ``"failed"`` (it never ran, or not for long) or ``"lost"``. A machine is asked for its
        phase only when it takes its time, so most go from ``"booting"`` to ``"running"``.
    since : datetime.datetime
        Since when, in UTC.
    times : mapping of str to datetime.datetime
        When it came into each of the states that it was seen in.
    zone : str
        Its zone.
    machine_type : str
        Its machine type.
    cores : int
        Its vCPUs.
    memory : int
        Its memory in bytes.
    spot : bool
        Whether Compute Engine may take it away at any time.
    workers : int
        How many Dask workers it is to have; a scheduler's machine mostly none.
    detail : str
        The phase of its boot, or why it is leaving, failed or lost.
    """

    name: str
    role: str
    state: str
    since: datetime
    times: Mapping[str, datetime]
    zone: str = ""
    machine_type: str = ""
    cores: int = 0
    memory: int = 0
    spot: bool = False
    workers: int = 1
    detail: str = ""

    def seconds(self, state: str) -> float | None:
        """Return how long after it was asked for it came into a state.

        Parameters
        ----------
        state : str
            The state.

        Returns
        -------
        float or None
            Seconds; None if it was not seen in that state.
        """
        first, then = min(self.times.values()), self.times.get(state)
        return None if then is None else (then - first).total_seconds()

    def age(self, now: datetime | None = None) -> float:
        """Return how long it has been in its state.

        Parameters
        ----------
        now : datetime.datetime, optional
            The time, in UTC; the clock's by default.

        Returns
        -------
        float
            Seconds.
        """
        return max(0.0, ((now or _now()) - self.since).total_seconds())

    def __str__(self) -> str:
        detail = f": {self.detail}" if self.detail else ""
        return f"{self.name} {self.state}{detail}"


def render_time(seconds: float) -> str:
    """Say how long something took or takes.

    Parameters
    ----------
    seconds : float
        Seconds.

    Returns
    -------
    str
        In seconds, from two minutes on in minutes and seconds, and from two hours on in hours and
        minutes.

    Examples
    --------
    >>> render_time(0.4), render_time(41.2), render_time(125), render_time(7260)
    ('0 s', '41 s', '2 min 5 s', '2 h 1 min')
    """
    whole = max(0, round(seconds))
    if whole < 120:
        return f"{whole} s"
    if whole < 7200:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def _now() -> datetime:
    return datetime.now(timezone.utc)
