"""Light machines: real Dask workers of many instances in few processes; nothing is left of them."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import dask
import psutil
import pytest
from distributed import Client, Scheduler
from machine_bench import PATIENCE, Exits, console, make_record, until
from ports import quiet_port

from dask_gce.emulator.machine import MachineKind
from dask_gce.emulator.machines import light, make_kind
from dask_gce.emulator.machines.light import LightMachine
from dask_gce.emulator.record import InstanceRecord


@pytest.fixture
async def kind() -> AsyncIterator[MachineKind]:
    kind = make_kind("light")
    await kind.start()
    try:
        yield kind
    finally:
        await kind.close()
        await kind.close()
    assert kind.leftovers() == []


@pytest.fixture(autouse=True)
def scratch(tmp_path: Path) -> Iterator[None]:
    with dask.config.set({"temporary-directory": str(tmp_path)}):
        yield


@asynccontextmanager
async def scheduling(port: int = 0) -> AsyncIterator[Scheduler]:
    async with Scheduler(host="127.0.0.1", port=port, dashboard_address=":0") as scheduler:
        yield scheduler


@pytest.fixture
async def scheduler(scratch: None) -> AsyncIterator[Scheduler]:
    async with scheduling() as running:
        yield running


def worker_record(
    name: str, port: int, *, timeout: float = PATIENCE, **more: str
) -> InstanceRecord:
    options = {"nthreads": 1, "memory_limit": "1 GiB", "dashboard_address": ":0"}
    spec = {
        "cls": "distributed.Nanny",
        "args": [f"tcp://127.0.0.1:{port}"],
        "opts": {**options, **json.loads(more.pop("options", "{}"))},
    }
    return make_record(
        name,
        dask_gce_role="worker",
        dask_gce_spec=json.dumps(spec),
        dask_gce_scheduler=json.dumps({"host": "127.0.0.1", "port": port, "timeout": timeout}),
        **{"dask_gce_linger": "0", **more},
    )


def new_machine(
    kind: MachineKind, record: InstanceRecord, exits: Exits | None = None
) -> LightMachine:
    machine = kind.create(record, kind.allocate(record), Exits() if exits is None else exits)
    assert isinstance(machine, LightMachine)
    return machine


def phase(machine: LightMachine) -> str:
    return machine.record.guest_attributes["dask-gce"]["phase"]


def names(scheduler: Scheduler) -> set[str]:
    return {state.name for state in scheduler.workers.values()}


def hosts() -> Iterator[psutil.Process]:
    found = {}
    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.Error):
            if "LightWorker" in " ".join(process.cmdline()):
                found[process.pid] = process, process.ppid()
    # One that is about to run another program still has the command line of its parent.
    for process, parent in found.values():
        if parent not in found:
            yield process


async def test_workers_join_under_the_name_and_address_of_their_instance(kind, scheduler):
    machines = [new_machine(kind, worker_record(f"vm-{n}", scheduler.port)) for n in range(20)]
    await asyncio.gather(*(machine.boot() for machine in machines))
    await until(lambda: len(scheduler.workers) == 20)
    known = {state.name: state.address for state in scheduler.workers.values()}
    for machine in machines:
        assert f"//{machine.address}:" in known[machine.record.name]
    assert len({machine.address for machine in machines}) == 20
    assert len(list(hosts())) == 2
    async with Client(scheduler.address, asynchronous=True) as client:
        assert await client.gather(client.map(lambda x: x + 1, range(40))) == list(range(1, 41))
    await until(lambda: {phase(machine) for machine in machines} == {"running"})
    assert "dask-gce phase: starting\n" in console(machines[0])


async def test_a_worker_that_is_retired_ends_and_its_machine_with_it(kind, scheduler):
    exits, stays = Exits(), Exits()
    machine = new_machine(kind, worker_record("leaves", scheduler.port), exits)
    other = new_machine(kind, worker_record("stays", scheduler.port), stays)
    await asyncio.gather(machine.boot(), other.boot())
    await until(lambda: len(scheduler.workers) == 2)
    await scheduler.retire_workers(names=["leaves"], close_workers=True)
    await until(lambda: exits)
    assert exits == ["poweroff"]
    assert phase(machine) == "ended"
    assert not machine.powered
    assert (stays, names(scheduler)) == ([], {"stays"})


async def test_the_end_of_the_scheduler_is_the_end_of_its_workers(kind):
    exits = Exits()
    async with scheduling() as scheduler:
        machine = new_machine(kind, worker_record("vm", scheduler.port), exits)
        await machine.boot()
        await until(lambda: names(scheduler) == {"vm"})
    await until(lambda: exits)
    assert exits == ["poweroff"]


@pytest.mark.parametrize("verb", ["stop", "kill", "discard"])
async def test_a_machine_that_is_ended_takes_its_worker_with_it(kind, scheduler, verb):
    exits = Exits()
    machine = new_machine(kind, worker_record("vm", scheduler.port), exits)
    await machine.boot()
    await until(lambda: names(scheduler) == {"vm"})
    await {"stop": lambda: machine.stop(5), "kill": machine.kill, "discard": machine.discard}[
        verb
    ]()
    assert not machine.powered
    await until(lambda: not scheduler.workers)
    assert exits == []


async def test_only_a_worker_that_is_stopped_says_goodbye(kind, scheduler):
    said = {}
    for verb in ("stop", "kill"):
        machine = new_machine(kind, worker_record(verb, scheduler.port))
        await machine.boot()
        await until(lambda: len(scheduler.workers) == 1)
        (address,) = scheduler.workers
        await (machine.stop(PATIENCE) if verb == "stop" else machine.kill())
        await until(lambda: not scheduler.workers)
        said[verb] = [event["action"] for _, event in scheduler.get_events(address)]
    assert "closing-worker" in said["stop"]
    assert "closing-worker" not in said["kill"]


async def test_a_machine_can_boot_again(kind, scheduler):
    machine = new_machine(kind, worker_record("vm", scheduler.port))
    for _ in range(2):
        await machine.boot()
        await machine.boot()
        await until(lambda: names(scheduler) == {"vm"})
        await machine.stop(5)
        await until(lambda: not scheduler.workers)


async def test_the_late_end_of_one_boot_is_not_the_end_of_the_next(kind, scheduler, monkeypatch):
    exits = Exits()
    machine = new_machine(kind, worker_record("vm", scheduler.port), exits)
    await machine.boot()
    await until(lambda: names(scheduler) == {"vm"})
    (before,) = scheduler.workers
    with monkeypatch.context() as patch:
        patch.setattr(light, "PATIENCE", 0.0)
        await machine.kill()
    await machine.boot()
    await until(lambda: set(scheduler.workers) - {before} and phase(machine) == "running")
    assert machine.powered
    assert exits == []


async def test_it_waits_for_the_schedulers_port(kind):
    port = quiet_port()
    machine = new_machine(kind, worker_record("early", port))
    await machine.boot()
    await until(lambda: phase(machine) == "starting")
    async with scheduling(port) as scheduler:
        await until(lambda: names(scheduler) == {"early"})
        await machine.discard()


async def test_without_a_scheduler_it_fails_in_time_and_says_so(kind):
    exits = Exits()
    port = quiet_port()
    machine = new_machine(kind, worker_record("alone", port, timeout=0.1), exits)
    await machine.boot()
    await until(lambda: exits)
    assert phase(machine) == f"failed: TimeoutError: no scheduler at 127.0.0.1:{port}"


async def test_impossible_options_are_a_failure_that_can_still_be_read(kind, scheduler):
    exits = Exits()
    record = worker_record("vm", scheduler.port, options='{"colour": "red"}', dask_gce_linger="60")
    machine = new_machine(kind, record, exits)
    await machine.boot()
    await until(lambda: phase(machine).startswith("failed"))
    assert "colour" in phase(machine)
    assert machine.powered
    await machine.stop(1)
    assert not machine.powered
    assert exits == []


async def test_options_for_a_nanny_do_not_disturb_its_worker(kind, scheduler):
    options = '{"env": {"A": "1"}, "preload_nanny": [], "resources": {"disk": 2}}'
    machine = new_machine(kind, worker_record("vm", scheduler.port, options=options))
    await machine.boot()
    await until(lambda: names(scheduler) == {"vm"})
    (state,) = scheduler.workers.values()
    assert state.resources == {"disk": 2}


async def test_several_workers_of_one_machine_live_and_end_together(kind, scheduler):
    exits = Exits()
    record = worker_record("vm", scheduler.port, dask_gce_processes="3")
    machine = new_machine(kind, record, exits)
    await machine.boot()
    await until(lambda: names(scheduler) == {"vm-0", "vm-1", "vm-2"})
    await scheduler.retire_workers(names=["vm-0", "vm-2"], close_workers=True)
    await until(lambda: names(scheduler) == {"vm-1"})
    assert exits == []
    await scheduler.retire_workers(names=["vm-1"], close_workers=True)
    await until(lambda: exits)


async def test_a_process_that_dies_takes_its_workers_and_no_others(kind, scheduler):
    exits = [Exits() for _ in range(4)]
    machines = [
        new_machine(kind, worker_record(f"vm-{n}", scheduler.port), exits[n]) for n in range(4)
    ]
    await asyncio.gather(*(machine.boot() for machine in machines))
    await until(lambda: len(scheduler.workers) == 4)
    next(hosts()).kill()
    await until(lambda: sum(map(len, exits)) == 2)
    await until(lambda: len(scheduler.workers) == 2)
    dead = [machine for machine, ended in zip(machines, exits, strict=True) if ended]
    assert all("process of this worker" in console(machine) for machine in dead)
    await dead[0].boot()
    await until(lambda: dead[0].record.name in names(scheduler))


async def test_the_processes_end_with_their_last_machine(kind, scheduler):
    machines = [new_machine(kind, worker_record(f"vm-{n}", scheduler.port)) for n in range(4)]
    assert list(hosts()) == []
    await asyncio.gather(*(machine.boot() for machine in machines))
    for machine in machines[:2]:
        await machine.discard()
    assert len(list(hosts())) == 2
    for machine in machines[2:]:
        await machine.discard()
    assert list(hosts()) == []
    assert kind.leftovers() == []


async def test_a_discarded_machine_does_not_boot(kind, scheduler):
    machine = new_machine(kind, worker_record("vm", scheduler.port))
    booting = asyncio.ensure_future(machine.boot())
    await asyncio.sleep(0.05)
    await machine.discard()
    await booting
    assert not machine.powered
    assert machine.record.guest_attributes == {}
    with pytest.raises(RuntimeError, match="discarded"):
        await machine.boot()
    assert not scheduler.workers


async def test_whoever_does_not_know_the_word_is_hung_up_on(kind, scheduler):
    machine = new_machine(kind, worker_record("vm", scheduler.port))
    await machine.boot()
    port = machine._kind.port
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(b"let me in\n")
    assert await reader.read() == b""
    writer.close()
    await writer.wait_closed()


async def test_what_is_no_worker_is_a_process_machine(kind):
    record = make_record("scheduler", dask_gce_role="scheduler")
    machine = kind.create(record, kind.allocate(record), Exits())
    assert not isinstance(machine, LightMachine)
    assert kind.external_address(machine.address) == machine.address
    assert kind.leftovers() != []


async def test_workers_of_paper_have_private_addresses_and_partners_outside():
    kind = make_kind("paper-workers")
    await kind.start()
    worker, other = make_record("w", dask_gce_role="worker"), make_record("s")
    address = kind.allocate(worker)
    machine = kind.create(worker, address, Exits())
    assert address.startswith("10.128.")
    assert kind.external_address(address).startswith("198.18.")
    assert kind.allocate(other).startswith("127.")
    await machine.boot()
    assert machine.record.guest_attributes == {}
    assert kind.leftovers() == ["Paper machine w was not discarded."]
    await kind.close()
    assert kind.leftovers() == []
