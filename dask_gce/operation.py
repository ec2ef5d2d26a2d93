"""Compute Engine's operations: what a change that was accepted, and is still going on, looks like.

Pure: API JSON in, a frozen dataclass or words out. Waiting for one is left to `operations`, turning
a failed one into an exception to `failures`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import Any

__all__ = ["OPERATION_FIELDS", "PREEMPTED", "Operation", "explain_end", "parse_operation"]

#: What is read of an operation: the top-level fields of a ``compute#operation`` resource.
OPERATION_FIELDS = (
    "name",
    "zone",
    "operationType",
    "status",
    "targetLink",
    "operationGroupId",
    "error",
    "httpErrorStatusCode",
    "httpErrorMessage",
    "user",
    "insertTime",
    "startTime",
    "instancesBulkInsertOperationMetadata",
)

#: What operations work on that this package begins, by its collection, in words.
TARGETS = {"instances": "instance", "images": "image", "firewalls": "firewall rule"}

#: What Compute Engine does to instances of its own accord begins with this.
SYSTEM_PREFIX = "compute.instances."
#: How the end of a Spot machine is told that Compute Engine takes away.
PREEMPTED = "preempted by Compute Engine"
#: What ends or stops an instance, in words. Others that begin with the prefix are told by their
#: type (https://cloud.google.com/compute/docs/troubleshooting/troubleshooting-reboots).
SYSTEM_ENDS = {
    "compute.instances.preempted": PREEMPTED,
    "compute.instances.hostError": "its host failed",
    "compute.instances.guestTerminate": "it powered itself off",
    "compute.instances.terminateOnHostMaintenance": "its host went into maintenance",
}
#: What happens to instances that live on.
SYSTEM_STAYS = frozenset(
    {
        "compute.instances.automaticRestart",
        "compute.instances.localSsdRecoveryAttempting",
        "compute.instances.migrateOnHostMaintenance",
        "compute.instances.repair.recreateInstance",
    }
)
#: What somebody asked for.
ASKED_ENDS = {"delete": "deleted", "stop": "stopped", "suspend": "suspended"}
#: Who an operation belongs to that nobody asked for.
SYSTEM_USERS = frozenset({"", "system", "system@google.com"})


@dataclass(frozen=True)
class Operation:
    """An operation, as Compute Engine last showed it.

    Parameters
    ----------
    name : str
        Its name, for example ``"operation-1700000000000-60a..."``.
    zone : str
        The zone it runs in; empty for a global one, such as on images.
    type : str
        What it does: ``"insert"``, ``"bulkInsert"``, ``"delete"``, ...
    status : str
        ``"PENDING"``, ``"RUNNING"`` or ``"DONE"``; done does not mean that it succeeded.
    target : str
        The name of the instance, image or firewall rule it works on; empty for a bulk insert.
    group : str
        ``operationGroupId``, which a bulk insert shares with the operations of its instances; else
        empty.
    errors : tuple of dict
        ``error.errors`` as Google sent them; empty when nothing failed so far.
    http_status : int
        ``httpErrorStatusCode``; 0 when nothing failed so far.
    http_message : str
        ``httpErrorMessage``; empty when nothing failed so far.
    user : str
        Who asked for it: an e-mail address, or ``"system"``.
    started : str
        When it was asked for, as Google wrote it (RFC 3339); empty when that is not known.
    created : int or None
        How many instances a bulk insert has created so far; None when it does not tell.
    missing : int or None
        How many instances a bulk insert could not create so far; None when it does not tell.
    kind : str
        What the target is, in words; empty when that is not told.
    project : str
        The project it runs in; empty for that of the client.
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
    user: str = ""
    started: str = ""
    created: int | None = None
    missing: int | None = None
    kind: str = ""
    project: str = ""

    @property
    def what(self) -> str:
        """What it does to what, in words."""
        kind = self.kind or ("instance" if self.zone else "image")
        return f"{self.type} {kind} {self.target}" if self.target else f"{self.type} {kind}s"

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
    action = str(data.get("operationType", ""))
    collection, _, name = str(data.get("targetLink", "")).rpartition("/")
    kind = TARGETS.get(collection.rpartition("/")[2], "")
    metadata = data.get("instancesBulkInsertOperationMetadata")
    return Operation(
        name=str(data.get("name", "")),
        zone=str(data.get("zone", "")).rpartition("/")[2],
        type=action,
        status=str(data.get("status", "")),
        # A bulk insert's target link names no instance.
        target=name if kind and action != "bulkInsert" else "",
        group=str(data.get("operationGroupId", "")),
        errors=tuple(dict(error) for error in data.get("error", {}).get("errors", ())),
        http_status=int(data.get("httpErrorStatusCode", 0)),
        http_message=str(data.get("httpErrorMessage", "")),
        user=str(data.get("user", "")),
        # A system operation may have only the one or the other.
        started=str(data.get("insertTime") or data.get("startTime") or ""),
        created=_total(metadata, "createdVmCount"),
        missing=_total(metadata, "failedToCreateVmCount"),
        kind=kind,
    )


def _total(metadata: Mapping[str, Any] | None, count: str) -> int | None:
    if not metadata:
        return None
    return sum(int(place.get(count, 0)) for place in metadata.get("perLocationStatus", {}).values())


def explain_end(operations: Iterable[Operation], name: str) -> str:
    """Tell why an instance has ended, or is about to.

    Parameters
    ----------
    operations : iterable of Operation
        What was done to it, and perhaps to others, in any order.
    name : str
        The instance.

    Returns
    -------
    str
        The newest operation that ended or stopped it, in words that go on after "it no longer
        exists: ". Where Compute Engine deletes or stops it as the consequence of something else,
        that something. Empty when no operation explains it.

    Examples
    --------
    >>> operations = [
    ...     Operation("operation-1", "z", "insert", "DONE", "i", started="2026-01-01T09:00:00Z"),
    ...     Operation("operation-2", "z", "compute.instances.preempted", "DONE", "i",
    ...               user="system", started="2026-01-01T10:00:00Z"),
    ...     Operation("operation-3", "z", "delete", "DONE", "j", user="alice@example.com"),
    ... ]
    >>> explain_end(operations, "i")
    'preempted by Compute Engine'
    >>> explain_end(operations, "j")
    'deleted by alice@example.com'
    """
    ends = sorted(
        (one for one in operations if one.target == name and _ends(one)),
        key=lambda one: _moment(one.started),
        reverse=True,
    )
    taken = [one for one in ends if one.type == "compute.instances.preempted"]
    if taken and all(_consequence(one) or _by_itself(one) for one in ends[: ends.index(taken[0])]):
        # What machines do that know of their end is to end by themselves.
        return PREEMPTED
    chosen = next((one for one in ends if not _consequence(one)), next(iter(ends), None))
    return _words(chosen) if chosen is not None else ""


def _ends(operation: Operation) -> bool:
    if operation.failed:
        return False
    if operation.type.startswith(SYSTEM_PREFIX):
        return operation.type not in SYSTEM_STAYS
    return operation.type in ASKED_ENDS


def _consequence(operation: Operation) -> bool:
    return operation.type in ASKED_ENDS and operation.user in SYSTEM_USERS


def _by_itself(operation: Operation) -> bool:
    return operation.type == "compute.instances.guestTerminate" or (
        operation.type in ASKED_ENDS and operation.user.endswith("gserviceaccount.com")
    )


def _words(operation: Operation) -> str:
    kind = operation.type
    if kind in ASKED_ENDS:
        by = "Compute Engine" if operation.user in SYSTEM_USERS else operation.user
        return f"{ASKED_ENDS[kind]} by {by}" if operation.user else ASKED_ENDS[kind]
    words = SYSTEM_ENDS.get(kind, "Compute Engine ended it")
    return words if kind == "compute.instances.preempted" else f"{words} ({kind})"


def _moment(text: str) -> datetime:
    """Return a moment to sort by; times of one project may differ in their offset."""
    try:
        # Python 3.10 does not know the Z.
        moment = datetime.fromisoformat(text.replace("Z", "+00:00"))
    except ValueError:
        return datetime.min.replace(tzinfo=timezone.utc)
    return moment if moment.tzinfo is not None else moment.replace(tzinfo=timezone.utc)
