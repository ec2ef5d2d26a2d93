"""``plan``: what ``create`` would do."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from dask_gce.cli.interruption import run_while_wanted
from dask_gce.cli.options import json_option
from dask_gce.cli.output import note, print_json
from dask_gce.cli.setting_options import SettingsCommand, parse_settings, setting_options
from dask_gce.terminal import harmless

if TYPE_CHECKING:
    from dask_gce.declaration.cluster_plan import ClusterPlan

__all__ = ["plan"]


@click.command(cls=SettingsCommand)
@click.argument("name", required=False)
@click.option("--startup-script", is_flag=True, help="Print the script that machines run at boot.")
@json_option
@setting_options(without=["name"])
def plan(name: str | None, startup_script: bool, as_json: bool, **typed: tuple[str, ...]) -> None:
    """Show what create would make, and what it would cost. Nothing is created.

    Shows the machines, addresses and firewall rules that there would be, the way to the scheduler,
    the quotas that they count for, and the requests in their order. --json has all of it, with the
    bodies of the requests; private keys are not in them, but what settings hold, such as env-vars,
    is. Without NAME a name is drawn.

    The exit status is 1 if the cluster could not be made.

    \b
      dask gce plan grid --n-workers 100 --machine-type n2-standard-8 --spot true
      dask gce plan --json | jq '.requests[0].body'
    """
    keywords = parse_settings(typed)
    if name is not None:
        keywords["name"] = name
    found = run_while_wanted(_declare(keywords))
    if as_json:
        print_json(found.to_json())
    elif startup_script:
        click.echo(found.startup_script, nl=False)
    else:
        # It may quote what a server says.
        click.echo(harmless(str(found)))
    if not found.feasible:
        note(f"It could not be made: {harmless('; '.join(found.blockers))}")
        raise click.exceptions.Exit(1)


async def _declare(keywords: dict[str, Any]) -> ClusterPlan:
    from dask_gce.declaration.declare import declare
    from dask_gce.settings import Settings

    # As create makes it: to outlive the command.
    return await declare(Settings.load(**keywords), detached=True)
