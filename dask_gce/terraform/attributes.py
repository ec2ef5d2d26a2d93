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

from collections.abc import Mapping
from typing import Any, Final

from dask_gce.terraform.rules import (
    Rule,
    as_,
    block,
    blocks,
    inner,
    listed,
    only,
    said,
    translate,
)

__all__ = ["firewall_attributes", "instance_attributes"]


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
    return translate(body, _INSTANCE, "")


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
    return translate(body, _FIREWALL, "")


def _metadata(value: Any, path: str) -> dict[str, Any]:
    return {"metadata": {each["key"]: each["value"] for each in listed(value, path)}}


def _reservation(value: Any, path: str) -> dict[str, Any]:
    found = translate(value, _RESERVATION, f"{path}.")
    which = {key: found.pop(key) for key in ("key", "values") if key in found}
    return {"reservation_affinity": {**found, **({"specific_reservation": which} if which else {})}}


def _account(value: Any, path: str) -> dict[str, Any]:
    # Which account that is only Compute Engine knows, and would be taken for a change.
    return {} if value == "default" else {"email": value}


def _disks(value: Any, path: str) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for number, disk in enumerate(listed(value, path)):
        here = f"{path}[{number}]."
        what = disk if isinstance(disk, Mapping) else {}
        if what.get("boot"):
            found["boot_disk"] = translate(disk, _BOOT_DISK, here)
        elif what.get("type") == "SCRATCH":
            scratch = translate(disk, _SCRATCH_DISK, here)
            found.setdefault("scratch_disk", []).append({"interface": "SCSI", **scratch})
        else:
            attached = translate(disk, _ATTACHED_DISK, here)
            found.setdefault("attached_disk", []).append(attached)
    return found


def _last(value: Any) -> str:
    """Return the name that a path ends with."""
    return str(value).rpartition("/")[2]


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(value)
    return value


def _types(value: Any) -> list[str]:
    return [str(each["type"]) for each in value]


def _flag(value: Any) -> bool:
    if not isinstance(value, bool):
        raise TypeError(value)
    return value


def _interface(value: Any) -> str:
    return str(value).upper()


# -- what is what ---------------------------------------------------------------------------------

_DURATION: Final[Mapping[str, Rule]] = {"seconds": as_("seconds", int), "nanos": as_("nanos", int)}

_KMS_KEY: Final[Mapping[str, Rule]] = {
    "kmsKeyName": as_("kms_key_self_link"),
    "kmsKeyServiceAccount": as_("kms_key_service_account"),
}
_OWN_KEY: Final[Mapping[str, Rule]] = {
    **_KMS_KEY,
    "rawKey": as_("raw_key"),
    "rsaEncryptedKey": as_("rsa_encrypted_key"),
}
#: Of a disk the key's fields are attributes of the disk itself.
_DISK_KEY: Final[Mapping[str, Rule]] = {
    "kmsKeyName": as_("kms_key_self_link"),
    "kmsKeyServiceAccount": as_("disk_encryption_service_account"),
    "rawKey": as_("disk_encryption_key_raw"),
    "rsaEncryptedKey": as_("disk_encryption_key_rsa"),
}

_NEW_DISK: Final[Mapping[str, Rule]] = {
    "architecture": as_("architecture"),
    "diskSizeGb": as_("size", int),
    "diskType": as_("type", _last),
    "enableConfidentialCompute": as_("enable_confidential_compute", _flag),
    "labels": as_("labels", dict),
    "provisionedIops": as_("provisioned_iops", int),
    "provisionedThroughput": as_("provisioned_throughput", int),
    "resourceManagerTags": as_("resource_manager_tags", dict),
    "resourcePolicies": as_("resource_policies", list),
    "sourceImage": as_("image"),
    "sourceImageEncryptionKey": block("source_image_encryption_key", _OWN_KEY),
    "sourceSnapshot": as_("snapshot"),
    "sourceSnapshotEncryptionKey": block("source_snapshot_encryption_key", _OWN_KEY),
    "storagePool": as_("storage_pool"),
}
_BOOT_DISK: Final[Mapping[str, Rule]] = {
    "autoDelete": as_("auto_delete", _flag),
    "boot": said(True),
    "deviceName": as_("device_name"),
    "diskEncryptionKey": inner(_DISK_KEY),
    "forceAttach": as_("force_attach", _flag),
    "guestOsFeatures": as_("guest_os_features", _types),
    "initializeParams": block("initialize_params", _NEW_DISK),
    "interface": as_("interface", _interface),
    "mode": as_("mode"),
    "source": as_("source"),
    "type": said("PERSISTENT"),
}
_SCRATCH_DISK: Final[Mapping[str, Rule]] = {
    "autoDelete": said(True),
    "boot": said(False),
    "deviceName": as_("device_name"),
    "diskSizeGb": as_("size", int),
    # There is no other type of such a disk.
    "initializeParams": inner({"diskType": lambda value, path: {}}),
    "interface": as_("interface", _interface),
    "type": said("SCRATCH"),
}
_ATTACHED_DISK: Final[Mapping[str, Rule]] = {
    "autoDelete": said(False),
    "boot": said(False),
    "deviceName": as_("device_name"),
    "diskEncryptionKey": inner(_DISK_KEY),
    "forceAttach": as_("force_attach", _flag),
    "mode": as_("mode"),
    "source": as_("source"),
    "type": said("PERSISTENT"),
}
_ACCESS: Final[Mapping[str, Rule]] = {
    "name": lambda value, path: {},  # the provider has a name of its own for it
    "natIP": as_("nat_ip"),
    "networkTier": as_("network_tier"),
    "publicPtrDomainName": as_("public_ptr_domain_name"),
    "setPublicPtr": lambda value, path: {},  # follows from the name
    "type": said("ONE_TO_ONE_NAT"),
}
_ACCESS_V6: Final[Mapping[str, Rule]] = {
    "externalIpv6": as_("external_ipv6"),
    "externalIpv6PrefixLength": as_("external_ipv6_prefix_length", str),
    "name": as_("name"),
    "networkTier": as_("network_tier"),
    "publicPtrDomainName": as_("public_ptr_domain_name"),
    "type": said("DIRECT_IPV6"),
}
_NETWORK_INTERFACE: Final[Mapping[str, Rule]] = {
    "accessConfigs": blocks("access_config", _ACCESS),
    "aliasIpRanges": blocks(
        "alias_ip_range",
        {
            "ipCidrRange": as_("ip_cidr_range"),
            "subnetworkRangeName": as_("subnetwork_range_name"),
        },
    ),
    "internalIpv6PrefixLength": as_("internal_ipv6_prefix_length", int),
    "ipv6AccessConfigs": blocks("ipv6_access_config", _ACCESS_V6),
    "ipv6Address": as_("ipv6_address"),
    "network": as_("network", _text),
    "networkAttachment": as_("network_attachment"),
    "networkIP": as_("network_ip"),
    "nicType": as_("nic_type"),
    "queueCount": as_("queue_count", int),
    "stackType": as_("stack_type"),
    "subnetwork": as_("subnetwork", _text),
}
_SCHEDULING: Final[Mapping[str, Rule]] = {
    "automaticRestart": as_("automatic_restart", _flag),
    "availabilityDomain": as_("availability_domain", int),
    "instanceTerminationAction": as_("instance_termination_action"),
    "localSsdRecoveryTimeout": block("local_ssd_recovery_timeout", _DURATION),
    "maxRunDuration": block("max_run_duration", _DURATION),
    "minNodeCpus": as_("min_node_cpus", int),
    "nodeAffinities": blocks(
        "node_affinities",
        {"key": as_("key"), "operator": as_("operator"), "values": as_("values", list)},
    ),
    "onHostMaintenance": as_("on_host_maintenance"),
    "onInstanceStopAction": block(
        "on_instance_stop_action", {"discardLocalSsd": as_("discard_local_ssd", _flag)}
    ),
    "preemptible": as_("preemptible", _flag),
    "provisioningModel": as_("provisioning_model"),
    "terminationTime": as_("termination_time"),
}
_RESERVATION: Final[Mapping[str, Rule]] = {
    "consumeReservationType": as_("type"),
    "key": as_("key"),
    "values": as_("values", list),
}
_INSTANCE: Final[Mapping[str, Rule]] = {
    "advancedMachineFeatures": block(
        "advanced_machine_features",
        {
            "enableNestedVirtualization": as_("enable_nested_virtualization", _flag),
            "enableUefiNetworking": as_("enable_uefi_networking", _flag),
            "performanceMonitoringUnit": as_("performance_monitoring_unit"),
            "threadsPerCore": as_("threads_per_core", int),
            "turboMode": as_("turbo_mode"),
            "visibleCoreCount": as_("visible_core_count", int),
        },
    ),
    "canIpForward": as_("can_ip_forward", _flag),
    "confidentialInstanceConfig": block(
        "confidential_instance_config",
        {
            "confidentialInstanceType": as_("confidential_instance_type"),
            "enableConfidentialCompute": as_("enable_confidential_compute", _flag),
        },
    ),
    "deletionProtection": as_("deletion_protection", _flag),
    "description": as_("description"),
    "disks": _disks,
    "displayDevice": inner({"enableDisplay": as_("enable_display", _flag)}),
    "guestAccelerators": blocks(
        "guest_accelerator",
        {"acceleratorCount": as_("count", int), "acceleratorType": as_("type", _last)},
    ),
    "hostname": as_("hostname"),
    "instanceEncryptionKey": block("instance_encryption_key", _KMS_KEY),
    "keyRevocationActionType": as_("key_revocation_action_type"),
    "labels": as_("labels", dict),
    "machineType": as_("machine_type", _last),
    "metadata": inner({"items": _metadata}),
    "minCpuPlatform": as_("min_cpu_platform"),
    "name": as_("name"),
    "networkInterfaces": blocks("network_interface", _NETWORK_INTERFACE),
    "networkPerformanceConfig": block(
        "network_performance_config",
        {"totalEgressBandwidthTier": as_("total_egress_bandwidth_tier")},
    ),
    "params": block("params", {"resourceManagerTags": as_("resource_manager_tags", dict)}),
    "reservationAffinity": _reservation,
    "resourcePolicies": as_("resource_policies", list),
    "scheduling": block("scheduling", _SCHEDULING),
    "serviceAccounts": only("service_account", {"email": _account, "scopes": as_("scopes", list)}),
    "shieldedInstanceConfig": block(
        "shielded_instance_config",
        {
            "enableIntegrityMonitoring": as_("enable_integrity_monitoring", _flag),
            "enableSecureBoot": as_("enable_secure_boot", _flag),
            "enableVtpm": as_("enable_vtpm", _flag),
        },
    ),
    "tags": inner({"items": as_("tags", list)}),
}
_FIREWALL: Final[Mapping[str, Rule]] = {
    "allowed": blocks("allow", {"IPProtocol": as_("protocol"), "ports": as_("ports", list)}),
    "description": as_("description"),
    "direction": as_("direction"),
    "name": as_("name"),
    "network": as_("network"),
    "priority": as_("priority", int),
    "sourceRanges": as_("source_ranges", list),
    "sourceTags": as_("source_tags", list),
    "targetTags": as_("target_tags", list),
}
