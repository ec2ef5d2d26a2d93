"""A client of tunnels that is as bare as can be: it shows every frame and forgets nothing.

Owns: websocket frames and IAP's messages by hand, and a server behind the tunnel that does what a
test tells it. It shares no code with what it tests, on either end.
"""

from __future__ import annotations

import base64
import queue
import secrets
import socket
import ssl
import struct
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import urlencode, urlsplit

from clusters import PATIENCE
from rest import PROJECT, ZONE

from dask_gce.emulator.machines.paper import PaperKind
from dask_gce.emulator.record import InstanceRecord

CONTINUATION, TEXT, BINARY, CLOSE, PING, PONG = 0, 1, 2, 8, 9, 10
SID, RESUMED, DATA, ACK, LONG_CLOSE = 1, 2, 4, 7, 10


class Refusal(Exception):
    """The handshake was refused."""

    def __init__(self, status: int, body: str) -> None:
        super().__init__(f"{status}: {body}")
        self.status = status


class Closed(Exception):
    """The websocket was closed; without a word where the code is 1006."""

    def __init__(self, code: int, reason: str = "") -> None:
        super().__init__(f"{code}: {reason}")
        self.code = code


def data(content: bytes) -> bytes:
    return struct.pack("!HI", DATA, len(content)) + content


def ack(count: int) -> bytes:
    return struct.pack("!HQ", ACK, count)


class Tunnel:
    """One websocket, driven by hand.

    Parameters
    ----------
    endpoint : str
        The emulator's address.
    verb : str
        ``connect`` or ``reconnect``.
    token : str
        A bearer token, if any.
    trust : str
        The certificate to trust, where the endpoint is one of TLS.
    headers : dict
        More headers, or others; None leaves one out.
    """

    def __init__(
        self,
        endpoint: str,
        verb: str = "connect",
        token: str = "",
        trust: str = "",
        headers: dict[str, str | None] | None = None,
        **query: Any,
    ) -> None:
        self._buffer = bytearray()
        self.received = bytearray()
        self.acks: list[int] = []
        self.resumed_from: int | None = None
        self.sid = ""
        where = urlsplit(endpoint)
        assert where.port is not None
        self.socket = socket.create_connection(("127.0.0.1", where.port), PATIENCE)
        try:
            if trust:
                context = ssl.create_default_context(cadata=trust)
                self.socket = context.wrap_socket(self.socket, server_hostname="127.0.0.1")
            self._shake_hands(f"/v4/{verb}?{urlencode(query)}", where.netloc, token, headers or {})
        except BaseException:
            self.break_off()
            raise

    def _shake_hands(
        self, target: str, host: str, token: str, headers: dict[str, str | None]
    ) -> None:
        sent: dict[str, str | None] = {
            "Host": host,
            "Upgrade": "websocket",
            "Connection": "Upgrade",
            "Sec-WebSocket-Key": base64.b64encode(secrets.token_bytes(16)).decode(),
            "Sec-WebSocket-Version": "13",
            "Sec-WebSocket-Protocol": "relay.tunnel.cloudproxy.app",
            "Origin": "bot:iap-tunneler",
            "Authorization": f"Bearer {token}" if token else None,
            **headers,
        }
        lines = [f"GET {target} HTTP/1.1"]
        lines += [f"{name}: {value}" for name, value in sent.items() if value is not None]
        self.socket.sendall("\r\n".join([*lines, "", ""]).encode())
        while b"\r\n\r\n" not in self._buffer:
            self._fill()
        head, _, rest = bytes(self._buffer).partition(b"\r\n\r\n")
        self._buffer = bytearray(rest)
        first, *others = head.decode().split("\r\n")
        answer = {name.lower(): value for name, _, value in (one.partition(": ") for one in others)}
        status = int(first.split()[1])
        if status != 101:
            raise Refusal(status, self._exactly(int(answer["content-length"])).decode())
        assert answer["sec-websocket-protocol"] == "relay.tunnel.cloudproxy.app"

    def __enter__(self) -> Tunnel:
        return self

    def __exit__(self, *error: object) -> None:
        self.break_off()

    def break_off(self) -> None:
        """Hang up without a word, and lose what is on its way. May be called twice."""
        if self.socket.fileno() < 0:
            return
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.socket.close()

    # Frames

    def send_frame(self, opcode: int, payload: bytes = b"") -> None:
        """Send a frame; the mask is one that changes nothing."""
        size = len(payload)
        head = bytes([0x80 | opcode, 0x80 | (size if size < 126 else 126)])
        if size >= 126:
            head += struct.pack("!H", size)
        self.socket.sendall(head + bytes(4) + payload)

    def send(self, message: bytes) -> None:
        self.send_frame(BINARY, message)

    def send_close(self, code: int = 1000) -> None:
        self.send_frame(CLOSE, struct.pack("!H", code))

    def receive_frame(self) -> tuple[int, bytes]:
        try:
            head = self._exactly(2)
            assert head[0] & 0x70 == 0 and head[1] < 128, "servers mask nothing and extend nothing"
            size = head[1]
            if size == 126:
                (size,) = struct.unpack("!H", self._exactly(2))
            assert size != 127, "no message is so large"
            return head[0] & 15, self._exactly(size)
        except OSError as error:
            raise Closed(1006) from error

    def _exactly(self, size: int) -> bytes:
        while len(self._buffer) < size:
            self._fill()
        found = bytes(self._buffer[:size])
        del self._buffer[:size]
        return found

    def _fill(self) -> None:
        piece = self.socket.recv(2**16)
        if not piece:
            raise Closed(1006)
        self._buffer += piece

    def receive(self) -> int:
        """Receive one message, note what it says, and return its tag."""
        opcode, payload = self.receive_frame()
        if opcode == CLOSE:
            code = struct.unpack("!H", payload[:2])[0]
            raise Closed(code, payload[2:].decode())
        assert opcode == BINARY
        (tag,) = struct.unpack_from("!H", payload)
        if tag == DATA:
            (size,) = struct.unpack_from("!I", payload, 2)
            assert 0 < size == len(payload) - 6 <= 16384
            self.received += payload[6:]
        elif tag == ACK:
            self.acks.append(struct.unpack("!HQ", payload)[1])
        elif tag == RESUMED:
            self.resumed_from = struct.unpack("!HQ", payload)[1]
        else:
            assert tag == SID
            (size,) = struct.unpack_from("!I", payload, 2)
            self.sid = payload[6:].decode()
            assert size == len(self.sid) > 0
        return int(tag)

    # What passes

    def receive_data(self, size: int) -> bytes:
        """Receive until there are so many bytes of data in all, and return them."""
        while len(self.received) < size:
            self.receive()
        return bytes(self.received)

    def wait_ack(self, count: int) -> None:
        """Receive until so much has been acknowledged."""
        while not self.acks or self.acks[-1] < count:
            self.receive()

    def wait_close(self) -> int:
        """Receive until the websocket is closed, and return why."""
        while True:
            try:
                self.receive()
            except Closed as error:
                return error.code


class Backend:
    """A server behind a tunnel; tests hold its connections themselves."""

    def __init__(self, address: str = "127.0.0.1") -> None:
        self._listener = socket.create_server((address, 0))
        self.port: int = self._listener.getsockname()[1]
        self._accepted: queue.Queue[socket.socket] = queue.Queue()
        self._connections: list[socket.socket] = []
        self._closing = False
        self._thread = threading.Thread(target=self._accept)
        self._thread.start()

    def _accept(self) -> None:
        while True:
            connection, _ = self._listener.accept()
            if self._closing:
                connection.close()
                return
            connection.settimeout(PATIENCE)
            self._connections.append(connection)
            self._accepted.put(connection)

    def accept(self) -> socket.socket:
        """Return the next connection."""
        return self._accepted.get(timeout=PATIENCE)

    def close(self) -> None:
        self._closing = True
        with socket.create_connection(self._listener.getsockname()):
            self._thread.join()
        self._listener.close()
        for connection in self._connections:
            connection.close()


@contextmanager
def serving(address: str = "127.0.0.1") -> Iterator[Backend]:
    backend = Backend(address)
    try:
        yield backend
    finally:
        backend.close()


def read_all(connection: socket.socket) -> bytes:
    """Return all that comes to the end, however that comes."""
    found = bytearray()
    try:
        while piece := connection.recv(2**20):
            found += piece
    except ConnectionResetError:
        pass
    return bytes(found)


def read_exactly(connection: socket.socket, size: int) -> bytes:
    found = bytearray()
    while len(found) < size:
        piece = connection.recv(min(2**20, size - len(found)))
        assert piece, f"only {len(found)} of {size} bytes have come"
        found += piece
    return bytes(found)


class HostKind(PaperKind):
    """Machines that are the host: whatever a test listens on at 127.0.0.1 is theirs."""

    def allocate(self, record: InstanceRecord, requested: str | None = None) -> str:
        return "127.0.0.1"


def target(port: int, **other: Any) -> dict[str, Any]:
    """Return the parameters of ``connect`` for a port of instance ``a``."""
    return {
        "project": PROJECT,
        "zone": ZONE,
        "instance": "a",
        "interface": "nic0",
        "port": port,
        "newWebsocket": "True",
        **other,
    }
