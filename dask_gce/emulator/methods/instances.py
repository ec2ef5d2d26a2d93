"""Methods of instances, but for their bulk creation."""

from __future__ import annotations

import asyncio
from functools import partial
from typing import Any

from dask_gce.emulator.attributes import check_labels, check_metadata
from dask_gce.emulator.blueprint import draw
from dask_gce.emulator.catalog.places import ZONES
from dask_gce.emulator.errors import (
    OPERATION_CODE,
    APIError,
    OperationFailed,
    already_exists,
    bad_request,
    condition_not_met,
    invalid,
    not_found,
    not_ready,
    required,
)
from dask_gce.emulator.faults import Fault
from dask_gce.emulator.lifecycle import Instance
from dask_gce.emulator.links import check_name, fingerprint
from dask_gce.emulator.methods.bulk import bulk_insert
from dask_gce.emulator.operations import Operation, Work
from dask_gce.emulator.query import aggregate, listing
from dask_gce.emulator.reserved import ADDRESS_IN_USE
from dask_gce.emulator.routing import AGGREGATED, LIST, MUTATION, Call, Route, number
from dask_gce.emulator.scheduling import check_scheduling

Resource = dict[str, Any]


def find(call: Call) -> Instance:
    """Return the instance that a request is about.

    Parameters
    ----------
    call : Call
        The request.

    Returns
    -------
    Instance
        The instance.

    Raises
    ------
    APIError
        It does not exist.
    """
    name = call.params["instance"]
    found = call.project.instances.get(call.zone, {}).get(name)
    if found is None:
        raise not_found(f"{call.project.path}/zones/{call.zone}/instances/{name}")
    return found


def _insert(call: Call) -> Operation:
    if not call.body:
        raise required("resource")
    project, zone = call.project, call.zone
    name = check_name(call.body.get("name", ""))
    blueprint = draw(call.cloud, project, zone, call.body, bulk=False)
    if name in project.instances.get(zone, {}):
        raise already_exists(f"{project.path}/zones/{zone}/instances/{name}")
    blueprint.demand.charge(call.cloud.conditions.quota, project.id, ZONES[zone])
    try:
        instance = Instance(call.cloud, project, zone, name, blueprint=blueprint)
    except APIError as refusal:
        if refusal.reason != ADDRESS_IN_USE:
            raise
        # That is found out after the request is accepted.
        error = {"code": OPERATION_CODE[refusal.reason], "message": refusal.message}
        return call.begin("insert", f"instances/{name}", partial(_refuse, error))
    return _begin(call, instance, "insert", instance.creation(call.route.method_id))


async def _refuse(error: dict[str, Any], operation: Operation) -> None:
    raise OperationFailed([error])


def _begin(call: Call, instance: Instance, operation_type: str, work: Work) -> Operation:
    return call.begin(
        operation_type, f"instances/{instance.name}", work, target_id=instance.resource["id"]
    )


def _begin_or_fail(call: Call, instance: Instance, operation_type: str, work: Work) -> Operation:
    """Begin an operation; by a fault it does nothing but fail, and the instance stays as it is."""
    faults = call.cloud.conditions.faults
    fault = faults.take(call.route.method_id, instance.name, operation=True)
    return _begin(call, instance, operation_type, work if fault is None else partial(_fail, fault))


async def _fail(fault: Fault, operation: Operation) -> None:
    await asyncio.sleep(fault.delay)
    raise OperationFailed([dict(error) for error in fault.operation_errors])


def _get(call: Call) -> Resource:
    return find(call).resource


def _list(call: Call) -> Resource:
    instances = call.project.instances.get(call.zone, {})
    return listing(call, "instanceList", [one.resource for one in instances.values()])


def _aggregated(call: Call) -> Resource:
    scopes = {
        f"zones/{zone}": [one.resource for one in call.project.instances.get(zone, {}).values()]
        for zone in ZONES
    }
    return aggregate(call, "instanceAggregatedList", "instances", scopes)


def _delete(call: Call) -> Operation:
    instance = find(call)
    if instance.resource["deletionProtection"]:
        raise APIError(
            400,
            "invalidUsage",
            "Invalid resource usage: 'Resource cannot be deleted if it's protected against"
            " deletion. Disable deletion protection before deleting the resource.'.",
        )
    return _begin_or_fail(call, instance, "delete", instance.delete)


def _stop(call: Call) -> Operation:
    instance = find(call)
    return _begin_or_fail(call, instance, "stop", instance.stop)


def _start(call: Call) -> Operation:
    instance = find(call)
    if instance.status == "STOPPING":
        raise not_ready(instance.path)
    return _begin_or_fail(call, instance, "start", instance.start)


def _reset(call: Call) -> Operation:
    instance = find(call)
    if instance.status != "RUNNING":
        raise not_ready(instance.path)
    return _begin_or_fail(call, instance, "reset", instance.reset)


def _changed(instance: Instance) -> None:
    """Show that somebody changed an instance: by its fingerprint, and to its guest."""
    shown = [instance.resource[field] for field in ("id", "metadata", "labelFingerprint")]
    instance.resource["fingerprint"] = fingerprint(shown)
    instance.record.touch()


def _set_metadata(call: Call) -> Operation:
    instance, given = find(call), call.body.get("fingerprint")
    stale = "Supplied fingerprint does not match current metadata fingerprint."

    def fits() -> bool:
        held = instance.resource["metadata"]
        # What is empty can be written without a look.
        return given == held["fingerprint"] or (given is None and "items" not in held)

    if given is not None and not fits():
        raise condition_not_met(stale)
    metadata = check_metadata(call.body, "resource")

    async def work(operation: Operation) -> None:
        # Somebody else's change may have been accepted first, and that no fingerprint was given
        # where there should be one is found out as late: Compute Engine accepts both.
        if not fits():
            raise OperationFailed([{"code": "CONDITION_NOT_MET", "message": stale}])
        instance.resource["metadata"] = metadata
        _changed(instance)

    return _begin_or_fail(call, instance, "setMetadata", work)


def _set_labels(call: Call) -> Operation:
    instance, given = find(call), call.body.get("labelFingerprint")
    stale = "Labels fingerprint either invalid or resource labels have changed"
    if given != instance.resource["labelFingerprint"]:
        raise condition_not_met(stale)
    labels = check_labels(call.body.get("labels", {}), "resource.labels")

    async def work(operation: Operation) -> None:
        if given != instance.resource["labelFingerprint"]:
            raise OperationFailed([{"code": "CONDITION_NOT_MET", "message": stale}])
        instance.resource.pop("labels", None)
        if labels:
            instance.resource["labels"] = labels
        instance.resource["labelFingerprint"] = fingerprint(labels)
        _changed(instance)

    return _begin_or_fail(call, instance, "setLabels", work)


#: What of the scheduling is fixed while an instance runs, and how Google names it. Of the first and
#: the last Google's own words are known; the page of the method says that nothing can be changed:
#: https://cloud.google.com/compute/docs/reference/rest/v1/instances/setScheduling
_FIXED = {
    "maxRunDuration": "Max run duration",
    "terminationTime": "Termination time",
    "provisioningModel": "Provisioning model",
    "preemptible": "Preemptibility",
    "minNodeCpus": "minNodeCpus",
}


def _set_scheduling(call: Call) -> Operation:
    instance = find(call)
    held = instance.resource["scheduling"]
    accelerated = bool(instance.resource.get("guestAccelerators"))
    scheduling = check_scheduling(call.body, "resource", accelerated=accelerated)
    lenient = call.route.method_id in call.cloud.conditions.lenient
    if instance.status != "TERMINATED" and not lenient:
        for field, words in _FIXED.items():
            if held.get(field) != scheduling.get(field):
                raise bad_request(f"{words} cannot be changed while the instance is running.")

    async def work(operation: Operation) -> None:
        instance.reschedule(scheduling)
        _changed(instance)

    return _begin_or_fail(call, instance, "setScheduling", work)


def _serial_port(call: Call) -> Resource:
    instance = find(call)
    port = number(call, "port", 1, 1, 4)
    start = number(call, "start", 0, -(2**62), 2**62)
    # Only the first port is wired; the others are there and silent, as on most guests.
    contents, first, following = instance.record.serial.read(start) if port == 1 else (b"", 0, 0)
    return {
        "kind": "compute#serialPortOutput",
        "selfLink": call.cloud.url(call.path),
        "contents": contents.decode(errors="replace"),
        "start": str(first),
        "next": str(following),
    }


def _guest_attributes(call: Call) -> Resource:
    instance = find(call)
    if instance.record.metadata.get("enable-guest-attributes", "").upper() != "TRUE":
        raise condition_not_met(f"Guest attributes are disabled for instance {instance.name}.")
    query = call.query.get("queryPath", "")
    key = call.query.get("variableKey", "")
    if query and key:
        raise bad_request("queryPath and variableKey exclude each other.")
    namespace, _, name = (query or key).partition("/")
    if key and not name:
        raise invalid("variableKey", key, "Must be NAMESPACE/KEY.")
    items = [
        {"namespace": space, "key": one, "value": value}
        for space, values in sorted(instance.record.guest_attributes.items())
        for one, value in sorted(values.items())
        if namespace in ("", space) and name in ("", one)
    ]
    if not items:
        raise not_found(f"{instance.path}/guestAttributes/{query or key}")
    shown: Resource = {"kind": "compute#guestAttributes", "selfLink": call.cloud.url(call.path)}
    if key:
        shown.update(variableKey=key, variableValue=items[0]["value"])
    else:
        shown.update(queryPath=query, queryValue={"items": items})
    return shown


_ALL = "projects/{project}/zones/{zone}/instances"
_ONE = f"{_ALL}/{{instance}}"
_GUEST = frozenset({"queryPath", "variableKey"})

ROUTES = [
    Route("compute.instances.insert", "POST", _ALL, _insert, MUTATION, "Instance"),
    Route(
        "compute.instances.bulkInsert",
        "POST",
        f"{_ALL}/bulkInsert",
        bulk_insert,
        MUTATION,
        "BulkInsertInstanceResource",
    ),
    Route("compute.instances.get", "GET", _ONE, _get),
    Route("compute.instances.list", "GET", _ALL, _list, LIST),
    Route(
        "compute.instances.aggregatedList",
        "GET",
        "projects/{project}/aggregated/instances",
        _aggregated,
        AGGREGATED,
    ),
    Route("compute.instances.delete", "DELETE", _ONE, _delete, MUTATION | {"noGracefulShutdown"}),
    Route(
        "compute.instances.stop",
        "POST",
        f"{_ONE}/stop",
        _stop,
        MUTATION | {"discardLocalSsd", "noGracefulShutdown"},
    ),
    Route("compute.instances.start", "POST", f"{_ONE}/start", _start, MUTATION),
    Route("compute.instances.reset", "POST", f"{_ONE}/reset", _reset, MUTATION),
    Route(
        "compute.instances.setMetadata",
        "POST",
        f"{_ONE}/setMetadata",
        _set_metadata,
        MUTATION,
        "Metadata",
    ),
    Route(
        "compute.instances.setLabels",
        "POST",
        f"{_ONE}/setLabels",
        _set_labels,
        MUTATION,
        "InstancesSetLabelsRequest",
    ),
    Route(
        "compute.instances.setScheduling",
        "POST",
        f"{_ONE}/setScheduling",
        _set_scheduling,
        MUTATION,
        "Scheduling",
    ),
    Route(
        "compute.instances.getSerialPortOutput",
        "GET",
        f"{_ONE}/serialPort",
        _serial_port,
        frozenset({"port", "start"}),
    ),
    Route(
        "compute.instances.getGuestAttributes",
        "GET",
        f"{_ONE}/getGuestAttributes",
        _guest_attributes,
        _GUEST,
    ),
]
