"""``create``: a cluster that stays when the command ends."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable
from typing import Any

import click

from dask_gce.cli.interruption import finish, run_to_the_end
from dask_gce.cli.options import json_option
from dask_gce.cli.output import print_json
from dask_gce.cli.progress import following
from dask_gce.cli.setting_options import SettingsCommand, parse_settings, setting_options

__all__ = ["create"]


@click.command(cls=SettingsCommand)
@click.argument("name", required=False)
@click.option("--no-wait", is_flag=True, help="Return as soon as the workers are asked for.")
@json_option
@setting_options(without=["name"])
def create(name: str | None, no_wait: bool, as_json: bool, **typed: tuple[str, ...]) -> None:
    """Create a cluster that stays until it is deleted, or ends by itself.

    Waits for its scheduler and workers, and prints how to connect, and when it ends. If it fails or
    is interrupted, nothing is left behind. Without NAME a name is drawn.

    Every setting of the configuration is an option. Values are read as YAML, as in a configuration
    file; an option may be given several times for a list. Others on this computer can see command
    lines: put what is secret, such as a password in env-vars, into a configuration file.

    \b
      dask gce create grid --n-workers 4 --machine-type e2-standard-8
      dask gce create --zone us-east1-b --zone us-east1-c --env-vars '{OMP_NUM_THREADS: 1}'
    """
    keywords = parse_settings(typed)
    if name is not None:
        keywords["name"] = name
    run_to_the_end(_create(keywords, not no_wait, print_json if as_json else _print_facts))


async def _create(
    keywords: dict[str, Any], wait: bool, tell: Callable[[dict[str, Any]], None]
) -> None:
    from dask_gce.cluster import GCECluster
    from dask_gce.credentials import discover_project
    from dask_gce.settings import Settings

    # Found out first, since what is printed names it.
    loaded = Settings.load(**keywords)
    keywords["project"] = await asyncio.to_thread(discover_project, loaded)
    # Dask's annotations know of synchronous use only.
    cluster: Any = GCECluster(asynchronous=True, shutdown_on_close=False, quiet=True, **keywords)
    wanted = cluster.settings.n_workers
    try:
        async with following(cluster, f"Creating {cluster.name}", wanted):
            await cluster
            await cluster.settle()
            if wait and wanted:
                await cluster.wait_for_workers(wanted)
        # If its name can be told to nobody, nobody will delete it.
        tell(_facts(cluster))
    except BaseException:
        await cluster.shutdown()
        raise
    # From here on it is too late for Ctrl-C: whoever was told may be at work with it.
    await finish(cluster.close())


def _facts(cluster: Any) -> dict[str, Any]:
    from dask_gce.countdown import NAMES

    return {
        "name": cluster.name,
        "project": cluster.settings.project,
        "scheduler_address": cluster.scheduler_address,
        "dashboard": cluster.dashboard_link,
        "workers": len(cluster.scheduler_info["workers"]),
        "workers_wanted": cluster.settings.n_workers,
        "limits": {
            # JSON has no word for infinity.
            name: None if (limit := getattr(cluster.settings, name)) in (None, math.inf) else limit
            for name in NAMES
        },
        "hourly_cost": cluster.hourly_cost.to_json(),
    }


def _print_facts(facts: dict[str, Any]) -> None:
    name = facts["name"]
    click.echo(
        f"Created {name} in project {facts['project']}, "
        f"with {facts['workers']} of {facts['workers_wanted']} workers.\n"
        f"Dashboard:  {facts['dashboard']}\n"
        f'Connect:    GCECluster.from_name("{name}")\n'
        f"Scale:      dask gce scale {name} N\n"
        f"Delete:     dask gce delete {name}\n"
        f"Ends:       {_render_limits(facts['limits'])}\n"
        f"An hour:    {_render_cost(facts['hourly_cost'])}"
    )


def _render_cost(price: dict[str, Any]) -> str:
    from dask_gce.cost.charges import render_dollars

    if price["amount"] is None:
        return "its cost is not known"
    known = "about" if price["complete"] else "at least"
    return f"{known} {render_dollars(price['amount'])} (list prices of {price['as_of']})"


def _render_limits(limits: dict[str, float | None]) -> str:
    from dask_gce.countdown import spell

    words = {
        "idle_timeout": "after {} without work",
        "no_client_timeout": "after {} without a client",
        "max_lifetime": "{} after it was made",
    }
    known = [
        f"{words[name].format(spell(limit))} ({name})"
        for name, limit in limits.items()
        if limit is not None
    ]
    return "; ".join(known) or "never by itself; it costs money until it is deleted"
