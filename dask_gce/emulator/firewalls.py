"""Firewall rules: what they look like, what they may say, which ones every project begins with.

Nothing here moves packets: a rule is checked, kept and shown. Machines of kind ``namespace``, and
no others, obey it.
"""

from __future__ import annotations

import ipaddress
from typing import TYPE_CHECKING, Any

from dask_gce.emulator.errors import invalid, required
from dask_gce.emulator.links import check_name, new_id, now
from dask_gce.emulator.networks import find_network

if TYPE_CHECKING:
    from dask_gce.emulator.cloud import Project

Resource = dict[str, Any]

_FIREWALL_FIELDS = frozenset(
    {
        *("allowed", "denied", "description", "destinationRanges", "direction", "disabled"),
        *("logConfig", "priority", "sourceRanges", "sourceServiceAccounts", "sourceTags"),
        *("targetServiceAccounts", "targetTags"),
    }
)

_PROTOCOLS = frozenset({"ah", "all", "esp", "icmp", "ipip", "sctp", "tcp", "udp"})


#: The rules of a new project:
#: https://docs.cloud.google.com/firewall/docs/firewalls#more_rules_default_vpc
DEFAULT_RULES = frozenset(
    f"default-allow-{service}" for service in ("icmp", "internal", "rdp", "ssh")
)


def default_firewalls(base_url: str, project_id: str) -> dict[str, Resource]:
    """Return the firewall rules of a new project.

    They are those of https://cloud.google.com/firewall/docs/firewalls#more_rules_default_vpc.

    Parameters
    ----------
    base_url : str
        The address of the API up to and with ``/compute/v1``.
    project_id : str
        Project ID.

    Returns
    -------
    dict
        The rules, by name.
    """
    rules: dict[str, tuple[str, list[dict[str, Any]]]] = {
        "default-allow-icmp": ("0.0.0.0/0", [{"IPProtocol": "icmp"}]),
        "default-allow-internal": (
            "10.128.0.0/9",
            [
                {"IPProtocol": "tcp", "ports": ["0-65535"]},
                {"IPProtocol": "udp", "ports": ["0-65535"]},
                {"IPProtocol": "icmp"},
            ],
        ),
        "default-allow-rdp": ("0.0.0.0/0", [{"IPProtocol": "tcp", "ports": ["3389"]}]),
        "default-allow-ssh": ("0.0.0.0/0", [{"IPProtocol": "tcp", "ports": ["22"]}]),
    }
    return {
        name: _firewall(
            base_url,
            project_id,
            name,
            network=f"{base_url}/projects/{project_id}/global/networks/default",
            priority=65534,
            sourceRanges=[source],
            allowed=allowed,
        )
        for name, (source, allowed) in rules.items()
    }


def _firewall(base_url: str, project_id: str, name: str, **fields: Any) -> Resource:
    return {
        "kind": "compute#firewall",
        "id": new_id(),
        "creationTimestamp": now(),
        "name": name,
        "priority": 1000,
        "direction": "INGRESS",
        "disabled": False,
        "logConfig": {"enable": False},
        "selfLink": f"{base_url}/projects/{project_id}/global/firewalls/{name}",
        **fields,
    }


def make_firewall(base_url: str, project: Project, body: Resource) -> Resource:
    """Return a new firewall rule.

    Parameters
    ----------
    base_url : str
        The address of the API up to and with ``/compute/v1``.
    project : Project
        Its project.
    body : dict
        The ``Firewall`` from the request, whose name has been checked.

    Returns
    -------
    dict
        The ``compute#firewall`` resource.

    Raises
    ------
    APIError
        The rule contradicts itself, or a value in it is malformed.
    """
    if bool(body.get("allowed")) == bool(body.get("denied")):
        raise invalid("resource", "", "Exactly one of 'allowed' and 'denied' must be specified.")
    for action in ("allowed", "denied"):
        for index, rule in enumerate(body.get(action, ())):
            _check_rule(rule, f"resource.{action}[{index}]")
    priority = body.get("priority", 1000)
    if not 0 <= priority <= 65535:
        raise invalid("resource.priority", priority, "Must be between 0 and 65535.")
    if "targetTags" in body and "targetServiceAccounts" in body:
        raise invalid("resource.targetTags", "", "It and targetServiceAccounts exclude each other.")
    egress = body.get("direction", "INGRESS") == "EGRESS"
    sources = ("sourceRanges", "sourceTags", "sourceServiceAccounts")
    if egress and any(field in body for field in sources):
        raise invalid("resource.direction", "EGRESS", "Sources are for ingress rules only.")
    if not egress and "destinationRanges" in body and not any(one in body for one in sources):
        raise invalid("resource.destinationRanges", "", "An ingress rule needs a source.")
    for field in ("sourceRanges", "destinationRanges"):
        for index, cidr in enumerate(body.get(field, ())):
            try:
                ipaddress.ip_network(cidr)
            except ValueError:
                raise invalid(
                    f"resource.{field}[{index}]", cidr, "Must be a valid IP CIDR range."
                ) from None
    for field in ("sourceTags", "targetTags"):
        for index, tag in enumerate(body.get(field, ())):
            check_name(tag, f"resource.{field}[{index}]")
    fields = {name: value for name, value in body.items() if name in _FIREWALL_FIELDS}
    if not any(field in body for field in (*sources, "destinationRanges")):
        fields["destinationRanges" if egress else "sourceRanges"] = ["0.0.0.0/0"]
    network = find_network(
        project, body.get("network", "global/networks/default"), "resource.network"
    )
    fields["network"] = network["selfLink"]
    return _firewall(base_url, project.id, body["name"], **fields)


def _check_rule(rule: Resource, field: str) -> None:
    protocol = rule.get("IPProtocol", "")
    if not protocol:
        raise required(f"{field}.IPProtocol")
    if protocol.lower() not in _PROTOCOLS and not (protocol.isdigit() and int(protocol) < 256):
        raise invalid(f"{field}.IPProtocol", protocol, "It is no known protocol.")
    ports = rule.get("ports", [])
    if ports and protocol.lower() not in ("tcp", "udp", "sctp", "6", "17", "132"):
        raise invalid(f"{field}.ports", ports, "Only tcp, udp and sctp have ports.")
    for index, port in enumerate(ports):
        bounds = port.split("-")
        numbers = [int(one) for one in bounds if one.isdigit() and int(one) <= 65535]
        if len(numbers) != len(bounds) or len(bounds) > 2 or numbers != sorted(numbers):
            raise invalid(f"{field}.ports[{index}]", port, "Must be a port or a range of ports.")
