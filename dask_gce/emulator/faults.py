"""What is to go wrong, and proof that it did.

Owns: the script of faults. The server asks before every answer, the operations before they work.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal


@dataclass(frozen=True)
class Fault:
    """One thing that goes wrong.

    With `status` the call is refused; with `operation_errors` it is accepted and its operation
    fails; with `drop` the connection is closed without an answer; with `delay` it happens late.
    `delay` goes together with any of the others.

    Parameters
    ----------
    method : str
        The method it waits for, for example ``"compute.instances.insert"``. The instances of a
        bulk insert are failed under ``"compute.instances.bulkInsert"``, one by one.
    status : int
        The HTTP status of the refusal.
    reason : str
        Google's reason, for example ``"quotaExceeded"``.
    message : str
        Google's sentence.
    operation_errors : sequence of dict
        What ``operation.error.errors`` shows, each with ``code`` and ``message``. An instance whose
        insert fails vanishes; one whose deletion, stop, start or reset fails stays as it is.
    delay : float
        Seconds by which the request is carried out, refused or dropped late.
    drop : bool or "after"
        Whether the connection is closed without an answer: True does it instead of carrying the
        request out, ``"after"`` when it has been carried out and nobody learns of it.
    times : int
        How often it happens.
    match : callable or None
        Asked with the name of the resource (of the instance, in a bulk insert; empty for lists);
        the fault happens where it says yes. None is always yes.

    Examples
    --------
    >>> Fault("compute.instances.insert", status=403, reason="quotaExceeded", message="No.").times
    1
    """

    method: str
    status: int = 0
    reason: str = "backendError"
    message: str = "Injected fault."
    operation_errors: Sequence[Mapping[str, Any]] = ()
    delay: float = 0.0
    drop: bool | Literal["after"] = False
    times: int = 1
    match: Callable[[str], bool] | None = None

    def __post_init__(self) -> None:
        if self.drop not in (False, True, "after"):
            raise ValueError(f"Fault.drop must be a bool or 'after', not {self.drop!r}")
        effects = bool(self.status) + bool(self.operation_errors) + bool(self.drop)
        if effects > 1 or not (effects or self.delay):
            raise ValueError(
                "A Fault needs a delay or exactly one of status, operation_errors and drop"
            )
        if self.times < 1:
            raise ValueError(f"Fault.times must be at least 1, not {self.times}")


class Faults:
    """An ordered script of faults; the first that fits happens. Safe to use from any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._left: list[list[Any]] = []

    def add(self, *faults: Fault) -> None:
        """Append faults to the script.

        Parameters
        ----------
        *faults : Fault
            What is to go wrong.
        """
        with self._lock:
            self._left += [[fault, fault.times] for fault in faults]

    def clear(self) -> None:
        """Forget the script."""
        with self._lock:
            self._left.clear()

    def unused(self) -> list[Fault]:
        """Return what has not gone wrong yet.

        Returns
        -------
        list of Fault
            The faults that did not happen as often as they should have.
        """
        with self._lock:
            return [fault for fault, left in self._left if left]

    def take(self, method: str, name: str, *, operation: bool) -> Fault | None:
        """Return the fault that happens now, and count it.

        Parameters
        ----------
        method : str
            The method that is called.
        name : str
            The resource it is about.
        operation : bool
            Whether to look for a failing operation, or for a failing call.

        Returns
        -------
        Fault or None
            The fault, None when all goes well.
        """
        with self._lock:
            for entry in self._left:
                fault: Fault = entry[0]
                if (
                    entry[1]
                    and fault.method == method
                    and bool(fault.operation_errors) == operation
                    and (fault.match is None or fault.match(name))
                ):
                    entry[1] -= 1
                    return fault
        return None
