"""Run Dask on this machine until it ends, and beside a scheduler its workers.

Workers beside a scheduler are a second process, which starts when the scheduler answers, starts
again when it fails, and ends when the scheduler does. Nothing but the standard library.
"""

from __future__ import annotations

import contextlib
import math
import queue
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

#: Seconds until workers beside a scheduler that failed are started again: at first, and at most.
AGAIN, AGAIN_AT_MOST = 1.0, 30.0
#: Seconds after which such workers count as started, so that the next failure is a first one.
STEADY = 60.0
#: Seconds that they may take to end.
GRACE = 5.0
#: Seconds from the first word that the system goes down until Dask is told, if the scheduler lets
#: the worker go meanwhile: docker grants a container ten.
HOLD = 8.0


class Messenger:
    """This end of the socket to what preemption.py has left beside Dask."""

    def __init__(self) -> None:
        self._here, self._there = socket.socketpair()
        self._there.set_inheritable(True)
        #: The number of the other end, for the command line.
        self.number = self._there.fileno()

    def say(self, word: str) -> bool:
        """Say something; tell whether somebody is there to hear it."""
        try:
            self._here.sendall(word.encode() + b"\n")
        except OSError:
            return False
        return True

    def listen(self, happened: queue.SimpleQueue[tuple[str, int]]) -> None:
        """Report what is answered; the other end now belongs to another process."""
        self._there.close()

        def hear() -> None:
            with contextlib.suppress(OSError), self._here.makefile("r") as lines:
                for line in lines:
                    happened.put((line.strip(), 0))
            happened.put(("go", 0))

        threading.Thread(target=hear, daemon=True).start()


class Supervisor:
    """Runs Dask, and beside a scheduler its workers, until Dask ends."""

    def __init__(
        self,
        dask: list[str],
        local: list[str],
        environment: dict[str, str],
        messenger: Messenger | None = None,
    ) -> None:
        self._messenger = messenger
        self._local_command = local
        self._environment = environment
        # Filled by threads and signal handlers, which is why it is this kind of queue.
        self._happened: queue.SimpleQueue[tuple[str, int]] = queue.SimpleQueue()
        self._local: subprocess.Popen[bytes] | None = None
        self._local_since = 0.0
        self._again_at: float | None = None
        self._pause = AGAIN
        self._ending = False
        #: The signal that is to be passed on, and when it is at last.
        self._held: tuple[int, float] | None = None
        self._dask = self._start("dask", dask)
        if messenger is not None:
            messenger.listen(self._happened)
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda number, frame: self._happened.put(("signal", number)))

    def _start(self, which: str, command: list[str]) -> subprocess.Popen[bytes]:
        passed: tuple[int, ...] = ()
        if which == "dask" and self._messenger is not None:
            passed = (self._messenger.number,)
        process = subprocess.Popen(command, env=self._environment, pass_fds=passed)

        def wait() -> None:
            self._happened.put((which, process.wait()))

        threading.Thread(target=wait, daemon=True).start()
        return process

    def announce(
        self,
        phase: Callable[[str], object],
        answers: Callable[[], bool],
        verdict: Path | None,
        packages: Any,
    ) -> None:
        """Publish the phase `running` once Dask runs, and a scheduler answers."""
        while verdict is not None and not verdict.exists():
            if self._dask.poll() is not None:
                return
            time.sleep(0.02)
        if verdict is not None and verdict.read_text():
            return  # versions.py ends without Dask
        while not answers():
            if self._dask.poll() is not None:
                return
            time.sleep(0.1)
        phase("running")
        if self._messenger is not None:
            self._messenger.say("running")
        if packages is None or packages.has_come():
            self._happened.put(("answers", 0))

    def cut(self) -> None:
        """End Dask, which has nobody to work for; for another thread, which waits for that."""
        self._dask.terminate()
        try:
            self._dask.wait(GRACE)
        except subprocess.TimeoutExpired:
            self._dask.kill()

    def run(self) -> int:
        """Wait for the end of Dask and return its exit status."""
        while True:
            what, number = self._next()
            if what == "dask":
                self._end_local()
                return 128 - number if number < 0 else number
            if what == "signal":
                self._ending, self._again_at = True, None
                if not self._hold(number):
                    self._pass_on(number)
            elif what == "go":
                # Passed on once: told twice, Dask drops everything.
                if self._held is not None and self._held[1] < math.inf:
                    self._pass_on(self._held[0])
            elif what == "wait":
                pass  # the scheduler lets this worker go, which ends Dask
            elif what == "local":
                self._lose_local(number)
            elif self._local_command and not self._ending:
                self._local_since = time.monotonic()
                self._local = self._start("local", self._local_command)

    def _hold(self, number: int) -> bool:
        """Keep a first signal back while the scheduler is told; tell whether it is kept."""
        if self._messenger is None or number != signal.SIGTERM or self._held is not None:
            return False
        self._held = number, time.monotonic() + HOLD
        return self._messenger.say("going down")

    def _pass_on(self, number: int) -> None:
        if self._held is not None:
            self._held = number, math.inf
        for process in (self._dask, self._local):
            if process is not None:
                process.send_signal(number)

    def _next(self) -> tuple[str, int]:
        at = math.inf if self._again_at is None else self._again_at
        if self._held is not None:
            at = min(at, self._held[1])
        if at == math.inf:
            return self._happened.get()
        try:
            return self._happened.get(timeout=max(0.0, at - time.monotonic()))
        except queue.Empty:
            if self._held is not None and self._held[1] <= time.monotonic():
                return "go", 0
            self._again_at = None
            return "again", 0

    def _lose_local(self, status: int) -> None:
        self._local = None
        if status == 0 or self._ending:
            return  # somebody has let them go
        if time.monotonic() - self._local_since > STEADY:
            self._pause = AGAIN
        print(
            f"dask-gce: the workers beside the scheduler ended with exit status {status}; "
            f"they start again in {self._pause:g} s",
            flush=True,
        )
        self._again_at = time.monotonic() + self._pause
        self._pause = min(2 * self._pause, AGAIN_AT_MOST)

    def _end_local(self) -> None:
        if self._local is None:
            return
        if not self._ending:  # else they were told; told twice, Dask drops everything
            self._local.terminate()
        try:
            self._local.wait(GRACE)
        except subprocess.TimeoutExpired:
            self._local.kill()
            self._local.wait()
