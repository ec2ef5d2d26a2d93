"""The relay protocol of IAP's TCP forwarding, version 4: bytes in, events out, no I/O.

Owns: the frames, how much may be under way in each direction, what is sent again after a cut, and
the checks of what the far end says. Leaves websockets, sockets and time to `passage`, and what the
far end means when it closes to `refusals`.

Each websocket message is one frame, big-endian::

    0x0001 CONNECT_SUCCESS_SID      u32 length, the session's ID
    0x0002 RECONNECT_SUCCESS_ACK    u64 bytes received by the far end
    0x0004 DATA                     u32 length, at most 16384 bytes
    0x0007 ACK                      u64 bytes received so far
    0x000A LONG_CLOSE               u32 close code, u32 length, reason

Sources: gcloud (``api_lib/compute/iap_tunnel_websocket*.py`` of Google Cloud SDK 528.0.0) and IAP
Desktop (``Google.Solutions.Iap/Protocol/SshRelay*.cs``). As gcloud does, this side overlooks what
follows after the end of a frame, and frames that it does not know.
"""

from __future__ import annotations

import struct
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass

from dask_gce.errors import TunnelError

__all__ = [
    "MAX_DATA",
    "SUBPROTOCOL",
    "WINDOW",
    "Confirmed",
    "Connected",
    "Data",
    "Event",
    "LongClose",
    "Relay",
    "Resumed",
]

#: What both ends call this protocol in the websocket's handshake.
SUBPROTOCOL = "relay.tunnel.cloudproxy.app"
#: Bytes in one DATA frame, at most (both of Google's clients).
MAX_DATA = 16384
#: Received bytes after which they are acknowledged at once. gcloud does it after 32 KiB, IAP
#: Desktop after 1 MiB, and says that the far end stops at about 1.5 MB that are not acknowledged.
ACK_AFTER = 128 * 1024
#: Bytes that may be sent and not be acknowledged: they are kept in memory, to be sent again. More
#: than a far end leaves unacknowledged on purpose, and 40 MB/s where an answer takes 0.1 s.
WINDOW = 4 * 1024 * 1024
#: The close code of RFC 6455 for who breaks the protocol.
PROTOCOL_ERROR = 1002

_CONNECTED, _RESUMED, _DATA, _ACK, _LONG_CLOSE = 0x0001, 0x0002, 0x0004, 0x0007, 0x000A
_TAG = struct.Struct(">H")
_SIZED = struct.Struct(">HI")
_COUNT = struct.Struct(">HQ")
_CLOSE = struct.Struct(">HII")


@dataclass(frozen=True, slots=True)
class Connected:
    """The far end has reached the instance's port.

    Parameters
    ----------
    sid : str
        The session's ID, with which it can be resumed.
    """

    sid: str


@dataclass(frozen=True, slots=True)
class Resumed:
    """The far end goes on with a session after a cut.

    Parameters
    ----------
    received : int
        Bytes that had reached it before the cut.
    """

    received: int


@dataclass(frozen=True, slots=True)
class Data:
    """Bytes have come from the instance.

    Parameters
    ----------
    content : memoryview
        The bytes, inside the message that brought them.
    """

    content: memoryview


@dataclass(frozen=True, slots=True)
class Confirmed:
    """The far end has received bytes.

    Parameters
    ----------
    received : int
        All bytes that have reached it so far.
    """

    received: int


@dataclass(frozen=True, slots=True)
class LongClose:
    """The far end is about to close, for a reason too long for a websocket's close frame.

    Parameters
    ----------
    code : int
        The close code.
    reason : str
        The reason.
    """

    code: int
    reason: str


Event = Connected | Resumed | Data | Confirmed | LongClose


class Relay:
    """One TCP connection's way through IAP, over as many websockets as it takes.

    Attributes
    ----------
    sid : str
        The session's ID; empty until the far end has given one.
    received : int
        Bytes that have come from the instance.
    sent : int
        Bytes that were given to `send`.
    confirmed : int
        Bytes of these that the far end has received.

    Examples
    --------
    >>> relay = Relay()
    >>> relay.receive(b"\\x00\\x01" + b"\\x00\\x00\\x00\\x03" + b"sid")
    Connected(sid='sid')
    >>> list(relay.send(b"hello"))
    [b'\\x00\\x04\\x00\\x00\\x00\\x05hello']
    >>> relay.unconfirmed
    5
    >>> relay.receive(b"\\x00\\x07" + (5).to_bytes(8, "big"))
    Confirmed(received=5)
    """

    def __init__(self) -> None:
        self.sid = ""
        self.received = 0
        self.sent = 0
        self.confirmed = 0
        self._acknowledged = 0
        self._established = False
        self._kept: deque[memoryview] = deque()

    @property
    def unconfirmed(self) -> int:
        """How many bytes the far end may not have received."""
        return self.sent - self.confirmed

    @property
    def room(self) -> int:
        """How many bytes may be sent before the far end confirms some; 0 if it has to first."""
        return WINDOW - self.sent + self.confirmed

    @property
    def ack_due(self) -> bool:
        """Whether so much has come that it is to be acknowledged now."""
        return self.received - self._acknowledged >= ACK_AFTER

    def begin(self) -> None:
        """Expect the frames of a new websocket."""
        self._established = False

    def send(self, content: bytes | memoryview) -> Iterator[bytes]:
        """Give bytes for the instance, and get the frames that carry them.

        Parameters
        ----------
        content : bytes or memoryview
            The bytes, not to be changed from now on: they are kept until they are confirmed.

        Returns
        -------
        iterator of bytes
            The frames, in order. All of the bytes count as sent, also if a cut comes between.

        Raises
        ------
        ValueError
            More than there is room for.
        """
        view = memoryview(content)
        if len(view) > self.room:
            raise ValueError(
                f"{len(view)} bytes do not fit into a window with room for {self.room}"
            )
        self.sent += len(view)
        if view:
            self._kept.append(view)
        return _frames(view)

    def resend(self) -> Iterator[bytes]:
        """Return what the far end has not received, after it has said where it stands.

        Returns
        -------
        iterator of bytes
            The frames, in order.
        """
        for view in tuple(self._kept):
            yield from _frames(view)

    def acknowledge(self) -> bytes | None:
        """Return the frame that acknowledges all that has come; None if that is acknowledged.

        Returns
        -------
        bytes or None
            The frame.
        """
        if self._acknowledged == self.received:
            return None
        self._acknowledged = self.received
        return _COUNT.pack(_ACK, self.received)

    def receive(self, message: bytes) -> Event | None:
        """Take a message of the websocket.

        Parameters
        ----------
        message : bytes
            The whole message.

        Returns
        -------
        Event or None
            What it says; None for a frame that this side does not know.

        Raises
        ------
        TunnelError
            The far end breaks the protocol.
        """
        if len(message) < _TAG.size:
            raise _broken(f"a frame of {len(message)} bytes")
        (tag,) = _TAG.unpack_from(message)
        if tag == _DATA:
            return self._take_data(message)
        if tag == _ACK:
            if not self._established:
                raise _broken("an ACK before the connection")
            return Confirmed(self._confirm(_read_count(message, "ACK"), "ACK"))
        if tag == _CONNECTED:
            return self._connect(message)
        if tag == _RESUMED:
            return self._resume(message)
        if tag == _LONG_CLOSE:
            return _read_close(message)
        return None

    def _take_data(self, message: bytes) -> Data | None:
        if not self._established:
            raise _broken("DATA before the connection")
        content = _read_sized(message, "DATA")
        if not content:
            return None
        self.received += len(content)
        return Data(content)

    def _connect(self, message: bytes) -> Connected:
        if self._established or self.sid:
            raise _broken("a second CONNECT_SUCCESS_SID")
        content = bytes(_read_sized(message, "CONNECT_SUCCESS_SID"))
        # It becomes part of an address. What else would be in it is no ID.
        if not content or not content.isascii() or not content.decode("ascii").isprintable():
            raise _broken("a session without an ID that can be repeated")
        self.sid = content.decode("ascii")
        self._established = True
        return Connected(self.sid)

    def _resume(self, message: bytes) -> Resumed:
        name = "RECONNECT_SUCCESS_ACK"
        if self._established or not self.sid:
            raise _broken(f"{name} where nothing was to be resumed")
        received = self._confirm(_read_count(message, name), name)
        # It was told with the request for this websocket what has come.
        self._acknowledged = self.received
        self._established = True
        return Resumed(received)

    def _confirm(self, received: int, name: str) -> int:
        if not self.confirmed <= received <= self.sent:
            raise _broken(
                f"{name} of {received} bytes after {self.sent} were sent"
                f" and {self.confirmed} confirmed"
            )
        surplus = received - self.confirmed
        while surplus:
            first = self._kept[0]
            if len(first) > surplus:
                self._kept[0] = first[surplus:]
                break
            surplus -= len(first)
            self._kept.popleft()
        self.confirmed = received
        return received


def _frames(content: memoryview) -> Iterator[bytes]:
    for start in range(0, len(content), MAX_DATA):
        piece = content[start : start + MAX_DATA]
        yield b"".join((_SIZED.pack(_DATA, len(piece)), piece))


def _read_sized(message: bytes, name: str) -> memoryview:
    if len(message) < _SIZED.size:
        raise _broken(f"{name} of {len(message)} bytes")
    _, length = _SIZED.unpack_from(message)
    if length > min(MAX_DATA, len(message) - _SIZED.size):
        raise _broken(f"{name} that promises {length} bytes in {len(message)}")
    return memoryview(message)[_SIZED.size : _SIZED.size + length]


def _read_count(message: bytes, name: str) -> int:
    if len(message) < _COUNT.size:
        raise _broken(f"{name} of {len(message)} bytes")
    count: int = _COUNT.unpack_from(message)[1]
    return count


def _read_close(message: bytes) -> LongClose:
    if len(message) < _CLOSE.size:
        raise _broken(f"LONG_CLOSE of {len(message)} bytes")
    _, code, length = _CLOSE.unpack_from(message)
    reason = message[_CLOSE.size : _CLOSE.size + length]
    if len(reason) < length:
        raise _broken(f"LONG_CLOSE that promises {length} bytes in {len(message)}")
    return LongClose(code, reason.decode("utf-8", "replace"))


def _broken(what: str) -> TunnelError:
    return TunnelError(
        f"The far end of the IAP tunnel breaks the protocol: it sent {what}.", code=PROTOCOL_ERROR
    )
