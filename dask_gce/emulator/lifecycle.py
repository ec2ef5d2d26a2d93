"""The life of an instance: PROVISIONING, STAGING, RUNNING, STOPPING, TERMINATED or gone.

Owns: the instance's resource while it lives, and the order in which its power (`power`), its claim
on quota and capacity (`claims`), its disks (`attachments`) and the timer of its longest run time
(`run_limit`) come and go. What a request asks for has been checked before (`blueprint`); what
happens without one is told by `deaths`; what a machine is made of is the kind's business
(`machine`).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime, timezone
from functools import partial
from typing import TYPE_CHECKING, Any

from dask_gce.emulator import deaths
from dask_gce.emulator.attachments import attach_disks, name_disks, release_disks
from dask_gce.emulator.blueprint import Blueprint
from dask_gce.emulator.claims import Claim
from dask_gce.emulator.errors import APIError, OperationFailed
from dask_gce.emulator.interfaces import make_machine
from dask_gce.emulator.links import fingerprint, last_segment, moment_of, new_id, now
from dask_gce.emulator.machine import Contents
from dask_gce.emulator.operations import Operation, Work
from dask_gce.emulator.power import Power
from dask_gce.emulator.record import InstanceRecord
from dask_gce.emulator.run_limit import RunLimit

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
        What it is; its demand has been charged to the project, and is released if this raises.
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
        accounts = self.resource.get("serviceAccounts", ())
        self.record.access_token = cloud.identities.issue(project.id, accounts)
        self._claim = Claim(cloud, project, zone, blueprint)
        try:
            names = name_disks(project, zone, name, blueprint.disks)
            machine = make_machine(cloud, self.record, blueprint.interfaces, self._guest_ended)
        except APIError:
            self._claim.end()
            raise
        # From here on nothing is refused any more.
        spawn = cloud.operations.spawn
        self.power = Power(
            machine, cloud.timings.booting, spawn, lambda: spawn(deaths.follow_break(self))
        )
        self.resource["disks"] = attach_disks(
            cloud, project, zone, blueprint.disks, names=names, user=self.link
        )
        machine.contents = cloud.shelf.get(self.boot_disk["id"])
        # One transition at a time; those in progress give way to the deletion, which ends the nap.
        self.transition = asyncio.Lock()
        #: How often it has booted, by which the end of one boot is told from the next one's.
        self.boots = 0
        self._leaving = False
        self._nap: asyncio.Future[None] | None = None
        self._gone = asyncio.Event()
        self._limit = RunLimit(lambda: deaths.time_is_up(self))
        self._warning: asyncio.TimerHandle | None = None
        self._loop = asyncio.get_running_loop()
        project.instances.setdefault(zone, {})[name] = self
        cloud.kind.network.changed(cloud)

    @property
    def status(self) -> str:
        """Its status, in Compute Engine's words."""
        return str(self.resource["status"])

    @property
    def ending(self) -> bool:
        """Whether it is being deleted, or gone."""
        return self._leaving or self._gone.is_set()

    @property
    def running(self) -> bool:
        """Whether it is RUNNING and to stay."""
        return self.status == "RUNNING" and not self.ending

    @property
    def boot_disk(self) -> Resource:
        """The disk that it boots from."""
        return self.project.disks[self.zone][last_segment(self.resource["disks"][0]["source"])]

    async def capture(self) -> Contents | None:
        """Copy what its boot disk holds, while nothing else is done to it.

        Returns
        -------
        Contents or None
            The copy; None where there is nothing to copy, or it is gone.
        """
        async with self.transition:
            return None if self._gone.is_set() else await self.power.capture()

    def show(self, status: str) -> None:
        """Show a status.

        Parameters
        ----------
        status : str
            The status.
        """
        self.resource["status"] = status
        self.record.touch()

    def creation(self, method: str) -> Work:
        """Return what an insert does: create it or, by a fault or for want of capacity, fail.

        Parameters
        ----------
        method : str
            The ID of the method that was called.

        Returns
        -------
        callable
            The work of the insert's operation.
        """
        fault = self.cloud.conditions.faults.take(method, self.name, operation=True)
        if fault is not None:
            return partial(self._fail, fault.operation_errors, fault.delay)
        try:
            # Now, so that who comes first is served first.
            self._claim.place()
        except OperationFailed as failure:
            return partial(self._fail, failure.errors, 0.0)
        return self._create

    async def _create(self, operation: Operation) -> None:
        timings = self.cloud.timings
        async with self.transition:
            await self._pass(timings.provisioning)
            self.show("STAGING")
            operation.resource["progress"] = 50
            await self._pass(timings.staging)
            try:
                await self._boot()
            finally:
                if self.status != "RUNNING":
                    # The machine broke: an instance that cannot boot is not kept.
                    await self._vanish()

    async def _fail(
        self, errors: Sequence[Mapping[str, Any]], delay: float, operation: Operation
    ) -> None:
        """Vanish instead of booting, and say why."""
        async with self.transition:
            await asyncio.sleep(delay)
            await self._vanish()
        raise OperationFailed([dict(error) for error in errors])

    async def _pass(self, seconds: float) -> None:
        """Let time pass, unless the instance is deleted meanwhile."""
        if not self._leaving:
            self._nap = nap = self._loop.create_future()
            timer = self._loop.call_later(seconds, _wake, nap)
            try:
                await nap
            finally:
                timer.cancel()
                self._nap = None
        if not self._leaving:
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
        self.boots += 1
        await self.power.on()
        self.resource["lastStartTimestamp"] = now()
        self.record.preempted = False
        self.record.maintenance_event = "NONE"
        self._arm(0.0)
        self.show("RUNNING")

    def _arm(self, ran: float) -> None:
        """Set the timer of its longest run time, of which some has passed."""
        scale = self.cloud.timings.run_duration_scale
        end = self._limit.set(self.resource["scheduling"], scale, ran)
        shown = {} if end is None else {"terminationTimestamp": end}
        self.resource["resourceStatus"] = {"scheduling": shown}

    def reschedule(self, scheduling: Resource) -> None:
        """Take other scheduling options.

        Parameters
        ----------
        scheduling : dict
            The options, checked.
        """
        self.resource["scheduling"] = scheduling
        if self.running:
            started = moment_of(self.resource["lastStartTimestamp"])
            self._arm((datetime.now(timezone.utc) - started).total_seconds())

    async def come_up(self) -> None:
        """Boot an instance that was off, state by state."""
        self.show("STAGING")
        await self._pass(self.cloud.timings.staging)
        await self.boot_again()

    async def boot_again(self) -> None:
        """Boot an instance that is kept; if it cannot boot it is off, and says so."""
        try:
            await self._boot()
        except BaseException:
            self.note_off()
            raise

    async def start(self, operation: Operation) -> None:
        """Boot it again; the work of `instances.start`.

        Parameters
        ----------
        operation : Operation
            The operation that does it.
        """
        async with self.transition:
            if self.status == "RUNNING":
                return
            self._claim.renew()
            await self.come_up()

    async def stop(self, operation: Operation) -> None:
        """Shut it down; the work of `instances.stop`.

        Parameters
        ----------
        operation : Operation
            The operation that does it.
        """
        async with self.transition:
            if self.status != "TERMINATED" and not self.ending:
                await self.shut_down()

    async def reset(self, operation: Operation) -> None:
        """Cut the power and boot at once; the work of `instances.reset`.

        Parameters
        ----------
        operation : Operation
            The operation that does it.
        """
        async with self.transition:
            if self.running:
                await self.power.cut()
                await self.boot_again()

    async def delete(self, operation: Operation) -> None:
        """Shut it down and remove it with its disks; the work of `instances.delete`.

        Parameters
        ----------
        operation : Operation
            The operation that does it.
        """
        if self._leaving:
            await self._gone.wait()
            return
        self._leaving = True
        if self._nap is not None:
            _wake(self._nap)
        async with self.transition:
            if self._gone.is_set():
                return
            if self.status != "TERMINATED":
                self.show("STOPPING")
                await self.power.off(self.cloud.timings.stopping)
            await asyncio.sleep(self.cloud.timings.deleting)
            await self._vanish()

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

    async def shut_down(self) -> None:
        """Press the power button, and wait until it is off."""
        self.disarm()
        self.show("STOPPING")
        await self.power.off(self.cloud.timings.stopping)
        self.note_off()

    def note_off(self) -> None:
        """Show that it is off."""
        self.disarm()
        self._claim.rest()
        self.resource["lastStopTimestamp"] = now()
        self.show("TERMINATED")

    async def _vanish(self) -> None:
        self.disarm()
        kept = self.boot_disk if not self.resource["disks"][0]["autoDelete"] else None
        contents = await self.power.capture() if kept is not None else None
        await self.power.discard()
        self._claim.end()
        deleted = release_disks(self.project, self.zone, self.resource["disks"], self.link)
        for disk in deleted:
            await self.cloud.shelf.drop(disk)
        if kept is not None:
            await self.cloud.shelf.put(kept["id"], contents)
        del self.project.instances[self.zone][self.name]
        self.cloud.kind.network.changed(self.cloud)
        self._gone.set()
        self.record.touch()

    def _guest_ended(self, how: str) -> None:
        """Note that the guest powered off or rebooted by itself; any thread may call this."""
        boots = self.boots  # of a boot that ends now; what is done meanwhile may begin another
        self._loop.call_soon_threadsafe(
            lambda: self.cloud.operations.spawn(deaths.follow_guest(self, how, boots))
        )

    def warn(self, seconds: float, then: Callable[[], object]) -> None:
        """Let time pass between a notice and what it is of, unless the instance ends before.

        Parameters
        ----------
        seconds : float
            How long it is.
        then : callable
            What is done after; it replaces what was to be done after an earlier notice.
        """
        self._forget_warning()
        self._warning = self._loop.call_later(seconds, then)

    def _forget_warning(self) -> None:
        if self._warning is not None:
            self._warning.cancel()
            self._warning = None

    def disarm(self) -> None:
        """Stop the timers of its longest run time and of a notice."""
        self._forget_warning()
        self._limit.cancel()
        self.resource["resourceStatus"] = {"scheduling": {}}

    def power_off(self) -> None:
        """Do as if the guest had powered off by itself."""
        self._guest_ended("poweroff")

    def begin(self, operation_type: str, work: Work, user: str = "system") -> Operation:
        """Begin an operation that no request asked for.

        Parameters
        ----------
        operation_type : str
            What the operation is called.
        work : callable
            What it does.
        user : str
            Who begins it.

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
            user=user,
        )

    def close(self) -> None:
        """Stop its timers; its machine is discarded by the kind."""
        self.disarm()
        self.power.cancel()


def _wake(nap: asyncio.Future[None]) -> None:
    if not nap.done():
        nap.set_result(None)
