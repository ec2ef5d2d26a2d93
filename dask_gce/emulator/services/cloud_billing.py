"""Methods of Cloud Billing v1 that are for everybody: what services there are, and their prices.

Nothing here costs anything. The list is like Google's in form and in words. Its figures are of the
order of Google's, so that what is made of them looks right, and are no source for them; it has but
some of the machine types and regions there are.

Source: https://cloud.google.com/billing/docs/reference/rest/v1/services.skus/list.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import Any

from dask_gce.emulator.errors import APIError, bad_request, error_info
from dask_gce.emulator.links import number_of
from dask_gce.emulator.routing import Call, Route
from dask_gce.emulator.services.access import page

_NAME = "cloudbilling.googleapis.com"
_COMPUTE = "6F81-5844-456A"
_LARGEST_PAGE = 5000

#: What it takes to have a project answer for a request.
_PERMISSION = "serviceusage.services.use"

#: The project that pays for requests in nobody's name, as far as the API must be enabled in it.
_CONSUMER = "local-project"

_AMERICAS = ("us-central1", "us-east1", "us-west1")
_BELGIUM = ("europe-west1",)

#: Words of the list, region: vCPU and GB of memory an hour, on demand and Spot, in dollars.
_MACHINES: dict[tuple[str, str], tuple[float, float, float, float]] = {
    ("E2 Instance", "Americas"): (0.021811590, 0.002923530, 0.008720000, 0.001169000),
    ("E2 Custom Instance", "Americas"): (0.022900000, 0.003069710, 0.009160000, 0.001228000),
    ("N1 Predefined Instance", "Americas"): (0.031611000, 0.004237000, 0.006655000, 0.000892000),
    ("N2 Instance", "Americas"): (0.031611000, 0.004237000, 0.007650000, 0.001025000),
    ("Compute optimized", "Americas"): (0.033980000, 0.004550000, 0.005000000, 0.000667000),
    ("G2 Instance", "Americas"): (0.024988000, 0.002927000, 0.009995000, 0.001171000),
    ("E2 Instance", "Belgium"): (0.023992000, 0.003216000, 0.009596000, 0.001286000),
}
#: Words of the list: a GPU an hour, on demand and Spot.
_GPUS = {"Nvidia Tesla T4": (0.35, 0.14), "Nvidia L4": (0.56004, 0.224)}
#: Words of the list: a GB for a month, and how many GB a month are for nothing.
_DISKS = {
    "Storage PD Capacity": (0.04, 30),
    "Balanced PD Capacity": (0.10, 0),
    "SSD backed PD Capacity": (0.17, 0),
}


def _sku(
    description: str,
    family: str,
    group: str,
    price: float,
    *,
    unit: str = "h",
    usage: str = "OnDemand",
    regions: tuple[str, ...] = _AMERICAS,
    free: int = 0,
) -> dict[str, Any]:
    digest = hashlib.sha256(description.encode()).hexdigest().upper()
    sku_id = "-".join(digest[start : start + 4] for start in (0, 4, 8))
    tiers = [{"startUsageAmount": 0, "unitPrice": _money(0.0 if free else price)}]
    if free:
        tiers.append({"startUsageAmount": free, "unitPrice": _money(price)})
    words = {"h": "hour", "GiBy.h": "gibibyte hour", "GiBy.mo": "gibibyte month"}
    return {
        "name": f"services/{_COMPUTE}/skus/{sku_id}",
        "skuId": sku_id,
        "description": description,
        "category": {
            "serviceDisplayName": "Compute Engine",
            "resourceFamily": family,
            "resourceGroup": group,
            "usageType": usage,
        },
        "serviceRegions": list(regions),
        "pricingInfo": [
            {
                "summary": "",
                "pricingExpression": {
                    "usageUnit": unit,
                    "usageUnitDescription": words[unit],
                    "baseUnit": "s" if unit == "h" else "By.s",
                    "displayQuantity": 1,
                    "tieredRates": tiers,
                },
                "currencyConversionRate": 1,
                "effectiveTime": "2026-01-01T00:00:00Z",
            }
        ],
        "serviceProviderName": "Google",
        "geoTaxonomy": {
            "type": "GLOBAL"
            if regions == ("global",)
            else ("REGIONAL" if len(regions) == 1 else "MULTI_REGIONAL"),
            **({} if regions == ("global",) else {"regions": list(regions)}),
        },
    }


def _money(price: float) -> dict[str, Any]:
    return {"currencyCode": "USD", "units": "0", "nanos": round(price * 1e9)}


def _skus() -> Iterator[dict[str, Any]]:
    for (words, where), (cpu, memory, spot_cpu, spot_memory) in _MACHINES.items():
        regions = _AMERICAS if where == "Americas" else _BELGIUM
        for part, group, unit, price, spot in (
            ("Core", "CPU", "h", cpu, spot_cpu),
            ("Ram", "RAM", "GiBy.h", memory, spot_memory),
        ):
            name = f"{words} {part} running in {where}"
            kind = "N1Standard" if words.startswith("N1 ") else group
            yield _sku(name, "Compute", kind, price, unit=unit, regions=regions)
            yield _sku(
                f"Spot Preemptible {name}",
                "Compute",
                kind,
                spot,
                unit=unit,
                usage="Preemptible",
                regions=regions,
            )
            # One of those that are something else, though they begin alike.
            if words == "E2 Instance":
                yield _sku(
                    f"Commitment v1: E2 {part} in {where} for 1 Year",
                    "Compute",
                    kind,
                    round(price * 0.63, 9),
                    unit=unit,
                    usage="Commit1Yr",
                    regions=regions,
                )
    for words, (price, spot) in _GPUS.items():
        yield _sku(f"{words} GPU running in Americas", "Compute", "GPU", price)
        yield _sku(
            f"{words} GPU attached to Spot Preemptible VMs running in Americas",
            "Compute",
            "GPU",
            spot,
            usage="Preemptible",
        )
    for words, (price, free) in _DISKS.items():
        group = "PDStandard" if words.startswith("Storage") else "SSD"
        yield _sku(words, "Storage", group, price, unit="GiBy.mo", free=free)
        yield _sku(f"Regional {words}", "Storage", group, 2 * price, unit="GiBy.mo")
    yield _sku("SSD backed Local Storage", "Storage", "LocalSSD", 0.08, unit="GiBy.mo")
    for market, price, free in (("Standard", 0.005, 744), ("Spot Preemptible", 0.0025, 0)):
        yield _sku(
            f"External IP Charge on a {market} VM",
            "Network",
            "ExternalIPAddress",
            price,
            regions=("global",),
            free=free,
        )


#: What Compute Engine costs here.
SKUS: list[dict[str, Any]] = list(_skus())


def _admit(call: Call) -> None:
    """Refuse what only a project may ask in which this API is enabled, and who may not use it."""
    consumer = _CONSUMER if call.identity is None else call.identity.project
    call.cloud.conditions.services.check(_NAME, consumer, number_of(consumer))
    try:
        project = call.cloud.project(consumer)
    except APIError:
        return  # where there is no such project, whoever asks brings one of their own
    if not call.cloud.permits(_PERMISSION, project, call.identity):
        raise APIError(
            403,
            "forbidden",
            f"Required '{_PERMISSION}' permission for 'projects/{consumer}': grant the caller the"
            " roles/serviceusage.serviceUsageConsumer role, or a custom role with the permission.",
            details=[
                error_info("USER_PROJECT_DENIED", service=_NAME, consumer=f"projects/{consumer}")
            ],
        )


def _list_services(call: Call) -> dict[str, Any]:
    _admit(call)
    one = {
        "name": f"services/{_COMPUTE}",
        "serviceId": _COMPUTE,
        "displayName": "Compute Engine",
        "businessEntityName": "businessEntities/GCP",
    }
    return {"services": [one]}


def _list_skus(call: Call) -> dict[str, Any]:
    _admit(call)
    if call.params["service"] != _COMPUTE:
        raise APIError(404, "notFound", f"Unknown service: {call.params['service']}.")
    if call.query.get("currencyCode", "USD") != "USD":
        raise bad_request("Prices are kept in USD only here.")
    shown = [(f"{number:06}", one) for number, one in enumerate(SKUS)]
    found, following = page(call, shown, largest=_LARGEST_PAGE)
    return {"skus": found} | following


_PAGES = frozenset({"pageSize", "pageToken"})

ROUTES = [
    Route("cloudbilling.services.list", "GET", "v1/services", _list_services, _PAGES),
    Route(
        "cloudbilling.services.skus.list",
        "GET",
        "v1/services/{service}/skus",
        _list_skus,
        _PAGES | {"currencyCode"},
    ),
]
