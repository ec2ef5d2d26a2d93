"""How long things take in the local Compute Engine."""

from __future__ import annotations

from dataclasses import dataclass, fields


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
        Seconds an instance stays STAGING before its machine boots.
    stopping : float
        Seconds a guest may take to end in order before it is killed; Compute Engine grants 120
        to a standard instance and 30 to a Spot instance.
    deleting : float
        Seconds from a machine's end to the disappearance of its instance.
    creating : float
        Seconds it takes to create or delete a disk, a network or a firewall rule.
    operation_wait : float
        Seconds after which ``operations.wait`` answers though the operation is not done.
    run_duration_scale : float
        Seconds that pass per second of ``scheduling.maxRunDuration``.

    Examples
    --------
    >>> Timings(provisioning=20, staging=5).stopping
    5.0
    """

    latency: float = 0.002
    pending: float = 0.005
    provisioning: float = 0.1
    staging: float = 0.1
    stopping: float = 5.0
    deleting: float = 0.05
    creating: float = 0.02
    operation_wait: float = 120.0
    run_duration_scale: float = 1.0

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if not value >= 0:
                raise ValueError(f"Timings.{field.name} must not be negative, not {value!r}")
