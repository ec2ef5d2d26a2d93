"""What a metadata server shows of an instance, as a tree, and the ways to look at it.

Owns the shape of the tree and its text and JSON forms; pure, without I/O. Requests, headers, tokens
and guest attributes belong to :mod:`metadata`.

Sources: https://docs.cloud.google.com/compute/docs/metadata/overview and
https://docs.cloud.google.com/compute/docs/metadata/predefined-metadata-keys
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from ipaddress import IPv4Address, IPv4Network
from typing import Any

from dask_gce.emulator.record import InstanceRecord

__all__ = [
    "Named",
    "Records",
    "build_tree",
    "etag",
    "find",
    "is_folder",
    "render_json",
    "render_recursive",
    "render_text",
]


class Named(dict[str, Any]):
    """A folder whose entries have names that somebody chose: they are never respelled."""


class Records(list[Any]):
    """A folder whose entries are numbered, also when it is empty; any other list is a leaf."""


def build_tree(record: InstanceRecord, address: str, cpu_platform: str = "Intel Broadwell") -> Any:
    """Build the tree of ``computeMetadata/v1/`` for an instance.

    Parameters
    ----------
    record : InstanceRecord
        The instance.
    address : str
        The internal address of its machine.
    cpu_platform : str
        What to answer where the resource names no platform.

    Returns
    -------
    dict
        Folders are dicts with camelCase keys or lists, leaves are strings, numbers and lists.
    """
    resource = record.resource
    number = record.project_number
    machine_type = str(resource.get("machineType", "")).rpartition("/")[2]
    scheduling = resource.get("scheduling", {})
    return {
        "instance": {
            "attributes": Named(record.metadata),
            "cpuPlatform": resource.get("cpuPlatform", cpu_platform),
            "description": resource.get("description", ""),
            "disks": Records(
                _disk(index, disk) for index, disk in enumerate(resource.get("disks", []))
            ),
            "guestAttributes": Named(),
            "hostname": resource.get("hostname") or record.hostname,
            "id": int(resource.get("id", 0)),
            "image": _image(resource.get("disks", [])),
            "licenses": Records(),
            "machineType": f"projects/{number}/machineTypes/{machine_type}",
            "maintenanceEvent": record.maintenance_event,
            "name": record.name,
            "networkInterfaces": Records(
                _interface(interface, address, number)
                for interface in resource.get("networkInterfaces", [{}])
            ),
            "preempted": _flag(record.preempted),
            "remainingCpuTime": -1,
            "scheduling": {
                "automaticRestart": _flag(scheduling.get("automaticRestart", True)),
                "onHostMaintenance": scheduling.get("onHostMaintenance", "MIGRATE"),
                "preemptible": _flag(
                    scheduling.get("preemptible", False)
                    or scheduling.get("provisioningModel") == "SPOT"
                ),
            },
            "serviceAccounts": _accounts(resource.get("serviceAccounts", []), number),
            "tags": list(resource.get("tags", {}).get("items", [])),
            "virtualClock": {"driftToken": "0"},
            "zone": f"projects/{number}/zones/{record.zone}",
        },
        "project": {
            "attributes": Named(),
            "numericProjectId": number,
            "projectId": record.project,
        },
    }


def _flag(value: object) -> str:
    return "TRUE" if value else "FALSE"


def _disk(index: int, disk: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "deviceName": disk.get("deviceName", f"persistent-disk-{index}"),
        "index": disk.get("index", index),
        "interface": disk.get("interface", "SCSI"),
        "mode": disk.get("mode", "READ_WRITE"),
        "type": "LOCAL-SSD" if disk.get("type") == "SCRATCH" else "PERSISTENT",
    }


def _image(disks: Sequence[Mapping[str, Any]]) -> str:
    image = disks[0].get("initializeParams", {}).get("sourceImage", "") if disks else ""
    start = str(image).find("projects/")
    return str(image)[start:] if start >= 0 else str(image)


def _interface(interface: Mapping[str, Any], address: str, number: int) -> dict[str, Any]:
    network = str(interface.get("network", "")).rpartition("/")[2] or "default"
    subnet = IPv4Network(f"{address}/20", strict=False)
    octets = IPv4Address(address).packed
    return {
        "accessConfigs": Records(
            {"externalIp": config.get("natIP", ""), "type": config.get("type", "ONE_TO_ONE_NAT")}
            for config in interface.get("accessConfigs", [])
        ),
        "dnsServers": ["169.254.169.254"],
        "forwardedIps": [],
        "gateway": str(subnet.network_address + 1),
        "ip": address,
        "ipAliases": [],
        # Google derives the hardware address from the internal one in the same way.
        "mac": ":".join(["42", "01", *(f"{octet:02x}" for octet in octets)]),
        "mtu": 1460,
        "network": f"projects/{number}/networks/{network}",
        "subnetmask": str(subnet.netmask),
        "targetInstanceIps": [],
    }


def _accounts(accounts: Sequence[Mapping[str, Any]], number: int) -> Named:
    shown = Named()
    for account in accounts:
        email = str(account.get("email", "default"))
        if email == "default":
            email = f"{number}-compute@developer.gserviceaccount.com"
        entry = {
            "aliases": ["default"],
            "email": email,
            "scopes": list(account.get("scopes", [])),
        }
        shown.setdefault("default", entry)
        shown[email] = entry
    return shown


def _camel(name: str) -> str:
    head, *rest = name.split("-")
    return head + "".join(part.capitalize() for part in rest)


def _kebab(name: str) -> str:
    return re.sub("[A-Z]", lambda letter: "-" + letter.group().lower(), name)


def is_folder(node: Any) -> bool:
    """Tell whether a node is a folder; lists of plain values are leaves.

    Parameters
    ----------
    node : object
        A node of the tree.

    Returns
    -------
    bool
        Whether it has entries with paths of their own.
    """
    return isinstance(node, (dict, Records))


def find(tree: Any, segments: Sequence[str]) -> Any:
    """Return the node at a path.

    Parameters
    ----------
    tree : object
        The tree, or a part of it.
    segments : sequence of str
        The path as the URL spells it: ``network-interfaces``, ``0``, ``ip``.

    Returns
    -------
    object
        The node.

    Raises
    ------
    KeyError
        There is no such node.

    Examples
    --------
    >>> interfaces = Records([{"ip": "10.128.0.2"}])
    >>> find({"networkInterfaces": interfaces}, ["network-interfaces", "0", "ip"])
    '10.128.0.2'
    """
    node = tree
    for segment in segments:
        if isinstance(node, Named):
            node = node[segment]
        elif isinstance(node, dict):
            node = node[_camel(segment) if segment == segment.lower() else ""]
        elif isinstance(node, Records) and segment.isdecimal() and int(segment) < len(node):
            node = node[int(segment)]
        else:
            raise KeyError(segment)
    return node


def _entries(node: Any) -> list[tuple[str, Any]]:
    if isinstance(node, Named):
        return sorted(node.items())
    if isinstance(node, dict):
        return sorted((_kebab(name), value) for name, value in node.items())
    return [(str(index), value) for index, value in enumerate(node)]


def _listing(node: Any) -> list[str]:
    names = [name + ("/" if is_folder(value) else "") for name, value in _entries(node)]
    if isinstance(node, dict) and {"aliases", "email", "scopes"} <= node.keys():
        names = sorted([*names, "identity", "token"])  # made when asked for, not kept
    return names


def _leaf(node: Any, name: str) -> str:
    if isinstance(node, list):
        return json.dumps(node) if name == "tags" else "".join(f"{entry}\n" for entry in node)
    return str(node)


def render_text(node: Any, name: str = "") -> str:
    """Return a node as text: a leaf's value, or the names in a folder, a line each.

    Parameters
    ----------
    node : object
        The node.
    name : str
        The last segment of its path.

    Returns
    -------
    str
        The text.

    Examples
    --------
    >>> render_text({"projectId": "p", "attributes": Named(a="1")})
    'attributes/\\nproject-id\\n'
    """
    if is_folder(node):
        return "".join(f"{entry}\n" for entry in _listing(node))
    return _leaf(node, name)


def render_json(node: Any) -> str:
    """Return a node as JSON without what is below its entries.

    Parameters
    ----------
    node : object
        The node.

    Returns
    -------
    str
        JSON: the value of a leaf, the names in a folder.
    """
    return json.dumps(_listing(node) if is_folder(node) else node)


def render_recursive(node: Any, *, text: bool = False, path: str = "") -> str:
    """Return a node with all that is below it.

    Parameters
    ----------
    node : object
        The node.
    text : bool
        Lines of path and value instead of JSON.
    path : str
        What to put before the paths.

    Returns
    -------
    str
        JSON, or text.

    Examples
    --------
    >>> render_recursive({"scheduling": {"preemptible": "TRUE"}}, text=True)
    'scheduling/preemptible TRUE\\n'
    """
    if not text:
        return json.dumps(node)
    if not is_folder(node):
        return f"{path} {_leaf(node, path.rpartition('/')[2])}".rstrip("\n") + "\n"
    return "".join(
        render_recursive(value, text=True, path=f"{path}/{name}" if path else name)
        for name, value in _entries(node)
    )


def etag(node: Any) -> str:
    """Return the fingerprint of a node and all that is below it.

    Parameters
    ----------
    node : object
        The node.

    Returns
    -------
    str
        Sixteen hexadecimal digits that change with the content.
    """
    return hashlib.sha256(json.dumps(node, sort_keys=True).encode()).hexdigest()[:16]
