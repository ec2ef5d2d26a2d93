"""A machine as the google provider writes it, and as Compute Engine does.

Owns the translation in both directions. Most attributes are fields of the API in another spelling;
the rest is named here, from the provider's documentation:
https://registry.terraform.io/providers/hashicorp/google/6.50.0/docs/resources/compute_instance
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from plugin import Refusal, State
from schema import Block

#: What the provider adds to labels unless it is told not to.
ATTRIBUTION = {"goog-terraform-provisioned": "true"}

#: Attributes that are no fields of the resource: whose they are is said below, or they are the
#: provider's own.
_OWN = frozenset(
    {
        *("allow_stopping_for_update", "boot_disk", "attached_disk", "desired_status"),
        *("guest_accelerator", "id", "labels", "machine_type", "metadata", "zone"),
        *("metadata_startup_script", "network_interface", "project", "reservation_affinity"),
        *("scratch_disk", "service_account", "tags", "timeouts", "effective_labels"),
        *("terraform_labels",),
    }
)


def camel(name: str) -> str:
    """Return an attribute's name as the API spells it."""
    return re.sub(r"_([a-z0-9])", lambda found: found[1].upper(), name)


def snake(name: str) -> str:
    """Return a field's name as the provider spells it."""
    return re.sub(r"([A-Z])", lambda found: f"_{found[1].lower()}", name)


def to_fields(block: Block, state: Mapping[str, Any], leave: frozenset[str] = frozenset()) -> State:
    """Return the fields that attributes stand for, where they differ in their spelling only."""
    fields: State = {}
    for name, attribute in block.attributes.items():
        value = state.get(name)
        # The provider takes what is empty for what is not given.
        if name not in leave and value not in (None, [], "") and not attribute.computed_only:
            fields[camel(name)] = value
    for name, nested in block.blocks.items():
        several = state.get(name)
        if name in leave or not several:
            continue
        inner = [to_fields(nested.block, one) for one in _listed(several)]
        fields[camel(name)] = inner[0] if nested.most == 1 else inner
    return fields


def from_fields(block: Block, fields: Mapping[str, Any]) -> State:
    """Return attributes and blocks out of fields, whatever of them the provider has."""
    state: State = {}
    for key, value in fields.items():
        name = snake(key)
        if name in block.attributes:
            state[name] = _typed(block.attributes[name].type, value)
        elif name in block.blocks:
            nested = block.blocks[name]
            state[name] = [from_fields(nested.block, one) for one in _listed(value)]
    return state


def _typed(kind: Any, value: Any) -> Any:
    # The API writes 64-bit numbers as text.
    return int(value) if kind == "number" and isinstance(value, str) else value


def _listed(value: Any) -> list[Any]:
    return list(value) if isinstance(value, list) else [value]


def only(value: Any) -> State:
    """Return what is in the only block of a list; empty if there is none."""
    return dict(value[0]) if value else {}


def to_instance(block: Block, state: State, project: str) -> State:
    """Return the body of ``instances.insert``."""
    zone = state["zone"]
    body = to_fields(block, {**state, "zone": None}, _OWN)
    body.pop("project", None)
    duration = body.get("scheduling", {}).get("maxRunDuration")
    if duration:
        # The API's numbers of 64 bits are text.
        duration["seconds"] = str(duration["seconds"])
    body["machineType"] = _in_zone(zone, "machineTypes", state["machine_type"])
    body["labels"] = {**(state.get("labels") or {}), **ATTRIBUTION}
    items = dict(state.get("metadata") or {})
    if (script := state.get("metadata_startup_script")) is not None:
        if "startup-script" in items:
            raise Refusal("Cannot provide both metadata_startup_script and metadata.startup-script")
        items["startup-script"] = script
    body["metadata"] = {"items": [{"key": key, "value": items[key]} for key in sorted(items)]}
    if state.get("tags"):
        body["tags"] = {"items": sorted(state["tags"])}
    body["disks"] = [
        _boot_disk(block, only(state["boot_disk"]), zone),
        *(_scratch_disk(each, zone) for each in state.get("scratch_disk") or ()),
    ]
    if state.get("attached_disk"):
        raise Refusal("attached_disk is beyond this stand-in")
    body["networkInterfaces"] = [
        _interface(block.blocks["network_interface"].block, each, project)
        for each in state["network_interface"]
    ]
    if state.get("service_account"):
        account = only(state["service_account"])
        body["serviceAccounts"] = [
            {"email": account["email"] or "default", "scopes": sorted(account["scopes"])}
        ]
    if state.get("guest_accelerator"):
        body["guestAccelerators"] = [
            {
                "acceleratorType": _in_zone(zone, "acceleratorTypes", each["type"]),
                "acceleratorCount": each["count"],
            }
            for each in state["guest_accelerator"]
        ]
    if state.get("reservation_affinity"):
        affinity = only(state["reservation_affinity"])
        which = only(affinity.get("specific_reservation"))
        body["reservationAffinity"] = {"consumeReservationType": affinity["type"], **which}
    return body


def _in_zone(zone: str, kind: str, name: str) -> str:
    return f"zones/{zone}/{kind}/{name.rpartition('/')[2]}"


def _boot_disk(block: Block, state: State, zone: str) -> State:
    outer = block.blocks["boot_disk"].block
    leave = frozenset({"initialize_params", "kms_key_self_link", "auto_delete"})
    disk = {"boot": True, "type": "PERSISTENT", **to_fields(outer, state, leave)}
    disk["autoDelete"] = state.get("auto_delete") is not False
    if state.get("kms_key_self_link"):
        disk["diskEncryptionKey"] = {"kmsKeyName": state["kms_key_self_link"]}
    wanted = only(state.get("initialize_params"))
    if wanted:
        inner = outer.blocks["initialize_params"].block
        disk["initializeParams"] = to_fields(inner, wanted, frozenset({"image", "size", "type"}))
        for name, field in (("image", "sourceImage"), ("size", "diskSizeGb")):
            if wanted.get(name) is not None:
                disk["initializeParams"][field] = str(wanted[name])
        if wanted.get("type"):
            disk["initializeParams"]["diskType"] = _in_zone(zone, "diskTypes", wanted["type"])
    return disk


def _scratch_disk(state: State, zone: str) -> State:
    disk = {
        "type": "SCRATCH",
        "autoDelete": True,
        "interface": state["interface"],
        "initializeParams": {"diskType": _in_zone(zone, "diskTypes", "local-ssd")},
    }
    if state.get("device_name"):
        disk["deviceName"] = state["device_name"]
    if state.get("size"):
        disk["initializeParams"]["diskSizeGb"] = str(state["size"])
    return disk


def _interface(block: Block, state: State, project: str) -> State:
    leave = frozenset({"access_config", "name", "network_ip", "subnetwork_project"})
    interface = to_fields(block, state, leave)
    if state.get("network_ip"):
        interface["networkIP"] = state["network_ip"]
    for name in ("network", "subnetwork"):
        value = interface.get(name)
        if value and "/" not in value and name == "network":
            interface[name] = f"projects/{project}/global/networks/{value}"
        elif value and "/" not in value:
            raise Refusal("a subnetwork without its region is beyond this stand-in")
    if state.get("access_config"):
        interface["accessConfigs"] = []
        for each in state["access_config"]:
            access = {"type": "ONE_TO_ONE_NAT", "name": "external-nat"}
            if each.get("nat_ip"):
                access["natIP"] = each["nat_ip"]
            if each.get("network_tier"):
                access["networkTier"] = each["network_tier"]
            interface["accessConfigs"].append(access)
    return interface


def from_instance(block: Block, body: Mapping[str, Any]) -> State:
    """Return what an answer says of a machine."""
    taken = ("disks", "metadata", "networkInterfaces", "tags", "labels", "guestAccelerators")
    fields = {key: value for key, value in body.items() if key not in taken}
    state = from_fields(block, fields)
    metadata = body["metadata"]
    items = {each["key"]: each["value"] for each in metadata.get("items", ())}
    state["metadata"] = items
    state["metadata_startup_script"] = items.get("startup-script")
    state["metadata_fingerprint"] = metadata["fingerprint"]
    state["tags"] = sorted(body.get("tags", {}).get("items", ()))
    state["tags_fingerprint"] = body.get("tags", {}).get("fingerprint", "")
    state["labels"] = dict(body.get("labels", {}))
    state["effective_labels"] = state["terraform_labels"] = state["labels"]
    state["instance_id"] = body["id"]
    state["current_status"] = body["status"]
    state["cpu_platform"] = body.get("cpuPlatform", "")
    state["machine_type"] = body["machineType"].rpartition("/")[2]
    state["zone"] = body["zone"].rpartition("/")[2]
    state["service_account"] = [
        {"email": each["email"], "scopes": sorted(each["scopes"])}
        for each in body.get("serviceAccounts", ())
    ]
    state["guest_accelerator"] = [
        {"type": each["acceleratorType"].rpartition("/")[2], "count": each["acceleratorCount"]}
        for each in body.get("guestAccelerators", ())
    ]
    disks = body.get("disks", ())
    state["boot_disk"] = [
        {"auto_delete": each["autoDelete"], "device_name": each["deviceName"], "mode": each["mode"]}
        for each in disks
        if each.get("boot")
    ]
    state["scratch_disk"] = [
        {"interface": each["interface"], "size": int(each["diskSizeGb"])}
        for each in disks
        if each["type"] == "SCRATCH"
    ]
    state["network_interface"] = [
        {
            "name": each["name"],
            "network": each["network"],
            "subnetwork": each.get("subnetwork", ""),
            "network_ip": each["networkIP"],
            "access_config": [
                {"nat_ip": one.get("natIP", ""), "network_tier": one.get("networkTier", "PREMIUM")}
                for one in each.get("accessConfigs", ())
            ],
        }
        for each in body["networkInterfaces"]
    ]
    return state
