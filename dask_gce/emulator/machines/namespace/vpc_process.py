"""The emulator's side of the VPC process.

Owns starting that process, asking it, and making sure that it ends. What it does is described in
:mod:`vpc.main`; what a machine is made of in :mod:`vpc.boot`.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import struct
import subprocess
import threading
from pathlib import Path
from typing import Any

from dask_gce.emulator.machines.namespace.obstacles import BASE, PATH, find_obstacle
from dask_gce.emulator.machines.namespace.vpc.cgroups import group_folders
from dask_gce.emulator.machines.namespace.vpc.leftovers import Claim, sweep
from dask_gce.emulator.machines.supervision import isolated_python

__all__ = ["VPCProcess", "VPCProcessGone"]

#: Seconds in which a VPC process whose emulator has hung up must be gone, files and all.
END_LIMIT = 60.0

#: Most descriptors that come with an answer.
_DESCRIPTORS = 4

_PROGRAM = """\
import sys
sys.path.insert(0, sys.argv[1])
from vpc.main import main
main()
"""


class VPCProcessGone(RuntimeError):
    """The process under the machines has ended, or could not do what it was asked."""


class VPCProcess:
    """Holds the process under an emulator's machines. Every method blocks; use a thread."""

    def __init__(self) -> None:
        self._claim: Claim | None = None
        self._lock = threading.Lock()
        self._socket: socket.socket | None = None
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def folder(self) -> Path:
        """Where the machines' disks are; there after :meth:`start`."""
        if self._claim is None:
            raise VPCProcessGone("the VPC process was not started")
        return Path(self._claim.folder)

    @property
    def name(self) -> str:
        """The name of the emulator's control groups; there after :meth:`start`."""
        return self.folder.name

    @property
    def pid(self) -> int | None:
        """The process ID of its keeper, None before the start and after the end."""
        return None if self._process is None else self._process.pid

    def start(self) -> list[str]:
        """Remove what dead emulators have left, and start the process.

        Returns
        -------
        list of str
            What was removed.

        Raises
        ------
        RuntimeError
            There can be no such machines here.
        """
        obstacle = find_obstacle()
        if obstacle is not None:
            raise RuntimeError(obstacle)
        swept = sweep(BASE)
        self._claim = Claim.make(BASE)
        ours, theirs = socket.socketpair()
        with theirs:
            try:
                self._process = subprocess.Popen(
                    [
                        *isolated_python(),
                        "-c",
                        _PROGRAM,
                        str(Path(__file__).parent),
                        str(theirs.fileno()),
                        self._claim.folder,
                    ],
                    stdin=subprocess.DEVNULL,
                    cwd="/",
                    env={"PATH": PATH},
                    pass_fds=[theirs.fileno()],
                    start_new_session=True,  # a Ctrl-C is for the emulator, which then hangs up
                )
            except BaseException:
                ours.close()
                self._claim.clean_up()
                raise
        self._socket = ours
        try:
            with self._lock:
                self._answer(ours)
        except BaseException:
            self.close()
            raise
        return swept

    def boot(
        self, plan: dict[str, Any], control: socket.socket, api_port: int | None
    ) -> tuple[int, socket.socket | None]:
        """Boot a machine.

        Parameters
        ----------
        plan : dict
            The fields of :class:`vpc.boot.Plan`.
        control : socket
            The machine's end of a connection on which its end will be told.
        api_port : int or None
            A TCP port of its loopback address on which to listen before it runs.

        Returns
        -------
        console : int
            A descriptor of its console, to be read.
        listener : socket or None
            The listener on the port, which does not block; None without a port.

        Raises
        ------
        VPCProcessGone
            The machine could not be made.
        """
        request = {"do": "boot", "api_port": api_port, **plan}
        _, (console, *listeners) = self._ask(request, [control.fileno()])
        return console, socket.socket(fileno=listeners[0]) if listeners else None

    def signal(self, slot: int, number: int) -> None:
        """Send a signal to a machine's first process; does nothing if the machine is off.

        Parameters
        ----------
        slot : int
            The machine's number.
        number : int
            The signal.
        """
        with contextlib.suppress(VPCProcessGone):  # then the machine is gone too
            self._ask({"do": "signal", "slot": slot, "signal": number})

    def apply(self, ruleset: str) -> None:
        """Load rules into the network.

        Parameters
        ----------
        ruleset : str
            What ``nft -f`` reads.
        """
        self._ask({"do": "apply", "ruleset": ruleset})

    def listen(self, kind: str, address: str, port: int) -> socket.socket:
        """Open a listener in the network's fabric.

        Parameters
        ----------
        kind : str
            ``"tcp"`` or ``"udp"``.
        address : str
            The IPv4 address.
        port : int
            The port; 0 takes a free one.

        Returns
        -------
        socket
            The socket, which does not block.
        """
        return self._open({"do": "listen", "kind": kind, "address": address, "port": port})

    def listen_client(self, port: int) -> socket.socket:
        """Open a listener on the client's loopback address.

        Parameters
        ----------
        port : int
            The TCP port.

        Returns
        -------
        socket
            The socket, which does not block.
        """
        return self._open({"do": "listen_client", "port": port})

    def listening(self) -> dict[str, list[int]]:
        """Return on which TCP ports the machines listen.

        Returns
        -------
        dict
            The ports that are open to others, by the machine's address.
        """
        ports: dict[str, list[int]] = self._ask({"do": "listening"})[0]["ports"]
        return ports

    def connect(self, address: str, port: int, tunnel: bool = False) -> socket.socket:
        """Begin a TCP connection from the client's namespace, or from that of tunnels.

        Parameters
        ----------
        address : str
            The IPv4 address.
        port : int
            The port.
        tunnel : bool
            Whether it is a tunnel's.

        Returns
        -------
        socket
            The socket, which does not block, and may not be connected yet.
        """
        return self._open({"do": "connect", "address": address, "port": port, "tunnel": tunnel})

    def client_namespace(self) -> int:
        """Return the client's network namespace.

        Returns
        -------
        int
            A descriptor for ``setns``, which is the caller's.
        """
        _, (descriptor,) = self._ask({"do": "client_namespace"})
        return descriptor

    def close(self) -> None:
        """Hang up and wait until the process has ended everything. May be called twice."""
        connection = self._socket
        if connection is not None:
            # Not with the lock: it ends the wait of whoever has that for an answer.
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
        with self._lock:
            if self._socket is not None:
                self._socket.close()
                self._socket = None
        if self._process is not None:
            try:
                self._process.wait(END_LIMIT)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
            self._process = None
        if self._claim is not None:
            # Nothing is left of it, unless its keeper was killed.
            self._claim.clean_up()

    def leftovers(self) -> list[str]:
        """Describe whatever still exists, once it is closed.

        Returns
        -------
        list of str
            Sentences about the process, the folder and the control groups.
        """
        found = []
        if self.pid is not None:
            found.append(f"The keeper of the VPC process (process {self.pid}) still runs.")
        if self._claim is not None:
            places = [self._claim.folder, *group_folders(self._claim.name)]
            found += [f"{place} still exists." for place in places if Path(place).exists()]
        return found

    def _open(self, request: dict[str, Any]) -> socket.socket:
        _, (descriptor,) = self._ask(request)
        return socket.socket(fileno=descriptor)

    def _ask(
        self, request: dict[str, Any], descriptors: list[int] | None = None
    ) -> tuple[dict[str, Any], list[int]]:
        data = json.dumps(request).encode()
        with self._lock:
            if self._socket is None:
                raise VPCProcessGone("the VPC process is not running")
            try:
                socket.send_fds(self._socket, [struct.pack("!I", len(data))], descriptors or [])
                self._socket.sendall(data)
            except OSError as error:
                raise VPCProcessGone(f"the VPC process is gone: {error}") from error
            return self._answer(self._socket)

    @staticmethod
    def _answer(connection: socket.socket) -> tuple[dict[str, Any], list[int]]:
        try:
            header, descriptors, _, _ = socket.recv_fds(connection, 4, _DESCRIPTORS)
            for descriptor in descriptors:
                os.set_inheritable(descriptor, False)
            (size,) = struct.unpack("!I", header + _receive(connection, 4 - len(header)))
            answer: dict[str, Any] = json.loads(_receive(connection, size))
        except OSError as error:
            raise VPCProcessGone(f"the VPC process is gone: {error}") from error
        if "error" in answer:
            raise VPCProcessGone(answer["error"])
        return answer, descriptors


def _receive(connection: socket.socket, size: int) -> bytes:
    data = b""
    while len(data) < size:
        piece = connection.recv(size - len(data))
        if not piece:
            raise VPCProcessGone("the VPC process died")
        data += piece
    return data
