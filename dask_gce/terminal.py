"""What machines write, made fit for a terminal, which would obey more than it shows."""

from __future__ import annotations

import re

__all__ = ["harmless"]

# Control sequences of terminals (ECMA-48), and every other control character but tab and line feed.
_CONTROL = re.compile(
    r"\x1b\[[0-?]*[ -/]*[@-~]|\x1b\][^\x07\x1b\n]*(?:\x07|\x1b\\)|\x1b."
    r"|[\x00-\x08\x0b-\x1f\x7f-\x9f]"
)


def harmless(text: str) -> str:
    """Take out of a text what a terminal would obey.

    Parameters
    ----------
    text : str
        What a machine has written, or what may quote it.

    Returns
    -------
    str
        The text without control characters other than tabs and ends of lines.

    Examples
    --------
    >>> harmless("\\x1b[31mfailed\\x1b[0m\\r"), harmless("a\\tb \\x1b]0;title\\x07c")
    ('failed', 'a\\tb c')
    """
    return _CONTROL.sub("", text)
