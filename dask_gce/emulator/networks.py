"""Networks and subnetworks, and those that every project begins with.

Owns: what these resources look like and which one a link means. Their API methods are in
`methods.networks`.
"""

from __future__ import annotations

import ipaddress
from typing import TYPE_CHECKING, Any

from dask_gce.emulator.catalog.places import REGIONS, SUBNET_RANGES
from dask_gce.emulator.errors import invalid, not_found
from dask_gce.emulator.links import fingerprint, new_id, now, path_of

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
    base_url: str, project_id: str, region: str, *, name: str, network: str, cidr: str
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
    """Return the networks of a new project.

    Parameters
    ----------
    base_url : str
        The address of the API up to and with ``/compute/v1``.
    project_id : str
        Project ID.

    Returns
    -------
    dict
        The networks, by name.
    """
    return {"default": make_network(base_url, project_id, "default", auto=True)}


def auto_subnetworks(base_url: str, project_id: str, network: str) -> dict[str, Resource]:
    """Return the subnetworks of an auto mode network.

    Parameters
    ----------
    base_url : str
        The address of the API up to and with ``/compute/v1``.
    project_id : str
        Project ID.
    network : str
        The name of the network.

    Returns
    -------
    dict
        The subnetworks, by region.
    """
    return {
        region: make_subnetwork(
            base_url, project_id, region, name=network, network=network, cidr=cidr
        )
        for region, cidr in SUBNET_RANGES.items()
    }


def default_subnetworks(base_url: str, project_id: str) -> dict[str, dict[str, Resource]]:
    """Return the subnetworks of a new project.

    Parameters
    ----------
    base_url : str
        The address of the API up to and with ``/compute/v1``.
    project_id : str
        Project ID.

    Returns
    -------
    dict
        The subnetworks, by region and name.
    """
    found = auto_subnetworks(base_url, project_id, "default")
    return {region: {"default": subnetwork} for region, subnetwork in found.items()}


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
