"""The calls about instances, as data, and how the answers of lists are read.

Pure: nothing is sent from here. Who sends them is `instances` on the event loop and `instances_now`
on the calling thread.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

from dask_gce.failures import Place
from dask_gce.instance import INSTANCE_FIELDS
from dask_gce.library import Call

__all__ = [
    "aggregated_list_call",
    "bulk_insert_call",
    "delete_call",
    "insert_call",
    "instance_call",
    "instance_key",
    "list_call",
    "merge_scopes",
    "set_labels_call",
    "set_metadata_call",
    "set_scheduling_call",
]

#: What lists ask of each instance. Without a mask they carry all metadata and startup scripts.
_READ = ",".join(INSTANCE_FIELDS)


def instance_key(zone: str, name: str) -> str:
    """Return the key by which `calls` knows what a call may create.

    Parameters
    ----------
    zone : str
        Zone name.
    name : str
        The instance.

    Returns
    -------
    str
        The key.
    """
    return f"{zone}/{name}"


def insert_call(project: str, zone: str, body: Mapping[str, Any], request_id: str | None) -> Call:
    """Return the call that begins to create an instance.

    Parameters
    ----------
    project : str
        Project ID.
    zone : str
        Zone name.
    body : mapping
        A ``compute#instance`` resource as API JSON.
    request_id : str or None
        A UUID by which Compute Engine knows a repeated request; None for a new one.

    Returns
    -------
    Call
        The call.
    """
    name = str(body.get("name", ""))
    return Call(
        "Instances",
        "insert_unary",
        "InsertInstanceRequest",
        Place(f"insert instance {name}", project, zone, name),
        _change(project, zone, request_id),
        body,
        "instance_resource",
        group="write",
    )


def bulk_insert_call(
    project: str, zone: str, body: Mapping[str, Any], request_id: str | None
) -> Call:
    """Return the call that begins to create many instances.

    Parameters
    ----------
    project : str
        Project ID.
    zone : str
        Zone name.
    body : mapping
        A ``BulkInsertInstanceResource`` as API JSON.
    request_id : str or None
        A UUID by which Compute Engine knows a repeated request; None for a new one.

    Returns
    -------
    Call
        The call.
    """
    count = body.get("count", len(body.get("perInstanceProperties", {})))
    return Call(
        "Instances",
        "bulk_insert_unary",
        "BulkInsertInstanceRequest",
        Place(f"insert {count} instances", project, zone),
        _change(project, zone, request_id),
        body,
        "bulk_insert_instance_resource_resource",
        group="write",
    )


def instance_call(
    project: str, zone: str, name: str, *, verb: str, request: str, action: str, **fields: Any
) -> Call:
    """Return a call about one instance.

    Parameters
    ----------
    project : str
        Project ID.
    zone : str
        Zone name.
    name : str
        The instance.
    verb : str
        The client's method.
    request : str
        The library's request class.
    action : str
        What is done, in words that end before ``instance NAME``.
    **fields
        Further fields of the request.

    Returns
    -------
    Call
        The call; a read.
    """
    return Call(
        "Instances",
        verb,
        request,
        Place(f"{action} instance {name}", project, zone, name),
        {"project": project, "zone": zone, "instance": name, **fields},
    )


def delete_call(project: str, zone: str, name: str, request_id: str | None) -> Call:
    """Return the call that begins to delete an instance.

    Parameters
    ----------
    project : str
        Project ID.
    zone : str
        Zone name.
    name : str
        The instance.
    request_id : str or None
        A UUID by which Compute Engine knows a repeated request; None for a new one.

    Returns
    -------
    Call
        The call.
    """
    call = instance_call(
        project,
        zone,
        name,
        verb="delete_unary",
        request="DeleteInstanceRequest",
        action="delete",
    )
    change = _change(project, zone, request_id)
    return replace(call, fields={**change, "instance": name}, group="write")


def set_metadata_call(
    project: str, zone: str, name: str, metadata: Mapping[str, Any], request_id: str | None
) -> Call:
    """Return the call that begins to replace an instance's metadata.

    Parameters
    ----------
    project : str
        Project ID.
    zone : str
        Zone name.
    name : str
        The instance.
    metadata : mapping
        A ``compute#metadata`` resource as API JSON: all items, and the fingerprint of those that
        they replace.
    request_id : str or None
        A UUID by which Compute Engine knows a repeated request; None for a new one.

    Returns
    -------
    Call
        The call.
    """
    call = instance_call(
        project,
        zone,
        name,
        verb="set_metadata_unary",
        request="SetMetadataInstanceRequest",
        action="set the metadata of",
    )
    change = _change(project, zone, request_id)
    return replace(
        call,
        fields={**change, "instance": name},
        body=metadata,
        body_field="metadata_resource",
        group="write",
    )


def set_labels_call(
    project: str,
    zone: str,
    name: str,
    labels: Mapping[str, str],
    fingerprint: str,
    request_id: str | None,
) -> Call:
    """Return the call that begins to replace an instance's labels.

    Parameters
    ----------
    project : str
        Project ID.
    zone : str
        Zone name.
    name : str
        The instance.
    labels : mapping of str to str
        All labels.
    fingerprint : str
        That of the labels that they replace.
    request_id : str or None
        A UUID by which Compute Engine knows a repeated request; None for a new one.

    Returns
    -------
    Call
        The call.
    """
    call = instance_call(
        project,
        zone,
        name,
        verb="set_labels_unary",
        request="SetLabelsInstanceRequest",
        action="set the labels of",
    )
    change = _change(project, zone, request_id)
    return replace(
        call,
        fields={**change, "instance": name},
        body={"labels": dict(labels), "labelFingerprint": fingerprint},
        body_field="instances_set_labels_request_resource",
        group="write",
    )


def set_scheduling_call(
    project: str, zone: str, name: str, scheduling: Mapping[str, Any], request_id: str | None
) -> Call:
    """Return the call that begins to change how an instance is scheduled.

    Parameters
    ----------
    project : str
        Project ID.
    zone : str
        Zone name.
    name : str
        The instance.
    scheduling : mapping
        A ``Scheduling`` as API JSON.
    request_id : str or None
        A UUID by which Compute Engine knows a repeated request; None for a new one.

    Returns
    -------
    Call
        The call.
    """
    call = instance_call(
        project,
        zone,
        name,
        verb="set_scheduling_unary",
        request="SetSchedulingInstanceRequest",
        action="set the scheduling of",
    )
    change = _change(project, zone, request_id)
    return replace(
        call,
        fields={**change, "instance": name},
        body=scheduling,
        body_field="scheduling_resource",
        group="write",
    )


def list_call(project: str, zone: str, filter: str, fields: str | None) -> Call:
    """Return the call for the first page of a zone's instances.

    Parameters
    ----------
    project : str
        Project ID.
    zone : str
        Zone name.
    filter : str
        An AIP-160 filter; empty for all.
    fields : str or None
        A field mask of one page; None for what `instance` reads; ``"*"`` for all.

    Returns
    -------
    Call
        The call.
    """
    request = {"project": project, "zone": zone}
    if filter:
        request["filter"] = filter
    place = Place("list instances", project, zone)
    mask = fields or f"items({_READ})"
    if mask == "*":
        mask = ""
    elif "nextPageToken" not in mask:
        # Without the token of the next page a list would end with its first.
        mask = f"{mask},nextPageToken"
    return Call("Instances", "list", "ListInstancesRequest", place, request, mask=mask)


def aggregated_list_call(project: str, filter: str, fields: str | None) -> Call:
    """Return the call for the first page of the instances of all zones.

    Parameters
    ----------
    project : str
        Project ID.
    filter : str
        An AIP-160 filter; empty for all.
    fields : str or None
        A field mask of one instance; None for what `instance` reads; ``"*"`` for all.

    Returns
    -------
    Call
        The call.
    """
    mask = f"items/*/instances({fields or _READ}),items/*/warning,unreachables,nextPageToken"
    request = {"project": project}
    if filter:
        request["filter"] = filter
    return Call(
        "Instances",
        "aggregated_list",
        "AggregatedListInstancesRequest",
        Place("list the instances of all zones", project),
        request,
        mask="" if fields == "*" else mask,
        group="heavy",
    )


def _change(project: str, zone: str, request_id: str | None) -> dict[str, Any]:
    return {"project": project, "zone": zone, "request_id": request_id or str(uuid.uuid4())}


def merge_scopes(
    pages: Iterable[Mapping[str, Any]],
) -> tuple[list[dict[str, Any]], frozenset[str]]:
    """Merge the pages of an aggregated list of instances.

    From API version 2026-09-01 on such a list is always partial: a zone that did not answer is
    named in ``unreachables``, or its scope carries the warning ``UNREACHABLE``.

    Parameters
    ----------
    pages : iterable of mapping
        ``compute#instanceAggregatedList`` resources.

    Returns
    -------
    instances : list of dict
        The instances of all scopes.
    unreachable : frozenset of str
        Zones that did not answer.

    Examples
    --------
    >>> merge_scopes([{
    ...     "items": {
    ...         "zones/us-central1-a": {"instances": [{"name": "dask-1"}]},
    ...         "zones/us-central1-b": {"warning": {"code": "NO_RESULTS_ON_PAGE"}},
    ...         "zones/us-central1-c": {"warning": {"code": "UNREACHABLE"}},
    ...     },
    ... }])
    ([{'name': 'dask-1'}], frozenset({'us-central1-c'}))
    """
    instances: list[dict[str, Any]] = []
    unreachable: set[str] = set()
    for page in pages:
        unreachable.update(str(scope).rpartition("/")[2] for scope in page.get("unreachables", ()))
        for scope, content in page.get("items", {}).items():
            instances.extend(content.get("instances", ()))
            if content.get("warning", {}).get("code") == "UNREACHABLE":
                unreachable.add(scope.rpartition("/")[2])
    return instances, frozenset(unreachable)
