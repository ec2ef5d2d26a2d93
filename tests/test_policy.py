"""Repeats: which, when, and until when."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dask_gce.policy import Deadline, Failure, RetryPolicy, parse_retry_after

ALWAYS_LONGEST = RetryPolicy(draw=lambda: 1.0)


@pytest.mark.parametrize(
    "failure",
    [
        Failure(0, message="connection broke"),
        Failure(0, "timeout"),
        Failure(400, "resourceNotReady"),
        Failure(403, "rateLimitExceeded"),
        Failure(403, "userRateLimitExceeded"),
        Failure(408),
        Failure(429),
        Failure(500, "backendError"),
        Failure(502),
        Failure(503, "backendError"),
        Failure(504),
    ],
    ids=str,
)
def test_what_passes_is_repeated(failure: Failure) -> None:
    assert ALWAYS_LONGEST.delay(failure, 0, now=0.0) is not None


@pytest.mark.parametrize(
    "failure",
    [
        Failure(0, "credentials"),
        Failure(0, "garbled"),
        Failure(400, "invalid"),
        Failure(401, "authError"),
        Failure(403, "accessNotConfigured"),
        Failure(403, "forbidden"),
        Failure(403, "quotaExceeded"),
        Failure(404, "notFound"),
        Failure(409, "alreadyExists"),
        Failure(409, "resourceInUseByAnotherResource"),
        Failure(412, "conditionNotMet"),
        Failure(429, "quotaExceeded"),
        Failure(501),
        Failure(503, "ZONE_RESOURCE_POOL_EXHAUSTED"),
        Failure(503, "insufficientCapacity"),
    ],
    ids=str,
)
def test_what_stays_as_it_is_is_not_repeated(failure: Failure) -> None:
    assert ALWAYS_LONGEST.delay(failure, 0, now=0.0) is None


@pytest.mark.parametrize(
    ("failure", "shared"),
    [
        (Failure(403, "rateLimitExceeded"), True),
        (Failure(429), True),
        (Failure(403, "RESOURCE_OPERATION_RATE_EXCEEDED"), False),
        (Failure(403, "quotaExceeded"), False),
        (Failure(503, "backendError"), False),
    ],
    ids=str,
)
def test_only_a_quota_that_is_shared_holds_others_back(failure: Failure, shared: bool) -> None:
    assert failure.over_rate is shared


def test_backoff_grows_to_its_cap_and_stays_there() -> None:
    delays = [
        ALWAYS_LONGEST.delay(Failure(503), attempt, now=0.0) for attempt in (0, 1, 5, 6, 5000)
    ]
    assert delays == [0.5, 1.0, 16.0, 30.0, 30.0]


@given(draw=st.floats(0, 1), attempt=st.integers(0, 100))
def test_jitter_is_full(draw: float, attempt: int) -> None:
    longest = ALWAYS_LONGEST.delay(Failure(503), attempt, now=0.0)
    assert longest is not None
    delay = RetryPolicy(draw=lambda: draw).delay(Failure(503), attempt, now=0.0)
    assert delay == pytest.approx(longest * draw)


@given(now=st.floats(0, 4e9), draw=st.floats(0, 1), attempt=st.integers(0, 20))
def test_a_call_over_the_rate_waits_for_the_next_minute(
    now: float, draw: float, attempt: int
) -> None:
    policy = RetryPolicy(draw=lambda: draw, spread=5.0)
    delay = policy.delay(Failure(403, "rateLimitExceeded"), attempt, now=now)
    assert delay is not None
    assert 0 < delay <= 65
    second = (now + delay) % 60
    # Within the first seconds of a minute; 59.99... is the rounding of a large float.
    assert second <= 5.001 or second >= 59.999


def test_retry_after_wins_over_everything() -> None:
    for failure in (
        Failure(503, retry_after=7.0),
        Failure(403, "rateLimitExceeded", retry_after=7),
    ):
        delay = ALWAYS_LONGEST.delay(failure, 3, now=0.0)
        assert delay is not None
        assert 7.0 <= delay <= 7.5


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        ("0", 0.0),
        (" 12 ", 12.0),
        ("Thu, 01 Jan 1970 00:02:00 GMT", 20.0),
        ("Thu, 01 Jan 1970 00:02:00 -0000", 20.0),
        ("Thu, 01 Jan 1970 00:00:01 GMT", 0.0),
        (None, None),
        ("", None),
        ("-5", None),
        ("1e3", None),
        ("²", None),
        ("Thu, 99 Foo 1970", None),
    ],
)
def test_retry_after(value: str | None, seconds: float | None) -> None:
    assert parse_retry_after(value, now=100.0) == seconds


def test_a_deadline_runs_out() -> None:
    now = 100.0
    deadline = Deadline.after(10, clock=lambda: now)
    assert deadline.remaining == 10
    assert deadline.allows(10)
    assert not deadline.allows(10.1)
    now = 111.0
    assert deadline.remaining == 0
    assert deadline.expired
    assert not deadline.allows(0.1)
