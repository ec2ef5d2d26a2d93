"""What one instance holds: quota of its project, a place in its zone.

Owns: when it takes and when it gives back. How much there is of either is the business of `quota`
and `capacity`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from dask_gce.emulator.catalog.places import ZONES
from dask_gce.emulator.errors import OperationFailed
from dask_gce.emulator.quota import QuotaExceeded

if TYPE_CHECKING:
    from dask_gce.emulator.blueprint import Blueprint
    from dask_gce.emulator.cloud import Cloud, Project


class Claim:
    """The quota and the place of one instance.

    Parameters
    ----------
    cloud : Cloud
        The state.
    project : Project
        The instance's project, to which `blueprint.demand` has been charged.
    zone : str
        Its zone.
    blueprint : Blueprint
        What it is.
    """

    def __init__(self, cloud: Cloud, project: Project, zone: str, blueprint: Blueprint) -> None:
        self._capacity = cloud.conditions.capacity
        self._quota = cloud.conditions.quota
        self._project = project
        self._zone = zone
        self._machine_type = blueprint.machine_type.name
        self._spot = bool(blueprint.shared["scheduling"]["preemptible"])
        self._demand = blueprint.demand
        self._charged = True
        self._placed = False

    def renew(self) -> None:
        """Count it as an instance that is on again, and take a place in the zone.

        Raises
        ------
        OperationFailed
            The project may not use as much, or the zone has no place left.
        """
        if not self._charged:
            try:
                self._quota.charge(self._project.id, ZONES[self._zone], self._demand.running)
            except QuotaExceeded as refusal:
                raise OperationFailed(
                    [
                        {
                            "code": "QUOTA_EXCEEDED",
                            "message": refusal.message,
                            "errorDetails": [{"quotaInfo": refusal.info}],
                        }
                    ]
                ) from refusal
            self._charged = True
        try:
            self.place()
        except OperationFailed:
            self.rest()
            raise

    def place(self) -> None:
        """Take a place in the zone.

        Raises
        ------
        OperationFailed
            The zone has none left.
        """
        if self._placed:
            return
        if not self._capacity.take(self._zone, self._machine_type, spot=self._spot):
            raise OperationFailed(
                [
                    {
                        "code": "ZONE_RESOURCE_POOL_EXHAUSTED",
                        "message": f"The zone '{self._project.path}/zones/{self._zone}' does not"
                        " have enough resources available to fulfill the request.  Try a different"
                        " zone, or try again later.",
                    }
                ]
            )
        self._placed = True

    def rest(self) -> None:
        """Count it as an instance that is off."""
        if self._placed:
            self._capacity.give_back(self._zone, self._machine_type, spot=self._spot)
            self._placed = False
        if self._charged:
            self._quota.release(self._project.id, ZONES[self._zone], self._demand.running)
            self._charged = False

    def end(self) -> None:
        """Count it no more; it is gone, or never was."""
        self.rest()
        self._quota.release(self._project.id, ZONES[self._zone], self._demand.existing)
