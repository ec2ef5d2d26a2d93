"""Which permissions a call of the Compute API needs, and on what.

Owns: the table of methods, and the refusal of callers in the words of the Compute API. Who has
which permission is told by `iam`.
Source: the permissions that each method's page names, below
https://cloud.google.com/compute/docs/reference/rest/v1, for example that of
`instances.insert <https://cloud.google.com/compute/docs/reference/rest/v1/instances/insert>`_.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from dask_gce.emulator.catalog.images import IMAGES
from dask_gce.emulator.catalog.places import ZONES
from dask_gce.emulator.errors import APIError
from dask_gce.emulator.links import path_of
from dask_gce.emulator.routing import Call

Resource = dict[str, Any]


class Need(NamedTuple):
    """One permission that a call needs."""

    #: The permission.
    permission: str
    #: On which resource, from ``projects/`` on.
    resource: str


#: The permissions of each method on what its path names.
_METHODS: dict[str, tuple[str, ...]] = {
    "compute.acceleratorTypes.aggregatedList": ("compute.acceleratorTypes.list",),
    "compute.acceleratorTypes.get": ("compute.acceleratorTypes.get",),
    "compute.acceleratorTypes.list": ("compute.acceleratorTypes.list",),
    "compute.addresses.aggregatedList": ("compute.addresses.list",),
    # What it takes to make and remove one depends on whether it is an internal one.
    "compute.addresses.delete": (),
    "compute.addresses.get": ("compute.addresses.get",),
    "compute.addresses.insert": (),
    "compute.addresses.list": ("compute.addresses.list",),
    "compute.addresses.setLabels": ("compute.addresses.setLabels",),
    "compute.advice.capacity": ("compute.advice.capacity",),
    "compute.advice.capacityHistory": ("compute.advice.capacityHistory",),
    "compute.diskTypes.get": ("compute.diskTypes.get",),
    "compute.diskTypes.list": ("compute.diskTypes.list",),
    "compute.disks.aggregatedList": ("compute.disks.list",),
    "compute.disks.delete": ("compute.disks.delete",),
    "compute.disks.get": ("compute.disks.get",),
    "compute.disks.insert": ("compute.disks.create",),
    "compute.disks.list": ("compute.disks.list",),
    "compute.firewalls.delete": ("compute.firewalls.delete",),
    "compute.firewalls.get": ("compute.firewalls.get",),
    "compute.firewalls.insert": ("compute.firewalls.create",),
    "compute.firewalls.list": ("compute.firewalls.list",),
    "compute.globalOperations.aggregatedList": ("compute.globalOperations.list",),
    "compute.globalOperations.delete": ("compute.globalOperations.delete",),
    "compute.globalOperations.get": ("compute.globalOperations.get",),
    "compute.globalOperations.list": ("compute.globalOperations.list",),
    "compute.globalOperations.wait": ("compute.globalOperations.get",),
    "compute.imageFamilyViews.get": ("compute.images.getFromFamily",),
    "compute.images.delete": ("compute.images.delete",),
    "compute.images.deprecate": ("compute.images.deprecate",),
    "compute.images.get": ("compute.images.get",),
    "compute.images.getFromFamily": ("compute.images.getFromFamily",),
    "compute.images.insert": ("compute.images.create",),
    "compute.images.list": ("compute.images.list",),
    "compute.images.setLabels": ("compute.images.setLabels",),
    "compute.instances.aggregatedList": ("compute.instances.list",),
    "compute.instances.bulkInsert": ("compute.instances.create",),
    "compute.instances.delete": ("compute.instances.delete",),
    "compute.instances.get": ("compute.instances.get",),
    "compute.instances.getGuestAttributes": ("compute.instances.getGuestAttributes",),
    "compute.instances.getSerialPortOutput": ("compute.instances.getSerialPortOutput",),
    "compute.instances.insert": ("compute.instances.create",),
    "compute.instances.list": ("compute.instances.list",),
    "compute.instances.reset": ("compute.instances.reset",),
    "compute.instances.setLabels": ("compute.instances.setLabels",),
    "compute.instances.setMetadata": ("compute.instances.setMetadata",),
    "compute.instances.setScheduling": ("compute.instances.setScheduling",),
    "compute.instances.start": ("compute.instances.start",),
    "compute.instances.stop": ("compute.instances.stop",),
    "compute.machineTypes.aggregatedList": ("compute.machineTypes.list",),
    "compute.machineTypes.get": ("compute.machineTypes.get",),
    "compute.machineTypes.list": ("compute.machineTypes.list",),
    "compute.networks.delete": ("compute.networks.delete",),
    "compute.networks.get": ("compute.networks.get",),
    "compute.networks.insert": ("compute.networks.create",),
    "compute.networks.list": ("compute.networks.list",),
    "compute.projects.get": ("compute.projects.get",),
    "compute.regionOperations.delete": ("compute.regionOperations.delete",),
    "compute.regionOperations.get": ("compute.regionOperations.get",),
    "compute.regionOperations.list": ("compute.regionOperations.list",),
    "compute.regionOperations.wait": ("compute.regionOperations.get",),
    "compute.regions.get": ("compute.regions.get",),
    "compute.regions.list": ("compute.regions.list",),
    "compute.reservations.get": ("compute.reservations.get",),
    "compute.routers.aggregatedList": ("compute.routers.list",),
    "compute.routers.delete": ("compute.routers.delete",),
    "compute.routers.get": ("compute.routers.get",),
    "compute.routers.insert": ("compute.routers.create",),
    "compute.routers.list": ("compute.routers.list",),
    "compute.routers.patch": ("compute.routers.update",),
    "compute.subnetworks.aggregatedList": ("compute.subnetworks.list",),
    "compute.subnetworks.delete": ("compute.subnetworks.delete",),
    "compute.subnetworks.get": ("compute.subnetworks.get",),
    "compute.subnetworks.insert": ("compute.subnetworks.create",),
    "compute.subnetworks.list": ("compute.subnetworks.list",),
    "compute.zoneOperations.delete": ("compute.zoneOperations.delete",),
    "compute.zoneOperations.get": ("compute.zoneOperations.get",),
    "compute.zoneOperations.list": ("compute.zoneOperations.list",),
    "compute.zoneOperations.wait": ("compute.zoneOperations.get",),
    "compute.zones.get": ("compute.zones.get",),
    "compute.zones.list": ("compute.zones.list",),
}


def _absolute(call: Call, link: str) -> str:
    """Return the path of a link of the request, from ``projects/`` on."""
    path = path_of(link)
    return path if path.startswith("projects/") else f"projects/{call.params['project']}/{path}"


def _own(call: Call) -> str:
    """Return the resource that a call is about: that of its path, or the one it makes."""
    path = call.path
    if call.route.method_id == "compute.instances.bulkInsert":
        return f"{path.rpartition('/')[0]}/{_first_name(call)}"
    name = call.body.get("name")
    if (
        call.route.verb == "POST"
        and isinstance(name, str)
        and call.route.method_id.endswith(".insert")
    ):
        return f"{path}/{name}"
    if call.route.method_id.endswith("ist") or ".advice." in call.route.method_id:
        # Lists of all kinds, and advice, are asked of the project.
        return f"projects/{call.params['project']}"
    return path


def _first_name(call: Call) -> str:
    """Return the name of the first instance of a bulk insert, which stands for all."""
    return str(
        next(iter(call.body.get("perInstanceProperties", {})), call.body.get("namePattern", ""))
    )


def _of_instance(call: Call) -> Iterator[Need]:
    """Yield what the fields of a new instance, or of new ones, need beside their creation."""
    bulk = call.route.method_id == "compute.instances.bulkInsert"
    zone = f"projects/{call.params['project']}/zones/{call.params['zone']}"
    if bulk:
        fields, name = call.body.get("instanceProperties", {}), _first_name(call)
    else:
        fields, name = call.body, call.body.get("name", "")
    instance = f"{zone}/instances/{name}"
    for disk in fields.get("disks", ()):
        made = disk.get("initializeParams", {})
        if "source" in disk:
            yield Need("compute.disks.use", _absolute(call, disk["source"]))
        elif disk.get("type") != "SCRATCH":
            own = f"{zone}/disks/{made.get('diskName', name)}"
            yield Need("compute.disks.create", own)
            if made.get("labels"):
                yield Need("compute.disks.setLabels", own)
        if "sourceImage" in made:
            yield Need("compute.images.useReadOnly", _absolute(call, made["sourceImage"]))
    region = ZONES.get(call.params["zone"], "")
    for interface in fields.get("networkInterfaces", ()):
        network = path_of(interface.get("network", "global/networks/default"))
        # That of an auto mode network has its name.
        usual = f"regions/{region}/subnetworks/{network.rpartition('/')[2]}"
        subnetwork = _absolute(call, interface.get("subnetwork", usual))
        yield Need("compute.subnetworks.use", subnetwork)
        if interface.get("accessConfigs"):
            yield Need("compute.subnetworks.useExternalIp", subnetwork)
        asked = [one.get("natIP") for one in interface.get("accessConfigs", ())]
        for text in filter(None, [interface.get("networkIP"), *asked]):
            for static in call.project.addresses.get(region, {}).values():
                link = path_of(static.resource["selfLink"])
                if text == static.address or _absolute(call, text) == link:
                    yield Need("compute.addresses.use" + "Internal" * (not static.external), link)
    for field, permission in (
        ("labels", "setLabels"),
        ("metadata", "setMetadata"),
        ("minCpuPlatform", "setMinCpuPlatform"),
        ("serviceAccounts", "setServiceAccount"),
        ("tags", "setTags"),
    ):
        if fields.get(field):
            yield Need(f"compute.instances.{permission}", instance)
    for account in fields.get("serviceAccounts", ()):
        yield _acting(call, str(account.get("email", "default")))


def _of_address(call: Call) -> Iterator[Need]:
    """Yield what it takes to reserve an address, or to let one go."""
    if call.route.verb == "DELETE":
        held = call.project.addresses.get(call.params["region"], {}).get(call.params["address"])
        internal = held is not None and not held.external
        yield Need("compute.addresses.delete" + "Internal" * internal, call.path)
        return
    internal = call.body.get("addressType") == "INTERNAL"
    yield Need("compute.addresses.create" + "Internal" * internal, _own(call))
    if call.body.get("labels"):
        yield Need("compute.addresses.setLabels", _own(call))
    if internal:
        usual = f"regions/{call.params['region']}/subnetworks/default"
        link = call.body.get("subnetwork", usual)
        yield Need("compute.subnetworks.use", _absolute(call, link))


def _acting(call: Call, email: str) -> Need:
    email = call.project.service_account if email == "default" else email
    return Need("iam.serviceAccounts.actAs", f"{call.project.path}/serviceAccounts/{email}")


def _of_metadata(call: Call) -> Iterator[Need]:
    # Who writes the metadata of a machine can become its service account.
    held = call.project.instances.get(call.params["zone"], {}).get(call.params["instance"])
    for account in held.resource.get("serviceAccounts", ()) if held else ():
        yield _acting(call, account["email"])


def _of_labels(call: Call) -> Iterator[Need]:
    if call.body.get("labels"):
        collection = call.route.method_id.split(".")[1]
        yield Need(f"compute.{collection}.setLabels", _own(call))
    if "sourceImage" in call.body:
        yield Need("compute.images.useReadOnly", _absolute(call, call.body["sourceImage"]))
    if "sourceDisk" in call.body:
        yield Need("compute.disks.useReadOnly", _absolute(call, call.body["sourceDisk"]))


def _of_network(call: Call) -> Iterator[Need]:
    """Yield what a change needs of the network that it changes."""
    link = call.body.get("network", "global/networks/default")
    for collection, held in (
        ("firewall", call.project.firewalls),
        ("subnetwork", call.project.subnetworks.get(call.params.get("region", ""), {})),
        ("router", call.project.routers.get(call.params.get("region", ""), {})),
    ):
        if collection in call.params:
            link = held.get(call.params[collection], {}).get("network", link)
    yield Need("compute.networks.updatePolicy", _absolute(call, link))


#: What methods need beside, by the fields of the request.
_FURTHER: dict[str, Callable[[Call], Iterator[Need]]] = {
    "compute.addresses.delete": _of_address,
    "compute.addresses.insert": _of_address,
    "compute.disks.insert": _of_labels,
    "compute.firewalls.delete": _of_network,
    "compute.firewalls.insert": _of_network,
    "compute.images.insert": _of_labels,
    "compute.instances.bulkInsert": _of_instance,
    "compute.instances.insert": _of_instance,
    "compute.instances.setMetadata": _of_metadata,
    "compute.routers.delete": _of_network,
    "compute.routers.insert": _of_network,
    "compute.routers.patch": _of_network,
    "compute.subnetworks.delete": _of_network,
    "compute.subnetworks.insert": _of_network,
}


def requirements(call: Call) -> list[Need]:
    """Return what a call needs.

    Parameters
    ----------
    call : Call
        The request, with its body.

    Returns
    -------
    list of Need
        The permissions, each on its resource.
    """
    method_id = call.route.method_id
    found = [Need(permission, _own(call)) for permission in _METHODS[method_id]]
    if method_id in _FURTHER:
        found += _FURTHER[method_id](call)
    return list(dict.fromkeys(found))


def authorize(call: Call) -> None:
    """Refuse a call whose caller has not every permission that it needs.

    Parameters
    ----------
    call : Call
        The request, with its body.

    Raises
    ------
    APIError
        Something is missing: each permission is an error of its own.
    """
    missing = [need for need in requirements(call) if not _has(call, need)]
    sentences = [
        f"Required '{need.permission}' permission for '{need.resource}'"
        for need in missing
        if need.permission != "iam.serviceAccounts.actAs"
    ]
    if sentences:
        raise APIError(403, "forbidden", sentences[0], further=sentences[1:])
    for need in missing:
        account = need.resource.rpartition("/")[2]
        raise APIError(
            400,
            "badRequest",
            f"The user does not have access to service account '{account}'.  User: '{call.user}'."
            "  Ask a project owner to grant you the iam.serviceAccountUser role on the service"
            " account",
        )


def _has(call: Call, need: Need) -> bool:
    owner = need.resource.split("/")[1]
    if owner in IMAGES and need.permission.startswith("compute.images."):
        # Google's images are everybody's.
        return True
    return call.cloud.permits(need.permission, call.cloud.project(owner), call.identity)
