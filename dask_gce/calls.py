"""Calls to Compute Engine with their repeats, for the event loop and for threads without one.

It owns the pool of threads, the queue before it, and the repeating by the rules of `policy`. What
is asked is left to `compute`, the single exchange to `library`, how often to `rates`.

Every attempt first waits for its turn in the bucket of its rate quota, then for a thread: what may
not go out yet must not keep others from going.

Every exchange runs on a thread of a pool of its own, never on the loop's default executor, which
others fill and which is gone when the interpreter exits. At most so many exchanges are under way
at a time; the others wait on the loop, in order, where they can be cancelled.

Cancelling a call: one that waits for a thread, or between two attempts, is not sent (again). One
that is on its way cannot be called back. It runs to its end on its thread and its answer is
dropped, so whoever creates something must know its name beforehand. `settled` waits for whatever
may be creating a name, so that a delete never overtakes the insert that it is to undo.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import functools
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, TypeVar

from dask_gce.clock import Clock
from dask_gce.errors import GCEError, TransportError
from dask_gce.failures import failure_error
from dask_gce.library import Call, ExchangeError, Library
from dask_gce.policy import Deadline, RetryPolicy
from dask_gce.rates import Group, RateBucket, Turn

__all__ = ["Caller"]

T = TypeVar("T")

#: The least time that is worth another attempt, in seconds.
SHORTEST_ATTEMPT = 1.0


class Caller:
    """Makes calls for one event loop, and for threads without one.

    Parameters
    ----------
    library : Library
        Makes the exchanges.
    bucket : callable
        Takes a region, or ``"global"``, and a group of `rates`; returns the bucket of that quota.
    threads : int
        How many exchanges may be under way at a time.
    exchange_timeout : float
        Seconds to wait for a connection, and for each part of an answer.
    call_timeout : float
        Seconds for a call with all its repeats, from its first attempt.
    policy : RetryPolicy
        When to repeat.
    clock : Clock
        How time passes.
    """

    def __init__(
        self,
        library: Library,
        *,
        bucket: Callable[[str, Group], RateBucket],
        threads: int,
        exchange_timeout: float,
        call_timeout: float,
        policy: RetryPolicy,
        clock: Clock,
    ) -> None:
        self.clock = clock
        self._library = library
        # Looked up once: a look-up also sets the bucket's rate, which a newer client may change.
        self._bucket = functools.cache(bucket)
        self._exchange_timeout = exchange_timeout
        self._call_timeout = call_timeout
        self._policy = policy
        self._executor = concurrent.futures.ThreadPoolExecutor(
            threads, thread_name_prefix="dask-gce-compute"
        )
        self._slots = asyncio.Semaphore(threads)
        self._gate = asyncio.Lock()
        self._under_way: set[asyncio.Future[Any]] = set()
        self._creating: dict[str, dict[asyncio.Future[Any], concurrent.futures.Future[Any]]] = {}
        self._loading: concurrent.futures.Future[None] | None = None
        self._masks = True

    def preload(self) -> concurrent.futures.Future[None]:
        """Begin to import the library on a thread, once.

        Returns
        -------
        concurrent.futures.Future
            Done when it is imported.
        """
        if self._loading is None:
            self._loading = self._submit(self._library.load)
        return self._loading

    async def close(self) -> None:
        """Wait for the exchanges under way, end the threads and close all connections."""
        if self._loading is not None:
            # How the import went is told to whoever makes a call.
            await asyncio.gather(asyncio.wrap_future(self._loading), return_exceptions=True)
        while self._under_way:
            await asyncio.wait(set(self._under_way))
        # No thread is busy any more, so joining them does not hold the loop.
        self._executor.shutdown(wait=True)
        self._library.close()

    def close_now(self) -> None:
        """End the threads and close all connections, on the calling thread."""
        self._executor.shutdown(wait=True, cancel_futures=True)
        self._library.close()

    async def answer(
        self,
        call: Call,
        *,
        creates: Sequence[str] = (),
        deadline: Deadline | None = None,
        exchange_timeout: float | None = None,
    ) -> dict[str, Any]:
        """Make a call on a thread, with its repeats.

        Parameters
        ----------
        call : Call
            What to ask.
        creates : sequence of str
            Keys of what the call may create, for `settled`.
        deadline : Deadline or None
            When to give up; None counts the call timeout from the first attempt, but not the time
            in the bucket and the queue: a thousand deletes may take their turn.
        exchange_timeout : float or None
            Seconds for one exchange; None for the usual.

        Returns
        -------
        dict
            The answer as API JSON; empty when a long poll has nothing to tell yet.

        Raises
        ------
        GCEError
            The error of `failures` for the last attempt; TransportError when there was no time for
            a first.
        """
        attempt = 0
        counted = 0.0  # of the next wait, what counts nevertheless: the pause after a refusal
        until = deadline
        last: ExchangeError | None = None
        while True:
            began = self.clock.monotonic()
            turn = await self._turn(call, deadline, last)
            if until is None:
                until = Deadline.after(self._call_timeout, self.clock.monotonic)
            elif deadline is None:
                waited = self.clock.monotonic() - began
                until = replace(until, at=until.at + max(0.0, waited - counted))
            timeout = _attempt_time(exchange_timeout or self._exchange_timeout, until)
            sent = self._masked(call)
            try:
                return await self._on_thread(sent, timeout, creates)
            except ExchangeError as error:
                if call.long_poll and error.failure.reason == "timeout":
                    return {}
                pause = self._pause(call, sent, error, attempt, deadline=until, turn=turn)
                last = error
            counted = pause if last.failure.over_rate else 0.0
            if not last.failure.over_rate:
                await self.clock.sleep(pause)
            attempt += 1

    def answer_now(
        self, call: Call, deadline: Deadline, *, exchange_timeout: float | None = None
    ) -> dict[str, Any]:
        """Make a call on the calling thread, with its repeats.

        Needs neither loop nor pool.

        Parameters
        ----------
        call : Call
            What to ask.
        deadline : Deadline
            When to give up. The time in the bucket counts.
        exchange_timeout : float or None
            Seconds for one exchange; None for the usual.

        Returns
        -------
        dict
            The answer as API JSON; empty when a long poll has nothing to tell yet.

        Raises
        ------
        GCEError
            The error of `failures` for the last attempt; TransportError when there was no time for
            a first.
        """
        if deadline.expired:
            # A thousand deletes must not take a second each after the time is up.
            raise TransportError(f"No time was left to {call.place}; nothing was sent.")
        attempt = 0
        last: ExchangeError | None = None
        while True:
            turn = self._turn_now(call, deadline, last)
            timeout = _attempt_time(exchange_timeout or self._exchange_timeout, deadline)
            sent = self._masked(call)
            try:
                return self._library.exchange(sent, timeout)
            except ExchangeError as error:
                if call.long_poll and error.failure.reason == "timeout":
                    return {}
                pause = self._pause(call, sent, error, attempt, deadline=deadline, turn=turn)
                last = error
            if not last.failure.over_rate:
                self.clock.pause(pause)
            attempt += 1

    async def settled(self, key: str) -> None:
        """Wait until no exchange is under way that may create something.

        Parameters
        ----------
        key : str
            What it may create, as given to `answer`.
        """
        creating = self._creating.get(key)
        if creating:
            await asyncio.wait(set(creating))

    def settled_now(self, key: str, deadline: Deadline) -> None:
        """Do as `settled`, on the calling thread.

        Parameters
        ----------
        key : str
            What an exchange may create.
        deadline : Deadline
            When to give up waiting.
        """
        creating = self._creating.get(key)
        if creating:
            concurrent.futures.wait(list(creating.values()), timeout=deadline.remaining)

    async def _turn(
        self, call: Call, deadline: Deadline | None, last: ExchangeError | None
    ) -> Turn:
        """Wait until the bucket lets an attempt go, and take a slot for it."""
        bucket = self._bucket(_region(call), call.group)
        turn = bucket.reserve()
        try:
            while True:
                while (left := turn.wait()) > 0:
                    if deadline is not None and not deadline.allows(left):
                        raise _no_turn(call, bucket, last)
                    await self.clock.sleep(left)
                await self._slots.acquire()
                if turn.wait() == 0:
                    return turn
                # The bucket was held while the attempt waited for its slot.
                self._slots.release()
        except (asyncio.CancelledError, GCEError):
            # Of a thousand deletes that are called off, the next must not wait out the turns.
            turn.give_back()
            raise

    def _turn_now(self, call: Call, deadline: Deadline, last: ExchangeError | None) -> Turn:
        bucket = self._bucket(_region(call), call.group)
        turn = bucket.reserve()
        while (left := turn.wait()) > 0:
            if not deadline.allows(left):
                raise _no_turn(call, bucket, last)
            self.clock.pause(left)
        return turn

    async def _on_thread(
        self, call: Call, timeout: float, creates: Sequence[str]
    ) -> dict[str, Any]:
        """Run one exchange on a thread; the caller's slot is free again when the thread is."""
        # A thread that starts holds the interpreter for milliseconds. A hundred of them in one turn
        # of the loop would hold everything else for as long as they take together.
        try:
            await self._gate.acquire()
        except asyncio.CancelledError:
            self._slots.release()
            raise
        try:
            running = self._begin(call, timeout, creates)
            await asyncio.sleep(0)
        finally:
            self._gate.release()
        # The shield keeps the exchange, and what is noted of it, when its caller is cancelled.
        return await asyncio.shield(running)

    def _begin(
        self, call: Call, timeout: float, creates: Sequence[str]
    ) -> asyncio.Future[dict[str, Any]]:
        try:
            future = self._submit(functools.partial(self._library.exchange, call, timeout))
        except TransportError:
            self._slots.release()
            raise
        running = asyncio.wrap_future(future)
        self._under_way.add(running)
        for key in creates:
            self._creating.setdefault(key, {})[running] = future

        def settle(_: asyncio.Future[Any]) -> None:
            if not running.cancelled():
                running.exception()  # whoever was cancelled does not ask how it ended
            self._slots.release()
            self._under_way.discard(running)
            for key in creates:
                del self._creating[key][running]
                if not self._creating[key]:
                    del self._creating[key]

        running.add_done_callback(settle)
        return running

    def _submit(self, work: Callable[[], T]) -> concurrent.futures.Future[T]:
        try:
            return self._executor.submit(work)
        except RuntimeError as error:
            raise TransportError(
                "The Compute client is closed, or the interpreter is exiting; nothing was sent."
            ) from error

    def _masked(self, call: Call) -> Call:
        return call if self._masks else replace(call, mask="")

    def _pause(
        self,
        call: Call,
        sent: Call,
        error: ExchangeError,
        attempt: int,
        *,
        deadline: Deadline,
        turn: Turn,
    ) -> float:
        """Return how long to wait before the next attempt, or raise if there is none.

        Over the rate, the bucket is held for as long, and the next turn brings the pause with it.
        """
        failure = error.failure
        if failure.status == 400 and call.mask:
            # A mask only saves traffic: where an API refuses ours, whole answers do as well. Where
            # it refuses the request without one too, the mask was not to blame.
            self._masks = not sent.mask
            if sent.mask:
                return 0.0
        pause = self._policy.delay(failure, attempt, now=self.clock.time())
        left = deadline.remaining - SHORTEST_ATTEMPT
        if pause is not None and failure.over_rate:
            turn.hold(pause)
        elif pause is not None and failure.retry_after is None:
            # A backoff may be shorter, what the server wants may not. So the last attempt comes
            # right before the deadline, and not up to a longest backoff earlier.
            pause = min(pause, max(left, SHORTEST_ATTEMPT))
        if pause is None or pause > left:
            raise failure_error(failure, call.place) from error.__cause__
        return pause


def _attempt_time(usual: float, deadline: Deadline) -> float:
    return min(usual, max(deadline.remaining, SHORTEST_ATTEMPT))


def _region(call: Call) -> str:
    zone = call.place.zone
    return zone.rpartition("-")[0] or zone or "global"


def _no_turn(call: Call, bucket: RateBucket, last: ExchangeError | None) -> GCEError:
    if last is not None:
        error = failure_error(last.failure, call.place)
        error.__cause__ = last.__cause__
        return error
    return TransportError(
        f"The limit of {bucket.rate:g} requests a second left no time to {call.place}; nothing was "
        "sent."
    )
