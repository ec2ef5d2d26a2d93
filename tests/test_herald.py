"""A machine tells the scheduler that it will be taken away, from beside Dask."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import socket
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from clusters import PATIENCE, until
from test_departures import names, scheduler, status, workers

import dask_gce
from dask_gce.emulator.machines.metadata import MetadataServer
from dask_gce.emulator.record import InstanceRecord

PROGRAM = Path(dask_gce.__file__).parent / "guest" / "preemption.py"


class Machine:
    """Runs the program as start.py does."""

    def __init__(self, record: InstanceRecord, here: socket.socket) -> None:
        self.record = record
        self._here = here

    async def say(self, word: str) -> str:
        """Say something and return the answer."""
        loop = asyncio.get_running_loop()
        await loop.sock_sendall(self._here, word.encode() + b"\n")
        answer = await asyncio.wait_for(loop.sock_recv(self._here, 100), PATIENCE)
        return answer.decode().strip()


@contextlib.asynccontextmanager
async def machine(folder: Path, contact: str, **plan: Any) -> AsyncIterator[Machine]:
    record = InstanceRecord("p", 1, "z", {"name": "m-1"})
    server = MetadataServer(record, "127.0.0.1", [os.geteuid()])
    await server.start()
    plan = {
        "machine": "m-1",
        "contact": contact,
        "security": None,
        "watched": ["preempted", "maintenance-event"],
        "notice": 120.0,
        "gpus": 0,
        **plan,
    }
    (folder / "preemption.json").write_text(json.dumps(plan))
    here, there = socket.socketpair()
    here.setblocking(False)
    stays = [sys.executable, "-c", "import sys; sys.stdin.read()"]
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, str(PROGRAM), str(folder), str(there.fileno())),
        *stays,
        pass_fds=[there.fileno()],
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        env={**os.environ, "GCE_METADATA_HOST": f"127.0.0.1:{server.port}"},
    )
    there.close()
    try:
        yield Machine(record, here)
        assert process.returncode is None
    finally:
        # start.py ends, and with it whoever listens to it.
        here.close()
        assert process.stdin is not None and process.stdout is not None
        process.stdin.close()
        await asyncio.wait_for(process.wait(), PATIENCE)
        await asyncio.wait_for(process.stdout.read(), PATIENCE)
        await server.close()


async def test_a_preemption_is_told_with_the_time_that_is_left(tmp_path: Path) -> None:
    async with (
        scheduler() as (on, client),
        workers(on, "m-1", "m-2"),
        machine(tmp_path, on.address) as one,
    ):
        future = client.submit(str, 1, workers=["m-1"])
        await future
        one.record.preempted = True
        one.record.touch()
        await until(lambda: "m-1" in status(on)["leaving"])
        told = status(on)["leaving"]["m-1"]
        assert told["why"] == "preempted" and 25 < told["in"] <= 120
        await until(lambda: names(on) == {"m-2"})
        assert await future == "1"


async def test_only_maintenance_that_ends_a_machine_is_told(tmp_path: Path) -> None:
    async with (
        scheduler() as (on, _),
        workers(on, "m-1", "m-2"),
        machine(tmp_path, on.address, gpus=1) as one,
    ):
        one.record.maintenance_event = "MIGRATE_ON_HOST_MAINTENANCE"
        one.record.touch()
        # In the order in which they come, so that the first would have been told before.
        await asyncio.sleep(0)
        one.record.maintenance_event = "TERMINATE_ON_HOST_MAINTENANCE"
        one.record.touch()
        await until(lambda: "m-1" in status(on)["leaving"])
        told = status(on)["leaving"]["m-1"]
        assert told["why"] == "maintenance" and 3000 < told["in"] <= 3600


async def test_a_system_that_goes_down_waits_if_somebody_takes_its_results(tmp_path: Path) -> None:
    async with (
        scheduler() as (on, client),
        workers(on, "m-1", "m-2"),
        machine(tmp_path, on.address) as one,
    ):
        future = client.submit(str, 1, workers=["m-1"])
        await future
        assert await one.say("going down") == "wait"
        await until(lambda: names(on) == {"m-2"})
        assert await future == "1"
        # Whoever has nothing here any more need not wait.
        assert await one.say("going down") == "go"
        assert status(on)["leaving"]["m-1"]["why"] == "shutdown"


async def test_nobody_waits_for_a_scheduler_that_is_gone(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as nobody:
        port = nobody.getsockname()[1]
    async with machine(tmp_path, f"tcp://127.0.0.1:{port}") as one:
        assert await one.say("going down") == "go"
