"""Which failed calls are repeated, and after how long.

Pure: a failed exchange goes in, a delay comes out. Which error it becomes is left to `failures`,
making calls, sleeping and waiting to `calls`.

A call is repeated only if doing it twice cannot do harm: every read, and every change that carries
a ``requestId``, by which Compute Engine recognises a request that it has already accepted.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timezone
from email.utils import parsedate_to_datetime

__all__ = [
    "CAPACITY_CODES",
    "QUOTA_CODES",
    "RATE_CODES",
    "Deadline",
    "Failure",
    "RetryPolicy",
    "parse_retry_after",
]

#: The zone or region has no machine of that type to give: reasons and operation error codes.
CAPACITY_CODES = frozenset(
    {
        "GPU_STOCKOUT",
        "REGION_RESOURCE_POOL_EXHAUSTED",
        "RESOURCE_POOL_EXHAUSTED",
        "ZONE_RESOURCE_POOL_EXHAUSTED",
        "ZONE_RESOURCE_POOL_EXHAUSTED_WITH_DETAILS",
        "insufficientCapacity",
    }
)
#: A quota of the project does not suffice.
QUOTA_CODES = frozenset({"QUOTA_EXCEEDED", "quotaExceeded"})
#: Too many changes to one resource.
RESOURCE_RATE_CODES = frozenset({"RESOURCE_OPERATION_RATE_EXCEEDED"})
#: Too many requests, or too many changes to one resource.
RATE_CODES = RESOURCE_RATE_CODES | {
    "RATE_LIMIT_EXCEEDED",
    "rateLimitExceeded",
    "userRateLimitExceeded",
}
#: Statuses that say nothing against the same request a little later (https://google.aip.dev/194).
PASSING_STATUSES = frozenset({408, 500, 502, 503, 504})
#: A 400 that passes: the resource is still being made or changed by another operation.
PASSING_REASONS = frozenset({"resourceNotReady"})


#: Without an answer of Compute Engine: no access token, or something else answered.
LASTING_REASONS = frozenset({"credentials", "garbled"})


@dataclass(frozen=True)
class Deadline:
    """A moment after which waiting ends.

    Parameters
    ----------
    at : float
        The moment, in seconds of the clock.
    clock : callable
        Returns the present in seconds and never goes back.

    Examples
    --------
    >>> deadline = Deadline.after(5, clock=lambda: 100.0)
    >>> deadline.remaining
    5.0
    >>> deadline.allows(5), deadline.allows(6)
    (True, False)
    """

    at: float
    clock: Callable[[], float] = time.monotonic

    @classmethod
    def after(cls, seconds: float, clock: Callable[[], float] = time.monotonic) -> Deadline:
        """Return the deadline that many seconds from now.

        Parameters
        ----------
        seconds : float
            Time from now, in seconds.
        clock : callable
            Returns the present in seconds and never goes back.

        Returns
        -------
        Deadline
            The deadline.
        """
        return cls(clock() + seconds, clock)

    @property
    def remaining(self) -> float:
        """Seconds left, never negative."""
        return max(0.0, self.at - self.clock())

    @property
    def expired(self) -> bool:
        """Whether no time is left."""
        return self.remaining <= 0

    def allows(self, seconds: float) -> bool:
        """Tell whether something of that length ends in time.

        Parameters
        ----------
        seconds : float
            The length, in seconds.

        Returns
        -------
        bool
            Whether at least that much time is left.
        """
        return seconds <= self.remaining


@dataclass(frozen=True)
class Failure:
    """One exchange with Compute Engine that did not succeed.

    Parameters
    ----------
    status : int
        The HTTP status; 0 when no answer came.
    reason : str
        Google's reason, for example ``"rateLimitExceeded"``. With status 0: ``"credentials"`` when
        no access token could be had, ``"timeout"`` when the answer was late, ``"garbled"`` when it
        was not one of Compute Engine, else empty.
    message : str
        Google's sentence, or what the connection suffered.
    method : str
        The HTTP method.
    url : str
        The address that was asked.
    retry_after : float or None
        Seconds the server asked to wait; None when it did not say.
    """

    status: int
    reason: str = ""
    message: str = ""
    method: str = ""
    url: str = ""
    retry_after: float | None = None

    @property
    def rate_limited(self) -> bool:
        """Whether this minute's share of requests is used up."""
        return self.reason in RATE_CODES or (self.status == 429 and self.reason not in QUOTA_CODES)

    @property
    def over_rate(self) -> bool:
        """Whether what is used up is shared, so that other requests would be refused as well."""
        return self.rate_limited and self.reason not in RESOURCE_RATE_CODES

    @property
    def passing(self) -> bool:
        """Whether the same request may succeed a little later."""
        if self.reason in CAPACITY_CODES or self.reason in QUOTA_CODES:
            return False
        if self.status == 0:
            return self.reason not in LASTING_REASONS
        return (
            self.rate_limited
            or self.status in PASSING_STATUSES
            or (self.status == 400 and self.reason in PASSING_REASONS)
        )


@dataclass(frozen=True)
class RetryPolicy:
    """How long to wait before a call is repeated.

    Exponential backoff with full jitter
    (https://aws.amazon.com/blogs/architecture/exponential-backoff-and-jitter/). Compute Engine
    refills its rate quotas at each minute boundary (https://cloud.google.com/compute/api-quota),
    so a call over the limit waits for the next one.

    Parameters
    ----------
    first : float
        The longest first delay, in seconds.
    factor : float
        How much the longest delay grows each time.
    cap : float
        The longest delay of all, in seconds.
    spread : float
        Calls that wait for a new minute are spread over this many seconds of it.
    draw : callable
        Returns a random number from 0 to 1.

    Examples
    --------
    >>> policy = RetryPolicy(draw=lambda: 1.0)
    >>> [policy.delay(Failure(503), attempt, now=0.0) for attempt in range(4)]
    [0.5, 1.0, 2.0, 4.0]
    >>> policy.delay(Failure(403, "rateLimitExceeded"), 0, now=50.0)
    15.0
    >>> policy.delay(Failure(404), 0, now=0.0) is None
    True
    """

    first: float = 0.5
    factor: float = 2.0
    cap: float = 30.0
    spread: float = 5.0
    draw: Callable[[], float] = random.random

    def delay(self, failure: Failure, attempt: int, *, now: float) -> float | None:
        """Return how long to wait before the next attempt.

        Parameters
        ----------
        failure : Failure
            What went wrong.
        attempt : int
            How many repeats there were before, from 0.
        now : float
            The wall clock, in seconds since the epoch.

        Returns
        -------
        float or None
            Seconds to wait; None when the call must not be repeated.
        """
        if not failure.passing:
            return None
        # min() on the exponent too: a float overflows after about a thousand attempts.
        backoff = min(self.cap, self.first * self.factor ** min(attempt, 64)) * self.draw()
        if failure.retry_after is not None:
            return failure.retry_after + min(self.first, backoff)
        if failure.rate_limited:
            return 60.0 - now % 60.0 + self.spread * self.draw()
        return backoff


def parse_retry_after(value: str | None, *, now: float) -> float | None:
    """Return the seconds a ``Retry-After`` header asks for.

    Parameters
    ----------
    value : str or None
        The header: seconds or an HTTP date (RFC 9110, section 10.2.3).
    now : float
        The wall clock, in seconds since the epoch.

    Returns
    -------
    float or None
        Seconds from now, never negative; None when the header is missing or means nothing.

    Examples
    --------
    >>> parse_retry_after("7", now=0.0)
    7.0
    >>> parse_retry_after("Thu, 01 Jan 1970 00:01:00 GMT", now=20.0)
    40.0
    >>> parse_retry_after("soon", now=0.0) is None
    True
    """
    if value is None:
        return None
    text = value.strip()
    if text.isascii() and text.isdigit():
        return float(text)
    try:
        moment = parsedate_to_datetime(text)
    except ValueError:
        return None
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=timezone.utc)
    return max(0.0, moment.timestamp() - now)
