"""What keeps guests off this host: which fences it has, and what these leave open.

Owns the decision, and the words for it. The system calls are in :mod:`guest.sandbox`.
"""

from __future__ import annotations

import os
import random
import sys
from collections.abc import Callable
from dataclasses import dataclass

from dask_gce.emulator.machines.guest.sandbox import landlock_abi

__all__ = ["Fence", "probe_fence", "unused_uid"]

#: User IDs that no system gives to anybody (https://systemd.io/UIDS-GIDS/, "unused").
UNUSED_UIDS = range(1_879_048_192, 2_147_418_112)


@dataclass(frozen=True)
class Fence:
    """How guests are kept off their host.

    Parameters
    ----------
    landlock : int
        Version of Landlock's interface; 0 where there is none.
    strangers : bool
        Whether each machine is a user of its own on the host, whom nobody else is; if not, the
        machines are the emulator's user.
    namespace : bool
        Whether that user is root in the machine, by a user namespace of its own.
    warnings : tuple of str
        What the serial console says of gaps.
    """

    landlock: int
    strangers: bool
    namespace: bool = False
    warnings: tuple[str, ...] = ()


def probe_fence(can_map: Callable[[int], bool], can_become: Callable[[int], bool]) -> Fence:
    """Find out how guests can be kept off this host.

    Parameters
    ----------
    can_map : callable
        Tells whether a user namespace can be made in which that user is root.
    can_become : callable
        Tells whether a process can become that user, and still run this Python.

    Returns
    -------
    Fence
        The strongest fence there is.

    Raises
    ------
    RuntimeError
        The process is root, and nothing here takes root's power from a guest.
    """
    abi = landlock_abi()
    if os.geteuid() != 0:
        return Fence(abi, strangers=False, warnings=(_gaps(abi),))
    if abi and can_map(unused_uid()):
        return Fence(abi, strangers=True, namespace=True)
    if can_become(unused_uid()):
        return Fence(abi, strangers=True, warnings=(_NO_ROOT + ("" if abi else _OPEN_FOLDERS),))
    raise RuntimeError(_NO_FENCE)


def unused_uid() -> int:
    """Return a user ID that nobody has.

    Returns
    -------
    int
        The ID.
    """
    # There are so many that two machines of this host will not meet in one.
    return random.choice(UNUSED_UIDS)  # noqa: S311 # a free number, no secret


_NO_FENCE = (
    "process machines cannot be fenced in here: the emulator runs as root, and a startup script "
    "that stays root could change this host. Neither can root make user namespaces (a container's "
    "rules or the sysctl user.max_user_namespaces forbid it) under a kernel with Landlock, nor can "
    f"another user run {sys.executable}. Run the emulator as an ordinary user, put Python and this "
    "package where every user may read them, or use paper machines."
)
_NO_ROOT = "warning: this host has no user namespaces for root, so this machine is an ordinary user"
_OPEN_FOLDERS = ", who can write to the host's folders for all, since the kernel has no Landlock"


def _gaps(abi: int) -> str:
    """Say what Landlock does not keep the guests of an ordinary user from."""
    if not abi:
        return (
            "warning: the kernel has no Landlock: on the host this machine can do whatever its "
            "user can"
        )
    gaps = [
        "connecting to Unix sockets of services",
        "changing the modes and times of its user's files",
        "changing its user's shared memory",
    ]
    # https://docs.kernel.org/userspace-api/landlock.html#previous-limitations
    if abi < 6:
        gaps.append("signalling its user's processes")
    if abi < 3:
        gaps.append("emptying its user's files")
    return (
        "warning: on the host, this kernel's Landlock does not keep this machine from "
        + ", ".join(gaps[:-1])
        + f" and {gaps[-1]}"
    )
