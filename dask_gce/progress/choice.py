"""Which way to show progress fits where this process runs."""

from __future__ import annotations

import os
import sys

from dask_gce.progress.display import Display

__all__ = ["choose_display"]


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


def _on_terminal() -> bool:
    """Tell whether standard error is a terminal on which lines can be drawn anew."""
    try:
        there = sys.stderr is not None and sys.stderr.isatty()
    except ValueError:  # it is closed
        return False
    return there and os.environ.get("TERM", "").lower() not in ("", "dumb", "unknown")
