"""Ports that are named before they are used.

Owns the choice of a port on which nobody listens, and which nobody is given meanwhile.
"""

from __future__ import annotations

import secrets
import socket

#: Below those that Linux and macOS give to whoever asks for any.
PORTS = range(20_000, 30_000)


def quiet_port() -> int:
    """Return a port of 127.0.0.1 that is free, and that no system hands out."""
    while True:
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", secrets.choice(PORTS)))
            except OSError:
                continue
            return int(probe.getsockname()[1])
