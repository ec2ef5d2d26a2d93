"""Process machines: they boot the startup script, stop, die, and leave nothing behind."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable

import pytest

from dask_gce.emulator.machine import Machine
from dask_gce.emulator.machines import make_kind
from dask_gce.emulator.machines.process import ProcessKind
from dask_gce.emulator.machines.process_machine import ProcessMachine
from dask_gce.emulator.record import InstanceRecord


def make_record(name: str, script: str | None = None, **metadata: str) -> InstanceRecord:
    if script is not None:
        metadata["startup-script"] = script
    items = [{"key": key.replace("_", "-"), "value": value} for key, value in metadata.items()]
    resource = {"name": name, "id": "42", "metadata": {"items": items}}
    return InstanceRecord("local-project", 1234, "us-central1-a", resource)


def console(machine: Machine) -> str:
    return machine.record.serial.read()[0].decode()


async def until(condition: Callable[[], object], timeout: float = 20) -> None:
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


@pytest.fixture
async def kind() -> AsyncIterator[ProcessKind]:
    made = make_kind("process", access_token="ya29.test")
    assert isinstance(made, ProcessKind)
    await made.start()
    yield made
    await made.close()
    assert made.leftovers() == []


class Exits(list[str]):
    def __call__(self, how: str) -> None:
        self.append(how)


def new_machine(
    kind: ProcessKind, record: InstanceRecord, exits: Exits | None = None
) -> ProcessMachine:
    on_exit = Exits() if exits is None else exits
    return kind.create(record, kind.allocate(record), on_exit)


async def test_the_startup_script_runs_and_its_output_and_status_are_on_the_console(kind):
    machine = new_machine(kind, make_record("m", "#!/bin/sh\necho hello\necho oops >&2\nexit 3\n"))
    await machine.boot()
    text = await until_said(machine, "exit status")
    assert "startup-script: hello\n" in text
    assert "startup-script: oops\n" in text
    assert text.endswith("startup-script exit status 3\n")


async def test_a_script_without_an_interpreter_line_is_given_to_the_shell(kind):
    machine = new_machine(kind, make_record("m", 'echo "plain $((1 + 1))"'))
    await machine.boot()
    assert "startup-script: plain 2\n" in await until_said(machine, "exit status 0")


async def test_curl_reaches_the_metadata_server_by_its_usual_names(kind):
    script = (
        "for host in metadata.google.internal 169.254.169.254 $GCE_METADATA_HOST; do\n"
        "curl -sf -H Metadata-Flavor:Google http://$host/computeMetadata/v1/instance/name; echo\n"
        "done\n"
    )
    machine = new_machine(kind, make_record("m17", script))
    await machine.boot()
    assert (await until_said(machine, "exit status 0")).count("startup-script: m17\n") == 3


async def test_files_outlive_a_stop_and_the_script_runs_at_every_boot(kind):
    machine = new_machine(kind, make_record("m", "echo x >> $HOME/boots; wc -l < $HOME/boots"))
    for boot in (1, 2):
        await machine.boot()
        await until_said(machine, f"startup-script: {boot}\n")
        await machine.stop(5)
        assert machine.pid is None
