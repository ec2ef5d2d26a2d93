"""The frames of IAP's TCP forwarding, version 4: what they look like, and what they say.

Owns: building and reading one frame. Leaves what may be said when, and in which order, to `relay`.

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
from collections.abc import Iterator
from dataclasses import dataclass

from dask_gce.errors import TunnelError

__all__ = [
    "MAX_DATA",
    "SUBPROTOCOL",
    "Confirmed",
    "Connected",
    "Data",
    "Event",
    "LongClose",
    "Resumed",
    "broken",
    "build_ack",
    "build_data",
    "read_frame",
]

#: What both ends call this protocol in the websocket's handshake.
SUBPROTOCOL = "relay.tunnel.cloudproxy.app"
#: Bytes in one DATA frame, at most (both of Google's clients).
MAX_DATA = 16384
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


def read_frame(message: bytes) -> Event | None:
    """Read a frame.

    Parameters
    ----------
    message : bytes
        The whole message of the websocket.

    Returns
    -------
    Event or None
        What it says; None for a frame that this side does not know.

    Raises
    ------
    TunnelError
        It is no frame.

    Examples
    --------
    >>> read_frame(b"\\x00\\x07" + (5).to_bytes(8, "big"))
    Confirmed(received=5)
    """
    if len(message) < _TAG.size:
        raise broken(f"a frame of {len(message)} bytes")
    (tag,) = _TAG.unpack_from(message)
    # The most frequent first.
    if tag == _DATA:
        return Data(_read_sized(message, "DATA"))
    if tag == _ACK:
        return Confirmed(_read_count(message, "ACK"))
    if tag == _CONNECTED:
        return Connected(_read_sid(message))
    if tag == _RESUMED:
        return Resumed(_read_count(message, "RECONNECT_SUCCESS_ACK"))
    if tag == _LONG_CLOSE:
        return _read_close(message)
    return None


def build_ack(received: int) -> bytes:
    """Build the frame that acknowledges bytes.

    Parameters
    ----------
    received : int
        All bytes that have come so far.

    Returns
    -------
    bytes
        The frame.
    """
    return _COUNT.pack(_ACK, received)


def build_data(content: memoryview) -> Iterator[bytes]:
    """Build the frames that carry bytes.

    Parameters
    ----------
    content : memoryview
        The bytes.

    Yields
    ------
    bytes
        A frame; each byte is copied once.
    """
    for start in range(0, len(content), MAX_DATA):
        piece = content[start : start + MAX_DATA]
        yield b"".join((_SIZED.pack(_DATA, len(piece)), piece))


def broken(what: str) -> TunnelError:
    """Build the error for a far end that breaks the protocol.

    Parameters
    ----------
    what : str
        What it sent.

    Returns
    -------
    TunnelError
        The error.
    """
    return TunnelError(
        f"The far end of the IAP tunnel breaks the protocol: it sent {what}.", code=PROTOCOL_ERROR
    )


def _read_sid(message: bytes) -> str:
    content = bytes(_read_sized(message, "CONNECT_SUCCESS_SID"))
    # It becomes part of an address. What else would be in it is no ID.
    if not content or not content.isascii() or not content.decode("ascii").isprintable():
        raise broken("a session without an ID that can be repeated")
    return content.decode("ascii")


def _read_sized(message: bytes, name: str) -> memoryview:
    if len(message) < _SIZED.size:
        raise broken(f"{name} of {len(message)} bytes")
    _, length = _SIZED.unpack_from(message)
    if length > min(MAX_DATA, len(message) - _SIZED.size):
        raise broken(f"{name} that promises {length} bytes in {len(message)}")
    return memoryview(message)[_SIZED.size : _SIZED.size + length]


def _read_count(message: bytes, name: str) -> int:
    if len(message) < _COUNT.size:
        raise broken(f"{name} of {len(message)} bytes")
    count: int = _COUNT.unpack_from(message)[1]
    return count


def _read_close(message: bytes) -> LongClose:
    if len(message) < _CLOSE.size:
        raise broken(f"LONG_CLOSE of {len(message)} bytes")
    _, code, length = _CLOSE.unpack_from(message)
    reason = message[_CLOSE.size : _CLOSE.size + length]
    if len(reason) < length:
        raise broken(f"LONG_CLOSE that promises {length} bytes in {len(message)}")
    return LongClose(code, reason.decode("utf-8", "replace"))
