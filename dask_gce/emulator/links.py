"""Names and addresses of resources: what is a well-formed name, which resource a link means.

Owns: the rule for names, the making and reading of resource links, timestamps, IDs and
fingerprints. Knows no resource.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import secrets
from datetime import datetime, timedelta, timezone
from typing import Any
from urllib.parse import unquote, urlsplit

from dask_gce.emulator.errors import invalid

#: RFC 1035 as Compute Engine demands it.
NAME = re.compile(r"[a-z](?:[-a-z0-9]{0,61}[a-z0-9])?")

#: https://cloud.google.com/resource-manager/docs/creating-managing-projects, with the optional
#: domain prefix of old projects.
PROJECT_ID = re.compile(r"(?:[a-z][-a-z0-9.]{1,60}:)?[a-z][-a-z0-9]{4,28}[a-z0-9]")

_TIME = re.compile(r"([0-9-]{10}T[0-9:]{8})(?:\.([0-9]+))?(Z|[+-][0-9]{2}:[0-9]{2})")


def check_name(name: object, field: str = "resource.name") -> str:
    """Return a resource's name if it is well-formed.

    Parameters
    ----------
    name : object
        The value from the request.
    field : str
        The field it came from, for the refusal.

    Returns
    -------
    str
        The name.

    Raises
    ------
    APIError
        It is no RFC 1035 label.

    Examples
    --------
    >>> check_name("dask-3f9a-worker-7c2e")
    'dask-3f9a-worker-7c2e'
    """
    if not isinstance(name, str) or not NAME.fullmatch(name):
        raise invalid(field, name, f"Must be a match of regex '{NAME.pattern}'")
    return name


def path_of(link: str) -> str:
    """Return a link without scheme, host and API version.

    Parameters
    ----------
    link : str
        A full URL, or a partial one such as ``zones/us-central1-a/machineTypes/e2-small``.

    Returns
    -------
    str
        The path from ``projects/``, ``zones/``, ``global/``... on; empty, which is the path of no
        resource, where the URL is malformed.

    Examples
    --------
    >>> path_of("https://www.googleapis.com/compute/v1/projects/p/global/networks/n")
    'projects/p/global/networks/n'
    >>> path_of("global/networks/n")
    'global/networks/n'
    """
    try:
        path = urlsplit(link).path if "://" in link else link
    except ValueError:
        return ""
    path = re.sub(r"^/*compute/(?:v1|beta|alpha)/", "", path)
    return unquote(path).strip("/")


def last_segment(link: str) -> str:
    """Return the resource name at the end of a link or path.

    Parameters
    ----------
    link : str
        The link.

    Returns
    -------
    str
        The name.
    """
    return link.rstrip("/").rsplit("/", 1)[-1]


def now(delay: float = 0.0) -> str:
    """Return a time as Google writes it: RFC 3339, milliseconds.

    Parameters
    ----------
    delay : float
        Seconds from now.

    Returns
    -------
    str
        The time.
    """
    moment = datetime.now(timezone.utc) + timedelta(seconds=delay)
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def moment_of(text: str) -> datetime:
    """Return the time that a text means.

    Parameters
    ----------
    text : str
        A time in RFC 3339, with seconds and an offset; what is finer than a microsecond is cut
        off.

    Returns
    -------
    datetime
        The time, with its offset.

    Raises
    ------
    ValueError
        It is no such time.

    Examples
    --------
    >>> moment_of("2026-12-24T18:00:00.123456789+01:00").isoformat()
    '2026-12-24T18:00:00.123456+01:00'
    """
    match = _TIME.fullmatch(text)
    if match is None:
        raise ValueError(f"{text!r} is no time in RFC 3339")
    # `fromisoformat` understands more in each version of Python.
    moment = datetime.strptime(match[1] + match[3], "%Y-%m-%dT%H:%M:%S%z")
    return moment + timedelta(microseconds=int(f"{match[2] or '':0<6.6}"))


def new_id() -> str:
    """Return a fresh resource ID.

    Returns
    -------
    str
        An unsigned 64-bit integer in decimal, as JSON carries it.
    """
    return str(secrets.randbits(62) | 1 << 62)


def number_of(text: str) -> int:
    """Return a stable 12-digit number for a text, as projects have one.

    Parameters
    ----------
    text : str
        The text.

    Returns
    -------
    int
        Its number.
    """
    digest = hashlib.sha256(text.encode()).digest()
    return 100_000_000_000 + int.from_bytes(digest[:8], "big") % 900_000_000_000


def fingerprint(value: Any) -> str:
    """Return a fingerprint of a JSON value.

    Parameters
    ----------
    value : object
        The value.

    Returns
    -------
    str
        Eight bytes in URL-safe base64, as in the API.
    """
    text = json.dumps(value, sort_keys=True, separators=(",", ":"))
    return base64.urlsafe_b64encode(hashlib.sha256(text.encode()).digest()[:8]).decode()
