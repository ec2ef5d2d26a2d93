"""Puts every Python process of a guest on its machine's address and name.

Owns what a real machine's own network stack would do: listening on "all interfaces" means the
machine's address, outgoing connections come from it, the other machines have names, and
the metadata server has its usual ones. The C module below :mod:`socket` is changed before anybody
imports :mod:`socket`, which costs next to nothing and is what every library builds on.

Not reached: processes that are not Python, and interpreters that ignore ``PYTHONPATH`` (``-I``).
Where a guest gives its programs a ``PYTHONPATH`` of their own, this stays in front of it.
"""

from __future__ import annotations

import _socket
import errno
import importlib
import importlib.machinery
import os
import sys
from typing import Any

ANY = frozenset({"", "0.0.0.0", "<any>"})  # noqa: S104 # recognised in order to be avoided
METADATA_NAMES = frozenset({"metadata.google.internal", "metadata", "169.254.169.254"})
IP_BIND_ADDRESS_NO_PORT = 24


class _Machine:
    def __init__(self, address: str) -> None:
        self.address = address
        self.hostname = os.environ.get("LOCAL_GCE_HOSTNAME", "")
        self._hosts = os.environ.get("LOCAL_GCE_HOSTS", "")
        host, _, port = os.environ.get("GCE_METADATA_HOST", "").rpartition(":")
        self._metadata = (host, int(port)) if port.isdecimal() else None
        self._seen: tuple[int, int] | None = None
        self._names: dict[str, str] = {}

    def names(self) -> dict[str, str]:
        """Return the address of every name, read again when the table was replaced."""
        try:
            status = os.stat(self._hosts)
            seen = status.st_ino, status.st_mtime_ns
            if seen != self._seen:
                with open(self._hosts, encoding="utf-8") as table:
                    rows = [line.split() for line in table]
                self._names = {name: row[0] for row in rows for name in row[1:]}
                self._seen = seen
        except OSError:
            return {}
        return self._names

    def lookup(self, host: object) -> str | None:
        """Return the address of a name of this network, None for any other."""
        if isinstance(host, (bytes, bytearray)):
            host = bytes(host).decode("ascii", "replace")
        if not isinstance(host, str):
            return None
        return self.names().get(host.lower().rstrip("."))

    def destination(self, host: object, port: object) -> tuple[object, object]:
        """Return where a connection to a host and port really goes."""
        if isinstance(host, bytes):
            host = host.decode("ascii", "replace")
        if host in METADATA_NAMES and self._metadata and port in (80, "80", b"80", "http", None, 0):
            return self._metadata
        return self.lookup(host) or host, port

    def names_of(self, host: str) -> tuple[str, list[str], list[str]] | None:
        """Return the full name, the other names and the address of a name or an address."""
        table = self.names()
        address = table.get(host.lower().rstrip("."), host)
        found = [name for name, one in table.items() if one == address]
        if host in (address, self.address) and self.address == address and self.hostname:
            found = [self.hostname, self.hostname.partition(".")[0]]
        elif host in table:  # where all machines share an address, the name decides
            short = host.partition(".")[0]
            found = [name for name in found if name.partition(".")[0] == short]
        if not found:
            return None
        found.sort(key=len, reverse=True)
        return found[0], found[1:], [address]


def _install(machine: _Machine) -> None:
    base = _socket.socket
    getaddrinfo, gethostbyname = _socket.getaddrinfo, _socket.gethostbyname
    gethostbyaddr = _socket.gethostbyaddr

    class MachineSocket(base):  # type: ignore[misc, valid-type] # a class made at run time
        __slots__ = ()

        def bind(self, address: Any, /) -> None:
            super().bind(self._own(address))

        def getsockname(self) -> Any:
            name = super().getsockname()
            if self.family == _socket.AF_INET and not name[0].startswith(("127.", "0.")):
                # What leaves the host has the host's address; the guest knows of its own only.
                return (machine.address, *name[1:])
            return name

        def listen(self, *backlog: int) -> None:
            if self.family == _socket.AF_INET and self.getsockname()[1] == 0:
                super().bind((machine.address, 0))
            super().listen(*backlog)

        def connect(self, address: Any, /) -> None:
            super().connect(self._towards(address))

        def connect_ex(self, address: Any, /) -> int:
            code: int = super().connect_ex(self._towards(address))
            return code

        def _own(self, address: Any) -> Any:
            if self.family == _socket.AF_INET and address[0] in ANY:
                return (machine.address, *address[1:])
            if self.family == _socket.AF_INET6 and address[0] in ("", "::"):
                raise OSError(errno.EAFNOSUPPORT, "this machine has no IPv6")
            return address

        def _towards(self, address: Any) -> Any:
            if self.family != _socket.AF_INET:
                return address
            host, port = machine.destination(*address[:2])
            if (
                machine.address != "127.0.0.1"
                and self.type in (_socket.SOCK_STREAM, _socket.SOCK_DGRAM)
                and str(host).startswith("127.")
                and self.getsockname() == ("0.0.0.0", 0)  # noqa: S104 # that is: not bound yet
            ):
                if sys.platform == "linux" and self.type == _socket.SOCK_STREAM:
                    # Else every connection would need a port of its own, whatever its peer.
                    self.setsockopt(_socket.IPPROTO_IP, IP_BIND_ADDRESS_NO_PORT, 1)
                super().bind((machine.address, 0))
            return host, port

    def own_getaddrinfo(
        host: Any, port: Any, family: int = 0, type: int = 0, proto: int = 0, flags: int = 0
    ) -> Any:
        if host is not None:
            host, port = machine.destination(host, port)
        found = [
            entry
            for entry in getaddrinfo(host, port, family, type, proto, flags)
            if entry[0] != _socket.AF_INET6
        ]
        if not found:
            raise _socket.gaierror(_socket.EAI_NONAME, "this machine has no IPv6")
        return found

    def own_gethostbyname(name: Any, /) -> str:
        return machine.lookup(name) or gethostbyname(name)

    def own_gethostbyaddr(name: Any, /) -> Any:
        return machine.names_of(str(name)) or gethostbyaddr(name)

    def own_gethostname() -> str:
        return machine.hostname.partition(".")[0]

    changed: Any = _socket
    changed.socket = changed.SocketType = MachineSocket
    changed.has_ipv6 = False
    changed.getaddrinfo = own_getaddrinfo
    changed.gethostbyname = own_gethostbyname
    changed.gethostbyaddr = own_gethostbyaddr
    if machine.hostname:
        changed.gethostname = own_gethostname


def _name_semaphores(prefix: str) -> None:
    """Give multiprocessing's semaphores names by which their emulator finds those left behind.

    A process that is killed leaves its own in /dev/shm, and where the guest is the emulator's user
    nothing else tells whose they are.
    """
    changed: Any = importlib.import_module("_multiprocessing")
    base: Any = changed.SemLock

    class MachineSemLock(base):  # type: ignore[misc] # a class made at run time
        def __new__(cls, kind: int, value: int, most: int, name: str, unlink: bool) -> Any:
            return base.__new__(
                cls, kind, value, most, f"/{prefix}-{name.rpartition('-')[2]}", unlink
            )

    changed.SemLock = MachineSemLock


def _keep_path(site: str) -> None:
    """Let the programs that a guest starts find this too, where it gives them a path of their own.

    A real machine's network is there whatever ``PYTHONPATH`` says.
    """
    changed: Any = importlib.import_module("_posixsubprocess")
    fork_exec, mine = changed.fork_exec, b"PYTHONPATH=" + os.fsencode(site)

    def own(variable: bytes) -> bytes:
        name, _, value = variable.partition(b"=")
        if name != b"PYTHONPATH" or os.fsencode(site) in value.split(b":"):
            return variable
        return mine + b":" + value if value else mine

    def own_fork_exec(*arguments: Any) -> Any:
        # As subprocess and multiprocessing call it in every Python from 3.10 to 3.14.
        before, environment, after = arguments[:5], arguments[5], arguments[6:]
        if environment is not None:
            environment = [own(each) for each in environment]
        return fork_exec(*before, environment, *after)

    changed.fork_exec = own_fork_exec


def _run_next() -> None:
    """Run the sitecustomize that this one hides, as Debian and some tools have one."""
    here = os.path.dirname(os.path.abspath(__file__))
    others = [path for path in sys.path if os.path.abspath(path or ".") != here]
    hidden = importlib.machinery.PathFinder.find_spec("sitecustomize", others)
    if hidden is not None and hidden.loader is not None:
        loader: Any = hidden.loader
        exec(loader.get_code("sitecustomize"), {"__name__": "sitecustomize"})  # noqa: S102 # as site does


if __name__ == "sitecustomize":
    if "LOCAL_GCE_ADDRESS" in os.environ:
        _install(_Machine(os.environ["LOCAL_GCE_ADDRESS"]))
        _keep_path(os.path.dirname(os.path.abspath(__file__)))
        # The name of the emulator's folder is nobody else's.
        _name_semaphores(os.path.basename(os.path.dirname(os.environ["LOCAL_GCE_BIN"])))
    _run_next()
