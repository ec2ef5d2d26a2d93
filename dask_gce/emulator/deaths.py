"""How instances end without anybody's request: preempted, with their host, by their guest, in time.

Owns: the operations that Compute Engine begins by itself, whose user is ``system``, and what they
do. The steps are those of `lifecycle`. The operations' names are those of Compute Engine's system
event logs (https://cloud.google.com/compute/docs/logging/audit-logging), but for that of the
longest run time, which Google's pages do not name.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from dask_gce.emulator.operations import Operation

if TYPE_CHECKING:
    from dask_gce.emulator.lifecycle import Instance


def preempt(instance: Instance) -> Operation:
    """Take an instance away as Compute Engine takes a Spot instance; the guest is told first.

    Parameters
    ----------
    instance : Instance
        The instance.

    Returns
    -------
    Operation
        The operation that does it.
    """
    return instance.begin("compute.instances.preempted", partial(_preempt, instance))


async def _preempt(instance: Instance, operation: Operation) -> None:
    instance.record.preempted = True
    instance.record.touch()
    await instance.end(operation)


def maintain(instance: Instance) -> Operation:
    """Move an instance from a host that needs maintenance, or end it, as it was asked for.

    Parameters
    ----------
    instance : Instance
        The instance.

    Returns
    -------
    Operation
        The operation that does it.
    """
    if instance.resource["scheduling"]["onHostMaintenance"] == "MIGRATE":
        kind, work = "migrateOnHostMaintenance", _migrate
    else:
        kind, work = "terminateOnHostMaintenance", _terminate
    return instance.begin(f"compute.instances.{kind}", partial(work, instance))


async def _migrate(instance: Instance, operation: Operation) -> None:
    # What runs on it notices nothing but a pause.
    instance.record.maintenance_event = "NONE"
    instance.record.touch()


async def _terminate(instance: Instance, operation: Operation) -> None:
    if not instance.resource["scheduling"]["automaticRestart"]:
        await instance.end(operation)
        return
    async with instance.transition:
        if not instance.running:
            return
        await instance.shut_down()
        instance.show("REPAIRING")
        instance.begin("compute.instances.automaticRestart", partial(_restart, instance))


def host_error(instance: Instance) -> Operation:
    """Break the host of an instance, which comes up again where ``automaticRestart`` says so.

    Parameters
    ----------
    instance : Instance
        The instance.

    Returns
    -------
    Operation
        The operation that does it.
    """
    return instance.begin("compute.instances.hostError", partial(_crash, instance))


async def _crash(instance: Instance, operation: Operation) -> None:
    async with instance.transition:
        if not instance.running:
            return
        instance.disarm()
        restarts = instance.resource["scheduling"]["automaticRestart"]
        instance.show("REPAIRING" if restarts else "STOPPING")
        await instance.power.cut()
        if restarts:
            instance.begin("compute.instances.automaticRestart", partial(_restart, instance))
        else:
            instance.note_off()


async def _restart(instance: Instance, operation: Operation) -> None:
    async with instance.transition:
        # Somebody may have stopped or deleted it meanwhile.
        if instance.status == "REPAIRING" and not instance.ending:
            await instance.come_up()


def time_is_up(instance: Instance) -> Operation:
    """End an instance whose longest run time is over.

    Parameters
    ----------
    instance : Instance
        The instance.

    Returns
    -------
    Operation
        The operation that does it.
    """
    return instance.begin("compute.instances.terminateOnSchedule", instance.end)


async def follow_guest(instance: Instance, how: str, boots: int) -> None:
    """Do what a guest has done by itself, unless it has been booted again since.

    Parameters
    ----------
    instance : Instance
        The instance.
    how : str
        ``poweroff`` or ``reboot``.
    boots : int
        How often the instance had booted when the guest did it.
    """
    async with instance.transition:
        if not instance.running or instance.boots != boots:
            return
        if how == "reboot":
            await instance.power.cut()
            await instance.boot_again()
            return
    work = partial(_follow_power_off, instance, boots)
    instance.begin("compute.instances.guestTerminate", work)


async def _follow_power_off(instance: Instance, boots: int, operation: Operation) -> None:
    async with instance.transition:
        if instance.running and instance.boots == boots:
            await instance.shut_down()


async def follow_break(instance: Instance) -> None:
    """Note that a machine could not boot though it was said to run.

    Parameters
    ----------
    instance : Instance
        The instance.
    """
    async with instance.transition:
        if instance.running:
            instance.note_off()
