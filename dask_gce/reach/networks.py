"""Which network a cluster's machines are in, and what its firewall rules let in already.

Owns the look-ups, of which none changes anything. A subnetwork is in a network that only it tells,
and a shared one is in that of another project, the host project, which owns the rules too.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from dask_gce import names
from dask_gce.compute import Compute
from dask_gce.errors import GCEError, NotFound, PermissionDenied, SettingsError
from dask_gce.reach.admission import RULE_FIELDS, Rule, parse_rule
from dask_gce.reach.firewall_rules import Network
from dask_gce.settings import Settings

__all__ = ["AUTO_RANGE", "Survey", "survey"]

#: Where the subnetworks are that a network in auto mode makes by itself; a network whose machines
#: name no subnetwork is in that mode: https://docs.cloud.google.com/vpc/docs/subnets
AUTO_RANGE: Final = "10.128.0.0/9"


@dataclass(frozen=True)
class Survey:
    """What was found out of a network and its firewall rules.

    Parameters
    ----------
    network : Network or None
        The network; None where the caller may not look at its subnetwork.
    rules : tuple of Rule or None
        The network's rules; None where the caller may not look at them.
    obstacle : GCEError or None
        Why something is not known.
    """

    network: Network | None
    rules: tuple[Rule, ...] | None
    obstacle: GCEError | None = None


async def survey(compute: Compute, settings: Settings) -> Survey:
    """Find out in which network the machines will be, and which rules that has.

    One call for the rules and, side by side with it, one for each region's subnetwork if that is
    named. A network that has rules is there; one that has none is asked for.

    Parameters
    ----------
    compute : Compute
        The Compute API of the cluster's project.
    settings : Settings
        The cluster's settings.

    Returns
    -------
    Survey
        What the caller may know.

    Raises
    ------
    SettingsError
        If there is no such network or subnetwork.
    GCEError
        If Compute Engine does not answer, or refuses for another reason than permissions.
    """
    named = _interface(settings)
    project, subnetwork = _owner(compute.project, named.get("subnetwork"))
    if not subnetwork:
        project, name = _owner(compute.project, named.get("network") or "default")
        network = Network(project, name, (AUTO_RANGE,))
        # The filter of gcloud itself: the field is a URL, which takes regular expressions.
        rules = await _list_rules(compute, project, f'network eq ".*/networks/{name}"')
        if not isinstance(rules, PermissionDenied) and not rules:
            await _require(compute, network)
        return _survey(network, rules)
    found, rules = await asyncio.gather(
        _find_subnetworks(compute, settings, project, str(named["subnetwork"])),
        _list_rules(compute, project, ""),
    )
    if isinstance(found, GCEError):
        if not settings.network:
            return Survey(None, None, found)
        host, name = _owner(project, settings.network)
        return _survey(Network(host, name), rules)
    return _survey(found, rules)


def _survey(network: Network, found: tuple[Rule, ...] | PermissionDenied) -> Survey:
    if isinstance(found, PermissionDenied):
        return Survey(network, None, found)
    return Survey(network, tuple(each for each in found if each.network == network.name))


async def _list_rules(
    compute: Compute, project: str, filter: str
) -> tuple[Rule, ...] | PermissionDenied:
    try:
        found = await compute.list_firewalls(filter, ",".join(RULE_FIELDS), project)
    except PermissionDenied as error:
        return error
    return tuple(map(parse_rule, found))


async def _require(compute: Compute, network: Network) -> None:
    """Refuse a network that is not there; who may not look at it learns that from a machine."""
    try:
        await compute.get_network(network.name, network.project)
    except PermissionDenied:
        return
    except NotFound as error:
        raise SettingsError(
            f"network = {network.name!r}: project {network.project} has none of this name. See "
            f"those it has: gcloud compute networks list --project {network.project}",
            key="network",
        ) from error


def _interface(settings: Settings) -> Mapping[str, Any]:
    """Return what names the network: the overrides have the last word."""
    overridden = settings.instance_overrides.get("networkInterfaces")
    if isinstance(overridden, list | tuple) and overridden and isinstance(overridden[0], Mapping):
        return overridden[0]
    return {"network": settings.network, "subnetwork": settings.subnetwork}


def _owner(project: str, url: Any) -> tuple[str, str]:
    """Return the project and the name of a resource, of a name or a partial URL."""
    words = url.split("/") if isinstance(url, str) else [""]
    named = "projects" in words[:-1]
    return words[words.index("projects") + 1] if named else project, words[-1]


async def _find_subnetworks(
    compute: Compute, settings: Settings, project: str, url: str
) -> Network | PermissionDenied:
    """Return the network that a subnetwork is in, with the ranges it has in the zones' regions."""
    words = url.split("/")
    regions = {names.region_of(zone) for zone in settings.zone}
    if "regions" in words[:-1]:
        regions = {words[words.index("regions") + 1]}
    answers = await asyncio.gather(
        *(compute.get_subnetwork(region, words[-1], project) for region in sorted(regions)),
        return_exceptions=True,
    )
    found = [each for each in answers if isinstance(each, dict)]
    errors = [each for each in answers if isinstance(each, BaseException)]
    for error in errors:
        if isinstance(error, PermissionDenied):
            return error
        if not isinstance(error, NotFound):
            raise error
    if not found:
        raise SettingsError(
            f"subnetwork = {url!r}: project {project} has none of this name in "
            f"{', '.join(sorted(regions))}. See those it has: gcloud compute networks subnets list "
            f"--project {project}",
            key="subnetwork",
        ) from errors[0]
    host, name = _owner(project, found[0].get("network"))
    return Network(host, name, tuple(str(each["ipCidrRange"]) for each in found))
