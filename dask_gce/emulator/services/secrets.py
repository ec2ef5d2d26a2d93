"""Secrets and their versions, as Secret Manager keeps them.

Owns: what a secret is and shows, its expiry, its payloads and their checksums. The requests, and
who may make them, are the business of `secret_manager`.
Source: https://cloud.google.com/secret-manager/docs/reference/rest/v1/projects.secrets.
"""

from __future__ import annotations

import base64
import binascii
import re
import secrets
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta, timezone
from functools import lru_cache
from typing import Any

from dask_gce.emulator.errors import APIError, bad_request
from dask_gce.emulator.iam import Policy
from dask_gce.emulator.links import moment_of, now

#: The largest payload of a version, in bytes.
LARGEST_PAYLOAD = 64 * 1024

#: The shortest and the longest life of a secret, in seconds.
_SHORTEST_LIFE = 60
_LONGEST_LIFE = 100 * 365 * 24 * 3600

_DURATION = re.compile(r"([0-9]{1,12})(?:\.([0-9]{1,9}))?s")


@lru_cache(maxsize=1)
def _table() -> list[int]:
    table = []
    for byte in range(256):
        value = byte
        for _ in range(8):
            value = value >> 1 ^ (0x82F63B78 if value & 1 else 0)
        table.append(value)
    return table


def crc32c(data: bytes) -> int:
    """Return the checksum by which Secret Manager tells damaged payloads (RFC 3720, B.4).

    Parameters
    ----------
    data : bytes
        The payload.

    Returns
    -------
    int
        Its CRC-32C.

    Examples
    --------
    >>> hex(crc32c(b"123456789"))
    '0xe3069283'
    """
    table, value = _table(), 0xFFFFFFFF
    for byte in data:
        value = value >> 8 ^ table[(value ^ byte) & 0xFF]
    return value ^ 0xFFFFFFFF


def _etag() -> str:
    return f'"{secrets.token_hex(7)}"'


def check_etag(given: str, held: str) -> None:
    """Refuse a request that was made from an older state.

    Parameters
    ----------
    given : str
        The etag of the request; empty asks for no check.
    held : str
        The etag of the resource.

    Raises
    ------
    APIError
        They differ.
    """
    if given not in ("", held):
        raise APIError(
            400,
            "failedPrecondition",
            f"The etag provided in the request, [{given}], does not match the resource's current"
            f" etag [{held}].",
            rpc_status="FAILED_PRECONDITION",
        )


@dataclass
class Version:
    """One version of a secret.

    Parameters
    ----------
    name : str
        Its name, from ``projects/`` on.
    payload : bytes
        What it keeps; empty once it is destroyed.
    checked : bool
        Whether the one who added it sent a checksum.
    replication : str
        How its secret is replicated: ``automatic`` or ``userManaged``.
    state : str
        Whether it can be read, in Secret Manager's words.
    created : str
        When it was added.
    destroyed : str or None
        When it was destroyed.
    etag : str
        What changes with it.
    """

    name: str
    payload: bytes = field(repr=False)
    checked: bool
    replication: str
    state: str = "ENABLED"
    created: str = field(default_factory=now)
    destroyed: str | None = None
    etag: str = field(default_factory=_etag)

    def show(self) -> dict[str, Any]:
        """Return it as the API shows it.

        Returns
        -------
        dict
            The ``SecretVersion``.
        """
        shown: dict[str, Any] = {
            "name": self.name,
            "createTime": self.created,
            "state": self.state,
            "replicationStatus": {self.replication: {}},
            "etag": self.etag,
        }
        if self.checked:
            shown["clientSpecifiedPayloadChecksum"] = True
        if self.destroyed is not None:
            shown["destroyTime"] = self.destroyed
        return shown

    def access(self) -> dict[str, Any]:
        """Return its payload as the API shows it.

        Returns
        -------
        dict
            The ``AccessSecretVersionResponse``.

        Raises
        ------
        APIError
            It is disabled or destroyed.
        """
        if self.state != "ENABLED":
            raise _precondition(f"Secret Version [{self.name}] is in {self.state} state.")
        data = base64.b64encode(self.payload).decode()
        return {
            "name": self.name,
            "payload": {"data": data, "dataCrc32c": str(crc32c(self.payload))},
        }

    def turn(self, state: str) -> None:
        """Enable, disable or destroy it.

        Parameters
        ----------
        state : str
            The state it is to have.

        Raises
        ------
        APIError
            It is destroyed already.
        """
        if self.state == "DESTROYED":
            raise _precondition("SecretVersion.state is already DESTROYED.")
        self.state = state
        self.etag = _etag()
        if state == "DESTROYED":
            self.payload = b""
            self.destroyed = now()


class Secret:
    """One secret.

    Parameters
    ----------
    name : str
        Its name, from ``projects/`` on.
    body : mapping
        The ``Secret`` of the request.
    scale : float
        Seconds that pass per second of its ``ttl``.

    Raises
    ------
    APIError
        The request is malformed.
    """

    def __init__(self, name: str, body: Mapping[str, Any], scale: float) -> None:
        self.name = name
        self.policy = Policy()
        self.versions: list[Version] = []
        self._replication = _check_replication(body.get("replication", {}))
        self._end = _end_of(body, scale)
        self._resource: dict[str, Any] = {
            "name": name,
            "createTime": now(),
            "replication": self._replication,
            "etag": _etag(),
        }
        for key in ("labels", "annotations"):
            if body.get(key):
                self._resource[key] = dict(body[key])
        self._show_end()

    def _show_end(self) -> None:
        if self._end is not None:
            text = self._end.isoformat(timespec="microseconds")
            self._resource["expireTime"] = text.replace("+00:00", "Z")

    def change(self, body: Mapping[str, Any], fields: Collection[str], scale: float) -> None:
        """Change some of its fields.

        Parameters
        ----------
        body : mapping
            The ``Secret`` of the request.
        fields : collection of str
            Which: ``annotations``, ``expireTime``, ``labels`` and ``ttl``.
        scale : float
            Seconds that pass per second of its ``ttl``.

        Raises
        ------
        APIError
            The request is malformed.
        """
        named = {key: value for key, value in body.items() if key in fields}
        if {"expireTime", "ttl"} & set(fields):
            self._end = _end_of(named, scale)
            self._resource.pop("expireTime", None)
            self._show_end()
        for key in {"annotations", "labels"} & set(fields):
            self._resource.pop(key, None)
            if named.get(key):
                self._resource[key] = dict(named[key])
        self._resource["etag"] = _etag()

    @property
    def expired(self) -> bool:
        """Whether its time is up, so that it is gone."""
        return self._end is not None and datetime.now(timezone.utc) >= self._end

    @property
    def etag(self) -> str:
        """What changes with it."""
        return str(self._resource["etag"])

    def show(self) -> dict[str, Any]:
        """Return it as the API shows it.

        Returns
        -------
        dict
            The ``Secret``.
        """
        return self._resource

    def add(self, payload: Mapping[str, Any]) -> Version:
        """Add a version.

        Parameters
        ----------
        payload : mapping
            The ``SecretPayload`` of the request.

        Returns
        -------
        Version
            The version.

        Raises
        ------
        APIError
            The payload is malformed, damaged or too large.
        """
        data = _decode(payload.get("data", ""))
        if not data:
            raise bad_request("Secret Payload cannot be empty.")
        if len(data) > LARGEST_PAYLOAD:
            raise bad_request("The secret payload is larger than the maximum of 65,536 bytes.")
        checksum = payload.get("dataCrc32c")
        if checksum is not None and int(checksum) != crc32c(data):
            raise bad_request("The payload's checksum does not match the data_crc32c provided.")
        number = len(self.versions) + 1
        kind = next(iter(self._replication))
        version = Version(f"{self.name}/versions/{number}", data, checksum is not None, kind)
        self.versions.append(version)
        return version


def _decode(text: str) -> bytes:
    # Google reads both alphabets, padded or not.
    plain = text.replace("-", "+").replace("_", "/").rstrip("=")
    try:
        return base64.b64decode(plain + "=" * (-len(plain) % 4), validate=True)
    except (binascii.Error, ValueError):
        raise bad_request(
            "Invalid value at 'payload.data' (TYPE_BYTES), Base64 decoding failed."
        ) from None


def _precondition(message: str) -> APIError:
    return APIError(400, "failedPrecondition", message, rpc_status="FAILED_PRECONDITION")


def _check_replication(replication: Mapping[str, Any]) -> dict[str, Any]:
    if set(replication) == {"automatic"}:
        return {"automatic": {}}
    if set(replication) != {"userManaged"}:
        raise bad_request("Secret.replication must be automatic or userManaged.")
    locations = [one.get("location", "") for one in replication["userManaged"].get("replicas", ())]
    if not locations or not all(locations):
        raise bad_request("Secret.replication.userManaged.replicas must name locations.")
    return {"userManaged": {"replicas": [{"location": one} for one in locations]}}


def _end_of(body: Mapping[str, Any], scale: float) -> datetime | None:
    """Return when a secret that is written now expires; None is never."""
    if "ttl" in body and "expireTime" in body:
        raise bad_request("Secret.ttl and Secret.expireTime exclude each other.")
    moment = datetime.now(timezone.utc)
    if "ttl" in body:
        match = _DURATION.fullmatch(body["ttl"])
        if match is None:
            raise bad_request(f"Invalid value at 'secret.ttl' (Duration): {body['ttl']}")
        seconds = float(f"{match[1]}.{match[2] or 0}")
    elif "expireTime" in body:
        try:
            end = moment_of(body["expireTime"])
            seconds, scale = (end - moment).total_seconds(), 1
        except (ValueError, OverflowError):
            raise bad_request(
                f"Invalid value at 'secret.expireTime' (Timestamp): {body['expireTime']}"
            ) from None
    else:
        return None
    if not _SHORTEST_LIFE <= seconds <= _LONGEST_LIFE:
        raise bad_request("A secret must expire at least 60 s and at most 100 years from now.")
    return moment + timedelta(seconds=seconds * scale)
