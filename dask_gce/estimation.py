"""What a cluster would cost: told from its settings alone, without asking Google anything.

Owns which machines settings ask for. Prices are those that are known on this computer: Google's
list if it was read within the last day, otherwise the table that comes with the package.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from dask_gce.cost.charges import Charge, Price, PriceBook, add_up, changed_by, default_disk
from dask_gce.mix import Mix
from dask_gce.price_list import kept_tariff
from dask_gce.prices import TABLE
from dask_gce.settings import Settings

__all__ = ["Estimate", "estimate_cost"]


@dataclass(frozen=True)
class Estimate:
    """What an hour of a cluster would cost.

    Parameters
    ----------
    scheduler : Price
        US dollars an hour for the scheduler's machine.
    worker : Price
        The same for one of the workers' machines, a Spot one if there is to be one.
    machines : int
        How many machines of workers there are.
    hourly : Price
        The same for all machines together.
    """

    scheduler: Price
    worker: Price
    machines: int
    hourly: Price

    def __str__(self) -> str:
        if self.hourly.amount is None:
            return f"unknown: no price is known of {', '.join(self.hourly.missing)}"
        without = f", without {', '.join(self.hourly.missing)}" if self.hourly.missing else ""
        return (
            f"{self.hourly} an hour for 1 + {self.machines} machines "
            f"(list prices of {self.hourly.as_of}{without})"
        )


def estimate_cost(n_workers: int | None = None, **settings: Any) -> Estimate:
    """Tell what an hour of a cluster would cost, by list prices. Nothing is made and nobody asked.

    It is that of the first zone and machine types that are named. Traffic and discounts are not
    part of it.

    Parameters
    ----------
    n_workers : int, optional
        How many workers.
    **settings
        What `GCECluster` takes; what is not given comes from the configuration.

    Returns
    -------
    Estimate
        What it would cost.

    Raises
    ------
    SettingsError
        If a setting is unknown or impossible.

    Examples
    --------
    >>> from dask_gce import estimate_cost
    >>> print(estimate_cost(n_workers=10, machine_type="e2-standard-4", zone="us-central1-a",
    ...                     live_prices=False))
    about $1.55 an hour for 1 + 10 machines (list prices of 2026-11-21)
    """
    loaded = Settings.load(n_workers=n_workers, **settings)
    kept = kept_tariff(loaded)
    book = PriceBook((TABLE,) if kept is None else (kept, TABLE))
    # Workers on the scheduler's machine are there anyway.
    remote = max(0, loaded.n_workers - loaded.workers_on_scheduler)
    machines = math.ceil(remote / loaded.processes)
    mix = Mix(bool(loaded.spot), loaded.spot_fraction, loaded.min_on_demand)
    on_demand = mix.on_demand(machines)
    scheduler = book.price(_charge(loaded, worker=False, spot=False))
    usual = book.price(_charge(loaded, worker=True, spot=False))
    spot = book.price(_charge(loaded, worker=True, spot=True))
    workers = [usual] * on_demand + [spot] * (machines - on_demand)
    return Estimate(
        scheduler=scheduler,
        worker=spot if machines > on_demand else usual,
        machines=machines,
        hourly=add_up([scheduler, *workers]),
    )


def _charge(settings: Settings, *, worker: bool, spot: bool) -> Charge:
    types = settings.worker_machine_type if worker else settings.scheduler_machine_type
    # With a single node the scheduler's machine is the workers'.
    of_workers = worker or settings.single_node
    return Charge(
        types[0],
        settings.zone[0],
        spot=spot,
        gpu_type=(settings.worker_accelerator_type or "") if of_workers else "",
        gpus=settings.worker_accelerator_count if of_workers else 0,
        local_ssds=settings.local_ssds if of_workers else 0,
        disk_type=settings.boot_disk_type or default_disk(types[0]),
        disk_size=settings.boot_disk_size,
        address=settings.external_ip,
        changed=changed_by(settings.instance_overrides),
    )
