"""The fence around a guest: where it may write, whom it may signal, what it may become.

Owns the system calls. On Linux a guest is held by Landlock (writes only below its own folder) and,
under root, by a user namespace of its own as well, because Landlock does not stop the owner of a
file from changing its mode or times. Which folders and identities these are is decided outside.

Sources: ``landlock(7)``, ``user_namespaces(7)``, ``capabilities(7)``,
https://docs.kernel.org/userspace-api/landlock.html
"""

from __future__ import annotations

import ctypes
import os
import struct
import sys
from collections.abc import Iterable

__all__ = [
    "become",
    "drop_capabilities",
    "landlock_abi",
    "restrict",
    "take_identity",
    "unshare_users",
]

# The numbers are the same on every architecture that Python runs on (alpha excepted).
SYS_LANDLOCK_CREATE_RULESET = 444
SYS_LANDLOCK_ADD_RULE = 445
SYS_LANDLOCK_RESTRICT_SELF = 446
LANDLOCK_CREATE_RULESET_VERSION = 1
LANDLOCK_RULE_PATH_BENEATH = 1

WRITE_FILE = 1 << 1
REMOVE_DIR = 1 << 4
REMOVE_FILE = 1 << 5
MAKE_CHAR = 1 << 6
MAKE_DIR = 1 << 7
MAKE_REG = 1 << 8
MAKE_SOCK = 1 << 9
MAKE_FIFO = 1 << 10
MAKE_BLOCK = 1 << 11
MAKE_SYM = 1 << 12
REFER = 1 << 13
TRUNCATE = 1 << 14
SCOPE_ABSTRACT_UNIX_SOCKET = 1 << 0
SCOPE_SIGNAL = 1 << 1

PR_CAPBSET_DROP = 24
PR_SET_NO_NEW_PRIVS = 38
CAP_DAC_READ_SEARCH = 2
CLONE_NEWUSER = 0x10000000

#: Devices without a memory, and terminals: whatever is written there changes nothing.
DEVICES = (
    "/dev/null",
    "/dev/zero",
    "/dev/full",
    "/dev/random",
    "/dev/urandom",
    "/dev/tty",
    "/dev/ptmx",
)


def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)


def _check(result: int, what: str) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")
    return result


def landlock_abi() -> int:
    """Return the version of Landlock's interface, 0 where the system has none.

    Returns
    -------
    int
        The version.
    """
    if sys.platform != "linux":
        return 0
    version: int = _libc().syscall(
        SYS_LANDLOCK_CREATE_RULESET, None, ctypes.c_size_t(0), LANDLOCK_CREATE_RULESET_VERSION
    )
    return max(version, 0)


def restrict(folders: Iterable[str], abi: int) -> None:
    """Let this process and all it starts write below some folders only, for ever.

    Beside the folders: the devices that take anything, terminals, and ``/dev/shm``, without which
    :mod:`multiprocessing` has no semaphores. Reading and executing stay free. From version 6 on,
    signals and abstract sockets stay inside as well.

    Parameters
    ----------
    folders : iterable of str
        Absolute paths.
    abi : int
        What :func:`landlock_abi` said, at least 1.

    Raises
    ------
    OSError
        The kernel refused.
    """
    libc = _libc()
    file_rights = WRITE_FILE | (TRUNCATE if abi >= 3 else 0)
    below = file_rights | REMOVE_DIR | REMOVE_FILE | MAKE_DIR | MAKE_REG | MAKE_SOCK
    below |= MAKE_FIFO | MAKE_SYM | (REFER if abi >= 2 else 0)
    attributes = struct.pack("=Q", below | MAKE_CHAR | MAKE_BLOCK)
    if abi >= 6:
        attributes += struct.pack("=QQ", 0, SCOPE_ABSTRACT_UNIX_SOCKET | SCOPE_SIGNAL)
    ruleset = _check(
        libc.syscall(SYS_LANDLOCK_CREATE_RULESET, attributes, ctypes.c_size_t(len(attributes)), 0),
        "landlock_create_ruleset",
    )
    try:
        shared = file_rights | MAKE_REG | REMOVE_FILE
        for path, rights in (
            *((folder, below) for folder in folders),
            *((device, file_rights) for device in DEVICES),
            ("/dev/pts", file_rights),
            ("/dev/shm", shared),  # noqa: S108 # the system's own folder, not a temporary file
        ):
            try:
                beneath = os.open(path, os.O_PATH | os.O_CLOEXEC)
            except FileNotFoundError:
                continue
            try:
                rule = struct.pack("=Qi", rights, beneath)
                _check(
                    libc.syscall(
                        SYS_LANDLOCK_ADD_RULE, ruleset, LANDLOCK_RULE_PATH_BENEATH, rule, 0
                    ),
                    f"landlock_add_rule for {path}",
                )
            finally:
                os.close(beneath)
        _check(libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), "prctl(PR_SET_NO_NEW_PRIVS)")
        _check(libc.syscall(SYS_LANDLOCK_RESTRICT_SELF, ruleset, 0), "landlock_restrict_self")
    finally:
        os.close(ruleset)


def unshare_users() -> None:
    """Enter a user namespace of its own; somebody outside must then write its maps.

    Raises
    ------
    OSError
        The kernel refused.
    """
    _check(_libc().unshare(CLONE_NEWUSER), "unshare(CLONE_NEWUSER)")


def become(uid: int) -> None:
    """Become another user for good, without any group or capability.

    Parameters
    ----------
    uid : int
        The user; the group has the same number.

    Raises
    ------
    OSError
        The kernel refused.
    """
    os.setgroups([])
    os.setresgid(uid, uid, uid)
    os.setresuid(uid, uid, uid)


def take_identity() -> None:
    """Become user 0 of the namespace, who is nobody outside it.

    Raises
    ------
    OSError
        The kernel refused, for example because the maps are missing.
    """
    os.setgroups([])
    os.setresgid(0, 0, 0)
    os.setresuid(0, 0, 0)


def drop_capabilities() -> None:
    """Keep no capability but to read, and make sure that none comes back.

    ``CAP_DAC_READ_SEARCH`` stays because the emulator's own Python may lie in a folder that only
    its user can read.

    Raises
    ------
    OSError
        The kernel refused.
    """
    libc = _libc()
    _check(libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), "prctl(PR_SET_NO_NEW_PRIVS)")
    for capability in range(64):
        # The kernel ends the list with EINVAL.
        if (
            capability != CAP_DAC_READ_SEARCH
            and libc.prctl(PR_CAPBSET_DROP, capability, 0, 0, 0) < 0
        ):
            break
    kept = 1 << CAP_DAC_READ_SEARCH
    header = struct.pack("=Ii", 0x20080522, 0)  # _LINUX_CAPABILITY_VERSION_3, this process
    data = struct.pack("=IIIIII", kept, kept, 0, 0, 0, 0)
    _check(libc.capset(header, data), "capset")
