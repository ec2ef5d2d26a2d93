"""One namespace machine, seen from the emulator.

Owns its power state, its disk's folder, and turns its console into serial output and its end into
what the emulator is told. What it is made of is in :mod:`vpc`.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import signal
import socket
import subprocess
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dask_gce.emulator.machine import Contents, GuestExit, Machine
from dask_gce.emulator.machines.disk_copies import DiskCopy
from dask_gce.emulator.machines.guest.files import remove_tree
from dask_gce.emulator.machines.namespace.vpc_process import VPCProcess
from dask_gce.emulator.record import InstanceRecord

if TYPE_CHECKING:
    from dask_gce.emulator.machines.namespace.kind import NamespaceKind

__all__ = ["NamespaceMachine"]

logger = logging.getLogger(__name__)

#: The signal of the power button, to systemd and to :mod:`vpc.init`; Linux' number, on which the
#: C library's first real-time signal is the 34th everywhere.
BUTTON = 34 + 4

#: What of a disk does not outlive a boot.
PASSING = frozenset({"work", "home.work", "var.work", "tmp", "root", "facts", "stateless"})

#: Seconds until a console that nobody in the machine has open is looked at again.
_PAUSE = 0.02


class _Boot:
    """One boot of a machine: its console, and how it ended."""

    def __init__(self, machine: NamespaceMachine) -> None:
        self._machine = machine
        self._loop = asyncio.get_running_loop()
        self._console = -1
        self._again: asyncio.TimerHandle | None = None
        self._carry = b""
        self.reason = "kill"
        #: Whether its end is asked for, so that it is no exit of the guest's.
        self.asked = False
        #: Whether nobody wants it any more, though its thread may still get a machine.
        self.abandoned = False
        self.ended = asyncio.Event()
        self._control, self._control_end = socket.socketpair()
        self._control.setblocking(False)
        self._loop.add_reader(self._control, self._read_control)

    def begin(
        self, plan: dict[str, Any], vpc: VPCProcess, api_port: int | None
    ) -> tuple[int, socket.socket | None]:
        """Have the machine booted; return its console and its listener. For a thread."""
        with self._control_end:
            return vpc.boot(plan, self._control_end, api_port)

    def watch(self, console: int) -> None:
        """Pass on what the console says, from now on."""
        os.set_blocking(console, False)
        self._console = console
        self._look_again()

    def _look_again(self) -> None:
        self._again = None
        self._loop.add_reader(self._console, self._read_console)

    def _read_console(self) -> bool:
        """Pass on some of it; returns whether there may be more."""
        try:
            data = os.read(self._console, 65536)
        except BlockingIOError:
            return False
        except OSError:
            # Nobody has it open at the moment, as between two programs; or nobody will again.
            self._loop.remove_reader(self._console)
            if self._again is None:
                self._again = self._loop.call_later(_PAUSE, self._look_again)
            return False
        data = self._carry + data
        self._carry = data[-1:] if data.endswith(b"\r") else b""
        self._machine.record.serial.write(data.removesuffix(self._carry).replace(b"\r\n", b"\n"))
        return True

    def _read_control(self) -> None:
        try:
            data = self._control.recv(4096)
        except BlockingIOError:
            return
        except ConnectionResetError:
            data = b""
        self._loop.remove_reader(self._control)
        self._control.close()
        if data:
            self.reason = json.loads(data)["off"]
        self.ended.set()

    def finish(self) -> None:
        """Pass on the console's last words, once the machine has ended."""
        while self._read_console():
            pass
        if self._again is not None:
            self._again.cancel()
        self._loop.remove_reader(self._console)
        os.close(self._console)


class NamespaceMachine(Machine):
    """A machine with an operating system of its own on the host's kernel.

    Parameters
    ----------
    record : InstanceRecord
        The instance.
    address : str
        Its internal address.
    on_exit : callable
        Told once per boot when the guest ends by itself.
    kind : NamespaceKind
        What it shares with the others.
    slot : int
        Its number, by which the VPC process knows it.
    """

    def __init__(
        self,
        record: InstanceRecord,
        address: str,
        on_exit: GuestExit,
        kind: NamespaceKind,
        slot: int,
    ) -> None:
        super().__init__(record, address, on_exit)
        self.slot = slot
        self._kind = kind
        self._boot: _Boot | None = None
        self._watch: asyncio.Task[None] | None = None
        self._switch = asyncio.Lock()
        self._installed = False
        self._discarded = False

    @property
    def folder(self) -> Path:
        """The folder of its disk."""
        return self._kind.vpc.folder / "machines" / str(self.slot)

    @property
    def on(self) -> bool:
        """Whether it has booted and not ended."""
        return self._boot is not None

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
            await self._kind.network.settled()
            plan, port = self._kind.plan(self), self._kind.network.api_port
            if not self._installed:
                image = self.contents.folder if isinstance(self.contents, DiskCopy) else None
                await self._kind.in_thread(_install, self.folder, image)
                self._installed = True
            # Here and not below, where all other machines would wait for it.
            await self._kind.in_thread(remove_tree, str(self.folder / "tmp"))
            boot = self._boot = _Boot(self)
            begun = asyncio.ensure_future(
                self._kind.in_thread(boot.begin, plan, self._kind.vpc, port)
            )
            self._watch = asyncio.create_task(self._follow(boot, begun))
            try:
                await asyncio.shield(begun)
            except asyncio.CancelledError:
                boot.asked = boot.abandoned = True
                raise

    async def _follow(
        self, boot: _Boot, begun: asyncio.Future[tuple[int, socket.socket | None]]
    ) -> None:
        try:
            console, listener = await begun
        except RuntimeError:
            # Whoever asked for the machine knows why there is none.
            boot.asked = True
            await boot.ended.wait()
        else:
            boot.watch(console)
            try:
                await self._kind.network.attached(self.slot, self.address, listener)
            except RuntimeError as error:
                # The emulator is closing.
                logger.debug("Machine %s is not served: %s", self.record.name, error)
            # Not where its end was asked for meanwhile: then its scripts have their time.
            if boot.abandoned:
                await self._kind.in_thread(self._kind.vpc.signal, self.slot, signal.SIGKILL)
            await boot.ended.wait()
            boot.finish()
            if boot.reason == "panic":
                self.record.serial.write(b"Kernel panic - not syncing: Attempted to kill init!\n")
        finally:
            await self._kind.network.detached(self.slot)
            self._boot = None
        if not boot.asked:
            # Last, because a reboot boots it again at once.
            self.on_exit("reboot" if boot.reason == "reboot" else "poweroff")

    async def stop(self, grace: float) -> None:
        """Press the power button and wait until the machine is off.

        Parameters
        ----------
        grace : float
            Seconds for the shutdown script and the guest's processes together.
        """
        await self._end(BUTTON, grace)

    async def kill(self) -> None:
        """Cut the power and wait until nothing runs."""
        await self._end(signal.SIGKILL, None)

    async def _end(self, number: int, grace: float | None) -> None:
        async with self._switch:  # a boot that has begun comes to its end first
            boot, watch = self._boot, self._watch
        if boot is not None:
            boot.asked = True
            await self._kind.in_thread(self._kind.vpc.signal, self.slot, number)
            try:
                await asyncio.wait_for(boot.ended.wait(), grace)
            except asyncio.TimeoutError:
                await self._kind.in_thread(self._kind.vpc.signal, self.slot, signal.SIGKILL)
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
            if not self._installed:
                return self.contents
            copy = self._kind.new_copy()
            await self._kind.in_thread(_copy, self.folder, copy)
            return DiskCopy(copy, partial(self._kind.in_thread, remove_tree, str(copy)))

    async def discard(self) -> None:
        """Cut the power and remove every trace. May be called twice."""
        self._discarded = True
        await self.kill()
        async with self._switch:
            if self._installed:
                await self._kind.in_thread(remove_tree, str(self.folder))
                self._installed = False
            await self._kind.forget(self)

    def describe(self) -> str:
        """Say what still exists of the machine.

        Returns
        -------
        str
            A sentence.
        """
        state = "is on" if self.on else "is off"
        return f"Machine {self.record.name} ({self.address}) {state} and was not discarded."


def _install(folder: Path, image: Path | None) -> None:
    folder.mkdir(parents=True)
    if image is not None:
        _copy(image, folder)


def _copy(source: Path, target: Path) -> None:
    """Copy a disk, with the marks by which overlays know what is removed."""
    target.mkdir(parents=True, exist_ok=True)
    parts = [str(part) for part in source.iterdir() if part.name not in PASSING]
    if parts:
        subprocess.run(
            ["cp", "-a", "--reflink=auto", "-t", str(target), "--", *parts],
            check=True,
            stdin=subprocess.DEVNULL,
        )
