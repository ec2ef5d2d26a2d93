"""More time for a cluster that runs, as far as Compute Engine grants it: all of it, or none.

Owns what is changed in the cloud for it, and that it is changed back if anything refuses. Whether
more time is possible at all, and who else is told, is up to `limits`.

Compute Engine refuses to change the limit of a machine that runs: "Max run duration cannot be
changed while the instance is running". It is asked all the same, since only it can tell what holds
today; machines that have no limit need nothing of it. Of the labels that of the scheduler's machine
is changed, for among machines that disagree the latest end is the cluster's (`cluster_records`).
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from datetime import datetime
from typing import Any

from dask_gce import names
from dask_gce.blueprint import Blueprint
from dask_gce.compute import Compute
from dask_gce.errors import APIError, GCEError, NotFound, OperationError
from dask_gce.operation import Operation

__all__ = ["extend"]

logger = logging.getLogger(__name__)

#: Seconds that one change of a machine may take.
CHANGED_WITHIN = 60.0

#: What is read of each machine.
_FIELDS = "name,zone,status,labels,labelFingerprint,scheduling"

Undo = Callable[[], Awaitable[None]]


@contextlib.asynccontextmanager
async def extend(compute: Compute, blueprint: Blueprint, expires: int) -> AsyncIterator[None]:
    """Let the machines of a cluster live for longer; what fails within changes it back.

    Parameters
    ----------
    compute : Compute
        The Compute API.
    blueprint : Blueprint
        The cluster's, with the end so far.
    expires : int
        The new end, in seconds since 1970 UTC.

    Yields
    ------
    None
        When all machines have the new end.

    Raises
    ------
    GCEError
        If Compute Engine refuses, or the user's own overrides end a machine before.
    """
    undone: list[Undo] = []
    try:
        await _extend(compute, blueprint, expires, undone)
        yield
    except BaseException:
        for undo in reversed(undone):
            try:
                await undo()
            except GCEError as error:
                logger.warning("A machine may have another end than the others: %s", error)
        raise


async def _extend(compute: Compute, blueprint: Blueprint, expires: int, undone: list[Undo]) -> None:
    label = {names.CLUSTER_LABEL: blueprint.cluster, names.ID_LABEL: blueprint.identity}
    found, _ = await compute.aggregated_list_instances(names.label_filter(label), fields=_FIELDS)
    # The scheduler's first: what is refused for one is refused for all.
    machines = sorted(found, key=lambda each: not _is_scheduler(each))
    more = expires - (blueprint.expires or expires)
    for machine in machines:
        scheduling = machine.get("scheduling") or {}
        _check_moment(machine, scheduling, expires)
        if "maxRunDuration" not in scheduling:
            continue
        seconds = int(scheduling["maxRunDuration"].get("seconds", 0)) + more
        longer = {**scheduling, "maxRunDuration": {"seconds": str(seconds)}}
        try:
            if not await _change(compute, machine, longer):
                continue
        except (APIError, OperationError) as error:
            raise GCEError(
                f"Cluster {blueprint.cluster} keeps its end: Compute Engine does not lengthen the "
                "limit (maxRunDuration) of machines that run. A cluster that is to live for longer "
                "takes max_lifetime when it is made; one whose lifetime is to be open takes "
                'instance_overrides={"scheduling": {"maxRunDuration": None}} too. '
                f"Compute Engine says: {error}"
            ) from error
        undone.append(_undo_change(compute, machine, scheduling))
    for machine in filter(_is_scheduler, machines):
        await _set_label(compute, machine, str(expires))
        undone.append(_undo_label(compute, machine))


def _is_scheduler(machine: Mapping[str, Any]) -> bool:
    return bool((machine.get("labels") or {}).get(names.ROLE_LABEL) == "scheduler")


def _place(machine: Mapping[str, Any]) -> tuple[str, str]:
    return str(machine["zone"]).rpartition("/")[2], str(machine["name"])


def _check_moment(machine: Mapping[str, Any], scheduling: Mapping[str, Any], expires: int) -> None:
    """Refuse where the user's overrides end a machine at a moment of their own."""
    end = scheduling.get("terminationTime")
    if end is None:
        return
    # Python 3.10 does not read the Z of ISO 8601.
    if datetime.fromisoformat(str(end).replace("Z", "+00:00")).timestamp() < expires:
        raise GCEError(
            f"Machine {machine['name']} ends at {end}, as instance_overrides says "
            "(scheduling.terminationTime); Compute Engine does not change that of a machine that "
            "runs. Make a new cluster with a later moment."
        )


async def _change(compute: Compute, machine: Mapping[str, Any], to: Mapping[str, Any]) -> bool:
    """Change the scheduling of a machine; tell whether the machine was still there."""
    try:
        await _wait(compute, await compute.set_scheduling(*_place(machine), to))
    except NotFound:
        return False
    return True


async def _set_label(compute: Compute, machine: Mapping[str, Any], expires: str) -> None:
    """Write the end into a machine's labels as they are now."""
    zone, name = _place(machine)
    shown = await compute.get_instance(zone, name, "labels,labelFingerprint")
    labels = {**(shown.get("labels") or {}), names.EXPIRES_LABEL: expires}
    # Another change at the same moment is refused by the fingerprint.
    fingerprint = str(shown["labelFingerprint"])
    await _wait(compute, await compute.set_instance_labels(zone, name, labels, fingerprint))


async def _wait(compute: Compute, operation: Operation) -> None:
    await compute.wait_operation(operation, CHANGED_WITHIN)


def _undo_change(compute: Compute, machine: Mapping[str, Any], before: Mapping[str, Any]) -> Undo:
    async def undo() -> None:
        await _change(compute, machine, before)

    return undo


def _undo_label(compute: Compute, machine: Mapping[str, Any]) -> Undo:
    async def undo() -> None:
        before = machine["labels"].get(names.EXPIRES_LABEL)
        if before is not None:
            await _set_label(compute, machine, before)

    return undo
