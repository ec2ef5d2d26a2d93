"""Which way leads from this process to the scheduler, and why that one.

Pure: what was found out goes in, a `Route` comes out. Where this process runs is found out in
`surroundings`; how the way is taken is the matter of `passage`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, cast

from dask_gce.reach.firewall_rules import Network
from dask_gce.reach.surroundings import Surroundings
from dask_gce.settings import Settings

__all__ = ["Kind", "Route", "choose_route", "named_network"]

Kind = Literal["internal", "external", "iap"]


@dataclass(frozen=True)
class Route:
    """The way from this process to the scheduler.

    Parameters
    ----------
    kind : {"internal", "external", "iap"}
        To the internal address of its machine, to the external one, or through a tunnel.
    reason : str
        Why this one, the end of a sentence.

    Examples
    --------
    >>> print(Route("iap", "the machines have no external address"))
    iap, since the machines have no external address
    """

    kind: Kind
    reason: str

    def __str__(self) -> str:
        return f"{self.kind}, since {self.reason}"


def choose_route(
    settings: Settings, *, project: str, network: Network | None, here: Surroundings | None
) -> Route:
    """Choose the way to the scheduler.

    Parameters
    ----------
    settings : Settings
        The cluster's settings.
    project : str
        The cluster's project ID.
    network : Network or None
        The cluster's network; None where it is not known.
    here : Surroundings or None
        Where this process runs; None if that is none of Google's machines, or was not asked.

    Returns
    -------
    Route
        The way that ``connect`` names; with ``"auto"`` the first that there is.

    Examples
    --------
    >>> settings = Settings.load(external_ip=False)
    >>> choose_route(settings, project="farm", network=None, here=None).kind
    'iap'
    """
    if settings.connect != "auto":
        source = settings.sources["connect"]
        return Route(cast(Kind, settings.connect), f"connect = {settings.connect!r} ({source})")
    inside, where = _compare(project, network, here)
    if inside:
        return Route("internal", where)
    if settings.external_ip:
        return Route("external", f"{where}, and the machines have external addresses")
    return Route("iap", f"{where}, and the machines have no external address")


def named_network(settings: Settings, project: str) -> Network | None:
    """Return the network that settings name.

    Parameters
    ----------
    settings : Settings
        The cluster's settings.
    project : str
        The cluster's project ID.

    Returns
    -------
    Network or None
        None if only its subnetwork is named.

    Examples
    --------
    >>> named_network(Settings.load(), "farm")
    Network(project='farm', name='default', ranges=())
    """
    if settings.network is None:
        return None
    *parents, name = settings.network.split("/")
    # A path is "projects/HOST/global/networks/NAME", or the end of it.
    owner = parents[parents.index("projects") + 1] if "projects" in parents[:-1] else project
    return Network(owner, name)


def _compare(project: str, network: Network | None, here: Surroundings | None) -> tuple[bool, str]:
    """Tell whether this process is in the cluster's network, and how that is known."""
    if here is None:
        return False, "this computer is not on Compute Engine"
    if network is None:
        return False, "it is not known in which network the machines are"
    ours = f"network {network.name} of project {network.project}"
    for number, name in here.networks:
        if name == network.name and _is_project(network.project, number, project, here):
            return True, f"this computer is in {ours} too"
    return False, f"this computer is on Compute Engine, but not in {ours}"


def _is_project(wanted: str, number: str, project: str, here: Surroundings) -> bool:
    """Tell whether a network's project is the wanted one; this machine's is told by number only."""
    if wanted == number:
        return True
    if number == here.number:
        return wanted == here.project
    # Here it is shared, by another project. A project has at most one that shares with it, so two
    # machines of one project that both are in a shared network are in the same project's:
    # https://docs.cloud.google.com/vpc/docs/shared-vpc
    return project == here.project and wanted != here.project
