"""Machine-type names: Google's rules, and a name that works in every refusal."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dask_gce.errors import SettingsError
from dask_gce.machine_types import MachineTypeName, parse_machine_type


def suggestion(error: SettingsError) -> str:
    found = re.search(r"Did you mean '([^']*)'\?", str(error))
    assert found
    return found[1]


GOOGLE_HAS = """e2-standard-4 e2-micro e2-medium f1-micro g1-small n1-highmem-96 n2d-highcpu-224
c4-standard-8-lssd c3-standard-192-metal z3-highmem-88-highlssd a2-highgpu-1g a3-megagpu-8g
a3-highgpu-8g-nolssd m2-ultramem-208 m4-hypermem-32 x4-480-6t-metal g4-standard-48
ct5lp-hightpu-4t tpu7x-standard-4t t2a-standard-1 h4d-highmem-192-lssd
custom-4-8192 n1-custom-4-8192 custom-1-1024 n2-custom-8-16384 n2-custom-4-65536-ext
n2-custom-36-65536 n2d-custom-96-98304 e2-custom-4-8192 e2-custom-micro-2048
e2-custom-medium-8192 n4-custom-6-12288 n4d-custom-80-163840-ext"""


@pytest.mark.parametrize("name", GOOGLE_HAS.split())
def test_names_google_has_are_accepted(name: str) -> None:
    assert str(parse_machine_type(name)) == name


@pytest.mark.parametrize("name", ["n5-standard-4", "c6xd-standard-8-newssd", "e3-hyperscale-2"])
def test_families_and_classes_google_may_add_are_accepted(name: str) -> None:
    assert parse_machine_type(name).kind == "predefined"


@pytest.mark.parametrize(
    ("name", "rule", "nearest"),
    [
        ("n2-custom-7-16384", "even number", "n2-custom-8-16384"),
        ("n2-custom-34-65536", "multiple of 4", "n2-custom-36-65536"),
        ("n2-custom-4-1000", "multiple of 256", "n2-custom-4-2048"),
        ("n2-custom-4-1024", "at least 512 MB", "n2-custom-4-2048"),
        ("n2-custom-4-65536", "'-ext'", "n2-custom-4-32768"),
        ("n2-custom-4-999936-ext", "at most 655360 MB", "n2-custom-4-655360-ext"),
        ("custom-3-8192", "1 or an even", "custom-4-8192"),
        ("n1-custom-1-7168", "at most 6656 MB", "n1-custom-1-6656"),
        ("n2d-custom-6-8192", "multiple of 16", "n2d-custom-8-8192"),
        ("n2d-custom-40-81920", "multiple of 16", "n2d-custom-48-81920"),
        ("e2-custom-34-65536", "from 2 to 32", "e2-custom-32-65536"),
        ("e2-custom-4-8192-ext", "no extended memory", "e2-custom-4-8192"),
        ("e2-custom-4-65536", "at most 8192 MB", "e2-custom-4-32768"),
        ("e2-custom-small-100", "2048 to 8192", "e2-custom-small-2048"),
        ("n4-custom-6-12200", "multiple of 256", "n4-custom-6-12288"),
        ("c4-custom-4-8192", "no custom machine types", "c4-standard-4"),
        ("n2-custom-4", "SERIES-custom-VCPUS-MEMORY_MB", "n2-custom-4-16384"),
        ("custom-4", "SERIES-custom-VCPUS-MEMORY_MB", "custom-4-16384"),
        ("n2-custom-0-0", "SERIES-custom-VCPUS-MEMORY_MB", "n2-custom-4-16384"),
        ("e2-standrd-4", "not a class", "e2-standard-4"),
        ("n2-himem-8", "not a class", "n2-highmem-8"),
        ("e2-standard", "size", "e2-standard-4"),
        ("e2-standard-0", "size", "e2-standard-4"),
        ("e2-mico", "size", "e2-micro"),
        ("standard-4", "not a machine series", "e2-standard-4"),
        ("en2-standard-4", "not a machine series", "n2-standard-4"),
        ("E2_Standard_4", "lower case", "e2-standard-4"),
        ("zones/us-central1-a/machineTypes/n2-standard-4", "zone", "n2-standard-4"),
        ("", "lower case", "e2-standard-4"),
    ],
)
def test_wrong_names_are_refused_with_rule_and_nearest_name(
    name: str, rule: str, nearest: str
) -> None:
    with pytest.raises(SettingsError, match=re.escape(rule)) as caught:
        parse_machine_type(name, key="worker_machine_type")
    assert suggestion(caught.value) == nearest
    assert str(parse_machine_type(nearest)) == nearest
    assert caught.value.key == "worker_machine_type"
    assert repr(name) in str(caught.value)


@given(
    family=st.sampled_from(["e2", "n1", "n2", "n2d", "n4"]),
    cpus=st.integers(1, 300),
    memory=st.integers(1, 2_000_000),
    extended=st.booleans(),
)
def test_every_custom_name_passes_or_leads_to_one_that_does(
    family: str, cpus: int, memory: int, extended: bool
) -> None:
    name = f"{family}-custom-{cpus}-{memory}" + "-ext" * extended
    try:
        parsed = parse_machine_type(name)
    except SettingsError as error:
        parsed = parse_machine_type(suggestion(error))
    assert parsed.memory_mb is not None
    assert parsed.memory_mb % 256 == 0
    assert parsed.kind == "custom"


@given(st.text(max_size=40))
def test_any_text_is_parsed_or_refused_with_a_name_that_works(text: str) -> None:
    try:
        parse_machine_type(text)
    except SettingsError as error:
        found = re.search(r"Did you mean (['\"])(.*)\1\?", str(error))
        assert found


def test_the_parts_of_a_name() -> None:
    assert parse_machine_type("custom-4-8192") == MachineTypeName(
        "custom-4-8192", "n1", "custom", "custom", 4, 8192
    )
    assert parse_machine_type("e2-custom-micro-2048") == MachineTypeName(
        "e2-custom-micro-2048", "e2", "custom", "custom-micro", 2, 2048
    )
    assert parse_machine_type("n2-custom-4-65536-ext").extended
    assert parse_machine_type("c4-standard-8-lssd").cpus == 8
    assert parse_machine_type("a2-highgpu-1g").cpus is None
    assert parse_machine_type("e2-micro").kind == "shared-core"
