"""The first process of a machine: boots the guest, listens for the power button, ends everything.

Owns the machine while it is on: the scripts, the serial console, the power switch and the last word
on every process below it. It is forked by :mod:`supervisor` and ends with the machine.

It speaks lines of JSON with the emulator: ``{"stop": SECONDS}`` and ``{"kill": true}`` come in,
``{"off": REASON}`` goes out as the last word, where the reason is ``stop``, ``kill``, ``poweroff``
or ``reboot``. When the emulator or the supervisor dies, its connection ends, and the machine too.
"""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import signal
import socket
import sys
import tempfile
import time
from dataclasses import dataclass
from typing import Any, NoReturn

from .container_runs import kill_detached
from .containers import end_all, keepers
from .files import remove_tree
from .processes import (
    become_subreaper,
    children,
    descendants,
    kill_all,
    let_trackers_finish,
    reap,
)
from .scripts import run_script

__all__ = ["Init", "Plan"]

#: Seconds in which a guest that powers off by itself may end in order: as systemd's default.
OWN_GRACE = 90.0

#: Serial output waiting for the emulator, in bytes; beyond it the guest has to wait.
CONSOLE_BACKLOG = 256 * 1024

#: Between SIGTERM and SIGKILL at least this much of the grace is left to the processes, in seconds.
LAST_GRACE = 0.2


@dataclass(frozen=True)
class Plan:
    """What the emulator says about a machine that is to boot.

    Parameters
    ----------
    hostname : str
        The short host name, for the console.
    disk : str
        The folder that is the machine's disk: the only one it may write to.
    metadata : tuple of str and int
        Address and port of its metadata server.
    environment : dict of str
        The environment of whatever runs in it.
    landlock : int
        Version of Landlock's interface to use; 0 goes without.
    uid : int or None
        The user outside that the guest is; None keeps the emulator's.
    namespace : bool
        Whether that user is root inside.
    greeting : tuple of str
        Lines for the serial console before anything runs.
    """

    hostname: str
    disk: str
    metadata: tuple[str, int]
    environment: dict[str, str]
    landlock: int
    uid: int | None
    namespace: bool
    greeting: tuple[str, ...]

    @classmethod
    def parse(cls, data: dict[str, Any]) -> Plan:
        """Read a plan from JSON.

        Parameters
        ----------
        data : dict
            A mapping with the names of the parameters.

        Returns
        -------
        Plan
            The plan.
        """
        address, port = data["metadata"]
        return cls(**{**data, "metadata": (address, port), "greeting": tuple(data["greeting"])})


class Init:
    """A machine's first process.

    Parameters
    ----------
    plan : Plan
        What to boot.
    control : socket
        The connection with the emulator.
    console : int
        Where the serial console's output goes: a pipe.
    life : int
        A pipe that ends when the supervisor dies.
    """

    def __init__(self, plan: Plan, control: socket.socket, console: int, life: int) -> None:
        self._plan = plan
        self._control = control
        self._console = console
        self._pending = bytearray()
        self._received = b""
        self._selector = selectors.DefaultSelector()
        self._outputs: dict[int, _Output] = {}
        self._scripts: dict[int, tuple[str, str]] = {}
        self._paused = False
        self._reason = ""
        self._deadline: float | None = None
        self._terminating = False
        self._killed = False
        self._life = life

    def run(self) -> NoReturn:
        """Boot, serve until the machine is off, and exit."""
        become_subreaper()
        wake, woken = os.pipe()
        for end in (wake, woken, self._console):
            os.set_blocking(end, False)
        signal.set_wakeup_fd(woken, warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda number, frame: None)
        # "kill 1" does nothing to a real machine either.
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, signal.SIG_IGN)
        self._control.setblocking(False)
        run = f"{self._plan.disk}/run"
        remove_tree(run)  # /run does not outlive a boot
        end_all(self._plan.disk)
        os.mkdir(run, 0o755)
        os.mkfifo(f"{run}/power", 0o600)
        os.mkfifo(f"{run}/log", 0o600)
        # Opened for both, so that the end of the last writer is not the end of the file.
        power = os.open(f"{run}/power", os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
        log = os.open(f"{run}/log", os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
        for source, handler in (
            (wake, self._on_child),
            (self._control, self._on_control),
            (self._life, self._cut),
            (power, self._on_power),
        ):
            self._selector.register(source, selectors.EVENT_READ, handler)
        self._outputs[log] = _Output(log, "")
        self._selector.register(log, selectors.EVENT_READ, self._outputs[log].key(self))
        self._wake, self._power = wake, power
        for line in self._plan.greeting:
            self._say(line)
        self._start("startup-script")
        while not self._killed:
            timeout = None
            if self._deadline is not None:
                reserve = 0.0 if self._terminating else LAST_GRACE
                timeout = max(0.0, self._deadline - reserve - time.monotonic())
            for key, _ in self._selector.select(timeout):
                key.data()
            self._advance()
        self._end()

    # The serial console

    def _say(self, line: str) -> None:
        self._write(line.encode(errors="surrogateescape") + b"\n")

    def _write(self, data: bytes) -> None:
        self._pending += data
        self._flush()

    def _flush(self) -> None:
        while self._pending:
            try:
                written = os.write(self._console, self._pending)
            except BlockingIOError:
                break
            except BrokenPipeError:
                self._pending.clear()
            else:
                del self._pending[:written]
        registered = self._console in self._selector.get_map()
        if self._pending and not registered:
            self._selector.register(self._console, selectors.EVENT_WRITE, self._flush)
        elif not self._pending and registered:
            self._selector.unregister(self._console)
        full = len(self._pending) > CONSOLE_BACKLOG
        if full != self._paused:
            self._paused = full
            for output in self._outputs.values():
                if full:
                    self._selector.unregister(output.descriptor)
                else:
                    self._selector.register(
                        output.descriptor, selectors.EVENT_READ, output.key(self)
                    )

    def read_output(self, output: _Output, *, ended: bool = False) -> bool:
        """Pass on what a script wrote, line by line.

        Parameters
        ----------
        output : _Output
            The pipe it wrote to.
        ended : bool
            Whether the script has ended, so that what is left is no more than the pipe holds.

        Returns
        -------
        bool
            Whether there may be more at once.
        """
        if (self._paused and not ended) or self._outputs.get(output.descriptor) is not output:
            return False  # another event of the same round has closed it
        try:
            data = os.read(output.descriptor, 65536)
        except BlockingIOError:
            return False
        if data:
            self._write(output.lines(data))
            return True
        self._write(output.lines(b"", last=True))
        if output.descriptor in self._selector.get_map():
            self._selector.unregister(output.descriptor)
        self._outputs.pop(output.descriptor, None)
        os.close(output.descriptor)
        return False

    # Scripts

    def _start(self, key: str) -> None:
        folder = tempfile.mkdtemp(prefix="metadata-scripts", dir=f"{self._plan.disk}/tmp")
        source, sink = os.pipe()
        pid = os.fork()
        if pid == 0:
            self._become(key, folder, sink)
        os.close(sink)
        os.set_blocking(source, False)
        output = self._outputs[source] = _Output(source, f"{key}: ")
        if not self._paused:
            self._selector.register(source, selectors.EVENT_READ, output.key(self))
        self._scripts[pid] = key, folder

    def _become(self, key: str, folder: str, sink: int) -> NoReturn:
        try:
            signal.set_wakeup_fd(-1)
            for number in (signal.SIGCHLD, signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
                signal.signal(number, signal.SIG_DFL)
            os.setpgid(0, 0)
            os.dup2(sink, 1)
            os.dup2(sink, 2)
            run_script(key, folder, self._plan.metadata, self._plan.environment)
        except OSError as error:
            os.write(2, f"cannot run {key}: {error}\n".encode(errors="backslashreplace"))
        finally:
            os._exit(1)

    def _on_child(self) -> None:
        with contextlib.suppress(BlockingIOError):
            os.read(self._wake, 4096)
        for pid, status in reap()[0]:
            if pid in self._scripts:
                key, folder = self._scripts.pop(pid)
                # What it wrote is in the pipe already; its status is told after that.
                for output in tuple(self._outputs.values()):
                    if output.prefix == f"{key}: ":
                        # Also while the console is full: a line must not be taken for ended.
                        while self.read_output(output, ended=True):
                            pass
                        self._write(output.lines(b"", last=True))
                existed = os.path.exists(f"{folder}/{key}")
                remove_tree(folder)
                code = os.waitstatus_to_exitcode(status)
                if existed or code:
                    self._say(f"{key} exit status {code}")

    # The power switch

    def _on_power(self) -> None:
        with contextlib.suppress(BlockingIOError):
            word = os.read(self._power, 4096).split()[-1:]
            if word in ([b"poweroff"], [b"reboot"]) and self._deadline is None:
                self._begin_stop(word[0].decode(), OWN_GRACE)

    def _on_control(self) -> None:
        try:
            data = self._control.recv(65536)
        except BlockingIOError:
            return
        except ConnectionResetError:
            data = b""
        if not data:
            self._cut()
            return
        *lines, self._received = (self._received + data).split(b"\n")
        for line in lines:
            order = json.loads(line)
            if "kill" in order:
                self._cut()
            else:
                self._begin_stop("stop", float(order["stop"]))

    def _begin_stop(self, reason: str, grace: float) -> None:
        deadline = time.monotonic() + grace
        if self._deadline is not None:
            self._deadline = min(self._deadline, deadline)
            return
        self._reason, self._deadline = reason, deadline
        self._say(f"{self._plan.hostname}: the system is going down ({reason})")
        self._start("shutdown-script")

    def _advance(self) -> None:
        if self._deadline is None:
            return
        left = self._deadline - time.monotonic()
        shutting = any(key == "shutdown-script" for key, _ in self._scripts.values())
        if left <= 0:
            self._killed = True
        elif not self._terminating and (not shutting or left <= LAST_GRACE):
            self._terminating = True
            # A container's keeper passes the signal on to the command alone, as docker does; a
            # second one from here would look like impatience, on which Dask cuts its own end short.
            contained = {pid for keeper in keepers(self._plan.disk) for pid in descendants(keeper)}
            for pid in descendants(os.getpid()):
                if pid in contained:
                    continue
                with contextlib.suppress(ProcessLookupError, PermissionError):
                    os.kill(pid, signal.SIGTERM)
                    os.kill(pid, signal.SIGCONT)  # a stopped process would never see it
        # With the dead, of which each may have left somebody behind since the list was read.
        if self._terminating and not children(os.getpid(), dead=True):
            self._killed = True

    def _cut(self) -> None:
        self._reason = self._reason or "kill"
        self._killed = True

    def _end(self) -> NoReturn:
        let_trackers_finish()
        if sys.platform != "linux":
            kill_detached(self._plan.disk)  # orphans, and there is no subreaper to inherit them
        kill_all()
        for output in tuple(self._outputs.values()):
            while self.read_output(output):
                pass
        if self._reason != "kill":
            self._say(f"{self._plan.hostname}: power down")
        os.set_blocking(self._console, True)
        # The emulator may be gone, or its reader stuck: then the last words are lost.
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.alarm(2)
        with contextlib.suppress(OSError):
            while self._pending:
                del self._pending[: os.write(self._console, self._pending)]
        with contextlib.suppress(OSError):
            self._control.setblocking(True)
            self._control.sendall(json.dumps({"off": self._reason}).encode() + b"\n")
        os._exit(0)


class _Output:
    """A pipe that a script writes to, and the line it is in the middle of."""

    def __init__(self, descriptor: int, prefix: str) -> None:
        self.descriptor = descriptor
        self.prefix = prefix
        self._rest = b""

    def key(self, init: Init) -> Any:
        return lambda: init.read_output(self)

    def lines(self, data: bytes, *, last: bool = False) -> bytes:
        *lines, rest = (self._rest + data).split(b"\n")
        # A progress bar may never end its line; the console shows it in pieces.
        if rest and (last or len(rest) > 4096):
            lines.append(rest)
            rest = b""
        self._rest = rest
        prefix = self.prefix.encode()
        return b"".join(prefix + line + b"\n" for line in lines)
