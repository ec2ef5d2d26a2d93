"""What the verbs of `compute` share: the project, the caller, and lists page by page."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator, Mapping
from dataclasses import replace
from typing import Any

from dask_gce.calls import Caller
from dask_gce.library import Call
from dask_gce.policy import Deadline

__all__ = ["Verbs"]


class Verbs:
    """What the verbs of `compute` share.

    Parameters
    ----------
    project : str
        Project ID.
    caller : Caller
        Makes the calls.
    """

    def __init__(self, project: str, caller: Caller) -> None:
        self.project = project
        self._caller = caller

    async def _pages(self, call: Call) -> AsyncIterator[dict[str, Any]]:
        following: Call | None = call
        while following is not None:
            page = await self._caller.answer(following)
            yield page
            following = _next_page(following, page)

    def _pages_now(self, call: Call, deadline: Deadline) -> Iterator[dict[str, Any]]:
        following: Call | None = call
        while following is not None:
            page = self._caller.answer_now(following, deadline)
            yield page
            following = _next_page(following, page)


def _next_page(call: Call, page: Mapping[str, Any]) -> Call | None:
    token = page.get("nextPageToken")
    return replace(call, fields={**call.fields, "page_token": token}) if token else None
