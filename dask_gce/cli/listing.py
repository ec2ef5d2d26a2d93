"""What runs: ``list`` for all clusters of a project, ``show`` for one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Any

import click

from dask_gce.cli.cloud import find, open_compute, survey
from dask_gce.cli.environment import print_environment
from dask_gce.cli.interruption import run_while_wanted
from dask_gce.cli.options import cluster_argument, identity_option, json_option, project_option
from dask_gce.cli.output import (
    note,
    print_json,
    print_table,
    render_age,
    render_end,
    render_price,
)

if TYPE_CHECKING:
    from dask_gce.cluster_records import ClusterRecord
    from dask_gce.inventory import Inventory
    from dask_gce.reach.own_rules import OwnRule

__all__ = ["list_all", "show"]


@click.command()
@project_option
@json_option
def list_all(project: str | None, as_json: bool) -> None:
    """List the clusters of a project.

    Shows everybody's clusters, in all zones, for which it asks Google once, and once for each
    cluster that runs. VMS counts the scheduler's machine and those of workers. ENDS is the nearest
    end as things are, with the limit that it comes of unless that is max_lifetime. PER HOUR is the
    list price in US dollars of the machines that are on, without disks and discounts.

    \b
    STATE is one of
      running       the scheduler's machine is on
      starting      the scheduler's machine is being made
      building      a disk image is being made
      no-scheduler  machines are on, but no scheduler's
      stopping      all machines are on their way out
      stopped       all machines are off, but their disks still cost money

    \b
      dask gce list
      dask gce list --json | jq -r '.clusters[].name'
    """
    inventory = run_while_wanted(_survey(project))
    if as_json:
        print_json(inventory.to_json())
    elif inventory.clusters:
        now = datetime.now(timezone.utc)
        print_table(
            ["NAME", "OWNER", "AGE", "VMS", "STATE", "ENDS", "PER HOUR", "ZONE"],
            [
                [
                    record.name,
                    record.owner,
                    render_age(record.age(now)),
                    str(len(record.machines)),
                    record.state,
                    render_end(record.next_end, now),
                    render_price(record.hourly_price),
                    ", ".join(record.zones),
                ]
                for record in inventory.clusters
            ],
        )
    else:
        note(f"No clusters in project {inventory.project}.")


async def _survey(project: str | None) -> Inventory:
    from dask_gce.ends import read_ends

    async with open_compute(project) as compute:
        inventory = await survey(compute)
        return replace(inventory, clusters=await read_ends(compute, inventory.clusters))


@click.command()
@cluster_argument
@identity_option
@project_option
@json_option
@click.option("--env", is_flag=True, help="Print what makes a bare Client() find it, for a shell.")
@click.option("--yaml", "as_yaml", is_flag=True, help="With --env: print it as Dask's YAML.")
def show(
    name: str,
    identity: str | None,
    project: str | None,
    as_json: bool,
    env: bool,
    as_yaml: bool,
) -> None:
    """Show a cluster, its machines and its firewall rules.

    With --env it prints variables by which Dask's own Client() connects to the cluster, for a shell
    to evaluate, or as configuration. They name files with the certificates, which only you can
    read, and which go when the cluster is deleted from here.

    \b
      dask gce show grid
      eval "$(dask gce show grid --env)" && python -c "from distributed import Client; Client()"
    """
    if as_yaml and not env:
        raise click.UsageError("--yaml goes with --env.")
    if env and as_json:
        raise click.UsageError("--env and --json exclude each other.")
    if env:
        print_environment(name, identity, project, as_yaml=as_yaml)
        return
    record, rules = run_while_wanted(_find(name, identity, project))
    known = _is_known(record)
    if as_json:
        shown = None if rules is None else [_brief(rule) for rule in rules]
        print_json({**record.to_json(), "connection_file": known, "firewall_rules": shown})
    else:
        _print_record(record, known)
        _print_rules(rules)


async def _find(
    name: str, identity: str | None, project: str | None
) -> tuple[ClusterRecord, list[OwnRule] | None]:
    """Return a cluster and its firewall rules; None if the caller may not see those."""
    from dask_gce.ends import read_ends
    from dask_gce.errors import PermissionDenied
    from dask_gce.reach.own_rules import list_own_rules

    async with open_compute(project) as compute:
        (record,) = await read_ends(compute, [await find(compute, name, identity)])
        if not record.identity:
            return record, []
        try:
            found = [
                rule
                for owner in record.rule_projects
                for rule in await list_own_rules(compute, record.identity, owner)
            ]
        except PermissionDenied:
            return record, None
        return record, found


def _brief(own: OwnRule) -> dict[str, Any]:
    rule = own.rule
    return {
        "name": rule.name,
        "project": own.project,
        "sources": [*map(str, rule.source_ranges), *sorted(rule.source_tags)],
        "ports": [str(low) if low == high else f"{low}-{high}" for low, high in rule.tcp],
    }


def _print_rules(rules: Sequence[OwnRule] | None) -> None:
    if rules is None:
        note("Its firewall rules are not shown: it takes the permission compute.firewalls.list.")
        return
    if not rules:
        return
    click.echo()
    briefs = [_brief(rule) for rule in rules]
    print_table(
        ["FIREWALL RULE", "LETS IN", "TCP PORTS"],
        [[each["name"], ", ".join(each["sources"]), ", ".join(each["ports"])] for each in briefs],
    )


def _is_known(record: ClusterRecord) -> bool:
    """Tell whether this computer has the file that it takes to connect."""
    from dask_gce.connections import list_connections

    return (record.project, record.name) in list_connections()


def _print_record(record: ClusterRecord, known: bool) -> None:
    now = datetime.now(timezone.utc)
    lines: dict[str, Any] = {
        "Name": record.name,
        "Id": record.identity or "-",
        "Project": record.project,
        "Owner": record.owner or "-",
        "State": record.state,
        "Age": render_age(record.age(now)),
        "Ends": render_end(record.next_end, now),
        "An hour": render_price(record.hourly_price),
        "Connect": f'GCECluster.from_name("{record.name}")'
        if known
        else "not from this computer, which has no connection file of it",
    }
    for title, value in lines.items():
        click.echo(f"{title + ':':<9}{value}")
    click.echo()
    print_table(
        ["MACHINE", "ROLE", "STATUS", "TYPE", "ZONE", "INTERNAL IP", "EXTERNAL IP", "AGE"],
        [
            [
                machine.name,
                machine.role,
                machine.status,
                machine.machine_type + (" (spot)" if machine.spot else ""),
                machine.zone,
                machine.internal_ip or "",
                machine.external_ip or "",
                render_age(now - machine.created),
            ]
            for machine in record.machines
        ],
    )
