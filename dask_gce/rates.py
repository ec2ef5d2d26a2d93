"""How often this process asks Compute Engine: one bucket for each of Google's rate quotas.

Compute Engine counts requests by project, region and group of methods, each minute anew, and
answers what is too much with ``rateLimitExceeded`` (https://cloud.google.com/compute/api-quota).
All clusters of a process share these quotas, on whatever loop or thread they live, so the buckets
belong to the process and need neither. Only the arithmetic is here: waiting is left to `calls`, how
long a refusal holds everything back to `policy`.
"""

from __future__ import annotations

import threading
from typing import Literal

from dask_gce.clock import SYSTEM_CLOCK, Clock

__all__ = ["Group", "RateBucket", "Turn", "rate_bucket"]

#: The quotas that our calls are charged to: changes, of which reading guest attributes counts as
#: one; reads of resources; reads of operations; waits and lists over all zones.
Group = Literal["write", "read", "operation", "heavy"]

#: How much of the rate may be used at once after a pause, in seconds' worth.
BURST = 1.0


class Turn:
    """A place in the order of a bucket's requests; made by :meth:`RateBucket.reserve`."""

    __slots__ = ("_at", "_bucket", "_epoch")

    def __init__(self, bucket: RateBucket) -> None:
        self._bucket = bucket
        self._at, self._epoch = bucket._place()

    def wait(self) -> float:
        """Return the seconds until the request may go out; zero when it may.

        To be asked again after waiting, and right before the request goes out: where the bucket was
        held since, the place is lost and a new one is taken.

        Returns
        -------
        float
            Seconds.
        """
        if self._epoch != self._bucket._epoch:
            self._at, self._epoch = self._bucket._place()
        return max(0.0, self._at - self._bucket._clock.monotonic())

    def hold(self, seconds: float) -> None:
        """Hold the bucket, because this turn's request was refused for the rate.

        Does nothing where it was held since the request went out: of a hundred requests that are
        under way when the minute's share is used up, each is refused, and one of them tells enough.

        Parameters
        ----------
        seconds : float
            How long nothing may go out.
        """
        self._bucket._hold(seconds, self._epoch)

    def give_back(self) -> None:
        """Let another request have the place: this turn's does not go out."""
        self._bucket._give_back(self._epoch)


class RateBucket:
    """A token bucket: a second's worth of requests at once, then so many a second.

    Safe to use from several threads.

    Parameters
    ----------
    rate : float
        Requests a second; ``math.inf`` for no limit.
    clock : Clock
        How time passes.

    Raises
    ------
    ValueError
        The rate is not above zero.

    Examples
    --------
    >>> bucket = RateBucket(2.0)
    >>> [round(bucket.reserve().wait(), 1) for _ in range(4)]
    [0.0, 0.0, 0.5, 1.0]
    """

    def __init__(self, rate: float, *, clock: Clock = SYSTEM_CLOCK) -> None:
        self._lock = threading.Lock()
        self._clock = clock
        self._rate = _checked(rate)
        self._tokens = self._burst
        #: As of when there are so many tokens. In the future while the bucket is held.
        self._as_of = clock.monotonic()
        #: How often it was held. The turns from before a hold are void.
        self._epoch = 0

    @property
    def rate(self) -> float:
        """Requests a second."""
        return self._rate

    @rate.setter
    def rate(self, rate: float) -> None:
        with self._lock:
            self._refill()
            self._rate = _checked(rate)
            self._tokens = min(self._tokens, self._burst)

    def reserve(self) -> Turn:
        """Take the next place in the order of requests.

        Returns
        -------
        Turn
            The place. One that is not used is lost, unless it is given back.
        """
        return Turn(self)

    def hold(self, seconds: float) -> None:
        """Let nothing go out for a while, and after it one request at a time, at the rate.

        Parameters
        ----------
        seconds : float
            How long. A longer hold that is in force stays.
        """
        self._hold(seconds, None)

    @property
    def _burst(self) -> float:
        return max(1.0, self._rate * BURST)

    def _refill(self) -> None:
        passed = self._clock.monotonic() - self._as_of
        if passed > 0:  # also keeps zero times infinity out
            self._tokens = min(self._burst, self._tokens + passed * self._rate)
            self._as_of += passed

    def _place(self) -> tuple[float, int]:
        """Return when the next request may go out, and the epoch for which that holds."""
        with self._lock:
            self._refill()
            self._tokens -= 1.0
            return self._as_of + max(0.0, -self._tokens) / self._rate, self._epoch

    def _give_back(self, epoch: int) -> None:
        with self._lock:
            if epoch == self._epoch:
                self._refill()
                self._tokens = min(self._burst, self._tokens + 1.0)

    def _hold(self, seconds: float, epoch: int | None) -> None:
        with self._lock:
            if epoch is not None and epoch != self._epoch:
                return
            self._refill()
            self._as_of = max(self._as_of, self._clock.monotonic() + seconds)
            # One request at the end of the hold; those that have waited must not go all at once.
            self._tokens = 1.0
            self._epoch += 1


def _checked(rate: float) -> float:
    if not rate > 0:
        raise ValueError(f"a rate must be above zero, not {rate!r}")
    return rate


_buckets: dict[tuple[str, str, str, Group, Clock], RateBucket] = {}
_buckets_lock = threading.Lock()


def rate_bucket(
    endpoint: str | None,
    project: str,
    region: str,
    group: Group,
    rate: float,
    *,
    clock: Clock = SYSTEM_CLOCK,
) -> RateBucket:
    """Return this process's bucket for one of Compute Engine's rate quotas.

    Where the bucket is there already with another rate, the newest rate wins, for everybody: who
    sets another one has a reason, and a cluster that was closed long ago must not slow the rest.

    Parameters
    ----------
    endpoint : str or None
        The API's address; None for Google's own.
    project : str
        Project ID.
    region : str
        The region; ``"global"`` for what has none.
    group : str
        ``"write"``, ``"read"``, ``"operation"`` or ``"heavy"``.
    rate : float
        Requests a second; ``math.inf`` for no limit.
    clock : Clock
        How time passes. Clients with different clocks share nothing.

    Returns
    -------
    RateBucket
        The same one for the same arguments but `rate`.

    Raises
    ------
    ValueError
        The rate is not above zero.

    Examples
    --------
    >>> bucket = rate_bucket(None, "my-project", "us-central1", "write", 20.0)
    >>> rate_bucket(None, "my-project", "us-central1", "write", 5.0) is bucket
    True
    >>> bucket.rate
    5.0
    """
    key = (endpoint or "", project, region, group, clock)
    with _buckets_lock:
        bucket = _buckets.get(key)
        if bucket is None:
            bucket = _buckets[key] = RateBucket(rate, clock=clock)
        elif bucket.rate != rate:
            bucket.rate = rate
    return bucket
