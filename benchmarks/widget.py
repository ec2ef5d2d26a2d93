"""What it costs to show a cluster in a notebook, on the event loop, beside Dask's own way.

The promise: with a thousand workers at most 5 ms, and at most four times what ten workers take. A
cluster shows itself twice a second on the loop that also keeps its connections. The cluster is
real, with two workers; the others are entries in what it knows of workers and machines.
"""

from __future__ import annotations

import asyncio
import os
import platform
import statistics
import time
from collections.abc import Callable

from distributed.deploy.cluster import Cluster

from dask_gce import GCECluster
from dask_gce.emulator import ComputeEmulator, Timings

ROUNDS = 25
COUNTS = (10, 100, 1000, 4000)
PROMISE, GROWTH = 5.0, 4.0  # milliseconds, and how many times


def measure(show: Callable[[], object]) -> float:
    """Return how many milliseconds it takes to show something, the median."""
    taken = []
    for _ in range(ROUNDS):
        start = time.perf_counter()
        show()
        taken.append((time.perf_counter() - start) * 1000)
    return statistics.median(taken)


async def compare() -> dict[int, tuple[float, float]]:
    """Return how long Dask's way takes and ours, by number of workers."""
    found = {}
    with ComputeEmulator("light", timings=Timings(stopping=1)) as emulator:
        async with GCECluster(
            n_workers=2,
            api_endpoint=emulator.endpoint,
            machine_type="e2-small",
            worker_class="distributed.Worker",
            security=False,
            quiet=True,
            asynchronous=True,
        ) as cluster:
            await cluster.wait_for_workers(2)
            known = cluster.scheduler_info["workers"]
            address, worker = next(iter(known.items()))
            added: list[str] = []
            for count in COUNTS:
                for number in range(len(added), count - 2):
                    name = f"{cluster.name}-worker-n{number}"
                    added.append(f"{address}{number}")
                    known[added[-1]] = {**worker, "name": name}
                    for what in ("requested", "running", "ready"):
                        cluster.events.note(name, what)
                found[count] = (
                    measure(lambda: Cluster._repr_html_(cluster)),
                    measure(cluster._repr_html_),
                )
            for each in added:
                del known[each]
    return found


def main() -> int:
    """Measure, print, and return an exit status that is not zero if the promise is broken."""
    found = asyncio.run(compare())
    print(
        f"{platform.system()} {platform.machine()}, {os.cpu_count()} CPUs, "
        f"Python {platform.python_version()}, median of {ROUNDS}, in ms"
    )
    print(f"{'workers':>8} {'Dask':>8} {'GCECluster':>11}")
    for count, (theirs, ours) in found.items():
        print(f"{count:8} {theirs:8.1f} {ours:11.2f}")
    kept = found[1000][1] <= PROMISE and found[1000][1] <= GROWTH * max(1.0, found[10][1])
    print(f"at most {PROMISE:g} ms with a thousand workers: {'yes' if kept else 'NO'}")
    return 0 if kept else 1


if __name__ == "__main__":
    raise SystemExit(main())
