"""How clusters go away from a shell: ``delete`` for those named, ``sweep`` for those forgotten."""

from __future__ import annotations

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
    from dask_gce.errors import GCEError
    from dask_gce.rule_sweeping import OrphanedRule
    from dask_gce.secret_sweeping import SecretRecord
    from dask_gce.sweeping import Orphan

__all__ = ["ask_whether_to_delete", "delete", "sweep", "tell_declaration"]


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
    from dask_gce.sweeper import delete_all_of

    async with open_compute(project) as compute, open_services(compute.project) as services:
        if len(names) == 1:
            records = [await find(compute, names[0], identity)]
        else:
            # Whether all of them exist is found out before the first is deleted.
            inventory = await survey(compute)
            records = [find_cluster(inventory, name) for name in names]
        for record in records:
            if record.declared:
                note(tell_declaration(record))
        if not yes:
            _ask(records)
        errors: list[GCEError] = []
        for record in records:
            note(f"Deleting {record.name} ...")
            try:
                await delete_all_of(compute, services, record)
            except GCEError as error:
                errors.append(error)
            else:
                if not as_json:
                    click.echo(f"Deleted {record.name}: {_count(record)}.")
    _raise_all(errors)
    if as_json:
        print_json({"project": compute.project, "deleted": [_brief(each) for each in records]})


def tell_declaration(record: ClusterRecord) -> str:
    """Say what becomes of a cluster's machines that something declares.

    Parameters
    ----------
    record : ClusterRecord
        A cluster that is declared.

    Returns
    -------
    str
        Sentences.
    """
    return (
        f"{record.name} is declared with {record.declared.capitalize()}, which makes again what is "
        "deleted in another way, the next time it is applied; the scheduler's address stays "
        "reserved. To end it for good: terraform destroy"
    )


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

    These are clusters past their expiry, those of processes that have ended on this computer, those
    that have had no scheduler for a while, and those that have ended but could not delete their
    machines. Never one that was created to stay and has no expiry. What clusters that are gone have
    left behind, firewall rules and secrets, is swept too.

    \b
      dask gce sweep
      dask gce sweep --delete
    """
    run_while_wanted(_sweep(really, all_owners, project, as_json))


async def _sweep(really: bool, all_owners: bool, project: str | None, as_json: bool) -> None:
    from dask_gce.client import current_user
    from dask_gce.sweeper import delete_found, find_all

    if not (all_owners or current_user()):
        raise click.UsageError("You have no user name, so no cluster is yours: add --all-owners.")
    async with open_compute(project) as compute, open_services(compute.project) as services:
        found = await find_all(compute, services, everybody=all_owners)
        if found.unreachable:
            note(f"No answer from, so unknown: {', '.join(sorted(found.unreachable))}")
        if not as_json:
            _print_orphans(found.clusters, compute.project)
            _print_secrets(found.secrets)
            _print_rules(found.rules)
        deleted: list[ClusterRecord] = []
        errors: list[GCEError] = []
        if really:
            swept, errors = await delete_found(compute, services, found, note)
            deleted = [orphan.record for orphan in swept.clusters]
    _raise_all(errors)
    if as_json:
        print_json(
            {
                "project": compute.project,
                "orphans": [orphan.to_json() for orphan in found.clusters],
                "deleted": [_brief(record) for record in deleted],
                "secrets": [secret.name for secret in found.secrets],
                "firewall_rules": [rule.to_json() for rule in found.rules],
            }
        )
    elif really:
        click.echo(f"Deleted {len(deleted)} of {len(found.clusters)} clusters.")
        if found.secrets:
            click.echo(f"Deleted {len(found.secrets)} secrets of clusters that are gone.")
        if found.rules:
            click.echo(f"Deleted {len(found.rules)} firewall rules.")
    elif found:
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
