"""The account of a cluster: which machine ran how long, and what that cost.

Owns the times, by the clock on the wall: machines go on costing while the client's computer
sleeps. What an hour costs is asked of others whenever the account is looked at, so that a price
that becomes known later counts for the hours before too.

Compute Engine charges machines by the second from when they start until they have stopped, and for
a minute at least: https://cloud.google.com/compute/vm-instance-pricing#billingmodel
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Final

from dask_gce.cost.charges import Charge, Price, Pricing, add_up, render_dollars

__all__ = ["Cost", "Spending", "render_cost", "render_duration"]

#: Seconds that are charged for at least.
SHORTEST: Final = 60.0


@dataclass(frozen=True)
class Cost:
    """What a cluster has cost so far.

    Parameters
    ----------
    machines : int
        How many machines run.
    hourly : Price
        What an hour of these costs.
    machine_hours : float
        Hours of all machines, those that are gone too.
    spent : Price
        What these hours cost.
    spot_saved : float or None
        US dollars that they would have cost more without Spot; None if there was no Spot machine,
        or if what one costs, or would have, is not known.
    seconds : float
        How long ago the first machine began to run, or up to the end of the last one.
    """

    machines: int
    hourly: Price
    machine_hours: float
    spent: Price
    spot_saved: float | None
    seconds: float

    @property
    def complete(self) -> bool:
        """Whether the price of every part of every machine is known."""
        return self.spent.complete

    def __str__(self) -> str:
        return render_cost(self)

    def to_json(self) -> dict[str, Any]:
        """Return it in the types of JSON.

        Returns
        -------
        dict
            Keys like the fields; prices as `Price` has them.
        """
        return {
            "machines": self.machines,
            "hourly": self.hourly.to_json(),
            "machine_hours": round(self.machine_hours, 6),
            "spent": self.spent.to_json(),
            "spot_saved": None if self.spot_saved is None else round(self.spot_saved, 6),
            "seconds": round(self.seconds, 3),
        }


@dataclass(slots=True)
class _Entry:
    charge: Charge
    began: float
    ended: float | None = None

    def hours(self, now: float) -> float:
        """Return for how long it is charged."""
        end = now if self.ended is None else self.ended
        return max(end - self.began, SHORTEST) / 3600


class Spending:
    """Which machines ran when.

    Parameters
    ----------
    clock : callable
        Returns seconds since 1970.

    Examples
    --------
    >>> now = 0.0
    >>> spending = Spending(clock=lambda: now)
    >>> spending.begin("vm", Charge("e2-small", "us-central1-a"))
    >>> now = 1800.0
    >>> spending.cost(lambda charge: Price(1.0)).spent.amount
    0.5
    """

    def __init__(self, clock: Callable[[], float] = time.time) -> None:
        self._clock = clock
        self._entries: dict[str, _Entry] = {}

    def begin(self, name: str, charge: Charge, since: float | None = None) -> None:
        """Take note of a machine that runs; again of the same one, nothing.

        Parameters
        ----------
        name : str
            The machine.
        charge : Charge
            What is charged for of it.
        since : float or None
            Since when it runs, in seconds since 1970; None for now.
        """
        if name not in self._entries:
            now = self._clock()
            # Another computer's clock may be ahead.
            self._entries[name] = _Entry(charge, now if since is None else min(since, now))

    def end(self, name: str, at: float | None = None) -> None:
        """Take note that a machine runs no more.

        Parameters
        ----------
        name : str
            The machine; of one that was never seen running there is nothing to note.
        at : float or None
            Since when, in seconds since 1970; None for now.
        """
        entry = self._entries.get(name)
        if entry is not None and entry.ended is None:
            entry.ended = self._clock() if at is None else at

    def end_all(self, at: float | None = None) -> None:
        """Take note that no machine runs any more.

        Parameters
        ----------
        at : float or None
            Since when, in seconds since 1970, whatever was noted before: whose computer has slept
            sees late what was over long ago. None for now.
        """
        for name, entry in self._entries.items():
            self.end(name)
            if at is not None and entry.ended is not None:
                entry.ended = max(entry.began, min(entry.ended, at))

    def cost(self, pricing: Pricing) -> Cost:
        """Add it up.

        Parameters
        ----------
        pricing : callable
            Tells what an hour of a machine costs.

        Returns
        -------
        Cost
            What all machines have cost.
        """
        now = self._clock()
        entries = list(self._entries.values())
        hours: dict[Charge, float] = {}
        for each in entries:
            hours[each.charge] = hours.get(each.charge, 0.0) + each.hours(now)
        running = [each for each in entries if each.ended is None]
        return Cost(
            machines=len(running),
            hourly=add_up(pricing(each.charge) for each in running),
            machine_hours=sum(hours.values()),
            spent=add_up(_times(pricing(charge), count) for charge, count in hours.items()),
            spot_saved=_saved(hours, pricing),
            seconds=_span(entries, now),
        )


def _times(price: Price, count: float) -> Price:
    return price if price.amount is None else replace(price, amount=price.amount * count)


def _saved(hours: dict[Charge, float], price_of: Pricing) -> float | None:
    saved = []
    for charge, count in hours.items():
        if charge.spot:
            less, more = price_of(charge).amount, price_of(replace(charge, spot=False)).amount
            if less is None or more is None:
                return None
            saved.append((more - less) * count)
    return sum(saved) if saved else None


def _span(entries: list[_Entry], now: float) -> float:
    if not entries:
        return 0.0
    ends = [now if each.ended is None else each.ended for each in entries]
    return max(ends) - min(each.began for each in entries)


def render_cost(cost: Cost) -> str:
    """Say in a sentence what a cluster has cost.

    Parameters
    ----------
    cost : Cost
        What it has cost.

    Returns
    -------
    str
        The machine hours, and as much of the cost as is known.
    """
    spent = cost.spent
    text = f"{cost.machine_hours:.1f} machine hours"
    if cost.machine_hours < 1:
        text = f"{cost.machine_hours * 60:.0f} machine minutes"
    text += f" in {render_duration(cost.seconds)}"
    if spent.amount is None:
        text += ", cost unknown"
    else:
        text += f", {spent} by list prices of {spent.as_of}"
    if spent.missing:
        text += f" (no price known of {', '.join(spent.missing)})"
    if cost.spot_saved is not None and spent.amount is not None:
        text += f"; Spot saved about {render_dollars(cost.spot_saved)}"
    return text


def render_duration(seconds: float) -> str:
    """Say how long something took.

    Parameters
    ----------
    seconds : float
        Seconds.

    Returns
    -------
    str
        In its two largest units.

    Examples
    --------
    >>> [render_duration(each) for each in (7, 61, 3725, 200000)]
    ['7 s', '1 min 1 s', '1 h 2 min', '2 d 7 h']
    """
    units = ((86400, "d"), (3600, "h"), (60, "min"), (1, "s"))
    left = round(seconds)
    parts = []
    for size, unit in units:
        count, left = divmod(left, size)
        parts.append((count, unit))
    while len(parts) > 1 and not parts[0][0]:
        del parts[0]
    return " ".join(f"{count} {unit}" for count, unit in parts[:2] if count) or "0 s"
