"""The verbs for operations: look at them, wait for them, and learn why one failed.

The library's own operation objects are not used: they poll compute.googleapis.com whatever the
endpoint. What an operation looks like is left to `operation`, the errors to `failures`.
"""

from __future__ import annotations

import asyncio
from dataclasses import replace

from dask_gce.calls import Caller, Verbs
from dask_gce.errors import OperationError, TransportError
from dask_gce.failures import MIN_COUNT_CODE, Place, operation_error
from dask_gce.library import Call
from dask_gce.operation import Operation, parse_operation
from dask_gce.policy import Deadline

__all__ = ["OperationVerbs"]

#: Compute Engine holds a wait for up to two minutes. Giving up earlier on our side, and asking
#: again, keeps a thread, and thus `close` and the interpreter's exit, from being held as long.
#: Seconds.
WAIT_SLICE = 5.0
#: A wait may return at once when Compute Engine is busy; this is the shortest round, in seconds.
WAIT_FLOOR = 0.5
#: How often an operation is looked at when no thread is free to wait for it, in seconds.
LOOK_INTERVAL = 2.0


class OperationVerbs(Verbs):
    """The verbs of `Compute` for zonal operations.

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
        fields = {"project": self.project, "zone": zone}
        if filter:
            fields["filter"] = filter
        place = Place("list operations", self.project, zone)
        call = Call("ZoneOperations", "list", "ListZoneOperationsRequest", place, fields)
        return [
            parse_operation(item)
            async for page in self._pages(call)
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
        call = self._operation_call("get", "GetZoneOperationRequest", operation)
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
        """
        deadline = Deadline.after(timeout, self._caller.clock.monotonic)
        while not operation.done:
            if deadline.expired:
                raise TransportError(
                    f"Operation {operation.name} ({operation.what}) in zone {operation.zone} of "
                    f"project {self.project} is still {operation.status} after {timeout:g} s.",
                    method="POST",
                    url=f"projects/{self.project}/zones/{operation.zone}/operations/"
                    f"{operation.name}/wait",
                )
            began = self._caller.clock.monotonic()
            if self._wait_slots.locked():
                # All threads for waiting are taken: look, rather than queue behind long waits.
                call = self._operation_call("get", "GetZoneOperationRequest", operation)
                answer = await self._caller.answer(call, deadline=deadline)
                shortest = LOOK_INTERVAL
            else:
                call = self._operation_call("wait", "WaitZoneOperationRequest", operation)
                async with self._wait_slots:
                    answer = await self._caller.answer(
                        replace(call, long_poll=True),
                        deadline=deadline,
                        exchange_timeout=min(WAIT_SLICE, deadline.remaining),
                    )
                shortest = WAIT_FLOOR
            if answer:
                operation = parse_operation(answer)
            if not operation.done:
                rest = shortest - (self._caller.clock.monotonic() - began)
                await self._caller.clock.sleep(min(max(rest, 0.0), deadline.remaining))
        if operation.failed:
            raise await self._operation_error(operation)
        return operation

    def _operation_call(self, verb: str, request: str, operation: Operation) -> Call:
        place = Place(
            f"look at operation {operation.name} ({operation.what})", self.project, operation.zone
        )
        fields = {"project": self.project, "zone": operation.zone, "operation": operation.name}
        return Call("ZoneOperations", verb, request, place, fields)

    async def _operation_error(self, operation: Operation) -> OperationError:
        errors = list(operation.errors)
        if operation.group and all(error.get("code") == MIN_COUNT_CODE for error in errors):
            for child in await self.list_group_operations(operation):
                errors.extend(child.errors)
        return operation_error(
            operation.name,
            errors,
            Place(operation.what, self.project, operation.zone, operation.target),
            status=operation.http_status,
            message=operation.http_message,
        )
