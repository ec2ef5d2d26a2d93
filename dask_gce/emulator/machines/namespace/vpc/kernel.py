"""System calls for which Python 3.10 has no function: namespaces, mounts, capabilities, power.

Owns the numbers and the error handling. What is done with them is decided elsewhere.

Sources: namespaces(7), mount(2), mount_setattr(2), pivot_root(2), prctl(2), reboot(2)
"""

from __future__ import annotations

import ctypes
import os
import platform
import struct

__all__ = [
    "bind",
    "die_with_parent",
    "drop_capabilities",
    "enter",
    "make_private",
    "mount",
    "pivot_root",
    "power",
    "restrict_mount",
    "unmount",
    "unshare",
]

NEW_MOUNTS = 0x00020000
NEW_CGROUPS = 0x02000000
NEW_UTS = 0x04000000
NEW_IPC = 0x08000000
NEW_PIDS = 0x20000000
NEW_NETWORK = 0x40000000

READ_ONLY = 0x1
NO_SETUID = 0x2
NO_DEVICES = 0x4
NO_PROGRAMS = 0x8
_REMOUNT = 0x20
_BIND = 0x1000
_RECURSIVE = 0x4000
_PRIVATE = 0x40000
_DETACH = 2

# mount_setattr has one number on every architecture.
_MOUNT_SETATTR = 442
_AT_FDCWD = -100
_AT_RECURSIVE = 0x8000

_PIVOT_ROOT = {"x86_64": 155, "aarch64": 41}

_PR_SET_PDEATHSIG = 1
_PR_CAPBSET_READ = 23
_PR_CAPBSET_DROP = 24
_SIGKILL = 9

POWER_OFF = 0x4321FEDC
RESTART = 0x01234567

_libc = ctypes.CDLL(None, use_errno=True)


def _check(status: int, what: str) -> None:
    if status < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")


def unshare(namespaces: int) -> None:
    """Leave namespaces for new ones; that of processes is the first child's.

    Parameters
    ----------
    namespaces : int
        The kinds, as flags.
    """
    _check(_libc.unshare(namespaces), "no new namespaces")


def enter(descriptor: int, kind: int) -> None:
    """Enter a namespace.

    Parameters
    ----------
    descriptor : int
        The namespace.
    kind : int
        Its kind, as a flag.
    """
    _check(_libc.setns(descriptor, kind), "cannot enter a namespace")


def mount(source: str, target: str, kind: str, flags: int = 0, options: str = "") -> None:
    """Mount a file system.

    Parameters
    ----------
    source : str
        The device or a name.
    target : str
        Where.
    kind : str
        The file system, such as ``tmpfs``.
    flags : int
        What is not allowed on it.
    options : str
        The file system's own options.
    """
    done = _libc.mount(
        os.fsencode(source),
        os.fsencode(target),
        kind.encode(),
        ctypes.c_ulong(flags),
        os.fsencode(options),
    )
    _check(done, f"cannot mount {kind} on {target}")


def bind(source: str, target: str, flags: int = 0) -> None:
    """Show a file or folder in a second place, with all that is mounted below it.

    Parameters
    ----------
    source : str
        The file or folder.
    target : str
        The second place, which exists.
    flags : int
        What is not allowed there, also below.
    """
    done = _libc.mount(
        os.fsencode(source), os.fsencode(target), None, ctypes.c_ulong(_BIND | _RECURSIVE), None
    )
    _check(done, f"cannot bind {source} to {target}")
    if flags:
        restrict_mount(target, flags, recursive=True)


def restrict_mount(target: str, flags: int, *, recursive: bool = False) -> None:
    """Forbid something on a mount.

    Parameters
    ----------
    target : str
        The mount.
    flags : int
        What is not allowed there.
    recursive : bool
        Whether also on all that is mounted below.
    """
    # struct mount_attr; the flags have the values of mount(2) for these four.
    attributes = struct.pack("=QQQQ", flags, 0, 0, 0)
    done = _libc.syscall(
        _MOUNT_SETATTR,
        _AT_FDCWD,
        os.fsencode(target),
        ctypes.c_uint(_AT_RECURSIVE if recursive else 0),
        attributes,
        ctypes.c_size_t(len(attributes)),
    )
    _check(done, f"cannot restrict {target}")


def make_private() -> None:
    """Keep mounts from here on in this namespace."""
    done = _libc.mount(None, b"/", None, ctypes.c_ulong(_PRIVATE | _RECURSIVE), None)
    _check(done, "cannot make mounts private")


def unmount(target: str) -> None:
    """Take a mount away, once nobody uses it any more.

    Parameters
    ----------
    target : str
        The mount.
    """
    _check(_libc.umount2(os.fsencode(target), _DETACH), f"cannot unmount {target}")


def pivot_root(folder: str) -> None:
    """Make a mount the root of this namespace, and let the old root go.

    Parameters
    ----------
    folder : str
        The mount.
    """
    os.chdir(folder)
    machine = platform.machine()
    if machine not in _PIVOT_ROOT:
        raise OSError(f"no machines on the architecture {machine}")
    # The old root lands on top of the new one; see pivot_root(2), 'pivot_root(".", ".")'.
    _check(_libc.syscall(_PIVOT_ROOT[machine], b".", b"."), "cannot change the root")
    unmount(".")
    os.chdir("/")


def die_with_parent() -> None:
    """Have this process killed when the one that forked it ends."""
    _check(_libc.prctl(_PR_SET_PDEATHSIG, _SIGKILL, 0, 0, 0), "no signal at the parent's death")


def drop_capabilities(numbers: frozenset[int]) -> None:
    """Give up capabilities, for this process's programs as well; see capabilities(7).

    Parameters
    ----------
    numbers : frozenset of int
        The capabilities.
    """
    for number in numbers:
        if _libc.prctl(_PR_CAPBSET_READ, number, 0, 0, 0) == 1:
            _check(_libc.prctl(_PR_CAPBSET_DROP, number, 0, 0, 0), "cannot drop a capability")


def power(command: int) -> None:
    """End this process namespace as a power off or a restart; see pid_namespaces(7).

    Parameters
    ----------
    command : int
        ``POWER_OFF`` or ``RESTART``.
    """
    _check(_libc.reboot(ctypes.c_int(command - (1 << 32) if command >> 31 else command)), "reboot")
