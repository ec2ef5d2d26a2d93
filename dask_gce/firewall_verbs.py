"""The verbs for firewall rules.

API JSON in, API JSON out, on the event loop; deleting works on the calling thread too, for the
interpreter's exit. A shared network belongs to another project than the machines, so each verb
takes the project. Which rules there should be is left to `reach`.
"""

from __future__ import annotations

import contextlib
import uuid
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from dask_gce.errors import NotFound
from dask_gce.failures import Place
from dask_gce.library import Call
from dask_gce.operation import Operation, parse_operation
from dask_gce.policy import Deadline
from dask_gce.verbs import Verbs

__all__ = ["FirewallVerbs"]


class FirewallVerbs(Verbs):
    """The verbs of `Compute` for firewall rules.

    Parameters
    ----------
    project : str
        Project ID.
    caller : Caller
        Makes the calls.
    """

    async def list_firewalls(
        self, filter: str = "", fields: str | None = None, project: str | None = None
    ) -> list[dict[str, Any]]:
        """Return firewall rules.

        Parameters
        ----------
        filter : str
            A filter; empty for all.
        fields : str or None
            A field mask of one rule; None for all fields.
        project : str or None
            The project that they belong to; None for that of the client.

        Returns
        -------
        list of dict
            ``compute#firewall`` resources, from all pages.
        """
        owner = project or self.project
        request = {"project": owner}
        if filter:
            request["filter"] = filter
        call = Call(
            "Firewalls",
            "list",
            "ListFirewallsRequest",
            Place("list firewall rules", owner),
            request,
            mask=f"items({fields}),nextPageToken" if fields else "",
        )
        return [item async for page in self._pages(call) for item in page.get("items", ())]

    async def insert_firewall(
        self, body: Mapping[str, Any], project: str | None = None, request_id: str | None = None
    ) -> Operation:
        """Begin to make a firewall rule.

        Parameters
        ----------
        body : mapping
            A ``compute#firewall`` resource as API JSON.
        project : str or None
            The project that the network belongs to; None for that of the client.
        request_id : str or None
            A UUID by which Compute Engine knows a repeated request; None for a new one.

        Returns
        -------
        Operation
            The operation that was started, a global one; it can still fail.
        """
        owner, name = project or self.project, str(body.get("name", ""))
        call = Call(
            "Firewalls",
            "insert_unary",
            "InsertFirewallRequest",
            Place(f"make firewall rule {name}", owner, name=name),
            {"project": owner, "request_id": request_id or str(uuid.uuid4())},
            body,
            "firewall_resource",
            group="write",
        )
        answer = await self._caller.answer(call, creates=[_key(owner, name)])
        return replace(parse_operation(answer), project=owner)

    async def delete_firewall(self, name: str, project: str | None = None) -> Operation | None:
        """Begin to delete a firewall rule.

        Waits first for an exchange that may be making it; see `calls` on cancelling.

        Parameters
        ----------
        name : str
            The rule.
        project : str or None
            The project that it belongs to; None for that of the client.

        Returns
        -------
        Operation or None
            The operation that was started, a global one; None when there is no such rule.
        """
        owner = project or self.project
        await self._caller.settled(_key(owner, name))
        try:
            answer = await self._caller.answer(_delete_call(owner, name))
        except NotFound:
            return None
        return replace(parse_operation(answer), project=owner)

    def delete_firewall_now(self, name: str, deadline: float, project: str | None = None) -> None:
        """Begin to delete a firewall rule, on the calling thread.

        Needs neither the event loop nor the pool of threads: works in an ``atexit`` handler and
        after `Compute.close`. One that does not exist counts as deleted.

        Parameters
        ----------
        name : str
            The rule.
        deadline : float
            When to give up, on the clock of :func:`time.monotonic`.
        project : str or None
            The project that it belongs to; None for that of the client.
        """
        owner = project or self.project
        until = Deadline(deadline, self._caller.clock.monotonic)
        self._caller.settled_now(_key(owner, name), until)
        with contextlib.suppress(NotFound):
            self._caller.answer_now(_delete_call(owner, name), until)


def _delete_call(project: str, name: str) -> Call:
    return Call(
        "Firewalls",
        "delete_unary",
        "DeleteFirewallRequest",
        Place(f"delete firewall rule {name}", project, name=name),
        {"project": project, "firewall": name, "request_id": str(uuid.uuid4())},
        group="write",
    )


def _key(project: str, name: str) -> str:
    """Return the key by which `calls` knows what a call may create; no zone is called firewalls."""
    return f"firewalls/{project}/{name}"
