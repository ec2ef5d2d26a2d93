"""What JupyterLab's Dask sidebar needs beside a cluster: dashboards to show, keys for notebooks.

Owns the two things in which dask-labextension expects a cluster on the same computer. It shows
dashboards only where they are at a loopback address, and has notebooks connect by nothing but the
scheduler's address. Which both it gets here, for clusters wherever they are.

Source: ``dask_labextension/dashboardhandler.py``, whose proxy is given no list of hosts, and
`dask-labextension issue 233 <https://github.com/dask/dask-labextension/issues/233>`_.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import ssl
from collections.abc import Callable, Mapping
from typing import Any
from urllib.parse import urlsplit, urlunsplit

from distributed.core import Status
from distributed.security import Security

from dask_gce import cluster
from dask_gce.connections import connection_path, list_connections, load_connection
from dask_gce.errors import GCEError

__all__ = ["GCECluster", "find_security"]

logger = logging.getLogger(__name__)

#: What the sidebar's proxy takes for this computer.
HERE = "127.0.0.1"
LOOPBACK = ("localhost", HERE)

#: Bytes that are passed on at once.
CHUNK = 2**16

#: Seconds for a scheduler to answer, and for a dashboard.
ANSWERS_WITHIN = 5.0


class GCECluster(cluster.GCECluster):
    """A cluster for JupyterLab's Dask sidebar: `dask_gce.GCECluster` with three differences.

    Its dashboard is at a loopback address of this computer, whichever way leads to the scheduler:
    the sidebar shows no other. Notebooks of the same user can connect to it (``joinable``), for
    which `find_security` finds the keys. And it prints nothing into the server's terminal.

    Parameters
    ----------
    *args
        What ``dask_gce.GCECluster`` takes.
    joinable : bool
        Whether a file that only you can read lets notebooks connect.
    quiet : bool
        Whether to print nothing.
    **kwargs
        What ``dask_gce.GCECluster`` takes.
    """

    _relay: _Relay | None = None

    def __init__(
        self, *args: Any, joinable: bool = True, quiet: bool = True, **kwargs: Any
    ) -> None:
        super().__init__(*args, joinable=joinable, quiet=quiet, **kwargs)

    async def _start(self) -> None:
        await super()._start()
        if self._relay is None and self.status == Status.running:
            self._relay = _Relay(self._find_dashboard)
            await self._relay.start()

    async def _close(self) -> None:
        relay, self._relay = self._relay, None
        if relay is not None:
            await relay.close()
        await super()._close()

    def _find_dashboard(self) -> tuple[str, int] | None:
        """Return where the dashboard is as seen from here, if there is one."""
        found = urlsplit(super().dashboard_link)
        return (found.hostname, found.port) if found.hostname and found.port else None

    @property
    def dashboard_link(self) -> str:
        """The dashboard's address on this computer; empty if it has none."""
        link = super().dashboard_link
        found = urlsplit(link)
        if self._relay is None or not found.hostname or found.hostname in LOOPBACK:
            return link
        return urlunsplit(found._replace(netloc=f"{HERE}:{self._relay.port}"))


class _Relay:
    """A port of this computer that leads to another place, wherever that is at the moment.

    Parameters
    ----------
    find : callable
        Returns host and port of the place, None if there is none.
    """

    def __init__(self, find: Callable[[], tuple[str, int] | None]) -> None:
        self._find = find
        self._server: asyncio.Server | None = None
        self._passing: set[asyncio.Task[None]] = set()
        #: The port, once it is started.
        self.port = 0

    async def start(self) -> None:
        """Listen, at any port that is free."""
        self._server = await asyncio.start_server(self._accept, HERE, 0)
        self.port = self._server.sockets[0].getsockname()[1]

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.ensure_future(self._pass(reader, writer))
        self._passing.add(task)
        task.add_done_callback(self._passing.discard)

    async def _pass(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        ends = [writer]
        try:
            place = self._find()
            if place is None:
                return
            opening = asyncio.open_connection(*place)
            there, back = await asyncio.wait_for(opening, ANSWERS_WITHIN)
            ends.append(back)
            await asyncio.gather(_copy(reader, back), _copy(there, writer))
        except (OSError, asyncio.TimeoutError) as error:
            logger.info("The dashboard cannot be shown: %r", error)
        finally:
            # Whatever was said has been passed on, or there is nobody any more who hears it.
            for end in ends:
                end.transport.abort()

    async def close(self) -> None:
        """Stop, and cut whatever is under way."""
        if self._server is not None:
            self._server.close()
        passing = set(self._passing)
        for task in passing:
            task.cancel()
        await asyncio.gather(*passing, return_exceptions=True)


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Pass on what one side says until it says no more."""
    while data := await reader.read(CHUNK):
        writer.write(data)
        await writer.drain()
    with contextlib.suppress(OSError):
        writer.write_eof()
        await writer.drain()


def find_security(info: Mapping[str, Any]) -> Security | None:
    """Find the keys for a scheduler among the connection files of this user.

    For the setting ``distributed.client.security-loader`` of Dask, by which ``Client(address)``
    asks for keys when it is given none: the code that the sidebar puts into a notebook. The
    scheduler itself tells whose it is, by its certificate.

    Parameters
    ----------
    info : mapping
        The scheduler's ``"address"``.

    Returns
    -------
    distributed.security.Security or None
        The client's side of its cluster's security; None if it is of no cluster that has a file
        here, so that Dask does as without this.

    Examples
    --------
    >>> find_security({"address": "tcp://127.0.0.1:8786"}) is None
    True
    """
    place = urlsplit(str(info["address"]))
    if place.scheme != "tls" or place.hostname is None or place.port is None:
        return None
    for security in _newest_first():
        context = security.get_connection_args("client")["ssl_context"]
        try:
            with (
                socket.create_connection((place.hostname, place.port), ANSWERS_WITHIN) as plain,
                context.wrap_socket(plain) as secured,
            ):
                # A scheduler complains of who leaves before it has spoken.
                secured.recv(1)
        except ssl.SSLCertVerificationError:
            continue  # another cluster's
        except OSError:
            return None  # which is better explained by whoever connects next
        return security
    return None


def _newest_first() -> list[Security]:
    """Return the keys in all connection files, those first that were written last."""
    found = []
    for project, name in list_connections():
        try:
            written = connection_path(name, project).stat().st_mtime
            connection = load_connection(name, project)
        except (GCEError, OSError) as error:
            logger.info("Cluster %s cannot be connected to: %s", name, error)
            continue
        if connection.client_tls is not None:
            found.append((written, connection.security()))
    return [security for _, security in sorted(found, key=lambda each: each[0], reverse=True)]
