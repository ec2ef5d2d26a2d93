"""Compute Engine's operations: what a change that was accepted, and is still going on, looks like.

Pure: API JSON in, a frozen dataclass out. Waiting for one is left to `operations`, turning a failed
one into an exception to `failures`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

__all__ = ["Operation", "parse_operation"]


@dataclass(frozen=True)
class Operation:
    """A zonal operation, as Compute Engine last showed it.

    Parameters
    ----------
    name : str
        Its name, for example ``"operation-1700000000000-60a..."``.
    zone : str
        The zone it runs in.
    type : str
        What it does: ``"insert"``, ``"bulkInsert"``, ``"delete"``, ...
    status : str
        ``"PENDING"``, ``"RUNNING"`` or ``"DONE"``; done does not mean that it succeeded.
    target : str
        The name of the instance it works on; empty for a bulk insert.
    group : str
        ``operationGroupId``, which a bulk insert shares with the operations of its instances; else
        empty.
    errors : tuple of dict
        ``error.errors`` as Google sent them; empty when nothing failed so far.
    http_status : int
        ``httpErrorStatusCode``; 0 when nothing failed so far.
    http_message : str
        ``httpErrorMessage``; empty when nothing failed so far.
    """

    name: str
    zone: str
    type: str
    status: str
    target: str = ""
    group: str = ""
    errors: tuple[dict[str, Any], ...] = ()
    http_status: int = 0
    http_message: str = ""

    @property
    def what(self) -> str:
        """What it does to what, in words."""
        if self.target:
            return f"{self.type} instance {self.target}"
        return f"{self.type} instances"

    @property
    def done(self) -> bool:
        """Whether it has ended, well or badly."""
        return self.status == "DONE"

    @property
    def failed(self) -> bool:
        """Whether it has ended badly."""
        return self.done and (bool(self.errors) or self.http_status >= 400)


def parse_operation(data: Mapping[str, Any]) -> Operation:
    """Return the operation that API JSON describes.

    Parameters
    ----------
    data : mapping
        A ``compute#operation`` resource.

    Returns
    -------
    Operation
        The same as a dataclass.

    Examples
    --------
    >>> parse_operation({
    ...     "name": "operation-1",
    ...     "zone": "https://www.googleapis.com/compute/v1/projects/p/zones/us-central1-a",
    ...     "operationType": "insert",
    ...     "status": "DONE",
    ...     "targetLink": "https://www.googleapis.com/compute/v1/projects/p/zones/z/instances/i-1",
    ... }).target
    'i-1'
    """
    kind = str(data.get("operationType", ""))
    collection, _, name = str(data.get("targetLink", "")).rpartition("/")
    return Operation(
        name=str(data.get("name", "")),
        zone=str(data.get("zone", "")).rpartition("/")[2],
        type=kind,
        status=str(data.get("status", "")),
        # A bulk insert's target link names no instance.
        target=name if collection.endswith("/instances") and kind != "bulkInsert" else "",
        group=str(data.get("operationGroupId", "")),
        errors=tuple(dict(error) for error in data.get("error", {}).get("errors", ())),
        http_status=int(data.get("httpErrorStatusCode", 0)),
        http_message=str(data.get("httpErrorMessage", "")),
    )
