"""Machines that are taken away lose no result, if they are told before; and count them if not."""

from __future__ import annotations

import asyncio
import contextlib
import random
import re
import socket
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
from clusters import PATIENCE, settings, until, worker_machines
from distributed import Client, get_worker, wait
from test_vm_clusters import uv  # noqa: F401 - a fixture

from dask_gce import GCECluster
from dask_gce.emulator import ComputeEmulator

LEAVES, GROUP = 500, 20


def make_work() -> Callable[..., int]:
    """Return what tasks do; machines have not got this module, so that it is sent as it is."""

    def work(port: int, name: str, *values: int) -> int:
        # Says that it runs and where, waits for the word to go on, and says that it is done.
        with socket.create_connection(("127.0.0.1", port)) as witness:
            witness.sendall(f"{name} {get_worker().name}\n".encode())
            assert witness.recv(2) == b"go"
            witness.sendall(b"done\n")
            assert witness.recv(2) == b"ok"
        kind, _, number = name.partition("-")
        return int(number) if kind == "leaf" else sum(values)

    return work


class Witness:
    """Counts what is run, whatever Dask says, and lets it go on when it may."""

    def __init__(self) -> None:
        self.port = 0
        #: How often each task has begun, and has ended.
        self.begun: Counter[str] = Counter()
        self.ended: Counter[str] = Counter()
        #: Who runs what at the moment.
        self.running: set[tuple[str, str]] = set()
        #: Who is held back.
        self.held: set[tuple[str, str]] = set()
        #: Machines whose tasks are not held back.
        self.free: set[str] = set()
        #: How many tasks may begin before the others are held back, until the gate opens.
        self.ahead = LEAVES
        self.gate = asyncio.Event()
        self._changed = asyncio.Event()

    @contextlib.asynccontextmanager
    async def listening(self) -> AsyncIterator[Witness]:
        server = await asyncio.start_server(self._hear, "127.0.0.1", 0)
        self.port = server.sockets[0].getsockname()[1]
        try:
            yield self
        finally:
            self.release()
            server.close()
            await server.wait_closed()

    async def _hear(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            name, machine = (await reader.readline()).decode().split()
            self.begun[name] += 1
            self.running.add((name, machine))
            self._tell()
            number = sum(self.begun.values())
            while not (number <= self.ahead or machine in self.free or self.gate.is_set()):
                self.held.add((name, machine))
                await self._changed.wait()
            self.held.discard((name, machine))
            writer.write(b"go")
            if await reader.readline():
                self.ended[name] += 1
                writer.write(b"ok")
                await writer.drain()
            self.running.discard((name, machine))
            self._tell()
        except (ConnectionError, ValueError):
            pass  # its machine has gone
        finally:
            writer.close()

    def _tell(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()

    def release(self, machine: str | None = None) -> None:
        """Let the tasks of a machine go on, or all."""
        if machine is None:
            self.gate.set()
        else:
            self.free.add(machine)
        self._tell()

    def repeated(self, names: set[str]) -> int:
        """Return how many times some tasks, which had ended, were run again to the end."""
        return sum(self.ended[name] - 1 for name in names)


def submit(client: Client, port: int) -> tuple[list[Any], Any, list[Any]]:
    """Compute a tree over many leaves, which are needed again at the end; and return all of it."""
    work = make_work()
    leaves = [client.submit(work, port, f"leaf-{i}", pure=False) for i in range(LEAVES)]
    level, height, every = leaves, 0, list(leaves)
    while len(level) > 1:
        level = [
            client.submit(work, port, f"sum-{height}.{i}", *level[i : i + GROUP], pure=False)
            for i in range(0, len(level), GROUP)
        ]
        height += 1
        every += level
    last = [
        client.submit(work, port, f"last-{i}", level[0], *leaves[i : i + 50], pure=False)
        for i in range(0, LEAVES, 50)
    ]
    return last, level[0], [*every, *last]


TOTAL = sum(range(LEAVES))
RESULTS = [TOTAL + sum(range(i, i + 50)) for i in range(0, LEAVES, 50)]
#: Leaves, sums and the last.
TASKS = LEAVES + 25 + 2 + 1 + 10


@pytest.fixture
def choice() -> random.Random:
    """Chooses the same each time."""
    return random.Random(7)  # noqa: S311


def spot(emulator: ComputeEmulator, **more: Any) -> dict[str, Any]:
    return settings(emulator, **{"security": True, "spot": True, "n_workers": 3, **more})


def gone(emulator: ComputeEmulator, name: str) -> Callable[[], bool]:
    return lambda: name not in worker_machines(emulator)


async def until_known(client: Client, results: int) -> None:
    """Wait until the scheduler knows of so many results, of which it may need some no more."""

    def count(dask_scheduler: Any) -> int:
        done = ("memory", "released", "forgotten")
        return sum(task.state in done for task in dask_scheduler.tasks.values())

    deadline = time.monotonic() + PATIENCE
    while await client.run_on_scheduler(count) != results:
        assert time.monotonic() < deadline, "did not happen in time"
        await asyncio.sleep(0.02)


def recomputed(cluster: GCECluster) -> int:
    whys = [each.why for each in cluster.events if each.what == "recomputed"]
    return sum(int(re.match(r"\d+", why)[0]) for why in whys)  # type: ignore[index]


async def lose_some(
    cluster: GCECluster, client: Client, emulator: ComputeEmulator, choice: random.Random
) -> None:
    """Compute while a third of the workers are taken away at random moments, with the notice."""
    async with Witness().listening() as witness:
        witness.ahead = choice.randrange(50, LEAVES - 50)
        last, total, _ = submit(client, witness.port)
        await until(lambda: sum(witness.begun.values()) > witness.ahead)
        lost = choice.choice(sorted({machine for _, machine in witness.running}))
        emulator.preempt(lost)
        # What runs there may end, and is all that does. Whatever waits there goes elsewhere.
        witness.release(lost)
        await until(gone(emulator, lost))
        witness.release()
        assert await asyncio.wait_for(client.gather([*last, total]), PATIENCE) == [*RESULTS, TOTAL]
        assert set(witness.ended.values()) == {1} and len(witness.ended) == TASKS
        assert set(witness.begun.values()) == {1}
    events = [each for each in cluster.events if each.instance == lost]
    assert any(each.what == "preempting" for each in events), cluster.events
    assert recomputed(cluster) == 0
    # Another one is there for it.
    await client.wait_for_workers(3, timeout=PATIENCE)


async def test_a_notice_saves_every_result(
    process_emulator: ComputeEmulator, choice: random.Random
) -> None:
    wanted = spot(process_emulator)
    async with GCECluster(**wanted) as cluster, Client(cluster, asynchronous=True) as client:
        await client.wait_for_workers(3, timeout=PATIENCE)
        await lose_some(cluster, client, process_emulator, choice)


@pytest.mark.skipif(
    Path(sys.executable).with_name("uv").exists(), reason="the machines would find a real uv"
)
@pytest.mark.usefixtures("uv")
async def test_a_notice_saves_every_result_without_containers_and_with_adaptive_scaling(
    process_emulator: ComputeEmulator, choice: random.Random
) -> None:
    wanted = spot(process_emulator, n_workers=0, runtime="vm", environment=["dask"])
    async with GCECluster(**wanted) as cluster, Client(cluster, asynchronous=True) as client:
        cluster.adapt(minimum=3, maximum=3)
        await client.wait_for_workers(3, timeout=PATIENCE)
        await lose_some(cluster, client, process_emulator, choice)


async def test_without_a_notice_what_is_lost_is_computed_again_and_counted(
    process_emulator: ComputeEmulator, choice: random.Random
) -> None:
    wanted = spot(process_emulator, preemption_notice=False)
    async with GCECluster(**wanted) as cluster, Client(cluster, asynchronous=True) as client:
        await client.wait_for_workers(3, timeout=PATIENCE)
        async with Witness().listening() as witness:
            witness.ahead = choice.randrange(100, LEAVES - 50)
            last, total, every = submit(client, witness.port)
            # Nothing goes on, and all that has ended is known: so what is lost is known too.
            threads = sum((await client.nthreads()).values())
            await until(lambda: len(witness.held) == threads)
            known = set(witness.ended)
            await until_known(client, len(known))
            lost = choice.choice(sorted({machine for _, machine in witness.running}))
            # As when Compute Engine does not keep to the time that it grants.
            process_emulator.host_error(lost)
            await until(gone(process_emulator, lost))
            witness.release()
            results = await asyncio.wait_for(client.gather([*last, total]), PATIENCE)
            assert results == [*RESULTS, TOTAL]
            assert len(witness.ended) == TASKS == len(every)
            # Some were needed no more, and are computed again because they are asked for still.
            await asyncio.wait_for(wait(every), PATIENCE)
            # Those that it held: of all that had ended, and not of the others. What ran elsewhere
            # on what was lost ends there for nothing and begins again; no result was lost of it.
            again = witness.repeated(known)
            assert 0 < again < len(known)
            await until(lambda: recomputed(cluster) >= again)
    assert recomputed(cluster) == again


@pytest.mark.parametrize("why", ["preempted", "maintenance"])
async def test_several_workers_of_a_machine_go_with_it(light: ComputeEmulator, why: str) -> None:
    overrides: dict[str, Any] = {"preempted": {}, "maintenance": {"onHostMaintenance": "TERMINATE"}}
    wanted = settings(
        light,
        n_workers=4,
        processes=2,
        machine_type="e2-standard-2",
        spot=why == "preempted",
        instance_overrides={"scheduling": overrides[why]},
    )
    async with GCECluster(**wanted) as cluster, Client(cluster, asynchronous=True) as client:
        await client.wait_for_workers(4, timeout=PATIENCE)
        futures = client.map(str, range(100))
        await client.gather(futures)
        lost = min(worker_machines(light))
        (light.preempt if why == "preempted" else light.maintain)(lost, notice=3600)
        await until(gone(light, lost))
        await client.wait_for_workers(4, timeout=PATIENCE)
        assert await client.gather(futures) == [str(number) for number in range(100)]
        what = {each.what for each in cluster.events if each.instance == lost}
        assert ("preempting" if why == "preempted" else "leaving") in what, cluster.events
        assert recomputed(cluster) == 0
