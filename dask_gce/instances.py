"""The verbs for instances, on the event loop.

API JSON in, API JSON out: bodies are built and answers read in `instance`, calls in
`instance_calls`. Repeats, threads and what cancelling a call means are the business of `calls`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from dask_gce.errors import NotFound
from dask_gce.instance_calls import (
    aggregated_list_call,
    bulk_insert_call,
    delete_call,
    insert_call,
    instance_call,
    instance_key,
    list_call,
    merge_scopes,
    set_labels_call,
    set_metadata_call,
    set_scheduling_call,
)
from dask_gce.operation import Operation, parse_operation
from dask_gce.verbs import Verbs

__all__ = ["InstanceVerbs"]


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
        call = insert_call(self.project, zone, body, request_id)
        creates = [instance_key(zone, call.place.name)]
        return parse_operation(await self._caller.answer(call, creates=creates))

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
        call = bulk_insert_call(self.project, zone, body, request_id)
        creates = [instance_key(zone, name) for name in body.get("perInstanceProperties", {})]
        return parse_operation(await self._caller.answer(call, creates=creates))

    async def insert_settled(self, zone: str, name: str) -> None:
        """Wait until no exchange is under way that may create an instance.

        Parameters
        ----------
        zone : str
            Zone name.
        name : str
            The instance.
        """
        await self._caller.settled(instance_key(zone, name))

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
        call = instance_call(
            self.project, zone, name, verb="get", request="GetInstanceRequest", action="get"
        )
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
        pages = self._pages(list_call(self.project, zone, filter, fields))
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
        call = aggregated_list_call(self.project, filter, fields)
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
        await self.insert_settled(zone, name)
        call = delete_call(self.project, zone, name, request_id)
        try:
            return parse_operation(await self._caller.answer(call))
        except NotFound:
            return None

    async def set_instance_metadata(
        self, zone: str, name: str, metadata: Mapping[str, Any], request_id: str | None = None
    ) -> Operation:
        """Begin to replace an instance's metadata.

        Parameters
        ----------
        zone : str
            Zone name.
        name : str
            The instance.
        metadata : mapping
            All items, and the fingerprint of those that they replace.
        request_id : str or None
            A UUID by which Compute Engine knows a repeated request; None for a new one.

        Returns
        -------
        Operation
            The operation that was started; it can still fail.

        Raises
        ------
        APIError
            With status 412: the metadata has another fingerprint by now.
        """
        call = set_metadata_call(self.project, zone, name, metadata, request_id)
        return parse_operation(await self._caller.answer(call))

    async def set_instance_labels(
        self,
        zone: str,
        name: str,
        labels: Mapping[str, str],
        fingerprint: str,
        request_id: str | None = None,
    ) -> Operation:
        """Begin to replace an instance's labels.

        Parameters
        ----------
        zone : str
            Zone name.
        name : str
            The instance.
        labels : mapping of str to str
            All labels.
        fingerprint : str
            That of the labels that they replace.
        request_id : str or None
            A UUID by which Compute Engine knows a repeated request; None for a new one.

        Returns
        -------
        Operation
            The operation that was started; it can still fail.

        Raises
        ------
        APIError
            With status 412: the labels have another fingerprint by now.
        """
        call = set_labels_call(self.project, zone, name, labels, fingerprint, request_id)
        return parse_operation(await self._caller.answer(call))

    async def set_scheduling(
        self, zone: str, name: str, scheduling: Mapping[str, Any], request_id: str | None = None
    ) -> Operation:
        """Begin to change how an instance is scheduled, of which much is fixed while it runs.

        Parameters
        ----------
        zone : str
            Zone name.
        name : str
            The instance.
        scheduling : mapping
            A ``Scheduling`` as API JSON.
        request_id : str or None
            A UUID by which Compute Engine knows a repeated request; None for a new one.

        Returns
        -------
        Operation
            The operation that was started; it can still fail.

        Raises
        ------
        APIError
            If the instance runs, and what is changed is fixed meanwhile.
        """
        call = set_scheduling_call(self.project, zone, name, scheduling, request_id)
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
        call = instance_call(
            self.project,
            zone,
            name,
            verb="get_serial_port_output",
            request="GetSerialPortOutputInstanceRequest",
            action="read the serial port of",
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
        call = instance_call(
            self.project,
            zone,
            name,
            verb="get_guest_attributes",
            request="GetGuestAttributesInstanceRequest",
            action="read the guest attributes of",
            query_path=query_path,
        )
        # Google counts it among the changes.
        call = replace(call, group="write")
        try:
            answer = await self._caller.answer(call)
        except NotFound:
            # Compute Engine answers 404 until the guest has written the first one.
            return {}
        items = answer.get("queryValue", {}).get("items", ())
        return {str(item["key"]): str(item.get("value", "")) for item in items}
