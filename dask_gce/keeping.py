"""Clusters that outlive a call: kept for some time, and lent to whoever needs the same.

Owns: which clusters of this process are kept, who uses them, and when they end. All of that lives
in one event loop in a thread of its own, so that calls from any thread and from any event loop
share clusters, and nothing but that loop's start and end needs a lock. How a cluster is made is
left to `need`; that nothing is left when the interpreter ends, to the cluster itself.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import logging
import os
import threading
from typing import Any, Final

from distributed.core import Status
from distributed.deploy.spec import SpecCluster
from distributed.utils import LoopRunner

from dask_gce.errors import GCEError
from dask_gce.need import Need, begin, make_cluster, start
from dask_gce.probing import UNREACHABLE

__all__ = ["CLOSING_ERRORS", "Keeper", "Loan", "aclose", "keeper", "log_failed_close"]

logger = logging.getLogger(__name__)

#: What closing a cluster or a client may raise. On Python 3.10 asyncio's timeout is no OSError.
CLOSING_ERRORS: Final = (GCEError, OSError, RuntimeError, asyncio.TimeoutError)

#: Seconds in which a kept scheduler must answer to be lent again. One that is busy with a large
#: graph takes some; taking it for lost costs another cluster, but nobody's work.
ANSWERS_WITHIN: Final = 10.0


#: Seconds by which a kept cluster's own limits are held off for longer than it is kept.
LEEWAY: Final = 60.0


class Kept:
    """A cluster that is kept, and what there is to know of it.

    Parameters
    ----------
    need : Need
        What it was made for.
    """

    def __init__(self, need: Need) -> None:
        self.need = need
        self.users = 0
        #: Until when it is kept, on the loop's clock.
        self.until = 0.0
        #: Whether it is lent no more, since its scheduler does not answer.
        self.lost = False
        self.starting: asyncio.Task[SpecCluster]
        self.closing: asyncio.Task[None] | None = None
        self.timer: asyncio.TimerHandle | None = None
        #: Has the cluster's own limits wait for as long.
        self.holding: asyncio.Task[None] | None = None

    @property
    def started(self) -> SpecCluster | None:
        """The cluster, if it has started."""
        done = self.starting.done() and not self.starting.cancelled()
        return self.starting.result() if done and self.starting.exception() is None else None


class Loan:
    """The use of a kept cluster, from the wish for it until it is given back.

    Parameters
    ----------
    keeper : Keeper
        Whose clusters these are.
    need : Need
        What is needed.
    """

    def __init__(self, keeper: Keeper, need: Need) -> None:
        self.need = need
        self.kept: Kept | None = None
        #: Whether it was given back; in the keeper's loop.
        self.is_over = False
        self._keeper = keeper
        self._task: asyncio.Task[SpecCluster] | None = None
        #: The cluster, as soon as it can be used.
        self.ready: concurrent.futures.Future[SpecCluster] = concurrent.futures.Future()
        self._loop: asyncio.AbstractEventLoop | None = None

    def ask(self) -> None:
        """Ask for the cluster.

        Not done by the constructor: Ctrl-C may come at any moment, and from the first one on the
        loan must be known to whoever gives it back.
        """
        self._loop = self._keeper.hold()
        self._loop.call_soon_threadsafe(self._begin)

    def give_back(self) -> None:
        """End the use, or the wait for it. From any thread; a second time does nothing."""
        if self._loop is None:
            return
        with contextlib.suppress(RuntimeError):  # the loop has ended, after the first time
            self._loop.call_soon_threadsafe(self._end)

    def _begin(self) -> None:
        if not self.is_over:
            self._task = asyncio.ensure_future(self._keeper.lend(self))
            self._task.add_done_callback(self._tell)

    def _tell(self, task: asyncio.Task[SpecCluster]) -> None:
        error = concurrent.futures.CancelledError() if task.cancelled() else task.exception()
        if not self.ready.set_running_or_notify_cancel():
            return  # nobody waits any more
        if error is not None:
            self.ready.set_exception(error)
        else:
            self.ready.set_result(task.result())

    def _end(self) -> None:
        if self.is_over:
            return
        self.is_over = True
        if self._task is not None:
            self._task.cancel()
        self._keeper.take_back(self)
        self._keeper.release()


class Keeper:
    """The kept clusters of this process."""

    def __init__(self) -> None:
        self._clusters: list[Kept] = []
        self._lock = threading.Lock()
        self._runner: LoopRunner | None = None
        # Loans and clusters that need the loop.
        self._holds = 0

    def hold(self) -> asyncio.AbstractEventLoop:
        """Keep the loop running, or start it; from any thread.

        Returns
        -------
        asyncio.AbstractEventLoop
            The loop, which runs until it is released as often as it was held.
        """
        with self._lock:
            if self._runner is None:
                runner = LoopRunner()
                runner.start()
                self._runner = runner  # once it runs: Ctrl-C may have come meanwhile
            self._holds += 1
            loop: asyncio.AbstractEventLoop = self._runner.loop.asyncio_loop
            return loop

    def release(self) -> None:
        """Let the loop end when nobody else holds it; in the loop."""
        with self._lock:
            self._holds -= 1
            if self._holds or self._runner is None:
                return
            runner, self._runner = self._runner, None
        # The loop's own thread cannot wait for its end.
        threading.Thread(target=runner.stop, name="IO loop's end").start()

    async def lend(self, loan: Loan) -> SpecCluster:
        """Find or make the cluster for a loan; in the keeper's loop.

        Parameters
        ----------
        loan : Loan
            The loan.

        Returns
        -------
        distributed.SpecCluster
            The cluster, running.
        """
        kept = await self._find(loan.need)
        kept.users += 1
        if kept.timer is not None:
            kept.timer.cancel()
        loan.kept = kept
        try:
            if loan.is_over:
                # Before Python 3.12 wait_for can swallow the cancellation that ends this.
                raise asyncio.CancelledError
            return await asyncio.shield(kept.starting)
        except BaseException:
            self.take_back(loan)
            raise

    def take_back(self, loan: Loan) -> None:
        """End a loan; in the keeper's loop. A second time does nothing.

        Parameters
        ----------
        loan : Loan
            The loan.
        """
        kept, loan.kept = loan.kept, None
        if kept is None:
            return
        kept.users -= 1
        loop = asyncio.get_running_loop()
        kept.until = max(kept.until, loop.time() + loan.need.keep_alive)
        if kept.users:
            return
        if not kept.starting.done():
            # Nobody waits for it any more, and nobody is to join it now.
            self._clusters.remove(kept)
            kept.starting.cancel()
        elif kept.lost:
            self._end(kept)
        else:
            kept.timer = loop.call_at(kept.until, self._end, kept)
            self._hold_off(kept, kept.until - loop.time())

    def _hold_off(self, kept: Kept, seconds: float) -> None:
        """Have a cluster that idles while it is kept not end for that."""
        # A cluster on this computer has no limits.
        keep_alive = getattr(kept.started, "keep_alive", None)
        if keep_alive is None or seconds <= 0:
            return
        before = kept.holding

        async def hold() -> None:
            if before is not None:
                await asyncio.wait({before})
            try:
                await keep_alive(seconds + LEEWAY)
            except (*CLOSING_ERRORS, *UNREACHABLE) as error:
                logger.info("Cluster %s may end before its time: %s", kept.started, error)

        kept.holding = asyncio.ensure_future(hold())

    async def _find(self, need: Need) -> Kept:
        """Return a kept cluster that answers a need, one that is there or a new one."""
        while True:
            equals = [each for each in self._clusters if each.need == need]
            usable = [each for each in equals if each.closing is None and not each.lost]
            ending = [each.closing for each in equals if each.closing is not None]
            if usable:
                kept = usable[0]
                if kept.started is None:
                    return kept
                if not await self._answers(kept.started):
                    kept.lost = True
                if kept.lost and not kept.users:
                    self._end(kept)
                elif not kept.lost and kept.closing is None:
                    return kept
            elif ending and need.settings.name is not None:
                # The next one will have its name.
                await asyncio.wait(ending)
            else:
                return self._make(need)

    def _make(self, need: Need) -> Kept:
        kept = Kept(need)
        self._clusters.append(kept)
        self.hold()
        kept.starting = asyncio.ensure_future(self._start(kept))
        # Whoever waits is told; if nobody does, that is no error of its own.
        kept.starting.add_done_callback(lambda task: task.cancelled() or task.exception())
        return kept

    async def _start(self, kept: Kept) -> SpecCluster:
        cluster: Any = None
        try:
            cluster = make_cluster(kept.need, asynchronous=True)
            await start(cluster)
            if begin(kept.need, cluster):
                await cluster.wait_for_workers(1)
        except BaseException:
            if kept in self._clusters:
                self._clusters.remove(kept)
            if cluster is not None:
                await aclose(cluster)
            self.release()
            raise
        started: SpecCluster = cluster
        return started

    async def _answers(self, cluster: Any) -> bool:
        """Tell whether a cluster's scheduler is still there."""
        if cluster.status != Status.running:
            return False
        # Where nothing listens, Dask would go on trying for half a minute. The scheduler of a
        # cluster on this computer is in this process: there is no way to it that could be lost.
        reaches_scheduler = getattr(cluster, "reaches_scheduler", None)
        if reaches_scheduler is not None and not await reaches_scheduler():
            logger.warning("Cluster %s is not used again: its scheduler is gone.", cluster.name)
            return False
        # As the cluster itself asks it, with an answer of a few bytes.
        asking = cluster.scheduler_comm.get_metadata(keys=["cluster-manager-info"], default={})
        try:
            await asyncio.wait_for(asking, ANSWERS_WITHIN)
        except (*UNREACHABLE, asyncio.TimeoutError) as error:
            logger.warning("Cluster %s is not used again: %s", cluster.name, error)
            return False
        return True

    def _end(self, kept: Kept) -> asyncio.Task[None]:
        if kept.closing is None:
            kept.closing = asyncio.ensure_future(self._close(kept))
        return kept.closing

    async def _close(self, kept: Kept) -> None:
        if kept.holding is not None:
            await asyncio.wait({kept.holding})
        if kept.started is not None:
            await aclose(kept.started)
        self._clusters.remove(kept)
        self.release()


async def aclose(closable: Any) -> None:
    """Close a client or a cluster, and log what fails: what went before counts for more.

    A cluster that could not delete its machines tries again when the interpreter ends.

    Parameters
    ----------
    closable : distributed.Client or distributed.SpecCluster
        What to close, asynchronous.
    """
    try:
        await closable.close()
    except CLOSING_ERRORS as error:
        log_failed_close(closable, error)


def log_failed_close(closable: object, error: Exception) -> None:
    """Log that something could not be closed.

    Parameters
    ----------
    closable : object
        What could not be closed.
    error : Exception
        Why.
    """
    logger.error("%r could not be closed: %s", closable, str(error) or repr(error))


# Those of other processes were inherited by a fork: not ours to use, but alive, so that none of
# their clusters is finalized here.
_keepers: dict[int, Keeper] = {}


def keeper() -> Keeper:
    """Return the keeper of this process.

    Returns
    -------
    Keeper
        The keeper; a forked child has one of its own.
    """
    return _keepers.setdefault(os.getpid(), Keeper())
