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

#: How many lists in a row must lack an instance before it is believed gone: lists lag behind.
MISSES = 3

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
    identity : str
        What tells it from other clusters of that name: the label that all its instances carry.
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
        identity: str,
        *,
        delete_at_exit: bool = True,
        on_exit: Callable[[], None] | None = None,
    ) -> None:
        self.compute = compute
        self.cluster = cluster
        self.zone = zone
        self.members: dict[str, Member] = {}
        self.on_exit = on_exit
        self._label = names.label_filter({names.CLUSTER_LABEL: cluster, names.ID_LABEL: identity})
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
                member.missed = 0 if member.instance else member.missed + 1

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

    @property
    def unsettled(self) -> bool:
        """Whether some instance is on its way, or was there and is missed."""
        return any(not member.ready or member.missed for member in self.members.values())

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
        if member.missed and (failure := await self._judge_missing(member)) is not None:
            return failure
        if not member.ready and waited > member.timeout:
            what = f"it was not ready within {member.timeout:g} s"
            return await member.failure(StartTimeout, what, self.compute)
        return None

    async def _judge_missing(self, member: Member) -> InstanceError | None:
        if member.operation is None:
            return None
        try:
            operation = await self.compute.get_operation(member.operation)
        except OperationError as error:
            failure = await member.failure(InstanceError, error.message, self.compute)
            failure.__cause__ = error
            return failure
        except GCEError:
            return None  # unknown is not gone
        if operation.done and member.missed >= MISSES:
            return await member.failure(InstanceLost, "it no longer exists", self.compute)
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
            If it is not certain that all are deleted, with the commands that tell and do it by
            hand. Then the interpreter's exit tries again.
        """
        known = list(self.members)
        results = await asyncio.gather(*map(self.delete, known), return_exceptions=True)
        causes = [result for result in results if isinstance(result, BaseException)]
        try:
            listed = await self.compute.list_instances(self.zone, self._label)
            for instance in map(parse_instance, listed):
                if instance.name not in known:
                    await self.compute.delete_instance(self.zone, instance.name)
        except GCEError as error:
            causes.append(error)
        if causes:
            raise GCEError(f"{causes[0]}\n{self._by_hand()}") from causes[0]
        not_at_exit(self)

    def delete_now(self) -> None:
        """Delete every instance on the calling thread, without an event loop.

        For the interpreter's exit, when loops and thread pools no longer work. Returns when the
        requests are accepted, not when the instances are gone.
        """
        # The scheduler first: workers that have lost it end by themselves.
        found = sorted(self.members, key=self._is_worker)
        deadline = time.monotonic() + EXIT_TIMEOUT + len(found)
        causes: list[GCEError] = []
        try:
            listed = self.compute.list_instances_now(self.zone, self._label, deadline=deadline)
            found += [each.name for each in map(parse_instance, listed) if each.name not in found]
        except GCEError as error:
            causes.append(error)
        for name in found:
            try:
                self.compute.delete_instance_now(self.zone, name, deadline=deadline)
            except GCEError as error:
                causes.append(error)
            else:
                self.members.pop(name, None)
        if causes:
            logger.error("%s\n%s", causes[0], self._by_hand())
        not_at_exit(self)

    def _is_worker(self, name: str) -> bool:
        return self.members[name].spec.labels.get(names.ROLE_LABEL) == "worker"

    def _by_hand(self) -> str:
        """Tell how to find and delete what may be left."""
        project = self.compute.project
        lines = [
            f"Instances of cluster {self.cluster} may be left, and cost money. List them:",
            f"gcloud compute instances list --project {project} "
            f"--filter=labels.{names.CLUSTER_LABEL}={self.cluster}",
        ]
        if self.members:
            lines.append(
                f"Delete those known: gcloud compute instances delete {' '.join(self.members)} "
                f"--zone {self.zone} --project {project}"
            )
        return "\n".join(lines)

    def _end(self) -> None:
        try:
            self.delete_now()
        finally:
            if self.on_exit is not None:
                self.on_exit()
