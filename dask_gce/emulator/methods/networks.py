"""Methods of networks, subnetworks and firewall rules."""

from __future__ import annotations

import asyncio
import ipaddress
from collections.abc import Callable
from typing import Any

from dask_gce.emulator.catalog.places import REGIONS
from dask_gce.emulator.errors import (
    OperationFailed,
    already_exists,
    in_use,
    invalid,
    not_found,
    required,
)
from dask_gce.emulator.firewalls import make_firewall
from dask_gce.emulator.links import check_name, path_of
from dask_gce.emulator.networks import (
    auto_subnetworks,
    find_network,
    make_network,
    make_subnetwork,
)
from dask_gce.emulator.operations import Operation
from dask_gce.emulator.query import aggregate, listing
from dask_gce.emulator.quota import DEFAULT_FIREWALLS, GLOBAL, QuotaExceeded
from dask_gce.emulator.routing import AGGREGATED, LIST, MUTATION, Call, Route

Resource = dict[str, Any]


def _found(call: Call, resources: dict[str, Resource], name: str) -> Resource:
    if name not in resources:
        raise not_found(call.path)
    return resources[name]


def _add(call: Call, collection: str, into: dict[str, Resource], resource: Resource) -> Operation:
    """Add a resource now; its operation takes the time that Compute Engine would take."""
    into[resource["name"]] = resource
    network = call.cloud.kind.network
    network.changed(call.cloud)
    fail = _scripted_failure(call, resource)

    async def work(operation: Operation) -> None:
        await asyncio.sleep(call.cloud.timings.creating)
        try:
            fail()
        except OperationFailed:
            if into.get(resource["name"]) is resource:
                del into[resource["name"]]
                network.changed(call.cloud)
            raise
        await network.settled()

    target = f"{collection}/{resource['name']}"
    return call.begin("insert", target, work, target_id=resource["id"])


def _remove(
    call: Call, collection: str, out_of: dict[str, Resource], resource: Resource
) -> Operation:
    network = call.cloud.kind.network
    fail = _scripted_failure(call, resource)

    async def work(operation: Operation) -> None:
        await asyncio.sleep(call.cloud.timings.creating)
        fail()
        if out_of.get(resource["name"]) is resource:
            del out_of[resource["name"]]
            network.changed(call.cloud)
            await network.settled()

    target = f"{collection}/{resource['name']}"
    return call.begin("delete", target, work, target_id=resource["id"])


def _scripted_failure(call: Call, resource: Resource) -> Callable[[], None]:
    """Return what fails the call's operation, if that is in the script of faults."""
    faults = call.cloud.conditions.faults
    fault = faults.take(call.route.method_id, resource["name"], operation=True)

    def fail() -> None:
        if fault is not None:
            raise OperationFailed([dict(error) for error in fault.operation_errors])

    return fail


def _check_free(call: Call, name: str, resources: dict[str, Resource]) -> None:
    if name in resources:
        raise already_exists(f"{call.path}/{name}")


def _get_network(call: Call) -> Resource:
    return _found(call, call.project.networks, call.params["network"])


def _list_networks(call: Call) -> Resource:
    return listing(call, "networkList", call.project.networks.values())


def _insert_network(call: Call) -> Operation:
    project, body = call.project, call.body
    name = check_name(body.get("name", ""))
    _check_free(call, name, project.networks)
    auto = body.get("autoCreateSubnetworks", True)
    network = make_network(call.cloud.base_url, project.id, name, auto=auto)
    for field in ("description", "mtu", "routingConfig"):
        if field in body:
            network[field] = body[field]
    if auto:
        for region, made in auto_subnetworks(call.cloud.base_url, project.id, name).items():
            project.subnetworks.setdefault(region, {})[name] = made
    return _add(call, "networks", project.networks, network)


def _delete_network(call: Call) -> Operation:
    network = _get_network(call)
    link = network["selfLink"]
    for firewall in call.project.firewalls.values():
        if firewall["network"] == link:
            raise in_use(path_of(link), path_of(firewall["selfLink"]))
    for subnetworks in call.project.subnetworks.values():
        for subnetwork in subnetworks.values():
            if subnetwork["network"] == link and not network["autoCreateSubnetworks"]:
                raise in_use(path_of(link), path_of(subnetwork["selfLink"]))
    for routers in call.project.routers.values():
        for router in routers.values():
            if router["network"] == link:
                raise in_use(path_of(link), path_of(router["selfLink"]))
    _check_unused(call, "network", link)
    for subnetworks in call.project.subnetworks.values():
        for name in [one for one, held in subnetworks.items() if held["network"] == link]:
            del subnetworks[name]
    return _remove(call, "networks", call.project.networks, network)


def _check_unused(call: Call, field: str, link: str) -> None:
    for instances in call.project.instances.values():
        for instance in instances.values():
            for interface in instance.resource["networkInterfaces"]:
                if interface[field] == link:
                    raise in_use(path_of(link), instance.path)


def _get_subnetwork(call: Call) -> Resource:
    held = call.project.subnetworks.get(call.region, {})
    return _found(call, held, call.params["subnetwork"])


def _list_subnetworks(call: Call) -> Resource:
    held = call.project.subnetworks.get(call.region, {})
    return listing(call, "subnetworkList", held.values())


def _aggregated_subnetworks(call: Call) -> Resource:
    held = call.project.subnetworks
    scopes = {f"regions/{region}": held.get(region, {}).values() for region in REGIONS}
    return aggregate(call, "subnetworkAggregatedList", "subnetworks", scopes)


def _insert_subnetwork(call: Call) -> Operation:
    project, region, body = call.project, call.region, call.body
    name = check_name(body.get("name", ""))
    held = project.subnetworks.setdefault(region, {})
    _check_free(call, name, held)
    if "network" not in body:
        raise required("resource.network")
    network = find_network(project, body["network"], "resource.network")
    cidr = _check_range(body.get("ipCidrRange", ""), "resource.ipCidrRange")
    for other in [one for subnets in project.subnetworks.values() for one in subnets.values()]:
        same = other["network"] == network["selfLink"]
        if same and ipaddress.ip_network(other["ipCidrRange"]).overlaps(ipaddress.ip_network(cidr)):
            raise invalid(
                "resource.ipCidrRange",
                cidr,
                f"IP range conflicts with that of subnetwork {other['name']}.",
            )
    made = make_subnetwork(
        call.cloud.base_url, project.id, region, name=name, network=network["name"], cidr=cidr
    )
    for field in ("description", "privateIpGoogleAccess"):
        if field in body:
            made[field] = body[field]
    network["subnetworks"].append(made["selfLink"])
    return _add(call, "subnetworks", held, made)


def _delete_subnetwork(call: Call) -> Operation:
    subnetwork = _get_subnetwork(call)
    _check_unused(call, "subnetwork", subnetwork["selfLink"])
    for address in call.project.addresses.get(call.region, {}).values():
        if address.resource.get("subnetwork") == subnetwork["selfLink"]:
            link, user = subnetwork["selfLink"], address.resource["selfLink"]
            raise in_use(path_of(link), path_of(user))
    for network in call.project.networks.values():
        if subnetwork["selfLink"] in network["subnetworks"]:
            network["subnetworks"].remove(subnetwork["selfLink"])
    held = call.project.subnetworks[call.region]
    return _remove(call, "subnetworks", held, subnetwork)


def _check_range(text: str, field: str) -> str:
    try:
        return str(ipaddress.ip_network(text))
    except ValueError:
        raise invalid(field, text, "Must be a valid IP CIDR range.") from None


def _get_firewall(call: Call) -> Resource:
    return _found(call, call.project.firewalls, call.params["firewall"])


def _list_firewalls(call: Call) -> Resource:
    return listing(call, "firewallList", call.project.firewalls.values())


def _insert_firewall(call: Call) -> Operation:
    project = call.project
    name = check_name(call.body.get("name", ""))
    _check_free(call, name, project.firewalls)
    limit = call.cloud.conditions.quota.limits(GLOBAL).get("FIREWALLS", DEFAULT_FIREWALLS)
    if len(project.firewalls) >= limit:
        raise QuotaExceeded("FIREWALLS", GLOBAL, limit)
    made = make_firewall(call.cloud.base_url, project, call.body)
    return _add(call, "firewalls", project.firewalls, made)


def _delete_firewall(call: Call) -> Operation:
    return _remove(call, "firewalls", call.project.firewalls, _get_firewall(call))


_GLOBAL = "projects/{project}/global"
_NETWORKS = f"{_GLOBAL}/networks"
_FIREWALLS = f"{_GLOBAL}/firewalls"
_SUBNETWORKS = "projects/{project}/regions/{region}/subnetworks"
_VIEWS = frozenset({"views"})

ROUTES = [
    Route("compute.networks.get", "GET", f"{_NETWORKS}/{{network}}", _get_network),
    Route("compute.networks.list", "GET", _NETWORKS, _list_networks, LIST),
    Route("compute.networks.insert", "POST", _NETWORKS, _insert_network, MUTATION, "Network"),
    Route(
        "compute.networks.delete", "DELETE", f"{_NETWORKS}/{{network}}", _delete_network, MUTATION
    ),
    Route(
        "compute.subnetworks.get", "GET", f"{_SUBNETWORKS}/{{subnetwork}}", _get_subnetwork, _VIEWS
    ),
    Route("compute.subnetworks.list", "GET", _SUBNETWORKS, _list_subnetworks, LIST | _VIEWS),
    Route(
        "compute.subnetworks.aggregatedList",
        "GET",
        "projects/{project}/aggregated/subnetworks",
        _aggregated_subnetworks,
        AGGREGATED | _VIEWS,
    ),
    Route(
        "compute.subnetworks.insert",
        "POST",
        _SUBNETWORKS,
        _insert_subnetwork,
        MUTATION,
        "Subnetwork",
    ),
    Route(
        "compute.subnetworks.delete",
        "DELETE",
        f"{_SUBNETWORKS}/{{subnetwork}}",
        _delete_subnetwork,
        MUTATION,
    ),
    Route("compute.firewalls.get", "GET", f"{_FIREWALLS}/{{firewall}}", _get_firewall),
    Route("compute.firewalls.list", "GET", _FIREWALLS, _list_firewalls, LIST),
    Route("compute.firewalls.insert", "POST", _FIREWALLS, _insert_firewall, MUTATION, "Firewall"),
    Route(
        "compute.firewalls.delete",
        "DELETE",
        f"{_FIREWALLS}/{{firewall}}",
        _delete_firewall,
        MUTATION,
    ),
]
