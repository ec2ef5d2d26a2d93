"""What instances are told before Compute Engine takes them away: of preemption, of maintenance.

Owns: what the metadata server says of the end that is to come, and for how long before it. The end
itself is the business of `deaths`.

Sources: ``preemptionNoticeDuration`` in the discovery document's ``Scheduling``,
https://cloud.google.com/compute/docs/instances/create-use-spot,
https://cloud.google.com/compute/docs/metadata/getting-live-migration-notice and, for the hour that
instances with GPUs have, https://cloud.google.com/compute/docs/gpus/gpu-host-maintenance. When the
operation of a preemption with notice begins, Google's pages do not say: here it is when the power
button is pressed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from dask_gce.emulator import deaths

if TYPE_CHECKING:
    from dask_gce.emulator.lifecycle import Instance

#: Seconds from the notice of maintenance to its begin, with GPUs and without.
MAINTENANCE, MAINTENANCE_OF_GPUS = 60, 3600


def preempt(instance: Instance, notice: float | None) -> None:
    """Take an instance away as Compute Engine takes a Spot instance.

    Parameters
    ----------
    instance : Instance
        The instance.
    notice : float or None
        Seconds from the notice to the press of the power button; None for what its
        ``preemptionNoticeDuration`` says, in the emulator's time.
    """
    asked = instance.resource["scheduling"].get("preemptionNoticeDuration", {})
    if notice is None:
        notice = int(asked.get("seconds", "0")) * instance.cloud.timings.run_duration_scale
    if not notice or not instance.running:
        deaths.preempt(instance)
        return
    instance.record.preempted = True
    instance.record.touch()
    instance.warn(notice, lambda: deaths.preempt(instance))


def maintain(instance: Instance, notice: float | None) -> None:
    """Let the host of an instance need maintenance.

    Parameters
    ----------
    instance : Instance
        The instance.
    notice : float or None
        Seconds from the notice to the maintenance; None for Google's, in the emulator's time.
    """
    if not instance.running:
        return
    if notice is None:
        gpus = bool(instance.resource.get("guestAccelerators"))
        seconds = MAINTENANCE_OF_GPUS if gpus else MAINTENANCE
        notice = seconds * instance.cloud.timings.run_duration_scale
    what = instance.resource["scheduling"]["onHostMaintenance"]
    instance.record.maintenance_event = f"{what}_ON_HOST_MAINTENANCE"
    instance.record.touch()
    instance.warn(notice, lambda: deaths.maintain(instance))
