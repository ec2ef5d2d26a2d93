"""Machines of kind ``light``: Dask workers that share processes, hundreds in each.

Owns which instance lives in which of the shared processes (:mod:`light_hosts`), and the power state
of each. Instances that are no workers are not the business of this kind: :mod:`by_role` gives them
to another. No startup script runs here; what the program that the script would start does, which
is to wait for the scheduler and to run what the Dask specification says, is done by
:mod:`guest.light_host`.
"""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import itertools

from dask_gce.emulator.listeners import stop_accepting
from dask_gce.emulator.machine import GuestExit, Machine, MachineKind
from dask_gce.emulator.machines.addresses import Leases, LoopbackAddresses
from dask_gce.emulator.machines.light_hosts import LightHost
from dask_gce.emulator.machines.process import ProcessKind
from dask_gce.emulator.record import InstanceRecord

__all__ = ["LightKind", "LightMachine"]

#: In so many processes all light workers live.
HOSTS = 2

#: Seconds beyond the grace after which workers that do not end are given up.
PATIENCE = 5.0

#: Seconds in which whoever calls must say who it is.
GREETING_TIMEOUT = 5.0

#: Bytes that one report may have.
LINE_LIMIT = 2**20

#: The metadata that the workers need.
TOLD = (
    "dask-gce-linger",
    "dask-gce-notice",
    "dask-gce-processes",
    "dask-gce-scheduler",
    "dask-gce-spec",
    "dask-gce-tls",
)

#: What a machine keeps on its disk, since the metadata may have it for the first boot only.
KEPT = "dask-gce-tls"

#: Names what it keeps, and where that comes from if not from the metadata.
SECRETS = "dask-gce-secrets"


class LightMachine(Machine):
    """The workers of one instance, in a process that they share with others.

    Parameters
    ----------
    record : InstanceRecord
        The instance.
    address : str
        Its loopback address.
    on_exit : callable
        Told once per boot when its workers end by themselves.
    kind : LightKind
        What it shares with the others.
    host : LightHost
        The process it lives in.
    """

    def __init__(
        self,
        record: InstanceRecord,
        address: str,
        on_exit: GuestExit,
        kind: LightKind,
        host: LightHost,
    ) -> None:
        super().__init__(record, address, on_exit)
        self.host = host
        self._kind = kind
        self._key: int | None = None
        self._off = asyncio.Event()
        self._asked = False
        self._discarded = False
        self._kept: str | None = None
        self._watching: asyncio.Task[None] | None = None

    @property
    def powered(self) -> bool:
        """Whether it is on."""
        return self._key is not None

    async def boot(self) -> None:
        """Power on; does nothing if it is on.

        Raises
        ------
        RuntimeError
            There is no process to live in, or the machine was discarded.
        """
        if self._discarded:
            raise RuntimeError(f"machine {self.record.name} was discarded")
        if self.powered:
            return
        self._key = key = next(self._kind.keys)
        self._asked = False
        self._off.clear()
        try:
            await self.host.power_on(self._kind.port)
        except BaseException:
            self._key = None
            raise
        if self._key != key:
            return  # the power was cut meanwhile
        self.note_phase(key, "booted")
        metadata = self.record.metadata
        told = {name: metadata[name] for name in metadata if name.startswith(TOLD)}
        self._kept = told.get(KEPT, self._kept)
        if self._kept is not None:
            told[KEPT] = self._kept
        elif metadata.get(SECRETS):
            self.note_phase(key, "failed: light machines have certificates from the metadata only")
            self.note_off(key, "")
            return
        order = {"name": self.record.name, "address": self.address, "metadata": told}
        self.host.boot(key, self, order)
        scheduling = self.record.resource.get("scheduling", {})
        if scheduling.get("onHostMaintenance") == "TERMINATE":  # as all Spot instances have it
            self._watching = asyncio.ensure_future(self._watch(key))

    async def _watch(self, key: int) -> None:
        """Show the workers what a metadata server would show them of an end that is to come."""
        record, shown = self.record, (False, "NONE")
        while True:
            version = record.version
            now = record.preempted, record.maintenance_event
            if now != shown:
                shown = now
                self.host.show(key, *now)
            await record.wait_for_change(version, None)

    def note_phase(self, key: int, text: str) -> None:
        """Publish how far the boot has come, as guests do.

        Parameters
        ----------
        key : int
            The boot; one that was given up is ignored.
        text : str
            The phase.
        """
        if key != self._key:
            return
        self.record.serial.write(f"dask-gce phase: {text}\n".encode())
        self.record.guest_attributes.setdefault("dask-gce", {})["phase"] = text
        self.record.touch()

    def note_off(self, key: int, why: str) -> None:
        """Note that the workers have ended, which ends the machine.

        Parameters
        ----------
        key : int
            The boot; one that was given up is ignored.
        why : str
            What the serial console is to say; empty when it has been said.
        """
        if key != self._key:
            return
        self.record.serial.write(why.encode())
        self._key = None
        self._end_watching()
        self._off.set()
        if not self._asked:
            self.on_exit("poweroff")

    async def stop(self, grace: float) -> None:
        """Let the workers end in order, and wait for it.

        Parameters
        ----------
        grace : float
            Seconds they may take.
        """
        await self._end(grace)

    async def kill(self) -> None:
        """End the workers without a word to their scheduler."""
        await self._end(None)

    async def _end(self, grace: float | None) -> None:
        if self._key is None:
            return
        self._asked = True
        if self.host.end(self._key, grace):
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(self._off.wait(), (grace or 0) + PATIENCE)
        self._key = None
        self._end_watching()

    def _end_watching(self) -> None:
        if self._watching is not None:
            self._watching.cancel()
            self._watching = None

    async def discard(self) -> None:
        """End the workers and remove every trace. May be called twice."""
        self._discarded = True
        await self.kill()
        await self._kind.forget(self)


class LightKind(MachineKind):
    """Makes light machines.

    Parameters
    ----------
    processes : ProcessKind
        Makes the processes they share; it is started before this kind and closed after it.
    """

    name = "light"

    def __init__(self, processes: ProcessKind) -> None:
        self.port = 0
        #: A number for each boot.
        self.keys = itertools.count(1)
        self._addresses = LoopbackAddresses()
        self._leases = Leases(self._addresses)
        self._machines: set[LightMachine] = set()
        self._hosts = [LightHost(number + 1, processes) for number in range(HOSTS)]
        self._server: asyncio.Server | None = None
        self._calls: set[asyncio.Task[None]] = set()

    async def start(self) -> None:
        """Listen for the processes. They start when they are needed."""
        if self._server is None:
            self._server = await asyncio.start_server(
                self._take_call, "127.0.0.1", 0, limit=LINE_LIMIT
            )
            self.port = self._server.sockets[0].getsockname()[1]

    def _take_call(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        call = asyncio.ensure_future(self._hear(reader, writer))
        self._calls.add(call)
        call.add_done_callback(self._calls.discard)

    async def _hear(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            greeting = await asyncio.wait_for(reader.readline(), GREETING_TIMEOUT)
            for host in self._hosts:
                if hmac.compare_digest(greeting.strip(), host.token.encode()):
                    await host.listen(reader, writer)
        except (asyncio.TimeoutError, ConnectionError, ValueError):
            pass  # a stranger, who said nothing or too much
        finally:
            writer.close()

    async def close(self) -> None:
        """Discard every machine and the processes. May be called twice."""
        server, self._server = self._server, None
        if server is not None:
            await stop_accepting(server.sockets)
            server.close()
        await asyncio.gather(*(machine.discard() for machine in tuple(self._machines)))
        await asyncio.gather(*(host.power_off() for host in self._hosts))
        for call in tuple(self._calls):
            call.cancel()
        if self._calls:
            await asyncio.wait(self._calls)
        self._addresses.close()

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
        return self._leases.allocate(record, requested)

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
        return self._leases.reserve(requested)

    def unreserve(self, address: str) -> None:
        """Keep an address no longer.

        Parameters
        ----------
        address : str
            An address that was reserved.
        """
        self._leases.unreserve(address)

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

    def create(self, record: InstanceRecord, address: str, on_exit: GuestExit) -> LightMachine:
        """Make a machine, powered off.

        Parameters
        ----------
        record : InstanceRecord
            The instance.
        address : str
            Its internal address.
        on_exit : callable
            Told when its workers end by themselves.

        Returns
        -------
        LightMachine
            The machine.
        """
        host = min(self._hosts, key=lambda one: one.tenants)
        host.tenants += 1
        machine = LightMachine(record, address, on_exit, self, host)
        self._machines.add(machine)
        return machine

    async def forget(self, machine: LightMachine) -> None:
        """Free what a discarded machine had; the last one of a process takes the process with it.

        Parameters
        ----------
        machine : LightMachine
            The machine; one that is forgotten already is ignored.
        """
        if machine in self._machines:
            self._machines.remove(machine)
            self._leases.release(machine.record)
            machine.host.tenants -= 1
            if not machine.host.tenants:
                await machine.host.power_off()

    def leftovers(self) -> list[str]:
        """Describe the machines that were not discarded.

        Returns
        -------
        list of str
            A sentence a machine. What is left of the processes is said by their own kind.
        """
        return [
            f"Light machine {machine.record.name} ({machine.address}) was not discarded."
            for machine in self._machines
        ]
