"""The near end of the measurements: a process in which a tunnel runs, and nothing else."""

from __future__ import annotations

import asyncio
import resource
import time
from multiprocessing.connection import Connection

from dask_gce.reach.tunnel import Tunnel


async def _no_token() -> str | None:
    return None


def run(pipe: Connection, far_port: int) -> None:
    """Tell the tunnel's port, then memory and CPU time as often as asked, until None comes."""
    asyncio.run(_run(pipe, far_port))


async def _run(pipe: Connection, far_port: int) -> None:
    async with Tunnel(
        project="my-project",
        zone="us-central1-a",
        instance="dask-1f-scheduler",
        port=8786,
        endpoint=f"ws://127.0.0.1:{far_port}/v4",
        token=_no_token,
    ) as tunnel:
        await tunnel.answers()
        pipe.send(tunnel.local_port)
        while await asyncio.to_thread(pipe.recv) is not None:
            peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
            pipe.send((peak, time.process_time()))
