"""From one request to its answer, whatever carried it.

Owns: latency, system parameters, request IDs, faults of calls, partial answers, the telling of
observers. The answers come from `methods`; which calls are let in is told by `admission`, who may
make them by `requirements`; HTTP and strangers are `server`'s business.
"""

from __future__ import annotations

import asyncio
import inspect
import json
import logging
import uuid
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from dask_gce.emulator.admission import admit
from dask_gce.emulator.cloud import Cloud
from dask_gce.emulator.errors import APIError, bad_request, envelope, invalid
from dask_gce.emulator.methods import ROUTES
from dask_gce.emulator.operations import Operation
from dask_gce.emulator.partial import apply_mask, parse_mask
from dask_gce.emulator.requirements import authorize
from dask_gce.emulator.routing import Call, Route, Router
from dask_gce.emulator.schemas import check_body
from dask_gce.emulator.versions import check_version

#: The system parameters of every method; `$`-names are the newer spelling.
_SYSTEM_PARAMETERS = frozenset(
    {
        *("$.xgafv", "$alt", "$apiVersion", "$fields", "$key", "$prettyPrint", "$quotaUser"),
        *("access_token", "alt", "callback", "fields", "key", "oauth_token", "prettyPrint"),
        *("quotaUser", "uploadType", "upload_protocol", "userIp"),
    }
)

_ROUTER = Router(ROUTES)

logger = logging.getLogger(__name__)


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
        The path, from its first slash on.
    query : dict
        The query parameters.
    headers : mapping
        The request's headers; `Authorization` is left out.
    request_body : bytes
        What was sent.
    version : str or None
        The API version that was asked for; None is the undated v1.
    status : int
        The answer's status; 0 where a fault closed the connection without an answer.
    response_body : bytes
        What was answered.
    defect : Exception or None
        What the emulator itself broke on, where it answers 500 and no fault says so.
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
    defect: Exception | None = None

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


def check_methods(method_ids: Iterable[str]) -> None:
    """Refuse IDs of methods that are not answered here.

    Parameters
    ----------
    method_ids : iterable of str
        The IDs.

    Raises
    ------
    ValueError
        There is no such method.
    """
    unknown = sorted(set(method_ids) - {route.method_id for route in ROUTES})
    if unknown:
        raise ValueError(f"there is no method {unknown[0]!r}")


@dataclass
class Inbound:
    """A request, out of its envelope.

    Parameters
    ----------
    verb : str
        The HTTP method.
    path : str
        The path, decoded.
    query : dict
        The query parameters, decoded.
    headers : mapping
        The headers; keys in lower case.
    body : bytes
        The body.
    repeated : mapping of str to sequence of str
        Every value of each query parameter, decoded.
    """

    verb: str
    path: str
    query: dict[str, str] = field(default_factory=dict)
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes = b""
    repeated: Mapping[str, Sequence[str]] = field(default_factory=dict)


class Dropped(Exception):
    """The connection is to be closed without an answer."""


class Dispatcher:
    """Answers requests from a cloud's state.

    Parameters
    ----------
    cloud : Cloud
        The state.
    observers : sequence of callable
        Told of each exchange.
    count : callable
        Called with the ID of each method that is called.
    """

    def __init__(
        self,
        cloud: Cloud,
        observers: Sequence[Observer],
        count: Callable[[str], None],
    ) -> None:
        self._cloud = cloud
        self._observers = observers
        self._count = count

    async def answer(self, request: Inbound, refusal: APIError | None = None) -> tuple[int, bytes]:
        """Answer a request.

        Parameters
        ----------
        request : Inbound
            The request.
        refusal : APIError or None
            Why it is refused before anybody looks at it.

        Returns
        -------
        status : int
            The HTTP status.
        body : bytes
            The JSON; empty with status 204.

        Raises
        ------
        Dropped
            A fault wants the connection closed instead.
        """
        call: Call | None = None
        defect: Exception | None = None
        dropped: Dropped | None = None
        answer: Any = None
        try:
            if refusal is not None:
                raise refusal
            call = self._call(request)
            await asyncio.sleep(self._cloud.timings.latency_of(call.route.method_id))
            status, answer = 200, await self._carry_out(call, request)
        except APIError as error:
            status = error.status
            # As the Compute API answers, and those that are younger.
            answer = envelope(error, bare=request.path.startswith(("/v1/", "/v3/")))
        except Dropped as drop:
            status, dropped = 0, drop
        except Exception as error:
            # The one place where everything is caught: whatever is wrong with the emulator, clients
            # get an answer of Google's form, and whoever observes learns of it.
            logger.exception("The local Compute Engine broke on %s %s", request.verb, request.path)
            status, defect = 500, error
            answer = envelope(APIError(500, "backendError", "Internal error. Please try again."))
        if status == 200 and answer is None:
            status = 204
        body = b"" if answer is None else json.dumps(answer).encode()
        if self._observers:
            exchange = Exchange(
                method_id=call.route.method_id if call else "",
                verb=request.verb,
                path=request.path,
                query=request.query,
                headers={k: v for k, v in request.headers.items() if k != "authorization"},
                request_body=request.body,
                version=call.version if call else None,
                status=status,
                response_body=body,
                defect=defect,
            )
            for observer in self._observers:
                observer(exchange)
        if dropped is not None:
            raise dropped
        return status, body

    def _call(self, request: Inbound) -> Call:
        route, params = _ROUTER.match(request.verb, request.path)
        self._count(route.method_id)
        identity = self._cloud.identities.of(request.headers.get("authorization", ""))
        return Call(
            self._cloud,
            route,
            params,
            request.query,
            repeated=request.repeated,
            identity=identity,
        )

    async def _carry_out(self, call: Call, request: Inbound) -> Any:
        query = request.query
        if call.route.service == "compute":
            call.version = check_version(
                request.headers.get("x-goog-api-version"), query.get("$apiVersion")
            )
        _check_query(call)
        mask = query.get("fields") or query.get("$fields")
        mask = mask or request.headers.get("x-goog-fieldmask")
        tree = parse_mask(mask) if mask else {}
        admit(call)
        call.body = _read_body(call.route, request.body)
        if call.route.service == "compute":
            authorize(call)
        drop = await self._suffer(call)
        reply = await self._reply(call)
        if drop:
            raise Dropped
        return apply_mask(tree, reply)

    async def _suffer(self, call: Call) -> bool:
        """Let the fault of this call happen; return whether to drop it when it is carried out."""
        names = [value for key, value in call.params.items() if key not in ("project", "zone")]
        name = names[-1] if names else str(call.body.get("name", ""))
        fault = self._cloud.conditions.faults.take(call.route.method_id, name, operation=False)
        if fault is None:
            return False
        await asyncio.sleep(fault.delay)
        if fault.drop is True:
            raise Dropped
        if fault.status:
            raise APIError(fault.status, fault.reason, fault.message)
        return fault.drop == "after"

    async def _reply(self, call: Call) -> Any:
        request_id = call.query.get("requestId")
        called = f"{call.route.verb} {call.path}"
        if request_id is not None:
            _check_request_id(request_id)
            earlier = call.project.requests.get(request_id)
            if earlier is not None:
                if earlier[0] != called:
                    raise invalid(
                        "requestId", request_id, f"It is that of another call: {earlier[0]}."
                    )
                return await _completed(earlier[1])
        reply = call.route.handler(call)
        if inspect.isawaitable(reply):
            reply = await reply
        if isinstance(reply, Operation):
            if request_id is not None:
                call.project.requests[request_id] = called, reply
                reply.resource["clientOperationId"] = request_id
            return await _completed(reply)
        return reply


async def _completed(operation: Operation) -> dict[str, Any]:
    if operation.complete is not None:
        await operation.complete.wait()
    return operation.resource


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
        value = json.loads(body.decode())
        if b"\\u" in body:
            # An escape can smuggle half a character in, which no text holds.
            json.dumps(value, ensure_ascii=False).encode()
        return check_body(route.body, value)
    except (ValueError, RecursionError):
        raise APIError(400, "parseError", "Parse Error") from None


def _check_request_id(text: str) -> None:
    try:
        number = uuid.UUID(text).int
    except ValueError:
        number = 0
    if number == 0:
        raise invalid("requestId", text, "Must be a UUID, and not the zero UUID.")
