"""The arithmetic and the page of the boot times; `make bench` measures, which no test does."""

from __future__ import annotations

import pytest

from benchmarks.boot import __main__ as program
from benchmarks.boot.timeline import Boot, StampedConsole, read_boot

PHASES = [(1.0, "booted"), (1.1, "image-pulling"), (1.3, "image-pulling: 2 of 3 layers")]
BOOT = Boot(0.25, [*PHASES, (2.0, "image-ready"), (2.25, "running")])


def test_a_console_knows_when_a_line_was_complete():
    times = iter([1.0, 2.0, 3.0])
    console = StampedConsole(lambda: next(times))
    for piece in (b"[1] one: dask-gce phase: boo", b"ted\r\nt", b"wo\nthree"):
        console.write(piece)
    assert console.lines == [(2.0, "[1] one: dask-gce phase: booted\r"), (3.0, "two")]
    assert console.read()[0].endswith(b"two\nthree")
    assert read_boot(console.lines, 0.0).phases == [(2.0, "booted")]


def test_a_boot_is_read_from_when_it_was_asked_for_until_dask_runs():
    lines = [(time, f"startup-script: dask-gce phase: {text}") for time, text in BOOT.phases]
    before, after = (0.1, "dask-gce phase: running"), (9.0, "dask-gce phase: ended")
    assert read_boot([before, *lines, (2.1, "else"), after], 0.25) == BOOT


def test_a_phase_lasts_until_the_next_one_whatever_it_tells_of_its_progress():
    assert BOOT.system == pytest.approx(0.75)
    assert BOOT.ours == pytest.approx(1.25)
    assert BOOT.steps() == pytest.approx({"booted": 0.1, "image-pulling": 0.9, "image-ready": 0.25})


def test_a_boot_that_has_not_come_so_far_has_no_times():
    with pytest.raises(ValueError, match="has not reported 'running'"):
        _ = Boot(0.0, PHASES).ours


@pytest.mark.parametrize(("bound", "kept"), [(1.25, True), (1.2, False), (None, None)])
def test_a_promise_is_kept_up_to_its_bound(bound, kept):
    assert program.Case("container", bound, [BOOT]).kept is kept


def test_the_page_has_every_case_and_every_phase():
    cases = [program.Case("container", 0.3, [BOOT]), program.Case("vm", None, [BOOT, BOOT])]
    page = program.render(cases, repeats=2)
    assert "| container | 0.75 s | 1.25 s | 0.3 s: **no** |" in page
    assert "| vm | 0.75 s | 1.25 s | - |" in page
    assert page.count("| image-pulling | 0.900 s |") == 2
    assert "{" not in page
