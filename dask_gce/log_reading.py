"""Asking for logs: Dask's, through the scheduler, and serial consoles, of Compute Engine.

Owns how much of them is asked for, for how long, and of how many machines at a time. What is made
of them is in `machine_logs`, for a cluster's object, and in ``dask gce logs``.
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

from dask_gce.compute import Compute
from dask_gce.errors import GCEError, NotFound
from dask_gce.merged_logs import LogEntry, parse_entries
from dask_gce.probing import UNREACHABLE
from dask_gce.terminal import harmless

__all__ = ["Console", "DaskLogs", "read_console", "read_consoles", "read_dask_logs"]

#: Seconds that scheduler and workers have to tell their logs. Dask tries for 30 to reach a worker
#: that is gone.
TOLD_WITHIN = 45.0

#: Seconds for all consoles together, and how many are read at a time.
CONSOLES_WITHIN, CONSOLES_AT_A_TIME = 30.0, 8

#: Bytes of a console that are read, its last.
CONSOLE_BYTES = 256 * 1024

#: Lines of Dask's logs that are asked for in all, and of each worker at least and at most: Dask
#: keeps ten thousand (``distributed.admin.log-length``).
LINES, FEWEST_LINES, MOST_LINES = 200_000, 100, 10_000


@dataclass(frozen=True)
class DaskLogs:
    """What Dask logged, as far as it was told.

    Parameters
    ----------
    scheduler : list of LogEntry
        The scheduler's, the oldest first.
    workers : mapping of str to list of LogEntry
        Those of the workers that have answered, by address.
    lines : int
        How many entries of each worker were asked for; what it has beyond is left out.
    obstacle : str
        Why the scheduler told nothing; empty if it did.
    """

    scheduler: list[LogEntry] = field(default_factory=list)
    workers: Mapping[str, list[LogEntry]] = field(default_factory=dict)
    lines: int = MOST_LINES
    obstacle: str = ""


@dataclass(frozen=True)
class Console:
    """The end of a serial console.

    Parameters
    ----------
    text : str
        What is known of it.
    cut : bool
        Whether there was more before.
    obstacle : str
        Why it could not be read; empty if it could.
    """

    text: str = ""
    cut: bool = False
    obstacle: str = ""


async def read_dask_logs(scheduler: Any, workers: Collection[str], *, own: bool = True) -> DaskLogs:
    """Ask a scheduler for its logs and for those of workers.

    One worker that does not answer keeps nobody from the logs of the others.

    Parameters
    ----------
    scheduler : distributed.core.rpc
        The scheduler.
    workers : collection of str
        Addresses of workers.
    own : bool
        Whether to have the scheduler's own.

    Returns
    -------
    DaskLogs
        What was told.
    """
    lines = max(FEWEST_LINES, min(MOST_LINES, LINES // max(1, len(workers))))
    question = {"op": "get_logs", "n": lines, "timestamps": True}

    async def ask_scheduler() -> Any:
        return await scheduler.get_logs(n=MOST_LINES, timestamps=True) if own else []

    async def ask_workers() -> Any:
        if not workers:
            return {}
        return await scheduler.broadcast(msg=question, workers=list(workers), on_error="ignore")

    tasks = [asyncio.ensure_future(ask_scheduler()), asyncio.ensure_future(ask_workers())]
    try:
        told, by_worker = await asyncio.wait_for(asyncio.gather(*tasks), TOLD_WITHIN)
    except asyncio.TimeoutError:
        return DaskLogs(obstacle=f"it told nothing within {TOLD_WITHIN:g} s", lines=lines)
    except UNREACHABLE as error:
        return DaskLogs(obstacle=str(error) or type(error).__name__, lines=lines)
    finally:
        # One that fails leaves the other waiting.
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)
    return DaskLogs(
        parse_entries(told),
        {address: parse_entries(entries) for address, entries in by_worker.items()},
        lines,
    )


async def read_console(compute: Compute, zone: str, name: str) -> Console:
    """Read the end of a machine's serial console.

    Parameters
    ----------
    compute : Compute
        The Compute API.
    zone : str
        Zone name.
    name : str
        The instance.

    Returns
    -------
    Console
        What it has; nothing, and why, if it cannot be read.
    """
    try:
        # A negative offset counts from the end:
        # https://docs.cloud.google.com/compute/docs/reference/rest/v1/instances/getSerialPortOutput
        text, following = await compute.get_serial_port_output(zone, name, -CONSOLE_BYTES)
    except NotFound:
        return Console(obstacle="there is no such machine")
    except GCEError as error:
        return Console(obstacle=str(error).partition("\n")[0])
    cut = following > CONSOLE_BYTES
    if cut:
        # It begins in the midst of a line.
        text = text.partition("\n")[2]
    return Console(harmless(text), cut)


async def read_consoles(compute: Compute, zones: Mapping[str, str]) -> dict[str, Console]:
    """Read the ends of several consoles, a few at a time and not for ever.

    Parameters
    ----------
    compute : Compute
        The Compute API.
    zones : mapping of str to str
        The zone of each machine.

    Returns
    -------
    dict of str to Console
        What was read, and why not, for each machine.
    """
    room = asyncio.Semaphore(CONSOLES_AT_A_TIME)

    async def read(name: str) -> Console:
        async with room:
            return await read_console(compute, zones[name], name)

    tasks = {name: asyncio.ensure_future(read(name)) for name in zones}
    if not tasks:
        return {}
    try:
        await asyncio.wait(tasks.values(), timeout=CONSOLES_WITHIN)
    finally:
        for task in tasks.values():
            task.cancel()
    await asyncio.wait(tasks.values())
    late = Console(obstacle=f"it was not told within {CONSOLES_WITHIN:g} s")
    return {name: late if task.cancelled() else task.result() for name, task in tasks.items()}
