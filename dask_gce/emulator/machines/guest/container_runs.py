"""Running a command as a container: in front or in the background, with one end for all of it.

Owns the processes of a container: the command, and the keeper that passes signals on to it, takes
its status and ends whatever it started. What a container is made of is :mod:`containers`.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import sys
import time
from typing import NoReturn

from .containers import Container, keepers
from .processes import become_subreaper, descendants, kill_all

__all__ = ["kill_detached", "run_attached", "run_detached"]

#: The signals that docker passes on to an attached container.
PASSED_ON = (
    signal.SIGTERM,
    signal.SIGINT,
    signal.SIGHUP,
    signal.SIGQUIT,
    signal.SIGUSR1,
    signal.SIGUSR2,
)


def run_attached(container: Container, *, stdin: bool) -> int:
    """Run a container to its end.

    Parameters
    ----------
    container : Container
        The container.
    stdin : bool
        Whether it reads the caller's standard input.

    Returns
    -------
    int
        Its exit status.
    """
    status = _keep(container, stdin=stdin)
    container.write("status", status)
    if container.transient:
        container.remove(force=True)
    return status


def run_detached(container: Container) -> int:
    """Run a container in the background and print its ID.

    Parameters
    ----------
    container : Container
        The container.

    Returns
    -------
    int
        0, or the exit status of a command that cannot be started.
    """
    source, sink = os.pipe()
    if os.fork() == 0:
        os.close(source)
        _stay(container, sink)
    os.close(sink)
    with os.fdopen(source, "rb") as verdict:
        refusal = verdict.read()
    if refusal:
        print(refusal.decode(errors="surrogateescape"), file=sys.stderr)
        return 127
    print(container.id)
    return 0


def kill_detached(disk: str) -> None:
    """Kill a machine's background containers, which may be below no process of the machine.

    Parameters
    ----------
    disk : str
        The machine's disk.
    """
    for keeper in keepers(disk):
        with contextlib.suppress(ProcessLookupError, PermissionError):
            # Each leads a session. Whoever does not has got the number of one that was killed.
            if os.getsid(keeper) == keeper:
                for pid in (keeper, *descendants(keeper)):
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(pid, signal.SIGKILL)


def _stay(container: Container, started: int) -> NoReturn:
    try:
        os.setsid()
        log = os.open(f"{container.path}/log", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        os.dup2(log, 1)
        os.dup2(log, 2)
        restarts = 0
        while True:
            status = _keep(container, stdin=False, started=started)
            started = -1
            policy, _, most = container.restart.partition(":")
            again = policy in ("always", "unless-stopped") or (policy == "on-failure" and status)
            if container.stopped() or not again or (most and restarts >= int(most)):
                break
            # Docker doubles the pause from 100 ms up to a minute.
            time.sleep(min(0.1 * 2**restarts, 60))
            restarts += 1
            container.write("restarts", restarts)
        container.write("status", status)
        if container.transient:
            shutil.rmtree(container.path, ignore_errors=True)
    finally:
        os._exit(0)


def _keep(container: Container, *, stdin: bool, started: int = -1) -> int:
    """Run the command once; nothing of it is left afterwards."""
    become_subreaper()
    # Whoever knows of the keeper may signal it, which must not end it before it can pass that on.
    signal.pthread_sigmask(signal.SIG_BLOCK, PASSED_ON)
    container.write("keeper", os.getpid())
    refused, refusal = os.pipe()
    sys.stdout.flush()
    pid = os.fork()
    if pid == 0:
        _start(container, refusal, stdin=stdin)
    os.close(refusal)
    container.write("pid", pid)

    def pass_on(number: int, frame: object) -> None:
        if number == signal.SIGTERM:
            container.write("stopped", 1)
        with contextlib.suppress(ProcessLookupError):  # it has ended a moment ago
            os.kill(pid, number)

    for passed in PASSED_ON:
        signal.signal(passed, pass_on)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, PASSED_ON)
    with os.fdopen(refused, "rb") as verdict:
        words = verdict.read()
    if started >= 0:
        os.write(started, words)
        os.close(started)
    elif words:
        os.write(2, words + b"\n")
    _, wait_status = os.waitpid(pid, 0)
    for passed in PASSED_ON:
        signal.signal(passed, signal.SIG_DFL)
    code = os.waitstatus_to_exitcode(wait_status)
    status = code if code >= 0 else 128 - code
    # A container ends with its first process, and takes the rest along.
    kill_all()
    return status


def _start(container: Container, refusal: int, *, stdin: bool) -> NoReturn:
    try:
        for number in (*PASSED_ON, signal.SIGPIPE):
            signal.signal(number, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, PASSED_ON)
        # Signals reach the command through its keeper, as through docker, and not twice.
        os.setpgid(0, 0)
        if not stdin:
            os.dup2(os.open("/dev/null", os.O_RDONLY), 0)
        os.makedirs(container.folder, exist_ok=True)
        os.chdir(container.folder)
        os.execvpe(container.command[0], container.command, container.environment)  # noqa: S606
    except OSError as error:
        what = container.command[0]
        reason = (
            f'exec: "{what}": executable file not found in $PATH'
            if isinstance(error, FileNotFoundError)
            else f'exec: "{what}": {str(error.strerror).lower()}'
        )
        sentence = (
            "docker: Error response from daemon: failed to create task for container: failed to "
            "create shim task: OCI runtime create failed: runc create failed: unable to start "
            f"container process: {reason}: unknown"
        )
        os.write(refusal, sentence.encode(errors="surrogateescape"))
        os._exit(127 if isinstance(error, FileNotFoundError) else 126)
    finally:
        os._exit(126)
