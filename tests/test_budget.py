"""Clusters that know what they cost, and that keep below a limit; Google's list over HTTP."""

from __future__ import annotations

import json
from datetime import datetime, timezone
from itertools import count

import pytest
from clusters import PATIENCE, cluster_on, until, worker_machines
from command_line import make, read, run, succeed
from fleets import QUICK
from google.auth.credentials import AnonymousCredentials
from scripted_api import Answer, ScriptedAPI

from dask_gce import GCECluster, price_list
from dask_gce.emulator import ComputeEmulator, Fault
from dask_gce.errors import (
    CostLimitExceeded,
    InstanceLost,
    OutOfCapacity,
    PermissionDenied,
    StartTimeout,
    TransportError,
)
from dask_gce.price_list import kept_tariff, price_list_path, read_tariff
from dask_gce.prices import Item, Tariff
from dask_gce.services import Services
from dask_gce.settings import Settings

INSERTS = ("compute.instances.insert", "compute.instances.bulkInsert")
LIST = "cloudbilling.services.skus.list"
BILLING = "cloudbilling.googleapis.com"
ZONE = "us-central1-a"

#: An hour of an e2-small in the United States with 30 GB of pd-standard and an address.
SMALL = 0.5 * 0.02181 + 2 * 0.002924 + 30 * 0.04 / 730 + 0.005


def services(endpoint: str) -> Services:
    return Services("local-project", endpoint=endpoint, credentials=AnonymousCredentials())


def notes(cluster, what):
    """Return what was noted of something."""
    return [each.why for each in cluster.events if each.what == what]


def inserts(emulator):
    return sum(emulator.requests[method] for method in INSERTS)


# -- Google's list --------------------------------------------------------------------------------


def test_the_list_is_read_page_by_page(emulator):
    asking = services(emulator.endpoint)
    whole = read_tariff(asking)
    assert emulator.requests[LIST] == 1
    assert whole.live and whole.as_of == datetime.now(timezone.utc).date()
    assert whole.rates[Item("vcpu", "e2", ZONE[:-2])] == pytest.approx(0.02181159)
    assert Item("vcpu", "e2", ZONE[:-2], True) in whole.rates
    paged = read_tariff(asking, page=3)
    assert emulator.requests[LIST] > 5
    assert paged.rates == whole.rates
    asking.close_now()


def test_what_may_not_be_read_is_refused_with_the_remedy(emulator):
    asking = services(emulator.endpoint)
    emulator.services.disable(BILLING)
    with pytest.raises(PermissionDenied, match=f"gcloud services enable {BILLING}"):
        read_tariff(asking)
    emulator.services.enable(BILLING)
    emulator.permissions.deny("serviceusage.services.use")
    with pytest.raises(PermissionDenied, match=r"roles/serviceusage\.serviceUsageConsumer"):
        read_tariff(asking)
    asking.close_now()


def test_a_list_without_end_is_left_alone():
    pages = count()
    with ScriptedAPI(lambda request: Answer({"nextPageToken": str(next(pages))})) as api:
        asking = services(api.endpoint)
        with pytest.raises(TransportError, match="has not ended after 100 pages"):
            read_tariff(asking)
        asking.close_now()
    assert len(api.requests) == price_list.MOST_PAGES
    assert [each.query.get("pageToken") for each in api.requests[:3]] == [None, "0", "1"]


@pytest.fixture
def data(monkeypatch, tmp_path):
    """Have a data folder of the test's own."""
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    return tmp_path


def test_a_list_is_kept_for_a_day(data):
    settings = Settings.load(zone=ZONE, project="my-project")
    assert kept_tariff(settings) is None
    listed = Tariff({Item("gb", "e2", "r", True): 0.25}, datetime.now().date(), live=True)
    price_list._keep(listed)
    assert kept_tariff(settings) == listed
    assert price_list_path().stat().st_mode & 0o077 == 0
    read_at = json.loads(price_list_path().read_text())["read_at"]
    assert kept_tariff(settings, clock=lambda: read_at + price_list.KEPT_FOR - 1) == listed
    for late in (price_list.KEPT_FOR, -1):
        assert kept_tariff(settings, clock=lambda late=late: read_at + late) is None
    assert kept_tariff(Settings.load(zone=ZONE, live_prices=False)) is None
    # A local Compute Engine invents its own.
    local = Settings.load(zone=ZONE, api_endpoint="http://127.0.0.1:1")
    assert kept_tariff(local) is None
    for broken in ("", "[]", "{}", f'{{"read_at": {read_at}}}', '{"read_at": "x"}'):
        price_list_path().write_text(broken)
        assert kept_tariff(settings) is None
    price_list_path().chmod(0o644)
    assert kept_tariff(settings) is None


async def test_a_list_that_cannot_be_read_is_none(emulator):
    settings = Settings.load(zone=ZONE, api_endpoint=emulator.endpoint)
    listed = await price_list.learn_tariff(settings, "local-project")
    assert listed is not None and listed.live
    emulator.services.disable(BILLING)
    assert await price_list.learn_tariff(settings, "local-project") is None


# -- what a cluster costs -------------------------------------------------------------------------


async def test_a_cluster_tells_what_it_costs(light):
    cluster = cluster_on(light, zone=ZONE, n_workers=2)
    async with cluster:
        await cluster.wait_for_workers(2, timeout=PATIENCE)
        await until(lambda: cluster.hourly_cost.live)
        cost = cluster.cost
        assert cost.machines == 3 and cost.complete
        assert cost.machine_hours >= 3 / 60
        assert cluster.hourly_cost.amount == pytest.approx(3 * SMALL, rel=0.001)
        cluster.scale(1)
        await until(lambda: cluster.cost.machines == 2)
        assert cluster.cost.machine_hours >= 3 / 60
        assert not notes(cluster, "cost")
        assert "about $0.0" in str(cluster.cost)
        assert "<strong>Cost:</strong> about $0.0" in cluster._repr_html_()
    (said,) = notes(cluster, "cost")
    assert "machine minutes in" in said and "by list prices of" in said
    assert cluster.cost.machines == 0
    assert any(said in text for _, text in cluster._cluster_manager_logs)
    assert any(
        text.startswith("About $0.0") and "1 + 2 machines" in text
        for _, text in cluster._cluster_manager_logs
    )


async def test_without_the_list_prices_are_the_tables(paper_workers):
    paper_workers.services.disable(BILLING)
    async with cluster_on(paper_workers, zone=ZONE) as cluster:
        await until(lambda: paper_workers.requests[LIST])
        assert cluster.hourly_cost.source == "table"
        assert cluster.hourly_cost.amount == pytest.approx(SMALL)


async def test_nobody_is_asked_for_prices_who_is_not_to_be(paper_workers):
    async with cluster_on(paper_workers, zone=ZONE, live_prices=False) as cluster:
        assert cluster.hourly_cost.source == "table"
    assert not paper_workers.requests[LIST]


async def test_no_start_waits_for_prices(paper_workers):
    paper_workers.faults.add(Fault(LIST, delay=2 * PATIENCE))
    # Nor does an end.
    async with cluster_on(paper_workers, zone=ZONE) as cluster:
        await until(lambda: paper_workers.requests[LIST])
        assert cluster.hourly_cost.source == "table"


async def test_whoever_joins_counts_from_when_machines_were_made(paper_workers, data):
    options = {"zone": ZONE, "name": "grid", "shutdown_on_close": False}
    async with cluster_on(paper_workers, n_workers=1, **options) as cluster:
        await until(lambda: cluster.cost.machines == 2)
        await cluster.settle()
    (left,) = notes(cluster, "cost")
    assert left.endswith(", so far")
    made = min(
        datetime.fromisoformat(each["creationTimestamp"].replace("Z", "+00:00"))
        for each in paper_workers.instances()
    )
    again = await GCECluster.from_name("grid", asynchronous=True, quiet=True)
    assert again.cost.machines == 2
    age = datetime.now(timezone.utc) - made
    assert again.cost.seconds <= age.total_seconds() + 1
    assert min(e.began for e in again._spending._entries.values()) == pytest.approx(
        made.timestamp(), abs=0.002
    )
    await again.shutdown()
    assert not notes(again, "cost")[0].endswith("so far")


# -- the limit ------------------------------------------------------------------------------------


async def test_a_start_that_costs_too_much_is_refused_before_its_first_machine(paper_workers):
    limit = 3.5 * SMALL
    cluster = cluster_on(paper_workers, zone=ZONE, n_workers=3, max_hourly_cost=limit)
    with pytest.raises(CostLimitExceeded, match="2 workers fit in; ask for fewer") as caught:
        await cluster
    assert (caught.value.limit, caught.value.fits) == (limit, 2)
    cluster = cluster_on(paper_workers, zone=ZONE, max_hourly_cost=0.9 * SMALL)
    with pytest.raises(CostLimitExceeded, match=r"of a scheduler alone costs \$0.02"):
        await cluster
    assert not inserts(paper_workers)


async def test_scale_says_how_many_fit(paper_workers):
    options = {"zone": ZONE, "n_workers": 1, "max_hourly_cost": 4.5 * SMALL}
    async with cluster_on(paper_workers, **options) as cluster:
        cluster.scale(3)
        await until(lambda: len(worker_machines(paper_workers)) == 3)
        with pytest.raises(CostLimitExceeded) as caught:
            cluster.scale(4)
        assert caught.value.fits == 3
        assert "max_hourly_cost = 0.1" in str(caught.value)
        assert "$0.02" in str(caught.value) and "3 workers fit in" in str(caught.value)
        assert len(cluster.plan) == 3
        # Down it goes as ever, and up again to what fits.
        cluster.scale(1)
        await until(lambda: len(worker_machines(paper_workers)) == 1)
        cluster.scale(3)
        await until(lambda: len(worker_machines(paper_workers)) == 3)


async def test_adapt_gets_as_many_as_fit(paper_workers):
    async with cluster_on(paper_workers, zone=ZONE, max_hourly_cost=3.5 * SMALL) as cluster:
        cluster.adapt(minimum=7, interval="20 ms")
        await until(lambda: len(worker_machines(paper_workers)) == 2)
        asked = inserts(paper_workers)
        before = paper_workers.requests["compute.instances.list"]
        await until(lambda: paper_workers.requests["compute.instances.list"] > before + 2)
        assert inserts(paper_workers) == asked
        assert len(worker_machines(paper_workers)) == 2
        (said,) = notes(cluster, "cost limit")
        assert "has room for 2 of the machines" in said


async def test_what_has_failed_counts_until_it_is_gone(paper_workers):
    options = {"zone": ZONE, "n_workers": 2, "max_hourly_cost": 3.5 * SMALL}
    async with cluster_on(paper_workers, **options) as cluster:
        members = cluster._fleet.members
        await until(lambda: len(members) == 3 and all(each.instance for each in members.values()))
        assert cluster._counted() == pytest.approx(3 * SMALL)
        one = next(members[name] for name in cluster.worker_spec)
        where = {"name": one.name, "zone": one.zone}
        one.failure = StartTimeout("It has not started.", **where)
        assert cluster._counted() == pytest.approx(3 * SMALL)
        one.failure = InstanceLost("It is gone.", **where)
        assert cluster._counted() == pytest.approx(2 * SMALL)


async def test_a_dearer_replacement_is_not_made(paper_workers, monkeypatch):
    monkeypatch.setattr("dask_gce.budget.ROOM_AGAIN", 0.2)
    medium = SMALL + 0.5 * 0.02181 + 2 * 0.002924
    types = {
        "scheduler_machine_type": "e2-medium",
        "worker_machine_type": ["e2-small", "e2-standard-2"],
    }
    options = {"zone": ZONE, "n_workers": 2, "max_hourly_cost": medium + 2.5 * SMALL, **types}
    paper_workers.capacity.set(ZONE, "e2-small", instances=1)
    async with cluster_on(paper_workers, **options) as cluster:
        # One machine of a worker is not to be had any more, and the other type is too dear.
        await until(lambda: notes(cluster, "blocked"))
        await until(lambda: any("has room for 1" in each for each in notes(cluster, "cost limit")))
        assert len(worker_machines(paper_workers)) == 1
        types = {each["machineType"].rpartition("/")[2] for each in paper_workers.instances()}
        assert types == {"e2-medium", "e2-small"}
        # Nothing is given up: room may come.
        assert cluster._target == 2


async def test_what_has_become_dearer_is_not_asked_for(paper_workers):
    medium = SMALL + 0.5 * 0.02181 + 2 * 0.002924
    types = {
        "scheduler_machine_type": "e2-medium",
        "worker_machine_type": ["e2-small", "e2-standard-2"],
    }
    options = {"zone": ZONE, "max_hourly_cost": medium + 2.5 * SMALL, **types}
    async with cluster_on(paper_workers, **options) as cluster:
        asked = inserts(paper_workers)
        cluster.scale(2)
        assert len(cluster.worker_spec) == 2
        # Between the plan and the request.
        placement = cluster._ready.workers
        placement.block(
            placement.locations[0], OutOfCapacity("none", code="ZONE_RESOURCE_POOL_EXHAUSTED")
        )
        await until(lambda: notes(cluster, "cost limit"))
        await until(lambda: not cluster.worker_spec)
        assert inserts(paper_workers) == asked and not cluster.failures


async def test_on_demand_instead_of_spot_does_not_break_the_limit(paper_workers):
    spot = 0.5 * 0.00872 + 2 * 0.001169 + 30 * 0.04 / 730 + 0.0025
    options = {"zone": ZONE, "n_workers": 3, "spot": "fallback"}
    paper_workers.capacity.set(ZONE, instances=0, spot=True)
    limit = SMALL + 3 * spot + 0.3 * SMALL
    assert SMALL + SMALL < limit < 3 * SMALL
    cluster = cluster_on(paper_workers, max_hourly_cost=limit, **options)
    # The list tells that Spot machines are cheap, so it is worth a start.
    settings = Settings.load(zone=ZONE, api_endpoint=paper_workers.endpoint)
    listed = await price_list.learn_tariff(settings, "local-project")
    assert listed is not None
    cluster._believe(listed)
    async with cluster:
        await until(lambda: notes(cluster, "blocked"))
        await until(lambda: any("has room for 1" in each for each in notes(cluster, "cost limit")))
        await until(lambda: len(worker_machines(paper_workers)) == 1)
        assert cluster.cost.hourly.amount <= limit


async def test_a_spot_machine_of_unknown_price_counts_like_one_on_demand(paper_workers):
    options = {"zone": ZONE, "spot": True, "live_prices": False}
    cluster = cluster_on(paper_workers, n_workers=2, max_hourly_cost=2.5 * SMALL, **options)
    with pytest.raises(CostLimitExceeded, match="1 worker fits in"):
        await cluster
    async with cluster_on(paper_workers, n_workers=1, max_hourly_cost=2.5 * SMALL, **options):
        await until(lambda: len(worker_machines(paper_workers)) == 1)


@pytest.mark.parametrize(
    ("live", "disabled", "remedy"),
    [
        (False, False, "live_prices=True reads Google's price list"),
        (True, True, "the Cloud Billing API has to be enabled"),
        (True, False, "Google's price list does not tell it"),
    ],
)
async def test_a_limit_without_a_price_is_refused(paper_workers, live, disabled, remedy):
    if disabled:
        paper_workers.services.disable(BILLING)
    cluster = cluster_on(
        paper_workers, zone=ZONE, machine_type="c4-standard-4", max_hourly_cost=5, live_prices=live
    )
    with pytest.raises(CostLimitExceeded) as caught:
        await cluster
    assert remedy in str(caught.value) and "c4-standard-4" in str(caught.value)
    assert caught.value.fits is None
    assert not inserts(paper_workers)


async def test_a_limit_waits_for_the_list_where_the_table_does_not_know(paper_workers):
    options = {"zone": ZONE, "machine_type": "e2-custom-2-4096", "max_hourly_cost": 0.15}
    async with cluster_on(paper_workers, n_workers=1, **options) as cluster:
        assert cluster.hourly_cost.live
        with pytest.raises(CostLimitExceeded):
            cluster.scale(2)


async def test_places_of_unknown_price_are_left_out(paper_workers):
    options = {"machine_type": ["c4-standard-4", "e2-small"], "max_hourly_cost": 1}
    async with cluster_on(paper_workers, zone=ZONE, **options) as cluster:
        (said,) = notes(cluster, "cost limit")
        assert "c4-standard-4" in said and "left out" in said
        types = {each["machineType"].rpartition("/")[2] for each in paper_workers.instances()}
        assert types == {"e2-small"}


# -- the command ----------------------------------------------------------------------------------


@pytest.fixture
def quick(discovery):
    """Return a local Compute Engine whose machines are paper and take milliseconds."""
    with ComputeEmulator("paper", timings=QUICK) as running:
        yield running


def test_the_command_shows_what_a_cluster_costs(quick):
    make(quick, s={"role": "scheduler"}, w={})
    told = read(quick, "cost", "grid")
    assert told["name"] == "grid" and told["cost"]["machines"] == 2
    assert told["cost"]["spent"]["source"] == "price list"
    # Machines do not tell of what type their disks are.
    assert told["cost"]["hourly"]["missing"] == ["boot disks in us-central1"]
    assert told["cost"]["hourly"]["amount"] == pytest.approx(2 * 0.021755, rel=0.01)
    assert [each["role"] for each in told["machines"]] == ["scheduler", "worker"]
    text = succeed(quick, "cost", "grid")
    assert "An hour:  at least $0.04" in text and "for 2 machines" in text
    assert "So far:   2 machine minutes in" in text
    assert run(quick, "cost", "grind").exit_code == 3


def test_the_command_makes_do_with_the_table(quick):
    make(quick, s={"role": "scheduler"})
    quick.services.disable(BILLING)
    assert read(quick, "cost", "grid")["cost"]["hourly"]["source"] == "table"
    assert "Machines that are gone" in run(quick, "cost", "grid").stderr
