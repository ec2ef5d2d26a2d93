"""Workers whose machines are taken away leave nothing behind that is theirs alone."""

from __future__ import annotations

import asyncio
import contextlib
import tempfile
import threading
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import dask
import pytest
from clusters import until, until_at_work
from distributed import Client, Scheduler, Worker, worker_client
from distributed.core import Status

import dask_gce

PROGRAM = Path(dask_gce.__file__).parent / "guest" / "departures.py"
#: Seconds of notice that no test ever sees the end of.
LONG = 3600.0
#: Where tasks wait to be let go, and where they say that they run: by name.
GATES: dict[str, threading.Event] = {}
RUNS: list[str] = []


@pytest.fixture(autouse=True)
def gates() -> Any:
    RUNS.clear()
    yield
    for gate in GATES.values():
        gate.set()
    GATES.clear()


def gate(name: str) -> threading.Event:
    return GATES.setdefault(name, threading.Event())


def held(name: str, *_: Any) -> str:
    """Run until the gate of that name opens."""
    RUNS.append(name)
    assert gate(name).wait(120)
    return name


def quick(name: str, *_: Any) -> str:
    RUNS.append(name)
    return name


@contextlib.asynccontextmanager
async def scheduler(**config: Any) -> AsyncIterator[tuple[Scheduler, Client]]:
    with (
        tempfile.TemporaryDirectory() as folder,
        dask.config.set({"temporary_directory": folder, **config}),
    ):
        async with (
            Scheduler(
                protocol="tcp", host="127.0.0.1", dashboard=False, preload=[str(PROGRAM)]
            ) as running,
            Client(running.address, asynchronous=True) as client,
        ):
            yield running, client


@contextlib.asynccontextmanager
async def workers(on: Scheduler, *names: str, nthreads: int = 1) -> AsyncIterator[list[Worker]]:
    made = [
        Worker(on.address, name=name, nthreads=nthreads, host="127.0.0.1", dashboard=False)
        for name in names
    ]
    async with contextlib.AsyncExitStack() as stack:
        for each in made:
            await stack.enter_async_context(each)
        await until(lambda: all(on.workers[each.address].status.name == "running" for each in made))
        yield made


def names(on: Scheduler) -> set[str]:
    return {str(each.name) for each in on.workers.values()}


def status(on: Scheduler) -> dict[str, Any]:
    found: dict[str, Any] = on.extensions["dask-gce-departures"].status()
    return found


async def leave(client: Client, machine: str, seconds: float = LONG, why: str = "preempted") -> Any:
    assert client.scheduler is not None
    answer = await client.scheduler.dask_gce_leave(machine=machine, seconds=seconds, why=why)
    # As a client does that attends to it.
    await client.run_on_scheduler(
        lambda dask_scheduler: dask_scheduler.extensions["dask-gce-departures"].status()
    )
    return answer


async def test_a_worker_waits_for_a_client_to_hear_why_it_goes():
    async with scheduler() as (on, client), workers(on, "m-1", "m-2"):
        assert client.scheduler is not None
        tell = client.scheduler.dask_gce_leave
        await tell(machine="m-1", seconds=LONG, why="preempted")
        departure = on.extensions["dask-gce-departures"]._machines["m-1"]
        now = departure.ends - LONG
        assert not departure.may_close(now, True) and departure.may_close(now + 60, True)
        assert not departure.may_close(now + 60, False)
        assert departure.may_close(departure.ends, False)
        status(on)
        assert departure.may_close(now, True)
        await until(lambda: names(on) == {"m-2"})
        # There is no time for that.
        await tell(machine="m-2", seconds=8, why="shutdown")
        await until(lambda: not names(on))


async def test_results_move_and_the_worker_closes():
    async with (
        scheduler() as (on, client),
        workers(on, "m-1", "m-2") as (going, _),
    ):
        futures = [client.submit(quick, f"r{i}", workers=going.address) for i in range(50)]
        data = await client.scatter({"pure": [1, 2, 3]}, workers=[going.address])
        await client.gather(futures)
        assert await leave(client, "m-1") == {"workers": 1, "staying": 1}
        await until(lambda: names(on) == {"m-2"})
        await until(lambda: going.status is Status.closed)
        assert await client.gather(futures) == [f"r{i}" for i in range(50)]
        assert await client.gather(data["pure"]) == [1, 2, 3]
        assert len(RUNS) == 50
        assert status(on)["recomputed"] == 0
        (machine,) = status(on)["leaving"].items()
        assert machine[0] == "m-1" and machine[1]["why"] == "preempted"
        assert LONG - 300 < machine[1]["in"] <= LONG


async def test_what_runs_may_end_and_what_waits_goes_to_others():
    async with scheduler() as (on, client), workers(on, "m-1") as (going,):
        running = client.submit(held, "running")
        waiting = [client.submit(quick, f"w{i}") for i in range(10)]
        await until(lambda: RUNS == ["running"])
        await leave(client, "m-1")
        # Nobody is there yet to whom they could go, as while a replacement boots.
        await until(lambda: going.status is Status.closing_gracefully)
        async with workers(on, "m-2") as (staying,):
            assert await client.gather(waiting) == [f"w{i}" for i in range(10)]
            assert {key for each in waiting for key in [each.key]} <= staying.data.keys()
            assert names(on) == {"m-1", "m-2"} and RUNS.count("running") == 1
            gate("running").set()
            assert await running == "running"
            await until(lambda: names(on) == {"m-2"})
            assert await running == "running"
            assert sorted(RUNS) == sorted(["running", *(f"w{i}" for i in range(10))])
            assert status(on)["recomputed"] == 0


async def test_without_work_stealing_what_waits_goes_to_others_too():
    async with (
        scheduler(**{"distributed.scheduler.work-stealing": False}) as (on, client),
        workers(on, "m-1"),
    ):
        running = client.submit(held, "running")
        waiting = [client.submit(quick, f"w{i}", pure=False) for i in range(5)]
        pinned = client.submit(quick, "pinned", workers=["m-1"], allow_other_workers=True)
        await until(lambda: RUNS == ["running"])
        async with workers(on, "m-2"):
            await leave(client, "m-1")
            assert await client.gather([*waiting, pinned])
            assert "stealing" not in on.extensions and "stealing" not in on.periodic_callbacks
            gate("running").set()
            assert await running == "running"
            await until(lambda: names(on) == {"m-2"})
            assert len(RUNS) == 7


async def test_results_wait_for_somebody_to_take_them():
    async with scheduler() as (on, client), workers(on, "m-1", "m-2") as (one, two):
        futures = client.map(quick, [f"r{i}" for i in range(20)])
        await client.gather(futures)
        # All that there are, so that nobody stays; told twice, and of a machine nobody knows.
        await asyncio.gather(*(leave(client, machine) for machine in ("m-1", "m-2", "m-1", "m-9")))
        await until(lambda: {one.status, two.status} == {Status.closing_gracefully})
        late = client.submit(quick, "late")
        async with workers(on, "m-3"):
            await until(lambda: names(on) == {"m-3"})
            assert await client.gather(futures) == [f"r{i}" for i in range(20)]
            assert await late == "late"
            assert len(RUNS) == 21 and status(on)["recomputed"] == 0
            assert set(status(on)["leaving"]) == {"m-1", "m-2", "m-9"}


async def test_all_workers_of_a_machine_go_and_those_that_come_late():
    async with scheduler() as (on, client), workers(on, "m-1-0", "m-1-1", "m-10", "m-1-x"):
        assert (await leave(client, "m-1"))["workers"] == 2
        await until(lambda: names(on) == {"m-10", "m-1-x"})
        late = Worker(on.address, name="m-1-2", host="127.0.0.1", dashboard=False)
        async with late:
            await until(lambda: late.status is Status.closed)
            assert names(on) == {"m-10", "m-1-x"}


async def test_the_end_closes_what_still_runs_and_loses_no_patience_with_the_task():
    async with (
        scheduler(**{"distributed.scheduler.allowed-failures": 0}) as (on, client),
        workers(on, "m-1", "m-2") as (going, _),
    ):
        future = client.submit(
            held, "long", workers=[going.address], allow_other_workers=True, pure=False
        )
        await until(lambda: RUNS == ["long"])
        await leave(client, "m-1", seconds=LONG)
        # Sooner than it was said; what is later than that changes nothing.
        await leave(client, "m-1", seconds=1, why="shutdown")
        await leave(client, "m-1", seconds=LONG)
        assert status(on)["leaving"]["m-1"]["why"] == "shutdown"
        await until(lambda: names(on) == {"m-2"})
        await until(lambda: RUNS == ["long", "long"])
        gate("long").set()
        assert await future == "long"
        # It had not ended, so that no result was lost.
        assert status(on)["recomputed"] == 0


class Counter:
    def __init__(self) -> None:
        self.n = 0

    def increment(self) -> int:
        self.n += 1
        return self.n


async def test_an_actor_stays_until_the_end_and_keeps_no_result_from_moving():
    async with scheduler() as (on, client), workers(on, "m-1", "m-2") as (going, staying):
        counter = await client.submit(Counter, actor=True, workers=[going.address])
        future = client.submit(quick, "r", workers=[going.address])
        await future
        await leave(client, "m-1")
        await until(lambda: future.key in staying.data)
        assert await counter.increment() == 1
        assert "m-1" in names(on)
        await leave(client, "m-1", seconds=1)
        await until(lambda: names(on) == {"m-2"})
        assert await future == "r" and RUNS == ["r"]


def outer() -> list[str]:
    with worker_client() as inside:
        futures = inside.map(held, ["inner-0", "inner-1"])
        found: list[str] = inside.gather(futures)
    RUNS.append("outer")
    return found


async def test_a_task_that_waits_for_tasks_of_its_own_ends_where_it_runs():
    async with scheduler() as (on, client), workers(on, "m-1", "m-2") as (going, _):
        future = client.submit(outer, workers=[going.address])
        await until(lambda: len(RUNS) == 2)
        await leave(client, "m-1")
        for name in ("inner-0", "inner-1"):
            gate(name).set()
        assert await future == ["inner-0", "inner-1"]
        await until(lambda: names(on) == {"m-2"})
        assert await future == ["inner-0", "inner-1"]
        assert sorted(RUNS) == ["inner-0", "inner-1", "outer"]


async def test_what_is_lost_without_a_word_is_counted_and_nothing_else():
    async with scheduler() as (on, client), workers(on, "m-1", "m-2") as (going, staying):
        # Two that are kept, made of two that are not.
        sources = [
            client.submit(quick, f"source-{i}", workers=[going.address], allow_other_workers=True)
            for i in range(2)
        ]
        results = [
            client.submit(
                quick, f"result-{i}", each, workers=[going.address], allow_other_workers=True
            )
            for i, each in enumerate(sources)
        ]
        other = client.submit(quick, "other", workers=[staying.address])
        dropped = client.submit(quick, "dropped", workers=[going.address])
        await client.gather([*results, other, dropped])
        keys = {each.key for each in sources} | {dropped.key}
        del sources, dropped
        await until(
            lambda: all(key not in on.tasks or on.tasks[key].state == "released" for key in keys)
        )
        going.batched_stream.abort()
        await until(lambda: status(on)["recomputed"] == 4)
        assert await client.gather(results) == ["result-0", "result-1"]
        assert status(on)["recomputed_after"] == {"m-1": 4}
        assert sorted(RUNS) == [
            "dropped",
            "other",
            *("result-0", "result-0", "result-1", "result-1"),
            *("source-0", "source-0", "source-1", "source-1"),
        ]
        # What nobody wants any more is not computed again, and one that is asked for anew is new.
        del results
        await until(lambda: not any("quick" in str(key) for key in on.tasks if key != other.key))
        again = client.submit(quick, "result-0")
        await again
        assert status(on)["recomputed"] == 4
        extension = on.extensions["dask-gce-departures"]
        assert not extension._lost


async def test_a_scheduler_that_closes_ends_what_is_attended_to():
    async with scheduler() as (on, client), workers(on, "m-1"):
        future = client.submit(quick, "r")
        await future
        await leave(client, "m-1")
        extension = on.extensions["dask-gce-departures"]
        assert not extension._attending.done()
    assert extension._attending.done()


async def test_many_results_leave_in_looks_that_let_others_have_their_turn():
    async with scheduler() as (on, client), workers(on, "m-1", "m-2", nthreads=2) as (going, _):
        futures = client.map(int, range(6_000), workers=[going.address])
        await client.gather(futures[-1:])
        await until(lambda: len(on.workers[going.address].has_what) == 6_000)
        await leave(client, "m-1")
        await until_at_work(client, 1)
        await until(lambda: names(on) == {"m-2"})
        assert sum(await client.gather(futures)) == sum(range(6_000))
        assert status(on)["recomputed"] == 0
