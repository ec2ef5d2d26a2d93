"""Whether the firewall lets in who has to come in: the client, and machines to one another."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from dask_gce.checks.finding import Finding, failed, ok, unknown
from dask_gce.checks.view import View
from dask_gce.errors import GCEError, NotFound
from dask_gce.reach.admission import Rule, admits, blocking_rule, parse_rule
from dask_gce.reach.firewall_rules import (
    MACHINE_PORTS,
    Network,
    Ports,
    render_create,
    split_families,
)
from dask_gce.reach.refusals import IAP_RANGE

__all__ = ["check_firewall"]

#: A network tag as those of clusters, which no rule that exists can go by.
_TAG: Final = "the-tag-of-a-cluster-to-be-made"


@dataclass(frozen=True)
class _Traffic:
    """What has to be let in."""

    name: str
    what: str
    ranges: tuple[str, ...]
    ports: tuple[Ports, ...]
    among_machines: bool = False


async def check_firewall(view: View) -> Finding:
    """Look whether a scheduler could be reached, and whether the machines reach one another.

    Parameters
    ----------
    view : View
        The project.

    Returns
    -------
    Finding
        What was found.
    """
    try:
        network = await view.find_network()
    except NotFound:
        return unknown("firewall", "Without a network there are no rules to look at.")
    route = await view.find_route()
    try:
        wanted = await _wanted(view, network, route.kind)
    except GCEError as error:
        return unknown("firewall", str(error))
    rules = await view.list_rules()
    told, repair, blocked = [f"{route.kind} ({route.reason})"], [], False
    for traffic in wanted:
        if _admitted(view, rules, traffic):
            told.append(f"a rule lets in {traffic.what}")
            continue
        ours = [parse_rule(each) for each in _bodies(traffic, network, [_TAG])]
        if blocking := _blocking(view, [*rules, *ours], traffic):
            blocked = True
            told.append(f"rule {blocking} keeps out {traffic.what}; let whoever made it change it")
            repair.append(_describe(blocking, network))
        elif view.settings.firewall:
            told.append(f"the cluster will make a rule that lets in {traffic.what}")
        else:
            told.append(f"no rule lets in {traffic.what}")
            bodies = _bodies(traffic, network, view.settings.network_tags)
            repair += [render_create(each, network) for each in bodies]
    text = "; ".join(told)
    if blocked or repair:
        return failed("firewall", f"{text}.", *repair)
    return ok("firewall", text)


async def _wanted(view: View, network: Network, route: str) -> list[_Traffic]:
    """Return what has to be let in."""
    settings = view.settings
    machines = _Traffic(
        "allow-dask-machines",
        "the machines to one another",
        network.ranges,
        (MACHINE_PORTS,),
        among_machines=True,
    )
    if route == "internal":
        return [machines]
    ports = tuple((port, port) for port in (settings.scheduler_port, settings.dashboard_port))
    if route == "iap":
        source: Sequence[str] = (IAP_RANGE,)
        who = "Identity-Aware Proxy"
    elif settings.allow_ingress_from is not None:
        source, who = settings.allow_ingress_from, "allow_ingress_from"
    else:
        own = await view.find_own_address()
        source, who = (own.address,), "this computer"
    what = (
        f"{who} ({', '.join(source)}) to "
        f"tcp:{settings.scheduler_port} and tcp:{settings.dashboard_port}"
    )
    return [_Traffic("allow-dask-clients", what, tuple(source), ports), machines]


def _judged(view: View, traffic: _Traffic) -> dict[str, Any]:
    settings = view.settings
    tags = (*settings.network_tags, _TAG)
    account = settings.service_account or ""
    return {
        "ranges": traffic.ranges,
        "source_tags": tags if traffic.among_machines else (),
        "target_tags": tags,
        # Which account is the default one, the rules' own look-up does not tell.
        "account": None if account == "default" else account,
        "ports": traffic.ports,
    }


def _admitted(view: View, rules: Sequence[Rule], traffic: _Traffic) -> bool:
    return admits(rules, **_judged(view, traffic))


def _blocking(view: View, rules: Sequence[Rule], traffic: _Traffic) -> str:
    return blocking_rule(rules, **_judged(view, traffic))


def _bodies(traffic: _Traffic, network: Network, tags: Sequence[str]) -> list[dict[str, Any]]:
    """Return rules that let it in, in API JSON."""
    ports = [f"{low}" if low == high else f"{low}-{high}" for low, high in traffic.ports]
    families = split_families(traffic.ranges)
    return [
        {
            "name": traffic.name + (f"-{number}" if number else ""),
            "network": network.path,
            "direction": "INGRESS",
            "allowed": [{"IPProtocol": "tcp", "ports": ports}],
            "sourceRanges": ranges,
            **({"targetTags": list(tags)} if tags else {}),
        }
        for number, ranges in enumerate(families)
    ]


def _describe(rule: str, network: Network) -> str:
    return shlex.join(
        ["gcloud", "compute", "firewall-rules", "describe", rule, f"--project={network.project}"]
    )
