"""One measurement of one contender: a program that prints its results as JSON.

``python -m benchmarks.fleet.measure ours many --workers 1000``

Owns how each figure is measured. What is measured runs in a fresh interpreter, after all imports;
the local Compute Engine is another process.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import gc
import json
import sys
import time
import tracemalloc
from collections.abc import AsyncIterator, Callable, Coroutine
from typing import Any

from .cloud import Cloud, Scenario
from .contenders import CONTENDERS, Contender

Result = dict[str, float]

INSERTS = ["compute.instances.insert", "compute.instances.bulkInsert"]
DELETES = ["compute.instances.delete"]

#: Seconds after which a measurement has failed.
DEADLINE = 900.0


class Stalls:
    """The longest time for which the running loop did not run what was due.

    A task asks to be woken after a millisecond, and notes by how much it was late. Where machines
    live on the same cores, the loop's thread may have waited for a core: what it used is told too.
    """

    def __init__(self) -> None:
        self.worst = 0.0
        self.busiest = 0.0

    @contextlib.asynccontextmanager
    async def watched(self) -> AsyncIterator[None]:
        """Watch for as long as the context lasts."""
        watching = asyncio.ensure_future(self._watch())
        try:
            yield
        finally:
            watching.cancel()

    async def _watch(self) -> None:
        while True:
            due, used = time.perf_counter() + 0.001, time.thread_time()
            await asyncio.sleep(0.001)
            self.worst = max(self.worst, time.perf_counter() - due)
            self.busiest = max(self.busiest, time.thread_time() - used)


async def until(condition: Callable[[], bool], pause: float = 0.02) -> None:
    """Wait for something to be so."""
    deadline = time.monotonic() + DEADLINE
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError("the measurement takes too long")
        await asyncio.sleep(pause)


async def first(contender: Contender, cloud: Cloud, workers: int) -> Result:
    """Measure the time from nothing to the first result."""
    from distributed import Client

    start = time.perf_counter()
    async with contender.make(1) as cluster, Client(cluster, asynchronous=True) as client:
        assert await client.submit(sum, range(10)) == 45
        return {"seconds": time.perf_counter() - start}


async def many(contender: Contender, cloud: Cloud, workers: int) -> Result:
    """Measure how long it takes to know that all run, with how many calls, and how long to close.

    The loop is watched all the time, while it starts and while it closes.
    """
    starting, closing = Stalls(), Stalls()
    async with starting.watched():
        start = time.perf_counter()
        cluster = contender.make(workers)
        opening = asyncio.ensure_future(_open(cluster))
        await until(lambda: contender.known_running(cluster) >= workers or opening.done())
        if contender.known_running(cluster) < workers:
            await opening
            await until(lambda: contender.known_running(cluster) >= workers)
        known = time.perf_counter() - start
        calls = cloud.calls()
        await opening
    async with closing.watched():
        start = time.perf_counter()
        await cluster.close()
        closed = time.perf_counter() - start
    return {
        "known": known,
        "calls": sum(calls.values()),
        "closed": closed,
        "stall starting": starting.worst * 1000,
        "stall closing": closing.worst * 1000,
        "busy starting": starting.busiest * 1000,
        "busy closing": closing.busiest * 1000,
    }


async def _open(cluster: Any) -> None:
    await cluster


async def joined(contender: Contender, cloud: Cloud, workers: int) -> Result:
    """Measure how long many real workers take to join, and what that does to the loop."""
    from distributed import Client

    stalls = Stalls()
    async with stalls.watched():
        start = time.perf_counter()
        async with contender.make(workers) as cluster:
            async with Client(cluster, asynchronous=True) as client:
                await client.wait_for_workers(workers, timeout=DEADLINE)
                joined = time.perf_counter() - start
            start = time.perf_counter()
        closed = time.perf_counter() - start
    return {
        "joined": joined,
        "closed": closed,
        "stall": stalls.worst * 1000,
        "busy": stalls.busiest * 1000,
    }


async def lost(contender: Contender, cloud: Cloud, workers: int) -> Result:
    """Count what 400 scattered values are reduced to when 40 workers become 10."""
    from distributed import Client

    making = contender.make(40, plain=True)
    async with making as cluster, Client(cluster, asynchronous=True) as client:
        await client.wait_for_workers(40, timeout=DEADLINE)
        futures = await client.scatter(list(range(400)), hash=False)
        held = await client.who_has(futures)
        assert len({address for addresses in held.values() for address in addresses}) == 40
        cluster.scale(10)
        await until(lambda: len(cluster.scheduler_info["workers"]) == 10)
        await asyncio.sleep(2)
        there = {n: future for n, future in enumerate(futures) if future.status == "finished"}
        assert await client.gather(list(there.values())) == list(there)
    return {"lost": 400 - len(there)}


async def acting(contender: Contender, cloud: Cloud, workers: int) -> Result:
    """Measure how long after scale(), while machines boot, the first call of it arrives."""
    cluster = contender.make(10)
    opening = asyncio.ensure_future(_open(cluster))
    # All are asked for; no worker runs yet.
    await until(lambda: cloud.instances() == 11, 0.05)
    await asyncio.sleep(1.0)
    waits = []
    for methods, target in ((INSERTS, 20), (DELETES, 0)):
        inserted = sum(cloud.calls()[method] for method in methods)
        call = asyncio.ensure_future(cloud.called(methods, inserted))
        await asyncio.sleep(0.05)
        start = time.monotonic()
        cluster.scale(target)
        waits.append(await call - start)
        await asyncio.sleep(0.5)
    await opening
    await cluster.close()
    return {"up": waits[0], "down": waits[1], "seconds": max(waits)}


async def memory(contender: Contender, cloud: Cloud, workers: int) -> Result:
    """Measure what each worker adds to the client's memory, as Python's allocator counts it."""
    tracemalloc.start()
    async with contender.make(0) as cluster:
        await asyncio.sleep(1)
        gc.collect()
        before = tracemalloc.get_traced_memory()[0]
        cluster.scale(workers)
        await until(lambda: contender.known_running(cluster) >= workers, 0.2)
        await asyncio.sleep(2)
        gc.collect()
        grown = tracemalloc.get_traced_memory()[0] - before
        tracemalloc.stop()
    return {"bytes": grown / workers}


Measurement = Callable[[Contender, Cloud, int], Coroutine[Any, Any, Result]]

#: The measurements, each with the cloud that it takes place in.
MEASUREMENTS: dict[str, tuple[Measurement, Scenario]] = {
    "first": (first, Scenario("process", running=10, booting=15)),
    "many": (many, Scenario("paper-workers", running=5)),
    "joined": (joined, Scenario("light", running=5)),
    "lost": (lost, Scenario("process", prompt=True)),
    "acting": (acting, Scenario("paper-workers", running=10, prompt=True)),
    "memory": (memory, Scenario("paper-workers", prompt=True)),
}


def main() -> int:
    """Measure once and print the result."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.fleet.measure")
    parser.add_argument("contender", choices=[*CONTENDERS, "floor"])
    parser.add_argument("measurement", choices=MEASUREMENTS)
    parser.add_argument("--workers", type=int, default=1)
    options = parser.parse_args()
    measurement, scenario = MEASUREMENTS[options.measurement]
    with Cloud(scenario) as cloud:
        if options.contender == "floor":
            from . import floor

            result = asyncio.run(floor.FLOORS[options.measurement](cloud, options.workers))
        else:
            contender = CONTENDERS[options.contender]()
            contender.prepare(cloud.endpoint)
            result = asyncio.run(measurement(contender, cloud, options.workers))
    print(json.dumps(result))
    return 0


if __name__ == "__main__":
    sys.exit(main())
