"""Whether the firewall lets in who has to come in: the client, and machines to one another.

What a cluster needs to be let in, and what the rules do let in, is judged where clusters do so: in
`reach.firewall_needs`.
"""

from __future__ import annotations

import dataclasses
import shlex
from typing import Final

from dask_gce.checks.finding import Finding, failed, ok, unknown
from dask_gce.checks.view import View
from dask_gce.errors import GCEError, NotFound, PermissionDenied, SettingsError
from dask_gce.reach.firewall_needs import Need, Needs
from dask_gce.reach.firewall_rules import Mark, Network
from dask_gce.reach.ingress import find_clients

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
    for need in needs:
        if needs.admitted(need):
            told.append(f"a rule lets in {need}")
        elif blocker := needs.blocker(need):
            told.append(f"rule {blocker} keeps out {need}; let whoever made it change it")
            repair.append(_describe(blocker, found.network))
        elif settings.firewall:
            told.append(f"the cluster will make a rule that lets in {need}")
        else:
            told.append(_missing(needs, need))
            repair.append(needs.lasting_command(need, found.network))
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


def _missing(needs: Needs, need: Need) -> str:
    text = f"no rule lets in {need}"
    if needs.lasting_tag in needs.settings.network_tags:
        return text
    return f"{text}: run the command, and set network_tags to [{needs.lasting_tag}]"


def _describe(rule: str, network: Network) -> str:
    return shlex.join(
        ["gcloud", "compute", "firewall-rules", "describe", rule, f"--project={network.project}"]
    )
