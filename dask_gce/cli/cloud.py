"""Where commands find clusters: in the Compute API, and in connection files.

Owns the way from the configuration to `Compute`; the look-ups themselves are in `inventory` and
`connections`.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from dask_gce.cli.output import note

if TYPE_CHECKING:
    from dask_gce.cluster_records import ClusterRecord
    from dask_gce.compute import Compute
    from dask_gce.connection_content import Connection
    from dask_gce.inventory import Inventory
    from dask_gce.services import Services

__all__ = ["find", "open_compute", "open_services", "read_connection", "survey"]

#: Seconds that one call may take, with all its repeats: somebody sits in front of it.
CALL_TIMEOUT = 60.0


@asynccontextmanager
async def open_services(project: str) -> AsyncIterator[Services]:
    """Open Google's other APIs, as the configuration names them.

    Parameters
    ----------
    project : str
        The project ID.

    Yields
    ------
    Services
        The APIs.
    """
    from dask_gce.services import load_services
    from dask_gce.settings import Settings

    settings = Settings.load(project=project)
    async with await asyncio.to_thread(load_services, settings, project) as services:
        yield services


@asynccontextmanager
async def open_compute(project: str | None = None) -> AsyncIterator[Compute]:
    """Open the Compute API that the configuration names.

    Parameters
    ----------
    project : str or None
        The project ID; None to find it as a cluster does.

    Yields
    ------
    Compute
        The Compute API.

    Raises
    ------
    SettingsError
        If a setting is wrong.
    CredentialsError
        If there are no credentials or no project.
    """
    from dask_gce.compute import Compute
    from dask_gce.credentials import discover_project, load_credentials
    from dask_gce.settings import Settings

    settings = Settings.load(project=project)
    credentials = await asyncio.to_thread(load_credentials, settings)
    compute = Compute(
        await asyncio.to_thread(discover_project, settings),
        endpoint=settings.api_endpoint,
        credentials=credentials,
        threads=settings.api_connections,
        rate=settings.api_rate,
        call_timeout=CALL_TIMEOUT,
    )
    try:
        yield compute
    except asyncio.CancelledError:
        # To close it is to wait for the exchanges under way, and Ctrl-C means now.
        raise
    except BaseException:
        await compute.close()
        raise
    await compute.close()


async def survey(compute: Compute) -> Inventory:
    """Find all clusters with one call, and tell the user what remains unknown.

    Parameters
    ----------
    compute : Compute
        The Compute API.

    Returns
    -------
    Inventory
        What was found.
    """
    from dask_gce.inventory import list_clusters

    inventory = await list_clusters(compute)
    if inventory.unreachable:
        note(f"No answer from, so unknown: {', '.join(sorted(inventory.unreachable))}")
    return inventory


async def find(compute: Compute, name: str, identity: str | None = None) -> ClusterRecord:
    """Find one cluster by its name.

    Parameters
    ----------
    compute : Compute
        The Compute API.
    name : str
        The cluster's name.
    identity : str or None
        The beginning of its id, where several have its name.

    Returns
    -------
    ClusterRecord
        The cluster.

    Raises
    ------
    ClusterNotFound
        If there is none.
    SettingsError
        If there are several.
    """
    from dask_gce.inventory import find_cluster

    # All of them, so that an error can name those of similar names; it is one call either way.
    return find_cluster(await survey(compute), name, identity=identity)


async def read_connection(name: str, project: str | None) -> Connection:
    """Read the file that it takes to connect to a cluster.

    Parameters
    ----------
    name : str
        The cluster's name.
    project : str or None
        The project ID; None for the one that has a file for this name.

    Returns
    -------
    Connection
        What the file holds.

    Raises
    ------
    ClusterNotFound
        If there is neither a file nor a cluster.
    CredentialsError
        If there is no file, or none that can be used.
    """
    from dask_gce.connections import load_connection
    from dask_gce.errors import CredentialsError

    try:
        return await asyncio.to_thread(load_connection, name, project)
    except CredentialsError:
        # That the name is wrong is the more likely mistake.
        async with open_compute(project) as compute:
            await find(compute, name)
        raise
