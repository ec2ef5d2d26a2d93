"""``/v4/connect`` and ``/v4/reconnect``: who may have a tunnel, and where it leads.

Owns: the websocket's handshake, finding the instance and the session, the sessions there are. Who
may ask at all is the business of `server`; what passes that of `link` and `session`.

Source: https://cloud.google.com/iap/docs/using-tcp-forwarding, and for the codes
https://cloud.google.com/iap/docs/faq
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from aiohttp import web

from dask_gce.emulator.errors import APIError, bad_request
from dask_gce.emulator.iap.frames import Closed, Code
from dask_gce.emulator.iap.link import CLOSING, Link
from dask_gce.emulator.iap.script import Tunnels
from dask_gce.emulator.iap.session import Session

if TYPE_CHECKING:
    from dask_gce.emulator.cloud import Cloud
    from dask_gce.emulator.lifecycle import Instance

__all__ = ["ORIGIN", "FarEnd"]

#: What clients say instead of a web page's origin.
ORIGIN = "bot:iap-tunneler"

_SUBPROTOCOL = "relay.tunnel.cloudproxy.app"

_PERMISSION = "iap.tunnelInstances.accessViaIAP"

#: Bytes of the largest message that is looked at.
_LARGEST_MESSAGE = 2**17

#: Seconds that a machine may take to accept. Whom no firewall rule admits, gets no answer.
_CONNECTING = 4.0


@dataclass(frozen=True)
class _Target:
    """A port of an instance, as a client names it."""

    project: str
    zone: str
    instance: str
    interface: str
    port: int


class FarEnd:
    """Carries connections from websockets to machines.

    Parameters
    ----------
    cloud : Cloud
        The instances.
    script : Tunnels
        What is to go wrong.
    """

    def __init__(self, cloud: Cloud, script: Tunnels) -> None:
        self._cloud = cloud
        self._script = script
        self._sessions: dict[str, tuple[Session, _Target, Instance]] = {}
        self._ending: set[Session] = set()
        self._tasks: set[asyncio.Task[None]] = set()

    async def answer(self, request: web.Request) -> web.StreamResponse:
        """Serve a request to ``/v4/connect`` or ``/v4/reconnect``, to the end of its websocket.

        Parameters
        ----------
        request : aiohttp.web.Request
            The request, of somebody who may ask.

        Returns
        -------
        aiohttp.web.StreamResponse
            The websocket.

        Raises
        ------
        APIError
            It is no request for a tunnel.
        """
        _check_handshake(request)
        query = request.query
        wanted: _Target | tuple[str, int]
        if request.path.endswith("/reconnect"):
            wanted = _required(query, "sid"), _number(query, "ack", 0, 2**64 - 1)
        else:
            names = ("project", "zone", "instance", "interface")
            project, zone, instance, interface = (_required(query, name) for name in names)
            wanted = _Target(project, zone, instance, interface, _number(query, "port", 1, 65535))
        websocket = web.WebSocketResponse(
            protocols=(_SUBPROTOCOL,),
            compress=False,
            max_msg_size=_LARGEST_MESSAGE,
            timeout=CLOSING,
        )
        transport = request.transport
        await websocket.prepare(request)
        if transport is None:  # the client has hung up
            return websocket
        link = Link(websocket, transport, _token(request), self._script)
        task = asyncio.ensure_future(
            self._converse(link, wanted, request.headers.get("Authorization", ""))
        )
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        # Its client may hang up as soon as it has said everything: it is heard to the end.
        await asyncio.shield(task)
        return websocket

    async def _converse(
        self, link: Link, wanted: _Target | tuple[str, int], authorization: str
    ) -> None:
        confirmed = None
        try:
            code = self._script.take_close()
            if code is not None:
                raise Closed(code, "")
            if isinstance(wanted, _Target):
                session = await self._begin(wanted, authorization)
            else:
                sid, confirmed = wanted
                session = await self._find(link, sid, authorization)
                session.check_place(confirmed)
        except Closed as error:
            await link.say_goodbye(error.code, str(error))
            return
        if confirmed is None and link.is_deserted:
            session.end()  # nobody knows its ID
            return
        # First, so that whoever hears of it finds it counted.
        self._script.count("connects" if confirmed is None else "reconnects")
        self._script.begin(link)
        try:
            session.attach(link, confirmed)
            await link.serve(session)
        finally:
            self._script.end(link)

    async def _begin(self, target: _Target, authorization: str) -> Session:
        """Connect to a machine."""
        self._authorize(target, authorization)
        instance = self._look_up(target)
        interfaces = instance.resource["networkInterfaces"] if instance is not None else ()
        addresses = [one["networkIP"] for one in interfaces if one["name"] == target.interface]
        if instance is None or instance.status != "RUNNING" or not addresses:
            raise Closed(Code.LOOKUP_FAILED, "Failed to lookup instance")
        try:
            connection = await asyncio.wait_for(
                self._cloud.kind.network.connect(addresses[0], target.port), _CONNECTING
            )
        except (OSError, asyncio.TimeoutError) as error:
            raise Closed(
                Code.FAILED_TO_CONNECT_TO_BACKEND, "failed to connect to backend"
            ) from error
        session = Session(secrets.token_urlsafe(24), self._cloud.timings.resuming, self._forget)
        try:
            await asyncio.get_running_loop().create_connection(lambda: session, sock=connection)
        except BaseException:
            connection.close()
            raise
        self._sessions[session.sid] = session, target, instance
        return session

    async def _find(self, link: Link, sid: str, authorization: str) -> Session:
        """Return a session that can be taken up again."""
        if sid not in self._sessions:
            raise Closed(Code.SID_UNKNOWN, "There is no such session.")
        session, target, instance = self._sessions[sid]
        self._authorize(target, authorization)
        if self._look_up(target) is not instance:
            session.end()
            raise Closed(Code.LOOKUP_FAILED_RECONNECT, "The instance is gone.")
        if link.token and link.token == session.expired_token:
            raise Closed(Code.REAUTHENTICATION_REQUIRED, "The token has expired.")
        if session.link is not None:
            if not session.link.is_deserted:
                raise Closed(Code.SID_IN_USE, "The session is in use.")
            before = session.link
            before.close(Code.BROKEN_OFF)
            await before.left.wait()
            if sid not in self._sessions:
                raise Closed(Code.SID_UNKNOWN, "There is no such session.")
            if session.link is not None:
                raise Closed(Code.SID_IN_USE, "The session is in use.")
        return session

    def _authorize(self, target: _Target, authorization: str) -> None:
        """Refuse who may not reach an instance."""
        try:
            project = self._cloud.project(target.project)
            identity = self._cloud.identities.of(authorization)
        except APIError as error:
            raise Closed(Code.NOT_AUTHORIZED, "not authorized") from error
        if not self._cloud.permits(_PERMISSION, project, identity):
            raise Closed(Code.NOT_AUTHORIZED, "not authorized")

    def _look_up(self, target: _Target) -> Instance | None:
        project = self._cloud.project(target.project)
        return project.instances.get(target.zone, {}).get(target.instance)

    def _forget(self, session: Session) -> None:
        del self._sessions[session.sid]
        self._ending = {one for one in self._ending if not one.gone.is_set()} | {session}

    async def close(self) -> None:
        """End every tunnel. May be called twice."""
        for session, _, _ in tuple(self._sessions.values()):
            session.abort()
        for session in self._ending:
            session.abort()
        for task in tuple(self._tasks):
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)
        for session in tuple(self._ending):
            await session.gone.wait()


def _check_handshake(request: web.Request) -> None:
    if request.headers.get("Upgrade", "").lower() != "websocket":
        raise bad_request("Only websockets are served here.")
    offered = request.headers.get("Sec-WebSocket-Protocol", "").split(",")
    if _SUBPROTOCOL not in [one.strip() for one in offered]:
        raise bad_request(f"The websocket's subprotocol must be {_SUBPROTOCOL}.")
    if request.headers.get("Origin") != ORIGIN:
        raise APIError(403, "forbidden", f"The Origin must be {ORIGIN}.")


def _required(query: Mapping[str, str], name: str) -> str:
    if not query.get(name):
        raise bad_request(f"The parameter '{name}' is missing.")
    return query[name]


def _number(query: Mapping[str, str], name: str, least: int, most: int) -> int:
    text = _required(query, name)
    if not (text.isascii() and text.isdigit() and len(text) < 21 and least <= int(text) <= most):
        raise bad_request(f"The parameter '{name}' must be a number from {least} to {most}.")
    return int(text)


def _token(request: web.Request) -> str:
    scheme, _, token = request.headers.get("Authorization", "").partition(" ")
    return token.strip() if scheme.lower() == "bearer" else ""
