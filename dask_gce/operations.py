"""The verbs for operations: look at them, wait for them, and learn why one failed.

The library's own operation objects are not used: they poll compute.googleapis.com whatever the
endpoint. What an operation looks like is left to `operation`, the errors to `failures`.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
from collections.abc import Collection, Iterator
from dataclasses import replace
from urllib.parse import quote

from dask_gce.calls import Caller
from dask_gce.errors import GCEError, OperationError, TransportError
from dask_gce.failures import MIN_COUNT_CODE, Place, operation_error
from dask_gce.library import Call
from dask_gce.operation import OPERATION_FIELDS, Operation, parse_operation
from dask_gce.policy import Deadline
from dask_gce.verbs import Verbs

__all__ = ["OperationVerbs"]

#: Compute Engine holds a wait for up to two minutes. Giving up earlier on our side, and asking
#: again, keeps a thread, and thus `close` and the interpreter's exit, from being held as long.
#: Seconds.
WAIT_SLICE = 5.0
#: A wait may return at once when Compute Engine is busy; this is the shortest round, in seconds.
WAIT_FLOOR = 0.5
#: How often an operation is looked at when no thread is free to wait for it, in seconds.
LOOK_INTERVAL = 2.0
#: Longest filter that is sent, in characters of the URL; the rest of the URL needs a few hundred,
#: and servers and proxies refuse URLs of more than about 8 kB.
LONGEST_FILTER = 5500

_LIST_MASK = f"items({','.join(OPERATION_FIELDS)}),nextPageToken"


class OperationVerbs(Verbs):
    """The verbs of `Compute` for operations; those on images and firewall rules are global.

    Parameters
    ----------
    project : str
        Project ID.
    caller : Caller
        Makes the calls.
    waiters : int
        How many threads may be held by waiting.
    """

    def __init__(self, project: str, caller: Caller, waiters: int) -> None:
        super().__init__(project, caller)
        self._wait_slots = asyncio.Semaphore(waiters)

    async def list_operations(self, zone: str, filter: str = "") -> list[Operation]:
        """Return operations of a zone.

        Parameters
        ----------
        zone : str
            Zone name.
        filter : str
            A filter, for example ``operationType = bulkInsert``; empty for all that are still kept.

        Returns
        -------
        list of Operation
            The operations, from all pages.
        """
        return [
            parse_operation(item)
            async for page in self._pages(self._list_call(zone, filter))
            for item in page.get("items", ())
        ]

    async def list_group_operations(self, operation: Operation) -> list[Operation]:
        """Return the operations that a bulk insert started, one an instance.

        Parameters
        ----------
        operation : Operation
            The bulk insert.

        Returns
        -------
        list of Operation
            Its children; each has its own errors.
        """
        # The form gcloud uses: the field takes regular expressions only.
        found = await self.list_operations(
            operation.zone, f'operationGroupId eq ".*\\b{operation.group}\\b.*"'
        )
        return [
            child
            for child in found
            if child.group == operation.group and child.name != operation.name
        ]

    async def list_instance_operations(self, zone: str, names: Collection[str]) -> list[Operation]:
        """Return what was done to instances, but for creating them.

        Parameters
        ----------
        zone : str
            Zone name.
        names : collection of str
            The instances; they need not exist any more.

        Returns
        -------
        list of Operation
            The operations that are still kept, in no order.
        """
        wanted = set(names)
        return [
            found
            for filter in _target_filters(wanted)
            for found in await self.list_operations(zone, filter)
            if found.target in wanted and found.type != "insert"
        ]

    async def find_operation(self, zone: str, request_id: str) -> Operation | None:
        """Return the operation that a request began, where its answer was lost.

        Parameters
        ----------
        zone : str
            Zone name.
        request_id : str
            The UUID that the request carried.

        Returns
        -------
        Operation or None
            The operation; None when no request of that ID was accepted.
        """
        found = await self.list_operations(zone, _request_filter(request_id))
        return next(iter(found), None)

    def find_operation_now(self, zone: str, request_id: str, deadline: float) -> Operation | None:
        """Return the operation that a request began, on the calling thread.

        Works as :meth:`wait_operation_now` does.

        Parameters
        ----------
        zone : str
            Zone name.
        request_id : str
            The UUID that the request carried.
        deadline : float
            When to give up, on the clock of :func:`time.monotonic`.

        Returns
        -------
        Operation or None
            The operation; None when no request of that ID was accepted.
        """
        call = self._list_call(zone, _request_filter(request_id))
        until = Deadline(deadline, self._caller.clock.monotonic)
        for page in self._pages_now(call, until):
            for item in page.get("items", ()):
                return parse_operation(item)
        return None

    async def get_operation(self, operation: Operation) -> Operation:
        """Look at an operation.

        Parameters
        ----------
        operation : Operation
            As it was seen before.

        Returns
        -------
        Operation
            As it is now.

        Raises
        ------
        OutOfCapacity
            It has failed: there is no machine to give.
        OperationError
            It has failed for another reason.
        """
        call = self._operation_call("get", operation)
        found = parse_operation(await self._caller.answer(call))
        if found.failed:
            raise await self._operation_error(found)
        return found

    async def wait_operation(self, operation: Operation, timeout: float) -> Operation:
        """Wait until an operation has ended well.

        Parameters
        ----------
        operation : Operation
            What to wait for.
        timeout : float
            Seconds to wait.

        Returns
        -------
        Operation
            It, when done.

        Raises
        ------
        OutOfCapacity
            There is no machine to give.
        OperationError
            It failed for another reason; `code` says which. After a bulk insert that was rolled
            back this is the reason of its instances, not ``VM_MIN_COUNT_NOT_REACHED``.
        TransportError
            The time ran out and the operation goes on; it may still end well.
        GCEError
            Compute Engine could not be asked until the time ran out, or refused to tell.
        """
        deadline = Deadline.after(timeout, self._caller.clock.monotonic)
        while not operation.done:
            if deadline.expired:
                raise self._unfinished(operation, timeout)
            began = self._caller.clock.monotonic()
            if self._wait_slots.locked():
                # All threads for waiting are taken: look, rather than queue behind long waits.
                call = self._operation_call("get", operation)
                answer = await self._caller.answer(call, deadline=deadline)
                shortest = LOOK_INTERVAL
            else:
                async with self._wait_slots:
                    answer = await self._caller.answer(
                        self._wait_call(operation),
                        deadline=deadline,
                        exchange_timeout=min(WAIT_SLICE, deadline.remaining),
                    )
                shortest = WAIT_FLOOR
            if answer:
                operation = replace(parse_operation(answer), project=operation.project)
            if not operation.done:
                rest = shortest - (self._caller.clock.monotonic() - began)
                await self._caller.clock.sleep(min(max(rest, 0.0), deadline.remaining))
        if operation.failed:
            raise await self._operation_error(operation)
        return operation

    def wait_operation_now(self, operation: Operation, deadline: float) -> Operation:
        """Wait on the calling thread until an operation has ended, well or badly.

        Needs neither the event loop nor the pool of threads: works in an ``atexit`` handler and
        after `Compute.close`.

        Parameters
        ----------
        operation : Operation
            What to wait for.
        deadline : float
            When to give up, on the clock of :func:`time.monotonic`.

        Returns
        -------
        Operation
            It, when done; `failed` says how it ended.

        Raises
        ------
        TransportError
            The time ran out and the operation goes on.
        """
        clock = self._caller.clock
        until = Deadline(deadline, clock.monotonic)
        timeout = until.remaining
        while not operation.done:
            if until.expired:
                raise self._unfinished(operation, timeout)
            began = clock.monotonic()
            answer = self._caller.answer_now(
                self._wait_call(operation),
                until,
                exchange_timeout=min(WAIT_SLICE, until.remaining),
            )
            if answer:
                operation = replace(parse_operation(answer), project=operation.project)
            if not operation.done:
                rest = WAIT_FLOOR - (clock.monotonic() - began)
                clock.pause(min(max(rest, 0.0), until.remaining))
        return operation

    def _unfinished(self, operation: Operation, timeout: float) -> TransportError:
        scope = f"zones/{operation.zone}" if operation.zone else "global"
        project = operation.project or self.project
        path = f"projects/{project}/{scope}/operations/{operation.name}"
        zone = f" in zone {operation.zone}" if operation.zone else ""
        return TransportError(
            f"Operation {operation.name} ({operation.what}){zone} of project {project} is "
            f"still {operation.status} after {round(timeout, 1):g} s.",
            method="POST",
            url=f"{path}/wait",
        )

    def _list_call(self, zone: str, filter: str) -> Call:
        fields = {"project": self.project, "zone": zone}
        if filter:
            fields["filter"] = filter
        return Call(
            "ZoneOperations",
            "list",
            "ListZoneOperationsRequest",
            Place("list operations", self.project, zone),
            fields,
            mask=_LIST_MASK,
            group="operation",
        )

    def _wait_call(self, operation: Operation) -> Call:
        call = self._operation_call("wait", operation)
        return replace(call, long_poll=True, group="heavy")

    def _operation_call(self, verb: str, operation: Operation) -> Call:
        scope = "Zone" if operation.zone else "Global"
        project = operation.project or self.project
        place = Place(
            f"look at operation {operation.name} ({operation.what})", project, operation.zone
        )
        fields = {"project": project, "operation": operation.name}
        if operation.zone:
            fields["zone"] = operation.zone
        request = f"{verb.title()}{scope}OperationRequest"
        return Call(f"{scope}Operations", verb, request, place, fields, group="operation")

    async def _operation_error(self, operation: Operation) -> OperationError:
        errors = list(operation.errors)
        if operation.group and all(error.get("code") == MIN_COUNT_CODE for error in errors):
            # That it has failed is known, whether or not its children can be asked why.
            with contextlib.suppress(GCEError):
                for child in await self.list_group_operations(operation):
                    errors.extend(child.errors)
        return operation_error(
            operation.name,
            errors,
            Place(
                operation.what,
                operation.project or self.project,
                operation.zone,
                operation.target,
            ),
            status=operation.http_status,
            message=operation.http_message,
        )


def _request_filter(request_id: str) -> str:
    return f'clientOperationId = "{request_id}"'


def _target_filters(names: Collection[str]) -> Iterator[str]:
    """Yield filters for the operations on instances, as few as the length of a URL allows.

    ``eq`` takes a regular expression (RE2) that must match the whole value. No other form covers
    many values of one field in so few characters. It cannot be combined with a second field.
    """
    if not names:
        return
    # The names of a cluster begin alike; what all share is what the first and the last share.
    ends = zip(min(names), max(names), strict=False)
    prefix = "".join(
        one for one, other in itertools.takewhile(lambda pair: pair[0] == pair[1], ends)
    )
    frame = f'targetLink eq ".*/instances/{prefix}({{}})"'
    room = LONGEST_FILTER - len(quote(frame))
    chunk: list[str] = []
    length = 0
    for rest in sorted(name[len(prefix) :] for name in names):
        cost = len(quote(f"|{rest}"))
        if chunk and length + cost > room:
            yield frame.format("|".join(chunk))
            chunk, length = [], 0
        chunk.append(rest)
        length += cost
    if chunk:
        yield frame.format("|".join(chunk))
