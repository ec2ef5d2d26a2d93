"""The local Compute Engine as a process of its own, and what it is asked from outside.

Owns the emulator's process, its machines and its latencies. GCPCluster's machines are told what to
run by cloud-init, which the emulator's machines do not have: here its commands become the startup
script, and nothing else about them changes.
"""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import time
from collections import Counter
from dataclasses import asdict, dataclass, field
from typing import Any

import yaml

from dask_gce.emulator import ComputeEmulator, Timings
from dask_gce.emulator.machine import GuestExit, MachineKind
from dask_gce.emulator.machines import make_kind
from dask_gce.emulator.machines.by_role import ByRole
from dask_gce.emulator.machines.paper import PaperKind
from dask_gce.emulator.machines.process import ProcessKind
from dask_gce.emulator.machines.process_machine import ProcessMachine
from dask_gce.emulator.record import InstanceRecord

PROJECT = "local-project"
ZONE = "us-central1-a"
MACHINE_TYPE = "e2-standard-4"

#: Seconds that calls take: assumed, the same for everyone.
INSERT = DELETE = 1.0
LIST = 0.2


@dataclass(frozen=True)
class Scenario:
    """What one emulator is like.

    Parameters
    ----------
    machines : str
        ``"process"``, ``"paper-workers"`` or ``"light"``.
    running : float
        Seconds from an accepted insert to RUNNING.
    booting : float
        Seconds from RUNNING to the start of the machine's program.
    prompt : bool
        Whether calls take no time.
    """

    machines: str
    running: float = 0.2
    booting: float = 0.0
    prompt: bool = False

    def timings(self) -> Timings:
        """Return the emulator's timings."""
        latencies = {
            "compute.instances.insert": INSERT,
            "compute.instances.bulkInsert": INSERT,
            "compute.instances.delete": DELETE,
            "compute.instances.list": LIST,
            "compute.instances.aggregatedList": LIST,
        }
        return Timings(
            provisioning=self.running / 2,
            staging=self.running / 2,
            booting=self.booting,
            stopping=2.0,
            latencies={} if self.prompt else latencies,
        )


class CloudInitRecord(InstanceRecord):
    """An instance whose startup script is made of its cloud-init commands."""

    @property
    def metadata(self) -> dict[str, str]:
        """The custom metadata and the startup script; the API shows only the former."""
        items = super().metadata
        if "user-data" in items:
            commands = yaml.safe_load(items["user-data"])["runcmd"]
            items["startup-script"] = "\n".join(["#!/bin/bash", *commands, ""])
        return items


class CloudInitKind(ProcessKind):
    """Process machines on images with cloud-init."""

    def create(self, record: InstanceRecord, address: str, on_exit: GuestExit) -> ProcessMachine:
        """Make a machine that runs its cloud-init commands."""
        record.__class__ = CloudInitRecord
        return super().create(record, address, on_exit)


def make_machines(name: str) -> MachineKind:
    """Make machines that run startup scripts and cloud-init commands."""
    if name == "light":
        return make_kind(name)
    processes = CloudInitKind()
    if name == "process":
        return processes
    return ByRole(
        name,
        others=processes,
        workers=PaperKind(),
        chosen=lambda record: "-worker-" in record.name,
    )


@dataclass
class Cloud:
    """An emulator in a process of its own; use it with ``with``.

    Parameters
    ----------
    scenario : Scenario
        What it is like.
    """

    scenario: Scenario
    endpoint: str = ""
    _process: subprocess.Popen[str] = field(init=False, repr=False)

    def __enter__(self) -> Cloud:
        self._process = subprocess.Popen(
            [sys.executable, "-m", __name__, json.dumps(asdict(self.scenario))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        self.endpoint = self._read()["endpoint"]
        return self

    def __exit__(self, *error: object) -> None:
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.close()
        self._process.stdout.close()
        if self._process.wait(60) != 0:
            raise RuntimeError("the local Compute Engine ended badly")

    def _read(self) -> Any:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError("the local Compute Engine has died")
        return json.loads(line)

    def _ask(self, **question: Any) -> Any:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(question) + "\n")
        self._process.stdin.flush()
        return self._read()

    def calls(self) -> Counter[str]:
        """Return how often each method was called so far."""
        return Counter(self._ask(ask="calls"))

    def instances(self) -> int:
        """Return how many instances there are."""
        return int(self._ask(ask="instances"))

    async def called(self, methods: list[str], above: int) -> float:
        """Wait for one more call of some methods; return its moment on the monotonic clock."""
        return float(await asyncio.to_thread(self._ask, ask="called", methods=methods, above=above))


async def _serve(scenario: Scenario) -> None:
    kind = make_machines(scenario.machines)
    reader = asyncio.StreamReader()
    loop = asyncio.get_running_loop()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    async with ComputeEmulator(kind, timings=scenario.timings()) as emulator:
        print(json.dumps({"endpoint": emulator.endpoint}), flush=True)
        while line := await reader.readline():
            question = json.loads(line)
            if question["ask"] == "calls":
                answer: Any = emulator.requests
            elif question["ask"] == "instances":
                answer = len(emulator.instances())
            else:
                answer = await _await_call(emulator, question["methods"], question["above"])
            print(json.dumps(answer), flush=True)


async def _await_call(emulator: ComputeEmulator, methods: list[str], above: int) -> float:
    while True:
        if sum(emulator.requests[method] for method in methods) > above:
            return time.monotonic()
        await asyncio.sleep(0.002)


if __name__ == "__main__":
    asyncio.run(_serve(Scenario(**json.loads(sys.argv[1]))))
