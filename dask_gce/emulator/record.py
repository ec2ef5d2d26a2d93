"""What the emulator knows of one instance: the resource, its serial console, its guest attributes.

The Compute API writes it, the instance's machine and its metadata server read it, and a counter
tells everyone who waits that something changed.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import Any

#: Compute Engine keeps the last mebibyte of a serial port's output.
SERIAL_BUFFER_SIZE = 1024 * 1024


class SerialConsole:
    """The last of a machine's serial port output, addressed by absolute byte offset.

    Parameters
    ----------
    size : int
        How many bytes are kept.
    """

    def __init__(self, size: int = SERIAL_BUFFER_SIZE) -> None:
        self._size = size
        self._data = bytearray()
        self._start = 0

    def write(self, data: bytes) -> None:
        """Append output, forgetting the oldest bytes beyond the buffer's size.

        Parameters
        ----------
        data : bytes
            The output.
        """
        self._data += data
        surplus = len(self._data) - self._size
        if surplus > 0:
            del self._data[:surplus]
            self._start += surplus

    def read(self, start: int = 0) -> tuple[bytes, int, int]:
        """Return the output from an offset on.

        Parameters
        ----------
        start : int
            Absolute offset in bytes; negative counts from the end, as in the API.

        Returns
        -------
        contents : bytes
            The output that is still kept from there on.
        start : int
            The offset of its first byte, later than asked for if that is forgotten.
        next : int
            The offset to ask for next.
        """
        end = self._start + len(self._data)
        if start < 0:
            start = end + start
        first = min(max(start, self._start), end)
        return bytes(self._data[first - self._start :]), first, end


@dataclass
class InstanceRecord:
    """One instance of the emulator.

    Parameters
    ----------
    project : str
        Project ID.
    project_number : int
        The project's number, as the metadata server shows it.
    zone : str
        Zone name.
    resource : dict
        The ``compute#instance`` resource in API JSON, as ``instances.get`` answers it.
    guest_attributes : dict
        What the guest published: namespace -> key -> value.
    serial : SerialConsole
        Its first serial port.
    preempted : bool
        Whether Compute Engine is taking it away.
    maintenance_event : str
        What the host is about to do to it, in the metadata server's words.
    version : int
        How often it has changed.
    access_token : str
        The token that its service account gets, of no other machine; empty without an account.
    """

    project: str
    project_number: int
    zone: str
    resource: dict[str, Any]
    guest_attributes: dict[str, dict[str, str]] = field(default_factory=dict)
    serial: SerialConsole = field(default_factory=SerialConsole)
    preempted: bool = False
    maintenance_event: str = "NONE"
    version: int = 0
    access_token: str = field(default="", repr=False)
    _changed: asyncio.Event = field(default_factory=asyncio.Event, repr=False)

    @property
    def name(self) -> str:
        """The instance's name."""
        return str(self.resource["name"])

    @property
    def domain(self) -> str:
        """The domain of the project's internal DNS names."""
        # The ID of a project of a domain, example.com:p, is p.example.com in names.
        return f"c.{'.'.join(reversed(self.project.split(':')))}.internal"

    @property
    def hostname(self) -> str:
        """The zonal DNS name."""
        return f"{self.name}.{self.zone}.{self.domain}"

    @property
    def metadata(self) -> dict[str, str]:
        """The instance's custom metadata as a mapping."""
        items = self.resource.get("metadata", {}).get("items", [])
        return {item["key"]: item.get("value", "") for item in items}

    def touch(self) -> None:
        """Say that something changed; whoever waits in :meth:`wait_for_change` wakes."""
        self.version += 1
        self._changed.set()
        self._changed = asyncio.Event()

    async def wait_for_change(self, version: int, timeout: float | None) -> bool:
        """Wait until the record is newer than a version.

        Parameters
        ----------
        version : int
            The version the caller has seen.
        timeout : float or None
            Seconds to wait; None waits for ever.

        Returns
        -------
        bool
            Whether it changed in time.
        """
        if self.version != version:
            return True
        try:
            await asyncio.wait_for(self._changed.wait(), timeout)
        except asyncio.TimeoutError:
            return False
        return True
