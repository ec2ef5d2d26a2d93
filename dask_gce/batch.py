"""One request that makes instances, from its first attempt until its operation has ended.

Owns what is certain of it: whether it may have taken effect, and when no instance can come of it
any more. Which instances go into it, and what becomes of them, is the business of `insertion`.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import uuid

from dask_gce.compute import Compute
from dask_gce.errors import GCEError
from dask_gce.operation import Operation

__all__ = ["Batch"]

#: Seconds after which a list of operations shows what was accepted before.
LAG = 1.0


class Batch:
    """One insert, of one instance or of many.

    Parameters
    ----------
    zone : str
        The zone.
    """

    __slots__ = (
        "_settling",
        "accepted_at",
        "answered",
        "ended",
        "operation",
        "request_id",
        "sent",
        "zone",
    )

    def __init__(self, zone: str) -> None:
        self.zone = zone
        #: Makes the request safe to repeat.
        self.request_id = str(uuid.uuid4())
        #: Set once it is made no more: it was accepted, refused or given up.
        self.answered = asyncio.Event()
        #: Whether it may have taken effect. Taken back when Compute Engine has refused it.
        self.sent = False
        #: When Compute Engine accepted it, on the monotonic clock: older lists tell nothing.
        self.accepted_at = math.inf
        #: What it started, once accepted.
        self.operation: Operation | None = None
        #: Whether nothing more can come of it.
        self.ended = False
        self._settling: asyncio.Task[None] | None = None

    @classmethod
    def of_others(cls, zone: str) -> Batch:
        """Return the request of another process that has made an instance which is there.

        Parameters
        ----------
        zone : str
            The zone.

        Returns
        -------
        Batch
            A request that has ended.
        """
        batch = cls(zone)
        batch.answered.set()
        batch.sent = batch.ended = True
        batch.accepted_at = -math.inf
        return batch

    async def settle(self, compute: Compute, name: str, timeout: float) -> None:
        """Wait until no instance can come of it any more, for all who ask at the same time.

        Parameters
        ----------
        compute : Compute
            The Compute API.
        name : str
            One of its instances.
        timeout : float
            Seconds after which that is not waited for.
        """
        if self.ended or not self.sent:
            return
        if self._settling is None or self._settling.done():
            self._settling = asyncio.ensure_future(self._settle(compute, name, timeout))
        await asyncio.shield(self._settling)

    async def _settle(self, compute: Compute, name: str, timeout: float) -> None:
        # While it is repeated, for the sake of others, nothing is certain.
        answered = asyncio.ensure_future(self.answered.wait())
        await asyncio.wait({answered}, timeout=timeout)
        answered.cancel()
        if not self.answered.is_set():
            return
        # However it ends is as good: what has come of it is found by its label.
        with contextlib.suppress(GCEError):
            if self.operation is None:
                # No answer came, but the request may have arrived, or be about to. Lists lag
                # behind: ask twice.
                await compute.insert_settled(self.zone, name)
                self.operation = await compute.find_operation(self.zone, self.request_id)
            if self.operation is None:
                await asyncio.sleep(LAG)
                self.operation = await compute.find_operation(self.zone, self.request_id)
            if self.operation is not None:
                await compute.wait_operation(self.operation, timeout)
        self.ended = True

    def settle_now(self, compute: Compute, deadline: float) -> None:
        """Do as :meth:`settle` on the calling thread, at the interpreter's exit.

        Parameters
        ----------
        compute : Compute
            The Compute API.
        deadline : float
            When to give up, on the monotonic clock.

        Raises
        ------
        GCEError
            If it cannot be learned, or not in time.
        """
        if self.ended or not self.sent:
            return
        if self.operation is None:
            # The answer may have come when nobody could read it any more.
            self.operation = compute.find_operation_now(self.zone, self.request_id, deadline)
        if self.operation is not None:
            compute.wait_operation_now(self.operation, deadline)
