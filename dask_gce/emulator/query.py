"""Lists: which resources, in which order, on which page.

Owns: `orderBy`, `maxResults` and `pageToken`, and the two forms of list answers. The language of
`filter` is that of `filters`.
"""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Iterable, Mapping, Sequence
from itertools import islice
from operator import itemgetter
from typing import Any

from dask_gce.emulator.errors import APIError
from dask_gce.emulator.filters import Resource, parse_filter
from dask_gce.emulator.routing import Call, number

#: What entries are ordered by, and the entry: scope, perhaps the creation time, name.
_Key = tuple[str, ...]
_Entry = tuple[_Key, Resource]


def _page(call: Call, entries: Sequence[_Entry]) -> tuple[list[_Entry], str | None]:
    """Return the entries of the page that was asked for, and the token of the next one."""
    text = call.query.get("filter", "").strip()
    passes = parse_filter(text) if text else None
    size = number(call, "maxResults", 500, 0, 500) or 500
    keyed, reverse = list(entries), False
    order = call.query.get("orderBy", "").strip()
    if order == "creationTimestamp desc":
        keyed = [
            ((key[0], str(one.get("creationTimestamp", "")), key[-1]), one) for key, one in entries
        ]
        reverse = True
    elif order not in ("", "name"):
        raise APIError(
            400,
            "invalid",
            f"Invalid value for field 'orderBy': '{order}'. "
            "Only 'name' and 'creationTimestamp desc' are supported.",
        )
    keyed.sort(key=itemgetter(0), reverse=reverse)
    token = call.query.get("pageToken")
    if token:
        # The token names the last entry that was shown, so that a page neither repeats nor skips
        # anything when entries before it come or go.
        last = _read_token(token)
        keyed = [entry for entry in keyed if (entry[0] < last if reverse else entry[0] > last)]
    # Only as far as the page goes, or a walk through all pages would look at each entry many times.
    passing = keyed if passes is None else (entry for entry in keyed if passes(entry[1]))
    page = list(islice(passing, size + 1))
    if len(page) <= size:
        return page, None
    del page[size:]
    return page, base64.urlsafe_b64encode(json.dumps(page[-1][0]).encode()).decode()


def _read_token(token: str) -> _Key:
    try:
        last = json.loads(base64.urlsafe_b64decode(token))
    except (binascii.Error, ValueError):
        last = None
    if not isinstance(last, list) or not all(isinstance(one, str) for one in last):
        raise APIError(
            400, "invalid", f"Invalid value for field 'pageToken': '{token}'. Invalid page token."
        )
    return tuple(last)


def listing(call: Call, kind: str, resources: Iterable[Resource]) -> dict[str, Any]:
    """Return the answer of a list method.

    Parameters
    ----------
    call : Call
        The request.
    kind : str
        The kind of the answer without ``compute#``, for example ``instanceList``.
    resources : iterable of dict
        All resources there are.

    Returns
    -------
    dict
        The list, filtered, ordered and cut to a page.
    """
    page, token = _page(call, [(("", str(one["name"])), one) for one in resources])
    answer: dict[str, Any] = {
        "kind": f"compute#{kind}",
        "id": call.path,
        "selfLink": call.cloud.url(call.path),
    }
    if page:
        answer["items"] = [one for _, one in page]
    if token is not None:
        answer["nextPageToken"] = token
    return answer


def _warning(code: str, scope: str, message: str) -> dict[str, Any]:
    data = [{"key": "scope", "value": scope}]
    return {"warning": {"code": code, "message": message, "data": data}}


def _silent(call: Call, scopes: Iterable[str]) -> list[str]:
    """Return the scopes that do not answer, or refuse the list where it must be complete.

    The undated v1 answers in part only on request; from its first dated version on the API always
    does (https://cloud.google.com/compute/docs/api-versions).
    """
    unreachable = call.cloud.conditions.unreachable
    silent = [scope for scope in scopes if scope.removeprefix("zones/") in unreachable]
    partial = call.query.get("returnPartialSuccess", "").lower() == "true"
    if silent and call.version is None and not partial:
        unreachable.check(silent[0].removeprefix("zones/"))
    return silent


def aggregate(
    call: Call, kind: str, key: str, scopes: Mapping[str, Iterable[Resource]]
) -> dict[str, Any]:
    """Return the answer of an aggregated list method.

    Parameters
    ----------
    call : Call
        The request.
    kind : str
        The kind of the answer without ``compute#``, for example ``instanceAggregatedList``.
    key : str
        Under which name a scope holds its resources, for example ``instances``.
    scopes : mapping
        All resources there are, by scope (``zones/Z``).

    Returns
    -------
    dict
        The list; scopes with nothing on this page carry Google's warning.
    """
    silent = _silent(call, scopes)
    keyed = [
        ((scope, str(one["name"])), one)
        for scope, resources in scopes.items()
        if scope not in silent
        for one in resources
    ]
    page, token = _page(call, keyed)
    items: dict[str, dict[str, Any]] = {}
    for (scope, *_), one in page:
        items.setdefault(scope, {key: []})[key].append(one)
    for scope in scopes:
        if scope in silent:
            items[scope] = _warning("UNREACHABLE", scope, f"Scope '{scope}' is unreachable.")
        elif scope not in items:
            items[scope] = _warning(
                "NO_RESULTS_ON_PAGE",
                scope,
                f"There are no results for scope '{scope}' on this page.",
            )
    answer: dict[str, Any] = {
        "kind": f"compute#{kind}",
        "id": call.path,
        "items": items,
        "selfLink": call.cloud.url(call.path),
    }
    if silent:
        answer["unreachables"] = [f"{call.project.path}/{scope}" for scope in silent]
    if token is not None:
        answer["nextPageToken"] = token
    return answer
