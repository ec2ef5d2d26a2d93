"""Methods of static addresses of a region, internal and external.

An internal address is one that the emulator's kind of machines can give, whatever the range of the
subnetwork: on loopback one of 127.0.0.0/8. Source:
https://cloud.google.com/compute/docs/reference/rest/v1/addresses
"""

from __future__ import annotations

import asyncio
from ipaddress import IPv4Address
from typing import Any

from dask_gce.emulator.attributes import check_labels
from dask_gce.emulator.catalog.places import REGIONS
from dask_gce.emulator.errors import (
    already_exists,
    bad_request,
    condition_not_met,
    in_use,
    invalid,
    not_found,
)
from dask_gce.emulator.links import check_name, fingerprint, new_id, now, path_of
from dask_gce.emulator.networks import find_subnetwork
from dask_gce.emulator.operations import Operation
from dask_gce.emulator.query import aggregate, listing
from dask_gce.emulator.reserved import ReservedAddress, internal_behind, users_of
from dask_gce.emulator.routing import AGGREGATED, LIST, MUTATION, Call, Route

Resource = dict[str, Any]

#: What of an address a request may say here.
_FIELDS = frozenset(
    {
        *("address", "addressType", "description", "ipVersion", "labels", "name"),
        *("networkTier", "purpose", "subnetwork"),
    }
)
#: Those that a client may send back as it got them.
_OUTPUT = frozenset(
    {
        *("creationTimestamp", "id", "kind", "labelFingerprint", "region", "selfLink"),
        *("status", "users"),
    }
)


def _held(call: Call) -> dict[str, ReservedAddress]:
    return call.project.addresses.setdefault(call.region, {})


def _find(call: Call) -> ReservedAddress:
    # The path of setLabels has a word of its own for it.
    name = call.params.get("address") or call.params["resource"]
    if name not in _held(call):
        raise not_found(f"{call.project.path}/regions/{call.region}/addresses/{name}")
    return _held(call)[name]


def _users(call: Call, reserved: ReservedAddress) -> list[str]:
    return users_of(call.project, call.region).get(reserved.address, [])


def _get(call: Call) -> Resource:
    reserved = _find(call)
    return reserved.show(_users(call, reserved))


def _shown(call: Call, region: str) -> list[Resource]:
    held = call.project.addresses.get(region)
    if not held:
        return []
    users = users_of(call.project, region)
    return [one.show(users.get(one.address, [])) for one in held.values()]


def _list(call: Call) -> Resource:
    return listing(call, "addressList", _shown(call, call.region))


def _aggregated(call: Call) -> Resource:
    scopes = {f"regions/{region}": _shown(call, region) for region in REGIONS}
    return aggregate(call, "addressAggregatedList", "addresses", scopes)


def _demand(external: bool) -> dict[str, float]:
    return {"STATIC_ADDRESSES" if external else "INTERNAL_ADDRESSES": 1}


def _check(call: Call) -> bool:
    """Refuse what cannot be reserved, and tell whether it is an external address."""
    body = call.body
    unknown = sorted(set(body) - _FIELDS - _OUTPUT)
    if unknown:
        raise bad_request(f"The local Compute Engine does not keep an address's {unknown[0]}.")
    kind = body.get("addressType", "EXTERNAL")
    if kind not in ("EXTERNAL", "INTERNAL"):
        raise invalid("resource.addressType", kind, "Must be INTERNAL or EXTERNAL.")
    if body.get("ipVersion", "IPV4") != "IPV4":
        raise invalid(
            "resource.ipVersion", body["ipVersion"], "The local Compute Engine has IPV4 only."
        )
    if body.get("purpose", "GCE_ENDPOINT") != "GCE_ENDPOINT":
        raise invalid(
            "resource.purpose",
            body["purpose"],
            "The local Compute Engine reserves addresses for instances only: GCE_ENDPOINT.",
        )
    external = bool(kind == "EXTERNAL")
    if external:
        for field in ("purpose", "subnetwork"):
            if field in body:
                raise invalid(
                    f"resource.{field}", body[field], "It is for internal addresses only."
                )
    elif body.get("networkTier", "PREMIUM") != "PREMIUM":
        raise invalid(
            "resource.networkTier", body["networkTier"], "Internal addresses are PREMIUM only."
        )
    if "address" in body:
        try:
            IPv4Address(body["address"])
        except ValueError:
            raise invalid("resource.address", body["address"], "Must be an IPv4 address.") from None
    return external


def _reserve(call: Call, *, external: bool) -> tuple[str, str]:
    """Return an address that is kept from now on, and the internal one behind it."""
    kind, wanted = call.cloud.kind, call.body.get("address")
    field = "resource.address"
    for held in call.project.addresses.values():
        if any(one.address == wanted for one in held.values()):
            raise invalid(field, wanted, "Specified IP address is already reserved.")
    inner = wanted
    if external and wanted is not None:
        # Compute Engine gives no external address that one could wish for, but keeps one that an
        # instance has.
        inner = internal_behind(call.project, call.region, wanted)
        if inner is None:
            raise invalid(field, wanted, "No instance of the region has this external address.")
    try:
        internal = kind.reserve(inner)
    except ValueError as error:
        raise invalid(field, wanted or "", f"{error}.") from error
    return (kind.external_address(internal) if external else internal), internal


def _insert(call: Call) -> Operation:
    body, held = call.body, _held(call)
    name = check_name(body.get("name", ""))
    external = _check(call)
    if name in held:
        raise already_exists(f"{call.path}/{name}")
    region = call.cloud.url(f"{call.project.path}/regions/{call.region}")
    labels = check_labels(body.get("labels", {}), "resource.labels")
    resource: Resource = {
        "kind": "compute#address",
        "id": new_id(),
        "creationTimestamp": now(),
        "name": name,
        "description": body.get("description", ""),
        "addressType": "EXTERNAL" if external else "INTERNAL",
        "networkTier": body.get("networkTier", "PREMIUM"),
        "labelFingerprint": fingerprint(labels),
        "region": region,
        "selfLink": f"{region}/addresses/{name}",
        "status": "RESERVING",
    }
    if labels:
        resource["labels"] = labels
    if not external:
        link = body.get("subnetwork", f"regions/{call.region}/subnetworks/default")
        subnetwork = find_subnetwork(
            call.cloud, call.project, call.region, link, "resource.subnetwork"
        )
        resource |= {"purpose": "GCE_ENDPOINT", "subnetwork": subnetwork["selfLink"]}
    quota = call.cloud.conditions.quota
    quota.charge(call.project.id, call.region, _demand(external))
    try:
        resource["address"], internal = _reserve(call, external=external)
    except BaseException:
        quota.release(call.project.id, call.region, _demand(external))
        raise
    held[name] = ReservedAddress(resource, internal)

    async def work(operation: Operation) -> None:
        await asyncio.sleep(call.cloud.timings.creating)
        resource["status"] = "RESERVED"

    return call.begin("insert", f"addresses/{name}", work, target_id=resource["id"])


def _delete(call: Call) -> Operation:
    reserved, held = _find(call), _held(call)
    name = reserved.resource["name"]
    users = _users(call, reserved)
    if users:
        raise in_use(path_of(reserved.resource["selfLink"]), path_of(users[0]))

    async def work(operation: Operation) -> None:
        await asyncio.sleep(call.cloud.timings.creating)
        if held.get(name) is reserved:
            del held[name]
            call.cloud.kind.unreserve(reserved.internal)
            quota = call.cloud.conditions.quota
            quota.release(call.project.id, call.region, _demand(reserved.external))

    return call.begin("delete", f"addresses/{name}", work, target_id=reserved.resource["id"])


def _set_labels(call: Call) -> Operation:
    resource = _find(call).resource
    if call.body.get("labelFingerprint") != resource["labelFingerprint"]:
        raise condition_not_met("Labels fingerprint either invalid or resource labels have changed")
    labels = check_labels(call.body.get("labels", {}), "resource.labels")

    async def work(operation: Operation) -> None:
        resource.pop("labels", None)
        if labels:
            resource["labels"] = labels
        resource["labelFingerprint"] = fingerprint(labels)

    target = f"addresses/{resource['name']}"
    return call.begin("setLabels", target, work, target_id=resource["id"])


_ALL = "projects/{project}/regions/{region}/addresses"
_ONE = f"{_ALL}/{{address}}"

ROUTES = [
    Route("compute.addresses.get", "GET", _ONE, _get),
    Route("compute.addresses.list", "GET", _ALL, _list, LIST),
    Route(
        "compute.addresses.aggregatedList",
        "GET",
        "projects/{project}/aggregated/addresses",
        _aggregated,
        AGGREGATED,
    ),
    Route("compute.addresses.insert", "POST", _ALL, _insert, MUTATION, "Address"),
    Route("compute.addresses.delete", "DELETE", _ONE, _delete, MUTATION),
    Route(
        "compute.addresses.setLabels",
        "POST",
        f"{_ALL}/{{resource}}/setLabels",
        _set_labels,
        MUTATION,
        "RegionSetLabelsRequest",
    ),
]
