"""Whether a scheduler and a client accept each other's certificates, and if not, why.

Owns one conversation over TLS that goes no further than its beginning. Dask tells less: in TLS 1.3
a client learns that its own certificate was refused only when it reads, and whoever writes first
may find nothing but a closed connection.
"""

from __future__ import annotations

import socket
import ssl
from typing import Final

__all__ = ["find_refusal"]

#: Seconds that each step may take.
PATIENCE: Final = 5.0


def find_refusal(host: str, port: int, context: ssl.SSLContext) -> ssl.SSLError | None:
    """Shake hands once; blocks, so use a thread.

    Parameters
    ----------
    host : str
        Where the scheduler is.
    port : int
        Its port.
    context : ssl.SSLContext
        What the client shows, and whom it trusts.

    Returns
    -------
    ssl.SSLError or None
        Why one of the two refused the other; None if none did, or nobody answers.
    """
    try:
        with (
            socket.create_connection((host, port), timeout=PATIENCE) as plain,
            context.wrap_socket(plain) as tls,
        ):
            tls.recv(1)  # a scheduler that accepts its client speaks first
    except ssl.SSLError as error:
        return error
    except OSError:
        return None
    return None
