"""The line between a cluster and Compute Engine: it can be cut, and remembers what passed.

Owns the forwarding and the record of calls. What the record must show is judged by `campaign`.
"""

from __future__ import annotations

import json
import socket
import time
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any

import aiohttp
from aiohttp import web
from ports import quiet_port
from yarl import URL

from dask_gce.emulator.listeners import stop_accepting

#: Seconds that clients are asked to wait who are over their rate: a minute would be too long here.
RETRY_AFTER = "1"


@dataclass
class Passage:
    """One request on its way through, and its answer."""

    began: float
    verb: str
    path: str
    query: dict[str, str]
    body: Any
    ended: float | None = None
    #: The answer's status; 0 where none came.
    status: int = 0
    answer: Any = field(default=None, repr=False)

    def __str__(self) -> str:
        end = "..." if self.ended is None else f"{self.ended:.2f}"
        where = self.path.removeprefix("/compute/v1/projects/")
        names = ", ".join(self.inserts)
        said = ""
        if self.status >= 400:
            said = f" {self.answer['error']['errors'][0]['reason']}"
        return f"{self.began:.2f}-{end} {self.status}{said} {self.verb} {where} {names}".rstrip()

    @property
    def inserts(self) -> tuple[str, ...]:
        """The instances that it asks for."""
        if self.verb != "POST" or not isinstance(self.body, dict):
            return ()
        if self.path.endswith("/instances"):
            return (str(self.body["name"]),)
        if self.path.endswith("/instances/bulkInsert"):
            return tuple(self.body["perInstanceProperties"])
        return ()

    @property
    def deletes(self) -> str:
        """The instance that it deletes, if any."""
        folder, _, name = self.path.rpartition("/")
        return name if self.verb == "DELETE" and folder.endswith("/instances") else ""


class Wire:
    """A line to an HTTP server.

    Parameters
    ----------
    endpoint : str
        Where it leads.
    """

    def __init__(self, endpoint: str) -> None:
        self.passages: list[Passage] = []
        self.began = time.monotonic()
        self._target = endpoint
        # While the line is cut nobody listens there, and no system is to give the port away.
        self._port = quiet_port()
        self._session: aiohttp.ClientSession | None = None
        self._runner: web.AppRunner | None = None
        self._site: web.SockSite | None = None
        self._listener: socket.socket | None = None

    @property
    def endpoint(self) -> str:
        """Its own end, ``http://127.0.0.1:PORT``."""
        return f"http://127.0.0.1:{self._port}"

    @property
    def is_cut(self) -> bool:
        """Whether nothing goes through."""
        return self._site is None

    async def __aenter__(self) -> Wire:
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0, force_close=True),
            timeout=aiohttp.ClientTimeout(total=300),
        )
        application = web.Application(client_max_size=2**26)
        application.router.add_route("*", "/{path:.*}", self._forward)
        self._runner = web.AppRunner(application, access_log=None, shutdown_timeout=0.05)
        await self._runner.setup()
        await self.mend()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        assert self._runner is not None and self._session is not None
        await self._runner.cleanup()
        await self._session.close()

    async def cut(self) -> None:
        """Refuse every connection from now on; those that are open end at their next request."""
        if self._site is not None and self._listener is not None:
            site, self._site = self._site, None
            await stop_accepting([self._listener])
            await site.stop()

    async def mend(self) -> None:
        """Let everything through again."""
        if self._site is None:
            assert self._runner is not None
            listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(("127.0.0.1", self._port))
            site = web.SockSite(self._runner, listener, backlog=256)
            await site.start()
            self._site, self._listener = site, listener

    async def _forward(self, request: web.Request) -> web.StreamResponse:
        assert self._session is not None
        if self.is_cut:
            return _hang_up(request)
        content = await request.read()
        passage = Passage(
            time.monotonic() - self.began,
            request.method,
            request.path,
            dict(request.query),
            json.loads(content) if content else None,
        )
        self.passages.append(passage)
        headers = {
            name: value
            for name, value in request.headers.items()
            if name.lower() not in ("host", "content-length", "connection", "accept-encoding")
        }
        try:
            async with self._session.request(
                request.method,
                URL(self._target + request.raw_path, encoded=True),
                data=content,
                headers=headers,
            ) as answer:
                found = await answer.read()
                passage.answer = json.loads(found) if found else None
                passage.status = answer.status
        except aiohttp.ClientError:
            return _hang_up(request)
        finally:
            passage.ended = time.monotonic() - self.began
        if self.is_cut:
            return _hang_up(request)
        extra = {"Retry-After": RETRY_AFTER} if _is_over_rate(passage) else {}
        return web.Response(
            status=answer.status, body=found, content_type="application/json", headers=extra
        )


def _is_over_rate(passage: Passage) -> bool:
    if passage.status < 400:
        return False
    return bool(passage.answer["error"]["errors"][0]["reason"] == "rateLimitExceeded")


def _hang_up(request: web.Request) -> web.Response:
    if request.transport is not None:
        request.transport.abort()
    return web.Response(status=500)
