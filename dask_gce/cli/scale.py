"""``scale``: more or fewer workers for a cluster that runs."""

from __future__ import annotations

from typing import Any

import click

from dask_gce.cli.cloud import read_connection
from dask_gce.cli.interruption import run_to_the_end
from dask_gce.cli.options import cluster_argument, json_option, project_option
from dask_gce.cli.output import print_json
from dask_gce.cli.progress import following

__all__ = ["scale"]


@click.command()
@cluster_argument
@click.argument("workers", type=click.IntRange(min=0))
@click.option("--no-wait", is_flag=True, help="Do not wait for new workers to arrive.")
@project_option
@json_option
def scale(name: str, workers: int, no_wait: bool, project: str | None, as_json: bool) -> None:
    """Give a cluster another number of workers.

    Connects to the cluster, so it takes the file that create leaves on the computer where it ran.
    Waits until new workers have arrived; machines that are too many are deleted once their results
    are safe on others.

    \b
      dask gce scale grid 20
    """
    facts = run_to_the_end(_scale(name, workers, project, wait=not no_wait))
    if as_json:
        print_json(facts)
    else:
        click.echo(f"Scaled {name} to {workers} workers; {facts['workers']} are there.")


async def _scale(name: str, workers: int, project: str | None, *, wait: bool) -> dict[str, Any]:
    from dask_gce.cluster import GCECluster

    connection = await read_connection(name, project)
    # Dask's annotations know of synchronous use only.
    joined: Any = GCECluster.from_name(
        name, project=connection.project, asynchronous=True, quiet=True
    )
    async with joined as cluster:
        async with following(cluster, f"Scaling {name}", workers):
            await cluster.scale(workers)
            await cluster.settle()
            if wait and workers:
                await cluster.wait_for_workers(workers)
        return {
            "name": cluster.name,
            "project": connection.project,
            "workers": len(cluster.scheduler_info["workers"]),
            "workers_wanted": workers,
        }
