"""Partial answers: the `fields` parameter and the ``X-Goog-FieldMask`` header.

The two differ in their separator only: ``items(name,id)``, ``items/name`` and ``items.name`` all
mean the same here. ``*`` stands for every key. Source: https://cloud.google.com/compute/docs/api/performance
and https://cloud.google.com/apis/docs/system-parameters.
"""

from __future__ import annotations

import re
from typing import Any

from dask_gce.emulator.errors import APIError

#: What is kept: key -> what is kept below it; an empty mask keeps everything below.
Mask = dict[str, "Mask"]

#: How deep a mask may go: deeper than any resource, and far from Python's limit.
_DEEPEST = 50

_TOKEN = re.compile(r"\s*([(),/.]|[^\s(),/.]+)\s*")


def parse_mask(text: str) -> Mask:
    """Return a mask as a tree.

    Parameters
    ----------
    text : str
        The mask.

    Returns
    -------
    dict
        What is kept, by key; an empty one keeps all.

    Raises
    ------
    APIError
        The mask is malformed.

    Examples
    --------
    >>> parse_mask("items(name,id),nextPageToken")
    {'items': {'name': {}, 'id': {}}, 'nextPageToken': {}}
    >>> parse_mask("items/name") == parse_mask("items.name")
    True
    """
    tokens = _TOKEN.findall(text)
    if "".join(tokens) != re.sub(r"\s", "", text):
        raise _malformed(text)
    position = 0

    def selection(into: Mask, depth: int) -> None:
        nonlocal position
        while True:
            path(into, depth)
            if position == len(tokens) or tokens[position] != ",":
                return
            position += 1

    def path(into: Mask, depth: int) -> None:
        nonlocal position
        if depth > _DEEPEST or position == len(tokens) or tokens[position] in set("(),/."):
            raise _malformed(text)
        below = into.setdefault(tokens[position], {})
        position += 1
        if position < len(tokens) and tokens[position] in "/.":
            position += 1
            path(below, depth + 1)
        elif position < len(tokens) and tokens[position] == "(":
            position += 1
            selection(below, depth + 1)
            if position == len(tokens) or tokens[position] != ")":
                raise _malformed(text)
            position += 1

    mask: Mask = {}
    selection(mask, 1)
    if position != len(tokens):
        raise _malformed(text)
    return mask


def _malformed(text: str) -> APIError:
    return APIError(400, "invalidParameter", f"Invalid field selection {text}")


def apply_mask(mask: Mask, value: Any) -> Any:
    """Return the parts of a JSON value that a mask keeps.

    Parameters
    ----------
    mask : dict
        The mask; an empty one keeps all.
    value : object
        A JSON value. Masks go through lists.

    Returns
    -------
    object
        A new value; parts that are kept whole are shared with the old one.

    Examples
    --------
    >>> apply_mask(parse_mask("items/name"), {"kind": "k", "items": [{"name": "a", "id": "1"}]})
    {'items': [{'name': 'a'}]}
    """
    if not mask:
        return value
    if isinstance(value, list):
        return [apply_mask(mask, item) for item in value]
    if not isinstance(value, dict):
        return value
    kept = {}
    for key, item in value.items():
        below = mask.get(key, mask.get("*"))
        if below is not None:
            kept[key] = apply_mask(below, item)
    return kept
