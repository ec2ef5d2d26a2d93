"""The machines of one cluster as one thing: made, watched and removed.

Owns the record of every instance the cluster asked for, written before the call that creates it,
and the judgement which of them have failed. It judges machines only by what Compute Engine and the
machine itself say; what the scheduler knows of the workers is told by its callers. How instances
are asked for is in `insertion`, how they go away in `removal`.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import time
from collections.abc import Callable, Collection, Coroutine, Sequence
from typing import Any

from dask_gce import names
from dask_gce.batch import Batch
from dask_gce.compute import Compute
from dask_gce.cost.charges import charge_of
from dask_gce.cost.spending import Spending
from dask_gce.errors import (
    GCEError,
    InstanceError,
    InstanceLost,
    OperationError,
    StartTimeout,
    TransportError,
)
from dask_gce.events import EventLog
from dask_gce.exit import at_exit, not_at_exit
from dask_gce.insertion import Insertion
from dask_gce.instance import Instance, InstanceSpec, parse_instance
from dask_gce.member import Member
from dask_gce.operation import PREEMPTED, explain_end
from dask_gce.quota import QuotaView
from dask_gce.removal import OFF, Removal
from dask_gce.scrubbing import Scrubbing

logger = logging.getLogger(__name__)

#: How many machines are asked for their boot phase per look. Each answer is a call of its own, so
#: without a limit the cost of looking would grow with the number of workers.
PHASES_PER_LOOK = 2

#: Seconds after which a running machine that does not report is asked for its boot phase.
PHASE_AFTER = 5.0

#: What instances show while Compute Engine finds them a host and makes them ready on it.
PROVISIONING = frozenset({"PROVISIONING", "STAGING"})

#: How many lists in a row must lack an instance before it is believed gone: lists lag behind.
MISSES = 3

#: Of how many machines that fail at once the consoles are read; the reason is mostly the same.
DETAILED = 4

#: Of how many machines that failed the consoles are kept: they go with their machines.
KEPT_CONSOLES = 32

#: How many operations that nobody waits for are looked at per check.
OPERATIONS_PER_CHECK = 4

#: Seconds that a list of the instances may take, with its repeats, and that a check spends on what
#: is good to know. Deadlines are kept meanwhile by nobody.
LISTED_WITHIN, DETAILS_WITHIN = 30.0, 10.0


class Fleet:
    """All instances of one cluster.

    Parameters
    ----------
    compute : Compute
        The Compute API.
    cluster : str
        The cluster's name, by whose label its instances are found.
    identity : str
        What tells it from other clusters of that name: the label that all its instances carry.
    events : EventLog
        Where what happens is noted.
    max_workers : float
        How many worker instances there may be at a time.
    delete_at_exit : bool
        Whether to delete what is left when the interpreter ends; may be changed later.
    before_exit : callable, optional
        Called before that: what a machine would see to, if nobody else did, goes before the last
        machine.
    on_exit : callable, optional
        Called after that.
    changed : callable, optional
        Called when a look is worth while.
    others : callable, optional
        Told of instances of the cluster that another process has made. Without it there are none:
        what is not on record is deleted.
    zones : collection of str
        Where they may have made them.
    scrubs : bool
        Whether the metadata of machines holds private keys, which are taken out once they are
        ready.
    spending : Spending, optional
        The account of how long machines run.
    quota : QuotaView or None
        Which quotas there are, to be looked at before many machines are asked for; None if nobody
        is to look.
    """

    def __init__(
        self,
        compute: Compute,
        cluster: str,
        identity: str,
        *,
        events: EventLog | None = None,
        max_workers: float = math.inf,
        delete_at_exit: bool = True,
        before_exit: Callable[[], None] | None = None,
        on_exit: Callable[[], None] | None = None,
        changed: Callable[[], None] = lambda: None,
        others: Callable[[Sequence[Instance]], None] | None = None,
        zones: Collection[str] = (),
        scrubs: bool = False,
        spending: Spending | None = None,
        quota: QuotaView | None = None,
    ) -> None:
        self.compute = compute
        self.cluster = cluster
        self.events = EventLog() if events is None else events
        self.members: dict[str, Member] = {}
        #: The ends of the serial consoles of machines that failed, the last to fail at the end.
        self.last_consoles: dict[str, str] = {}
        self.spending = Spending() if spending is None else spending
        self.on_exit = on_exit
        self._before_exit = before_exit
        self.max_workers = max_workers
        self._changed = changed
        self._others = others
        #: All that were ever on record, whether they still are or not.
        self._known: set[str] = set()
        self._label = names.label_filter({names.CLUSTER_LABEL: cluster, names.ID_LABEL: identity})
        # Every zone in which something was asked for: what is left there must be found too.
        self._zones: set[str] = set(zones)
        self._unreachable: frozenset[str] = frozenset()
        self._held: list[Member] = []
        self._insertion = Insertion(
            compute,
            changed,
            unnoticed=self._note_unnoticed,
            quota=quota,
            partly=lambda what: self.events.note(cluster, "partly made", what),
        )
        self._removal = Removal(compute, cluster, self._label, lambda: self._zones)
        self._scrubbing = Scrubbing(compute, cluster, self.events) if scrubs else None
        self._ended = False
        self.delete_at_exit = delete_at_exit
        at_exit(self, self._end, compute.endpoint)

    # -- making -----------------------------------------------------------------------------------

    def request(self, spec: InstanceSpec, timeout: float) -> asyncio.Future[None]:
        """Ask for an instance, in one call with all that are asked for in this turn of the loop.

        Asking again for the same name is the same request.

        Parameters
        ----------
        spec : InstanceSpec
            What to create.
        timeout : float
            Seconds until it must be ready, see :meth:`check`.

        Returns
        -------
        asyncio.Future
            Done when Compute Engine has accepted the request; fails with a GCEError when it was
            refused.
        """
        member = self.members.get(spec.name)
        if member is None:
            if self._ended:
                raise GCEError(f"Cluster {self.cluster} is closed and makes no {spec.name}.")
            member = self.members[spec.name] = Member(spec, timeout)
            self._known.add(spec.name)
            self._zones.add(spec.zone)
            kind = "Spot " if spec.spot else ""
            self.events.note(spec.name, "requested", f"{kind}{spec.machine_type} in {spec.zone}")
            if self.max_workers < math.inf and _is_worker(spec):
                member.accepted = asyncio.get_running_loop().create_future()
                self._held.append(member)
                self._changed()
                return member.accepted
            return self._insertion.add(member)
        if member.accepted is not None:
            return member.accepted
        accepted = asyncio.get_running_loop().create_future()
        if member.failure is not None:
            accepted.set_exception(member.failure)
        else:
            accepted.set_result(None)
        return accepted

    def adopt(self, spec: InstanceSpec, instance: Instance, timeout: float) -> None:
        """Take an instance on record that another process has made.

        Parameters
        ----------
        spec : InstanceSpec
            What it is, as if it had been asked for here.
        instance : Instance
            What was seen of it.
        timeout : float
            Seconds until it must be ready, from now on.
        """
        member = Member(spec, timeout, batch=Batch.of_others(spec.zone))
        member.see(instance)
        self.members[spec.name] = member
        if not instance.ended:
            self.spending.begin(spec.name, charge_of(spec), instance.created)
        self._known.add(spec.name)
        self._zones.add(spec.zone)
        self.events.note(spec.name, "found", "made by another process")
        if member.running_since is None:
            self._note_provisioning(member, "")
        else:
            self.events.note(member.name, "running")

    def _release(self, found: Collection[Instance]) -> None:
        """Ask for those that were held back, as many as the cap allows by the cloud's own count."""
        if not self._held:
            return
        there = {(each.zone, each.name) for each in found if not each.ended}
        there |= {
            (member.zone, member.name)
            for member in self.members.values()
            # Asked for, but not listed yet; or in a zone that does not answer.
            if member.batch is not None and not member.never_was and not _is_gone(member)
        }
        schedulers = {
            (each.zone, each.name) for each in self.members.values() if not _is_worker(each.spec)
        }
        room = int(self.max_workers) - len(there - schedulers)
        for member in self._held[: max(0, room)]:
            self._insertion.add(member)
        del self._held[: max(0, room)]

    # -- watching ---------------------------------------------------------------------------------

    async def look(self) -> None:
        """See what state all instances are in, with one call.

        Raises
        ------
        GCEError
            If Compute Engine did not answer. Nothing is known then; nothing is gone.
        """
        started = time.monotonic()
        listing = asyncio.ensure_future(self._list())
        try:
            await asyncio.wait({listing}, timeout=LISTED_WITHIN)
        finally:
            listing.cancel()
        if not listing.done():
            raise TransportError(f"No list of the instances came within {LISTED_WITHIN:g} s.")
        listed, unreachable = listing.result()
        self._note_unreachable(unreachable & self._zones)
        found = [parse_instance(each) for each in listed]
        seen = {(instance.zone, instance.name): instance for instance in found}
        for member in self.members.values():
            batch = member.batch
            if member.zone in unreachable or batch is None or batch.accepted_at > started:
                continue
            was_running = member.running_since is not None
            before = "" if member.instance is None else member.instance.status
            member.see(seen.get((member.zone, member.name)))
            if member.running_since is None:
                self._note_provisioning(member, before)
            elif not was_running:
                self.events.note(member.name, "running")
                self.spending.begin(member.name, charge_of(member.spec))
            if _is_gone(member):
                self.spending.end(member.name)
        ours = found
        if self._others is not None:
            # A machine that is off is of no use to anybody, whoever made it.
            ours = [each for each in found if each.name in self._known or each.status in OFF]
            if new := [each for each in found if each.name not in self._known and not each.ended]:
                self._others(new)
        self._removal.review(ours, self.members.keys())
        if self._scrubbing is not None:
            self._scrubbing.review(found)
        self._release(found)

    def _note_provisioning(self, member: Member, before: str) -> None:
        """Tell that Compute Engine is about to start a machine, unless it was told before."""
        status = "" if member.instance is None else member.instance.status
        if status in PROVISIONING and before not in PROVISIONING and not member.ready:
            self.events.note(member.name, "provisioning")

    def _note_unnoticed(self, why: str) -> None:
        text = f"Spot machines are made without a notice of their end (preemption_notice): {why}"
        self.events.note(self.cluster, "unnoticed", text)

    async def _list(self) -> tuple[list[dict[str, Any]], frozenset[str]]:
        if len(self._zones) == 1:
            (zone,) = self._zones
            return await self.compute.list_instances(zone, self._label), frozenset()
        return await self.compute.aggregated_list_instances(self._label)

    def _note_unreachable(self, zones: frozenset[str]) -> None:
        for zone in sorted(zones - self._unreachable):
            why = f"zone {zone} does not answer; its instances are taken for what they were"
            self.events.note(self.cluster, "unknown", why)
        self._unreachable = zones

    def mark_ready(self, name: str) -> None:
        """Note that an instance does what it was made for.

        Parameters
        ----------
        name : str
            The instance's name.
        """
        member = self.members.get(name)
        if member is not None and member.ready_since is None:
            member.ready_since = time.monotonic()
            self.events.note(name, "ready")
            # Workers may be quicker than the look that sees their machine run.
            self.spending.begin(name, charge_of(member.spec))
            if self._scrubbing is not None:
                # The next look will do: a thousand machines that arrive are no reason for more.
                self._scrubbing.add(member.zone, name)

    @property
    def waiting(self) -> list[str]:
        """The names of the instances that are not ready yet."""
        return [member.name for member in self.members.values() if not member.ready]

    def has(self, name: str) -> bool:
        """Tell whether an instance is there or about to be, as far as is known.

        Parameters
        ----------
        name : str
            The instance's name.

        Returns
        -------
        bool
            Whether Compute Engine has accepted it, and it has neither failed nor gone since.
        """
        member = self.members.get(name)
        if member is None or member.batch is None or member.failure is not None:
            return False
        return member.batch.accepted_at < math.inf and not _is_gone(member)

    @property
    def unsettled(self) -> bool:
        """Whether some instance is on its way in or out, or was there and is missed."""
        return self._removal.going_on or any(
            not member.ready or member.missed for member in self.members.values()
        )

    @property
    def following(self) -> bool:
        """Whether the end of an insert will be told, so that looking before is of little use."""
        return self._insertion.following

    async def check(self, only: Collection[str]) -> list[InstanceError]:
        """Find instances that have failed, after a :meth:`look`.

        Parameters
        ----------
        only : collection of str
            Names of the instances to check.

        Returns
        -------
        list of InstanceError
            One for each instance that failed, with the reason, its boot phase and the end of its
            console.
        """
        verdicts: list[tuple[Member, type[InstanceError], str]] = []
        silent: list[Member] = []
        missing: dict[Batch, list[Member]] = {}
        now = time.monotonic()
        for member in [self.members[name] for name in only if name in self.members]:
            if (verdict := self._judge(member, now)) is not None:
                verdicts.append((member, *verdict))
            elif _is_silent(member, now):
                silent.append(member)
            elif (
                member.missed >= MISSES
                and member.batch is not None
                and not self._insertion.follows(member.batch)
            ):
                missing.setdefault(member.batch, []).append(member)
        # Those first that were asked least, a few at a time.
        silent.sort(key=lambda member: (member.asked, member.inserted))
        asked = silent[:PHASES_PER_LOOK]
        told = [member.phase for member in asked]
        unknown = sorted(missing, key=lambda batch: missing[batch][0].asked)
        await _in_time(
            *(member.read_phase(self.compute) for member in asked),
            *(
                self._look_at_operation(batch, missing[batch])
                for batch in unknown[:OPERATIONS_PER_CHECK]
            ),
        )
        for member, before in zip(asked, told, strict=True):
            # One that became ready before its answer came boots no more.
            if member.phase != before and not member.ready:
                self.events.note(member.name, "booting", member.phase)
        verdicts += [
            (member, InstanceError, member.phase)
            for member in asked
            if member.phase.startswith("failed")
        ]
        reasons: dict[str, str] = {}
        await _in_time(
            self._learn_reasons(
                [member for member, cls, _ in verdicts if cls is InstanceLost], reasons
            ),
            *(member.inspect(self.compute) for member, _, _ in verdicts[:DETAILED]),
        )
        failures = []
        for member, cls, what in verdicts:
            self._keep_console(member)
            reason = reasons.get(member.name)
            failure = member.failed(cls, f"{what}: {reason}" if reason else what)
            if isinstance(failure, InstanceLost):
                failure.preempted = reason == PREEMPTED
            failures.append(failure)
        return failures

    async def explain(self, name: str, cls: type[InstanceError], what: str) -> InstanceError:
        """Make an error of what somebody else has found out about an instance.

        Parameters
        ----------
        name : str
            The instance's name.
        cls : type
            The error's class.
        what : str
            What happened, the end of a sentence.

        Returns
        -------
        InstanceError
            The error, with the instance's boot phase and the end of its console.
        """
        member = self.members[name]
        await _in_time(member.inspect(self.compute))
        self._keep_console(member)
        return member.failed(cls, what)

    async def inspect(self, only: Collection[str]) -> None:
        """Ask instances that somebody has given up for what is known of them, while they are there.

        Parameters
        ----------
        only : collection of str
            Names of instances; some of them are asked.
        """
        members = [self.members[name] for name in only if name in self.members][:DETAILED]
        await _in_time(*(member.inspect(self.compute) for member in members))
        for member in members:
            self._keep_console(member)

    def _keep_console(self, member: Member) -> None:
        if not member.console:
            return
        self.last_consoles.pop(member.name, None)
        self.last_consoles[member.name] = member.console
        if len(self.last_consoles) > KEPT_CONSOLES:
            del self.last_consoles[next(iter(self.last_consoles))]

    def _judge(self, member: Member, now: float) -> tuple[type[InstanceError], str] | None:
        if member.failure is not None:
            return InstanceError, member.failure.message.rstrip(".")
        if member.instance is not None and member.instance.ended:
            return InstanceLost, f"it is {member.instance.status}"
        if member.missed >= MISSES and member.batch is not None and member.batch.ended:
            return InstanceLost, "it no longer exists"
        if not member.ready and now - member.inserted > member.timeout:
            if member in self._held:
                what = f"max_workers = {self.max_workers:g} left no room for it"
                return StartTimeout, f"{what} within {member.timeout:g} s"
            return StartTimeout, f"it was not ready within {member.timeout:g} s"
        return None

    async def _look_at_operation(self, batch: Batch, members: Sequence[Member]) -> None:
        """Learn whether the operation of an insert has ended whose instances are not there."""
        members[0].asked += 1
        if batch.operation is None:
            return
        try:
            batch.ended = (await self.compute.get_operation(batch.operation)).done
        except OperationError as error:
            batch.ended = True
            for member in members:
                member.failure = error
        except GCEError as error:
            # Unknown is not gone.
            logger.info("It is not known how an insert went: %s", error)

    async def _learn_reasons(self, lost: Collection[Member], reasons: dict[str, str]) -> None:
        """Ask who ended instances: the operations tell."""
        for zone in {member.zone for member in lost}:
            found = [member.name for member in lost if member.zone == zone]
            # The reason is a help, not a need.
            with contextlib.suppress(GCEError):
                operations = await self.compute.list_instance_operations(zone, found)
                reasons.update({name: explain_end(operations, name) for name in found})

    # -- removing ---------------------------------------------------------------------------------

    async def delete(self, name: str) -> None:
        """Delete an instance and forget it. One that is gone already is no error.

        Parameters
        ----------
        name : str
            The instance's name; one that the fleet does not know is left alone.

        Raises
        ------
        GCEError
            If Compute Engine refused. The instance is off the record then, so that the next look
            finds it and deletes it again; :meth:`delete_all` does too.
        """
        member = self.members.get(name)
        if member is None:
            return
        if self._scrubbing is not None:
            self._scrubbing.discard(member.zone, name)
        if member in self._held:
            self._held.remove(member)
            member.withdraw()
        try:
            if not self._insertion.remove(member):
                await self._removal.delete(member)
        except GCEError:
            self.members.pop(name, None)
            self._changed()
            raise
        finally:
            self.spending.end(name)
        self.members.pop(name, None)

    async def delete_workers(self) -> None:
        """Make nothing more, and delete the workers' instances; what fails is left to the rest."""
        self._withdraw_held()
        await self._insertion.stop()
        if self._scrubbing is not None:
            await self._scrubbing.stop()
        workers = [each for each in self.members.values() if _is_worker(each.spec)]
        await self._removal.delete_each(workers)
        for each in workers:
            self.spending.end(each.name)

    async def delete_all(self) -> None:
        """Delete every instance of the cluster, also those that are in no record.

        Raises
        ------
        GCEError
            If it is not certain that all are deleted, with the commands that tell and do it by
            hand. Then the interpreter's exit tries again.
        """
        self._withdraw_held()
        await self._insertion.stop()
        if self._scrubbing is not None:
            await self._scrubbing.stop()
        if self._zones:
            await self._removal.delete_all(list(self.members.values()))
        self.members.clear()
        self.spending.end_all()
        self.events.note(self.cluster, "deleted", "all its machines")
        not_at_exit(self)

    def _withdraw_held(self) -> None:
        self._ended = True
        for member in self._held:
            member.withdraw()
        self._held.clear()

    def delete_now(self) -> None:
        """Delete every instance on the calling thread, without an event loop.

        For the interpreter's exit, when loops and thread pools no longer work. Returns when the
        requests are accepted, not when the instances are gone.
        """
        self._ended = True
        if self._zones and self._removal.delete_now(list(self.members.values())):
            self.members.clear()
        not_at_exit(self)

    async def leave(self) -> None:
        """Have nothing more to do with the instances; they stay as they are."""
        self._withdraw_held()
        await self._insertion.stop()
        not_at_exit(self)
        if self._scrubbing is not None:
            await self._scrubbing.finish(self._listed)

    async def _listed(self) -> list[dict[str, Any]]:
        return (await self._list())[0]

    def _end(self) -> None:
        if not self.delete_at_exit:
            return
        with contextlib.ExitStack() as in_turn:
            # The first to be called is the last that is put in, and all of them are.
            if self.on_exit is not None:
                in_turn.callback(self.on_exit)
            in_turn.callback(self.compute.close_now)
            in_turn.callback(self.delete_now)
            if self._before_exit is not None:
                in_turn.callback(self._before_exit)


async def _in_time(*works: Coroutine[Any, Any, None]) -> None:
    """Let works go on side by side, but not for ever: what they learn is good to know, no more."""
    tasks = [asyncio.ensure_future(work) for work in works]
    if not tasks:
        return
    try:
        await asyncio.wait(tasks, timeout=DETAILS_WITHIN)
    finally:
        for task in tasks:
            task.cancel()
    ended, _ = await asyncio.wait(tasks)
    for task in ended:
        if not task.cancelled():
            task.result()


def _is_worker(spec: InstanceSpec) -> bool:
    return spec.labels.get(names.ROLE_LABEL) == "worker"


def _is_gone(member: Member) -> bool:
    return member.missed >= MISSES or (member.instance is not None and member.instance.ended)


def _is_silent(member: Member, now: float) -> bool:
    return (
        not member.ready
        and member.running_since is not None
        and now - member.running_since > PHASE_AFTER
    )
