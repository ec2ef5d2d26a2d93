"""The HTTP side: who may ask, and in which envelopes questions come.

Owns: the refusal of foreign hosts, web pages and strangers, single requests and batches of them
(https://cloud.google.com/compute/docs/api/how-tos/batch). The answers come from `dispatch`.
"""

from __future__ import annotations

import asyncio
import hmac
import http
import os
import re
from collections.abc import Callable, Iterator, Mapping
from email import policy
from email.message import Message
from email.parser import BytesParser
from urllib.parse import parse_qs, unquote, urlsplit
from uuid import uuid4

from aiohttp import web

from dask_gce.emulator.dispatch import Dispatcher, Dropped, Inbound
from dask_gce.emulator.errors import APIError, bad_request, envelope
from dask_gce.emulator.iap.far_end import ORIGIN, FarEnd
from dask_gce.emulator.machine import MachineKind
from dask_gce.emulator.machines.peers import Peers

#: Larger than 512 KiB of metadata with every byte escaped, and than 5,000 named instances.
_LARGEST_BODY = 8 * 1024 * 1024

#: https://cloud.google.com/compute/docs/api/how-tos/batch
_MOST_PARTS = 1000

_GUESTS = web.AppKey("guests", bool)

_REQUEST_LINE = re.compile(rb"([A-Z]+) (\S+)(?: HTTP/[\d.]+)?\r?\n")


class Server:
    """Speaks HTTP for a dispatcher.

    Parameters
    ----------
    dispatcher : Dispatcher
        Answers the requests.
    kind : MachineKind
        The machines, whose guests may ask.
    hosts : frozenset of str
        The values of `Host` that are this server.
    token : str or None
        The bearer token that a request must carry, if it carries no machine's. With none it must
        come from the emulator's own user or from a guest, where the system tells from whom it
        comes.
    knows : callable
        Tells whether a token is a machine's.
    far_end : FarEnd
        Serves tunnels to the machines.
    """

    def __init__(
        self,
        dispatcher: Dispatcher,
        kind: MachineKind,
        hosts: frozenset[str],
        token: str | None,
        knows: Callable[[str], bool],
        far_end: FarEnd,
    ) -> None:
        self._dispatcher = dispatcher
        self._kind = kind
        self._peers = Peers()
        self._hosts = hosts
        self._token = token
        self._knows = knows
        self._far_end = far_end

    def application(self, *, guests: bool = False) -> web.Application:
        """Make the application that aiohttp runs.

        Parameters
        ----------
        guests : bool
            Whether nobody but guests and their clients can reach its listeners, so that there is no
            need to ask the system who they are.

        Returns
        -------
        aiohttp.web.Application
            The application.
        """
        application = web.Application(client_max_size=_LARGEST_BODY)
        application[_GUESTS] = guests
        application.router.add_get("/client-address", self._tell_address)
        for verb in ("connect", "reconnect"):
            application.router.add_get(f"/v4/{verb}", self._open_tunnel)
        # Also of paths with a line break in them, which a dot does not match.
        application.router.add_route("*", r"/{path:[\s\S]*}", self._answer)
        return application

    async def _answer(self, request: web.Request) -> web.StreamResponse:
        refusal = await self._refusal(request)
        body = b""
        if refusal is None:
            try:
                body = await request.read()
            except web.HTTPRequestEntityTooLarge:
                refusal = APIError(413, "uploadTooLarge", "The request is too large.")
        inbound = Inbound(
            request.method,
            request.path,
            dict(request.query),
            {name.lower(): value for name, value in request.headers.items()},
            body,
            {name: request.query.getall(name) for name in request.query},
        )
        try:
            if refusal is None and inbound.path in ("/batch", "/batch/compute/v1"):
                return await self._answer_batch(inbound)
            status, answer = await self._dispatcher.answer(inbound, refusal)
        except Dropped:
            if request.transport is not None:
                request.transport.close()
            return web.Response(status=500)
        if status == 204:
            return web.Response(status=status)
        return web.Response(status=status, body=answer, content_type="application/json")

    async def _tell_address(self, request: web.Request) -> web.StreamResponse:
        """Tell a client its own address, as firewall rules have to name it."""
        refusal = await self._refusal(request)
        if refusal is not None:
            return _refused(refusal)
        return web.Response(text=self._kind.network.client_address)

    async def _open_tunnel(self, request: web.Request) -> web.StreamResponse:
        refusal = await self._refusal(request, ORIGIN)
        try:
            if refusal is None:
                return await self._far_end.answer(request)
        except APIError as error:
            refusal = error
        return _refused(refusal)

    async def _refusal(self, request: web.Request, origin: str | None = None) -> APIError | None:
        """Return why a web page's or another user's request is not looked at.

        What is no web page may say so by an origin of its own.
        """
        if request.headers.get("Host", "").lower() not in self._hosts:
            return APIError(403, "forbidden", "This Host is not served here.")
        if request.headers.get("Origin") not in (None, origin):
            return APIError(403, "forbidden", "Requests of web pages are not answered.")
        if self._token is not None:
            scheme, _, token = request.headers.get("Authorization", "").partition(" ")
            given = token.strip()
            # In a time that tells nothing of the token.
            matches = hmac.compare_digest(
                given.encode(errors="surrogateescape"), self._token.encode()
            )
            if scheme.lower() != "bearer" or not (matches or self._knows(given)):
                return APIError(401, "authError", "Invalid Credentials")
        elif not request.app[_GUESTS] and not await self._peers.admit(
            request.transport, {os.geteuid(), *self._kind.users}
        ):
            return APIError(
                403,
                "forbidden",
                "This local Compute Engine answers only the user who started it, because it runs "
                "what it is sent. Start it with --token, and whoever bears the token is answered.",
            )
        return None

    async def _answer_batch(self, batch: Inbound) -> web.Response:
        try:
            parts = list(_parts(batch))
        except APIError as error:
            status, answer = await self._dispatcher.answer(batch, error)
            return web.Response(status=status, body=answer, content_type="application/json")
        answers = await asyncio.gather(*(self._dispatcher.answer(one) for _, one in parts))
        boundary = f"batch_{uuid4().hex}"
        lines: list[bytes] = []
        for (part_id, _), (status, answer) in zip(parts, answers, strict=True):
            lines += [
                b"--" + boundary.encode(),
                b"Content-Type: application/http",
                b"Content-ID: " + _response_id(part_id).encode(),
                b"",
                f"HTTP/1.1 {status} {http.HTTPStatus(status).phrase}".encode(),
                b"Content-Type: application/json; charset=UTF-8",
                f"Content-Length: {len(answer)}".encode(),
                b"",
                answer,
            ]
        lines += [b"--" + boundary.encode() + b"--", b""]
        return web.Response(
            body=b"\r\n".join(lines),
            headers={"Content-Type": f'multipart/mixed; boundary="{boundary}"'},
        )


def _refused(refusal: APIError) -> web.Response:
    return web.json_response(envelope(refusal), status=refusal.status)


def _response_id(part_id: str) -> str:
    return f"<response-{part_id[1:]}" if part_id.startswith("<") else f"response-{part_id}"


def _parts(batch: Inbound) -> Iterator[tuple[str, Inbound]]:
    """Yield the ID and the request of each part of a batch."""
    head = f"Content-Type: {batch.headers.get('content-type', '')}\r\n\r\n".encode()
    message = BytesParser(policy=policy.HTTP).parsebytes(head + batch.body)
    parts = list(message.iter_parts()) if message.is_multipart() else []
    if not parts:
        raise bad_request("Failed to parse batch request, error: no parts.")
    if len(parts) > _MOST_PARTS:
        raise bad_request(f"The batch request has {len(parts)} calls, more than {_MOST_PARTS}.")
    for part in parts:
        yield str(part.get("Content-ID", "")), _read_part(part, batch.headers)


def _read_part(part: Message, outer: Mapping[str, str]) -> Inbound:
    content = part.get_payload(decode=True)
    text = content if isinstance(content, bytes) else b""
    match = _REQUEST_LINE.match(text.lstrip())
    if match is None:
        raise bad_request("Failed to parse batch request, error: a part is no HTTP request.")
    inner = BytesParser(policy=policy.HTTP).parsebytes(
        text.lstrip()[match.end() :], headersonly=True
    )
    body = re.split(rb"\r?\n\r?\n", text.lstrip()[match.end() :], maxsplit=1)
    try:
        url = urlsplit(match[2].decode("ascii", "replace"))
    except ValueError as error:
        raise bad_request(f"Failed to parse batch request, error: {error}.") from error
    headers = {name.lower(): str(value) for name, value in inner.items()}
    for name in ("authorization", "x-goog-api-version"):
        if name in outer:
            headers.setdefault(name, outer[name])
    query = parse_qs(url.query, keep_blank_values=True)
    return Inbound(
        match[1].decode("ascii"),
        unquote(url.path),
        {name: values[0] for name, values in query.items()},
        headers,
        body[1].strip() if len(body) > 1 else b"",
        query,
    )
