"""Static addresses: what was reserved, who uses it, which one a link of a request means.

Owns: `ReservedAddress`, and the answer to who uses it, which is read from the instances. A kind of
machines keeps the address itself free for it (`machine.MachineKind.reserve`); the methods are those
of `methods.addresses`.

An external address stands for the internal one through which the kind reaches it: an instance that
gets the one gets the other.
Source: https://cloud.google.com/compute/docs/ip-addresses/configure-static-internal-ip-address.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from dask_gce.emulator.catalog.places import ZONES
from dask_gce.emulator.errors import APIError, invalid, not_found
from dask_gce.emulator.links import path_of

if TYPE_CHECKING:
    from dask_gce.emulator.cloud import Project

Resource = dict[str, Any]


@dataclass
class ReservedAddress:
    """One static address.

    Parameters
    ----------
    resource : dict
        The ``compute#address`` resource, but for its users.
    internal : str
        The address that the kind of machines keeps for it.
    """

    resource: Resource
    internal: str

    @property
    def address(self) -> str:
        """The address itself."""
        return str(self.resource["address"])

    @property
    def external(self) -> bool:
        """Whether it is an external one."""
        return bool(self.resource["addressType"] == "EXTERNAL")

    def show(self, users: list[str]) -> Resource:
        """Return the resource with those who use it.

        Parameters
        ----------
        users : list of str
            The links of the instances that have it.

        Returns
        -------
        dict
            The ``compute#address`` resource.
        """
        if users and self.resource["status"] == "RESERVED":
            return {**self.resource, "status": "IN_USE", "users": users}
        return dict(self.resource)


def _interfaces(project: Project, region: str) -> Iterator[tuple[str, Resource]]:
    """Yield each network interface of a region's instances, with the link of its instance."""
    for zone, instances in project.instances.items():
        if ZONES[zone] == region:
            for instance in instances.values():
                for interface in instance.resource["networkInterfaces"]:
                    yield instance.link, interface


def users_of(project: Project, region: str) -> dict[str, list[str]]:
    """Return who has which address.

    Parameters
    ----------
    project : Project
        The project.
    region : str
        The region.

    Returns
    -------
    dict
        The links of the instances that have it, by address, internal and external.
    """
    found: dict[str, list[str]] = {}
    for link, interface in _interfaces(project, region):
        addresses = {interface["networkIP"]}
        addresses |= {config["natIP"] for config in interface.get("accessConfigs", ())}
        for address in addresses:
            found.setdefault(address, []).append(link)
    return found


def internal_behind(project: Project, region: str, external: str) -> str | None:
    """Return the internal address of an instance that has an external one.

    Parameters
    ----------
    project : Project
        The project.
    region : str
        The region.
    external : str
        The external address.

    Returns
    -------
    str or None
        Its internal address; None if no instance has the external one.
    """
    for _, interface in _interfaces(project, region):
        if any(config["natIP"] == external for config in interface.get("accessConfigs", ())):
            return str(interface["networkIP"])
    return None


def find_reserved(project: Project, region: str, text: str, field: str) -> ReservedAddress | None:
    """Return the static address that a request names.

    Parameters
    ----------
    project : Project
        The project of the request.
    region : str
        The region it must be in.
    text : str
        An address, or a full or partial link to an ``addresses`` resource.
    field : str
        The field it came from, for the refusal.

    Returns
    -------
    ReservedAddress or None
        The static address; None for an address that nobody reserved.

    Raises
    ------
    APIError
        It is a link to something else, to another region, or to nothing.
    """
    held = project.addresses.get(region, {})
    if "/" not in text:
        return next((one for one in held.values() if one.address == text), None)
    segments = path_of(text).removeprefix(f"{project.path}/").split("/")
    if len(segments) != 4 or segments[0] != "regions" or segments[2] != "addresses":
        raise invalid(field, text, "The URL is malformed.")
    if segments[1] != region:
        raise invalid(field, text, "The referenced address must be in the instance's region.")
    if segments[3] not in held:
        raise not_found(f"{project.path}/regions/{region}/addresses/{segments[3]}")
    return held[segments[3]]


def address_in_use(address: str) -> APIError:
    """Return the refusal of an address that another instance has.

    Parameters
    ----------
    address : str
        The address.

    Returns
    -------
    APIError
        The refusal. As Google's, it ends the operation of an insert that was accepted.
    """
    return APIError(
        409,
        ADDRESS_IN_USE,
        f"IP '{address}' is already being used by another resource.",
        rpc_status="ALREADY_EXISTS",
    )


#: The reason of that refusal.
ADDRESS_IN_USE = "ipInUseByAnotherResource"
