"""What is shown while a cluster gets its machines: when, how much, and that nothing of it stays."""

from __future__ import annotations

import asyncio
import contextlib
import io
import logging
import os
import pty
import re
import signal
import subprocess
import sys
import textwrap
import threading
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import ClassVar

import pytest
from clusters import PATIENCE, cluster_on, refuse, settings, until
from command_line import environment
from rich.console import Console

from dask_gce import GCECluster
from dask_gce.events import Event
from dask_gce.machine_states import MachineFacts
from dask_gce.progress import lines, showing, terminal
from dask_gce.progress.choice import choose_display
from dask_gce.progress.display import describe
from dask_gce.progress.lines import LinesDisplay, SummaryDisplay
from dask_gce.progress.terminal import SHOWN, TerminalDisplay, render
from dask_gce.state_board import StateBoard

SCHEDULER = "dask-1f-scheduler-5e"


def board_with(workers: int, running: int = 0, *, phase: str = "") -> StateBoard:
    """Return a board on which a scheduler and some workers run, and the others boot."""
    board = StateBoard()
    board.expect(workers)
    for what in ("requested", "running", "ready"):
        board.take(Event(SCHEDULER, what))
    for number in range(workers):
        name = f"dask-1f-worker-{number}"
        for what in ("requested", "running"):
            board.take(Event(name, what))
        if number < running:
            board.take(Event(name, "ready"))
        elif phase:
            board.take(Event(name, "booting", phase))
    return board


@pytest.fixture
def at_once(monkeypatch):
    """Let displays come at once, and as often as something changes."""
    monkeypatch.setattr(showing, "SILENCE", 0)
    monkeypatch.setattr(showing, "INTERVAL", 0.01)
    # However busy this computer is.
    monkeypatch.setattr(showing, "CLOSED_WITHIN", PATIENCE)
    monkeypatch.setattr(lines, "FIRST_PAUSE", 0)


class Recorded:
    """A display that writes down what is asked of it."""

    calls: list[str]
    broken = False

    def __init__(self, board: StateBoard, title: str, wanted: int) -> None:
        self.calls.append(f"{title} {wanted}")

    def update(self) -> None:
        if self.broken:
            raise RuntimeError("no paper")
        self.calls.append("update")

    def close(self, summary: str) -> None:
        self.calls.append(f"close {summary}".rstrip())


@pytest.fixture
def recorded():
    """Return a kind of display of its own."""
    return type("OwnRecorded", (Recorded,), {"calls": []})


# -- words ----------------------------------------------------------------------------------------


def test_what_is_said_follows_the_machines():
    assert describe(board_with(8, 3), 8) == "3 of 8 workers running, 5 booting"
    board = board_with(8, 3, phase="image-pulling")
    assert describe(board, 8) == "3 of 8 workers running, 5 getting their image (image-pulling)"
    board.take(Event("dask-1f-worker-7", "failed", "no room"))
    board.take(Event("dask-1f-worker-8", "requested"))
    # Whoever told the phase is out of it.
    told = "3 of 8 workers running, 4 getting their image, 1 requested, 1 failed"
    assert describe(board, 8) == told
    # The phase is said of those that are in it.
    board.take(Event("dask-1f-worker-3", "booting", "starting"))
    board.take(Event("dask-1f-worker-4", "booting", "image-unpacking"))
    told = "3 of 8 workers running, 1 starting, 3 getting their image (image-unpacking), "
    assert describe(board, 8) == told + "1 requested, 1 failed"
    assert describe(board_with(2, 2), 2) == "2 of 2 workers running"


def test_whoever_joins_a_cluster_is_told_of_what_there_is():
    board = StateBoard()
    for what in ("found", "running"):
        board.take(Event(SCHEDULER, what))
        board.take(Event("dask-1f-worker-0", what))
    assert describe(board, 0) == "waiting for the scheduler's answer"
    board.take(Event(SCHEDULER, "ready"))
    assert describe(board, 0) == "0 workers running, 1 booting"
    board.take(Event("dask-1f-worker-0", "ready"))
    assert describe(board, 0) == "1 worker running"


# -- which ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("setting", "term", "kind"),
    [
        ("auto", "xterm", TerminalDisplay),
        ("terminal", "xterm", TerminalDisplay),
        ("lines", "xterm", LinesDisplay),
        ("none", "xterm", None),
        ("auto", "dumb", LinesDisplay),
        ("terminal", "", LinesDisplay),
        ("notebook", "dumb", LinesDisplay),
    ],
)
def test_a_terminal_has_what_it_can_show(setting, term, kind, monkeypatch):
    ours, theirs = pty.openpty()
    with os.fdopen(theirs, "w") as stream:
        monkeypatch.setattr(sys, "stderr", stream)
        monkeypatch.setenv("TERM", term)
        assert choose_display(setting) is kind
    os.close(ours)
    # Now that is closed.
    assert choose_display(setting) in (None, LinesDisplay)


def test_a_log_has_lines(monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    assert choose_display("auto") is LinesDisplay
    monkeypatch.setattr(sys, "stderr", None)
    assert choose_display("auto") is LinesDisplay


# -- lines ----------------------------------------------------------------------------------------


def test_each_change_is_a_line_but_not_each_of_a_thousand(capsys, monkeypatch):
    now = 0.0
    monkeypatch.setattr(lines.time, "monotonic", lambda: now)
    board = board_with(1000)
    display = LinesDisplay(board, "grid", 1000)
    for number in range(1000):
        board.take(Event(f"dask-1f-worker-{number}", "ready"))
        display.update()
        now += 0.125
    display.close("1000 workers")
    told = capsys.readouterr().err.splitlines()
    assert told[0] == "grid: 1 of 1000 workers running, 999 booting"
    assert told[1] == "grid: 9 of 1000 workers running, 991 booting"
    assert told[-1] == "grid: 1000 workers"
    assert len(told) == len(set(told)) < 20


def test_nothing_new_is_no_line(capsys, monkeypatch):
    monkeypatch.setattr(lines, "FIRST_PAUSE", 0)
    display = LinesDisplay(board_with(2, 1), "grid", 2)
    for _ in range(3):
        display.update()
    display.close("")
    assert capsys.readouterr().err == "grid: 1 of 2 workers running, 1 booting\n"


def test_nobody_needs_to_be_there_to_read(monkeypatch, capsys):
    stream = io.StringIO()
    stream.close()
    for missing in (stream, None):
        with monkeypatch.context() as patch:
            patch.setattr(sys, "stderr", missing)
            lines.tell("anybody there?")
    assert capsys.readouterr() == ("", "")


def test_who_types_again_hears_only_what_came(capsys):
    display = SummaryDisplay(board_with(2, 1), "grid", 2)
    display.update()
    assert capsys.readouterr().err == ""
    display.close("2 workers")
    assert capsys.readouterr().err == "grid: 2 workers\n"


def test_the_page_shows_what_is_said(capsys, monkeypatch):
    monkeypatch.setattr(lines, "FIRST_PAUSE", 0)
    facts = MachineFacts("worker", cores=4, memory=16 * 2**30)
    board = StateBoard(lambda name: facts if "-worker-" in name else None)
    start = datetime.now(timezone.utc)
    board.expect(2, start)
    starting = LinesDisplay(board, "Starting grid", 2)
    for what, why in (("requested", ""), ("running", "")):
        board.take(Event("grid-scheduler-5e", what, why))
    starting.update()
    board.take(Event("grid-scheduler-5e", "booting", "image-pulling: 3 of 12 layers"))
    starting.update()
    starting.close("")
    waiting = LinesDisplay(board, "grid", 2)
    board.take(Event("grid-scheduler-5e", "ready"))
    for name in ("grid-worker-9c", "grid-worker-2a"):
        board.take(Event(name, "requested"))
        board.take(Event(name, "booting", "starting"))
    waiting.update()
    for name in ("grid-worker-9c", "grid-worker-2a"):
        board.take(Event(name, "ready", time=start + timedelta(seconds=41)))
    waiting.close(board.summary())
    page = (Path(__file__).parents[1] / "docs" / "progress.md").read_text()
    assert f"```text\n{capsys.readouterr().err}```" in page


# -- the region -----------------------------------------------------------------------------------


def drawn(board: StateBoard, wanted: int, width: int = 100) -> list[str]:
    console = Console(file=io.StringIO(), width=width, record=True)
    console.print(render(board, "Starting dask-1f", wanted))
    return console.export_text().splitlines()


def test_the_region_shows_numbers_and_some_machines():
    text = drawn(board_with(3, 1, phase="image-pulling: 1 of 3 layers"), 3)
    assert text[0].split()[:2] == ["Starting", "dask-1f"]
    assert "━" * terminal.BAR in text[1]
    assert "1 of 3 workers running, 2 getting their image" in text[2]
    assert re.match(
        r"  dask-1f-worker-1 +image +0 s +image-pulling: 1 of 3 layers; booting \+0s, image \+0s",
        text[3],
    )
    assert [line.split()[1] for line in text[3:]] == ["image", "image", "running", "running"]


def test_the_region_is_as_large_for_a_thousand_machines():
    text = drawn(board_with(1000, 400), 1000)
    assert len(text) == 3 + SHOWN + 1
    assert text[-1].strip() == f"and {1001 - SHOWN} more machines"
    # Nor is it wider than the terminal.
    assert max(map(len, drawn(board_with(1000, phase="x" * 500), 1000, width=60))) <= 60


def test_how_much_is_looked_at_does_not_grow_with_machines(monkeypatch):
    looked = 0
    monkeypatch.setattr(terminal, "_trail", lambda machine: str(count()))

    def count() -> int:
        nonlocal looked
        looked += 1
        return looked

    drawn(board_with(3000, 100), 3000)
    assert looked == SHOWN


def test_what_machines_write_is_not_obeyed():
    board = board_with(1, phase="image-\x1b[2J[bold]pulling[/bold]")
    told = "\n".join(drawn(board, 1))
    assert "\x1b[2J" not in told
    assert "image-[bold]pulling[/bold]" in told


def test_the_bar_is_never_longer_than_it_is():
    board = board_with(5, 5)
    assert drawn(board, 2)[1].count("━") == terminal.BAR
    assert drawn(board_with(7), 1000)[1].count("━") == terminal.BAR


REGION = """
import asyncio, sys
from dask_gce.events import Event
from dask_gce.machine_states import MachineFacts
from dask_gce.state_board import StateBoard
from dask_gce.progress import showing
from dask_gce.progress.choice import choose_display
from dask_gce.progress.terminal import TerminalDisplay
showing.SILENCE, showing.INTERVAL = 0, 0.01
board, drawings = StateBoard(), []
draw = TerminalDisplay.update

def update(self):
    draw(self)
    drawings.append(self)

TerminalDisplay.update = update

async def until_drawn():
    while not drawings:
        await asyncio.sleep(0.01)

board.expect(1)
board.take(Event("dask-1f-scheduler-1", "requested"))

async def main():
    async with showing.showing(
        choose_display("auto"), board, "Starting grid", 1, summary=lambda: "1 worker"
    ):
        {inside}
    print("done")

asyncio.run(main())
"""


def on_a_terminal(inside: str, *, until: bytes = b"done", interrupt: bool = False) -> str:
    """Run something while the region is shown; return what the terminal was told."""
    program = REGION.format(inside=textwrap.indent(inside, " " * 8).strip())
    ours, theirs = pty.openpty()
    with subprocess.Popen(
        [sys.executable, "-c", program],
        stdout=theirs,
        stderr=theirs,
        # From Python 3.13 on tracebacks on a terminal are in colours.
        env=environment("http://127.0.0.1:1", TERM="xterm", COLUMNS="100", PYTHON_COLORS="0"),
    ) as running:
        os.close(theirs)
        told = b""
        # On Linux the end of a terminal is an error.
        with contextlib.suppress(OSError):
            while data := os.read(ours, 4096):
                told += data
                if interrupt and b"Starting grid" in told:
                    running.send_signal(signal.SIGINT)
                    interrupt = False
        os.close(ours)
    return told.decode()


def test_the_region_goes_and_the_summary_stays():
    told = on_a_terminal("await until_drawn()")
    assert "Starting grid" in told
    assert "dask-1f-scheduler-1" in told
    # The last line of the region is erased, then comes what stays.
    assert told.endswith("\x1b[2KStarting grid: 1 worker\r\ndone\r\n")
    # The cursor is there again.
    assert told.count("\x1b[?25l") == told.count("\x1b[?25h") > 0


def test_what_is_printed_meanwhile_stays_above():
    # Dask's logs go to the standard error of the moment at which it was imported.
    said = """
import logging
from dask_gce.cli.output import note
logger = logging.getLogger("distributed")
logger.addHandler(logging.StreamHandler(sys.stderr))
logger.propagate = False
await until_drawn()
print("hello")
print("ouch", file=sys.stderr)
note("refused")
logger.warning("attention")
"""
    told = on_a_terminal(said.strip())
    # Each is on a line of its own, which nothing erases.
    for word in ("hello", "ouch", "refused", "attention"):
        assert re.search(rf"\x1b\[2K{word} *\r\n", told), told
    assert told.endswith("done\r\n")


def test_logs_go_where_they_went_once_the_region_is_gone(monkeypatch):
    stream = io.StringIO()
    monkeypatch.setattr(sys, "stderr", stream)
    handler = logging.StreamHandler(stream)
    monkeypatch.setattr(logging.getLogger("distributed"), "handlers", [handler])
    display = TerminalDisplay(board_with(1), "grid", 1)
    display._console = Console(file=io.StringIO(), force_terminal=True, width=80)
    display.update()
    assert handler.stream is sys.stderr
    assert handler.stream is not stream
    display.close("")
    assert handler.stream is sys.stderr is stream


@pytest.mark.parametrize("closed", [True, False])
def test_a_region_needs_no_standard_output(monkeypatch, closed):
    stream = io.StringIO()
    stream.close()
    monkeypatch.setattr(sys, "stdout", stream if closed else None)
    display = TerminalDisplay(board_with(1), "grid", 1)
    display._console = Console(file=io.StringIO(), force_terminal=True, width=80)
    display.update()
    assert "grid" in display._console.file.getvalue()
    display.close("")
    assert not TerminalDisplay._screen.locked()


def test_ctrl_c_takes_the_region_away():
    told = on_a_terminal("await asyncio.sleep(300)", interrupt=True)
    assert told.count("\x1b[?25l") == told.count("\x1b[?25h") > 0
    assert told.rstrip().endswith("KeyboardInterrupt")
    assert "1 worker" not in told


def test_two_do_not_share_a_screen(monkeypatch):
    # As a file, where the region is drawn just as well.
    first, second = (TerminalDisplay(board_with(1), title, 1) for title in ("one", "two"))
    for each in (first, second):
        each._console = Console(file=io.StringIO(), force_terminal=True, width=80)
        each.update()
    assert "one" in first._console.file.getvalue()
    assert second._console.file.getvalue() == ""
    first.close("")
    second.update()
    assert "two" in second._console.file.getvalue()
    second.close("")
    assert not TerminalDisplay._screen.locked()


# -- when -----------------------------------------------------------------------------------------


async def test_what_is_quick_is_not_shown(recorded):
    async with showing.showing(recorded, board_with(1), "grid", 1, summary=lambda: "1 worker"):
        pass
    assert recorded.calls == []


async def test_what_takes_its_time_is_shown(recorded, at_once):
    async with showing.showing(recorded, board_with(1), "grid", 1, summary=lambda: "1 worker"):
        await until(lambda: "update" in recorded.calls)
    assert recorded.calls[0] == "grid 1"
    assert recorded.calls[-1] == "close 1 worker"


async def test_what_goes_wrong_is_shown_at_once(recorded, monkeypatch):
    monkeypatch.setattr(showing, "SILENCE", 1000)
    board = board_with(1)
    async with showing.showing(recorded, board, "grid", 1):
        board.take(Event("dask-1f-worker-0", "failed", "no room"))
        await until(lambda: "update" in recorded.calls)
    assert recorded.calls[-1] == "close"


async def test_what_fails_has_no_summary(recorded, at_once):
    with pytest.raises(ValueError, match="oh"):
        async with showing.showing(recorded, board_with(1), "grid", 1, summary=lambda: "1 worker"):
            await until(lambda: "update" in recorded.calls)
            raise ValueError("oh")
    assert recorded.calls[-1] == "close"


async def test_a_display_that_breaks_disturbs_nobody(recorded, at_once, monkeypatch, caplog):
    monkeypatch.setattr(recorded, "broken", True)
    async with showing.showing(recorded, board_with(1), "grid", 1):
        await until(lambda: recorded.calls)
    assert recorded.calls == ["grid 1", "close"]
    assert "no paper" in caplog.text


async def test_whoever_is_cancelled_again_and_again_still_closes_it(recorded, at_once):
    async def show() -> None:
        async with showing.showing(recorded, board_with(1), "grid", 1):
            await asyncio.sleep(300)

    task = asyncio.ensure_future(show())
    await until(lambda: "update" in recorded.calls)
    while not task.done():
        task.cancel()
        await asyncio.sleep(0)
    assert task.cancelled()
    assert recorded.calls[-1] == "close"


# -- clusters -------------------------------------------------------------------------------------


async def test_a_cluster_tells_until_its_workers_are_there(paper_workers, capsys, at_once):
    told = ""

    def is_told(text: str) -> bool:
        nonlocal told
        told += capsys.readouterr().err
        return text in told

    async with cluster_on(paper_workers, n_workers=1, quiet=False) as cluster:
        name = cluster.name
        assert is_told(f"Starting {name}: the scheduler is ")
        # Nobody waits any more, and it goes on.
        await until(lambda: is_told(f"\n{name}: 0 of 1 workers running, 1 booting\n"))
        (worker,) = cluster.worker_spec
        cluster.events.note(worker, "ready")
        await until(lambda: is_told(f"\n{name}: 1 worker, 2 cores, 2 GB in "))
        # More are told of again.
        cluster.scale(2)
        await until(lambda: is_told(f"\n{name}: 1 of 2 workers running, 1 "))
        (worker,) = set(cluster.worker_spec) - {worker}
        await until(lambda: is_told(", 1 booting"))
        cluster.events.note(worker, "ready")
        await until(lambda: is_told(f"\n{name}: 2 workers, 4 cores, 4 GB in "))
    assert told.count(" cores, ") == 2


async def test_who_waits_for_workers_sees_how_far_they_are(light, capsys, at_once):
    async with cluster_on(light, quiet=False) as cluster:
        capsys.readouterr()
        cluster.scale(2)
        await cluster.wait_for_workers(2)
        told = capsys.readouterr().err
        assert re.match(rf"{cluster.name}: \d of 2 workers running", told)
        assert told.count(f"{cluster.name}: 2 workers, 4 cores, 4 GB in ") == 1
        # It was told, also to whoever waits for one that takes the place of another.
        assert cluster._take_summary() == ""
        # They are there.
        await cluster.wait_for_workers(2)
        assert capsys.readouterr().err == ""


@pytest.mark.parametrize("silence", [{"quiet": True}, {"quiet": False, "progress": "none"}])
async def test_who_wants_silence_has_it(paper_workers, capsys, at_once, silence):
    refuse(paper_workers)
    async with cluster_on(paper_workers, **silence) as cluster:
        cluster.scale(1)
        await until(lambda: cluster.failures)
    assert capsys.readouterr() == ("", "")


def test_ctrl_c_ends_the_display_before_the_traceback(paper_workers, monkeypatch, at_once):
    main = threading.main_thread().ident

    class Interrupting(Recorded):
        calls: ClassVar[list[str]] = []

        def update(self) -> None:
            if "update" not in self.calls:
                # In the cluster's thread, while the main thread waits.
                signal.pthread_kill(main, signal.SIGINT)
            super().update()

    # However busy this computer is.
    monkeypatch.setattr("dask_gce.telling.CLOSED_WITHIN", PATIENCE)
    with GCECluster(**settings(paper_workers, n_workers=1, asynchronous=False)) as cluster:
        monkeypatch.setattr("dask_gce.telling.choose_display", lambda progress: Interrupting)
        cluster.quiet = False
        with pytest.raises(KeyboardInterrupt):
            cluster.wait_for_workers(1)
        assert Interrupting.calls[0] == f"{cluster.name} 1"
        assert Interrupting.calls[-1] == "close"


def test_a_start_that_fails_takes_its_display_away(paper_workers, monkeypatch, recorded, at_once):
    monkeypatch.setattr("dask_gce.telling.choose_display", lambda progress: recorded)
    refused = {"network": "nowhere", "asynchronous": False, "quiet": False}
    with pytest.raises(Exception, match="nowhere"):
        GCECluster(**settings(paper_workers, **refused))
    assert recorded.calls[0].startswith("Starting ")
    assert recorded.calls[-1] == "close"


def test_a_synchronous_cluster_shows_progress_while_it_is_made(
    light, monkeypatch, recorded, at_once
):
    monkeypatch.setattr("dask_gce.telling.choose_display", lambda progress: recorded)
    with GCECluster(**settings(light, n_workers=1, asynchronous=False, quiet=False)) as cluster:
        assert recorded.calls[0] == f"Starting {cluster.name} 1"
        assert recorded.calls[1] == "update"
        assert recorded.calls[-1].startswith("close")
        made = len(recorded.calls)
        cluster.wait_for_workers(1)
        # Unless it came before anybody waited.
        later = recorded.calls[made:]
        assert not later or later[0] == f"{cluster.name} 1"
