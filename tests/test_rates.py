"""The buckets of Compute Engine's rate quotas."""

from __future__ import annotations

import math
import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scripted_api import FastClock

from dask_gce.clock import Clock
from dask_gce.rates import Group, RateBucket, rate_bucket


class StillClock(Clock):
    """Time passes when the test says so."""

    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock() -> StillClock:
    return StillClock()


def waits(bucket: RateBucket, count: int) -> list[float]:
    return [bucket.reserve().wait() for _ in range(count)]


def test_a_second_s_worth_at_once_and_then_the_rate(clock: StillClock) -> None:
    bucket = RateBucket(4.0, clock=clock)
    assert waits(bucket, 7) == [0, 0, 0, 0, 0.25, 0.5, 0.75]
    clock.now += 0.75
    assert waits(bucket, 1) == [0.25]
    clock.now += 3600  # a pause saves up a second's worth, not an hour's
    assert waits(bucket, 5) == [0, 0, 0, 0, 0.25]


def test_a_slow_rate_lets_the_first_go(clock: StillClock) -> None:
    assert waits(RateBucket(0.1, clock=clock), 3) == pytest.approx([0, 10, 20])


def test_no_limit(clock: StillClock) -> None:
    bucket = RateBucket(math.inf, clock=clock)
    assert waits(bucket, 1000) == [0] * 1000
    clock.now += 1
    assert waits(bucket, 1000) == [0] * 1000
    bucket.hold(5)
    assert waits(bucket, 1000) == [5] * 1000
    clock.now += 6
    assert waits(bucket, 1000) == [0] * 1000


@given(
    rate=st.floats(0.01, 1000),
    pauses=st.lists(st.floats(0, 5), min_size=1, max_size=200),
)
def test_no_window_holds_more_than_rate_and_burst(rate: float, pauses: list[float]) -> None:
    clock = StillClock()
    bucket = RateBucket(rate, clock=clock)
    times = []
    for pause in pauses:
        clock.now += pause
        times.append(clock.now + bucket.reserve().wait())
    assert times == sorted(times)  # in the order of arrival
    for first in range(0, len(times), 7):
        for last in range(first, len(times), 5):
            most = max(1.0, rate) + rate * (times[last] - times[first])
            assert last - first + 1 <= most * (1 + 1e-6) + 1e-6


def test_a_hold_makes_everybody_wait_and_then_go_one_by_one(clock: StillClock) -> None:
    bucket = RateBucket(4.0, clock=clock)
    turns = [bucket.reserve() for _ in range(8)]
    assert turns[7].wait() == 1.0
    bucket.hold(30)
    # Those who had a place take a new one when they wake up, and so do those who might have gone.
    assert [turn.wait() for turn in turns[4:]] == [30, 30.25, 30.5, 30.75]
    assert [turn.wait() for turn in turns[4:]] == [30, 30.25, 30.5, 30.75]
    assert turns[0].wait() == 31.0
    assert waits(bucket, 1) == [31.25]
    clock.now += 31.25
    assert waits(bucket, 1) == [0.25]


def test_one_refusal_of_many_under_way_tells_enough(clock: StillClock) -> None:
    bucket = RateBucket(4.0, clock=clock)
    first, second = bucket.reserve(), bucket.reserve()
    first.hold(30)
    second.hold(35)  # went out before the hold as well
    late = bucket.reserve()
    assert late.wait() == 30
    clock.now += 30
    late.hold(60)  # the minute is used up again
    assert waits(bucket, 2) == [60, 60.25]


def test_a_shorter_hold_does_not_end_a_longer_one(clock: StillClock) -> None:
    bucket = RateBucket(4.0, clock=clock)
    bucket.hold(30)
    bucket.hold(10)
    assert waits(bucket, 1) == [30]


def test_the_newest_rate_wins(clock: StillClock) -> None:
    slow = rate_bucket("http://e", "p", "r", "write", 1.0, clock=clock)
    assert waits(slow, 3) == [0, 1, 2]
    fast = rate_bucket("http://e", "p", "r", "write", 10.0, clock=clock)
    assert fast is slow
    # What was promised stands, and is waited off at the new rate.
    assert waits(fast, 1) == pytest.approx([0.3])
    clock.now += 100
    assert waits(fast, 11) == pytest.approx([0] * 10 + [0.1])
    assert waits(rate_bucket("http://e", "p", "r", "write", math.inf, clock=clock), 1) == [0]
    clock.now += 1
    again = rate_bucket("http://e", "p", "r", "write", 2.0, clock=clock)
    assert waits(again, 3) == [0, 0, 0.5]


def test_each_quota_has_its_bucket_and_the_process_shares_it() -> None:
    clock = FastClock()
    keys: list[tuple[str | None, str, str, Group]] = [
        (None, "p", "us-central1", "write"),
        (None, "p", "us-central1", "read"),
        (None, "p", "us-central1", "operation"),
        (None, "p", "us-central1", "heavy"),
        (None, "p", "europe-west1", "write"),
        (None, "q", "us-central1", "write"),
        ("http://e", "p", "us-central1", "write"),
    ]
    buckets = [rate_bucket(*key, 20.0, clock=clock) for key in keys]
    assert len(set(map(id, buckets))) == len(keys)
    assert [rate_bucket(*key, 20.0, clock=clock) for key in keys] == buckets
    assert rate_bucket(*keys[0], 20.0, clock=FastClock()) is not buckets[0]


@pytest.mark.parametrize("rate", [0.0, -1.0, math.nan])
def test_a_rate_is_above_zero(rate: float) -> None:
    with pytest.raises(ValueError, match="above zero"):
        RateBucket(rate)
    with pytest.raises(ValueError, match="above zero"):
        rate_bucket(None, f"p{rate}", "r", "write", rate)


def test_threads_never_get_the_same_place(clock: StillClock) -> None:
    bucket = RateBucket(1.0, clock=clock)
    found: list[float] = []

    def work() -> None:
        found.extend(waits(bucket, 500))

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(found) == [float(number) for number in range(2000)]
