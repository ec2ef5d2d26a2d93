"""A cluster outlives its process, and others join it: nothing is lost, made twice or left."""

from __future__ import annotations

import asyncio
import contextlib
import os
import stat
import subprocess
import sys
import time
from functools import partial

import pytest
from clusters import DELETE, cluster_on, settings, until, wait_until, worker_machines
from command_line import succeed
from distributed import Client

from dask_gce import GCECluster, names
from dask_gce.connections import connection_path, list_connections
from dask_gce.emulator import Fault
from dask_gce.errors import (
    ClusterNotFound,
    CredentialsError,
    GCEError,
    InstanceError,
    SettingsError,
)

PROJECT, USER = "local-project", "ada@example.com"


def detached(emulator, **more):
    return cluster_on(emulator, name="grid", shutdown_on_close=False, security=True, **more)


async def joined(**more):
    return await GCECluster.from_name("grid", asynchronous=True, quiet=True, **more)


def running(emulator):
    return [each["name"] for each in emulator.instances() if each["status"] == "RUNNING"]


async def end(emulator):
    """End the cluster, whoever has left it."""
    await (await joined()).shutdown()
    await until(lambda: not emulator.leftovers())


# -- leaving and joining ------------------------------------------------------------


async def test_a_cluster_is_left_running_and_found_again(light):
    async with detached(light, n_workers=2) as cluster:
        await cluster.wait_for_workers(2)
        plan, address = cluster.plan, cluster.scheduler_address
        async with Client(cluster, asynchronous=True) as client:
            kept = client.submit(sum, range(10), key="kept")
            await kept
            await client.publish_dataset(kept, name="kept")
    assert cluster.status.name == "closed"
    assert len(running(light)) == 3
    assert light.requests[DELETE] == 0

    again = await joined()
    assert again.scheduler_address == address
    assert again.plan == again.requested == plan
    await again.wait_for_workers(2)
    # How long they took nobody here knows.
    assert again.summary() == "2 workers, 4 cores, 4 GB"
    async with Client(again, asynchronous=True) as client:
        dataset = await client.get_dataset("kept")
        assert await dataset == 45
        assert await client.submit(pow, 2, 10) == 1024
    await again.shutdown()
    await until(lambda: not light.leftovers())
    assert not list_connections()


async def test_whoever_joins_scales_and_leaves(light):
    async with detached(light):
        pass
    again = await joined()
    again.scale(3)
    await again.wait_for_workers(3)
    assert again.summary().startswith("3 workers, 6 cores, 6 GB in ")
    await again.close()
    assert len(worker_machines(light)) == 3

    again = await joined()
    assert len(again.plan) == 3
    again.scale(1)
    await again.settle()
    # Accepted, and begun a moment later.
    assert light.requests[DELETE] == 2
    await until(lambda: len(worker_machines(light)) == 1)
    await again.close()
    assert len(worker_machines(light)) == 1
    await end(light)


async def test_closing_right_after_scaling_carries_it_out(light):
    async with detached(light, n_workers=2) as cluster:
        await cluster.wait_for_workers(2)
        cluster.scale(1)
    # Accepted, and begun a moment later.
    assert light.requests[DELETE] == 1
    await until(lambda: len(worker_machines(light)) == 1)
    again = await joined()
    again.scale(2)
    await again.close()
    await until(lambda: len(worker_machines(light)) == 2)
    await end(light)


async def test_no_result_is_lost_when_another_process_scales_down(light):
    async with detached(light, n_workers=3) as cluster:
        await cluster.wait_for_workers(3)
        async with Client(cluster, asynchronous=True) as client:
            futures = client.map(pow, range(30), [2] * 30, pure=False)
            await client.gather(futures)
            again = await joined()
            again.scale(1)
            await again.settle()
            await again.close()
            assert await client.gather(futures) == [number**2 for number in range(30)]
            # One follows the other's plan, and does not make up for what was let go.
            await until(lambda: len(cluster.plan) == 1)
            await asyncio.sleep(1)
            assert len(worker_machines(light)) == 1
    await end(light)


async def test_what_another_process_makes_is_not_deleted_but_counted(light):
    async with detached(light, n_workers=1) as cluster:
        await cluster.wait_for_workers(1)
        again = await joined()
        again.scale(3)
        await again.wait_for_workers(3)
        await until(lambda: len(cluster.plan) == 3)
        await again.close()
        assert cluster.plan == {
            each["name"] for each in light.instances() if "-worker-" in each["name"]
        }
        cluster.scale(0)
        await cluster.settle()
        assert light.requests[DELETE] == 3
        await until(lambda: not worker_machines(light))
    await end(light)


async def test_one_of_them_replaces_what_is_lost(light):
    async with detached(light, n_workers=2) as cluster:
        await cluster.wait_for_workers(2)
        again = await joined()
        lost = sorted(worker_machines(light))[0]
        light.power_off(lost)
        await until(lambda: lost not in cluster.plan and lost not in again.plan)
        await until(lambda: len(cluster.plan) == len(again.plan) == 2)
        await asyncio.sleep(1)
        assert len(worker_machines(light)) == 2
        await until(lambda: cluster.plan == again.plan)
        await again.close()
    await end(light)


async def test_whoever_is_left_takes_over_the_replacing(light):
    async with detached(light, n_workers=1) as cluster:
        await cluster.wait_for_workers(1)
        again = await joined()
        await cluster.close()
        (lost,) = worker_machines(light)
        light.power_off(lost)
        await until(lambda: worker_machines(light) - {lost})
        await again.shutdown()
    await until(lambda: not light.leftovers())


async def test_what_was_lost_while_nobody_watched_is_replaced_at_the_next_visit(light):
    async with detached(light, n_workers=2) as cluster:
        await cluster.wait_for_workers(2)
    light.delete(sorted(worker_machines(light))[0], user=USER)
    await until(lambda: len(worker_machines(light)) == 1)
    again = await joined()
    await again.wait_for_workers(2)
    await again.shutdown()
    await until(lambda: not light.leftovers())


async def test_ended_by_one_it_is_lost_to_the_other(light):
    async with detached(light, n_workers=1) as cluster:
        await cluster.wait_for_workers(1)
        await end(light)
        await until(lambda: cluster.failures)
        with pytest.raises(GCEError, match=r"no longer exists|STOPPING|TERMINATED"):
            await cluster.wait_for_workers(5)
    # It may have noticed the worker's loss before the scheduler's, and asked for another.
    await until(lambda: not light.leftovers())


async def test_joining_twice_and_closing_twice_is_fine(paper_workers):
    async with detached(paper_workers) as cluster:
        first, second = await asyncio.gather(joined(), joined())
        await first.close()
        await first.close()
        await second.close()
        with pytest.raises(GCEError, match="was left running"):
            await first.shutdown()
        await cluster.shutdown()
        await cluster.shutdown()
    await until(lambda: not paper_workers.leftovers())


async def test_who_joins_may_say_that_it_ends_with_him(paper_workers):
    async with detached(paper_workers):
        pass
    async with await joined(shutdown_on_close=True):
        pass
    await until(lambda: not paper_workers.leftovers())
    assert not list_connections()


def test_from_a_program_without_an_event_loop(light):
    with GCECluster(
        **settings(light, asynchronous=False, name="grid", shutdown_on_close=False, n_workers=1)
    ):
        pass
    with GCECluster.from_name("grid", quiet=True) as cluster:
        with Client(cluster) as client:
            assert client.submit(sum, range(10)).result() == 45
        cluster.scale(2)
        cluster.settle()
        assert len(worker_machines(light)) == 2
        cluster.shutdown()
    assert not list_connections()


def test_a_closed_cluster_says_so_where_there_is_no_event_loop_any_more(paper_workers):
    detached = settings(paper_workers, asynchronous=False, name="grid", shutdown_on_close=False)
    with GCECluster(**detached) as left:
        pass
    with GCECluster.from_name("grid", quiet=True) as ended:
        ended.shutdown()
    for cluster in (left, ended):
        cluster.close()
        for ask in (cluster.get_logs, cluster.settle, partial(cluster.wait_for_workers, 1)):
            with pytest.raises(GCEError, match=r"^Cluster grid is closed; make a new one\.$"):
                ask()
    # Nobody has to do it twice, but it has to be done.
    ended.shutdown()
    with pytest.raises(GCEError, match="was left running when this object was closed"):
        left.shutdown()


# -- create_mode ------------------------------------------------------------


async def test_create_or_connect_does_what_is_possible(paper_workers):
    mode = {"name": "grid", "create_mode": "create-or-connect"}
    async with cluster_on(paper_workers, **mode) as first:
        # Others may use it when this process is gone.
        assert paper_workers.instances()[0]["labels"][names.CLIENT_LABEL] == "detached"
        async with cluster_on(paper_workers, **mode) as second:
            assert second.scheduler_address == first.scheduler_address
        # Closing the one that has not made it leaves it.
        assert len(running(paper_workers)) == 1
        third = cluster_on(paper_workers, **mode)
        await third
        await third.close()
        assert len(running(paper_workers)) == 1
    await until(lambda: not paper_workers.leftovers())
    assert not list_connections()


async def test_connect_makes_nothing(emulator):
    with pytest.raises(CredentialsError, match="no connection file"):
        await cluster_on(emulator, name="grid", create_mode="connect")
    assert not emulator.requests


@pytest.mark.parametrize("mode", ["attach", "", None])
def test_other_modes_are_refused(mode):
    with pytest.raises(SettingsError, match=r"create_mode = .*create-or-connect"):
        GCECluster(name="grid", create_mode=mode, asynchronous=True)


@pytest.mark.parametrize("mode", ["connect", "create-or-connect"])
def test_connecting_needs_a_name(mode):
    with pytest.raises(SettingsError, match="Give its name") as caught:
        GCECluster(create_mode=mode, asynchronous=True)
    assert caught.value.key == "name"


# -- what may be wrong ------------------------------------------------------------


async def test_a_name_in_use_is_refused_with_its_owner(paper_workers):
    async with detached(paper_workers) as cluster:
        owner = paper_workers.instances()[0]["labels"][names.OWNER_LABEL]
        with pytest.raises(SettingsError, match=rf"owner is {owner}.*from_name") as caught:
            await cluster_on(paper_workers, name="grid")
        assert caught.value.key == "name"
        assert connection_path("grid", PROJECT).exists()
        await cluster.shutdown()


async def test_a_cluster_that_is_gone_is_not_found(paper_workers):
    async with detached(paper_workers) as cluster:
        text = connection_path("grid", PROJECT).read_text()
        await cluster.shutdown()
    await until(lambda: not paper_workers.leftovers())
    path = connection_path("grid", PROJECT)
    path.write_text(text)
    path.chmod(0o600)
    with pytest.raises(ClusterNotFound, match="grid"):
        await joined()
    # Another of that name is not taken for it.
    async with cluster_on(paper_workers, name="grid"):
        with pytest.raises(ClusterNotFound, match="another one"):
            await joined()
    assert path.exists()
    # Machines that are to come would be there by now: it has ended, and the file is of no use.
    os.utime(path, (0, 0))
    with pytest.raises(ClusterNotFound, match="grid"):
        await joined()
    assert not path.exists()


async def test_a_cluster_without_its_scheduler_is_not_joined(paper_workers):
    async with detached(paper_workers, n_workers=1) as cluster:
        await until(lambda: len(worker_machines(paper_workers)) == 1)
        (name,) = [each for each in running(paper_workers) if "-scheduler-" in each]
    assert cluster.status.name == "closed"
    paper_workers.delete(name, user=USER)
    await until(lambda: name not in running(paper_workers))
    with pytest.raises(GCEError, match=r"no scheduler.*dask gce delete grid"):
        await joined()
    # With its firewall rule and its connection file, though it has no scheduler.
    await asyncio.to_thread(succeed, paper_workers, "delete", "grid", "--yes")
    await until(lambda: not paper_workers.leftovers())
    assert not connection_path("grid", PROJECT).exists()


async def test_a_scheduler_that_still_boots_is_waited_for(light):
    cluster = detached(light, n_workers=1)
    making = asyncio.ensure_future(cluster._start())
    await until(light.instances)
    again = await joined()
    await making
    assert again.scheduler_address == cluster.scheduler_address
    await end(light)
    await again.close()
    await cluster.close()


async def test_a_file_that_others_can_read_is_refused(paper_workers):
    async with detached(paper_workers) as cluster:
        path = connection_path("grid", PROJECT)
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        path.chmod(0o644)
        with pytest.raises(CredentialsError, match="chmod 600"):
            await joined()
        await cluster.shutdown()


async def test_another_compute_engine_is_not_asked(paper_workers, emulator):
    async with detached(paper_workers) as cluster:
        with pytest.raises(SettingsError, match="was made at") as caught:
            await cluster_on(emulator, name="grid", create_mode="connect")
        assert caught.value.key == "api_endpoint"
        assert not emulator.requests
        await cluster.shutdown()


async def test_a_start_that_fails_leaves_neither_machines_nor_file(emulator):
    emulator.faults.add(
        Fault("compute.instances.insert", status=400, reason="invalid", message="Invalid.", times=1)
    )
    with pytest.raises(GCEError):
        await detached(emulator)
    await until(lambda: not emulator.leftovers())
    assert not list_connections()


async def test_whoever_is_cancelled_while_making_it_leaves_nothing(paper_workers):
    for turns in range(0, 60, 12):
        making = asyncio.ensure_future(_awaited(detached(paper_workers)))
        await until(lambda: running(paper_workers))
        for _ in range(turns):
            await asyncio.sleep(0.005)
        making.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await (await making).shutdown()
        await until(lambda: not paper_workers.leftovers())
        assert not list_connections()


async def _awaited(cluster):
    return await cluster


async def test_joining_that_fails_deletes_nothing(paper_workers):
    async with detached(paper_workers):
        pass
    (name,) = running(paper_workers)
    paper_workers.power_off(name)
    with pytest.raises(GCEError):
        await joined(shutdown_on_close=True)
    assert paper_workers.requests[DELETE] == 0
    await asyncio.to_thread(succeed, paper_workers, "delete", "grid", "--yes")
    await until(lambda: not paper_workers.leftovers())


async def test_no_file_is_written_unless_asked_for(paper_workers):
    async with cluster_on(paper_workers, name="grid", security=True):
        assert not list_connections()


async def test_max_lifetime_is_labelled_and_kept_by_compute_engine(paper_workers):
    async with detached(paper_workers, n_workers=2, max_lifetime="1 hour") as cluster:
        await until(lambda: len(worker_machines(paper_workers)) == 2)
        again = await joined()
        again.scale(3)
        await again.settle()
        shown = paper_workers.instances()
        assert len(shown) == 4
        assert len({each["labels"][names.EXPIRES_LABEL] for each in shown}) == 1
        assert {each["scheduling"]["instanceTerminationAction"] for each in shown} == {"DELETE"}
        # Who is made later has less time left, so that all end together.
        limits = {int(each["scheduling"]["maxRunDuration"]["seconds"]) for each in shown}
        assert all(1800 < limit <= 3600 for limit in limits)
        await again.close()
        await cluster.shutdown()


# -- one machine ------------------------------------------------------------

SINGLE = {"single_node": True, "machine_type": "e2-standard-4", "processes": 4, "nthreads": 1}


async def test_a_single_node_is_one_machine_and_one_insert(light):
    async with cluster_on(light, **SINGLE) as cluster:
        # Ready when its workers are.
        assert len(cluster.scheduler_info["workers"]) == 4
        assert len(light.instances()) == 1
        asked = [name for name in light.requests if name.startswith("compute.instances.")]
        inserts = [name for name in asked if "insert" in name.lower()]
        assert sum(light.requests[name] for name in inserts) == 1
        (scheduler,) = light.instances()
        assert cluster.plan == {f"{scheduler['name']}-{number}" for number in range(4)}
        async with Client(cluster, asynchronous=True) as client:
            assert await client.gather(client.map(abs, range(8))) == list(range(8))


async def test_a_single_node_grows_beyond_its_machine_and_shrinks_back(light):
    async with cluster_on(light, **{**SINGLE, "processes": 2}) as cluster:
        cluster.scale(6)
        await cluster.wait_for_workers(6)
        assert len(worker_machines(light)) == 2
        cluster.scale(0)
        await cluster.settle()
        assert light.requests[DELETE] == 2
        await until(lambda: not worker_machines(light))
        assert len(cluster.plan) == 2
        async with Client(cluster, asynchronous=True) as client:
            assert await client.submit(sum, range(10)) == 45


async def test_a_single_node_adapts(light, tmp_path):
    async with cluster_on(light, **{**SINGLE, "processes": 2}) as cluster:
        cluster.adapt(minimum=0, maximum=6, interval="100ms", wait_count=2, target_duration="100ms")
        enough = tmp_path / "enough"

        def work(number):
            # Until the machine has come, however long it takes.
            while not enough.exists():
                time.sleep(0.02)

        async with Client(cluster, asynchronous=True) as client:
            futures = client.map(work, range(20))
            await until(lambda: len(cluster.scheduler_info["workers"]) == 6)
            enough.touch()
            await client.gather(futures)
            del futures
            await until(lambda: not worker_machines(light))
            await until(lambda: len(cluster.scheduler_info["workers"]) == 2)
            await asyncio.sleep(0.5)
            assert len(cluster.scheduler_info["workers"]) == 2


async def test_a_single_node_can_be_left_and_joined(light):
    async with detached(light, **{**SINGLE, "processes": 2}):
        pass
    again = await joined()
    assert len(again.plan) == 2
    await again.wait_for_workers(2)
    again.scale(3)
    await again.wait_for_workers(4)
    await end(light)
    await again.close()


async def test_local_workers_that_do_not_come_fail_the_start(light):
    started = cluster_on(
        light, **SINGLE, worker_class="no.such.Worker", worker_start_timeout="6 seconds"
    )
    with pytest.raises(InstanceError, match="only 0 of its 4 workers registered"):
        await started
    await until(lambda: not light.leftovers())


# -- signals ------------------------------------------------------------

PROGRAM = """
import sys
from dask_gce import GCECluster
cluster = GCECluster(name="grid", shutdown_on_close=False, n_workers=1, quiet=True,
    worker_class="distributed.Worker", machine_type="e2-small")
print("ready", flush=True)
"""


def test_the_process_ends_without_closing_and_the_cluster_stays(light):
    environment = {**os.environ, "DASK_GCE__API_ENDPOINT": light.endpoint}
    subprocess.run([sys.executable, "-c", PROGRAM], env=environment, check=True, timeout=200)
    # The worker's machine may have been asked for a moment ago.
    wait_until(lambda: len(running(light)) == 2)
    asyncio.run(end(light))
