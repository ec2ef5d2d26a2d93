"""Settings that are mappings: environment variables, labels and data for other machines.

Every check returns a plain copy that shares nothing with what the user gave. Messages name the
place of the fault, such as ``worker_options['resources']['GPU']``, but never the value of an
environment variable.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from typing import Any, Final

from dask_gce import names
from dask_gce.errors import SettingsError

__all__ = ["check_env_vars", "check_json", "check_labels"]

_MAX_LABELS: Final = 64
_MAX_DEPTH: Final = 50


def check_env_vars(key: str, value: Any) -> dict[str, str]:
    """Check environment variables; errors never show their values.

    Parameters
    ----------
    key : str
        The setting.
    value : object
        A mapping of names to text, numbers, true or false.

    Returns
    -------
    dict of str to str
        Names and texts: numbers as Python writes them, ``"true"`` and ``"false"``.

    Raises
    ------
    SettingsError
        If it is no mapping, or if a name or value cannot be passed to a process.
    """
    if not isinstance(value, Mapping):
        raise SettingsError(f"{key} must be a mapping of names to values.", key=key)
    checked = {}
    for name, content in value.items():
        if not isinstance(name, str) or not re.fullmatch(r"[^=\x00]+", name):
            raise SettingsError(
                f"{key}: {name!r} cannot be the name of an environment variable; "
                "it must be text, not empty, without '='.",
                key=key,
            )
        _as_text(f"the name {name!r} in {key}", name, key)
        checked[name] = _as_text(f"{key}[{name!r}]", content, key)
    return checked


def check_labels(key: str, value: Any) -> dict[str, str]:
    """Check labels, of which the cluster's own are reserved.

    Parameters
    ----------
    key : str
        The setting.
    value : object
        A mapping of label keys to values; numbers, true and false become text.

    Returns
    -------
    dict of str to str
        The labels.

    Raises
    ------
    SettingsError
        If Google would refuse a label, or if the cluster sets it itself.
    """
    if not isinstance(value, Mapping):
        raise SettingsError(
            f"{key} = {value!r} must be a mapping of label keys to values.", key=key
        )
    checked = {}
    for name, content in value.items():
        if name in names.RESERVED_LABELS:
            raise SettingsError(
                f"{key}: {name!r} is set by the cluster itself, which finds its machines by it; "
                "choose another key.",
                key=key,
            )
        label = _as_text(f"a key of {key}", name, key)
        checked[label] = _as_text(f"{key}[{label!r}]", content, key)
        names.check_label(label, checked[label], key=key)
    most = _MAX_LABELS - len(names.RESERVED_LABELS)
    if len(checked) > most:
        raise SettingsError(f"{key} has {len(checked)} labels; at most {most} fit.", key=key)
    return checked


def _as_text(place: str, value: Any, key: str) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int | float):
        return repr(value)
    if not isinstance(value, str):
        raise SettingsError(
            f"{place} is a {type(value).__name__}; it must be text, a number, true or false. "
            "Put it in quotes.",
            key=key,
        )
    if "\0" in value:
        raise SettingsError(
            f"{place} contains a NUL character, which cannot be passed on.", key=key
        )
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise SettingsError(
            f"{place} has half a character at position {error.start}; UTF-8 cannot express it.",
            key=key,
        ) from None
    return value


def check_json(
    key: str, value: Any, *, reserved: Iterable[str] = (), remedy: str = ""
) -> dict[str, Any]:
    """Check a mapping of JSON data.

    Parameters
    ----------
    key : str
        The setting.
    value : object
        A mapping with text as keys, down to the last level; tuples become lists.
    reserved : iterable of str
        Keys that the cluster sets itself.
    remedy : str
        What to do instead of setting one of them.

    Returns
    -------
    dict
        The data.

    Raises
    ------
    SettingsError
        If it is no mapping, has a reserved key, or holds what JSON cannot express.
    """
    if not isinstance(value, Mapping):
        raise SettingsError(f"{key} is a {type(value).__name__}; it must be a mapping.", key=key)
    for name in reserved:
        if name in value or name.replace("_", "-") in value:
            raise SettingsError(
                f"{key} contains {name!r}, which the cluster sets itself; {remedy}.", key=key
            )
    copied: dict[str, Any] = _copy_json(key, value, key, _MAX_DEPTH)
    return copied


def _copy_json(place: str, value: Any, key: str, depth: int) -> Any:
    if depth == 0:
        raise SettingsError(f"{place} is nested more than {_MAX_DEPTH} deep.", key=key)
    if isinstance(value, Mapping):
        for name in value:
            if not isinstance(name, str):
                raise SettingsError(f"{place}: the key {name!r} must be text.", key=key)
        return {
            name: _copy_json(f"{place}[{name!r}]", item, key, depth - 1)
            for name, item in value.items()
        }
    if isinstance(value, list | tuple):
        return [
            _copy_json(f"{place}[{index}]", item, key, depth - 1)
            for index, item in enumerate(value)
        ]
    if isinstance(value, float) and not math.isfinite(value):
        raise SettingsError(f"{place} is {value!r}, which JSON cannot express.", key=key)
    if value is None or isinstance(value, str | int | float):
        return value
    raise SettingsError(
        f"{place} is a {type(value).__name__}, which cannot travel to another machine as data; "
        "use text, numbers, true, false, null, lists and mappings of them.",
        key=key,
    )
