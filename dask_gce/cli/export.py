"""``export``: a cluster for other tools to make."""

from __future__ import annotations

import shlex
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click
from click.core import ParameterSource

from dask_gce.cli.interruption import run_while_wanted
from dask_gce.cli.output import note
from dask_gce.cli.setting_options import SettingsCommand, parse_settings, setting_options

if TYPE_CHECKING:
    from dask_gce.settings import Settings
    from dask_gce.terraform.fixed_cluster import FixedCluster

__all__ = ["export"]

_DAYS: Final = click.option(
    "--certificate-days",
    "days",
    metavar="DAYS",
    # A little more than a hundred years.
    type=click.FloatRange(min=0.01, max=36_525),
    default=365,
    show_default=True,
    help="How long the cluster's certificates last.",
)
_FORCE: Final = click.option("--force", is_flag=True, help="Write in place of what is there.")


@click.group()
def export() -> None:
    """Write files by which other tools make a cluster.

    \b
      dask gce export terraform cluster/ --name grid --n-workers 4
      dask gce export certificates other.tfvars.json
    """


@export.command(cls=SettingsCommand)
@click.argument("folder", type=click.Path(path_type=Path, file_okay=False))
@_DAYS
@_FORCE
@setting_options(without=["progress"])
def terraform(folder: Path, days: float, force: bool, **typed: tuple[str, ...]) -> None:
    """Write a fixed cluster for Terraform into FOLDER.

    Every setting of the configuration is an option, as with create; a name is needed. What is found
    out for a cluster is found out now: machine types, zones, network and its rules, your address.
    Nothing is made.

    FOLDER gets main.tf.json, which has no secret unless instance-overrides or options of scheduler
    and workers have one, and certificates.auto.tfvars.json with the cluster's private keys, for you
    alone. With --force the former is written anew, while keys that are there stay, for as long as
    they last: --certificate-days is for new ones.

    \b
      dask gce export terraform cluster/ --name grid --n-workers 4 --idle-timeout .inf
      terraform -chdir=cluster init
      terraform -chdir=cluster apply
      terraform -chdir=cluster output -json connection | dask gce join -
    """
    keywords = parse_settings(typed)
    settings, fixed = run_while_wanted(_describe(keywords))
    from dask_gce.terraform.document import build_document
    from dask_gce.terraform.files import CERTIFICATES, write_files

    keys = folder / CERTIFICATES
    written = write_files(
        folder,
        build_document(fixed),
        cluster=str(settings.name),
        days=days if settings.security else None,
        env_vars=settings.env_vars,
        overwrite=force,
    )
    for path in written:
        click.echo(path)
    for text in fixed.notes:
        note(text)
    if keys in written:
        note(f"Its certificates last {days:g} days from now, whenever it is made.")
    elif settings.security:
        source = click.get_current_context().get_parameter_source("days")
        asked = days if source is not ParameterSource.DEFAULT else None
        note(_explain_kept(keys, str(settings.name), asked))
    elif keys.exists():
        note(
            f"The keys in {keys} are of no use to a cluster without security, and Terraform warns "
            "of them. Delete the file when no other cluster has them."
        )


def _explain_kept(keys: Path, name: str, days: float | None) -> str:
    """Say until when the certificates are good that were there, and how there come to be others."""
    from dask_gce.terraform.files import read_end

    end = read_end(keys)
    if end is None:
        told = f"The keys in {keys} stay; until when they are valid cannot be read."
    elif end > datetime.now(timezone.utc):
        told = f"The keys in {keys} stay, and are valid until {end:%Y-%m-%d %H:%M} UTC."
    else:
        told = (
            f"Warning: the keys in {keys} stay, but have not been valid since "
            f"{end:%Y-%m-%d %H:%M} UTC, so nobody could use the cluster."
        )
    more: tuple[str, ...] = ()
    if days is not None:
        more = ("--certificate-days", f"{days:g}")
        told += f" --certificate-days {days:g} makes no difference to them."
    command = ("dask", "gce", "export", "certificates", str(keys), "--name", name, *more)
    return f"{told} For new ones: {shlex.join([*command, '--force'])}"


async def _describe(keywords: dict[str, Any]) -> tuple[Settings, FixedCluster]:
    from dask_gce.preparation import open_compute
    from dask_gce.settings import Settings
    from dask_gce.terraform.fixed import describe_fixed
    from dask_gce.terraform.suitability import check_fixed

    settings = Settings.load(**keywords)
    # What needs nobody's answer is not kept waiting for one.
    check_fixed(settings)
    compute = await open_compute(settings)
    try:
        return settings, await describe_fixed(compute, settings, tell=note)
    finally:
        await compute.close()


@export.command()
@click.argument("file", type=click.Path(path_type=Path, dir_okay=False))
@click.option("--name", default="dask", show_default=True, help="Name that they are made out to.")
@_DAYS
@_FORCE
def certificates(file: Path, name: str, days: float, force: bool) -> None:
    """Write a new set of certificates and private keys to FILE.

    Each workspace of Terraform's is a cluster, and each cluster has keys of its own. A cluster that
    runs is made anew when its keys change.

    \b
      dask gce export certificates other.tfvars.json
      terraform workspace new other
      terraform apply -var-file=other.tfvars.json
    """
    from dask_gce.names import check_cluster_name
    from dask_gce.terraform.files import write_certificates

    click.echo(write_certificates(file, check_cluster_name(name), days, overwrite=force))
