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

__all__ = ["become_subreaper", "children", "descendants", "kill_all", "let_trackers_finish", "reap"]

PR_SET_CHILD_SUBREAPER = 36

#: Seconds after which a process that the kernel does not let die is given up.
KILL_LIMIT = 10.0

#: Seconds that resource trackers have to remove what the processes they served have left. They take
#: milliseconds, unless the host is busy.
TRACKER_LIMIT = 10.0


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
    found: list[int] = []
    queue = [root]
    while queue:
        below = children(queue.pop())
        found += below
        queue += below
    return found


def children(parent: int, *, dead: bool = False) -> list[int]:
    """Return the children of a process.

    Parameters
    ----------
    parent : int
        Process ID.
    dead : bool
        Whether to include those that have ended and that nobody has collected.

    Returns
    -------
    list of int
        Process IDs.
    """
    below = _children(parent)
    if below is None:
        return [pid for pid, one, state in _table() if one == parent and (dead or state != "Z")]
    return below if dead else [pid for pid in below if not _is_dead(pid)]


def _children(parent: int) -> list[int] | None:
    """Return the children of a process, None where the kernel keeps no such list."""
    if sys.platform != "linux":
        return None
    below: list[int] = []
    try:
        for thread in os.listdir(f"/proc/{parent}/task"):
            with open(f"/proc/{parent}/task/{thread}/children", "rb") as file:
                below += map(int, file.read().split())
    except FileNotFoundError:
        # Either the process or thread has ended, or the kernel was built without the file.
        return None if os.path.exists(f"/proc/{parent}") else []
    except ProcessLookupError:
        return []
    return below


def _is_dead(pid: int) -> bool:
    if sys.platform != "linux":
        return False  # the kernel keeps no list there, so that nobody asks
    try:
        with open(f"/proc/{pid}/stat", "rb") as stat:
            # The command, in parentheses, may hold anything, also spaces and parentheses.
            return stat.read().rpartition(b")")[2].split()[0] in (b"Z", b"X")
    except (FileNotFoundError, ProcessLookupError):
        return True


def _table() -> list[tuple[int, int, str]]:
    """Return process ID, parent and state of every process."""
    rows: list[list[bytes]]
    if sys.platform == "linux":
        rows = []
        for name in os.listdir("/proc"):
            if name.isdigit():
                with contextlib.suppress(FileNotFoundError, ProcessLookupError):
                    with open(f"/proc/{name}/stat", "rb") as stat:
                        fields = stat.read().rpartition(b")")[2].split()
                    rows.append([name.encode(), fields[1], fields[0]])
    else:
        listing = subprocess.run(
            ["/bin/ps", "-axo", "pid=,ppid=,stat="], capture_output=True, check=False
        ).stdout
        rows = [line.split() for line in listing.splitlines()]
    return [(int(pid), int(parent), state[:1].decode()) for pid, parent, state in rows]


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
    me, pause = os.getpid(), 0.0005
    deadline = time.monotonic() + KILL_LIMIT
    while not _reap_others(spare) and time.monotonic() < deadline:
        # Only what is not below a spared child: that may be forking this very moment.
        for child in children(me):
            if child not in spare:
                for pid in (*descendants(child), child):
                    with contextlib.suppress(ProcessLookupError, PermissionError):
                        os.kill(pid, signal.SIGKILL)
        time.sleep(pause)
        pause = min(pause * 2, 0.02)


def let_trackers_finish() -> None:
    """Kill everything below this process but Python's resource trackers, and let those end.

    A tracker outlives the processes that it serves by a moment, in which it removes the semaphores
    that they left in ``/dev/shm``: on the host, where a power cut would not leave them.
    """
    if sys.platform != "linux":
        return
    deadline = time.monotonic() + TRACKER_LIMIT
    # Until no child is left: whoever loses its parent between two looks is seen in neither.
    while not reap()[1] and time.monotonic() < deadline:
        for pid in descendants(os.getpid()):
            if not _is_tracker(pid):
                with contextlib.suppress(ProcessLookupError, PermissionError):
                    os.kill(pid, signal.SIGKILL)
        time.sleep(0.001)


def _is_tracker(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/cmdline", "rb") as file:
            return b"multiprocessing.resource_tracker" in file.read()
    except OSError:
        return False


def _reap_others(spare: frozenset[int]) -> bool:
    """Collect the children that have ended, but for some.

    Parameters
    ----------
    spare : frozenset of int
        Children whose end somebody else wants to see.

    Returns
    -------
    bool
        Whether no other child is left.
    """
    if not spare:
        return reap()[1]
    others = [pid for pid in children(os.getpid(), dead=True) if pid not in spare]
    for pid in others:
        with contextlib.suppress(ChildProcessError):
            os.waitpid(pid, os.WNOHANG)
    return not others
