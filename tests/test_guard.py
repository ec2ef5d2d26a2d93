"""The guard on the scheduler's machine ends clusters that nobody needs, and no others.

The scheduler is a real one, started by the program that starts it on machines. Its limits are long
until whatever is to count is there, however long that takes, and short from then on.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import runpy
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import distributed
import pytest
from clusters import PATIENCE, until
from distributed import Client, Worker, rpc
from guests import DASK, Guest, changed
from ports import quiet_port

from dask_gce.startup import Limits, Payload, guest_file, scheduler_spec

During = Callable[[str], Awaitable[Any]]


class Ended:
    """What has become of a scheduler."""

    def __init__(self, status: int, console: str, attributes: dict[str, str]) -> None:
        self.status, self.console = status, console
        #: The guest attributes that it has left.
        self.phase = attributes.get("phase")
        self.limits = json.loads(attributes.get("limits", "{}"))


async def run(
    folder: Path, limits: Limits, during: During | None = None, **constants: float
) -> Ended:
    """Run a scheduler to its end; await what is to be done with it when it answers."""
    guest = Guest(folder, dask=DASK)
    text = changed(("guard.py",), constants)["guard.py"]
    (folder / "guest" / "guard.py").write_text(text)
    port = quiet_port()
    spec = scheduler_spec(protocol="tcp", port=port, dashboard_port=0, options={})
    # A dashboard brings much that has to be imported first.
    spec["opts"]["dashboard"] = False
    address = f"tcp://127.0.0.1:{port}"

    async def meanwhile(process: Any) -> None:
        if during is not None:
            await until_listening(port)
            await during(address)

    status, _, console = await guest.run(
        Payload("scheduler", "p", None, spec, limits=limits), meanwhile
    )
    return Ended(status, console, guest.record.guest_attributes.get("dask-gce", {}))


async def ask(address: str, verb: str, **arguments: Any) -> dict[str, Any]:
    """Call the guard."""
    async with rpc(address, timeout=PATIENCE) as scheduler:
        answer: dict[str, Any] = await getattr(scheduler, verb)(**arguments)
        return answer


async def look(address: str) -> dict[str, Any]:
    """Return how things are, without being there for longer than that."""
    return await ask(address, "dask_gce_attend", who="look", patience=0)


async def until_listening(port: int) -> None:
    """Wait until the scheduler listens; it answers when it has started."""
    deadline = time.monotonic() + PATIENCE
    while True:
        try:
            _, writer = await asyncio.open_connection("127.0.0.1", port)
        except OSError:
            assert time.monotonic() < deadline, "the scheduler does not listen"
            await asyncio.sleep(0.05)
        else:
            writer.close()
            return


async def until_busy(address: str) -> None:
    """Wait until the guard knows that there is something to do."""
    deadline = time.monotonic() + PATIENCE
    while (await look(address))["idle"] is not None:
        assert time.monotonic() < deadline, "the guard does not see that there is work"
        await asyncio.sleep(0.05)


async def limit(client: Client, **limits: float) -> None:
    """Give a scheduler other limits, which count from now on: nobody knows what has passed."""

    def change(limits: dict[str, float], dask_scheduler: Any = None) -> None:
        guard = dask_scheduler.extensions["dask-gce-guard"]
        guard._limits.update(limits)
        guard._since = dict.fromkeys(guard._since)

    await client.run_on_scheduler(change, limits)


@contextlib.asynccontextmanager
async def client_of(address: str, **options: Any) -> AsyncIterator[Client]:
    """Return a client that is nobody's default."""
    async with Client(
        address, asynchronous=True, set_as_default=False, timeout=PATIENCE, **options
    ) as client:
        yield client


def ended(by: str, after: str) -> str:
    """Return what is said of an end."""
    return {
        "idle_timeout": f"idle_timeout: the scheduler had nothing to do for {after}",
        "no_client_timeout": f"no_client_timeout: no client was connected for {after}",
        "max_lifetime": "max_lifetime: the cluster's lifetime is over",
    }[by]


def check(outcome: Ended, by: str, after: str = "") -> None:
    """Check that a scheduler has ended in order, and has said why everywhere."""
    assert outcome.status == 0, outcome.console
    reason = ended(by, after)
    assert f"dask-gce phase: ending: {reason}" in outcome.console
    assert outcome.phase == f"ending: {reason}"
    assert outcome.limits["ending"] == reason


# -- nothing to do ---------------------------------------------------------------------------------


async def test_a_scheduler_that_nobody_gives_work_ends_with_a_client_connected(tmp_path):
    over = asyncio.Event()

    async def stay(address: str) -> None:
        async with client_of(address) as client:
            await limit(client, idle_timeout=2)
            await until(lambda: client.status != "running")
            over.set()

    # In no stride, however long it took, is half of the limit left behind unseen.
    outcome = await run(tmp_path, Limits(idle_timeout=1000), stay, STRIDE=0.5)
    check(outcome, "idle_timeout", "2 seconds")
    assert over.is_set()
    # It was told before.
    assert "idle_timeout ends this cluster in" in outcome.console


async def test_work_keeps_it_whether_it_runs_or_waits_for_workers(tmp_path):
    gate = tmp_path / "gate"

    def hold(path: str) -> None:
        while not Path(path).exists():
            time.sleep(0.02)

    async def work(address: str) -> None:
        async with client_of(address) as client:
            task = client.submit(hold, str(gate), pure=False)
            await until_busy(address)
            await limit(client, idle_timeout=1)
            # Longer than it may idle: first there is no worker, then one is at work.
            await asyncio.sleep(3)
            assert (await look(address))["idle"] is None
            async with Worker(address, nthreads=1, local_directory=str(tmp_path)):
                await asyncio.sleep(3)
                assert (await look(address))["idle"] is None
                gate.touch()
                await client.gather(task, errors="skip")

    outcome = await run(tmp_path, Limits(idle_timeout=1000), work)
    check(outcome, "idle_timeout", "1 second")


async def test_it_is_kept_alive_by_who_says_so(tmp_path):
    async def hold(address: str) -> None:
        async with client_of(address) as client:
            await ask(address, "dask_gce_keep_alive", seconds=1e6)
            await limit(client, idle_timeout=1, no_client_timeout=1)
        await asyncio.sleep(3)
        held = await look(address)
        assert held["idle"] is held["alone"] is None
        assert held["ends_in"] == dict.fromkeys(held["ends_in"])
        await ask(address, "dask_gce_extend", seconds=1)

    outcome = await run(tmp_path, Limits(idle_timeout=1000, no_client_timeout=1000), hold)
    check(outcome, "max_lifetime")


def test_what_is_held_off_counts_anew_afterwards():
    guard = guard_of(idle_timeout=60, no_client_timeout=90)
    at(guard, 50)
    assert guard.status()["idle"] >= 50
    asyncio.run(guard.keep_alive(100))
    for now in (51, 149):
        at(guard, now)
        assert guard.status()["idle"] is None
    # It is held for less meanwhile, which takes nothing away.
    asyncio.run(guard.keep_alive())
    at(guard, 152)
    assert guard.status()["idle"] == guard.status()["alone"] == 0
    at(guard, 210)
    assert guard._find_end() == ""
    at(guard, 213)
    assert guard._find_end().startswith("idle_timeout")


# -- nobody there ----------------------------------------------------------------------------------


async def test_a_scheduler_to_which_nobody_comes_ends(tmp_path):
    outcome = await run(tmp_path, Limits(no_client_timeout=2))
    check(outcome, "no_client_timeout", "2 seconds")


async def test_clients_and_clusters_keep_it_for_as_long_as_they_are_there(tmp_path):
    async def be_there(address: str) -> None:
        async with client_of(address) as client:
            await limit(client, no_client_timeout=1)
            await asyncio.sleep(3)
            told = await look(address)
            assert told["alone"] is None and told["ending"] == ""
            # Then it is a cluster that is there, and says so.
            told = await ask(address, "dask_gce_attend", who="cluster", patience=1e6)
            assert told["ends_in"]["no_client_timeout"] is None
        await asyncio.sleep(3)
        told = await ask(address, "dask_gce_attend", who="cluster", patience=0)
        assert told["ending"] == ""

    outcome = await run(tmp_path, Limits(no_client_timeout=1000), be_there)
    check(outcome, "no_client_timeout", "1 second")


async def test_the_clients_of_tasks_keep_nothing(tmp_path):
    names = []

    async def leave_a_tasks_client(address: str) -> None:
        async with Worker(address, nthreads=1, local_directory=str(tmp_path)) as worker:
            client = worker._get_client()
            await client
            names.append(client.id)
            await limit(client, no_client_timeout=1)
            await until(lambda: worker.status is not distributed.Status.running)
            await client.close()

    outcome = await run(tmp_path, Limits(no_client_timeout=1000), leave_a_tasks_client)
    check(outcome, "no_client_timeout", "1 second")
    assert f"Receive client connection: {names[0]}" in outcome.console


# -- the lifetime ----------------------------------------------------------------------------------


async def test_a_life_ends_a_little_before_compute_engine_ends_it(tmp_path):
    expires = int(time.time()) + 1000

    async def look_at_it(address: str) -> None:
        left = (await look(address))["ends_in"]["max_lifetime"]
        assert left <= expires - time.time() - 59
        # It may be made longer, and shorter.
        more = await ask(address, "dask_gce_extend", seconds=9000)
        assert 8000 < more["ends_in"]["max_lifetime"] <= 8940
        await ask(address, "dask_gce_extend", seconds=2)

    outcome = await run(tmp_path, Limits(max_lifetime=1000, expires=expires), look_at_it)
    check(outcome, "max_lifetime")


def guard_of(**limits: Any) -> Any:
    """Return a guard of a scheduler that has nothing to do."""
    scheduler = SimpleNamespace(
        transition_counter=0, queued=(), unrunnable=(), workers={}, clients={}, extensions={}
    )
    program = Path(__file__).parents[1] / "dask_gce" / "guest" / "guard.py"
    return runpy.run_path(str(program))["Guard"](scheduler, limits)


def at(guard: Any, now: float) -> None:
    """Let it be later by a guard's own time, and let it look."""
    guard._now, guard._counted = now, time.monotonic()
    guard._count()


@pytest.mark.parametrize("off", [-30 * 86400.0, 30 * 86400.0])
def test_a_client_with_another_clock_means_the_same_life(off):
    # The machine has just been made, by whatever clock.
    told = time.time() + off
    left = guard_of(max_lifetime=1000, expires=told + 1000).status()["ends_in"]["max_lifetime"]
    assert 900 < left <= 940


def test_the_margin_is_a_minute_at_most():
    told = time.time()
    left = guard_of(max_lifetime=86400, expires=told + 86400).status()["ends_in"]["max_lifetime"]
    assert 86400 - 80 < left <= 86400 - 60


@pytest.mark.parametrize(("life", "margin"), [(240, 30), (60, 20), (3, 1)])
def test_a_short_life_leaves_time_to_tidy_up_too(life, margin):
    expires = time.time() + life
    left = guard_of(max_lifetime=life, expires=expires).status()["ends_in"]["max_lifetime"]
    assert left <= expires - time.time() - margin + 1
    assert guard_of(max_lifetime=life)._margin() == pytest.approx(margin)


async def test_a_machine_that_starts_anew_keeps_the_end_that_held():
    # Two hours after it was made, which could be taken for a clock that is wrong.
    made = time.time() - 7200
    guard = guard_of(max_lifetime=10800, expires=made + 10800)
    assert guard.status()["ends_in"]["max_lifetime"] > 7200
    end = time.time() + 3540
    guard._recall.__globals__["exchange"] = lambda name: json.dumps({"max_lifetime": end})
    await guard._recall()
    assert 3400 < guard.status()["ends_in"]["max_lifetime"] <= 3540


async def test_a_declared_cluster_ends_with_the_life_of_its_schedulers_machine():
    guard = guard_of(max_lifetime=10800)
    assert 10700 < guard.status()["ends_in"]["max_lifetime"] < 10800
    # Its process ended, and came again on the same machine.
    end = time.time() + 3540
    guard._recall.__globals__["exchange"] = lambda name: json.dumps({"max_lifetime": end})
    await guard._recall()
    assert 3400 < guard.status()["ends_in"]["max_lifetime"] <= 3540
    # The machine was stopped, and was started again when its life was over.
    guard = guard_of(max_lifetime=10800)
    past = time.time() - 60
    guard._recall.__globals__["exchange"] = lambda name: json.dumps({"max_lifetime": past})
    await guard._recall()
    assert 10700 < guard.status()["ends_in"]["max_lifetime"] < 10800


async def test_ends_that_could_not_be_published_are_published_later():
    guard = guard_of(idle_timeout=600)
    said: list[str] = []

    def exchange(name: str, text: str) -> None:
        said.append(text)
        if len(said) == 1:
            raise OSError("not now")

    guard._tell.__globals__["exchange"] = exchange
    for now in (1, 30, 100, 130):
        guard._now = guard._since["idle_timeout"] = float(now)
        guard._publish()
        if guard._publishing is not None:
            await guard._publishing
    # Not again before a minute has passed, nor when nothing has changed.
    assert len(said) == 2


def test_without_limits_nothing_ends():
    guard = guard_of()
    at(guard, 1e9)
    assert guard._find_end() == ""
    assert guard.status()["ends_in"] == dict.fromkeys(
        ("idle_timeout", "no_client_timeout", "max_lifetime")
    )


# -- what could keep a guard from its work ---------------------------------------------------------


def test_time_in_which_nobody_could_be_heard_does_not_count():
    guard = guard_of(no_client_timeout=60)
    guard._counted -= 3600
    guard._count()
    assert guard.status()["alone"] <= 6
    assert guard._find_end() == ""


def test_a_client_that_says_nothing_for_long_is_none():
    guard = guard_of(no_client_timeout=60)
    client = SimpleNamespace(last_seen=1.0)
    guard._scheduler.clients["Client-0a1b2c3d-1111"] = client
    at(guard, 10)
    assert guard.status()["alone"] is None
    at(guard, 100)
    client.last_seen += 1
    # One that computes without a break says nothing for minutes.
    for now in (125, 600, 1020):
        at(guard, now)
        assert guard.status()["alone"] is None
    at(guard, 1030)
    assert guard.status()["alone"] == 0


def test_how_things_are_is_told_whatever_the_departures_say():
    guard = guard_of(idle_timeout=60)

    class Broken:
        def status(self) -> dict[str, Any]:
            raise RuntimeError("broken")

    class Telling:
        def status(self) -> dict[str, Any]:
            return {"leaving": {"w": {"in": 9.0, "why": "preempted"}}, "recomputed": 3}

    guard._scheduler.extensions["dask-gce-departures"] = Broken()
    assert guard.status()["leaving"] == {}
    guard._scheduler.extensions["dask-gce-departures"] = Telling()
    assert guard.status()["recomputed"] == 3
    assert guard.status()["leaving"]["w"]["why"] == "preempted"


def test_warnings_come_once_each_and_again_after_it_was_held_off(caplog):
    guard = guard_of(idle_timeout=1200, warnings=(600, 300, 60))

    def warned(passed: float) -> list[str]:
        caplog.clear()
        guard._now = passed
        guard._warn()
        return [each.getMessage() for each in caplog.records]

    # Dask's own loggers do not reach the root.
    logging.getLogger("distributed").addHandler(caplog.handler)
    try:
        assert warned(500) == []
        assert warned(601) == ["idle_timeout ends this cluster in 9 minutes 59 seconds"]
        assert warned(700) == []
        assert len(warned(1150)) == 1
        guard._since["idle_timeout"] = None
        assert warned(1160) == []
        guard._since["idle_timeout"] = 1160.0
        assert warned(1200) == []
        assert len(warned(1160 + 900)) == 1
    finally:
        logging.getLogger("distributed").removeHandler(caplog.handler)


async def test_a_mistake_does_not_end_the_guard(tmp_path):
    def spoil(dask_scheduler: Any = None) -> None:
        guard = dask_scheduler.extensions["dask-gce-guard"]
        right, left = guard._is_busy, [3]

        def wrong() -> bool:
            if left[0]:
                left[0] -= 1
                raise RuntimeError("a mistake")
            return bool(right())

        guard._is_busy = wrong
        guard._limits.update(idle_timeout=1, no_client_timeout=1)

    async def spoil_it(address: str) -> None:
        async with client_of(address) as client:
            await client.run_on_scheduler(spoil)

    outcome = await run(tmp_path, Limits(), spoil_it)
    assert outcome.status == 0, outcome.console
    assert outcome.console.count("RuntimeError: a mistake") == 3


async def test_a_scheduler_that_stands_still_is_ended(tmp_path):
    def stand_still(dask_scheduler: Any = None) -> None:
        dask_scheduler.extensions["dask-gce-guard"]._limits["idle_timeout"] = 1
        time.sleep(1000)

    async def stop_it(address: str) -> None:
        async with client_of(address) as client:
            asking = asyncio.ensure_future(client.run_on_scheduler(stand_still))
            await asyncio.wait({asking}, timeout=PATIENCE)
            with contextlib.suppress(OSError, asyncio.CancelledError):
                asking.result()

    outcome = await run(tmp_path, Limits(), stop_it, HANGING=1.0, WATCHED_EVERY=0.1)
    assert outcome.status == 1, outcome.console
    assert "the scheduler has stood still for" in outcome.console


async def test_what_hangs_while_it_closes_does_not_keep_it(tmp_path):
    async def hang_on_close(dask_scheduler: Any = None) -> None:
        async def never() -> None:
            await asyncio.Event().wait()

        dask_scheduler.plugins["hangs"] = SimpleNamespace(
            before_close=never, close=never, name="hangs"
        )

    async def hang(address: str) -> None:
        async with client_of(address) as client:
            await client.run_on_scheduler(hang_on_close)
            await limit(client, no_client_timeout=1)

    outcome = await run(tmp_path, Limits(), hang, CLOSING=1.0, FAREWELL=0.1)
    check(outcome, "no_client_timeout", "1 second")


def test_the_guard_needs_nothing_of_ours():
    assert "import dask_gce" not in guest_file("guard.py")
    assert "from dask_gce" not in guest_file("guard.py")
