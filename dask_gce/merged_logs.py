"""What Dask logged on a machine and what the machine wrote to its serial console, as one text.

Pure. A console has most of what Dask logged, since Dask prints it as well, but in lines that begin
with who printed them, and hardly a line that has a time. So what Dask logged is looked for in the
console, and put in where it is missing.
"""

from __future__ import annotations

import bisect
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from dask_gce.terminal import harmless

__all__ = ["LogEntry", "merge", "parse_entries"]

#: What stands between who printed a line and the line, on a serial console.
_MARK = ": "

#: How many of them a line is looked at behind: system, program and unit say who they are.
_MARKS = 4


@dataclass(frozen=True, slots=True)
class LogEntry:
    """Something that Dask logged.

    Parameters
    ----------
    time : float
        When, in seconds since 1970 by the machine's clock.
    text : str
        What, as Dask prints it: one line or several.
    """

    time: float
    text: str


def parse_entries(answer: Any) -> list[LogEntry]:
    """Read what a scheduler or worker answers that is asked for its logs with their times.

    Parameters
    ----------
    answer : object
        Times, levels and texts, the newest first.

    Returns
    -------
    list of LogEntry
        The entries, the oldest first; without those that are something else.

    Examples
    --------
    >>> parse_entries([(2.0, "INFO", "two"), (1.0, "INFO", "one"), "three"])
    [LogEntry(time=1.0, text='one'), LogEntry(time=2.0, text='two')]
    """
    found = []
    for each in answer if isinstance(answer, list | tuple) else ():
        if isinstance(each, list | tuple) and len(each) == 3 and isinstance(each[0], int | float):
            found.append(LogEntry(float(each[0]), harmless(str(each[2]))))
    return found[::-1]


def merge(console: str, entries: Iterable[LogEntry]) -> str:
    """Put what Dask logged into what its machine wrote to its serial console.

    Parameters
    ----------
    console : str
        What the console has, the oldest first.
    entries : iterable of LogEntry
        What Dask logged, in any order.

    Returns
    -------
    str
        All lines of the console in their order. Entries that it lacks are put before what Dask
        logged next, and what came after all that is known of the console is at the end.

    Examples
    --------
    >>> console = "kernel\\nstartup-script: one\\nprinted"
    >>> print(merge(console, [LogEntry(3.0, "three"), LogEntry(1.0, "one")]))
    kernel
    startup-script: one
    printed
    three
    """
    lines = harmless(console).splitlines()
    ordered = sorted(entries, key=lambda entry: entry.time)
    heads: dict[str, list[LogEntry]] = {}
    for entry in ordered:
        heads.setdefault(entry.text.partition("\n")[0].rstrip(), []).append(entry)
    places: list[int] = []
    times: list[float] = []
    present: set[int] = set()
    for number, line in enumerate(lines):
        if (head := _find_head(line.rstrip(), heads)) is not None:
            waiting = heads[head]
            entry = waiting.pop(0)
            if not waiting:
                del heads[head]
            present.add(id(entry))
            places.append(number)
            # Threads print in another order than they log, by a moment.
            times.append(max(entry.time, times[-1]) if times else entry.time)
    inserted: dict[int, list[str]] = {}
    for entry in ordered:
        if id(entry) not in present:
            following = bisect.bisect_right(times, entry.time)
            place = places[following] if following < len(places) else len(lines)
            inserted.setdefault(place, []).extend(entry.text.splitlines())
    merged: list[str] = []
    for number, line in enumerate(lines):
        merged += inserted.get(number, ())
        merged.append(line)
    merged += inserted.get(len(lines), ())
    return "\n".join(merged)


def _find_head(line: str, heads: Mapping[str, Sequence[LogEntry]]) -> str | None:
    """Return which entry's first line a line of a console is, if it is one."""
    for _ in range(_MARKS + 1):
        if line in heads:
            return line
        _, mark, line = line.partition(_MARK)
        if not mark:
            return None
    return None
