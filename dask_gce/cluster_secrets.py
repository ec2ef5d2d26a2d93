"""A cluster's certificates in Secret Manager: made before its machines, gone after them.

Owns the secrets of one cluster, one for each role: who may read them, and that they go away. Each
is on record before the request that makes it, and has an end of its own, at which Google deletes
it, whatever happened to those who should have. That is soon, until there is a machine that deletes
them when the cluster ends with nobody there to do it; then it is the cluster's.

How many requests it takes does not depend on the number of machines: four for each role to make
them, one to delete them.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import shlex
from collections.abc import Sequence
from datetime import datetime

from dask_gce.errors import AlreadyExists, GCEError, NotFound
from dask_gce.exit import at_exit, not_at_exit
from dask_gce.secret_calls import ROLES, SecretCall, SecretPlan, creation, prolongation
from dask_gce.secret_names import secret_id
from dask_gce.services import Services
from dask_gce.startup import Role

__all__ = ["ClusterSecrets"]

logger = logging.getLogger(__name__)

#: Seconds that a request may take when the interpreter ends.
EXIT_TIMEOUT = 15.0


class ClusterSecrets:
    """The secrets of one cluster.

    Parameters
    ----------
    services : Services
        Asks Secret Manager; closed together with this.
    cluster : str
        The cluster's name.
    identity : str
        What tells it from other clusters of that name.
    exist : bool
        Whether they exist already, made by another process.
    """

    def __init__(
        self, services: Services, cluster: str, identity: str, *, exist: bool = False
    ) -> None:
        self._services = services
        self._cluster = cluster
        self._identity = identity
        self._recorded = exist
        #: The roles whose secrets are to last, and until when.
        self._to_last: tuple[tuple[Role, ...], datetime] | None = None

    async def create(self, plan: SecretPlan) -> None:
        """Make them.

        Parameters
        ----------
        plan : SecretPlan
            What they are to be like.

        Raises
        ------
        GCEError
            If Secret Manager does not answer or refuses.
        """
        self._recorded = True
        at_exit(self, self.delete_now, self._services.endpoint)
        self._to_last = tuple(plan.bundles), plan.last_end
        making = [asyncio.ensure_future(self._create(role, plan)) for role in plan.bundles]
        try:
            await asyncio.gather(*making)
        finally:
            for each in making:
                each.cancel()
            await asyncio.wait(making)

    async def _create(self, role: Role, plan: SecretPlan) -> None:
        make, *fill = creation(self._services.project, self._cluster, self._identity, role, plan)
        with contextlib.suppress(AlreadyExists):  # a repeat whose first answer was lost
            await self._call(make)
        await asyncio.gather(*map(self._call, fill))

    async def _call(self, call: SecretCall) -> None:
        await self._services.call(
            "secretmanager",
            call.verb,
            call.path,
            params=call.params or None,
            body=dict(call.body),
            action=call.action,
        )

    async def prolong(self) -> None:
        """Let them be there as long as the cluster, which has a machine by now that deletes them.

        Raises
        ------
        GCEError
            If Secret Manager does not answer or refuses: machines that come later would find none.
        """
        if self._to_last is None:
            return
        roles, end = self._to_last
        project, cluster, identity = self._services.project, self._cluster, self._identity
        calls = [prolongation(project, cluster, identity, role, end) for role in roles]
        await asyncio.gather(*map(self._call, calls))
        self._to_last = None

    def _path(self, role: Role) -> str:
        name = secret_id(self._cluster, self._identity, role)
        return f"/v1/projects/{self._services.project}/secrets/{name}"

    def hand_over(self) -> None:
        """Leave it to somebody else to call `delete_now` when the interpreter ends."""
        not_at_exit(self)

    async def delete(self) -> None:
        """Delete them, if there may be any. What cannot be deleted is told, and ends by itself."""
        if not self._recorded:
            return
        # A request that makes one must not be overtaken.
        await self._services.settled()
        results = await asyncio.gather(
            *(
                self._services.call(
                    "secretmanager", "DELETE", self._path(role), action=self._deleting(role)
                )
                for role in ROLES
            ),
            return_exceptions=True,
        )
        self._conclude(results)

    def delete_now(self) -> None:
        """Do as `delete`, on the calling thread, for the interpreter's exit."""
        if not self._recorded:
            return
        self._services.settled_now(EXIT_TIMEOUT)
        results: list[object] = []
        for role in ROLES:
            try:
                self._services.call_now(
                    "secretmanager",
                    "DELETE",
                    self._path(role),
                    action=self._deleting(role),
                    timeout=EXIT_TIMEOUT,
                )
            except GCEError as error:
                results.append(error)
        self._conclude(results)
        self._services.close_now()

    def _deleting(self, role: Role) -> str:
        return f"delete secret {secret_id(self._cluster, self._identity, role)}"

    def _conclude(self, results: Sequence[object]) -> None:
        not_at_exit(self)
        left = False
        for result in results:
            if isinstance(result, GCEError) and not isinstance(result, NotFound):
                left = True
                logger.error("%s", result)
            elif isinstance(result, BaseException) and not isinstance(result, GCEError):
                raise result
        self._recorded = left
        if left:
            project = shlex.quote(self._services.project)
            names = [secret_id(self._cluster, self._identity, role) for role in ROLES]
            logger.error(
                "Secrets of cluster %s may be left, which end by themselves. To delete them: %s",
                self._cluster,
                " ; ".join(f"gcloud secrets delete {name} --project {project}" for name in names),
            )

    async def close(self) -> None:
        """Have nothing more to do with them; they stay as they are."""
        not_at_exit(self)
        await self._services.close()
