"""One process machine, seen from the emulator.

Owns the machine's folder, its metadata server and its power state, and turns what its first process
says into serial output and the end of a boot. What happens inside is :mod:`guest.init`.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import socket
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from dask_gce.emulator.machine import Contents, GuestExit, Machine
from dask_gce.emulator.machines.disk_copies import DiskCopy
from dask_gce.emulator.machines.guest.files import remove_tree
from dask_gce.emulator.machines.metadata import MetadataServer
from dask_gce.emulator.machines.supervision import Supervision
from dask_gce.emulator.record import InstanceRecord

if TYPE_CHECKING:
    from dask_gce.emulator.machines.process import ProcessKind

__all__ = ["ProcessMachine"]

#: Seconds beyond the grace after which a machine that does not end is swept away. More than what a
#: busy host takes for an end in order, after which nothing is left in shared memory.
PATIENCE = 30.0


class _Boot:
    """One boot of a machine: its connections, and how it ended."""

    def __init__(self, machine: ProcessMachine) -> None:
        self._machine = machine
        self._loop = asyncio.get_running_loop()
        self._received = b""
        self._open = 2
        self.pid = 0
        self.reason: str | None = None
        self.asked = False
        self.ended = asyncio.Event()
        self.control, self._control_end = socket.socketpair()
        self.control.setblocking(False)
        self._console, self._console_end = os.pipe()
        os.set_blocking(self._console, False)
        self._loop.add_reader(self._console, self._read_console)
        self._loop.add_reader(self.control, self._read_control)

    def fork(self, plan: dict[str, object], supervision: Supervision) -> None:
        """Have the machine forked; runs in a thread, to its end whatever becomes of the caller."""
        try:
            self.pid = supervision.boot(plan, self._control_end, self._console_end)
        finally:
            # The machine has copies. Without a machine both readers see the end at once.
            self._control_end.close()
            os.close(self._console_end)

    def send(self, order: dict[str, object]) -> None:
        with contextlib.suppress(OSError):  # it is off, and the reader will say so
            self.control.send(json.dumps(order).encode() + b"\n")

    def _read_console(self) -> None:
        try:
            data = os.read(self._console, 65536)
        except BlockingIOError:
            return
        if data:
            self._machine.record.serial.write(data)
            return
        self._loop.remove_reader(self._console)
        os.close(self._console)
        self._close_one()

    def _read_control(self) -> None:
        try:
            data = self.control.recv(4096)
        except BlockingIOError:
            return
        except ConnectionResetError:
            data = b""
        if data:
            self._received += data
            return
        self._loop.remove_reader(self.control)
        self.control.close()
        if self._received:
            self.reason = json.loads(self._received.splitlines()[-1])["off"]
        self._close_one()

    def _close_one(self) -> None:
        self._open -= 1
        if not self._open:
            self.ended.set()


class ProcessMachine(Machine):
    """A machine made of processes.

    Parameters
    ----------
    record : InstanceRecord
        The instance.
    address : str
        Its loopback address.
    on_exit : callable
        Told once per boot when the guest ends by itself.
    kind : ProcessKind
        What it shares with the others.
    uid : int or None
        The user that its guest is on the host, and nobody else; None for the emulator's user.
    """

    def __init__(
        self,
        record: InstanceRecord,
        address: str,
        on_exit: GuestExit,
        kind: ProcessKind,
        uid: int | None,
    ) -> None:
        super().__init__(record, address, on_exit)
        self.uid = uid
        self._kind = kind
        self._folder: Path | None = None
        users = {os.geteuid()} if uid is None else {os.geteuid(), uid}
        self._metadata = MetadataServer(record, address, users)
        self._boot: _Boot | None = None
        self._watch: asyncio.Task[None] | None = None
        self._switch = asyncio.Lock()
        self._discarded = False

    @property
    def folder(self) -> Path | None:
        """The machine's folder, None before the first boot."""
        return self._folder

    @property
    def pid(self) -> int | None:
        """Its first process, None while it is off."""
        return self._boot.pid if self._boot is not None else None

    async def boot(self) -> None:
        """Power on; does nothing if it is on.

        Raises
        ------
        RuntimeError
            The machine could not be made, or was discarded.
        """
        async with self._switch:
            if self._discarded:
                raise RuntimeError(f"machine {self.record.name} was discarded")
            if self._boot is not None:
                return
            if self._watch is not None:
                await self._watch
            if self._folder is None:
                image = self.contents.folder if isinstance(self.contents, DiskCopy) else None
                self._folder = await self._kind.in_thread(
                    self._kind.layout.add_machine, self.record.name, self.uid, image
                )
            await self._metadata.start()
            await self._kind.publish_names()
            environment = await self._kind.in_thread(
                self._kind.layout.environment,
                self._folder,
                self.record.hostname,
                self.address,
                self._metadata.port,
            )
            environment["LOCAL_GCE_GPUS"] = " ".join(self._gpus())
            fence = self._kind.fence
            plan = {
                "hostname": self.record.name,
                "disk": str(self._folder / "disk"),
                "metadata": [self.address, self._metadata.port],
                "environment": environment,
                "landlock": fence.landlock,
                "uid": self.uid,
                "namespace": fence.namespace,
                "greeting": self._greeting(fence.warnings),
            }
            boot = _Boot(self)
            forking = asyncio.ensure_future(
                self._kind.in_thread(boot.fork, plan, self._kind.supervision)
            )
            try:
                # Not given up by who gives up waiting, even if no thread has taken it up yet.
                await asyncio.shield(forking)
            except BaseException:
                # The thread may still get its machine, which then finds this order waiting.
                boot.asked = True
                boot.send({"kill": True})
                raise
            finally:
                self._boot = boot
                self._watch = asyncio.create_task(self._follow(boot))

    def _gpus(self) -> list[str]:
        """Return the types of the machine's GPUs, each as often as there are."""
        return [
            each["acceleratorType"].rpartition("/")[2]
            for each in self.record.resource.get("guestAccelerators", ())
            for _ in range(each["acceleratorCount"])
        ]

    def _greeting(self, warnings: tuple[str, ...]) -> list[str]:
        machine_type = str(self.record.resource.get("machineType", "")).rpartition("/")[2]
        return [
            f"Local Compute Engine: {self.record.hostname} ({machine_type or 'no machine type'})",
            f"Address {self.address}, metadata server on port {self._metadata.port}",
            *warnings,
        ]

    async def _follow(self, boot: _Boot) -> None:
        await boot.ended.wait()
        if boot.pid and boot.reason is None:
            self.record.serial.write(b"Kernel panic - not syncing: Attempted to kill init!\n")
            await self._kind.in_thread(self._kind.supervision.sweep, boot.pid)
        if self._boot is boot:
            self._boot = None
        if boot.pid and not boot.asked:
            self.on_exit("reboot" if boot.reason == "reboot" else "poweroff")

    async def stop(self, grace: float) -> None:
        """Press the power button and wait until the machine is off.

        Parameters
        ----------
        grace : float
            Seconds for the shutdown script and the guest's processes together.
        """
        await self._end({"stop": grace}, grace)

    async def kill(self) -> None:
        """Cut the power and wait until nothing runs."""
        await self._end({"kill": True}, 0)

    async def _end(self, order: dict[str, object], grace: float) -> None:
        async with self._switch:  # a boot that has begun comes to its end first
            boot, watch = self._boot, self._watch
        if boot is not None:
            boot.asked = True
            boot.send(order)
            try:
                await asyncio.wait_for(boot.ended.wait(), grace + PATIENCE)
            except asyncio.TimeoutError:
                await self._kind.in_thread(self._kind.supervision.sweep, boot.pid)
        if watch is not None:
            await asyncio.shield(watch)

    async def capture(self) -> Contents | None:
        """Copy its disk, but for what does not outlive a boot.

        Returns
        -------
        Contents or None
            The copy; what it would begin with if it never booted.
        """
        async with self._switch:
            if self._folder is None:
                return self.contents
            copy = await self._kind.in_thread(self._kind.layout.copy_disk, self._folder)
            return DiskCopy(copy, partial(self._kind.in_thread, remove_tree, str(copy)))

    async def discard(self) -> None:
        """Cut the power and remove every trace. May be called twice."""
        self._discarded = True
        await self.kill()
        async with self._switch:
            await self._metadata.close()
            if self._folder is not None:
                await self._kind.in_thread(remove_tree, str(self._folder))
                self._folder = None
            await self._kind.forget(self)

    def describe(self) -> str:
        """Say what still exists of the machine.

        Returns
        -------
        str
            A sentence.
        """
        state = f"runs as process {self.pid}" if self.pid else "is off"
        place = f" in {self._folder}" if self._folder else ""
        return f"Machine {self.record.name} ({self.address}) {state}{place} and was not discarded."
