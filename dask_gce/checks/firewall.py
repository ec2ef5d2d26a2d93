"""Whether the firewall lets in who has to come in: the client, and machines to one another.

What a cluster needs to be let in, and what the rules do let in, is judged where clusters do so: in
`reach.firewall_needs`.
"""

from __future__ import annotations

import dataclasses
import math
import shlex
from typing import Final

from dask_gce.checks.finding import Finding, failed, ok, unknown
from dask_gce.checks.view import View
from dask_gce.errors import GCEError, NotFound, PermissionDenied, SettingsError
from dask_gce.quota import parse_quotas
from dask_gce.reach.firewall_needs import Need, Needs
from dask_gce.reach.firewall_rules import Mark, Network
from dask_gce.reach.ingress import find_clients
from dask_gce.shortages import FIREWALLS, GLOBAL, raise_command

__all__ = ["check_firewall"]

#: Stands for a cluster that is to be made; no rule that exists can go by its tags.
_TO_BE_MADE: Final = Mark("dask", "00000000")


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
    settings = view.settings
    if not await _is_there(view):
        return unknown("firewall", "Without a network there are no rules to look at.")
    found = await view.survey_network()
    if found.network is None or found.rules is None:
        return unknown("firewall", f"The rules may not be looked at: {found.obstacle}")
    route = await view.find_route()
    try:
        # Whoever makes rules by hand wants to know for which address.
        asking = dataclasses.replace(settings, firewall=True)
        clients = await find_clients(asking, route)
    except GCEError as error:
        return unknown("firewall", str(error))
    needs = Needs(settings, view.project, _TO_BE_MADE, found, clients)
    told = [f"{route.kind} ({route.reason})"]
    repair: list[str] = []
    making = 0
    for need in needs:
        if needs.admitted(need):
            told.append(f"a rule lets in {need}")
        elif blocker := needs.blocker(need):
            told.append(f"rule {blocker} keeps out {need}; let whoever made it change it")
            repair.append(_describe(blocker, found.network))
        elif settings.firewall:
            making += 1
            told.append(f"the cluster will make a rule that lets in {need}")
        else:
            told.append(_missing(needs, need))
            repair.append(needs.lasting_command(need, found.network))
    if making and (lacking := await _lacking(view, found.network, making)):
        told.append(lacking[0])
        repair += lacking[1:]
    text = "; ".join(told)
    return failed("firewall", f"{text}.", *repair) if repair else ok("firewall", text)


async def _is_there(view: View) -> bool:
    settings = view.settings
    try:
        if settings.subnetwork is None:
            await view.get_network((settings.network or "default").rpartition("/")[2])
        else:
            await view.survey_network()
    except (NotFound, SettingsError):
        return False
    except PermissionDenied:
        # Rules can be looked at without.
        return True
    return True


async def _lacking(view: View, network: Network, rules: int) -> tuple[str, ...]:
    """Return what to say where the quota of rules is used up, and what helps; or nothing."""
    if network.project != view.project:
        # That project's quotas are not looked at.
        return ()
    try:
        shown = parse_quotas(await view.get_project())
    except GCEError:
        # Other checks say so; it keeps nobody from making rules.
        return ()
    limit, usage = shown.get(FIREWALLS, (math.inf, 0.0))
    if usage + rules <= limit:
        return ()
    return (
        f"the quota {FIREWALLS} leaves {max(0.0, limit - usage):g}",
        shlex.join(["dask", "gce", "sweep", "--delete", "--project", view.project]),
        raise_command(view.project, GLOBAL, FIREWALLS, int(usage + rules)),
    )


def _missing(needs: Needs, need: Need) -> str:
    text = f"no rule lets in {need}"
    if needs.lasting_tag in needs.settings.network_tags:
        return text
    return f"{text}: run the command, and set network_tags to [{needs.lasting_tag}]"


def _describe(rule: str, network: Network) -> str:
    return shlex.join(
        ["gcloud", "compute", "firewall-rules", "describe", rule, f"--project={network.project}"]
    )
