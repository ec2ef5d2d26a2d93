"""How time passes for calls to Compute Engine, so that a test can make it pass faster."""

from __future__ import annotations

import asyncio
import time

__all__ = ["SYSTEM_CLOCK", "Clock"]


class Clock:
    """How time passes; a test can make it pass faster."""

    def monotonic(self) -> float:
        """Return seconds that never go back.

        Returns
        -------
        float
            Seconds since some moment.
        """
        return time.monotonic()

    def time(self) -> float:
        """Return the wall clock.

        Returns
        -------
        float
            Seconds since the epoch.
        """
        return time.time()

    async def sleep(self, seconds: float) -> None:
        """Wait on the event loop.

        Parameters
        ----------
        seconds : float
            How long.
        """
        await asyncio.sleep(seconds)

    def pause(self, seconds: float) -> None:
        """Wait on the calling thread.

        Parameters
        ----------
        seconds : float
            How long.
        """
        time.sleep(seconds)


#: The one that everything shares which does not bring its own.
SYSTEM_CLOCK = Clock()
