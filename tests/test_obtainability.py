"""In which order the places of Spot machines are tried, and that advice is never needed."""

from __future__ import annotations

import pytest
from clusters import cluster_on, until
from google.auth.credentials import AnonymousCredentials

from dask_gce import obtainability
from dask_gce.compute import Compute
from dask_gce.emulator import ComputeEmulator, Fault, Timings
from dask_gce.emulator.dispatch import Exchange
from dask_gce.errors import GCEError
from dask_gce.failures import Place
from dask_gce.library import Call
from dask_gce.obtainability import Advice, Outlook, ask_for_advice, order, zones_like
from dask_gce.placement import Location, MachineShape
from dask_gce.preparation import find_places
from dask_gce.settings import Settings

A, B, C = "us-central1-a", "us-central1-b", "us-central1-c"
FAR = "us-east1-b"
CAPACITY, HISTORY = "compute.advice.capacity", "compute.advice.capacityHistory"
QUICK = Timings(latency=0.0)


def places(*names: str) -> list[Location]:
    """Return locations by zone, with a machine type of 4 vCPUs unless another is named."""
    found = []
    for each in names:
        zone, _, name = each.partition(" ")
        cpus = int((name or "n2-standard-4").rpartition("-")[2])
        found.append(Location(zone, MachineShape(name or "n2-standard-4", cpus, cpus * 2**32)))
    return found


def told(**scores: float | tuple[float, float]) -> Advice:
    """Return advice on zones of us-central1 by letter: obtainability, or that and uptime."""
    return Advice(
        {
            (f"us-central1-{zone}", "n2-standard-4"): (
                Outlook(*score) if isinstance(score, tuple) else Outlook(score)
            )
            for zone, score in scores.items()
        }
    )


def zones(locations: list[Location]) -> str:
    return "".join(each.zone[-1] for each in locations)


# -- the order ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("scores", "expected"),
    [
        ({"a": 0.1, "b": 0.5, "c": 0.9}, "cba"),
        # Noise changes nothing.
        ({"a": 0.7, "b": 0.9, "c": 0.8}, "abc"),
        ({"a": 0.4, "b": 0.6, "c": 0.5}, "abc"),
        # What nothing is told of keeps its place.
        ({"a": 0.1, "c": 0.9}, "cba"),
        ({"b": 0.1, "c": 0.9}, "acb"),
        ({"c": 0.9}, "abc"),
        # What hardly lives is of no use, however easily it is to be had.
        ({"a": (0.9, 60.0), "b": (0.5, 600.0), "c": (0.5, 3600.0)}, "bca"),
    ],
)
def test_places_go_by_how_likely_machines_are_to_be_had(scores, expected):
    ordered, why = order(places(A, B, C), told(**scores))
    assert zones(ordered) == expected
    assert why.startswith("as given" if expected == "abc" else "by obtainability")


def test_of_equally_likely_places_the_cheaper_comes_first():
    given = places(f"{A} n2-standard-4", f"{A} n2-standard-8", f"{FAR} n2-standard-4")
    outlooks = {(each.zone, each.machine_type): Outlook(0.9) for each in given}
    prices = {
        ("us-central1", "n2-standard-4"): 0.10,
        # Dearer, but not a vCPU of it.
        ("us-central1", "n2-standard-8"): 0.12,
        ("us-east1", "n2-standard-4"): 0.05,
    }
    ordered, why = order(given, Advice(outlooks, prices))
    assert ordered == [given[2], given[1], given[0]]
    assert "n2-standard-4 in us-east1-b (high 0.9, 0.050 USD/h)" in why
    # A price that is lacking is neither high nor low.
    prices.popitem()
    assert order(given, Advice(outlooks, prices))[0] == given
    # It counts within a band only.
    outlooks[A, "n2-standard-4"] = Outlook(0.9)
    outlooks[A, "n2-standard-8"] = Outlook(0.2)
    outlooks[FAR, "n2-standard-4"] = Outlook(0.5)
    assert order(given, Advice(outlooks, prices))[0] == [given[0], given[2], given[1]]


def test_a_gpu_is_compared_with_a_gpu():
    one = MachineShape("g2-standard-4", 4, 2**34, gpus=1, gpu_type="nvidia-l4")
    two = MachineShape("g2-standard-24", 24, 2**36, gpus=2, gpu_type="nvidia-l4")
    given = [Location(A, one), Location(A, two)]
    outlooks = {(A, each.machine_type): Outlook(0.9) for each in given}
    prices = {("us-central1", "g2-standard-4"): 0.3, ("us-central1", "g2-standard-24"): 0.7}
    assert order(given, Advice(outlooks, prices))[0] == given


def test_the_scheduler_goes_where_workers_are_to_be_had():
    assert zones(zones_like(places(A, B, C), places(C, A, C))) == "cab"
    assert zones_like(places(A), []) == places(A)


@pytest.mark.parametrize(
    "answer",
    [
        {},
        {"recommendations": []},
        {"recommendations": [{}]},
        {"recommendations": [{"scores": {"obtainability": "much"}}]},
    ],
)
def test_an_answer_that_tells_nothing_is_none(answer):
    assert obtainability.parse_outlook(answer) is None


@pytest.mark.parametrize(
    "answer",
    [
        {},
        {"priceHistory": []},
        {"priceHistory": [{"listPrice": {"currencyCode": "EUR", "units": "1"}}]},
        {"priceHistory": [{"listPrice": {"currencyCode": "USD"}}]},
        {"priceHistory": [{"listPrice": {"currencyCode": "USD", "units": "one"}}]},
    ],
)
def test_a_price_that_is_none(answer):
    assert obtainability.parse_price(answer) is None


# -- asking ---------------------------------------------------------------------------------------


@pytest.fixture
def asked():
    """Return the exchanges of the test."""
    return []


@pytest.fixture
def emulator(discovery, asked):
    def note(exchange: Exchange) -> None:
        if ".advice." in exchange.method_id:
            asked.append(exchange)

    with ComputeEmulator("paper", timings=QUICK, observers=[note]) as running:
        yield running


@pytest.fixture
def look(emulator):
    """Return what looks for places, with these settings."""

    async def find(**settings):
        chosen = Settings.load(
            **{
                "zone": [A, B],
                "spot": True,
                "worker_machine_type": "n2-standard-4",
                "scheduler_machine_type": "e2-small",
                "n_workers": 3,
                **settings,
            }
        )
        async with Compute(
            "my-project", endpoint=emulator.endpoint, credentials=AnonymousCredentials()
        ) as compute:
            await compute.open()
            schedulers, workers, why = await find_places(compute, chosen)
        return zones(schedulers), zones(workers), why

    return find


@pytest.fixture
def patient(monkeypatch):
    """Wait for advice, however busy this machine is."""
    monkeypatch.setattr(obtainability, "ADVICE_WITHIN", 120.0)


async def test_scheduler_and_workers_go_where_spot_machines_are_to_be_had(
    look, emulator, asked, patient
):
    emulator.advice.set(A, "n2-standard-4", obtainability=0.2)
    schedulers, workers, why = await look()
    assert (schedulers, workers) == ("ba", "ba")
    assert why.startswith("by obtainability and price: n2-standard-4 in us-central1-b (high 0.9")
    # Each question once: one for each place, and one for the price in the region.
    assert [each.method_id for each in asked].count(CAPACITY) == 2
    assert [each.method_id for each in asked].count(HISTORY) == 1
    assert {each.request["size"] for each in asked if each.method_id == CAPACITY} == {3}


async def test_prices_decide_between_types(look, emulator, patient):
    emulator.advice.set("us-central1", "n2-standard-4", price=0.2)
    emulator.advice.set("us-central1", "e2-standard-4", price=0.1)
    types = ["n2-standard-4", "e2-standard-4"]
    _, workers, why = await look(zone=A, worker_machine_type=types)
    assert workers == "aa" and why.startswith("by obtainability and price: e2-standard-4 in")


@pytest.mark.parametrize(
    "settings",
    [{"spot": False}, {"zone": A}, {"spot_fraction": 0.0}],
    ids=str,
)
async def test_nobody_is_asked_where_there_is_nothing_to_choose(look, asked, settings):
    _, _, why = await look(**settings)
    assert (asked, why) == ([], "")


async def test_the_order_given_stays_where_advice_is_refused(look, emulator, patient):
    emulator.advice.set(A, obtainability=0.1)
    emulator.permissions.deny(CAPACITY)
    schedulers, workers, why = await look()
    assert (schedulers, workers) == ("ab", "ab")
    assert why.startswith("as given: no advice (") and "compute.advice.capacity" in why


async def test_one_answer_that_is_lacking_takes_no_other_with_it(look, emulator, patient):
    emulator.advice.set(A, obtainability=0.1)
    emulator.faults.add(
        Fault(HISTORY, status=403, reason="forbidden", message="No prices."),
        Fault(CAPACITY, status=404, reason="notFound", message="Not in this zone.", times=1),
    )
    zone = [A, B, C]
    # Whichever of the three it was that got no answer: the other two are known, and the third keeps
    # its place.
    _, workers, why = await look(zone=zone)
    assert sorted(workers) == ["a", "b", "c"] and "(not told)" in why
    assert "USD" not in why


async def test_advice_that_does_not_come_is_not_waited_for(look, emulator, monkeypatch):
    emulator.advice.set(A, obtainability=0.1)
    # It comes when everything is over, if it comes.
    emulator.faults.add(Fault(CAPACITY, delay=3600.0, times=2))
    monkeypatch.setattr(obtainability, "ADVICE_WITHIN", 0.5)
    _, workers, why = await look()
    assert workers == "ab" and why.startswith("as given: no advice (")


async def test_a_cluster_is_small_whatever_is_wanted_of_it(look, asked, patient):
    await look(n_workers=5000)
    assert {each.request["size"] for each in asked if each.method_id == CAPACITY} == {1000}


async def test_what_the_machines_have_beside_is_part_of_the_question(look, asked, patient):
    await look(
        worker_machine_type="n1-standard-4",
        worker_accelerator_type="nvidia-tesla-t4",
        worker_accelerator_count=2,
        local_ssds=1,
    )
    selection = {
        "guestAccelerators": [{"acceleratorType": "nvidia-tesla-t4", "acceleratorCount": 2}],
        "disks": [{"type": "SCRATCH"}],
    }
    for each in asked:
        if each.method_id == HISTORY:
            found = each.request["instanceProperties"]
        else:
            selections = each.request["instanceFlexibilityPolicy"]["instanceSelections"]
            (found,) = selections.values()
        assert selection.items() <= found.items()


async def test_a_library_that_does_not_know_the_question_is_no_error(emulator, monkeypatch):
    settings = Settings.load(zone=[A, B], spot=True)
    async with Compute(
        "my-project", endpoint=emulator.endpoint, credentials=AnonymousCredentials()
    ) as compute:
        await compute.open()
        for service, verb in (("Oracle", "ask"), ("Instances", "ask")):
            call = Call(service, verb, "AskOracleRequest", Place("ask the oracle", "my-project"))
            with pytest.raises(GCEError, match=r"google-cloud-compute .* is too old to"):
                await compute._caller.answer(call)

            async def ask(*arguments, call=call, **options):
                return await compute._caller.answer(call)

            monkeypatch.setattr(compute, "advise_capacity", ask)
            advice = await ask_for_advice(compute, settings, within=120.0)
            assert not advice.outlooks and "too old" in advice.lacking


async def test_no_more_than_so_many_places_are_asked_about(look, asked, patient):
    types = [f"n2-standard-{size}" for size in (2, 4, 8, 16, 32, 48, 64, 80, 96)]
    await look(zone=[A, B, C], worker_machine_type=types)
    questions = [each for each in asked if each.method_id == CAPACITY]
    assert len(questions) == obtainability.MOST_PLACES < 27


# -- a cluster ------------------------------------------------------------------------------------


async def test_a_cluster_is_made_where_spot_machines_are_to_be_had(paper_workers, patient):
    paper_workers.advice.set(A, obtainability=0.1)
    async with cluster_on(paper_workers, n_workers=2, zone=[A, B], spot=True) as cluster:
        await until(lambda: len(paper_workers.instances()) == 3)
        assert {each["zone"].rpartition("/")[2] for each in paper_workers.instances()} == {B}
        (ordered,) = [each for each in cluster.events if each.what == "ordered"]
        assert ordered.why.startswith(f"by obtainability and price: e2-small in {B} (high 0.9")
        # Nobody is asked again when there are to be more.
        questions = paper_workers.requests[CAPACITY]
        cluster.scale(4)
        await until(lambda: len(paper_workers.instances()) == 5)
        assert paper_workers.requests[CAPACITY] == questions == 2
