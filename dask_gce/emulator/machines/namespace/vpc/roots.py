"""The file systems of a machine: its disk over what it starts from, devices, what the kernel shows.

Owns every mount of a machine, and the files in which a machine reads about itself. All of it is in
the machine's own namespace of mounts and ends with it; only the disk's folder stays::

    FOLDER/
      upper/ work/          what the machine has changed of its root file system
      containers/ docker/   container engines' stores, which cannot lie on an overlay
      tmp/                  emptied by the emulator before every boot
      facts/                what stands in for /proc/meminfo and its like
      root/                 where all is mounted, until it becomes the root
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import struct
import termios
import tty
from typing import TYPE_CHECKING

from . import cos, kernel
from .cgroups import Group, unified_only
from .layers import hide, overlay
from .paths import make_folder, within

if TYPE_CHECKING:
    from .boot import Plan

__all__ = ["Root"]

#: Devices of a machine: name, mode, major and minor number; see Documentation/admin-guide/devices.
#: They are made here, never bound from the host's: a guest's systemd changes their owners.
_DEVICES = (
    ("null", 0o666, 1, 3),
    ("zero", 0o666, 1, 5),
    ("full", 0o666, 1, 7),
    ("random", 0o666, 1, 8),
    ("urandom", 0o666, 1, 9),
    ("tty", 0o666, 5, 0),
    ("fuse", 0o666, 10, 229),
    ("net/tun", 0o666, 10, 200),
)

_LINKS = (
    ("ptmx", "pts/ptmx"),
    ("fd", "/proc/self/fd"),
    ("stdin", "/proc/self/fd/0"),
    ("stdout", "/proc/self/fd/1"),
    ("stderr", "/proc/self/fd/2"),
)

# asm-generic/ioctls.h
_GET_PTY_NUMBER = 0x80045430
_LOCK_PTY = 0x40045431

#: What of /proc is the host's as well and can be written.
_HOSTS_OWN = ("sys", "sysrq-trigger", "acpi", "asound", "bus", "fs", "irq", "mtrr", "scsi")

_STRICT = kernel.NO_SETUID | kernel.NO_DEVICES | kernel.NO_PROGRAMS


class Root:
    """Builds the root file system of a machine, in the machine's namespace of mounts.

    Parameters
    ----------
    plan : Plan
        The machine.
    """

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._root = f"{plan.folder}/root"

    def build(self, group: Group) -> tuple[int, int]:
        """Mount everything.

        Parameters
        ----------
        group : Group
            The machine's control groups, of which it sees its own part.

        Returns
        -------
        master : int
            A descriptor of the console, as the one who watches it sees it.
        console : int
            A descriptor of the console, as the machine sees it.
        """
        plan, root = self._plan, self._root
        os.makedirs(root, exist_ok=True)
        upper = f"{plan.folder}/upper"
        for path in plan.hidden:
            hide(plan.lower.rstrip("/"), upper, path)
        overlay(plan.lower, upper, f"{plan.folder}/work", root)
        for name in ("proc", "sys", "dev", "run", "tmp", "etc", "var/lib"):
            self._make_folder(name)
        if plan.cos:
            cos.lay_out(plan.lower, plan.folder, root)
        else:
            self._bind_own("tmp", "tmp")
            os.chmod(self._at("tmp"), 0o1777)  # noqa: S103 # as everywhere
        for name in ("docker", "containers"):
            self._bind_own(name, f"var/lib/{name}")
        self._mount_kernel(group)
        self._mount_devices()
        kernel.mount(
            "tmpfs", self._at("run"), "tmpfs", kernel.NO_SETUID | kernel.NO_DEVICES, "mode=755"
        )
        for path, source in plan.shared.items():
            self._share(source, self._at(path))
        self._write_names()
        console = self._open_console()
        if plan.cos:
            kernel.restrict_mount(root, kernel.READ_ONLY)
        return console

    def enter(self) -> None:
        """Make it this process's root, and forget the host's."""
        kernel.pivot_root(self._root)

    def _at(self, path: str) -> str:
        """Return where a path of the machine is, whatever links its guest has left there."""
        return within(self._root, path)

    def _make_folder(self, path: str) -> str:
        return make_folder(self._root, path)

    # The disk

    def _bind_own(self, name: str, target: str) -> None:
        source = f"{self._plan.folder}/{name}"
        os.makedirs(source, exist_ok=True)
        kernel.bind(source, self._make_folder(target))

    @staticmethod
    def _share(source: str, target: str) -> None:
        if os.path.isdir(source):
            os.makedirs(target, exist_ok=True)
        elif not os.path.exists(target):
            os.makedirs(os.path.dirname(target), exist_ok=True)
            os.close(os.open(target, os.O_CREAT | os.O_WRONLY, 0o644))
        kernel.bind(source, target, kernel.READ_ONLY)

    def _write_names(self) -> None:
        plan, etc = self._plan, self._make_folder("etc")
        for name, text in {
            "hostname": f"{plan.name}\n",
            "hosts": (
                f"127.0.0.1 localhost\n{plan.address} {plan.hostname} {plan.name}\n"
                "169.254.169.254 metadata.google.internal metadata\n"
            ),
            "resolv.conf": f"nameserver 169.254.169.254\nsearch {' '.join(plan.domains)}\n",
        }.items():
            # It may be a link into a folder that does not exist yet, or whatever a guest has made.
            place = f"{etc}/{name}"
            if os.path.isdir(place) and not os.path.islink(place):
                shutil.rmtree(place)
            with contextlib.suppress(FileNotFoundError):
                os.unlink(place)
            with open(place, "x", encoding="utf-8") as file:
                file.write(text)

    # What the kernel shows

    def _mount_kernel(self, group: Group) -> None:
        proc, sys = self._at("proc"), self._at("sys")
        kernel.mount("proc", proc, "proc", _STRICT)
        kernel.mount("sysfs", sys, "sysfs", _STRICT)
        self._mount_groups(group, f"{sys}/fs/cgroup")
        facts = f"{self._plan.folder}/facts"
        os.makedirs(facts, exist_ok=True)
        for name, (target, text) in _facts(self._plan).items():
            place = self._at(target)
            if os.path.exists(place):
                with open(f"{facts}/{name}", "w", encoding="utf-8") as file:
                    file.write(text)
                kernel.bind(f"{facts}/{name}", place, kernel.READ_ONLY)
        kernel.restrict_mount(sys, kernel.READ_ONLY)
        # Most of these settings are the host's as well, those of the network are the machine's.
        kernel.bind(f"{proc}/sys/net", f"{proc}/sys/net")
        for name in _HOSTS_OWN:
            if os.path.exists(f"{proc}/{name}"):
                kernel.bind(f"{proc}/{name}", f"{proc}/{name}")
                kernel.restrict_mount(f"{proc}/{name}", kernel.READ_ONLY)

    @staticmethod
    def _mount_groups(group: Group, top: str) -> None:
        if unified_only():
            kernel.mount("cgroup2", top, "cgroup2", _STRICT)
            return
        kernel.mount("tmpfs", top, "tmpfs", _STRICT, "mode=755")
        for name in group.folders:
            folder = f"{top}/{name or 'unified'}"
            os.mkdir(folder)
            if not name:
                kernel.mount("cgroup2", folder, "cgroup2", _STRICT)
            else:
                options = "none,name=systemd" if name == "systemd" else name
                kernel.mount("cgroup", folder, "cgroup", _STRICT, options)

    # Devices

    def _mount_devices(self) -> None:
        dev = self._at("dev")
        kernel.mount("tmpfs", dev, "tmpfs", kernel.NO_SETUID, "mode=755")
        os.mkdir(f"{dev}/net")
        for name, mode, major, minor in _DEVICES:
            os.mknod(f"{dev}/{name}", 0o020000 | mode, os.makedev(major, minor))
            os.chmod(f"{dev}/{name}", mode)
        for name, target in _LINKS:
            os.symlink(target, f"{dev}/{name}")
        for name in ("pts", "shm", "mqueue"):
            os.mkdir(f"{dev}/{name}")
        kernel.mount(
            "devpts", f"{dev}/pts", "devpts", kernel.NO_SETUID, "newinstance,ptmxmode=0666,mode=620"
        )
        # Half of the memory, as the kernel would size it on a machine of this size.
        kernel.mount(
            "tmpfs",
            f"{dev}/shm",
            "tmpfs",
            kernel.NO_SETUID | kernel.NO_DEVICES,
            f"mode=1777,size={self._plan.memory // 2}",
        )
        kernel.mount("mqueue", f"{dev}/mqueue", "mqueue", _STRICT)

    def _open_console(self) -> tuple[int, int]:
        dev = self._at("dev")
        master = os.open(f"{dev}/pts/ptmx", os.O_RDWR | os.O_NOCTTY)
        fcntl.ioctl(master, _LOCK_PTY, struct.pack("i", 0))
        (number,) = struct.unpack("i", fcntl.ioctl(master, _GET_PTY_NUMBER, struct.pack("i", 0)))
        slave = f"{dev}/pts/{number}"
        console = os.open(slave, os.O_RDWR | os.O_NOCTTY)
        tty.setraw(console, termios.TCSANOW)
        # The console, and the serial port that a machine's images write to.
        for name in ("console", "ttyS0"):
            os.close(os.open(f"{dev}/{name}", os.O_CREAT | os.O_WRONLY, 0o620))
            kernel.bind(slave, f"{dev}/{name}")
        return master, console


def _facts(plan: Plan) -> dict[str, tuple[str, str]]:
    """Return what a machine of that size shows: name -> place and text."""
    kilobytes = plan.memory // 1024
    online = "0\n" if plan.cpus == 1 else f"0-{plan.cpus - 1}\n"
    return {
        "meminfo": ("/proc/meminfo", _meminfo(kilobytes)),
        "cpuinfo": ("/proc/cpuinfo", _cpuinfo(plan.cpus)),
        "cmdline": ("/proc/cmdline", "root=LABEL=root ro console=ttyS0,38400n8 TERM=dumb\n"),
        **{
            name: (f"/sys/devices/system/cpu/{name}", online)
            for name in ("online", "possible", "present")
        },
    }


def _meminfo(kilobytes: int) -> str:
    rows = {"MemTotal": kilobytes, "MemFree": kilobytes, "MemAvailable": kilobytes}
    rest = ("Buffers", "Cached", "SwapCached", "Active", "Inactive", "SwapTotal", "SwapFree")
    rows |= dict.fromkeys((*rest, "Shmem", "Slab", "SReclaimable"), 0)
    return "".join(f"{f'{name}:':<15} {value:>8} kB\n" for name, value in rows.items())


def _cpuinfo(cpus: int) -> str:
    with open("/proc/cpuinfo", encoding="utf-8", errors="replace") as file:
        first = file.read().partition("\n\n")[0].splitlines()
    blocks = []
    for index in range(cpus):
        lines = [
            f"{line.partition(':')[0]}: {index}" if line.startswith("processor") else line
            for line in first
        ]
        blocks.append("\n".join(lines) + "\n\n")
    return "".join(blocks)
