"""Prices are those of the list, or unknown."""

from __future__ import annotations

import pytest

from dask_gce import prices
from dask_gce.prices import hourly_price


@pytest.mark.parametrize(
    ("machine_type", "zone", "price"),
    [
        # What the table was made from does not have these: other types, and other sources.
        ("e2-standard-2", "us-central1-a", 0.067006),
        ("e2-standard-32", "us-east4-c", 1.20753),
        ("e2-standard-8", "europe-west1-b", 0.2949),
        ("e2-standard-32", "europe-west4-a", 1.18),
        ("e2-medium", "europe-north2-a", 0.0352),
        ("e2-small", "europe-west4-a", 0.0184),
        ("e2-micro", "us-central1-f", 0.008376),
        ("n1-standard-1", "us-central1-a", 0.0475),
        ("n1-standard-8", "southamerica-east1-b", 0.60319),
        ("n1-highmem-4", "us-west2-a", 0.28419),
        ("n2-standard-4", "us-central1-a", 0.194236),
        ("n2-highmem-4", "asia-northeast1-a", 0.33588),
        ("n2-highcpu-32", "asia-east2-b", 1.60509),
    ],
)
def test_list_prices(machine_type, zone, price):
    assert hourly_price(machine_type, zone) == pytest.approx(price, rel=0.003)


@pytest.mark.parametrize(
    ("machine_type", "zone"),
    [
        ("e2-custom-4-8192", "us-central1-a"),
        ("e2-custom-small-2048", "us-central1-a"),
        ("n2-custom-4-65536-ext", "us-central1-a"),
        ("custom-4-16384", "us-central1-a"),
        ("n2-highmem-128", "us-central1-a"),
        ("n1-ultramem-40", "us-central1-a"),
        ("f1-micro", "us-central1-a"),
        ("c3-standard-4", "us-central1-a"),
        ("a2-highgpu-1g", "us-central1-a"),
        ("n1-standard-4", "africa-south1-a"),
        ("n1-standard-4", "australia-southeast2-a"),
        ("e2-standard-4", "moon-base1-a"),
        ("e2-standard-4", ""),
        ("no such type", "us-central1-a"),
        ("", ""),
    ],
)
def test_what_is_not_known_is_not_guessed(machine_type, zone):
    assert hourly_price(machine_type, zone) is None


def test_spot_prices_change_too_often_to_be_known():
    assert hourly_price("e2-standard-4", "us-central1-a", spot=True) is None


def test_a_region_adds_the_same_to_each_series():
    """A slip of the pen in one of the numbers would show."""
    base = {series: prices._RATES[series, "us-central1"] for series in ("e2", "n1", "n2")}
    shares = {}
    for (series, region), rates in prices._RATES.items():
        for rate, reference in zip(rates, base[series], strict=True):
            shares.setdefault(region, []).append(rate / reference)
    assert len(shares) > 40
    for region, found in shares.items():
        assert max(found) - min(found) < 0.012, region
