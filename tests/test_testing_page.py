"""The tests that the page on tests prints pass, as they are printed."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from test_pytest_plugin import run

PAGE = Path(__file__).parents[1] / "docs" / "testing.md"

#: How many tests there are in each block.
TESTS = (2, 1, 1, 1, 2)


def blocks() -> list[str]:
    return re.findall(r"^```python\n(.*?)^```$", PAGE.read_text(), re.MULTILINE | re.DOTALL)


def test_no_block_is_left_out():
    assert len(blocks()) == len(TESTS)


@pytest.mark.parametrize("number", range(len(TESTS)))
def test_every_test_on_the_page_passes(tmp_path, number):
    status, said = run(tmp_path, blocks()[number])
    assert status == 0, said
    assert f"{TESTS[number]} passed" in said
