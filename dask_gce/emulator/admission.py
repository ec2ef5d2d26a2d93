"""Which calls are let in: what is asked of each before anybody looks at its body.

Owns: the order of the questions - access scopes, whether the API is enabled, the rate quota,
whether the zone answers. Each is answered elsewhere.
"""

from __future__ import annotations

from contextlib import suppress

from dask_gce.emulator.catalog.places import ZONES
from dask_gce.emulator.errors import APIError
from dask_gce.emulator.routing import Call


def admit(call: Call) -> None:
    """Refuse a call that is not to be looked at.

    Parameters
    ----------
    call : Call
        The request, without its body.

    Raises
    ------
    APIError
        It is refused.
    """
    route, conditions = call.route, call.cloud.conditions
    if call.identity is not None:
        call.identity.check_scope(route.service, route.method_id, route.verb)
    project = None
    # That there is no such project is told by the handler, in the words of its API.
    with suppress(APIError):
        project = call.project if "project" in call.params else None
    if project is not None:
        conditions.services.check(f"{route.service}.googleapis.com", project.id, project.number)
    if route.service != "compute":
        return
    zone = call.params.get("zone", "")
    region = ZONES.get(zone, call.params.get("region"))
    conditions.rate_limits.charge(call.params["project"], region, route.method_id, route.verb)
    # What is known of the zone itself is not kept there.
    if route.method_id != "compute.zones.get":
        conditions.unreachable.check(zone)
