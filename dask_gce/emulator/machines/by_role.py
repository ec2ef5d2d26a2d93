"""Machines of two kinds in one cloud: Dask's workers are of one, all other instances of another.

Owns the choice, and nothing else: a cluster of thousands needs one real scheduler, while its
workers may be less than real.
"""

from __future__ import annotations

from collections.abc import Callable, Collection

from dask_gce.emulator.machine import GuestExit, Machine, MachineKind
from dask_gce.emulator.record import InstanceRecord

__all__ = ["ByRole", "is_worker"]


def is_worker(record: InstanceRecord) -> bool:
    """Tell whether an instance is to be a Dask worker, by its metadata.

    Parameters
    ----------
    record : InstanceRecord
        The instance.

    Returns
    -------
    bool
        Whether it says so.
    """
    return record.metadata.get("dask-gce-role") == "worker"


class ByRole(MachineKind):
    """Makes workers of one kind and everything else of another.

    Parameters
    ----------
    name : str
        The name users type.
    others : MachineKind
        Makes the machines that are no workers. Started first and closed last.
    workers : MachineKind
        Makes the workers.
    chosen : callable
        Tells whether an instance is a worker.
    """

    def __init__(
        self,
        name: str,
        *,
        others: MachineKind,
        workers: MachineKind,
        chosen: Callable[[InstanceRecord], bool] = is_worker,
    ) -> None:
        self.name = name
        self._others = others
        self._workers = workers
        self._chosen = chosen

    def _of(self, record: InstanceRecord) -> MachineKind:
        return self._workers if self._chosen(record) else self._others

    @property
    def users(self) -> Collection[int]:
        """The users of the host that the guests of both kinds are."""
        return {*self._others.users, *self._workers.users}

    async def start(self) -> None:
        """Start both kinds."""
        await self._others.start()
        await self._workers.start()

    async def close(self) -> None:
        """Close both kinds. May be called twice."""
        try:
            await self._workers.close()
        finally:
            await self._others.close()

    def allocate(self, record: InstanceRecord, requested: str | None = None) -> str:
        """Return an address of the instance's kind.

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
        """
        return self._of(record).allocate(record, requested)

    def reserve(self, requested: str | None = None) -> str:
        """Keep an address of the machines that are no workers.

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
        return self._others.reserve(requested)

    def unreserve(self, address: str) -> None:
        """Keep an address no longer.

        Parameters
        ----------
        address : str
            An address that was reserved.
        """
        self._others.unreserve(address)

    def external_address(self, internal: str) -> str:
        """Return the external address of an internal one.

        Parameters
        ----------
        internal : str
            An address that one of the kinds allocated.

        Returns
        -------
        str
            The external address; loopback addresses are their own.
        """
        if internal.startswith("127."):
            return internal
        return self._workers.external_address(internal)

    def create(self, record: InstanceRecord, address: str, on_exit: GuestExit) -> Machine:
        """Make a machine of the instance's kind, powered off.

        Parameters
        ----------
        record : InstanceRecord
            The instance.
        address : str
            Its internal address.
        on_exit : callable
            Told when the guest ends by itself.

        Returns
        -------
        Machine
            The machine.
        """
        return self._of(record).create(record, address, on_exit)

    def leftovers(self) -> list[str]:
        """Describe what still exists of both kinds.

        Returns
        -------
        list of str
            A sentence each.
        """
        return [*self._others.leftovers(), *self._workers.leftovers()]
