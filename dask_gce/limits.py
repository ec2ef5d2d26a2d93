"""A cluster's limits as its client sees them: counted down, told before, and the end when it came.

Owns that the scheduler knows of this client, which thereby is a client that is connected; what is
said of an end that is near; and that nothing is left of a cluster that has ended. The limits
themselves are kept where nobody can fall asleep: by the scheduler's machine (``guest/guard.py``)
and, for the lifetime, by Compute Engine. What it takes to lengthen a lifetime is in `extension`.
"""

from __future__ import annotations

import asyncio
import logging
import math
import secrets
import time
from typing import Any

from dask.utils import parse_timedelta
from distributed.core import Status as ClusterStatus

from dask_gce import shared_plan
from dask_gce.countdown import NAMES, Limits, Status, named_limit, notice, spell
from dask_gce.errors import ClusterEnded, GCEError, SettingsError
from dask_gce.extension import extend
from dask_gce.probing import UNREACHABLE
from dask_gce.telling import TellingCluster
from dask_gce.trust import end_of

logger = logging.getLogger(__name__)

#: Seconds between two signs of life to the scheduler; less while an end is near.
ATTEND_AFTER, ATTEND_AT_LEAST_AFTER = 3.0, 0.5

#: Seconds for which one of them counts: a laptop may be slow, a network may stutter.
PATIENCE = 30.0

#: Seconds after which what the scheduler told is no longer shown for what depends on its work.
STALE = 60.0

#: Seconds by which an end may come earlier than was told.
SLACK = 6.0

#: Seconds by which a lifetime must be told to be longer to have been lengthened by somebody else:
#: a machine whose clock is wrong counts from its own start.
LENGTHENED = 600.0

#: Seconds between attempts to delete what is left of a cluster that has ended.
CLEAR_AGAIN = 60.0

#: When a cluster has limits that count.
_LIVING = (ClusterStatus.starting, ClusterStatus.running)

#: What an end comes of, and what keeps it off.
_WORDS = {
    "idle_timeout": (
        "its scheduler has had nothing to do for {limit}",
        "Give it something to do, or hold the end off: cluster.keep_alive(). A cluster that may be "
        "idle for longer takes idle_timeout.",
    ),
    "no_client_timeout": (
        "no client has been connected for {limit}",
        "Connect one, or hold the end off: cluster.keep_alive(). A cluster that may be alone for "
        "longer takes no_client_timeout.",
    ),
    "max_lifetime": (
        "its lifetime of {limit} is over",
        "Bring its work to an end. A cluster that may live for longer takes max_lifetime when it "
        "is made.",
    ),
}


class LimitedCluster(TellingCluster):
    """A cluster that ends by itself, and says so."""

    #: What the scheduler told last, and when, on the monotonic clock.
    _word: tuple[float, Status] | None = None
    #: The same moment by this computer's clock.
    _heard_at = 0.0
    #: Whether the scheduler keeps limits: one without our guard does not.
    _is_guarded = True
    #: The ends that were told and have not been put off since.
    _announced: frozenset[str] = frozenset()
    _recomputed = 0

    # -- what is left -----------------------------------------------------------------------------

    @property
    def limits(self) -> Limits:
        """How long the cluster still has by each of its limits, in seconds from now."""
        if self._lost is not None or self.status not in _LIVING:
            return Limits()
        told, age = Limits(), self._age
        if self._word is not None:
            told = self._word[1].limits.after(age)
        fresh = age < STALE
        lifetime = told.max_lifetime
        if lifetime is None and self._expires is not None:
            lifetime = max(0.0, self._expires - time.time())
        return Limits(
            told.idle_timeout if fresh else None,
            told.no_client_timeout if fresh else None,
            lifetime,
        )

    @property
    def _age(self) -> float:
        """Seconds since the scheduler told something; infinity if it never has."""
        if self._word is None:
            return math.inf
        # The monotonic clock stands still while a computer sleeps; the other one may be set.
        return max(time.monotonic() - self._word[0], time.time() - self._heard_at)

    @property
    def _expires(self) -> int | None:
        return None if self._prepared is None else self._prepared.blueprint.expires

    def _seconds_of(self, name: str) -> float:
        value = getattr(self.settings, name)
        return math.inf if value is None else float(value)

    # -- attending --------------------------------------------------------------------------------

    async def _attend(self) -> None:
        """Tell the scheduler again and again that somebody is there, and hear how things are."""
        who = secrets.token_hex(8)
        while self._lost is None:
            if self._is_guarded:
                await self._attend_once(who)
            self._review()
            nearest = self.limits.nearest
            left = math.inf if nearest is None else nearest[1]
            await asyncio.sleep(min(ATTEND_AFTER, max(ATTEND_AT_LEAST_AFTER, left / 4)))

    async def _attend_once(self, who: str) -> None:
        rpc = self.scheduler_comm
        if rpc is None:
            return
        try:
            answer = await shared_plan.answer(rpc.dask_gce_attend(who=who, patience=PATIENCE))
        except UNREACHABLE as error:
            # What was told last goes on counting.
            logger.info("The scheduler does not tell its limits: %s", error)
            return
        status = Status.parse(answer)
        if status is None:
            self._is_guarded = False
            logger.info("The scheduler of cluster %s keeps no limits", self.name)
            return
        self._word, self._heard_at = (time.monotonic(), status), time.time()
        self._follow_lifetime(status.limits.max_lifetime)
        self._note_departures(status.leaving)
        if status.recomputed > self._recomputed:
            more, self._recomputed = status.recomputed - self._recomputed, status.recomputed
            self.events.note(self.name, "recomputed", f"{more} tasks, whose results were lost")

    def _follow_lifetime(self, left: float | None) -> None:
        """Give new machines the time that another process has got for the cluster."""
        if left is None or self._expires is None:
            return
        end = time.time() + left
        if end > self._expires + LENGTHENED:
            self._ready.blueprint.extend(int(end))

    # -- what is said -----------------------------------------------------------------------------

    def _review(self) -> None:
        """Say which end is near, and act on one that has come."""
        if self._lost is not None or self.status != ClusterStatus.running:
            return
        if self._word is not None and (limit := named_limit(self._word[1].ending)):
            self._end_by(limit)
            return
        if self._has_outlived():
            self._end_by("max_lifetime")
            return
        limits, near = self.limits, set()
        for name in NAMES:
            left = getattr(limits, name)
            if left is None or left > notice(name, self._seconds_of(name)):
                continue
            if not left and name not in self._announced:
                continue  # that is no news of an end to come, but the end
            near.add(name)
            if name not in self._announced:
                reason, remedy = _WORDS[name]
                reason = reason.format(limit=spell(self._seconds_of(name)))
                self._warn(
                    "ending",
                    f"Cluster {self.name} ends in {spell(left)} ({name}): then {reason}. {remedy}",
                )
        self._announced = frozenset(near)

    def _has_outlived(self) -> bool:
        """Tell whether the lifetime is over, as far as nobody knows better."""
        if self._expires is None or self._joined:
            # Whose clock has set the end of a cluster that another process has made is not known.
            return False
        if self._age < STALE:
            return False
        return time.time() >= self._expires

    # -- the end ----------------------------------------------------------------------------------

    def _drop(self, name: str, failure: GCEError) -> None:
        running = self.status == ClusterStatus.running and self._lost is None
        if running and name == self._scheduler.name and (limit := self._limit_behind(failure)):
            self.events.note(name, "lost", str(failure).partition("\n")[0])
            self._end_by(limit, failure)
            return
        super()._drop(name, failure)

    def _limit_behind(self, failure: GCEError) -> str:
        """Return the limit for which the scheduler is gone; empty if it is none."""
        head, _, reason = str(getattr(failure, "phase", "")).partition(": ")
        if head == "ending" and (limit := named_limit(reason)):
            return limit
        if self._word is not None:
            _, status = self._word
            if limit := named_limit(status.ending):
                return limit
            nearest = status.limits.after(self._age).nearest
            if nearest is not None and nearest[1] <= SLACK:
                return nearest[0]
        over = self._expires is not None and time.time() >= self._expires - SLACK
        return "max_lifetime" if over else ""

    def _end_by(self, limit: str, cause: GCEError | None = None) -> None:
        """Take note that the cluster has ended, and see to it that nothing is left."""
        reason, _ = _WORDS[limit]
        error = ClusterEnded(
            f"Cluster {self.name} has ended ({limit}): "
            f"{reason.format(limit=spell(self._seconds_of(limit)))}. Its machines are deleted. "
            f"Make a new one; to keep one for longer set {limit}.",
            cluster=self.name,
            limit=limit,
        )
        error.__cause__ = cause
        self._warn("ended", error.message)
        self._spending.end_all(at=self._ended_at(limit))
        self._lose(error)
        self._spawn(self._scheduler.approach.close())
        self._spawn(self._clear_away())

    async def _clear_away(self) -> None:
        """Delete at once what the machines cannot: a notebook may stay open over a weekend."""
        while True:
            try:
                await self._remove_machines_and_rules()
                if self._secrets is not None:
                    await self._secrets.delete()
                await self._forget_connection()
            except GCEError as error:
                logger.warning("Something may be left of cluster %s: %s", self.name, error)
                await asyncio.sleep(CLEAR_AGAIN)
            else:
                self.events.note(self.name, "cleared")
                self._tell_cost(ended=True)
                return

    def _ended_at(self, limit: str) -> float:
        """Return when a limit has ended the cluster, by this computer's clock."""
        ends = [time.time()]
        if self._expires is not None:
            ends.append(self._expires)
        left = None if self._word is None else getattr(self._word[1].limits, limit)
        if left is not None:
            # This computer may have slept since.
            ends.append(self._heard_at + left)
        return min(ends)

    # -- putting it off ---------------------------------------------------------------------------

    def keep_alive(self, duration: float | str | None = None) -> Any:
        """Begin to count anew how long the cluster has had nothing to do, and no client.

        The lifetime goes on, see :meth:`extend_lifetime`.

        Parameters
        ----------
        duration : float or str, optional
            For how long neither of the two is to end the cluster, in seconds or as ``"2 hours"``.
            By default their time just begins again.

        Returns
        -------
        awaitable or None
            Something to await when the cluster is asynchronous.

        Raises
        ------
        SettingsError
            If the duration is none.
        ClusterEnded
            If it is too late.
        GCEError
            If the scheduler does not answer, or keeps no limits.

        Examples
        --------
        >>> cluster.keep_alive("2 hours")  # doctest: +SKIP
        """
        seconds = 0.0 if duration is None else _parse(duration, "keep_alive")
        return self.sync(self._keep_alive, seconds)

    async def _keep_alive(self, seconds: float) -> None:
        await self._tell_guard("dask_gce_keep_alive", seconds)
        self._announced -= {"idle_timeout", "no_client_timeout"}

    def extend_lifetime(self, duration: float | str) -> Any:
        """Let the cluster live until so long from now, where Compute Engine allows it.

        It does not change the limit of a machine that runs, so this works for clusters whose
        machines have none: ``instance_overrides={"scheduling": {"maxRunDuration": None}}``. Then
        only the scheduler's machine keeps the lifetime.

        Parameters
        ----------
        duration : float or str
            How long from now, in seconds or as ``"12 hours"``.

        Returns
        -------
        awaitable or None
            Something to await when the cluster is asynchronous.

        Raises
        ------
        SettingsError
            If the duration is none, or would be shorter than what is left.
        ClusterEnded
            If it is too late.
        GCEError
            If Compute Engine refuses, if the certificates end before, or if the scheduler does not
            answer. Everything is as it was then.
        """
        return self.sync(self._extend_lifetime, _parse(duration, "extend_lifetime"))

    async def _extend_lifetime(self, seconds: float) -> None:
        prepared = self._ready
        if self._lost is not None:
            raise self._lost
        blueprint, now = prepared.blueprint, time.time()
        if blueprint.expires is None:
            return  # it lives for as long as somebody wants
        expires = math.ceil(now + seconds)
        if expires < blueprint.expires:
            raise SettingsError(
                f"extend_lifetime({spell(seconds)}): cluster {self.name} has "
                f"{spell(blueprint.expires - now)} left. To end it sooner: cluster.close().",
                key="max_lifetime",
            )
        certain = end_of(prepared.client_tls, *blueprint.tls.values())
        if certain is not None and certain.timestamp() < expires:
            raise GCEError(
                f"Cluster {self.name} cannot live for {spell(seconds)} from now: its certificates "
                f"end in {spell(certain.timestamp() - now)}, as all that are made for a cluster "
                "end with its lifetime. Make a new one with a longer max_lifetime, or with "
                "certificates of your own (security)."
            )
        async with extend(prepared.compute, blueprint, expires):
            await self._tell_guard("dask_gce_extend", seconds)
        blueprint.extend(expires)
        self._announced -= {"max_lifetime"}
        self.events.note(self.name, "extended", f"its lifetime ends in {spell(seconds)}")

    async def _tell_guard(self, what: str, seconds: float) -> None:
        """Have the scheduler do something about its limits, and learn what is left then."""
        if self._lost is not None:
            raise self._lost
        rpc = self.scheduler_comm
        if self.status != ClusterStatus.running or rpc is None:
            raise GCEError(f"Cluster {self.name} does not run; there is nothing to be put off.")
        try:
            answer = await shared_plan.answer(getattr(rpc, what)(seconds=seconds))
        except UNREACHABLE as error:
            raise GCEError(
                f"The scheduler of cluster {self.name} does not answer ({error}); its limits are "
                "as they were. Try again."
            ) from error
        status = Status.parse(answer)
        if status is None:
            raise GCEError(
                f"The scheduler of cluster {self.name} keeps no limits that could be put off: it "
                "was made by a version of this package that had none."
            )
        self._word, self._heard_at = (time.monotonic(), status), time.time()
        if (limit := named_limit(status.ending)) and self._lost is None:
            self._end_by(limit)
        if self._lost is not None:
            raise self._lost

    # -- how it shows -----------------------------------------------------------------------------

    def __repr__(self) -> str:
        text = str(super().__repr__())
        limits = self.limits
        return text if limits.nearest is None else f"{text[:-1]}, {limits})"


def _parse(duration: float | str, method: str) -> float:
    try:
        seconds = float(parse_timedelta(duration))
    except (TypeError, ValueError, KeyError):
        seconds = -1.0
    if not 0 <= seconds < math.inf:
        raise SettingsError(
            f"{method}({duration!r}): must be a time in seconds, or as '2 hours'.", key="duration"
        )
    return seconds
