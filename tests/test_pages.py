"""Every block of every page does what the page says."""

from __future__ import annotations

import pytest
from page_session import check_unrun, run_page
from pages import PAGES, name_of, read_page


@pytest.mark.parametrize("path", PAGES, ids=name_of)
def test_every_block_of_a_page_runs(path, capsys):
    page = read_page(path)
    if all(block.reason is not None for block in page.blocks):
        return

    def say(line: str) -> None:
        print(line)

    failures = run_page(page, say)
    assert not failures, "\n\n".join(failures)


@pytest.mark.parametrize("path", PAGES, ids=name_of)
def test_what_is_not_run_is_checked(path):
    failures = {
        block.place: fault
        for block in read_page(path).blocks
        if block.reason is not None and (fault := check_unrun(block)) is not None
    }
    assert not failures
