"""Whether a worker's machine still has a scheduler, as the machine's kernel knows it.

A worker that runs ends by itself when its connection breaks; this is for one that hangs, and for a
scheduler that vanished without a word. The kernel gives up a connection whose other end is silent
(distributed asks it to), whatever the process does that holds it, and tells in `/proc/net` which
there are. So a thousand workers are watched without one message to the scheduler. Nothing but the
standard library.
"""

from __future__ import annotations

import contextlib
import socket
import time
from collections.abc import Callable
from pathlib import Path

#: Where the kernel lists the connections of this machine.
TABLES = (Path("/proc/net/tcp"), Path("/proc/net/tcp6"))
#: How the kernel calls a connection that stands (TCP_ESTABLISHED in include/net/tcp_states.h).
ESTABLISHED = "01"
#: Seconds between two looks, at most; and this share of the patience.
INTERVAL, SHARE = 5.0, 0.1
#: How often the scheduler is asked for before it counts as gone, and seconds between.
TRIES, BETWEEN = 3, 1.0


def addresses_of(host: str) -> set[str]:
    """Return a host's addresses as the kernel writes them; none where it has no name any more."""
    found = set()
    with contextlib.suppress(OSError):
        for *_, place in socket.getaddrinfo(host, None, socket.AF_INET, socket.SOCK_STREAM):
            # In the machine's own order of bytes, which is the little end first.
            found.add(socket.inet_aton(str(place[0]))[::-1].hex().upper())
    return found


class Lifeline:
    """The connections of this machine to its scheduler.

    Parameters are the scheduler's place, the seconds that there may be no connection to it, and
    what tells whether it answers.
    """

    def __init__(self, host: str, port: int, patience: float, answers: Callable[[], bool]) -> None:
        self._port, self._patience, self._answers = f"{port:04X}", patience, answers
        self._addresses = addresses_of(host)

    def holds(self) -> bool:
        """Tell whether there is a connection."""
        for table in TABLES:
            with contextlib.suppress(OSError):
                for line in table.read_text().splitlines()[1:]:
                    _, _, remote, state, *_ = line.split()
                    address, _, port = remote.partition(":")
                    if state != ESTABLISHED or port != self._port:
                        continue
                    # Of an address with a longer form, which may hold one of the shorter, the end.
                    if not self._addresses or address[-8:] in self._addresses:
                        return True
        return False

    def is_cut(self) -> bool:
        """Tell whether nobody answers at the other end; takes a few seconds."""
        for left in range(TRIES, 0, -1):
            if self._answers():
                return False
            if left > 1:
                time.sleep(BETWEEN)
        return True

    def watch(self, cut: Callable[[], object]) -> None:
        """Wait until there has been no scheduler for too long, and say so once."""
        since = time.monotonic()
        while True:
            time.sleep(min(INTERVAL, SHARE * self._patience))
            if self.holds():
                since = time.monotonic()
            elif time.monotonic() - since > self._patience:
                if self.is_cut():
                    cut()
                    return
                # It is there, and that nobody here is connected has another reason.
                since = time.monotonic()
