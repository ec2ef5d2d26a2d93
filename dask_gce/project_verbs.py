"""The verbs that look at what a project has around its machines: quotas, networks, reservations.

API JSON in, API JSON out; nothing is changed here. What it means for a cluster is left to `checks`.
"""

from __future__ import annotations

from typing import Any

from dask_gce.failures import Place
from dask_gce.library import Call
from dask_gce.verbs import Verbs

__all__ = ["ProjectVerbs"]


class ProjectVerbs(Verbs):
    """The verbs of `Compute` that look at a project.

    Parameters
    ----------
    project : str
        Project ID.
    caller : Caller
        Makes the calls.
    """

    async def get_project(self) -> dict[str, Any]:
        """Return the project, with the quotas of all regions together.

        Returns
        -------
        dict
            A ``compute#project`` resource.
        """
        place = Place("get the project", self.project, name=self.project)
        return await self._caller.answer(
            Call("Projects", "get", "GetProjectRequest", place, {"project": self.project})
        )

    async def get_region(self, region: str) -> dict[str, Any]:
        """Return a region, with its quotas.

        Parameters
        ----------
        region : str
            The region.

        Returns
        -------
        dict
            A ``compute#region`` resource.
        """
        place = Place(f"get region {region}", self.project, name=region)
        fields = {"project": self.project, "region": region}
        return await self._caller.answer(Call("Regions", "get", "GetRegionRequest", place, fields))

    async def get_network(self, name: str, project: str | None = None) -> dict[str, Any]:
        """Return a network.

        Parameters
        ----------
        name : str
            The network.
        project : str or None
            The project that has it; None for the one of the client.

        Returns
        -------
        dict
            A ``compute#network`` resource.
        """
        project = project or self.project
        place = Place(f"get network {name}", project, name=name)
        fields = {"project": project, "network": name}
        return await self._caller.answer(
            Call("Networks", "get", "GetNetworkRequest", place, fields)
        )

    async def get_subnetwork(
        self, region: str, name: str, project: str | None = None
    ) -> dict[str, Any]:
        """Return a subnetwork.

        Parameters
        ----------
        region : str
            Its region.
        name : str
            The subnetwork.
        project : str or None
            The project that has it; None for the one of the client.

        Returns
        -------
        dict
            A ``compute#subnetwork`` resource.
        """
        project = project or self.project
        place = Place(f"get subnetwork {name} of region {region}", project, name=name)
        fields = {"project": project, "region": region, "subnetwork": name}
        return await self._caller.answer(
            Call("Subnetworks", "get", "GetSubnetworkRequest", place, fields)
        )

    async def list_routers(self, region: str, project: str | None = None) -> list[dict[str, Any]]:
        """Return the routers of a region, with their Cloud NAT.

        Parameters
        ----------
        region : str
            The region.
        project : str or None
            The project that has them; None for the one of the client.

        Returns
        -------
        list of dict
            ``compute#router`` resources, from all pages.
        """
        project = project or self.project
        place = Place(f"list the routers of region {region}", project)
        fields = {"project": project, "region": region}
        pages = self._pages(Call("Routers", "list", "ListRoutersRequest", place, fields))
        return [item async for page in pages for item in page.get("items", ())]

    async def get_reservation(
        self, zone: str, name: str, project: str | None = None
    ) -> dict[str, Any]:
        """Return a reservation.

        Parameters
        ----------
        zone : str
            Its zone.
        name : str
            The reservation.
        project : str or None
            The project that has it; None for the one of the client.

        Returns
        -------
        dict
            A ``compute#reservation`` resource.
        """
        project = project or self.project
        place = Place(f"get reservation {name}", project, zone, name)
        fields = {"project": project, "zone": zone, "reservation": name}
        return await self._caller.answer(
            Call("Reservations", "get", "GetReservationRequest", place, fields)
        )
