"""The cluster: what a user makes, scales and closes.

Owns the order of things: what runs while the cluster lives, and that everything is gone afterwards,
or left in order, whichever way it ends. How it comes by its machines is in `assembly`, how the
workers follow the plan in `scaling`, how one machine is made in `blueprint`, how all are watched
and removed in `fleet`.
"""

from __future__ import annotations

import asyncio
import logging
import os
import ssl
from collections.abc import Callable, Generator
from typing import Any

from distributed.core import Status
from distributed.deploy.spec import SpecCluster

from dask_gce import names
from dask_gce.assembly import CreateMode
from dask_gce.declaration.planned_workers import Plan
from dask_gce.errors import GCEError, SettingsError, StartTimeout
from dask_gce.probing import find_refusal
from dask_gce.settings import OF_WHO_JOINS, Settings
from dask_gce.sources import DEFAULTS
from dask_gce.trust import explain_refusal
from dask_gce.widget import WidgetCluster

logger = logging.getLogger(__name__)

#: Seconds that workers get to leave the scheduler, and the scheduler to end, before its machine is
#: deleted. A worker that loses its scheduler while it ends takes four seconds over it.
FAREWELL = 0.5

#: Seconds in which Dask must say something whose port answers.
CONNECTED_WITHIN = 60.0

#: Seconds that a cluster which is left running gets to carry out what was asked of it last.
HAND_OVER = 60.0


class GCECluster(WidgetCluster):
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
    joinable : bool
        Whether there is that file also for a cluster that ends with this object, for as long.
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

    Attributes
    ----------
    settings : Settings
        The settings in use; ``settings.sources`` tells where each came from.
    events : EventLog
        What happened to the cluster and its machines, oldest first.
    failures : list of GCEError
        Why machines did not do what they were made for, oldest first.

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

    #: For Dask the names of the workers that should be there. Called, it tells what a start would
    #: do: ``cluster.plan()`` that of this cluster, ``GCECluster.plan(n_workers=4)`` of another.
    plan = Plan()

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
        joinable: bool = False,
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
        # Why the scheduler and this client do not accept each other's certificates.
        self._refusal: ssl.SSLError | None = None
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
                joinable=joinable,
                scheduler_sync_interval=scheduler_sync_interval,
                shutdown_scheduler=shutdown_scheduler,
            )
        except BaseException:
            # Ctrl-C in a constructor leaves nobody who could call close().
            if not asynchronous and hasattr(self, "status"):
                # However long it was to stay, nobody has heard of it.
                self._ending = not self._joined
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
            What the constructor takes beside settings: ``asynchronous``, ``quiet`` and so on; and
            of the settings the way from here, ``connect`` and those that go with it.

        Returns
        -------
        GCECluster
            The cluster, to be awaited if ``asynchronous``.

        Raises
        ------
        SettingsError
            If there is no such name, or if a setting is given: a cluster keeps those it has.
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
        for key in options:
            if key in DEFAULTS and key not in OF_WHO_JOINS:
                raise SettingsError(
                    f"{key}: from_name({name!r}) takes no settings, since a cluster keeps the "
                    "settings that it was made with. To change the number of workers: scale().",
                    key=key,
                )
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
            await asyncio.shield(asyncio.ensure_future(self._give_up()))
            raise

    async def _give_up(self) -> None:
        """Close a cluster for which nobody waits any more before anybody had it."""
        # One that was made here goes, even if it was to stay.
        self._ending = not self._joined
        await self._close()

    async def _start_once(self) -> None:
        self.quiet = self._quiet or self.settings.progress == "none"
        self.status = Status.starting
        # From here on counts how long it takes.
        if self._joined:
            # Not so many as the settings say of whoever joins it, but those that there are.
            what, wanted = "Connecting to", 0
        else:
            what, wanted = "Starting", max(self._wanted, self._local_count)
        self._board.expect(wanted)
        async with self._shown_while(f"{what} {self.name}", wanted):
            await self._start_now()
            self._note_arrival(set(self._registered()))

    async def _start_now(self) -> None:
        try:
            await self._assemble()
            await self._scheduler
            self._log(f"The scheduler is at {self._scheduler.address}")
            # SpecCluster takes it from here: it finds the scheduler started, and connects.
            self.status = Status.created
            await self._connect()
            await self._learn_jupyter()
            self._spawn(self._follow_certificates())
            self._spawn(self._attend())
            if self._shared:
                self._spawn(self._follow_workers())
            if self._joined:
                # Whom it misses may have gone when nobody saw to it.
                await self._replace()
            else:
                await self._ship_packages()
                await self._tell_plan()
                await self._await_local_workers()
            self._complete = True
            self._settle_exit()
            self._spawn(self._refresh_prices(self._ready))
            if not self.quiet:
                self._spawn(self._tell_growth())
        except BaseException as error:
            await self._close()
            cause = error.__cause__
            if isinstance(error, RuntimeError) and isinstance(cause, Exception):
                # SpecCluster wraps whatever happened in a RuntimeError.
                raise cause from cause.__cause__
            raise

    async def _connect(self) -> None:
        """Have SpecCluster connect; it would wait for ever for a scheduler that says nothing."""
        # In this task, by which SpecCluster's own closing is known to be part of the start.
        task = asyncio.current_task()
        late = []

        def give_up() -> None:
            if task is not None:
                late.append(task.cancel())

        timeout = min(CONNECTED_WITHIN, self.settings.start_timeout)
        timer = asyncio.get_running_loop().call_later(timeout, give_up)
        try:
            await super()._start()
        except asyncio.CancelledError:
            if not late or self._fleet is None:
                raise
            what = f"its port answers, but Dask said nothing within {timeout:g} s"
            raise await self._fleet.explain(self._scheduler.name, StartTimeout, what) from None
        except RuntimeError as error:
            if self._refusal is None:
                raise
            address = str(self._scheduler.address)
            raise explain_refusal(self.name, address, self._refusal) from error.__cause__
        finally:
            timer.cancel()

    async def _find_refusal(self) -> None:
        """Find out whether it is for their certificates that scheduler and client do not talk."""
        context = self.security.get_connection_args("client").get("ssl_context")
        if context is not None and self.scheduler and self.scheduler.status == Status.running:
            host, _, port = str(self._scheduler.address).rpartition("://")[2].rpartition(":")
            self._refusal = await find_refusal(host, int(port), context)

    def __await__(self) -> Generator[Any, None, GCECluster]:
        async def started() -> GCECluster:
            new = self.status != Status.running
            await self._start()
            try:
                await self._correct_state()
            except asyncio.CancelledError:
                if new:
                    await asyncio.shield(asyncio.ensure_future(self._give_up()))
                raise
            return self

        return started().__await__()

    async def __aenter__(self) -> GCECluster:
        return await self

    # -- ending -----------------------------------------------------------------------------------

    def sync(self, func: Callable[..., Any], *args: Any, **options: Any) -> Any:
        """Run something on the cluster's event loop, as Dask does, as long as there is one.

        Parameters
        ----------
        func : callable
            Returns what is to be awaited.
        *args
            What it takes.
        **options
            What it takes beside, and what Dask's method does.

        Returns
        -------
        object
            What comes of it; something to await when the cluster is asynchronous.

        Raises
        ------
        GCEError
            If the cluster is closed, and its loop with it.
        """
        closed = self.status == Status.closed
        try:
            return super().sync(func, *args, **options)
        except RuntimeError as error:
            if not closed:
                raise
            raise GCEError(f"Cluster {self.name} is closed; make a new one.") from error

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
        if self.status == Status.closed and not self.asynchronous:
            # There is no loop any more, and nothing to do on it.
            self._check_left()
            return None
        return self.sync(self._shutdown)

    async def _shutdown(self) -> None:
        self._ending = True
        await self._close()
        self._check_left()

    def _check_left(self) -> None:
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
        if self.status == Status.failed and self._starting is asyncio.current_task():
            # SpecCluster could not connect. Once it is closed nobody can be asked why.
            await self._find_refusal()
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
        if self._complete and not ends:
            await self._record_late()
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
            if ends:
                if self._fleet is not None:
                    await self._fleet.delete_workers()
                if connected:
                    await self._say_farewell()
                await self._remove_machines_and_rules()
            else:
                await self._leave_machines_and_rules()
        except GCEError as error:
            if not starting:
                await self._close_tunnels()
                # Whoever calls close() again tries again; so does the interpreter's exit.
                self.status = Status.failed
                raise
            # The error that made the start fail is the one to raise.
            logger.error("%s", error)
        self._left = not ends
        self._tell_cost(ended=ends)
        if ends:
            await self._forget_connection()
        await self._release()

    async def _record_late(self) -> None:
        """Let a cluster be joined that was to end with this object, and now is to stay."""
        if self._shared or self._prepared is None:
            return
        try:
            await self._record(self._prepared)
        except GCEError as error:
            logger.error("Cluster %s stays, but cannot be joined: %s", self.name, error)

    async def _hand_over(self) -> None:
        """Bring what was begun to an end, and leave the rest to the other processes."""
        if self._adaptive is not None:
            self._adaptive.stop()
        try:
            await self._settle(HAND_OVER)
        except GCEError as error:
            logger.warning("%s", error)
        await self._resign()

    async def _close_tunnels(self) -> None:
        if self.scheduler is not None:
            await self._scheduler.approach.close()

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
        await self._close_tunnels()
        if self._secrets is not None:
            await self._secrets.close()
        if self._prepared is not None:
            await self._prepared.compute.close()


async def _end(task: asyncio.Future[Any] | None) -> None:
    """Cancel a task and wait for its end; again, since a cancellation can be swallowed."""
    while task is not None and not task.done():
        task.cancel()
        await asyncio.wait({task}, timeout=0.5)


def _disown() -> None:
    """Have a forked child's exit leave the parent's clusters alone, whose loops it has not."""
    for cluster in [each for each in SpecCluster._instances if isinstance(each, GCECluster)]:
        SpecCluster._instances.discard(cluster)


os.register_at_fork(after_in_child=_disown)
