"""What a cluster must not cost more than: ``max_hourly_cost``.

Owns the limit. No machine is asked for that would take the cluster over it, whoever wants the
machine: the user, Dask's adaptive object, or the replacement of one that was lost. Machines that
run are never let go for it.

What counts is what is really taken: machines that are there by their own prices, those to come by
that of the place where they would be made now. The dearest place that may ever be used would refuse
what could well be had, Spot machines above all; so a dearer place, or a machine on demand instead
of a Spot one, is looked at again when it is about to be asked for, and not taken if it is too
much. A Spot machine whose price is not known counts like one on demand, which is never cheaper:
https://cloud.google.com/spot-vms/pricing.
"""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import replace
from typing import Any, Final

from dask_gce.cost.charges import Charge, charge_of, render_dollars
from dask_gce.costing import CostedCluster
from dask_gce.errors import CostLimitExceeded, InstanceLost
from dask_gce.instance import InstanceSpec
from dask_gce.placement import Location, Placement
from dask_gce.preparation import Preparation
from dask_gce.settings import Settings

__all__ = ["BudgetedCluster"]

#: Seconds after which machines that the limit left no room for are tried again: others may be gone.
ROOM_AGAIN: Final = 10.0

#: What rounding may add to a sum, in dollars.
_ROUNDING: Final = 1e-9


class BudgetedCluster(CostedCluster):
    """A cluster that keeps to a limit of its cost.

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
        # What was last said of the limit, so that it is not said at each attempt.
        self._said_of_budget = ""
        # What is charged for of each machine: all are added up for each that is asked for.
        self._charges: dict[str, Charge] = {}
        super().__init__(settings, name, **options)

    # -- what machines count -----------------------------------------------------------------

    @property
    def _budget(self) -> float:
        limit = self.settings.max_hourly_cost
        return math.inf if limit is None else limit

    def _ceiling(self, charge: Charge) -> float:
        """Return what an hour of a machine counts to the limit; infinity if that is not known."""
        amount = self._book.price(charge).amount
        if amount is None and charge.spot:
            amount = self._book.price(replace(charge, spot=False)).amount
        return math.inf if amount is None else amount

    def _price_at(self, location: Location) -> float:
        return self._ceiling(self._charge(self._ready, location, worker=True))

    def _counted(self, names: Collection[str] | None = None) -> float:
        """Return what counts of the machines that were asked for and are not known to be gone."""
        if self._fleet is None:
            return 0.0
        return sum(
            self._ceiling(self._charges.get(each.name) or self._keep_charge(each.spec))
            for each in list(self._fleet.members.values())
            if (names is None or each.name in names)
            and not isinstance(each.failure, InstanceLost)
            # What has failed otherwise may run until it is deleted.
            and not (each.failure is not None and each.never_was)
            and not (each.instance is not None and each.instance.ended)
        )

    def _keep_charge(self, spec: InstanceSpec) -> Charge:
        return self._charges.setdefault(spec.name, charge_of(spec))

    def _unasked(self) -> int:
        """Return how many machines are planned that nobody has asked for yet."""
        asked = self._fleet.members if self._fleet is not None else {}
        return sum(name not in asked for name in list(self.worker_spec))

    def _of_new(self, machines: int, *, planned: int, on_demand: int) -> float:
        """Return what new machines would count, by how many there are already."""
        more = min(machines, max(0, self._mix.on_demand(planned + machines) - on_demand))
        usual = self._price_at(self._place(spot=False)) * more if more else 0.0
        spot = self._price_at(self._place(spot=True)) * (machines - more) if machines > more else 0
        return usual + spot

    def _room(self, most: int, used: float, *, asked: int, on_demand: int) -> int:
        """Return how many machines, up to `most`, fit in beside those that were asked for."""
        low, high = 0, max(0, most)
        while low < high:
            middle = (low + high + 1) // 2
            cost = used + self._of_new(middle, planned=asked, on_demand=on_demand)
            if cost <= self._budget + _ROUNDING:
                low = middle
            else:
                high = middle - 1
        return low

    # -- the limit --------------------------------------------------------------------------------

    def _needs_list(self, prepared: Preparation) -> bool:
        # The one case in which a start waits for it: the alternative is to refuse it.
        return self._budget < math.inf and bool(self._unpriced(prepared))

    def _unpriced(self, prepared: Preparation) -> list[str]:
        """Return the places whose price is not known, in words."""
        places = [(prepared.schedulers, False), (prepared.workers, True)]
        return [
            str(location)
            for placement, worker in places
            for location in placement.locations
            if self._ceiling(self._charge(prepared, location, worker=worker)) == math.inf
        ]

    def _heed_limit(self, prepared: Preparation) -> None:
        """Leave out the places that are too dear, or whose price is not known.

        Raises
        ------
        CostLimitExceeded
            If none is left.
        """
        if self._budget == math.inf:
            return
        unknown = list(dict.fromkeys(self._unpriced(prepared)))
        placements = (prepared.schedulers, prepared.workers)
        for placement, worker in zip(placements, (False, True), strict=True):
            self._keep_affordable(prepared, placement, unknown, worker=worker)
        if not self.settings.allow_cross_zone:
            first, second = ({each.zone for each in one.locations} for one in placements)
            if not first & second:
                raise CostLimitExceeded(
                    f"{self._setting}: in no zone both a scheduler and workers could be made at "
                    "known prices within it. Raise the limit, choose other machine types, or set "
                    "allow_cross_zone=True.",
                    limit=self._budget,
                    fits=0,
                )
            for placement in placements:
                kept = [each for each in placement.locations if each.zone in first & second]
                placement.locations = tuple(kept)
        if unknown:
            why = f"max_hourly_cost: {', '.join(unknown)} left out, whose price is not known"
            self.events.note(self.name, "cost limit", why)

    def _keep_affordable(
        self, prepared: Preparation, placement: Placement, unknown: list[str], *, worker: bool
    ) -> None:
        prices = {
            location: self._ceiling(self._charge(prepared, location, worker=worker))
            for location in placement.locations
        }
        kept = tuple(each for each in placement.locations if prices[each] <= self._budget)
        if not kept:
            cheapest = min(prices.values())
            role = "worker" if worker else "scheduler"
            if cheapest == math.inf:
                raise self._unknown_price(unknown)
            raise CostLimitExceeded(
                f"{self._setting}: the machine of a {role} alone costs "
                f"{render_dollars(cheapest)} an hour by list prices. Raise the limit, or choose a "
                "cheaper machine_type.",
                limit=self._budget,
                fits=0,
            )
        placement.locations = kept

    @property
    def _setting(self) -> str:
        return f"max_hourly_cost = {self._budget:g}"

    def _unknown_price(self, places: Collection[str]) -> CostLimitExceeded:
        if self._book.tariffs[0].live:
            remedy = "Google's price list does not tell it in words that are known here"
        elif self.settings.live_prices:
            remedy = (
                "it is not in the table that comes with this package, and Google's price list "
                "could not be read (see permissions: the Cloud Billing API has to be enabled)"
            )
        else:
            remedy = (
                "it is not in the table that comes with this package; live_prices=True reads "
                "Google's price list"
            )
        return CostLimitExceeded(
            f"{self._setting}: what {', '.join(places)} costs is not known, so the limit could not "
            f"be kept: {remedy}. Choose another machine_type, or set no limit.",
            limit=self._budget,
        )

    def _within_limit(self, n: int, machines: int, *, adapting: bool) -> int:
        """Return how many of the machines that are wanted for workers the limit allows.

        Raises
        ------
        CostLimitExceeded
            If they are too many, and somebody who asks for a number is to know.
        """
        if self._budget == math.inf or self._prepared is None or self._fleet is None:
            return machines
        asked = [name for name in list(self.worker_spec) if name in self._fleet.members]
        new = machines - len(asked)
        if new <= 0:
            return machines
        used = self._counted({self._scheduler.name, *asked})
        on_demand = sum(name in self._on_demand for name in asked)
        room = self._room(new, used, asked=len(asked), on_demand=on_demand)
        if room == new:
            self._said_of_budget = ""
            return machines
        fits = len(asked) + room
        if adapting:
            self._tell_of_limit(fits)
            return max(fits, min(machines, len(self.worker_spec)))
        each = self._price_at(self._choose_location())
        if each == math.inf:
            raise self._unknown_price([str(self._choose_location())])
        processes = self._prepared.blueprint.processes
        workers = fits * processes + self._local_count
        raise CostLimitExceeded(
            f"scale({n}): {machines} machines for workers, at {render_dollars(each)} an hour each "
            f"by list prices, and the scheduler's would cost more than {self._setting} allows. "
            f"{workers} {'worker fits' if workers == 1 else 'workers fit'} in; raise the limit to "
            "scale further.",
            limit=self._budget,
            fits=workers,
        )

    def _check_first(self, prepared: Preparation, machines: int) -> None:
        """Refuse a start whose machines are too many, before the first of them."""
        scheduler = self._ceiling(self._charge(prepared, self._scheduler.location, worker=False))
        cost = scheduler + self._of_new(machines, planned=0, on_demand=0)
        if self._budget < math.inf and cost > self._budget + _ROUNDING:
            fits = self._room(machines, scheduler, asked=0, on_demand=0)
            workers = fits * prepared.blueprint.processes + self._local_count
            raise CostLimitExceeded(
                f"{self._setting}: a scheduler and {machines} machines for workers would cost "
                f"{render_dollars(cost)} an hour by list prices. {workers} "
                f"{'worker fits' if workers == 1 else 'workers fit'} in; ask for fewer "
                "(n_workers), raise the limit, or choose a cheaper machine_type.",
                limit=self._budget,
                fits=workers,
            )

    def _fill(self) -> None:
        wanted = self._target
        if self._budget < math.inf and self._prepared is not None and self._fleet is not None:
            new = wanted - len(self.worker_spec) + self._unasked()
            asked = len(self.worker_spec) - self._unasked()
            on_demand = self._count_on_demand()
            room = self._room(new, self._counted(), asked=asked, on_demand=on_demand)
            if room < new:
                self._tell_of_limit(asked + room)
                self._make_room_later()
                # For the moment only; what is wanted stays as it is.
                self._target_machines = max(len(self.worker_spec), asked + room)
        try:
            super()._fill()
        finally:
            self._target_machines = wanted

    def _add_worker(self, name: str, spec: dict[str, Any]) -> None:
        fleet = self._fleet
        if self._budget < math.inf and fleet is not None and name not in fleet.members:
            location = self._choose_location()
            if self._counted() + self._price_at(location) > self._budget + _ROUNDING:
                # Of what was planned, something has become dearer.
                with self._plan_lock:
                    self.worker_spec.pop(name, None)
                self._tell_of_limit(len(self.worker_spec) - self._unasked())
                self._make_room_later()
                return
        super()._add_worker(name, spec)

    def _make_room_later(self) -> None:
        """Try again after a while; scale() may call this from another thread."""
        if self.loop is not None:
            self.loop.add_callback(self._restore_in, ROOM_AGAIN)

    def _tell_of_limit(self, fits: int) -> None:
        why = f"{self._setting} has room for {fits} of the machines that are wanted for workers"
        if why != self._said_of_budget:
            self._said_of_budget = why
            self.events.note(self.name, "cost limit", why)
