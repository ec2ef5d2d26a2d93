"""Operations: what was accepted and goes on after the answer.

Owns: operation resources, the tasks that carry them out, the waiting for them. What an operation
does is a coroutine given by whoever begins it.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Coroutine, Iterator
from typing import Any

from dask_gce.emulator.errors import OPERATION_STATUS, OperationFailed, not_found
from dask_gce.emulator.links import new_id, now

logger = logging.getLogger(__name__)

#: What an operation does; told the operation, so that it can show progress.
Work = Callable[["Operation"], Awaitable[None]]


class Operation:
    """One operation and its resource.

    Parameters
    ----------
    resource : dict
        The ``compute#operation`` resource, changed in place as the operation goes on.
    """

    def __init__(self, resource: dict[str, Any]) -> None:
        self.resource = resource
        #: Set when what belongs to it has begun as well; None where nothing does.
        self.complete: asyncio.Event | None = None
        self._done = asyncio.Event()

    @property
    def name(self) -> str:
        """The operation's name."""
        return str(self.resource["name"])

    @property
    def done(self) -> bool:
        """Whether it has ended, well or not."""
        return self._done.is_set()

    @property
    def errors(self) -> list[dict[str, Any]]:
        """The errors it ended with; empty while it runs and when all went well."""
        errors: list[dict[str, Any]] = self.resource.get("error", {}).get("errors", [])
        return errors

    async def wait(self, timeout: float | None = None) -> bool:
        """Wait until it is done.

        Parameters
        ----------
        timeout : float or None
            Seconds to wait; None waits as long as it takes.

        Returns
        -------
        bool
            Whether it is done.
        """
        try:
            await asyncio.wait_for(self._done.wait(), timeout)
        except asyncio.TimeoutError:
            return False
        return True

    def finish(self, errors: list[dict[str, Any]] | None = None) -> None:
        """Mark it as done, with errors if there are any.

        Parameters
        ----------
        errors : list of dict or None
            What ``operation.error.errors`` is to show; none when all went well.
        """
        if errors:
            status, message = OPERATION_STATUS.get(str(errors[0].get("code")), (400, "BAD REQUEST"))
            self.resource["error"] = {"errors": errors}
            self.resource["httpErrorStatusCode"] = status
            self.resource["httpErrorMessage"] = message
        self.resource.setdefault("startTime", now())
        self.resource.update(status="DONE", progress=100, endTime=now())
        self._done.set()


class Operations:
    """All operations of one emulator, by project and scope, and their tasks.

    Parameters
    ----------
    base_url : str
        The address of the API up to and with ``/compute/v1``.
    pending : float
        Seconds an operation stays PENDING.
    """

    def __init__(self, base_url: str, pending: float) -> None:
        self._base_url = base_url
        self._pending = pending
        self._logs: dict[tuple[str, str], dict[str, Operation]] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._closed = False

    def begin(
        self,
        scope_path: str,
        operation_type: str,
        target: str,
        work: Work,
        *,
        target_id: str | None = None,
        user: str,
        **extra: Any,
    ) -> Operation:
        """Record an operation and start to carry it out.

        Parameters
        ----------
        scope_path : str
            Project and scope, for example ``projects/p/zones/us-central1-a``.
        operation_type : str
            Google's word for it, for example ``insert``.
        target : str
            The path of the resource it works on.
        work : callable
            What it does.
        target_id : str or None
            The ID of that resource, where it has one.
        user : str
            Who asked for it.
        **extra
            Further fields of the resource.

        Returns
        -------
        Operation
            The operation, still PENDING.
        """
        operation_id = new_id()
        name = f"operation-{int(time.time() * 1000)}-{int(operation_id):x}"
        resource = {
            "kind": "compute#operation",
            "id": operation_id,
            "name": name,
            "operationType": operation_type,
            "targetLink": f"{self._base_url}/{target}",
            "status": "PENDING",
            "user": user,
            "progress": 0,
            "insertTime": now(),
            "selfLink": f"{self._base_url}/{scope_path}/operations/{name}",
            **extra,
        }
        if target_id is not None:
            resource["targetId"] = target_id
        _, project, scope = scope_path.split("/", 2)
        if "/" in scope:
            key = "zone" if scope.startswith("zones/") else "region"
            resource[key] = f"{self._base_url}/{scope_path}"
        operation = Operation(resource)
        self._logs.setdefault((project, scope), {})[name] = operation
        self.spawn(self._carry_out(operation, work))
        return operation

    async def _carry_out(self, operation: Operation, work: Work) -> None:
        errors = [
            {"code": "INTERNAL_ERROR", "message": "Internal error. Please try again."},
        ]
        try:
            await asyncio.sleep(self._pending)
            operation.resource.update(status="RUNNING", startTime=now())
            await work(operation)
            errors = []
        except OperationFailed as failure:
            errors = failure.errors
        finally:
            # Also when `work` broke or the emulator closes: nobody may wait for ever.
            operation.finish(errors)

    def spawn(self, coroutine: Coroutine[Any, Any, None]) -> None:
        """Run a coroutine as a task that this object owns; it is not run after :meth:`close`.

        Parameters
        ----------
        coroutine : coroutine
            What the task does.
        """
        if self._closed:
            # A guest may end by itself while its machine is about to be discarded.
            coroutine.close()
            return
        task = asyncio.get_running_loop().create_task(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._reap)

    def _reap(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and task.exception() is not None:
            logger.error("A local Compute Engine operation broke", exc_info=task.exception())

    def log(self, project: str, scope: str) -> dict[str, Operation]:
        """Return the operations of a project in a scope.

        Parameters
        ----------
        project : str
            Project ID.
        scope : str
            ``global``, ``regions/R`` or ``zones/Z``.

        Returns
        -------
        dict
            The operations, by name.
        """
        return self._logs.get((project, scope), {})

    def scopes(self, project: str) -> Iterator[str]:
        """Yield the scopes in which a project has operations.

        Parameters
        ----------
        project : str
            Project ID.

        Yields
        ------
        str
            ``global``, ``regions/R`` or ``zones/Z``.
        """
        for owner, scope in self._logs:
            if owner == project:
                yield scope

    def find(self, project: str, scope: str, name: str) -> Operation:
        """Return one operation.

        Parameters
        ----------
        project : str
            Project ID.
        scope : str
            ``global``, ``regions/R`` or ``zones/Z``.
        name : str
            The operation's name or ID.

        Returns
        -------
        Operation
            The operation.

        Raises
        ------
        APIError
            There is none of that name.
        """
        log = self.log(project, scope)
        if name in log:
            return log[name]
        for operation in log.values():
            if operation.resource["id"] == name:
                return operation
        raise not_found(f"projects/{project}/{scope}/operations/{name}")

    def running(self) -> list[Operation]:
        """Return what goes on.

        Returns
        -------
        list of Operation
            The operations that are not done.
        """
        return [one for log in self._logs.values() for one in log.values() if not one.done]

    async def close(self) -> None:
        """Stop all tasks, wait until they have ended, and begin no more."""
        self._closed = True
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
