"""A few seeds of the campaign of dead clients, and by name what longer runs of it have shown.

More seeds: ``python tests/dead_clients.py --runs 200``.
"""

from __future__ import annotations

import socket
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path

import pytest
from dead_clients import Report, play, summarize, write_script
from ports import quiet_port
from silent_line import Line

#: What happens in them: see `python tests/dead_clients.py --only SEED`.
KILLED = (24, 133, 166, 249)
CUT = (24,)
ASLEEP = (71,)
TIMEOUTS = {"idle_timeout", "no_client_timeout"}


@pytest.mark.parametrize(
    ("mode", "seed"),
    [
        *(("kill", seed) for seed in KILLED),
        *(("cut", seed) for seed in CUT),
        *(("sleep", seed) for seed in ASLEEP),
    ],
)
@pytest.mark.timeout(900)
def test_nothing_is_left_of_a_dead_client(mode, seed):
    for patience in (1, 3, 5):
        script = write_script(seed, mode)
        # They count from the scheduler's start, and a busy computer takes long to come to it.
        longer = {key: patience * script.settings[key] for key in TIMEOUTS & script.settings.keys()}
        report = play(replace(script, settings={**script.settings, **longer}))
        assert not report.wrong, report.wrong
        # Whoever ends before its moment shows nothing.
        if not report.client.startswith("had ended"):
            return
    pytest.fail(f"the client has ended before its moment, each time: {report}")


def test_scripts_are_told_by_their_seed_and_mode_alone():
    assert write_script(7) == write_script(7)
    assert write_script(7) != write_script(8)
    assert write_script(7, "cut") != write_script(7, "kill")


def test_a_campaign_is_told_as_a_table():
    reports = [
        Report(1, "kill", "create", "", client="killed", seconds=3.0, clusters=1),
        Report(
            2, "kill", "close", "", client="killed", seconds=7.0, clusters=1, swept=["instance"]
        ),
        Report(
            3, "kill", "close", "", client="killed", clusters=1, faults=2, wrong="a disk is left"
        ),
    ]
    table = summarize(reports)
    head, _, create, close, together = table.splitlines()
    assert head.count("|") == create.count("|") == together.count("|")
    assert create.startswith("| killed | create | 1 |")
    assert close.endswith("| 7.0 s, 7.0 s | 1 | 1 |")
    assert together.startswith("| killed | all | 3 |")


# -- the line -------------------------------------------------------------------------------------

ASK = """
import socket, sys, urllib.request
from silent_line import take_line
take_line(sys.argv[1])
for _ in sys.stdin:
    print(urllib.request.urlopen(sys.argv[2], timeout=250).status, flush=True)
"""


@pytest.fixture
def asking(tmp_path, emulator):
    """Return a line, and a process that asks when it is told to."""
    folder = Path(__file__).parent
    with Line(int(emulator.endpoint.rpartition(":")[2]), tmp_path) as line:
        url = f"{emulator.endpoint}/compute/v1/projects/local-project"
        with subprocess.Popen(
            [sys.executable, "-c", ASK, str(line.control), url],
            cwd=folder,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            bufsize=1,
        ) as process:
            try:
                yield line, process, emulator
            finally:
                process.kill()


def test_a_line_counts_what_is_asked(asking):
    line, process, emulator = asking
    asked, sent, answered = (threading.Event() for _ in range(3))
    seen = []

    def note(event):
        seen.append(emulator.requests["compute.projects.get"])
        event.set()

    for number, (point, event) in enumerate(
        (("asked", asked), ("sent", sent), ("answered", answered)), start=1
    ):
        line.arm(point, 1, lambda event=event: note(event))
        process.stdin.write("ask\n")
        assert process.stdout.readline() == "200\n"
        assert event.wait(120)
        assert line.requests == number
    # Before the first has arrived, and after the third has been answered.
    assert seen[0] == 0
    assert seen[2] == 3


def test_a_line_falls_silent_and_forgets_nothing(asking):
    line, process, emulator = asking
    line.arm("asked", 1, line.cut)
    process.stdin.write("ask\n")
    # It has a connection, on which nothing comes any more; that nobody answers takes no time.
    while not line.requests:
        assert process.poll() is None
    assert not emulator.requests
    line.mend()
    assert process.stdout.readline() == "200\n"


def test_a_line_to_where_nobody_listens_refuses(tmp_path, emulator):
    with Line(int(emulator.endpoint.rpartition(":")[2]), tmp_path) as line:
        with socket.socket(socket.AF_UNIX) as control:
            control.connect(str(line.control))
            control.sendall(f"1 127.0.0.1 {quiet_port()}\n".encode())
            port = int(control.makefile().readline())
        with socket.socket() as knocking, pytest.raises(ConnectionRefusedError):
            knocking.connect(("127.0.0.1", port))


def test_nobody_answers_who_knocks_at_a_silent_line(tmp_path, emulator):
    with Line(int(emulator.endpoint.rpartition(":")[2]), tmp_path) as line:
        line.cut()
        with socket.socket(socket.AF_UNIX) as control:
            control.connect(str(line.control))
            control.sendall(b"1 127.0.0.1 1\n")
            port = int(control.makefile().readline())
        with socket.socket() as knocking:
            knocking.settimeout(0.5)
            with pytest.raises(TimeoutError):
                knocking.connect(("127.0.0.1", port))
