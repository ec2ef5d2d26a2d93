"""How long things take in the local Compute Engine."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields


@dataclass(frozen=True)
class Timings:
    """How long things take; real Compute Engine takes tens of seconds, tests want less.

    Parameters
    ----------
    latency : float
        Seconds from a request to its answer.
    pending : float
        Seconds an operation stays PENDING.
    provisioning : float
        Seconds an instance stays PROVISIONING.
    staging : float
        Seconds an instance stays STAGING.
    booting : float
        Seconds the operating system takes to boot: from RUNNING, which Compute Engine shows when
        the power is on, to the start of the machine's program.
    stopping : float
        Seconds a guest may take to end in order before it is killed; Compute Engine grants 120
        to a standard instance and 30 to a Spot instance.
    deleting : float
        Seconds from a machine's end to the disappearance of its instance.
    creating : float
        Seconds it takes to create or delete a disk, a network or a firewall rule.
    imaging : float
        Seconds it takes to make an image of a disk.
    operation_wait : float
        Seconds after which ``operations.wait`` answers though the operation is not done.
    resuming : float
        Seconds for which a tunnel whose websocket broke off can be taken up again.
    run_duration_scale : float
        Seconds that pass per second of ``scheduling.maxRunDuration``, and of the notice before a
        preemption or maintenance.
    minute : float
        Seconds that a minute of the rate quotas lasts.
    latencies : mapping
        Seconds from a request to its answer, by the ID of the method, for example
        ``{"compute.instances.insert": 1.0}``; `latency` is for all others.

    Examples
    --------
    >>> Timings(provisioning=20, staging=5).stopping
    5.0
    >>> Timings(latencies={"compute.instances.list": 0.2}).latency_of("compute.instances.list")
    0.2
    """

    latency: float = 0.002
    pending: float = 0.005
    provisioning: float = 0.1
    staging: float = 0.1
    booting: float = 0.0
    stopping: float = 5.0
    deleting: float = 0.05
    creating: float = 0.02
    imaging: float = 0.05
    operation_wait: float = 120.0
    resuming: float = 60.0
    run_duration_scale: float = 1.0
    minute: float = 60.0
    latencies: Mapping[str, float] = field(default_factory=dict, hash=False)

    def __post_init__(self) -> None:
        single = {one.name: getattr(self, one.name) for one in fields(self)}
        named = single.pop("latencies")
        for name, value in {**single, **named}.items():
            if not value >= 0:
                raise ValueError(f"Timings.{name} must not be negative, not {value!r}")
        if not self.minute:
            raise ValueError("Timings.minute must not be zero")

    def latency_of(self, method_id: str) -> float:
        """Return how long the answer to a request takes.

        Parameters
        ----------
        method_id : str
            The method's ID; empty when there is none.

        Returns
        -------
        float
            Seconds.
        """
        return self.latencies.get(method_id, self.latency)


def read_timings(settings: Iterable[str]) -> Timings:
    """Return the timings that a command line asks for.

    Parameters
    ----------
    settings : iterable of str
        ``NAME=SECONDS`` each. The name is that of a parameter of :class:`Timings` or the ID of a
        method, whose latency is meant.

    Returns
    -------
    Timings
        The timings.

    Raises
    ------
    ValueError
        There is no such name, or the seconds are no number or negative.

    Examples
    --------
    >>> read_timings(["booting=15", "compute.instances.insert=1"]).latencies
    {'compute.instances.insert': 1.0}
    """
    names = {one.name for one in fields(Timings)} - {"latencies"}
    single: dict[str, float] = {}
    latencies: dict[str, float] = {}
    for setting in settings:
        name, _, text = setting.partition("=")
        if name not in names and "." not in name:
            raise ValueError(
                f"there is no timing {name!r}: NAME=SECONDS takes the ID of a method or one of"
                f" {', '.join(sorted(names))}"
            )
        try:
            seconds = float(text)
        except ValueError:
            raise ValueError(f"{setting!r} is not NAME=SECONDS") from None
        (single if name in names else latencies)[name] = seconds
    return Timings(**single, latencies=latencies)
