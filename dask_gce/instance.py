"""Instances on the wire: specifications become requests, answers become facts.

Owns the shape of ``instances.insert`` bodies and of the few fields that are read back. It decides
nothing: names, machine types and metadata come from its callers, and no call is made here.
"""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from dask_gce import names
from dask_gce.errors import SettingsError
from dask_gce.hardware_fields import ORDINARY, Hardware, hardware_fields, local_ssd
from dask_gce.tags import machine_tags

#: The fields of an instance that this package reads. Sent as a field mask, because a list answer
#: otherwise carries every instance's whole metadata, up to 512 KiB each.
INSTANCE_FIELDS = (
    "name",
    "status",
    "zone",
    "creationTimestamp",
    "networkInterfaces(networkIP,accessConfigs(natIP))",
    "metadata(fingerprint)",
    "scheduling(provisioningModel,preemptible)",
)

#: Metadata item that has the system's logs sent to Cloud Logging.
LOGGING = "google-logging-enabled"

#: States in which an instance no longer runs and will not run again by itself.
#: https://docs.cloud.google.com/compute/docs/instances/instance-lifecycle
ENDED = frozenset(
    {"STOPPING", "PENDING_STOP", "STOPPED", "TERMINATED", "SUSPENDED", "DEPROVISIONING"}
)


#: Seconds that Compute Engine takes for a limit of the run time, from 30 seconds to 120 days.
#: https://docs.cloud.google.com/compute/docs/instances/limit-vm-runtime
RUN_DURATION = (30, 120 * 24 * 3600)

#: The field that says what becomes of an instance whose time is up: ``"STOP"`` or ``"DELETE"``.
ACTION = "instanceTerminationAction"


#: Seconds between the notice and the end of a Spot machine; Compute Engine takes 0 or these.
PREEMPTION_NOTICE = 120


@dataclass(frozen=True, slots=True)
class InstanceSpec:
    """Everything that makes one instance.

    Parameters
    ----------
    name : str
        The instance, its boot disk and its Dask worker are all called this.
    project : str
        The project ID.
    zone : str
        The zone.
    machine_type : str
        The machine type's name.
    source_image : str
        The boot image as a partial URL, ``projects/P/global/images/...``.
    boot_disk_size : int
        Size of the boot disk in GB.
    boot_disk_type : str or None
        The disk type's name; None lets the machine family decide.
    network : str or None
        Network name or partial URL.
    subnetwork : str or None
        Subnetwork name or partial URL.
    external_ip : bool
        Whether the instance gets an external address.
    tags : tuple of str
        Network tags that the user wants.
    labels : mapping
        Labels, of which one names the cluster. The tags by which its firewall rules know the
        instance follow from them.
    metadata : mapping
        Metadata items.
    service_account : str or None
        Email or ``"default"``; None attaches none.
    scopes : tuple of str
        OAuth scopes of the service account.
    local_ssds : int
        How many local SSDs it has beside those that its machine type comes with.
    hardware : Hardware
        What is asked of its host, beside the machine type.
    expires : int or None
        When Compute Engine deletes it, in seconds since 1970 UTC; None for never. It gets 30 s at
        least.
    spot : bool
        Whether it is a Spot machine, which Compute Engine may take away at any time.
    preemption_notice : bool
        Whether Compute Engine is asked to tell a Spot machine ahead that it takes it away.
    overrides : mapping
        A JSON merge patch (RFC 7396) on the request body.
    """

    name: str
    project: str
    zone: str
    machine_type: str
    source_image: str
    boot_disk_size: int
    boot_disk_type: str | None = None
    network: str | None = None
    subnetwork: str | None = None
    external_ip: bool = True
    tags: tuple[str, ...] = ()
    labels: Mapping[str, str] = field(default_factory=dict)
    metadata: Mapping[str, str] = field(default_factory=dict, repr=False)
    service_account: str | None = None
    scopes: tuple[str, ...] = ()
    local_ssds: int = 0
    hardware: Hardware = ORDINARY
    expires: int | None = None
    spot: bool = False
    preemption_notice: bool = False
    overrides: Mapping[str, Any] = field(default_factory=dict, repr=False)


def build_insert(spec: InstanceSpec, *, now: float | None = None) -> dict[str, Any]:
    """Return the body of ``instances.insert``.

    What is left of the cluster's lifetime is part of it, so that a request that is repeated needs
    the body of the first attempt.

    The overrides are applied last, but cannot take away what the cluster needs to find and run the
    instance: its name, our labels, our network tags and our metadata items stay.

    Parameters
    ----------
    spec : InstanceSpec
        The instance.
    now : float or None
        The time, in seconds since 1970 UTC; None for the clock's.

    Returns
    -------
    dict
        The request body in API JSON.

    Raises
    ------
    SettingsError
        If the overrides put something into labels, tags, metadata or disks that cannot be there.

    Examples
    --------
    >>> spec = InstanceSpec("dask-1", "p", "us-central1-a", "e2-small",
    ...                     "projects/cos-cloud/global/images/family/cos-stable", 30)
    >>> build_insert(spec)["machineType"]
    'zones/us-central1-a/machineTypes/e2-small'
    """
    disk: dict[str, Any] = {
        "sourceImage": spec.source_image,
        "diskSizeGb": str(spec.boot_disk_size),
        "labels": dict(spec.labels),
    }
    if spec.boot_disk_type is not None:
        disk["diskType"] = f"zones/{spec.zone}/diskTypes/{spec.boot_disk_type}"
    body: dict[str, Any] = {
        "name": spec.name,
        "machineType": f"zones/{spec.zone}/machineTypes/{spec.machine_type}",
        # The API's default for autoDelete is false: the disk would outlive the instance.
        "disks": [
            {"boot": True, "autoDelete": True, "initializeParams": disk},
            *(local_ssd(spec.zone) for _ in range(spec.local_ssds)),
        ],
        "networkInterfaces": [_network_interface(spec)],
        "labels": dict(spec.labels),
        "metadata": {"items": []},
        "scheduling": _scheduling(spec, time.time() if now is None else now),
    }
    body.update(hardware_fields(spec.hardware, spec.zone))
    if spec.tags:
        body["tags"] = {"items": list(spec.tags)}
    if spec.service_account is not None:
        body["serviceAccounts"] = [{"email": spec.service_account, "scopes": list(spec.scopes)}]
    body = merge_patch(body, spec.overrides)
    _settle_limit(body, spec.overrides)

    body["name"] = spec.name
    body["labels"] = {**_mapping(body, "labels"), **spec.labels}
    if our_tags := _cluster_tags(spec.labels):
        tags = _mapping(body, "tags")
        items = _list(tags, "tags.items", "items")
        missing = [tag for tag in our_tags if tag not in items]
        body["tags"] = {**tags, "items": [*items, *missing]}
    metadata = _mapping(body, "metadata")
    theirs = {_key(item): item for item in _list(metadata, "metadata.items", "items")}
    ours = {**spec.metadata, **_notice(body)}
    our_items = {key: {"key": key, "value": value} for key, value in ours.items()}
    defaults = {}
    if spec.service_account is not None:
        # Container-Optimized OS then sends the log to Cloud Logging, in that account's name:
        # https://docs.cloud.google.com/container-optimized-os/docs/how-to/logging
        defaults[LOGGING] = {"key": LOGGING, "value": "true"}
    body["metadata"] = {**metadata, "items": [*({**defaults, **theirs, **our_items}).values()]}
    for each in _list(body, "disks", "disks"):
        if isinstance(each, dict) and isinstance(each.get("initializeParams"), dict):
            # A disk made with the instance goes with it, unless somebody typed that it stays.
            each.setdefault("autoDelete", True)
            if each.get("type") == "SCRATCH":
                continue  # a part of its host, which carries no labels
            parameters = each["initializeParams"]
            parameters["labels"] = {**_mapping(parameters, "labels"), **spec.labels}
    return body


def _scheduling(spec: InstanceSpec, now: float) -> dict[str, Any]:
    """Return how Compute Engine is to treat the instance while it runs, and when it ends it."""
    # A machine whose host fails is replaced. It would come back without what it knew, and a
    # scheduler that has forgotten its work is worse than one that is known to be lost.
    scheduling: dict[str, Any] = {"automaticRestart": False}
    if spec.expires is not None:
        # Not a moment (terminationTime): what is left by the clock that set the end is right
        # whatever that clock shows.
        least, most = RUN_DURATION
        left = min(max(math.ceil(spec.expires - now), least), most)
        scheduling["maxRunDuration"] = {"seconds": str(left)}
        scheduling[ACTION] = "DELETE"
    if spec.spot:
        # Without the legacy ``preemptible``, which would end it after 24 hours:
        # https://docs.cloud.google.com/compute/docs/instances/create-use-spot
        scheduling["provisioningModel"] = "SPOT"
        # One that is only stopped would leave its disk to be paid for.
        scheduling[ACTION] = "DELETE"
        if spec.preemption_notice:
            scheduling["preemptionNoticeDuration"] = {"seconds": str(PREEMPTION_NOTICE)}
    if spec.spot or not spec.hardware.migrates:
        scheduling["onHostMaintenance"] = "TERMINATE"
    return scheduling


def _notice(body: Mapping[str, Any]) -> dict[str, str]:
    """Return the item that tells a machine how long before it will know: nothing else does."""
    scheduling = body.get("scheduling")
    notice = scheduling.get("preemptionNoticeDuration") if isinstance(scheduling, dict) else None
    seconds = notice.get("seconds") if isinstance(notice, dict) else None
    return {} if not seconds or str(seconds) == "0" else {"dask-gce-notice": str(seconds)}


def _settle_limit(body: dict[str, Any], overrides: Mapping[str, Any]) -> None:
    """Take back of our limit of the run time what cannot be beside what the user has typed."""
    scheduling, theirs = body.get("scheduling"), overrides.get("scheduling") or {}
    if not isinstance(scheduling, dict) or not isinstance(theirs, Mapping):
        return  # Compute Engine says what is wrong
    spot = scheduling.get("provisioningModel") == "SPOT"
    if "maxRunDuration" not in theirs and (
        # One limit is enough, and legacy preemptible machines have their own, of 24 hours.
        "terminationTime" in scheduling or (scheduling.get("preemptible") and not spot)
    ):
        scheduling.pop("maxRunDuration", None)
    ends = {"maxRunDuration", "terminationTime"} & scheduling.keys()
    if not (ends or spot or scheduling.get("preemptible") or ACTION in theirs):
        # Without any limit there is no end whose way could be chosen.
        scheduling.pop(ACTION, None)


def _cluster_tags(labels: Mapping[str, str]) -> tuple[str, ...]:
    cluster, identity = labels.get(names.CLUSTER_LABEL), labels.get(names.ID_LABEL)
    if not (cluster and identity):
        return ()
    return machine_tags(cluster, identity, labels.get(names.ROLE_LABEL, ""))


def _mapping(body: Mapping[str, Any], name: str) -> dict[str, Any]:
    value = body.get(name) or {}
    if not isinstance(value, Mapping):
        raise _misplaced(name, value, "a mapping")
    return dict(value)


def _list(body: Mapping[str, Any], path: str, name: str) -> list[Any]:
    value = body.get(name) or []
    if not isinstance(value, list | tuple):
        raise _misplaced(path, value, "a list")
    return list(value)


def _key(item: Any) -> str:
    if not isinstance(item, Mapping) or not isinstance(item.get("key"), str):
        raise _misplaced("metadata.items", item, "a list of mappings with 'key' and 'value'")
    return str(item["key"])


def _misplaced(path: str, value: Any, wanted: str) -> SettingsError:
    # The type and not the value, which may be a secret.
    return SettingsError(
        f"instance_overrides: {path} must be {wanted}, but holds a {type(value).__name__}.",
        key="instance_overrides",
    )


def _network_interface(spec: InstanceSpec) -> dict[str, Any]:
    interface: dict[str, Any] = {}
    if spec.subnetwork is not None:
        # A subnetwork implies its network; naming both only makes room for a contradiction.
        region = spec.zone.rpartition("-")[0]
        interface["subnetwork"] = _partial_url(f"regions/{region}/subnetworks", spec.subnetwork)
    elif spec.network is not None:
        interface["network"] = _partial_url("global/networks", spec.network)
    if spec.external_ip:
        interface["accessConfigs"] = [{"type": "ONE_TO_ONE_NAT", "name": "external-nat"}]
    return interface


def _partial_url(collection: str, name: str) -> str:
    return name if "/" in name else f"{collection}/{name}"


def merge_patch(target: Mapping[str, Any], patch: Mapping[str, Any]) -> dict[str, Any]:
    """Apply a JSON merge patch (RFC 7396) and leave both arguments as they were.

    Parameters
    ----------
    target : mapping
        The document.
    patch : mapping
        Mappings are merged, None removes, anything else (lists too) replaces.

    Returns
    -------
    dict
        The patched document.

    Examples
    --------
    >>> merge_patch({"a": {"b": 1, "c": 2}}, {"a": {"b": None, "d": [3]}})
    {'a': {'c': 2, 'd': [3]}}
    """
    merged: dict[str, Any] = copy.deepcopy(dict(target))
    for key, value in patch.items():
        if value is None:
            merged.pop(key, None)
        elif isinstance(value, Mapping):
            below = merged.get(key)
            merged[key] = merge_patch(below if isinstance(below, Mapping) else {}, value)
        else:
            merged[key] = copy.deepcopy(value)
    return merged


@dataclass(frozen=True, slots=True)
class Instance:
    """What Compute Engine says of one instance.

    Parameters
    ----------
    name : str
        Its name.
    zone : str
        Its zone's name.
    status : str
        Its state, for example ``"RUNNING"``.
    internal_ip : str or None
        Its internal IPv4 address, once it has one.
    external_ip : str or None
        Its external IPv4 address, if it has one.
    fingerprint : str
        That of its metadata; empty if it was not asked for.
    spot : bool
        Whether Compute Engine may take it away at any time.
    created : float or None
        When it was asked for, in seconds since 1970 UTC; None if that is not told.
    """

    name: str
    zone: str
    status: str
    internal_ip: str | None = None
    external_ip: str | None = None
    fingerprint: str = ""
    spot: bool = False
    created: float | None = None

    @property
    def ended(self) -> bool:
        """Whether it has stopped, or is stopping, for good."""
        return self.status in ENDED


def parse_instance(data: Mapping[str, Any]) -> Instance:
    """Read an instance from API JSON.

    Parameters
    ----------
    data : mapping
        A ``compute#instance`` resource, possibly cut down by a field mask.

    Returns
    -------
    Instance
        What it says.
    """
    interfaces = data.get("networkInterfaces") or [{}]
    access = interfaces[0].get("accessConfigs") or [{}]
    return Instance(
        name=str(data["name"]),
        zone=str(data.get("zone", "")).rpartition("/")[2],
        status=str(data.get("status", "")),
        internal_ip=interfaces[0].get("networkIP") or None,
        external_ip=access[0].get("natIP") or None,
        fingerprint=str((data.get("metadata") or {}).get("fingerprint", "")),
        spot=is_spot(data),
        created=_moment(data.get("creationTimestamp")),
    )


def _moment(text: Any) -> float | None:
    try:
        # Python 3.10 does not read the Z of ISO 8601.
        return datetime.fromisoformat(str(text).replace("Z", "+00:00")).timestamp()
    except ValueError:
        return None


def is_spot(data: Mapping[str, Any]) -> bool:
    """Tell whether Compute Engine may take an instance away at any time.

    Parameters
    ----------
    data : mapping
        A ``compute#instance`` resource with its ``scheduling``.

    Returns
    -------
    bool
        Whether it is a Spot machine, or a preemptible one as they were called before.
    """
    scheduling = data.get("scheduling") or {}
    return scheduling.get("provisioningModel") == "SPOT" or bool(scheduling.get("preemptible"))
