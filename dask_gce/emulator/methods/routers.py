"""Methods of Cloud Routers, which hold the NAT gateways by which machines reach the internet.

Owns: what a router and its NATs look like. No packet goes through them: machines reach what their
kind lets them.
Source: https://cloud.google.com/compute/docs/reference/rest/v1/routers.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

from dask_gce.emulator.catalog.places import REGIONS
from dask_gce.emulator.errors import already_exists, bad_request, invalid, not_found, required
from dask_gce.emulator.links import check_name, new_id, now
from dask_gce.emulator.networks import find_network, find_subnetwork
from dask_gce.emulator.operations import Operation
from dask_gce.emulator.query import aggregate, listing
from dask_gce.emulator.routing import AGGREGATED, LIST, MUTATION, Call, Route

Resource = dict[str, Any]

#: What of a router a request may say here.
_FIELDS = frozenset({"bgp", "description", "name", "nats", "network"})
#: Those that a client may send back as it got them.
_OUTPUT = frozenset(
    {"creationTimestamp", "encryptedInterconnectRouter", "id", "kind", "region", "selfLink"}
)

#: How a NAT is that says nothing else.
_NAT: Resource = {
    "type": "PUBLIC",
    "endpointTypes": ["ENDPOINT_TYPE_VM"],
    "enableEndpointIndependentMapping": False,
    "enableDynamicPortAllocation": False,
    "autoNetworkTier": "PREMIUM",
}
#: The NATs that every subnetwork goes through.
_ALL_SUBNETWORKS = {"ALL_SUBNETWORKS_ALL_IP_RANGES", "ALL_SUBNETWORKS_ALL_PRIMARY_IP_RANGES"}


def _held(call: Call) -> dict[str, Resource]:
    return call.project.routers.setdefault(call.region, {})


def _get(call: Call) -> Resource:
    name = call.params["router"]
    if name not in _held(call):
        raise not_found(call.path)
    return _held(call)[name]


def _list(call: Call) -> Resource:
    return listing(call, "routerList", _held(call).values())


def _aggregated(call: Call) -> Resource:
    held = call.project.routers
    scopes = {f"regions/{region}": held.get(region, {}).values() for region in REGIONS}
    return aggregate(call, "routerAggregatedList", "routers", scopes)


def _check_fields(call: Call) -> None:
    unknown = sorted(set(call.body) - _FIELDS - _OUTPUT)
    if unknown:
        raise bad_request(f"The local Compute Engine does not keep a router's {unknown[0]}.")


def _check_nats(call: Call, nats: Sequence[Resource], network: str, router: str) -> list[Resource]:
    """Return the NATs of a router as it shows them."""
    shown: list[Resource] = []
    for index, nat in enumerate(nats):
        field = f"resource.nats[{index}]"
        name = check_name(nat.get("name", ""), f"{field}.name")
        if any(one["name"] == name for one in shown):
            raise invalid(f"{field}.name", name, "NAT names must be unique within a router.")
        for needed in ("natIpAllocateOption", "sourceSubnetworkIpRangesToNat"):
            if needed not in nat:
                raise required(f"{field}.{needed}")
        source = nat["sourceSubnetworkIpRangesToNat"]
        subnetworks = nat.get("subnetworks", [])
        if (source == "LIST_OF_SUBNETWORKS") != bool(subnetworks):
            raise invalid(
                f"{field}.subnetworks",
                f"{len(subnetworks)} subnetworks",
                "Subnetworks are given if, and only if, a list of subnetworks is wanted.",
            )
        if (nat["natIpAllocateOption"] == "MANUAL_ONLY") != bool(nat.get("natIps")):
            raise invalid(
                f"{field}.natIps",
                f"{len(nat.get('natIps', ()))} addresses",
                "Addresses are given if, and only if, they are allocated manually.",
            )
        found = []
        for number, one in enumerate(subnetworks):
            where = f"{field}.subnetworks[{number}].name"
            subnetwork = find_subnetwork(
                call.cloud, call.project, call.region, one.get("name", ""), where
            )
            if subnetwork["network"] != network:
                raise invalid(where, one["name"], "The subnetwork is of another network.")
            found.append({**one, "name": subnetwork["selfLink"]})
        _check_alone(call, [*_others(call, network, router), *shown], nat, found)
        shown.append({**_NAT, **nat, **({"subnetworks": found} if found else {})})
    return shown


def _others(call: Call, network: str, router: str) -> list[Resource]:
    """Return the NATs of the network in the region that are of other routers."""
    return [
        nat
        for name, held in _held(call).items()
        if name != router and held["network"] == network
        for nat in held.get("nats", ())
    ]


def _check_alone(
    call: Call, others: Sequence[Resource], nat: Resource, subnetworks: Sequence[Resource]
) -> None:
    """Refuse a second NAT for the same addresses."""
    mine = {one["name"] for one in subnetworks}
    for other in others:
        theirs = {one["name"] for one in other.get("subnetworks", ())}
        everything = _ALL_SUBNETWORKS & {
            other["sourceSubnetworkIpRangesToNat"],
            nat["sourceSubnetworkIpRangesToNat"],
        }
        if everything or mine & theirs:
            raise invalid(
                "resource.nats",
                nat["name"],
                f"NAT {other['name']} of this network and region has these subnetworks already.",
            )


def _begin(call: Call, operation_type: str, router: Resource, *, gone: bool = False) -> Operation:
    held = _held(call)

    async def work(operation: Operation) -> None:
        await asyncio.sleep(call.cloud.timings.creating)
        if gone and held.get(router["name"]) is router:
            del held[router["name"]]

    target = f"routers/{router['name']}"
    return call.begin(operation_type, target, work, target_id=router["id"])


def _insert(call: Call) -> Operation:
    _check_fields(call)
    body, held = call.body, _held(call)
    name = check_name(body.get("name", ""))
    if name in held:
        raise already_exists(f"{call.path}/{name}")
    if "network" not in body:
        raise required("resource.network")
    network = find_network(call.project, body["network"], "resource.network")["selfLink"]
    nats = _check_nats(call, body.get("nats", ()), network, name)
    region = call.cloud.url(f"{call.project.path}/regions/{call.region}")
    router: Resource = {
        "kind": "compute#router",
        "id": new_id(),
        "creationTimestamp": now(),
        "name": name,
        "region": region,
        "network": network,
        "selfLink": f"{region}/routers/{name}",
        "encryptedInterconnectRouter": False,
    }
    router |= {field: body[field] for field in ("bgp", "description") if field in body}
    if nats:
        router["nats"] = nats
    held[name] = router
    return _begin(call, "insert", router)


def _patch(call: Call) -> Operation:
    _check_fields(call)
    router = _get(call)
    for field in ("name", "network"):
        given = str(call.body.get(field, router[field]))
        if given.rpartition("/")[2] != router[field].rpartition("/")[2]:
            raise invalid(f"resource.{field}", given, "It cannot be changed.")
    changed: Resource = {
        field: call.body[field] for field in ("bgp", "description") if field in call.body
    }
    if "nats" in call.body:
        changed["nats"] = _check_nats(call, call.body["nats"], router["network"], router["name"])
    router |= changed
    if not router.get("nats", True):
        del router["nats"]
    return _begin(call, "patch", router)


def _delete(call: Call) -> Operation:
    return _begin(call, "delete", _get(call), gone=True)


_ROUTERS = "projects/{project}/regions/{region}/routers"
_ONE = f"{_ROUTERS}/{{router}}"

ROUTES = [
    Route("compute.routers.get", "GET", _ONE, _get),
    Route("compute.routers.list", "GET", _ROUTERS, _list, LIST),
    Route(
        "compute.routers.aggregatedList",
        "GET",
        "projects/{project}/aggregated/routers",
        _aggregated,
        AGGREGATED,
    ),
    Route("compute.routers.insert", "POST", _ROUTERS, _insert, MUTATION, "Router"),
    Route("compute.routers.patch", "PATCH", _ONE, _patch, MUTATION, "Router"),
    Route("compute.routers.delete", "DELETE", _ONE, _delete, MUTATION),
]
