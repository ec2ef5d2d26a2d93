"""A cluster on real machines that follows its work, up and down again."""

from __future__ import annotations

from typing import Any

from clusters import wait_until, worker_machines
from distributed import Client

from dask_gce import GCECluster
from dask_gce.emulator import ComputeEmulator

#: Seconds in which machines come and go on a busy host.
LONG = 180.0


def see_it_adapt(emulator: ComputeEmulator, cluster: GCECluster, client: Client) -> None:
    """Let a cluster of at most two workers have a third for its work, and then but one."""

    def work(number: int) -> int:
        from time import sleep

        sleep(0.5)
        return number

    def workers() -> int:
        return len(client.scheduler_info(n_workers=-1)["workers"])

    cluster.adapt(minimum=1, maximum=3, interval="200 ms", target_duration="1 s", wait_count=5)
    futures: list[Any] = []

    def third_has_come() -> bool:
        # As long as it is on its way there is work for it.
        while sum(not each.done() for each in futures) < 60:
            futures.append(client.submit(work, len(futures), pure=False))
        return workers() == 3

    wait_until(third_has_come, LONG)
    assert client.gather(futures) == list(range(len(futures)))
    del futures[:]
    wait_until(lambda: workers() == 1 and len(worker_machines(emulator)) == 1, LONG)
    assert client.submit(sum, [1, 2], pure=False).result(LONG) == 3
