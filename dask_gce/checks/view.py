"""A project as a cluster sees it: what several checks look at, each thing asked for once.

Owns the clients of Google's APIs while checks run, and the answers that checks share.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

from dask_gce.compute import Compute
from dask_gce.errors import GCEError
from dask_gce.placement import Location
from dask_gce.preparation import find_locations
from dask_gce.reach.admission import RULE_FIELDS, Rule, parse_rule
from dask_gce.reach.firewall_rules import Network
from dask_gce.reach.own_address import OwnAddress, find_own_address
from dask_gce.reach.route import Route, choose_route
from dask_gce.reach.surroundings import look_around
from dask_gce.services import Services
from dask_gce.settings import Settings

if TYPE_CHECKING:
    from google.auth.credentials import Credentials

__all__ = ["View", "last_part", "project_of"]

T = TypeVar("T")


class View:
    """A project, as far as a cluster with some settings has to do with it.

    Parameters
    ----------
    settings : Settings
        The cluster's settings.
    compute : Compute
        The Compute API.
    services : Services
        Google's other APIs.
    credentials : google.auth.credentials.Credentials
        Who asks.
    """

    def __init__(
        self,
        settings: Settings,
        compute: Compute,
        services: Services,
        credentials: Credentials,
    ) -> None:
        self.settings = settings
        self.compute = compute
        self.services = services
        self._credentials = credentials
        self._asked: dict[tuple[str, ...], asyncio.Task[Any]] = {}

    @property
    def project(self) -> str:
        """The project's ID."""
        return self.compute.project

    @property
    def member(self) -> str | None:
        """Who asks, as roles are granted to; None while the credentials do not tell."""
        # A metadata server's credentials know their address once they have a token.
        for kind, field in (("serviceAccount", "service_account_email"), ("user", "account")):
            address = getattr(self._credentials, field, None)
            if isinstance(address, str) and "@" in address:
                return f"{kind}:{address}"
        return None

    @property
    def regions(self) -> Sequence[str]:
        """The regions of the zones, in their order."""
        return list(dict.fromkeys(zone.rpartition("-")[0] for zone in self.settings.zone))

    @property
    def network_project(self) -> str:
        """The project that has the network, another one with a Shared VPC."""
        link = self.settings.subnetwork or self.settings.network or ""
        return project_of(link) or self.project

    @property
    def machines(self) -> int:
        """How many machines the cluster begins with."""
        settings = self.settings
        others = max(0, settings.n_workers - settings.workers_on_scheduler)
        return 1 + -(-others // settings.processes)

    async def close(self) -> None:
        """Ask for nothing more."""
        for task in self._asked.values():
            task.cancel()
        await asyncio.gather(*self._asked.values(), return_exceptions=True)

    def _ask(self, key: tuple[str, ...], ask: Callable[[], Coroutine[Any, Any, T]]) -> Awaitable[T]:
        """Ask once; a check that is cancelled does not take the answer from the others."""
        if key not in self._asked:
            self._asked[key] = asyncio.ensure_future(ask())
        return asyncio.shield(self._asked[key])

    async def get_project(self) -> dict[str, Any]:
        """Return the project.

        Returns
        -------
        dict
            A ``compute#project`` resource.
        """
        return await self._ask(("project",), self.compute.get_project)

    async def get_region(self, region: str) -> dict[str, Any]:
        """Return a region.

        Parameters
        ----------
        region : str
            The region.

        Returns
        -------
        dict
            A ``compute#region`` resource.
        """
        return await self._ask(("region", region), lambda: self.compute.get_region(region))

    async def get_network(self, name: str) -> dict[str, Any]:
        """Return a network.

        Parameters
        ----------
        name : str
            The network.

        Returns
        -------
        dict
            A ``compute#network`` resource.
        """
        project = self.network_project
        return await self._ask(("network", name), lambda: self.compute.get_network(name, project))

    async def get_subnetwork(self, region: str, name: str) -> dict[str, Any]:
        """Return a subnetwork.

        Parameters
        ----------
        region : str
            The region.
        name : str
            The subnetwork.

        Returns
        -------
        dict
            A ``compute#subnetwork`` resource.
        """
        project = self.network_project
        return await self._ask(
            ("subnetwork", region, name),
            lambda: self.compute.get_subnetwork(region, name, project),
        )

    async def find_locations(self) -> tuple[list[Location], list[Location]]:
        """Return where the scheduler and where workers may be.

        Returns
        -------
        schedulers : list of Location
            For the scheduler, the preferred one first.
        workers : list of Location
            For workers.
        """
        return await self._ask(("locations",), lambda: find_locations(self.compute, self.settings))

    async def find_network(self) -> Network:
        """Return the cluster's network, with the addresses of the machines in the zones' regions.

        Returns
        -------
        Network
            The network.
        """
        return await self._ask(("where",), self._find_network)

    async def _find_network(self) -> Network:
        settings = self.settings
        # The subnetworks of an auto mode network have its name.
        name = last_part(settings.subnetwork or settings.network or "default")
        found = await asyncio.gather(*(self.get_subnetwork(one, name) for one in self.regions))
        return Network(
            self.network_project,
            last_part(str(found[0].get("network", name))),
            tuple(str(each["ipCidrRange"]) for each in found if "ipCidrRange" in each),
        )

    async def list_rules(self) -> list[Rule]:
        """Return the firewall rules of the cluster's network.

        Returns
        -------
        list of Rule
            The rules.
        """
        network = await self.find_network()
        found = await self._ask(
            ("rules",),
            lambda: self.compute.list_firewalls(
                fields=",".join(RULE_FIELDS), project=network.project
            ),
        )
        return [rule for rule in map(parse_rule, found) if rule.network == network.name]

    async def find_route(self) -> Route:
        """Return which way leads from this computer to a scheduler.

        Returns
        -------
        Route
            The way, and why that one.
        """
        return await self._ask(("route",), self._find_route)

    async def _find_route(self) -> Route:
        settings = self.settings
        here = await look_around(settings) if settings.connect == "auto" else None
        network: Network | None = None
        if here is not None:
            with contextlib.suppress(GCEError):
                network = await self.find_network()
        return choose_route(settings, project=self.project, network=network, here=here)

    async def find_own_address(self) -> OwnAddress:
        """Return the address by which others know this computer.

        Returns
        -------
        OwnAddress
            The address, and who has told it.
        """
        # Nobody but a local Compute Engine is told who asks.
        token = self._credentials.token if self.settings.is_local else None
        return await self._ask(("address",), lambda: find_own_address(self.settings, token=token))

    async def test_permissions(self, project: str, permissions: Sequence[str]) -> frozenset[str]:
        """Return which of several permissions the caller has on a project.

        https://cloud.google.com/resource-manager/reference/rest/v1/projects/testIamPermissions
        takes at most a hundred of them, which is more than the package knows.

        Parameters
        ----------
        project : str
            The project ID.
        permissions : sequence of str
            Google's names of them.

        Returns
        -------
        frozenset of str
            Those that the caller has.
        """
        answer = await self.services.call(
            "cloudresourcemanager",
            "POST",
            f"/v1/projects/{project}:testIamPermissions",
            body={"permissions": list(permissions)},
            action="test permissions",
        )
        return frozenset(answer.get("permissions") or ())


def project_of(link: str) -> str | None:
    """Return the project that a partial URL names.

    Parameters
    ----------
    link : str
        Such as ``"projects/host/regions/us-east1/subnetworks/one"``, or only a name.

    Returns
    -------
    str or None
        The project; None if it names none.

    Examples
    --------
    >>> project_of("projects/host/regions/us-east1/subnetworks/one"), project_of("one")
    ('host', None)
    """
    parts = link.split("/")
    if "projects" not in parts[:-1]:
        return None
    return parts[parts.index("projects") + 1]


def last_part(link: str) -> str:
    """Return the name at the end of a URL or partial URL.

    Parameters
    ----------
    link : str
        The URL, or only the name.

    Returns
    -------
    str
        The name.

    Examples
    --------
    >>> last_part("projects/host/regions/us-east1/subnetworks/one"), last_part("one")
    ('one', 'one')
    """
    return link.rpartition("/")[2]
