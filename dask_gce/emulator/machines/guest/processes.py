"""Finding and ending the processes below another one.

Owns the look at the process table and nothing else. Who is to be ended, and when, is decided by
:mod:`init` for one machine and by :mod:`supervisor` for what escaped a machine.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections import defaultdict

__all__ = ["become_subreaper", "descendants", "kill_all", "reap"]

PR_SET_CHILD_SUBREAPER = 36


def become_subreaper() -> None:
    """Become the parent of every orphan below this process, where the system can do that.

    Linux only (``prctl(2)``). Elsewhere a process that leaves its parent is found no more.
    """
    if sys.platform != "linux":
        return
    import ctypes

    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def descendants(root: int) -> list[int]:
    """Return the processes below one, parents before children, without the dead.

    Parameters
    ----------
    root : int
        Process ID.

    Returns
    -------
    list of int
        Process IDs; the root is not among them.
    """
    children: defaultdict[int, list[int]] = defaultdict(list)
    for pid, parent in _table():
        children[parent].append(pid)
    found: list[int] = []
    queue = [root]
    while queue:
        below = children.pop(queue.pop(), [])
        found += below
        queue += below
    return found


def _table() -> list[tuple[int, int]]:
    if sys.platform == "linux":
        table = []
        for name in os.listdir("/proc"):  # noqa: PTH208 # pathlib would double the start-up time
            if not name.isdigit():
                continue
            try:
                with open(f"/proc/{name}/stat", "rb") as stat:  # noqa: PTH123 # as above
                    # The command, in parentheses, may hold anything, also spaces and parentheses.
                    state, parent = stat.read().rpartition(b")")[2].split()[:2]
            except OSError:
                continue  # it ended meanwhile
            if state not in (b"Z", b"X"):
                table.append((int(name), int(parent)))
        return table
    listing = subprocess.run(
        ["/bin/ps", "-axo", "pid=,ppid=,stat="], capture_output=True, check=False
    ).stdout
    rows = (line.split() for line in listing.splitlines())
    return [(int(pid), int(parent)) for pid, parent, *stat in rows if not stat[0].startswith(b"Z")]


def reap() -> tuple[list[tuple[int, int]], bool]:
    """Collect the children that have ended.

    Returns
    -------
    ended : list of tuple
        Process ID and wait status of each.
    alone : bool
        Whether no child is left.
    """
    ended: list[tuple[int, int]] = []
    while True:
        try:
            pid, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return ended, True
        if pid == 0:
            return ended, False
        ended.append((pid, status))


def kill_all(spare: frozenset[int] = frozenset()) -> None:
    """Kill everything below this process and collect it.

    Where this process is a subreaper, nothing of its descendants is left afterwards: whatever loses
    its parent becomes its child and is killed in the next round.

    Parameters
    ----------
    spare : frozenset of int
        Children that are left alone, with all that is below them.
    """
    pause = 0.0005
    while True:
        spared = set(spare)
        for pid in spare:
            spared.update(descendants(pid))
        victims = [pid for pid in descendants(os.getpid()) if pid not in spared]
        for pid in victims:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal.SIGKILL)
        if spare:
            for pid in victims:
                with contextlib.suppress(ChildProcessError):
                    os.waitpid(pid, os.WNOHANG)
            if not victims:
                return
        elif reap()[1]:
            return
        time.sleep(pause)
        pause = min(pause * 2, 0.02)
