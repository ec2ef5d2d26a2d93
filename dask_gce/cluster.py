"""The cluster: what a user makes, scales and closes.

Owns the order of things: what is found out before the first machine, what runs while the cluster
lives, and that everything is gone afterwards, whichever way it ends. How one machine is made is in
`blueprint`, how all of them are watched and removed in `fleet`.
"""

from __future__ import annotations

import asyncio
import logging
import math
import operator
import weakref
from collections.abc import Generator, Mapping
from typing import Any

from dask.utils import parse_timedelta
from distributed.core import Status
from distributed.deploy.adaptive import Adaptive
from distributed.deploy.cluster import Cluster
from distributed.deploy.spec import SpecCluster

from dask_gce import names
from dask_gce.blueprint import Blueprint
from dask_gce.compute import Compute
from dask_gce.errors import GCEError, SettingsError
from dask_gce.fleet import Fleet
from dask_gce.instance import build_insert
from dask_gce.preparation import prepare
from dask_gce.scheduler import GCEScheduler
from dask_gce.settings import Settings
from dask_gce.watcher import Watcher
from dask_gce.worker import GCEWorker

logger = logging.getLogger(__name__)

#: Adaptive defaults for machines that take a minute to boot. Dask's own are made for processes
#: that start in a second: it would give a VM three seconds to prove that it is needed.
ADAPTIVE_DEFAULTS: Mapping[str, Any] = {
    "interval": "5s",
    "wait_count": 24,
    "target_duration": "3 minutes",
}

#: Seconds until a worker that the scheduler did not let go is asked to go again.
RETIRE_AGAIN = 2.0


class GCECluster(SpecCluster):
    """A Dask cluster on Google Compute Engine.

    Every argument that is None comes from the dask config (``gce:`` in YAML or ``DASK_GCE__...``),
    where the same words are written with hyphens. See the configuration page for all of them.

    Parameters
    ----------
    n_workers : int, optional
        Workers to start with. The cluster is ready when its scheduler is; workers follow.
    project : str, optional
        Project ID. By default found as Google's own tools find it.
    zone : str or list of str, optional
        Zone, or zones in order of preference: the first that offers the machine types is used.
    name : str, optional
        The cluster's name, by which its instances are labelled; a new one by default.
    machine_type : str, optional
        Machine type of scheduler and workers.
    asynchronous : bool
        Whether the cluster is used from a running event loop, with ``await``.
    loop : tornado.ioloop.IOLoop, optional
        Event loop to use.
    silence_logs : bool or int
        Level up to which Dask's logs are silenced on this side.
    shutdown_on_close : bool
        Whether the interpreter's exit closes the cluster.
    scheduler_sync_interval : float or str
        How often the cluster's state is saved on the scheduler, in seconds or as ``"5s"``.
    shutdown_scheduler : bool
        Whether closing ends the scheduler too. Its machine is deleted in any case.
    quiet : bool
        Whether to print nothing.
    **settings
        Every other setting of the configuration page, such as ``worker_machine_type``,
        ``container_image``, ``env_vars``, ``security``, ``start_timeout`` or ``api_endpoint``.

    Raises
    ------
    SettingsError
        If a setting is unknown or impossible; before any call to Google.
    CredentialsError
        If no credentials or no project can be found.
    GCEError
        If the scheduler cannot be started; nothing is left behind then.

    Examples
    --------
    >>> from dask.distributed import Client
    >>> from dask_gce import GCECluster
    >>> with GCECluster(n_workers=4, zone="us-central1-a") as cluster:  # doctest: +SKIP
    ...     with Client(cluster) as client:
    ...         client.submit(sum, range(10)).result()
    45
    """

    def __init__(
        self,
        n_workers: int | None = None,
        *,
        project: str | None = None,
        zone: str | list[str] | None = None,
        name: str | None = None,
        machine_type: str | None = None,
        asynchronous: bool = False,
        loop: Any = None,
        silence_logs: bool | int = False,
        shutdown_on_close: bool = True,
        scheduler_sync_interval: float | str = 1,
        shutdown_scheduler: bool = True,
        quiet: bool = False,
        **settings: Any,
    ) -> None:
        self.settings = Settings.load(
            n_workers=n_workers,
            project=project,
            zone=zone,
            name=name,
            machine_type=machine_type,
            **settings,
        )
        #: What went wrong with machines of this cluster so far, oldest first.
        self.failures: list[GCEError] = []
        self._failures_before = 0
        self._compute: Compute | None = None
        self._fleet: Fleet | None = None
        self._blueprint: Blueprint | None = None
        self._starting: asyncio.Task[None] | None = None
        self._watching: asyncio.Task[None] | None = None
        self._retiring: asyncio.Future[Any] | None = None
        self._lost: GCEError | None = None
        self._kept: set[str] = set()
        self._watcher = Watcher(
            workers=lambda: set(self.workers) & set(self.worker_spec),
            registered=self._registered,
            drop=self._drop,
        )
        self._quiet = quiet
        self._scheduler_name = ""
        # SpecCluster makes its lock when it starts, but needs it to close what never started.
        self._lock = asyncio.Lock()
        try:
            super().__init__(
                asynchronous=asynchronous,
                loop=loop,
                silence_logs=silence_logs,
                name=self.settings.name or names.new_cluster_name(),
                shutdown_on_close=shutdown_on_close,
                scheduler_sync_interval=scheduler_sync_interval,
                shutdown_scheduler=shutdown_scheduler,
            )
        except BaseException:
            # Ctrl-C in a constructor leaves nobody who could call close().
            if not asynchronous and hasattr(self, "status"):
                self.close()
            raise

    # -- starting ---------------------------------------------------------------------------------

    async def _start(self) -> None:
        if self.status == Status.running:
            return
        ended = self.status in (Status.closing, Status.closed)
        if ended and (self._starting is None or self._starting.done()):
            raise GCEError(f"Cluster {self.name} is closed; make a new one.")
        if self._starting is None:
            self._starting = asyncio.ensure_future(self._start_once())
        try:
            await asyncio.shield(self._starting)
        except asyncio.CancelledError:
            if self._starting.cancelled():
                raise GCEError(
                    f"Cluster {self.name} was closed while it was starting; make a new one."
                ) from None
            # Whoever waited for this cluster no longer does, and nobody else has it.
            await asyncio.shield(asyncio.ensure_future(self._close()))
            raise

    async def _start_once(self) -> None:
        self.quiet = self._quiet
        try:
            fleet = await self._prepare()
            await super()._start()
        except RuntimeError as error:
            # SpecCluster has closed the cluster and wrapped what happened in a RuntimeError.
            if isinstance(error.__cause__, GCEError):
                raise error.__cause__ from error.__cause__.__cause__
            raise
        except GCEError:
            await self._close()
            raise
        self._watching = asyncio.ensure_future(self._watcher.run(fleet, self._scheduler_name))
        self._watching.add_done_callback(_tell_why_it_ended)
        self.scale(self.settings.n_workers)

    def __await__(self) -> Generator[Any, None, GCECluster]:
        async def started() -> GCECluster:
            new = self.status != Status.running
            await self._start()
            try:
                await self._correct_state()
            except asyncio.CancelledError:
                if new:
                    await asyncio.shield(asyncio.ensure_future(self._close()))
                raise
            return self

        return started().__await__()

    async def __aenter__(self) -> GCECluster:
        return await self

    async def _prepare(self) -> Fleet:
        """Find out what the machines are made of; nothing is created here."""
        preparation = await prepare(self.settings, self.name)
        self._compute, self._blueprint = preparation.compute, preparation.blueprint
        self.security = preparation.security
        cluster = weakref.ref(self)
        fleet = self._fleet = Fleet(
            self._compute,
            self.name,
            self._blueprint.zone,
            self._blueprint.identity,
            delete_at_exit=self.shutdown_on_close,
            on_exit=lambda: _abandon(cluster()),
        )
        self._scheduler_name = names.instance_name(self.name, "scheduler")
        # A worker that could not even be asked for is better found out before the scheduler runs.
        build_insert(self._blueprint.worker("worker", self._blueprint.address("scheduler")))
        parts = {"fleet": fleet, "blueprint": self._blueprint}
        self.scheduler_spec = {
            "cls": GCEScheduler,
            "options": {**parts, "name": self._scheduler_name},
        }
        self.new_spec = {"cls": GCEWorker, "options": parts}
        self._log(
            f"Starting the scheduler of {self.name}: {self.settings.scheduler_machine_type} "
            f"in {self._blueprint.zone}, project {self._blueprint.project}"
        )
        return fleet

    # -- while it runs ----------------------------------------------------------------------------

    def _new_worker_name(self, worker_number: int) -> str:
        return names.instance_name(self.name, "worker")

    def _correct_state(self) -> asyncio.Future[None]:
        # Several may wait for one correction; one that is cancelled does not take it with it.
        return asyncio.shield(super()._correct_state())

    async def _correct_state_internal(self) -> None:
        """Make the workers what `worker_spec` says.

        Differs from SpecCluster's in that workers are retired by name (it passes names where
        addresses are expected, and retires nobody), that one whom the scheduler does not let go is
        kept, that those being started are visible at once, and that one that cannot be started
        does not keep the others from starting.
        """
        async with self._lock:
            self._correct_state_waiting = None
            surplus = set(self.workers) - set(self.worker_spec)
            failed = {failure.name for failure in self.failures if hasattr(failure, "name")}
            kept = await self._retire(surplus & self._registered() - failed)
            if kept:
                if not kept <= self._kept:
                    self._log(
                        f"{len(kept)} workers hold results that fit nowhere else; their machines "
                        "are kept until the results are released."
                    )
                asyncio.get_running_loop().call_later(RETIRE_AGAIN, self._retire_again)
            self._kept = kept
            await asyncio.gather(*map(self._remove_worker, surplus - kept))
            await self._add_workers(set(self.worker_spec) - set(self.workers))
        self._watcher.disturb()

    def _retire_again(self) -> None:
        if self.status == Status.running:
            self._correct_state()

    async def _retire(self, surplus: set[str]) -> set[str]:
        """Have the scheduler move workers' results elsewhere; return whom it did not let go."""
        if not surplus or self.status != Status.running or self.scheduler_comm is None:
            return set()
        # close() cancels this: who closes a cluster does not wait for its results to move.
        self._retiring = asyncio.ensure_future(
            self.scheduler_comm.retire_workers(names=list(surplus), close_workers=True)
        )
        await asyncio.wait({self._retiring})
        if self._retiring.cancelled():
            return set()
        if (error := self._retiring.exception()) is not None:
            logger.warning("The scheduler could not retire %d workers: %s", len(surplus), error)
            return surplus & self._registered()
        retired = {str(worker["name"]) for worker in self._retiring.result().values()}
        return (surplus - retired) & self._registered()

    async def _remove_worker(self, name: str) -> None:
        await self.workers[name].close()
        self.workers.pop(name, None)

    async def _add_workers(self, missing: set[str]) -> None:
        # Known before the scheduler exists; self.scheduler may not have started yet.
        scheduler = self._plan().address(self._scheduler_name)

        async def add(name: str) -> None:
            spec = self.worker_spec[name]
            try:
                worker = spec["cls"](scheduler, **{"name": name, **spec.get("options", {})})
                worker._cluster = weakref.ref(self)
                self._created.add(worker)
                self.workers[name] = worker
                await worker
            except GCEError as error:
                self._drop(name, error)

        await asyncio.gather(*map(add, missing))

    def _drop(self, name: str, failure: GCEError) -> None:
        """Take a worker that failed out of the plan, and remember why."""
        if name == self._scheduler_name:
            if self._lost is None:
                self._lost = failure
                self.failures.append(failure)
                self._log(str(failure))
            return
        if self.worker_spec.pop(name, None) is None:
            return  # it was on its way out, or has been reported
        self.failures.append(failure)
        self._log(str(failure))
        # Soon, not now: this may be called while the lock is held.
        asyncio.get_running_loop().call_soon(self._correct_state)

    def _registered(self) -> set[str]:
        return {str(worker["name"]) for worker in self.scheduler_info["workers"].values()}

    def _update_worker_status(self, op: str, msg: Any) -> None:
        # Not SpecCluster's, which would close a lost worker but leave it in the plan.
        Cluster._update_worker_status(self, op, msg)
        self._watcher.disturb()

    async def _watch_worker_status(self, comm: Any) -> None:
        await super()._watch_worker_status(comm)
        # The scheduler has gone, or we have.
        self._watcher.disturb()

    async def _wait_for_workers(self, n_workers: int = 0, timeout: Any = None) -> None:
        loop = asyncio.get_running_loop()
        seconds = parse_timedelta(timeout) if timeout else None
        deadline = math.inf if seconds is None else loop.time() + seconds
        while (count := len(self.scheduler_info["workers"])) < n_workers:
            if self._lost is not None:
                raise self._lost
            # Nobody asks for a failed worker again until the next scale().
            if len(self.failures) > self._failures_before and len(self.worker_spec) < n_workers:
                raise self.failures[-1]
            if loop.time() > deadline:
                raise asyncio.TimeoutError(
                    f"Only {count} of {n_workers} workers of {self.name} arrived within "
                    f"{seconds:g} s; {len(self._fleet.waiting) if self._fleet else 0} machines are "
                    "still on their way."
                )
            await asyncio.sleep(0.1)

    # -- scaling ----------------------------------------------------------------------------------

    def scale(self, n: int = 0, memory: int | str | None = None, cores: int | None = None) -> Any:
        """Scale to a number of workers; returns at once, machines follow.

        Parameters
        ----------
        n : int
            Number of workers.
        memory : int or str, optional
            As many workers as have this much memory together, in bytes or as ``"100 GB"``.
        cores : int, optional
            As many workers as have this many threads together.

        Returns
        -------
        awaitable or None
            Something to await when the cluster is asynchronous.

        Raises
        ------
        SettingsError
            If the number is not a whole number from zero on.
        """
        self._failures_before = len(self.failures)
        return super().scale(_whole_number(n), memory=memory, cores=cores)

    def _threads_per_worker(self) -> int:
        return self._plan().nthreads

    def _memory_per_worker(self) -> int:
        return self._plan().memory

    def _plan(self) -> Blueprint:
        if self._blueprint is None:
            raise GCEError(f"Cluster {self.name} has not started; await it before you scale it.")
        return self._blueprint

    def adapt(
        self,
        Adaptive: type[Adaptive] = Adaptive,
        minimum: float = 0,
        maximum: float = math.inf,
        minimum_cores: int | None = None,
        maximum_cores: int | None = None,
        minimum_memory: str | None = None,
        maximum_memory: str | None = None,
        **options: Any,
    ) -> Adaptive:
        """Let the number of workers follow the work.

        Parameters
        ----------
        Adaptive : type
            Class that decides, :class:`distributed.deploy.Adaptive` or one of your own.
        minimum : int
            Fewest workers.
        maximum : int
            Most workers.
        minimum_cores : int, optional
            Fewest threads, over all workers.
        maximum_cores : int, optional
            Most threads, over all workers.
        minimum_memory : str, optional
            Least memory, over all workers, such as ``"10 GB"``.
        maximum_memory : str, optional
            Most memory, over all workers.
        **options
            What the class takes. Unless given, a decision is made every 5 s (``interval``), a
            worker goes when it was idle at 24 of them (``wait_count``), and workers are added for
            work that would take longer than 3 minutes (``target_duration``): machines take a minute
            to boot and are billed for at least one.

        Returns
        -------
        Adaptive
            The object that decides.
        """
        # Cluster keeps the options of earlier calls, so that two calls would be mixed.
        self._adaptive_options: dict[str, Any] = {}
        return super().adapt(
            Adaptive,
            minimum,
            maximum,
            minimum_cores,
            maximum_cores,
            minimum_memory,
            maximum_memory,
            **{**ADAPTIVE_DEFAULTS, **options},
        )

    # -- ending -----------------------------------------------------------------------------------

    async def _close(self) -> None:
        if self.status == Status.closed:
            return
        starting = self._starting is asyncio.current_task()
        if not starting:
            await _end(self._starting)
        await _end(self._watching)
        if self._retiring is not None:
            self._retiring.cancel()
        listening = self._watch_worker_status_task
        if self._lost is not None or (listening is not None and listening.done()):
            # Nothing to say to a scheduler that is gone; connecting would take half a minute.
            self.shutdown_scheduler = False
        try:
            await super()._close()
        finally:
            try:
                await self._release()
            except GCEError as error:
                if not starting:
                    raise
                # The error that made the start fail is the one to raise.
                logger.error("%s", error)

    async def _release(self) -> None:
        """Give back all that the cluster holds, whatever state it was in."""
        fleet, compute = self._fleet, self._compute
        if fleet is not None:
            await fleet.delete_all()
        if compute is not None:
            await compute.close()


def _abandon(cluster: GCECluster | None) -> None:
    """Keep distributed's own exit hook away from a cluster whose machines are deleted already."""
    if cluster is not None:
        SpecCluster._instances.discard(cluster)
        cluster.status = Status.closed


async def _end(task: asyncio.Task[None] | None) -> None:
    """Cancel a task and wait for its end; again, since a cancellation can be swallowed."""
    while task is not None and not task.done():
        task.cancel()
        await asyncio.wait({task}, timeout=0.5)


def _tell_why_it_ended(watching: asyncio.Task[None]) -> None:
    if not watching.cancelled() and (error := watching.exception()) is not None:
        logger.error("The cluster's workers are no longer watched.", exc_info=error)


def _whole_number(n: Any) -> int:
    try:
        number = operator.index(n)
    except TypeError:
        number = -1
    if number < 0 or isinstance(n, bool):
        raise SettingsError(
            f"scale(n={n!r}): the number of workers is a whole number from 0 on.", key="n"
        )
    return number
