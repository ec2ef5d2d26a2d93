"""`ComputeEmulator`: a local Compute Engine from beginning to end.

Owns: the listener, the thread in synchronous use, the order of starting and closing. Everything it
answers comes from `server` and what lies below.
"""

from __future__ import annotations

import asyncio
import logging
import socket
import threading
from collections import Counter
from collections.abc import Awaitable, Callable, Collection, Sequence
from types import TracebackType
from typing import Any, ClassVar, TypeVar

from aiohttp import web

from dask_gce.emulator.certificate import Certificate
from dask_gce.emulator.cloud import Cloud
from dask_gce.emulator.dispatch import Dispatcher, Observer, check_methods
from dask_gce.emulator.iap.far_end import FarEnd
from dask_gce.emulator.interventions import Interventions
from dask_gce.emulator.listeners import stop_accepting
from dask_gce.emulator.machine import MachineKind
from dask_gce.emulator.server import Server
from dask_gce.emulator.timings import Timings

T = TypeVar("T")

logger = logging.getLogger(__name__)


class ComputeEmulator(Interventions):
    """A local Compute Engine, for as long as the context lasts.

    Use it with ``with``, and it runs in a thread of its own, or with ``async with``, and it runs
    in the current event loop. It listens on 127.0.0.1 only. It boots what it is sent, so on Linux
    it answers nobody but you and its guests. Elsewhere whoever can reach it can run programs as
    you: on a machine with several users give a `token`.

    Parameters
    ----------
    machines : str or MachineKind
        What the instances are made of: ``"process"``, ``"paper"``, or a kind of your own.
    port : int
        The port; 0 takes a free one.
    token : str or None
        The bearer token that every request must carry; None asks for none.
    timings : Timings
        How long things take.
    projects : collection of str or None
        The projects that exist; None when every well-formed ID does.
    container_images : sequence of str
        Patterns of the container images that machines can pull.
    client_inside : bool
        Whether clients run in the machines' own network, by `client_command`, and not on the host.
        Where machines share the host's network it makes no difference.
    tls_port : int or None
        A port on which the same is answered over TLS, with a certificate that is made for it: 0
        takes a free one, None answers on none.
    observers : sequence of callable
        Called with an :class:`Exchange` for each request, in the emulator's thread.

    Attributes
    ----------
    default_observers : list of callable
        Observers of every emulator, besides its own.
    timings : Timings
        How long things take.

    Examples
    --------
    >>> with ComputeEmulator("paper") as emulator:
    ...     print(emulator.endpoint)  # doctest: +ELLIPSIS
    http://127.0.0.1:...
    """

    default_observers: ClassVar[list[Observer]] = []

    def __init__(
        self,
        machines: str | MachineKind = "process",
        *,
        port: int = 0,
        token: str | None = None,
        timings: Timings | None = None,
        projects: Collection[str] | None = None,
        container_images: Sequence[str] = ("*",),
        client_inside: bool = False,
        tls_port: int | None = None,
        observers: Sequence[Observer] = (),
    ) -> None:
        self.timings = timings or Timings()
        super().__init__(self.timings.minute)
        check_methods(self.timings.latencies)
        self._machines = machines
        self._port = port
        self._token = token
        self._projects = projects
        self._container_images = tuple(container_images)
        self._client_inside = client_inside
        self._tls_port = tls_port
        self._observers = (*self.default_observers, *observers)
        self._requests: Counter[str] = Counter()
        self._counting = threading.Lock()
        self._kind: MachineKind | None = None
        self._cloud: Cloud | None = None
        self._runner: web.AppRunner | None = None
        self._inner: web.AppRunner | None = None
        self._far_end: FarEnd | None = None
        self._listeners: list[socket.socket] = []
        self._tls: Certificate | None = None
        self._opening: asyncio.Task[None] | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None

    def __repr__(self) -> str:
        where = self._cloud.base_url if self._cloud else "closed"
        return f"<ComputeEmulator {where}>"

    @property
    def endpoint(self) -> str:
        """The address, ``http://127.0.0.1:PORT``."""
        return self._open_cloud().base_url.removesuffix("/compute/v1")

    @property
    def tls_endpoint(self) -> str:
        """The address over TLS, ``https://127.0.0.1:PORT``; there if a `tls_port` was given."""
        self._open_cloud()
        if len(self._listeners) < 2:
            raise RuntimeError("The ComputeEmulator has no TLS: give it a tls_port.")
        return f"https://127.0.0.1:{self._listeners[1].getsockname()[1]}"

    @property
    def tls_certificate(self) -> str:
        """The certificate that is shown over TLS, PEM text, for clients that are to trust it."""
        if self._tls is None:
            raise RuntimeError("The ComputeEmulator has no TLS: give it a tls_port.")
        return self._tls.pem

    @property
    def requests(self) -> Counter[str]:
        """How often each method was called, by its ID, for example ``compute.instances.insert``."""
        with self._counting:
            return Counter(self._requests)

    def _count(self, method_id: str) -> None:
        with self._counting:
            self._requests[method_id] += 1

    def _open_cloud(self) -> Cloud:
        if self._cloud is None:
            raise RuntimeError("The ComputeEmulator is not open: use it with `with`.")
        return self._cloud

    def _ask(self, question: Callable[[], T]) -> T:
        """Return an answer from the emulator's own thread, from whichever thread it is asked."""
        if self._thread is None or self._loop is None or threading.current_thread() is self._thread:
            return question()

        async def answer() -> T:
            return question()

        return asyncio.run_coroutine_threadsafe(answer(), self._loop).result()

    def leftovers(self) -> list[str]:
        """Return a sentence for everything that exists or goes on.

        Returns
        -------
        list of str
            Instances, disks, images, secrets, firewall rules (but for those that projects begin
            with), running operations, and what the machines' kind still has; empty when all is
            clean. Once the emulator is closed, what its machines left on this host.
        """

        def look() -> list[str]:
            kind = self._kind.leftovers() if self._kind else []
            return [*(self._cloud.leftovers() if self._cloud else ()), *kind]

        return self._ask(look)

    def instances(self) -> list[dict[str, Any]]:
        """Return all instances.

        Returns
        -------
        list of dict
            Their resources, of all projects and zones, by name.
        """

        def look() -> list[dict[str, Any]]:
            found = [
                dict(instance.resource)
                for project in self._open_cloud().projects.values()
                for held in project.instances.values()
                for instance in held.values()
            ]
            return sorted(found, key=lambda one: str(one["name"]))

        return self._ask(look)

    def client_command(self, command: Sequence[str]) -> list[str]:
        """Return the command line that runs a program where clients reach the machines.

        Parameters
        ----------
        command : sequence of str
            The program and its arguments.

        Returns
        -------
        list of str
            The command line, to be run on the host while the emulator is open. Where machines share
            the host's network it is the same.

        Examples
        --------
        >>> with ComputeEmulator("paper") as emulator:
        ...     emulator.client_command(["dask", "gce", "list"])
        ['dask', 'gce', 'list']
        """
        self._open_cloud()
        return self._kind.network.client_command(command) if self._kind else list(command)

    async def _open(self) -> None:
        self._opening = asyncio.current_task()
        try:
            await self._build()
        except BaseException:
            # Also when interrupted: nothing of a half-opened emulator may stay.
            try:
                await self._close()
            except Exception:
                logger.exception("What was begun of a local Compute Engine could not be closed")
            raise
        finally:
            self._opening = None

    async def _build(self) -> None:
        kind = self._machines
        if isinstance(kind, str):
            from dask_gce.emulator.machines import make_kind

            kind = make_kind(
                kind,
                container_images=self._container_images,
                client_inside=self._client_inside,
            )
        listeners = []
        try:
            for wanted in (self._port, self._tls_port):
                if wanted is not None:
                    listeners.append(_bind(wanted))
            ports = [one.getsockname()[1] for one in listeners]
            port = ports[0]
            if len(ports) > 1:
                self._tls = await asyncio.to_thread(Certificate.make)
            self._kind = kind
            await kind.start()
            cloud = Cloud(
                f"http://127.0.0.1:{port}", kind, self.timings, self._conditions, self._projects
            )
            self._far_end = FarEnd(cloud, self.tunnels)
            server = Server(
                Dispatcher(cloud, self._observers, self._count),
                kind,
                frozenset(
                    f"{host}:{one}" for host in ("127.0.0.1", "localhost", "[::1]") for one in ports
                ),
                self._token,
                cloud.identities.knows,
                self._far_end,
            )
            self._runner = web.AppRunner(
                server.application(),
                access_log=None,
                handler_cancellation=True,
                # Zero would wait for ever for those who wait for an operation.
                shutdown_timeout=0.05,
            )
            await self._runner.setup()
            contexts = [None, self._tls.context if self._tls else None]
            for listener, context in zip(listeners, contexts, strict=False):
                await web.SockSite(
                    self._runner, listener, ssl_context=context, backlog=1024
                ).start()
            self._inner = web.AppRunner(
                server.application(guests=True),
                access_log=None,
                handler_cancellation=True,
                shutdown_timeout=0.05,
            )
            await self._inner.setup()
            await kind.network.offer_api(port, self._serve_guests)
            self._cloud, self._listeners = cloud, listeners
        finally:
            if self._cloud is None:
                for listener in listeners:
                    listener.close()

    async def _serve_guests(self, listener: socket.socket) -> Callable[[], Awaitable[None]]:
        """Answer guests on a listener of their own; what is returned ends that."""
        runner = self._inner
        if runner is None:
            listener.close()
            raise RuntimeError("The ComputeEmulator is not open.")
        site = web.SockSite(runner, listener, backlog=128)
        await site.start()

        async def end() -> None:
            if site in runner.sites:
                await site.stop()

        return end

    async def _close(self) -> None:
        """Close to the end, cancelled or not: machines are being ended."""
        closing = asyncio.ensure_future(self._tear_down())
        cancelled: asyncio.CancelledError | None = None
        while not closing.done():
            try:
                await asyncio.wait([closing])
            except asyncio.CancelledError as error:
                cancelled = error
        closing.result()
        if cancelled is not None:
            raise cancelled

    async def _abandon(self) -> None:
        """Close, wherever the opening has got to."""
        if self._opening is not None:
            self._opening.cancel()
            # It undoes itself; two closings at once would trip over each other.
            await asyncio.wait([self._opening])
        await self._close()

    async def _tear_down(self) -> None:
        cloud, self._cloud = self._cloud, None
        runners = [one for one in (self._runner, self._inner) if one is not None]
        self._runner = self._inner = None
        listeners, self._listeners = self._listeners, []
        far_end, self._far_end = self._far_end, None
        try:
            await stop_accepting(listeners)
            if far_end is not None:
                await far_end.close()
            for runner in runners:
                await runner.cleanup()
            if cloud is not None:
                await cloud.close()
        finally:
            if self._kind is not None:
                await self._kind.close()

    async def __aenter__(self) -> ComputeEmulator:
        await self._open()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self._close()

    def __enter__(self) -> ComputeEmulator:
        loop = asyncio.new_event_loop()
        thread = threading.Thread(target=_run, args=(loop,), name="dask-gce-emulator", daemon=True)
        self._loop, self._thread = loop, thread
        thread.start()
        try:
            asyncio.run_coroutine_threadsafe(self._open(), loop).result()
        except BaseException:
            try:
                self._leave()
            except Exception:
                logger.exception("What was begun of a local Compute Engine could not be closed")
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._leave()

    def _leave(self) -> None:
        """Close from outside the emulator's thread, and end the thread, Ctrl-C or not."""
        loop, thread = self._loop, self._thread
        if loop is None or thread is None:
            return
        closing = asyncio.run_coroutine_threadsafe(self._abandon(), loop)
        interrupt: BaseException | None = None
        while not closing.done():
            try:
                closing.exception()
            except KeyboardInterrupt as error:
                # Machines are being ended: finish, then pass the interrupt on.
                interrupt = error
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        self._loop = self._thread = None
        if interrupt is not None:
            raise interrupt
        closing.result()


def _bind(port: int) -> socket.socket:
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(("127.0.0.1", port))
    except BaseException:
        listener.close()
        raise
    return listener


def _run(loop: asyncio.AbstractEventLoop) -> None:
    asyncio.set_event_loop(loop)
    try:
        loop.run_forever()
    finally:
        for task in asyncio.all_tasks(loop):
            task.cancel()
        loop.run_until_complete(loop.shutdown_asyncgens())
        loop.run_until_complete(loop.shutdown_default_executor())
        loop.close()
