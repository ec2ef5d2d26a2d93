"""Which way to show progress fits where this process runs."""

from __future__ import annotations

import os
import sys
from typing import TextIO

from dask_gce.progress.display import Display

__all__ = ["choose_display", "is_terminal"]


def choose_display(progress: str) -> type[Display] | None:
    """Return how progress is shown here.

    Parameters
    ----------
    progress : {"auto", "terminal", "notebook", "lines", "none"}
        What was asked for, the setting of that name.

    Returns
    -------
    type or None
        A display; None for silence. Where there is no terminal or no notebook, that is lines.
    """
    if progress == "none":
        return None
    if progress in ("auto", "terminal") and _on_terminal():
        from dask_gce.progress.terminal import TerminalDisplay

        return TerminalDisplay
    from dask_gce.progress.notebook import NotebookDisplay, in_notebook

    if progress in ("auto", "notebook") and in_notebook():
        return NotebookDisplay
    from dask_gce.progress.lines import LinesDisplay

    return LinesDisplay


def is_terminal(stream: TextIO | None) -> bool:
    """Tell whether what is written to a stream is seen on a terminal.

    Parameters
    ----------
    stream : file or None
        Standard output or standard error, which may be missing or closed.

    Returns
    -------
    bool
        Whether it is.
    """
    try:
        return stream is not None and stream.isatty()
    except ValueError:  # it is closed
        return False


def _on_terminal() -> bool:
    """Tell whether standard error is a terminal on which lines can be drawn anew."""
    there = is_terminal(sys.stderr)
    return there and os.environ.get("TERM", "").lower() not in ("", "dumb", "unknown")
