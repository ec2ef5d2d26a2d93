"""Whether the firewall lets in who has to come in: the client, and machines to one another."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from dask_gce.checks.finding import Finding, failed, ok, unknown
from dask_gce.checks.view import View
from dask_gce.errors import GCEError, NotFound
from dask_gce.reach.admission import admits, blocking_rule, parse_rule
from dask_gce.reach.firewall_rules import (
    MACHINE_PORTS,
    Mark,
    Network,
    Ports,
    build_rule,
    render_create,
    split_families,
)
from dask_gce.reach.refusals import IAP_RANGE
from dask_gce.tags import Purpose

__all__ = ["LASTING_TAG", "check_firewall"]

#: A network tag for rules that are made by hand, once for all clusters.
LASTING_TAG: Final = "dask-gce"

#: Whose a rule is that no cluster makes.
_NOBODY: Final = Mark("all", "all")

#: Stands for the tag of a cluster that is to be made; no rule that exists can go by it.
_TAG: Final = "the-tag-of-a-cluster-to-be-made"


@dataclass(frozen=True)
class _Traffic:
    """What has to be let in."""

    purpose: Purpose
    what: str
    ranges: tuple[str, ...]
    ports: tuple[Ports, ...]

    @property
    def among_machines(self) -> bool:
        return self.purpose == "machines"

    def rules(self, network: Network, tag: str) -> list[dict[str, Any]]:
        """Return rules that let it in to machines with a tag, in API JSON."""
        name = f"dask-gce-{self.purpose}"
        if self.among_machines:
            groups: list[dict[str, Any]] = [{"source_tag": tag}]
        else:
            groups = [{"ranges": ranges} for ranges in split_families(self.ranges)]
        return [
            build_rule(
                name + (f"-{number}" if number else ""),
                network,
                _NOBODY,
                target_tag=tag,
                ports=self.ports,
                **group,
            )
            for number, group in enumerate(groups)
        ]


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
    told = [f"{route.kind} ({route.reason})"]
    repair: list[str] = []
    for traffic in wanted:
        asked = _asked(view, traffic)
        if admits(rules, **asked):
            told.append(f"a rule lets in {traffic.what}")
            continue
        ours = [parse_rule(each) for each in traffic.rules(network, _TAG)]
        if blocking := blocking_rule([*rules, *ours], **asked):
            told.append(f"rule {blocking} keeps out {traffic.what}; let whoever made it change it")
            repair.append(_describe(blocking, network))
        elif view.settings.firewall:
            told.append(f"the cluster will make a rule that lets in {traffic.what}")
        else:
            told.append(f"no rule lets in {traffic.what}")
            tag = next(iter(view.settings.network_tags), LASTING_TAG)
            repair += [render_create(each, network) for each in traffic.rules(network, tag)]
    text = "; ".join(told)
    if not repair:
        return ok("firewall", text)
    if not (view.settings.firewall or view.settings.network_tags):
        text += f"; the command lets it in to machines with network_tags=[{LASTING_TAG!r}]"
    return failed("firewall", f"{text}.", *repair)


async def _wanted(view: View, network: Network, route: str) -> list[_Traffic]:
    """Return what has to be let in."""
    settings = view.settings
    ports = tuple((port, port) for port in (settings.scheduler_port, settings.dashboard_port))
    low = [each for each in ports[:1] if each < MACHINE_PORTS]
    machines = _Traffic(
        "machines", "the machines to one another", network.ranges, (*low, MACHINE_PORTS)
    )
    if route == "internal":
        return [machines]
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
    return [_Traffic("clients", what, tuple(source), ports), machines]


def _asked(view: View, traffic: _Traffic) -> dict[str, Any]:
    """Return what the rules are asked."""
    tags = (*view.settings.network_tags, _TAG)
    account = view.settings.service_account or ""
    return {
        "ranges": traffic.ranges,
        "source_tags": tags if traffic.among_machines else (),
        "target_tags": tags,
        # Which one the default account is, is not known here.
        "account": None if account == "default" else account,
        "ports": traffic.ports,
    }


def _describe(rule: str, network: Network) -> str:
    return shlex.join(
        ["gcloud", "compute", "firewall-rules", "describe", rule, f"--project={network.project}"]
    )
