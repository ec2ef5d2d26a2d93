"""The form of request bodies: known fields, JSON types, enums.

Owns: `request_schemas.json`, a digest of the request schemas in Google's discovery document, and
the judgement of bodies by it. Like Google's own reader it takes numbers for 64-bit integers,
digits for numbers and ``"true"`` for true, and hands handlers the canonical form.

In the digest a string is a scalar type, ``"#Name"`` another schema, ``"A|B"`` an enum; a list
holds its items' form; an object maps fields to forms, or ``"*"`` to the form of every value.
"""

from __future__ import annotations

import json
from functools import lru_cache
from importlib import resources
from typing import Any

from dask_gce.emulator.errors import bad_request


@lru_cache(maxsize=1)
def _digest() -> dict[str, Any]:
    text = resources.files("dask_gce.emulator").joinpath("request_schemas.json").read_text("utf-8")
    digest: dict[str, Any] = json.loads(text)
    return digest


def check_body(schema: str, body: Any) -> dict[str, Any]:
    """Return a request body in canonical form.

    Parameters
    ----------
    schema : str
        The name of its schema, for example ``Instance``.
    body : object
        The JSON value that was sent.

    Returns
    -------
    dict
        A copy, without fields that were null.

    Raises
    ------
    APIError
        A field is unknown, or a value has the wrong type.

    Examples
    --------
    >>> check_body("Instance", {"name": "a", "canIpForward": "true"})
    {'name': 'a', 'canIpForward': True}
    """
    checked: dict[str, Any] = _check(f"#{schema}", body, "resource")
    return checked


def _check(form: Any, value: Any, path: str) -> Any:
    if isinstance(form, str) and form.startswith("#"):
        form = _digest()[form[1:]]
    if isinstance(form, str):
        return _scalar(form, value, path)
    if isinstance(form, list):
        if not isinstance(value, list):
            raise _wrong_type(path, "a list", value)
        return [_check(form[0], item, f"{path}[{index}]") for index, item in enumerate(value)]
    if not isinstance(value, dict):
        raise _wrong_type(path, "an object", value)
    checked = {}
    for key, item in value.items():
        below = form.get(key, form.get("*"))
        if below is None:
            raise bad_request(
                f"Invalid JSON payload received. Unknown name \"{key}\" at '{path}':"
                " Cannot find field."
            )
        if item is not None:
            checked[key] = _check(below, item, f"{path}.{key}")
    return checked


def _scalar(form: str, value: Any, path: str) -> Any:
    if form == "boolean":
        if value in ("true", "false"):
            return value == "true"
        if isinstance(value, bool):
            return value
    elif form in ("integer", "int64"):
        if isinstance(value, (int, str)) and not isinstance(value, bool):
            try:
                return int(value) if form == "integer" else str(int(value))
            except ValueError:
                pass
    elif form == "number":
        if isinstance(value, (int, float)) and not isinstance(value, bool):
            return value
    elif isinstance(value, str):
        if form == "string" or value in form.split("|"):
            return value
        raise bad_request(f"Invalid value at '{path}': \"{value}\"")
    raise _wrong_type(path, form if "|" not in form else "string", value)


def _wrong_type(path: str, expected: str, value: Any) -> Exception:
    shown = json.dumps(value)
    return bad_request(f"Invalid value at '{path}' ({expected}), {shown[:80]}")
