"""The machines of one cluster as one thing: made, watched and removed.

Owns the record of every instance the cluster asked for, written before the call that creates it,
and the ways it goes away: in order, after a failure, and when the interpreter ends. It judges
machines only by what Compute Engine and the machine itself say; what the scheduler knows of the
workers is told by its callers.
"""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import logging
import time
import uuid
from collections.abc import Callable, Collection
from dataclasses import dataclass, field

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
from dask_gce.instance import Instance, InstanceSpec, build_insert, parse_instance
from dask_gce.operation import Operation
from dask_gce.startup import PHASE_KEY, PHASE_NAMESPACE

logger = logging.getLogger(__name__)

#: How many machines are asked for their boot phase per look. Each answer is a call of its own, so
#: without a limit the cost of looking would grow with the number of workers.
PHASES_PER_LOOK = 8

#: Lines of the serial console that an error carries.
TAIL_LINES = 25

#: Seconds the interpreter's exit may take to delete what is left.
EXIT_TIMEOUT = 60


@dataclass
class Member:
    """One instance of the fleet, from the moment it is decided until it is gone.

    Parameters
    ----------
    spec : InstanceSpec
        What was asked for.
    timeout : float
        Seconds it may take until it is ready.
    request_id : str
        Makes the insert safe to repeat.
    inserted : float
        When it was asked for, on the monotonic clock.
    call : asyncio.Task or None
        The insert's call. It is never cancelled: it may create something all the same.
    operation : Operation or None
        The insert's operation, once accepted.
    instance : Instance or None
        What the last look saw of it.
    phase : str
        The last boot phase it reported.
    asked : int
        How often its boot phase was asked for.
    ready : bool
        Whether it has been ready once.
    """

    spec: InstanceSpec
    timeout: float
    request_id: str = field(default_factory=lambda: str(uuid.uuid4()))
    inserted: float = field(default_factory=time.monotonic)
    call: asyncio.Task[Operation] | None = None
    operation: Operation | None = None
    instance: Instance | None = None
    phase: str = ""
    asked: int = 0
    ready: bool = False

    @property
    def name(self) -> str:
        """The instance's name."""
        return self.spec.name


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
            _remember(self)

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
            member.asked += 1
            await self._read_phase(member)
            if member.phase.startswith("failed"):
                failures.append(await self._failure(InstanceError, member, member.phase))
        return failures

    async def _judge(self, member: Member) -> InstanceError | None:
        waited = time.monotonic() - member.inserted
        if member.instance is not None and member.instance.ended:
            status = member.instance.status
            return await self._failure(InstanceLost, member, f"it is {status}")
        if member.instance is None and member.operation is not None:
            try:
                done = await self.compute.get_operation(member.operation)
            except OperationError as error:
                failure = await self._failure(InstanceError, member, error.message)
                failure.__cause__ = error
                return failure
            if done.done and waited > 1:
                return await self._failure(InstanceLost, member, "it no longer exists")
        if not member.ready and waited > member.timeout:
            return await self._failure(
                StartTimeout, member, f"it was not ready within {member.timeout:g} s"
            )
        return None

    async def _read_phase(self, member: Member) -> None:
        with contextlib.suppress(GCEError):
            attributes = await self.compute.get_guest_attributes(
                member.spec.zone, member.name, f"{PHASE_NAMESPACE}/"
            )
            member.phase = attributes.get(PHASE_KEY, member.phase)

    async def _failure(self, cls: type[InstanceError], member: Member, what: str) -> InstanceError:
        """Make an error that tells all there is to know of a machine."""
        tail = ""
        if member.instance is not None:
            await self._read_phase(member)
            with contextlib.suppress(GCEError):
                text, _ = await self.compute.get_serial_port_output(member.spec.zone, member.name)
                tail = "\n".join(text.splitlines()[-TAIL_LINES:])
        spec = member.spec
        role = spec.labels.get(names.ROLE_LABEL, "instance")
        lines = [
            f"The {role} {member.name} (project {spec.project}, zone {spec.zone}) failed: {what}.",
            f"Last boot phase: {member.phase or 'none reported'}.",
            f"Next step: {_next_step(member)}",
        ]
        if tail:
            lines.append(f"Its serial console ends with:\n{tail}")
        return cls(
            "\n".join(lines), name=member.name, zone=spec.zone, phase=member.phase, serial_tail=tail
        )

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
                if instance.status != "STOPPING" and instance.name not in dict(left):
                    await self.compute.delete_instance(self.zone, instance.name)
        if left:
            raise GCEError(
                f"Could not delete {len(left)} instances of cluster {self.cluster}: {left[0][1]}\n"
                f"Delete them by hand: gcloud compute instances delete "
                f"{' '.join(sorted(name for name, _ in left))} --zone {self.zone} "
                f"--project {self.compute.project}"
            ) from left[0][1]
        _forget(self)

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
        _forget(self)


def _next_step(member: Member) -> str:
    image = "docker pull" in member.phase
    if image:
        return "check container_image, and that the instance may reach and read its registry."
    if member.phase.startswith("failed"):
        return "read the end of the serial console below for what Dask said."
    if member.phase == "running":
        return (
            "Dask runs but cannot be reached: check the firewall rules of the network, and "
            "whether this computer reaches the address (see external_ip)."
        )
    if member.phase == "":
        return (
            "the startup script has not reported: check that the source_image has Google's guest "
            "agent, curl and docker, and that guest attributes are allowed."
        )
    return "read the serial console, or give it more time with start_timeout."


# Fleets that still have, or may still have, instances. Strong references on purpose: a cluster that
# was garbage collected without close() still has machines that cost money.
_unfinished: dict[int, Fleet] = {}
_registered = False


def _remember(fleet: Fleet) -> None:
    global _registered  # noqa: PLW0603
    _unfinished[id(fleet)] = fleet
    if not _registered:
        # Not at import: atexit runs last in, first out, and this has to come before distributed's
        # own hook, which would wait for loops and executors that no longer work.
        atexit.register(_delete_unfinished)
        _registered = True


def _forget(fleet: Fleet) -> None:
    _unfinished.pop(id(fleet), None)


def _delete_unfinished() -> None:
    for fleet in list(_unfinished.values()):
        fleet.delete_now()
        if fleet.on_exit is not None:
            fleet.on_exit()
