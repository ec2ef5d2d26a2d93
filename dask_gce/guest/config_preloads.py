"""Start the preloads of the configuration, whose place ours have taken: a preload itself.

Dask looks into its configuration only when no preload is given. Runs with Dask but without the
package that sent it.
"""

from __future__ import annotations

import dask.config
from distributed.diagnostics.plugin import SchedulerPlugin
from distributed.preloading import PreloadManager, process_preloads
from distributed.scheduler import Scheduler


class ConfigPreloads(SchedulerPlugin):
    """End the preloads of the configuration with the scheduler."""

    name = "dask-gce-config-preloads"

    def __init__(self, preloads: PreloadManager) -> None:
        self._preloads = preloads

    async def before_close(self) -> None:
        """End what this preload has started."""
        await self._preloads.teardown()


async def dask_setup(scheduler: Scheduler) -> None:
    """Start what the configuration names."""
    section = "distributed.scheduler"
    preloads = process_preloads(
        scheduler,
        dask.config.get(f"{section}.preload"),
        dask.config.get(f"{section}.preload-argv"),
    )
    scheduler.add_plugin(ConfigPreloads(preloads))
    await preloads.start()
