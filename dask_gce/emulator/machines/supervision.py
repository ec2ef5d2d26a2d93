"""The emulator's side of the process under all machines.

Owns starting that process, asking it for machines, and making sure that it ends. What it does is
described in :mod:`guest.supervisor`; what a machine is made of in :mod:`process`.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import struct
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

from dask_gce.emulator.machines.guest.files import remove_tree

__all__ = ["Supervision", "SupervisorGone"]

#: Seconds in which a supervisor whose emulator has hung up must be gone.
END_LIMIT = 60.0

_PROGRAM = """\
import sys
sys.path.insert(0, sys.argv[1])
from guest.supervisor import main
main()
"""


class SupervisorGone(RuntimeError):
    """The process that runs the machines has ended, or refused."""


class Supervision:
    """Holds the supervisor of an emulator's machines. Every method blocks; use a thread.

    Parameters
    ----------
    folder : Path
        The folder of the machines, which the supervisor removes when it ends.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._lock = threading.Lock()
        self._socket: socket.socket | None = None
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int | None:
        """The supervisor's process ID, None before the start and after the end."""
        return None if self._process is None else self._process.pid

    def start(self) -> None:
        """Start the supervisor."""
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
                        str(self._folder),
                    ],
                    stdin=subprocess.DEVNULL,
                    cwd="/",
                    env={"LANG": "C.UTF-8", "PATH": os.defpath},
                    pass_fds=[theirs.fileno()],
                    start_new_session=True,  # a Ctrl-C is for the emulator, which then hangs up
                )
            except BaseException:
                ours.close()
                raise
        self._socket = ours

    def boot(self, plan: dict[str, Any], control: socket.socket, console: int) -> int:
        """Fork a machine.

        Parameters
        ----------
        plan : dict
            The fields of :class:`guest.init.Plan`.
        control : socket
            The machine's end of its connection with the emulator.
        console : int
            The machine's end of its serial console.

        Returns
        -------
        int
            Process ID of the machine's first process.

        Raises
        ------
        SupervisorGone
            The supervisor is gone, or could not make the machine.
        """
        answer = self._ask({"boot": plan}, [control.fileno(), console])
        if "error" in answer:
            raise SupervisorGone(f"the machine could not be started: {answer['error']}")
        return int(answer["pid"])

    def can_map(self, uid: int) -> bool:
        """Tell whether a machine can have a user namespace of its own.

        Parameters
        ----------
        uid : int
            The user outside that would be root inside.

        Returns
        -------
        bool
            Whether the kernel allows it.
        """
        return bool(self._ask({"can_map": uid}, [])["can_map"])

    def can_become(self, uid: int) -> bool:
        """Tell whether a machine can run as another user, with what is readable for all.

        Parameters
        ----------
        uid : int
            The user.

        Returns
        -------
        bool
            Whether it can.
        """
        return bool(self._ask({"can_become": uid}, [])["can_become"])

    def sweep(self, pid: int) -> None:
        """Kill a machine's first process, and whatever lost its machine.

        Parameters
        ----------
        pid : int
            The first process; it may be gone already.
        """
        with contextlib.suppress(SupervisorGone):  # then the machine is gone too
            self._ask({"sweep": pid}, [])

    def close(self) -> None:
        """Hang up and wait until the supervisor has ended everything. May be called twice."""
        with self._lock:
            if self._socket is not None:
                with contextlib.suppress(OSError):
                    self._socket.shutdown(socket.SHUT_RDWR)
                self._socket.close()
                self._socket = None
        if self._process is not None:
            try:
                self._process.wait(END_LIMIT)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
            self._process = None
        remove_tree(str(self._folder))

    def _ask(self, request: dict[str, Any], descriptors: list[int]) -> dict[str, Any]:
        data = json.dumps(request).encode()
        with self._lock:
            if self._socket is None:
                raise SupervisorGone("the machines' supervisor is not running")
            try:
                socket.send_fds(self._socket, [struct.pack("!I", len(data))], descriptors)
                self._socket.sendall(data)
                (size,) = struct.unpack("!I", self._receive(self._socket, 4))
                answer: dict[str, Any] = json.loads(self._receive(self._socket, size))
            except OSError as error:
                raise SupervisorGone(f"the machines' supervisor is gone: {error}") from error
            return answer

    @staticmethod
    def _receive(connection: socket.socket, size: int) -> bytes:
        data = b""
        while len(data) < size:
            piece = connection.recv(size - len(data))
            if not piece:
                raise SupervisorGone("the machines' supervisor died")
            data += piece
        return data


def isolated_python() -> list[str]:
    """Return the command of this interpreter without site packages and user settings.

    Returns
    -------
    list of str
        The first words of a command line.
    """
    return [sys.executable, "-I", "-S", "-X", "utf8"]
