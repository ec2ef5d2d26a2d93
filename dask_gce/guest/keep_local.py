"""Keep scaling down away from the workers on the scheduler's own machine: a preload.

Their machine stays for as long as the scheduler does, so letting them go would save nothing. Runs
in the container, with Dask but without the package that sent it.
"""

from __future__ import annotations

import dask.config
from distributed.comm.addressing import get_address_host
from distributed.diagnostics.plugin import SchedulerPlugin
from distributed.preloading import PreloadManager, process_preloads
from distributed.scheduler import Scheduler, WorkerState


class KeepLocal(SchedulerPlugin):
    """Leave workers of this machine out when the scheduler is asked which ones could go."""

    name = "dask-gce-keep-local"

    def __init__(self, preloads: PreloadManager) -> None:
        self._preloads = preloads

    def valid_workers_downscaling(
        self, scheduler: Scheduler, workers: list[WorkerState]
    ) -> list[WorkerState]:
        """Return the workers that may go."""
        here = get_address_host(scheduler.address)
        return [worker for worker in workers if worker.host != here]

    async def before_close(self) -> None:
        """End what this preload took the place of."""
        await self._preloads.teardown()


async def dask_setup(scheduler: Scheduler) -> None:
    """Register the plugin, and start what this preload took the place of."""
    # Dask looks into its configuration only when no preload is given.
    alone = len(scheduler.preloads) == 1
    section = "distributed.scheduler"
    preloads = process_preloads(
        scheduler,
        dask.config.get(f"{section}.preload") if alone else [],
        dask.config.get(f"{section}.preload-argv") if alone else [],
    )
    scheduler.add_plugin(KeepLocal(preloads))
    await preloads.start()
