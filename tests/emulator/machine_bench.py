"""What the tests of process machines share: a started kind, machines on it, waiting for words."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager

from dask_gce.emulator.machine import Machine
from dask_gce.emulator.machines.process import ProcessKind
from dask_gce.emulator.machines.process_machine import ProcessMachine
from dask_gce.emulator.record import InstanceRecord

#: Seconds for anything to happen; it takes milliseconds.
PATIENCE = 60.0


def make_record(name: str, script: str | None = None, **metadata: str) -> InstanceRecord:
    if script is not None:
        metadata["startup-script"] = script
    items = [{"key": key.replace("_", "-"), "value": value} for key, value in metadata.items()]
    resource = {"name": name, "id": "42", "metadata": {"items": items}}
    return InstanceRecord(
        "local-project", 1234, "us-central1-a", resource, access_token="ya29.test"
    )


@asynccontextmanager
async def started_kind(container_images: Sequence[str] = ("*",)) -> AsyncIterator[ProcessKind]:
    kind = ProcessKind(container_images=container_images)
    await kind.start()
    try:
        yield kind
    finally:
        await kind.close()
    assert kind.leftovers() == []


class Exits(list[str]):
    """Notes how a guest ended by itself."""

    def __call__(self, how: str) -> None:
        self.append(how)


def new_machine(
    kind: ProcessKind, record: InstanceRecord, exits: Exits | None = None
) -> ProcessMachine:
    on_exit = Exits() if exits is None else exits
    return kind.create(record, kind.allocate(record), on_exit)


def console(machine: Machine) -> str:
    return machine.record.serial.read()[0].decode(errors="surrogateescape")


def script_output(machine: Machine) -> str:
    """What the startup script wrote, without the prefix."""
    prefix = "startup-script: "
    lines = console(machine).split("\n")
    return "\n".join(line.removeprefix(prefix) for line in lines if line.startswith(prefix))


async def until(condition: Callable[[], object], timeout: float = PATIENCE) -> None:
    deadline = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        await asyncio.sleep(0.005)


async def until_said(machine: Machine, text: str) -> str:
    try:
        await until(lambda: text in console(machine))
    except AssertionError:
        raise AssertionError(f"{text!r} is not on the console:\n{console(machine)}") from None
    return console(machine)


async def run_script(kind: ProcessKind, script: str, name: str = "m", **metadata: str) -> str:
    """Boot a machine, let its startup script end, and return what it wrote."""
    machine = new_machine(kind, make_record(name, script, **metadata))
    await machine.boot()
    await until_said(machine, "startup-script exit status")
    return script_output(machine)
