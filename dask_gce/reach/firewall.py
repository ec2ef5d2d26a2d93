"""The life of a cluster's firewall rules: from what is missing to their removal.

Owns that each rule is on record before the call that makes it, and that all of them go with the
cluster, whichever way it ends. Which rules those are is in `firewall_needs`, the rules of others in
`own_rules`.
"""

from __future__ import annotations

import asyncio
import logging
import time
import uuid
from collections.abc import Callable

from dask_gce import tags
from dask_gce.compute import Compute
from dask_gce.errors import (
    APIError,
    GCEError,
    OperationError,
    PermissionDenied,
    RateLimited,
    ServerFault,
)
from dask_gce.events import EventLog
from dask_gce.exit import at_exit, not_at_exit
from dask_gce.operation import Operation
from dask_gce.reach.firewall_needs import Need, Needs
from dask_gce.reach.firewall_rules import Network
from dask_gce.reach.own_rules import delete_rules, left_behind, remove_rules

__all__ = ["Firewall"]

logger = logging.getLogger(__name__)

#: Seconds the interpreter's exit may take to delete rules.
EXIT_TIMEOUT = 10.0


class Firewall:
    """The firewall rules of one cluster.

    Parameters
    ----------
    compute : Compute
        The Compute API of the cluster's project.
    needs : Needs
        What the cluster needs to be let in.
    """

    def __init__(self, compute: Compute, needs: Needs) -> None:
        self._compute = compute
        self.needs = needs
        #: Where what happens is noted.
        self.events = EventLog()
        #: Told when a rule that was asked for did not come to be.
        self.failed: Callable[[GCEError], object] = _ignore
        #: Whether the interpreter's end is the cluster's, whose rules then go. Who has joined one
        #: deletes their own in any case.
        self.delete_at_exit = not self._joined
        #: Rules that were asked for and are not known to be gone, with their projects.
        self._recorded: dict[str, str] = {}
        # Who asks again, because nobody waited for the answer, asks for the same rule.
        self._request_ids: dict[str, str] = {}
        self._following: set[asyncio.Task[None]] = set()

    @property
    def recorded(self) -> tuple[str, ...]:
        """The names of the rules that were asked for here and are not known to be gone."""
        return tuple(self._recorded)

    @property
    def _cluster(self) -> str:
        return self.needs.mark.cluster

    @property
    def _joined(self) -> bool:
        """Whether another process has made the cluster, so that only its own rules are its own."""
        return bool(self.needs.suffix)

    def explain_missing(self) -> str:
        """Tell what the firewall may keep out, and the commands that let it in.

        Returns
        -------
        str
            Sentences for somebody who cannot reach the scheduler; empty where everything is let in
            that the cluster needs, as far as firewall rules tell.
        """
        return self.needs.explain_missing(self._recorded)

    # -- making -----------------------------------------------------------------------------------

    async def create(self) -> None:
        """Make what is missing; returns when Compute Engine has accepted it.

        Without ``firewall`` nothing is made, and what is missing is noted. Where this was cancelled
        it can be called again, whether or not Compute Engine has heard of it.

        Raises
        ------
        PermissionDenied
            If the caller may not make rules; with the commands for somebody who may.
        GCEError
            If a rule cannot be made for another reason.
        """
        needs, network = self.needs.missing, self.needs.survey.network
        if not self.needs.settings.firewall:
            for need in needs:
                self.events.note(self._cluster, "firewall", f"no rule is seen that lets in {need}")
            return
        if not needs:
            if self._joined:
                # Whose cluster it is may be ended here.
                at_exit(self, self._end, self._compute.endpoint)
            return
        if network is None:
            raise self.needs.unknown_network()
        for need in needs:
            self._recorded[need.name] = network.project
            self._request_ids.setdefault(need.name, str(uuid.uuid4()))
        at_exit(self, self._end, self._compute.endpoint)
        outcomes = await asyncio.gather(
            *(self._make(need, network) for need in needs), return_exceptions=True
        )
        for outcome in outcomes:
            if isinstance(outcome, BaseException):
                raise outcome

    async def _make(self, need: Need, network: Network) -> None:
        body = self.needs.build(need, network)
        try:
            operation = await self._compute.insert_firewall(
                body, network.project, self._request_ids[need.name]
            )
        except (RateLimited, ServerFault):
            raise  # it may have taken effect
        except APIError as error:
            # Nothing of ours has that name, so nothing is to be deleted.
            self._forget(need.name)
            if not self._does_without(need, error):
                raise self.needs.refusal(error, need, network) from error
            return
        self.events.note(self._cluster, "firewall", f"rule {need.name} lets in {need}")
        task = asyncio.ensure_future(self._follow(operation, need, network))
        self._following.add(task)
        task.add_done_callback(self._following.discard)

    def _does_without(self, need: Need, error: APIError) -> bool:
        """Tell whether to go on without a rule that the caller may not make, and say so."""
        # It may be there, where only the caller cannot see it; or the way may be free without.
        unseen = self.needs.survey.rules is None and need.purpose == "machines"
        if not (isinstance(error, PermissionDenied) and (unseen or self._joined)):
            return False
        text = f"no rule could be made that lets in {need}: {error.message}"
        self.events.note(self._cluster, "firewall", text)
        logger.warning("Cluster %s: %s", self._cluster, text)
        return True

    async def _follow(self, operation: Operation, need: Need, network: Network) -> None:
        """Learn whether a rule that was asked for comes to be."""
        timeout = self.needs.settings.start_timeout
        try:
            await self._compute.wait_operation(operation, timeout)
        except OperationError as error:
            self._forget(need.name)
            self.events.note(self._cluster, "firewall", error.message)
            self.failed(self.needs.failure(error, need, network))
        except GCEError as error:
            # Unknown is not failed: whether the scheduler can be reached will show.
            logger.info("It is not known whether a firewall rule was made: %s", error)

    # -- removing ---------------------------------------------------------------------------------

    async def remove(self, *, everybodys: bool = False) -> None:
        """Delete the rules that were made here. Those that are gone are no error.

        Parameters
        ----------
        everybodys : bool
            Whether to delete those that other processes have made for the cluster, too.

        Raises
        ------
        GCEError
            If it is not certain that all are deleted, with the command that does it by hand. Then
            the interpreter's exit tries again.
        """
        await self._stop_following()
        going = self.recorded
        errors = await delete_rules(self._compute, self._recorded.items(), self._forget)
        if everybodys:
            mark, network = self.needs.mark, self.needs.survey.network
            projects = {self._compute.project, *([network.project] if network else [])}
            errors += await remove_rules(
                self._compute, mark.cluster, mark.identity, sorted(projects), going=going
            )
        if errors:
            raise GCEError("\n".join(map(str, errors))) from errors[0]
        not_at_exit(self)

    def _forget(self, name: str) -> None:
        self._recorded.pop(name, None)
        self._request_ids.pop(name, None)

    async def leave(self) -> None:
        """Have nothing more to do with the cluster: what it needs stays, what is ours goes.

        Raises
        ------
        GCEError
            If it is not certain that what is ours is deleted.
        """
        if self._joined:
            await self.remove()
            return
        await self._stop_following()
        not_at_exit(self)

    def remove_now(self) -> None:
        """Delete the rules that were made here on the calling thread, without an event loop.

        For the interpreter's exit, when loops and thread pools no longer work. Who has joined a
        cluster, and ends it, deletes its maker's too. What cannot be deleted is logged, with the
        command that does it by hand.
        """
        deadline = time.monotonic() + EXIT_TIMEOUT
        for name, project in self._ending().items():
            try:
                self._compute.delete_firewall_now(name, deadline, project)
            except GCEError as error:
                logger.error("%s", left_behind([(name, project)], error))
            else:
                self._forget(name)
        not_at_exit(self)

    def _ending(self) -> dict[str, str]:
        """Return the rules that go with the interpreter, with their projects."""
        network, mark = self.needs.survey.network, self.needs.mark
        makers: dict[str, str] = {}
        if self._joined and self.delete_at_exit and network is not None:
            names = tags.rule_names(mark.cluster, mark.identity)
            makers = dict.fromkeys(names, network.project)
        return makers | self._recorded

    def _end(self) -> None:
        # What this process has made for itself is of no use to those who stay.
        if self.delete_at_exit or self._joined:
            self.remove_now()
            self._compute.close_now()

    async def _stop_following(self) -> None:
        tasks = set(self._following)
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)


def _ignore(error: GCEError) -> None:
    """Leave it to the events to tell of a rule that failed."""
