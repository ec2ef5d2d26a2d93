"""End a cluster that nobody needs any more, with nobody there to do it: the scheduler's preload.

Owns the limits of a cluster as the scheduler's machine keeps them: for how long there may be
nothing to do, for how long no client may be connected, and until when the cluster may live. What is
close is told before it happens, to whoever asks and on the serial console. Then the scheduler
closes in order, which ends the workers, and the machine removes what is left (see `ending.sh`).

Runs with Dask but without the package that sent it.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import re
import threading
import time
import urllib.request
from typing import Any

from distributed.core import Status
from distributed.scheduler import Scheduler

# Below Dask's own, so that its lines are in the scheduler's logs and on the serial console.
logger = logging.getLogger("distributed.scheduler.dask_gce")

#: Seconds between two looks, at most.
TICK = 0.5
#: Seconds that pass for the limits between two looks, at most. A scheduler that was held up, or a
#: machine that stood still, has not heard its clients meanwhile; that is no reason to end.
STRIDE = 5.0
#: Seconds after which a client that says nothing counts as gone, though its connection stands. It
#: says something every 5 s, unless it is held up: by code that keeps the GIL, or by a debugger.
SILENCE = 900.0
#: Seconds for which somebody may be taken for there without saying it again, at most.
PATIENCE = 3600.0
#: The clients that tasks have, as distributed calls them (`Worker._get_client`): they last as long
#: as their worker, whoever has gone since.
OF_TASKS = re.compile(r"[A-Za-z_]\w*-worker-[0-9a-f]{8}-")

#: Share of its life, and seconds at most, that a cluster ends before Compute Engine ends it: time
#: for its machines to remove what no machine's end removes. That takes some time in a short life,
#: too, but is to leave most of it.
MARGIN, MARGIN_AT_MOST = 0.1, 60.0
MARGIN_AT_LEAST, MARGIN_OF_SHORT = 30.0, 1 / 3
#: Seconds that a boot may take; a machine whose clock is further away has another one.
CLOCKS_AGREE = 3600.0
#: Looks in a row that must find the life over: clocks are set.
CERTAIN = 3
#: Seconds between the last words and the end, in which they can be heard.
FAREWELL = 2.0
#: Seconds that closing in order may take.
CLOSING = 60.0
#: Seconds beyond all limits after which a scheduler that hangs is ended.
HANGING = 300.0
#: Seconds between two looks whether it does.
WATCHED_EVERY = 10.0
#: Seconds between two publications, and until another attempt: a machine may write about ten guest
#: attributes in a minute, of which the phases of its boot are some.
PUBLISHED_EVERY, PUBLISHED_AGAIN = 15.0, 60.0

SERVER = "http://{}/computeMetadata/v1/instance/guest-attributes/dask-gce/".format(
    os.environ.get("GCE_METADATA_HOST", "metadata.google.internal")
)
NO_PROXY = urllib.request.build_opener(urllib.request.ProxyHandler({}))
#: What each limit is about, and how its end is told.
LIMITS = {
    "idle_timeout": "the scheduler had nothing to do for {}",
    "no_client_timeout": "no client was connected for {}",
    "max_lifetime": "the cluster's lifetime is over",
}


def exchange(name: str, text: str | None = None) -> str:
    """Read a guest attribute of this machine, or write it; blocks."""
    request = urllib.request.Request(  # noqa: S310
        SERVER + name,
        data=None if text is None else text.encode(),
        method="GET" if text is None else "PUT",
        headers={"Metadata-Flavor": "Google"},
    )
    with NO_PROXY.open(request, timeout=10) as answer:
        return str(answer.read(), "utf-8")


def spell(seconds: float) -> str:
    """Spell a time out in its two largest units."""
    left, parts = max(0, round(seconds)), []
    for unit, size in (("day", 86400), ("hour", 3600), ("minute", 60), ("second", 1)):
        count, left = divmod(left, size)
        if count:
            parts.append(f"{count} {unit}{'s' * (count > 1)}")
    return " ".join(parts[:2]) or "0 seconds"


class Guard:
    """Keeps the limits of one cluster."""

    def __init__(self, scheduler: Scheduler, limits: dict[str, Any]) -> None:
        self._scheduler = scheduler
        self._limits = {name: limits.get(name) for name in ("idle_timeout", "no_client_timeout")}
        self._warnings = sorted(limits.get("warnings") or (), reverse=True)
        self._lifetime: float | None = limits.get("max_lifetime")
        self._from_now = limits.get("expires") is None
        self._expires = self._by_own_clock(limits.get("expires"))
        #: Seconds that have passed for the limits, and when they were counted last.
        self._now, self._counted = 0.0, time.monotonic()
        #: Since when each limit counts; None while it does not.
        self._since: dict[str, float | None] = dict.fromkeys(self._limits, self._now)
        self._held_until = 0.0
        self._attending: dict[str, float] = {}
        self._heard: dict[str, tuple[float, float]] = {}
        self._transitions = 0
        # When somebody last did something in the notebooks on this machine, by its clock.
        self._noted: Any = None
        self._over = 0
        self._warned: dict[str, float] = {}
        self._published: dict[str, Any] = {}
        self._publishing: asyncio.Task[None] | None = None
        self._publish_at = 0.0
        #: Why the cluster ends; empty while it does not.
        self.ending = ""
        given = [each for each in (*self._limits.values(), self._lifetime) if each]
        self._tick = min([TICK, *(each / 8 for each in given)])
        self._task: asyncio.Task[None] | None = None

    def _by_own_clock(self, expires: float | None) -> float | None:
        """Return when the life is over by this machine's clock."""
        if self._lifetime is None:
            return None
        now = time.time()
        if expires is None:
            # The cluster is declared, and its end is this machine's, which begins now.
            return now + self._lifetime
        made = expires - self._lifetime
        # Told by the client's clock, which may show anything; but it has just been read.
        return expires if abs(now - made) < CLOCKS_AGREE else now + self._lifetime

    def _margin(self) -> float:
        life = self._lifetime or 0.0
        least = min(MARGIN_AT_LEAST, MARGIN_OF_SHORT * life)
        return min(MARGIN_AT_MOST, max(least, MARGIN * life))

    # -- what others call --------------------------------------------------------------------------

    async def attend(self, who: str, patience: float) -> dict[str, Any]:
        """Count somebody as there for some seconds, and tell how things are."""
        self._attending[str(who)] = self._now + min(max(0.0, float(patience)), PATIENCE)
        if not self.ending:
            self._since["no_client_timeout"] = None
        return self.status()

    async def keep_alive(self, seconds: float = 0) -> dict[str, Any]:
        """Begin to count anew, not before some seconds have passed."""
        self._held_until = max(self._held_until, self._now + max(0.0, float(seconds)))
        for name in self._since:
            self._since[name] = None
        return self.status()

    async def extend(self, seconds: float) -> dict[str, Any]:
        """Let the life be over some seconds from now."""
        self._lifetime = max(0.0, float(seconds))
        self._expires = time.time() + self._lifetime
        self._warned.pop("max_lifetime", None)
        self._publish_at = 0.0
        return self.status()

    def status(self) -> dict[str, Any]:
        """Tell how things are, in seconds from now."""
        leaving: dict[str, Any] = {}
        recomputed = 0
        departures = self._scheduler.extensions.get("dask-gce-departures")
        if departures is not None:
            with contextlib.suppress(Exception):
                found = departures.status()
                leaving, recomputed = found.get("leaving", {}), found.get("recomputed", 0)
        return {
            "idle": self._passed("idle_timeout"),
            "alone": self._passed("no_client_timeout"),
            "ends_in": {name: self._left(name) for name in LIMITS},
            "ending": self.ending,
            "leaving": leaving,
            "recomputed": recomputed,
        }

    # -- how long ----------------------------------------------------------------------------------

    def _passed(self, name: str) -> float | None:
        since = self._since[name]
        return None if since is None else self._now - since

    def _left(self, name: str) -> float | None:
        if name == "max_lifetime":
            if self._expires is None:
                return None
            return max(0.0, self._expires - self._margin() - time.time())
        limit, passed = self._limits[name], self._passed(name)
        return None if limit is None or passed is None else max(0.0, limit - passed)

    def _is_busy(self) -> bool:
        """Tell whether there is something to do, as Scheduler.check_idle does."""
        scheduler = self._scheduler
        before, self._transitions = self._transitions, scheduler.transition_counter
        return bool(
            before != self._transitions
            or getattr(scheduler, "_active_graph_updates", 0) > 0
            or scheduler.queued
            or scheduler.unrunnable
            or any(worker.processing for worker in scheduler.workers.values())
        )

    def _is_attended(self) -> bool:
        """Tell whether a client is connected, or a cluster has said that it is there."""
        self._attending = {who: end for who, end in self._attending.items() if end > self._now}
        heard = {}
        for key, client in self._scheduler.clients.items():
            if key == "fire-and-forget" or OF_TASKS.match(key):
                continue
            seen, when = self._heard.get(key, (None, self._now))
            heard[key] = (client.last_seen, self._now if seen != client.last_seen else when)
        self._heard = heard
        alive = any(self._now - when < SILENCE for _, when in heard.values())
        return alive or bool(self._attending)

    def _has_notebook_work(self) -> bool:
        """Tell whether somebody has done something in the notebooks since the last look."""
        server = self._scheduler.extensions.get("dask-gce-notebook-server")
        if server is None:
            return False
        before, self._noted = self._noted, server.last_activity()
        return bool(before != self._noted)

    def _count(self) -> None:
        now = time.monotonic()
        self._now += min(now - self._counted, STRIDE)
        self._counted = now
        held = self._now < self._held_until
        noted = self._has_notebook_work()
        used = {
            "idle_timeout": self._is_busy() or noted,
            "no_client_timeout": self._is_attended() or noted,
        }
        for name, is_used in used.items():
            if is_used or held:
                self._since[name] = None
            elif self._since[name] is None:
                self._since[name] = self._now

    def _find_end(self) -> str:
        """Return why the cluster ends now; empty if it does not."""
        for name, limit in self._limits.items():
            if limit is not None and self._left(name) == 0.0:
                return f"{name}: {LIMITS[name].format(spell(limit))}"
        self._over = self._over + 1 if self._left("max_lifetime") == 0.0 else 0
        return f"max_lifetime: {LIMITS['max_lifetime']}" if self._over >= CERTAIN else ""

    # -- what is told ------------------------------------------------------------------------------

    def _warn(self) -> None:
        for name in LIMITS:
            left = self._left(name)
            limit = self._lifetime if name == "max_lifetime" else self._limits[name]
            if left is None or limit is None:
                self._warned.pop(name, None)
                continue
            # What is told as soon as it counts warns nobody.
            marks = [mark for mark in self._warnings if mark <= limit / 2] or [limit / 2]
            close = [mark for mark in marks if left <= mark]
            if close and close[-1] < self._warned.get(name, float("inf")):
                self._warned[name] = close[-1]
                logger.warning("%s ends this cluster in %s", name, spell(left))

    def _publish(self) -> None:
        """Have the ends published, if they are others than those that are."""
        if self._now < self._publish_at or (self._publishing and not self._publishing.done()):
            return
        lefts = {name: self._left(name) for name in LIMITS}
        now = time.time()
        ends = {name: None if left is None else round(now + left) for name, left in lefts.items()}
        same = self._published.keys() == ends.keys() and all(
            (end is None) == (told is None) and abs((end or 0) - (told or 0)) <= 2
            for end, told in ((ends[name], self._published[name]) for name in ends)
        )
        if same:
            return
        self._published, self._publish_at = ends, self._now + PUBLISHED_EVERY
        self._publishing = asyncio.create_task(self._publish_ends(ends))

    async def _publish_ends(self, ends: dict[str, Any]) -> None:
        if not await self._tell("limits", json.dumps(ends)):
            self._published, self._publish_at = {}, self._now + PUBLISHED_AGAIN

    async def _tell(self, name: str, text: str) -> bool:
        # Guest attributes can be forbidden by an organization's policy.
        with contextlib.suppress(Exception):
            await asyncio.to_thread(exchange, name, text)
            return True
        return False

    async def _recall(self) -> None:
        """Keep the end that held before this machine started anew.

        It may have been put off. And how long ago the cluster was made says nothing any more of
        whether this machine's clock is right.
        """
        with contextlib.suppress(Exception):  # at a first start there is nothing to recall
            before = json.loads(await asyncio.to_thread(exchange, "limits"))["max_lifetime"]
            if self._expires is not None and before is not None:
                end = float(before) + self._margin()
                # A machine that is started again, after its end, begins a life of its own.
                if not self._from_now or end > time.time():
                    self._expires = end

    # -- its own life ------------------------------------------------------------------------------

    def start(self) -> None:
        """Begin; is not waited for."""
        self._task = asyncio.create_task(self._run(), name="dask-gce-guard")
        threading.Thread(target=self._watch, name="dask-gce-guard", daemon=True).start()

    async def _run(self) -> None:
        await self._recall()
        while self._scheduler.status not in (Status.closing, Status.closed):
            await asyncio.sleep(self._tick)
            try:
                self._count()
                reason = self._find_end()
                if reason:
                    await self._end(reason)
                    return
                self._warn()
                self._publish()
            except Exception:
                # A cluster without its guard could live for ever.
                logger.exception("The limits of this cluster could not be looked at")
        self._end_for_certain()

    async def _end(self, reason: str) -> None:
        self.ending = reason
        self._end_for_certain()
        print(f"dask-gce phase: ending: {reason}", flush=True)
        logger.warning("This cluster ends. %s", reason)
        with contextlib.suppress(Exception):
            self._scheduler.log_event(["all", "dask-gce-limits"], {"ending": reason})
        ends = {**dict.fromkeys(LIMITS), "ending": reason}
        words = (self._tell("limits", json.dumps(ends)), self._tell("phase", f"ending: {reason}"))
        await asyncio.wait([asyncio.ensure_future(each) for each in words], timeout=FAREWELL)
        await asyncio.sleep(FAREWELL)
        await self._scheduler.close(reason=f"dask-gce: {reason}")

    def _end_for_certain(self) -> None:
        """End this process even if what it waits for never comes."""
        timer = threading.Timer(CLOSING + 2 * FAREWELL, os._exit, (0,))
        timer.daemon = True
        timer.start()

    def _watch(self) -> None:
        """End a scheduler that hangs; runs in a thread of its own."""
        seen, stood = self._counted, 0.0
        while True:
            time.sleep(WATCHED_EVERY)
            limits = [each for each in self._limits.values() if each is not None]
            # Looks are counted: a machine that was suspended has stood still as a whole.
            seen, stood = self._counted, stood + WATCHED_EVERY if seen == self._counted else 0.0
            if limits and stood > max(limits) + HANGING:
                # Nobody else is there to say it.
                print(f"dask-gce: the scheduler has stood still for {spell(stood)}", flush=True)
                os._exit(1)


async def dask_setup(scheduler: Scheduler) -> None:
    """Let the scheduler answer clusters, and begin."""
    try:
        limits = json.loads(os.environ.get("DASK_GCE_LIMITS", "{}"))
    except ValueError:
        logger.exception("The limits of this cluster cannot be read")
        limits = {}
    guard = Guard(scheduler, limits)
    scheduler.handlers["dask_gce_attend"] = guard.attend
    scheduler.handlers["dask_gce_keep_alive"] = guard.keep_alive
    scheduler.handlers["dask_gce_extend"] = guard.extend
    # For whoever looks from the inside, and to be kept for as long as the scheduler.
    scheduler.extensions["dask-gce-guard"] = guard
    guard.start()
