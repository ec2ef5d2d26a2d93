"""What Compute Engine is asked for, in the words of Terraform's google provider.

Pure: the body of ``instances.insert`` or ``firewalls.insert`` goes in, the attributes and blocks
of ``google_compute_instance`` or ``google_compute_firewall`` come out. A field that has no
attribute is an error that names it: what is left out without a word would make another machine.

Source: `google_compute_instance
<https://registry.terraform.io/providers/hashicorp/google/latest/docs/resources/compute_instance>`_
and `google_compute_firewall
<https://registry.terraform.io/providers/hashicorp/google/latest/docs/resources/compute_firewall>`_.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final

from dask_gce.errors import SettingsError

__all__ = ["firewall_attributes", "instance_attributes"]

#: Makes attributes of a field's value and its path.
_Rule = Callable[[Any, str], dict[str, Any]]


def instance_attributes(body: Mapping[str, Any]) -> dict[str, Any]:
    """Return a ``google_compute_instance``.

    Parameters
    ----------
    body : mapping
        The body of ``instances.insert``. Its zone is no part of it.

    Returns
    -------
    dict
        Attributes and blocks as Terraform's JSON has them: a block that may be there once is an
        object, any other one a list.

    Raises
    ------
    SettingsError
        If a field has no attribute; only ``instance_overrides`` bring such fields.

    Examples
    --------
    >>> instance_attributes({"name": "one", "machineType": "zones/z/machineTypes/e2-small",
    ...                      "scheduling": {"maxRunDuration": {"seconds": "60"}}})
    {'name': 'one', 'machine_type': 'e2-small', 'scheduling': {'max_run_duration': {'seconds': 60}}}
    """
    return _translate(body, _INSTANCE, "")


def firewall_attributes(body: Mapping[str, Any]) -> dict[str, Any]:
    """Return a ``google_compute_firewall``.

    Parameters
    ----------
    body : mapping
        The body of ``firewalls.insert``.

    Returns
    -------
    dict
        Attributes and blocks as Terraform's JSON has them.

    Raises
    ------
    SettingsError
        If a field has no attribute.
    """
    return _translate(body, _FIREWALL, "")


def _translate(value: Any, fields: Mapping[str, _Rule], path: str) -> dict[str, Any]:
    if not isinstance(value, Mapping):
        raise _refusal(path.rstrip("."), f"has {_kind(value)} where an object belongs")
    found: dict[str, Any] = {}
    for key, content in value.items():
        if key not in fields:
            raise _refusal(f"{path}{key}", "has no attribute in the google provider of Terraform")
        found.update(fields[key](content, f"{path}{key}"))
    return found


def _refusal(path: str, reason: str) -> SettingsError:
    # Without the value, which may be a secret.
    return SettingsError(
        f"instance_overrides: {path} {reason}, so that Terraform cannot make these machines. Leave "
        "it out for this cluster, or make it with GCECluster or dask gce create.",
        key="instance_overrides",
    )


def _kind(value: Any) -> str:
    return "nothing" if value is None else f"a {type(value).__name__}"


# -- rules ----------------------------------------------------------------------------------------


def _as(name: str, convert: Callable[[Any], Any] = lambda value: value) -> _Rule:
    """Another name for the same value, perhaps of another type."""

    def rule(value: Any, path: str) -> dict[str, Any]:
        try:
            return {name: convert(value)}
        except (TypeError, ValueError, AttributeError, KeyError):
            raise _refusal(path, f"has {_kind(value)}, which it cannot be") from None

    return rule


def _block(name: str, fields: Mapping[str, _Rule]) -> _Rule:
    """A block that may be there once."""
    return lambda value, path: {name: _translate(value, fields, f"{path}.")}


def _blocks(name: str, fields: Mapping[str, _Rule]) -> _Rule:
    """A list of blocks."""

    def rule(value: Any, path: str) -> dict[str, Any]:
        parts = _listed(value, path)
        return {name: [_translate(each, fields, f"{path}[{i}].") for i, each in enumerate(parts)]}

    return rule


def _only(name: str, fields: Mapping[str, _Rule]) -> _Rule:
    """A list of the API's that holds one, of which Terraform makes a block."""

    def rule(value: Any, path: str) -> dict[str, Any]:
        parts = _listed(value, path)
        if len(parts) > 1:
            raise _refusal(f"{path}[1]", "is one more than the google provider of Terraform takes")
        return {name: _translate(parts[0], fields, f"{path}[0].")} if parts else {}

    return rule


def _inner(fields: Mapping[str, _Rule]) -> _Rule:
    """An object whose fields are attributes of what is around it."""
    return lambda value, path: _translate(value, fields, f"{path}.")


def _said(value: Any) -> _Rule:
    """A field that says what the provider does anyway, and nothing else."""

    def rule(given: Any, path: str) -> dict[str, Any]:
        if given != value:
            raise _refusal(path, f"must be {value!r} in the google provider of Terraform")
        return {}

    return rule


def _metadata(value: Any, path: str) -> dict[str, Any]:
    return {"metadata": {each["key"]: each["value"] for each in _listed(value, path)}}


def _reservation(value: Any, path: str) -> dict[str, Any]:
    found = _translate(value, _RESERVATION, f"{path}.")
    which = {key: found.pop(key) for key in ("key", "values") if key in found}
    return {"reservation_affinity": {**found, **({"specific_reservation": which} if which else {})}}


def _disks(value: Any, path: str) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for number, disk in enumerate(_listed(value, path)):
        here = f"{path}[{number}]."
        if not isinstance(disk, Mapping):
            raise _refusal(here.rstrip("."), f"has {_kind(disk)} where an object belongs")
        if disk.get("boot"):
            found["boot_disk"] = _translate(disk, _BOOT_DISK, here)
        elif disk.get("type") == "SCRATCH":
            scratch = _translate(disk, _SCRATCH_DISK, here)
            found.setdefault("scratch_disk", []).append({"interface": "SCSI", **scratch})
        else:
            attached = _translate(disk, _ATTACHED_DISK, here)
            found.setdefault("attached_disk", []).append(attached)
    return found


def _listed(value: Any, path: str) -> list[Any]:
    if not isinstance(value, list | tuple):
        raise _refusal(path, f"has {_kind(value)} where a list belongs")
    return list(value)


def _last(value: Any) -> str:
    """Return the name that a path ends with."""
    return str(value).rpartition("/")[2]


def _last_of_each(value: Any) -> list[str]:
    return [_last(each) for each in value]


def _types(value: Any) -> list[str]:
    return [str(each["type"]) for each in value]


def _interface(value: Any) -> str:
    return str(value).upper()


# -- what is what ---------------------------------------------------------------------------------

_DURATION: Final[Mapping[str, _Rule]] = {"seconds": _as("seconds", int), "nanos": _as("nanos", int)}

_KMS_KEY: Final[Mapping[str, _Rule]] = {
    "kmsKeyName": _as("kms_key_self_link"),
    "kmsKeyServiceAccount": _as("kms_key_service_account"),
}
_OWN_KEY: Final[Mapping[str, _Rule]] = {
    **_KMS_KEY,
    "rawKey": _as("raw_key"),
    "rsaEncryptedKey": _as("rsa_encrypted_key"),
}
#: Of a disk the key's fields are attributes of the disk itself.
_DISK_KEY: Final[Mapping[str, _Rule]] = {
    "kmsKeyName": _as("kms_key_self_link"),
    "kmsKeyServiceAccount": _as("disk_encryption_service_account"),
    "rawKey": _as("disk_encryption_key_raw"),
    "rsaEncryptedKey": _as("disk_encryption_key_rsa"),
}

_NEW_DISK: Final[Mapping[str, _Rule]] = {
    "architecture": _as("architecture"),
    "diskSizeGb": _as("size", int),
    "diskType": _as("type", _last),
    "enableConfidentialCompute": _as("enable_confidential_compute", bool),
    "labels": _as("labels", dict),
    "provisionedIops": _as("provisioned_iops", int),
    "provisionedThroughput": _as("provisioned_throughput", int),
    "resourceManagerTags": _as("resource_manager_tags", dict),
    "resourcePolicies": _as("resource_policies", list),
    "sourceImage": _as("image"),
    "sourceImageEncryptionKey": _block("source_image_encryption_key", _OWN_KEY),
    "sourceSnapshot": _as("snapshot"),
    "sourceSnapshotEncryptionKey": _block("source_snapshot_encryption_key", _OWN_KEY),
    "storagePool": _as("storage_pool"),
}
_BOOT_DISK: Final[Mapping[str, _Rule]] = {
    "autoDelete": _as("auto_delete", bool),
    "boot": _said(True),
    "deviceName": _as("device_name"),
    "diskEncryptionKey": _inner(_DISK_KEY),
    "forceAttach": _as("force_attach", bool),
    "guestOsFeatures": _as("guest_os_features", _types),
    "initializeParams": _block("initialize_params", _NEW_DISK),
    "interface": _as("interface", _interface),
    "mode": _as("mode"),
    "source": _as("source"),
    "type": _said("PERSISTENT"),
}
_SCRATCH_DISK: Final[Mapping[str, _Rule]] = {
    "autoDelete": _said(True),
    "boot": _said(False),
    "deviceName": _as("device_name"),
    "diskSizeGb": _as("size", int),
    # There is no other type of such a disk.
    "initializeParams": _inner({"diskType": lambda value, path: {}}),
    "interface": _as("interface", _interface),
    "type": _said("SCRATCH"),
}
_ATTACHED_DISK: Final[Mapping[str, _Rule]] = {
    "autoDelete": _said(False),
    "boot": _said(False),
    "deviceName": _as("device_name"),
    "diskEncryptionKey": _inner(_DISK_KEY),
    "forceAttach": _as("force_attach", bool),
    "mode": _as("mode"),
    "source": _as("source"),
    "type": _said("PERSISTENT"),
}
_ACCESS: Final[Mapping[str, _Rule]] = {
    "name": lambda value, path: {},  # the provider has a name of its own for it
    "natIP": _as("nat_ip"),
    "networkTier": _as("network_tier"),
    "publicPtrDomainName": _as("public_ptr_domain_name"),
    "setPublicPtr": lambda value, path: {},  # follows from the name
    "type": _said("ONE_TO_ONE_NAT"),
}
_ACCESS_V6: Final[Mapping[str, _Rule]] = {
    "externalIpv6": _as("external_ipv6"),
    "externalIpv6PrefixLength": _as("external_ipv6_prefix_length", str),
    "name": _as("name"),
    "networkTier": _as("network_tier"),
    "publicPtrDomainName": _as("public_ptr_domain_name"),
    "type": _said("DIRECT_IPV6"),
}
_NETWORK_INTERFACE: Final[Mapping[str, _Rule]] = {
    "accessConfigs": _blocks("access_config", _ACCESS),
    "aliasIpRanges": _blocks(
        "alias_ip_range",
        {
            "ipCidrRange": _as("ip_cidr_range"),
            "subnetworkRangeName": _as("subnetwork_range_name"),
        },
    ),
    "internalIpv6PrefixLength": _as("internal_ipv6_prefix_length", int),
    "ipv6AccessConfigs": _blocks("ipv6_access_config", _ACCESS_V6),
    "ipv6Address": _as("ipv6_address"),
    "network": _as("network"),
    "networkAttachment": _as("network_attachment"),
    "networkIP": _as("network_ip"),
    "nicType": _as("nic_type"),
    "queueCount": _as("queue_count", int),
    "stackType": _as("stack_type"),
    "subnetwork": _as("subnetwork"),
}
_SCHEDULING: Final[Mapping[str, _Rule]] = {
    "automaticRestart": _as("automatic_restart", bool),
    "availabilityDomain": _as("availability_domain", int),
    "instanceTerminationAction": _as("instance_termination_action"),
    "localSsdRecoveryTimeout": _block("local_ssd_recovery_timeout", _DURATION),
    "maxRunDuration": _block("max_run_duration", _DURATION),
    "minNodeCpus": _as("min_node_cpus", int),
    "nodeAffinities": _blocks(
        "node_affinities",
        {"key": _as("key"), "operator": _as("operator"), "values": _as("values", list)},
    ),
    "onHostMaintenance": _as("on_host_maintenance"),
    "onInstanceStopAction": _block(
        "on_instance_stop_action", {"discardLocalSsd": _as("discard_local_ssd", bool)}
    ),
    "preemptible": _as("preemptible", bool),
    "provisioningModel": _as("provisioning_model"),
    "terminationTime": _as("termination_time"),
}
_RESERVATION: Final[Mapping[str, _Rule]] = {
    "consumeReservationType": _as("type"),
    "key": _as("key"),
    "values": _as("values", list),
}
_INSTANCE: Final[Mapping[str, _Rule]] = {
    "advancedMachineFeatures": _block(
        "advanced_machine_features",
        {
            "enableNestedVirtualization": _as("enable_nested_virtualization", bool),
            "enableUefiNetworking": _as("enable_uefi_networking", bool),
            "performanceMonitoringUnit": _as("performance_monitoring_unit"),
            "threadsPerCore": _as("threads_per_core", int),
            "turboMode": _as("turbo_mode"),
            "visibleCoreCount": _as("visible_core_count", int),
        },
    ),
    "canIpForward": _as("can_ip_forward", bool),
    "confidentialInstanceConfig": _block(
        "confidential_instance_config",
        {
            "confidentialInstanceType": _as("confidential_instance_type"),
            "enableConfidentialCompute": _as("enable_confidential_compute", bool),
        },
    ),
    "deletionProtection": _as("deletion_protection", bool),
    "description": _as("description"),
    "disks": _disks,
    "displayDevice": _inner({"enableDisplay": _as("enable_display", bool)}),
    "guestAccelerators": _blocks(
        "guest_accelerator",
        {"acceleratorCount": _as("count", int), "acceleratorType": _as("type", _last)},
    ),
    "hostname": _as("hostname"),
    "instanceEncryptionKey": _block("instance_encryption_key", _KMS_KEY),
    "keyRevocationActionType": _as("key_revocation_action_type"),
    "labels": _as("labels", dict),
    "machineType": _as("machine_type", _last),
    "metadata": _inner({"items": _metadata}),
    "minCpuPlatform": _as("min_cpu_platform"),
    "name": _as("name"),
    "networkInterfaces": _blocks("network_interface", _NETWORK_INTERFACE),
    "networkPerformanceConfig": _block(
        "network_performance_config",
        {"totalEgressBandwidthTier": _as("total_egress_bandwidth_tier")},
    ),
    "params": _block("params", {"resourceManagerTags": _as("resource_manager_tags", dict)}),
    "reservationAffinity": _reservation,
    "resourcePolicies": _as("resource_policies", list),
    "scheduling": _block("scheduling", _SCHEDULING),
    "serviceAccounts": _only(
        "service_account", {"email": _as("email"), "scopes": _as("scopes", list)}
    ),
    "shieldedInstanceConfig": _block(
        "shielded_instance_config",
        {
            "enableIntegrityMonitoring": _as("enable_integrity_monitoring", bool),
            "enableSecureBoot": _as("enable_secure_boot", bool),
            "enableVtpm": _as("enable_vtpm", bool),
        },
    ),
    "tags": _inner({"items": _as("tags", list)}),
}
_FIREWALL: Final[Mapping[str, _Rule]] = {
    "allowed": _blocks("allow", {"IPProtocol": _as("protocol"), "ports": _as("ports", list)}),
    "description": _as("description"),
    "direction": _as("direction"),
    "name": _as("name"),
    "network": _as("network"),
    "priority": _as("priority", int),
    "sourceRanges": _as("source_ranges", list),
    "sourceTags": _as("source_tags", list),
    "targetTags": _as("target_tags", list),
}
