"""The Compute API as async verbs, and a few synchronous ones for the interpreter's exit.

It owns what each verb asks and what its answer means, and the waiting for operations. It speaks plain
API JSON: request bodies are built in `instance`, and which instances should exist is decided in `fleet`.
Threads, repeats and what cancelling a call means are the business of `calls`, the library behind it all
that of `library`.
"""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator, Iterable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from dask_gce.calls import Caller, Clock
from dask_gce.errors import NotFound, OperationError, TransportError
from dask_gce.failures import MIN_COUNT_CODE, Place, operation_error
from dask_gce.instance import INSTANCE_FIELDS
from dask_gce.library import Call, Library
from dask_gce.operation import Operation, parse_operation
from dask_gce.policy import Deadline, RetryPolicy

if TYPE_CHECKING:
    from google.auth.credentials import Credentials

__all__ = ["Clock", "Compute", "Operation"]

#: Compute Engine holds a wait for up to two minutes. Giving up earlier on our side, and asking again,
#: keeps a thread, and thus `close` and the interpreter's exit, from being held as long.
WAIT_SLICE = 5.0
#: A wait may return at once when Compute Engine is busy; this is the shortest round, in seconds.
WAIT_FLOOR = 0.5


class Compute:
    """The Compute API of one project.

    The async verbs belong to one event loop. Each raises the errors of `dask_gce.errors`: APIError and
    its kinds when Compute Engine refuses, OutOfCapacity when it has no machine to give, TransportError
    when no answer comes, CredentialsError when there is no access token.

    Parameters
    ----------
    project : str
        Project ID.
    credentials : google.auth.credentials.Credentials
        Who asks; ``google.auth.credentials.AnonymousCredentials()`` for a local Compute Engine.
    endpoint : str or None
        Scheme, host and port of the API without a path, for example ``"http://127.0.0.1:8080"``; None
        for Google's own.
    threads : int
        How many exchanges may be under way at a time.
    exchange_timeout : float
        Seconds to wait for a connection, and for each part of an answer.
    call_timeout : float
        Seconds for a call with all its repeats, from its first attempt.
    policy : RetryPolicy
        When to repeat.
    clock : Clock
        How time passes.
    """

    def __init__(
        self,
        project: str,
        *,
        credentials: Credentials,
        endpoint: str | None = None,
        threads: int = 16,
        exchange_timeout: float = 30.0,
        call_timeout: float = 180.0,
        policy: RetryPolicy | None = None,
        clock: Clock | None = None,
    ) -> None:
        self.project = project
        self._library = Library(credentials, endpoint=endpoint, connections=threads)
        self._caller = Caller(
            self._library,
            threads=threads,
            exchange_timeout=exchange_timeout,
            call_timeout=call_timeout,
            policy=policy or RetryPolicy(),
            clock=clock or Clock(),
        )
        # Waits hold a thread for seconds; half the threads stay free for everything else.
        self._wait_slots = asyncio.Semaphore(max(1, threads // 2))

    def __repr__(self) -> str:
        endpoint = self._library.endpoint or "compute.googleapis.com"
        return f"<Compute project={self.project!r} endpoint={endpoint!r}>"

    async def __aenter__(self) -> Compute:
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self.close()

    # Life ------------------------------------------------------------------------------------

    def preload(self) -> None:
        """Begin to import the library on a thread and return at once."""
        self._caller.preload()

    async def open(self) -> None:
        """Wait until the library is imported; calls made earlier wait by themselves."""
        await asyncio.shield(asyncio.wrap_future(self._caller.preload()))

    async def close(self) -> None:
        """Wait for the exchanges under way, end the threads and close all connections.

        May be called twice. The synchronous verbs still work afterwards.
        """
        await self._caller.close()

    def close_now(self) -> None:
        """End the threads and close all connections, on the calling thread."""
        self._caller.close_now()

    # Looking things up -----------------------------------------------------------------------

    async def get_project(self) -> dict[str, Any]:
        """Return the project.

        Returns
        -------
        dict
            A ``compute#project`` resource.
        """
        return await self._get("Projects", "GetProjectRequest", f"get project {self.project}")

    async def get_zone(self, zone: str) -> dict[str, Any]:
        """Return a zone.

        Parameters
        ----------
        zone : str
            Zone name.

        Returns
        -------
        dict
            A ``compute#zone`` resource.
        """
        return await self._get("Zones", "GetZoneRequest", f"get zone {zone}", zone=zone)

    async def get_machine_type(self, zone: str, name: str) -> dict[str, Any]:
        """Return a machine type, predefined or custom.

        Parameters
        ----------
        zone : str
            Zone name.
        name : str
            For example ``"e2-standard-4"``.

        Returns
        -------
        dict
            A ``compute#machineType`` resource.
        """
        return await self._get(
            "MachineTypes",
            "GetMachineTypeRequest",
            f"get machine type {name}",
            zone=zone,
            machine_type=name,
        )

    async def get_image_from_family(self, project: str, family: str) -> dict[str, Any]:
        """Return the newest image of a family that is not deprecated.

        Parameters
        ----------
        project : str
            The project that owns the image, for example ``"cos-cloud"``.
        family : str
            For example ``"cos-stable"``.

        Returns
        -------
        dict
            A ``compute#image`` resource.
        """
        call = Call(
            "Images",
            "get_from_family",
            "GetFromFamilyImageRequest",
            Place(f"get the image of family {family}", project, name=family),
            {"project": project, "family": family},
        )
        return await self._caller.answer(call)

    # Instances -------------------------------------------------------------------------------

    async def insert_instance(
        self, zone: str, body: Mapping[str, Any], request_id: str | None = None
    ) -> Operation:
        """Begin to create an instance.

        Parameters
        ----------
        zone : str
            Zone name.
        body : mapping
            A ``compute#instance`` resource as API JSON.
        request_id : str or None
            A UUID by which Compute Engine knows a repeated request; None for a new one.

        Returns
        -------
        Operation
            The operation that was started; it can still fail.

        Raises
        ------
        SettingsError
            The body has a field or a value that Compute Engine does not know.
        """
        name = str(body.get("name", ""))
        call = Call(
            "Instances",
            "insert_unary",
            "InsertInstanceRequest",
            Place(f"insert instance {name}", self.project, zone, name),
            self._change(request_id, zone=zone),
            body,
            "instance_resource",
        )
        return parse_operation(await self._caller.answer(call, creates=[_key(zone, name)]))

    async def bulk_insert_instances(
        self, zone: str, body: Mapping[str, Any], request_id: str | None = None
    ) -> Operation:
        """Begin to create many instances.

        Parameters
        ----------
        zone : str
            Zone name.
        body : mapping
            A ``BulkInsertInstanceResource`` as API JSON.
        request_id : str or None
            A UUID by which Compute Engine knows a repeated request; None for a new one.

        Returns
        -------
        Operation
            The operation that was started. Each instance has one of its own in the same group, see
            :meth:`list_group_operations`.

        Raises
        ------
        SettingsError
            The body has a field or a value that Compute Engine does not know.
        """
        names = list(body.get("perInstanceProperties", {}))
        call = Call(
            "Instances",
            "bulk_insert_unary",
            "BulkInsertInstanceRequest",
            Place(f"insert {body.get('count', len(names))} instances", self.project, zone),
            self._change(request_id, zone=zone),
            body,
            "bulk_insert_instance_resource_resource",
        )
        return parse_operation(
            await self._caller.answer(call, creates=[_key(zone, name) for name in names])
        )

    async def get_instance(self, zone: str, name: str, fields: str | None = None) -> dict[str, Any]:
        """Return an instance.

        Parameters
        ----------
        zone : str
            Zone name.
        name : str
            The instance.
        fields : str or None
            A field mask, for example ``"name,status"``; None for all fields.

        Returns
        -------
        dict
            A ``compute#instance`` resource.
        """
        call = self._instance_call("get", "GetInstanceRequest", "get", zone, name)
        return await self._caller.answer(replace(call, mask=fields or ""))

    async def list_instances(
        self, zone: str, filter: str = "", fields: str | None = None
    ) -> list[dict[str, Any]]:
        """Return the instances of a zone.

        Parameters
        ----------
        zone : str
            Zone name.
        filter : str
            An AIP-160 filter, for example ``labels.dask-gce-cluster = x``; empty for all.
        fields : str or None
            A field mask of one page, for example ``"items(name,status)"``; None for all fields, which
            include up to 512 KiB of metadata an instance.

        Returns
        -------
        list of dict
            ``compute#instance`` resources, from all pages.
        """
        pages = self._pages(self._list_call(zone, filter, fields))
        return [item async for page in pages for item in page.get("items", ())]

    async def aggregated_list_instances(
        self, filter: str = "", fields: str | None = None
    ) -> tuple[list[dict[str, Any]], frozenset[str]]:
        """Return the instances of all zones.

        Parameters
        ----------
        filter : str
            An AIP-160 filter; empty for all.
        fields : str or None
            A field mask of one instance, for example ``"name,status"``; None for all fields.

        Returns
        -------
        instances : list of dict
            ``compute#instance`` resources, from all pages.
        unreachable : frozenset of str
            Zones that did not answer. What they hold is unknown, not gone.
        """
        mask = f"items/*/instances({fields}),items/*/warning,unreachables" if fields else ""
        request = {"project": self.project, "filter": filter}
        call = Call(
            "Instances",
            "aggregated_list",
            "AggregatedListInstancesRequest",
            Place("list the instances of all zones", self.project),
            request,
            mask=_paged(mask),
        )
        return merge_scopes([page async for page in self._pages(call)])

    async def delete_instance(
        self, zone: str, name: str, request_id: str | None = None
    ) -> Operation | None:
        """Begin to delete an instance.

        Waits first for an exchange that may be creating it; see `calls` on cancelling.

        Parameters
        ----------
        zone : str
            Zone name.
        name : str
            The instance.
        request_id : str or None
            A UUID by which Compute Engine knows a repeated request; None for a new one.

        Returns
        -------
        Operation or None
            The operation that was started; None when there is no such instance.
        """
        await self._caller.settled(_key(zone, name))
        try:
            return parse_operation(
                await self._caller.answer(self._delete_call(zone, name, request_id))
            )
        except NotFound:
            return None

    async def set_labels(
        self, zone: str, name: str, labels: Mapping[str, str], fingerprint: str
    ) -> Operation:
        """Begin to replace the labels of an instance.

        Parameters
        ----------
        zone : str
            Zone name.
        name : str
            The instance.
        labels : mapping
            All its labels from now on.
        fingerprint : str
            ``labelFingerprint`` of the instance as it was read; refused if it has changed since.

        Returns
        -------
        Operation
            The operation that was started.
        """
        call = replace(
            self._instance_call(
                "set_labels_unary", "SetLabelsInstanceRequest", "label", zone, name, change=True
            ),
            body={"labels": dict(labels), "labelFingerprint": fingerprint},
            body_field="instances_set_labels_request_resource",
        )
        return parse_operation(await self._caller.answer(call))

    async def set_metadata(
        self, zone: str, name: str, metadata: Mapping[str, str], fingerprint: str
    ) -> Operation:
        """Begin to replace the metadata of an instance.

        Parameters
        ----------
        zone : str
            Zone name.
        name : str
            The instance.
        metadata : mapping
            All its metadata from now on.
        fingerprint : str
            ``metadata.fingerprint`` of the instance as it was read; refused if it has changed since.

        Returns
        -------
        Operation
            The operation that was started.
        """
        items = [{"key": key, "value": value} for key, value in metadata.items()]
        call = replace(
            self._instance_call(
                "set_metadata_unary",
                "SetMetadataInstanceRequest",
                "set the metadata of",
                zone,
                name,
                change=True,
            ),
            body={"items": items, "fingerprint": fingerprint},
            body_field="metadata_resource",
        )
        return parse_operation(await self._caller.answer(call))

    async def get_serial_port_output(self, zone: str, name: str, start: int = 0) -> tuple[str, int]:
        """Return what an instance has written to its first serial port.

        Parameters
        ----------
        zone : str
            Zone name.
        name : str
            The instance.
        start : int
            Offset in bytes to begin at; the API keeps the last mebibyte.

        Returns
        -------
        text : str
            The output from there on.
        next : int
            The offset to ask for next.
        """
        call = self._instance_call(
            "get_serial_port_output",
            "GetSerialPortOutputInstanceRequest",
            "read the serial port of",
            zone,
            name,
            port=1,
            start=start,
        )
        answer = await self._caller.answer(call)
        return str(answer.get("contents", "")), int(answer.get("next", start))

    async def get_guest_attributes(
        self, zone: str, name: str, query_path: str = "dask-gce/"
    ) -> dict[str, str]:
        """Return what an instance has published as guest attributes.

        Parameters
        ----------
        zone : str
            Zone name.
        name : str
            The instance.
        query_path : str
            ``NAMESPACE/`` for all of a namespace, ``NAMESPACE/KEY`` for one.

        Returns
        -------
        dict
            Keys, without the namespace, and their values; empty when there are none so far.
        """
        call = self._instance_call(
            "get_guest_attributes",
            "GetGuestAttributesInstanceRequest",
            "read the guest attributes of",
            zone,
            name,
            query_path=query_path,
        )
        try:
            answer = await self._caller.answer(call)
        except NotFound:
            # Compute Engine answers 404 until the guest has written the first one.
            return {}
        items = answer.get("queryValue", {}).get("items", ())
        return {str(item["key"]): str(item.get("value", "")) for item in items}

    # Operations ------------------------------------------------------------------------------

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
        call = Call(
            "ZoneOperations",
            "list",
            "ListZoneOperationsRequest",
            Place("list operations", self.project, zone),
            {"project": self.project, "zone": zone, "filter": filter},
        )
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
            It failed for another reason; `code` says which. After a bulk insert that was rolled back
            this is the reason of its instances, not ``VM_MIN_COUNT_NOT_REACHED``.
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
            operation = await self._next_sight(operation, deadline)
            if not operation.done:
                rest = WAIT_FLOOR - (self._caller.clock.monotonic() - began)
                await self._caller.clock.sleep(min(max(rest, 0.0), deadline.remaining))
        if operation.failed:
            raise await self._operation_error(operation)
        return operation

    async def _next_sight(self, operation: Operation, deadline: Deadline) -> Operation:
        if self._wait_slots.locked():
            # All threads for waiting are taken: look, rather than queue behind long waits.
            call = self._operation_call("get", "GetZoneOperationRequest", operation)
            return parse_operation(await self._caller.answer(call, deadline=deadline))
        call = self._operation_call("wait", "WaitZoneOperationRequest", operation)
        async with self._wait_slots:
            answer = await self._caller.answer(
                replace(call, long_poll=True),
                deadline=deadline,
                exchange_timeout=min(WAIT_SLICE, deadline.remaining),
            )
        return parse_operation(answer) if answer else operation

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

    # The interpreter's exit ------------------------------------------------------------------

    def list_instances_now(
        self, zone: str, filter: str, deadline: float, fields: str | None = None
    ) -> list[dict[str, Any]]:
        """Return the instances of a zone, on the calling thread.

        Needs neither the event loop nor the pool of threads: works in an ``atexit`` handler and after
        :meth:`close`.

        Parameters
        ----------
        zone : str
            Zone name.
        filter : str
            An AIP-160 filter; empty for all.
        deadline : float
            When to give up, on the clock of :func:`time.monotonic`.
        fields : str or None
            A field mask of one page; None for what `instance` reads.

        Returns
        -------
        list of dict
            ``compute#instance`` resources, from all pages.
        """
        until = Deadline(deadline, self._caller.clock.monotonic)
        mask = fields or f"items({','.join(INSTANCE_FIELDS)})"
        call: Call | None = self._list_call(zone, filter, mask)
        found: list[dict[str, Any]] = []
        while call is not None:
            page = self._caller.answer_now(call, until)
            found.extend(page.get("items", ()))
            call = _next_page(call, page)
        return found

    def delete_instance_now(self, zone: str, name: str, deadline: float) -> bool:
        """Begin to delete an instance, on the calling thread, and do not wait for the end.

        Needs neither the event loop nor the pool of threads: works in an ``atexit`` handler and after
        :meth:`close`.

        Parameters
        ----------
        zone : str
            Zone name.
        name : str
            The instance.
        deadline : float
            When to give up, on the clock of :func:`time.monotonic`.

        Returns
        -------
        bool
            Whether there was such an instance.
        """
        until = Deadline(deadline, self._caller.clock.monotonic)
        self._caller.settled_now(_key(zone, name), until)
        try:
            self._caller.answer_now(self._delete_call(zone, name, None), until)
        except NotFound:
            return False
        return True

    # Calls -----------------------------------------------------------------------------------

    def _change(self, request_id: str | None, **fields: Any) -> dict[str, Any]:
        return {
            "project": self.project,
            "request_id": request_id or str(uuid.uuid4()),
            **fields,
        }

    async def _get(self, service: str, request: str, action: str, **fields: Any) -> dict[str, Any]:
        place = Place(action, self.project, fields.get("zone", ""))
        call = Call(service, "get", request, place, {"project": self.project, **fields})
        return await self._caller.answer(call)

    def _instance_call(
        self,
        verb: str,
        request: str,
        action: str,
        zone: str,
        name: str,
        *,
        change: bool = False,
        **fields: Any,
    ) -> Call:
        fields = {"project": self.project, "zone": zone, "instance": name, **fields}
        place = Place(f"{action} instance {name}", self.project, zone, name)
        return Call(
            "Instances", verb, request, place, self._change(None, **fields) if change else fields
        )

    def _delete_call(self, zone: str, name: str, request_id: str | None) -> Call:
        call = self._instance_call("delete_unary", "DeleteInstanceRequest", "delete", zone, name)
        return replace(call, fields=self._change(request_id, zone=zone, instance=name))

    def _list_call(self, zone: str, filter: str, fields: str | None) -> Call:
        return Call(
            "Instances",
            "list",
            "ListInstancesRequest",
            Place("list instances", self.project, zone),
            {"project": self.project, "zone": zone, "filter": filter},
            mask=_paged(fields),
        )

    async def _pages(self, call: Call) -> AsyncIterator[dict[str, Any]]:
        following: Call | None = call
        while following is not None:
            page = await self._caller.answer(following)
            yield page
            following = _next_page(following, page)


def _next_page(call: Call, page: Mapping[str, Any]) -> Call | None:
    token = page.get("nextPageToken")
    return replace(call, fields={**call.fields, "page_token": token}) if token else None


def _paged(mask: str | None) -> str:
    """Return a mask that keeps the token of the next page as well."""
    return f"{mask},nextPageToken" if mask and "nextPageToken" not in mask else mask or ""


def _key(zone: str, name: str) -> str:
    return f"{zone}/{name}"


def merge_scopes(
    pages: Iterable[Mapping[str, Any]],
) -> tuple[list[dict[str, Any]], frozenset[str]]:
    """Merge the pages of an aggregated list of instances.

    From API version 2026-09-01 on such a list is always partial: a zone that did not answer is named
    in ``unreachables``, or its scope carries the warning ``UNREACHABLE``.

    Parameters
    ----------
    pages : iterable of mapping
        ``compute#instanceAggregatedList`` resources.

    Returns
    -------
    instances : list of dict
        The instances of all scopes.
    unreachable : frozenset of str
        Zones that did not answer.

    Examples
    --------
    >>> merge_scopes([{
    ...     "items": {
    ...         "zones/us-central1-a": {"instances": [{"name": "dask-1"}]},
    ...         "zones/us-central1-b": {"warning": {"code": "NO_RESULTS_ON_PAGE"}},
    ...         "zones/us-central1-c": {"warning": {"code": "UNREACHABLE"}},
    ...     },
    ... }])
    ([{'name': 'dask-1'}], frozenset({'us-central1-c'}))
    """
    instances: list[dict[str, Any]] = []
    unreachable: set[str] = set()
    for page in pages:
        unreachable.update(str(scope).rpartition("/")[2] for scope in page.get("unreachables", ()))
        for scope, content in page.get("items", {}).items():
            instances.extend(content.get("instances", ()))
            if content.get("warning", {}).get("code") == "UNREACHABLE":
                unreachable.add(scope.rpartition("/")[2])
    return instances, frozenset(unreachable)
