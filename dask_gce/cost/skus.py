"""Google's price list on the wire: SKUs become a tariff.

Owns which SKU is the price of what. A SKU does not name a machine type: it says in words what it
is, and these words are taken only where they match in full. Commitments, reservations, sole
tenancy, premiums and whatever else there may be thus have no price here, rather than a wrong one.

Sources: `services.skus.list
<https://cloud.google.com/billing/docs/reference/rest/v1/services.skus/list>`_ and Google's list of
`SKUs of Compute Engine <https://cloud.google.com/skus>`_.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import date
from typing import Any, Final

from dask_gce.prices import HOURS_PER_MONTH, Item, Tariff

__all__ = [
    "COMPUTE_ENGINE",
    "SKU_FIELDS",
    "dump_tariff",
    "parse_skus",
    "restore_tariff",
    "select_skus",
]

#: Compute Engine's ID as a service that is billed.
COMPUTE_ENGINE: Final = "6F81-5844-456A"

#: What is asked of each SKU, which is a third of it.
SKU_FIELDS: Final = (
    "skus(description,category(usageType),serviceRegions,"
    "pricingInfo(pricingExpression(usageUnit,tieredRates))),nextPageToken"
)

#: How the list calls the series.
_SERIES: Final = {
    "A2 Instance": "a2",
    "C2D AMD Instance": "c2d",
    "C3 Instance": "c3",
    "C3D Instance": "c3d",
    "C4A Arm Instance": "c4a",
    "Compute optimized": "c2",
    "Custom Instance": "n1-custom",
    "E2 Custom Instance": "e2-custom",
    "E2 Instance": "e2",
    "G2 Instance": "g2",
    "N1 Predefined Instance": "n1",
    "N2 Custom Instance": "n2-custom",
    "N2 Instance": "n2",
    "N2D AMD Custom Instance": "n2d-custom",
    "N2D AMD Instance": "n2d",
    "N4 Instance": "n4",
    "T2A Arm Instance": "t2a",
    "T2D AMD Instance": "t2d",
}
_GPUS: Final = {
    "Nvidia L4": "nvidia-l4",
    "Nvidia Tesla A100": "nvidia-tesla-a100",
    "Nvidia Tesla P100": "nvidia-tesla-p100",
    "Nvidia Tesla P4": "nvidia-tesla-p4",
    "Nvidia Tesla T4": "nvidia-tesla-t4",
    "Nvidia Tesla V100": "nvidia-tesla-v100",
}
_DISKS: Final = {
    "Balanced PD Capacity": "pd-balanced",
    "SSD backed PD Capacity": "pd-ssd",
    "Storage PD Capacity": "pd-standard",
}


def _any_of(names: Iterable[str]) -> str:
    return "|".join(map(re.escape, names))


_MACHINE: Final = re.compile(
    rf"(?P<spot>Spot Preemptible )?(?P<series>{_any_of(_SERIES)}) (?P<part>Core|Ram) running in .+"
)
_GPU: Final = re.compile(
    rf"(?P<type>{_any_of(_GPUS)}) GPU(?P<spot> attached to Spot Preemptible VMs)? running in .+"
)
_DISK: Final = re.compile(rf"(?P<type>{_any_of(_DISKS)})(?: in .+)?")
_LOCAL_SSD: Final = re.compile(
    r"SSD backed Local Storage(?P<spot> attached to Spot Preemptible VMs)?(?: in .+)?"
)
_ADDRESS: Final = re.compile(r"External IP Charge on a (?:Standard|(?P<spot>Spot Preemptible)) VM")

#: Hours in the units of the list.
_UNITS: Final = {"h": 1.0, "GiBy.h": 1.0, "GiBy.mo": float(HOURS_PER_MONTH)}


def select_skus(skus: Iterable[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Return the SKUs that `parse_skus` makes something of: one in some ten.

    Parameters
    ----------
    skus : iterable of mapping
        ``Sku`` resources.

    Returns
    -------
    list of mapping
        Those of them.
    """
    return [sku for sku in skus if next(_items(sku), None) is not None]


def parse_skus(skus: Iterable[Mapping[str, Any]]) -> dict[Item, float]:
    """Read prices from SKUs.

    Parameters
    ----------
    skus : iterable of mapping
        ``Sku`` resources of Compute Engine, with at least `SKU_FIELDS`.

    Returns
    -------
    dict of Item to float
        What each costs an hour, in US dollars. Of what two SKUs tell different prices, none.
    """
    rates: dict[Item, float] = {}
    doubtful: set[Item] = set()
    for sku in skus:
        price = _hourly(sku)
        for item in _items(sku) if price is not None else ():
            if rates.setdefault(item, price or 0.0) != price:
                doubtful.add(item)
    return {item: rate for item, rate in rates.items() if item not in doubtful}


def _items(sku: Mapping[str, Any]) -> Iterator[Item]:
    """Yield what a SKU is the price of, once for each region."""
    text = str(sku.get("description", ""))
    usage = (sku.get("category") or {}).get("usageType")
    if match := _MACHINE.fullmatch(text):
        kind, name = "vcpu" if match["part"] == "Core" else "gb", _SERIES[match["series"]]
    elif match := _GPU.fullmatch(text):
        kind, name = "gpu", _GPUS[match["type"]]
    elif match := _DISK.fullmatch(text):
        kind, name = "disk", _DISKS[match["type"]]
    elif match := _LOCAL_SSD.fullmatch(text):
        kind, name = "ssd", ""
    elif match := _ADDRESS.fullmatch(text):
        kind, name = "address", ""
    else:
        return
    spot = bool(match.groupdict().get("spot"))
    # That of local SSDs and of addresses under Spot machines is on demand in parts of the list.
    allowed = {"OnDemand", "Preemptible"} if spot and kind in ("ssd", "address") else set()
    if usage not in allowed | {"Preemptible" if spot else "OnDemand"}:
        return
    for region in sku.get("serviceRegions") or ():
        where = "" if region == "global" else str(region)
        yield Item(kind, name, where, spot)
        if kind == "disk":
            # A disk costs the same under a Spot machine.
            yield Item(kind, name, where, True)


def _hourly(sku: Mapping[str, Any]) -> float | None:
    """Return what a unit costs an hour, beyond what each account has for nothing."""
    infos: Sequence[Any] = sku.get("pricingInfo") or [{}]
    expression = infos[0].get("pricingExpression") or {}
    hours = _UNITS.get(str(expression.get("usageUnit")))
    tiers = [_money(each.get("unitPrice") or {}) for each in expression.get("tieredRates") or ()]
    charged = [each for each in tiers if each]
    if hours is None or len(charged) != 1 or tiers[-1] != charged[0]:
        return None
    return charged[0] / hours


def _money(price: Mapping[str, Any]) -> float:
    if price.get("currencyCode", "USD") != "USD":
        return 0.0
    # https://github.com/googleapis/googleapis/blob/master/google/type/money.proto
    return int(price.get("units") or 0) + int(price.get("nanos") or 0) / 1e9


def dump_tariff(tariff: Tariff) -> dict[str, Any]:
    """Write a list as JSON data.

    Parameters
    ----------
    tariff : Tariff
        The list.

    Returns
    -------
    dict
        For `restore_tariff`.
    """
    return {
        "as_of": tariff.as_of.isoformat(),
        "rates": [[*item, rate] for item, rate in tariff.rates.items()],
    }


def restore_tariff(data: Any) -> Tariff | None:
    """Make a list again that `dump_tariff` wrote.

    Parameters
    ----------
    data : object
        JSON data.

    Returns
    -------
    Tariff or None
        The list; None if that is none.

    Examples
    --------
    >>> tariff = Tariff({Item("gb", "e2", "us-central1"): 0.003}, date(2026, 1, 2), live=True)
    >>> restore_tariff(dump_tariff(tariff)) == tariff, restore_tariff([])
    (True, None)
    """
    try:
        rates = {
            Item(str(kind), str(name), str(region), bool(spot)): float(rate)
            for kind, name, region, spot, rate in data["rates"]
        }
        return Tariff(rates, date.fromisoformat(data["as_of"]), live=True)
    except (KeyError, TypeError, ValueError):
        return None
