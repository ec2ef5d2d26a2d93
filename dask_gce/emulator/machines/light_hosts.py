"""The processes in which light workers live, seen from the emulator.

Owns one light host: its process machine, the connection with it, and who lives there. A host is a
process machine that the API does not show, so it is fenced in and ended like any other; what runs
in it is :mod:`guest.light_host`.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import secrets
from pathlib import Path
from typing import Any, Protocol

from dask_gce.emulator.machines.process import ProcessKind
from dask_gce.emulator.machines.process_machine import ProcessMachine
from dask_gce.emulator.record import InstanceRecord

__all__ = ["LightHost", "Tenant"]

#: Seconds in which a host must be there.
HOST_TIMEOUT = 60.0

#: What every host runs.
PROGRAM = Path(__file__).parent / "guest" / "light_host.py"

#: The startup script of every host: one that cannot run is off at once, with the reason on show.
SCRIPT = """\
#!/bin/sh
python -c "$(curl --silent --fail --header Metadata-Flavor:Google \\
  "http://$GCE_METADATA_HOST/computeMetadata/v1/instance/attributes/light-program")"
poweroff
"""

#: How much of a dead host's console its workers show, in bytes.
LAST_WORDS = 4096


class Tenant(Protocol):
    """What a host tells of the workers of one machine."""

    def note_phase(self, key: int, text: str) -> None:
        """Note how far the boot has come.

        Parameters
        ----------
        key : int
            The boot.
        text : str
            The phase.
        """

    def note_off(self, key: int, why: str) -> None:
        """Note that the workers have ended.

        Parameters
        ----------
        key : int
            The boot.
        why : str
            What the console is to say; empty when they said it themselves.
        """


class LightHost:
    """One process full of workers. It boots when it is first needed.

    Parameters
    ----------
    number : int
        Tells it from the others.
    processes : ProcessKind
        Makes its machine.
    """

    def __init__(self, number: int, processes: ProcessKind) -> None:
        #: What its process shows when it calls.
        self.token = secrets.token_urlsafe(32)
        #: How many machines live here, on or off.
        self.tenants = 0
        self._name = f"local-gce-light-{number}"
        self._processes = processes
        self._machine: ProcessMachine | None = None
        self._writer: asyncio.StreamWriter | None = None
        self._booted: dict[int, Tenant] = {}
        self._called = asyncio.Event()
        self._switch = asyncio.Lock()

    async def power_on(self, port: int) -> None:
        """Boot the host, unless it is there.

        Parameters
        ----------
        port : int
            The port of 127.0.0.1 that its process is to call.

        Raises
        ------
        RuntimeError
            It did not call.
        """
        async with self._switch:
            if self._writer is not None:
                return
            await self._clear()
            items = {
                "startup-script": SCRIPT,
                "light-program": PROGRAM.read_text("utf-8"),
                "light-port": str(port),
                "light-token": self.token,
            }
            metadata = {"items": [{"key": key, "value": value} for key, value in items.items()]}
            resource = {"name": self._name, "id": "0", "metadata": metadata}
            record = InstanceRecord("local-gce", 0, "local", resource)
            address = self._processes.allocate(record)
            self._machine = self._processes.create(record, address, self._note_exit)
            await self._machine.boot()
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(self._called.wait(), HOST_TIMEOUT)
            if self._writer is None:
                raise RuntimeError(f"no process for light workers:\n{self._last_words()}")

    def _note_exit(self, how: str) -> None:
        self._called.set()

    def _last_words(self) -> str:
        if self._machine is None:
            return ""
        return self._machine.record.serial.read(-LAST_WORDS)[0].decode(errors="replace")

    async def power_off(self) -> None:
        """Discard the host. May be called twice."""
        async with self._switch:
            await self._clear()

    async def _clear(self) -> None:
        if self._writer is not None:
            self._writer.close()
            self._writer = None
        machine, self._machine = self._machine, None
        self._called.clear()
        if machine is not None:
            await machine.discard()

    async def listen(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Hear what the host reports, until it hangs up.

        Parameters
        ----------
        reader, writer : asyncio streams
            The connection with its process.
        """
        self._writer = writer
        self._called.set()
        with contextlib.suppress(ConnectionError):
            while line := await reader.readline():
                words = json.loads(line)
                if "phase" in words:
                    self._booted[words["phase"]].note_phase(words["phase"], words["text"])
                else:
                    self._booted.pop(words["off"]).note_off(words["off"], "")
        if self._writer is writer:
            self._writer = None
        lost, self._booted = self._booted, {}
        for key, tenant in lost.items():
            why = f"The process of this worker and others died:\n{self._last_words()}"
            tenant.note_off(key, why)

    def boot(self, key: int, tenant: Tenant, order: dict[str, Any]) -> None:
        """Have the workers of a machine started.

        Parameters
        ----------
        key : int
            The boot.
        tenant : Tenant
            Told what becomes of it.
        order : dict
            The fields of the order beside the key.
        """
        self._booted[key] = tenant
        self._send({"boot": key, **order})

    def show(self, key: int, preempted: bool, maintenance: str) -> None:
        """Show the workers of a machine what is about to happen to it.

        Parameters
        ----------
        key : int
            The boot.
        preempted : bool
            Whether Compute Engine is taking it away.
        maintenance : str
            What the host is about to do to it, in the metadata server's words.
        """
        if key in self._booted:
            self._send({"show": key, "preempted": preempted, "maintenance": maintenance})

    def end(self, key: int, grace: float | None) -> bool:
        """Have the workers of a machine ended.

        Parameters
        ----------
        key : int
            The boot.
        grace : float or None
            Seconds in which they may end in order; None ends them at once.

        Returns
        -------
        bool
            Whether there is something to wait for.
        """
        if self._writer is None or key not in self._booted:
            return False
        self._send({"kill": key} if grace is None else {"stop": key, "grace": grace})
        return True

    def _send(self, order: dict[str, Any]) -> None:
        if self._writer is not None:
            self._writer.write(json.dumps(order).encode() + b"\n")
