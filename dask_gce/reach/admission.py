"""What the firewall rules of a network let in.

Pure: API JSON in, a frozen dataclass or a verdict out. What the cluster's own rules say is in
`firewall_rules`.

How Compute Engine judges: the rule with the least priority number that fits a packet decides, a
deny rule before an allow rule of the same number, and what no rule fits stays outside:
https://docs.cloud.google.com/firewall/docs/firewalls. Policies of an organisation or of a network,
which are judged before or after these rules, are not seen here.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import Any, Final

from dask_gce.reach.firewall_rules import DEFAULT_PRIORITY, Ports

__all__ = ["RULE_FIELDS", "Rule", "Traffic", "admits", "blocking_rule", "parse_rule"]

Range = ipaddress.IPv4Network | ipaddress.IPv6Network

#: What is asked of each rule.
RULE_FIELDS: Final = (
    "name",
    "network",
    "direction",
    "priority",
    "disabled",
    "allowed",
    "denied",
    "sourceRanges",
    "sourceTags",
    "sourceServiceAccounts",
    "targetTags",
    "targetServiceAccounts",
    "description",
    "creationTimestamp",
)

#: What a rule without any source stands for.
_ANYWHERE: Final = (ipaddress.ip_network("0.0.0.0/0"), ipaddress.ip_network("::/0"))

_ALL_PORTS: Final[Ports] = (0, 65_535)

#: TCP in the spellings of the API: https://www.iana.org/assignments/protocol-numbers
_TCP: Final = frozenset({"all", "tcp", "6"})


@dataclass(frozen=True, slots=True)
class Traffic:
    """What a rule is about.

    Parameters
    ----------
    protocol : str
        A protocol's name in lower case, its number, or ``"all"``.
    ports : tuple of tuple of int
        Ranges of ports; empty for all.
    """

    protocol: str
    ports: tuple[Ports, ...] = ()

    @property
    def tcp(self) -> tuple[Ports, ...]:
        """The ports of TCP that it covers."""
        if self.protocol not in _TCP:
            return ()
        return self.ports or (_ALL_PORTS,)


@dataclass(frozen=True, slots=True)
class Rule:
    """A firewall rule of a network.

    Parameters
    ----------
    name : str
        Its name.
    network : str
        The network's name.
    ingress : bool
        Whether it is about what comes in.
    priority : int
        The lower, the earlier it counts.
    disabled : bool
        Whether it counts at all.
    allows : bool
        Whether it lets in what it is about, or keeps it out.
    traffic : tuple of Traffic
        What it is about.
    source_ranges : tuple of ipaddress.IPv4Network or ipaddress.IPv6Network
        Where that comes from; with the other sources, any of them will do.
    source_tags : frozenset of str
        Network tags of machines that it comes from.
    source_accounts : frozenset of str
        Service accounts of machines that it comes from.
    target_tags : frozenset of str
        Network tags of machines that it goes to; without any and without accounts, to all.
    target_accounts : frozenset of str
        Service accounts of machines that it goes to.
    description : str
        What somebody wrote about it.
    created : datetime.datetime or None
        When it was made, in UTC; None if that is not told.
    """

    name: str
    network: str = ""
    ingress: bool = True
    priority: int = DEFAULT_PRIORITY
    disabled: bool = False
    allows: bool = True
    traffic: tuple[Traffic, ...] = ()
    source_ranges: tuple[Range, ...] = ()
    source_tags: frozenset[str] = frozenset()
    source_accounts: frozenset[str] = frozenset()
    target_tags: frozenset[str] = frozenset()
    target_accounts: frozenset[str] = frozenset()
    description: str = ""
    created: datetime | None = None

    @property
    def tcp(self) -> tuple[Ports, ...]:
        """The ports of TCP that it is about."""
        return tuple(ports for each in self.traffic for ports in each.tcp)


def parse_rule(data: Mapping[str, Any]) -> Rule:
    """Read a firewall rule from API JSON. What cannot be understood in it is left out.

    Parameters
    ----------
    data : mapping
        A ``compute#firewall`` resource.

    Returns
    -------
    Rule
        What it says.

    Examples
    --------
    >>> rule = parse_rule({"name": "ssh", "sourceRanges": ["0.0.0.0/0"],
    ...                    "allowed": [{"IPProtocol": "tcp", "ports": ["22", "8000-8010"]}]})
    >>> rule.tcp
    ((22, 22), (8000, 8010))
    """
    allows = not data.get("denied")
    sources = tuple(
        one for text in data.get("sourceRanges") or () if (one := _range(text)) is not None
    )
    tags = frozenset(data.get("sourceTags") or ())
    accounts = frozenset(data.get("sourceServiceAccounts") or ())
    if not (data.get("sourceRanges") or tags or accounts):
        sources = _ANYWHERE
    return Rule(
        name=str(data.get("name", "")),
        network=str(data.get("network", "")).rpartition("/")[2],
        ingress=data.get("direction", "INGRESS") == "INGRESS",
        priority=int(data.get("priority", DEFAULT_PRIORITY)),
        disabled=bool(data.get("disabled", False)),
        allows=allows,
        traffic=tuple(map(_traffic, data.get("allowed" if allows else "denied") or ())),
        source_ranges=sources,
        source_tags=tags,
        source_accounts=accounts,
        target_tags=frozenset(data.get("targetTags") or ()),
        target_accounts=frozenset(data.get("targetServiceAccounts") or ()),
        description=str(data.get("description", "")),
        created=_moment(str(data.get("creationTimestamp", ""))),
    )


def _traffic(data: Mapping[str, Any]) -> Traffic:
    ports = []
    for text in data.get("ports") or ():
        first, _, last = str(text).partition("-")
        if first.isdecimal() and (not last or last.isdecimal()):
            ports.append((int(first), int(last or first)))
    protocol = str(data.get("IPProtocol", "")).lower()
    # Ports that cannot be read are not all ports.
    return Traffic(protocol if ports or not data.get("ports") else "", tuple(ports))


def _range(text: object) -> Range | None:
    try:
        return ipaddress.ip_network(str(text), strict=False)
    except ValueError:
        return None


def _moment(text: str) -> datetime | None:
    try:
        # Python 3.10 does not read the Z of ISO 8601.
        moment = datetime.fromisoformat(text.replace("Z", "+00:00"))
    except ValueError:
        return None
    return (moment if moment.tzinfo else moment.replace(tzinfo=timezone.utc)).astimezone(
        timezone.utc
    )


# -- what rules let in ----------------------------------------------------------------------------


def admits(
    rules: Iterable[Rule],
    *,
    ranges: Sequence[str] = (),
    source_tags: Collection[str] = (),
    target_tags: Collection[str] = (),
    account: str | None = None,
    ports: Iterable[Ports],
) -> bool:
    """Tell whether rules let TCP in for certain, from all of a source to all of some ports.

    Parameters
    ----------
    rules : iterable of Rule
        All rules of the network.
    ranges : sequence of str
        The addresses it comes from, or ranges of them; empty where they are not known.
    source_tags : collection of str
        The network tags of the machines it comes from; empty for what is no machine.
    target_tags : collection of str
        The network tags of the machine it goes to.
    account : str or None
        The service account of the machines; empty for none, None where it is not known.
    ports : iterable of tuple of int
        Ranges of ports.

    Returns
    -------
    bool
        Whether all of it is let in. What depends on something unknown is not.

    Examples
    --------
    >>> rule = parse_rule({"name": "r", "sourceRanges": ["203.0.113.0/24"], "targetTags": ["dask"],
    ...                    "allowed": [{"IPProtocol": "tcp", "ports": ["8786-8787"]}]})
    >>> admits([rule], ranges=["203.0.113.7"], target_tags=["dask"], ports=[(8786, 8786)])
    True
    >>> admits([rule], ranges=["203.0.113.7"], target_tags=["dask"], ports=[(8786, 8788)])
    False
    """
    return _judge(rules, ranges, source_tags, target_tags, account, ports)[0]


def blocking_rule(
    rules: Iterable[Rule],
    *,
    ranges: Sequence[str] = (),
    source_tags: Collection[str] = (),
    target_tags: Collection[str] = (),
    account: str | None = None,
    ports: Iterable[Ports],
) -> str:
    """Return which rule keeps TCP out, or may do so.

    Parameters
    ----------
    rules : iterable of Rule
        All rules of the network.
    ranges : sequence of str
        The addresses it comes from, or ranges of them; empty where they are not known.
    source_tags : collection of str
        The network tags of the machines it comes from; empty for what is no machine.
    target_tags : collection of str
        The network tags of the machine it goes to.
    account : str or None
        The service account of the machines; empty for none, None where it is not known.
    ports : iterable of tuple of int
        Ranges of ports.

    Returns
    -------
    str
        The name of the first such rule; empty if there is none, in which case a rule that lets it
        in is all that it takes.
    """
    return _judge(rules, ranges, source_tags, target_tags, account, ports)[1]


def _judge(
    rules: Iterable[Rule],
    ranges: Sequence[str],
    source_tags: Collection[str],
    target_tags: Collection[str],
    account: str | None,
    ports: Iterable[Ports],
) -> tuple[bool, str]:
    """Tell whether it is let in, and which rule keeps it out."""
    source = _Source([one for text in ranges if (one := _range(text))], source_tags, account)
    undecided = list(ports)
    counting = [each for each in rules if each.ingress and not each.disabled]
    # A deny rule counts before an allow rule of its priority.
    for rule in sorted(counting, key=lambda each: (each.priority, each.allows)):
        if not undecided:
            break
        if rule.allows and _targets(rule, target_tags, account) and source.covered_by(rule):
            undecided = [
                rest for each in undecided for rest in _without(each, sorted(set(rule.tcp)))
            ]
        elif (
            not rule.allows
            and _may_target(rule, target_tags, account)
            and source.may_touch(rule)
            and any(_overlap(each, other) for each in undecided for other in rule.tcp)
        ):
            return False, rule.name
    return not undecided, ""


@dataclass(frozen=True)
class _Source:
    """Where traffic comes from."""

    ranges: Sequence[Range]
    tags: Collection[str]
    account: str | None

    def covered_by(self, rule: Rule) -> bool:
        """Tell whether a rule is about all of it for certain."""
        if self.tags and (
            not rule.source_tags.isdisjoint(self.tags) or self.account in rule.source_accounts
        ):
            return True
        return bool(self.ranges) and all(_covers(rule.source_ranges, each) for each in self.ranges)

    def may_touch(self, rule: Rule) -> bool:
        """Tell whether a rule may be about some of it."""
        if self.tags and (
            not rule.source_tags.isdisjoint(self.tags)
            or _may_be(self.account, rule.source_accounts)
        ):
            return True
        if not self.ranges:
            return bool(rule.source_ranges)
        return any(
            each.version == other.version and each.overlaps(other)
            for each in self.ranges
            for other in rule.source_ranges
        )


def _covers(ranges: Iterable[Range], one: Range) -> bool:
    # Two halves of a range are all of it.
    if isinstance(one, ipaddress.IPv4Network):
        fours = [each for each in ranges if isinstance(each, ipaddress.IPv4Network)]
        return any(one.subnet_of(each) for each in ipaddress.collapse_addresses(fours))
    sixes = [each for each in ranges if isinstance(each, ipaddress.IPv6Network)]
    return any(one.subnet_of(each) for each in ipaddress.collapse_addresses(sixes))


def _targets(rule: Rule, tags: Collection[str], account: str | None) -> bool:
    if not (rule.target_tags or rule.target_accounts):
        return True
    return not rule.target_tags.isdisjoint(tags) or account in rule.target_accounts


def _may_target(rule: Rule, tags: Collection[str], account: str | None) -> bool:
    return _targets(rule, tags, account) or _may_be(account, rule.target_accounts)


def _may_be(account: str | None, accounts: Collection[str]) -> bool:
    return bool(accounts) if account is None else account in accounts


def _overlap(one: Ports, other: Ports) -> bool:
    return one[0] <= other[1] and other[0] <= one[1]


def _without(ports: Ports, taken: Iterable[Ports]) -> list[Ports]:
    """Return what is left of a range of ports; the others are in order."""
    rest = []
    first, last = ports
    for low, high in taken:
        if high < first or low > last:
            continue
        if low > first:
            rest.append((first, low - 1))
        first = high + 1
    if first <= last:
        rest.append((first, last))
    return rest
