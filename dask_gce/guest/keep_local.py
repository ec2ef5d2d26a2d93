"""Keep scaling down away from the workers on the scheduler's own machine: a preload.

Their machine stays for as long as the scheduler does, so letting them go would save nothing. Runs
with Dask but without the package that sent it.
"""

from __future__ import annotations

from distributed.comm.addressing import get_address_host
from distributed.diagnostics.plugin import SchedulerPlugin
from distributed.scheduler import Scheduler, WorkerState


class KeepLocal(SchedulerPlugin):
    """Leave workers of this machine out when the scheduler is asked which ones could go."""

    name = "dask-gce-keep-local"

    def valid_workers_downscaling(
        self, scheduler: Scheduler, workers: list[WorkerState]
    ) -> list[WorkerState]:
        """Return the workers that may go."""
        here = get_address_host(scheduler.address)
        return [worker for worker in workers if worker.host != here]


async def dask_setup(scheduler: Scheduler) -> None:
    """Register the plugin."""
    scheduler.add_plugin(KeepLocal())
