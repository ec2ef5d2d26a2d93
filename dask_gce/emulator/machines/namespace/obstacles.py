"""What keeps a host from having namespace machines, and what to do about it.

Owns the questions that can be answered before anything is made: who runs this, with which rights,
on which file system, with which tools.
"""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

__all__ = ["BASE", "PATH", "find_obstacle"]

#: Where the files of machines are: on a disk, and kept by nobody's cleaning while they are used.
BASE = "/var/lib/dask-gce"

#: The whole environment of the process, which its machines' first processes show as theirs.
PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

#: CAP_NET_ADMIN, CAP_SYS_CHROOT, CAP_SYS_ADMIN and CAP_MKNOD; see capabilities(7).
_CAPABILITIES = {12, 18, 21, 27}

#: What is run in the namespaces, and the Debian package that brings it.
_TOOLS = {"nft": "nftables"}


def find_obstacle() -> str | None:
    """Return why there can be no machines of kind ``namespace`` here.

    Returns
    -------
    str or None
        What is missing and what to do about it; None when nothing is known to be.
    """
    remedy = 'or take another kind of machines, for example ComputeEmulator("process").'
    if sys.platform != "linux":
        return f"Machines of kind namespace need Linux: run this on Linux, {remedy}"
    if os.geteuid() != 0:
        return f"Machines of kind namespace need root: run this as root, {remedy}"
    if not _own_capabilities() >= _CAPABILITIES:
        return (
            "Machines of kind namespace need all of root's capabilities, which a container has not:"
            f" run it with docker run --privileged, {remedy}"
        )
    for tool, package in _TOOLS.items():
        if shutil.which(tool, path=PATH) is None:
            return f"Machines of kind namespace need {tool}: apt-get install {package}, {remedy}"
    if _file_system(BASE) == "overlay":
        return (
            f"The disks of machines of kind namespace cannot lie on the overlay on which {BASE} is:"
            f" mount a volume there, in a container with docker run --volume {BASE}, {remedy}"
        )
    return None


def _own_capabilities() -> set[int]:
    for line in Path("/proc/self/status").read_text("utf-8").splitlines():
        if line.startswith("CapEff:"):
            mask = int(line.split()[1], 16)
            return {number for number in range(mask.bit_length()) if mask >> number & 1}
    return set()


def _file_system(path: str) -> str:
    """Return what kind of file system a path is, or would be, on."""
    found = "", ""
    for line in Path("/proc/self/mountinfo").read_text("utf-8").splitlines():
        # proc(5): the fifth field is the place, the first after the dash the kind.
        place, kind = line.split()[4], line.partition(" - ")[2].split()[0]
        above = place.rstrip("/")
        if (path == place or path.startswith(f"{above}/")) and len(place) >= len(found[0]):
            found = place, kind
    return found[1]
