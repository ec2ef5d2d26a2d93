"""Clusters for tests: quick to make, and easy to look at from the cloud's side.

Owns: the settings that all of them share, waiting for something to happen, and the list of the
machines there are.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

from distributed import Client

from dask_gce import GCECluster
from dask_gce.compute import Compute
from dask_gce.emulator import ComputeEmulator, Fault

#: Seconds after which something that should happen is believed not to.
PATIENCE = 120.0

INSERT, BULK = "compute.instances.insert", "compute.instances.bulkInsert"
DELETE = "compute.instances.delete"


def settings(emulator: ComputeEmulator, **more: Any) -> dict[str, Any]:
    """Return keywords of an asynchronous cluster on small machines, without a Nanny or TLS."""
    return {
        "api_endpoint": emulator.endpoint,
        "machine_type": "e2-small",
        "worker_class": "distributed.Worker",
        "security": False,
        "asynchronous": True,
        "quiet": True,
        **more,
    }


def cluster_on(emulator: ComputeEmulator, **more: Any) -> GCECluster:
    """Return an asynchronous cluster, not yet started."""
    return GCECluster(**settings(emulator, **more))


async def until(condition: Callable[[], Any], seconds: float = PATIENCE) -> None:
    """Wait until something is true."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "did not happen in time"
        await asyncio.sleep(0.02)


def wait_until(condition: Callable[[], Any], seconds: float = PATIENCE) -> None:
    """Wait until something is true, outside an event loop."""
    asyncio.run(until(condition, seconds))


async def until_at_work(client: Client, count: int, seconds: float = PATIENCE) -> None:
    """Wait until so many workers are given something to do.

    A worker says that it runs a moment after it has registered, of which clusters are told.
    """
    deadline = time.monotonic() + seconds
    while True:
        known = (await client.scheduler.identity())["workers"].values()
        if sum(each["status"] == "running" for each in known) >= count:
            return
        assert time.monotonic() < deadline, "did not happen in time"
        await asyncio.sleep(0.02)


def worker_machines(emulator: ComputeEmulator) -> set[str]:
    """Return the names of the workers' instances, but for those on their way out."""
    return {
        each["name"]
        for each in emulator.instances()
        if "-worker-" in each["name"] and each["status"] not in ("STOPPING", "TERMINATED")
    }


def is_worker(name: str) -> bool:
    """Tell whether an instance is a worker's, by its name."""
    return "-worker-" in name


def refuse(emulator: ComputeEmulator, *, times: int = 1, status: int = 400) -> None:
    """Refuse inserts of single workers for a reason that repeating does not mend."""
    emulator.faults.add(
        Fault(
            INSERT,
            status=status,
            reason="invalid",
            message="Invalid value.",
            match=is_worker,
            times=times,
        )
    )


def hold_first(compute: Compute, verb: str) -> tuple[asyncio.Event, asyncio.Event]:
    """Hold back the first call of a verb; return what tells that it is held, and what lets it go.

    Whatever is to happen before the answer can take its time.
    """
    call, numbers = getattr(compute, verb), itertools.count()
    held, leave = asyncio.Event(), asyncio.Event()

    async def late(*arguments: Any, **options: Any) -> Any:
        if next(numbers) == 0:
            held.set()
            await leave.wait()
        return await call(*arguments, **options)

    setattr(compute, verb, late)
    return held, leave


@contextlib.contextmanager
def machine_stalls() -> Iterator[Callable[[], float]]:
    """Tell for how long, at most, a thread that does nothing was kept from it: by the machine."""
    over, longest = threading.Event(), 0.0

    def watch() -> None:
        nonlocal longest
        before = time.monotonic()
        while not over.wait(0.01):
            longest = max(longest, time.monotonic() - before)
            before = time.monotonic()

    watching = threading.Thread(target=watch)
    watching.start()
    try:
        yield lambda: longest
    finally:
        over.set()
        watching.join()


def break_operations(emulator: ComputeEmulator, *, times: int = 1, method: str = INSERT) -> None:
    """Let inserts of workers be accepted and then fail."""
    error = {"code": "INTERNAL_ERROR", "message": "Internal error."}
    emulator.faults.add(Fault(method, operation_errors=[error], match=is_worker, times=times))
