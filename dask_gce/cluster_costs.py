"""What a cluster costs, as far as its machines tell, without connecting to it.

Owns which of a machine's times count. The machines are those of `cluster_records`; those that are
gone have left nothing behind that could be asked.
"""

from __future__ import annotations

from datetime import datetime, timezone
from typing import Any

from dask_gce.cluster_records import ClusterRecord, Machine
from dask_gce.cost.charges import Charge, PriceBook
from dask_gce.cost.spending import Cost, Spending

__all__ = ["cost_of", "machine_costs", "to_json"]


def cost_of(record: ClusterRecord, book: PriceBook, *, now: datetime | None = None) -> Cost:
    """Return what the machines of a cluster have cost since they were last started.

    Parameters
    ----------
    record : ClusterRecord
        The cluster.
    book : PriceBook
        The prices.
    now : datetime.datetime or None
        The time, with its zone; None for the clock's.

    Returns
    -------
    Cost
        What they have cost; without the machines that are gone.
    """
    return _account(record.machines, now).cost(book.price)


def machine_costs(
    record: ClusterRecord, book: PriceBook, *, now: datetime | None = None
) -> list[tuple[Machine, Cost]]:
    """Return what each machine has cost.

    Parameters
    ----------
    record : ClusterRecord
        The cluster.
    book : PriceBook
        The prices.
    now : datetime.datetime or None
        The time, with its zone; None for the clock's.

    Returns
    -------
    list of tuple
        The machines, the scheduler first, each with what it has cost.
    """
    return [(each, _account((each,), now).cost(book.price)) for each in record.machines]


def _account(machines: tuple[Machine, ...], now: datetime | None) -> Spending:
    moment = (now or datetime.now(timezone.utc)).timestamp()
    spending = Spending(clock=lambda: moment)
    for each in machines:
        since = each.started or each.created
        if each.on or (each.stopped is not None and each.stopped > since):
            spending.begin(each.name, _charge(each), since.timestamp())
        if not each.on and each.stopped is not None:
            spending.end(each.name, each.stopped.timestamp())
    return spending


def _charge(machine: Machine) -> Charge:
    if machine.charge is not None:
        return machine.charge
    return Charge(machine.machine_type, machine.zone, spot=machine.spot)


def to_json(record: ClusterRecord, book: PriceBook, *, now: datetime | None = None) -> Any:
    """Return what a cluster costs in the types of JSON.

    Parameters
    ----------
    record : ClusterRecord
        The cluster.
    book : PriceBook
        The prices.
    now : datetime.datetime or None
        The time, with its zone; None for the clock's.

    Returns
    -------
    dict
        The cluster's name, id and project, ``cost`` as `Cost` has it, and each of ``machines``.
    """
    return {
        "name": record.name,
        "id": record.identity,
        "project": record.project,
        "cost": cost_of(record, book, now=now).to_json(),
        "machines": [
            {
                "name": machine.name,
                "role": machine.role,
                "machine_type": machine.machine_type,
                "zone": machine.zone,
                "spot": machine.spot,
                "machine_hours": round(cost.machine_hours, 6),
                "hourly": book.price(_charge(machine)).to_json(),
                "spent": cost.spent.to_json() if cost.machine_hours else None,
            }
            for machine, cost in machine_costs(record, book, now=now)
        ],
    }
