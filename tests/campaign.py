"""The fault campaign: whatever can befall a cluster, and what must hold afterwards.

A seed makes a script: settings, then steps of scaling, computing and misfortune, each drawn before
the first of them runs. So a seed, or a part of its steps, can be played again::

    python tests/campaign.py --minutes 60             # one seed after the other
    python tests/campaign.py --seed 7                 # one seed
    python tests/campaign.py --seed 7 --only 0,3,4    # some of its steps

Everything in it is real: a GCECluster, its scheduler and workers under TLS, and a local Compute
Engine. Owns the scripts, what each step does, and what must hold after them.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import logging
import math
import os
import random
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import AsyncIterator, Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import dask
import psutil
from distributed import Client, Future
from wire import Passage, Wire

from dask_gce import GCECluster
from dask_gce.emulator import ComputeEmulator, Fault, Timings
from dask_gce.errors import GCEError, WorkersFailed
from dask_gce.instance import parse_instance

ZONES = ("us-central1-a", "us-central1-b", "europe-west1-b")
MACHINE_TYPES = ("e2-small", "e2-standard-2")

#: Machines of a cluster at most, for the sake of the computer that runs all of them.
MACHINES = 5

#: Seconds in which a cluster that nothing is wrong with any more must reach its target.
RECOVERY = 90.0

#: Seconds that closing may take, and after that the last instances.
CLOSING = 60.0

#: Seconds that a machine may take to die: data that it takes meanwhile dies with it.
DYING = 8.0

#: Seconds for a run in all.
LONGEST_RUN = 300.0

#: What callers see of Compute Engine's bad moments.
REFUSALS = (
    (500, "internalError"),
    (503, "backendError"),
    (503, "backendError"),
    (429, "rateLimitExceeded"),
    (403, "rateLimitExceeded"),
    (403, "quotaExceeded"),
    (403, "forbidden"),
)

#: What operations end with.
OPERATION_ERRORS = ("INTERNAL_ERROR", "ZONE_RESOURCE_POOL_EXHAUSTED", "QUOTA_EXCEEDED")

METHODS = (
    "compute.instances.insert",
    "compute.instances.bulkInsert",
    "compute.instances.delete",
    "compute.instances.list",
    "compute.instances.aggregatedList",
    "compute.instances.getGuestAttributes",
    "compute.instances.getSerialPortOutput",
    "compute.zoneOperations.get",
    "compute.zoneOperations.list",
    "compute.zoneOperations.wait",
)
CHANGES = METHODS[:3]


@dataclass(frozen=True)
class Step:
    """One thing that happens, some seconds after the one before."""

    pause: float
    deed: str
    arguments: tuple[Any, ...] = ()

    def __str__(self) -> str:
        return f"{self.deed}({', '.join(map(repr, self.arguments))})"


@dataclass(frozen=True)
class Script:
    """All that a seed decides."""

    seed: int
    machines: str
    settings: dict[str, Any]
    timings: dict[str, float]
    steps: tuple[Step, ...]
    #: Machines to end with.
    target: int
    #: Whether all is well again before the cluster is closed.
    heals: bool

    def __str__(self) -> str:
        lines = [
            f"seed {self.seed}: {self.machines} machines, settings {self.settings}, "
            f"timings {self.timings}, target {self.target}, heals {self.heals}"
        ]
        lines += [f"{n:3} after {each.pause:.2f} s: {each}" for n, each in enumerate(self.steps)]
        return "\n".join(lines)


def write_script(seed: int, *, machines: str = "light", steps: int = 14) -> Script:
    """Return the script of a seed.

    Parameters
    ----------
    seed : int
        The seed.
    machines : str
        The kind of machines of the local Compute Engine.
    steps : int
        How many things happen.
    """
    draw = random.Random(seed)  # noqa: S311  # it guards nothing
    zones = list(draw.sample(ZONES, draw.choice((1, 2, 2, 3))))
    processes = draw.choice((1, 1, 1, 2))
    settings = {
        "zone": zones,
        "machine_type": list(MACHINE_TYPES[: draw.choice((1, 2))]),
        "allow_cross_zone": draw.random() < 0.4,
        "max_workers": draw.choice((None, None, MACHINES * processes)),
        "processes": processes,
        "n_workers": draw.choice((0, 1, 2, 3)),
        "worker_start_failure_limit": draw.choice((1, 3, 3)),
    }
    slow = draw.random() < 0.5
    timings = {
        "provisioning": 0.5 if slow else 0.05,
        "staging": 0.3 if slow else 0.05,
        "booting": 0.3 if slow else 0.0,
        "deleting": 0.5 if slow else 0.05,
        "latency": 0.05 if slow else 0.002,
        "stopping": draw.choice((0.5, 3.0)),
        "operation_wait": 2.0,
    }
    deeds = [deed for deed, weight in WEIGHTS.items() for _ in range(weight)]
    script = []
    if draw.random() < 0.25:
        script.append(
            _draw_step(draw, draw.choice(("refuse", "lose", "break_operation")), zones, 0)
        )
    # A cluster has something to do from the start.
    script += [Step(0.0, "start"), _draw_step(draw, "submit", zones, processes)]
    while len(script) < steps:
        script.append(_draw_step(draw, draw.choice(deeds), zones, processes))
    return Script(
        seed,
        machines,
        settings,
        timings,
        tuple(script),
        target=draw.randint(1, 3),
        heals=draw.random() < 0.6,
    )


#: How often each deed is drawn.
WEIGHTS = {
    "scale": 6,
    "scale_down": 3,
    "adapt": 2,
    "stop_adapting": 1,
    "submit": 6,
    "scatter": 2,
    "release": 2,
    "collect": 1,
    "look": 1,
    "preempt": 2,
    "host_error": 1,
    "power_off": 1,
    "delete": 2,
    "kill": 2,
    "refuse": 4,
    "lose": 3,
    "delay": 2,
    "break_operation": 3,
    "short_of_machines": 3,
    "short_of_quota": 2,
    "unreachable": 2,
    "reachable": 2,
    "cut": 2,
    "mend": 3,
}


def _draw_step(draw: random.Random, deed: str, zones: Sequence[str], processes: int) -> Step:
    arguments: tuple[Any, ...] = ()
    if deed == "scale":
        arguments = (draw.randint(0, MACHINES) * processes,)
    elif deed == "adapt":
        minimum = draw.randint(0, 2) * processes
        arguments = (minimum, minimum + draw.randint(1, MACHINES - 2) * processes)
    elif deed in ("submit", "scatter"):
        arguments = (draw.randint(1, 15),)
    elif deed in ("scale_down", "release", "preempt", "host_error", "power_off", "delete", "kill"):
        arguments = (round(draw.random(), 3),)
    elif deed == "refuse":
        arguments = (draw.choice(METHODS), *draw.choice(REFUSALS), draw.choice((1, 1, 2)))
    elif deed == "lose":
        arguments = (draw.choice(METHODS), draw.choice((True, "after")))
    elif deed == "delay":
        arguments = (draw.choice(METHODS), round(draw.uniform(0.2, 2.5), 1), draw.choice((1, 2)))
    elif deed == "break_operation":
        arguments = (
            draw.choice(CHANGES),
            draw.choice(OPERATION_ERRORS),
            draw.choice((1, 1, 3)),
        )
    elif deed == "short_of_machines":
        arguments = (
            draw.choice(zones),
            draw.choice((None, *MACHINE_TYPES)),
            draw.choice((0, 1, 3, None)),
        )
    elif deed == "short_of_quota":
        arguments = (draw.choice(("us-central1", "europe-west1")), draw.choice((0, 4, 8, None)))
    elif deed == "unreachable":
        arguments = (draw.choice(zones),)
    return Step(round(draw.choice((0.0, 0.1, 0.3, 0.6, 1.5)) * draw.random(), 2), deed, arguments)


class Broken(AssertionError):
    """Something did not hold that must."""


class Complaints(logging.Handler):
    """Errors that were logged because nobody was there to raise them to."""

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.texts: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        """Keep a record."""
        # Without a traceback it is something to tell the user, not a defect.
        if record.exc_info is not None and record.exc_info[0] is not None:
            self.texts.append(logging.Formatter().format(record))

    @contextlib.contextmanager
    def listening(self) -> Iterator[Complaints]:
        """Listen for a while."""
        loggers = [*map(logging.getLogger, ("dask_gce", "asyncio", "tornado.application"))]
        for logger in loggers:
            logger.addHandler(self)
        try:
            yield self
        finally:
            for logger in loggers:
                logger.removeHandler(self)


class Campaign:
    """One run of a script.

    Parameters
    ----------
    script : Script
        What happens.
    only : collection of int or None
        Numbers of the steps to take; None for all.
    """

    def __init__(self, script: Script, only: Collection[int] | None = None) -> None:
        self.script = script
        self.steps = [
            step
            for number, step in enumerate(script.steps)
            if only is None or number in only or step.deed == "start"
        ]
        self.log: list[str] = []
        self.named: list[GCEError] = []
        #: How many machines were ended behind the cluster's back.
        self.deaths = 0
        self.most_workers = 0
        self._was_cut = False
        self._began = time.monotonic()
        self._emulator: ComputeEmulator
        self._wire: Wire
        self._cluster: GCECluster | None = None
        self._client: Client | None = None
        self._adaptive: Any = None
        #: Results to come, each with what it must be.
        self._expected: list[tuple[Future, Any]] = []
        #: Data that the workers hold, and since when.
        self._scattered: list[tuple[Future, Any, float]] = []
        self._last_death = -math.inf
        self._next = 0

    # -- the course of it -------------------------------------------------------------------------

    async def run(self) -> None:
        """Play the script.

        Raises
        ------
        Broken
            If something did not hold; the message has all that is needed to find out why.
        """
        with Complaints().listening() as complaints:
            try:
                await asyncio.wait_for(self._run(), LONGEST_RUN)
                if complaints.texts:
                    raise Broken("errors were logged:\n" + "\n".join(complaints.texts))
            except Exception as error:
                raise Broken(self._report(error, complaints)) from error

    async def _run(self) -> None:
        script = self.script
        async with contextlib.AsyncExitStack() as stack:
            self._emulator = await stack.enter_async_context(
                ComputeEmulator(script.machines, timings=Timings(**script.timings))
            )
            self._wire = await stack.enter_async_context(Wire(self._emulator.endpoint))
            await stack.enter_async_context(self._counting())
            try:
                for step in self.steps:
                    await asyncio.sleep(step.pause)
                    self._note(str(step))
                    await getattr(self, f"_{step.deed}")(*step.arguments)
                    if self._cluster is None and step.deed == "start":
                        break
                if self._cluster is not None:
                    await self._recover()
            finally:
                await self._close()
            await self._check_that_nothing_is_left()
        self._check_calls()

    def _note(self, text: str) -> None:
        self.log.append(f"{time.monotonic() - self._began:7.2f} {text}")

    @contextlib.asynccontextmanager
    async def _counting(self) -> AsyncIterator[None]:
        """Count the workers' machines all the time."""

        async def count() -> None:
            while True:
                self.most_workers = max(self.most_workers, len(self._machines()))
                await asyncio.sleep(0.02)

        counting = asyncio.ensure_future(count())
        try:
            yield
        finally:
            counting.cancel()
            await asyncio.wait({counting})

    def _machines(self, *statuses: str) -> list[str]:
        """Return the names of workers' machines that run, or will."""
        return [
            str(each["name"])
            for each in self._emulator.instances()
            if each["labels"].get("dask-gce-role") == "worker"
            and (each["status"] in statuses if statuses else not parse_instance(each).ended)
        ]

    # -- what the user does -----------------------------------------------------------------------

    async def _start(self) -> None:
        cluster = GCECluster(
            project="local-project",
            api_endpoint=self._wire.endpoint,
            worker_class="distributed.Worker",
            nthreads=1,
            memory_limit="500MiB",
            # Workers die often here; who computed what on them is not to blame.
            env_vars={"DASK_DISTRIBUTED__SCHEDULER__ALLOWED_FAILURES": "1000"},
            start_timeout="60 s",
            worker_start_timeout="60 s",
            asynchronous=True,
            quiet=True,
            **self.script.settings,
        )
        try:
            await cluster
        except GCEError as error:
            self._name(error)
            # Nobody is left who could close it but the interpreter's exit.
            self._note("the start failed")
            return
        self._cluster = cluster
        self._client = await Client(cluster, asynchronous=True)

    def _name(self, error: GCEError) -> None:
        self._note(f"  {type(error).__name__}: {str(error).splitlines()[0]}")
        if not str(error):
            raise Broken(f"an error without a word: {error!r}")
        self.named.append(error)

    @property
    def _gce(self) -> GCECluster:
        assert self._cluster is not None
        return self._cluster

    @property
    def _dask(self) -> Client:
        assert self._client is not None
        return self._client

    async def _scale(self, n: int) -> None:
        await self._stop_adapting()
        began = time.monotonic()
        try:
            self._gce.scale(n)
        except WorkersFailed as error:
            self._name(error)
        took = time.monotonic() - began
        if took > 5:
            raise Broken(f"scale({n}) took {took:.1f} s")

    async def _scale_down(self, share: float) -> None:
        known = sorted(str(each["name"]) for each in self._gce.scheduler_info["workers"].values())
        await self._gce.scale_down(known[: round(share * len(known))])

    async def _adapt(self, minimum: int, maximum: int) -> None:
        self._adaptive = self._gce.adapt(
            minimum=minimum, maximum=maximum, interval="0.2 s", wait_count=3, target_duration="1 s"
        )

    async def _stop_adapting(self) -> None:
        if self._adaptive is not None:
            self._adaptive.stop()
            self._adaptive = None

    async def _submit(self, n: int) -> None:
        def double(x: int) -> int:
            time.sleep(0.05 * (x % 4))
            return 2 * x

        def total(xs: list[int]) -> int:
            return sum(xs)

        numbers = range(self._next, self._next + n)
        self._next += n
        doubled = self._dask.map(double, numbers, pure=False)
        self._expected += [(future, 2 * x) for future, x in zip(doubled, numbers, strict=True)]
        self._expected.append((self._dask.submit(total, doubled, pure=False), 2 * sum(numbers)))

    async def _scatter(self, n: int) -> None:
        if not self._gce.scheduler_info["workers"]:
            return
        data = [os.urandom(1000) for _ in range(n)]
        began = time.monotonic()
        # Of a worker that leaves right after it has got its part Dask says KeyError.
        with contextlib.suppress(asyncio.TimeoutError, OSError, KeyError):
            futures = await self._dask.scatter(data, hash=False, timeout=5)
            self._scattered += [
                (future, one, began) for future, one in zip(futures, data, strict=True)
            ]

    async def _release(self, share: float) -> None:
        del self._expected[: round(share * len(self._expected))]
        del self._scattered[: round(share * len(self._scattered))]

    async def _collect(self) -> None:
        """Look at what has been computed so far."""
        for future, wanted in list(self._expected):
            if future.status == "finished":
                with contextlib.suppress(asyncio.TimeoutError):
                    await self._check_result(future, wanted, 5)

    async def _check_result(self, future: Future, wanted: Any, timeout: float) -> None:
        found = await asyncio.wait_for(future.result(), timeout)
        if found != wanted:
            raise Broken(f"{future.key} is {found!r}, not {wanted!r}")

    async def _look(self) -> None:
        cluster = self._gce
        texts = (repr(cluster), cluster._repr_html_(), repr(cluster.events))
        if not all(texts) or not cluster.requested <= cluster.plan:
            raise Broken(f"{cluster!r}: requested {cluster.requested} of {cluster.plan}")

    # -- what befalls its machines ----------------------------------------------------------------

    def _end(self, share: float, how: Callable[[str], None]) -> None:
        running = self._machines("RUNNING")
        if running:
            name = running[int(share * len(running))]
            self._note(f"  {name}")
            self._note_death()
            how(name)

    def _note_death(self) -> None:
        self.deaths += 1
        self._last_death = time.monotonic()

    async def _preempt(self, share: float) -> None:
        self._end(share, self._emulator.preempt)

    async def _host_error(self, share: float) -> None:
        self._end(share, self._emulator.host_error)

    async def _power_off(self, share: float) -> None:
        self._end(share, self._emulator.power_off)

    async def _delete(self, share: float) -> None:
        self._end(share, lambda name: self._emulator.delete(name, user="colleague@example.org"))

    async def _kill(self, share: float) -> None:
        """Kill the process that a worker lives in; light workers share theirs with others."""
        workers = [str(each) for each in self._gce.scheduler_info["workers"]]
        if not workers:
            return
        host = sorted(workers)[int(share * len(workers))].rpartition("://")[2].rpartition(":")[0]
        for process in psutil.Process().children(recursive=True):
            with contextlib.suppress(psutil.NoSuchProcess, psutil.AccessDenied):
                listening = [
                    each.laddr.ip
                    for each in process.net_connections(kind="tcp")
                    if each.status == psutil.CONN_LISTEN
                ]
                if host in listening:
                    self._note(f"  process {process.pid} of {host}")
                    self._note_death()
                    process.send_signal(signal.SIGKILL)

    # -- what befalls Compute Engine --------------------------------------------------------------

    async def _refuse(self, method: str, status: int, reason: str, times: int) -> None:
        self._emulator.faults.add(Fault(method, status=status, reason=reason, times=times))

    async def _lose(self, method: str, drop: Any) -> None:
        self._emulator.faults.add(Fault(method, drop=drop))

    async def _delay(self, method: str, seconds: float, times: int) -> None:
        self._emulator.faults.add(Fault(method, delay=seconds, times=times))

    async def _break_operation(self, method: str, code: str, times: int) -> None:
        errors = [{"code": code, "message": "It was not to be."}]
        self._emulator.faults.add(Fault(method, operation_errors=errors, times=times))

    async def _short_of_machines(self, zone: str, machine_type: str | None, n: int | None) -> None:
        self._emulator.capacity.set(zone, machine_type, instances=n)

    async def _short_of_quota(self, region: str, limit: int | None) -> None:
        self._emulator.quota.set(region, "CPUS", limit)

    async def _unreachable(self, zone: str) -> None:
        self._emulator.unreachable.add(zone)

    async def _reachable(self) -> None:
        self._emulator.unreachable.clear()

    async def _cut(self) -> None:
        self._was_cut = True
        await self._wire.cut()

    async def _mend(self) -> None:
        await self._wire.mend()

    async def _heal(self) -> None:
        emulator = self._emulator
        for trouble in (emulator.faults, emulator.capacity, emulator.quota, emulator.unreachable):
            trouble.clear()
        await self._wire.mend()

    # -- what must hold ---------------------------------------------------------------------------

    async def _recover(self) -> None:
        """With nothing wrong any more, the cluster must reach its target and keep its results."""
        troubled = not self.script.heals
        if troubled:
            # Something is wrong again when the cluster is closed.
            troubles = [s for s in self.steps if s.deed in ("refuse", "lose", "break_operation")]
        await self._heal()
        await self._stop_adapting()
        cluster, processes = self._gce, self.script.settings["processes"]
        wanted = self.script.target * processes
        self._note(f"all is well again; scale({wanted})")
        # A try may have begun before, and what was refused then is told now.
        for last in (False, False, True):
            try:
                cluster.scale(wanted)
                await self._dask.wait_for_workers(wanted, timeout=RECOVERY)
                break
            except WorkersFailed as error:
                if last:
                    raise
                self._name(error)
        await self._until(
            lambda: (
                len(cluster.scheduler_info["workers"]) == wanted
                and len(cluster.plan) == wanted
                and sorted(self._machines()) == sorted(cluster.worker_spec)
            ),
            RECOVERY,
            lambda: (
                f"{wanted} workers were asked for; planned {sorted(cluster.worker_spec)}, at the "
                f"scheduler {self._registered()}, in Compute Engine {self._machines()}"
            ),
        )
        self._note("the target is reached")
        for future, value in self._expected:
            await self._check_result(future, value, RECOVERY)
        for future, value, since in self._scattered:
            if self._last_death < since - DYING:
                await self._check_result(future, value, RECOVERY)
        self._note(f"{len(self._expected)} results are right")
        if troubled:
            for step in troubles:
                self._note(str(step))
                await getattr(self, f"_{step.deed}")(*step.arguments)

    def _registered(self) -> list[str]:
        return sorted(str(w["name"]) for w in self._gce.scheduler_info["workers"].values())

    async def _until(
        self, holds: Callable[[], bool], seconds: float, told: Callable[[], str]
    ) -> None:
        deadline = time.monotonic() + seconds
        while not holds():
            if time.monotonic() > deadline:
                raise Broken(f"not within {seconds:g} s: {told()}")
            await asyncio.sleep(0.05)

    async def _close(self) -> None:
        self._expected.clear()
        self._scattered.clear()
        if self._client is not None:
            await self._client.close()
        cluster = self._cluster
        if cluster is None:
            return
        self._note("close()")
        began = time.monotonic()
        try:
            await asyncio.wait_for(cluster.close(), CLOSING)
        except asyncio.TimeoutError:
            raise Broken(f"close() took more than {CLOSING:g} s") from None
        except GCEError as error:
            self._name(error)
            # Compute Engine refused; what is left is named, and the next attempt deletes it.
            await self._heal()
            self._note("close() again")
            await asyncio.wait_for(cluster.close(), CLOSING)
        self._note(f"closed in {time.monotonic() - began:.2f} s")

    async def _check_that_nothing_is_left(self) -> None:
        await self._heal()
        await self._until(
            lambda: not self._emulator.leftovers(),
            CLOSING,
            lambda: "left:\n" + "\n".join(self._emulator.leftovers()),
        )

    def _check_calls(self) -> None:
        """Check the record of all calls."""
        limit = self.script.settings["max_workers"]
        if limit is not None and self.most_workers > limit // self.script.settings["processes"]:
            raise Broken(f"there were {self.most_workers} workers' machines; max_workers {limit}")
        inserts: dict[str, list[Passage]] = {}
        for passage in self._wire.passages:
            for name in passage.inserts:
                inserts.setdefault(name, []).append(passage)
        for name, calls in inserts.items():
            if len({each.query.get("requestId") for each in calls}) > 1:
                raise Broken(f"{name} was inserted twice: {'; '.join(map(str, calls))}")
        for passage in self._wire.passages:
            if not (name := passage.deletes):
                continue
            if name not in inserts and not (passage.status == 404 and self._was_cut):
                raise Broken(f"{name} was deleted, but never asked for: {passage}")
            for insert in inserts.get(name, ()):
                if insert.began > passage.began or (insert.ended or 0) > passage.began:
                    raise Broken(f"a delete overtook its insert: {insert}; {passage}")

    def _report(self, error: BaseException, complaints: Complaints) -> str:
        cluster = self._cluster
        parts = [str(self.script), *self.log]
        if cluster is not None:
            parts += ["cluster.events:", *map(str, cluster.events)]
            parts += ["cluster.failures:", *(str(e).splitlines()[0] for e in cluster.failures)]
        if hasattr(self, "_wire"):
            parts += ["the calls:", *map(str, self._wire.passages[-150:])]
        parts += complaints.texts
        parts += [f"{type(error).__name__}: {error}", "".join(traceback.format_exception(error))]
        return "\n".join(parts)


def play(script: Script, only: Collection[int] | None = None) -> Campaign:
    """Play a script in an event loop of its own.

    Parameters
    ----------
    script : Script
        What happens.
    only : collection of int or None
        Numbers of the steps to take; None for all.

    Raises
    ------
    Broken
        If something did not hold.
    """
    campaign = Campaign(script, only)
    # A worker that is lost is missed for 15 s otherwise.
    with dask.config.set({"distributed.deploy.lost-worker-timeout": "2 s"}):
        asyncio.run(campaign.run())
    return campaign


def main() -> int:
    """Play seeds from the command line."""
    parser = argparse.ArgumentParser(description="Let faults befall clusters.")
    parser.add_argument("--seed", type=int, help="play this seed only")
    parser.add_argument("--first", type=int, default=1, help="seed to begin with")
    parser.add_argument("--minutes", type=float, default=10.0, help="how long to go on")
    parser.add_argument("--steps", type=int, default=14, help="steps of a script")
    parser.add_argument("--machines", default="light", choices=("light", "process"))
    parser.add_argument("--only", help="numbers of the steps to take, with commas")
    parser.add_argument("--reports", type=Path, help="folder for the reports of failures")
    arguments = parser.parse_args()
    only = {int(part) for part in arguments.only.split(",")} if arguments.only else None

    from leftovers import Snapshot, adopt_orphans

    adopt_orphans(True)
    deadline = time.monotonic() + 60 * arguments.minutes
    failed = []
    seed = arguments.first if arguments.seed is None else arguments.seed
    with tempfile.TemporaryDirectory() as folder:
        os.environ["TMPDIR"] = tempfile.tempdir = folder
        while True:
            script = write_script(seed, machines=arguments.machines, steps=arguments.steps)
            snapshot = Snapshot(Path(folder))
            began = time.monotonic()
            try:
                campaign = play(script, only)
                if left := snapshot.leftovers():
                    raise Broken(f"{script}\nleft:\n" + "\n".join(left))
            except Broken as error:
                failed.append(seed)
                report = str(error)
                if arguments.reports is not None:
                    (arguments.reports / f"seed-{seed}.txt").write_text(report + "\n", "utf-8")
                    report = report.rstrip().splitlines()[-1]
                print(f"seed {seed}: FAILED after {time.monotonic() - began:.0f} s\n{report}")
            else:
                print(
                    f"seed {seed}: {time.monotonic() - began:.0f} s, {campaign.deaths} deaths, "
                    f"{len(campaign.named)} named failures"
                )
            sys.stdout.flush()
            seed += 1
            if arguments.seed is not None or time.monotonic() > deadline:
                break
    print(f"failed: {failed or 'none'}")
    return bool(failed)


if __name__ == "__main__":
    sys.exit(main())
