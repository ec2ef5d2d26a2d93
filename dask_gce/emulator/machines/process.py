"""Machines of kind ``process``: real processes on a loopback address of their own.

Owns what all machines of an emulator share: addresses, folders, the name table, the supervisor.
One machine is :mod:`process_machine`, what keeps its guest off the host is chosen in :mod:`fence`.
"""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import Callable, Collection, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from pathlib import Path
from typing import ParamSpec, TypeVar

from dask_gce.emulator.machine import GuestExit, MachineKind
from dask_gce.emulator.machines.addresses import Leases, LoopbackAddresses
from dask_gce.emulator.machines.fence import Fence, probe_fence, unused_uid
from dask_gce.emulator.machines.layout import Layout
from dask_gce.emulator.machines.process_machine import ProcessMachine
from dask_gce.emulator.machines.supervision import Supervision
from dask_gce.emulator.record import InstanceRecord

__all__ = ["ProcessKind"]

P = ParamSpec("P")
R = TypeVar("R")


class ProcessKind(MachineKind):
    """Makes machines out of processes.

    Parameters
    ----------
    container_images : sequence of str
        Shell patterns of the container images that exist.
    """

    name = "process"

    def __init__(self, *, container_images: Sequence[str] = ("*",)) -> None:
        self.container_images = tuple(container_images)
        self._addresses: LoopbackAddresses | None = None
        self._leases: Leases | None = None
        self._machines: dict[ProcessMachine, None] = {}
        self._users: set[int] = set()
        self._executor: ThreadPoolExecutor | None = None
        self._preparing: Future[None] | None = None
        self._closing: asyncio.Task[None] | None = None
        self._layout: Layout | None = None
        self._supervision: Supervision | None = None
        self._fence = Fence(0, strangers=False)
        self._names_lock: asyncio.Lock | None = None
        self._names_stale = False

    @property
    def fence(self) -> Fence:
        """How guests are kept off the host."""
        return self._fence

    @property
    def users(self) -> Collection[int]:
        """The users of the host that its guests are, beside the emulator's own."""
        return self._users

    @property
    def layout(self) -> Layout:
        """The machines' files; there after :meth:`start`."""
        return _started(self._layout)

    @property
    def supervision(self) -> Supervision:
        """The process under all machines; there after :meth:`start`."""
        return _started(self._supervision)

    async def start(self) -> None:
        """Probe the host, lay out the folder and start the supervisor.

        Raises
        ------
        RuntimeError
            The emulator runs as root, and nothing here takes root's power from a guest.
        """
        if self._executor is not None:
            return
        self._executor = ThreadPoolExecutor(4, thread_name_prefix="process-machines")
        self._names_lock = asyncio.Lock()
        self._preparing = self._executor.submit(self._prepare)
        self._closing = None
        try:
            # Who waits can be interrupted, the thread cannot: close() waits for it again.
            await asyncio.wrap_future(self._preparing)
        except BaseException:
            await self.close()
            raise

    def _prepare(self) -> None:
        self._addresses = LoopbackAddresses()
        self._leases = Leases(self._addresses)
        folder = Path(tempfile.mkdtemp(prefix="local-gce-"))
        # From here on close() ends the supervisor, and the folder goes with it.
        self._supervision = Supervision(folder)
        self._supervision.start()
        self._fence = probe_fence(self._supervision.can_map, self._supervision.can_become)
        self._layout = Layout(folder, shared=self._fence.strangers)
        self._layout.prepare(self.container_images)

    async def close(self) -> None:
        """Discard every machine, end the supervisor and remove the folder.

        May be called twice, also at once, and during :meth:`start`. It goes on if its caller is
        interrupted.
        """
        if self._closing is None:
            if self._executor is None:
                return
            self._closing = asyncio.create_task(self._close(self._executor))
        await asyncio.shield(self._closing)

    async def _close(self, executor: ThreadPoolExecutor) -> None:
        try:
            await self.in_thread(wait, [_started(self._preparing)])
            await asyncio.gather(*(machine.discard() for machine in tuple(self._machines)))
        finally:
            if self._supervision is not None:
                await self.in_thread(self._supervision.close)
            if self._addresses is not None:
                self._addresses.close()
                self._addresses = self._leases = None
            self._executor = None
            await asyncio.to_thread(executor.shutdown)
            if self._supervision is not None:
                # Once more: a boot that was interrupted may have gone on writing its disk.
                await asyncio.to_thread(self._supervision.close)

    async def in_thread(self, function: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
        """Run something that blocks, in a thread of this kind's own.

        Parameters
        ----------
        function : callable
            What to run.
        *args, **kwargs
            Its arguments.

        Returns
        -------
        object
            What it returned.
        """
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._executor, lambda: function(*args, **kwargs))

    def allocate(self, record: InstanceRecord, requested: str | None = None) -> str:
        """Return a free loopback address.

        Parameters
        ----------
        record : InstanceRecord
            The instance.
        requested : str or None
            The address that is wanted; only one of 127.0.0.0/8 can be had.

        Returns
        -------
        str
            The requested address, or any.

        Raises
        ------
        ValueError
            The requested address is not to be had.
        """
        return _started(self._leases).allocate(record, requested)

    def reserve(self, requested: str | None = None) -> str:
        """Keep an address for whoever requests it.

        Parameters
        ----------
        requested : str or None
            The address that is wanted; None takes any.

        Returns
        -------
        str
            The address.

        Raises
        ------
        ValueError
            It cannot be had, or none is left.
        """
        return _started(self._leases).reserve(requested)

    def unreserve(self, address: str) -> None:
        """Keep an address no longer.

        Parameters
        ----------
        address : str
            An address that was reserved.
        """
        _started(self._leases).unreserve(address)

    def external_address(self, internal: str) -> str:
        """Return the address itself: a loopback network has no translation.

        Parameters
        ----------
        internal : str
            An address that this kind allocated.

        Returns
        -------
        str
            The same address.
        """
        return internal

    def create(self, record: InstanceRecord, address: str, on_exit: GuestExit) -> ProcessMachine:
        """Make a machine, powered off.

        Parameters
        ----------
        record : InstanceRecord
            The instance.
        address : str
            Its internal address.
        on_exit : callable
            Told when the guest powers off or reboots by itself, or dies.

        Returns
        -------
        ProcessMachine
            The machine.
        """
        uid = None
        if self._fence.strangers:
            uid = unused_uid()
            self._users.add(uid)
        machine = ProcessMachine(record, address, on_exit, self, uid)
        self._machines[machine] = None
        return machine

    async def publish_names(self) -> None:
        """Write the names of the machines that exist to their name table."""
        self._names_stale = True
        async with _started(self._names_lock):
            if not self._names_stale:
                return  # whoever held the lock before has written ours too
            self._names_stale = False
            names: dict[str, list[str]] = {}
            for machine in self._machines:
                names.setdefault(machine.address, []).extend(
                    [machine.record.hostname, machine.record.name]
                )
            await self.in_thread(self.layout.write_hosts, names)

    async def forget(self, machine: ProcessMachine) -> None:
        """Free the addresses and the name of a discarded machine.

        Parameters
        ----------
        machine : ProcessMachine
            The machine; one that is forgotten already is ignored.
        """
        if machine in self._machines:
            del self._machines[machine]
            if machine.uid is not None:
                self._users.discard(machine.uid)
            if self._leases is not None:
                self._leases.release(machine.record)
            await self.publish_names()

    def leftovers(self) -> list[str]:
        """Describe whatever still exists of this kind.

        Returns
        -------
        list of str
            Sentences about machines, processes and folders.
        """
        found = [machine.describe() for machine in self._machines]
        if self._executor is not None:
            return found
        if self._supervision is not None and self._supervision.pid is not None:
            found.append(f"The machines' supervisor (process {self._supervision.pid}) still runs.")
        if self._layout is not None and self._layout.folder.exists():
            found.append(f"The machines' folder {self._layout.folder} still exists.")
        return found


def _started(part: R | None) -> R:
    if part is None:
        raise RuntimeError("the kind of machines is not started")
    return part
