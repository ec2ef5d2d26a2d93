"""What the emulator asks of a machine, whatever the machine is made of.

A kind (`process`, `paper`, ...) is made once for an emulator and makes the machines. It owns
whatever its machines share: the address pool, the metadata server, the name table. The emulator's
instance life cycle calls these verbs and nothing else, so that a new kind needs no change
elsewhere.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection

from dask_gce.emulator.network import Network
from dask_gce.emulator.record import InstanceRecord

#: Called by a machine when its guest ends by itself: "poweroff" or "reboot".
GuestExit = Callable[[str], None]


class AddressTaken(ValueError):
    """An address belongs to another instance.

    Parameters
    ----------
    address : str
        The address.
    """

    def __init__(self, address: str) -> None:
        super().__init__(f"address {address} is in use")
        self.address = address


class Contents(ABC):
    """What a boot disk held at one moment, kept by the kind of machines that wrote it.

    It never changes, so an image and all disks that are made from it share one.
    """

    @abstractmethod
    async def discard(self) -> None:
        """Remove it; no machine begins with it any more."""


class Machine(ABC):
    """A booted or bootable machine behind one instance.

    Parameters
    ----------
    record : InstanceRecord
        The instance; the machine writes its serial console and guest attributes.
    address : str
        The internal IPv4 address the kind allocated for it.
    on_exit : callable
        Told once per boot when the guest powers off or reboots by itself.
    """

    def __init__(self, record: InstanceRecord, address: str, on_exit: GuestExit) -> None:
        self.record = record
        self.address = address
        self.on_exit = on_exit
        #: What its boot disk holds before the first boot; None for what all machines of its kind
        #: begin with. Whoever makes the machine sets it, before it boots.
        self.contents: Contents | None = None

    async def capture(self) -> Contents | None:
        """Copy what the boot disk holds. Meant for a machine that is off, as an image is.

        Returns
        -------
        Contents or None
            The copy; None where machines of this kind have no disk that keeps anything.
        """
        return None

    @abstractmethod
    async def boot(self) -> None:
        """Power on. Returns once the guest runs; its startup script goes on by itself.

        Raises
        ------
        RuntimeError
            The machine cannot be made here, or was discarded.
        """

    @abstractmethod
    async def stop(self, grace: float) -> None:
        """Press the power button.

        Parameters
        ----------
        grace : float
            Seconds the guest may take to end in order, before it is killed.
        """

    @abstractmethod
    async def kill(self) -> None:
        """Cut the power at once. The disk stays. Does nothing if the machine is off."""

    @abstractmethod
    async def discard(self) -> None:
        """Cut the power and remove every trace: processes, files, name, the record's addresses."""


class MachineKind(ABC):
    """Makes the machines of one emulator and owns what they share."""

    #: The name users type: ``--machines NAME``.
    name: str

    #: The network between the machines: the host's, unless a kind has one of its own.
    network: Network = Network()

    @property
    def users(self) -> Collection[int]:
        """The users of the host that its guests are at the moment, beside the emulator's own."""
        return ()

    @abstractmethod
    async def start(self) -> None:
        """Get ready: probe the host, make folders, start shared services."""

    @abstractmethod
    async def close(self) -> None:
        """Discard every machine and everything shared. May be called twice."""

    @abstractmethod
    def allocate(self, record: InstanceRecord, requested: str | None = None) -> str:
        """Return an internal IPv4 address for an instance.

        Parameters
        ----------
        record : InstanceRecord
            The instance.
        requested : str or None
            The address that is wanted; None takes any.

        Returns
        -------
        str
            The address.

        Raises
        ------
        AddressTaken
            Another instance has the requested address.
        ValueError
            The requested address cannot be had, or none is left.
        """

    def reserve(self, requested: str | None = None) -> str:
        """Keep an internal IPv4 address for whoever requests it by name.

        Parameters
        ----------
        requested : str or None
            The address that is wanted, which an instance may have already; None takes any that is
            free.

        Returns
        -------
        str
            The address.

        Raises
        ------
        ValueError
            It cannot be had, or none is left.
        """
        raise ValueError(f"{self.name} machines have no addresses that could be reserved")

    def unreserve(self, address: str) -> None:
        """Keep an address no longer.

        Parameters
        ----------
        address : str
            An address that was reserved.
        """
        raise ValueError(f"{self.name} machines have no addresses that are reserved: {address}")

    @abstractmethod
    def external_address(self, internal: str) -> str:
        """Return the external address through which an internal one is reached.

        Parameters
        ----------
        internal : str
            An address that this kind allocated.

        Returns
        -------
        str
            The external address.
        """

    @abstractmethod
    def create(self, record: InstanceRecord, address: str, on_exit: GuestExit) -> Machine:
        """Make a machine, powered off.

        Parameters
        ----------
        record : InstanceRecord
            The instance.
        address : str
            Its internal address.
        on_exit : callable
            Told when the guest ends by itself; from any thread.

        Returns
        -------
        Machine
            The machine.
        """

    @abstractmethod
    def leftovers(self) -> list[str]:
        """Describe whatever still exists: processes, folders, sockets.

        Returns
        -------
        list of str
            A sentence each; empty when all is gone.
        """
