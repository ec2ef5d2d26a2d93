"""The benchmarks' arithmetic and pages; `make bench` measures, which no test does."""

from __future__ import annotations

import asyncio
import json
import time
from xml.etree import ElementTree

import pytest

from benchmarks.fleet import __main__ as program
from benchmarks.fleet import contenders, floor, measure
from benchmarks.fleet.cloud import Cloud, CloudInitRecord, Scenario
from benchmarks.fleet.figures import Figure, Value, build_figures, extrapolate
from benchmarks.fleet.plot import draw
from benchmarks.fleet.report import render_table, render_text, show_promise

PLAN = program.Plan(workers=1000, sizes=(100, 300), repeats=3)


def results(**changes):
    """Return what a run might have measured."""
    many = {"stall starting": 9.0, "stall closing": 8.0, "busy starting": 7.0, "busy closing": 6.0}
    ours = {**many, "known": 7.0, "calls": 12, "closed": 12.0, **changes}
    small, large = {**many, "calls": 427, "closed": 18.0}, {**many, "calls": 1227, "closed": 48.0}
    measured = {
        ("floor", "first", 1): {"seconds": 25.0},
        ("ours", "first", 1): {"seconds": 27.0},
        ("rival", "first", 1): {"seconds": 54.0},
        ("floor", "many", 1000): {"known": 6.0, "calls": 7, "closed": 11.0},
        ("ours", "many", 1000): ours,
        ("rival", "many", 100): {**small, "known": 35.0},
        ("rival", "many", 300): {**large, "known": 85.0},
        ("ours", "acting", 10): {"seconds": 0.004},
        ("rival", "acting", 10): {"seconds": 10.0},
        ("ours", "lost", 40): {"lost": 0},
        ("rival", "lost", 40): {"lost": 300},
        ("ours", "memory", 1000): {"bytes": 2300.0},
        ("rival", "memory", 100): {"bytes": 47000.0},
        ("ours", "joined", 1000): {"joined": 18.0, "closed": 12.0, "stall": 90.0, "busy": 40.0},
    }
    return {key: [value, value, value] for key, value in measured.items()}


def figures(**changes) -> list[Figure]:
    return build_figures(results(**changes), PLAN.workers, PLAN.sizes)


def test_every_run_of_the_plan_is_shown_and_every_figure_is_run():
    assert set(PLAN.runs()) == set(results())
    assert PLAN.runs().count(("ours", "many", 1000)) == 3
    for contender, measurement, _ in PLAN.runs():
        assert contender == "floor" or contender in contenders.CONTENDERS
        assert measurement in (floor.FLOORS if contender == "floor" else measure.MEASUREMENTS)


def test_the_rival_is_carried_on_along_a_line_and_marked():
    assert extrapolate((100, 35.0), (300, 85.0), 1000) == 260.0
    known = figures()[1]
    assert known.rival == Value(260.0, "model")
    assert known.better_than_rival == pytest.approx(260 / 7)
    assert known.over_floor == pytest.approx(7 / 6)


@pytest.mark.parametrize(("seconds", "kept"), [(7.19, True), (7.21, False)])
def test_a_promise_in_floors_is_kept_up_to_it(seconds, kept):
    known = figures(known=seconds)[1]
    assert known.bound == pytest.approx(7.2)
    assert known.reached is kept
    assert show_promise(known) == f"1.2 x floor: {'yes' if kept else '**no**'}"


@pytest.mark.parametrize(("calls", "kept"), [(15, True), (16, False)])
def test_a_promise_in_numbers_is_kept_up_to_it(calls, kept):
    assert figures(calls=calls)[2].reached is kept


def test_what_is_not_promised_is_neither_kept_nor_broken():
    joined = figures()[-1]
    assert joined.reached is None
    assert joined.better_than_rival is None
    assert show_promise(joined) == "-"


def test_the_tables_have_a_line_for_each_figure():
    rows = figures(**{"stall closing": 180.0})
    assert len(render_table(rows).splitlines()) == len(rows) + 2
    assert "| 260 s (model) | 6.0 s | 7.0 s | 1.17 | 37 | 1.2 x floor: yes |" in render_table(rows)
    assert len(render_text(rows).splitlines()) == len(rows) + 1
    assert "25.0 ms: no" in render_text(rows)


def test_the_picture_has_a_bar_for_each_number_and_is_the_same_each_time():
    rows = figures()
    picture = draw(rows)
    assert picture == draw(figures())
    compared = [row for row in rows if row.rival is not None]
    bars = sum(2 + (row.floor is not None) for row in compared)
    rectangles = ElementTree.fromstring(picture).iter("{http://www.w3.org/2000/svg}rect")  # noqa: S314 # our own text
    assert len(list(rectangles)) == bars + 1


def test_the_page_takes_everything_that_it_names(tmp_path, monkeypatch):
    (tmp_path / "docs").mkdir()
    monkeypatch.setattr(program, "ROOT", tmp_path)
    monkeypatch.setattr(program, "version_of_rival", lambda: "2025.9.0")
    program.write_page(results(), figures(), PLAN)
    page = (tmp_path / "docs" / "performance.md").read_text("utf-8")
    assert "| 300 | 85.0 s | 1,227 | 48.0 s |" in page
    assert "{" not in page
    assert (tmp_path / "docs" / "performance.svg").exists()


def test_cloud_init_commands_become_the_startup_script():
    user_data = "#cloud-config\nruncmd:\n  - 'docker run image dask'\n  - shutdown -h now\n"
    resource = {"name": "m", "metadata": {"items": [{"key": "user-data", "value": user_data}]}}
    record = CloudInitRecord("p", 1, "z", resource)
    script = "#!/bin/bash\ndocker run image dask\nshutdown -h now\n"
    assert record.metadata == {"user-data": user_data, "startup-script": script}


async def test_a_stall_is_noticed():
    stalls = measure.Stalls()
    async with stalls.watched():
        await asyncio.sleep(0.01)
        time.sleep(0.05)  # noqa: ASYNC251 # what is measured
        await asyncio.sleep(0.01)
    assert stalls.worst > 0.04


async def test_the_emulator_of_a_measurement_answers_and_ends(monkeypatch):
    with Cloud(Scenario("paper-workers", prompt=True)) as cloud:
        result = await floor.many(cloud, 3)
        assert result["calls"] >= 5
        assert cloud.calls()["compute.instances.delete"] == 4
        assert await cloud.called(["compute.instances.delete"], 3) <= time.monotonic()
    json.dumps(result)
