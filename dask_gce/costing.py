"""What a cluster costs: told before its first machine, meanwhile and at its end.

Owns which prices are believed: Google's list where it was read within a day, else the table that
comes with the package until the list has been read beside everything else. How long machines run is
in `cost.spending`, and what must not cost too much in `budget`.
"""

from __future__ import annotations

import asyncio
import html
from typing import Any

from dask_gce.cost.charges import Charge, Price, PriceBook, add_up, charge_of, render_dollars
from dask_gce.cost.spending import Cost, Spending
from dask_gce.notices import NoticedCluster
from dask_gce.placement import Location
from dask_gce.preparation import Preparation
from dask_gce.price_list import kept_tariff, learn_tariff
from dask_gce.prices import TABLE, Tariff
from dask_gce.settings import Settings

__all__ = ["CostedCluster"]


class CostedCluster(NoticedCluster):
    """A cluster that knows what it costs.

    Parameters
    ----------
    settings : Settings
        The cluster's settings.
    name : str
        The cluster's name.
    **options
        What SpecCluster takes.
    """

    def __init__(self, settings: Settings, name: str, **options: Any) -> None:
        self._spending = Spending()
        self._book = PriceBook()
        self._cost_told = False
        super().__init__(settings, name, **options)

    # -- what it costs ----------------------------------------------------------------------------

    @property
    def hourly_cost(self) -> Price:
        """What an hour of the machines that run costs, by list prices."""
        return self.cost.hourly

    @property
    def cost(self) -> Cost:
        """What the cluster has cost so far, by list prices: traffic and discounts left out.

        In a process that has connected to the cluster later, machines count from when they were
        made, but those that were gone by then do not.
        """
        return self._spending.cost(self._book.price)

    def _believe(self, tariff: Tariff) -> None:
        """Prefer a list to the table."""
        self._book = PriceBook((tariff, TABLE))

    async def _learn_prices(self, prepared: Preparation) -> None:
        """Find out prices as far as the start needs them, and nothing that could wait."""
        if not self.settings.live_prices:
            return
        kept = await asyncio.to_thread(kept_tariff, self.settings)
        if kept is not None:
            self._believe(kept)
        elif self._needs_list(prepared):
            await self._refresh_prices(prepared)

    def _needs_list(self, prepared: Preparation) -> bool:
        """Tell whether a start has to wait for Google's list."""
        return False

    async def _refresh_prices(self, prepared: Preparation) -> None:
        """Read Google's list, unless it is known already."""
        if not self.settings.live_prices or self._book.tariffs[0].live:
            return
        project = prepared.blueprint.project
        if (tariff := await learn_tariff(self.settings, project)) is not None:
            self._believe(tariff)

    def _charge(self, prepared: Preparation, location: Location, *, worker: bool) -> Charge:
        """Return what is charged for of a machine at a place."""
        blueprint = prepared.blueprint
        if worker:
            # Where its scheduler is makes no difference.
            return charge_of(blueprint.worker("worker", location, "tcp://scheduler:0"))
        return charge_of(blueprint.scheduler("scheduler", location))

    def _place(self, *, spot: bool) -> Location:
        """Return where a machine would be made now."""
        found = self._find_place(spot=spot)
        return found or self._ready.workers.choose_blocked(self._only_zone, spot=spot)

    # -- what is said of it -----------------------------------------------------------------------

    def _tell_estimate(self, prepared: Preparation, machines: int) -> None:
        """Say what the first machines will cost an hour."""
        charges = [self._charge(prepared, self._scheduler.location, worker=False)]
        if machines:
            on_demand = self._mix.on_demand(machines)
            usual, spot = self._place(spot=False), self._place(spot=True)
            charges += [self._charge(prepared, usual, worker=True)] * on_demand
            charges += [self._charge(prepared, spot, worker=True)] * (machines - on_demand)
        price = add_up(map(self._book.price, charges))
        what = f"an hour for 1 + {machines} machines" if machines else "an hour for one machine"
        if price.amount is None:
            self._log(f"What {what} costs is not known: {', '.join(price.missing)}")
            return
        without = f", without {', '.join(price.missing)}" if price.missing else ""
        self._log(f"{str(price).capitalize()} {what} (list prices of {price.as_of}{without})")

    def _render_cost(self) -> str:
        """Return a row for the table that a notebook shows of the cluster, as HTML."""
        cost = self.cost
        if not cost.machines:
            return ""
        if cost.hourly.amount is None:
            text = "unknown"
        else:
            text = f"{cost.hourly} an hour"
            if cost.spent.amount is not None:
                text += f", {render_dollars(cost.spent.amount)} so far"
            text += f" (list prices of {cost.hourly.as_of})"
        return (
            '<tr><td style="text-align: left;" colspan="2"><strong>Cost:</strong> '
            f"{html.escape(text)}</td></tr>"
        )

    def _tell_cost(self, *, ended: bool) -> None:
        """Say what the cluster has cost, once."""
        if self._cost_told or not (cost := self.cost).machine_hours:
            return
        self._cost_told = True
        text = f"{cost}" if ended else f"{cost}, so far"
        self.events.note(self.name, "cost", text)
        self._log(f"{self.name}: {text}")
