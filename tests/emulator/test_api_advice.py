"""What is told of Spot machines beforehand: `advice.capacity` and `advice.capacityHistory`."""

from __future__ import annotations

import pytest
from rest import PROJECT, ZONE, Refused, Rest

from dask_gce.emulator import ComputeEmulator

OTHER = "us-central1-b"
ADVICE = "regions/us-central1/advice"


@pytest.fixture
def rest(discovery):
    with ComputeEmulator("paper") as emulator:
        yield Rest(emulator)


def capacity(rest, *types, zones=(), size=1, model="SPOT"):
    body = {
        "instanceProperties": {"scheduling": {"provisioningModel": model}},
        "instanceFlexibilityPolicy": {"instanceSelections": {"any": {"machineTypes": list(types)}}},
        "distributionPolicy": {
            "targetShape": "ANY_SINGLE_ZONE",
            "zones": [{"zone": f"zones/{zone}"} for zone in zones],
        },
        "size": size,
    }
    (found,) = rest.call("POST", f"{ADVICE}/capacity", body)["recommendations"]
    return found


def score(rest, *types, **options):
    return capacity(rest, *types, **options)["scores"]["obtainability"]


def history(rest, machine_type, *kinds, location=None, model="SPOT"):
    body = {
        "instanceProperties": {
            "machineType": machine_type,
            "scheduling": {"provisioningModel": model},
        },
        "types": list(kinds),
    }
    if location is not None:
        body["locationPolicy"] = {"location": location}
    return rest.call("POST", f"{ADVICE}/capacityHistory", body)


def test_scores_follow_from_what_the_zones_have_to_give(rest):
    assert score(rest, "e2-small", size=1000) == 0.9
    for room, wanted in ((10, 0.9), (9, 0.5), (0, 0.1)):
        rest.emulator.capacity.set(ZONE, "e2-small", instances=room)
        assert score(rest, "e2-small", zones=[ZONE], size=10) == wanted
    # Of several places the best is recommended.
    found = capacity(rest, "e2-small", "n2-standard-4", zones=[ZONE], size=10)
    assert found["scores"]["obtainability"] == 0.9
    (shard,) = found["shards"]
    assert (shard["machineType"], shard["instanceCount"]) == ("n2-standard-4", 10)
    assert shard["zone"].endswith(f"/projects/{PROJECT}/zones/{ZONE}")
    assert capacity(rest, "e2-small", size=10)["shards"][0]["zone"].rpartition("/")[2] != ZONE


def test_a_test_says_what_is_told(rest):
    advice = rest.emulator.advice
    advice.set("us-central1", obtainability=0.4, uptime=600)
    advice.set(OTHER, "e2-small", obtainability=0.7)
    assert capacity(rest, "e2-small", zones=[ZONE])["scores"] == {
        "obtainability": 0.4,
        "estimatedUptime": "600s",
    }
    assert capacity(rest, "e2-small")["shards"][0]["zone"].endswith(OTHER)
    advice.clear()
    assert score(rest, "e2-small", zones=[ZONE]) == 0.9


def test_prices_are_those_of_a_region(rest):
    rest.emulator.advice.set("us-central1", "n2-standard-8", price=1.25, preemption_rate=0.5)
    found = history(rest, "n2-standard-8", "PRICE", "PREEMPTION")
    assert found["location"].endswith("/regions/us-central1")
    assert found["priceHistory"][-1]["listPrice"] == {
        "currencyCode": "USD",
        "units": "1",
        "nanos": 250_000_000,
    }
    assert len(found["preemptionHistory"]) == 30
    assert {each["preemptionRate"] for each in found["preemptionHistory"]} == {0.5}
    zonal = history(rest, "n2-standard-8", location=f"zones/{ZONE}")
    assert zonal["location"].endswith(f"/zones/{ZONE}") and "priceHistory" not in zonal
    with pytest.raises(Refused, match="those of a region"):
        history(rest, "n2-standard-8", "PRICE", location=f"zones/{ZONE}")
    # Larger machines cost more, where nobody has said a price.
    small, large = (
        history(rest, name, "PRICE")["priceHistory"][0]["listPrice"]["nanos"]
        for name in ("e2-standard-2", "e2-standard-4")
    )
    assert large == 2 * small


@pytest.mark.parametrize(
    "question",
    [
        lambda rest: capacity(rest, "e2-small", model="STANDARD"),
        lambda rest: capacity(rest, "e2-small", size=0),
        lambda rest: capacity(rest, "e2-small", size=1001),
        lambda rest: capacity(rest, "e9-small"),
        capacity,
        lambda rest: capacity(rest, "e2-small", zones=["us-east1-b"]),
        lambda rest: history(rest, "e2-small", "PRICE", model="STANDARD"),
        lambda rest: history(rest, "n2-custom-8-16384", "PRICE"),
        lambda rest: history(rest, "n2-custom-7-16384", "PRICE"),
    ],
    ids=["model", "none", "crowd", "type", "types", "zone", "history", "custom", "impossible"],
)
def test_what_cannot_be_asked(rest, question):
    with pytest.raises(Refused) as refusal:
        question(rest)
    assert refusal.value.status == 400


@pytest.mark.parametrize(
    "values",
    [
        {"obtainability": 1.1},
        {"uptime": 61},
        {"preemption_rate": -0.1},
        {"price": 0.0},
        {"price": 1.0, "place": ZONE},
        {"machine_type": "e9-small"},
        {"place": "us-central9"},
    ],
)
def test_what_a_test_cannot_say(rest, values):
    with pytest.raises(ValueError):
        rest.emulator.advice.set(**{"place": "us-central1", **values})


def test_advice_takes_a_permission_of_its_own(rest):
    rest.emulator.permissions.deny("compute.advice.capacity")
    with pytest.raises(Refused, match=f"'compute.advice.capacity' .* 'projects/{PROJECT}'"):
        capacity(rest, "e2-small")
    assert history(rest, "e2-small", "PRICE")["priceHistory"]
