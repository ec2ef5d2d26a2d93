"""A project as a cluster sees it: what several checks look at, each thing asked for once.

Owns the clients of Google's APIs while checks run, and the answers that checks share.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

from dask_gce.compute import Compute
from dask_gce.placement import Location
from dask_gce.preparation import find_locations, find_route
from dask_gce.reach.networks import Survey, survey
from dask_gce.reach.route import Route
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

    async def survey_network(self) -> Survey:
        """Return the cluster's network, with its firewall rules.

        Returns
        -------
        Survey
            What a cluster would find out.
        """
        return await self._ask(("survey",), lambda: survey(self.compute, self.settings))

    async def find_route(self) -> Route:
        """Return which way leads from this computer to a scheduler.

        Returns
        -------
        Route
            The way, and why that one.
        """
        return await self._ask(("route",), lambda: find_route(self.compute, self.settings))

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
