"""The tests that the page on tests prints pass, as they are printed."""

from __future__ import annotations

import re
from pathlib import Path

from test_pytest_plugin import run

PAGE = Path(__file__).parents[1] / "docs" / "testing.md"


def test_every_test_on_the_page_passes(tmp_path):
    blocks = re.findall(r"^```python\n(.*?)^```$", PAGE.read_text(), re.MULTILINE | re.DOTALL)
    assert len(blocks) == 5
    for number, block in enumerate(blocks):
        (tmp_path / f"test_{number}.py").write_text(block)
    status, said = run(tmp_path, "def test_theirs(): pass\n")
    assert status == 0, said
    # Two in the first block and two in the last, one in each of the others, and ours.
    assert "8 passed" in said
