"""Machine types: the predefined ones, and the custom ones that resolve by Google's rules.

Sizes are those of https://cloud.google.com/compute/docs/machine-resource. Which zone has which
family is not kept: every zone has all of them.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from dask_gce.emulator.errors import APIError, invalid, not_found
from dask_gce.emulator.links import number_of

#: vCPUs of each series: family -> class -> (vCPUs, GB of memory per vCPU).
_SERIES: dict[str, dict[str, tuple[str, float]]] = {
    "e2": {
        "standard": ("2 4 8 16 32", 4),
        "highmem": ("2 4 8 16", 8),
        "highcpu": ("2 4 8 16 32", 1),
    },
    "n1": {
        "standard": ("1 2 4 8 16 32 64 96", 3.75),
        "highmem": ("2 4 8 16 32 64 96", 6.5),
        "highcpu": ("2 4 8 16 32 64 96", 0.9),
    },
    "n2": {
        "standard": ("2 4 8 16 32 48 64 80 96 128", 4),
        "highmem": ("2 4 8 16 32 48 64 80", 8),
        "highcpu": ("2 4 8 16 32 48 64 80 96", 1),
    },
    "n2d": {
        "standard": ("2 4 8 16 32 48 64 80 96 128 224", 4),
        "highmem": ("2 4 8 16 32 48 64 80 96", 8),
        "highcpu": ("2 4 8 16 32 48 64 80 96 128 224", 1),
    },
    "n4": {
        "standard": ("2 4 8 16 32 48 64 80", 4),
        "highmem": ("2 4 8 16 32 48 64 80", 8),
        "highcpu": ("2 4 8 16 32 48 64 80", 2),
    },
    "c2": {"standard": ("4 8 16 30 60", 4)},
    "c2d": {
        "standard": ("2 4 8 16 32 56 112", 4),
        "highmem": ("2 4 8 16 32 56 112", 8),
        "highcpu": ("2 4 8 16 32 56 112", 2),
    },
    "c3": {
        "standard": ("4 8 22 44 88 176", 4),
        "highmem": ("4 8 22 44 88 176", 8),
        "highcpu": ("4 8 22 44 88 176", 2),
    },
    "c3d": {
        "standard": ("4 8 16 30 60 90 180 360", 4),
        "highmem": ("4 8 16 30 60 90 180 360", 8),
    },
    "c4": {
        "standard": ("4 8 16 24 32 48 96 144 192 288", 3.75),
        "highmem": ("4 8 16 24 32 48 96 144 192 288", 7.75),
        "highcpu": ("2 4 8 16 24 32 48 96 144 192 288", 2),
    },
    "c4a": {
        "standard": ("1 2 4 8 16 32 48 64 72", 4),
        "highmem": ("1 2 4 8 16 32 48 64 72", 8),
        "highcpu": ("1 2 4 8 16 32 48 64 72", 2),
    },
    "t2d": {"standard": ("1 2 4 8 16 32 48 60", 4)},
    "t2a": {"standard": ("1 2 4 8 16 32 48", 4)},
    "n4a": {"standard": ("1 2 4 8 16 32 48 64", 4)},
}

#: Types whose memory is no multiple of their vCPUs: vCPUs, MB, GPU type, GPUs.
_SINGLES: dict[str, tuple[int, int, str, int]] = {
    "f1-micro": (1, 614, "", 0),
    "g1-small": (1, 1740, "", 0),
    "e2-micro": (2, 1024, "", 0),
    "e2-small": (2, 2048, "", 0),
    "e2-medium": (2, 4096, "", 0),
    "c4-standard-2": (2, 7168, "", 0),
    "c4-highmem-2": (2, 15360, "", 0),
    "c3d-highcpu-4": (4, 8192, "", 0),
    "c3d-highcpu-8": (8, 16384, "", 0),
    "c3d-highcpu-16": (16, 32768, "", 0),
    "c3d-highcpu-30": (30, 60416, "", 0),
    "c3d-highcpu-60": (60, 120832, "", 0),
    "c3d-highcpu-90": (90, 181248, "", 0),
    "c3d-highcpu-180": (180, 362496, "", 0),
    "c3d-highcpu-360": (360, 724992, "", 0),
    "n2-highmem-96": (96, 786432, "", 0),
    "n2-highmem-128": (128, 884736, "", 0),
    "h3-standard-88": (88, 360448, "", 0),
    "a2-highgpu-1g": (12, 87040, "nvidia-tesla-a100", 1),
    "a2-highgpu-2g": (24, 174080, "nvidia-tesla-a100", 2),
    "a2-highgpu-4g": (48, 348160, "nvidia-tesla-a100", 4),
    "a2-highgpu-8g": (96, 696320, "nvidia-tesla-a100", 8),
    "a2-megagpu-16g": (96, 1392640, "nvidia-tesla-a100", 16),
    "a2-ultragpu-1g": (12, 174080, "nvidia-a100-80gb", 1),
    "a2-ultragpu-2g": (24, 348160, "nvidia-a100-80gb", 2),
    "a2-ultragpu-4g": (48, 696320, "nvidia-a100-80gb", 4),
    "a2-ultragpu-8g": (96, 1392640, "nvidia-a100-80gb", 8),
    "a3-highgpu-1g": (26, 239616, "nvidia-h100-80gb", 1),
    "a3-highgpu-2g": (52, 479232, "nvidia-h100-80gb", 2),
    "a3-highgpu-4g": (104, 958464, "nvidia-h100-80gb", 4),
    "a3-megagpu-8g": (208, 1916928, "nvidia-h100-mega-80gb", 8),
    "a3-ultragpu-8g": (224, 3022848, "nvidia-h200-141gb", 8),
    "a4-highgpu-8g": (224, 4063232, "nvidia-b200", 8),
    "g4-standard-48": (48, 184320, "nvidia-rtx-pro-6000", 1),
    "g4-standard-96": (96, 368640, "nvidia-rtx-pro-6000", 2),
    "g4-standard-192": (192, 737280, "nvidia-rtx-pro-6000", 4),
    "g4-standard-384": (384, 1474560, "nvidia-rtx-pro-6000", 8),
    "a3-highgpu-8g": (208, 1916928, "nvidia-h100-80gb", 8),
    "g2-standard-4": (4, 16384, "nvidia-l4", 1),
    "g2-standard-8": (8, 32768, "nvidia-l4", 1),
    "g2-standard-12": (12, 49152, "nvidia-l4", 1),
    "g2-standard-16": (16, 65536, "nvidia-l4", 1),
    "g2-standard-24": (24, 98304, "nvidia-l4", 2),
    "g2-standard-32": (32, 131072, "nvidia-l4", 1),
    "g2-standard-48": (48, 196608, "nvidia-l4", 4),
    "g2-standard-96": (96, 393216, "nvidia-l4", 8),
}

#: Types with local SSDs that come with them: how many, each by its own size.
_WITH_LOCAL_SSDS: dict[str, int] = {
    **{f"a2-ultragpu-{gpus}g": gpus for gpus in (1, 2, 4, 8)},
    **{f"a3-highgpu-{gpus}g": 2 * gpus for gpus in (1, 2, 4, 8)},
    "a3-megagpu-8g": 16,
}
#: Families of which some types have variants with local SSDs, ``-lssd``: vCPUs, SSDs.
_LSSD: dict[str, dict[int, int]] = {
    "c3-standard": {4: 1, 8: 2, 22: 4, 44: 8, 88: 16, 176: 32},
    "c3d-standard": {8: 1, 16: 1, 30: 2, 60: 4, 90: 8, 180: 16, 360: 32},
    "c4a-standard": {4: 1, 8: 2, 16: 4, 32: 6, 48: 10, 64: 14, 72: 16},
}

_SHARED_CORE = frozenset({"f1-micro", "g1-small", "e2-micro", "e2-small", "e2-medium"})
_ARM = frozenset({"t2a", "c4a", "n4a"})

#: Families that boot from Hyperdisk only (facts of the disk documentation: all 4th generation).
HYPERDISK_ONLY = frozenset({"c4", "c4a", "n4", "n4a", "a4", "g4"})
#: Those, and families that boot from Hyperdisk where no disk type is named.
HYPERDISK_FIRST = HYPERDISK_ONLY | {"a3", "h3"}


@dataclass(frozen=True)
class MachineType:
    """The size of a machine type.

    Parameters
    ----------
    name : str
        Its name, for example ``e2-standard-4``.
    guest_cpus : int
        The number of vCPUs.
    memory_mb : int
        Memory in MiB, which the API calls MB.
    accelerator : str
        The type of GPU that comes with it; empty when none does.
    accelerators : int
        How many of them.
    local_ssds : int
        How many local SSDs come with it.
    """

    name: str
    guest_cpus: int
    memory_mb: int
    accelerator: str = ""
    accelerators: int = 0
    local_ssds: int = 0

    @property
    def family(self) -> str:
        """The family, for example ``e2``; custom types without one are N1."""
        family = self.name.split("-", 1)[0]
        return "n1" if family == "custom" else family

    @property
    def architecture(self) -> str:
        """``X86_64`` or ``ARM64``."""
        return "ARM64" if self.family in _ARM else "X86_64"

    @property
    def shared_cpu(self) -> bool:
        """Whether its vCPUs are shared with other machines."""
        return self.name in _SHARED_CORE or bool(
            re.match(r"e2-custom-(micro|small|medium)-", self.name)
        )

    def resource(self, base_url: str, project: str, zone: str) -> dict[str, Any]:
        """Return it as ``machineTypes.get`` answers.

        Parameters
        ----------
        base_url : str
            The address of the API up to and with ``/compute/v1``.
        project : str
            Project ID.
        zone : str
            Zone name.

        Returns
        -------
        dict
            The ``compute#machineType`` resource.
        """
        shown: dict[str, Any] = {
            "kind": "compute#machineType",
            "id": str(number_of(f"machine type {self.name}")),
            "creationTimestamp": "1969-12-31T16:00:00.000-08:00",
            "name": self.name,
            "description": f"{self.guest_cpus} vCPUs, {self.memory_mb / 1024:g} GB RAM",
            "guestCpus": self.guest_cpus,
            "memoryMb": self.memory_mb,
            "imageSpaceGb": 0,
            "maximumPersistentDisks": 16 if self.shared_cpu else 128,
            "maximumPersistentDisksSizeGb": "3072" if self.shared_cpu else "263168",
            "zone": zone,
            "selfLink": f"{base_url}/projects/{project}/zones/{zone}/machineTypes/{self.name}",
            "isSharedCpu": self.shared_cpu,
            "architecture": self.architecture,
        }
        if self.accelerators:
            shown["accelerators"] = [
                {
                    "guestAcceleratorType": self.accelerator,
                    "guestAcceleratorCount": self.accelerators,
                }
            ]
        if self.local_ssds:
            shown["bundledLocalSsds"] = {
                "defaultInterface": "NVME",
                "partitionCount": self.local_ssds,
            }
        return shown


def _predefined() -> Iterator[MachineType]:
    for family, classes in _SERIES.items():
        for kind, (sizes, gigabytes) in classes.items():
            for cpus in map(int, sizes.split()):
                memory, name = int(cpus * gigabytes * 1024), f"{family}-{kind}-{cpus}"
                yield MachineType(name, cpus, memory)
                if ssds := _LSSD.get(f"{family}-{kind}", {}).get(cpus):
                    yield MachineType(f"{name}-lssd", cpus, memory, local_ssds=ssds)
    for name, (cpus, megabytes, accelerator, count) in _SINGLES.items():
        ssds = _WITH_LOCAL_SSDS.get(name, 0)
        yield MachineType(name, cpus, megabytes, accelerator, count, ssds)


#: Every predefined machine type by name, in alphabetical order.
MACHINE_TYPES: dict[str, MachineType] = {
    one.name: one for one in sorted(_predefined(), key=lambda one: one.name)
}


@dataclass(frozen=True)
class _CustomRule:
    """What a family's custom types may be: vCPUs, MB of memory per vCPU, MB with ``-ext``."""

    cpus: frozenset[int]
    least: int
    most: int
    extended: int


#: https://cloud.google.com/compute/docs/instances/creating-instance-with-custom-machine-type and
#: Google's sample `custom_machine_types/helper_class.py` in python-docs-samples.
_CUSTOM = {
    "n1": _CustomRule(frozenset({1, *range(2, 97, 2)}), 922, 6656, 624 * 1024),
    "n2": _CustomRule(frozenset({*range(2, 33, 2), *range(36, 129, 4)}), 512, 8192, 624 * 1024),
    "n2d": _CustomRule(frozenset({2, 4, 8, 16, 32, 48, 64, 80, 96}), 512, 8192, 768 * 1024),
    "n4": _CustomRule(frozenset(range(2, 81, 2)), 2048, 8192, 640 * 1024),
    "e2": _CustomRule(frozenset(range(2, 33, 2)), 512, 8192, 0),
}

#: Memory in MB of shared-core E2 types with two vCPUs.
_CUSTOM_SHARED = {"micro": (1024, 2048), "small": (2048, 4096), "medium": (4096, 8192)}

_CUSTOM_NAME = re.compile(
    r"(?:(?P<family>[a-z]\w*)-)?custom-(?:(?P<shared>micro|small|medium)|(?P<cpus>\d+))"
    r"-(?P<memory>\d+)(?P<ext>-ext)?"
)


def _custom(name: str) -> MachineType | None:
    match = _CUSTOM_NAME.fullmatch(name)
    if match is None:
        return None
    rule = _CUSTOM.get(match["family"] or "n1")
    memory = int(match["memory"])
    if rule is None:
        return None
    if match["shared"]:
        least, most = _CUSTOM_SHARED[match["shared"]]
        if match["family"] != "e2" or match["ext"] or not least <= memory <= most:
            raise _impossible(name, f"Memory must be between {least} and {most} MB")
        return MachineType(name, 2, memory)
    cpus = int(match["cpus"])
    if cpus not in rule.cpus:
        raise _impossible(name, f"{cpus} is not a possible number of vCPUs")
    if memory % 256:
        raise _impossible(name, "Memory should be a multiple of 256 MB")
    if match["ext"] and not rule.extended:
        raise _impossible(name, "Extended memory is not available in this family")
    most = rule.extended if match["ext"] else rule.most * cpus
    if not rule.least * cpus <= memory <= most:
        raise _impossible(name, f"Memory must be between {rule.least * cpus} and {most} MB")
    return MachineType(name, cpus, memory)


def _impossible(name: str, explanation: str) -> APIError:
    return invalid("resource.machineType", name, f"{explanation}.")


@lru_cache(maxsize=1024)
def resolve(name: str) -> MachineType | None:
    """Return a machine type, predefined or custom.

    Parameters
    ----------
    name : str
        Its name.

    Returns
    -------
    MachineType or None
        Its size; None when there is no such type.

    Raises
    ------
    APIError
        A custom type breaks the rules of its family.

    Examples
    --------
    >>> resolve("e2-standard-4").memory_mb
    16384
    >>> resolve("n2-custom-8-16384").guest_cpus
    8
    >>> resolve("e9-standard-4") is None
    True
    """
    return MACHINE_TYPES.get(name) or _custom(name)


def find(project: str, zone: str, name: str) -> MachineType:
    """Return a machine type of a zone.

    Parameters
    ----------
    project : str
        Project ID, for the refusal.
    zone : str
        Zone name, for the refusal.
    name : str
        The type's name.

    Returns
    -------
    MachineType
        Its size.

    Raises
    ------
    APIError
        There is no such type, or it breaks the rules of its family.
    """
    found = resolve(name)
    if found is None:
        raise not_found(f"projects/{project}/zones/{zone}/machineTypes/{name}")
    return found
