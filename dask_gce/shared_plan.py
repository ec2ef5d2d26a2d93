"""What all who are connected to one cluster agree on: how many machines, and who sees to it.

It is kept in the scheduler's metadata, where all of them can read it. Only one of them, the keeper,
replaces what is lost; two that did would make one machine too many for each loss. A keeper that is
gone is succeeded by whoever notices a loss next.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from dask_gce.probing import UNREACHABLE

__all__ = ["SharedPlan", "answer", "publish", "read"]

logger = logging.getLogger(__name__)

#: Where the scheduler keeps it. SpecCluster has its own entry beside it.
KEYS = ["dask-gce-plan"]

#: Seconds that a scheduler has to answer; connecting to one that is gone takes Dask half a minute.
ANSWERED_WITHIN = 5.0


@dataclass(frozen=True)
class SharedPlan:
    """The plan, as one of the processes has left it.

    Parameters
    ----------
    machines : int
        How many machines for workers there should be.
    keeper : str
        Who replaces lost ones: the mark of a process, see `client`; empty for nobody.
    """

    machines: int
    keeper: str = ""

    @classmethod
    def parse(cls, data: Any) -> SharedPlan | None:
        """Read a plan from the scheduler's metadata.

        Parameters
        ----------
        data : object
            What is there.

        Returns
        -------
        SharedPlan or None
            The plan; None if there is none, or something else.

        Examples
        --------
        >>> SharedPlan.parse({"machines": 3, "keeper": "0af1-812"})
        SharedPlan(machines=3, keeper='0af1-812')
        """
        if not isinstance(data, Mapping) or not isinstance(data.get("machines"), int):
            return None
        return cls(max(0, data["machines"]), str(data.get("keeper", "")))


async def read(scheduler: Any) -> SharedPlan | None:
    """Ask the scheduler for the plan.

    Parameters
    ----------
    scheduler : distributed.core.rpc
        The scheduler.

    Returns
    -------
    SharedPlan or None
        The plan; None if there is none yet.

    Raises
    ------
    OSError, ValueError
        If the scheduler does not answer (`probing.UNREACHABLE`).
    """
    return SharedPlan.parse(await answer(scheduler.get_metadata(keys=KEYS, default=None)))


async def publish(scheduler: Any, plan: SharedPlan) -> bool:
    """Leave a plan with the scheduler.

    Parameters
    ----------
    scheduler : distributed.core.rpc
        The scheduler.
    plan : SharedPlan
        The plan.

    Returns
    -------
    bool
        Whether the scheduler has taken it.
    """
    try:
        await answer(scheduler.set_metadata(keys=KEYS, value=asdict(plan)))
    except UNREACHABLE as error:
        logger.info("The scheduler does not take the plan: %s", error)
        return False
    return True


async def answer(asked: Awaitable[Any]) -> Any:
    """Wait for an answer, but not for as long as Dask tries to reach a scheduler that is gone.

    Parameters
    ----------
    asked : awaitable
        The question.

    Returns
    -------
    object
        The answer.

    Raises
    ------
    OSError
        If none came in time, or the connection was lost.
    ValueError
        If the connection was closed before TLS began (`probing.UNREACHABLE`).
    """
    asking = asyncio.ensure_future(asked)
    try:
        await asyncio.wait({asking}, timeout=ANSWERED_WITHIN)
        if not asking.done():
            raise OSError(f"no answer within {ANSWERED_WITHIN:g} s")
        return asking.result()
    finally:
        asking.cancel()
