"""What the tests of a cluster's machines share: paper machines, a fleet, and a record of calls.

Everything goes over HTTP to a local Compute Engine whose machines take milliseconds.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

from google.auth.credentials import AnonymousCredentials

from dask_gce.compute import Compute
from dask_gce.emulator import ComputeEmulator, Timings
from dask_gce.emulator.dispatch import Exchange
from dask_gce.errors import GCEError, InstanceError
from dask_gce.fleet import Fleet
from dask_gce.instance import InstanceSpec
from dask_gce.policy import Failure, RetryPolicy

#: Seconds after which something that should happen is believed not to.
PATIENCE = 120.0

CLUSTER = "dask-1"
ZONE, OTHER_ZONE = "us-central1-a", "us-central1-b"

QUICK = Timings(latency=0.001, pending=0.002, provisioning=0.01, staging=0.01, deleting=0.01)

WORKER = InstanceSpec(
    "worker",
    project="local-project",
    zone=ZONE,
    machine_type="e2-small",
    source_image="projects/cos-cloud/global/images/family/cos-stable",
    boot_disk_size=10,
    network="default",
    labels={"dask-gce-cluster": CLUSTER, "dask-gce-id": "1", "dask-gce-role": "worker"},
    metadata={"enable-guest-attributes": "TRUE"},
)
SCHEDULER = replace(WORKER, labels={**WORKER.labels, "dask-gce-role": "scheduler"})
#: Something that a bulk insert does not know.
SINGLE = replace(WORKER, overrides={"deletionProtection": False})


def workers(*names: str, template: InstanceSpec = WORKER, **changes: Any) -> list[InstanceSpec]:
    """Return specifications that differ in their names only."""
    template = replace(template, **changes)
    return [replace(template, name=name) for name in names]


def numbered(count: int, prefix: str = "vm") -> list[str]:
    return [f"{prefix}-{number}" for number in range(count)]


class Once(RetryPolicy):
    """One attempt a call, so that a fleet's own repeats are seen, however long an answer takes."""

    def delay(self, failure: Failure, attempt: int, *, now: float) -> float | None:
        return None


class Cloud(ComputeEmulator):
    """A local Compute Engine that remembers what it was asked, in the order of the answers."""

    def __init__(self, timings: Timings = QUICK, **options: Any) -> None:
        self.log: list[Exchange] = []
        super().__init__("paper", timings=timings, observers=[self.log.append], **options)

    def asked(self, method: str) -> list[Exchange]:
        """Return the exchanges of a method, such as ``instances.insert``."""
        return [each for each in self.log if each.method_id == f"compute.{method}"]

    def alive(self) -> set[str]:
        return {each["name"] for each in self.instances() if each["status"] != "STOPPING"}


@asynccontextmanager
async def a_fleet(endpoint: str, **options: Any) -> AsyncIterator[Fleet]:
    """Make a fleet; at the end its machines are deleted.

    A call is made once, unless there is a ``call_timeout`` for its repeats.
    """
    verbs = {"credentials": AnonymousCredentials(), "rate": 10_000}
    if "call_timeout" not in options:
        verbs["policy"] = Once()
    verbs.update({key: options.pop(key) for key in ("clock", "call_timeout") if key in options})
    async with Compute("local-project", endpoint=endpoint, **verbs) as compute:
        # Google's library takes seconds to import on a busy machine, and deadlines run.
        await compute.open()
        fleet = Fleet(compute, CLUSTER, options.pop("identity", "1"), **options)
        yield fleet
        await fleet.delete_all()


async def request(fleet: Fleet, specs: Iterable[InstanceSpec], timeout: float = 60.0) -> list[Any]:
    """Ask for machines in one turn of the loop; return None or an error for each."""
    asked = [fleet.request(spec, timeout) for spec in specs]
    return await asyncio.gather(*asked, return_exceptions=True)


async def until(
    condition: Callable[[], object], seconds: float = PATIENCE, pause: float = 0.005
) -> None:
    """Wait until something is so; without a pause no turn of the loop goes by unseen."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        await asyncio.sleep(pause)


async def look_until(
    fleet: Fleet, condition: Callable[[], object], seconds: float = PATIENCE
) -> None:
    """Look at the machines, as a watcher does, until something is so."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        await fleet.look()
        await asyncio.sleep(0.005)


async def running(fleet: Fleet, *names: str) -> None:
    """Wait until machines run."""
    await look_until(
        fleet, lambda: all(fleet.members[name].running_since is not None for name in names)
    )


async def failed(fleet: Fleet, *names: str) -> dict[str, InstanceError]:
    """Wait until exactly these machines have failed; return how."""
    deadline = time.monotonic() + PATIENCE
    while True:
        await fleet.look()
        found = {each.name: each for each in await fleet.check(list(fleet.members))}
        if set(found) == set(names):
            return found
        assert time.monotonic() < deadline, found
        await asyncio.sleep(0.005)


async def gone(cloud: ComputeEmulator) -> None:
    """Wait until nothing is left."""
    await until(lambda: not cloud.leftovers())


def codes(failures: Iterable[GCEError]) -> list[str]:
    """Return what Compute Engine called the causes."""
    return [getattr(each.__cause__, "code", "") for each in failures]
