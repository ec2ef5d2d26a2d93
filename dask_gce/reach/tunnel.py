"""A tunnel through Identity-Aware Proxy: a listener on this computer for one port of one instance.

Owns: the listener, its connections and their end, and what is said when they fail. Each connection
is a `passage` of its own; many run at once.

Whoever may open sockets on this computer can use the listener, as with gcloud's own: a scheduler
asks its clients for certificates, a dashboard asks for nothing.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import ssl
from collections.abc import Callable
from types import TracebackType

from dask_gce.errors import TunnelError
from dask_gce.reach.far_end import ENDPOINT, FarEnd, Token
from dask_gce.reach.local_end import LocalEnd
from dask_gce.reach.passage import Passage
from dask_gce.reach.refusals import Destination
from dask_gce.reach.relay import Relay
from dask_gce.reach.websocket import hang_up

__all__ = ["HOST", "Tunnel"]

logger = logging.getLogger(__name__)

#: Where tunnels begin: nobody on other computers can use them.
HOST = "127.0.0.1"
#: Seconds that connections have for their last bytes to be confirmed when the tunnel is closed.
GRACE = 1.0


def _log(what: str, why: str) -> None:
    logger.info("IAP tunnel %s: %s", what, why)


class Tunnel:
    """A tunnel to one port of one instance, for as long as it is open.

    Parameters
    ----------
    project : str
        The project's ID.
    zone : str
        The instance's zone.
    instance : str
        The instance's name.
    port : int
        The instance's TCP port.
    token : coroutine function
        Returns a fresh bearer token, or None where none is needed; asked for each websocket. What
        it raises of `GCEError` is the reason why there is no tunnel.
    interface : str
        The instance's network interface.
    endpoint : str
        The far end's address, ``wss://HOST/v4``, or ``ws://127.0.0.1:PORT/v4`` of a local Compute
        Engine.
    local_port : int
        The port on this computer; 0 for any that is free.
    trust : ssl.SSLContext or None
        Whose certificates are trusted; None for those that Python trusts.
    tell : callable
        Called with what happened and why, both in words, when connections fail, break or go on.

    Raises
    ------
    SettingsError
        The endpoint is none, or a token would leave this computer unencrypted.

    Examples
    --------
    >>> async def token():
    ...     return "ya29.secret"
    >>> Tunnel(project="my-project", zone="us-central1-a", instance="dask-1f-scheduler",
    ...        port=8786, token=token)  # doctest: +ELLIPSIS
    <Tunnel to port 8786 of instance dask-1f-scheduler (...): closed>
    """

    def __init__(
        self,
        *,
        project: str,
        zone: str,
        instance: str,
        port: int,
        token: Token,
        interface: str = "nic0",
        endpoint: str = ENDPOINT,
        local_port: int = 0,
        trust: ssl.SSLContext | None = None,
        tell: Callable[[str, str], None] = _log,
    ) -> None:
        self.destination = Destination(project, zone, instance, port, interface)
        self._far_end = FarEnd(self.destination, endpoint=endpoint, token=token, trust=trust)
        self._tell = tell
        self._failure: TunnelError | None = None
        self._told: int | None = None
        self._listener: socket.socket | None = None
        self._server: asyncio.Server | None = None
        self._is_open = False
        self._wanted_port = local_port
        self._port = 0
        self._ends: set[LocalEnd] = set()
        self._passages: dict[asyncio.Task[None], Passage] = {}
        self._all_gone = asyncio.Event()

    def __repr__(self) -> str:
        where = f"at {self.address}" if self._is_open else "closed"
        return f"<Tunnel to {self.destination}: {where}>"

    @property
    def failure(self) -> TunnelError | None:
        """Why the last attempt to connect failed; None once one has succeeded."""
        return self._failure

    @property
    def local_port(self) -> int:
        """The port on this computer; 0 before the tunnel is open."""
        return self._port

    @property
    def address(self) -> str:
        """The address on this computer, ``127.0.0.1:PORT``."""
        return f"{HOST}:{self._port}"

    async def start(self) -> None:
        """Listen on this computer. Nothing is asked of the far end before somebody connects.

        Raises
        ------
        OSError
            The port is taken.
        """
        await self._far_end.start()
        try:
            listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
            try:
                if self._wanted_port and os.name == "posix":
                    # Connections that have ended there a moment ago are in nobody's way.
                    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                listener.bind((HOST, self._wanted_port))
                self._is_open = True
                loop = asyncio.get_running_loop()
                self._server = await loop.create_server(self._accept, sock=listener, backlog=128)
            except BaseException:
                listener.close()
                raise
        except BaseException:
            self._is_open = False
            await self._far_end.close()
            raise
        self._listener = listener
        self._port = listener.getsockname()[1]

    async def answers(self) -> bool:
        """Ask the far end whether the instance's port can be connected to.

        Returns
        -------
        bool
            Whether it can. If not, `failure` tells why.
        """
        try:
            websocket = await self._far_end.open(Relay())
        except TunnelError as error:
            self._note("waiting", error)
            return False
        self._note("connected", None)
        await hang_up(websocket)
        return True

    async def close(self) -> None:
        """Close the tunnel and all its connections, to the end even if it is cancelled."""
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

    async def __aenter__(self) -> Tunnel:
        await self.start()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.close()

    def _accept(self) -> LocalEnd:
        end = LocalEnd(self._welcome, self._part)
        self._ends.add(end)
        return end

    def _welcome(self, end: LocalEnd) -> None:
        if not self._is_open:
            end.abort()
            return
        passage = Passage(end, self._far_end, self._note)
        task = asyncio.ensure_future(passage.run())
        self._passages[task] = passage
        task.add_done_callback(self._end_passage)

    def _end_passage(self, task: asyncio.Task[None]) -> None:
        del self._passages[task]
        if not task.cancelled() and (error := task.exception()) is not None:
            logger.error("A connection through %r broke", self, exc_info=error)

    def _part(self, end: LocalEnd) -> None:
        self._ends.discard(end)
        if not self._ends:
            self._all_gone.set()

    def _note(self, what: str, error: TunnelError | None) -> None:
        """Remember why it fails, and say it once, however often it is tried."""
        if what != "cut":
            self._failure = error
        code = None if error is None else error.code
        if what == "resumed":
            self._tell("resumed", str(self.destination))
        elif error is not None and (what != "waiting" or code != self._told):
            self._tell(what, str(error))
        self._told = code

    async def _tear_down(self) -> None:
        self._is_open = False
        server, self._server = self._server, None
        listener, self._listener = self._listener, None
        if server is not None and listener is not None:
            # Whom the loop has accepted in this turn becomes a connection in the next one: of a
            # server that is closed by then asyncio makes none, and forgets to close the socket.
            asyncio.get_running_loop().remove_reader(listener)
            await asyncio.sleep(0)
            server.close()
        for passage in self._passages.values():
            passage.leave()
        if self._passages:
            await asyncio.wait(set(self._passages), timeout=GRACE)
        while self._passages:
            for task in set(self._passages):
                task.cancel()
            # More than once: before Python 3.12 `asyncio.wait_for` may swallow a cancellation.
            await asyncio.wait(set(self._passages), timeout=GRACE)
        while self._ends:
            self._all_gone.clear()
            for end in self._ends:
                end.abort()
            await self._all_gone.wait()
        if server is not None:
            await server.wait_closed()
        await self._far_end.close()
