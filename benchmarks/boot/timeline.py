"""When a machine said what on its serial console, and which share of a boot is whose.

Owns the arithmetic only; the boots are made and measured by the program beside it.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from dask_gce.emulator.record import SerialConsole

#: How the startup script says how far it has come.
PHASE = re.compile(r"dask-gce phase: (\S[^\r\n]*)")
#: The first phase that the startup script reports, and the one that a worker reports as soon as
#: the process of Dask exists.
FIRST, LAST = "booted", "running"


class StampedConsole(SerialConsole):
    """A serial console that knows when each line was complete.

    Parameters
    ----------
    now : callable
        The clock, in seconds.

    Examples
    --------
    >>> console = StampedConsole(iter([1.0, 2.0, 3.0]).__next__)
    >>> for piece in (b"one\\ntw", b"o\\nthr", b"ee\\n"):
    ...     console.write(piece)
    >>> console.lines
    [(1.0, 'one'), (2.0, 'two'), (3.0, 'three')]
    """

    def __init__(self, now: Callable[[], float] = time.monotonic) -> None:
        super().__init__()
        self._now = now
        self._rest = b""
        self.lines: list[tuple[float, str]] = []

    def write(self, data: bytes) -> None:
        """Keep output, and when it came.

        Parameters
        ----------
        data : bytes
            The output.
        """
        super().write(data)
        moment = self._now()
        *complete, self._rest = (self._rest + data).split(b"\n")
        self.lines.extend((moment, line.decode(errors="replace")) for line in complete)


@dataclass(frozen=True)
class Boot:
    """One boot of a worker's machine.

    Parameters
    ----------
    asked : float
        When the machine was asked for, in seconds of the console's clock.
    phases : sequence of (float, str)
        When it reported which phase.
    """

    asked: float
    phases: Sequence[tuple[float, str]] = field(repr=False)

    @property
    def system(self) -> float:
        """Seconds until the startup script began: the local Compute Engine's and the system's."""
        return self._moment(FIRST) - self.asked

    @property
    def ours(self) -> float:
        """Seconds from the start of the startup script until the process of Dask existed."""
        return self._moment(LAST) - self._moment(FIRST)

    def steps(self) -> dict[str, float]:
        """Return how long the machine was in each phase.

        Returns
        -------
        dict of str to float
            Seconds by phase, in order, without the last one; what is said more than once within a
            phase, as the progress of a download is, counts to its first word.
        """
        seconds: dict[str, float] = {}
        for (moment, text), (after, _) in zip(self.phases, self.phases[1:], strict=False):
            word = text.split(maxsplit=1)[0].rstrip(":")
            seconds[word] = seconds.get(word, 0.0) + after - moment
        return seconds

    def _moment(self, phase: str) -> float:
        for moment, text in self.phases:
            if text.split(maxsplit=1)[0].rstrip(":") == phase:
                return moment
        raise ValueError(f"the machine has not reported {phase!r}, only {self.phases}")


def read_boot(lines: Sequence[tuple[float, str]], asked: float) -> Boot:
    """Find the phases of one boot among a console's lines.

    Parameters
    ----------
    lines : sequence of (float, str)
        When which line was complete.
    asked : float
        When the boot was asked for; what was said before belongs to another one.

    Returns
    -------
    Boot
        The boot, up to the phase ``running``.

    Examples
    --------
    >>> boot = read_boot([(1.0, "dask-gce phase: booted"), (1.25, "dask-gce phase: starting"),
    ...                   (1.5, "dask-gce phase: running")], asked=0.5)
    >>> boot.system, boot.ours, boot.steps()
    (0.5, 0.5, {'booted': 0.25, 'starting': 0.25})
    """
    phases: list[tuple[float, str]] = []
    for moment, line in lines:
        found = PHASE.search(line)
        if moment < asked or found is None:
            continue
        phases.append((moment, found[1]))
        if found[1] == LAST:
            break
    return Boot(asked, phases)
