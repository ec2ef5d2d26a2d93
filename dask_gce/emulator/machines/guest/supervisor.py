"""The process under all machines of an emulator: forks them, and cleans up when the emulator dies.

Owns the processes of an emulator's machines as a whole, and the folder they live in. It answers one
request at a time on a socket, a length and JSON each::

    {"boot": PLAN} and two descriptors (control, console)  ->  {"pid": PID} or {"error": TEXT}
    {"sweep": PID}                                         ->  {"swept": true}
    {"can_map": UID}                                       ->  {"can_map": true or false}

A machine is forked from here, so that it costs no start of an interpreter. When the socket ends,
the emulator is gone: every machine is killed and the folder removed, whatever ended the emulator.
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
import time
from typing import Any, NoReturn

from . import sandbox
from .files import remove_tree
from .init import Init, Plan
from .processes import become_subreaper, kill_all, reap

__all__ = ["main"]

#: Machines that are told of the emulator's end have this long before they are killed, in seconds.
END_GRACE = 5.0


class Supervisor:
    """Forks machines and ends them.

    Parameters
    ----------
    control : socket
        The connection with the emulator.
    folder : str
        The emulator's folder, removed at the end.
    """

    def __init__(self, control: socket.socket, folder: str) -> None:
        self._control = control
        self._folder = folder
        self._machines: set[int] = set()
        self._uids: set[int] = set()
        self._life, self._life_end = os.pipe()

    def run(self) -> None:
        """Serve until the emulator is gone, then end everything."""
        become_subreaper()
        wake, woken = os.pipe()
        os.set_blocking(wake, False)
        os.set_blocking(woken, False)
        signal.set_wakeup_fd(woken, warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda number, frame: None)
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, signal.SIG_IGN)
        self._wake = wake, woken
        while True:
            connection = self._control.fileno()
            ready, _, _ = select.select([connection, wake], [], [])
            if wake in ready:
                with contextlib.suppress(BlockingIOError):
                    os.read(wake, 4096)
                self._collect()
            if connection in ready and not self._serve():
                break
        self._finish()

    def _serve(self) -> bool:
        header, descriptors, _, _ = socket.recv_fds(self._control, 4, 2)
        if not header:
            return False
        for descriptor in descriptors:
            os.set_inheritable(descriptor, False)  # what a message carries would reach the guest
        while len(header) < 4:
            header += self._control.recv(4 - len(header))
        (size,) = struct.unpack("!I", header)
        body = b""
        while len(body) < size:
            piece = self._control.recv(size - len(body))
            if not piece:
                return False
            body += piece
        request = json.loads(body)
        if "boot" in request:
            answer = self._boot(Plan.parse(request["boot"]), *descriptors)
        elif "can_map" in request:
            answer = {"can_map": _can_map(int(request["can_map"]))}
        elif "can_become" in request:
            answer = {"can_become": _can_become(int(request["can_become"]), self._folder)}
        else:
            answer = self._sweep(int(request["sweep"]))
        data = json.dumps(answer).encode()
        try:
            self._control.sendall(struct.pack("!I", len(data)) + data)
        except OSError:
            return False
        return True

    def _boot(self, plan: Plan, control: int, console: int) -> dict[str, Any]:
        if plan.uid is not None:
            self._uids.add(plan.uid)
        ready, ready_end = os.pipe()
        mapped, mapped_end = os.pipe()
        pid = os.fork()
        if pid == 0:
            for descriptor in (ready, mapped_end, self._life_end, *self._wake):
                os.close(descriptor)
            self._control.close()
            _become_machine(plan, control, console, self._life, ready_end, mapped)
        self._machines.add(pid)
        for descriptor in (control, console, ready_end, mapped):
            os.close(descriptor)
        try:
            word = os.read(ready, 4096)
            if word == b"unshared":
                _write_maps(pid, plan.uid)
                os.write(mapped_end, b"mapped")
                word = os.read(ready, 4096)
        except OSError as error:
            word = str(error).encode()
        finally:
            os.close(ready)
            os.close(mapped_end)
        if word == b"fenced":
            return {"pid": pid}
        return {"error": word.decode(errors="replace") or "the machine's first process died"}

    def _sweep(self, pid: int) -> dict[str, Any]:
        if pid in self._machines:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
            deadline = time.monotonic() + END_GRACE
            while pid in self._machines and time.monotonic() < deadline:
                self._collect()
                time.sleep(0.001)
        kill_all(frozenset(self._machines))
        return {"swept": True}

    def _collect(self) -> None:
        for pid, _ in reap()[0]:
            if pid in self._machines:
                self._machines.remove(pid)
                # Whatever it left is now a child of ours.
                kill_all(frozenset(self._machines))

    def _finish(self) -> None:
        deadline = time.monotonic() + END_GRACE
        while self._machines and time.monotonic() < deadline:
            self._collect()
            time.sleep(0.002)
        kill_all()
        remove_tree(self._folder)
        _remove_shared_memory(self._uids, f"sem.{os.path.basename(self._folder)}-")


def _become_machine(
    plan: Plan, control: int, console: int, life: int, ready: int, mapped: int
) -> NoReturn:
    # No frame of the supervisor may ever be returned to from here.
    try:
        signal.set_wakeup_fd(-1)
        os.setsid()
        os.dup2(console, 1)
        os.dup2(console, 2)
        try:
            if plan.uid is not None and plan.namespace:
                _enter_namespace(ready, mapped)
            elif plan.uid is not None:
                sandbox.become(plan.uid)
            os.umask(0o022)
            for name in ("home", "tmp"):  # the last boot may have removed them
                os.makedirs(f"{plan.disk}/{name}", mode=0o700, exist_ok=True)
            os.chdir(f"{plan.disk}/home")
            if sys.platform == "linux" and os.geteuid() == 0:
                sandbox.drop_capabilities()
            if plan.landlock:
                sandbox.restrict([plan.disk], plan.landlock)
        except OSError as error:
            os.write(ready, str(error).encode())
            os._exit(1)
        os.write(ready, b"fenced")
        os.close(ready)
        os.close(mapped)
        os.environ.clear()
        Init(plan, socket.socket(fileno=control), console, life).run()
    finally:
        # The emulator shows this on the machine's serial console.
        sys.excepthook(*sys.exc_info())
        os._exit(1)


def _remove_shared_memory(uids: set[int], prefix: str) -> None:
    """Remove what killed guests left in ``/dev/shm``, as user IDs or names tell."""
    with contextlib.suppress(FileNotFoundError):
        for entry in os.scandir("/dev/shm"):  # noqa: S108 # the system's own folder
            with contextlib.suppress(OSError):
                owner = entry.stat(follow_symlinks=False).st_uid
                if owner in uids or entry.name.startswith(prefix):
                    os.unlink(entry.path)


def _enter_namespace(ready: int, mapped: int) -> None:
    sandbox.unshare_users()
    os.write(ready, b"unshared")
    if os.read(mapped, 16) != b"mapped":
        os._exit(1)  # the supervisor knows why
    sandbox.take_identity()


def _can_map(uid: int) -> bool:
    ready, ready_end = os.pipe()
    mapped, mapped_end = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os.close(mapped_end)
            _enter_namespace(ready_end, mapped)
            os._exit(0)
        except OSError:
            os._exit(1)
        finally:
            os._exit(2)
    os.close(ready_end)
    os.close(mapped)
    try:
        if os.read(ready, 16) == b"unshared":
            _write_maps(pid, uid)
            os.write(mapped_end, b"mapped")
    except OSError:
        pass  # the child sees the end of the pipe, and says so with its status
    finally:
        os.close(ready)
        os.close(mapped_end)
    return os.waitpid(pid, 0)[1] == 0


def _can_become(uid: int, folder: str) -> bool:
    pid = os.fork()
    if pid == 0:
        status = 2
        try:
            sandbox.become(uid)
            # What a guest needs: its folder, the interpreter, its library, and this package.
            os.stat(folder)
            program = "import sys, asyncio; open(sys.argv[1]).close()"
            command = [sys.executable, "-c", program, __file__]
            os.execv(command[0], command)  # noqa: S606 # the interpreter that runs this
        except OSError:
            status = 1
        finally:
            os._exit(status)
    return os.waitpid(pid, 0)[1] == 0


def _write_maps(pid: int, uid: int | None) -> None:
    # The second line makes files of the real root visible as somebody's, so that the capability to
    # read applies to them; without the others that is all that the guest can do with them.
    for kind in ("uid", "gid"):
        with open(f"/proc/{pid}/{kind}_map", "w", encoding="ascii") as file:
            file.write(f"0 {uid} 1\n65533 0 1\n")


def main() -> None:
    """Supervise: arguments are the socket's descriptor and the emulator's folder."""
    descriptor, folder = sys.argv[-2:]
    with socket.socket(fileno=int(descriptor)) as control:
        control.setblocking(True)
        Supervisor(control, folder).run()
