"""Google's other APIs: Secret Manager, Resource Manager, Service Usage, IAM and Cloud Billing.

It owns the threads on which they are asked, and the repeats by the rules of `policy`. The single
exchange is left to `exchange`; what is asked to whoever needs it, and so is what an answer means.

They are asked over plain HTTP with JSON, since three more libraries of Google's would be installed
for half a dozen requests. A cluster makes a handful of them in its whole life, however many
machines it has, so nothing here counts them: the smallest quota among these APIs is 600 a minute
(https://docs.cloud.google.com/secret-manager/quotas).
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import functools
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, Literal
from urllib.parse import quote

from dask_gce.clock import SYSTEM_CLOCK, Clock
from dask_gce.credentials import discover_project, load_credentials
from dask_gce.errors import TransportError
from dask_gce.exchange import Exchanger, RefusalError, Request
from dask_gce.failures import Place, failure_error
from dask_gce.policy import Deadline, Failure, RetryPolicy

if TYPE_CHECKING:
    from google.auth.credentials import Credentials

    from dask_gce.settings import Settings

__all__ = ["Service", "Services", "load_services"]

#: The first label of the API's host name.
Service = Literal["secretmanager", "cloudresourcemanager", "serviceusage", "iam", "cloudbilling"]

#: Exchanges under way at a time. A cluster has a secret for each role, and that is the most it asks
#: for at once.
THREADS = 4
#: The least time that is worth another attempt, in seconds.
_SHORTEST_ATTEMPT = 1.0


class Services:
    """Google's other APIs, for one project.

    The async verb belongs to one event loop, the other one to any thread, at the interpreter's exit
    too. Every request may be sent twice, so only what does no harm then is to be asked.

    Parameters
    ----------
    project : str
        Project ID, named in errors and, for a user's own login, the one that pays for the requests.
    credentials : google.auth.credentials.Credentials
        Who asks; anonymous ones for a local Compute Engine.
    endpoint : str or None
        Scheme, host and port of all these APIs without a path; None for Google's own.
    exchange_timeout : float
        Seconds to wait for a connection, and for each part of an answer.
    call_timeout : float
        Seconds for a call with all its repeats.
    policy : RetryPolicy
        When to repeat.
    clock : Clock
        How time passes.
    """

    def __init__(
        self,
        project: str,
        *,
        credentials: Credentials,
        endpoint: str | None = None,
        exchange_timeout: float = 30.0,
        call_timeout: float = 180.0,
        policy: RetryPolicy | None = None,
        clock: Clock | None = None,
    ) -> None:
        self.project = project
        #: Their address, without a slash at the end; None for Google's own.
        self.endpoint = endpoint.rstrip("/") if endpoint else None
        self._exchange_timeout = exchange_timeout
        self._call_timeout = call_timeout
        self._policy = policy or RetryPolicy()
        self._clock = clock or SYSTEM_CLOCK
        self._exchanger = Exchanger(project, credentials, self.endpoint)
        self._executor = concurrent.futures.ThreadPoolExecutor(
            THREADS, thread_name_prefix="dask-gce-services"
        )
        self._under_way: dict[asyncio.Future[Any], concurrent.futures.Future[Any]] = {}

    def __repr__(self) -> str:
        endpoint = self.endpoint or "googleapis.com"
        return f"<Services project={self.project!r} endpoint={endpoint!r}>"

    async def __aenter__(self) -> Services:
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self.close()

    # Asking ----------------------------------------------------------------------------------

    async def call(
        self,
        service: Service,
        method: str,
        path: str,
        *,
        body: Mapping[str, Any] | None = None,
        params: Mapping[str, str] | None = None,
        action: str = "",
        timeout: float | None = None,
    ) -> dict[str, Any]:
        """Ask on a thread, with repeats.

        Cancelled, it repeats nothing more; what is on its way cannot be called back.

        Parameters
        ----------
        service : {"secretmanager", "cloudresourcemanager", "serviceusage", "iam", "cloudbilling"}
            Which API.
        method : str
            The HTTP method.
        path : str
            From the slash before the version, for example ``"/v1/projects/my-project/secrets"``.
        body : mapping or None
            What to send as JSON.
        params : mapping of str to str or None
            The query.
        action : str
            What is done, in words, for errors; by default method and path.
        timeout : float or None
            Seconds for the call with all its repeats; None for the usual.

        Returns
        -------
        dict
            The answer as JSON data.

        Raises
        ------
        APIError
            The API refused; its kinds as for Compute Engine.
        TransportError
            No answer came.
        CredentialsError
            There was no access token.
        """
        request = self._request(service, method, path, body, params, action)
        deadline = self._deadline(timeout)
        for attempt in self._attempts():
            try:
                return await self._on_thread(request, deadline)
            except RefusalError as error:
                pause = self._pause(request, error.failure, attempt, deadline)
            await self._clock.sleep(pause)
        raise AssertionError("unreachable")

    def call_now(
        self,
        service: Service,
        method: str,
        path: str,
        *,
        body: Mapping[str, Any] | None = None,
        params: Mapping[str, str] | None = None,
        action: str = "",
        timeout: float | None = None,
    ) -> dict[str, Any]:
        """Ask on the calling thread, with repeats; needs neither event loop nor other threads.

        Works after `close` too.

        Parameters
        ----------
        service : {"secretmanager", "cloudresourcemanager", "serviceusage", "iam", "cloudbilling"}
            Which API.
        method : str
            The HTTP method.
        path : str
            From the slash before the version.
        body : mapping or None
            What to send as JSON.
        params : mapping of str to str or None
            The query.
        action : str
            What is done, in words, for errors; by default method and path.
        timeout : float or None
            Seconds for the call with all its repeats; None for the usual.

        Returns
        -------
        dict
            The answer as JSON data.

        Raises
        ------
        APIError
            The API refused; its kinds as for Compute Engine.
        TransportError
            No answer came.
        CredentialsError
            There was no access token.
        """
        request = self._request(service, method, path, body, params, action)
        deadline = self._deadline(timeout)
        for attempt in self._attempts():
            try:
                return self._exchanger.exchange(request, self._attempt_time(deadline))
            except RefusalError as error:
                pause = self._pause(request, error.failure, attempt, deadline)
            self._clock.pause(pause)
        raise AssertionError("unreachable")

    # Life ------------------------------------------------------------------------------------

    async def close(self) -> None:
        """Wait for the exchanges under way, end the threads and close all connections.

        May be called twice.
        """
        await self.settled()
        self.close_now()

    async def settled(self) -> None:
        """Wait until no exchange is under way, also of calls that were cancelled."""
        while self._under_way:
            await asyncio.wait(set(self._under_way))

    def settled_now(self, timeout: float) -> None:
        """Do as `settled`, on the calling thread.

        Parameters
        ----------
        timeout : float
            Seconds after which no exchange is waited for any more.
        """
        concurrent.futures.wait(list(self._under_way.values()), timeout=timeout)

    def close_now(self) -> None:
        """End the threads and close all connections, on the calling thread."""
        self._executor.shutdown(wait=True, cancel_futures=True)
        self._exchanger.close()

    # Below -----------------------------------------------------------------------------------

    def _request(
        self,
        service: Service,
        method: str,
        path: str,
        body: Mapping[str, Any] | None,
        params: Mapping[str, str] | None,
        action: str,
    ) -> Request:
        root = self.endpoint or f"https://{service}.googleapis.com"
        return Request(
            Place(action or f"{method} {path}", self.project, service=service),
            method,
            root + quote(path, safe="/:@!$&'()*+,;=~"),
            dict(params or {}),
            body,
        )

    def _deadline(self, timeout: float | None) -> Deadline:
        seconds = self._call_timeout if timeout is None else timeout
        return Deadline.after(seconds, self._clock.monotonic)

    @staticmethod
    def _attempts() -> Iterator[int]:
        attempt = 0
        while True:
            yield attempt
            attempt += 1

    def _attempt_time(self, deadline: Deadline) -> float:
        return min(self._exchange_timeout, max(deadline.remaining, _SHORTEST_ATTEMPT))

    def _pause(self, request: Request, failure: Failure, attempt: int, deadline: Deadline) -> float:
        """Return how long to wait before the next attempt, or raise if there is none."""
        pause = self._policy.delay(failure, attempt, now=self._clock.time())
        if pause is None or not deadline.allows(pause + _SHORTEST_ATTEMPT):
            # What caused it holds the request, and so what the request carries.
            raise failure_error(failure, request.place) from None
        return pause

    async def _on_thread(self, request: Request, deadline: Deadline) -> dict[str, Any]:
        work: Callable[[], dict[str, Any]] = functools.partial(
            self._exchanger.exchange, request, self._attempt_time(deadline)
        )
        try:
            future = self._executor.submit(work)
        except RuntimeError:
            raise TransportError(
                f"Could not {request.place}: the client is closed, or the interpreter is exiting; "
                "nothing was sent."
            ) from None
        running = asyncio.wrap_future(future)
        self._under_way[running] = future
        running.add_done_callback(self._settle)
        # The shield keeps the exchange, which `close` waits for, when its caller is cancelled.
        return await asyncio.shield(running)

    def _settle(self, running: asyncio.Future[Any]) -> None:
        del self._under_way[running]
        if not running.cancelled():
            running.exception()  # whoever was cancelled does not ask how it ended


def load_services(
    settings: Settings, project: str | None = None, *, policy: RetryPolicy | None = None
) -> Services:
    """Make the client of Google's other APIs that a cluster's settings ask for; blocks a little.

    It reads the credentials' files, so it is to be called in a thread.

    Parameters
    ----------
    settings : Settings
        The cluster's settings.
    project : str or None
        Project ID; None to find it as for the Compute API.
    policy : RetryPolicy or None
        When to repeat; None for the usual.

    Returns
    -------
    Services
        The APIs, to be closed by the caller.

    Raises
    ------
    CredentialsError
        If there are no credentials or no project.
    """
    return Services(
        discover_project(settings) if project is None else project,
        credentials=load_credentials(settings),
        endpoint=settings.api_endpoint,
        call_timeout=min(180.0, settings.start_timeout),
        policy=policy,
    )
