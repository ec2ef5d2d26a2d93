"""What each series of machine types can be combined with, as Google's documentation prints it.

Owns the tables: GPUs, local SSDs, boot disks, Confidential VMs, CPU platforms. What a cluster asks
for is compared with them in `hardware`, before anything is created. Of a series that is not in a
table nothing is said: it may be newer than this package, and Compute Engine itself refuses what it
cannot do.

Sources: `GPU machine types <https://docs.cloud.google.com/compute/docs/gpus>`_, `Local SSD disks
<https://docs.cloud.google.com/compute/docs/disks/local-ssd#choose_number_local_ssds>`_, `Machine
series comparison
<https://docs.cloud.google.com/compute/docs/machine-resource#machine_type_comparison>`_,
`Confidential VM supported configurations
<https://docs.cloud.google.com/confidential-computing/confidential-vm/docs/supported-configurations>`_
and `CPU platforms
<https://docs.cloud.google.com/compute/docs/instances/specify-min-cpu-platform>`_.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Final

__all__ = [
    "ATTACHED_GPUS",
    "NO_CPU_PLATFORM",
    "NO_GPUS",
    "confidential_type",
    "family_of",
    "local_ssd_counts",
    "unfit_boot_disk",
]

#: GPUs that machine types of N1 can be given: type -> number of GPUs -> the most vCPUs with them.
ATTACHED_GPUS: Final[Mapping[str, Mapping[int, int]]] = {
    "nvidia-tesla-t4": {1: 48, 2: 48, 4: 96},
    "nvidia-tesla-p4": {1: 24, 2: 48, 4: 96},
    "nvidia-tesla-v100": {1: 12, 2: 24, 4: 48, 8: 96},
    "nvidia-tesla-p100": {1: 16, 2: 32, 4: 96},
}

#: Series whose machine types have no GPUs and are given none.
NO_GPUS: Final = frozenset(
    {
        *("c2", "c2d", "c3", "c3d", "c4", "c4a", "c4d", "e2", "f1", "g1", "h3", "h4d"),
        *("m1", "m2", "m3", "m4", "n2", "n2d", "n4", "n4a", "n4d", "t2a", "t2d", "x4", "z3"),
    }
)

#: Series of which machines run on whichever CPU platform there is.
NO_CPU_PLATFORM: Final = frozenset({"e2", "f1", "g1"})

_PD: Final = ("pd-standard", "pd-balanced", "pd-ssd", "pd-extreme")
#: Disk types that machines of a series cannot boot from, and one that they can.
_UNFIT: Final[Mapping[str, tuple[Sequence[str], str]]] = {
    **dict.fromkeys(
        ("a4", "a4x", "c4", "c4a", "c4d", "g4", "h4d", "m4", "n4", "n4a", "n4d", "x4"),
        (_PD, "hyperdisk-balanced"),
    ),
    **dict.fromkeys(("a3", "c3", "c3d", "g2", "h3", "m3", "z3"), (("pd-standard",), "pd-balanced")),
}

#: Local SSDs by series: the most vCPUs, and how many disks machine types up to there can have.
_LOCAL_SSDS: Final[Mapping[str, Sequence[tuple[int, Sequence[int]]]]] = {
    "n1": ((96, (1, 2, 3, 4, 5, 6, 7, 8, 16, 24)),),
    "n2": (
        (10, (1, 2, 4, 8, 16, 24)),
        (20, (2, 4, 8, 16, 24)),
        (40, (4, 8, 16, 24)),
        (80, (8, 16, 24)),
        (128, (16, 24)),
    ),
    "n2d": (
        (16, (1, 2, 4, 8, 16, 24)),
        (48, (2, 4, 8, 16, 24)),
        (80, (4, 8, 16, 24)),
        (224, (8, 16, 24)),
    ),
    "c2": ((8, (1, 2, 4, 8)), (16, (2, 4, 8)), (30, (4, 8)), (60, (8,))),
    "c2d": ((16, (1, 2, 4, 8)), (32, (2, 4, 8)), (56, (4, 8)), (112, (8,))),
}
_LOCAL_SSDS_BY_TYPE: Final[Mapping[str, Sequence[int]]] = {
    "a2-highgpu-1g": (1, 2, 4, 8),
    "a2-highgpu-2g": (2, 4, 8),
    "a2-highgpu-4g": (4, 8),
    "a2-highgpu-8g": (8,),
    "a2-megagpu-16g": (8,),
    "g2-standard-4": (1,),
    "g2-standard-8": (1,),
    "g2-standard-12": (1,),
    "g2-standard-16": (1,),
    "g2-standard-24": (2,),
    "g2-standard-32": (1,),
    "g2-standard-48": (4,),
    "g2-standard-96": (8,),
}
#: Series of which no machine type is given any; some types of the first line come with them.
_NO_LOCAL_SSDS: Final = frozenset(
    {
        *("a3", "a4", "a4x", "c3", "c3d", "c4", "c4a", "c4d", "h4d", "x4", "z3"),
        *("e2", "f1", "g1", "h3", "m2", "m4", "n4", "n4a", "n4d", "t2a", "t2d"),
    }
)

#: Technologies of Confidential VMs by machine type.
_CONFIDENTIAL: Final = (
    (re.compile(r"(n2d|c2d|c3d|c4d)-.*"), "SEV"),
    (re.compile(r"c3-standard-\d+|a3-highgpu-1g"), "TDX"),
)


def family_of(machine_type: str) -> str:
    """Return the series of a machine type.

    Parameters
    ----------
    machine_type : str
        Its name.

    Returns
    -------
    str
        The series in lower case; ``"n1"`` for custom types that name none.

    Examples
    --------
    >>> family_of("c4-standard-8-lssd"), family_of("custom-4-8192")
    ('c4', 'n1')
    """
    family = machine_type.partition("-")[0]
    return "n1" if family == "custom" else family


def local_ssd_counts(machine_type: str, cpus: int) -> Sequence[int] | None:
    """Return how many local SSDs a machine type can be given.

    Parameters
    ----------
    machine_type : str
        Its name.
    cpus : int
        Its vCPUs.

    Returns
    -------
    sequence of int or None
        The numbers allowed, besides none; None if it is not known.

    Examples
    --------
    >>> local_ssd_counts("n2-standard-16", 16), local_ssd_counts("e2-standard-4", 4)
    ((2, 4, 8, 16, 24), ())
    >>> local_ssd_counts("n9-standard-4", 4) is None
    True
    """
    if machine_type in _LOCAL_SSDS_BY_TYPE:
        return _LOCAL_SSDS_BY_TYPE[machine_type]
    family = family_of(machine_type)
    for most, counts in _LOCAL_SSDS.get(family, ()):
        if cpus <= most:
            return counts
    return () if family in _NO_LOCAL_SSDS else None


def unfit_boot_disk(machine_type: str, disk_type: str) -> str | None:
    """Return the disk type to boot from instead, if a machine cannot boot from one.

    Parameters
    ----------
    machine_type : str
        The machine type.
    disk_type : str
        The disk type.

    Returns
    -------
    str or None
        A type that it can boot from; None if nothing is known against the one asked for.

    Examples
    --------
    >>> unfit_boot_disk("c4-standard-8", "pd-ssd"), unfit_boot_disk("n2-standard-8", "pd-ssd")
    ('hyperdisk-balanced', None)
    """
    unfit, instead = _UNFIT.get(family_of(machine_type), ((), None))
    return instead if disk_type in unfit else None


def confidential_type(machine_type: str) -> str | None:
    """Return the technology that makes a machine a Confidential VM.

    Parameters
    ----------
    machine_type : str
        The machine type.

    Returns
    -------
    str or None
        A ``confidentialInstanceType`` of the API; None if the machine type is not known to have
        one.

    Examples
    --------
    >>> confidential_type("n2d-standard-4"), confidential_type("c3-standard-8")
    ('SEV', 'TDX')
    >>> confidential_type("e2-standard-4") is None
    True
    """
    for pattern, technology in _CONFIDENTIAL:
        if pattern.fullmatch(machine_type):
            return technology
    return None
