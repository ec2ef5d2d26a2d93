"""A cluster that several processes are connected to: whose machines are whose business.

Owns what one process does about the machines that another has made, and who of them replaces what
is lost. What they agree on is in `shared_plan`. A cluster that nobody else can connect to is its
own keeper and never asks.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from distributed.core import Status

from dask_gce import names, shared_plan
from dask_gce.client import client_mark, client_state
from dask_gce.fleet import Fleet
from dask_gce.instance import Instance
from dask_gce.placement import Location
from dask_gce.probing import UNREACHABLE
from dask_gce.retirement import RetiringCluster
from dask_gce.settings import Settings
from dask_gce.shared_plan import SharedPlan

logger = logging.getLogger(__name__)


#: Seconds after which whoever takes over looks whether another has done so at the same moment.
CLAIM_PAUSE = 0.3


class SharedCluster(RetiringCluster):
    """A cluster that other processes may be connected to as well.

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
        # Whether others can connect: whether the connection file was written, or read.
        self._shared = False
        # Tells this object from others of this process, and of all others.
        self._mark = ""
        # Whether the user has asked for something here that the others have not been told.
        self._untold = False
        # Whether it was for us to see to the plan when it was last told or learned.
        self._keeps = False
        self._telling = asyncio.Lock()
        super().__init__(settings, name, **options)

    async def _share(self) -> None:
        """From now on take note that others may be connected."""
        # This process, and in it this object.
        self._mark = f"{await asyncio.to_thread(client_mark)}/{secrets.token_hex(4)}"
        self._shared = True

    @property
    def _tells(self) -> bool:
        running = self.status == Status.running and self.scheduler_comm is not None
        return self._shared and running

    @property
    def _leaves_losses(self) -> bool:
        """Whether another process sees to the plan, as far as is known here."""
        return self._shared and not self._keeps and not self._untold

    async def _tell_plan(self) -> None:
        """Tell the others what was asked for here: how many machines; and that we see to it."""
        async with self._telling:
            if self._untold and self._tells:
                self._untold = False
                plan = SharedPlan(self._target, self._mark)
                if await shared_plan.publish(self.scheduler_comm, plan):
                    self._keeps = True
                else:
                    self._untold = True  # another time

    async def _resign(self) -> None:
        """Leave it to the others to see to the plan, if it was for us."""
        async with self._telling:
            if not self._tells:
                return
            try:
                plan = await shared_plan.read(self.scheduler_comm)
            except UNREACHABLE as error:
                logger.info("The scheduler does not tell the plan: %s", error)
                return
            self._keeps = False
            if plan is not None and plan.keeper == self._mark:
                await shared_plan.publish(self.scheduler_comm, replace(plan, keeper=""))

    async def _learn_plan(self) -> bool:
        """Ask what the others have planned; tell whether it is for us to replace what is lost."""
        if not self._shared:
            return True
        self._keeps = await self._ask_for_keeper()
        return self._keeps

    async def _ask_for_keeper(self) -> bool:
        if not self._tells:
            return False
        await self._tell_plan()
        try:
            plan = await shared_plan.read(self.scheduler_comm)
            if plan is not None:
                self._follow(plan)
                if plan.keeper == self._mark:
                    return True
                process = plan.keeper.partition("/")[0]
                if process and await asyncio.to_thread(client_state, process) != "gone":
                    return False
            # Nobody sees to it any more.
            self._untold = True
            await self._tell_plan()
            await asyncio.sleep(CLAIM_PAUSE)
            plan = await shared_plan.read(self.scheduler_comm)
        except UNREACHABLE as error:
            logger.info("The scheduler does not tell the plan: %s", error)
            return False
        return plan is not None and plan.keeper == self._mark

    def _follow(self, plan: SharedPlan) -> None:
        """Take over how many machines there should be, unless something newer was asked here."""
        with self._plan_lock:
            if not self._untold:
                self._target = plan.machines

    def _welcome(self, found: Sequence[Instance]) -> None:
        """Count the machines as the cluster's that another process has made."""
        if self._fleet is None or self._lost is not None or self.status != Status.running:
            return
        prefix = f"{self.name}-worker-"
        new = [each for each in found if each.name.startswith(prefix)]
        for instance in new:
            self._plan_machine(self._fleet, instance, self._location_of(instance))
        if new:
            with self._plan_lock:
                self._target += len(new)
            self._note_arrival([each.name for each in new if each.name in self._registered()])
            self._spawn(self._learn_and_correct())

    async def _learn_and_correct(self) -> None:
        if await self._learn_plan():
            # Those that two have made at the same time, or one for a plan that no longer counts.
            with self._plan_lock:
                self._trim(self._target)
        self._correct_state_soon()

    def _plan_machine(self, fleet: Fleet, instance: Instance, location: Location) -> None:
        """Take a worker's machine that exists into the plan."""
        blueprint = self._ready.blueprint
        names.note_used([instance.name])
        spec = blueprint.worker(instance.name, location, self._scheduler.contact_address)
        fleet.adopt(spec, instance, self.settings.worker_start_timeout)
        options = {**self.new_spec["options"], "location": location}
        with self._plan_lock:
            self.worker_spec[instance.name] = {**self.new_spec, "options": options}

    def _location_of(self, instance: Instance) -> Location:
        locations = self._ready.workers.locations
        found = next((each for each in locations if each.zone == instance.zone), locations[0])
        return replace(found, zone=instance.zone, spot=instance.spot)
