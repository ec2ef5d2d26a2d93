"""``ssh``: a shell on a cluster's machines, and what else gcloud leads to.

Owns which machine is meant, and how gcloud is called: with a list of arguments, never through a
shell. Keys, host names and Identity-Aware Proxy, where a machine has no external address, are
gcloud's business.
"""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

import click

from dask_gce.cli.cloud import find, open_compute
from dask_gce.cli.interruption import run_while_wanted
from dask_gce.cli.options import cluster_argument, identity_option, project_option

if TYPE_CHECKING:
    from dask_gce.cluster_records import ClusterRecord, Machine

__all__ = ["choose_machine", "gcloud_ssh", "ssh"]


@click.command()
@cluster_argument
@click.argument("arguments", metavar="[-- ARGUMENTS...]", nargs=-1, type=click.UNPROCESSED)
@click.option("--machine", metavar="MACHINE", help="Machine to go to, instead of the scheduler's.")
@identity_option
@project_option
def ssh(
    name: str,
    arguments: Sequence[str],
    machine: str | None,
    identity: str | None,
    project: str | None,
) -> None:
    """Log in to a machine of a cluster, through gcloud.

    What follows -- goes to ssh: options of its own, or a command. The exit status is gcloud's.

    \b
      dask gce ssh grid
      dask gce ssh grid --machine grid-worker-7c2e -- sudo docker logs dask
    """
    record = run_while_wanted(_find(name, identity, project))
    command = gcloud_ssh(record, choose_machine(record, machine))
    sys.stdout.flush()
    sys.stderr.flush()
    # In place of this process, so that the terminal and its signals are ssh's alone.
    os.execv(command[0], [*command, *(["--", *arguments] if arguments else [])])  # noqa: S606  # a list, no shell


async def _find(name: str, identity: str | None, project: str | None) -> ClusterRecord:
    async with open_compute(project) as compute:
        return await find(compute, name, identity)


def choose_machine(record: ClusterRecord, name: str | None = None) -> Machine:
    """Choose a machine of a cluster.

    Parameters
    ----------
    record : ClusterRecord
        The cluster.
    name : str or None
        The machine's name; None for the scheduler's.

    Returns
    -------
    Machine
        The machine.

    Raises
    ------
    click.ClickException
        If the cluster has none of that name, or no scheduler.
    """
    if name is None:
        if record.scheduler is None:
            raise click.ClickException(
                f"Cluster {record.name} has no scheduler. To see its machines: "
                f"dask gce show {record.name}"
            )
        return record.scheduler
    for machine in record.machines:
        if machine.name == name:
            return machine
    there = ", ".join(each.name for each in record.machines)
    raise click.UsageError(f"Cluster {record.name} has no machine {name!r}; it has: {there}")


def gcloud_ssh(record: ClusterRecord, machine: Machine) -> list[str]:
    """Return the command that logs in to a machine.

    Parameters
    ----------
    record : ClusterRecord
        The cluster.
    machine : Machine
        The machine.

    Returns
    -------
    list of str
        The command line, to which options can be added.

    Raises
    ------
    click.ClickException
        If there is no gcloud.
    """
    gcloud = shutil.which("gcloud")
    if gcloud is None:
        raise click.ClickException(
            "gcloud was not found on PATH. To install it: https://cloud.google.com/sdk/docs/install"
        )
    place = ["--project", record.project, "--zone", machine.zone]
    return [gcloud, "compute", "ssh", machine.name, *place]
