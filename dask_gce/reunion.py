"""What a process has to find out of a cluster that runs already, to join it.

Owns the comparison of two witnesses: the connection file, which has the keys and the settings, and
the labels of the machines, which tell whether that cluster is still there. In the cloud nothing is
created and nothing is changed.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, replace

from dask_gce import names, tags
from dask_gce.blueprint import Blueprint
from dask_gce.boot.dask_config import changed_configuration
from dask_gce.client import client_mark, current_user
from dask_gce.cluster_records import ClusterRecord, Machine
from dask_gce.compute import Compute
from dask_gce.connection_content import Connection
from dask_gce.connections import forget_connection
from dask_gce.errors import ClusterNotFound, GCEError, SettingsError
from dask_gce.instance import Instance
from dask_gce.inventory import find_cluster, list_clusters
from dask_gce.placement import Location, MachineShape, Placement
from dask_gce.preparation import Preparation, find_locations, find_way, side_by_side
from dask_gce.reach.firewall import Firewall
from dask_gce.reach.firewall_needs import Needs
from dask_gce.reach.firewall_rules import Mark
from dask_gce.reach.networks import survey
from dask_gce.settings import Settings
from dask_gce.trust import client_security

__all__ = ["Reunion", "as_instance", "rejoin"]


@dataclass(frozen=True)
class Reunion:
    """A cluster that runs, as far as its machines tell.

    Parameters
    ----------
    prepared : Preparation
        What it was made from.
    scheduler : Machine
        The scheduler's machine, which may still be booting.
    location : Location
        Where that is.
    workers : dict of Machine to Location
        The workers' machines that run or are about to.
    declared : str
        By what it is declared that makes again what is deleted; empty for nothing.
    """

    prepared: Preparation
    scheduler: Machine
    location: Location
    workers: dict[Machine, Location]
    declared: str = ""


async def rejoin(compute: Compute, settings: Settings, connection: Connection) -> Reunion:
    """Find the machines of a cluster.

    Parameters
    ----------
    compute : Compute
        The Compute API of its project.
    settings : Settings
        Its settings.
    connection : Connection
        What its connection file says.

    Returns
    -------
    Reunion
        What is there.

    Raises
    ------
    ClusterNotFound
        If there is no such cluster any more, or only another one of its name.
    GCEError
        If it has no scheduler, so that there is nothing to connect to.
    """
    record = await _find(compute, connection)
    scheduler = record.scheduler
    if scheduler is None or not scheduler.on:
        raise GCEError(
            f"Cluster {record.name} (project {record.project}) cannot be joined: it is "
            f"{record.state}. It has {len(record.machines)} machines, but no scheduler that runs: "
            "it may not have been made completely, or have lost it. Delete what is there: "
            f"dask gce delete {record.name} --project {record.project}"
        )
    (schedulers, workers), (route, clients), found = await side_by_side(
        find_locations(compute, settings), find_way(compute, settings), survey(compute, settings)
    )
    expires = record.expires
    blueprint = Blueprint(
        settings=settings,
        project=connection.project,
        cluster=connection.cluster,
        identity=connection.identity,
        owner=connection.owner,
        client=record.client,
        expires=None if expires is None else int(expires.timestamp()),
        tls={} if connection.worker_tls is None else {"worker": connection.worker_tls},
        environment=connection.environment,
        configuration=changed_configuration(),
    )
    mark = Mark(
        connection.cluster,
        connection.identity,
        names.label_value(await asyncio.to_thread(current_user)),
        # Such a rule goes with the process that has joined, whatever becomes of the cluster.
        await asyncio.to_thread(client_mark),
        blueprint.expires,
    )
    needs = Needs(settings, connection.project, mark, found, clients, tags.new_suffix())
    prepared = Preparation(
        compute,
        blueprint,
        Placement(schedulers),
        Placement(workers),
        route,
        Firewall(compute, needs),
        await asyncio.to_thread(client_security, connection.client_tls),
        connection.client_tls,
    )
    return Reunion(
        prepared,
        scheduler,
        _location(scheduler, schedulers),
        {each: _location(each, workers) for each in record.workers if each.on},
        record.declared,
    )


async def _find(compute: Compute, connection: Connection) -> ClusterRecord:
    inventory = await list_clusters(compute, connection.cluster)
    try:
        return find_cluster(inventory, connection.cluster, identity=connection.identity)
    except ClusterNotFound as error:
        if not inventory.unreachable:
            # It has ended by itself, as its limits say. The keys of its file are good for nothing.
            await asyncio.to_thread(forget_connection, connection)
        others = [each for each in inventory.clusters if each.name == connection.cluster]
        if not others:
            raise
        raise ClusterNotFound(
            f"The cluster {connection.cluster} of project {connection.project} that this machine "
            f"could connect to is gone. The one that has this name now is another one, of owner "
            f"{others[0].owner or 'unknown'}; its own connection file is where it was made.",
            cluster=connection.cluster,
        ) from error


def _location(machine: Machine, offered: list[Location]) -> Location:
    """Return where a machine is; of one of another type no more than its name is known."""
    for each in offered:
        if (each.zone, each.machine_type) == (machine.zone, machine.machine_type):
            return replace(each, spot=machine.spot)
    like = offered[0].shape
    shape = MachineShape(machine.machine_type, like.cpus, like.memory)
    return Location(machine.zone, shape, machine.spot)


def as_instance(machine: Machine) -> Instance:
    """Return a machine as the fleet knows it.

    Parameters
    ----------
    machine : Machine
        The machine.

    Returns
    -------
    Instance
        The same.
    """
    return Instance(
        machine.name,
        machine.zone,
        machine.status,
        machine.internal_ip,
        machine.external_ip,
        spot=machine.spot,
        created=machine.created.timestamp(),
    )


def check_endpoint(settings: Settings, connection: Connection) -> None:
    """Refuse to look for a cluster where it is not.

    Parameters
    ----------
    settings : Settings
        What the caller asks for.
    connection : Connection
        What the connection file says.

    Raises
    ------
    SettingsError
        If the caller names another Compute API than that which has the cluster.
    """
    asked = settings.api_endpoint
    there = connection.settings.get("api_endpoint")
    if settings.sources["api_endpoint"] == "default" or asked == there:
        return
    raise SettingsError(
        f"api_endpoint = {asked!r}: the cluster {connection.cluster} of project "
        f"{connection.project} was made at {there or 'Google'}; leave api_endpoint out, or remove "
        f"its connection file: dask gce delete {connection.cluster}",
        key="api_endpoint",
    )
