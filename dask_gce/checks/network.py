"""Whether machines are reached, and reach what they need: network, firewall rules and Cloud NAT."""

from __future__ import annotations

import ipaddress
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import islice
from typing import Any, Final

from dask_gce.checks.finding import Finding, failed, ok, unknown
from dask_gce.checks.view import View, last_part
from dask_gce.errors import NotFound
from dask_gce.settings import Settings

__all__ = ["check_internet", "check_network"]

#: Registries that machines without an external address reach through Private Google Access.
_GOOGLE_REGISTRIES: Final = ("-docker.pkg.dev", ".gcr.io")
#: For subnetworks; those of auto mode networks have the other half.
_RANGES: Final = ipaddress.IPv4Network("10.0.0.0/9")


async def check_network(view: View) -> Finding:
    """Look whether the network, or the subnetwork in each region, exists.

    Parameters
    ----------
    view : View
        The project.

    Returns
    -------
    Finding
        What was found.
    """
    settings, project = view.settings, view.network_project
    if settings.subnetwork is not None:
        return await _check_subnetwork(view, last_part(settings.subnetwork))
    name = last_part(settings.network or "default")
    try:
        network = await view.get_network(name)
    except NotFound:
        return failed(
            "network",
            f"Project {project} has no network {name!r}.",
            _gcloud("networks", "create", name, "--subnet-mode=auto", f"--project={project}"),
        )
    if network.get("autoCreateSubnetworks", False) or "IPv4Range" in network:
        return ok("network", f"{name} of project {project}")
    subnetworks = [str(each) for each in network.get("subnetworks") or ()]
    here = [
        last_part(each)
        for each in subnetworks
        if any(f"/regions/{region}/" in each for region in view.regions)
    ]
    if here:
        return failed(
            "network",
            f"Network {name} has no subnetworks of its own making, so one has to be chosen: set "
            f"subnetwork to {' or '.join(sorted(set(here)))}.",
        )
    region = view.regions[0]
    return failed(
        "network",
        f"Network {name} has no subnetwork in {', '.join(view.regions)}. Make one, and set "
        "subnetwork to its name.",
        _create_subnetwork(view, f"{name}-dask", name, region),
    )


async def _check_subnetwork(view: View, name: str) -> Finding:
    project = view.network_project
    missing = []
    for region in view.regions:
        try:
            await view.get_subnetwork(region, name)
        except NotFound:
            missing.append(region)
    if missing:
        network = last_part(view.settings.network or "default")
        return failed(
            "network",
            f"Project {project} has no subnetwork {name!r} in {', '.join(missing)}.",
            *(_create_subnetwork(view, name, network, region) for region in missing),
        )
    return ok("network", f"subnetwork {name} of project {project} in {', '.join(view.regions)}")


def _create_subnetwork(view: View, name: str, network: str, region: str) -> str:
    # In one network no two ranges overlap.
    ours = islice(_RANGES.subnets(new_prefix=20), view.regions.index(region), None)
    return _gcloud(
        *("networks", "subnets", "create", name, f"--network={network}", f"--region={region}"),
        *(f"--range={next(ours)}", f"--project={view.network_project}"),
    )


def _gcloud(*words: str) -> str:
    return shlex.join(["gcloud", "compute", *words])


# -- the way out ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class _WayOut:
    """What machines without an external address reach from one region."""

    region: str
    network: str
    subnetwork: str
    nat: bool
    google: bool


async def check_internet(view: View) -> Finding:
    """Look whether machines without an external address can load what they run.

    Parameters
    ----------
    view : View
        The project.

    Returns
    -------
    Finding
        What was found.
    """
    settings, project = view.settings, view.network_project
    needs = _needs(settings)
    try:
        ways = [await _way_out(view, region) for region in view.regions]
    except NotFound:
        return unknown("internet", "Without a network there is no way out to look at.")
    google_only = needs is None
    stuck = [way for way in ways if not (way.nat or (google_only and way.google))]
    if not stuck:
        reached = ", ".join(f"{way.region} ({_shown(way)})" for way in ways)
        return ok("internet", f"machines without an external address reach out from {reached}")
    what = needs or "Google's APIs and registry"
    repair = []
    for way in stuck:
        where = [f"--region={way.region}", f"--project={project}"]
        if google_only:
            repair.append(
                _gcloud(
                    *("networks", "subnets", "update", way.subnetwork, *where),
                    "--enable-private-ip-google-access",
                )
            )
            continue
        router = f"{way.network}-dask-nat"
        repair += [
            _gcloud("routers", "create", router, f"--network={way.network}", *where),
            _gcloud(
                *("routers", "nats", "create", router, f"--router={router}", *where),
                *("--auto-allocate-nat-external-ips", "--nat-all-subnet-ip-ranges"),
            ),
        ]
    return failed(
        "internet",
        f"Machines without an external address (external_ip=False) do not reach {what} from "
        f"{', '.join(way.region for way in stuck)}: there is no Cloud NAT.",
        *repair,
    )


def _shown(way: _WayOut) -> str:
    return "Cloud NAT" if way.nat else "Private Google Access"


def _needs(settings: Settings) -> str | None:
    """Return what machines load from the Internet; None if Google has all of it."""
    image = settings.container_image
    if settings.runtime == "container" and image is not None:
        host = image.partition("/")[0]
        if not f".{host}".endswith(_GOOGLE_REGISTRIES):
            return f"the container image {image}"
    if settings.environment is not None or settings.runtime == "vm":
        return "the packages of the environment"
    return None


async def _way_out(view: View, region: str) -> _WayOut:
    settings = view.settings
    name = last_part(settings.subnetwork or settings.network or "default")
    # The subnetworks of an auto mode network have its name.
    subnetwork = await view.get_subnetwork(region, name)
    network = last_part(str(subnetwork.get("network", "")))
    google = bool(subnetwork.get("privateIpGoogleAccess", False))
    routers = await view.compute.list_routers(region, view.network_project)
    nat = any(
        last_part(str(router.get("network", ""))) == network and _covers(each, name)
        for router in routers
        for each in router.get("nats") or ()
    )
    return _WayOut(region, network, name, nat, google or nat)


def _covers(nat: Mapping[str, Any], subnetwork: str) -> bool:
    """Tell whether a Cloud NAT serves a subnetwork."""
    if nat.get("type", "PUBLIC") != "PUBLIC":
        return False
    if nat.get("sourceSubnetworkIpRangesToNat") != "LIST_OF_SUBNETWORKS":
        return True
    return any(
        last_part(str(each.get("name", ""))) == subnetwork for each in nat.get("subnetworks") or ()
    )
