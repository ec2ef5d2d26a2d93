"""The verbs that ask for advice: how likely Spot machines can be had, and what they cost.

API JSON in, API JSON out. Advice is good to have and no more, so each call has a short time of its
own; what it means for a cluster is left to `obtainability`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dask_gce.failures import Place
from dask_gce.library import Call
from dask_gce.policy import Deadline
from dask_gce.verbs import Verbs

__all__ = ["AdviceVerbs"]


class AdviceVerbs(Verbs):
    """The verbs of `Compute` that ask for advice.

    Parameters
    ----------
    project : str
        Project ID.
    caller : Caller
        Makes the calls.
    """

    async def advise_capacity(
        self, region: str, body: Mapping[str, Any], *, within: float
    ) -> dict[str, Any]:
        """Ask how likely it is that machines can be had.

        Parameters
        ----------
        region : str
            The region.
        body : mapping
            A ``CapacityAdviceRequest`` as API JSON.
        within : float
            Seconds after which the answer is of no use any more.

        Returns
        -------
        dict
            A ``CapacityAdviceResponse``.
        """
        call = Call(
            "Advice",
            "capacity",
            "CapacityAdviceRpcRequest",
            Place(f"ask for advice on the capacity of region {region}", self.project),
            {"project": self.project, "region": region},
            body,
            "capacity_advice_request_resource",
        )
        return await self._ask_within(call, within)

    async def read_capacity_history(
        self, region: str, body: Mapping[str, Any], *, within: float
    ) -> dict[str, Any]:
        """Ask what Spot machines have cost, and how often they were preempted.

        Parameters
        ----------
        region : str
            The region.
        body : mapping
            A ``CapacityHistoryRequest`` as API JSON.
        within : float
            Seconds after which the answer is of no use any more.

        Returns
        -------
        dict
            A ``CapacityHistoryResponse``.
        """
        call = Call(
            "Advice",
            "capacity_history",
            "CapacityHistoryAdviceRequest",
            Place(f"ask for the history of the capacity of region {region}", self.project),
            {"project": self.project, "region": region},
            body,
            "capacity_history_request_resource",
        )
        return await self._ask_within(call, within)

    async def _ask_within(self, call: Call, within: float) -> dict[str, Any]:
        deadline = Deadline.after(within, self._caller.clock.monotonic)
        return await self._caller.answer(call, deadline=deadline, exchange_timeout=within)
