"""The verbs for instances, async and, for the interpreter's exit, synchronous.

API JSON in, API JSON out: bodies are built and answers read in `instance`. Repeats, threads and
what cancelling a call means are the business of `calls`.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

from dask_gce.calls import Verbs
from dask_gce.errors import NotFound
from dask_gce.failures import Place
from dask_gce.instance import INSTANCE_FIELDS
from dask_gce.library import Call
from dask_gce.operation import Operation, parse_operation
from dask_gce.policy import Deadline

__all__ = ["InstanceVerbs", "merge_scopes"]

#: What lists ask of each instance. Without a mask they carry all metadata and startup scripts.
_READ = ",".join(INSTANCE_FIELDS)


class InstanceVerbs(Verbs):
    """The verbs of `Compute` for instances.

    Parameters
    ----------
    project : str
        Project ID.
    caller : Caller
        Makes the calls.
    """

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
            A field mask of one page, for example ``"items(name,status)"``; None for what
            `instance` reads; ``"*"`` for all, which may be 512 KiB of metadata an instance.

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
            A field mask of one instance, for example ``"name,status"``; None for what `instance`
            reads; ``"*"`` for all.

        Returns
        -------
        instances : list of dict
            ``compute#instance`` resources, from all pages.
        unreachable : frozenset of str
            Zones that did not answer. What they hold is unknown, not gone.
        """
        wanted = fields or _READ
        mask = f"items/*/instances({wanted}),items/*/warning,unreachables,nextPageToken"
        request = {"project": self.project}
        if filter:
            request["filter"] = filter
        place = Place("list the instances of all zones", self.project)
        call = Call(
            "Instances",
            "aggregated_list",
            "AggregatedListInstancesRequest",
            place,
            request,
            mask="" if fields == "*" else mask,
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

    def list_instances_now(
        self, zone: str, filter: str, deadline: float, fields: str | None = None
    ) -> list[dict[str, Any]]:
        """Return the instances of a zone, on the calling thread.

        Needs neither the event loop nor the pool of threads: works in an ``atexit`` handler and
        after :meth:`close`.

        Parameters
        ----------
        zone : str
            Zone name.
        filter : str
            An AIP-160 filter; empty for all.
        deadline : float
            When to give up, on the clock of :func:`time.monotonic`.
        fields : str or None
            A field mask, as for `list_instances`.

        Returns
        -------
        list of dict
            ``compute#instance`` resources, from all pages.
        """
        until = Deadline(deadline, self._caller.clock.monotonic)
        pages = self._pages_now(self._list_call(zone, filter, fields), until)
        return [item for page in pages for item in page.get("items", ())]

    def delete_instance_now(self, zone: str, name: str, deadline: float) -> bool:
        """Begin to delete an instance, on the calling thread, and do not wait for the end.

        Needs neither the event loop nor the pool of threads: works in an ``atexit`` handler and
        after :meth:`close`.

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

    def _change(self, request_id: str | None, **fields: Any) -> dict[str, Any]:
        request_id = request_id or str(uuid.uuid4())
        return {"project": self.project, "request_id": request_id, **fields}

    def _instance_call(
        self, verb: str, request: str, action: str, zone: str, name: str, **fields: Any
    ) -> Call:
        fields = {"project": self.project, "zone": zone, "instance": name, **fields}
        place = Place(f"{action} instance {name}", self.project, zone, name)
        return Call("Instances", verb, request, place, fields)

    def _delete_call(self, zone: str, name: str, request_id: str | None) -> Call:
        call = self._instance_call("delete_unary", "DeleteInstanceRequest", "delete", zone, name)
        return replace(call, fields=self._change(request_id, zone=zone, instance=name))

    def _list_call(self, zone: str, filter: str, fields: str | None) -> Call:
        request = {"project": self.project, "zone": zone}
        if filter:
            request["filter"] = filter
        place = Place("list instances", self.project, zone)
        mask = _page_mask(fields)
        return Call("Instances", "list", "ListInstancesRequest", place, request, mask=mask)


def _page_mask(fields: str | None) -> str:
    """Return the mask for a page of a list, which always keeps the token of the next page."""
    mask = fields or f"items({_READ})"
    if mask == "*":
        return ""
    return mask if "nextPageToken" in mask else f"{mask},nextPageToken"


def _key(zone: str, name: str) -> str:
    return f"{zone}/{name}"


def merge_scopes(
    pages: Iterable[Mapping[str, Any]],
) -> tuple[list[dict[str, Any]], frozenset[str]]:
    """Merge the pages of an aggregated list of instances.

    From API version 2026-09-01 on such a list is always partial: a zone that did not answer is
    named in ``unreachables``, or its scope carries the warning ``UNREACHABLE``.

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
