"""What the network of namespace machines has to know of the emulated cloud, at one moment.

Owns the reading of instances and firewall rules. What packets, names and listeners become of it is
the business of :mod:`firewall`, :mod:`dns` and :mod:`forwards`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network, ip_network
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dask_gce.emulator.cloud import Cloud

__all__ = ["Interface", "Match", "Rule", "View", "look"]

#: https://www.iana.org/assignments/protocol-numbers
_PROTOCOLS = {"ah": 51, "esp": 50, "icmp": 1, "ipip": 4, "sctp": 132, "tcp": 6, "udp": 17}

_LOOPBACK = IPv4Network("127.0.0.0/8")


@dataclass(frozen=True)
class Interface:
    """An instance as its network sees it: by its first network interface.

    Parameters
    ----------
    project : str
        The instance's project.
    zone : str
        Its zone.
    name : str
        Its name.
    network : str
        The link of the network.
    address : str
        The internal address.
    external : bool
        Whether it has an external address.
    tags : frozenset of str
        The instance's network tags.
    accounts : frozenset of str
        The addresses of its service accounts.
    """

    project: str
    zone: str
    name: str
    network: str
    address: str
    external: bool = False
    tags: frozenset[str] = frozenset()
    accounts: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Match:
    """Which packets an entry of ``allowed`` or ``denied`` means.

    Parameters
    ----------
    protocol : int or None
        The number of the IP protocol; None for all.
    ports : tuple
        The first and the last port of each range, in order and apart; none for all.
    """

    protocol: int | None = None
    ports: tuple[tuple[int, int], ...] = ()

    def covers(self, protocol: int, port: int) -> bool:
        """Tell whether packets to a port are meant.

        Parameters
        ----------
        protocol : int
            The number of their protocol.
        port : int
            The port.

        Returns
        -------
        bool
            Whether they are.
        """
        if self.protocol not in (None, protocol):
            return False
        return not self.ports or any(first <= port <= last for first, last in self.ports)


@dataclass(frozen=True)
class Rule:
    """A firewall rule that is in force.

    Parameters
    ----------
    name : str
        Its name.
    network : str
        The link of its network.
    ingress : bool
        Whether it is for what comes in, not for what goes out.
    priority : int
        Lower numbers come first.
    allow : bool
        Whether it lets packets through.
    matches : tuple of Match
        The packets it is for.
    ranges : tuple of IPv4Network
        Where they come from or, if it is for what goes out, go to.
    source_tags : frozenset of str
        Instances with one of these are sources, too.
    source_accounts : frozenset of str
        Likewise, by service account.
    destinations : tuple of IPv4Network
        Only for what goes there; none for everywhere.
    target_tags : frozenset of str
        The instances it is for; with neither these nor accounts it is for all.
    target_accounts : frozenset of str
        Likewise, by service account.
    loopback : bool
        Whether the host's own loopback addresses are among the sources.
    """

    name: str
    network: str
    ingress: bool
    priority: int
    allow: bool
    matches: tuple[Match, ...]
    ranges: tuple[IPv4Network, ...] = ()
    source_tags: frozenset[str] = frozenset()
    source_accounts: frozenset[str] = frozenset()
    destinations: tuple[IPv4Network, ...] = ()
    target_tags: frozenset[str] = frozenset()
    target_accounts: frozenset[str] = frozenset()
    loopback: bool = False

    def targets(self, interface: Interface) -> bool:
        """Tell whether it is for an instance.

        Parameters
        ----------
        interface : Interface
            The instance's interface.

        Returns
        -------
        bool
            Whether it is.
        """
        if interface.network != self.network:
            return False
        if not self.target_tags and not self.target_accounts:
            return True
        return bool(self.target_tags & interface.tags or self.target_accounts & interface.accounts)

    def names_source(self, interface: Interface) -> bool:
        """Tell whether an instance is a source by its tags or service accounts.

        Parameters
        ----------
        interface : Interface
            The instance's interface.

        Returns
        -------
        bool
            Whether it is.
        """
        return interface.network == self.network and bool(
            self.source_tags & interface.tags or self.source_accounts & interface.accounts
        )

    def comes_from(self, address: str) -> bool:
        """Tell whether an address is among the ranges.

        Parameters
        ----------
        address : str
            The IPv4 address.

        Returns
        -------
        bool
            Whether it is.
        """
        return any(IPv4Address(address) in one for one in self.ranges)


@dataclass(frozen=True)
class View:
    """All instances and the rules between them.

    Parameters
    ----------
    interfaces : tuple of Interface
        The instances.
    rules : tuple of Rule
        The rules that are in force, first the one that decides first.
    addresses : frozenset of str
        The internal addresses of all their interfaces.
    """

    interfaces: tuple[Interface, ...] = ()
    rules: tuple[Rule, ...] = ()
    addresses: frozenset[str] = frozenset()


def look(cloud: Cloud) -> View:
    """Read the state of an emulator.

    Parameters
    ----------
    cloud : Cloud
        The state.

    Returns
    -------
    View
        What concerns the network.
    """
    interfaces, addresses, rules = [], set(), []
    for project in cloud.projects.values():
        for zone, instances in project.instances.items():
            for instance in instances.values():
                resource = instance.resource
                interfaces.append(read_interface(project.id, zone, resource))
                addresses |= {one["networkIP"] for one in resource["networkInterfaces"]}
        rules += [read_rule(one) for one in project.firewalls.values() if not one["disabled"]]
    # Where priorities are equal, what denies comes first: https://cloud.google.com/firewall/docs/firewalls
    rules.sort(key=lambda rule: (rule.priority, rule.allow, rule.name))
    return View(tuple(interfaces), tuple(rules), frozenset(addresses))


def read_interface(project: str, zone: str, resource: Mapping[str, Any]) -> Interface:
    """Read an instance's resource.

    Parameters
    ----------
    project : str
        Its project.
    zone : str
        Its zone.
    resource : mapping
        The ``compute#instance``.

    Returns
    -------
    Interface
        Its first network interface.
    """
    first = resource["networkInterfaces"][0]
    return Interface(
        project,
        zone,
        resource["name"],
        first["network"],
        first["networkIP"],
        bool(first.get("accessConfigs")),
        frozenset(resource.get("tags", {}).get("items", ())),
        frozenset(one["email"] for one in resource.get("serviceAccounts", ())),
    )


def read_rule(resource: Mapping[str, Any]) -> Rule:
    """Read a firewall rule's resource.

    Parameters
    ----------
    resource : mapping
        The ``compute#firewall``.

    Returns
    -------
    Rule
        The rule. IPv6 ranges are left out: the machines have none.
    """
    ingress = resource["direction"] == "INGRESS"
    allow = bool(resource.get("allowed"))
    ranges = _ranges(resource, "sourceRanges" if ingress else "destinationRanges")
    return Rule(
        resource["name"],
        resource["network"],
        ingress,
        resource["priority"],
        allow,
        tuple(_match(one) for one in resource["allowed" if allow else "denied"]),
        ranges,
        frozenset(resource.get("sourceTags", ())),
        frozenset(resource.get("sourceServiceAccounts", ())),
        _ranges(resource, "destinationRanges") if ingress else (),
        frozenset(resource.get("targetTags", ())),
        frozenset(resource.get("targetServiceAccounts", ())),
        ingress and any(one.subnet_of(_LOOPBACK) for one in ranges),
    )


def _ranges(resource: Mapping[str, Any], field: str) -> tuple[IPv4Network, ...]:
    networks = (ip_network(one) for one in resource.get(field, ()))
    return tuple(one for one in networks if isinstance(one, IPv4Network))


def _match(entry: Mapping[str, Any]) -> Match:
    name = entry["IPProtocol"].lower()
    if name == "all":
        return Match()
    bounds = sorted(
        (int(first), int(last or first))
        for first, _, last in (port.partition("-") for port in entry.get("ports", ()))
    )
    merged: list[tuple[int, int]] = []
    for first, last in bounds:
        if merged and first <= merged[-1][1] + 1:
            merged[-1] = merged[-1][0], max(last, merged[-1][1])
        else:
            merged.append((first, last))
    return Match(_PROTOCOLS[name] if name in _PROTOCOLS else int(name), tuple(merged))
