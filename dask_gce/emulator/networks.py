"""Networks, subnetworks and firewall rules, and those that every project begins with.

Owns: these three collections and their methods. Nothing here moves packets: a rule is kept, checked and
shown, and it is the machines' kind that may enforce it.
"""

from __future__ import annotations

import ipaddress
from typing import TYPE_CHECKING, Any

from dask_gce.emulator.catalog.places import REGIONS, SUBNET_RANGES
from dask_gce.emulator.errors import invalid, not_found, required
from dask_gce.emulator.links import check_name, fingerprint, new_id, now, path_of

if TYPE_CHECKING:
    from dask_gce.emulator.cloud import Cloud, Project

Resource = dict[str, Any]


def make_network(base_url: str, project_id: str, name: str, *, auto: bool) -> Resource:
    """Return a new network.

    Parameters
    ----------
    base_url : str
        The address of the API up to and with ``/compute/v1``.
    project_id : str
        Project ID.
    name : str
        Its name.
    auto : bool
        Whether it has a subnetwork in every region by itself.

    Returns
    -------
    dict
        The ``compute#network`` resource.
    """
    network_id = new_id()
    path = f"projects/{project_id}/global/networks"
    return {
        "kind": "compute#network",
        "id": network_id,
        "creationTimestamp": now(),
        "name": name,
        "autoCreateSubnetworks": auto,
        "subnetworks": [
            f"{base_url}/projects/{project_id}/regions/{region}/subnetworks/{name}"
            for region in (REGIONS if auto else ())
        ],
        "routingConfig": {"routingMode": "REGIONAL"},
        "networkFirewallPolicyEnforcementOrder": "AFTER_CLASSIC_FIREWALL",
        "selfLink": f"{base_url}/{path}/{name}",
        "selfLinkWithId": f"{base_url}/{path}/{network_id}",
    }


def make_subnetwork(
    base_url: str, project_id: str, region: str, name: str, network: str, cidr: str
) -> Resource:
    """Return a new subnetwork.

    Parameters
    ----------
    base_url : str
        The address of the API up to and with ``/compute/v1``.
    project_id : str
        Project ID.
    region : str
        Its region.
    name : str
        Its name.
    network : str
        The name of its network.
    cidr : str
        Its range of addresses.

    Returns
    -------
    dict
        The ``compute#subnetwork`` resource.
    """
    return {
        "kind": "compute#subnetwork",
        "id": new_id(),
        "creationTimestamp": now(),
        "name": name,
        "network": f"{base_url}/projects/{project_id}/global/networks/{network}",
        "ipCidrRange": cidr,
        "gatewayAddress": str(next(ipaddress.ip_network(cidr).hosts())),
        "region": f"{base_url}/projects/{project_id}/regions/{region}",
        "selfLink": f"{base_url}/projects/{project_id}/regions/{region}/subnetworks/{name}",
        "privateIpGoogleAccess": False,
        "fingerprint": fingerprint([name, cidr]),
        "privateIpv6GoogleAccess": "DISABLE_GOOGLE_ACCESS",
        "purpose": "PRIVATE",
        "stackType": "IPV4_ONLY",
    }


def default_network(base_url: str, project_id: str) -> dict[str, Resource]:
    """Return the networks of a new project, by name."""
    return {"default": make_network(base_url, project_id, "default", auto=True)}


def auto_subnetworks(base_url: str, project_id: str, network: str) -> dict[str, Resource]:
    """Return the subnetworks of an auto mode network, by region."""
    return {
        region: make_subnetwork(base_url, project_id, region, network, network, cidr)
        for region, cidr in SUBNET_RANGES.items()
    }


def default_subnetworks(base_url: str, project_id: str) -> dict[str, dict[str, Resource]]:
    """Return the subnetworks of a new project, by region and name."""
    found = auto_subnetworks(base_url, project_id, "default")
    return {region: {"default": subnetwork} for region, subnetwork in found.items()}


def default_firewalls(base_url: str, project_id: str) -> dict[str, Resource]:
    """Return the firewall rules of a new project, by name.

    They are those of https://cloud.google.com/firewall/docs/firewalls#more_rules_default_vpc.
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


_FIREWALL_FIELDS = frozenset(
    """
    allowed denied description destinationRanges direction disabled logConfig priority sourceRanges
    sourceServiceAccounts sourceTags targetServiceAccounts targetTags
    """.split()
)

_PROTOCOLS = frozenset({"ah", "all", "esp", "icmp", "ipip", "sctp", "tcp", "udp"})


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


def find_network(project: Project, link: str, field: str) -> Resource:
    """Return the network that a link means.

    Parameters
    ----------
    project : Project
        The project of the request.
    link : str
        A full or partial link.
    field : str
        The field it came from, for the refusal.

    Returns
    -------
    dict
        The network.

    Raises
    ------
    APIError
        It is no link to a network, or the network does not exist.
    """
    segments = path_of(link).removeprefix(f"{project.path}/").split("/")
    if segments[:2] != ["global", "networks"] or len(segments) != 3:
        raise invalid(field, link, "The URL is malformed.")
    if segments[2] not in project.networks:
        raise not_found(f"{project.path}/global/networks/{segments[2]}")
    return project.networks[segments[2]]


def find_subnetwork(cloud: Cloud, project: Project, region: str, link: str, field: str) -> Resource:
    """Return the subnetwork that a link means.

    Parameters
    ----------
    cloud : Cloud
        The state; the subnetwork may belong to another project (Shared VPC).
    project : Project
        The project of the request.
    region : str
        The region it must be in.
    link : str
        A full or partial link.
    field : str
        The field it came from, for the refusal.

    Returns
    -------
    dict
        The subnetwork.

    Raises
    ------
    APIError
        It is no link to a subnetwork, lies elsewhere or does not exist.
    """
    segments = path_of(link).split("/")
    owner = project
    if segments[0] == "projects" and len(segments) > 2:
        owner = cloud.project(segments[1])
        segments = segments[2:]
    if len(segments) != 4 or segments[0] != "regions" or segments[2] != "subnetworks":
        raise invalid(field, link, "The URL is malformed.")
    if segments[1] != region:
        raise invalid(field, link, "The referenced subnetwork must be in the instance's region.")
    found = owner.subnetworks.get(region, {}).get(segments[3])
    if found is None:
        raise not_found(f"{owner.path}/regions/{region}/subnetworks/{segments[3]}")
    return found
