"""`instances.bulkInsert` in a zone: many instances by one call.

Each instance has a child operation of type ``insert``; parent and children share an
``operationGroupId``. If fewer than ``minCount`` come to life, all are deleted again. Source:
https://cloud.google.com/compute/docs/instances/multiple/about-bulk-creation
"""

from __future__ import annotations

import asyncio
import re
import uuid
from collections.abc import Mapping
from typing import Any

from dask_gce.emulator.blueprint import Blueprint, draw
from dask_gce.emulator.catalog.places import ZONES
from dask_gce.emulator.claims import Claim
from dask_gce.emulator.errors import OPERATION_CODE, APIError, OperationFailed, invalid, required
from dask_gce.emulator.lifecycle import Instance
from dask_gce.emulator.links import check_name
from dask_gce.emulator.operations import Operation, Work
from dask_gce.emulator.routing import Call

#: https://cloud.google.com/compute/docs/instances/multiple/about-bulk-creation#limitations
MOST_INSTANCES = 5000

#: https://cloud.google.com/compute/docs/troubleshooting/troubleshooting-bulk-vm-creation
MOST_AT_ONCE = 10

#: How many instances are begun before others have a turn.
_CHUNK = 50


def bulk_insert(call: Call) -> Operation:
    """Answer `instances.bulkInsert`.

    Parameters
    ----------
    call : Call
        The request.

    Returns
    -------
    Operation
        The parent operation.

    Raises
    ------
    APIError
        The request as a whole cannot be carried out.
    """
    body, project = call.body, call.project
    if "instanceProperties" not in body:
        raise required("resource.instanceProperties")
    for regional in ("locationPolicy", "instanceFlexibilityPolicy"):
        if regional in body:
            raise invalid(f"resource.{regional}", "", "It is for regional bulk inserts only.")
    if "sourceInstanceTemplate" in body:
        raise invalid(
            "resource.sourceInstanceTemplate",
            body["sourceInstanceTemplate"],
            "The local Compute Engine has no instance templates.",
        )
    hostnames = _names(call)
    count = len(hostnames)
    least = int(body.get("minCount", count))
    if not 0 < least <= count:
        raise invalid("resource.minCount", least, f"Must be between 1 and count, which is {count}.")
    blueprint = draw(call.cloud, project, call.zone, body["instanceProperties"], bulk=True)
    group = str(uuid.uuid4())
    progress = {
        "status": "CREATING",
        "targetVmCount": count,
        "createdVmCount": 0,
        "failedToCreateVmCount": 0,
        "deletedVmCount": 0,
    }

    if len(project.bulk_inserts) >= MOST_AT_ONCE:
        raise APIError(
            403,
            "rateLimitExceeded",
            f"Too many bulk inserts: at most {MOST_AT_ONCE} can run at the same time.",
        )
    blueprint.demand.charge(call.cloud.conditions.quota, project.id, ZONES[call.zone], count)
    children: dict[str, Operation] = {}
    complete = asyncio.Event()

    async def work(operation: Operation) -> None:
        try:
            await complete.wait()
            await _gather(call, children, progress, least)
        finally:
            project.bulk_inserts.discard(operation)

    async def begin_children() -> None:
        try:
            for index, (name, hostname) in enumerate(hostnames.items()):
                if index % _CHUNK == _CHUNK - 1:
                    # Thousands of instances take a while, and others ask as well.
                    await asyncio.sleep(0)
                children[name] = _begin_child(
                    call, name, hostname, blueprint=blueprint, group=group
                )
        finally:
            complete.set()

    parent = call.begin(
        "bulkInsert",
        "instances/bulkInsert",
        work,
        operationGroupId=group,
        instancesBulkInsertOperationMetadata={"perLocationStatus": {call.scope: progress}},
    )
    # The children begin before the answer, so that whoever has it finds them in the list. A task of
    # the emulator's own begins them, whether or not the client still waits for the answer.
    parent.complete = complete
    project.bulk_inserts.add(parent)
    call.cloud.operations.spawn(begin_children())
    return parent


def _names(call: Call) -> Mapping[str, str | None]:
    """Return the host name each new instance asks for, by the instance's name."""
    body = call.body
    per_instance: dict[str, dict[str, Any]] = body.get("perInstanceProperties", {})
    pattern: str = body.get("namePattern", "")
    if per_instance and pattern:
        raise invalid(
            "resource.namePattern", pattern, "It and perInstanceProperties exclude each other."
        )
    if not per_instance and not pattern:
        raise required("resource.namePattern")
    count = int(body.get("count", len(per_instance)))
    if not 0 < count <= MOST_INSTANCES:
        raise invalid("resource.count", count, f"Must be between 1 and {MOST_INSTANCES}.")
    if per_instance:
        if count != len(per_instance):
            raise invalid("resource.count", count, "It differs from perInstanceProperties.")
        return {
            check_name(name, "resource.perInstanceProperties"): properties.get("hostname")
            for name, properties in per_instance.items()
        }
    match = re.fullmatch(r"([^#]*)(#{1,18})([^#]*)", pattern)
    if match is None:
        raise invalid("resource.namePattern", pattern, "It needs one run of 1 to 18 '#'.")
    before, run, after = match.groups()
    known = re.compile(rf"{re.escape(before)}(\d{{{len(run)},}}){re.escape(after)}")
    taken = [
        int(found[1])
        for found in map(known.fullmatch, call.project.instances.get(call.zone, {}))
        if found
    ]
    first = max(taken, default=0) + 1
    return {
        check_name(f"{before}{index:0{len(run)}}{after}", "resource.namePattern"): None
        for index in range(first, first + count)
    }


def _begin_child(
    call: Call, name: str, hostname: str | None, *, blueprint: Blueprint, group: str
) -> Operation:
    project, zone = call.project, call.zone
    target_id = None
    work: Work
    if name in project.instances.get(zone, {}):
        path = f"{project.path}/zones/{zone}/instances/{name}"
        Claim(call.cloud, project, zone, blueprint).end()
        work = _failing("RESOURCE_ALREADY_EXISTS", f"The resource '{path}' already exists")
    else:
        try:
            instance = Instance(
                call.cloud, project, zone, name, blueprint=blueprint, hostname=hostname
            )
        except APIError as error:
            work = _failing(OPERATION_CODE[error.reason], error.message)
        else:
            target_id = instance.resource["id"]
            work = instance.creation(call.route.method_id)
    return call.begin(
        "insert", f"instances/{name}", work, target_id=target_id, operationGroupId=group
    )


def _failing(code: str, message: str) -> Work:
    async def work(operation: Operation) -> None:
        raise OperationFailed([{"code": code, "message": message}])

    return work


async def _gather(
    call: Call, children: Mapping[str, Operation], progress: dict[str, Any], least: int
) -> None:
    for child in children.values():
        await child.wait()
        progress["failedToCreateVmCount" if child.errors else "createdVmCount"] += 1
    if progress["createdVmCount"] >= least:
        progress["status"] = "DONE"
        return
    progress["status"] = "ROLLING_BACK"
    instances = call.project.instances.get(call.zone, {})
    deletions = [
        instances[name].begin("delete", instances[name].delete)
        for name, child in children.items()
        if not child.errors and name in instances
    ]
    for deletion in deletions:
        await deletion.wait()
        progress["deletedVmCount"] += 1
    progress["status"] = "DONE"
    causes: dict[str, dict[str, Any]] = {}
    for child in children.values():
        for error in child.errors:
            causes.setdefault(str(error.get("code")), error)
    raise OperationFailed(
        [
            {
                "code": "VM_MIN_COUNT_NOT_REACHED",
                "message": f"Requested minimum count of {least} VMs could not be created.",
            },
            *causes.values(),
        ]
    )
