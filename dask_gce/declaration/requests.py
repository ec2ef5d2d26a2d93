"""The requests of a start, from what it would ask with: pure, and with the bodies of the real ones.

Owns the order of the requests, their paths, and that no private key is in a body: whoever makes the
bodies is given `placeholders` in the place of certificates.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Final

from dask_gce.bulk import batches, build_bulk_insert
from dask_gce.declaration.parts import PlannedRequest, PlannedRule
from dask_gce.instance import InstanceSpec, build_insert
from dask_gce.reach.firewall_needs import Needs
from dask_gce.secret_calls import ROLES, SecretCall, SecretPlan, creation, prolongation
from dask_gce.startup import Role, Tls

__all__ = [
    "insert_requests",
    "placeholders",
    "planned_rules",
    "properties_of",
    "rule_requests",
    "secret_requests",
    "startup_script",
]

_COMPUTE: Final = "/compute/v1/projects"


def placeholders(roles: Iterable[Role] = ROLES) -> dict[Role, Tls]:
    """Return what stands in a plan where certificates and private keys are.

    Parameters
    ----------
    roles : iterable of {"scheduler", "worker"}
        The roles that have some.

    Returns
    -------
    dict of str to Tls
        By role.

    Examples
    --------
    >>> placeholders()["worker"].key
    '<private key of worker>'
    """
    return {
        role: Tls(
            ca="<certificate of the cluster's authority>",
            certificate=f"<certificate of {role}>",
            key=f"<private key of {role}>",
        )
        for role in roles
    }


def insert_requests(specs: Sequence[InstanceSpec]) -> list[PlannedRequest]:
    """Return the requests that make machines, as few as they can be.

    Parameters
    ----------
    specs : sequence of InstanceSpec
        The machines.

    Returns
    -------
    list of PlannedRequest
        One for many machines that differ in their names only, and one for each other.
    """
    found = []
    for group in batches(specs):
        path = f"{_COMPUTE}/{group[0].project}/zones/{group[0].zone}/instances"
        body = build_bulk_insert(group) if len(group) > 1 else None
        if body is None:
            found += [
                PlannedRequest("POST", path, build_insert(spec), f"make {_describe(spec)}")
                for spec in group
            ]
        else:
            what = f"make {len(group)} machines like {_describe(group[0])}"
            found.append(PlannedRequest("POST", f"{path}/bulkInsert", body, what))
    return found


def _describe(spec: InstanceSpec) -> str:
    spot = "Spot " if spec.spot else ""
    return f"{spec.name}: {spot}{spec.machine_type} in {spec.zone}"


def planned_rules(needs: Needs) -> list[PlannedRule]:
    """Return the firewall rules that are missing and would be made.

    Parameters
    ----------
    needs : Needs
        What the cluster needs to be let in.

    Returns
    -------
    list of PlannedRule
        The rules; none where none may be made, or where the network is not known.
    """
    network = needs.survey.network
    if network is None or not needs.settings.firewall:
        return []
    return [
        PlannedRule(need.name, network.project, network.name, str(need), needs.build(need, network))
        for need in needs.missing
    ]


def rule_requests(rules: Iterable[PlannedRule]) -> list[PlannedRequest]:
    """Return the requests that make firewall rules.

    Parameters
    ----------
    rules : iterable of PlannedRule
        The rules.

    Returns
    -------
    list of PlannedRequest
        One for each.
    """
    return [
        PlannedRequest(
            "POST",
            f"{_COMPUTE}/{rule.project}/global/firewalls",
            rule.body,
            f"let in {rule.lets_in}",
        )
        for rule in rules
    ]


def secret_requests(
    project: str, cluster: str, identity: str, plan: SecretPlan
) -> tuple[list[PlannedRequest], list[PlannedRequest]]:
    """Return the requests that keep a cluster's certificates in Secret Manager.

    Parameters
    ----------
    project : str
        The project ID.
    cluster : str
        The cluster's name.
    identity : str
        What tells it from other clusters of that name.
    plan : SecretPlan
        What the secrets are to be like.

    Returns
    -------
    first : list of PlannedRequest
        Those before the first machine.
    later : list of PlannedRequest
        Those once there is a machine that removes them at its end.
    """
    plan = replace(plan, bundles=placeholders(plan.bundles))
    first, later = [], []
    for role in plan.bundles:
        for call in creation(project, cluster, identity, role, plan):
            body = call.body
            if "payload" in body:
                # It would be the certificates and the key, in base64.
                body = {"payload": {"data": f"<private key of {role}>"}}
            first.append(_secret_request(call, body))
        call = prolongation(project, cluster, identity, role, plan.last_end)
        later.append(_secret_request(call, call.body))
    return first, later


def _secret_request(call: SecretCall, body: Mapping[str, Any]) -> PlannedRequest:
    query = dict(call.params)
    return PlannedRequest(call.verb, call.path, body, call.action, query, "secretmanager")


def startup_script(requests: Iterable[PlannedRequest]) -> str:
    """Return the startup script that machines are made with.

    Parameters
    ----------
    requests : iterable of PlannedRequest
        A plan's requests.

    Returns
    -------
    str
        The script, which is the same for all; empty if no machine would be made.
    """
    for request in requests:
        for item in properties_of(request).get("metadata", {}).get("items", ()):
            if item["key"] == "startup-script":
                return str(item["value"])
    return ""


def properties_of(request: PlannedRequest) -> Mapping[str, Any]:
    """Return what a request says of the machines that it makes.

    Parameters
    ----------
    request : PlannedRequest
        The request.

    Returns
    -------
    mapping
        The fields of an instance; empty if it makes none.
    """
    if request.path.endswith("/bulkInsert"):
        properties: Mapping[str, Any] = request.body["instanceProperties"]
        return properties
    return request.body if request.path.endswith("/instances") else {}
