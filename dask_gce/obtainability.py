"""Where Spot machines are most likely to be had, and at what price: the order of the locations.

Owns the questions to Compute Engine's advice, and the order that follows from its answers. Advice
is about Spot machines only: for those on demand nobody tells beforehand, and the order is that of
the settings. Which locations there are is found out in `preparation`.

Sources: `View the availability of Spot VMs
<https://docs.cloud.google.com/compute/docs/instances/view-vm-availability>`_ and `View the
preemption rate and pricing
<https://docs.cloud.google.com/compute/docs/instances/view-spot-preemption-price>`_.
"""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import Coroutine, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from dask_gce.compute import Compute
from dask_gce.errors import GCEError
from dask_gce.names import region_of
from dask_gce.placement import Location
from dask_gce.settings import Settings

__all__ = [
    "NO_ADVICE",
    "Advice",
    "Outlook",
    "ask_for_advice",
    "order",
    "wants_advice",
    "zones_like",
]

logger = logging.getLogger(__name__)

#: Seconds for all questions together. A cluster that takes a minute to start bears them, the more
#: so as other look-ups go on meanwhile; more would be felt.
ADVICE_WITHIN: Final = 5.0

#: How many places are asked about, a call each: the first ones, which the user prefers.
MOST_PLACES: Final = 24

#: Machines that one question may be about; Compute Engine knows no more.
MOST_MACHINES: Final = 1000

#: From which obtainability on it is high, and medium. Google's scores have one decimal place, and
#: its bands are 0.7 to 1.0, 0.4 to 0.6 and 0.0 to 0.3.
HIGH, MEDIUM = 0.65, 0.35

#: A machine that is expected to last for no more seconds has hardly booted when it is taken away.
FLEETING: Final = 60.0

_BANDS: Final = ("high", "medium", "low")


@dataclass(frozen=True)
class Outlook:
    """What is told of Spot machines of one type in one zone.

    Parameters
    ----------
    obtainability : float
        How likely it is that as many as are wanted can be had, from 0 to 1.
    uptime : float
        Seconds for which most of them are expected to run; infinity when that is not told.

    Examples
    --------
    >>> Outlook(0.9).band, Outlook(0.5).band, Outlook(0.9, uptime=60).band
    ('high', 'medium', 'low')
    """

    obtainability: float
    uptime: float = float("inf")

    @property
    def band(self) -> str:
        """How likely it is in a word: a score that wavers does not change the order."""
        if self.uptime <= FLEETING or self.obtainability < MEDIUM:
            return "low"
        return "high" if self.obtainability >= HIGH else "medium"


@dataclass(frozen=True)
class Advice:
    """What Compute Engine has told.

    Parameters
    ----------
    outlooks : mapping
        By zone and machine type.
    prices : mapping
        US dollars for an hour of a Spot machine, by region and machine type.
    lacking : str
        Why some answers are missing, or all; empty when none is.
    asked : bool
        Whether there was anything to ask.
    """

    outlooks: Mapping[tuple[str, str], Outlook] = field(default_factory=dict)
    prices: Mapping[tuple[str, str], float] = field(default_factory=dict)
    lacking: str = ""
    asked: bool = True


#: Where there is nothing to choose.
NO_ADVICE: Final = Advice(asked=False)


def wants_advice(settings: Settings) -> bool:
    """Tell whether there is anything to choose that Compute Engine has advice on.

    Parameters
    ----------
    settings : Settings
        The cluster's settings.

    Returns
    -------
    bool
        Whether it is asked.
    """
    places = len(settings.zone) * len(settings.worker_machine_type)
    spot = bool(settings.spot) and settings.spot_fraction > 0
    return spot and places > 1


async def ask_for_advice(
    compute: Compute, settings: Settings, *, within: float | None = None
) -> Advice:
    """Ask where Spot machines are to be had, once for each zone and type, and what they cost.

    Parameters
    ----------
    compute : Compute
        The Compute API.
    settings : Settings
        The cluster's settings.
    within : float or None
        Seconds after which what has not been answered is left alone; None for the usual.

    Returns
    -------
    Advice
        What came in time. It may be nothing: the method may be absent or not allowed, the service
        slow.
    """
    if not wants_advice(settings):
        return NO_ADVICE
    within = ADVICE_WITHIN if within is None else within
    size = min(max(1, settings.n_workers), MOST_MACHINES)
    places = [(zone, name) for zone in settings.zone for name in settings.worker_machine_type]
    places = places[:MOST_PLACES]
    outlooks: dict[tuple[str, str], Outlook] = {}
    prices: dict[tuple[str, str], float] = {}
    failures: list[str] = []

    async def look(zone: str, name: str) -> None:
        body = _capacity_question(settings, zone, name, size)
        answer = await compute.advise_capacity(region_of(zone), body, within=within)
        if (found := parse_outlook(answer)) is not None:
            outlooks[zone, name] = found

    async def price(region: str, name: str) -> None:
        body = _price_question(settings, name)
        answer = await compute.read_capacity_history(region, body, within=within)
        if (found := parse_price(answer)) is not None:
            prices[region, name] = found

    async def tolerate(question: Coroutine[Any, Any, None]) -> None:
        try:
            await question
        except GCEError as error:
            failures.append(str(error).partition("\n")[0])

    # Everybody waits for the library while it is imported; the time counts from then on.
    await compute.open()
    # Prices are a region's, and only compared between types.
    regions = dict.fromkeys((region_of(zone), name) for zone, name in places)
    tasks = [asyncio.ensure_future(tolerate(look(*place))) for place in places]
    tasks += [asyncio.ensure_future(tolerate(price(*each))) for each in regions]
    try:
        _, late = await asyncio.wait(tasks, timeout=within)
    finally:
        for task in tasks:
            task.cancel()
    await asyncio.wait(tasks)
    for task in tasks:
        if not task.cancelled():
            task.result()
    lacking = failures[0] if failures else ""
    if late:
        lacking = f"{len(late)} of {len(tasks)} questions were not answered within {within:g} s"
    if lacking:
        logger.info("Advice on Spot machines is incomplete: %s", lacking)
    return Advice(dict(outlooks), dict(prices), lacking)


def _capacity_question(settings: Settings, zone: str, name: str, size: int) -> dict[str, Any]:
    return {
        "instanceProperties": {"scheduling": {"provisioningModel": "SPOT"}},
        # One type at a time: a score of several says nothing of each.
        "instanceFlexibilityPolicy": {
            "instanceSelections": {"workers": {"machineTypes": [name], **_extras(settings)}}
        },
        "distributionPolicy": {
            "targetShape": "ANY_SINGLE_ZONE",
            "zones": [{"zone": f"zones/{zone}"}],
        },
        "size": size,
    }


def _price_question(settings: Settings, name: str) -> dict[str, Any]:
    return {
        "types": ["PRICE"],
        "instanceProperties": {
            "machineType": name,
            "scheduling": {"provisioningModel": "SPOT"},
            **_extras(settings),
        },
    }


def _extras(settings: Settings) -> dict[str, Any]:
    extras: dict[str, Any] = {}
    if settings.worker_accelerator_type:
        extras["guestAccelerators"] = [
            {
                "acceleratorType": settings.worker_accelerator_type,
                "acceleratorCount": settings.worker_accelerator_count,
            }
        ]
    if settings.local_ssds:
        extras["disks"] = [{"type": "SCRATCH"}] * settings.local_ssds
    return extras


def parse_outlook(answer: Mapping[str, Any]) -> Outlook | None:
    """Read an answer of ``advice.capacity``.

    Parameters
    ----------
    answer : mapping
        A ``CapacityAdviceResponse``.

    Returns
    -------
    Outlook or None
        What it tells; None if that is nothing.

    Examples
    --------
    >>> parse_outlook({"recommendations": [
    ...     {"scores": {"obtainability": 0.9, "estimatedUptime": "3600s"}}]})
    Outlook(obtainability=0.9, uptime=3600.0)
    >>> parse_outlook({}) is None
    True
    """
    scores = next((each.get("scores") for each in answer.get("recommendations") or ()), None) or {}
    try:
        uptime = re.fullmatch(r"([0-9.]+)s", str(scores.get("estimatedUptime", "")))
        return Outlook(float(scores["obtainability"]), float(uptime[1]) if uptime else float("inf"))
    except (KeyError, TypeError, ValueError):
        return None


def parse_price(answer: Mapping[str, Any]) -> float | None:
    """Read the newest price of an answer of ``advice.capacityHistory``.

    Parameters
    ----------
    answer : mapping
        A ``CapacityHistoryResponse``.

    Returns
    -------
    float or None
        US dollars an hour; None if none is told.

    Examples
    --------
    >>> parse_price({"priceHistory": [
    ...     {"interval": {"startTime": "2026-05-11T07:00:00Z"},
    ...      "listPrice": {"currencyCode": "USD", "units": "1", "nanos": 250000000}},
    ...     {"interval": {"startTime": "2026-04-27T07:00:00Z"},
    ...      "listPrice": {"currencyCode": "USD", "nanos": 478720000}}]})
    1.25
    """
    records = [
        each
        for each in answer.get("priceHistory") or ()
        if (each.get("listPrice") or {}).get("currencyCode") == "USD"
    ]
    try:
        newest = max(records, key=lambda each: str((each.get("interval") or {}).get("startTime")))
        money = newest["listPrice"]
        price = int(money.get("units", 0)) + int(money.get("nanos", 0)) / 10**9
    except (KeyError, TypeError, ValueError):
        return None
    return price if price > 0 else None


def order(locations: Sequence[Location], advice: Advice) -> tuple[list[Location], str]:
    """Put locations in the order in which they are tried.

    They go by how likely Spot machines are to be had there, in three bands, then by the price of a
    GPU or of a vCPU, and then as they were. What nothing is told of keeps its place. Those on
    demand that take the place of Spot machines are tried in the same order.

    Parameters
    ----------
    locations : sequence of Location
        The locations in the order of the settings.
    advice : Advice
        What is told of them.

    Returns
    -------
    locations : list of Location
        All of them.
    why : str
        Which order that is and why, in words; empty where there was nothing to ask.
    """
    if not advice.asked:
        return list(locations), ""
    known = [each for each in locations if _key(each) in advice.outlooks]
    if not known:
        return list(locations), f"as given: no advice ({advice.lacking or 'nothing was told'})"
    bands = {each: _BANDS.index(advice.outlooks[_key(each)].band) for each in known}
    prices = {each: _unit_price(each, advice) for each in known}
    # A price that is not known is neither high nor low: those of its band are not compared.
    unpriced = {bands[each] for each in known if prices[each] is None}

    def rank(location: Location) -> tuple[int, float]:
        band = bands[location]
        return band, 0.0 if band in unpriced else prices[location] or 0.0

    ranked = iter(sorted(known, key=rank))
    ordered = [next(ranked) if each in bands else each for each in locations]
    told = ", ".join(_describe(each, advice) for each in ordered)
    why = "by obtainability and price" if ordered != list(locations) else "as given, which is best"
    rest = f"; {advice.lacking}" if advice.lacking else ""
    return ordered, f"{why}: {told}{rest}"


def zones_like(locations: Sequence[Location], leading: Sequence[Location]) -> list[Location]:
    """Sort locations by their zones, those first that come first among others.

    Parameters
    ----------
    locations : sequence of Location
        What is sorted; those of one zone stay in their order, as do zones that lead nowhere.
    leading : sequence of Location
        The others.

    Returns
    -------
    list of Location
        All of them.
    """
    zones = list(dict.fromkeys(each.zone for each in leading))
    return sorted(
        locations, key=lambda each: zones.index(each.zone) if each.zone in zones else len(zones)
    )


def _key(location: Location) -> tuple[str, str]:
    return location.zone, location.machine_type


def _unit_price(location: Location, advice: Advice) -> float | None:
    """Return what an hour of a GPU costs, or of a vCPU: types of a list may differ in size."""
    price = advice.prices.get((location.region, location.machine_type))
    shape = location.shape
    return None if price is None else price / (shape.gpus or shape.cpus)


def _describe(location: Location, advice: Advice) -> str:
    where = f"{location.machine_type} in {location.zone}"
    outlook = advice.outlooks.get(_key(location))
    if outlook is None:
        return f"{where} (not told)"
    price = advice.prices.get((location.region, location.machine_type))
    cost = "" if price is None else f", {price:.3f} USD/h"
    return f"{where} ({outlook.band} {outlook.obtainability:g}{cost})"
