"""The Compute API of one project, as the rest of the package sees it.

It owns the construction of everything below it, its life, and the verbs that look things up. The
other verbs are in `instances` and `operations`; threads, repeats and what cancelling a call means
are the business of `calls`, google-cloud-compute that of `library`.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from dask_gce.calls import Caller, Clock
from dask_gce.failures import Place
from dask_gce.instances import InstanceVerbs
from dask_gce.library import Call, Library
from dask_gce.operation import Operation
from dask_gce.operations import OperationVerbs
from dask_gce.policy import RetryPolicy

if TYPE_CHECKING:
    from google.auth.credentials import Credentials

__all__ = ["Clock", "Compute", "Operation"]


class Compute(InstanceVerbs, OperationVerbs):
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
        threads: int = 16,
        exchange_timeout: float = 30.0,
        call_timeout: float = 180.0,
        policy: RetryPolicy | None = None,
        clock: Clock | None = None,
    ) -> None:
        self._library = Library(credentials, endpoint=endpoint, connections=threads)
        caller = Caller(
            self._library,
            threads=threads,
            exchange_timeout=exchange_timeout,
            call_timeout=call_timeout,
            policy=policy or RetryPolicy(),
            clock=clock or Clock(),
        )
        # A wait holds its thread for seconds; half of them stay free for everything else.
        super().__init__(project, caller, max(1, threads // 2))

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

    async def get_project(self) -> dict[str, Any]:
        """Return the project.

        Returns
        -------
        dict
            A ``compute#project`` resource.
        """
        return await self._get("Projects", "GetProjectRequest", f"get project {self.project}")

    async def get_zone(self, zone: str) -> dict[str, Any]:
        """Return a zone.

        Parameters
        ----------
        zone : str
            Zone name.

        Returns
        -------
        dict
            A ``compute#zone`` resource.
        """
        return await self._get("Zones", "GetZoneRequest", f"get zone {zone}", zone=zone)

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
        return await self._get(
            "MachineTypes",
            "GetMachineTypeRequest",
            f"get machine type {name}",
            zone=zone,
            machine_type=name,
        )

    async def get_image_from_family(self, project: str, family: str) -> dict[str, Any]:
        """Return the newest image of a family that is not deprecated.

        Parameters
        ----------
        project : str
            The project that owns the image, for example ``"cos-cloud"``.
        family : str
            For example ``"cos-stable"``.

        Returns
        -------
        dict
            A ``compute#image`` resource.
        """
        call = Call(
            "Images",
            "get_from_family",
            "GetFromFamilyImageRequest",
            Place(f"get the image of family {family}", project, name=family),
            {"project": project, "family": family},
        )
        return await self._caller.answer(call)

    async def _get(self, service: str, request: str, action: str, **fields: str) -> dict[str, Any]:
        place = Place(action, self.project, fields.get("zone", ""))
        call = Call(service, "get", request, place, {"project": self.project, **fields})
        return await self._caller.answer(call)
