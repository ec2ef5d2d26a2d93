"""The rules for what hangs on resources: labels, metadata, network tags, service accounts.

Pure checks of request values; each returns what the resource will hold.
Sources: https://cloud.google.com/compute/docs/labeling-resources#requirements, the ``Metadata``,
``Tags`` and
``ServiceAccount`` schemas of the discovery document.
"""

from __future__ import annotations

import re
import unicodedata
from typing import Any

from dask_gce.emulator.errors import invalid, required
from dask_gce.emulator.links import NAME, fingerprint

_METADATA_KEY = re.compile(r"[a-zA-Z0-9-_]{1,128}")
_METADATA_VALUE_BYTES = 262_144
_METADATA_TOTAL_BYTES = 512 * 1024
_SCOPE = re.compile(r"https://www\.googleapis\.com/auth/[a-z0-9._-]+")


def _label_text(text: str) -> bool:
    return all(
        character in "_-" or unicodedata.category(character) in ("Ll", "Lo", "Nd", "Nl", "No")
        for character in text
    )


def check_labels(labels: dict[str, str], field: str) -> dict[str, str]:
    """Return labels if they follow Google's rules.

    Parameters
    ----------
    labels : dict
        The labels from the request.
    field : str
        The field they came from, for the refusal.

    Returns
    -------
    dict
        A copy.

    Raises
    ------
    APIError
        There are more than 64, or a key or value breaks the rules.

    Examples
    --------
    >>> check_labels({"team": "a-1"}, "resource.labels")
    {'team': 'a-1'}
    """
    if len(labels) > 64:
        raise invalid(field, f"{len(labels)} labels", "At most 64 labels are allowed.")
    for key, value in labels.items():
        starts_well = key and unicodedata.category(key[0]) in ("Ll", "Lo")
        if not starts_well or len(key) > 63 or not _label_text(key):
            raise invalid(
                field,
                key,
                f"Label key '{key}' violates format constraints. The key must start with a"
                " lowercase character, can only contain lowercase letters, numeric characters,"
                " underscores and dashes. The key can be at most 63 characters long.",
            )
        if len(value) > 63 or not _label_text(value):
            raise invalid(
                field,
                value,
                f"Label value '{value}' violates format constraints. The value can only contain"
                " lowercase letters, numeric characters, underscores and dashes. The value can be"
                " at most 63 characters long.",
            )
    return dict(labels)


def check_metadata(metadata: dict[str, Any], field: str) -> dict[str, Any]:
    """Return metadata as an instance shows it, if it follows Google's rules.

    Parameters
    ----------
    metadata : dict
        The ``Metadata`` from the request.
    field : str
        The field it came from, for the refusal.

    Returns
    -------
    dict
        The ``compute#metadata``, with its fingerprint.

    Raises
    ------
    APIError
        A key is malformed or given twice, a value or the whole is too large.

    Examples
    --------
    >>> check_metadata({"items": [{"key": "a", "value": "b"}]}, "resource.metadata")["items"]
    [{'key': 'a', 'value': 'b'}]
    """
    items: list[dict[str, str]] = []
    seen: set[str] = set()
    total = 0
    for index, item in enumerate(metadata.get("items", ())):
        key = item.get("key", "")
        value = item.get("value", "")
        where = f"{field}.items[{index}]"
        if not _METADATA_KEY.fullmatch(key):
            raise invalid(
                f"{where}.key", key, f"Must be a match of regex '{_METADATA_KEY.pattern}'"
            )
        if key in seen:
            raise invalid(field, key, f"Metadata has duplicate key: {key}")
        seen.add(key)
        size = len(value.encode())
        if size > _METADATA_VALUE_BYTES:
            raise invalid(
                f"{where}.value",
                f"{size} bytes",
                f"Metadata value for key '{key}' must not exceed {_METADATA_VALUE_BYTES} bytes.",
            )
        total += size + len(key)
        items.append({"key": key, "value": value})
    if total > _METADATA_TOTAL_BYTES:
        raise invalid(
            field, f"{total} bytes", f"Metadata must not exceed {_METADATA_TOTAL_BYTES} bytes."
        )
    shown: dict[str, Any] = {"kind": "compute#metadata", "fingerprint": fingerprint(items)}
    if items:
        shown["items"] = items
    return shown


def check_tags(tags: dict[str, Any], field: str) -> dict[str, Any]:
    """Return network tags as an instance shows them.

    Parameters
    ----------
    tags : dict
        The ``Tags`` from the request.
    field : str
        The field they came from, for the refusal.

    Returns
    -------
    dict
        The tags, with their fingerprint.

    Raises
    ------
    APIError
        A tag is no RFC 1035 label, or there are more than 64.
    """
    items: list[str] = tags.get("items", [])
    if len(items) > 64:
        raise invalid(f"{field}.items", f"{len(items)} tags", "At most 64 tags are allowed.")
    for index, tag in enumerate(items):
        if not NAME.fullmatch(tag):
            raise invalid(
                f"{field}.items[{index}]", tag, f"Must be a match of regex '{NAME.pattern}'"
            )
    shown: dict[str, Any] = {"fingerprint": fingerprint(items)}
    if items:
        shown["items"] = list(items)
    return shown


def check_service_accounts(
    accounts: list[dict[str, Any]], field: str, default: str
) -> list[dict[str, Any]]:
    """Return service accounts as an instance shows them.

    Parameters
    ----------
    accounts : list of dict
        The ``ServiceAccount`` objects from the request.
    field : str
        The field they came from, for the refusal.
    default : str
        The address that ``default`` stands for.

    Returns
    -------
    list of dict
        At most one account.

    Raises
    ------
    APIError
        There is more than one, an address or a scope is malformed, or the scopes are missing.
    """
    if len(accounts) > 1:
        raise invalid(
            field, f"{len(accounts)} accounts", "At most one service account can be specified."
        )
    shown = []
    for account in accounts:
        email = account.get("email", "default")
        if email != "default" and not re.fullmatch(r"[^@\s]+@[^@\s]+\.[^@\s]+", email):
            raise invalid(
                f"{field}[0].email",
                email,
                "The specified service account email is not valid.",
            )
        scopes = account.get("scopes", [])
        if not scopes:
            raise required(f"{field}[0].scopes")
        for index, scope in enumerate(scopes):
            if not _SCOPE.fullmatch(scope):
                raise invalid(f"{field}[0].scopes[{index}]", scope, "The scope is not valid.")
        shown.append({"email": default if email == "default" else email, "scopes": list(scopes)})
    return shown
