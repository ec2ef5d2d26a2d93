"""The life of an instance: PROVISIONING, STAGING, RUNNING, STOPPING, TERMINATED or gone.

Owns: the instance's resource while it lives, its machine, the timer of ``maxRunDuration``. What a
request asks for has been checked before (`blueprint`); its disks come and go by `attachments`; what
a machine is made of is the kind's business (`machine`).
"""

from __future__ import annotations

import asyncio
from datetime import datetime, timezone
from functools import partial
from typing import TYPE_CHECKING, Any

from dask_gce.emulator.attachments import attach_disks, name_disks, release_disks
from dask_gce.emulator.blueprint import Blueprint
from dask_gce.emulator.errors import OperationFailed, invalid
from dask_gce.emulator.faults import Fault
from dask_gce.emulator.links import fingerprint, moment_of, new_id, now
from dask_gce.emulator.machine import Machine
from dask_gce.emulator.operations import Operation, Work
from dask_gce.emulator.record import InstanceRecord

if TYPE_CHECKING:
    from dask_gce.emulator.cloud import Cloud, Project

Resource = dict[str, Any]


class Instance:
    """One instance.

    Parameters
    ----------
    cloud : Cloud
        The state it is part of.
    project : Project
        Its project.
    zone : str
        Its zone.
    name : str
        Its name, which is free.
    blueprint : Blueprint
        What it is.
    hostname : str or None
        Its own host name, where one was asked for.

    Raises
    ------
    APIError
        A disk is in use, or an address cannot be had; nothing has changed then.
    """

    def __init__(
        self,
        cloud: Cloud,
        project: Project,
        zone: str,
        name: str,
        *,
        blueprint: Blueprint,
        hostname: str | None = None,
    ) -> None:
        self.cloud = cloud
        self.project = project
        self.zone = zone
        self.name = name
        self.path = f"{project.path}/zones/{zone}/instances/{name}"
        self.link = cloud.url(self.path)
        instance_id = new_id()
        self.resource: Resource = {
            "kind": "compute#instance",
            "id": instance_id,
            "creationTimestamp": now(),
            "name": name,
            "status": "PROVISIONING",
            **blueprint.shared,
            "fingerprint": fingerprint([instance_id]),
            "selfLink": self.link,
            "resourceStatus": {"scheduling": {}},
        }
        if hostname is not None:
            self.resource["hostname"] = hostname
        self.record = InstanceRecord(project.id, project.number, zone, self.resource)
        names = name_disks(project, zone, name, blueprint.disks)
        self.machine: Machine = self._make_machine(blueprint)
        # From here on nothing is refused any more.
        self.resource["disks"] = attach_disks(
            cloud, project, zone, blueprint.disks, names=names, user=self.link
        )
        # One transition at a time; `_leaving` makes those in progress give way to the deletion.
        self._transition = asyncio.Lock()
        self._leaving = asyncio.Event()
        self._gone = asyncio.Event()
        self._limit: asyncio.TimerHandle | None = None
        self._loop = asyncio.get_running_loop()
        project.instances.setdefault(zone, {})[name] = self

    @property
    def status(self) -> str:
        """Its status, in Compute Engine's words."""
        return str(self.resource["status"])

    @property
    def _ending(self) -> bool:
        return self._leaving.is_set() or self._gone.is_set()

    def _make_machine(self, blueprint: Blueprint) -> Machine:
        interfaces: list[Resource] = []
        self.resource["networkInterfaces"] = interfaces
        kind = self.cloud.kind
        first = ""
        for plan in blueprint.interfaces:
            wanted = plan.get("networkIP")
            try:
                address = kind.allocate(self.record, wanted)
            except ValueError as error:
                if first:
                    # The addresses that could be had go back with their machine.
                    machine = kind.create(self.record, first, self._guest_ended)
                    self.cloud.operations.spawn(machine.discard())
                raise invalid(
                    "resource.networkInterfaces.networkIP", wanted, f"{error}."
                ) from error
            first = first or address
            interface = {**plan, "networkIP": address, "fingerprint": fingerprint([address])}
            if "accessConfigs" in plan:
                interface["accessConfigs"] = [
                    {**config, "natIP": kind.external_address(address)}
                    for config in plan["accessConfigs"]
                ]
            interfaces.append(interface)
        return kind.create(self.record, first, self._guest_ended)

    def _show(self, status: str) -> None:
        self.resource["status"] = status
        self.record.touch()

    def creation(self, method: str) -> Work:
        """Return what an insert does: create it or, where a fault says so, fail.

        Parameters
        ----------
        method : str
            The ID of the method that was called.

        Returns
        -------
        callable
            The work of the insert's operation.
        """
        fault = self.cloud.faults.take(method, self.name, operation=True)
        return self._create if fault is None else partial(self._fail, fault)

    async def _create(self, operation: Operation) -> None:
        timings = self.cloud.timings
        async with self._transition:
            await self._pass(timings.provisioning)
            self._show("STAGING")
            operation.resource["progress"] = 50
            await self._pass(timings.staging)
            try:
                await self._boot()
            finally:
                if self.status != "RUNNING":
                    # The machine broke: an instance that cannot boot is not kept.
                    await self._vanish()

    async def _fail(self, fault: Fault, operation: Operation) -> None:
        """Vanish instead of booting, and say why."""
        async with self._transition:
            await asyncio.sleep(fault.delay)
            await self._vanish()
        raise OperationFailed([dict(error) for error in fault.operation_errors])

    async def _pass(self, seconds: float) -> None:
        """Let time pass, unless the instance is deleted meanwhile."""
        try:
            await asyncio.wait_for(self._leaving.wait(), seconds)
        except asyncio.TimeoutError:
            return
        raise OperationFailed(
            [
                {
                    "code": "RESOURCE_NOT_FOUND",
                    "message": f"The resource '{self.path}' was not found",
                }
            ]
        )

    async def _boot(self) -> None:
        await self.machine.boot()
        self.resource["lastStartTimestamp"] = now()
        self.record.preempted = False
        self._arm()
        self._show("RUNNING")

    async def _boot_again(self) -> None:
        """Boot an instance that is kept; if it cannot boot it is off, and says so."""
        try:
            await self._boot()
        except BaseException:
            self._note_off()
            raise

    async def start(self, operation: Operation) -> None:
        """Boot it again; the work of `instances.start`.

        Parameters
        ----------
        operation : Operation
            The operation that does it.
        """
        async with self._transition:
            if self.status == "RUNNING":
                return
            self._show("STAGING")
            await self._pass(self.cloud.timings.staging)
            await self._boot_again()

    async def stop(self, operation: Operation) -> None:
        """Shut it down; the work of `instances.stop`.

        Parameters
        ----------
        operation : Operation
            The operation that does it.
        """
        async with self._transition:
            if self.status != "TERMINATED" and not self._ending:
                await self._power_off()

    async def reset(self, operation: Operation) -> None:
        """Cut the power and boot at once; the work of `instances.reset`.

        Parameters
        ----------
        operation : Operation
            The operation that does it.
        """
        async with self._transition:
            if self.status == "RUNNING" and not self._ending:
                await self.machine.kill()
                await self._boot_again()

    async def delete(self, operation: Operation) -> None:
        """Shut it down and remove it with its disks; the work of `instances.delete`.

        Parameters
        ----------
        operation : Operation
            The operation that does it.
        """
        if self._leaving.is_set():
            await self._gone.wait()
            return
        self._leaving.set()
        async with self._transition:
            if self._gone.is_set():
                return
            if self.status != "TERMINATED":
                self._show("STOPPING")
                await self.machine.stop(self.cloud.timings.stopping)
            await asyncio.sleep(self.cloud.timings.deleting)
            await self._vanish()

    async def preempt(self, operation: Operation) -> None:
        """Take it away as Compute Engine takes a Spot instance; the guest is told first.

        Parameters
        ----------
        operation : Operation
            The operation that does it.
        """
        self.record.preempted = True
        self.record.touch()
        await self.end(operation)

    async def end(self, operation: Operation) -> None:
        """Do what ``instanceTerminationAction`` says: delete or stop it.

        Parameters
        ----------
        operation : Operation
            The operation that does it.
        """
        if self.resource["scheduling"].get("instanceTerminationAction") == "DELETE":
            await self.delete(operation)
        else:
            await self.stop(operation)

    async def _power_off(self) -> None:
        self._disarm()
        self._show("STOPPING")
        await self.machine.stop(self.cloud.timings.stopping)
        self._note_off()

    def _note_off(self) -> None:
        self._disarm()
        self.resource["lastStopTimestamp"] = now()
        self._show("TERMINATED")

    async def _vanish(self) -> None:
        self._disarm()
        await self.machine.discard()
        release_disks(self.project, self.zone, self.resource["disks"], self.link)
        del self.project.instances[self.zone][self.name]
        self._gone.set()
        self.record.touch()

    def _guest_ended(self, how: str) -> None:
        """Note that the guest powered off or rebooted by itself; any thread may call this."""
        self._loop.call_soon_threadsafe(
            lambda: self.cloud.operations.spawn(self._follow_guest(how))
        )

    async def _follow_guest(self, how: str) -> None:
        async with self._transition:
            if self._ending or self.status != "RUNNING":
                return
            if how == "reboot":
                await self.machine.kill()
                await self._boot_again()
            else:
                await self._power_off()

    def _arm(self) -> None:
        """Set the timer of the longest run time; it counts from each start anew."""
        self._disarm()
        scheduling = self.resource["scheduling"]
        scale = self.cloud.timings.run_duration_scale
        if "maxRunDuration" in scheduling:
            seconds = int(scheduling["maxRunDuration"]["seconds"]) * scale
            end = now(seconds)
        elif "terminationTime" in scheduling:
            end = scheduling["terminationTime"]
            left = moment_of(end) - datetime.now(timezone.utc)
            seconds = max(0.0, left.total_seconds())
        else:
            return
        self.resource["resourceStatus"] = {"scheduling": {"terminationTimestamp": end}}
        self._limit = self._loop.call_later(seconds, self._time_is_up)

    def _disarm(self) -> None:
        if self._limit is not None:
            self._limit.cancel()
            self._limit = None
        self.resource["resourceStatus"] = {"scheduling": {}}

    def _time_is_up(self) -> None:
        self.begin_system_operation("compute.instances.terminateOnSchedule", self.end)

    def begin_system_operation(self, operation_type: str, work: Work) -> Operation:
        """Begin an operation that nobody asked for.

        Parameters
        ----------
        operation_type : str
            What the operation is called.
        work : callable
            One of this object's coroutines.

        Returns
        -------
        Operation
            The operation.
        """
        return self.cloud.begin(
            self.project,
            f"zones/{self.zone}",
            operation_type,
            f"instances/{self.name}",
            work,
            target_id=self.resource["id"],
            user="system",
        )

    def close(self) -> None:
        """Stop its timer; its machine is discarded by the kind."""
        self._disarm()
