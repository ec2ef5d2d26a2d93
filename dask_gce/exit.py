"""What has to be done when the interpreter ends.

At that moment event loops and thread pools no longer work, so only plain blocking code helps. And
it has to come before distributed's own exit hook, which would wait for both. ``atexit`` runs last
in, first out; that is why the hook is registered when it is needed, long after imports.
"""

from __future__ import annotations

import atexit
from collections.abc import Callable

# Strong references on purpose: a cluster that was garbage collected without close() still has
# machines that cost money.
_duties: dict[int, tuple[object, Callable[[], None]]] = {}


def at_exit(owner: object, duty: Callable[[], None]) -> None:
    """Have something done when the interpreter ends.

    Parameters
    ----------
    owner : object
        Whose duty it is; kept alive until :func:`not_at_exit`.
    duty : callable
        What to do, without an event loop or threads.
    """
    _duties[id(owner)] = (owner, duty)
    # Registering again moves the hook to the front of the queue.
    atexit.unregister(_do_all)
    atexit.register(_do_all)


def not_at_exit(owner: object) -> None:
    """Take a duty back.

    Parameters
    ----------
    owner : object
        Whose duty it was; one that has none is fine.
    """
    _duties.pop(id(owner), None)


def _do_all() -> None:
    for _, duty in list(_duties.values()):
        duty()
