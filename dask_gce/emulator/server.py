"""From HTTP requests to handlers and back.

Owns: who may ask (loopback `Host`, no `Origin`, the bearer token), API versions, request IDs,
faults of calls, partial answers, the telling of observers. The answers come from `methods`.
"""

from __future__ import annotations

import asyncio
import hmac
import inspect
import json
import logging
import re
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from functools import cached_property
from typing import Any

from aiohttp import web

from dask_gce.emulator.cloud import Cloud
from dask_gce.emulator.errors import APIError, bad_request, envelope, invalid
from dask_gce.emulator.methods import ROUTES
from dask_gce.emulator.operations import Operation
from dask_gce.emulator.partial import apply_mask, parse_mask
from dask_gce.emulator.routing import Call, Route, Router
from dask_gce.emulator.schemas import check_body

logger = logging.getLogger(__name__)

#: The system parameters of every method; `$`-names are the newer spelling.
_SYSTEM_PARAMETERS = frozenset(
    {
        *("$.xgafv", "$alt", "$apiVersion", "$fields", "$key", "$prettyPrint", "$quotaUser"),
        *("access_token", "alt", "callback", "fields", "key", "oauth_token", "prettyPrint"),
        *("quotaUser", "uploadType", "upload_protocol", "userIp"),
    }
)

#: The first dated version of the API.
FIRST_VERSION = "2026-09-01"

_ROUTER = Router(ROUTES)

#: Larger than 512 KiB of metadata with every byte escaped, and than 5,000 named instances.
_LARGEST_BODY = 8 * 1024 * 1024


@dataclass(frozen=True)
class Exchange:
    """One request and its answer, as an observer is told of it.

    Parameters
    ----------
    method_id : str
        The method's ID, for example ``compute.instances.insert``; empty when there is none.
    verb : str
        The HTTP method.
    path : str
        The path, from ``/compute/v1/`` on.
    query : dict
        The query parameters.
    headers : mapping
        The request's headers; `Authorization` is left out.
    request_body : bytes
        What was sent.
    version : str or None
        The API version that was asked for; None is the undated v1.
    status : int
        The answer's status.
    response_body : bytes
        What was answered.
    """

    method_id: str
    verb: str
    path: str
    query: Mapping[str, str]
    headers: Mapping[str, str]
    request_body: bytes
    version: str | None
    status: int
    response_body: bytes

    @cached_property
    def request(self) -> Any:
        """The request's JSON, None without a body."""
        return json.loads(self.request_body) if self.request_body else None

    @cached_property
    def response(self) -> Any:
        """The answer's JSON, None without a body."""
        return json.loads(self.response_body) if self.response_body else None


#: Called with every exchange, in the emulator's thread.
Observer = Callable[[Exchange], None]


def check_version(header: str | None, parameter: str | None) -> str | None:
    """Return the API version that a request asks for.

    Compute Engine's versions are dates, neither header nor parameter means the undated v1, for ever
    (https://cloud.google.com/compute/docs/api-versions). The emulator knows every version whose
    date has come, so that clients newer than the emulator work.

    Parameters
    ----------
    header : str or None
        The header ``X-Goog-Api-Version``.
    parameter : str or None
        The query parameter ``$apiVersion``.

    Returns
    -------
    str or None
        The version.

    Raises
    ------
    APIError
        Both are given, or there is no such version.

    Examples
    --------
    >>> check_version("2026-09-01", None)
    '2026-09-01'
    """
    if header is not None and parameter is not None:
        raise bad_request(
            "The API version must be given by the X-Goog-Api-Version header or by the"
            " $apiVersion query parameter, not by both."
        )
    version = header if header is not None else parameter
    if version is None:
        return None
    today = datetime.now(timezone.utc).date().isoformat()
    known = re.fullmatch(r"\d{4}-(?:0[1-9]|1[0-2])-01(?:-preview)?", version)
    if not known or not FIRST_VERSION <= version[:10] <= today:
        raise bad_request(f"Invalid API version: '{version}' is not a version of this API.")
    return version


class Server:
    """Answers HTTP requests from a cloud's state.

    Parameters
    ----------
    cloud : Cloud
        The state.
    hosts : collection of str
        The values of `Host` that are this server.
    tokens : sequence of str
        The bearer tokens of which a request must carry one; with none, no token is asked for.
    observers : sequence of callable
        Told of each exchange.
    count : callable
        Called with the ID of each method that is called.
    """

    def __init__(
        self,
        cloud: Cloud,
        hosts: frozenset[str],
        tokens: Sequence[str],
        observers: Sequence[Observer],
        count: Callable[[str], None],
    ) -> None:
        self._cloud = cloud
        self._hosts = hosts
        self._tokens = [token.encode() for token in tokens]
        self._observers = observers
        self._count = count

    def application(self) -> web.Application:
        """Return the aiohttp application."""
        application = web.Application(client_max_size=_LARGEST_BODY)
        application.router.add_route("*", "/{path:.*}", self._answer)
        return application

    async def _answer(self, request: web.Request) -> web.StreamResponse:
        await asyncio.sleep(self._cloud.timings.latency)
        route: Route | None = None
        version: str | None = None
        body = b""
        try:
            self._admit(request)
            path = request.path.removeprefix("/compute/v1/")
            if path == request.path:
                raise APIError(404, "notFound", f"The requested URL {request.path} was not found.")
            route, params = _ROUTER.match(request.method, path)
            self._count(route.method_id)
            body = await request.read()
            query = dict(request.query)
            version = check_version(
                request.headers.get("X-Goog-Api-Version"), query.get("$apiVersion")
            )
            call = Call(self._cloud, route, params, query, {}, version)
            _check_query(call)
            mask = query.get("fields") or query.get("$fields")
            mask = mask or request.headers.get("X-Goog-FieldMask")
            tree = parse_mask(mask) if mask else {}
            call.body = _read_body(route, body)
            if await self._hit_by_fault(call):
                if request.transport is not None:
                    request.transport.close()
                return web.Response(status=500)
            status, answer = 200, apply_mask(tree, await self._reply(call))
        except APIError as error:
            status, answer = error.status, envelope(error)
        except web.HTTPRequestEntityTooLarge:
            status, answer = 413, envelope(APIError(413, "uploadTooLarge", "Request is too large."))
        text = b"" if answer is None else json.dumps(answer).encode()
        if self._observers:
            self._tell(request, route, version=version, body=body, status=status, answer=text)
        if answer is None:
            return web.Response(status=204)
        return web.Response(status=status, body=text, content_type="application/json")

    def _admit(self, request: web.Request) -> None:
        """Refuse what a web page or another user of the machine may have sent."""
        if request.headers.get("Host", "").lower() not in self._hosts:
            raise APIError(403, "forbidden", "This Host is not served here.")
        if "Origin" in request.headers:
            raise APIError(403, "forbidden", "Requests of web pages are not answered.")
        if self._tokens:
            scheme, _, token = request.headers.get("Authorization", "").partition(" ")
            given = token.strip().encode()
            # Every token is compared, so that the time tells nothing.
            matches = [hmac.compare_digest(given, one) for one in self._tokens]
            if scheme.lower() != "bearer" or not any(matches):
                raise APIError(401, "authError", "Invalid Credentials")

    async def _hit_by_fault(self, call: Call) -> bool:
        """Let the fault of this call happen; tell whether the connection is to be dropped."""
        names = [value for key, value in call.params.items() if key not in ("project", "zone")]
        name = names[-1] if names else str(call.body.get("name", ""))
        fault = self._cloud.faults.take(call.route.method_id, name, operation=False)
        if fault is None:
            return False
        await asyncio.sleep(fault.delay)
        if fault.status:
            raise APIError(fault.status, fault.reason, fault.message)
        return fault.drop

    async def _reply(self, call: Call) -> Any:
        request_id = call.query.get("requestId")
        if request_id is not None:
            _check_request_id(request_id)
            earlier = call.project.requests.get(request_id)
            if earlier is not None:
                return earlier.resource
        reply = call.route.handler(call)
        if inspect.isawaitable(reply):
            reply = await reply
        if isinstance(reply, Operation):
            if request_id is not None:
                call.project.requests[request_id] = reply
            return reply.resource
        return reply

    def _tell(
        self,
        request: web.Request,
        route: Route | None,
        *,
        version: str | None,
        body: bytes,
        status: int,
        answer: bytes,
    ) -> None:
        headers = {
            name: value for name, value in request.headers.items() if name != "Authorization"
        }
        exchange = Exchange(
            method_id=route.method_id if route else "",
            verb=request.method,
            path=request.path,
            query=dict(request.query),
            headers=headers,
            request_body=body,
            version=version,
            status=status,
            response_body=answer,
        )
        for observer in self._observers:
            observer(exchange)


def _check_query(call: Call) -> None:
    for name, value in call.query.items():
        known = name in call.route.query or name in _SYSTEM_PARAMETERS
        # https://cloud.google.com/compute/docs/api-versions: gone from the first dated version on.
        gone = name == "returnPartialSuccess" and call.version is not None
        if not known or gone:
            raise bad_request(
                f'Invalid JSON payload received. Unknown name "{name}": Cannot bind query'
                f" parameter. Field '{name}' could not be found in request message."
            )
        if name in ("alt", "$alt") and not value.startswith("json"):
            raise bad_request(f"Invalid value for '{name}': '{value}'. Only JSON is spoken here.")


def _read_body(route: Route, body: bytes) -> dict[str, Any]:
    if route.body is None or not body:
        return {}
    try:
        value = json.loads(body)
    except ValueError:
        raise APIError(400, "parseError", "Parse Error") from None
    return check_body(route.body, value)


def _check_request_id(text: str) -> None:
    try:
        number = uuid.UUID(text).int
    except ValueError:
        number = 0
    if number == 0:
        raise invalid("requestId", text, "Must be a UUID, and not the zero UUID.")
