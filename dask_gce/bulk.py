"""Many instances in one request: specifications become bodies of ``instances.bulkInsert``.

Owns what differs between that body and the one of ``instances.insert``, which is built in
`instance`, and which specifications go together. When instances are asked for, and what becomes of
the answer, is left to the fleet.
"""

from __future__ import annotations

import dataclasses
import operator
from collections.abc import Mapping, Sequence
from typing import Any

from dask_gce.instance import InstanceSpec, build_insert

__all__ = ["BULK_LIMIT", "batches", "build_bulk_insert"]

#: Instances in one call:
#: https://docs.cloud.google.com/compute/docs/instances/multiple/about-bulk-creation
BULK_LIMIT = 5000

#: What of an instance can be said for many at once: the fields that InstanceProperties shares with
#: Instance in the API's discovery document.
INSTANCE_PROPERTIES = frozenset(
    {
        "advancedMachineFeatures",
        "canIpForward",
        "confidentialInstanceConfig",
        "description",
        "disks",
        "guestAccelerators",
        "keyRevocationActionType",
        "labels",
        "localSsdEncryptionMode",
        "machineType",
        "metadata",
        "minCpuPlatform",
        "networkInterfaces",
        "networkPerformanceConfig",
        "privateIpv6GoogleAccess",
        "reservationAffinity",
        "resourcePolicies",
        "scheduling",
        "serviceAccounts",
        "shieldedInstanceConfig",
        "tags",
        "workloadIdentityConfig",
    }
)

#: Disks that cannot be made many at once: existing ones, copies of snapshots, and those encrypted
#: with a key that is part of the request.
_SINGLE_DISKS = frozenset({"source", "sourceSnapshot", "sourceInstantSnapshot"})
_KEYS = frozenset({"diskEncryptionKey", "sourceImageEncryptionKey"})
_OWN_KEYS = frozenset({"rawKey", "rsaEncryptedKey"})

_PARTS = operator.attrgetter(
    *(field.name for field in dataclasses.fields(InstanceSpec) if field.name != "name")
)


def batches(specs: Sequence[InstanceSpec]) -> list[list[InstanceSpec]]:
    """Group specifications that one request can ask for.

    Those of one group differ in their names only. That is told by identity, as it is with those
    made by `dataclasses.replace` of one template; metadata are too large to be compared.

    Parameters
    ----------
    specs : sequence of InstanceSpec
        The instances.

    Returns
    -------
    list of list of InstanceSpec
        The groups, of at most 5,000 each, in the order of their first instances.
    """
    groups: dict[tuple[int, ...], list[InstanceSpec]] = {}
    for spec in specs:
        groups.setdefault(tuple(map(id, _PARTS(spec))), []).append(spec)
    return [
        group[start : start + BULK_LIMIT]
        for group in groups.values()
        for start in range(0, len(group), BULK_LIMIT)
    ]


def build_bulk_insert(specs: Sequence[InstanceSpec]) -> dict[str, Any] | None:
    """Return the body of ``instances.bulkInsert``.

    Parameters
    ----------
    specs : sequence of InstanceSpec
        The instances, at least one, which differ in their names only.

    Returns
    -------
    dict or None
        The request body in API JSON; None if the overrides hold something that bulk inserts cannot
        do. Then each instance takes a request of its own.

    Raises
    ------
    SettingsError
        If the overrides put something into labels, metadata or disks that cannot be there.

    Examples
    --------
    >>> spec = InstanceSpec("dask-1", "p", "us-central1-a", "e2-small",
    ...                     "projects/cos-cloud/global/images/family/cos-stable", 30)
    >>> body = build_bulk_insert([spec, dataclasses.replace(spec, name="dask-2")])
    >>> body["count"], body["minCount"], body["perInstanceProperties"]
    ('2', '1', {'dask-1': {}, 'dask-2': {}})
    >>> body["instanceProperties"]["machineType"]
    'e2-small'
    """
    properties = build_insert(specs[0])
    del properties["name"]
    if not properties.keys() <= INSTANCE_PROPERTIES or not _can_be_many(properties):
        return None
    _shorten(properties)
    return {
        "count": str(len(specs)),
        # One that cannot be had does not take the others with it.
        "minCount": "1",
        "perInstanceProperties": {spec.name: {} for spec in specs},
        "instanceProperties": properties,
    }


def _can_be_many(properties: Mapping[str, Any]) -> bool:
    # Limitations: https://docs.cloud.google.com/compute/docs/instances/multiple/about-bulk-creation
    scheduling = properties.get("scheduling")
    if isinstance(scheduling, Mapping) and scheduling.get("nodeAffinities"):
        return False  # sole-tenant nodes
    for disk in _mappings(properties.get("disks")):
        parts = [disk, *_mappings([disk.get("initializeParams")])]
        if any(not _SINGLE_DISKS.isdisjoint(part) for part in parts):
            return False
        keys = _mappings(part.get(key) for part in parts for key in _KEYS)
        if any(not _OWN_KEYS.isdisjoint(key) for key in keys):
            return False
    return True


def _shorten(properties: dict[str, Any]) -> None:
    """Put names where ``instances.insert`` wants URLs; bulk inserts fail over those."""
    _shorten_field(properties, "machineType")
    _shorten_field(properties, "resourcePolicies")
    for accelerator in _mappings(properties.get("guestAccelerators")):
        _shorten_field(accelerator, "acceleratorType")
    for disk in _mappings(properties.get("disks")):
        for parameters in _mappings([disk.get("initializeParams")]):
            _shorten_field(parameters, "diskType")
            _shorten_field(parameters, "resourcePolicies")


def _shorten_field(part: dict[str, Any], key: str) -> None:
    value = part.get(key)
    if isinstance(value, str):
        part[key] = value.rpartition("/")[2]
    elif isinstance(value, list):
        part[key] = [each.rpartition("/")[2] if isinstance(each, str) else each for each in value]


def _mappings(values: Any) -> list[dict[str, Any]]:
    """Return what is a mapping; Compute Engine itself says what is wrong with the rest."""
    return [each for each in values or () if isinstance(each, dict)]
