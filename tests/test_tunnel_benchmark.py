"""The arithmetic and page of the tunnel's throughput; `make bench` measures, which no test does."""

from __future__ import annotations

import pytest

from benchmarks.tunnel import __main__ as program
from benchmarks.tunnel.far_end import PATTERN

CASES = [
    program.Case("from the instance", 2000e6, 250e6, "MB/s", 200e6),
    program.Case("to the instance", 1000e6, 125e6, "MB/s"),
    program.Case("memory", None, 33e6, "MB", 32e6),
]


@pytest.mark.parametrize(
    ("value", "unit", "bound", "kept"),
    [
        (200e6, "MB/s", 200e6, True),
        (199e6, "MB/s", 200e6, False),
        (32e6, "MB", 32e6, True),
        (33e6, "MB", 32e6, False),
        (1.0, "MB", None, None),
    ],
)
def test_a_rate_has_a_least_and_an_amount_a_most(value, unit, bound, kept):
    assert program.Case("figure", None, value, unit, bound).kept is kept


def test_the_page_has_every_case():
    page = program.render(CASES, repeats=5, load=0.25)
    assert "| from the instance | 2000 MB/s | 250 MB/s | at least 200 MB/s: yes |" in page
    assert "| to the instance | 1000 MB/s | 125 MB/s | - |" in page
    assert "| memory | - | 33 MB | at most 32 MB: **no** |" in page
    assert "- 0.2 processes ran on it" in page
    assert "Medians of 5 transfers of 400 MB" in page
    assert "{" not in page


@pytest.mark.parametrize("position", [0, 5, len(PATTERN) - 3, 7 * len(PATTERN) + 1])
def test_each_byte_is_compared(position):
    piece = bytearray((PATTERN * 2)[position % len(PATTERN) :][:10])
    program._compare(memoryview(piece), position)
    piece[-1] ^= 1
    with pytest.raises(AssertionError, match="other bytes at"):
        program._compare(memoryview(piece), position)
