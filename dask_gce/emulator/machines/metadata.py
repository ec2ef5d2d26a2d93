"""The metadata server of one machine, as its guest sees it.

Owns the HTTP side: which requests are answered, waiting for changes, tokens, guest attributes. The
tree that is shown comes from :mod:`metadata_tree`. Where machines share the host's network each has
a listener of its own on its own address, because the listener is what tells one from another; where
they do not, whoever has told them apart hands over the requests (:meth:`MetadataServer.handle`).

Source: https://docs.cloud.google.com/compute/docs/metadata/querying-metadata
"""

from __future__ import annotations

import asyncio
import base64
import json
import re
import socket
import time
from collections.abc import Collection
from typing import Any

from aiohttp import web

from dask_gce.emulator.machines import metadata_tree as tree
from dask_gce.emulator.machines.layout import METADATA_NAMES
from dask_gce.emulator.machines.peers import Peers
from dask_gce.emulator.record import InstanceRecord

__all__ = ["MetadataServer"]

ROOT = ("computeMetadata", "v1")

#: Seconds that an access token lives, as Google's do just after they were made.
TOKEN_LIFETIME = 3599

#: A guest attribute's value is bounded like any metadata value, in bytes.
VALUE_SIZE = 262_144

_PORT = re.compile(r":\d+$")
_KEY = re.compile(r"[a-zA-Z0-9_.-]{1,128}")
_TRUE = frozenset({"true", "yes", "y", "1"})


class MetadataServer:
    """Serves one machine's metadata.

    Parameters
    ----------
    record : InstanceRecord
        The instance.
    address : str
        The internal address of its machine, on which the server listens.
    users : collection of int or None
        The users of the host who are answered, where the system tells who asks; None for requests
        that nobody but the guest can make.
    """

    def __init__(
        self,
        record: InstanceRecord,
        address: str,
        users: Collection[int] | None,
    ) -> None:
        self._record = record
        self._address = address
        self._users = users
        self._peers = Peers()
        self._runner: web.ServerRunner | None = None
        self.port = 0

    async def start(self) -> None:
        """Listen on a free port of the machine's address."""
        if self._runner is not None:
            return
        # Requests that wait for a change would hold the end for the default of a minute; the time
        # is not 0, which aiohttp takes for "without limit".
        runner = web.ServerRunner(
            web.Server(self.handle, access_log=None, handler_cancellation=True),
            shutdown_timeout=0.01,
        )
        await runner.setup()
        listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        try:
            listener.bind((self._address, 0))
            await web.SockSite(runner, listener, backlog=128).start()
        except BaseException:
            listener.close()
            await runner.cleanup()
            raise
        self.port = listener.getsockname()[1]
        self._runner = runner

    async def close(self) -> None:
        """Stop listening and end every request. May be called twice."""
        runner, self._runner, self.port = self._runner, None, 0
        if runner is not None:
            await runner.cleanup()

    async def handle(self, request: web.BaseRequest) -> web.StreamResponse:
        """Answer a request of the machine's guest.

        Parameters
        ----------
        request : aiohttp.web.BaseRequest
            The request.

        Returns
        -------
        aiohttp.web.StreamResponse
            The answer.
        """
        response = await self._answer(request)
        response.headers["Metadata-Flavor"] = "Google"
        response.headers["Server"] = "Metadata Server for VM"
        response.headers["X-XSS-Protection"] = "0"
        response.headers["X-Frame-Options"] = "SAMEORIGIN"
        return response

    async def _answer(self, request: web.BaseRequest) -> web.Response:
        refusal = await self._refusal(request)
        if refusal is not None:
            return _error(403, refusal)
        segments = [segment for segment in request.path.split("/") if segment]
        if not segments:
            return _text("computeMetadata/\n")
        asked = request.headers.get("X-Google-Metadata-Request", "").lower() == "true"
        if request.headers.get("Metadata-Flavor", "").lower() != "google" and not asked:
            return _error(403, "Missing Metadata-Flavor:Google header.")
        if segments[:2] != list(ROOT):
            return (
                self._folder(request, _text("v1/\n"))
                if segments == ["computeMetadata"]
                else _not_found(request)
            )
        path = segments[2:]
        if path[:2] == ["instance", "guest-attributes"]:
            return await self._guest_attributes(request, path[2:])
        if request.method not in ("GET", "HEAD"):
            return _error(405, f"The method {request.method} is not allowed here.")
        if path[:2] == ["instance", "service-accounts"] and path[3:] in (["token"], ["identity"]):
            return self._credential(request, path[2], path[3])
        return await self._look(request, path)

    async def _refusal(self, request: web.BaseRequest) -> str | None:
        """Return why a web page's or another user's request is not answered."""
        # A page whose host name suddenly means this machine would still be sent by that name.
        host = request.headers.get("Host", "").lower()
        if host != f"{self._address}:{self.port}" and _PORT.sub("", host) not in METADATA_NAMES:
            return "This Host is not served here."
        if "Origin" in request.headers:
            return "Requests of web pages are refused."
        strangers = self._users is not None
        if strangers and not await self._peers.admit(request.transport, self._users or ()):
            return "Only this machine's guest is answered here."
        if "X-Forwarded-For" in request.headers:
            return "Requests with an X-Forwarded-For header are refused."
        return None

    def _tree(self) -> Any:
        return tree.build_tree(self._record, self._address)

    async def _look(self, request: web.BaseRequest, path: list[str]) -> web.Response:
        query = request.query
        waiting = query.get("wait_for_change", "").lower() == "true"
        limit = query.get("timeout_sec", "")
        deadline = time.monotonic() + float(limit) if limit.isdecimal() else None
        seen = query.get("last_etag")
        while True:
            version = self._record.version
            try:
                node = tree.find(self._tree(), path)
            except KeyError:
                return _not_found(request)
            fingerprint = tree.etag(node)
            seen = fingerprint if seen is None else seen
            if not waiting or seen != fingerprint:
                break
            left = None if deadline is None else deadline - time.monotonic()
            if left is not None and left <= 0:
                break
            if not await self._record.wait_for_change(version, left):
                break
        response = self._render(request, node, path[-1] if path else "")
        response.headers["ETag"] = fingerprint
        return response

    def _render(self, request: web.BaseRequest, node: Any, name: str) -> web.Response:
        recursive = request.query.get("recursive", "").lower() == "true"
        form = request.query.get("alt", "json" if recursive else "text").lower()
        if recursive and tree.is_folder(node):
            shown = tree.render_recursive(node, text=form == "text")
        elif form == "json":
            shown = tree.render_json(node)
        else:
            shown = tree.render_text(node, name)
        response = _json(shown) if form == "json" else _text(shown)
        if tree.is_folder(node):
            return self._folder(request, response)
        return response if not request.path.endswith("/") else _not_found(request)

    @staticmethod
    def _folder(request: web.BaseRequest, response: web.Response) -> web.Response:
        if request.path.endswith("/"):
            return response
        query = f"?{request.query_string}" if request.query_string else ""
        return web.Response(status=301, headers={"Location": f"{request.path}/{query}"})

    def _credential(self, request: web.BaseRequest, account: str, kind: str) -> web.Response:
        try:
            entry = tree.find(self._tree(), ["instance", "service-accounts", account])
        except KeyError:
            return _not_found(request)
        if kind == "token":
            token = {
                "access_token": self._record.access_token,
                "expires_in": TOKEN_LIFETIME,
                "token_type": "Bearer",
            }
            return _json(json.dumps(token))
        audience = request.query.get("audience", "")
        if not audience:
            return _error(400, "non-empty audience parameter required")
        return _text(self._identity(entry["email"], audience, request.query.get("format", "")))

    def _identity(self, email: str, audience: str, form: str) -> str:
        """Build an identity token: of the right form, but signed by nobody."""
        now = int(time.time())
        subject = str(self._record.resource.get("id", 0))
        claims: dict[str, Any] = {
            "aud": audience,
            "azp": subject,
            "exp": now + 3600,
            "iat": now,
            "iss": "https://accounts.google.com",
            "sub": subject,
        }
        if form == "full":
            claims |= {"email": email, "email_verified": True}
            claims["google"] = {
                "compute_engine": {
                    "instance_creation_timestamp": now,
                    "instance_id": subject,
                    "instance_name": self._record.name,
                    "project_id": self._record.project,
                    "project_number": self._record.project_number,
                    "zone": self._record.zone,
                }
            }
        header = {"alg": "RS256", "kid": "local-compute-engine", "typ": "JWT"}
        parts = [json.dumps(part).encode() for part in (header, claims)]
        parts.append(b"signed by nobody")
        return ".".join(base64.urlsafe_b64encode(part).rstrip(b"=").decode() for part in parts)

    async def _guest_attributes(self, request: web.BaseRequest, path: list[str]) -> web.Response:
        enabled = self._record.metadata.get("enable-guest-attributes", "").lower() in _TRUE
        if not enabled:
            return _error(403, "Guest attributes endpoint access is disabled.")
        kept = self._record.guest_attributes
        if request.method in ("GET", "HEAD"):
            shown = tree.Named((space, tree.Named(keys)) for space, keys in kept.items())
            try:
                node = tree.find(shown, path)
            except KeyError:
                return _not_found(request)
            return self._render(request, node, path[-1] if path else "")
        if len(path) != 2 or not all(_KEY.fullmatch(part) for part in path):
            return _error(400, "A guest attribute is named guest-attributes/NAMESPACE/KEY.")
        namespace, key = path
        if request.method == "PUT":
            value = await _body(request)
            if value is None:
                return _error(413, f"A guest attribute holds at most {VALUE_SIZE} bytes.")
            kept.setdefault(namespace, {})[key] = value
        elif request.method == "DELETE":
            if key not in kept.get(namespace, {}):
                return _not_found(request)
            del kept[namespace][key]
            if not kept[namespace]:
                del kept[namespace]
        else:
            return _error(405, f"The method {request.method} is not allowed here.")
        self._record.touch()
        return _text("")


async def _body(request: web.BaseRequest) -> str | None:
    data = b""
    try:
        async for piece in request.content.iter_chunked(65536):
            data += piece
            if len(data) > VALUE_SIZE:
                return None
    except asyncio.IncompleteReadError:
        return None
    return data.decode(errors="replace")


def _text(text: str) -> web.Response:
    return web.Response(text=text, content_type="application/text")


def _json(text: str) -> web.Response:
    return web.Response(text=text, content_type="application/json")


def _error(status: int, sentence: str) -> web.Response:
    page = (
        f"<!DOCTYPE html>\n<html lang=en>\n<title>Error {status}</title>\n<p>{sentence}\n</html>\n"
    )
    return web.Response(status=status, text=page, content_type="text/html")


def _not_found(request: web.BaseRequest) -> web.Response:
    # The path is shown to the guest that sent it, and to nobody else; it is not repeated here.
    return _error(404, "The requested URL was not found on this server.")
