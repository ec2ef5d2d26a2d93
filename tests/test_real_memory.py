"""A worker on a machine of 2 GB spills, pauses and dies as one does; nobody else notices."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import dask
import pytest
from clusters import wait_until
from distributed import Client, wait
from distributed.scheduler import KilledWorker
from machines import DASK_IMAGE, needs_namespaces

from dask_gce import GCECluster
from dask_gce.emulator import ComputeEmulator

pytestmark = [
    needs_namespaces,
    pytest.mark.timeout(900),
    # They differ in the patch release, which does no harm.
    pytest.mark.filterwarnings("ignore::distributed.versions.VersionMismatchWarning"),
]

MIB = 2**20
#: Seconds in which a task of a few hundred MiB is done on a busy machine.
LONG = 300.0


class Tasks:
    """What the worker is asked to do; local functions, for it does not have this module."""

    def __init__(self) -> None:
        def fill(number: int, size: int) -> bytes:
            import os

            return os.urandom(2**20) * size

        def hold(size: float, dask_worker: Any) -> None:
            import psutil

            process = psutil.Process()
            held = getattr(dask_worker, "held_by_the_test", None) or []
            while process.memory_info().rss < size:
                held.append(b"x" * 2**20)
            dask_worker.held_by_the_test = held

        def let_go(dask_worker: Any) -> None:
            dask_worker.held_by_the_test = None

        def eat() -> int:
            import os

            eaten = []
            while len(eaten) < 64 * 1024:
                eaten.append(os.urandom(2**20))
            return len(eaten)

        def spilled(dask_worker: Any) -> int:
            return int(dask_worker.data.spilled_total.disk)

        #: Returns so much data in MiB.
        self.fill = fill
        #: Lets its process have so many bytes, with memory of which Dask does not know that it
        #: could be spilled.
        self.hold = hold
        #: Frees it.
        self.let_go = let_go
        #: Takes memory until there is none.
        self.eat = eat
        #: Returns how much is on the worker's disk, in bytes.
        self.spilled = spilled


def test_a_worker_of_2_gb_spills_pauses_and_dies_alone(namespace_emulator: ComputeEmulator) -> None:
    with (
        # Nobody is to give a machine up that is only slow.
        dask.config.set({"distributed.deploy.lost-worker-timeout": f"{LONG} s"}),
        GCECluster(
            project="my-project",
            api_endpoint=namespace_emulator.endpoint,
            container_image=DASK_IMAGE,
            quiet=True,
            n_workers=2,
            machine_type="e2-small",
            scheduler_options={"allowed_failures": 0},
        ) as cluster,
        Client(cluster) as client,
    ):
        client.wait_for_workers(2, timeout=LONG)
        tasks = Tasks()
        workers = client.scheduler_info(n_workers=-1)["workers"]
        small, sibling = workers
        limit = workers[small]["memory_limit"]
        assert 2**30 < limit < 2 * 2**30
        before = client.run(os.getpid, workers=[sibling])[sibling]

        # More results than fit: what is least needed goes to the machine's disk, all stay there.
        pieces = 1 + int(1.3 * limit / (8 * MIB))
        results = client.map(tasks.fill, range(pieces), size=8, workers=[small], pure=False)
        wait(results, timeout=LONG)
        sizes = client.map(len, results, workers=[small])
        assert client.gather(sizes) == [8 * MIB] * pieces
        assert client.run(tasks.spilled, workers=[small])[small] > 0.2 * limit
        del results, sizes

        def status() -> str:
            return str(client.scheduler_info(n_workers=-1)["workers"][small]["status"])

        def used() -> int:
            return int(client.scheduler_info(n_workers=-1)["workers"][small]["metrics"]["memory"])

        def is_paused() -> bool:
            # What was freed only now leaves room for more.
            client.run(tasks.hold, 0.85 * limit, workers=[small])
            return status() == "paused"

        # Memory that cannot be spilled: it takes no more work until that is free again.
        _until(lambda: used() < 0.3 * limit)
        _until(is_paused)
        client.run(tasks.let_go, workers=[small])
        _until(lambda: status() == "running")

        # More than there is: its process dies, and takes the task with it.
        with pytest.raises(KilledWorker):
            client.submit(tasks.eat, workers=[small]).result(timeout=LONG)
        assert client.run(os.getpid, workers=[sibling])[sibling] == before
        assert client.submit(sum, [1, 2], workers=[sibling]).result(timeout=LONG) == 3


def _until(condition: Callable[[], Any]) -> None:
    wait_until(condition, seconds=LONG)
