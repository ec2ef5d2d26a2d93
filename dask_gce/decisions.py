"""Who asks a cluster to scale: its user, or the object that adapts it.

Both call the same methods, and a decision of Adaptive's takes a while: a user who scales meanwhile
must neither be taken for it, nor be overruled by what was decided before.
"""

from __future__ import annotations

import weakref
from contextvars import ContextVar
from typing import Any

__all__ = ["decider", "mark_decisions"]

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
