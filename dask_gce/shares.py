"""What each of several Dask workers gets of the machine they share.

Owns the arithmetic of threads and memory. Whether it adds up to more than the machine has is the
matter of `fit`.
"""

from __future__ import annotations

from dataclasses import dataclass

from dask.utils import parse_bytes

from dask_gce.placement import MachineShape
from dask_gce.settings import Settings

__all__ = [
    "CUDA_WORKERS",
    "MemoryLimit",
    "Share",
    "gpus_of",
    "limit_in_bytes",
    "local_share",
    "memory_for_local",
    "share",
]

MemoryLimit = int | float | str | None

#: Import paths of dask-cuda's class, which makes a worker for each GPU of its machine.
CUDA_WORKERS = ("dask_cuda.CUDAWorker", "dask_cuda.cuda_worker.CUDAWorker")

#: What a scheduler keeps for itself beside workers on its machine: at least this much memory, in
#: bytes, or this share of a large machine.
SCHEDULER_MEMORY = 256 * 2**20
SCHEDULER_MEMORY_SHARE = 0.05


@dataclass(frozen=True)
class Share:
    """What one worker gets.

    Parameters
    ----------
    nthreads : int
        Its threads.
    memory_limit : int or float or str or None
        Its memory limit as Dask takes it.
    memory : int
        Its memory in bytes, for ``scale(memory=...)``.
    """

    nthreads: int
    memory_limit: MemoryLimit
    memory: int


def share(settings: Settings, shape: MachineShape) -> Share:
    """Return what a worker gets of a machine that runs nothing but workers.

    Parameters
    ----------
    settings : Settings
        The cluster's settings.
    shape : MachineShape
        The machine, which has as many workers as ``processes`` says.

    Returns
    -------
    Share
        What the user chose, else an equal part of what the system leaves.
    """
    return _share(settings, shape, settings.processes, shape.usable_memory)


def local_share(settings: Settings, shape: MachineShape) -> Share:
    """Return what a worker gets of the scheduler's machine.

    Parameters
    ----------
    settings : Settings
        The cluster's settings.
    shape : MachineShape
        The machine, which has as many workers as ``workers_on_scheduler`` says, at least one.

    Returns
    -------
    Share
        What the user chose, else an equal part of what system and scheduler leave.
    """
    return _share(settings, shape, settings.workers_on_scheduler, memory_for_local(shape))


def memory_for_local(shape: MachineShape) -> int:
    """Return the memory that workers may share with a scheduler beside them.

    Parameters
    ----------
    shape : MachineShape
        The scheduler's machine.

    Returns
    -------
    int
        Memory in bytes.
    """
    usable = shape.usable_memory
    return usable - max(SCHEDULER_MEMORY, int(usable * SCHEDULER_MEMORY_SHARE))


def limit_in_bytes(limit: MemoryLimit, shape: MachineShape) -> int | None:
    """Return a memory limit as an amount, read as ``distributed.worker_memory`` does.

    Parameters
    ----------
    limit : int or float or str or None
        The limit in Dask's spelling.
    shape : MachineShape
        The machine: a number up to 1 is a share of its memory.

    Returns
    -------
    int or None
        Memory in bytes; None where there is no limit, or where Dask finds one that fits.

    Examples
    --------
    >>> shape = MachineShape("e2-standard-4", 4, 16 * 2**30)
    >>> limit_in_bytes("1GB", shape), limit_in_bytes(0.5, shape) == 8 * 2**30
    (1000000000, True)
    >>> limit_in_bytes("auto", shape) is limit_in_bytes(0, shape) is None
    True
    """
    if not limit or limit == "auto":
        return None
    try:
        number = float(limit)
    except ValueError:
        return int(parse_bytes(limit))
    return int(number * shape.memory if number <= 1 else number) or None


def _share(settings: Settings, shape: MachineShape, workers: int, memory: int) -> Share:
    options = settings.worker_options
    threads = options.get("nthreads") or settings.nthreads
    # One thread is dask-cuda's own choice: what a GPU computes is begun by one at a time.
    own = 1 if settings.worker_class in CUDA_WORKERS else max(1, shape.cpus // workers)
    nthreads = int(threads) if threads else own
    chosen = options.get("memory_limit", settings.memory_limit)
    limit = memory // workers if chosen is None else chosen
    amount = limit_in_bytes(limit, shape)
    if amount is None:
        # As Dask: for "auto" a share for its share of the vCPUs.
        auto = int(memory * min(1, nthreads / shape.cpus))
        amount = auto if limit == "auto" else memory // workers
    return Share(nthreads, limit, amount)


def gpus_of(settings: Settings, shape: MachineShape, *, workers: bool) -> int:
    """Return how many GPUs a machine has.

    Parameters
    ----------
    settings : Settings
        The cluster's settings.
    shape : MachineShape
        The machine.
    workers : bool
        Whether it is one of those that are for workers, so that GPUs are added to it.

    Returns
    -------
    int
        Those that it comes with, or else those that are added.
    """
    # Of those that it comes with no more can be had, whether they are asked for or not.
    return shape.gpus or (settings.worker_accelerator_count if workers else 0)
