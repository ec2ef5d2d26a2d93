"""The machine type that an error proposes exists, and is large enough."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dask_gce.emulator.catalog.machine_types import resolve
from dask_gce.machine_types import parse_machine_type
from dask_gce.placement import MachineShape, memory_with
from dask_gce.sizes import fitting_type

GIB = 2**30

NAMES = (
    *(
        "e2-small",
        "e2-highcpu-16",
        "n1-standard-1",
        "n2-highmem-2",
        "n2d-standard-4",
        "n4-highcpu-2",
    ),
    *("c2-standard-4", "c2d-highcpu-2", "c3-standard-4", "t2d-standard-1"),
    *("e2-custom-2-4096", "e2-custom-small-2048", "custom-1-2048", "n2-custom-4-8192"),
    *("n2d-custom-4-8192", "n2-custom-4-65536-ext"),
)


@given(
    name=st.sampled_from(NAMES),
    cpus=st.integers(1, 260),
    memory=st.integers(1, 2000 * GIB),
)
def test_what_is_proposed_exists_and_is_large_enough(name: str, cpus: int, memory: int) -> None:
    found = fitting_type(name, cpus=cpus, memory=memory)
    if found is None:
        # Nothing of that series in the local Compute Engine is that large either.
        assert cpus > 30 or memory > cpus * GIB
        return
    assert parse_machine_type(found).family == parse_machine_type(name).family
    exists = resolve(found)
    assert exists is not None, found
    assert exists.guest_cpus >= cpus
    assert exists.memory_mb * 2**20 >= memory


@pytest.mark.parametrize(
    ("name", "cpus", "gib", "found"),
    [
        ("e2-custom-16-49152", 32, 94, "e2-custom-32-98304"),
        ("e2-custom-16-49152", 16, 60, "e2-custom-16-61440"),
        ("e2-custom-16-49152", 64, 1, None),
        ("custom-4-8192", 3, 16, "custom-4-16384"),
        ("e2-custom-small-2048", 4, 4, "e2-custom-4-4096"),
        ("n4-custom-4-16384", 8, 16, None),  # its limits are not known here
        ("e2-small", 2, 4, "e2-standard-2"),
        ("e2-standard-4", 5, 1, "e2-highcpu-8"),
        ("e2-standard-4", 4, 20, "e2-highmem-4"),
        ("e2-standard-4", 33, 1, None),
        ("a2-highgpu-1g", 13, 1, None),
    ],
)
def test_the_smallest_of_the_series_is_proposed(
    name: str, cpus: int, gib: int, found: str | None
) -> None:
    assert fitting_type(name, cpus=cpus, memory=gib * GIB) == found


@given(st.integers(1, 2000 * GIB))
def test_a_machine_with_so_much_memory_leaves_what_is_needed(usable: int) -> None:
    needed = memory_with(usable)
    assert MachineShape("m", 1, needed).usable_memory >= usable
    assert MachineShape("m", 1, needed - 2).usable_memory < usable
