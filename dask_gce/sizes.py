"""A machine type that is large enough, of the series that was chosen.

Owns the sizes of Google's general-purpose series, to name one in an error. Whether a zone offers it
only the API knows. How names are written, and the limits of custom types, are the matter of
`machine_types`.

Source: `General-purpose machine family
<https://cloud.google.com/compute/docs/general-purpose-machines>`_.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Final

from dask_gce.machine_types import CUSTOM_RULES, parse_machine_type

__all__ = ["fitting_type"]

_N2: Final = (2, 4, 8, 16, 32, 48, 64, 80, 96)
_N2D: Final = (*_N2, 128, 224)
_N4: Final = (2, 4, 8, 16, 32, 48, 64, 80)
_C2D: Final = (2, 4, 8, 16, 32, 56, 112)
_C3: Final = (4, 8, 22, 44, 88, 176)
_GB: Final = 1024
#: By series and class: the numbers of vCPUs, and the memory for each of them in MB. Sizes with less
#: memory for each vCPU than the others of their class are left out.
_PREDEFINED: Final[Mapping[str, Mapping[str, tuple[tuple[int, ...], int]]]] = {
    "e2": {
        "highcpu": ((2, 4, 8, 16, 32), _GB),
        "standard": ((2, 4, 8, 16, 32), 4 * _GB),
        "highmem": ((2, 4, 8, 16), 8 * _GB),
    },
    "n1": {
        "highcpu": ((2, 4, 8, 16, 32, 64, 96), 921),
        "standard": ((1, 2, 4, 8, 16, 32, 64, 96), 3840),
        "highmem": ((2, 4, 8, 16, 32, 64, 96), 6656),
    },
    "n2": {
        "highcpu": (_N2, _GB),
        "standard": ((*_N2, 128), 4 * _GB),
        "highmem": (_N2[:-1], 8 * _GB),
    },
    "n2d": {"highcpu": (_N2D, _GB), "standard": (_N2D, 4 * _GB), "highmem": (_N2[:-1], 8 * _GB)},
    "n4": {"highcpu": (_N4, 2 * _GB), "standard": (_N4, 4 * _GB), "highmem": (_N4, 8 * _GB)},
    "t2d": {"standard": ((1, 2, 4, 8, 16, 32, 48, 60), 4 * _GB)},
    "c2": {"standard": ((4, 8, 16, 30, 60), 4 * _GB)},
    "c2d": {"highcpu": (_C2D, 2 * _GB), "standard": (_C2D, 4 * _GB), "highmem": (_C2D, 8 * _GB)},
    "c3": {"highcpu": (_C3, 2 * _GB), "standard": (_C3, 4 * _GB), "highmem": (_C3, 8 * _GB)},
}


def fitting_type(name: str, *, cpus: int, memory: int) -> str | None:
    """Return the smallest machine type of a series that has at least so much.

    Parameters
    ----------
    name : str
        A machine type of the series. For a custom one a custom one is found, with at least the same
        memory for each vCPU.
    cpus : int
        The vCPUs it must have.
    memory : int
        The memory it must have, in bytes.

    Returns
    -------
    str or None
        Its name; None if the series has none, or if its sizes are not known here.

    Examples
    --------
    >>> fitting_type("e2-custom-16-49152", cpus=32, memory=90 * 2**30)
    'e2-custom-32-98304'
    >>> fitting_type("e2-standard-4", cpus=4, memory=20 * 2**30)
    'e2-highmem-4'
    """
    parsed = parse_machine_type(name)
    megabytes = math.ceil(memory / 2**20)
    if parsed.kind == "custom" and parsed.cpus and parsed.memory_mb:
        each = parsed.memory_mb / parsed.cpus
        return _custom(parsed.family, cpus, megabytes, each, name.partition("custom")[0])
    fitting = [
        (size, total, found)
        for found, size, total in _predefined(parsed.family)
        if size >= cpus and total >= megabytes
    ]
    return min(fitting)[2] if fitting else None


def _predefined(family: str) -> Iterator[tuple[str, int, int]]:
    for size_class, (sizes, each) in _PREDEFINED.get(family, {}).items():
        for size in sizes:
            yield f"{family}-{size_class}-{size}", size, size * each


def _custom(family: str, cpus: int, megabytes: int, each: float, prefix: str) -> str | None:
    rule = CUSTOM_RULES.get(family)
    if rule is None:
        return None
    for size in rule.cpus:
        usual = size * min(each, rule.maximum_mb)
        total = rule.least_memory(size, max(megabytes, usual))
        if size >= cpus and total is not None:
            return f"{prefix}custom-{size}-{total}"
    return None
