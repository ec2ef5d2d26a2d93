"""Keeps what is private out of what Google's libraries log.

At level DEBUG they attach the content of each request and answer to their records, where structured
handlers write it out (``GOOGLE_SDK_PYTHON_LOGGING_SCOPE`` makes one). The request that makes an
instance holds its metadata, and that may hold private keys and a user's environment variables.
"""

from __future__ import annotations

import logging

__all__ = ["keep_private"]

#: What is found in content that is nobody's business.
MARKS = ("PRIVATE KEY", "dask-gce-env")

#: The attributes of a record that hold content.
ATTRIBUTES = ("httpRequest", "httpResponse", "rpcRequest", "rpcResponse", "request", "response")

#: The loggers that attach it. A filter of a logger does not see the records of those below it.
LOGGERS = (
    "google.auth.transport.requests",
    "google.cloud.compute_v1.services.instances.client",
    "google.cloud.compute_v1.services.instances.transports.rest",
)


class _Private(logging.Filter):
    """Takes content away that is private, and lets the record pass."""

    def filter(self, record: logging.LogRecord) -> bool:
        for name in ATTRIBUTES:
            content = getattr(record, name, None)
            if content is not None and any(mark in repr(content) for mark in MARKS):
                setattr(record, name, "(private)")
        return True


_PRIVATE = _Private()


def keep_private() -> None:
    """Have the libraries log nothing private from now on; may be called many times.

    Examples
    --------
    >>> keep_private()
    """
    for name in LOGGERS:
        # It is added once only.
        logging.getLogger(name).addFilter(_PRIVATE)
