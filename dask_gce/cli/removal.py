"""How clusters go away from a shell: ``delete`` for those named, ``sweep`` for those forgotten."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import click

from dask_gce.cli.cloud import find, open_compute, open_services, survey
from dask_gce.cli.interruption import interruptible, run_while_wanted
from dask_gce.cli.options import complete_cluster, identity_option, json_option, project_option
from dask_gce.cli.output import note, print_json, print_table, render_age

if TYPE_CHECKING:
    from dask_gce.cluster_records import ClusterRecord
    from dask_gce.compute import Compute
    from dask_gce.errors import GCEError
    from dask_gce.rule_sweeping import OrphanedRule
    from dask_gce.secret_sweeping import SecretRecord
    from dask_gce.sweeping import Orphan

__all__ = ["ask_whether_to_delete", "delete", "sweep"]


@click.command()
@click.argument(
    "names", metavar="NAME...", nargs=-1, required=True, shell_complete=complete_cluster
)
@identity_option
@click.option("--yes", "-y", is_flag=True, help="Do not ask.")
@project_option
@json_option
def delete(
    names: Sequence[str], identity: str | None, yes: bool, project: str | None, as_json: bool
) -> None:
    """Delete clusters, with all their machines, disks and firewall rules.

    Finds them by their labels, from any computer and for whoever may delete instances. Asks first,
    unless --yes is given. Returns once every machine is seen to go.

    \b
      dask gce delete grid
      dask gce delete grid night-run --yes
    """
    if identity is not None and len(names) > 1:
        raise click.UsageError("--id tells clusters of one name apart; give one NAME with it.")
    run_while_wanted(_delete(tuple(dict.fromkeys(names)), identity, yes, project, as_json))


async def _delete(
    names: Sequence[str], identity: str | None, yes: bool, project: str | None, as_json: bool
) -> None:
    from dask_gce.errors import GCEError
    from dask_gce.inventory import find_cluster

    async with open_compute(project) as compute:
        if len(names) == 1:
            records = [await find(compute, names[0], identity)]
        else:
            # Whether all of them exist is found out before the first is deleted.
            inventory = await survey(compute)
            records = [find_cluster(inventory, name) for name in names]
        if not yes:
            _ask(records)
        errors: list[GCEError] = []
        for record in records:
            try:
                await _delete_one(compute, record)
            except GCEError as error:
                errors.append(error)
            else:
                if not as_json:
                    click.echo(f"Deleted {record.name}: {_count(record)}.")
    _raise_all(errors)
    if as_json:
        print_json({"project": compute.project, "deleted": [_brief(each) for each in records]})


def _raise_all(errors: Sequence[GCEError]) -> None:
    """Raise what went wrong with some, once all the others are deleted."""
    from dask_gce.errors import GCEError

    if errors:
        raise GCEError("\n".join(map(str, errors))) from errors[0]


def _ask(records: Sequence[ClusterRecord]) -> None:
    from dask_gce.client import current_user
    from dask_gce.names import label_value

    me = label_value(current_user())
    question = ", ".join(
        f"{record.name} ({_count(record)}, {render_age(record.age())} old"
        + (f", of {record.owner or 'an unknown owner'}" if record.owner != me else "")
        + ")"
        for record in records
    )
    ask_whether_to_delete(question)


def ask_whether_to_delete(question: str) -> None:
    """Return if the user wants things to be deleted.

    Parameters
    ----------
    question : str
        Which things.

    Raises
    ------
    click.ClickException
        If the user does not, or cannot be asked.
    """
    if not _is_asked():
        raise click.UsageError(f"There is nobody to ask whether to delete {question}: add --yes.")
    with interruptible():
        answer = click.confirm(f"Delete {question}?", err=True)
    if not answer:
        raise click.ClickException("Nothing was deleted.")


def _is_asked() -> bool:
    """Tell whether there is somebody to ask."""
    return sys.stdin.isatty()


async def _delete_one(compute: Compute, record: ClusterRecord) -> None:
    """Delete a cluster, and this computer's file of it."""
    from dask_gce.inventory import delete_cluster

    note(f"Deleting {record.name} ...")
    await delete_cluster(compute, record)
    try:
        await _delete_secrets(record)
    finally:
        # There is nothing left to connect to, whatever Secret Manager says.
        await asyncio.to_thread(_forget, record)


async def _delete_secrets(record: ClusterRecord) -> None:
    """Delete what a cluster has in Secret Manager, if it has something there."""
    from dask_gce.secret_sweeping import delete_secrets, list_secrets

    async with open_services(record.project) as services:
        await delete_secrets(services, await list_secrets(services, record.identity))


def _forget(record: ClusterRecord) -> None:
    """Delete the connection file, unless it is for another cluster of that name."""
    from dask_gce.connections import delete_connection, load_connection
    from dask_gce.errors import CredentialsError

    try:
        another = load_connection(record.name, record.project).identity != record.identity
    except CredentialsError:
        # There is none, or none that anybody could use.
        another = False
    if not another:
        delete_connection(record.name, record.project)


def _count(record: ClusterRecord) -> str:
    count = len(record.machines)
    return "1 machine" if count == 1 else f"{count} machines"


def _brief(record: ClusterRecord) -> dict[str, Any]:
    return {
        "name": record.name,
        "id": record.identity,
        "machines": [machine.name for machine in record.machines],
    }


@click.command()
@click.option("--delete", "really", is_flag=True, help="Delete them, instead of only listing them.")
@click.option("--all-owners", is_flag=True, help="Everybody's clusters, not only your own.")
@project_option
@json_option
def sweep(really: bool, all_owners: bool, project: str | None, as_json: bool) -> None:
    """List clusters that nobody needs any more, or delete them.

    These are clusters past their expiry, those of processes that have ended on this computer, and
    those that have had no scheduler, or no machine that is on, for a while. Never one that was
    created to stay and has no expiry. What clusters that are gone have left behind, firewall rules
    and secrets, is swept too.

    \b
      dask gce sweep
      dask gce sweep --delete
    """
    run_while_wanted(_sweep(really, all_owners, project, as_json))


async def _sweep(really: bool, all_owners: bool, project: str | None, as_json: bool) -> None:
    from dask_gce.client import current_user
    from dask_gce.errors import GCEError
    from dask_gce.rule_sweeping import delete_orphaned_rules, find_orphaned_rules, list_rules
    from dask_gce.secret_sweeping import delete_secrets, find_orphaned_secrets, list_secrets
    from dask_gce.sweeping import delete_orphan, find_orphans

    if not (all_owners or current_user()):
        raise click.UsageError("You have no user name, so no cluster is yours: add --all-owners.")
    async with open_compute(project) as compute, open_services(compute.project) as services:
        # Before the machines, which come after them.
        secrets, all_rules = await asyncio.gather(list_secrets(services), list_rules(compute))
        inventory = await survey(compute)
        orphans = await asyncio.to_thread(find_orphans, inventory, everybody=all_owners)
        left = await asyncio.to_thread(
            find_orphaned_secrets, secrets, inventory, everybody=all_owners
        )
        rules = await asyncio.to_thread(
            find_orphaned_rules, all_rules, inventory, everybody=all_owners
        )
        if not as_json:
            _print_orphans(orphans, compute.project)
            _print_secrets(left)
            _print_rules(rules)
        deleted = []
        errors: list[GCEError] = []
        for orphan in orphans if really else ():
            note(f"Deleting {orphan.record.name} ...")
            try:
                if await delete_orphan(compute, orphan):
                    await _delete_secrets(orphan.record)
                    deleted.append(orphan.record)
                    await asyncio.to_thread(_forget, orphan.record)
                else:
                    note(f"{orphan.record.name} is gone already, or needed after all.")
            except GCEError as error:
                errors.append(error)
        if really:
            for work in (delete_secrets(services, left), delete_orphaned_rules(compute, rules)):
                try:
                    await work
                except GCEError as error:
                    errors.append(error)
    _raise_all(errors)
    if as_json:
        print_json(
            {
                "project": compute.project,
                "orphans": [orphan.to_json() for orphan in orphans],
                "deleted": [_brief(record) for record in deleted],
                "secrets": [secret.name for secret in left],
                "firewall_rules": [rule.to_json() for rule in rules],
            }
        )
    elif really:
        click.echo(f"Deleted {len(deleted)} of {len(orphans)} clusters.")
        if left:
            click.echo(f"Deleted {len(left)} secrets of clusters that are gone.")
        if rules:
            click.echo(f"Deleted {len(rules)} firewall rules.")
    elif orphans or left or rules:
        note("To delete them: dask gce sweep --delete" + (" --all-owners" if all_owners else ""))


def _print_secrets(secrets: Sequence[SecretRecord]) -> None:
    for secret in secrets:
        note(f"Secret {secret.name} is left of cluster {secret.cluster}, which has no machines.")


def _print_rules(rules: Sequence[OrphanedRule]) -> None:
    for rule in rules:
        note(f"Firewall rule {rule.own.rule.name} {rule.reason}.")


def _print_orphans(orphans: Sequence[Orphan], project: str) -> None:
    if not orphans:
        note(f"No orphans in project {project}.")
        return
    print_table(
        ["NAME", "OWNER", "AGE", "VMS", "REASON"],
        [
            [
                orphan.record.name,
                orphan.record.owner,
                render_age(orphan.record.age()),
                str(len(orphan.record.machines)),
                orphan.reason,
            ]
            for orphan in orphans
        ],
    )
