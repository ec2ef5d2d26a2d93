"""The VPC process: the one under all machines of an emulator, and their network.

Owns the requests of the emulator, the machines' first processes, and what becomes of everything
when the emulator dies. A request is a length and JSON, as is its answer; sockets and other
descriptors travel beside them. `_VERBS` says which requests there are::

    {"do": "boot", ...} with a control socket  ->  {} with the console, and a listener if asked for
    {"do": "listen", "kind": "tcp", "address": ..., "port": ...}  ->  {} with the socket
    anything that fails                        ->  {"error": TEXT}

The process is the first of a process namespace. It ends when the emulator hangs up or ends, and the
kernel ends every machine with it. Its keeper, which stays in the host's namespaces, then removes
what the kernel keeps: control groups and files. A keeper that was killed leaves that to the next
emulator.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import socket
import struct
import sys
from collections.abc import Callable
from typing import Any

from . import kernel
from .boot import Boot, Plan, fork_machine
from .cgroups import Cgroups
from .leftovers import Claim
from .network import Network

__all__ = ["main"]

#: Most descriptors that come with a request.
_DESCRIPTORS = 4

Request = dict[str, Any]
#: An answer, and the descriptors that go with it, which are closed here once they are sent.
Answer = tuple[dict[str, Any], list[int]]


class VPC:
    """Serves the emulator's requests.

    Parameters
    ----------
    control : socket
        The connection with the emulator.
    owner : int
        A descriptor that can be read when the emulator's process has ended.
    cgroups : Cgroups
        Where the machines' control groups are made.
    """

    def __init__(self, control: socket.socket, owner: int, cgroups: Cgroups) -> None:
        self._control = control
        self._owner = owner
        self._cgroups = cgroups
        self._network = Network()
        self._boots: dict[int, Boot] = {}
        self._verbs: dict[str, Callable[[Request, list[int]], Answer]] = {
            "boot": self._boot,
            "signal": self._signal,
            "apply": self._apply,
            "listen": self._listen,
            "listen_client": self._listen_client,
            "listening": self._listening,
            "connect": self._connect,
            "client_namespace": self._client_namespace,
        }

    def run(self) -> None:
        """Serve until the emulator is gone."""
        wake, woken = os.pipe()
        os.set_blocking(wake, False)
        os.set_blocking(woken, False)
        signal.set_wakeup_fd(woken, warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda number, frame: None)
        connection = self._control.fileno()
        self._send(self._attempt(self._set_up))
        while True:
            # A process that the emulator has forked may hold its end of the connection for longer.
            ready, _, _ = select.select([connection, wake, self._owner], [], [])
            if self._owner in ready:
                return
            if wake in ready:
                with contextlib.suppress(BlockingIOError):
                    os.read(wake, 4096)
                self._collect()
            if connection in ready and not self._serve():
                return

    def _set_up(self) -> Answer:
        self._network.set_up()
        return {}, []

    # Requests

    def _serve(self) -> bool:
        try:
            header, descriptors, _, _ = socket.recv_fds(self._control, 4, _DESCRIPTORS)
            if not header:
                return False
            for descriptor in descriptors:
                os.set_inheritable(descriptor, False)  # what a message carries would reach guests
            (size,) = struct.unpack("!I", header + self._receive(4 - len(header)))
            request = json.loads(self._receive(size))
            verb = self._verbs[request.pop("do")]
            try:
                self._send(self._attempt(lambda: verb(request, descriptors)))
            finally:
                for descriptor in descriptors:
                    os.close(descriptor)
        except (ConnectionError, EOFError):
            return False
        return True

    def _receive(self, size: int) -> bytes:
        data = b""
        while len(data) < size:
            piece = self._control.recv(size - len(data))
            if not piece:
                raise EOFError
            data += piece
        return data

    @staticmethod
    def _attempt(verb: Callable[[], Answer]) -> Answer:
        try:
            return verb()
        except (OSError, ValueError) as error:
            return {"error": str(error)}, []

    def _send(self, answer: Answer) -> None:
        data = json.dumps(answer[0]).encode()
        try:
            socket.send_fds(self._control, [struct.pack("!I", len(data))], answer[1])
            self._control.sendall(data)
        finally:
            for descriptor in answer[1]:
                os.close(descriptor)

    # Machines

    def _boot(self, request: Request, descriptors: list[int]) -> Answer:
        (control,) = descriptors
        port = request.pop("api_port")
        plan = Plan(**request)
        # Its predecessor may have ended a moment ago.
        self._collect()
        group = self._cgroups.make(plan.slot, plan.memory, plan.cpus)
        boot = fork_machine(plan, group, control)
        self._boots[boot.pid] = boot
        try:
            self._network.attach(boot.pid, plan.slot, plan.address)
            if port is None:
                return {}, [boot.switch_on()]
            # Before its first program runs, whose first word may be a call.
            with self._network.listen_machine(plan.slot, port) as listener:
                return {}, [boot.switch_on(), listener.detach()]
        except BaseException:
            os.kill(boot.pid, signal.SIGKILL)
            raise

    def _signal(self, request: Request, descriptors: list[int]) -> Answer:
        for boot in self._boots.values():
            if boot.slot == request["slot"]:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(boot.pid, int(request["signal"]))
        return {}, []

    def _collect(self) -> None:
        """Note which machines are off, and bury the orphans of others."""
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if not pid:
                return
            boot = self._boots.pop(pid, None)
            if boot is not None:
                with contextlib.suppress(OSError):
                    self._network.detach(boot.slot)
                with contextlib.suppress(OSError):  # then its keeper will
                    self._cgroups.remove(boot.slot)
                boot.note_end(status)

    # The network

    def _apply(self, request: Request, descriptors: list[int]) -> Answer:
        self._network.apply(request["ruleset"])
        return {}, []

    def _listen(self, request: Request, descriptors: list[int]) -> Answer:
        return {}, [self._network.listen(**request).detach()]

    def _listen_client(self, request: Request, descriptors: list[int]) -> Answer:
        return {}, [self._network.listen_client(**request).detach()]

    def _listening(self, request: Request, descriptors: list[int]) -> Answer:
        return {"ports": self._network.listening()}, []

    def _connect(self, request: Request, descriptors: list[int]) -> Answer:
        return {}, [self._network.connect(**request).detach()]

    def _client_namespace(self, request: Request, descriptors: list[int]) -> Answer:
        return {}, [os.dup(self._network.client_namespace())]


def _serve_alone(control: socket.socket, owner: int, claim: Claim) -> None:
    kernel.die_with_parent()
    kernel.unshare(kernel.NEW_MOUNTS | kernel.NEW_NETWORK | kernel.NEW_IPC | kernel.NEW_UTS)
    kernel.make_private()
    kernel.mount("proc", "/proc", "proc", kernel.NO_SETUID | kernel.NO_DEVICES | kernel.NO_PROGRAMS)
    VPC(control, owner, Cgroups(claim.name)).run()


def main() -> None:
    """Keep the VPC process: arguments are the socket's descriptor, and the emulator's claim."""
    descriptor, folder = sys.argv[-2:]
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    control = socket.socket(fileno=int(descriptor))
    claim = Claim(folder)
    claim.note_keeper()
    try:
        owner = claim.open_owner()
    except ProcessLookupError:
        claim.clean_up()
        return
    kernel.unshare(kernel.NEW_PIDS)
    pid = os.fork()
    if pid == 0:
        try:
            _serve_alone(control, owner, claim)
            os._exit(0)
        finally:
            sys.excepthook(*sys.exc_info())
            os._exit(1)
    control.close()
    os.close(owner)
    # The first of a namespace ends after all the others.
    os.waitpid(pid, 0)
    claim.clean_up()
