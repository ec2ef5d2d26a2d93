"""Who asks a cluster to scale: its user, or the object that adapts it.

Also that an adaptive object names workers whose machines are of the right kind. Both call the same
methods, and a decision of Adaptive's takes a while: a user who scales meanwhile
must neither be taken for it, nor be overruled by what was decided before.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Collection
from contextvars import ContextVar
from functools import partial
from typing import Any

__all__ = ["decider", "keep_kinds", "mark_decisions"]

_DECIDER: ContextVar[Any] = ContextVar("decider", default=None)


def decider() -> Any:
    """Return the adaptive object whose decision is being carried out by the caller.

    Returns
    -------
    Adaptive or None
        The object; None when the user calls.
    """
    return _DECIDER.get()


def mark_decisions(adaptive: Any) -> None:
    """Have an adaptive object's decisions told from the user's.

    Parameters
    ----------
    adaptive : Adaptive
        The object.
    """
    known = weakref.ref(adaptive)

    async def adapt() -> None:
        one = known()
        if one is None:
            return
        token = _DECIDER.set(one)
        try:
            await type(one).adapt(one)
        finally:
            _DECIDER.reset(token)

    adaptive.adapt = adapt


def keep_kinds(
    adaptive: Any, choose: Callable[[Collection[str], Collection[str]], list[str]]
) -> None:
    """Have an adaptive object name workers only that can go, in view of what their machines are.

    Parameters
    ----------
    adaptive : Adaptive
        The object.
    choose : callable
        Told names of workers, those that had better go first, and as many as are to go; returns
        those of the first that can go, no more than of the second.
    """
    adaptive.workers_to_close = partial(_name_workers, weakref.ref(adaptive), choose)


async def _name_workers(
    known: weakref.ref[Any],
    choose: Callable[[Collection[str], Collection[str]], list[str]],
    target: int,
) -> list[str]:
    one = known()
    if one is None:
        return []
    named = list(map(str, await type(one).workers_to_close(one, target)))
    chosen = choose(named, named)
    if len(chosen) < len(named):
        # Others in place of those that stay, though they may have more to do.
        further = max(0, target - (len(named) - len(chosen)))
        chosen = choose(list(map(str, await type(one).workers_to_close(one, further))), named)
    return chosen
