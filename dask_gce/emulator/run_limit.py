"""The timer of an instance's longest run time, which Compute Engine sets at each start anew.

Source: https://cloud.google.com/compute/docs/instances/limit-vm-runtime.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from datetime import datetime, timezone
from typing import Any

from dask_gce.emulator.links import moment_of, now


class RunLimit:
    """The timer of one instance.

    Parameters
    ----------
    ended : callable
        Called when the time is up.
    """

    def __init__(self, ended: Callable[[], object]) -> None:
        self._ended = ended
        self._timer: asyncio.TimerHandle | None = None

    def set(self, scheduling: dict[str, Any], scale: float, ran: float = 0.0) -> str | None:
        """Set the timer, if there is a limit.

        Parameters
        ----------
        scheduling : dict
            The instance's ``scheduling``.
        scale : float
            Seconds that pass per second of ``maxRunDuration``.
        ran : float
            Seconds that the instance has run already.

        Returns
        -------
        str or None
            When the time will be up, as the instance shows it; None without a limit.
        """
        self.cancel()
        if "maxRunDuration" in scheduling:
            seconds = max(0.0, int(scheduling["maxRunDuration"]["seconds"]) * scale - ran)
            end = now(seconds)
        elif "terminationTime" in scheduling:
            end = str(scheduling["terminationTime"])
            left = moment_of(end) - datetime.now(timezone.utc)
            seconds = max(0.0, left.total_seconds())
        else:
            return None
        self._timer = asyncio.get_running_loop().call_later(seconds, self._ended)
        return end

    def cancel(self) -> None:
        """Stop the timer."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
