"""Machines of kind ``namespace``: operating systems of their own, and a network between them.

Owns what all machines of an emulator share: the VPC process, addresses, the size that a machine's
type means. One machine is :mod:`machine`, what it is made of :mod:`vpc`.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import os
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

from dask_gce.emulator.catalog import machine_types
from dask_gce.emulator.machine import GuestExit, MachineKind
from dask_gce.emulator.machines.addresses import Leases, PrivateAddresses
from dask_gce.emulator.machines.namespace.fabric import Fabric
from dask_gce.emulator.machines.namespace.images import ensure_image
from dask_gce.emulator.machines.namespace.machine import NamespaceMachine
from dask_gce.emulator.machines.namespace.obstacles import BASE
from dask_gce.emulator.machines.namespace.vpc_process import VPCProcess
from dask_gce.emulator.record import InstanceRecord

__all__ = ["NamespaceKind"]

logger = logging.getLogger(__name__)

P = ParamSpec("P")
R = TypeVar("R")

#: The size of a machine whose type nobody knows: an n1-standard-1.
_CPUS, _MEMORY_MB = 1, 3840


class NamespaceKind(MachineKind):
    """Makes machines out of the kernel's namespaces. Needs root on Linux.

    Parameters
    ----------
    quick : bool
        Whether machines start from this host's own root file system, with a first program that
        runs the scripts and nothing else, instead of from an image with systemd.
    image : Path or None
        The folder of an image that :func:`images.ensure_image` made; None makes one where it is
        missing.
    shared_folders : mapping of str to Path
        Folders and files of this host that the machines can read, by their own absolute paths.
    client_inside : bool
        Whether clients run in the machines' network, and not on the host.

    Raises
    ------
    ValueError
        Quick machines were given an image.
    """

    network: Fabric

    def __init__(
        self,
        *,
        quick: bool = False,
        image: Path | None = None,
        shared_folders: Mapping[str, Path] | None = None,
        client_inside: bool = False,
    ) -> None:
        if quick and image is not None:
            raise ValueError("quick machines start from this host's files and take no image")
        self.name = "namespace-quick" if quick else "namespace"
        self.shared_folders = dict(shared_folders or {})
        self.vpc = VPCProcess()
        self.network = Fabric(self.vpc, client_inside=client_inside)
        self.hidden = _private_places()
        self._quick = quick
        self._image = image
        self._pool = PrivateAddresses()
        self._leases = Leases(self._pool)
        self._slots = itertools.count(1)
        self._copies = itertools.count(1)
        self._machines: dict[NamespaceMachine, None] = {}
        self._executor: ThreadPoolExecutor | None = None
        self._preparing: Future[None] | None = None
        self._closing: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Sweep what dead emulators have left, and start the VPC process.

        Raises
        ------
        RuntimeError
            There can be no such machines here; says what to do.
        """
        if self._executor is not None:
            return
        self._executor = ThreadPoolExecutor(4, thread_name_prefix="namespace-machines")
        self._closing = None
        self._preparing = self._executor.submit(self._prepare)
        try:
            # Who waits can be interrupted, the thread cannot: close() waits for it again.
            await asyncio.wrap_future(self._preparing)
            await self.network.open()
        except BaseException:
            await self.close()
            raise

    def _prepare(self) -> None:
        for name in self.vpc.start():
            logger.info("Removed what the local Compute Engine %s had left.", name)
        if not self._quick and self._image is None:
            self._image = ensure_image(logger.info)

    async def close(self) -> None:
        """Discard every machine and end the VPC process.

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
            if self._preparing is not None:
                await self.in_thread(wait, [self._preparing])
            await asyncio.gather(*(machine.discard() for machine in tuple(self._machines)))
        finally:
            try:
                await self.network.close()
            finally:
                await self.in_thread(self.vpc.close)
                self._executor = None
                await asyncio.to_thread(executor.shutdown)
                # Once more: a boot that was interrupted may have gone on writing its disk.
                await asyncio.to_thread(self.vpc.close)

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
        """Return a free internal address.

        Parameters
        ----------
        record : InstanceRecord
            The instance.
        requested : str or None
            The address that is wanted; None takes any.

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
        """Return the external address through which an internal one is reached.

        Parameters
        ----------
        internal : str
            An address that this kind allocated.

        Returns
        -------
        str
            A loopback address of the host, or one of the network's when clients are inside.
        """
        return self.network.external_address(internal)

    def create(self, record: InstanceRecord, address: str, on_exit: GuestExit) -> NamespaceMachine:
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
        NamespaceMachine
            The machine.
        """
        machine = NamespaceMachine(record, address, on_exit, self, next(self._slots))
        self._machines[machine] = None
        return machine

    def plan(self, machine: NamespaceMachine) -> dict[str, Any]:
        """Say how a machine is to boot.

        Parameters
        ----------
        machine : NamespaceMachine
            The machine.

        Returns
        -------
        dict
            The fields of :class:`vpc.boot.Plan`.
        """
        record = machine.record
        cpus, memory = _size(record)
        shared = {path: str(folder) for path, folder in self.shared_folders.items()}
        if self._image is not None:
            shared.setdefault("/opt/store", str(self._image / "store"))
        return {
            "slot": machine.slot,
            "name": record.name,
            "hostname": record.hostname,
            "domains": [f"{record.zone}.{record.domain}", record.domain, "google.internal"],
            "address": machine.address,
            "folder": str(machine.folder),
            "lower": "/" if self._image is None else str(self._image / "root"),
            "hidden": self.hidden if self._quick else [],
            "systemd": self._image is not None,
            "cos": _is_cos(record),
            "memory": memory,
            "cpus": cpus,
            "shared": shared,
        }

    def new_copy(self) -> Path:
        """Return a path for the copy of a disk.

        Returns
        -------
        Path
            A folder that does not exist.
        """
        return self.vpc.folder / "copies" / str(next(self._copies))

    async def forget(self, machine: NamespaceMachine) -> None:
        """Free the addresses of a discarded machine.

        Parameters
        ----------
        machine : NamespaceMachine
            The machine; one that is forgotten already is ignored.
        """
        if self._machines.pop(machine, machine) is None:
            self._leases.release(machine.record)

    def leftovers(self) -> list[str]:
        """Describe whatever still exists of this kind.

        Returns
        -------
        list of str
            Sentences about machines, processes and folders.
        """
        found = [machine.describe() for machine in self._machines]
        if self._executor is None:
            found += self.vpc.leftovers()
        return found


def _private_places() -> list[str]:
    """Return what of this host no quick machine is to see: homes, credentials, others' files.

    A machine has a /tmp of its own, but its guest could take that away.
    """
    environment = ("CLOUDSDK_CONFIG", "GOOGLE_APPLICATION_CREDENTIALS", "XDG_CONFIG_HOME")
    places = [Path(os.environ[name]) for name in environment if name in os.environ]
    places += [Path(one) for one in (BASE, "/home", "/root", "/tmp")]  # noqa: S108 # the host's own
    places.append(Path.home())
    found = {str(one.resolve()) for one in places if one.is_absolute()}
    return sorted(found - {"/"})


def _size(record: InstanceRecord) -> tuple[int, int]:
    """Return the vCPUs and the bytes of memory of an instance."""
    name = str(record.resource.get("machineType", "")).rpartition("/")[2]
    found = machine_types.resolve(name) if name else None
    if found is None:
        return _CPUS, _MEMORY_MB * 2**20
    return found.guest_cpus, found.memory_mb * 2**20


def _is_cos(record: InstanceRecord) -> bool:
    """Tell whether an instance boots Container-Optimized OS, as its boot disk's licences say."""
    return any(
        "/projects/cos-cloud/" in licence
        for disk in record.resource.get("disks", ())
        if disk.get("boot")
        for licence in disk.get("licenses", ())
    )
