"""A session of IAP's TCP forwarding: bytes in, events out, no I/O.

Owns: what the far end may say when, how much may be under way in each direction, and what is sent
again after a cut. Leaves single frames to `frames`, websockets, sockets and time to `passage`, and
what the far end means when it closes to `refusals`.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator

from dask_gce.reach.frames import (
    Confirmed,
    Connected,
    Data,
    Event,
    Resumed,
    broken,
    build_ack,
    build_data,
    read_frame,
)

__all__ = ["WINDOW", "Relay"]

#: Received bytes after which they are acknowledged at once. gcloud does it after 32 KiB, IAP
#: Desktop after 1 MiB, and says that the far end stops at about 1.5 MB that are not acknowledged.
ACK_AFTER = 128 * 1024
#: Bytes that may be sent and not be acknowledged: they are kept in memory, to be sent again. More
#: than a far end leaves unacknowledged on purpose, and 40 MB/s where an answer takes 0.1 s.
WINDOW = 4 * 1024 * 1024


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
        return build_data(view)

    def resend(self) -> Iterator[bytes]:
        """Return what the far end has not received, after it has said where it stands.

        Returns
        -------
        iterator of bytes
            The frames, in order.
        """
        for view in tuple(self._kept):
            yield from build_data(view)

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
        return build_ack(self.received)

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
        event = read_frame(message)
        if isinstance(event, Data):
            return self._take_data(event)
        if isinstance(event, Confirmed):
            if not self._established:
                raise broken("an ACK before the connection")
            self._confirm(event.received, "ACK")
        elif isinstance(event, Connected):
            if self._established or self.sid:
                raise broken("a second CONNECT_SUCCESS_SID")
            self.sid = event.sid
            self._established = True
        elif isinstance(event, Resumed):
            self._resume(event)
        return event

    def _take_data(self, event: Data) -> Data | None:
        if not self._established:
            raise broken("DATA before the connection")
        if not event.content:
            return None
        self.received += len(event.content)
        return event

    def _resume(self, event: Resumed) -> None:
        name = "RECONNECT_SUCCESS_ACK"
        if self._established or not self.sid:
            raise broken(f"{name} where nothing was to be resumed")
        self._confirm(event.received, name)
        # It was told with the request for this websocket what has come.
        self._acknowledged = self.received
        self._established = True

    def _confirm(self, received: int, name: str) -> None:
        if not self.confirmed <= received <= self.sent:
            raise broken(
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
