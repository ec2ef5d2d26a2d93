"""The tests that the page on tests prints pass, as they are printed."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from test_pytest_plugin import run

PAGE = Path(__file__).parents[1] / "docs" / "testing.md"

#: How many tests there are in each block, and which blocks are run together: half of what one of
#: them takes is the start of pytest and the imports.
TESTS = (2, 1, 1, 1, 0, 2)
RUNS = ((0, 1, 4), (2, 3, 5))

#: With this in the environment no cluster starts whose machine type is not said.
SPOILT = {"DASK_GCE__MACHINE_TYPE": "e2-nonesuch"}


def blocks() -> list[str]:
    return re.findall(r"^```python\n(.*?)^```$", PAGE.read_text(), re.MULTILINE | re.DOTALL)


def test_no_block_is_left_out():
    assert len(blocks()) == len(TESTS)
    assert sorted(number for run in RUNS for number in run) == list(range(len(TESTS)))


@pytest.mark.parametrize("numbers", RUNS)
def test_every_test_on_the_page_passes(tmp_path, numbers):
    for number in numbers:
        # What has no tests is for those that have.
        file = f"test_block_{number}.py" if TESTS[number] else "conftest.py"
        (tmp_path / file).write_text(blocks()[number])
    status, said = run(tmp_path, **SPOILT if (tmp_path / "conftest.py").exists() else {})
    assert status == 0, said
    # As many as there are, and none that was left out.
    assert f"\n{sum(TESTS[number] for number in numbers)} passed in " in said
