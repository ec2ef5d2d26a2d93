"""How instances go away: one by one, all together, and when the interpreter ends.

Owns the certainty that nothing stays: an insert that is still on its way is waited for, what a list
still shows is deleted again, and what no record knows is found by the cluster's labels.
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import Awaitable, Callable, Collection, Iterable
from functools import partial

from dask_gce import names
from dask_gce.compute import Compute
from dask_gce.errors import GCEError
from dask_gce.instance import Instance, parse_instance
from dask_gce.member import Member

__all__ = ["Removal", "remove_in_order"]

logger = logging.getLogger(__name__)

#: What instances show that are off for good, and not on their way out.
OFF = frozenset({"STOPPED", "SUSPENDED", "TERMINATED"})

#: How many deletes are begun at a time. More would only wait for a connection.
LANES = 128

#: Seconds that an insert is waited for that may still make what is to be deleted.
SETTLE_TIMEOUT = 60.0

#: Seconds after which an instance that should be going, but is still there, is deleted again.
DELETE_AGAIN = 10.0

#: Seconds that closing a cluster makes sure that every instance goes.
CERTAIN_WITHIN = 120.0

#: Seconds between looks whether all of them go: at first, and at most.
FIRST_PAUSE, LONGEST_PAUSE = 0.2, 3.0

#: Seconds that machines wait for the deletion of firewall rules to be accepted.
RULES_WITHIN = 10.0

#: Seconds the interpreter's exit may take to delete what is left, and for each instance more.
EXIT_TIMEOUT, EXIT_TIMEOUT_EACH = 60.0, 0.2


class Removal:
    """Deletes the instances of one cluster.

    Parameters
    ----------
    compute : Compute
        The Compute API.
    cluster : str
        The cluster's name.
    label : str
        The filter that finds its instances.
    zones : callable
        Returns the zones in which it has, or had, instances.
    """

    def __init__(
        self, compute: Compute, cluster: str, label: str, zones: Callable[[], Collection[str]]
    ) -> None:
        self._compute = compute
        self._cluster = cluster
        self._label = label
        self._zones = zones
        #: When instances were asked to go that a list may still show.
        self._going: dict[tuple[str, str], float] = {}
        #: Which were asked to go, as long as a list shows them. Compute Engine shows STOPPING of
        #: what is being deleted and of what powers off by itself, which then stays with its disk.
        self._asked: set[tuple[str, str]] = set()
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def going_on(self) -> bool:
        """Whether some instance was asked to go and has not been seen going."""
        return bool(self._going)

    async def delete(self, member: Member) -> None:
        """Delete an instance. One that is gone, or never was, is no error.

        Parameters
        ----------
        member : Member
            The instance.

        Raises
        ------
        GCEError
            If Compute Engine refused.
        """
        batch = member.batch
        if batch is None or member.never_was or (member.zone, member.name) in self._going:
            return
        if not batch.ended and member.instance is None:
            # A delete must not overtake the insert that it is to undo.
            await batch.settle(self._compute, member.name, SETTLE_TIMEOUT)
        await self._delete(member.zone, member.name)

    async def delete_each(self, members: Iterable[Member]) -> list[GCEError]:
        """Delete instances side by side.

        Parameters
        ----------
        members : iterable of Member
            The instances.

        Returns
        -------
        list of GCEError
            An error for each that could not be deleted.
        """
        return await _side_by_side(partial(self.delete, member) for member in members)

    async def _delete(self, zone: str, name: str) -> None:
        if await self._compute.delete_instance(zone, name) is not None:
            self._going[zone, name] = time.monotonic()
            self._asked.add((zone, name))

    def review(self, found: Iterable[Instance], known: Collection[str]) -> None:
        """Delete, in the background, what a look found that should not be there.

        Parameters
        ----------
        found : iterable of Instance
            All instances of the cluster, of the zones that answered.
        known : collection of str
            The names of those that should be there.
        """
        now = time.monotonic()
        alive = {(each.zone, each.name) for each in found if _remains(each)}
        for key in self._going.keys() - alive:
            del self._going[key]
        self._asked &= {(each.zone, each.name) for each in found} | self._going.keys()
        for zone, name in alive:
            asked = self._going.get((zone, name), -math.inf)
            if name not in known and now - asked > DELETE_AGAIN:
                logger.warning("Instance %s is still there and is deleted again.", name)
                self._going[zone, name] = now
                task = asyncio.ensure_future(self._delete_quietly(zone, name))
                self._tasks.add(task)
                task.add_done_callback(self._tasks.discard)

    async def _delete_quietly(self, zone: str, name: str) -> None:
        try:
            await self._delete(zone, name)
        except GCEError as error:
            # It stays on the list of those going, so that the next review tries again.
            logger.info("Instance %s could not be deleted yet: %s", name, error)

    async def delete_all(self, members: Collection[Member]) -> None:
        """Delete every instance of the cluster, also those that are in no record.

        Returns when Compute Engine shows none that is not on its way out, having been asked to
        delete it: one that powers off by itself would stay, with its disk.

        Parameters
        ----------
        members : collection of Member
            Those on record.

        Raises
        ------
        GCEError
            If it is not certain that all are deleted, with the commands that tell and do it by
            hand.
        """
        for task in self._tasks:
            task.cancel()
        causes = await self.delete_each(members)
        deadline = time.monotonic() + CERTAIN_WITHIN
        pause = FIRST_PAUSE
        while True:
            try:
                listed = await self._list()
            except GCEError as error:
                raise self._uncertain([*causes, error], members) from error
            there = [each for each in listed if _remains(each)]
            unasked = [each for each in listed if not _remains(each) and not self._is_asked(each)]
            if not (there or unasked):
                return
            if there and time.monotonic() > deadline:
                causes.append(GCEError(f"Instance {there[0].name} does not go."))
                raise self._uncertain(causes, members) from causes[0]
            now = time.monotonic()
            again = [
                each
                for each in there
                if now - self._going.get((each.zone, each.name), -math.inf) > DELETE_AGAIN
            ]
            again += unasked
            causes = await _side_by_side(partial(self._delete, e.zone, e.name) for e in again)
            if causes:
                raise self._uncertain(causes, members) from causes[0]
            # What is not there any more for whoever deletes it is only listed a little longer.
            self._asked |= {(each.zone, each.name) for each in unasked}
            if not there:
                return
            await asyncio.sleep(pause)
            pause = min(2 * pause, LONGEST_PAUSE)

    def _is_asked(self, instance: Instance) -> bool:
        return (instance.zone, instance.name) in self._asked

    async def _list(self) -> list[Instance]:
        zones = self._zones()
        if len(zones) == 1:
            (zone,) = zones
            return [*map(parse_instance, await self._compute.list_instances(zone, self._label))]
        found, unreachable = await self._compute.aggregated_list_instances(self._label)
        _check_reached(zones, unreachable)
        return [*map(parse_instance, found)]

    def delete_now(self, members: Collection[Member]) -> bool:
        """Delete every instance on the calling thread, without an event loop.

        For the interpreter's exit, when loops and thread pools no longer work. Returns when the
        requests are accepted, not when the instances are gone.

        Parameters
        ----------
        members : collection of Member
            Those on record.

        Returns
        -------
        bool
            Whether all requests were accepted; else what to do was logged.
        """
        deadline = time.monotonic() + EXIT_TIMEOUT + EXIT_TIMEOUT_EACH * len(members)
        causes: list[GCEError] = []
        # The schedulers first: workers that have lost theirs end by themselves.
        known = sorted((each for each in members if not each.never_was), key=_is_worker)
        todo = {(each.zone, each.name): None for each in known}
        refused = self._compute.delete_instances_now(todo, deadline)
        causes += refused
        asked = self._asked | (set() if refused else todo.keys())
        # What was asked for a moment ago may not exist yet; it is waited for, then found by label.
        for batch in {id(each.batch): each.batch for each in known if each.batch}.values():
            try:
                batch.settle_now(self._compute, deadline)
            except GCEError as error:
                causes.append(error)
        try:
            listed = self._list_now(deadline)
        except GCEError as error:
            causes.append(error)
        else:
            found = {(each.zone, each.name): _remains(each) for each in listed}
            again = [key for key, remains in found.items() if remains or key not in asked]
            causes = self._compute.delete_instances_now(again, deadline)
        if causes:
            logger.error("%s", self._uncertain(causes, members))
        return not causes

    def _list_now(self, deadline: float) -> list[Instance]:
        zones = self._zones()
        if len(zones) == 1:
            (zone,) = zones
            listed = self._compute.list_instances_now(zone, self._label, deadline=deadline)
            return [*map(parse_instance, listed)]
        found, unreachable = self._compute.aggregated_list_instances_now(
            self._label, deadline=deadline
        )
        _check_reached(zones, unreachable)
        return [*map(parse_instance, found)]

    def _uncertain(self, causes: Collection[GCEError], members: Collection[Member]) -> GCEError:
        """Tell how to find and delete what may be left."""
        project = self._compute.project
        lines = [
            str(next(iter(causes), "")),
            f"Instances of cluster {self._cluster} may be left, and cost money. List them:",
            f"gcloud compute instances list --project {project} "
            f"--filter=labels.{names.CLUSTER_LABEL}={self._cluster}",
        ]
        zones: dict[str, list[str]] = {}
        for member in members:
            zones.setdefault(member.zone, []).append(member.name)
        for zone, found in zones.items():
            lines.append(
                f"Delete those known: gcloud compute instances delete {' '.join(found)} "
                f"--zone {zone} --project {project}"
            )
        return GCEError("\n".join(lines))


async def remove_in_order(
    rules: Callable[[], Awaitable[None]], machines: Callable[[], Awaitable[None]]
) -> None:
    """Bring two works to an end, however each goes: firewall rules before the machines.

    Machines end by themselves in the end, which rules do not: whoever dies in between is to leave
    no rule without a machine. But machines cost money, and do not wait for long.

    Parameters
    ----------
    rules : callable
        Deletes rules.
    machines : callable
        Deletes machines.

    Raises
    ------
    GCEError
        What either raised, or both together.
    """
    removing = asyncio.ensure_future(_do(rules))
    outcomes = await asyncio.gather(removing, _after(removing, machines), return_exceptions=True)
    errors = [each for each in outcomes if isinstance(each, GCEError)]
    for outcome in outcomes:
        if isinstance(outcome, BaseException) and not isinstance(outcome, GCEError):
            raise outcome
    if len(errors) == 1:
        raise errors[0]
    if errors:
        raise GCEError("\n".join(map(str, errors))) from errors[0]


async def _do(work: Callable[[], Awaitable[None]]) -> None:
    await work()


async def _after(first: asyncio.Future[None], work: Callable[[], Awaitable[None]]) -> None:
    await asyncio.wait({first}, timeout=RULES_WITHIN)
    await work()


async def _side_by_side(works: Iterable[Callable[[], Awaitable[None]]]) -> list[GCEError]:
    """Do many things, as many at a time as can be under way."""
    queue = iter(works)
    errors: list[GCEError] = []

    async def lane() -> None:
        for work in queue:
            try:
                await work()
            except GCEError as error:
                errors.append(error)

    await asyncio.gather(*(lane() for _ in range(LANES)))
    return errors


def _remains(instance: Instance) -> bool:
    """Tell whether an instance stays if nobody deletes it: one that is off still has its disk."""
    return not instance.ended or instance.status in OFF


def _is_worker(member: Member) -> bool:
    return member.spec.labels.get(names.ROLE_LABEL) == "worker"


def _check_reached(zones: Collection[str], unreachable: Collection[str]) -> None:
    silent = sorted(set(zones) & set(unreachable))
    if silent:
        raise GCEError(f"Zone {silent[0]} did not answer; what it holds is not known.")
