"""What machines and clusters cost, as far as lists know: pure, and by a clock of their own."""

from __future__ import annotations

from dataclasses import replace
from datetime import date, datetime, timedelta, timezone

import pytest
from fleets import WORKER
from records import NOON, machine, record

from dask_gce import estimate_cost
from dask_gce.cluster_costs import cost_of, machine_costs, to_json
from dask_gce.cluster_records import read_records
from dask_gce.cost.charges import Charge, Price, PriceBook, add_up, charge_of, default_disk
from dask_gce.cost.skus import dump_tariff, parse_skus, restore_tariff, select_skus
from dask_gce.cost.spending import Spending
from dask_gce.emulator.services.cloud_billing import SKUS
from dask_gce.errors import SettingsError
from dask_gce.hardware_fields import Hardware
from dask_gce.prices import TABLE, Item, Tariff, billed_size, hourly_price

ZONE = "us-central1-a"
LISTED = Tariff(parse_skus(SKUS), date(2026, 11, 22), live=True)
BOOK = PriceBook((LISTED, TABLE))


class Clock:
    """Time that passes when it is told to."""

    now = 1_000_000.0

    def __call__(self) -> float:
        return self.now


def sku(description, price=0.03, usage="OnDemand", unit="h", regions=("us-central1",), tiers=None):
    """Return a SKU as Google's list has it."""
    tiers = tiers or [(0, price)]
    return {
        "description": description,
        "category": {"usageType": usage},
        "serviceRegions": list(regions),
        "pricingInfo": [
            {
                "pricingExpression": {
                    "usageUnit": unit,
                    "tieredRates": [
                        {
                            "startUsageAmount": start,
                            "unitPrice": {"units": "0", "nanos": round(each * 1e9)},
                        }
                        for start, each in tiers
                    ],
                }
            }
        ],
    }


# -- Google's list --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("found", "item", "rate"),
    [
        (
            sku("E2 Instance Core running in Americas"),
            Item("vcpu", "e2", "us-central1"),
            0.03,
        ),
        (
            sku("N1 Predefined Instance Ram running in Americas", unit="GiBy.h"),
            Item("gb", "n1", "us-central1"),
            0.03,
        ),
        (
            sku("Custom Instance Core running in Americas"),
            Item("vcpu", "n1-custom", "us-central1"),
            0.03,
        ),
        (
            sku("Spot Preemptible N2D AMD Custom Instance Core running in X", usage="Preemptible"),
            Item("vcpu", "n2d-custom", "us-central1", True),
            0.03,
        ),
        (
            sku("Compute optimized Core running in Salt Lake City", regions=("us-west3",)),
            Item("vcpu", "c2", "us-west3"),
            0.03,
        ),
        (
            sku("Nvidia Tesla T4 GPU running in Americas"),
            Item("gpu", "nvidia-tesla-t4", "us-central1"),
            0.03,
        ),
        (
            sku(
                "Nvidia L4 GPU attached to Spot Preemptible VMs running in Tokyo",
                usage="Preemptible",
            ),
            Item("gpu", "nvidia-l4", "us-central1", True),
            0.03,
        ),
        # What every account has for nothing is not the price.
        (
            sku("Storage PD Capacity", unit="GiBy.mo", tiers=[(0, 0), (30, 0.04)]),
            Item("disk", "pd-standard", "us-central1", True),
            0.04 / 730,
        ),
        (
            sku("Balanced PD Capacity in Zurich", unit="GiBy.mo", regions=("europe-west6",)),
            Item("disk", "pd-balanced", "europe-west6"),
            0.03 / 730,
        ),
        (
            sku("SSD backed Local Storage attached to Spot Preemptible VMs", unit="GiBy.mo"),
            Item("ssd", "", "us-central1", True),
            0.03 / 730,
        ),
        (
            sku(
                "External IP Charge on a Standard VM",
                regions=("global",),
                tiers=[(0, 0), (744, 0.005)],
            ),
            Item("address", "", ""),
            0.005,
        ),
    ],
)
def test_a_sku_is_the_price_of_what_its_words_say(found, item, rate):
    assert parse_skus([found])[item] == pytest.approx(rate)
    assert select_skus([found]) == [found]


@pytest.mark.parametrize(
    "found",
    [
        sku("Commitment v1: E2 Cpu in Americas for 1 Year", usage="Commit1Yr"),
        sku("E2 Instance Core running in Americas", usage="Commit1Yr"),
        sku("E2 Instance Core running in Americas", usage="Preemptible"),
        sku("Spot Preemptible E2 Instance Core running in Americas"),
        sku("N2 Custom Extended Instance Ram running in Americas", unit="GiBy.h"),
        sku("N2 Instance Core Sole Tenancy running in Americas"),
        sku("M3 Memory-optimized Instance Core running in Americas"),
        sku("Reserved Nvidia L4 GPU in Americas"),
        sku("Regional Balanced PD Capacity", unit="GiBy.mo"),
        sku("E2 Instance Core running in Americas", unit="mo"),
        # Which of the two prices holds is not known.
        sku("E2 Instance Core running in Americas", tiers=[(0, 0.03), (100, 0.02)]),
        sku("E2 Instance Core running in Americas", price=0.0),
        {"description": "E2 Instance Core running in Americas"},
        {},
    ],
)
def test_what_does_not_match_in_full_has_no_price(found):
    assert parse_skus([found]) == {}


def test_two_prices_of_one_thing_are_none():
    name = "E2 Instance Core running in Americas"
    assert parse_skus([sku(name), sku(name)]) == {Item("vcpu", "e2", "us-central1"): 0.03}
    assert parse_skus([sku(name), sku(name, price=0.04), sku(name)]) == {}


def test_other_money_is_no_price():
    found = sku("E2 Instance Core running in Americas")
    (tier,) = found["pricingInfo"][0]["pricingExpression"]["tieredRates"]
    tier["unitPrice"]["currencyCode"] = "EUR"
    assert parse_skus([found]) == {}


def test_a_list_survives_its_file():
    assert restore_tariff(dump_tariff(LISTED)) == LISTED
    for broken in (
        None,
        [],
        {},
        {"as_of": "x", "rates": []},
        {"as_of": "2026-01-01", "rates": [1]},
    ):
        assert restore_tariff(broken) is None


# -- a machine ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name",
    [
        *("e2-custom-small-4096", "n2-custom-4-65536-ext", "n2-highmem-128", "c3-standard-8-lssd"),
        *("a2-ultragpu-1g", "f1-micro", "m3-megamem-64", "g2-custom-4-16384-ext", "nonsense", ""),
    ],
)
def test_what_a_name_does_not_tell_is_not_guessed(name):
    assert billed_size(name) is None


def test_spot_machines_and_gpus_are_in_the_list():
    assert hourly_price("e2-standard-4", ZONE, spot=True) is None
    spot = hourly_price("e2-standard-4", ZONE, spot=True, tariff=LISTED)
    usual = hourly_price("e2-standard-4", ZONE, tariff=LISTED)
    assert spot is not None and usual is not None and 0 < spot < usual
    g2 = hourly_price("g2-standard-8", ZONE, tariff=LISTED)
    assert g2 == pytest.approx(8 * 0.024988 + 32 * 0.002927 + 0.56004)


def test_a_machine_costs_what_its_parts_do():
    charge = Charge(
        "n1-standard-4",
        ZONE,
        gpu_type="nvidia-tesla-t4",
        gpus=2,
        local_ssds=1,
        disk_type="pd-balanced",
        disk_size=73,
        address=True,
    )
    price = BOOK.price(charge)
    machine_alone = 4 * 0.031611 + 15 * 0.004237
    assert price.amount == pytest.approx(
        machine_alone + 2 * 0.35 + 375 * 0.08 / 730 + 73 * 0.10 / 730 + 0.005
    )
    assert price.complete and price.live and price.source == "price list"
    assert price.as_of == LISTED.as_of


@pytest.mark.parametrize(
    ("change", "missing"),
    [
        ({"zone": "nowhere-a"}, "n1-standard-4 in nowhere"),
        ({"machine_type": "n9-standard-4"}, "n9-standard-4 in us-central1"),
        ({"spot": True}, "Spot n1-standard-4 in us-central1"),
        ({"gpu_type": "nvidia-x", "gpus": 1}, "nvidia-x in us-central1"),
        ({"local_ssds": 1}, "local SSDs in us-central1"),
        ({"changed": ("disks",)}, "what instance_overrides changes (disks)"),
    ],
)
def test_without_the_price_of_what_counts_there_is_none(change, missing):
    price = PriceBook().price(replace(Charge("n1-standard-4", ZONE), **change))
    assert price.amount is None and price.missing == (missing,) and not price.complete
    assert str(price) == "unknown" and price.source == "" and price.as_of is None


def test_a_disk_of_unknown_price_is_said_to_be_missing():
    charge = Charge("e2-small", "asia-east1-a", disk_type="pd-ssd", disk_size=10, address=True)
    price = PriceBook().price(charge)
    assert str(price).startswith("at least $0.0") and not price.complete
    assert price.missing == ("pd-ssd disks in asia-east1",)
    assert price.to_json()["missing"] == ["pd-ssd disks in asia-east1"]
    assert price.source == "table"


def test_a_sum_knows_no_more_than_its_parts():
    one = Price(1.0, ("a",), date(2026, 1, 1), live=True)
    two = Price(2.0, (), date(2025, 1, 1))
    assert add_up([one, two]) == Price(3.0, ("a",), date(2025, 1, 1))
    assert add_up([]) == Price(0)
    assert add_up([Price(None, ("b",))]) == Price(None, ("b",))


def test_what_is_charged_for_is_read_from_the_request():
    spec = replace(
        WORKER,
        machine_type="n1-standard-4",
        hardware=Hardware(accelerator_type="nvidia-tesla-t4", accelerator_count=2),
        local_ssds=1,
        external_ip=False,
        overrides={"scheduling": {"provisioningModel": "SPOT"}, "disks": []},
    )
    assert charge_of(spec) == Charge(
        "n1-standard-4",
        WORKER.zone,
        spot=True,
        gpu_type="nvidia-tesla-t4",
        gpus=2,
        local_ssds=1,
        disk_type="pd-standard",
        disk_size=10,
        changed=("disks",),
    )
    assert charge_of(replace(WORKER, spot=True)).spot
    assert charge_of(replace(WORKER, boot_disk_type="pd-ssd")).disk_type == "pd-ssd"
    assert default_disk("custom-4-8192") == "pd-standard"


# -- the account ----------------------------------------------------------------------------------


def test_each_machine_is_charged_from_its_start_to_its_end():
    clock = Clock()
    spending, book = Spending(clock), PriceBook()
    charge = Charge("e2-standard-4", ZONE)
    hour = hourly_price("e2-standard-4", ZONE)
    assert spending.cost(book.price).spent == Price(0)
    spending.begin("first", charge)
    clock.now += 1800
    spending.begin("second", charge)
    spending.begin("first", charge)
    clock.now += 1800
    spending.end("first")
    spending.end("never seen")
    clock.now += 3600
    spending.end("first")
    cost = spending.cost(book.price)
    assert (cost.machines, cost.machine_hours, cost.seconds) == (1, 2.5, 7200)
    assert cost.spent.amount == pytest.approx(2.5 * hour)
    assert cost.hourly.amount == pytest.approx(hour)
    assert cost.complete and cost.spot_saved is None
    assert str(cost) == "2.5 machine hours in 2 h, about $0.34 by list prices of 2026-11-21"
    spending.end_all()
    clock.now += 3600
    assert spending.cost(book.price).machine_hours == 2.5
    assert spending.cost(book.price).machines == 0


def test_a_minute_is_charged_at_least():
    clock = Clock()
    spending = Spending(clock)
    spending.begin("short", Charge("e2-small", ZONE))
    clock.now += 2
    spending.end("short")
    spending.begin("long", Charge("e2-small", ZONE))
    clock.now += 61
    cost = spending.cost(PriceBook().price)
    assert cost.machine_hours * 3600 == pytest.approx(60 + 61)
    assert str(cost).startswith("2 machine minutes in 1 min 3 s, about $0.0006 ")


def test_machines_that_were_there_before_count_from_then():
    clock = Clock()
    spending = Spending(clock)
    spending.begin("old", Charge("e2-small", ZONE), clock.now - 7200)
    # By a clock that is ahead.
    spending.begin("new", Charge("e2-small", ZONE), clock.now + 7200)
    clock.now += 3600
    assert spending.cost(PriceBook().price).machine_hours == 3 + 1


def test_who_sees_late_that_all_is_over_counts_to_when_it_was():
    clock = Clock()
    spending = Spending(clock)
    spending.begin("seen in time", Charge("e2-small", ZONE))
    spending.begin("seen late", Charge("e2-small", ZONE))
    spending.begin("not seen", Charge("e2-small", ZONE))
    clock.now += 3600
    over = clock.now + 3600
    spending.end("seen in time")
    clock.now += 50 * 3600
    spending.end("seen late")
    spending.end_all(at=over)
    cost = spending.cost(PriceBook().price)
    assert (cost.machines, cost.machine_hours, cost.seconds) == (0, 1 + 2 + 2, 7200)


def test_what_spot_has_saved_is_the_difference():
    clock = Clock()
    spending = Spending(clock)
    usual = Charge("e2-standard-4", ZONE)
    spending.begin("spot", replace(usual, spot=True))
    spending.begin("usual", usual)
    clock.now += 7200
    cost = spending.cost(BOOK.price)
    spot_hour, hour = (BOOK.price(replace(usual, spot=each)).amount for each in (True, False))
    assert cost.spot_saved == pytest.approx(2 * (hour - spot_hour))
    assert cost.spent.amount == pytest.approx(2 * (hour + spot_hour))
    assert str(cost).endswith("; Spot saved about $0.16")


def test_what_is_not_known_is_said():
    clock = Clock()
    spending = Spending(clock)
    spending.begin("spot", Charge("e2-standard-4", ZONE, spot=True))
    clock.now += 3600
    cost = spending.cost(PriceBook().price)
    assert cost.spent.amount is None and cost.spot_saved is None and not cost.complete
    unknown = "(no price known of Spot e2-standard-4 in us-central1)"
    assert str(cost) == f"1.0 machine hours in 1 h, cost unknown {unknown}"
    spending.begin("usual", Charge("e2-standard-4", ZONE))
    clock.now += 3600
    text = str(spending.cost(PriceBook().price))
    assert "at least $0.13 by list prices of 2026-11-21" in text and text.endswith(unknown)
    # When the list has been read, the hours before are priced too.
    assert spending.cost(BOOK.price).complete


# -- a cluster whose machines tell ----------------------------------------------------------------


def test_machines_tell_since_when_they_run():
    now = NOON + timedelta(hours=2)
    there = (
        machine("s", "scheduler"),
        machine("w", started=NOON + timedelta(hours=1)),
        machine("off", status="TERMINATED", stopped=NOON + timedelta(minutes=30)),
        machine("lost", status="TERMINATED"),
    )
    cost = cost_of(record(*there), PriceBook(), now=now)
    assert (cost.machines, cost.machine_hours) == (2, 3.5)
    hours = {
        each.name: one.machine_hours for each, one in machine_costs(record(*there), BOOK, now=now)
    }
    assert hours == {"s": 2.0, "w": 1.0, "off": 0.5, "lost": 0.0}
    told = to_json(record(*there), BOOK, now=now)
    assert told["cost"]["machine_hours"] == 3.5
    assert [each["spent"] is None for each in told["machines"]] == [False, False, False, True]


def test_what_is_charged_for_is_read_from_the_machine():
    data = {
        "name": "vm",
        "status": "RUNNING",
        "zone": f"zones/{ZONE}",
        "machineType": "zones/z/machineTypes/n1-standard-4",
        "creationTimestamp": "2026-11-20T12:00:00.000Z",
        "lastStartTimestamp": "2026-11-20T04:00:10.000-08:00",
        "labels": {"dask-gce-cluster": "grid"},
        "scheduling": {"provisioningModel": "SPOT"},
        "guestAccelerators": [
            {"acceleratorType": "zones/z/acceleratorTypes/nvidia-tesla-t4", "acceleratorCount": 2}
        ],
        "disks": [{"type": "PERSISTENT", "diskSizeGb": "30"}, {"type": "SCRATCH"}],
        "networkInterfaces": [{"accessConfigs": [{"natIP": "192.0.2.7"}]}],
    }
    ((one,),) = (each.machines for each in read_records("p", [data]))
    assert one.charge == Charge(
        "n1-standard-4",
        ZONE,
        spot=True,
        gpu_type="nvidia-tesla-t4",
        gpus=2,
        local_ssds=1,
        disk_size=30,
        address=True,
    )
    assert one.started == datetime(2026, 11, 20, 12, 0, 10, tzinfo=timezone.utc)
    # Those that it comes with are charged for by its name.
    g2 = {**data, "machineType": "zones/z/machineTypes/g2-standard-8"}
    ((one,),) = (each.machines for each in read_records("p", [g2]))
    assert one.charge is not None and one.charge.gpus == 0


# -- before there is one --------------------------------------------------------------------------


def test_an_estimate_asks_nobody():
    settings = {"zone": ZONE, "machine_type": "e2-standard-4", "live_prices": False}
    estimate = estimate_cost(n_workers=10, **settings)
    assert estimate.machines == 10
    assert estimate.hourly.amount == pytest.approx(11 * estimate.worker.amount)
    assert str(estimate).startswith("about $1.55 an hour for 1 + 10 machines")
    several = estimate_cost(n_workers=10, processes=4, workers_on_scheduler=1, **settings)
    assert several.machines == 3
    other = estimate_cost(n_workers=1, **{**settings, "zone": "asia-east1-a"})
    assert "without pd-standard disks in asia-east1" in str(other)
    spot = estimate_cost(n_workers=4, spot=True, min_on_demand=1, **settings)
    assert spot.worker.amount is None and spot.hourly.amount == pytest.approx(
        2 * estimate.scheduler.amount
    )
    with pytest.raises(SettingsError, match="machine_typ"):
        estimate_cost(machine_typ="e2-small")
    unknown = estimate_cost(**{**settings, "machine_type": "m3-megamem-64"})
    assert str(unknown) == "unknown: no price is known of m3-megamem-64 in us-central1"
