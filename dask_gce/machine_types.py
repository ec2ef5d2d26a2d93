"""The rules of machine-type names, checked without asking Google.

Owns which names are well formed, the limits of custom machine types, and the nearest legal name for
a wrong one. Whether a zone offers a type, and how many vCPUs and how much memory a predefined one
has, only the API knows (`machineTypes.get`).

How strict? A family we do not know passes when it has the form all families have had: one letter,
a generation number, at most two letters (``n5``, ``c6xd``). So do a class, a size and a variant we
do not know, unless the class is nearly spelled like one we do. Whether a predefined size exists is
left to the API. The limits of custom types are checked for the families whose limits Google prints
in its own code sample; for the others only what holds for all of them.

Sources: `Machine families <https://cloud.google.com/compute/docs/machine-resource>`_,
`Custom machine types
<https://cloud.google.com/compute/docs/instances/creating-instance-with-custom-machine-type>`_ and
Google's sample ``custom_machine_types/helper_class.py`` in GoogleCloudPlatform/python-docs-samples.
"""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Literal, NoReturn

from dask_gce.errors import SettingsError

__all__ = ["CUSTOM_RULES", "CustomRule", "MachineTypeName", "parse_machine_type"]


@dataclass(frozen=True)
class MachineTypeName:
    """A machine-type name, taken apart.

    Parameters
    ----------
    name : str
        The whole name.
    family : str
        The machine series, for example ``"e2"``; ``"n1"`` for ``custom-4-8192``.
    kind : {"predefined", "shared-core", "custom"}
        Which of the three ways of naming it follows.
    size_class : str
        The class, such as ``"standard"`` or ``"highmem"``, ``"custom"`` for custom types; a
        shared-core size such as ``"micro"`` for shared-core types.
    cpus : int or None
        The number of vCPUs, if the name tells it (``a2-highgpu-1g`` counts GPUs).
    memory_mb : int or None
        The memory in MB of 1024 squared bytes, if the name tells it.
    extended : bool
        Whether the type has extended memory (``-ext``).
    """

    name: str
    family: str
    kind: Literal["predefined", "shared-core", "custom"]
    size_class: str
    cpus: int | None = None
    memory_mb: int | None = None
    extended: bool = False

    def __str__(self) -> str:
        return self.name


@dataclass(frozen=True)
class CustomRule:
    """The limits of one family's custom machine types.

    Parameters
    ----------
    cpus : sequence of int
        The numbers of vCPUs allowed, in rising order.
    minimum_mb : int
        The least memory for a vCPU, in MB.
    maximum_mb : int
        The most memory for a vCPU, in MB, unless extended.
    extended_mb : int
        The most memory in all with ``-ext``, in MB; 0 if the family has no extended memory.
    """

    cpus: Sequence[int]
    minimum_mb: int
    maximum_mb: int
    extended_mb: int = 0

    def nearest_cpus(self, cpus: int) -> int:
        """Return the allowed number of vCPUs nearest to `cpus`, the bigger of two.

        Parameters
        ----------
        cpus : int
            The number asked for.

        Returns
        -------
        int
            The number allowed.
        """
        return min(self.cpus, key=lambda allowed: (abs(allowed - cpus), -allowed))

    def nearest_memory(self, cpus: int, memory_mb: int, *, extended: bool) -> int:
        """Return the allowed memory nearest to `memory_mb`, the bigger of two.

        Parameters
        ----------
        cpus : int
            The number of vCPUs.
        memory_mb : int
            The memory asked for, in MB.
        extended : bool
            Whether the type has extended memory.

        Returns
        -------
        int
            The memory allowed, in MB.
        """
        least = -(-cpus * self.minimum_mb // _STEP_MB) * _STEP_MB
        most = self.extended_mb if extended else cpus * self.maximum_mb // _STEP_MB * _STEP_MB
        rounded = (memory_mb + _STEP_MB // 2) // _STEP_MB * _STEP_MB
        return max(least, min(most, rounded))

    def least_memory(self, cpus: int, memory_mb: float) -> int | None:
        """Return the least memory allowed without extension that is no less than `memory_mb`.

        Parameters
        ----------
        cpus : int
            The number of vCPUs.
        memory_mb : float
            The memory needed, in MB.

        Returns
        -------
        int or None
            The memory in MB; None if so many vCPUs may not have so much.
        """
        wanted = max(memory_mb, cpus * self.minimum_mb)
        rounded = math.ceil(wanted / _STEP_MB) * _STEP_MB
        return rounded if rounded <= cpus * self.maximum_mb else None


_STEP_MB: Final = 256
_GB: Final = 1024
#: The limits of custom machine types by series, for those whose limits are in Google's sample.
CUSTOM_RULES: Final = {
    "e2": CustomRule(range(2, 33, 2), 512, 8192),
    "n1": CustomRule((1, *range(2, 97, 2)), 922, 6656, 624 * _GB),
    "n2": CustomRule((*range(2, 33, 2), *range(36, 129, 4)), 512, 8192, 640 * _GB),
    "n2d": CustomRule((2, 4, 8, *range(16, 97, 16)), 512, 8192, 768 * _GB),
}
# Google's pages give these as memory in all, Google's sample as memory for each of the two vCPUs:
# what either allows passes.
_SHARED_CUSTOM: Final = {"micro": (1024, 4096), "small": (2048, 8192), "medium": (4096, 16384)}
# They have custom types; their limits are not in the sample, so the API judges them.
_CUSTOM_UNCHECKED: Final = ("n4", "n4a", "n4d")
_NO_CUSTOM: Final = (
    *("a2", "a3", "a4", "a4x", "c2", "c2d", "c3", "c3d", "c4", "c4a", "c4d", "g2", "g4"),
    *("h3", "h4d", "m1", "m2", "m3", "m4", "t2a", "t2d", "x4", "z3"),
)
_SHARED_CORE: Final = ("e2-micro", "e2-small", "e2-medium", "f1-micro", "g1-small")
_TPU: Final = ("ct3", "ct4p", "ct5l", "ct5lp", "ct6e", "tpu7x")
_FAMILIES: Final = sorted({*CUSTOM_RULES, *_CUSTOM_UNCHECKED, *_NO_CUSTOM, *_TPU})
_CLASSES: Final = (
    *("standard", "highmem", "highcpu", "megamem", "ultramem", "hypermem", "custom"),
    *("highgpu", "megagpu", "ultragpu", "edgegpu", "maxgpu", "hightpu"),
)
_FAMILY_FORM: Final = re.compile(r"[a-z][0-9]{1,2}[a-z]{0,2}")
_FORM: Final = re.compile(r"[a-z][a-z0-9]*(?:-[a-z0-9]+)+")
_SIZE: Final = re.compile(r"(?P<number>[1-9][0-9]*)(?P<unit>[a-z]?)")
_SHOWN: Final = "gcloud compute machine-types list --zones ZONE shows what a zone offers."


def parse_machine_type(name: str, *, key: str = "machine_type") -> MachineTypeName:
    """Parse a machine-type name by Google's rules.

    Parameters
    ----------
    name : str
        The name, without project and zone.
    key : str
        The setting to name in the error.

    Returns
    -------
    MachineTypeName
        The name's parts.

    Raises
    ------
    SettingsError
        If no machine type can have this name; the message names the rule and the nearest name.

    Examples
    --------
    >>> parse_machine_type("n2-custom-8-16384").memory_mb
    16384
    >>> parse_machine_type("n2-custom-7-16384")  # doctest: +ELLIPSIS
    Traceback (most recent call last):
    dask_gce.errors.SettingsError: machine_type = 'n2-custom-7-16384': ...
    """
    if not _FORM.fullmatch(name):
        _refuse_form(name, key)
    if name in _SHARED_CORE:
        family, _, size = name.partition("-")
        return MachineTypeName(name, family, "shared-core", size)
    family, *rest = name.split("-")
    if family == "custom":
        family, rest = "n1", [family, *rest]
    if family not in _FAMILIES and not _FAMILY_FORM.fullmatch(family):
        _refuse(name, key, f"{family!r} is not a machine series", _nearest_family(family, rest))
    if rest[0] == "custom":
        return _parse_custom(name, family, rest[1:], key)
    return _parse_predefined(name, family, rest, key)


def _parse_predefined(name: str, family: str, rest: list[str], key: str) -> MachineTypeName:
    near = difflib.get_close_matches(rest[0], _CLASSES, n=1, cutoff=0.75)
    if rest[0] not in _CLASSES and near:
        nearest = "-".join([family, near[0], *rest[1:]])
        _refuse(name, key, f"{rest[0]!r} is not a class of machine types", nearest)
    size = _SIZE.fullmatch(rest[1]) if len(rest) > 1 else None
    if size is None:
        _refuse(
            name,
            key,
            "after series and class comes the size",
            _nearest_shared(name) or f"{family}-{rest[0] if rest[0] in _CLASSES else 'standard'}-4",
        )
    cpus = None if size["unit"] or rest[0] not in _CLASSES else int(size["number"])
    return MachineTypeName(name, family, "predefined", rest[0], cpus)


def _parse_custom(name: str, family: str, rest: list[str], key: str) -> MachineTypeName:
    if family in _NO_CUSTOM:
        _refuse(
            name, key, f"the series {family} has no custom machine types", f"{family}-standard-4"
        )
    extended = rest[-1:] == ["ext"]
    numbers = rest[:-1] if extended else rest
    if family == "e2" and len(numbers) == 2 and numbers[0] in _SHARED_CUSTOM and not extended:
        return _parse_shared_custom(name, numbers[0], numbers[1], key)
    prefix = name.partition("custom")[0] + "custom"
    if len(numbers) != 2 or not all(_SIZE.fullmatch(n) and n.isdecimal() for n in numbers):
        _refuse(
            name, key, "custom types are written SERIES-custom-VCPUS-MEMORY_MB", f"{prefix}-4-16384"
        )
    cpus, memory = map(int, numbers)
    suffix = "-ext" if extended else ""
    rule = CUSTOM_RULES.get(family)
    if rule is None:
        if memory % _STEP_MB:
            rounded = max(1, round(memory / _STEP_MB)) * _STEP_MB
            _refuse(name, key, _STEP_RULE, f"{prefix}-{cpus}-{rounded}{suffix}")
        return MachineTypeName(name, family, "custom", "custom", cpus, memory, extended)
    fault = _custom_fault(family, rule, cpus, memory, extended=extended)
    if fault:
        keep = extended and rule.extended_mb > 0
        near_cpus = rule.nearest_cpus(cpus)
        near_memory = rule.nearest_memory(near_cpus, memory, extended=keep)
        nearest = f"{prefix}-{near_cpus}-{near_memory}{'-ext' if keep else ''}"
        _refuse(name, key, fault, nearest)
    return MachineTypeName(name, family, "custom", "custom", cpus, memory, extended)


_STEP_RULE: Final = f"memory must be a multiple of {_STEP_MB} MB"


def _custom_fault(
    family: str, rule: CustomRule, cpus: int, memory: int, *, extended: bool
) -> str | None:
    if extended and not rule.extended_mb:
        return f"{family} has no extended memory"
    if cpus not in rule.cpus:
        return f"{family} custom types have {_describe_cpus(family)} vCPUs"
    if memory % _STEP_MB:
        return _STEP_RULE
    if memory < cpus * rule.minimum_mb:
        return f"{family} custom types have at least {rule.minimum_mb} MB of memory for each vCPU"
    if extended and memory > rule.extended_mb:
        return f"{family} custom types have at most {rule.extended_mb} MB of extended memory"
    if not extended and memory > cpus * rule.maximum_mb:
        fault = f"{family} custom types have at most {rule.maximum_mb} MB of memory for each vCPU"
        more = f" (up to {rule.extended_mb} MB in all, at a higher price, with '-ext' at the end)"
        return fault + (more if rule.extended_mb else "")
    return None


def _describe_cpus(family: str) -> str:
    return {
        "e2": "an even number from 2 to 32 of",
        "n1": "1 or an even number up to 96 of",
        "n2": "an even number from 2 to 32, or a multiple of 4 from 36 to 128, of",
        "n2d": "2, 4, 8 or a multiple of 16 up to 96",
    }[family]


def _parse_shared_custom(name: str, size: str, memory_text: str, key: str) -> MachineTypeName:
    least, most = _SHARED_CUSTOM[size]
    memory = int(memory_text) if memory_text.isdecimal() else 0
    rounded = (memory + _STEP_MB // 2) // _STEP_MB * _STEP_MB
    nearest = max(least, min(most, rounded))
    if nearest != memory:
        _refuse(
            name,
            key,
            f"e2-custom-{size} has {least} to {most} MB of memory, a multiple of {_STEP_MB}",
            f"e2-custom-{size}-{nearest}",
        )
    # Shared-core types show the guest two vCPUs.
    return MachineTypeName(name, "e2", "custom", f"custom-{size}", 2, memory)


def _refuse_form(name: str, key: str) -> NoReturn:
    if "machineTypes/" in name:
        _refuse(name, key, "the zone is a setting of its own", name.rpartition("/")[2])
    plain = re.sub(r"[\s_-]+", "-", name.strip().lower())
    _refuse(
        name,
        key,
        "machine types are written in lower case with hyphens",
        plain if _FORM.fullmatch(plain) else "e2-standard-4",
    )


def _nearest_family(family: str, rest: list[str]) -> str:
    # A forgotten series ("standard-4") is no misspelt one.
    if family in _CLASSES:
        return "-".join(["e2", family, *rest])
    near = difflib.get_close_matches(family, _FAMILIES, n=1, cutoff=0.0)
    return "-".join([near[0], *rest])


def _nearest_shared(name: str) -> str | None:
    near = difflib.get_close_matches(name, _SHARED_CORE, n=1, cutoff=0.8)
    return near[0] if near else None


def _refuse(name: str, key: str, rule: str, nearest: str) -> NoReturn:
    raise SettingsError(
        f"{key} = {name!r}: {rule}. Did you mean {nearest!r}? {_SHOWN}",
        key=key,
    )
