"""The control groups that give a machine its size: memory, processors, processes, devices.

Owns where they are on this host, in both versions of the interface, and their limits. Every machine
is a group below one group of its emulator, at the top of the host's hierarchy, because the group
that the emulator itself runs in belongs to somebody else.

Sources: cgroups(7), https://docs.kernel.org/admin-guide/cgroup-v2.html and cgroup-v1/
"""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import time
from collections.abc import Iterator

from .device_filter import attach_filter

__all__ = ["Cgroups", "Group", "group_folders", "remove_groups", "unified_only"]

ROOT = "/sys/fs/cgroup"

#: What a machine has of its own, by the names of version 1; "" is version 2 beside it.
_WANTED = ("memory", "pids", "cpu", "cpuacct", "cpuset", "devices", "freezer", "blkio", "systemd")

#: The processes and threads that a machine can have.
PIDS = 16384

#: Microseconds over which processor time is counted: the kernel's default.
_PERIOD = 100_000

#: Character devices without a memory, terminals, and those that make networks and file systems in
#: programs, by their numbers. A machine must not reach the host's disks, which it could name.
_DEVICES = (
    *((1, minor) for minor in (3, 5, 7, 8, 9)),
    *((5, 0), (5, 2), (136, None), (10, 229), (10, 200)),
    (5, 1),  # container runtimes insist on passing on the console
)

#: The group in which a machine is, and which it takes for the top. What it allows itself there is
#: of no use beyond the limits of the group above, which it cannot reach.
_INSIDE = "machine"

#: Seconds until the last process of a group that was killed must be gone.
_END_LIMIT = 10.0


def unified_only() -> bool:
    """Tell whether this host has version 2 alone.

    Returns
    -------
    bool
        Whether it has.
    """
    return os.path.exists(f"{ROOT}/cgroup.controllers")


def _controllers() -> dict[str, str]:
    """Return where this host's hierarchies are.

    Returns
    -------
    dict of str to str
        Their folders by the names of version 1; "" is version 2.
    """
    if unified_only():
        return {"": ROOT}
    found = {name: f"{ROOT}/{name}" for name in _WANTED if os.path.isdir(f"{ROOT}/{name}")}
    if os.path.exists(f"{ROOT}/unified/cgroup.procs"):
        found[""] = f"{ROOT}/unified"
    return found


class Group:
    """The control groups of one machine.

    Parameters
    ----------
    folders : dict of str to str
        Their folders by hierarchy.
    """

    def __init__(self, folders: dict[str, str]) -> None:
        self.folders = folders

    def join(self) -> None:
        """Move this process, and all it will fork, into the groups."""
        for folder in self.folders.values():
            _write(f"{folder}/cgroup.procs", "0")


class Cgroups:
    """Makes the control groups of an emulator's machines.

    Parameters
    ----------
    name : str
        The emulator's claim.

    Raises
    ------
    OSError
        There are no control groups here that limit memory.
    """

    def __init__(self, name: str) -> None:
        self._roots = _controllers()
        self._name = name
        if "memory" not in self._roots and not unified_only():
            raise OSError(errno.ENOENT, f"no control groups for memory are mounted on {ROOT}")
        for kind, root in self._roots.items():
            folder = f"{root}/{name}"
            os.makedirs(folder, exist_ok=True)
            if kind == "cpuset":
                _inherit_cpuset(root, folder)
            elif not kind and unified_only():
                _delegate(root)
                _delegate(folder)

    def make(self, slot: int, memory: int, cpus: int) -> Group:
        """Make a machine's groups.

        Parameters
        ----------
        slot : int
            The machine's number.
        memory : int
            Its memory in bytes.
        cpus : int
            The number of its processors.

        Returns
        -------
        Group
            The groups, empty.
        """
        self.remove(slot)
        limits = list(_limits(memory, cpus))
        folders = {kind: f"{root}/{self._name}/{slot}" for kind, root in self._roots.items()}
        _make(folders, limits)
        _filter_devices(folders)
        if unified_only():
            _delegate(folders[""])
        inside = {kind: f"{folder}/{_INSIDE}" for kind, folder in folders.items()}
        # The same once more: it is there that programs read how much there is.
        _make(inside, limits)
        return Group(inside)

    def remove(self, slot: int) -> None:
        """Remove a machine's groups; those that do not exist are ignored.

        Parameters
        ----------
        slot : int
            The machine's number.
        """
        for root in self._roots.values():
            _remove(f"{root}/{self._name}/{slot}")


def group_folders(name: str) -> list[str]:
    """Return where the groups of an emulator are, whether they exist or not.

    Parameters
    ----------
    name : str
        The emulator's claim.

    Returns
    -------
    list of str
        A folder for each hierarchy.
    """
    return [f"{root}/{name}" for root in _controllers().values()]


def remove_groups(name: str) -> None:
    """Remove all groups of an emulator, and kill whoever is in them.

    Parameters
    ----------
    name : str
        The emulator's claim.
    """
    for folder in group_folders(name):
        _remove(folder)


def _limits(memory: int, cpus: int) -> Iterator[tuple[str, str, str]]:
    if unified_only():
        yield "", "memory.max", str(memory)
        yield "", "memory.swap.max", "0"
        yield "", "pids.max", str(PIDS)
        yield "", "cpu.max", f"{cpus * _PERIOD} {_PERIOD}"
        return
    yield "memory", "memory.limit_in_bytes", str(memory)
    yield "memory", "memory.memsw.limit_in_bytes", str(memory)
    yield "pids", "pids.max", str(PIDS)
    yield "cpu", "cpu.cfs_period_us", str(_PERIOD)
    yield "cpu", "cpu.cfs_quota_us", str(cpus * _PERIOD)
    yield "devices", "devices.deny", "a"
    for kind in "cb":
        yield "devices", "devices.allow", f"{kind} *:* m"
    for major, minor in _DEVICES:
        yield "devices", "devices.allow", f"c {major}:{'*' if minor is None else minor} rwm"


def _make(folders: dict[str, str], limits: list[tuple[str, str, str]]) -> None:
    for kind, folder in folders.items():
        os.mkdir(folder)
        if kind == "cpuset":
            _inherit_cpuset(os.path.dirname(folder), folder)
    for kind, setting, value in limits:
        if kind in folders and os.path.exists(f"{folders[kind]}/{setting}"):
            _write(f"{folders[kind]}/{setting}", value)


def _filter_devices(folders: dict[str, str]) -> None:
    """Keep a machine from the host's devices, also where version 2 is alone."""
    try:
        if "" in folders:
            attach_filter(folders[""], _DEVICES)
        elif "devices" not in folders:
            raise OSError(errno.ENOENT, f"there are no control groups for devices on {ROOT}")
    except OSError as error:
        if "devices" not in folders:
            raise OSError(
                error.errno, f"machines cannot be kept from the host's disks: {error.strerror}"
            ) from error


def _delegate(folder: str) -> None:
    """Let the groups below a folder have limits of their own."""
    with open(f"{folder}/cgroup.controllers", encoding="ascii") as file:
        there = file.read().split()
    for one in ("memory", "cpu", "pids", "cpuset", "io"):
        if one in there:
            try:
                _write(f"{folder}/cgroup.subtree_control", f"+{one}")
            except OSError as error:
                raise OSError(
                    error.errno,
                    f"cannot limit {one} below {folder} ({error.strerror}): in a container run it"
                    " with the host's control groups (docker run --cgroupns=host)",
                ) from error


def _inherit_cpuset(parent: str, folder: str) -> None:
    # Without both nobody can join; those below inherit by themselves.
    for setting in ("cpuset.cpus", "cpuset.mems"):
        with open(f"{parent}/{setting}", encoding="ascii") as file:
            _write(f"{folder}/{setting}", file.read())
    _write(f"{folder}/cgroup.clone_children", "1")


def _remove(folder: str) -> None:
    """Remove a group and all below it, from the bottom."""
    deadline = time.monotonic() + _END_LIMIT
    for path, _, _ in os.walk(folder, topdown=False):
        while True:
            try:
                os.rmdir(path)
            except FileNotFoundError:
                break
            except OSError:
                if time.monotonic() > deadline:
                    raise
                _kill(path)
                time.sleep(0.002)
            else:
                break


def _kill(folder: str) -> None:
    try:
        with open(f"{folder}/cgroup.procs", encoding="ascii") as file:
            processes = file.read().split()
    except OSError as error:
        # Somebody else has removed it, perhaps between the opening and the reading.
        if error.errno not in (errno.ENOENT, errno.ENODEV):
            raise
        return
    for process in processes:
        # 0 is a process of another namespace, which only the host's sees.
        if int(process):
            with contextlib.suppress(ProcessLookupError):
                os.kill(int(process), signal.SIGKILL)


def _write(path: str, value: str) -> None:
    # In one piece, as these files want it.
    descriptor = os.open(path, os.O_WRONLY)
    try:
        os.write(descriptor, value.encode())
    finally:
        os.close(descriptor)
