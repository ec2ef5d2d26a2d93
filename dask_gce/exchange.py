"""One exchange with Google's other APIs: plain HTTP, JSON and a token, on whatever thread.

Owns the connections and what an answer is. What is sent may be a private key. So nothing of a
request's content is part of what is told of a failure, not even of its cause, and no library is
used that writes requests into its logs, as google-auth's sessions do at level DEBUG. Repeats,
threads and errors are left to `services`.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from dask_gce._version import __version__
from dask_gce.addresses import is_loopback
from dask_gce.failures import Place
from dask_gce.policy import Failure, parse_retry_after

if TYPE_CHECKING:
    from google.auth.credentials import Credentials

__all__ = ["Exchanger", "RefusalError", "Request"]

#: Longest piece of a server's answer that is quoted in an error, in characters.
_QUOTE_LENGTH = 1000


@dataclass(frozen=True)
class Request:
    """What is asked.

    Parameters
    ----------
    place : Place
        What it is about, for errors.
    method : str
        The HTTP method.
    url : str
        The whole address, without the query.
    params : mapping of str to str
        The query.
    body : mapping or None
        What to send as JSON; it may be a secret.
    """

    place: Place
    method: str
    url: str
    params: Mapping[str, str]
    body: Mapping[str, Any] | None = field(repr=False)


class RefusalError(Exception):
    """An exchange failed; never seen by who asks, for whom it becomes an error of the tree.

    Parameters
    ----------
    failure : Failure
        What went wrong.
    """

    def __init__(self, failure: Failure) -> None:
        super().__init__(failure)
        self.failure = failure


class _Modules:
    """What is imported late: a cluster without secrets in Secret Manager may not need it."""

    def __init__(self) -> None:
        self.requests: Any = importlib.import_module("requests")
        self.transport: Any = importlib.import_module("google.auth.transport.requests")
        self.exceptions: Any = importlib.import_module("google.auth.exceptions")
        self.user: Any = importlib.import_module("google.oauth2.credentials")


class Exchanger:
    """Exchanges requests and answers; belongs to no thread.

    Parameters
    ----------
    project : str
        Project ID: for a user's own login, the one that pays for the requests.
    credentials : google.auth.credentials.Credentials
        Who asks; anonymous ones for a local Compute Engine.
    endpoint : str or None
        Scheme, host and port of all APIs without a path; None for Google's own.
    """

    def __init__(self, project: str, credentials: Credentials, endpoint: str | None) -> None:
        self._project = project
        self._credentials = credentials
        self._endpoint = endpoint
        self._lock = threading.Lock()
        self._modules: _Modules | None = None
        self._session: Any = None
        self._signer: Any = None

    def close(self) -> None:
        """Close all connections; the next exchange makes new ones."""
        with self._lock:
            sessions = [each for each in (self._session, self._signer) if each is not None]
            self._session = self._signer = None
        for session in sessions:
            for adapter in session.adapters.values():
                # Forgetting its pools, which is all that a session does, leaves them open.
                pools = adapter.poolmanager.pools
                for pool in [pools[key] for key in pools.keys()]:  # noqa: SIM118 - not a dict
                    pool.close()
            session.close()

    def _open(self) -> tuple[_Modules, Any, Any]:
        with self._lock:
            if self._modules is None:
                self._modules = _Modules()
            if self._session is None:
                self._session = self._modules.requests.Session()
                self._session.headers["User-Agent"] = f"dask-gce/{__version__}"
                self._signer = self._modules.requests.Session()
                if self._endpoint is not None and is_loopback(self._endpoint):
                    # A proxy from the environment must not see, or fail, what stays here.
                    self._session.trust_env = False
                else:
                    # With a password for the host in ~/.netrc, that would replace the token.
                    self._session.auth = _keep_authorization
            signer = self._modules.transport.Request(self._signer)
            return self._modules, self._session, signer

    def _sign(self, signer: Any, request: Request, headers: dict[str, str]) -> None:
        # google-auth's methods carry no types.
        credentials: Any = self._credentials
        credentials.before_request(signer, request.method, request.url, headers)

    def exchange(self, request: Request, timeout: float) -> dict[str, Any]:
        """Make one exchange, on whatever thread this is.

        Parameters
        ----------
        request : Request
            What is asked.
        timeout : float
            Seconds to wait for a connection, and for each part of the answer.

        Returns
        -------
        dict
            The answer as JSON data.

        Raises
        ------
        RefusalError
            If there is none, or it says no.
        """
        modules, session, signer = self._open()
        headers: dict[str, str] = {"Accept": "application/json"}
        content = None
        if request.body is not None:
            headers["Content-Type"] = "application/json"
            content = json.dumps(dict(request.body)).encode()
        if isinstance(self._credentials, modules.user.Credentials) and not getattr(
            self._credentials, "quota_project_id", None
        ):
            # These APIs refuse a user's own login without it:
            # https://docs.cloud.google.com/docs/quotas/set-quota-project
            headers["x-goog-user-project"] = self._project
        try:
            self._sign(signer, request, headers)
            answer = session.request(
                request.method,
                request.url,
                params=dict(request.params),
                data=content,
                headers=headers,
                timeout=timeout,
                # Nobody but the API itself is to get the token, or the content.
                allow_redirects=False,
            )
        except modules.requests.RequestException as error:
            raise RefusalError(_no_answer(error, request, modules)) from None
        except modules.exceptions.TransportError as error:
            message = f"the token server could not be reached ({type(error).__name__})"
            raise RefusalError(Failure(0, message=message)) from None
        except modules.exceptions.GoogleAuthError as error:
            message = str(error.args[0]) if error.args else type(error).__name__
            raise RefusalError(Failure(0, "credentials", message[:_QUOTE_LENGTH])) from None
        return _parse(answer, request)


def _keep_authorization(request: Any) -> Any:
    return request


def _parse(answer: Any, request: Request) -> dict[str, Any]:
    content: Any = None
    with contextlib.suppress(ValueError):
        content = json.loads(answer.content) if answer.content else {}
    if answer.status_code < 300 and isinstance(content, dict):
        return content
    error = content.get("error") if isinstance(content, dict) else None
    if answer.status_code < 400 and not isinstance(error, dict):
        # A company's proxy that shows its own page, for example.
        message = "what answered is not Google's API"
        raise RefusalError(Failure(0, "garbled", message, request.method, request.url))
    told: Mapping[str, Any] = error if isinstance(error, dict) else {}
    raise RefusalError(
        Failure(
            status=answer.status_code,
            reason=_reason(told),
            message=str(told.get("message") or answer.reason or "no reason was given")[
                :_QUOTE_LENGTH
            ],
            method=request.method,
            url=request.url,
            retry_after=parse_retry_after(answer.headers.get("Retry-After"), now=time.time()),
        )
    )


def _reason(error: Mapping[str, Any]) -> str:
    """Return the reason in an error, as https://google.aip.dev/193 has it, else its status."""
    details = error.get("details")
    for detail in details if isinstance(details, list) else ():
        if isinstance(detail, dict) and str(detail.get("@type", "")).endswith("ErrorInfo"):
            return str(detail.get("reason") or "")
    return str(error.get("status") or "")


def _no_answer(error: Any, request: Request, modules: _Modules) -> Failure:
    exceptions = modules.requests.exceptions
    if isinstance(error, exceptions.ReadTimeout):
        reason, message = "timeout", "the answer did not come in time"
    elif isinstance(error, exceptions.ConnectTimeout):
        reason, message = "", "the connection could not be made in time"
    else:
        reason, message = "", f"the connection failed or broke ({type(error).__name__})"
    return Failure(0, reason, message, request.method, request.url)
