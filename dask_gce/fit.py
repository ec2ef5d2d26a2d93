"""Whether Dask's workers fit the machines that they are meant for.

Owns the rules, and the words for what does not fit. Nothing is asked here, and nothing has been
created yet: what the machine types have was looked up before.

On the scheduler's machine, neither threads nor memory may be more than there is: the scheduler
would starve, and with it the cluster. On a machine that runs nothing but workers more threads than
vCPUs may be meant, for work that waits for data.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from dask.utils import format_bytes

from dask_gce.errors import SettingsError
from dask_gce.placement import Location, MachineShape, memory_with
from dask_gce.settings import Settings
from dask_gce.shares import Share, limit_in_bytes, local_share, share
from dask_gce.sizes import fitting_type
from dask_gce.sources import place

__all__ = ["check_fit"]


def check_fit(
    settings: Settings, schedulers: Sequence[Location], workers: Sequence[Location]
) -> None:
    """Check that every machine type can bear the workers it is to run.

    Parameters
    ----------
    settings : Settings
        The cluster's settings.
    schedulers : sequence of Location
        Where the scheduler may be.
    workers : sequence of Location
        Where workers may be. They are not checked for ``single_node``, which plans none there.

    Raises
    ------
    SettingsError
        If workers do not fit. It names the setting, the machine types and what they have, and what
        would fit.
    """
    if settings.workers_on_scheduler:
        derived = settings.sources["workers_on_scheduler"].startswith("processes (")
        key = "processes" if derived else "workers_on_scheduler"
        _check(
            settings,
            [
                _Load(each, local_share(settings, each), settings.workers_on_scheduler, True)
                for each in _shapes(schedulers)
            ],
            key,
            "scheduler_machine_type",
        )
    if not settings.single_node:
        _check(
            settings,
            [
                _Load(each, share(settings, each), settings.processes, False)
                for each in _shapes(workers)
            ],
            "processes",
            "worker_machine_type",
        )


def _shapes(locations: Sequence[Location]) -> list[MachineShape]:
    return list(dict.fromkeys(location.shape for location in locations))


@dataclass(frozen=True)
class _Load:
    """What so many workers want of a machine of that shape, which a scheduler may be on too."""

    shape: MachineShape
    share: Share
    count: int
    beside_scheduler: bool

    @property
    def limit(self) -> int:
        """The memory of one worker in bytes; zero where there is nothing to check."""
        limit = limit_in_bytes(self.share.memory_limit, self.shape) or 0
        return limit if self.beside_scheduler or not self.scales else 0

    @property
    def scales(self) -> bool:
        """Whether the limit is a share of the machine, so that a larger one is no remedy."""
        twice = MachineShape(self.shape.name, self.shape.cpus, 2 * self.shape.memory)
        limit = self.share.memory_limit
        return limit_in_bytes(limit, self.shape) != limit_in_bytes(limit, twice)

    @property
    def lacks_threads(self) -> bool:
        return self.beside_scheduler and self.count * self.share.nthreads > self.shape.cpus

    @property
    def lacks_memory(self) -> bool:
        return self.count * self.limit > self.shape.usable_memory

    @property
    def most(self) -> int:
        """How many such workers fit."""
        by_threads = self.shape.cpus // self.share.nthreads if self.beside_scheduler else math.inf
        by_memory = self.shape.usable_memory // self.limit if self.limit else math.inf
        return int(min(self.count, by_threads, by_memory))

    @property
    def larger(self) -> str | None:
        """A machine type of the same series on which all of them fit."""
        cpus = self.count * self.share.nthreads if self.beside_scheduler else self.shape.cpus
        return fitting_type(
            self.shape.name,
            cpus=max(cpus, self.shape.cpus),
            memory=max(memory_with(self.count * self.limit), self.shape.memory),
        )


def _check(settings: Settings, loads: Sequence[_Load], key: str, type_key: str) -> None:
    unfit = [load for load in loads if load.lacks_threads or load.lacks_memory]
    if not unfit:
        return
    worst = min(unfit, key=lambda load: load.most)
    if settings.sources[type_key].startswith("machine_type ("):
        type_key = "machine_type"
    changes = _smaller(unfit, key)
    remedies = [f"Use {' and '.join(_assign(settings, *change) for change in changes.items())}"]
    if any(load.lacks_memory and load.scales for load in unfit):
        if "memory_limit" not in changes and not any(load.lacks_threads for load in unfit):
            remedies.append(f"a memory_limit of at most {_largest_share(unfit, worst.count):g}")
    elif larger := worst.larger:
        remedies.append(f"a larger machine, such as {type_key}={larger!r}")
    else:
        remedies.append(f"a machine with more for each worker ({type_key})")
    if len(unfit) < len(loads):
        remedies.append(f"leave {' and '.join(load.shape.name for load in unfit)} out")
    key = next(iter(changes))
    holder = "worker_options" if key in settings.worker_options else key
    value = settings.worker_options[key] if holder != key else getattr(settings, key)
    has = " and ".join(_describe(load.shape) for load in unfit)
    raise SettingsError(
        f"{key} = {value!r} ({place(holder, settings.sources[holder])}): {_wants(worst)}, but "
        f"{has}. {', or '.join(remedies)}.",
        key=holder,
    )


def _smaller(unfit: Sequence[_Load], key: str) -> dict[str, int | float | str]:
    """Return what fits all of these machines if it is set together, in as few settings as do."""
    wanted = unfit[0].count
    if fewer := min(load.most for load in unfit):
        return {key: fewer}
    # Not even one of them fits.
    beside = [load.shape.cpus for load in unfit if load.beside_scheduler]
    count = min([wanted, *beside])
    changes: dict[str, int | float | str] = {}
    if any(load.share.nthreads * count > load.shape.cpus for load in unfit if beside):
        changes["nthreads"] = min(beside) // count
    if any(load.limit * count > load.shape.usable_memory for load in unfit):
        left = min(load.shape.usable_memory for load in unfit) // count
        scales = any(load.scales for load in unfit)
        share = _largest_share(unfit, count)
        changes["memory_limit"] = share if scales else f"{left // 2**20}MiB"
    if count < wanted:
        changes[key] = count
    return changes


def _largest_share(unfit: Sequence[_Load], count: int) -> float:
    """Return which part of a machine's memory each of so many workers may have."""
    left = min(load.shape.usable_memory / load.shape.memory for load in unfit)
    return math.floor(1000 * left / count) / 1000


def _assign(settings: Settings, key: str, value: float | str) -> str:
    return f"{key}={value!r}" + (" in worker_options" if key in settings.worker_options else "")


def _wants(load: _Load) -> str:
    count = "1 worker" if load.count == 1 else f"{load.count} workers"
    needs = []
    if load.lacks_threads:
        nthreads = load.share.nthreads
        each = "1 thread" if nthreads == 1 else f"{nthreads} threads"
        needs.append(f"{count} of {each} would take {load.count * nthreads} vCPUs")
    if load.lacks_memory:
        limit = load.share.memory_limit
        needs.append(
            f"{count} with a memory_limit of {limit} would take "
            f"{format_bytes(load.count * load.limit)}"
        )
    return " and ".join(needs)


def _describe(shape: MachineShape) -> str:
    return (
        f"{shape.name} has {shape.cpus} vCPUs and {format_bytes(shape.memory)}, of which the "
        f"system leaves {format_bytes(shape.usable_memory)}"
    )
