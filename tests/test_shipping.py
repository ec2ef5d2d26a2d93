"""Local packages reach every machine through the scheduler, also those that come late."""

from __future__ import annotations

import asyncio
import importlib.util
import json
import os
import socket
import sys
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import dask.config
import pytest
from distributed import Scheduler, rpc
from projects import make_project

import dask_gce
from dask_gce.boot import shipping
from dask_gce.boot.shipping import ship
from dask_gce.boot.wheels import Wheel, build_wheel, read_wheel
from dask_gce.errors import GCEError

PROGRAM = Path(dask_gce.__file__).parent / "guest" / "wheelhouse.py"

#: An installer that only writes down what it is to install.
INSTALLER = "import sys; open({file!r}, 'a').write(' '.join(sys.argv[1:]) + '\\n')"


def load() -> ModuleType:
    spec = importlib.util.spec_from_file_location("wheelhouse_of_a_machine", PROGRAM)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class Machine:
    """A machine's disk, and what its metadata say."""

    def __init__(self, folder: Path, wheels: list[Wheel], installer: str = INSTALLER) -> None:
        folder.mkdir()
        self.log = folder / "installed.log"
        self.store = folder / "wheels"
        self.file = folder / "plan.json"
        command = [sys.executable, "-c", installer.format(file=str(self.log))]
        self.plan = {
            "wheels": [wheel.dump() for wheel in wheels],
            "folder": str(self.store),
            "install": command,
            "installed": str(folder / "marker"),
            "contact": "",
            "security": None,
            "timeout": 60.0,
        }

    def write(self, **changes: Any) -> Path:
        self.file.write_text(json.dumps({**self.plan, **changes}))
        return self.file

    @property
    def installed(self) -> list[list[str]]:
        """The names of the wheels that each run of the installer was given."""
        if not self.log.exists():
            return []
        return [[Path(p).name for p in line.split()] for line in self.log.read_text().splitlines()]


@pytest.fixture
def wheels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Wheel]:
    """Return two wheels, of which one takes several messages."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    # Where a scheduler in this process leaves a folder.
    monkeypatch.setitem(dask.config.config, "temporary-directory", str(tmp_path))
    small = build_wheel(make_project(tmp_path / "src"))
    large = tmp_path / "large-1.0-py3-none-any.whl"
    large.write_bytes(os.urandom(300_000))
    monkeypatch.setattr(shipping, "CHUNK", 100_000)
    return [small, read_wheel(large)]


@pytest.fixture
async def scheduler(
    tmp_path: Path, wheels: list[Wheel], monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[tuple[Scheduler, Machine]]:
    machine = Machine(tmp_path / "scheduler", wheels)
    monkeypatch.setenv("DASK_GCE_WHEELS", str(machine.write()))
    async with Scheduler(
        host="127.0.0.1", port=0, dashboard=False, preload=[str(PROGRAM)]
    ) as running:
        yield running, machine


Running = tuple[Scheduler, Machine]


async def fetch(
    machine: Machine, contact: str, what: str = "fetch", **changes: Any
) -> tuple[int, str]:
    """Run the program as a worker's machine does."""
    plan = machine.write(contact=contact, **changes)
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, str(PROGRAM), what, str(plan)),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    output, _ = await process.communicate()
    return process.returncode or 0, output.decode()


async def test_wheels_reach_the_scheduler_and_a_worker_that_waits(
    scheduler: Running, wheels: list[Wheel], tmp_path: Path
) -> None:
    running, machine = scheduler
    worker = Machine(tmp_path / "worker", wheels)
    waiting = asyncio.ensure_future(fetch(worker, running.address))
    told: list[str] = []
    async with rpc(running.address) as connection:
        await ship(connection, wheels, timeout=60, tell=told.append)
    names = [wheel.name for wheel in wheels]
    assert machine.installed == [names]
    assert told == ["Sending 2 local packages to the scheduler (0.3 MB)"]
    assert await waiting == (0, "")
    assert worker.installed == [names]
    for wheel in wheels:
        assert wheel.path is not None
        for store in (machine.store, worker.store):
            assert (store / wheel.sha256 / wheel.name).read_bytes() == wheel.path.read_bytes()


async def test_a_machine_that_has_them_installs_nothing_again(
    scheduler: Running, wheels: list[Wheel], tmp_path: Path
) -> None:
    running, machine = scheduler
    worker = Machine(tmp_path / "worker", wheels)
    async with rpc(running.address) as connection:
        for _ in range(2):
            await ship(connection, wheels, timeout=60)
            assert await fetch(worker, running.address) == (0, "")
    assert len(machine.installed) == len(worker.installed) == 1


async def test_workers_beside_the_scheduler_only_wait(
    scheduler: Running, wheels: list[Wheel], tmp_path: Path
) -> None:
    running, _ = scheduler
    async with rpc(running.address) as connection:
        await ship(connection, wheels, timeout=60)
    beside = Machine(tmp_path / "beside", wheels)
    assert await fetch(beside, running.address, "wait") == (0, "")
    assert beside.installed == []
    assert not beside.store.exists()


async def test_a_client_that_was_interrupted_goes_on_where_it_was(
    scheduler: Running, wheels: list[Wheel]
) -> None:
    running, machine = scheduler
    large = wheels[1]
    assert large.path is not None
    content = large.path.read_bytes()
    async with rpc(running.address) as connection:
        put = connection.dask_gce_put_wheel
        assert await put(name=large.name, offset=0, data=content[:100]) == 100
        # One that does not fit on changes nothing, and is told what is there.
        assert await put(name=large.name, offset=50, data=b"x" * 100) == 100
        assert (await connection.dask_gce_wheels(wait=0))["missing"][large.name] == 100
        await ship(connection, wheels, timeout=60)
    assert machine.installed == [[wheel.name for wheel in wheels]]


async def test_nothing_is_taken_but_what_the_metadata_describe(
    scheduler: Running, wheels: list[Wheel], tmp_path: Path
) -> None:
    running, machine = scheduler
    small = wheels[0]
    async with rpc(running.address) as connection:
        with pytest.raises(ValueError, match="not the file"):
            await connection.dask_gce_put_wheel(name=small.name, offset=0, data=b"x" * small.size)
        with pytest.raises(KeyError):
            await connection.dask_gce_put_wheel(name="../../evil.whl", offset=0, data=b"x")
        with pytest.raises(KeyError):
            await connection.dask_gce_get_wheel(name="/etc/passwd", offset=0)
        changed = tmp_path / "changed"
        changed.write_bytes(b"y" * small.size)
        with pytest.raises(GCEError, match="has changed while"):
            await ship(connection, [replace(small, path=changed), wheels[1]], timeout=60)
    assert machine.installed == []
    assert not (machine.store.parent.parent / "evil.whl").exists()


async def test_a_package_that_cannot_be_installed_fails_everywhere(
    tmp_path: Path, wheels: list[Wheel], monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = Machine(tmp_path / "scheduler", wheels, "import sys; sys.exit('no room for {file!r}')")
    monkeypatch.setenv("DASK_GCE_WHEELS", str(broken.write()))
    worker = Machine(tmp_path / "worker", wheels)
    async with Scheduler(
        host="127.0.0.1", port=0, dashboard=False, preload=[str(PROGRAM)]
    ) as running:
        async with rpc(running.address) as connection:
            with pytest.raises(GCEError, match="no room"):
                await ship(connection, wheels, timeout=60)
        status, output = await fetch(worker, running.address)
    assert status == 1
    assert "no room" in output


async def test_nobody_waits_for_ever(
    scheduler: Running, wheels: list[Wheel], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    running, _ = scheduler
    worker = Machine(tmp_path / "worker", wheels)
    status, output = await fetch(worker, running.address, timeout=0.0)
    assert status == 1
    for part in ("the client has not sent", wheels[0].name, "worker_start_timeout"):
        assert part in output
    program = load()
    monkeypatch.setattr(program, "LAST", 0.1)
    with socket.socket() as silent:
        # Nobody listens there, and nobody is given the port.
        silent.bind(("127.0.0.1", 0))
        contact = f"tcp://127.0.0.1:{silent.getsockname()[1]}"
        plan = {**worker.plan, "contact": contact, "timeout": 0.0}
        assert "the scheduler does not answer" in await program.fetch(plan, install=True)
    missing = [replace(wheel, path=None) for wheel in wheels]
    async with rpc(running.address) as connection:
        with pytest.raises(GCEError, match="did not send it"):
            await ship(connection, missing, timeout=60)


async def test_a_wheel_that_has_shrunk_on_the_scheduler_is_not_asked_for_for_ever(
    scheduler: Running, wheels: list[Wheel], tmp_path: Path
) -> None:
    running, machine = scheduler
    async with rpc(running.address) as connection:
        await ship(connection, wheels, timeout=60)
    os.truncate(machine.store / wheels[1].sha256 / wheels[1].name, 1000)
    status, output = await fetch(Machine(tmp_path / "worker", wheels), running.address)
    assert status == 1
    assert "is shorter on the scheduler" in output


def test_a_wheel_that_is_completed_meanwhile_is_no_error(
    wheels: list[Wheel], tmp_path: Path
) -> None:
    program = load()
    store = program.Store(Machine(tmp_path / "scheduler", wheels).plan)
    large = wheels[1]
    assert large.path is not None
    content = large.path.read_bytes()
    store.add(large.name, 0, content[:100])

    part = store.part

    class Part(type(Path())):  # type: ignore[misc]  # Path itself has no subclasses before 3.12
        """A part that becomes the wheel between two looks at it, or right before the only one."""

        def exists(self, **options: Any) -> bool:
            there = Path(self).exists()
            complete()
            return there

        def stat(self, **options: Any) -> os.stat_result:
            complete()
            return Path(self).stat()

    def complete() -> None:
        store.part = part
        store.add(large.name, 100, content[100:])

    store.part = lambda name: Part(part(name)) if name == large.name else part(name)
    assert store.missing() == {wheels[0].name: 0, large.name: 0}
    # Whoever begins anew is told at once.
    assert store.add(large.name, 0, content[:100]) == large.size


async def test_more_than_a_wheel_is_not_written(scheduler: Running, wheels: list[Wheel]) -> None:
    running, machine = scheduler
    large = wheels[1]
    async with rpc(running.address) as connection:
        with pytest.raises(ValueError, match="longer than"):
            await connection.dask_gce_put_wheel(
                name=large.name, offset=0, data=b"x" * (large.size + 1)
            )
        assert (await connection.dask_gce_wheels(wait=0))["missing"][large.name] == 0
    assert not (machine.store / large.sha256 / large.name).with_suffix(".part").exists()


async def test_a_scheduler_that_does_not_know_of_wheels_yet_is_asked_again(
    wheels: list[Wheel], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shipping, "AGAIN", 0.01)
    machine, worker = Machine(tmp_path / "scheduler", wheels), Machine(tmp_path / "worker", wheels)
    monkeypatch.setenv("DASK_GCE_WHEELS", str(machine.write()))
    # It listens, and its preloads have not started.
    async with Scheduler(host="127.0.0.1", port=0, dashboard=False) as running:
        status, output = await fetch(worker, running.address, timeout=0.0)
        assert (status, "the client has not sent" in output) == (1, True)
        async with rpc(running.address) as connection:
            assert await connection.dask_gce_wheels(wait=0) is None
            sending = asyncio.ensure_future(ship(connection, wheels, timeout=60))
            await load().dask_setup(running)
            await sending
    assert len(machine.installed) == 1


async def test_an_answer_that_never_comes_is_not_waited_for_for_ever(wheels: list[Wheel]) -> None:
    class Silent:
        async def dask_gce_wheels(self, wait: float) -> None:
            await asyncio.Event().wait()

    with pytest.raises(GCEError, match="the scheduler does not answer"):
        await ship(Silent(), wheels, timeout=0.1)


async def test_a_scheduler_that_starts_again_has_them_still(
    tmp_path: Path, wheels: list[Wheel], monkeypatch: pytest.MonkeyPatch
) -> None:
    machine = Machine(tmp_path / "scheduler", wheels)
    monkeypatch.setenv("DASK_GCE_WHEELS", str(machine.write()))
    for _ in range(2):
        async with Scheduler(
            host="127.0.0.1", port=0, dashboard=False, preload=[str(PROGRAM)]
        ) as running:
            async with rpc(running.address) as connection:
                await ship(connection, wheels, timeout=60)
                assert (await connection.dask_gce_wheels(wait=0))["ready"]
            wheels = [replace(wheel, path=None) for wheel in wheels]
    assert len(machine.installed) == 1


def test_the_program_needs_nothing_of_this_package() -> None:
    assert "dask_gce." not in PROGRAM.read_text()
    load()
