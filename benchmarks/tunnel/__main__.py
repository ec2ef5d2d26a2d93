"""Measure a tunnel on loopback, print it, and write docs/tunnel.md."""

from __future__ import annotations

import argparse
import multiprocessing
import os
import socket
import statistics
import struct
import sys
import time
from dataclasses import dataclass
from multiprocessing.connection import Connection
from multiprocessing.context import SpawnProcess
from pathlib import Path

from benchmarks.fleet.report import describe_machine

from . import far_end, near_end

ROOT = Path(__file__).parents[2]

#: Bytes that go each way, and bytes that come with a cut after every so many.
AMOUNT, CUT_AMOUNT, CUT_EVERY = 400_000_000, 200_000_000, 5_000_000
#: What is promised: bytes a second in the direction of results, and bytes of memory beyond what the
#: process had before anything went through it.
RATE, MEMORY = 200e6, 32e6
#: Seconds of a core that the tunnel's process takes for a gigabyte, at most: half a core carries
#: what is promised. Unlike the rate it says the same on a busy machine.
EFFORT = 2.5


@dataclass(frozen=True)
class Case:
    """A figure.

    Parameters
    ----------
    title : str
        Its name in the table.
    plain : float or None
        The same without a tunnel.
    value : float
        What was measured.
    unit : str
        ``"MB/s"``, ``"MB"`` or ``"s/GB"``.
    bound : float or None
        What is promised: the least of a rate, the most of an amount.
    """

    title: str
    plain: float | None
    value: float
    unit: str
    bound: float | None = None

    @property
    def kept(self) -> bool | None:
        """Whether the promise was kept; None if there is none."""
        if self.bound is None:
            return None
        return self.value >= self.bound if self.unit == "MB/s" else self.value <= self.bound

    def cells(self) -> tuple[str, ...]:
        """Return the table's cells.

        Examples
        --------
        >>> Case("down", 2e9, 251.2e6, "MB/s", 200e6).cells()
        ('down', '2000 MB/s', '251 MB/s', 'at least 200 MB/s: yes')
        >>> Case("memory", None, 33e6, "MB", 32e6).cells()
        ('memory', '-', '33 MB', 'at most 32 MB: **no**')
        >>> Case("effort", None, 1.44, "s/GB", 2.5).cells()
        ('effort', '-', '1.4 s/GB', 'at most 2.5 s/GB: yes')
        """
        promise = "-"
        if self.bound is not None:
            least = "at least" if self.unit == "MB/s" else "at most"
            kept = "yes" if self.kept else "**no**"
            promise = f"{least} {self._show(self.bound)}: {kept}"
        plain = "-" if self.plain is None else self._show(self.plain)
        return self.title, plain, self._show(self.value), promise

    def _show(self, value: float) -> str:
        shown = f"{value:.1f}" if self.unit == "s/GB" else f"{value / 1e6:.0f}"
        return f"{shown} {self.unit}"


def transfer(port: int, what: bytes, count: int, *, check: bool = False) -> float:
    """Move bytes and return bytes a second; with `check`, each byte is compared."""
    buffer = bytearray(2**18)
    view = memoryview(buffer)
    pattern = memoryview(far_end.PATTERN)
    with socket.create_connection(("127.0.0.1", port)) as connection:
        start = time.perf_counter()
        connection.sendall(struct.pack(">cQ", what, count))
        if what == b"u":
            for at in range(0, count, len(pattern)):
                connection.sendall(pattern[: count - at])
            assert connection.recv(1), "it was not confirmed"
        else:
            received = 0
            while received < count:
                size = connection.recv_into(buffer)
                assert size, f"it ended after {received} of {count} bytes"
                if check:
                    _compare(view[:size], received)
                received += size
        return count / (time.perf_counter() - start)


def _compare(piece: memoryview, position: int) -> None:
    while piece:
        start = position % len(far_end.PATTERN)
        # As bytes: memoryviews are compared one element at a time.
        expected = far_end.PATTERN[start : start + len(piece)]
        assert bytes(piece[: len(expected)]) == expected, f"other bytes at {position}"
        position += len(expected)
        piece = piece[len(expected) :]


def _begin(target: object, *arguments: object) -> tuple[SpawnProcess, Connection]:
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=target, args=(theirs, *arguments), daemon=True)  # type: ignore[arg-type]
    process.start()
    theirs.close()
    return process, ours


def measure(repeats: int, amount: int, cut_amount: int) -> list[Case]:
    """Measure everything; what is compared takes turns."""
    far, far_pipe = _begin(far_end.run)
    far_port, plain_port = far_pipe.recv()
    near, near_pipe = _begin(near_end.run, far_port)
    port = near_pipe.recv()

    def used() -> tuple[float, float]:
        near_pipe.send(True)
        memory, seconds = near_pipe.recv()
        return memory, seconds

    def cut_every(count: int) -> None:
        far_pipe.send(count)
        far_pipe.recv()

    before, _ = used()
    efforts: dict[bytes, list[float]] = {}
    rates: dict[tuple[bytes, int], list[float]] = {}
    for _ in range(repeats):
        for what in (b"d", b"u"):
            for through in (plain_port, port):
                _, start = used()
                rates.setdefault((what, through), []).append(transfer(through, what, amount))
                if through == port:
                    efforts.setdefault(what, []).append((used()[1] - start) / amount * 1e9)
    cut_every(CUT_EVERY)
    with_cuts = transfer(port, b"d", cut_amount, check=True)
    cut_every(0)
    peak, _ = used()
    for pipe, process in ((near_pipe, near), (far_pipe, far)):
        pipe.send(None)
        process.join()
    median = {key: statistics.median(values) for key, values in rates.items()}
    effort = {what: statistics.median(values) for what, values in efforts.items()}
    memory = "memory of the tunnel's process, beyond what it began with"
    busy = "processor time of the tunnel's process, {} the instance"
    return [
        Case("from the instance", median[b"d", plain_port], median[b"d", port], "MB/s", RATE),
        Case("to the instance", median[b"u", plain_port], median[b"u", port], "MB/s"),
        Case("from the instance, cut every 5 MB", None, with_cuts, "MB/s"),
        Case(busy.format("from"), None, effort[b"d"], "s/GB", EFFORT),
        Case(busy.format("to"), None, effort[b"u"], "s/GB"),
        Case(memory, None, peak - before, "MB", MEMORY),
    ]


HEADINGS = ("figure", "without a tunnel", "through the tunnel", "promise")


def render_table(cases: list[Case]) -> str:
    """Return the table in Markdown."""
    lines = [HEADINGS, ("---", "---:", "---:", "---:"), *(case.cells() for case in cases)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def render(cases: list[Case], repeats: int, load: float) -> str:
    """Return the page of the documentation; `load` is the machine's, from before it began."""
    page = (Path(__file__).parent / "page.md").read_text("utf-8")
    return page.format(
        repeats=repeats,
        amount=f"{AMOUNT / 1e6:.0f} MB",
        cut_amount=f"{CUT_AMOUNT / 1e6:.0f} MB",
        table=render_table(cases),
        load=load,
        machine="\n".join(f"- {line}" for line in describe_machine()),
    )


def main() -> int:
    """Measure, print, write; the exit status is not zero if a promise was not kept."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.tunnel", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="measure less, and write nothing")
    options = parser.parse_args()
    repeats = 1 if options.quick else 3
    load, _, _ = os.getloadavg()
    cases = measure(repeats, AMOUNT, CUT_AMOUNT)
    print(render_table(cases))
    if not options.quick:
        (ROOT / "docs" / "tunnel.md").write_text(render(cases, repeats, load), "utf-8")
    broken = [case.title for case in cases if case.kept is False]
    for title in broken:
        print(f"BROKEN: {title}")
    return bool(broken)


if __name__ == "__main__":
    sys.exit(main())
