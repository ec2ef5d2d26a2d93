"""Dask's ``Security`` that writes no private key to a disk.

OpenSSL's only way to take a key with its certificate is by file, so distributed writes keys that it
holds as text to a temporary folder for a moment. Who is killed in that moment leaves a key behind.
On Linux a file can be memory that ends with its process.
"""

from __future__ import annotations

import contextlib
import os
import ssl
from collections.abc import Iterator
from typing import Any

from distributed.security import Security


class MemorySecurity(Security):
    """TLS settings whose keys reach OpenSSL through memory, where files can be memory (Linux)."""

    def __init__(self, **fields: Any) -> None:
        super().__init__(**fields)  # type: ignore[no-untyped-call]

    def _get_tls_context(self, tls: dict[str, Any], purpose: ssl.Purpose) -> ssl.SSLContext | None:
        with contextlib.ExitStack() as files:
            held = {
                part: files.enter_context(_memory_file(tls[part]))
                for part in ("cert", "key")
                if "\n" in (tls.get(part) or "")
            }
            readable = all(os.access(path, os.R_OK) for path in held.values())
            context: ssl.SSLContext | None = super()._get_tls_context(  # type: ignore[no-untyped-call]
                tls | held if readable else tls, purpose
            )
            return context


@contextlib.contextmanager
def _memory_file(text: str) -> Iterator[str]:
    """Give text a path; it is unreadable where files cannot be memory, or there is no /proc."""
    try:
        descriptor = os.memfd_create("dask-gce")
    except (AttributeError, OSError):
        yield ""
        return
    with os.fdopen(descriptor, "w", encoding="ascii") as file:
        file.write(text)
        file.flush()
        yield f"/proc/self/fd/{descriptor}"
