"""``cost``: what a cluster costs."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final

import click

from dask_gce.cli.cloud import find, open_compute
from dask_gce.cli.interruption import run_while_wanted
from dask_gce.cli.options import cluster_argument, identity_option, json_option, project_option
from dask_gce.cli.output import note, print_json, print_table

if TYPE_CHECKING:
    from dask_gce.cluster_records import ClusterRecord
    from dask_gce.cost.charges import Price, PriceBook

__all__ = ["cost"]

#: Seconds that are waited for Google's price list: somebody sits in front of it.
PRICES_WITHIN: Final = 45.0


@click.command()
@cluster_argument
@identity_option
@project_option
@json_option
def cost(name: str, identity: str | None, project: str | None, as_json: bool) -> None:
    """Show what a cluster costs an hour, and what it has cost so far.

    By list prices, from Google's price list where that may be read, otherwise from the table that
    comes with this package; without traffic and discounts. It counts the machines that are there,
    from when they were started: those that are gone have left nothing that could be asked. Of what
    type a disk is, machines do not tell, so disks are left out.

    \b
      dask gce cost grid
      dask gce cost grid --json | jq .cost.spent.amount
    """
    record, book = run_while_wanted(_look_up(name, identity, project))
    if as_json:
        from dask_gce.cluster_costs import to_json

        print_json(to_json(record, book))
    else:
        _print(record, book)


async def _look_up(
    name: str, identity: str | None, project: str | None
) -> tuple[ClusterRecord, PriceBook]:
    from dask_gce.cost.charges import PriceBook
    from dask_gce.price_list import learn_tariff
    from dask_gce.prices import TABLE
    from dask_gce.settings import Settings

    settings = Settings.load(project=project)
    async with open_compute(project) as compute:
        record = await find(compute, name, identity)
    tariff = None
    if settings.live_prices:
        try:
            learning = learn_tariff(settings, record.project)
            tariff = await asyncio.wait_for(learning, PRICES_WITHIN)
        except (TimeoutError, asyncio.TimeoutError):
            note(f"Google's price list did not come within {PRICES_WITHIN:g} s.")
    return record, PriceBook((TABLE,) if tariff is None else (tariff, TABLE))


def _print(record: ClusterRecord, book: PriceBook) -> None:
    from dask_gce.cluster_costs import cost_of, machine_costs
    from dask_gce.cost.charges import render_dollars

    def show(price: Price) -> str:
        if price.amount is None:
            return "unknown"
        return render_dollars(price.amount)

    print_table(
        ["MACHINE", "ROLE", "TYPE", "ZONE", "HOURS", "PER HOUR", "SO FAR"],
        [
            [
                machine.name,
                machine.role,
                machine.machine_type + (" (spot)" if machine.spot else ""),
                machine.zone,
                f"{each.machine_hours:.2f}",
                show(each.hourly) if each.machines else "",
                show(each.spent) if each.machine_hours else "",
            ]
            for machine, each in machine_costs(record, book)
        ],
    )
    click.echo()
    total = cost_of(record, book)
    if total.machines:
        machines = f"{total.machines} machine{'' if total.machines == 1 else 's'}"
        click.echo(f"An hour:  {total.hourly} for {machines}")
    click.echo(f"So far:   {total}")
    note("Machines that are gone already are not part of it.")
