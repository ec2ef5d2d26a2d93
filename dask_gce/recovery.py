"""When workers that failed are asked for again, and when no more.

Pure: what happened goes in with its time, what follows comes out. An attempt is everything that was
asked for between two failures that count: four hundred machines refused by one zone are one failed
attempt, not four hundred.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable

from dask_gce.errors import WorkersFailed

__all__ = ["Recovery"]

#: The longest pause after the first failure, in seconds, and how it grows.
FIRST_PAUSE, FACTOR, LONGEST_PAUSE = 2.0, 2.0, 60.0

#: How many times more attempts may fail because Compute Engine took the machines away while they
#: booted. That says nothing against their image or settings, but ends sometime too: each costs.
TAKEN_FACTOR = 4

#: The pause after giving up for a cluster that adapts, in seconds: nobody calls scale() there.
PAUSE_AFTER_LIMIT = 300.0


class Recovery:
    """Decides whether and when failed workers are replaced.

    Parameters
    ----------
    cluster : str
        The cluster's name, for messages.
    limit : int
        How many attempts in a row may fail.
    draw : callable
        Returns a random number from 0 to 1.

    Examples
    --------
    >>> recovery = Recovery("dask-1f", limit=2, draw=lambda: 1.0)
    >>> recovery.failed(ValueError("no machines"), asked=0.0, now=1.0)
    >>> recovery.pause(1.0)
    2.0
    >>> recovery.failed(ValueError("no machines"), asked=0.5, now=1.5)  # of the same attempt
    >>> recovery.exhausted is None
    True
    >>> recovery.failed(ValueError("still none"), asked=3.0, now=4.0)
    >>> print(str(recovery.exhausted).splitlines()[0])
    Starting workers of cluster dask-1f failed 2 times in a row, so no more are started.
    """

    def __init__(
        self, cluster: str, *, limit: int, draw: Callable[[], float] = random.random
    ) -> None:
        self._cluster = cluster
        self._limit = limit
        self._draw = draw
        #: What to tell whoever waits for workers, once no more are started.
        self.exhausted: WorkersFailed | None = None
        #: How many attempts in a row have failed.
        self.attempts = 0
        #: How many of them in a row ended in nothing but preemptions.
        self.taken = 0
        self._since = -math.inf
        self._until = -math.inf
        self._forbidden = False

    def forbid(self, why: str) -> None:
        """Start no more workers, whoever asks.

        Parameters
        ----------
        why : str
            What to tell whoever waits for workers, or asks for more.
        """
        self._forbidden, self._until = True, math.inf
        self.exhausted = WorkersFailed(why)

    def failed(
        self, failure: Exception, *, asked: float, now: float, lasting: bool = False
    ) -> None:
        """Take note of a worker that did not start.

        Parameters
        ----------
        failure : Exception
            Why.
        asked : float
            When the worker was asked for, in seconds of a monotonic clock.
        now : float
            The present, on the same clock.
        lasting : bool
            Whether asking again cannot help, as with a request that is wrong.
        """
        if asked <= self._since or self._forbidden:
            return  # it belongs to an attempt that has been counted
        self._since = now
        self.attempts += 1
        pause = min(LONGEST_PAUSE, FIRST_PAUSE * FACTOR ** (self.attempts - 1))
        self._until = now + pause * (0.5 + 0.5 * self._draw())
        if self.attempts >= self._limit or lasting:
            self._until = now + PAUSE_AFTER_LIMIT
            self.exhausted = WorkersFailed(
                f"Starting workers of cluster {self._cluster} failed {self._times()}, so no more "
                "are started.\nNext step: mend what is said below, then call scale() again. How "
                "many failures in a row are borne is worker_start_failure_limit.\n"
                f"The last failure: {failure}",
            )
            self.exhausted.__cause__ = failure

    def preempted(self, failure: Exception, *, asked: float, now: float) -> None:
        """Take note of a Spot worker that was taken away before it could start.

        Parameters
        ----------
        failure : Exception
            What is known of it.
        asked : float
            When the worker was asked for, in seconds of a monotonic clock.
        now : float
            The present, on the same clock.
        """
        if asked <= self._since or self._forbidden:
            return
        self._since = now
        self.taken += 1
        pause = min(LONGEST_PAUSE, FIRST_PAUSE * FACTOR ** (self.taken - 1))
        self._until = now + pause * (0.5 + 0.5 * self._draw())
        if self.taken >= self._limit * TAKEN_FACTOR:
            self._until = now + PAUSE_AFTER_LIMIT
            self.exhausted = WorkersFailed(
                f"Spot machines of cluster {self._cluster} were preempted {self.taken} times in a "
                "row before a worker had started, so no more are made.\nNext step: call scale() "
                "again later, or make a cluster with other zones or machine types, or with "
                "spot='fallback'. How many failures in a row are borne follows from "
                f"worker_start_failure_limit.\nThe last failure: {failure}",
            )
            self.exhausted.__cause__ = failure

    def _times(self) -> str:
        if self.attempts < self._limit:
            return "in a way that repeating does not mend"
        return "once" if self.attempts == 1 else f"{self.attempts} times in a row"

    def stayed(self, *, asked: float) -> None:
        """Take note of a worker that has started and stayed.

        Parameters
        ----------
        asked : float
            When it was asked for. One that was asked for before the last failure tells nothing.
        """
        if asked > self._since:
            self.reset()

    def reset(self) -> None:
        """Forget all failures: the user asks anew."""
        if self._forbidden:
            return
        self.attempts = self.taken = 0
        self._until = -math.inf
        self.exhausted = None

    def pause(self, now: float) -> float:
        """Return how long to wait before workers are asked for again.

        Parameters
        ----------
        now : float
            The present, in seconds.

        Returns
        -------
        float
            Seconds, 0 for at once.
        """
        return max(0.0, self._until - now)
