"""The cluster: what a user makes, scales and closes.

Owns the order of things: what runs while the cluster lives, and that everything is gone afterwards,
or left in order, whichever way it ends. How it comes by its machines is in `assembly`, how the
workers follow the plan in `scaling`, how one machine is made in `blueprint`, how all are watched
and removed in `fleet`.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import math
from collections.abc import Generator
from typing import Any

from dask.utils import parse_timedelta
from dask.widgets.widgets import get_template
from distributed.core import Status
from distributed.objects import SchedulerInfo

from dask_gce import names
from dask_gce.assembly import AssembledCluster, CreateMode
from dask_gce.errors import GCEError
from dask_gce.scheduler import answers_at
from dask_gce.settings import Settings

logger = logging.getLogger(__name__)

#: Seconds between attempts to reach a scheduler that was lost from sight.
RECONNECT_AFTER = 2.0

#: Seconds that workers get to leave the scheduler, and the scheduler to end, before its machine is
#: deleted. A worker that loses its scheduler while it ends takes four seconds over it.
FAREWELL = 0.5

#: Seconds that a cluster which is left running gets to carry out what was asked of it last.
HAND_OVER = 60.0

#: Workers that the representation in a notebook lists one by one.
SHOWN_WORKERS = 20


class GCECluster(AssembledCluster):
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
    machine_type : str or list of str, optional
        Machine type of scheduler and workers, or several in order of preference.
    asynchronous : bool
        Whether the cluster is used from a running event loop, with ``await``.
    loop : tornado.ioloop.IOLoop, optional
        Event loop to use.
    silence_logs : bool or int
        Level up to which Dask's logs are silenced on this side.
    shutdown_on_close : bool, optional
        Whether :meth:`close`, and the interpreter's exit, end the cluster for everybody. By default
        they do if this object has made it. With False it stays until :meth:`shutdown`, and a file
        that only you can read lets your other processes connect to it.
    create_mode : {"create", "connect", "create-or-connect"}
        Whether to make a cluster, to connect to the one of that ``name``, or to do whichever is
        possible. A cluster that exists keeps its settings.
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
    ClusterNotFound
        If there is no cluster to connect to.
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
        machine_type: str | list[str] | None = None,
        asynchronous: bool = False,
        loop: Any = None,
        silence_logs: bool | int = False,
        shutdown_on_close: bool | None = None,
        create_mode: CreateMode = "create",
        scheduler_sync_interval: float | str = 1,
        shutdown_scheduler: bool = True,
        quiet: bool = False,
        **settings: Any,
    ) -> None:
        loaded = Settings.load(
            n_workers=n_workers,
            project=project,
            zone=zone,
            name=name,
            machine_type=machine_type,
            **settings,
        )
        self._starting: asyncio.Task[None] | None = None
        self._quiet = quiet
        # Whether it is to end for everybody, and whether it was left to others.
        self._ending = self._left = False
        # SpecCluster makes its lock when it starts, but needs it to close what never started.
        self._lock = asyncio.Lock()
        try:
            super().__init__(
                loaded,
                loaded.name or names.new_cluster_name(),
                asynchronous=asynchronous,
                loop=loop,
                silence_logs=silence_logs,
                create_mode=create_mode,
                shutdown_on_close=shutdown_on_close,
                scheduler_sync_interval=scheduler_sync_interval,
                shutdown_scheduler=shutdown_scheduler,
            )
        except BaseException:
            # Ctrl-C in a constructor leaves nobody who could call close().
            if not asynchronous and hasattr(self, "status"):
                self.close()
            raise

    @classmethod
    def from_name(  # type: ignore[override]  # SpecCluster promises a ProcessInterface, which it is not
        cls,
        name: str,
        *,
        project: str | None = None,
        shutdown_on_close: bool = False,
        **options: Any,
    ) -> GCECluster:
        """Connect to a cluster that another process has made.

        Needs the connection file that was written when it was made with ``shutdown_on_close=False``
        (``dask gce create`` does).

        Parameters
        ----------
        name : str
            The cluster's name.
        project : str, optional
            Its project, if clusters of several have that name.
        shutdown_on_close : bool
            Whether closing this object ends the cluster.
        **options
            What the constructor takes beside settings: ``asynchronous``, ``quiet`` and so on.

        Returns
        -------
        GCECluster
            The cluster, to be awaited if ``asynchronous``.

        Raises
        ------
        ClusterNotFound
            If there is no such cluster any more.
        CredentialsError
            If its connection file is missing, or others can read it.
        GCEError
            If its scheduler is gone or does not answer.

        Examples
        --------
        >>> from dask_gce import GCECluster
        >>> with GCECluster.from_name("grid") as cluster:  # doctest: +SKIP
        ...     cluster.scale(20)
        """
        return cls(
            name=name,
            project=project,
            create_mode="connect",
            shutdown_on_close=shutdown_on_close,
            **options,
        )

    # -- starting ---------------------------------------------------------------------------------

    async def _start(self) -> None:
        if self.status == Status.running:
            return
        if self._starting is None and self._closing is None:
            self._starting = asyncio.ensure_future(self._start_once())
        if self._starting is None or (self._closing is not None and self._starting.done()):
            raise GCEError(f"Cluster {self.name} is closed; make a new one.")
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
        self.status = Status.starting
        try:
            await self._assemble()
            await self._scheduler
            self._log(f"The scheduler is at {self._scheduler.address}")
            # SpecCluster takes it from here: it finds the scheduler started, and connects.
            self.status = Status.created
            await super()._start()
            if self._joined:
                # Whom it misses may have gone when nobody saw to it.
                await self._replace()
            else:
                await self._await_local_workers()
            self._complete = True
            if self._fleet is not None:
                self._fleet.delete_at_exit = self.shutdown_on_close
        except BaseException as error:
            await self._close()
            cause = error.__cause__
            if isinstance(error, RuntimeError) and isinstance(cause, Exception):
                # SpecCluster wraps whatever happened in a RuntimeError.
                raise cause from cause.__cause__
            raise
        self._note_arrival(set(self._registered()))

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

    # -- while it runs ----------------------------------------------------------------------------

    def _drop(self, name: str, failure: GCEError) -> None:
        """Take a machine that failed out of the plan; without its scheduler the cluster is lost."""
        scheduler = self._scheduler
        if name != scheduler.name:
            super()._drop(name, failure)
        elif self.status == Status.starting:
            scheduler.failure = failure  # its start() raises it
        elif self._lost is None:
            self.events.note(name, "lost", str(failure).partition("\n")[0])
            self._log(str(failure))
            self._lose(failure)

    async def _watch_worker_status(self, comm: Any) -> None:
        await super()._watch_worker_status(comm)
        # The scheduler has gone, or the network has, or we have.
        if self.status == Status.running:
            self._watcher.disturb()
            self._spawn(self._reconnect())

    async def _reconnect(self) -> None:
        """Listen to the scheduler again, as after a laptop's sleep, unless it is gone."""
        scheduler, rpc = self._scheduler, self.scheduler_comm
        self.events.note(scheduler.name, "disconnected")
        host, _, port = str(scheduler.address).rpartition("://")[2].rpartition(":")
        while self.status == Status.running and self._lost is None and rpc is not None:
            if await answers_at(host, int(port)):
                try:
                    comm = await rpc.live_comm()
                    comm.name = "Cluster worker status"
                    await comm.write({"op": "subscribe_worker_status"})
                    self.scheduler_info = SchedulerInfo(await comm.read())
                except OSError as error:
                    logger.info("The scheduler does not answer yet: %s", error)
                else:
                    self._watch_worker_status_comm = comm
                    self._watch_worker_status_task = asyncio.ensure_future(
                        self._watch_worker_status(comm)
                    )
                    self.events.note(scheduler.name, "reconnected")
                    self._note_arrival(set(self._registered()))
                    self._watcher.disturb()
                    return
            await asyncio.sleep(RECONNECT_AFTER)

    async def _wait_for_workers(self, n_workers: int = 0, timeout: Any = None) -> None:
        loop = asyncio.get_running_loop()
        seconds = parse_timedelta(timeout) if timeout else None
        deadline = math.inf if seconds is None else loop.time() + seconds
        # From what the scheduler has told: asking it each time costs a tenth of a core.
        while (count := len(self.scheduler_info["workers"])) < n_workers:
            if self._lost is not None:
                raise self._lost
            if self._recovery.exhausted is not None:
                raise self._recovery.exhausted
            if self._closing is not None:
                raise GCEError(f"Cluster {self.name} was closed; {count} workers had arrived.")
            if loop.time() > deadline:
                raise asyncio.TimeoutError(
                    f"Only {count} of {n_workers} workers of {self.name} arrived within "
                    f"{seconds:g} s; {len(self._fleet.waiting) if self._fleet else 0} machines are "
                    f"still on their way, {len(self.failures)} have failed (see cluster.events)."
                )
            await asyncio.sleep(0.05)

    def _repr_html_(self, cluster_status: Any = None) -> Any:
        # The list of workers is made on the event loop, where a thousand would stop everything.
        info, workers = self.scheduler_info, dict(self.scheduler_info["workers"])
        if len(workers) <= SHOWN_WORKERS:
            return super()._repr_html_(cluster_status)
        shown = dict(itertools.islice(workers.items(), SHOWN_WORKERS))
        return get_template("cluster.html.j2").render(
            type=type(self).__name__,
            name=self.name,
            workers=workers,
            dashboard_link=self.dashboard_link,
            scheduler_info_repr=SchedulerInfo({**info, "workers": shown})._repr_html_(),
            cluster_status=cluster_status,
        )

    # -- ending -----------------------------------------------------------------------------------

    def shutdown(self) -> Any:
        """End the cluster for everybody: delete its machines, whatever ``shutdown_on_close`` says.

        Returns
        -------
        awaitable or None
            Something to await when the cluster is asynchronous.

        Raises
        ------
        GCEError
            If it is not certain that all machines are deleted, or if this object has left the
            cluster to others before.
        """
        return self.sync(self._shutdown)

    async def _shutdown(self) -> None:
        self._ending = True
        await self._close()
        if self._left:
            raise GCEError(
                f"Cluster {self.name} was left running when this object was closed. To end it: "
                f"GCECluster.from_name({self.name!r}).shutdown(), or dask gce delete {self.name}"
            )

    @property
    def _ends(self) -> bool:
        """Whether closing deletes the machines."""
        if self._lost is not None and self._complete:
            return True  # what is left of it is of no use to anybody
        if not self._complete:
            return not self._joined
        return self._ending or self.shutdown_on_close

    async def _close(self) -> None:
        if self.status == Status.closed:
            return
        ended = self._closing is not None and self._closing.done()
        if self._closing is None or ended:
            starting = self._starting is asyncio.current_task()
            self._closing = asyncio.ensure_future(self._close_once(starting))
        # Whoever waits no longer does not leave half a cluster behind.
        await asyncio.shield(self._closing)

    async def _close_once(self, starting: bool) -> None:
        """Delete every machine, the workers' first, or leave all; nobody is waited for long."""
        ends = self._ends
        connected = self.status == Status.running and self._lost is None
        listening = self._watch_worker_status_task
        if listening is not None and listening.done():
            # Nothing to say to a scheduler that is gone; connecting would take half a minute.
            connected = False
        if connected and not ends:
            await self._hand_over()
        self.status = Status.closing
        if self._adaptive is not None:
            self._adaptive.stop()
        if self._restoring is not None:
            self._restoring.cancel()
        self.worker_spec.clear()
        for task in (None if starting else self._starting, self._watching, *self._tasks):
            await _end(task)
        try:
            if self._fleet is not None and ends:
                await self._fleet.delete_workers()
                if connected:
                    await self._say_farewell()
                await self._fleet.delete_all()
            elif self._fleet is not None:
                await self._fleet.leave()
        except GCEError as error:
            if not starting:
                # Whoever calls close() again tries again; so does the interpreter's exit.
                self.status = Status.failed
                raise
            # The error that made the start fail is the one to raise.
            logger.error("%s", error)
        self._left = not ends
        if ends and (forget := self._forget()) is not None:
            await asyncio.to_thread(forget)
        await self._release()

    async def _hand_over(self) -> None:
        """Bring what was begun to an end, and leave the rest to the other processes."""
        if self._adaptive is not None:
            self._adaptive.stop()
        try:
            await self._settle(HAND_OVER)
        except GCEError as error:
            logger.warning("%s", error)
        await self._publish_plan(keeper="")

    async def _say_farewell(self) -> None:
        """Let workers end in order, and the scheduler tell its clients that it ends."""
        if not self.shutdown_scheduler or self.scheduler_comm is None:
            return
        deserted = asyncio.ensure_future(self._deserted.wait())
        await asyncio.wait({deserted}, timeout=FAREWELL)
        deserted.cancel()
        terminating = asyncio.ensure_future(self.scheduler_comm.terminate())
        await asyncio.wait({terminating}, timeout=FAREWELL)
        await _end(terminating)
        if not terminating.cancelled() and (error := terminating.exception()) is not None:
            logger.info("The scheduler was gone already: %s", error)

    async def _release(self) -> None:
        """Give back all that is left: objects, connections, threads."""
        for process in [*self._created, *([self.scheduler] if self.scheduler else [])]:
            # Their machines are deleted, all together.
            process.status = Status.closed
            process._event_finished.set()
        self.workers.clear()
        # SpecCluster would close all over again; from this status on it only lets go.
        self.status = Status.closing_gracefully
        await super()._close()
        if self._prepared is not None:
            await self._prepared.compute.close()


async def _end(task: asyncio.Future[Any] | None) -> None:
    """Cancel a task and wait for its end; again, since a cancellation can be swallowed."""
    while task is not None and not task.done():
        task.cancel()
        await asyncio.wait({task}, timeout=0.5)
