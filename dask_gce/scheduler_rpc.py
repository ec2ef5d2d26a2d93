"""Asking a scheduler, with connections that outlive whoever waits for them no longer.

Owns what becomes of a connection that is being made when its question is given up. Tornado leaves
one on which TLS is just being agreed open, and nobody's: ``IOStream.start_tls`` has handed the
socket to a stream that only the event loop knows, until the other side closes it. Dask's ``rpc``
makes connections in whatever task asks, and a cluster that closes cancels its tasks.
"""

from __future__ import annotations

import asyncio
from typing import Any

from distributed.core import Status, rpc

__all__ = ["SchedulerRPC"]

#: Seconds that connections which are being made get to be done when all of them are closed.
LAST_CONNECTIONS = 3.0


class SchedulerRPC(rpc):
    """An ``rpc`` of Dask's that leaves no connection half made.

    Parameters
    ----------
    plain : distributed.core.rpc
        The one in whose place it is used; it is closed, and must not have asked anything yet.
    """

    def __init__(self, plain: rpc) -> None:
        super().__init__(  # type: ignore[no-untyped-call]
            plain.address,
            deserialize=plain.deserialize,
            timeout=plain.timeout,
            connection_args=plain.connection_args,
            serializers=plain.serializers,
            deserializers=plain.deserializers,
        )
        self._making: set[asyncio.Future[Any]] = set()
        plain.status = Status.closed
        rpc.active.discard(plain)

    async def live_comm(self) -> Any:
        """Get a connection that nobody else uses.

        Returns
        -------
        distributed.comm.Comm
            The connection. It counts as in use until ``comms[connection]`` is true.

        Raises
        ------
        OSError
            If the scheduler cannot be reached.
        ValueError
            If the connection was closed before TLS began (`probing.UNREACHABLE`).
        """
        making: asyncio.Future[Any] = asyncio.ensure_future(
            super().live_comm()  # type: ignore[no-untyped-call]
        )
        self._making.add(making)
        making.add_done_callback(self._making.discard)
        try:
            return await asyncio.shield(making)
        except asyncio.CancelledError:
            # Who asks next takes it, or `close_rpc` closes it.
            making.add_done_callback(self._put_back)
            raise

    def _put_back(self, making: asyncio.Future[Any]) -> None:
        if not making.cancelled() and making.exception() is None:
            self.comms[making.result()] = True  # type: ignore[index] # a dict in every object

    async def close_rpc(self) -> Any:
        """Close all connections, those too that are being made.

        Returns
        -------
        object
            What Dask's returns.
        """
        # No question begins from here on.
        self.status = Status.closed
        rpc.active.discard(self)
        making = set(self._making)
        if making and (await asyncio.wait(making, timeout=LAST_CONNECTIONS))[1]:
            for each in making:
                each.cancel()
            await asyncio.wait(making, timeout=LAST_CONNECTIONS)
        return await super().close_rpc()  # type: ignore[no-untyped-call]
