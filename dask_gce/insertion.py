"""How instances come into being: the inserts of one turn of the loop become a few calls.

Owns the queue of what is to be inserted, the repeats of a request that did not get through or was
too large for a quota, and the reading of the operations, which tell for each instance why there is
none. Whether an instance then boots is watched by `fleet`.
"""

from __future__ import annotations

import asyncio
import logging
import re
import time
import uuid
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Final

from dask_gce.batch import Batch
from dask_gce.bulk import batches, build_bulk_insert
from dask_gce.compute import Compute
from dask_gce.errors import (
    AlreadyExists,
    APIError,
    GCEError,
    OperationError,
    QuotaExceeded,
    RateLimited,
    ServerFault,
    TransportError,
)
from dask_gce.failures import Place, operation_error, shortage_error
from dask_gce.instance import build_insert
from dask_gce.member import Member
from dask_gce.operation import Operation
from dask_gce.quota import LARGE, QuotaView, Room
from dask_gce.shortages import Shortage

__all__ = ["Insertion", "refuses_notice"]

logger = logging.getLogger(__name__)

#: Bulk inserts of one cluster at a time; Compute Engine runs no more for a project.
#: https://docs.cloud.google.com/compute/docs/troubleshooting/troubleshooting-bulk-vm-creation
BULKS = 10

#: Operations of single inserts that are waited for, each of which holds a connection. Of the others
#: the list of instances tells, a little later.
SINGLES = 4

#: By how much a request that was refused for a quota is made smaller, each time that it is refused
#: again; then by half. What is used is told late, so that what seems to fit is mostly right but for
#: a few machines.
SMALLER: Final = (1 / 16, 1 / 8, 1 / 4)

#: Seconds until a request that did not get through is made again: at first, and at most.
FIRST_PAUSE, LONGEST_PAUSE = 1.0, 30.0


class Insertion:
    """Makes the instances of one cluster.

    Parameters
    ----------
    compute : Compute
        The Compute API.
    changed : callable
        Called when an operation has ended: a look at the instances is worth while.
    unnoticed : callable
        Told, once, why Spot machines are made without a notice of their end.
    quota : QuotaView or None
        Which quotas there are; None if nobody is to look.
    partly : callable
        Told which part of many instances that were asked for together can be had, and why.
    """

    def __init__(
        self,
        compute: Compute,
        changed: Callable[[], None],
        *,
        unnoticed: Callable[[str], None] = lambda why: None,
        quota: QuotaView | None = None,
        partly: Callable[[str], None] = lambda what: None,
    ) -> None:
        self._compute = compute
        self._changed = changed
        self._unnoticed = unnoticed
        self._quota = quota
        self._partly = partly
        # Whether Compute Engine has refused to give notice before it takes Spot machines away.
        self._forgoes_notice = False
        self._queue: list[Member] = []
        self._queued = 0
        self._bulks = asyncio.Semaphore(BULKS)
        self._singles = 0
        #: The requests under way, and those for whose sake they are made.
        self._under_way: dict[Batch, tuple[asyncio.Task[None], set[str]]] = {}

    @property
    def following(self) -> bool:
        """Whether the end of an operation will be told, so that looking before is of little use."""
        return bool(self._under_way)

    def follows(self, batch: Batch) -> bool:
        """Tell whether it will be told what became of a request, and of each of its instances.

        Parameters
        ----------
        batch : Batch
            The request.

        Returns
        -------
        bool
            Whether nobody else needs to ask.
        """
        return batch in self._under_way

    def add(self, member: Member) -> asyncio.Future[None]:
        """Have an instance inserted together with others of this turn of the loop.

        Parameters
        ----------
        member : Member
            The instance.

        Returns
        -------
        asyncio.Future
            Done when Compute Engine has accepted the request.
        """
        loop = asyncio.get_running_loop()
        if member.accepted is None:
            member.accepted = loop.create_future()
        if not self._queue:
            self._queued = 0
            loop.call_soon(self._flush)
        self._queue.append(member)
        return member.accepted

    def remove(self, member: Member) -> bool:
        """Take an instance back, and a request without an answer that is made for no other.

        Parameters
        ----------
        member : Member
            The instance.

        Returns
        -------
        bool
            Whether it was in time: it had not been asked for yet.
        """
        batch = member.batch
        if batch is None and member in self._queue:
            self._queue.remove(member)
            member.withdraw()
            return True
        if batch in self._under_way and not batch.answered.is_set():
            task, wanted = self._under_way[batch]
            wanted.discard(member.name)
            if not wanted:
                # Repeated, it would make an instance that nobody knows.
                task.cancel()
        return False

    async def stop(self) -> None:
        """Insert nothing more. What has been sent may still take effect."""
        for member in self._queue:
            member.withdraw()
        self._queue.clear()
        while self._under_way:
            tasks = [task for task, _ in self._under_way.values()]
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks, timeout=1)

    def _flush(self) -> None:
        loop = asyncio.get_running_loop()
        if len(self._queue) > self._queued:
            # A thousand workers are made over several turns, so as not to hold the loop.
            self._queued = len(self._queue)
            loop.call_soon(self._flush)
            return
        members = {member.name: member for member in self._queue}
        self._queue = []
        for specs in batches([member.spec for member in members.values()]):
            self._begin([members[spec.name] for spec in specs])

    def _begin(self, members: Sequence[Member]) -> None:
        batch = Batch(members[0].zone)
        for member in members:
            member.batch = batch
            if self._forgoes_notice and member.spec.preemption_notice:
                member.spec = replace(member.spec, preemption_notice=False)
        task = asyncio.ensure_future(self._insert(batch, members))
        self._under_way[batch] = task, {member.name for member in members}
        task.add_done_callback(partial(self._over, batch, members))

    def _over(self, batch: Batch, members: Sequence[Member], task: asyncio.Task[None]) -> None:
        del self._under_way[batch]
        batch.answered.set()
        if task.cancelled():
            # Nobody is to wait for an answer that nobody reads any more.
            for member in members:
                member.withdraw()
        elif (error := task.exception()) is not None:
            logger.error("Something went wrong in an insert", exc_info=error)

    async def _insert(self, batch: Batch, members: Sequence[Member]) -> None:
        if len(members) == 1:
            await self._insert_one(batch, members[0])
            return
        try:
            can_be_many = build_bulk_insert([each.spec for each in members]) is not None
        except GCEError as error:
            _refuse(members, error)
            return
        if not can_be_many:
            # Settings of the user's that a bulk insert does not know.
            for member in members:
                self._begin([member])
            return
        async with self._bulks:
            members = await self._ask_for_many(batch, members)
            await self._follow(batch, members)

    async def _ask_for_many(self, batch: Batch, members: Sequence[Member]) -> Sequence[Member]:
        """Ask for as many instances as quotas allow, refuse the others; return what was asked."""
        asked, shortage, refusal = list(members), None, None
        counted = 0
        if len(members) >= LARGE and (room := await self._room(members)) is not None:
            asked, shortage = asked[: room.machines], room.shortage
            counted = len(asked)
        shares = iter(SMALLER)
        # Without those that nobody wants any more: they are gone, for nothing had been sent.
        while asked := self._wanted(batch, asked):
            found = await self._ask(batch, asked, self._bulk(batch, asked), may_shrink=True)
            if found is None:
                break
            room = await self._room(asked, refused=True) if refusal is None else None
            if refusal is None and room is None:
                shares = iter(())  # nothing is known, so that any number is as good
            refusal = found
            counted = counted if room is None else room.machines
            most = len(asked) - 1
            if room is not None and room.machines <= most:
                asked, shortage = asked[: room.machines], room.shortage
            else:
                asked = asked[: min(most, int(len(asked) * (1 - next(shares, 1 / 2))))]
            # It is another request now, and nothing has come of the one before.
            batch.request_id = str(uuid.uuid4())
        # What was refused in the end takes no room, least of all from the request in its place.
        unmade = counted - (len(asked) if batch.sent else 0)
        if self._quota is not None and unmade > 0:
            self._quota.give_back(members[0].spec, unmade)
        names = {each.name for each in asked}
        if rest := [each for each in members if each.name not in names]:
            rest = self._leave_out(batch, rest)
            if shortage is not None or refusal is not None:
                error = self._explain(members, len(asked), shortage, refusal)
                if asked:
                    self._tell_part(len(asked), members, error)
                _refuse(rest, error)
        return asked

    def _wanted(self, batch: Batch, members: Sequence[Member]) -> list[Member]:
        _, wanted = self._under_way[batch]
        return [each for each in members if each.name in wanted]

    def _leave_out(self, batch: Batch, members: Sequence[Member]) -> list[Member]:
        """Take note that a request is not made for these; return those that are still wanted."""
        _, wanted = self._under_way[batch]
        left = [each for each in members if each.name in wanted]
        # It is certain that none of them is there.
        alone = Batch(batch.zone)
        alone.answered.set()
        for member in members:
            if member.name not in wanted:
                member.withdraw()
            wanted.discard(member.name)
            member.batch = alone
        return left

    async def _room(self, members: Sequence[Member], *, refused: bool = False) -> Room | None:
        if self._quota is None:
            return None
        return await self._quota.take([each.spec for each in members], refused=refused)

    def _explain(
        self,
        members: Sequence[Member],
        fits: int,
        shortage: Shortage | None,
        refusal: QuotaExceeded | None,
    ) -> QuotaExceeded:
        """Return why not all can be had, with all that is known of the quota."""
        spec, count = members[0].spec, len(members)
        if refusal is not None and refusal.metric:
            said = Shortage(refusal.metric, refusal.region, refusal.limit)
            shortage = said if self._quota is None else self._quota.complete(said, spec, count)
        if shortage is None and refusal is not None:
            return refusal
        place = Place(f"insert {count} instances", spec.project, spec.zone)
        error = shortage_error(place, shortage or Shortage(""), fits=fits, wanted=count)
        error.__cause__ = refusal
        return error

    def _tell_part(self, there: int, members: Sequence[Member], error: GCEError) -> None:
        spec = members[0].spec
        what = f"{'Spot ' if spec.spot else ''}{spec.machine_type} in {spec.zone}"
        why = error.message.partition("\n")[0]
        self._partly(f"{there} of {len(members)} {what}: {why}")

    def _bulk(self, batch: Batch, members: Sequence[Member]) -> Callable[[], Awaitable[Operation]]:
        # Built once: a repeated request needs the body of the first attempt.
        body = build_bulk_insert([each.spec for each in members]) or {}
        return lambda: self._compute.bulk_insert_instances(
            batch.zone, body, request_id=batch.request_id
        )

    async def _insert_one(self, batch: Batch, member: Member) -> None:
        try:
            body = build_insert(member.spec)
        except GCEError as error:
            _refuse([member], error)
            return
        await self._ask(
            batch,
            [member],
            lambda: self._compute.insert_instance(batch.zone, body, request_id=batch.request_id),
        )
        if self._singles < SINGLES:
            self._singles += 1
            try:
                await self._follow(batch, [member])
            finally:
                self._singles -= 1

    async def _ask(
        self,
        batch: Batch,
        members: Sequence[Member],
        call: Callable[[], Awaitable[Operation]],
        *,
        may_shrink: bool = False,
    ) -> QuotaExceeded | None:
        """Make a request until it is known what became of it.

        Returned is only what a smaller request may do about, if that may be made.
        """
        deadline = members[0].inserted + members[0].timeout
        pause = FIRST_PAUSE
        doubtful = False
        while batch.operation is None:
            batch.sent = True
            try:
                batch.operation = await call()
            except (RateLimited, ServerFault, TransportError) as error:
                # It may have taken effect. Asking again with the same ID is the same request.
                doubtful = True
                if time.monotonic() + pause > deadline:
                    _refuse(members, error)
                    return None
                logger.info("Asking again in %g s: %s", pause, error)
                await asyncio.sleep(pause)
                pause = min(2 * pause, LONGEST_PAUSE)
            except GCEError as error:
                # A refusal undoes no attempt before it whose answer was lost. But what has the name
                # already may be somebody else's: if it is ours, its labels tell.
                batch.sent = doubtful and not isinstance(error, AlreadyExists)
                if may_shrink and isinstance(error, QuotaExceeded) and not doubtful:
                    return error
                if members[0].spec.preemption_notice and refuses_notice(error):
                    self._forgo_notice(error)
                    # Those that somebody still wants; the request is another one.
                    _, wanted = self._under_way[batch]
                    self._begin([each for each in members if each.name in wanted])
                    return None
                _refuse(members, error)
                return None
        batch.answered.set()
        batch.accepted_at = time.monotonic()
        for member in members:
            if member.accepted is not None and not member.accepted.done():
                member.accepted.set_result(None)
            member.accepted = None
        return None

    def _forgo_notice(self, error: GCEError) -> None:
        if not self._forgoes_notice:
            self._forgoes_notice = True
            self._unnoticed(error.message.partition("\n")[0])

    async def _follow(self, batch: Batch, members: Sequence[Member]) -> None:
        """Learn how the operation ends, and from its children what each instance lacked."""
        if batch.operation is None:
            return
        remaining = max(1.0, members[0].inserted + members[0].timeout - time.monotonic())
        try:
            operation = await self._compute.wait_operation(batch.operation, remaining)
        except OperationError as error:
            await self._blame(batch.operation, members, error)
        except GCEError as error:
            # Unknown is not failed: the list of instances tells.
            logger.info("It is not known how an insert ended: %s", error)
            self._changed()
            return
        else:
            if operation.missing:
                await self._blame(operation, members, None)
        # Only now: whoever is missed and has no reason yet would be taken for lost.
        batch.ended = True
        self._changed()

    async def _blame(
        self, operation: Operation, members: Sequence[Member], error: OperationError | None
    ) -> None:
        children = {}
        if operation.group:
            try:
                found = await self._compute.list_group_operations(operation)
            except GCEError as unknown:
                logger.info("It is not known which inserts failed: %s", unknown)
                return
            children = {child.target: child for child in found}
        for member in members:
            child = children.get(member.name)
            if child is None:
                member.failure = error
            elif child.failed:
                member.failure = operation_error(
                    child.name,
                    child.errors,
                    Place(f"insert instance {member.name}", member.spec.project, member.zone),
                    status=child.http_status,
                    message=child.http_message,
                )
            if member.failure is not None and refuses_notice(member.failure):
                self._forgo_notice(member.failure)
        lacking = [each.failure for each in members if each.failure is not None]
        if lacking and len(lacking) < len(members):
            self._tell_part(len(members) - len(lacking), members, lacking[0])


def refuses_notice(error: GCEError) -> bool:
    """Tell whether Compute Engine will not say ahead that it takes a machine away.

    Not every project has that: https://docs.cloud.google.com/compute/docs/instances/spot. There is
    no code for it, so what counts is whether the refusal names the field.

    Parameters
    ----------
    error : GCEError
        Why a request, or its operation, failed.

    Returns
    -------
    bool
        Whether it may succeed without ``preemptionNoticeDuration``.
    """
    refused = isinstance(error, OperationError) or (
        isinstance(error, APIError) and error.status in (400, 403)
    )
    return refused and re.search(r"preemption.?notice", error.message, re.IGNORECASE) is not None


def _refuse(members: Sequence[Member], error: GCEError) -> None:
    for member in members:
        member.failure = error
        if member.accepted is not None and not member.accepted.done():
            member.accepted.set_exception(error)
        member.accepted = None
