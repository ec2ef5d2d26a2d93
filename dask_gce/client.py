"""Whose a cluster is: the user, and the process that made it and may still be alive.

Owns the text by which a process is known in a label, and the judgement whether that process lives.
What follows from it is up to `sweeping`. Wrongly calling a process dead would cost somebody a
running cluster, so whatever is not certain is "unknown".
"""

from __future__ import annotations

import getpass
import hashlib
import os
import re
import socket
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

import psutil

__all__ = ["ClientState", "client_mark", "client_state", "current_user"]

ClientState = Literal["alive", "gone", "detached", "unknown"]

_DETACHED: Final = "detached"
# Host, boot, process ID, start; a process ID has nine digits at the most where it is 32 bits wide.
_MARK: Final = re.compile(r"([0-9a-f]{8})-([0-9a-f]{8})-([1-9][0-9]{0,8})-([0-9]{1,20})")
#: The number of a Linux host's own process namespace; containers have others.
#: PROC_PID_INIT_INO in https://github.com/torvalds/linux/blob/master/include/linux/proc_ns.h
_OUTERMOST: Final = 0xEFFFFFFC
_PROC: Final = Path("/proc")
_MACHINE_ID: Final = Path("/etc/machine-id")


def current_user() -> str:
    """Return who runs this process.

    Returns
    -------
    str
        The login name; empty where there is none, as in some containers.
    """
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # no entry in the password database
        return ""


def client_mark(detached: bool = False) -> str:
    """Return how this process is known in a cluster's labels.

    Parameters
    ----------
    detached : bool
        Whether the cluster is to outlive its process.

    Returns
    -------
    str
        A label value: ``"detached"``, or host, boot, process ID and start of the process.

    Examples
    --------
    >>> client_mark(detached=True)
    'detached'
    >>> client_state(client_mark())
    'alive'
    """
    if detached:
        return _DETACHED
    host = _host()
    return f"{host.name}-{host.boot}-{os.getpid()}-{_start(os.getpid())}"


def client_state(mark: str) -> ClientState:
    """Tell whether the process of a mark is still alive.

    Parameters
    ----------
    mark : str
        What `client_mark` returned, in any process on any computer.

    Returns
    -------
    {"alive", "gone", "detached", "unknown"}
        ``"gone"`` only if it is certain: the mark is of this computer, and that was started again
        since, or it has no process of that number and start. ``"unknown"`` for another computer or
        container, and for any other text.

    Examples
    --------
    >>> client_state("00000000-00000000-1-1")
    'unknown'
    """
    if mark == _DETACHED:
        return "detached"
    match = _MARK.fullmatch(mark)
    host = _host()
    if match is None or match[1] != host.name or not host.sees_processes:
        return "unknown"
    if match[2] != host.boot:
        return "gone"
    pid = int(match[3])
    try:
        return "alive" if _start(pid) == int(match[4]) else "gone"
    except psutil.ZombieProcess:
        # It ended, but was not waited for; it holds no cluster any more.
        return "gone"
    except psutil.NoSuchProcess:
        # Linux can hide the processes of others, but not whether a number is taken (hidepid in
        # https://docs.kernel.org/filesystems/proc.html).
        return "unknown" if psutil.pid_exists(pid) else "gone"
    except psutil.AccessDenied:
        return "unknown"


@dataclass(frozen=True)
class _Host:
    """This computer or container, as a mark names it."""

    name: str
    boot: str
    sees_processes: bool


def _host() -> _Host:
    boot = _read(_PROC / "sys/kernel/random/boot_id") or str(int(psutil.boot_time()))
    machine = _read(_MACHINE_ID)
    parts = [socket.gethostname(), machine]
    sees_processes = True
    outermost = False
    namespace_file = _PROC / "self/ns/pid"
    if namespace_file.exists():
        namespace = namespace_file.stat().st_ino
        parts.append(str(namespace))
        outermost = namespace == _OUTERMOST
        # Some sandboxes show another namespace's processes, under other numbers.
        sees_processes = (_PROC / "self").readlink().name == str(os.getpid())
    if not (outermost and machine):
        # Containers of one image may share their names, so a restart of the computer beneath one
        # must not look as if it were the end of another's processes.
        parts.append(boot)
    return _Host(_digest(*parts), _digest(boot), sees_processes)


def _digest(*parts: str) -> str:
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:8]


def _read(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return ""


def _start(pid: int) -> int:
    """Return when a process was started, as a number that setting the clock does not change."""
    if not _PROC.joinpath("self/stat").exists():
        return int(psutil.Process(pid).create_time())
    # The second field is the program's name in parentheses, which may hold anything.
    fields = _read(_PROC / str(pid) / "stat").rpartition(")")[2].split()
    if not fields:
        raise psutil.NoSuchProcess(pid)
    if fields[0] in "ZX":
        raise psutil.ZombieProcess(pid)
    # Field 22, in ticks since the computer was started:
    # https://man7.org/linux/man-pages/man5/proc_pid_stat.5.html
    return int(fields[19])
