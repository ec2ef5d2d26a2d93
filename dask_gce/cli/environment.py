"""``show --env``: what makes a bare ``Client()`` find a cluster, in a shell or in Dask's YAML."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import click

from dask_gce.cli.cloud import read_connection
from dask_gce.cli.interruption import run_while_wanted
from dask_gce.cli.output import note
from dask_gce.terminal import harmless

if TYPE_CHECKING:
    from dask_gce.connection_content import Connection

__all__ = ["print_environment"]


def print_environment(
    name: str, identity: str | None, project: str | None, *, as_yaml: bool
) -> None:
    """Print what a bare ``Client()`` needs to find a cluster.

    Parameters
    ----------
    name : str
        The cluster's name.
    identity : str or None
        The beginning of its id.
    project : str or None
        Its project ID.
    as_yaml : bool
        Whether as a file of Dask's configuration, instead of for a shell.
    """
    from dask_gce.client_variables import render_exports, render_yaml
    from dask_gce.connections import save_certificates

    connection, address, obstacle = run_while_wanted(_find(name, identity, project))
    files = save_certificates(connection)
    render = render_yaml if as_yaml else render_exports
    click.echo(render(address, files), nl=False)
    if obstacle:
        note(f"The scheduler does not answer from here: {harmless(obstacle)}")


async def _find(
    name: str, identity: str | None, project: str | None
) -> tuple[Connection, str, str]:
    """Return what it takes to connect, where the scheduler is, and what is in the way to it."""
    from dask_gce.errors import ClusterNotFound, GCEError
    from dask_gce.inventory import find_cluster, list_clusters
    from dask_gce.preparation import find_route, open_compute
    from dask_gce.reach.approach import Approach
    from dask_gce.reunion import as_instance
    from dask_gce.settings import Settings

    connection = await read_connection(name, project)
    if identity is not None and not connection.identity.startswith(identity):
        raise ClusterNotFound(
            f"The connection file of cluster {name} is for another one of that name, whose id is "
            f"{connection.identity}.",
            cluster=name,
        )
    settings = connection.restore_settings().with_way_of(Settings.load())
    compute = await open_compute(settings)
    try:
        inventory = await list_clusters(compute, connection.cluster)
        record = find_cluster(inventory, connection.cluster, identity=connection.identity)
        if record.scheduler is None or not record.scheduler.on:
            raise GCEError(f"Cluster {name} is {record.state}: it has no scheduler that runs.")
        route = await find_route(compute, settings)
    finally:
        await compute.close()
    if route.kind == "iap":
        raise GCEError(
            f"The way to cluster {name} is a tunnel ({route}), which lasts as long as the process "
            "that opens it, so that no variable can lead to the scheduler. Connect with "
            f"GCECluster.from_name({name!r}), which opens one; or, from within the network, with "
            "connect='internal' (DASK_GCE__CONNECT=internal)."
        )
    security = await asyncio.to_thread(connection.security)
    approach = Approach(route, settings, connection.project, security=security)
    await approach.open(as_instance(record.scheduler))
    obstacle = await approach.find_obstacle()
    place = approach.address(settings.scheduler_port)
    if place is None:
        raise GCEError(f"The scheduler of cluster {name} has no address from here: {obstacle}.")
    scheme = "tcp" if connection.client_tls is None else "tls"
    return connection, f"{scheme}://{place[0]}:{place[1]}", obstacle
