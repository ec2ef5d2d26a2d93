"""Firewall rules of the emulated networks, as rules of the kernel.

Owns which packets pass between machines, and between them and the client or tunnels: pure, a view
in, the text for ``nft -f`` out. The text replaces all that was loaded before in one step.
Connections that were let through stay.

Machines are told apart by their internal addresses, which nobody can forge (:mod:`vpc.network`). An
external address is translated on the way in and on the way out; a packet from machine to machine by
way of an external address counts, as on Compute Engine, as one from outside, to which tags do not
apply.

Source: https://cloud.google.com/firewall/docs/firewalls and nft(8)
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from ipaddress import IPv4Address, IPv4Network, collapse_addresses

from dask_gce.emulator.machines.addresses import (
    EXTERNAL_NETWORK,
    PRIVATE_NETWORK,
    PrivateAddresses,
)
from dask_gce.emulator.machines.namespace.view import Interface, Match, Rule, View

__all__ = ["CLIENT", "open_ports", "render"]

#: The client's address, as :mod:`vpc.network` sets it up.
CLIENT = "198.51.100.2"

#: Most ports of a range that are opened on the host one by one.
MOST_PORTS = 16

_TCP = 6
_PORTS = {6: "tcp", 17: "udp", 132: "sctp"}
_EVERYWHERE = IPv4Network("0.0.0.0/0")

_TEMPLATE = """\
table ip vpc
delete table ip vpc
table ip vpc {{
  chain entering {{
    type filter hook prerouting priority -150; policy accept;
    iifname "client" ip daddr != {external} drop
    iifname "iap" ip daddr != {internal} drop
  }}
  chain arriving {{
    type nat hook prerouting priority -100; policy accept;
{arriving}  }}
  chain leaving {{
    type nat hook postrouting priority 100; policy accept;
{leaving}  }}
  chain input {{
    type filter hook input priority 0; policy drop;
    ct state established,related accept
    ip daddr 169.254.169.254 iifname "vm*" udp dport 53 accept
    ip daddr 169.254.169.254 iifname "vm*" tcp dport {{ 53, 80 }} accept
    ip daddr 169.254.169.254 iifname "vm*" ip protocol 1 accept
  }}
{chains}  chain forward {{
    type filter hook forward priority 0; policy drop;
    ct state established,related accept
    ct state invalid drop
{forward}  }}
}}
"""


def render(view: View) -> str:
    """Return the kernel's rules for a view.

    Parameters
    ----------
    view : View
        The instances and the rules.

    Returns
    -------
    str
        What ``nft -f`` reads.
    """
    public = {
        one.address: PrivateAddresses.external(one.address)
        for one in view.interfaces
        if one.external
    }
    arriving, leaving, forward = "", "", ""
    if public:
        inwards = _map((outer, inner) for inner, outer in public.items())
        outwards = _map(public.items())
        arriving = f"    dnat to ip daddr map {inwards}\n"
        leaving = (
            f'    oifname "client" snat to ip saddr map {outwards}\n'
            f"    ct status dnat snat to ip saddr map {outwards}\n"
        )
    chains = _Chains(view, public)
    out = {one.address: chains.outgoing(one) for one in view.interfaces}
    into = {one.address: chains.incoming(one) for one in view.interfaces}
    jumps = {address: f"jump {name}" for address, name in out.items() if name}
    if jumps:
        forward += f"    ip saddr vmap {_map(jumps.items())}\n"
    if into:
        forward += (
            f"    ip daddr vmap {_map((one, f'goto {name}') for one, name in into.items())}\n"
        )
    if public:
        forward += f'    oifname "client" ip saddr {_set(public)} accept\n'
    return _TEMPLATE.format(
        external=EXTERNAL_NETWORK,
        internal=PRIVATE_NETWORK,
        arriving=arriving,
        leaving=leaving,
        chains="".join(chains.written),
        forward=forward,
    )


class _Chains:
    """Chains of rules; machines for which the same rules hold share theirs."""

    def __init__(self, view: View, public: dict[str, str]) -> None:
        self._view = view
        self._public = public
        self._names: dict[tuple[object, ...], str] = {}
        self.written: list[str] = []

    def outgoing(self, interface: Interface) -> str:
        """Return the chain for what an instance sends; empty when all of it may pass."""
        rules = self._rules(interface, ingress=False)
        # Without an external address nothing gets beyond the network.
        hidden = not interface.external
        if not rules and not hidden:
            return ""
        lines = ["ct status dnat drop", 'oifname "client" drop'] if hidden else []
        for rule in rules:
            # A translated packet has another destination by now than the one that it was sent to.
            to = _ranges("ct original ip daddr", rule.ranges)
            verdict = "return" if rule.allow else "drop"
            lines += [_line(rule, to, match, verdict) for match in rule.matches if to is not None]
        return self._chain(("out", hidden, rules), lines)

    def incoming(self, interface: Interface) -> str:
        """Return the chain for what is sent to an instance."""
        rules = self._rules(interface, ingress=True)
        around = self._around(rules)
        lines = [f'iifname "vm*" ct status dnat goto {around}']
        strangers = [
            one.address for one in self._view.interfaces if one.network != interface.network
        ]
        if strangers:
            lines.append(f"ip saddr {_set(strangers)} drop")
        for rule in rules:
            named = [one.address for one in self._view.interfaces if rule.names_source(one)]
            sources = [*rule.ranges, *(IPv4Network(one) for one in named)]
            if rule.loopback:
                sources.append(IPv4Network(CLIENT))
            lines += self._lines(rule, sources)
        return self._chain(("in", interface.network, rules), [*lines, "drop"])

    def _around(self, rules: tuple[Rule, ...]) -> str:
        """Return the chain for what instances send by way of an external address."""
        lines = []
        for rule in rules:
            sources = [inner for inner, outer in self._public.items() if rule.comes_from(outer)]
            lines += self._lines(rule, [IPv4Network(one) for one in sources])
        return self._chain(("around", rules), [*lines, "drop"])

    def _rules(self, interface: Interface, *, ingress: bool) -> tuple[Rule, ...]:
        return tuple(
            rule for rule in self._view.rules if rule.ingress == ingress and rule.targets(interface)
        )

    @staticmethod
    def _lines(rule: Rule, sources: Sequence[IPv4Network]) -> list[str]:
        origin = _ranges("ip saddr", sources)
        target = _ranges("ip daddr", rule.destinations) if rule.destinations else ""
        if origin is None or target is None:
            return []
        where = " ".join(one for one in (origin, target) if one)
        verdict = "accept" if rule.allow else "drop"
        return [_line(rule, where, match, verdict) for match in rule.matches]

    def _chain(self, key: tuple[object, ...], lines: Sequence[str]) -> str:
        if key not in self._names:
            name = self._names[key] = f"{key[0]}{len(self._names)}"
            body = "".join(f"    {line}\n" for line in lines)
            self.written.append(f"  chain {name} {{\n{body}  }}\n")
        return self._names[key]


def _line(rule: Rule, where: str | None, match: Match, verdict: str) -> str:
    words = [where or ""]
    if match.ports and match.protocol is not None:
        ports = ", ".join(
            str(first) if first == last else f"{first}-{last}" for first, last in match.ports
        )
        words.append(f"{_PORTS[match.protocol]} dport {{ {ports} }}")
    elif match.protocol is not None:
        words.append(f"ip protocol {match.protocol}")
    words += [verdict, f'comment "{rule.name}"']
    return " ".join(word for word in words if word)


def _ranges(field: str, networks: Iterable[IPv4Network]) -> str | None:
    """Return the condition that a field is in one of the ranges; None when it never is."""
    collapsed = list(collapse_addresses(networks))
    if not collapsed:
        return None
    # The kernel takes no ranges that overlap.
    return "" if collapsed == [_EVERYWHERE] else f"{field} {_set(map(str, collapsed))}"


def _set(members: Iterable[str]) -> str:
    return f"{{ {', '.join(members)} }}"


def _map(pairs: Iterable[tuple[str, str]]) -> str:
    return _set(f"{key} : {value}" for key, value in pairs)


def open_ports(view: View, interface: Interface) -> frozenset[int]:
    """Return the TCP ports of an instance that rules open to the client, one by one.

    Parameters
    ----------
    view : View
        The instances and the rules.
    interface : Interface
        The instance's interface.

    Returns
    -------
    frozenset of int
        The ports; of ranges with more than 16 none.
    """
    rules = [rule for rule in view.rules if rule.ingress and rule.targets(interface)]
    named = {
        port
        for rule in rules
        if rule.allow
        for match in rule.matches
        if match.protocol == _TCP
        for first, last in match.ports
        if last - first < MOST_PORTS
        for port in range(max(first, 1), last + 1)
    }
    return frozenset(port for port in named if _admits(rules, interface, port))


def _admits(rules: Iterable[Rule], interface: Interface, port: int) -> bool:
    address = IPv4Address(interface.address)
    for rule in rules:
        if not (rule.comes_from(CLIENT) or rule.loopback):
            continue
        if rule.destinations and not any(address in one for one in rule.destinations):
            continue
        if any(match.covers(_TCP, port) for match in rule.matches):
            return rule.allow
    return False
