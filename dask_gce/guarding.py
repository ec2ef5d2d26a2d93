"""Who is let in to a cluster's machines, as long as there are any.

Owns when the firewall's rules are made and when they go: once the scheduler's machine is certain to
come to be, and before it is deleted. Compute Engine ends machines after some time, but never rules,
so that whoever dies at any moment leaves none without the machine that removes it at its own end.
What rules there are is in `reach`; how machines come is in `assembly`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from typing import Any

from dask_gce.errors import GCEError
from dask_gce.preparation import Preparation
from dask_gce.removal import remove_in_order
from dask_gce.scaling import ScalingCluster
from dask_gce.settings import Settings


class GuardedCluster(ScalingCluster):
    """A cluster with firewall rules of its own.

    Parameters
    ----------
    settings : Settings
        The cluster's settings.
    name : str
        The cluster's name.
    **options
        What SpecCluster takes.
    """

    def __init__(self, settings: Settings, name: str, **options: Any) -> None:
        # Why the firewall lets nobody in, although it was asked to.
        self._closed_off: GCEError | None = None
        super().__init__(settings, name, **options)

    async def _open_firewall(self, prepared: Preparation) -> None:
        """Have let in what has to be; returns when Compute Engine has accepted it."""
        prepared.firewall.events = self.events
        prepared.firewall.failed = self._note_closed_off
        await prepared.firewall.create()

    def _note_closed_off(self, error: GCEError) -> None:
        """Learn that a rule did not come to be, without which the scheduler is not reached."""
        self._closed_off = error
        if self.scheduler is not None:
            self._scheduler.failure = error

    async def _remove_machines_and_rules(self) -> None:
        """Delete what no machine is, then all machines, however the one and the other goes."""
        await remove_in_order(self._remove_the_rest, self._remove_machines)

    async def _remove_the_rest(self) -> None:
        if self._prepared is not None:
            # Only where others can join they may have made rules too.
            await self._prepared.firewall.remove(everybodys=self._shared)

    async def _remove_machines(self) -> None:
        if self._fleet is not None:
            await self._fleet.delete_all()

    async def _leave_machines_and_rules(self) -> None:
        """Leave both to others, but for what was made for this process alone."""
        works: list[Awaitable[None]] = []
        if self._fleet is not None:
            works.append(self._fleet.leave())
        if self._prepared is not None:
            works.append(self._prepared.firewall.leave())
        await all_of(works)


async def all_of(works: list[Awaitable[None]]) -> None:
    """Bring all to an end, however the others go."""
    outcomes = await asyncio.gather(*works, return_exceptions=True)
    errors = []
    for outcome in outcomes:
        if isinstance(outcome, GCEError):
            errors.append(outcome)
        elif isinstance(outcome, BaseException):
            raise outcome
    if len(errors) == 1:
        raise errors[0]
    if errors:
        raise GCEError("\n".join(map(str, errors))) from errors[0]
