"""One exchange with Compute Engine through google-cloud-compute, on the thread that asks.

It owns the library: importing it late, its clients and their HTTP sessions, the way from API JSON
to its message classes and back, and the translation of whatever it raises into a `policy.Failure`.
It knows no event loop and repeats nothing: threads, repeats and waiting are left to `calls`.

The import takes about a second and 140 MiB, so it happens when the first exchange needs it. Two of
the library's habits are kept out (both seen in version 1.56): its own retries, which cover a few
reads only, and its operation objects, which poll compute.googleapis.com whatever the endpoint.

From version 1.55 the library asks for Compute API version 2026-09-01 by the ``X-Goog-Api-Version``
header. Older ones ask for none, so the header is sent from here as well; the library's own wins.
"""

from __future__ import annotations

import difflib
import importlib
import ipaddress
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from dask_gce._version import __version__
from dask_gce.errors import GCEError, SettingsError
from dask_gce.failures import Place
from dask_gce.google_logs import keep_private
from dask_gce.policy import Failure, parse_retry_after
from dask_gce.rates import Group

if TYPE_CHECKING:
    from google.auth.credentials import Credentials

__all__ = ["API_VERSION", "Call", "ExchangeError", "Library"]

#: The Compute API version whose answers this package understands.
API_VERSION = "2026-09-01"
#: Longest piece of a server's answer that is quoted in an error, in characters.
_QUOTE_LENGTH = 1000
#: What google-api-core raises of its own code's making when an error's body is no envelope of
#: Google's (``format_http_response_error`` in 2.x looks into it without a check).
_MISREAD = (AttributeError, LookupError, TypeError, ValueError)


@dataclass(frozen=True)
class Call:
    """A request to Compute Engine, as data.

    Every call may be sent twice: it reads, or it carries a ``requestId``.

    Parameters
    ----------
    service : str
        The library's service, for example ``"Instances"``.
    verb : str
        The client's method, for example ``"insert_unary"``.
    request : str
        The library's request class, for example ``"InsertInstanceRequest"``.
    place : Place
        What it is about.
    fields : mapping
        Path and query parameters, in the library's spelling.
    body : mapping or None
        The resource to send, as API JSON.
    body_field : str
        The request's field that holds the body.
    mask : str
        A field mask for the answer; empty for all of it.
    long_poll : bool
        Whether an answer that does not come in time only means "not yet".
    group : str
        The group of Compute Engine's rate quotas that it is charged to, see `rates`.
    """

    service: str
    verb: str
    request: str
    place: Place
    fields: Mapping[str, Any] = field(default_factory=dict)
    body: Mapping[str, Any] | None = None
    body_field: str = ""
    mask: str = ""
    long_poll: bool = False
    group: Group = "read"


class ExchangeError(Exception):
    """An exchange failed; caught in `calls` and never seen by users.

    Parameters
    ----------
    failure : Failure
        What went wrong.
    """

    def __init__(self, failure: Failure) -> None:
        super().__init__(failure)
        self.failure = failure


class _Modules:
    """What is imported late. Loaded by name: mypy would spend minutes on the library's types."""

    def __init__(self) -> None:
        self.compute: Any = importlib.import_module("google.cloud.compute_v1")
        self.api_exceptions: Any = importlib.import_module("google.api_core.exceptions")
        self.client_info: Any = importlib.import_module("google.api_core.gapic_v1.client_info")
        self.auth_exceptions: Any = importlib.import_module("google.auth.exceptions")
        self.json_format: Any = importlib.import_module("google.protobuf.json_format")
        self.requests: Any = importlib.import_module("requests")
        keep_private()


class Library:
    """The library's clients for one endpoint and one set of credentials.

    Safe to use from several threads.

    Parameters
    ----------
    credentials : google.auth.credentials.Credentials
        Who asks.
    endpoint : str or None
        Scheme, host and port of the API, without a path; None for Google's own.
    connections : int
        How many connections each client keeps open.
    """

    def __init__(self, credentials: Credentials, *, endpoint: str | None, connections: int) -> None:
        self._credentials = credentials
        self._endpoint = endpoint.rstrip("/") if endpoint else None
        self._connections = connections
        self._modules: _Modules | None = None
        self._clients: dict[str, Any] = {}
        self._lock = threading.Lock()

    @property
    def endpoint(self) -> str | None:
        """The API's address; None for Google's own."""
        return self._endpoint

    def load(self) -> None:
        """Import the library and make the clients that every cluster needs."""
        for service in ("Instances", "ZoneOperations"):
            self._client(service)

    def exchange(self, call: Call, timeout: float) -> dict[str, Any]:
        """Send one request and return the answer.

        Parameters
        ----------
        call : Call
            The request.
        timeout : float
            Seconds to wait for a connection, and again for each part of the answer.

        Returns
        -------
        dict
            The answer as API JSON; 64-bit integers are strings, as the API sends them.

        Raises
        ------
        SettingsError
            The body has a field or a value that Compute Engine does not know.
        GCEError
            The library is too old to know the method.
        ExchangeError
            The request was refused, or no answer came.
        """
        modules, client = self._client(call.service)
        if not (hasattr(client, call.verb) and hasattr(modules.compute, call.request)):
            raise _too_old(modules, call.place)
        request = self._build_request(modules, call)
        metadata = [("x-goog-api-version", API_VERSION)]
        if call.mask:
            metadata.append(("x-goog-fieldmask", call.mask))
        try:
            answer = getattr(client, call.verb)(
                request, retry=None, timeout=timeout, metadata=metadata
            )
        except modules.api_exceptions.GoogleAPICallError as error:
            raise ExchangeError(_refusal(error)) from error
        except modules.requests.RequestException as error:
            raise ExchangeError(_no_answer(error, modules)) from error
        except modules.auth_exceptions.TransportError as error:
            message = f"the token server could not be reached ({_innermost(error)})"
            raise ExchangeError(Failure(0, message=message)) from error
        except modules.auth_exceptions.GoogleAuthError as error:
            message = str(error.args[0]) if error.args else type(error).__name__
            raise ExchangeError(Failure(0, "credentials", message[:_QUOTE_LENGTH])) from error
        except (modules.json_format.ParseError, *_MISREAD) as error:
            message = "what answered is not Compute Engine, or not a version that is understood"
            failure = Failure(0, "garbled", message, url=self._endpoint or "")
            raise ExchangeError(failure) from error
        # A pager's first page is the answer; the next one is asked for as a call of its own, so
        # that each page is repeated by the same rules.
        message = next(iter(answer.pages)) if hasattr(answer, "pages") else answer
        return dict(modules.json_format.MessageToDict(type(message).pb(message)))

    def close(self) -> None:
        """Close all connections. The next exchange opens new ones."""
        with self._lock:
            clients = list(self._clients.values())
        for client in clients:
            # Closing a session only forgets its pools. urllib3 closes their connections when nobody
            # refers to them any more, and the cause of every APIError does.
            for adapter in client.transport._session.adapters.values():
                pools = adapter.poolmanager.pools
                for pool in [pools[key] for key in pools.keys()]:  # noqa: SIM118 - not a dict
                    pool.close()
            client.transport.close()

    def _client(self, service: str) -> tuple[_Modules, Any]:
        with self._lock:
            if self._modules is None:
                self._modules = _Modules()
            if service not in self._clients:
                self._clients[service] = self._build_client(self._modules, service)
            return self._modules, self._clients[service]

    def _build_client(self, modules: _Modules, service: str) -> Any:
        options = {"api_endpoint": self._endpoint} if self._endpoint else None
        if not hasattr(modules.compute, f"{service}Client"):
            raise _too_old(modules, f"know the service {service}")
        client = getattr(modules.compute, f"{service}Client")(
            credentials=self._credentials,
            client_options=options,
            client_info=modules.client_info.ClientInfo(
                user_agent=f"dask-gce/{__version__}",
                gapic_version=modules.compute.__version__,
            ),
        )
        # The transport offers no public way to its session, and its pool keeps 10 connections.
        session = client.transport._session
        for adapter in session.adapters.values():
            adapter.init_poolmanager(self._connections, self._connections)
        if _is_loopback(self._endpoint):
            # A proxy from the environment must not see, or fail, what stays on this machine.
            session.trust_env = False
        return client

    def _build_request(self, modules: _Modules, call: Call) -> Any:
        request_class = getattr(modules.compute, call.request)
        request = request_class(dict(call.fields))
        if call.body is not None:
            message = getattr(request_class.pb(request), call.body_field)
            _check_fields(call.body, message.DESCRIPTOR, "", call.place)
            try:
                modules.json_format.ParseDict(dict(call.body), message)
            except modules.json_format.ParseError as error:
                raise SettingsError(
                    f"The request to {call.place} has a value of the wrong type: "
                    f"{str(error).splitlines()[0].rstrip('.')}. Check instance_overrides.",
                    key="instance_overrides",
                ) from error
            # An empty body must still be sent as one.
            message.SetInParent()
        return request


def _too_old(modules: _Modules, what: object) -> GCEError:
    return GCEError(
        f"google-cloud-compute {modules.compute.__version__} is too old to {what}: install a newer "
        "one."
    )


def _check_fields(body: Any, descriptor: Any, path: str, place: Place) -> None:
    """Refuse fields that the message class does not have, by their full path."""
    if not isinstance(body, Mapping) or descriptor.full_name.startswith("google.protobuf."):
        return
    known = {field.json_name: field for field in descriptor.fields}
    for key, value in body.items():
        here = f"{path}.{key}" if path else str(key)
        found = known.get(key)
        if found is None:
            near = difflib.get_close_matches(str(key), known, n=1)
            hint = f" Did you mean {near[0]!r}?" if near else ""
            raise SettingsError(
                f"The request to {place} has a field that Compute Engine does not know: "
                f"{here!r}.{hint} Check instance_overrides; a field newer than the installed "
                "google-cloud-compute needs a newer one.",
                key="instance_overrides",
            )
        if found.message_type is None:
            continue
        if found.message_type.GetOptions().map_entry:
            inner = found.message_type.fields_by_name["value"].message_type
            if inner is not None and isinstance(value, Mapping):
                for entry, item in value.items():
                    _check_fields(item, inner, f"{here}[{entry!r}]", place)
        elif isinstance(value, list | tuple):
            for index, item in enumerate(value):
                _check_fields(item, found.message_type, f"{here}[{index}]", place)
        else:
            _check_fields(value, found.message_type, here, place)


def _refusal(error: Any) -> Failure:
    response = error.response
    try:
        told = [each for each in error.errors if isinstance(each, Mapping)]
    except TypeError:
        # The library keeps whatever stood in the place of the envelope's list.
        told = []
    first = told[0] if told else {}
    # Each permission that is missing is an error of its own.
    sentences = dict.fromkeys(str(each["message"]) for each in told if each.get("message"))
    headers = response.headers if response is not None else {}
    request = response.request if response is not None else None
    return Failure(
        status=int(error.code or 0),
        reason=str(first.get("reason") or error.reason or ""),
        message=("; ".join(sentences) or str(error.message))[:_QUOTE_LENGTH],
        method=str(request.method) if request is not None else "",
        url=_bare(request.url) if request is not None else "",
        retry_after=parse_retry_after(headers.get("Retry-After"), now=time.time()),
    )


def _no_answer(error: Any, modules: _Modules) -> Failure:
    exceptions = modules.requests.exceptions
    if isinstance(error, exceptions.ReadTimeout):
        reason, message = "timeout", "the answer did not come in time"
    elif isinstance(error, exceptions.ConnectTimeout):
        reason, message = "", "the connection could not be made in time"
    else:
        reason, message = "", f"the connection failed or broke ({_innermost(error)})"
    request = error.request
    return Failure(
        status=0,
        reason=reason,
        message=message,
        method=str(request.method) if request is not None else "",
        url=_bare(request.url) if request is not None else "",
    )


def _innermost(error: BaseException) -> str:
    """Name the first cause, without the addresses and headers that outer messages quote."""
    seen = {id(error)}
    while (inner := error.__cause__ or error.__context__) is not None and id(inner) not in seen:
        seen.add(id(inner))
        error = inner
    if isinstance(error, OSError) and error.strerror:
        return str(error.strerror)
    return type(error).__name__


def _bare(url: str | None) -> str:
    """Return an address without query and user."""
    parts = urlsplit(url or "")
    host = parts.netloc.rpartition("@")[2]
    return f"{parts.scheme}://{host}{parts.path}" if host else ""


def _is_loopback(endpoint: str | None) -> bool:
    host = urlsplit(endpoint or "").hostname or ""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
