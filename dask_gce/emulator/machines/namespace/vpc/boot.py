"""Booting a machine: its first process, from the fork to the program that it becomes.

Owns the order of things. What the machine's file systems are is built in :mod:`roots`, its size is
the business of :mod:`cgroups`. The first process of a machine is a direct child of the VPC process,
because its exit status tells a restart from a power off; see pid_namespaces(7).
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
from dataclasses import dataclass, field
from typing import NoReturn

from . import cos, init, kernel
from .cgroups import Group
from .roots import Root

__all__ = ["Boot", "Plan", "fork_machine"]

#: What reaches the host and not only the machine: files by numbers instead of names, the kernel's
#: modules, raw input and output, the clock, security modules, the kernel's log, and its audit
#: (capability.h).
_HOST_CAPABILITIES = frozenset({2, 16, 17, 25, 32, 33, 34, 37})

#: What the kernel gives to a first program, and what a distribution makes of it.
_ENVIRONMENT = {
    "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    "TERM": "linux",
}

#: Seconds that one step of a machine's first process may take; all of them take milliseconds. The
#: VPC process waits for it, and with it all other machines.
_LIMIT = 60.0

#: How the end of a machine's first process reads; everything else is a panic.
_ENDS = {signal.SIGINT: "poweroff", signal.SIGHUP: "reboot", signal.SIGKILL: "kill"}


@dataclass(frozen=True)
class Plan:
    """What the emulator says about a machine that is to boot.

    Parameters
    ----------
    slot : int
        The machine's number, for as long as it exists.
    name : str
        The short host name.
    hostname : str
        The whole name in the network's domain.
    domains : list of str
        The domains in which short names are looked up.
    address : str
        Its internal address.
    folder : str
        The folder of its disk.
    lower : str
        The root file system that it starts from and cannot change.
    hidden : list of str
        Files and folders of that file system which it does not see, or sees empty.
    systemd : bool
        Whether that file system's own first program runs, or :mod:`init`.
    cos : bool
        Whether it is laid out as Container-Optimized OS.
    memory : int
        Bytes.
    cpus : int
        The number of vCPUs.
    shared : dict of str to str
        Folders and files of the host that it can read, by its own paths.
    """

    slot: int
    name: str
    hostname: str
    domains: list[str]
    address: str
    folder: str
    lower: str
    hidden: list[str]
    systemd: bool
    cos: bool
    memory: int
    cpus: int
    shared: dict[str, str] = field(default_factory=dict)


class Boot:
    """A machine that is on, or about to be.

    Parameters
    ----------
    pid : int
        Its first process.
    slot : int
        Its number.
    control : int
        A descriptor on which the emulator waits for its end.
    starter : socket
        The connection with the first process until it is a program.
    """

    def __init__(self, pid: int, slot: int, control: int, starter: socket.socket) -> None:
        self.pid = pid
        self.slot = slot
        self._control = control
        self._starter = starter

    def switch_on(self) -> int:
        """Let the first program run, once everything is mounted.

        Returns
        -------
        int
            A descriptor of the console, to be read.

        Raises
        ------
        OSError
            The machine could not be made.
        """
        with self._starter:
            word, descriptors, _, _ = socket.recv_fds(self._starter, 4096, 1)
            if word != b"mounted":
                raise OSError(word.decode(errors="replace") or "its first process died")
            (console,) = descriptors
            try:
                os.set_inheritable(console, False)
                self._starter.send(b"go")
                word = self._starter.recv(4096)
                if word:
                    raise OSError(word.decode(errors="replace"))
            except BaseException:
                os.close(console)
                raise
            return console

    def note_end(self, status: int) -> None:
        """Tell the emulator that the machine is off.

        Parameters
        ----------
        status : int
            The status of its first process.
        """
        how = _ENDS.get(signal.Signals(os.WTERMSIG(status))) if os.WIFSIGNALED(status) else None
        with contextlib.suppress(OSError):  # the emulator may be gone
            os.write(self._control, json.dumps({"off": how or "panic"}).encode())
        os.close(self._control)
        self._starter.close()


def fork_machine(plan: Plan, group: Group, control: int) -> Boot:
    """Fork a machine's first process; it has its namespaces when this returns.

    Parameters
    ----------
    plan : Plan
        The machine.
    group : Group
        Its control groups.
    control : int
        A descriptor on which the emulator waits for its end.

    Returns
    -------
    Boot
        The machine, waiting to be switched on.
    """
    starter, child_end = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    # Every machine's namespace of processes is to lie below this one, not below the last machine's.
    home = os.open("/proc/self/ns/pid", os.O_RDONLY)
    try:
        kernel.unshare(kernel.NEW_PIDS)
        try:
            pid = os.fork()
            if pid == 0:
                _become(plan, group, child_end)
        finally:
            kernel.enter(home, kernel.NEW_PIDS)
    except BaseException:
        starter.close()
        raise
    finally:
        os.close(home)
        child_end.close()
    try:
        starter.settimeout(_LIMIT)
        word = starter.recv(4096)
        if word != b"unshared":
            raise OSError(word.decode(errors="replace") or "its first process died")
        return Boot(pid, plan.slot, os.dup(control), starter)
    except BaseException:
        starter.close()
        os.kill(pid, signal.SIGKILL)
        raise


def _become(plan: Plan, group: Group, starter: socket.socket) -> NoReturn:
    # No frame of the VPC process may ever be returned to from here.
    try:
        signal.set_wakeup_fd(-1)
        for number in (signal.SIGCHLD, signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, signal.SIG_DFL)
        # The kernel drops what a first program does not handle yet, but keeps what is blocked. All
        # first programs let these in once they can take them, as systemd does by a descriptor.
        signal.pthread_sigmask(signal.SIG_BLOCK, init.BUTTONS)
        os.setsid()
        os.umask(0o022)
        group.join()
        kernel.unshare(
            kernel.NEW_MOUNTS
            | kernel.NEW_NETWORK
            | kernel.NEW_UTS
            | kernel.NEW_IPC
            | kernel.NEW_CGROUPS
        )
        starter.send(b"unshared")
        _prepare(plan, group, starter)
        if starter.recv(16) != b"go":
            os._exit(1)
        _start(plan, starter)
    except OSError as error:
        with contextlib.suppress(OSError):
            starter.send(str(error).encode())
    finally:
        os._exit(1)


def _prepare(plan: Plan, group: Group, starter: socket.socket) -> None:
    kernel.make_private()
    root = Root(plan)
    master, console = root.build(group)
    socket.send_fds(starter, [b"mounted"], [master])
    os.close(master)
    root.enter()
    for descriptor in (0, 1, 2):
        os.dup2(console, descriptor)
    socket.sethostname(plan.name)
    if plan.cpus < len(os.sched_getaffinity(0)):
        # Programs count the processors they may use; which ones, the machines take turns.
        there = sorted(os.sched_getaffinity(0))
        os.sched_setaffinity(
            0, {there[(plan.slot + index) % len(there)] for index in range(plan.cpus)}
        )
    if plan.cos:
        cos.close_firewall()
    kernel.drop_capabilities(_HOST_CAPABILITIES)


def _start(plan: Plan, starter: socket.socket) -> None:
    if plan.systemd:
        os.closerange(3, starter.fileno())
        os.closerange(starter.fileno() + 1, 1 << 20)
        # The connection ends with the start of the program, which tells that it could be started.
        os.execve("/sbin/init", ["/sbin/init"], _ENVIRONMENT)  # noqa: S606 # the machine's own
    os.closerange(3, 1 << 20)
    init.run("/var/lib/google" if plan.cos else "/tmp", _ENVIRONMENT)  # noqa: S108 # the machine's
