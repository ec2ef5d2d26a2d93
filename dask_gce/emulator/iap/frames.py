"""What a tunnel's messages look like, and the codes with which its websockets are closed.

Owns the bytes: pure, nothing is sent or received here. What a message means is told by `session`.

Source: gcloud's own client (``api_lib/compute/iap_tunnel_websocket*.py``), and those of
https://github.com/GoogleCloudPlatform/iap-desktop
"""

from __future__ import annotations

import struct
from enum import IntEnum

#: Bytes of data in one message.
LARGEST_DATA = 16384

#: Clients say how much they have received once it is more than this beyond what they said last.
ACK_UNIT = 2 * LARGEST_DATA

_TAG = struct.Struct("!H")
_SIZED = struct.Struct("!HI")
_COUNT = struct.Struct("!HQ")


class Tag(IntEnum):
    """The first two bytes of a message."""

    CONNECT_SUCCESS_SID = 0x0001
    RECONNECT_SUCCESS_ACK = 0x0002
    DATA = 0x0004
    ACK = 0x0007
    LONG_CLOSE = 0x000A


class Code(IntEnum):
    """Why a websocket is closed."""

    NORMAL = 1000
    #: Never sent: the connection broke off, or was cut.
    BROKEN_OFF = 1006
    UNKNOWN = 4000
    SID_UNKNOWN = 4001
    SID_IN_USE = 4002
    FAILED_TO_CONNECT_TO_BACKEND = 4003
    REAUTHENTICATION_REQUIRED = 4004
    BAD_ACK = 4005
    INVALID_ACK = 4006
    INVALID_WEBSOCKET_OPCODE = 4007
    INVALID_TAG = 4008
    DESTINATION_WRITE_FAILED = 4009
    DESTINATION_READ_FAILED = 4010
    INVALID_DATA = 4013
    NOT_AUTHORIZED = 4033
    LOOKUP_FAILED = 4047
    LOOKUP_FAILED_RECONNECT = 4051
    FAILED_TO_REWIND = 4074


class Closed(Exception):
    """The websocket is to be closed.

    Parameters
    ----------
    code : int
        The code that says why: a :class:`Code`, or what a test wants.
    reason : str
        The same in words.
    """

    def __init__(self, code: int, reason: str) -> None:
        super().__init__(reason)
        self.code = code


def parse(message: bytes) -> tuple[Tag, int | memoryview]:
    """Read a message of a client.

    Parameters
    ----------
    message : bytes
        The message.

    Returns
    -------
    tag : Tag
        What it is.
    content : int or memoryview
        The count of an ``ACK``, the bytes of ``DATA``; zero for a ``LONG_CLOSE``.

    Raises
    ------
    Closed
        No client may send that.

    Examples
    --------
    >>> tag, data = parse(bytes.fromhex("0004 00000002 6869"))
    >>> tag.name, bytes(data)
    ('DATA', b'hi')
    """
    try:
        (number,) = _TAG.unpack_from(message)
        if number == Tag.DATA:
            _, size = _SIZED.unpack_from(message)
            if not size == len(message) - _SIZED.size <= LARGEST_DATA:
                raise Closed(Code.INVALID_DATA, "The size of the data is wrong.")
            return Tag.DATA, memoryview(message)[_SIZED.size :]
        if number == Tag.ACK:
            return Tag.ACK, int(_COUNT.unpack(message)[1])
    except struct.error as error:
        raise Closed(Code.INVALID_DATA, "A message is cut short.") from error
    if number == Tag.LONG_CLOSE:
        return Tag.LONG_CLOSE, 0
    raise Closed(Code.INVALID_TAG, f"Clients send no messages 0x{number:04x}.")


def connected(sid: str) -> bytes:
    """Make the websocket frame that tells a client its session.

    Parameters
    ----------
    sid : str
        The session's ID.

    Returns
    -------
    bytes
        The frame.
    """
    text = sid.encode()
    return _frame(_SIZED.pack(Tag.CONNECT_SUCCESS_SID, len(text)) + text)


def reconnected(received: int) -> bytes:
    """Make the websocket frame that tells a client from where to go on.

    Parameters
    ----------
    received : int
        Bytes of the client's that have arrived.

    Returns
    -------
    bytes
        The frame.
    """
    return _frame(_COUNT.pack(Tag.RECONNECT_SUCCESS_ACK, received))


def acknowledgement(received: int) -> bytes:
    """Make the websocket frame that tells a client what has arrived.

    Parameters
    ----------
    received : int
        Bytes, from the session's beginning on.

    Returns
    -------
    bytes
        The frame.
    """
    return _frame(_COUNT.pack(Tag.ACK, received))


def data(content: bytes | memoryview) -> bytes:
    """Make the websocket frames that bring data, as many as it takes.

    They are made together, websocket's headers and all, so that the data is copied once and sent by
    one call of the system.

    Parameters
    ----------
    content : bytes or memoryview
        The data.

    Returns
    -------
    bytes
        The frames.

    Examples
    --------
    >>> data(b"hi").hex(" ")
    '82 08 00 04 00 00 00 02 68 69'
    """
    view = memoryview(content)
    pieces: list[bytes | memoryview] = []
    for at in range(0, len(view), LARGEST_DATA):
        piece = view[at : at + LARGEST_DATA]
        size = len(piece)
        pieces += (_head(_SIZED.size + size), _SIZED.pack(Tag.DATA, size), piece)
    return b"".join(pieces)


def _frame(message: bytes) -> bytes:
    return _head(len(message)) + message


def _head(size: int) -> bytes:
    """Make the header of a binary, unmasked websocket frame (RFC 6455, section 5.2)."""
    return struct.pack("!BB", 0x82, size) if size < 126 else struct.pack("!BBH", 0x82, 126, size)
