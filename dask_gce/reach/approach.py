"""The client's side of the way to one cluster's scheduler: where its ports are, as seen from here.

Owns the tunnels, if the route is one, from their opening to their end, whichever scheduler they led
to. Which route it is, is decided in `route`; what a tunnel does is the matter of `tunnel`.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Final

from distributed.security import Security

from dask_gce.credentials import access_token, load_credentials
from dask_gce.errors import TunnelError
from dask_gce.instance import Instance
from dask_gce.probing import knock, leads_to_local_engine
from dask_gce.reach.far_end import ENDPOINT
from dask_gce.reach.refusals import Meaning, meaning_of
from dask_gce.reach.route import Route
from dask_gce.reach.tunnel import HOST, Tunnel
from dask_gce.settings import Settings

if TYPE_CHECKING:
    from google.auth.credentials import Credentials

__all__ = ["Approach"]

#: Seconds that a scheduler has to say something through a tunnel, which is several round trips to
#: one of Google's front ends away.
_TUNNEL_PATIENCE: Final = 10.0


class Approach:
    """How this process reaches the ports of one cluster's scheduler.

    Belongs to one event loop.

    Parameters
    ----------
    route : Route
        The way.
    settings : Settings
        The cluster's settings.
    project : str
        The cluster's project ID.
    security : distributed.security.Security
        The client's side of the cluster's security.
    note : callable
        Told of what becomes of tunnels: the machine's name, what it is, and why.
    local_ports : mapping of int to int
        Ports of this computer at which tunnels begin, by the port to which they lead. Others begin
        at any that is free.
    """

    def __init__(
        self,
        route: Route,
        settings: Settings,
        project: str,
        *,
        security: Security,
        note: Callable[[str, str, str], None] = lambda instance, what, why: None,
        local_ports: Mapping[int, int] = MappingProxyType({}),
    ) -> None:
        self.route = route
        self._settings = settings
        self._project = project
        self._security = security
        self._note = note
        self._local_ports = local_ports
        # Made once: Dask writes keys into files to read them again.
        self._context: ssl.SSLContext | None = None
        self._has_context = False
        self._instance: Instance | None = None
        self._tunnels: dict[int, Tunnel] = {}
        self._credentials: Credentials | None = None
        self._refreshing = asyncio.Lock()

    async def open(self, instance: Instance) -> None:
        """Go to a scheduler's machine; what led to another one is closed.

        Doing it again changes nothing.

        Parameters
        ----------
        instance : Instance
            The scheduler's machine, which runs.

        Raises
        ------
        GCEError
            If a tunnel cannot be opened.
        OSError
            If the port of this computer at which it was to begin is taken.
        """
        before, self._instance = self._instance, instance
        if before is not None and (before.zone, before.name) != (instance.zone, instance.name):
            await self._close_tunnels()
        if self.route.kind != "iap" or self._tunnels:
            return
        for port in (self._settings.scheduler_port, self._settings.dashboard_port):
            self._tunnels[port] = Tunnel(
                project=self._project,
                zone=instance.zone,
                instance=instance.name,
                port=port,
                endpoint=self._endpoint(),
                local_port=self._local_ports.get(port, 0),
                token=self._token,
                tell=self._tell_of(instance.name, port),
            )
        try:
            # One by one: of several at once, one that failed would leave others to start later.
            for tunnel in self._tunnels.values():
                await tunnel.start()
        except BaseException:
            await self._close_tunnels()
            raise

    async def find_obstacle(self) -> str:
        """Find out why the scheduler does not answer from here, if it does not.

        Returns
        -------
        str
            The reason, the end of a sentence; empty if it answers.

        Raises
        ------
        TunnelError
            If there is no tunnel to it, and will be none however often it is tried.
        """
        port = self._settings.scheduler_port
        if (failure := await self.find_tunnel_failure(port)) is not None:
            if meaning_of(failure.code) is Meaning.FINAL:
                raise failure
            return failure.message
        place = self.address(port)
        if place is None:
            if self._host() is None:
                return f"the machine has no {self.route.kind} address"
            return "this process is not in the local Compute Engine's network"
        if not self._has_context:
            arguments = await asyncio.to_thread(self._security.get_connection_args, "client")
            self._context, self._has_context = arguments.get("ssl_context"), True
        patience = _TUNNEL_PATIENCE if port in self._tunnels else None
        return await knock(*place, self._context, timeout=patience)

    async def find_tunnel_failure(self, port: int) -> TunnelError | None:
        """Find out why the tunnel to a port leads nowhere, if there is one that does.

        Parameters
        ----------
        port : int
            ``scheduler_port`` or ``dashboard_port``.

        Returns
        -------
        TunnelError or None
            The reason; None if something listens at its end, and where there is no tunnel.
        """
        tunnel = self._tunnels.get(port)
        # Its own connections would wait for seconds before they try again.
        if tunnel is None or await tunnel.answers():
            return None
        return tunnel.failure

    def address(self, port: int) -> tuple[str, int] | None:
        """Return where a port of the scheduler's machine is, as seen from here.

        Parameters
        ----------
        port : int
            ``scheduler_port`` or ``dashboard_port``.

        Returns
        -------
        tuple of str and int, or None
            An IP address and a port; None as long as there is none, or none that may be asked.
        """
        if self.route.kind == "iap":
            tunnel = self._tunnels.get(port)
            return (HOST, tunnel.local_port) if tunnel is not None and tunnel.local_port else None
        host = self._host()
        if host is None or (self._settings.is_local and not leads_to_local_engine(host)):
            return None
        return host, port

    def describe(self, port: int) -> str:
        """Tell where a port of the scheduler's machine is looked for.

        Parameters
        ----------
        port : int
            The port.

        Returns
        -------
        str
            Half a sentence, which begins with the port.
        """
        if self.route.kind == "iap":
            return f"port {port} through a tunnel of Identity-Aware Proxy"
        host = self._host()
        if host is None:
            return f"port {port} at its {self.route.kind} address, of which it has none"
        return f"port {port} at {host}, its {self.route.kind} address"

    async def close(self) -> None:
        """Close all tunnels; may be called again, and `open` after it."""
        self._instance = None
        await self._close_tunnels()

    async def _close_tunnels(self) -> None:
        tunnels, self._tunnels = self._tunnels, {}
        await asyncio.gather(*(each.close() for each in tunnels.values()))

    def _host(self) -> str | None:
        instance = self._instance
        if instance is None:
            return None
        return instance.internal_ip if self.route.kind == "internal" else instance.external_ip

    def _tell_of(self, instance: str, port: int) -> Callable[[str, str], None]:
        if port != self._settings.scheduler_port:
            # Nobody waits for a dashboard, which may not even be there.
            return lambda what, why: None
        return lambda what, why: self._note(instance, f"tunnel {what}", why)

    def _endpoint(self) -> str:
        settings = self._settings
        if settings.iap_endpoint is not None:
            return settings.iap_endpoint
        if settings.is_local and settings.api_endpoint is not None:
            scheme, _, place = settings.api_endpoint.partition("://")
            return f"{'wss' if scheme == 'https' else 'ws'}://{place}/v4"
        return ENDPOINT

    async def _token(self) -> str | None:
        """Return a bearer token that is fresh."""
        async with self._refreshing:
            if self._credentials is None:
                # Its own, since the Compute API refreshes its own in threads of its own.
                self._credentials = await asyncio.to_thread(load_credentials, self._settings)
            return await asyncio.to_thread(access_token, self._credentials)
