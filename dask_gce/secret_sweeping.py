"""Secrets in Secret Manager that nobody needs any more: which they are, and their deletion.

Owns what is particular to secrets; the judgement is in `orphanhood`. A cluster removes its own
secrets (`cluster_secrets`), and those that nobody removes have an end, at which Google deletes
them. In between they are no use to anybody, but they open nothing either: their cluster has no
machines.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import Any

from dask_gce import names
from dask_gce.client import ClientState, client_state
from dask_gce.errors import NotFound, PermissionDenied
from dask_gce.inventory import Inventory
from dask_gce.orphanhood import Origin, explain_leftover, is_judged, moment
from dask_gce.services import Services

__all__ = ["SecretRecord", "delete_secrets", "find_orphaned_secrets", "list_secrets"]


@dataclass(frozen=True)
class SecretRecord:
    """A secret of a cluster, as Secret Manager shows it.

    Parameters
    ----------
    name : str
        Its name, without the project.
    cluster : str
        The cluster's name.
    identity : str
        The cluster's identity.
    owner : str
        Who made the cluster.
    client : str
        Which process made it.
    created : datetime.datetime
        When the secret was made, with its zone.
    expires : datetime.datetime or None
        When the cluster is past its use, with its zone; None if the labels do not say.
    declared : str
        By what it is declared that would make it again; empty for nothing.
    """

    name: str
    cluster: str
    identity: str
    owner: str
    client: str
    created: datetime
    expires: datetime | None = None
    declared: str = ""

    def to_json(self) -> dict[str, Any]:
        """Return it in the types of JSON.

        Returns
        -------
        dict
            ``name``, ``cluster``, ``id`` and ``owner``.
        """
        return {
            "name": self.name,
            "cluster": self.cluster,
            "id": self.identity,
            "owner": self.owner,
        }


async def list_secrets(services: Services, identity: str = "") -> list[SecretRecord]:
    """Return the secrets of clusters.

    Parameters
    ----------
    services : Services
        Asks Secret Manager.
    identity : str
        The identity of one cluster; empty for all.

    Returns
    -------
    list of SecretRecord
        What there is; nothing where the project does not use Secret Manager, or where the caller
        may not list.

    Raises
    ------
    GCEError
        If Secret Manager does not answer.
    """
    label = f"labels.{names.ID_LABEL}"
    wanted = f"{label}={identity}" if identity else f"{label}:*"
    found: list[SecretRecord] = []
    params = {"filter": wanted, "pageSize": "500"}
    try:
        while True:
            page = await services.call(
                "secretmanager",
                "GET",
                f"/v1/projects/{services.project}/secrets",
                params=params,
                action="list secrets",
            )
            found += [_parse(each) for each in page.get("secrets", ())]
            if not page.get("nextPageToken"):
                return found
            params["pageToken"] = str(page["nextPageToken"])
    except PermissionDenied:
        return found


def _parse(secret: Mapping[str, Any]) -> SecretRecord:
    labels = secret.get("labels", {})
    # Their fractions have up to nine digits, of which Python 3.10 reads three or six.
    created = str(secret["createTime"]).partition(".")[0].rstrip("Z")
    expires = str(labels.get(names.EXPIRES_LABEL, ""))
    return SecretRecord(
        name=str(secret["name"]).rpartition("/")[2],
        cluster=str(labels.get(names.CLUSTER_LABEL, "")),
        identity=str(labels.get(names.ID_LABEL, "")),
        owner=str(labels.get(names.OWNER_LABEL, "")),
        client=str(labels.get(names.CLIENT_LABEL, "")),
        created=datetime.fromisoformat(created).replace(tzinfo=timezone.utc),
        expires=moment(int(expires)) if expires.isascii() and expires.isdecimal() else None,
        declared=str(labels.get(names.DECLARED_LABEL, "")),
    )


def find_orphaned_secrets(
    secrets: Iterable[SecretRecord],
    inventory: Inventory,
    *,
    now: datetime | None = None,
    owner: str | None = None,
    everybody: bool = False,
    client_state: Callable[[str], ClientState] = client_state,
) -> list[SecretRecord]:
    """Find the secrets whose clusters have no machines.

    Parameters
    ----------
    secrets : iterable of SecretRecord
        Those there are; listed before the machines were.
    inventory : Inventory
        The clusters that have machines.
    now : datetime.datetime or None
        The time, with its zone; None for the clock's.
    owner : str or None
        Whose to judge, in any spelling; None for those of who runs this process.
    everybody : bool
        Judge everybody's.
    client_state : callable
        Tells of the process in a label what `client.client_state` does.

    Returns
    -------
    list of SecretRecord
        Those that nobody needs, which is none of what something declares. While a zone does not
        answer there are none: machines that need them may be there.
    """
    if inventory.unreachable:
        return []
    now = now or datetime.now(timezone.utc)
    needed = {record.identity for record in inventory.clusters}
    return [
        secret
        for secret in secrets
        if secret.identity not in needed
        and not secret.declared
        and is_judged(_origin(secret), owner, everybody)
        and explain_leftover(_origin(secret), now, client_state)
    ]


def _origin(secret: SecretRecord) -> Origin:
    return Origin(secret.cluster, secret.owner, secret.client, secret.created, secret.expires)


async def delete_secrets(services: Services, secrets: Iterable[SecretRecord]) -> None:
    """Delete secrets; one that is gone already is no error.

    Parameters
    ----------
    services : Services
        Asks Secret Manager.
    secrets : iterable of SecretRecord
        Which.

    Raises
    ------
    GCEError
        If Secret Manager does not answer or refuses.
    """
    results = await asyncio.gather(
        *(
            services.call(
                "secretmanager",
                "DELETE",
                f"/v1/projects/{services.project}/secrets/{secret.name}",
                action=f"delete secret {secret.name}",
            )
            for secret in secrets
        ),
        return_exceptions=True,
    )
    for result in results:
        if isinstance(result, BaseException) and not isinstance(result, NotFound):
            raise result
