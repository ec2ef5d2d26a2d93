"""`requires_cluster`: a function gets a client, and nothing is left when it has ended."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import gc
import inspect
import signal
import subprocess
import sys
import threading
import time
import typing

import dask
import pytest
from clusters import BULK, DELETE, INSERT, PATIENCE, is_worker, refuse, until, wait_until
from dask.base import get_scheduler
from distributed import Client, LocalCluster, get_client, get_worker
from distributed.core import Status
from distributed.deploy.spec import SpecCluster
from interruption import HEARS

import dask_gce
from dask_gce import GCECluster, requires_cluster
from dask_gce.emulator import Fault
from dask_gce.errors import GCEError, SettingsError, WorkersFailed
from dask_gce.keeping import Keeper, Loan, keeper

LOCAL = {"n_workers": 1, "local": True}


def on(emulator, **more):
    """Return keywords for quick clusters on a local Compute Engine."""
    return {
        "n_workers": 1,
        "api_endpoint": emulator.endpoint,
        "machine_type": "e2-small",
        "worker_class": "distributed.Worker",
        "security": False,
        "quiet": True,
        **more,
    }


def schedulers_made(emulator):
    """Return how many clusters were made, by the schedulers that were asked for."""
    return emulator.requests[INSERT]


def alive():
    """Return the clusters of this process that are not closed."""
    # A copy, made in one step: other threads may make clusters meanwhile.
    known = [reference() for reference in SpecCluster._instances.data.copy()]
    return [each for each in known if each is not None and each.status != Status.closed]


def is_empty(emulator):
    """Tell whether all clusters have ended, on this side and on the other."""
    return not alive() and not emulator.leftovers()


@pytest.fixture(autouse=True)
def no_cluster_left(nothing_left):
    """Fail a test that leaves a cluster; those that are kept may take their time."""
    before = alive()
    yield
    wait_until(lambda: set(alive()) <= set(before))


def default_client():
    try:
        return get_client()
    except ValueError:
        return None


def add(client, *numbers):
    return client.submit(sum, numbers).result()


# -- on Compute Engine ----------------------------------------------------------------------------


def test_a_function_gets_a_client_of_its_own_cluster(light):
    @requires_cluster(**on(light))
    def compute(numbers, client=None):
        assert len(client.scheduler_info()["workers"]) == 1
        assert isinstance(client.cluster, GCECluster)
        return client.submit(sum, numbers).result()

    assert compute([1, 2]) == 3
    assert {each["status"] for each in light.instances()} <= {"STOPPING"}
    assert compute(numbers=[3, 4]) == 7
    assert schedulers_made(light) == 4  # two schedulers, two workers


def test_over_tls(process_emulator):
    @requires_cluster(**on(process_emulator, security=True, keep_alive=0.1))
    def compute(client):
        assert client.scheduler.address.startswith("tls://")
        return add(client, 1, 2)

    assert compute() == 3
    wait_until(lambda: is_empty(process_emulator))


def test_an_exception_is_the_functions_own_and_leaves_nothing(light):
    @requires_cluster(**on(light))
    def fail(client=None):
        add(client, 1)
        raise LookupError("mine")

    with pytest.raises(LookupError, match="mine"):
        fail()
    assert not alive()
    wait_until(lambda: is_empty(light))


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit])
def test_an_interruption_closes_too(error):
    @requires_cluster(**LOCAL)
    def fail(client=None):
        raise error("mine")

    with pytest.raises(error, match="mine"):
        fail()
    assert not alive()


async def test_a_cancelled_coroutine_leaves_nothing(light):
    begun = asyncio.Event()

    @requires_cluster(**on(light))
    async def wait(client=None):
        assert await client.submit(sum, [1, 2]) == 3
        begun.set()
        await asyncio.sleep(60)

    task = asyncio.ensure_future(wait())
    await asyncio.wait_for(begun.wait(), PATIENCE)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert not alive()
    await until(lambda: is_empty(light))


@pytest.mark.parametrize("call", [INSERT, BULK])
async def test_a_coroutine_cancelled_before_it_began_leaves_nothing(paper_workers, call):
    @requires_cluster(**on(paper_workers, n_workers=2))
    async def never(client=None):
        pytest.fail("it has no workers")

    task = asyncio.ensure_future(never())
    await until(lambda: paper_workers.requests[call])
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert not alive()
    await until(lambda: is_empty(paper_workers))


def test_a_kept_cluster_does_not_end_for_idling(light, monkeypatch, caplog):
    held = []
    keep_alive = GCECluster.keep_alive

    def noting(self, duration=None):
        held.append(duration)
        return keep_alive(self, duration)

    monkeypatch.setattr(GCECluster, "keep_alive", noting)

    @requires_cluster(**on(light, keep_alive=2))
    def work(client=None):
        return add(client, 1, 2)

    with caplog.at_level("INFO", "dask_gce.keeping"):
        assert work() == 3
        wait_until(lambda: is_empty(light))
    # Longer than it is kept, so that it is there until the very end of that.
    (seconds,) = held
    assert seconds > 2
    assert "may end before its time" not in caplog.text


@pytest.mark.parametrize("keep_alive", [None, 60], ids=["own", "kept"])
def test_workers_that_cannot_start_do_not_hang_the_function(light, keep_alive):
    refuse(light, times=9)

    @requires_cluster(**on(light, worker_start_failure_limit=1, keep_alive=keep_alive))
    def never(client=None):
        pytest.fail("it has no workers")

    with pytest.raises(WorkersFailed):
        never()
    assert not alive()


@pytest.mark.parametrize("given", ["position", "name"])
def test_a_function_called_with_a_client_makes_nothing(emulator, given):
    @requires_cluster(**on(emulator))
    def which(first, client=None, *, last=0):
        return first, client, last

    mine = object()
    if given == "position":
        assert which(1, mine, last=2) == (1, mine, 2)
    else:
        assert which(1, client=mine) == (1, mine, 0)
    assert not emulator.requests


def test_ten_threads_share_one_kept_cluster(light):
    results = []

    @requires_cluster(**on(light, keep_alive=1))
    def compute(number, client=None):
        results.append((add(client, number, 1), client.id, client.scheduler.address))

    threads = [threading.Thread(target=compute, args=(number,)) for number in range(10)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    sums, clients, addresses = zip(*results, strict=True)
    assert sorted(sums) == list(range(1, 11))
    assert len(set(clients)) == 10
    assert len(set(addresses)) == 1
    assert schedulers_made(light) == 2  # a scheduler and a worker
    wait_until(lambda: is_empty(light))


def test_all_who_wait_hear_of_a_failure_and_the_next_call_tries_anew(emulator):
    def fail(message, delay=0.0):
        emulator.faults.add(
            Fault(
                INSERT,
                status=400,
                reason="invalid",
                message=message,
                delay=delay,
                match=lambda name: not is_worker(name),
            )
        )

    # All three have asked by then.
    fail("First.", delay=2.0)
    errors = []

    @requires_cluster(**on(emulator, keep_alive=60))
    def never(client=None):
        pytest.fail("it has no cluster")

    def call():
        with pytest.raises(GCEError) as caught:
            never()
        errors.append(caught.value)

    threads = [threading.Thread(target=call) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    fail("Second.")
    call()
    assert ["First." in str(error) for error in errors] == [True, True, True, False]
    assert "Second." in str(errors[-1])
    wait_until(lambda: is_empty(emulator))


async def test_a_kept_cluster_that_nobody_waits_for_any_more_is_not_started(paper_workers):
    @requires_cluster(**on(paper_workers, keep_alive=60))
    async def never(client=None):
        pytest.fail("it has no workers")

    tasks = [asyncio.ensure_future(never()) for _ in range(2)]
    await until(lambda: len(paper_workers.instances()) == 2)
    tasks[0].cancel()
    await asyncio.wait({tasks[0]})
    await asyncio.sleep(0.1)
    assert len(alive()) == 1
    tasks[1].cancel()
    await asyncio.wait(tasks)
    await until(lambda: is_empty(paper_workers))


# -- processes of their own -----------------------------------------------------------------------

PREAMBLE = """
import asyncio, os, sys, threading, time
from dask_gce import requires_cluster
settings = dict(
    n_workers=1, api_endpoint={endpoint!r}, machine_type="e2-small", security=False, quiet=True,
    worker_class="distributed.Worker",
)
"""


@pytest.fixture(autouse=True)
def scratch(tmp_path, monkeypatch):
    """Let Dask keep its files where nobody minds: it leaves a lock."""
    monkeypatch.setenv("DASK_TEMPORARY_DIRECTORY", str(tmp_path))
    with dask.config.set({"temporary-directory": str(tmp_path)}):
        yield


def run(emulator, program, *, interrupt_when=None):
    """Run a program; interrupt it once, when something has happened."""
    process = subprocess.Popen(
        [sys.executable, "-c", HEARS + PREAMBLE.format(endpoint=emulator.endpoint) + program],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    with process:
        try:
            if interrupt_when == "ready":
                assert process.stdout.readline() == "ready\n", process.stderr.read()
            elif interrupt_when is not None:
                wait_until(lambda: emulator.requests[interrupt_when])
            if interrupt_when is not None:
                process.send_signal(signal.SIGINT)
            output, errors = process.communicate(timeout=200)
        finally:
            process.kill()
    return process.returncode, output, errors


PROGRAMS = {
    "function": """
@requires_cluster(**settings)
def wait(client=None):
    future = client.submit(time.sleep, 60)
    print("ready", flush=True)
    future.result()
wait()
""",
    "kept": """
@requires_cluster(keep_alive="10 minutes", **settings)
def wait(client=None):
    future = client.submit(time.sleep, 60)
    print("ready", flush=True)
    future.result()
wait()
""",
    "coroutine": """
@requires_cluster(**settings)
async def wait(client=None):
    future = client.submit(time.sleep, 60)
    print("ready", flush=True)
    await future
asyncio.run(wait())
""",
    "kept coroutine": """
@requires_cluster(keep_alive="10 minutes", **settings)
async def wait(client=None):
    future = client.submit(time.sleep, 60)
    print("ready", flush=True)
    await future
asyncio.run(wait())
""",
    "generator": """
@requires_cluster(**settings)
def steps(client=None):
    yield client.submit(sum, [1, 2]).result()
    yield 0
it = steps()
next(it)
print("ready", flush=True)
time.sleep(60)
""",
}


@pytest.mark.parametrize(
    ("kind", "moment"),
    [
        *((kind, "ready") for kind in PROGRAMS),
        ("function", BULK),
        ("kept", BULK),
        ("function", DELETE),
        ("coroutine", DELETE),
    ],
)
def test_ctrl_c_leaves_nothing(light, kind, moment):
    program = PROGRAMS[kind]
    if moment == DELETE:
        light.faults.add(Fault(DELETE, delay=0.3))
        program = program.replace("time.sleep, 60", "time.sleep, 0")
    if moment == BULK:
        program = "settings['n_workers'] = 2\n" + program
    status, _, errors = run(light, program, interrupt_when=moment)
    assert status != 0
    assert "KeyboardInterrupt" in errors
    wait_until(lambda: is_empty(light))


@pytest.mark.parametrize(
    "program",
    [
        pytest.param(
            "@requires_cluster(keep_alive='10 minutes', **settings)\n"
            "def add(client=None):\n"
            "    print(client.submit(sum, [1, 2]).result())\n"
            "add()",
            id="kept",
        ),
        pytest.param(
            "@requires_cluster(keep_alive='10 minutes', n_workers=1, local=True)\n"
            "def add(client=None):\n"
            "    print(client.submit(sum, [1, 2]).result())\n"
            "add()",
            id="kept here",
        ),
        pytest.param(
            "@requires_cluster(**settings)\n"
            "def add(client=None):\n"
            "    yield client.submit(sum, [1, 2]).result()\n"
            "steps = add()\n"
            "print(next(steps))",
            id="generator",
        ),
        pytest.param(
            "@requires_cluster(**settings)\n"
            "async def add(client=None):\n"
            "    yield await client.submit(sum, [1, 2])\n"
            "    yield 0\n"
            "async def main():\n"
            "    async for each in add():\n"
            "        print(each)\n"
            "        break\n"
            "asyncio.run(main())",
            id="asynchronous generator",
        ),
    ],
)
def test_the_end_of_the_process_leaves_nothing(light, program):
    # When it has done its work: a start takes long on a busy machine.
    tell = "def tell(result): print(result, time.monotonic(), flush=True)\n"
    _, output, errors = run(light, tell + program.replace("print(", "tell("))
    result, ended = output.split()
    assert result == "3", errors
    # Whatever hangs at the exit does so for a minute.
    assert time.monotonic() - float(ended) < 55, errors
    wait_until(lambda: is_empty(light))


def test_a_close_that_fails_hides_nothing_and_is_tried_again(light):
    light.faults.add(Fault(DELETE, status=403, reason="forbidden", times=4))
    program = """
@requires_cluster(**settings)
def fail(client=None):
    raise LookupError("mine")
try:
    fail()
except LookupError as error:
    print(error, error.__context__)
"""
    _, output, errors = run(light, program)
    assert output == "mine None\n", errors
    assert "could not be closed" in errors
    assert not light.faults.unused()
    wait_until(lambda: is_empty(light))


def test_a_forked_child_keeps_away_from_its_parents_cluster(light):
    program = """
import gc
from dask_gce.keeping import keeper
@requires_cluster(keep_alive="10 minutes", **settings)
def where(client=None):
    assert client.submit(sum, [1, 2]).result() == 3
    return client.scheduler.address
mine, its = where(), keeper()
child = os.fork()
if child == 0:
    gc.collect()
    os._exit(keeper() is its)
print(os.waitpid(child, 0)[1], where() == mine, keeper() is its)
"""
    _, output, errors = run(light, program)
    assert output == "0 True True\n", errors


# -- kinds of functions ---------------------------------------------------------------------------


def test_a_method():
    class Model:
        """Something with methods."""

        @requires_cluster(**LOCAL)
        def fit(self, number, client=None):
            return self, add(client, number, 1)

        @classmethod
        @requires_cluster(**LOCAL)
        def load(cls, client=None):
            return cls, add(client, 1)

        @staticmethod
        @requires_cluster(**LOCAL)
        def score(number, client=None):
            return add(client, number)

        @requires_cluster(**LOCAL)
        @classmethod
        def swapped(cls, client=None):
            return cls, add(client, 1)

    model = Model()
    assert model.fit(1) == (model, 2)
    assert Model.load() == (Model, 1)
    assert Model.score(3) == model.score(3) == 3
    assert model.swapped() == (Model, 1)


async def test_a_coroutine_function():
    @requires_cluster(**LOCAL)
    async def compute(number, client=None):
        assert client.asynchronous
        assert default_client() is client
        return await client.submit(sum, [number, 1])

    assert inspect.iscoroutinefunction(compute)
    assert await compute(1) == 2
    assert await asyncio.gather(compute(1), compute(2)) == [2, 3]
    assert default_client() is None
    assert not alive()


class Sums:
    def __call__(self, number, client=None):
        return add(client, number, 1)


class Generates:
    def __call__(self, number, client=None):
        yield add(client, number, 1)


class Awaits:
    async def __call__(self, number, client=None):
        return await client.submit(sum, [number, 1])


class AwaitsAndGenerates:
    async def __call__(self, number, client=None):
        yield await client.submit(sum, [number, 1])


async def test_objects_that_can_be_called():
    def decorated(thing):
        return requires_cluster(**LOCAL)(thing)

    assert decorated(Sums())(1) == 2
    assert list(decorated(Generates())(1)) == [2]
    assert await decorated(Awaits())(1) == 2
    assert [each async for each in decorated(AwaitsAndGenerates())(1)] == [2]
    assert await decorated(functools.partial(Awaits().__call__, 1))() == 2


async def test_a_function_called_within_a_running_loop():
    @requires_cluster(**LOCAL)
    def compute(client=None):
        return add(client, 1, 2)

    assert compute() == 3


@requires_cluster(**LOCAL)
def steps(log, client=None):
    """Yield and receive."""
    try:
        received = yield add(client, 1)
        assert default_client() is client
        while received is not None:
            log.append(received)
            try:
                received = yield add(client, received)
            except LookupError as error:
                received = yield str(error)
        return "end"
    finally:
        assert default_client() is client
        log.append(add(client, 40, 2))


def test_a_generator_has_its_cluster_until_it_ends():
    def outer():
        returned.append((yield from steps(log)))

    log, returned = [], []
    generator = outer()
    assert not alive()
    assert next(generator) == 1
    assert len(alive()) == 1
    assert default_client() is None
    assert generator.send(5) == 5
    assert generator.throw(LookupError("mine")) == "mine"
    assert default_client() is None
    with pytest.raises(StopIteration):
        next(generator)
    assert returned == ["end"]
    assert log == [5, 42]
    assert not alive()


def test_a_generator_that_is_closed():
    log = []
    generator = steps(log)
    next(generator)
    generator.close()
    assert log == [42]
    assert not alive()


def test_a_generator_that_raises():
    log = []
    generator = steps(log)
    next(generator)
    with pytest.raises(ValueError, match="mine"):
        generator.throw(ValueError("mine"))
    assert log == [42]
    assert not alive()


def test_a_generator_that_is_collected():
    log = []
    generator = steps(log)
    next(generator)
    del generator
    gc.collect()
    assert log == [42]
    assert not alive()


@requires_cluster(**LOCAL)
def bare(client=None):
    yield client


@pytest.mark.parametrize("of", ["client", "cluster"])
def test_a_generator_that_is_collected_in_the_thread_of_its_own_loop(of):
    generators = [bare()]
    client = next(generators[0])
    loop = client.loop if of == "client" else client.cluster.loop
    began = time.monotonic()
    loop.add_callback(generators.clear)
    del client
    wait_until(lambda: not alive())
    assert time.monotonic() - began < 10


def test_a_generator_that_is_given_a_client():
    def outer():
        returned.append((yield from steps.__wrapped__([], None)))

    @requires_cluster(**LOCAL)
    def echo(client=None):
        received = yield client
        return received

    mine, returned = object(), []
    generator = echo(mine)
    assert next(generator) is mine
    with pytest.raises(StopIteration) as caught:
        generator.send(7)
    assert caught.value.value == 7
    assert not alive()


@requires_cluster(**LOCAL)
async def asteps(log, client=None):
    """Yield and receive."""
    try:
        received = yield await client.submit(sum, [1])
        assert default_client() is client
        while received is not None:
            log.append(received)
            try:
                received = yield await client.submit(sum, [received])
            except LookupError as error:
                received = yield str(error)
    finally:
        assert default_client() is client
        log.append(await client.submit(sum, [40, 2]))


async def test_an_asynchronous_generator_has_its_cluster_until_it_ends():
    assert inspect.isasyncgenfunction(asteps)
    log = []
    generator = asteps(log)
    assert not alive()
    assert await generator.__anext__() == 1
    assert len(alive()) == 1
    assert default_client() is None
    assert await generator.asend(5) == 5
    assert await generator.athrow(LookupError("mine")) == "mine"
    assert default_client() is None
    with pytest.raises(StopAsyncIteration):
        await generator.__anext__()
    assert log == [5, 42]
    assert not alive()


async def test_an_asynchronous_generator_that_is_closed():
    log = []
    generator = asteps(log)
    await generator.__anext__()
    await generator.aclose()
    assert log == [42]
    assert not alive()


async def test_an_asynchronous_generator_that_is_collected():
    log = []
    generator = asteps(log)
    await generator.__anext__()
    del generator
    gc.collect()
    await until(lambda: not alive())
    assert log == [42]
    await asyncio.sleep(0)  # its last task ends


async def test_an_asynchronous_generator_that_is_cancelled():
    begun = asyncio.Event()

    @requires_cluster(**LOCAL)
    async def wait(client=None):
        yield 1
        begun.set()
        await asyncio.sleep(60)

    async def consume():
        async for _ in wait():
            pass

    task = asyncio.ensure_future(consume())
    await asyncio.wait_for(begun.wait(), 30)
    task.cancel()
    await asyncio.wait({task})
    assert task.cancelled()
    assert not alive()


async def test_an_asynchronous_generator_that_is_given_a_client():
    mine = object()

    @requires_cluster(**LOCAL)
    async def echo(client=None):
        yield client

    assert [each async for each in echo(mine)] == [mine]


# -- what stays of the function -------------------------------------------------------------------


def test_name_docstring_signature_and_hints_stay():
    def plain(a: int, /, b: str = "x", *rest: float, client: Client | None = None) -> bool:
        """Say what it does."""
        return True

    for decorated in (
        requires_cluster(plain),
        requires_cluster()(plain),
        requires_cluster(n_workers=8)(plain),
    ):
        assert decorated is not plain
        assert decorated.__name__ == "plain"
        assert decorated.__doc__ == "Say what it does."
        assert decorated.__module__ == __name__
        assert decorated.__wrapped__ is plain
        assert inspect.signature(decorated) == inspect.signature(plain)
        assert decorated.__annotations__ == plain.__annotations__
    assert inspect.isgeneratorfunction(steps)
    assert not inspect.iscoroutinefunction(requires_cluster(plain))
    assert typing.get_type_hints(requires_cluster) is not None


@pytest.mark.parametrize(
    ("function", "more"),
    [
        pytest.param(lambda a, client: (a, client), {}, id="required"),
        pytest.param(lambda client, a: (a, client), {}, id="first"),
        pytest.param(lambda a, client=None, /: (a, client), {}, id="positional only"),
        pytest.param(lambda a, *, client=None: (a, client), {}, id="keyword only"),
        pytest.param(lambda a, **rest: (a, rest["client"]), {}, id="any keywords"),
        pytest.param(lambda a, *client, c=0: (a, c), {"client_arg": "c"}, id="other name"),
        pytest.param(lambda client, a=0, **rest: (a, rest["x"]), {"client_arg": "x"}, id="more"),
    ],
)
def test_the_client_finds_its_parameter(function, more):
    decorated = requires_cluster(function, **more) if not more else None
    decorated = requires_cluster(**LOCAL, **more)(function)
    if next(iter(inspect.signature(function).parameters)) == "client":
        arguments, names = ((), {"a": 1}) if "client_arg" not in more else ((0, 1), {})
    else:
        arguments, names = (1,), {}
    a, client = decorated(*arguments, **names)
    assert a == 1
    assert isinstance(client, Client)


# -- settings -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"machine_tpye": "e2-small"}, "did you mean 'machine_type'"),
        ({"num_workers": 4}, "did you mean 'n_workers'"),
        ({"asynchronous": True}, "follows from the function"),
        ({"loop": None}, "follows from the function"),
        ({"adapt": 10}, "must be the keyword arguments of GCECluster.adapt"),
        ({"client_arg": "c"}, r"compute\(a, client=None\) has no parameter 'c'.*add c=None"),
    ],
)
def test_mistakes_are_told_when_decorating(settings, message):
    def compute(a, client=None):
        pytest.fail("it is not even decorated")

    with pytest.raises(SettingsError, match=message):
        requires_cluster(**settings)(compute)


@pytest.mark.parametrize("thing", [GCECluster, 8, "function"])
def test_only_functions_are_decorated(thing):
    with pytest.raises(TypeError, match="decorates functions"):
        requires_cluster(thing)


def test_every_keyword_of_a_cluster_is_known():
    known = set(inspect.signature(GCECluster).parameters) - {"asynchronous", "loop", "settings"}

    def compute(client=None):
        pytest.fail("it is not called")

    requires_cluster(**dict.fromkeys(known | set(dask_gce.sources.DEFAULTS)))(compute)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"n_workers": 0}, "without workers.*n_workers=4.*adapt="),
        ({"n_workers": -1}, "n_workers = -1"),
        ({"n_workers": 1, "keep_alive": "soon"}, "keep_alive = 'soon'.*keyword argument"),
        ({"n_workers": 1, "local": "yes"}, "local = 'yes' must be true or false"),
    ],
)
def test_impossible_settings_are_told_when_called(emulator, settings, message):
    @requires_cluster(api_endpoint=emulator.endpoint, **settings)
    def compute(client=None):
        pytest.fail("it is not called")

    with pytest.raises(SettingsError, match=message):
        compute()
    assert not emulator.requests


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ({"locale": True}, "no setting 'locale' in requires_cluster .*local, keep_alive, reuse"),
        (True, "requires_cluster = True must be a mapping"),
        ({"keep-alive": -1}, "keep_alive = -1 must be a time"),
    ],
)
def test_mistakes_in_the_configuration(section, message):
    with (
        dask.config.set({"gce.requires-cluster": section}),
        pytest.raises(SettingsError, match=message) as caught,
    ):
        requires_cluster(**LOCAL)(lambda client: None)()
    assert "dask config" in str(caught.value)


def test_a_cluster_does_not_take_the_section_for_a_setting(emulator):
    with dask.config.set({"gce.requires-cluster": {"local": True}}):
        assert dask_gce.settings.Settings.load(n_workers=1).n_workers == 1
    with pytest.raises(SettingsError, match="no setting 'requires_cluster'"):
        GCECluster(requires_cluster={"local": True})


def test_arguments_that_do_not_fit_make_nothing(emulator):
    @requires_cluster(**on(emulator))
    def compute(a, client=None):
        pytest.fail("it is not called")

    with pytest.raises(TypeError, match="missing a required argument: 'a'"):
        compute()
    with pytest.raises(TypeError, match="unexpected keyword argument 'b'"):
        compute(1, b=2)
    assert not emulator.requests


@pytest.mark.parametrize("spelling", ["requires-cluster", "requires_cluster"])
def test_local_by_configuration(emulator, spelling):
    @requires_cluster(**on(emulator))
    def where(client=None):
        return client.cluster

    with dask.config.set({f"gce.{spelling}.local": True}):
        assert isinstance(where(), LocalCluster)
    assert not emulator.requests


@pytest.mark.parametrize("value", ["1", "true", "True"])
def test_local_by_environment(emulator, value):
    @requires_cluster(**on(emulator))
    def where(client=None):
        return client.cluster

    environment = {"DASK_GCE__REQUIRES_CLUSTER__LOCAL": value}
    collected = dask.config.collect(paths=[], env=environment)
    with dask.config.set(dask.config.merge(dask.config.config, collected)):
        assert isinstance(where(), LocalCluster)
    assert not emulator.requests


def test_local_workers_are_as_asked_for():
    @requires_cluster(
        n_workers=3,
        nthreads=2,
        memory_limit="1 GB",
        worker_options={"resources": {"GPU": 1}},
        local=True,
    )
    def workers(client=None):
        assert client.submit(sum, [1], resources={"GPU": 1}).result() == 1
        assert client.dashboard_link.startswith("http://127.0.0.1:")
        return list(client.scheduler_info(n_workers=-1)["workers"].values())

    found = workers()
    assert [each["nthreads"] for each in found] == [2, 2, 2]
    assert all(each["host"] == "127.0.0.1" for each in found)


def test_workers_that_follow_the_work():
    @requires_cluster(adapt={"minimum": 0, "maximum": 2, "interval": "20ms"}, local=True)
    def compute(client=None):
        return add(client, 1, 2)

    assert compute() == 3


# -- the default client ---------------------------------------------------------------------------


def test_the_client_is_the_default_inside_and_not_afterwards():
    @requires_cluster(**LOCAL)
    def compute(client=None):
        assert default_client() is client
        where = dask.delayed(lambda: get_worker().scheduler.address)
        assert where().compute() == client.scheduler.address

    compute()
    assert default_client() is None
    assert get_scheduler() is None
    with my_client() as mine:
        compute()
        assert default_client() is mine


def test_threads_have_defaults_of_their_own():
    first_is_in, second_is_in, first_is_out = (threading.Event() for _ in range(3))
    right = []

    @requires_cluster(**LOCAL)
    def first(client=None):
        first_is_in.set()
        assert second_is_in.wait(30)
        right.append(default_client() is client)

    @requires_cluster(**LOCAL)
    def second(client=None):
        second_is_in.set()
        assert first_is_out.wait(30)
        right.append(default_client() is client)

    other = threading.Thread(target=lambda: first_is_in.wait(30) and second())
    other.start()
    first()
    right.append(default_client() is None)
    first_is_out.set()
    other.join()
    assert right == [True] * 3
    # What two contexts of Dask's would leave behind, having come and gone in the same order.
    assert dask.config.get("scheduler", None) is None


@contextlib.contextmanager
def my_client():
    with (
        LocalCluster(n_workers=1, processes=False, dashboard_address="127.0.0.1:0") as cluster,
        Client(cluster) as client,
    ):
        yield client


def test_reuse_takes_the_default_client(emulator):
    @requires_cluster(reuse=True, **on(emulator))
    def which(client=None):
        return client

    @requires_cluster(reuse=False, **LOCAL)
    def other(client=None):
        return client

    with my_client() as mine:
        assert which() is mine
        with dask.config.set({"gce.requires-cluster.reuse": True}):
            assert other() is not mine
        assert mine.status == "running"
    assert not emulator.requests


def test_reuse_without_a_default_client_makes_a_cluster():
    @requires_cluster(reuse=True, **LOCAL)
    def compute(client=None):
        return add(client, 1, 2)

    assert compute() == 3


async def test_reuse_takes_only_a_client_that_the_function_can_use():
    @requires_cluster(reuse=True, **LOCAL)
    async def compute(client=None):
        return client, await client.submit(sum, [1, 2])

    @requires_cluster(reuse=True, **LOCAL)
    def block(client=None):
        return client, add(client, 1, 2)

    with my_client() as mine:
        client, result = await compute()
        assert (client is mine, result) == (False, 3)
    async with (
        LocalCluster(
            n_workers=1, processes=False, dashboard_address="127.0.0.1:0", asynchronous=True
        ) as cluster,
        Client(cluster, asynchronous=True) as mine,
    ):
        assert await compute() == (mine, 3)
        client, result = block()
        assert (client is mine, result) == (False, 3)


def test_a_function_within_another():
    @requires_cluster(**LOCAL)
    def inner(client=None):
        return client.scheduler.address

    @requires_cluster(reuse=True, **LOCAL)
    def reusing(client=None):
        return client

    @requires_cluster(**LOCAL)
    def outer(client=None):
        assert reusing() is client
        assert inner(client) == client.scheduler.address
        assert inner() != client.scheduler.address
        assert default_client() is client

    outer()


def test_a_function_within_a_task(light):
    @requires_cluster(reuse=True, **LOCAL)
    def inner(client=None):
        return client.scheduler_info()["id"]

    @requires_cluster(**on(light))
    def outer(client=None):
        assert client.submit(inner).result() == client.scheduler_info()["id"]

    outer()


# -- kept clusters --------------------------------------------------------------------------------


def test_interrupted_right_after_a_kept_cluster_was_asked_for(monkeypatch):
    ask = Loan.ask

    def interrupted(loan):
        ask(loan)
        raise KeyboardInterrupt

    @requires_cluster(keep_alive=0.01, **LOCAL)
    def compute(client=None):
        pytest.fail("it was interrupted")

    monkeypatch.setattr(Loan, "ask", interrupted)
    with pytest.raises(KeyboardInterrupt):
        compute()
    wait_until(lambda: not alive())


@pytest.mark.parametrize("turns", range(0, 40, 4))
@pytest.mark.parametrize("keep_alive", [0, 0.01])
async def test_cancelled_in_the_midst_of_a_local_start(turns, keep_alive):
    @requires_cluster(keep_alive=keep_alive, **LOCAL)
    async def compute(client=None):
        await asyncio.sleep(10)  # on a fast machine it has started by then

    others = asyncio.all_tasks()
    computing = asyncio.ensure_future(compute())
    for _ in range(turns):
        # The loop of a kept cluster is another thread's, and turns by itself.
        await asyncio.sleep(0.001 if keep_alive else 0)
    computing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await computing
    # What was closed right after its start has a last word to say.
    await until(lambda: not alive() and len(asyncio.all_tasks()) <= len(others))


def test_a_kept_cluster_ends_when_its_time_is_over():
    @requires_cluster(keep_alive="2 s", **LOCAL)
    def where(client=None):
        return client.scheduler.address

    first = where()
    assert len(alive()) == 1
    wait_until(lambda: not alive())
    assert where() != first


def test_each_call_begins_the_time_of_a_kept_cluster_anew():
    @requires_cluster(keep_alive=60, **LOCAL)
    def where(client=None):
        return client.scheduler.address

    first = where()
    (kept,) = keeper()._clusters
    # A loan is given back in the keeper's loop, a moment after the call.
    wait_until(lambda: kept.timer is not None)
    for _ in range(2):
        until, timer = kept.until, kept.timer
        assert where() == first
        wait_until(lambda timer=timer: kept.timer is not timer)
        assert timer.cancelled()
        assert kept.timer.when() == kept.until > until
    assert len(alive()) == 1
    kept.started.loop.add_callback(keeper()._end, kept)


async def test_a_cancellation_that_is_swallowed_leaves_no_user_of_a_kept_cluster(monkeypatch):
    """As `asyncio.wait_for` swallows one before Python 3.12, if the answer comes as well."""

    @requires_cluster(keep_alive=60, **LOCAL)
    async def where(client=None):
        return client.scheduler.address

    await where()
    (kept,) = keeper()._clusters
    await until(lambda: kept.timer is not None)
    timer, asked = kept.timer, threading.Event()

    async def answers(self, cluster):
        asked.set()
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.sleep(PATIENCE)
        return True

    monkeypatch.setattr(Keeper, "_answers", answers)
    waiting = asyncio.ensure_future(where())
    await until(asked.is_set)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    await until(lambda: kept.timer is not timer, 30)
    assert kept.users == 0
    kept.started.loop.add_callback(keeper()._end, kept)
    await until(lambda: not alive())


async def test_equal_settings_share_whatever_the_function():
    @requires_cluster(keep_alive=0.1, **LOCAL)
    def one(client=None):
        return client.scheduler.address

    @requires_cluster(keep_alive=0.2, **LOCAL)
    async def two(client=None):
        assert client.asynchronous
        assert await client.submit(sum, [1, 2]) == 3
        return client.scheduler.address

    @requires_cluster(keep_alive=0.1, **LOCAL)
    def hold(client=None):
        yield client.scheduler.address

    @requires_cluster(keep_alive=0.1, n_workers=2, local=True)
    def more(client=None):
        return client.scheduler.address

    @requires_cluster(**LOCAL)
    def none(client=None):
        return client.scheduler.address

    # Held, so that it does not end while the others are made.
    held = hold()
    addresses = next(held), one(), await two(), await asyncio.to_thread(one), more(), none()
    assert len(set(addresses)) == 3
    assert len(set(addresses[:4])) == 1
    with dask.config.set({"gce.nthreads": 2}):
        other = hold()
        two_threads = next(other)
    assert two_threads != addresses[0]
    # Where a setting came from does not count.
    assert requires_cluster(keep_alive=1, nthreads=2, **LOCAL)(one.__wrapped__)() == two_threads
    held.close()
    other.close()


def test_no_time_by_keyword_overrules_the_configuration():
    @requires_cluster(keep_alive=0, **LOCAL)
    def compute(client=None):
        return add(client, 1)

    with dask.config.set({"gce.requires-cluster.keep-alive": "10 minutes"}):
        assert compute() == 1
        assert not alive()


def test_a_lost_cluster_is_replaced(light):
    @requires_cluster(keep_alive=1, **on(light))
    def where(client=None, end=False):
        if end:
            client.shutdown()
            return None
        return client.scheduler.address

    first = where()
    where(end=True)
    began = time.monotonic()
    assert where() != first
    # Dask would try to reach the lost one for 30 s.
    assert time.monotonic() - began < 25
    with dask.config.set({"gce.requires-cluster.local": True}):
        assert where().startswith("tcp://127.0.0.1:")
    wait_until(lambda: is_empty(light))


def test_a_lost_cluster_ends_when_its_last_user_does():
    def hold(client=None):
        yield client

    held = requires_cluster(keep_alive=60, **LOCAL)(hold)()
    client = next(held)
    (cluster,) = alive()
    cluster.status = Status.failed
    other = requires_cluster(keep_alive=0.1, **LOCAL)(hold)()
    assert next(other).scheduler.address != client.scheduler.address
    assert add(client, 1, 2) == 3
    held.close()
    wait_until(lambda: cluster not in alive())
    other.close()


def test_a_lost_cluster_without_a_user_ends_when_it_is_asked_for():
    @requires_cluster(keep_alive=60, **LOCAL)
    def where(client=None):
        return client.scheduler.address

    first = where()
    (cluster,) = alive()
    cluster.status = Status.failed
    with dask.config.set({"gce.requires-cluster.keep-alive": 0.1}):
        assert requires_cluster(**LOCAL)(where.__wrapped__)() != first
    wait_until(lambda: cluster not in alive())
