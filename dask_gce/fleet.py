"""The machines of one cluster as one thing: made, watched and removed.

Owns the record of every instance the cluster asked for, written before the call that creates it,
and the ways it goes away: in order, after a failure, and when the interpreter ends. It judges
machines only by what Compute Engine and the machine itself say; what the scheduler knows of the
workers is told by its callers.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable, Collection

from dask_gce import names
from dask_gce.compute import Compute
from dask_gce.errors import (
    APIError,
    GCEError,
    InstanceError,
    InstanceLost,
    OperationError,
    ServerFault,
    StartTimeout,
)
from dask_gce.exit import at_exit, not_at_exit
from dask_gce.instance import InstanceSpec, build_insert, parse_instance
from dask_gce.member import Member

logger = logging.getLogger(__name__)

#: How many machines are asked for their boot phase per look. Each answer is a call of its own, so
#: without a limit the cost of looking would grow with the number of workers.
PHASES_PER_LOOK = 8

#: Seconds after which a list that lacks an instance is believed: lists lag behind inserts.
SETTLING = 1.0

#: Seconds the interpreter's exit may take to delete what is left.
EXIT_TIMEOUT = 60


class Fleet:
    """All instances of one cluster.

    Parameters
    ----------
    compute : Compute
        The Compute API.
    cluster : str
        The cluster's name, by whose label its instances are found.
    zone : str
        The zone of its instances.
    delete_at_exit : bool
        Whether to delete what is left when the interpreter ends.
    on_exit : callable, optional
        Called after that.
    """

    def __init__(
        self,
        compute: Compute,
        cluster: str,
        zone: str,
        *,
        delete_at_exit: bool = True,
        on_exit: Callable[[], None] | None = None,
    ) -> None:
        self.compute = compute
        self.cluster = cluster
        self.zone = zone
        self.members: dict[str, Member] = {}
        self.on_exit = on_exit
        self._label = names.label_filter(names.cluster_labels(cluster))
        if delete_at_exit:
            at_exit(self, self._end)

    async def insert(self, spec: InstanceSpec, timeout: float) -> Member:
        """Ask for an instance; returns when Compute Engine has accepted the request.

        Asking again for the same name is the same request.

        Parameters
        ----------
        spec : InstanceSpec
            What to create.
        timeout : float
            Seconds until it must be ready, see :meth:`check`.

        Returns
        -------
        Member
            The record of it.

        Raises
        ------
        GCEError
            If the request was refused or did not get through.
        """
        member = self.members.setdefault(spec.name, Member(spec, timeout))
        if member.call is None:
            insert = self.compute.insert_instance(
                spec.zone, build_insert(spec), request_id=member.request_id
            )
            member.call = asyncio.ensure_future(insert)
        try:
            member.operation = await asyncio.shield(member.call)
        except ServerFault:
            raise  # it may exist all the same, so it stays on record
        except APIError:
            self.members.pop(spec.name, None)
            raise
        return member

    async def look(self) -> None:
        """See what state all instances are in, with one call.

        Raises
        ------
        GCEError
            If Compute Engine did not answer. Nothing is known then; nothing is gone.
        """
        started = time.monotonic()
        found = await self.compute.list_instances(self.zone, self._label)
        seen = {instance.name: instance for instance in map(parse_instance, found)}
        for member in self.members.values():
            if member.inserted < started:
                member.instance = seen.get(member.name)

    def mark_ready(self, name: str) -> None:
        """Note that an instance does what it was made for.

        Parameters
        ----------
        name : str
            The instance's name.
        """
        if name in self.members:
            self.members[name].ready = True

    @property
    def waiting(self) -> list[str]:
        """The names of the instances that are not ready yet."""
        return [member.name for member in self.members.values() if not member.ready]

    async def check(self, only: Collection[str]) -> list[InstanceError]:
        """Find instances that have failed, after a :meth:`look`.

        Parameters
        ----------
        only : collection of str
            Names of the instances to check.

        Returns
        -------
        list of InstanceError
            One for each instance that failed, with its boot phase and the end of its console.
        """
        waiting = []
        failures: list[InstanceError] = []
        for member in [self.members[name] for name in only if name in self.members]:
            if (failure := await self._judge(member)) is not None:
                failures.append(failure)
            elif not member.ready and member.instance and member.instance.status == "RUNNING":
                waiting.append(member)
        # The longest silent first, a few at a time.
        waiting.sort(key=lambda member: (member.asked, member.inserted))
        for member in waiting[:PHASES_PER_LOOK]:
            await member.read_phase(self.compute)
            if member.phase.startswith("failed"):
                failures.append(await member.failure(InstanceError, member.phase, self.compute))
        return failures

    async def _judge(self, member: Member) -> InstanceError | None:
        waited = time.monotonic() - member.inserted
        if member.instance is not None and member.instance.ended:
            what = f"it is {member.instance.status}"
            return await member.failure(InstanceLost, what, self.compute)
        if member.instance is None and member.operation is not None:
            try:
                operation = await self.compute.get_operation(member.operation)
            except OperationError as error:
                failure = await member.failure(InstanceError, error.message, self.compute)
                failure.__cause__ = error
                return failure
            except GCEError:
                return None  # unknown is not gone
            if operation.done and waited > SETTLING:
                return await member.failure(InstanceLost, "it no longer exists", self.compute)
        if not member.ready and waited > member.timeout:
            what = f"it was not ready within {member.timeout:g} s"
            return await member.failure(StartTimeout, what, self.compute)
        return None

    async def delete(self, name: str) -> None:
        """Delete an instance and forget it. One that is gone already is no error.

        Parameters
        ----------
        name : str
            The instance's name; one that the fleet does not know is left alone.

        Raises
        ------
        GCEError
            If Compute Engine refused; the instance stays on record and :meth:`delete_all` tries
            again.
        """
        member = self.members.get(name)
        if member is None:
            return
        if member.call is not None:
            with contextlib.suppress(GCEError):
                member.operation = await asyncio.shield(member.call)
        deleting = await self.compute.delete_instance(member.spec.zone, name)
        if deleting is None and member.operation is not None:
            # Not there, or not there yet: an accepted insert may still be on its way.
            with contextlib.suppress(OperationError):
                await self.compute.wait_operation(member.operation, EXIT_TIMEOUT)
                await self.compute.delete_instance(member.spec.zone, name)
        self.members.pop(name, None)

    async def delete_all(self) -> None:
        """Delete every instance of the cluster, also those that are in no record.

        Raises
        ------
        GCEError
            If some could not be deleted, naming them and the command that does it by hand.
        """
        known = list(self.members)
        results = await asyncio.gather(*map(self.delete, known), return_exceptions=True)
        left = [
            (name, result)
            for name, result in zip(known, results, strict=True)
            if isinstance(result, BaseException)
        ]
        with contextlib.suppress(GCEError):
            listed = await self.compute.list_instances(self.zone, self._label)
            for instance in map(parse_instance, listed):
                if instance.name not in known:
                    await self.compute.delete_instance(self.zone, instance.name)
        if left:
            raise GCEError(
                f"Could not delete {len(left)} instances of cluster {self.cluster}: {left[0][1]}\n"
                f"Delete them by hand: gcloud compute instances delete "
                f"{' '.join(sorted(name for name, _ in left))} --zone {self.zone} "
                f"--project {self.compute.project}"
            ) from left[0][1]
        not_at_exit(self)

    def delete_now(self) -> None:
        """Delete every instance on the calling thread, without an event loop.

        For the interpreter's exit, when loops and thread pools no longer work. Returns when the
        requests are accepted, not when the instances are gone.
        """
        deadline = time.monotonic() + EXIT_TIMEOUT
        found = set(self.members)
        with contextlib.suppress(GCEError):
            listed = self.compute.list_instances_now(self.zone, self._label, deadline=deadline)
            found |= {instance.name for instance in map(parse_instance, listed)}
        for name in found:
            try:
                self.compute.delete_instance_now(self.zone, name, deadline=deadline)
            except GCEError as error:
                logger.error(
                    "Could not delete instance %s in zone %s of project %s: %s",
                    name,
                    self.zone,
                    self.compute.project,
                    error,
                )
            else:
                self.members.pop(name, None)
        not_at_exit(self)

    def _end(self) -> None:
        self.delete_now()
        if self.on_exit is not None:
            self.on_exit()
