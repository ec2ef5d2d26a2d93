"""Progress in a notebook: one output of the cell, drawn anew, which becomes the summary.

The constructor of a cluster blocks the kernel, so the output is updated from another thread. What
is shown later is the cluster's own widget.
"""

from __future__ import annotations

import html
import importlib
import sys
from dataclasses import dataclass
from typing import Any, ClassVar

from dask_gce.machine_tables import render_picked
from dask_gce.progress.display import Display, describe
from dask_gce.state_board import StateBoard

__all__ = ["NotebookDisplay", "in_notebook"]

#: Machines that are shown by name.
NAMED = 8


def in_notebook() -> bool:
    """Tell whether this process is the kernel of a notebook.

    Returns
    -------
    bool
        Whether outputs with HTML reach somebody who can see them.
    """
    # Who has a notebook has imported it.
    module = sys.modules.get("IPython")
    shell = None if module is None else module.get_ipython()
    return getattr(shell, "kernel", None) is not None


@dataclass
class _Output:
    """An output of a cell, from the first time on that something is shown in it."""

    handle: Any = None
    #: The request to run that cell; empty where the output is in none.
    cell: str = ""


class NotebookDisplay:
    """An output of the cell that is being run.

    Parameters
    ----------
    board : StateBoard
        The states of the cluster's machines.
    title : str
        What is going on.
    wanted : int
        How many workers are waited for.
    """

    #: Whatever was printed before goes out first, which may take a moment.
    in_thread: ClassVar[bool] = True
    #: An output that changes disturbs nobody who types in another cell.
    afterwards: ClassVar[type[Display] | None]
    #: The output of all displays of a class; with None each has one of its own.
    _shared: ClassVar[_Output | None] = None

    def __init__(self, board: StateBoard, title: str, wanted: int) -> None:
        self._board = board
        self._title = title
        self._wanted = wanted
        self._output = self._shared or _Output()
        self._begun = False
        self._version = -1

    @classmethod
    def sharing(cls) -> type[Display]:
        """Return this display with one output for whatever it shows while nobody runs a cell.

        The next cell that is run has an output of its own: that of an earlier one may be gone.

        Returns
        -------
        type
            A class of displays.
        """
        return type("SharedNotebookDisplay", (cls,), {"_shared": _Output()})

    def update(self) -> None:
        """Draw it anew, if something has changed."""
        version = self._board.version
        if version != self._version:
            self._version = version
            self._show(describe(self._board, self._wanted), self._render())

    def close(self, summary: str) -> None:
        """Leave nothing but what has come of it.

        Parameters
        ----------
        summary : str
            What has come of it; empty if there is nothing to say.
        """
        if summary:
            title = html.escape(self._title)
            self._show(summary, f"<div><strong>{title}:</strong> {html.escape(summary)}</div>")
        elif self._begun:
            self._show("", "<div></div>")

    def _render(self) -> str:
        """Return how far the cluster is, as HTML."""
        counts = self._board.workers_by_state()
        wanted = max(1, self._wanted)
        done = min(100.0, 100 * counts.get("running", 0) / wanted)
        return (
            f"<div><strong>{html.escape(self._title)}:</strong> "
            f"{html.escape(describe(self._board, self._wanted))}</div>"
            '<div style="height: 8px; max-width: 480px; margin: 4px 0; background: #e1e1e1;">'
            f'<div style="height: 8px; width: {done:.0f}%; background: #ecb172;"></div></div>'
            f"{render_picked(self._board, NAMED)}"
        )

    def _show(self, text: str, markup: str) -> None:
        display: Any = importlib.import_module("IPython.display").display
        plain = f"{self._title}: {text}" if text else ""
        bundle = {"text/plain": plain, "text/html": markup}
        output, cell = self._output, _current_cell()
        if self._begun or (output.cell and output.cell == cell):
            output.handle.update(bundle, raw=True)
        else:
            output.cell, output.handle = cell, display(bundle, raw=True, display_id=True)
        self._begun = True


def _current_cell() -> str:
    """Return the request to which outputs belong now; empty if it is not that to run a cell.

    Threads are told the last one. The event loop's tasks know that by which they were made.
    """
    shell: Any = importlib.import_module("IPython").get_ipython()
    # As ipykernel has it; what other kernels do is not known.
    parent = getattr(getattr(shell, "display_pub", None), "parent_header", None) or {}
    return str(parent.get("msg_id", "")) if parent.get("msg_type") == "execute_request" else ""


NotebookDisplay.afterwards = NotebookDisplay
