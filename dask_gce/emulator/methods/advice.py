"""`advice.capacity` and `advice.capacityHistory`: what is told of Spot machines beforehand.

Sources: https://cloud.google.com/compute/docs/instances/view-vm-availability and
https://cloud.google.com/compute/docs/instances/view-spot-preemption-price.
"""

from __future__ import annotations

from datetime import datetime, time, timedelta, timezone
from typing import Any

from dask_gce.emulator.catalog.machine_types import MachineType, resolve
from dask_gce.emulator.catalog.places import REGIONS, ZONES
from dask_gce.emulator.errors import APIError, invalid, required
from dask_gce.emulator.routing import Call, Route

#: How many machines one question may be about.
_LARGEST = 1000

#: For how many days the history tells of preemptions, and of prices.
_PREEMPTION_DAYS, _PRICE_DAYS = 30, 365


def _capacity(call: Call) -> dict[str, Any]:
    body = call.body
    model = _model(call)
    if model not in ("SPOT", "FLEX_START"):
        raise invalid(
            "resource.instanceProperties.scheduling.provisioningModel",
            model,
            "Must be SPOT or FLEX_START.",
        )
    size = body.get("size")
    if size is None:
        raise required("resource.size")
    if not 1 <= size <= _LARGEST:
        raise invalid("resource.size", size, f"Must be between 1 and {_LARGEST}.")
    policy = body.get("distributionPolicy", {})
    zones = [_zone(call, one.get("zone", "")) for one in policy.get("zones", ())]
    types = [
        _machine_type("resource.instanceFlexibilityPolicy.instanceSelections.machineTypes", name)
        for selection in body.get("instanceFlexibilityPolicy", {})
        .get("instanceSelections", {})
        .values()
        for name in selection.get("machineTypes", ())
    ]
    if not types:
        raise required("resource.instanceFlexibilityPolicy.instanceSelections")
    conditions = call.cloud.conditions
    # One recommendation, the best place of all.
    likely, uptime, zone, machine_type = max(
        (
            (outlook.obtainability or 0.0, outlook.uptime, zone, one.name)
            for zone in zones or REGIONS[call.region]
            for one in types
            for outlook in [conditions.advice.outlook(zone, one, conditions.capacity, size)]
        ),
        key=lambda found: found[:2],
    )
    return {
        "recommendations": [
            {
                "scores": {"obtainability": likely, "estimatedUptime": f"{uptime}s"},
                "shards": [
                    {
                        "zone": call.cloud.url(f"{call.project.path}/zones/{zone}"),
                        "machineType": machine_type,
                        "instanceCount": size,
                        "provisioningModel": model,
                    }
                ],
            }
        ]
    }


def _history(call: Call) -> dict[str, Any]:
    body = call.body
    if (model := _model(call)) != "SPOT":
        raise invalid(
            "resource.instanceProperties.scheduling.provisioningModel", model, "Must be SPOT."
        )
    field = "resource.instanceProperties.machineType"
    properties = body["instanceProperties"]
    if "machineType" not in properties:
        raise required(field)
    found = _machine_type(field, properties["machineType"])
    if "custom" in found.name:
        raise invalid(field, found.name, "Custom machine types have no history.")
    kinds = body.get("types") or ["PREEMPTION"]
    link = str(body.get("locationPolicy", {}).get("location", ""))
    # The region is the whole of the path's, and the only place that has prices.
    place = _zone(call, link) if "zones/" in link else call.region
    where = f"zones/{place}" if place in ZONES else f"regions/{place}"
    if "PRICE" in kinds and place in ZONES:
        raise invalid("resource.types", "PRICE", "Prices are those of a region.")
    conditions = call.cloud.conditions
    outlook = conditions.advice.outlook(place, found, conditions.capacity)
    # Days end at midnight in the time of the Pacific, here without its summer.
    today = datetime.combine(datetime.now(timezone.utc).date(), time(8), timezone.utc)
    answer: dict[str, Any] = {
        "location": call.cloud.url(f"{call.project.path}/{where}"),
        "machineType": found.name,
    }
    if "PREEMPTION" in kinds:
        answer["preemptionHistory"] = [
            {
                "interval": _interval(today - timedelta(days), today - timedelta(days - 1)),
                "preemptionRate": outlook.preemption_rate,
            }
            for days in range(_PREEMPTION_DAYS, 0, -1)
        ]
    if "PRICE" in kinds:
        nanos = round((outlook.price or 0.0) * 10**9)
        answer["priceHistory"] = [
            {
                "interval": _interval(today - timedelta(_PRICE_DAYS), today + timedelta(1)),
                "listPrice": {
                    "currencyCode": "USD",
                    "units": str(nanos // 10**9),
                    "nanos": nanos % 10**9,
                },
            }
        ]
    return answer


def _interval(start: datetime, end: datetime) -> dict[str, str]:
    return {"startTime": f"{start:%Y-%m-%dT%H:%M:%SZ}", "endTime": f"{end:%Y-%m-%dT%H:%M:%SZ}"}


def _model(call: Call) -> str:
    scheduling = call.body.get("instanceProperties", {}).get("scheduling", {})
    if "provisioningModel" not in scheduling:
        raise required("resource.instanceProperties.scheduling.provisioningModel")
    return str(scheduling["provisioningModel"])


def _zone(call: Call, link: str) -> str:
    zone = link.rpartition("/")[2]
    if ZONES.get(zone) != call.region:
        raise invalid("zone", link, f"It is no zone of region {call.region}.")
    return zone


def _machine_type(field: str, name: str) -> MachineType:
    try:
        found = resolve(name)
    except APIError:
        found = None
    if found is None:
        raise invalid(field, name, "There is no such machine type.")
    return found


_REGION = "projects/{project}/regions/{region}/advice"

ROUTES = [
    Route(
        "compute.advice.capacity",
        "POST",
        f"{_REGION}/capacity",
        _capacity,
        body="CapacityAdviceRequest",
    ),
    Route(
        "compute.advice.capacityHistory",
        "POST",
        f"{_REGION}/capacityHistory",
        _history,
        body="CapacityHistoryRequest",
    ),
]
