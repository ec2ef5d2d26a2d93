"""The far end of IAP tunnels to one port: opening websockets to it.

Owns: addresses, headers, the way through a company's proxy, and turning whatever aiohttp says into
a `TunnelError`. Leaves what goes over a websocket to `relay` and `passage`, and its end to
`websocket`.

The token is in no error and in no log: aiohttp's errors carry the request's headers, so none of
them is kept as a cause.
"""

from __future__ import annotations

import asyncio
import base64
import importlib
import ipaddress
import ssl
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING
from urllib.parse import unquote, urlencode, urlsplit, urlunsplit
from urllib.request import getproxies, proxy_bypass

from dask_gce._version import __version__
from dask_gce.errors import GCEError, SettingsError, TransportError, TunnelError
from dask_gce.reach.frames import SUBPROTOCOL, Connected, LongClose, Resumed
from dask_gce.reach.refusals import CUT, UNTRUSTED, Destination, explain
from dask_gce.reach.relay import Relay
from dask_gce.reach.websocket import hang_up, read_close

if TYPE_CHECKING:
    from aiohttp import ClientSession, ClientWebSocketResponse

__all__ = ["ENDPOINT", "FarEnd", "Token"]

#: Google's own (gcloud, ``iap_tunnel_websocket_utils.py``).
ENDPOINT = "wss://tunnel.cloudproxy.app/v4"
#: What the far end takes for one of Google's clients (gcloud, ``iap_tunnel_websocket_helper.py``).
ORIGIN = "bot:iap-tunneler"
#: Seconds for a handshake and the first frame (``MAX_WEBSOCKET_OPEN_WAIT_TIME_SEC`` in gcloud's
#: ``iap_tunnel_websocket.py``).
OPEN_TIMEOUT = 60.0
#: What a proxy answers that lets nobody through (RFC 9110), which here is none at all.
NO_PROXY = 407
#: Bytes of a message that is still read: a frame has 16 KiB and some.
MAX_MESSAGE = 64 * 1024
#: What opens the far end's door: a coroutine function that returns a bearer token that is fresh, or
#: None where none is needed.
Token = Callable[[], Awaitable[str | None]]


class FarEnd:
    """Where websockets to one port of one instance are opened.

    Parameters
    ----------
    to : Destination
        The port.
    endpoint : str
        The far end's address with its path, ``wss://HOST/v4``, or ``ws://`` on this computer.
    token : coroutine function
        Returns a fresh bearer token, or None where none is needed.
    trust : ssl.SSLContext or None
        Whose certificates are trusted; None for those that Python trusts.

    Raises
    ------
    SettingsError
        The endpoint is none, or a token would leave this computer unencrypted.
    """

    def __init__(
        self,
        to: Destination,
        *,
        endpoint: str,
        token: Token,
        trust: ssl.SSLContext | None = None,
    ) -> None:
        parts = urlsplit(endpoint)
        self._is_local = _is_loopback(parts.hostname or "")
        if not (parts.scheme == "wss" and parts.hostname) and not (
            parts.scheme == "ws" and self._is_local
        ):
            raise SettingsError(
                f"iap_endpoint is {endpoint!r}: it has to begin with wss://, or with ws:// for a"
                " local Compute Engine on this computer.",
                key="iap_endpoint",
            )
        self.to = to
        self._endpoint = endpoint.rstrip("/")
        self._token = token
        self._trust = trust
        self._session: ClientSession | None = None

    def __repr__(self) -> str:
        return f"<FarEnd of {self.to} at {self._endpoint}>"

    async def start(self) -> None:
        """Get ready: import aiohttp, which takes a tenth of a second, in a thread."""
        await asyncio.to_thread(importlib.import_module, "aiohttp")
        from aiohttp import ClientSession, ClientTimeout, DummyCookieJar, TCPConnector

        self._session = ClientSession(
            # As many at once as there are local connections.
            connector=TCPConnector(limit=0, ssl=self._trust or True),
            cookie_jar=DummyCookieJar(),
            timeout=ClientTimeout(total=None),
        )

    async def close(self) -> None:
        """Close what is left of connections."""
        session, self._session = self._session, None
        if session is not None:
            await session.close()

    async def open(self, relay: Relay) -> ClientWebSocketResponse:
        """Open a websocket on which a session begins, or goes on if it has begun.

        Parameters
        ----------
        relay : Relay
            The session.

        Returns
        -------
        aiohttp.ClientWebSocketResponse
            The websocket; the far end has said that it is connected.

        Raises
        ------
        TunnelError
            The far end refused, for now or for good, or was not reached.
        """
        relay.begin()
        opening = asyncio.ensure_future(self._open(relay))
        try:
            await asyncio.wait({opening}, timeout=OPEN_TIMEOUT)
            if opening.done():
                return opening.result()
        except asyncio.CancelledError:
            await _drop(opening)
            raise
        await _drop(opening)
        words = f"no answer in {OPEN_TIMEOUT:g} s"
        raise explain(self.to, CUT, words, has_begun=bool(relay.sid))

    async def _open(self, relay: Relay) -> ClientWebSocketResponse:
        websocket = await self._shake_hands(relay, await self._headers())
        try:
            await self._hear_of_connection(websocket, relay)
        except BaseException:
            await hang_up(websocket)
            raise
        return websocket

    async def _hear_of_connection(self, websocket: ClientWebSocketResponse, relay: Relay) -> None:
        from aiohttp import WSMsgType

        announced: LongClose | None = None
        while True:
            message = await websocket.receive()
            if message.type is not WSMsgType.BINARY:
                closed = read_close(message, announced)
                begun = bool(relay.sid)
                raise explain(self.to, closed.code, closed.reason, has_begun=begun)
            event = relay.receive(message.data)
            if isinstance(event, Connected | Resumed):
                return
            if isinstance(event, LongClose):
                announced = event

    def _address(self, relay: Relay) -> str:
        to = self.to
        if relay.sid:
            query: dict[str, object] = {
                "sid": relay.sid,
                "ack": relay.received,
                "newWebsocket": True,
                "zone": to.zone,
            }
            return f"{self._endpoint}/reconnect?{urlencode(query)}"
        query = {
            "project": to.project,
            "port": to.port,
            "newWebsocket": True,
            "zone": to.zone,
            "instance": to.instance,
            "interface": to.interface,
        }
        return f"{self._endpoint}/connect?{urlencode(query)}"

    async def _headers(self) -> dict[str, str]:
        headers = {"User-Agent": f"dask-gce/{__version__}"}
        try:
            token = await self._token()
        except TransportError as error:
            raise TunnelError(f"No IAP tunnel to {self.to}: {error}", code=CUT) from error
        except GCEError as error:
            raise TunnelError(f"No IAP tunnel to {self.to}: {error}", code=401) from error
        if token is not None:
            if not (token.isascii() and token.isprintable()):
                raise TunnelError(
                    f"No IAP tunnel to {self.to}: the access token is none: it has characters that"
                    " no header can carry.",
                    code=401,
                )
            headers["Authorization"] = f"Bearer {token}"
        return headers

    async def _shake_hands(self, relay: Relay, headers: dict[str, str]) -> ClientWebSocketResponse:
        from aiohttp import (
            ClientConnectorCertificateError,
            ClientError,
            ClientHttpProxyError,
            ClientResponseError,
        )

        proxy, proxy_headers = await self._proxy()
        session = self._session
        if session is None:
            raise TunnelError(f"No IAP tunnel to {self.to}: this end was closed.", code=CUT)
        failed: str | None = None
        try:
            return await session.ws_connect(
                self._address(relay),
                headers=headers,
                origin=ORIGIN,
                protocols=(SUBPROTOCOL,),
                # Pings are answered in `passage`, which also wants to see the answers to its own.
                autoping=False,
                max_msg_size=MAX_MESSAGE,
                proxy=proxy,
                proxy_headers=proxy_headers,
            )
        except ClientHttpProxyError as error:
            code, words, failed = error.status, "", proxy
        except ClientResponseError as error:
            code, words = error.status, ""
        except ClientConnectorCertificateError as error:
            code, words = UNTRUSTED, str(error.certificate_error)
        except (ClientError, OSError) as error:
            # Only the system's words: aiohttp's own may quote the address, with the session's ID.
            code, words = CUT, getattr(error, "strerror", None) or type(error).__name__
            failed = proxy
        raise explain(self.to, code, words, has_begun=bool(relay.sid), proxy=failed or "")

    async def _proxy(self) -> tuple[str | None, dict[str, str] | None]:
        """Return the proxy to take, and what it is told.

        aiohttp's ``trust_env`` finds it as well, but reads ``~/.netrc`` with it, and refuses to
        send a token where that has an entry.
        """
        if self._is_local:
            return None, None
        try:
            return await asyncio.to_thread(_find_proxy, self._endpoint)
        except ValueError:
            host = urlsplit(self._endpoint).hostname
        # Not the address itself, which may have a password in it, nor the error, which quotes it.
        raise TunnelError(
            f"No IAP tunnel to {self.to}: the proxy that HTTPS_PROXY or ALL_PROXY names cannot be"
            " used. It has to be like http://HOST:PORT or http://NAME:PASSWORD@HOST:PORT; to take"
            f" none, set NO_PROXY={host}.",
            code=NO_PROXY,
        )


async def _drop(opening: asyncio.Task[ClientWebSocketResponse]) -> None:
    """Give up an attempt, which may succeed in this very turn."""
    opening.cancel()
    await asyncio.wait({opening})
    if not opening.cancelled() and opening.exception() is None:
        await hang_up(opening.result())


def _find_proxy(endpoint: str) -> tuple[str | None, dict[str, str] | None]:
    """Find the proxy in the environment, or in the system's settings where there are such."""
    host = urlsplit(endpoint).hostname or ""
    proxies = getproxies()
    found = proxies.get("https") or proxies.get("all")
    if not found or proxy_bypass(host):
        return None, None
    parts = urlsplit(found if "//" in found else f"http://{found}")
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.port == 0:
        raise ValueError(f"no proxy of HTTP, but of {parts.scheme}")
    # The password goes into no address: errors quote those.
    address = urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], "", "", ""))
    if parts.username is None:
        return address, None
    account = f"{unquote(parts.username)}:{unquote(parts.password or '')}"
    encoded = base64.b64encode(account.encode()).decode("ascii")
    return address, {"Proxy-Authorization": f"Basic {encoded}"}


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
