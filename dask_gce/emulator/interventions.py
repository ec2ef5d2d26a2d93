"""What a test does to a local Compute Engine while it runs, beside what it asks of it as a client.

Owns: the verbs by which instances end without a request, and the conditions that can be changed.
What they do to an instance is the business of `lifecycle`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import TypeVar

from dask_gce.emulator import deaths, notices
from dask_gce.emulator.advice import Advice
from dask_gce.emulator.capacity import Capacity
from dask_gce.emulator.cloud import Cloud
from dask_gce.emulator.conditions import Conditions
from dask_gce.emulator.faults import Faults
from dask_gce.emulator.iam import Permissions
from dask_gce.emulator.iap.script import Tunnels
from dask_gce.emulator.lifecycle import Instance
from dask_gce.emulator.quota import Quota
from dask_gce.emulator.rate_limits import RateLimits
from dask_gce.emulator.service_states import ServiceStates
from dask_gce.emulator.unreachable import Unreachable

T = TypeVar("T")


class Interventions(ABC):
    """The conditions of an emulator, and the deaths of its instances.

    Parameters
    ----------
    minute : float
        Seconds that a minute of the rate quotas lasts.
    """

    def __init__(self, minute: float) -> None:
        self._conditions = Conditions(rate_limits=RateLimits(minute))

    @property
    def faults(self) -> Faults:
        """What is to go wrong."""
        return self._conditions.faults

    @property
    def capacity(self) -> Capacity:
        """How many instances the zones can hold."""
        return self._conditions.capacity

    @property
    def advice(self) -> Advice:
        """What is told of Spot machines before anybody asks for them."""
        return self._conditions.advice

    @property
    def quota(self) -> Quota:
        """How much a project may use."""
        return self._conditions.quota

    @property
    def rate_limits(self) -> RateLimits:
        """How many requests are answered a minute."""
        return self._conditions.rate_limits

    @property
    def unreachable(self) -> Unreachable:
        """The zones that do not answer."""
        return self._conditions.unreachable

    @property
    def reservations(self) -> set[str]:
        """The names of the reservations that instances can be taken from; add yours."""
        return self._conditions.reservations

    @property
    def lenient(self) -> set[str]:
        """The IDs of methods that allow what Google refuses; add ``instances.setScheduling``'s."""
        return self._conditions.lenient

    @property
    def permissions(self) -> Permissions:
        """What the client and the machines' service accounts are denied or granted."""
        return self._conditions.permissions

    @property
    def services(self) -> ServiceStates:
        """Which of Google's APIs are enabled."""
        return self._conditions.services

    @property
    def tunnels(self) -> Tunnels:
        """What happens to tunnels through Identity-Aware Proxy."""
        return self._conditions.tunnels

    @abstractmethod
    def _open_cloud(self) -> Cloud:
        """Return the state of an emulator that is open."""

    @abstractmethod
    def _ask(self, question: Callable[[], T]) -> T:
        """Return an answer from the emulator's own thread."""

    def _let(self, name: str, deed: Callable[[Instance], object]) -> None:
        def find_and_do() -> None:
            for project in self._open_cloud().projects.values():
                for held in project.instances.values():
                    if name in held:
                        deed(held[name])
                        return
            raise LookupError(f"The ComputeEmulator has no instance {name!r}.")

        self._ask(find_and_do)

    def preempt(self, name: str, notice: float | None = None) -> None:
        """Take an instance away, as Compute Engine takes Spot instances.

        Its metadata server says so at once. After the notice comes the operation
        ``compute.instances.preempted``, whose user is ``system``. What is left is up to the
        instance's ``instanceTerminationAction``.

        Parameters
        ----------
        name : str
            The instance, in whichever project and zone.
        notice : float or None
            Seconds from the notice to the end; None for what the instance's
            ``preemptionNoticeDuration`` says, times ``timings.run_duration_scale``. Without it
            there are none.

        Raises
        ------
        LookupError
            There is no such instance.
        """
        self._let(name, lambda one: notices.preempt(one, notice))

    def maintain(self, name: str, notice: float | None = None) -> None:
        """Let the host of an instance need maintenance.

        Its metadata server says so at once. After the notice the instance goes on on another host,
        or ends, as its ``onHostMaintenance`` says: the operation is
        ``compute.instances.migrateOnHostMaintenance`` or
        ``compute.instances.terminateOnHostMaintenance``, its user ``system``. One that ends comes
        up again with ``automaticRestart``. An instance that is not RUNNING stays as it is.

        Parameters
        ----------
        name : str
            The instance, in whichever project and zone.
        notice : float or None
            Seconds from the notice to the maintenance; None for Google's, an hour with GPUs and a
            minute without, times ``timings.run_duration_scale``.

        Raises
        ------
        LookupError
            There is no such instance.
        """
        self._let(name, lambda one: notices.maintain(one, notice))

    def host_error(self, name: str) -> None:
        """Break the host under an instance; its guest learns nothing of it.

        The operation is ``compute.instances.hostError``, its user ``system``. An instance with
        ``automaticRestart`` is REPAIRING, then the operation ``compute.instances.automaticRestart``
        boots it anew; any other is TERMINATED. An instance that is not RUNNING stays as it is.

        Parameters
        ----------
        name : str
            The instance, in whichever project and zone.

        Raises
        ------
        LookupError
            There is no such instance.
        """
        self._let(name, deaths.host_error)

    def power_off(self, name: str) -> None:
        """Let a guest switch its machine off, as ``poweroff`` inside it does.

        The operation is ``compute.instances.guestTerminate``, its user ``system``. The instance is
        TERMINATED; one that is not RUNNING stays as it is.

        Parameters
        ----------
        name : str
            The instance, in whichever project and zone.

        Raises
        ------
        LookupError
            There is no such instance.
        """
        self._let(name, Instance.power_off)

    def delete(self, name: str, *, user: str) -> None:
        """Delete an instance in the name of somebody else.

        Parameters
        ----------
        name : str
            The instance, in whichever project and zone.
        user : str
            Who the operation says began it, for example ``"colleague@example.org"``.

        Raises
        ------
        LookupError
            There is no such instance.
        """
        self._let(name, lambda one: one.begin("delete", one.delete, user))
