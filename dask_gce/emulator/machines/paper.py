"""Machines of kind ``paper``: states only, so that thousands cost nothing.

Owns addresses and whether a machine is on. There is no guest: no startup script runs, nobody asks a
metadata server, and the serial console stays silent.
"""

from __future__ import annotations

from dask_gce.emulator.machine import GuestExit, Machine, MachineKind
from dask_gce.emulator.machines.addresses import Leases, PrivateAddresses
from dask_gce.emulator.record import InstanceRecord

__all__ = ["PaperKind", "PaperMachine"]


class PaperMachine(Machine):
    """A machine that is only written down.

    Parameters
    ----------
    record : InstanceRecord
        The instance.
    address : str
        Its internal address.
    on_exit : callable
        Never called: nothing runs that could end by itself.
    kind : PaperKind
        Where the addresses go back to.
    """

    def __init__(
        self, record: InstanceRecord, address: str, on_exit: GuestExit, kind: PaperKind
    ) -> None:
        super().__init__(record, address, on_exit)
        self.powered = False
        self._kind = kind

    async def boot(self) -> None:
        """Note that the machine is on."""
        self.powered = True

    async def stop(self, grace: float) -> None:
        """Note that the machine is off; there is no guest to wait for.

        Parameters
        ----------
        grace : float
            Seconds, not needed.
        """
        self.powered = False

    async def kill(self) -> None:
        """Note that the machine is off."""
        self.powered = False

    async def discard(self) -> None:
        """Forget the machine and free the addresses of its instance."""
        self.powered = False
        self._kind.forget(self)


class PaperKind(MachineKind):
    """Makes paper machines."""

    name = "paper"

    def __init__(self) -> None:
        self._leases = Leases(PrivateAddresses())
        self._machines: set[PaperMachine] = set()

    async def start(self) -> None:
        """Do nothing: paper needs nothing of its host."""

    async def close(self) -> None:
        """Discard every machine."""
        for machine in tuple(self._machines):
            await machine.discard()

    def allocate(self, record: InstanceRecord, requested: str | None = None) -> str:
        """Return a free address of 10.128.0.0/15.

        Parameters
        ----------
        record : InstanceRecord
            The instance.
        requested : str or None
            The address that is wanted.

        Returns
        -------
        str
            The requested address, or any.

        Raises
        ------
        ValueError
            The requested address lies outside the range or is in use, or none is left.
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
        """Return the partner of an internal address in 198.18.0.0/15.

        Parameters
        ----------
        internal : str
            An address that this kind allocated.

        Returns
        -------
        str
            An address that nothing answers on.
        """
        return PrivateAddresses.external(internal)

    def create(self, record: InstanceRecord, address: str, on_exit: GuestExit) -> PaperMachine:
        """Make a machine, powered off.

        Parameters
        ----------
        record : InstanceRecord
            The instance.
        address : str
            Its internal address.
        on_exit : callable
            Never called.

        Returns
        -------
        PaperMachine
            The machine.
        """
        machine = PaperMachine(record, address, on_exit, self)
        self._machines.add(machine)
        return machine

    def forget(self, machine: PaperMachine) -> None:
        """Free what a discarded machine had.

        Parameters
        ----------
        machine : PaperMachine
            The machine; one that is forgotten already is ignored.
        """
        if machine in self._machines:
            self._machines.remove(machine)
            self._leases.release(machine.record)

    def leftovers(self) -> list[str]:
        """Describe the machines that were not discarded.

        Returns
        -------
        list of str
            A sentence a machine.
        """
        return [
            f"Paper machine {machine.record.name} was not discarded." for machine in self._machines
        ]
