"""Machines and their states as HTML, of about the same size however many there are."""

from __future__ import annotations

import html
import itertools
from typing import SupportsIndex, overload

from dask_gce.html_tables import render_table
from dask_gce.machine_states import MachineState, render_time
from dask_gce.state_board import StateBoard

__all__ = ["MachineList", "render_counts", "render_machines", "render_picked"]

#: Machines that are listed one by one beside others, and in a list of nothing else.
SHOWN, LISTED = 20, 200

_HEADINGS = ("machine", "state", "since (UTC)", "after", "zone", "type", "")


class MachineList(list[MachineState]):
    """Machines with their states: a list, which a notebook shows as a table."""

    def __repr__(self) -> str:
        return "\n".join(map(str, self)) or "no machines"

    @overload
    def __getitem__(self, index: SupportsIndex) -> MachineState: ...

    @overload
    def __getitem__(self, index: slice) -> MachineList: ...

    def __getitem__(self, index: SupportsIndex | slice) -> MachineState | MachineList:
        if isinstance(index, slice):
            return MachineList(super().__getitem__(index))
        return super().__getitem__(index)

    def _repr_html_(self) -> str:
        return _render(list(itertools.islice(self, LISTED)), len(self))


def render_counts(board: StateBoard) -> str:
    """Say how many machines are in which state.

    Parameters
    ----------
    board : StateBoard
        The machines' states.

    Returns
    -------
    str
        Text; empty if there is none.

    Examples
    --------
    >>> from dask_gce.events import Event
    >>> board = StateBoard()
    >>> for name, what in (("a", "requested"), ("b", "requested"), ("b", "running")):
    ...     board.take(Event(name, what))
    >>> render_counts(board)
    '1 requested, 1 booting'
    """
    return ", ".join(f"{count} {state}" for state, count in board.counts().items())


def render_machines(board: StateBoard) -> str:
    """Return how many machines are in which state, and behind that those of most interest.

    Parameters
    ----------
    board : StateBoard
        The machines' states.

    Returns
    -------
    str
        HTML that opens when it is clicked; empty if there is no machine.
    """
    if not (counts := render_counts(board)):
        return ""
    return (
        f"<details><summary><strong>Machines:</strong> {html.escape(counts)}</summary>"
        f"{render_picked(board, SHOWN)}</details>"
    )


def render_picked(board: StateBoard, count: int) -> str:
    """Return the machines of most interest as a table.

    Parameters
    ----------
    board : StateBoard
        The machines' states.
    count : int
        How many at most.

    Returns
    -------
    str
        HTML.
    """
    return _render(board.pick(count), sum(board.counts().values()))


def _render(machines: list[MachineState], total: int) -> str:
    more = total - len(machines)
    rows = map(_render_cells, machines)
    return render_table(_HEADINGS, rows, f"and {more} more" if more > 0 else "")


def _render_cells(machine: MachineState) -> tuple[str, ...]:
    after = machine.seconds(machine.state)
    return (
        machine.name,
        f"{machine.state}: {machine.detail}" if machine.detail else machine.state,
        f"{machine.since:%H:%M:%S}",
        "" if after is None else render_time(after),
        machine.zone,
        machine.machine_type,
        "Spot" if machine.spot else "",
    )
