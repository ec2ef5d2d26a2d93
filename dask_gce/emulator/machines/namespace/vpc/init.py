"""The first program of a machine without systemd: boots, runs the scripts, listens for the power.

Owns what Google's guest agent and systemd do on a real machine, as far as a startup script can
tell: the script runner, orphans, the power button, ``poweroff`` and ``reboot``. It is not started
as a program but goes on from the fork of the VPC process, which saves an interpreter's start; so it
uses nothing that would have to be read from the machine's disk.

Sources: https://github.com/GoogleCloudPlatform/guest-agent (google_metadata_script_runner),
initctl(5) of sysvinit, systemd(1) on SIGRTMIN+4 and +5.
"""

from __future__ import annotations

import contextlib
import encodings.idna  # noqa: F401 # a connection asks for it, when there may be no disk any more
import errno
import http.client
import os
import select
import shutil
import signal
import struct
import tempfile
import time
from typing import NoReturn

from . import kernel

__all__ = ["BUTTON", "BUTTONS", "run"]

#: The signal of the power button, as systemd knows it; the next one restarts.
BUTTON = signal.SIGRTMIN + 4
BUTTONS = (BUTTON, BUTTON + 1)

_METADATA = "169.254.169.254"

#: How long the metadata server may take, in seconds.
_METADATA_TIMEOUT = 20

#: Seconds in which what runs may end in order: as systemd's default.
_GRACE = 90.0

#: struct init_request of sysvinit: a magic number, the command, and the level to go to.
_REQUEST = struct.Struct("=iii")
_MAGIC, _RUN_LEVEL = 0x03091969, 1
_REQUEST_SIZE = 384
_LEVELS = {ord("0"): "poweroff", ord("6"): "reboot"}


def run(folder: str, environment: dict[str, str]) -> NoReturn:
    """Boot, and serve until the machine is off.

    Parameters
    ----------
    folder : str
        Where scripts are written to and run.
    environment : dict of str
        The environment of all programs.
    """
    Init(folder, environment).run()


class Init:
    """The first program.

    Parameters
    ----------
    folder : str
        Where scripts are written to and run.
    environment : dict of str
        The environment of all programs.
    """

    def __init__(self, folder: str, environment: dict[str, str]) -> None:
        self._folder = folder
        self._environment = {**environment, "LANG": "C.UTF-8"}
        del self._environment["TERM"]
        self._scripts: dict[int, tuple[str, str]] = {}
        self._outputs: dict[int, _Output] = {}
        self._ending = ""
        self._deadline: float | None = None

    def run(self) -> NoReturn:
        """Boot, and serve until the machine is off."""
        wake, woken = os.pipe()
        os.set_blocking(wake, False)
        os.set_blocking(woken, False)
        signal.set_wakeup_fd(woken, warn_on_full_buffer=False)
        for number in (signal.SIGCHLD, *BUTTONS):
            signal.signal(number, lambda number, frame: None)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, BUTTONS)  # who booted this has blocked them
        # "kill 1" does nothing to a real machine either.
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, signal.SIG_IGN)
        os.mkfifo("/run/initctl", 0o600)
        # Opened for both, so that the end of the last writer is not the end of the file.
        requests = os.open("/run/initctl", os.O_RDWR | os.O_NONBLOCK)
        self._start("startup-script")
        while True:
            timeout = None
            if self._deadline is not None:
                timeout = max(0.0, self._deadline - time.monotonic())
            ready, _, _ = select.select([wake, requests, *self._outputs], [], [], timeout)
            for descriptor in ready:
                if descriptor in self._outputs:
                    self._read(descriptor)
            if wake in ready:
                for number in os.read(wake, 4096):
                    if number in BUTTONS:
                        self._end("reboot" if number > BUTTON else "poweroff")
                self._bury()
            if requests in ready:
                self._read_request(os.read(requests, _REQUEST_SIZE))
            if self._ending and (
                "shutdown-script" not in (key for key, _ in self._scripts.values())
                or time.monotonic() >= (self._deadline or 0.0)
            ):
                self._switch_off()

    # Scripts

    def _start(self, key: str) -> None:
        try:
            folder = tempfile.mkdtemp(prefix="metadata-scripts", dir=self._folder)
        except OSError as error:
            _say(f"{key}: {error}")
            return
        source, sink = os.pipe()
        pid = os.fork()
        if pid == 0:
            self._become(key, folder, sink)
        os.close(sink)
        os.set_blocking(source, False)
        self._scripts[pid] = key, folder
        self._outputs[source] = _Output(key)

    def _become(self, key: str, folder: str, sink: int) -> NoReturn:
        try:
            signal.set_wakeup_fd(-1)
            for number in (signal.SIGCHLD, signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
                signal.signal(number, signal.SIG_DFL)
            # An interpreter ignores these two, which its programs would inherit.
            for number in (signal.SIGPIPE, signal.SIGXFSZ):
                signal.signal(number, signal.SIG_DFL)
            os.setsid()
            nothing = os.open("/dev/null", os.O_RDONLY)
            for target, descriptor in enumerate((nothing, sink, sink)):
                os.dup2(descriptor, target)
            script = _fetch(key)
            if script is None:
                os._exit(0)
            path = f"{folder}/{key}"
            descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o700)
            with os.fdopen(descriptor, "wb") as file:
                file.write(script)
            os.chdir("/")
            try:
                os.execve(path, [path], self._environment)  # noqa: S606 # the user's own
            except OSError as error:
                if error.errno != errno.ENOEXEC:
                    raise
            # Without an interpreter's line it is the shell's.
            os.execve("/bin/sh", ["/bin/sh", path], self._environment)  # noqa: S606 # as above
        except (OSError, http.client.HTTPException) as error:
            os.write(2, f"cannot run {key}: {error}\n".encode(errors="backslashreplace"))
        finally:
            os._exit(1)

    def _read(self, descriptor: int) -> bool:
        """Pass on what a script wrote; returns whether there may be more."""
        output = self._outputs[descriptor]
        try:
            data = os.read(descriptor, 65536)
        except BlockingIOError:
            return False
        output.write(data)
        if data:
            return True
        del self._outputs[descriptor]
        os.close(descriptor)
        return False

    def _bury(self) -> None:
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if not pid:
                return
            if pid not in self._scripts:
                continue
            key, folder = self._scripts.pop(pid)
            # What it wrote is in the pipe already; its status is told after that.
            for descriptor, output in tuple(self._outputs.items()):
                if output.key == key:
                    while self._read(descriptor):
                        pass
            code = os.waitstatus_to_exitcode(status)
            if code or os.path.exists(f"{folder}/{key}"):
                _say(f"{key} exit status {code}")
            shutil.rmtree(folder, ignore_errors=True)

    # The power

    def _read_request(self, data: bytes) -> None:
        while len(data) >= _REQUEST.size:
            magic, command, level = _REQUEST.unpack_from(data)
            if magic == _MAGIC and command == _RUN_LEVEL and level in _LEVELS:
                self._end(_LEVELS[level])
            data = data[_REQUEST_SIZE:]

    def _end(self, how: str) -> None:
        if not self._ending:
            self._ending, self._deadline = how, time.monotonic() + _GRACE
            _say(f"The system is going down ({how}).")
            self._start("shutdown-script")

    def _switch_off(self) -> NoReturn:
        for number in (signal.SIGTERM, signal.SIGCONT):
            with contextlib.suppress(ProcessLookupError):
                os.kill(-1, number)
        deadline = self._deadline or 0.0
        while time.monotonic() < deadline:
            self._bury()
            for descriptor in tuple(self._outputs):
                self._read(descriptor)
            try:
                os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOWAIT | os.WNOHANG)
            except ChildProcessError:
                break
            time.sleep(0.002)
        for descriptor in tuple(self._outputs):
            self._read(descriptor)
        os.sync()
        _say(f"reboot: {'Restarting system' if self._ending == 'reboot' else 'Power down'}")
        kernel.power(kernel.RESTART if self._ending == "reboot" else kernel.POWER_OFF)
        os._exit(1)


class _Output:
    """What a script writes, line by line on the console."""

    def __init__(self, key: str) -> None:
        self.key = key
        self._rest = b""

    def write(self, data: bytes) -> None:
        *lines, rest = (self._rest + data).split(b"\n")
        # A progress bar may never end its line; the console shows it in pieces.
        if rest and (not data or len(rest) > 4096):
            lines.append(rest)
            rest = b""
        self._rest = rest
        for line in lines:
            _print(f"{self.key}: ".encode() + line)


def _say(line: str) -> None:
    _print(line.encode(errors="backslashreplace"))


def _print(line: bytes) -> None:
    data = line + b"\n"
    # A console that nobody reads any more takes nothing.
    with contextlib.suppress(OSError):
        while data:
            data = data[os.write(1, data) :]


def _fetch(key: str) -> bytes | None:
    connection = http.client.HTTPConnection(_METADATA, timeout=_METADATA_TIMEOUT)
    connection.request(
        "GET",
        f"/computeMetadata/v1/instance/attributes/{key}",
        headers={"Metadata-Flavor": "Google"},
    )
    answer = connection.getresponse()
    body = answer.read()
    connection.close()
    return body if answer.status == 200 else None
