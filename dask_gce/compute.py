"""The Compute API of one project, as the rest of the package sees it.

It owns the construction of everything below it, its life, and the verbs that look things up. The
other verbs are in `instances`, `instances_now`, `image_verbs`, `firewall_verbs`, `operations`,
`project_verbs` and `advice_verbs`; threads, repeats and what cancelling a call means are the
business of `calls`, google-cloud-compute that of `library`.
"""

from __future__ import annotations

import asyncio
import functools
from typing import TYPE_CHECKING, Any

from dask_gce.advice_verbs import AdviceVerbs
from dask_gce.calls import Caller
from dask_gce.clock import SYSTEM_CLOCK, Clock
from dask_gce.failures import Place
from dask_gce.firewall_verbs import FirewallVerbs
from dask_gce.image_verbs import ImageVerbs
from dask_gce.instances import InstanceVerbs
from dask_gce.instances_now import InstanceVerbsNow
from dask_gce.library import Call, Library
from dask_gce.operation import Operation
from dask_gce.operations import OperationVerbs
from dask_gce.policy import RetryPolicy
from dask_gce.project_verbs import ProjectVerbs
from dask_gce.rates import rate_bucket

if TYPE_CHECKING:
    from google.auth.credentials import Credentials

__all__ = ["Clock", "Compute", "Operation"]


class Compute(
    InstanceVerbs,
    InstanceVerbsNow,
    ImageVerbs,
    FirewallVerbs,
    OperationVerbs,
    ProjectVerbs,
    AdviceVerbs,
):
    """The Compute API of one project.

    The async verbs belong to one event loop. Each raises the errors of `dask_gce.errors`: APIError
    and its kinds when Compute Engine refuses, OutOfCapacity when it has no machine to give,
    TransportError when no answer comes, CredentialsError when there is no access token.

    Parameters
    ----------
    project : str
        Project ID.
    credentials : google.auth.credentials.Credentials
        Who asks; ``google.auth.credentials.AnonymousCredentials()`` for a local Compute Engine.
    endpoint : str or None
        Scheme, host and port of the API without a path, for example ``"http://127.0.0.1:8080"``;
        None for Google's own.
    rate : float
        Requests a second, in each region and each group of Compute Engine's rate quotas;
        ``math.inf`` for no limit. All clients of a process share them, see `rates`.
    threads : int
        How many exchanges may be under way at a time.
    exchange_timeout : float
        Seconds to wait for a connection, and for each part of an answer.
    call_timeout : float
        Seconds for a call with all its repeats, from its first attempt.
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
        rate: float = 20.0,
        threads: int = 32,
        exchange_timeout: float = 30.0,
        call_timeout: float = 180.0,
        policy: RetryPolicy | None = None,
        clock: Clock | None = None,
    ) -> None:
        self._library = Library(credentials, endpoint=endpoint, connections=threads)
        clock = clock or SYSTEM_CLOCK
        caller = Caller(
            self._library,
            bucket=functools.partial(
                rate_bucket, self._library.endpoint, project, rate=rate, clock=clock
            ),
            threads=threads,
            exchange_timeout=exchange_timeout,
            call_timeout=call_timeout,
            policy=policy or RetryPolicy(),
            clock=clock,
        )
        # A wait holds its thread for seconds; half of them stay free for everything else.
        super().__init__(project, caller, max(1, threads // 2))

    @property
    def endpoint(self) -> str | None:
        """Its address, without a slash at the end; None for Google's own."""
        return self._library.endpoint

    def __repr__(self) -> str:
        endpoint = self._library.endpoint or "compute.googleapis.com"
        return f"<Compute project={self.project!r} endpoint={endpoint!r}>"

    async def __aenter__(self) -> Compute:
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self.close()

    # Life ------------------------------------------------------------------------------------

    def preload(self) -> None:
        """Begin to import the library on a thread and return at once."""
        self._caller.preload()

    async def open(self) -> None:
        """Wait until the library is imported; calls made earlier wait by themselves."""
        await asyncio.shield(asyncio.wrap_future(self._caller.preload()))

    async def close(self) -> None:
        """Wait for the exchanges under way, end the threads and close all connections.

        May be called twice. The synchronous verbs still work afterwards.
        """
        await self._caller.close()

    def close_now(self) -> None:
        """End the threads and close all connections, on the calling thread."""
        self._caller.close_now()

    # Looking things up -----------------------------------------------------------------------

    async def get_machine_type(self, zone: str, name: str) -> dict[str, Any]:
        """Return a machine type, predefined or custom.

        Parameters
        ----------
        zone : str
            Zone name.
        name : str
            For example ``"e2-standard-4"``.

        Returns
        -------
        dict
            A ``compute#machineType`` resource.
        """
        call = Call(
            "MachineTypes",
            "get",
            "GetMachineTypeRequest",
            Place(f"get machine type {name}", self.project, zone, name),
            {"project": self.project, "zone": zone, "machine_type": name},
        )
        return await self._caller.answer(call)
