"""What every way to show progress has in common.

Owns the interface and the words; where they go is each display's own matter.
"""

from __future__ import annotations

from typing import Protocol

from dask_gce.machine_states import BOOTING_STATES
from dask_gce.state_board import StateBoard

__all__ = ["Display", "describe"]

#: What is said of one machine and of several, where the name of their state is no word for it.
_OF_ONE, _OF_SEVERAL = {"image": "getting its image"}, {"image": "getting their image"}


class Display(Protocol):
    """One way to show how far a cluster is, for as long as somebody waits.

    A display is made when there is something to show, updated four times a second at most, and
    closed in any case. What it does must not depend on how many machines there are. It may say in
    class attributes how it is to be driven: ``in_thread``, whether `update` and `close` are called
    in a thread since they may block (else on the event loop); ``afterwards``, the display that
    goes on in the background where nobody waits, None for no other; and ``sharing``, which returns
    the display to take where it would come again and again without anybody asking for it.

    Parameters
    ----------
    board : StateBoard
        The states of the cluster's machines.
    title : str
        What is going on, for example ``"Starting dask-1f"``.
    wanted : int
        How many workers are waited for.
    """

    def __init__(self, board: StateBoard, title: str, wanted: int) -> None: ...

    def update(self) -> None:
        """Show what is on the board now."""

    def close(self, summary: str) -> None:
        """Show no more but the summary, which stays.

        Parameters
        ----------
        summary : str
            What has come of it, for example ``"8 workers, 32 cores, 128 GB in 41 s"``; empty if
            there is nothing to say.
        """


def describe(board: StateBoard, wanted: int) -> str:
    """Say in one line how far a cluster is.

    Parameters
    ----------
    board : StateBoard
        The states of its machines.
    wanted : int
        How many workers are waited for; 0 for as many as there are.

    Returns
    -------
    str
        For example ``"3 of 8 workers running, 5 booting (image-pulling)"``.

    Examples
    --------
    >>> from dask_gce.events import Event
    >>> board = StateBoard()
    >>> describe(board, 2)
    'preparing'
    >>> for what in ("requested", "running"):
    ...     board.take(Event("dask-1f-scheduler-5e", what))
    >>> describe(board, 2)
    'the scheduler is booting'
    >>> board.take(Event("dask-1f-scheduler-5e", "ready"))
    >>> for what, why in (("requested", ""), ("booting", "image-pulling")):
    ...     board.take(Event("dask-1f-worker-9c", what, why))
    >>> describe(board, 2)
    '0 of 2 workers running, 1 getting its image (image-pulling)'
    """
    scheduler = board.scheduler()
    if scheduler is None:
        return "preparing"
    if scheduler.state in BOOTING_STATES:
        if board.scheduler_was_found and scheduler.state == "booting" and not scheduler.detail:
            return "waiting for the scheduler's answer"
        state = scheduler.state
        return f"the scheduler is {_OF_ONE.get(state, state)}{_in_brackets(scheduler.detail)}"
    workers = board.workers_by_state()
    running = workers.get("running", 0)
    # Whoever joins a cluster wants those that there are.
    if wanted:
        parts = [f"{running} of {wanted} workers running"]
    else:
        parts = [f"{running} {'worker' if running == 1 else 'workers'} running"]
    told = board.told_last()
    for state in reversed(BOOTING_STATES):
        if state in workers:
            count = workers[state]
            text = f"{count} {(_OF_ONE if count == 1 else _OF_SEVERAL).get(state, state)}"
            if told is not None and told.state == state:
                text += _in_brackets(told.detail)
            parts.append(text)
    if failures := board.failures():
        parts.append(f"{failures} failed")
    return ", ".join(parts)


def _in_brackets(phase: str) -> str:
    return f" ({phase})" if phase else ""
