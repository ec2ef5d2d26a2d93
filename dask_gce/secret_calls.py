"""The calls that keep a cluster's certificates in Secret Manager, as data: pure.

Owns what secrets are like and the bodies of the requests that make them. That they go away again,
and when, is seen to in `cluster_secrets`.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta, timezone
from typing import Any

from dask_gce.secret_names import secret_id
from dask_gce.startup import Role, Tls, bundle

__all__ = ["ROLES", "SecretCall", "SecretPlan", "creation", "latest_end", "prolongation"]

ROLES: tuple[Role, ...] = ("scheduler", "worker")

#: What a machine's service account is granted, on these secrets and nothing else.
ACCESSOR = "roles/secretmanager.secretAccessor"

#: How much longer than the cluster its secrets may be there, so that no clock ends them too early.
SPARE = timedelta(hours=1)

#: How much longer than a start they may be there before it has come to a machine; Secret Manager
#: takes no end that is less than a minute away.
MARGIN = timedelta(minutes=2)


@dataclass(frozen=True)
class SecretPlan:
    """What a cluster's secrets are to be like.

    Parameters
    ----------
    bundles : mapping of str to Tls
        The certificates by role.
    account : str
        The email of the machines' service account, which alone is allowed to read them.
    regions : sequence of str
        Where they are kept, so that nothing leaves the regions of the cluster.
    labels : mapping of str to str
        Their labels.
    end : datetime.datetime
        When the cluster ends at the latest, with its zone.
    patience : float
        Seconds until there is a machine that deletes them at its end, at the latest.
    """

    bundles: Mapping[Role, Tls] = field(repr=False)
    account: str
    regions: Sequence[str]
    labels: Mapping[str, str]
    end: datetime
    patience: float

    @property
    def first_end(self) -> datetime:
        """When they end if no machine comes to be."""
        return min(self.last_end, _now() + timedelta(seconds=self.patience) + MARGIN)

    @property
    def last_end(self) -> datetime:
        """When they end if nobody deletes them."""
        return self.end + SPARE


@dataclass(frozen=True)
class SecretCall:
    """One call of Secret Manager.

    Parameters
    ----------
    verb : str
        The HTTP method.
    path : str
        Its path, with the version.
    body : mapping
        The request body in API JSON.
    params : mapping of str to str
        The query.
    action : str
        What it is for, in words.
    """

    verb: str
    path: str
    body: Mapping[str, Any] = field(repr=False)
    params: Mapping[str, str] = field(default_factory=dict)
    action: str = ""


def creation(
    project: str, cluster: str, identity: str, role: Role, plan: SecretPlan
) -> tuple[SecretCall, SecretCall, SecretCall]:
    """Return the calls that make the secret of a role.

    Parameters
    ----------
    project : str
        The project ID.
    cluster : str
        The cluster's name.
    identity : str
        What tells it from other clusters of that name.
    role : {"scheduler", "worker"}
        The role.
    plan : SecretPlan
        What the secrets are to be like.

    Returns
    -------
    tuple of SecretCall
        The one that makes it; after that one, side by side, those that write it and that say who
        may read it.
    """
    name = secret_id(cluster, identity, role)
    secrets = f"/v1/projects/{project}/secrets"
    body = {
        "replication": {
            "userManaged": {"replicas": [{"location": region} for region in plan.regions]}
        },
        "labels": dict(plan.labels),
        "expireTime": _render(plan.first_end),
    }
    payload = base64.b64encode(bundle(plan.bundles[role]).encode()).decode()
    policy = {"bindings": [{"role": ACCESSOR, "members": [f"serviceAccount:{plan.account}"]}]}
    return (
        SecretCall("POST", secrets, body, {"secretId": name}, f"make secret {name}"),
        SecretCall(
            "POST",
            f"{secrets}/{name}:addVersion",
            {"payload": {"data": payload}},
            action=f"write secret {name}",
        ),
        SecretCall(
            "POST",
            f"{secrets}/{name}:setIamPolicy",
            {"policy": policy},
            action=f"let {plan.account} read secret {name}",
        ),
    )


def prolongation(
    project: str, cluster: str, identity: str, role: Role, end: datetime
) -> SecretCall:
    """Return the call that lets the secret of a role last as long as the cluster.

    Parameters
    ----------
    project : str
        The project ID.
    cluster : str
        The cluster's name.
    identity : str
        What tells it from other clusters of that name.
    role : {"scheduler", "worker"}
        The role.
    end : datetime.datetime
        When it ends if nobody deletes it, with its zone.

    Returns
    -------
    SecretCall
        The call.
    """
    name = secret_id(cluster, identity, role)
    return SecretCall(
        "PATCH",
        f"/v1/projects/{project}/secrets/{name}",
        {"expireTime": _render(end)},
        {"updateMask": "expireTime"},
        f"prolong secret {name}",
    )


def _now() -> datetime:
    return datetime.now(timezone.utc)


def _render(moment: datetime) -> str:
    return moment.astimezone(timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")


def latest_end(expires: int | None, certificates: datetime | None) -> datetime:
    """Return when a cluster ends at the latest.

    Parameters
    ----------
    expires : int or None
        When Compute Engine deletes its machines, in seconds since 1970 UTC; None for never.
    certificates : datetime.datetime or None
        When its certificates end; None if that is not known.

    Returns
    -------
    datetime.datetime
        The moment, with its zone; without either, in a year.

    Examples
    --------
    >>> latest_end(0, None)
    datetime.datetime(1970, 1, 1, 0, 0, tzinfo=datetime.timezone.utc)
    """
    ends = [] if certificates is None else [certificates]
    if expires is not None:
        ends.append(datetime.fromtimestamp(expires, timezone.utc))
    return min(ends) if ends else datetime.now(timezone.utc) + timedelta(days=365)
