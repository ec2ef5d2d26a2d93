"""What several processes may do to one cluster at the same time, and to its end."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import subprocess
import sys
import threading
import time

import psutil
import pytest
from clusters import DELETE, cluster_on, until, worker_machines
from command_line import succeed

from dask_gce import GCECluster, connections, shared_plan
from dask_gce.connections import connection_path, list_connections
from dask_gce.errors import SettingsError, StartTimeout

PROJECT, USER = "local-project", "ada@example.com"


def detached(emulator, **more):
    return cluster_on(emulator, name="grid", shutdown_on_close=False, **more)


async def joined(**more):
    return await GCECluster.from_name("grid", asynchronous=True, quiet=True, **more)


def running(emulator):
    return [each["name"] for each in emulator.instances() if each["status"] == "RUNNING"]


async def agreed(emulator, cluster, *counts):
    """Wait until there are as many workers as the plan says, twice; return the plan."""

    async def agree():
        for _ in range(1500):
            plan = await shared_plan.read(cluster.scheduler_comm)
            found = len(worker_machines(emulator))
            if found == plan.machines and found in counts:
                return plan
            await asyncio.sleep(0.04)
        raise AssertionError(f"{found} machines, and this plan: {plan}")

    await agree()
    await asyncio.sleep(1.5)
    return await agree()


# -- whose plan it is ------------------------------------------------------------


async def test_a_visitor_leaves_the_plan_of_the_others_alone(light):
    async with detached(light, n_workers=1) as cluster:
        await cluster.wait_for_workers(1)
        visitor = await joined()
        cluster.scale(2)
        await cluster.wait_for_workers(2)
        plan = await shared_plan.read(cluster.scheduler_comm)
        visitor._target = 7  # what it knows may be old
        await visitor.close()
        assert await shared_plan.read(cluster.scheduler_comm) == plan
        assert plan.machines == 2 and plan.keeper == cluster._mark
        await cluster.shutdown()


async def test_scaled_by_two_at_once_it_has_what_one_of_them_asked_for(light):
    async with detached(light, n_workers=2) as cluster:
        await cluster.wait_for_workers(2)
        other = await joined()
        cluster.scale(4)
        other.scale(1)
        await agreed(light, cluster, 1, 4)
        await other.close()
        await cluster.shutdown()


async def test_two_grow_at_once_and_the_last_counts(light):
    async with detached(light) as cluster:
        other = await joined()
        cluster.scale(3)
        await other.scale(4)
        plan = await agreed(light, cluster, 3, 4)
        await until(lambda: len(cluster.plan) == len(other.plan) == plan.machines)
        await other.close()
        await cluster.shutdown()


async def test_machines_that_another_lets_go_are_no_failed_starts(light):
    async with detached(light) as cluster:
        other = await joined()
        for _ in range(4):
            cluster.scale(1)
            await cluster.wait_for_workers(1)
            await until(lambda: len(other.plan) == 1)
            cluster.scale(0)
            await until(lambda: not other.plan)
            # They are lost to the one that did not let them go, but it is no business of its own.
            assert other._recovery.attempts == 0
        await other.close()
        await cluster.shutdown()


# -- the connection file ------------------------------------------------------------


async def test_who_was_ended_does_not_delete_the_file_of_a_successor(paper_workers):
    first = detached(paper_workers)
    await first
    await asyncio.to_thread(succeed, paper_workers, "delete", "grid", "--yes")
    await until(lambda: not paper_workers.leftovers())
    second = detached(paper_workers)
    await second
    await first.close()
    assert connection_path("grid", PROJECT).exists()
    await second.shutdown()
    assert not list_connections()


async def test_interrupted_while_it_writes_the_file_it_leaves_none(emulator, monkeypatch):
    begun, go_on = threading.Event(), threading.Event()
    save = connections.save_connection

    def slowly(connection):
        begun.set()
        go_on.wait(10)
        return save(connection)

    monkeypatch.setattr("dask_gce.assembly.save_connection", slowly)
    cluster = detached(emulator)
    starting = asyncio.ensure_future(cluster._start())
    await until(begun.is_set)
    closing = asyncio.ensure_future(cluster.close())
    await asyncio.sleep(0.2)
    go_on.set()
    await closing
    await asyncio.wait({starting})
    assert starting.exception() is not None
    await asyncio.sleep(0.3)
    assert not list_connections()
    assert not emulator.leftovers()


async def test_a_file_that_cannot_be_deleted_does_not_keep_a_cluster_from_ending(
    paper_workers, caplog
):
    cluster = detached(paper_workers)
    await cluster
    path = connection_path("grid", PROJECT)
    path.unlink()
    path.mkdir()
    try:
        await cluster.shutdown()
        assert cluster.status.name == "closed"
        assert "cannot be deleted" in caplog.text
    finally:
        path.rmdir()


async def test_a_file_that_cannot_be_written_prevents_everything(emulator, tmp_path, monkeypatch):
    (tmp_path / "dask-gce").write_text("in the way")
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    with pytest.raises(Exception, match="cannot be written"):
        await detached(emulator)
    assert not emulator.instances()
    assert not [each for each in emulator.requests if "insert" in each]


async def test_who_decides_late_to_leave_it_can_be_joined(paper_workers):
    cluster = cluster_on(paper_workers, name="grid")
    await cluster
    cluster.shutdown_on_close = False  # as dask-ctl does
    await cluster.close()
    assert paper_workers.requests[DELETE] == 0
    again = await joined()
    await again.shutdown()
    assert not list_connections()


async def test_two_who_make_or_join_at_once_get_one_cluster(paper_workers):
    mode = {"name": "grid", "create_mode": "create-or-connect"}
    one, two = cluster_on(paper_workers, **mode), cluster_on(paper_workers, **mode)
    await asyncio.gather(one, two)
    assert one.scheduler_address == two.scheduler_address
    assert len(running(paper_workers)) == 1
    await one.close()
    await two.close()
    await until(lambda: not paper_workers.leftovers())
    assert not list_connections()


# -- ends ------------------------------------------------------------

LATE = """
import sys
from dask_gce import GCECluster
cluster = GCECluster(name="grid", quiet=True, security=False,
    worker_class="distributed.Worker", machine_type="e2-small")
cluster.shutdown_on_close = False
"""


def test_who_decides_late_to_leave_it_may_end_without_closing(paper_workers):
    environment = {**os.environ, "DASK_GCE__API_ENDPOINT": paper_workers.endpoint}
    subprocess.run([sys.executable, "-c", LATE], env=environment, check=True, timeout=200)
    assert len(running(paper_workers)) == 1
    succeed(paper_workers, "delete", "grid", "--yes")
    assert not list_connections()


async def test_interrupted_after_its_start_a_constructor_leaves_nothing(paper_workers):
    cluster = detached(paper_workers)
    correct = cluster._correct_state

    def never():
        if cluster._complete:
            return asyncio.get_running_loop().create_future()
        return correct()

    cluster._correct_state = never
    waiting = asyncio.ensure_future(asyncio.wait_for(cluster, 60))
    await until(lambda: cluster._complete)
    await asyncio.sleep(0.1)
    waiting.cancel()
    await asyncio.wait({waiting})
    assert not running(paper_workers)
    assert not list_connections()


# -- a scheduler that says nothing ------------------------------------------------------------


@contextlib.contextmanager
def speechless():
    """Stop all schedulers of this test's machines for a while."""
    found = []
    for each in psutil.Process().children(recursive=True):
        # Others come and go meanwhile, or have ended and were not waited for.
        with contextlib.suppress(psutil.NoSuchProcess):
            if "--spec-file" in each.cmdline():
                found.append(each)
    assert found
    for each in found:
        each.suspend()
    try:
        yield
    finally:
        for each in found:
            each.resume()


async def test_joining_one_that_says_nothing_ends(paper_workers):
    async with detached(paper_workers) as cluster:
        path = connection_path("grid", PROJECT)
        connection = json.loads(path.read_text())
        connection["settings"]["start_timeout"] = 5.0
        path.write_text(json.dumps(connection))
        with speechless(), pytest.raises(StartTimeout, match="there is no answer within"):
            await joined()
        assert len(running(paper_workers)) == 1
        await cluster.shutdown()


async def test_leaving_one_that_says_nothing_is_quick(paper_workers, monkeypatch):
    monkeypatch.setattr(shared_plan, "ANSWERED_WITHIN", 0.5)
    cluster = detached(paper_workers)
    await cluster
    with speechless():
        begun = time.monotonic()
        await cluster.close()
        # Dask would try to reach it for half a minute.
        assert time.monotonic() - begun < 20
    again = await joined()
    await again.shutdown()


async def test_machines_are_not_given_up_while_the_scheduler_says_nothing(light, monkeypatch):
    monkeypatch.setattr(shared_plan, "ANSWERED_WITHIN", 0.5)
    async with detached(light, worker_start_timeout="4 seconds") as cluster:
        visitor = await joined()
        with speechless():
            await until(lambda: visitor._is_deaf and cluster._is_deaf)
            cluster.scale(1)
            (name,) = cluster.plan
            await until(lambda: name in visitor.plan)
            asked = [each._fleet.members[name] for each in (cluster, visitor)]
            before = [each.inserted for each in asked]
            # Its time is over, and both of them grant it as much again.
            await until(
                lambda: all(b < each.inserted for b, each in zip(before, asked, strict=True))
            )
            assert worker_machines(light) == {name}
        await visitor.wait_for_workers(1)
        assert not visitor.failures
        await visitor.close()
        await cluster.shutdown()


async def test_time_in_which_the_scheduler_says_nothing_does_not_count(paper_workers, monkeypatch):
    monkeypatch.setattr(shared_plan, "ANSWERED_WITHIN", 0.5)
    async with detached(paper_workers) as cluster:
        cluster.scale(1)
        (name,) = cluster.plan
        await until(lambda: name in cluster.requested)
        worker = cluster._fleet.members[name]
        asked = worker.inserted
        with speechless():
            await until(lambda: cluster._is_deaf)
            await asyncio.sleep(1)
        await until(lambda: not cluster._is_deaf)
        assert worker.inserted >= asked + 1
        await cluster.shutdown()


# -- what from_name does not take ------------------------------------------------------------


@pytest.mark.parametrize("wrong", [{"n_workers": 5}, {"security": False}, {"zone": "us-east1-b"}])
def test_settings_of_a_cluster_that_is_joined_are_refused(wrong):
    (key,) = wrong
    with pytest.raises(SettingsError, match="takes no settings") as caught:
        GCECluster.from_name("grid", asynchronous=True, **wrong)
    assert caught.value.key == key


@pytest.mark.parametrize("name", ["Grid", "a/b", "../x", "", "-x", None, 7])
def test_names_that_gce_would_refuse(name):
    with pytest.raises(SettingsError) as caught:
        GCECluster.from_name(name, asynchronous=True)
    assert caught.value.key == "name"
