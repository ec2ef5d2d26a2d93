"""When clusters end is shown as far as it is told, and whatever is not told holds nothing up."""

from __future__ import annotations

import asyncio
from datetime import datetime, timedelta, timezone
from typing import Any

import pytest
from clusters import cluster_on, until
from command_line import read, succeed
from records import NOON, compute_of, machine, record

from dask_gce import ends
from dask_gce.cli.output import render_end
from dask_gce.ends import parse_ends, read_ends
from dask_gce.errors import TransportError

SOON = datetime(2027, 1, 15, 8, 0, tzinfo=timezone.utc)


@pytest.mark.parametrize(
    "text",
    [
        *("", "{", "3", "[]", "null", '{"idle_timeout": "soon", "other": 1}'),
        *('{"idle_timeout": true, "max_lifetime": 1e300}', '{"idle_timeout": NaN}'),
    ],
)
def test_what_a_machine_writes_may_be_anything(text):
    assert parse_ends(text) == {}


def test_the_nearest_end_counts_and_the_label_tells_the_lifetime():
    assert record().next_end is None
    assert record(expires=NOON).next_end == ("max_lifetime", NOON)
    later = NOON + timedelta(hours=1)
    # The scheduler's machine knows better, since it ends in order a little before.
    assert record(expires=later, ends={"max_lifetime": NOON}).next_end == ("max_lifetime", NOON)
    both = record(expires=later, ends={"idle_timeout": NOON})
    assert both.next_end == ("idle_timeout", NOON)
    assert both.to_json()["ends"] == {"idle_timeout": "2026-11-20T12:00:00Z"}


@pytest.mark.parametrize(
    ("end", "text"),
    [
        (None, "never"),
        (("idle_timeout", NOON + timedelta(minutes=4)), "in 4m: idle_timeout"),
        (("max_lifetime", NOON + timedelta(hours=2)), "in 2h"),
        (("no_client_timeout", NOON - timedelta(minutes=5)), "5m ago: no_client_timeout"),
    ],
)
def test_an_end_is_shown_as_seen_from_now(end, text):
    assert render_end(end, NOON) == text


async def test_only_clusters_that_run_are_asked_and_silence_holds_nothing_up(emulator, monkeypatch):
    monkeypatch.setattr(ends, "READ_WITHIN", 0.5)
    asked = []

    async def attributes(zone: str, name: str, path: str) -> dict[str, str]:
        asked.append((name, path))
        if name == "silent":
            await asyncio.Event().wait()
        if name == "broken":
            raise TransportError("No.")
        return {"limits": '{"idle_timeout": 1800000000}'}

    records = [
        record(machine(name, role="scheduler", status=status))
        for name, status in (
            ("silent", "RUNNING"),
            ("broken", "RUNNING"),
            ("told", "RUNNING"),
            ("young", "STAGING"),
        )
    ]
    async with compute_of(emulator) as compute:
        monkeypatch.setattr(compute, "get_guest_attributes", attributes)
        found = await read_ends(compute, [*records, record()])
        assert await read_ends(compute, []) == ()
    assert sorted(asked) == [(each, "dask-gce/limits") for each in ("broken", "silent", "told")]
    assert [each.ends for each in found] == [{}, {}, {"idle_timeout": SOON}, {}, {}]


async def test_a_cluster_that_idles_is_listed_with_its_end(paper_workers, monkeypatch):
    # However busy this computer is.
    monkeypatch.setattr(ends, "READ_WITHIN", 120.0)
    async with cluster_on(paper_workers, n_workers=0, name="grid", idle_timeout="1 hour"):

        async def listed() -> dict[str, Any]:
            (found,) = (await asyncio.to_thread(read, paper_workers, "list"))["clusters"]
            return dict(found)

        found: dict[str, Any] = {}

        async def look() -> None:
            # Before the cluster has said for the first time that it is there, it seems to be gone.
            while found.get("ends", {}).keys() != {"idle_timeout", "max_lifetime"}:
                found.update(await listed())
                await asyncio.sleep(0.2)

        await asyncio.wait_for(look(), 120)
        assert found["ends"]["idle_timeout"] < found["ends"]["max_lifetime"] <= found["expires"]
        assert ": idle_timeout" in await asyncio.to_thread(succeed, paper_workers, "list")
        shown = await asyncio.to_thread(succeed, paper_workers, "show", "grid")
        assert ": idle_timeout" in shown
    await until(lambda: not paper_workers.leftovers())
