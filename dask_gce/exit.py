"""What has to be done when the interpreter ends.

At that moment event loops and thread pools no longer work, so only plain blocking code helps. And
it has to come before distributed's own exit hook, which would wait for both. ``atexit`` runs last
in, first out; that is why the hook is registered when it is needed, long after imports.
"""

from __future__ import annotations

import atexit
import contextlib
import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass

# Strong references on purpose: a cluster that was garbage collected without close() still has
# machines that cost money.
_duties: dict[int, Duty] = {}


@dataclass(frozen=True)
class Duty:
    """Something to do when the interpreter ends.

    Parameters
    ----------
    owner : object
        Whose duty it is.
    action : callable
        What to do.
    process : int
        The process that took it on. A forked child inherits the list, but not the duties.
    endpoint : str or None
        Who is asked for it, as the setting ``api_endpoint`` has it; None for Google.
    """

    owner: object
    action: Callable[[], None]
    process: int
    endpoint: str | None


def at_exit(owner: object, duty: Callable[[], None], endpoint: str | None) -> None:
    """Have something done when the interpreter ends.

    Parameters
    ----------
    owner : object
        Whose duty it is; kept alive until :func:`not_at_exit`.
    duty : callable
        What to do, without an event loop or threads.
    endpoint : str or None
        Who is asked for it, as the setting ``api_endpoint`` has it; None for Google.
    """
    _duties[id(owner)] = Duty(owner, duty, os.getpid(), endpoint)
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


def do_now(endpoint: str) -> None:
    """Do what was to be done when the interpreter ends, for a local Compute Engine that ends now.

    Parameters
    ----------
    endpoint : str
        Its address.
    """
    _do([duty for duty in _duties.values() if duty.endpoint == endpoint.rstrip("/")])


def _do_all() -> None:
    _do(list(_duties.values()))


def _do(duties: Iterable[Duty]) -> None:
    with contextlib.ExitStack() as all_of_them:
        # A duty that fails, or is interrupted, does not keep the others from being done.
        for duty in duties:
            if duty.process == os.getpid():
                all_of_them.callback(duty.action)
                all_of_them.callback(not_at_exit, duty.owner)
