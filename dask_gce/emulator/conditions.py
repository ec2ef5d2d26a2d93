"""The conditions under which a local Compute Engine works; all may change while it runs."""

from __future__ import annotations

from dataclasses import dataclass, field

from dask_gce.emulator.advice import Advice
from dask_gce.emulator.capacity import Capacity
from dask_gce.emulator.faults import Faults
from dask_gce.emulator.iam import Permissions
from dask_gce.emulator.iap.script import Tunnels
from dask_gce.emulator.quota import Quota
from dask_gce.emulator.rate_limits import RateLimits
from dask_gce.emulator.service_states import ServiceStates
from dask_gce.emulator.unreachable import Unreachable


@dataclass(frozen=True)
class Conditions:
    """What goes wrong and what is scarce.

    Parameters
    ----------
    faults : Faults
        What is to go wrong.
    capacity : Capacity
        What the zones have to give.
    advice : Advice
        What is told of Spot machines.
    quota : Quota
        What a project may use.
    rate_limits : RateLimits
        How many requests are answered.
    unreachable : Unreachable
        The zones that do not answer.
    reservations : set of str
        The names of the reservations that instances can be taken from.
    lenient : set of str
        The IDs of methods that allow what Google refuses: ``compute.instances.setScheduling`` then
        changes the limit of an instance that runs.
    permissions : Permissions
        Who may do what.
    services : ServiceStates
        Which of Google's APIs are enabled.
    tunnels : Tunnels
        What happens to tunnels.
    """

    faults: Faults = field(default_factory=Faults)
    capacity: Capacity = field(default_factory=Capacity)
    advice: Advice = field(default_factory=Advice)
    quota: Quota = field(default_factory=Quota)
    rate_limits: RateLimits = field(default_factory=RateLimits)
    unreachable: Unreachable = field(default_factory=Unreachable)
    reservations: set[str] = field(default_factory=set)
    lenient: set[str] = field(default_factory=set)
    permissions: Permissions = field(default_factory=Permissions)
    services: ServiceStates = field(default_factory=ServiceStates)
    tunnels: Tunnels = field(default_factory=Tunnels)
