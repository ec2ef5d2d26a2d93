"""The main job, end to end: real Dask processes on machines of the local Compute Engine."""

from __future__ import annotations

import asyncio
import copy
import json
import time

import dask
import pytest
from distributed import Client
from distributed.deploy.adaptive import Adaptive
from distributed.security import Security

from dask_gce import GCECluster
from dask_gce.errors import GCEError, SettingsError

# Every worker of these tests is two processes on a machine with two cores.
pytestmark = pytest.mark.timeout(600)


def wait_until(condition, seconds=120.0):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "did not happen in time"
        time.sleep(0.05)


def instances(emulator):
    return {each["name"]: each for each in emulator.instances() if each["status"] != "STOPPING"}


@pytest.fixture
def settings(process_emulator):
    """Keywords with which a cluster runs on the local Compute Engine."""
    return {
        "api_endpoint": process_emulator.endpoint,
        "machine_type": "e2-highcpu-2",
        "start_timeout": "120 s",
        "worker_start_timeout": "120 s",
        "quiet": True,
    }


def test_computes_over_tls_and_leaves_nothing(process_emulator, settings):
    before = copy.deepcopy(dask.config.config)
    with GCECluster(n_workers=2, **settings) as cluster, Client(cluster) as client:
        assert cluster.scheduler_address.startswith("tls://127.")
        assert client.submit(sum, range(10)).result() == 45
        client.wait_for_workers(2)
        workers = {each["name"] for each in client.scheduler_info()["workers"].values()}
        # One string: the spec's key, the instance's name, the worker's name.
        assert workers == set(cluster.worker_spec) == cluster.plan == cluster.requested
        assert workers == cluster.observed
        machines = instances(process_emulator)
        assert set(machines) == workers | {cluster.scheduler.name}
        assert {each["labels"]["dask-gce-cluster"] for each in machines.values()} == {cluster.name}
        assert not any(name.isdigit() for name in machines)
        assert cluster.dashboard_link.endswith(":8787/status")
    wait_until(lambda: not process_emulator.leftovers())
    assert dask.config.config == before


async def test_asynchronous(process_emulator, settings):
    async with (
        GCECluster(n_workers=1, asynchronous=True, **settings) as cluster,
        Client(cluster, asynchronous=True) as client,
    ):
        assert await client.submit(lambda x: x + 1, 1) == 2
        logs = await cluster.get_logs()
        assert "Scheduler" in logs
        assert any("tls://127." in name for name in logs)
    assert cluster.status.name == "closed"
    await asyncio.to_thread(wait_until, lambda: not process_emulator.leftovers())


async def test_await_twice_makes_one_cluster(process_emulator, settings):
    cluster = GCECluster(n_workers=1, asynchronous=True, **settings)
    assert await cluster is cluster
    await asyncio.gather(cluster, cluster)
    async with Client(cluster, asynchronous=True) as client:
        await client.wait_for_workers(1)
    assert process_emulator.requests["compute.instances.insert"] == 2
    await cluster.close()
    await cluster.close()


def test_scales_by_workers_cores_and_memory(process_emulator, settings):
    with GCECluster(**settings) as cluster, Client(cluster) as client:
        cluster.scale(cores=3)  # two threads a worker, from machineTypes.get
        assert len(cluster.plan) == 2
        client.wait_for_workers(2)
        # Scaling down moves results to the workers that stay.
        futures = client.scatter(list(range(20)), broadcast=False)
        cluster.scale(1)
        wait_until(lambda: len(instances(process_emulator)) == 2)
        assert client.gather(futures) == list(range(20))
        del futures
        memory = cluster._memory_per_worker()
        assert 2**30 < memory < 2 * 2**30  # e2-highcpu-2 has 2 GB, less what the system keeps
        cluster.scale(memory=memory + 1)
        assert len(cluster.plan) == 2
        cluster.scale(0)
        wait_until(lambda: len(instances(process_emulator)) == 1)


def test_the_only_copy_of_a_result_keeps_its_machine(process_emulator, settings):
    with GCECluster(n_workers=1, **settings) as cluster, Client(cluster) as client:
        future = client.submit(sum, [1, 2])
        assert future.result() == 3
        cluster.scale(0)
        wait_until(lambda: any(event.what == "kept" for event in cluster.events))
        # Said right after it was noted, in another thread.
        why = "holds results that fit nowhere else"
        wait_until(lambda: any(why in text for _, text in list(cluster._cluster_manager_logs)))
        assert not cluster.plan
        assert len(client.scheduler_info()["workers"]) == 1
        assert future.result() == 3
        del future
        wait_until(lambda: len(instances(process_emulator)) == 1)


@pytest.mark.parametrize("wrong", [-1, 1.5, "3", True, None])
def test_scale_refuses_what_is_no_number_of_workers(settings, wrong):
    with GCECluster(**settings) as cluster, pytest.raises(SettingsError, match="whole number"):
        cluster.scale(wrong)


class Recorder(Adaptive):
    """A user's own Adaptive class."""

    decisions = 0

    async def recommendations(self, target):
        type(self).decisions += 1
        return await super().recommendations(target)


def test_adapts_up_and_down_with_a_class_of_ones_own(process_emulator, settings):
    with GCECluster(**settings) as cluster, Client(cluster) as client:
        adaptive = cluster.adapt(
            Adaptive=Recorder, minimum=0, maximum=1, interval="100ms", wait_count=3
        )
        assert isinstance(adaptive, Recorder)
        assert client.submit(sum, [1, 2]).result(timeout=120) == 3
        wait_until(lambda: len(instances(process_emulator)) == 1)
    assert Recorder.decisions > 0


def test_strangers_are_refused(process_emulator, settings):
    with GCECluster(**settings) as cluster, GCECluster(**settings) as other:
        address = cluster.scheduler_address
        for stranger, security in [
            (address.replace("tls://", "tcp://"), Security(require_encryption=False)),
            (address, other.security),
        ]:
            with pytest.raises(OSError):
                Client(stranger, security=security, timeout=2)
        with Client(address, security=cluster.security) as client:
            assert client.status == "running"


def test_two_clusters_with_different_security_and_settings(process_emulator, settings):
    before = copy.deepcopy(dask.config.config)
    with (
        GCECluster(n_workers=1, env_vars={"WHO": "one"}, **settings) as one,
        GCECluster(n_workers=1, env_vars={"WHO": "two"}, security=False, **settings) as two,
        Client(one, set_as_default=False) as first,
        Client(two, set_as_default=False) as second,
    ):
        assert one.scheduler_address.startswith("tls://")
        assert two.scheduler_address.startswith("tcp://")

        def who():
            import os

            return os.environ["WHO"]

        assert first.submit(who).result() == "one"
        assert second.submit(who).result() == "two"
        assert dask.config.config == before
    wait_until(lambda: not process_emulator.leftovers())


def test_a_users_own_security(settings):
    security = Security.temporary()
    with GCECluster(n_workers=1, security=security, **settings) as cluster:
        assert cluster.security is security
        with Client(cluster) as client:
            assert client.submit(len, "abc").result() == 3


def test_as_cluster_class_for_other_tools(process_emulator, settings):
    """Tools such as Prefect and JupyterLab's extension make clusters from JSON keywords."""
    keywords = json.loads(json.dumps({**settings, "n_workers": 1}))

    async def main():
        cluster = await GCECluster(asynchronous=True, **keywords)
        cluster.scale(2)
        async with Client(cluster, asynchronous=True) as client:
            await client.wait_for_workers(2)
        await cluster.close()

    asyncio.run(main())
    wait_until(lambda: not process_emulator.leftovers())


def test_worker_class_and_options_reach_the_worker(settings):
    with (
        GCECluster(
            n_workers=1,
            worker_class="distributed.Worker",
            worker_options={"resources": {"GPU": 2}},
            nthreads=3,
            memory_limit="1 GB",
            scheduler_options={"idle_timeout": "1 hour"},
            **settings,
        ) as cluster,
        Client(cluster) as client,
    ):
        client.wait_for_workers(1)
        (worker,) = client.scheduler_info()["workers"].values()
        assert (worker["nthreads"], worker["memory_limit"]) == (3, 10**9)
        assert worker["resources"] == {"GPU": 2}
        assert worker["nanny"] is None
        assert client.run_on_scheduler(lambda dask_scheduler: dask_scheduler.idle_timeout) == 3600


def test_closed_while_starting(process_emulator, settings):
    async def main():
        cluster = GCECluster(n_workers=1, asynchronous=True, **settings)
        starting = asyncio.ensure_future(cluster._start())
        await asyncio.to_thread(
            wait_until, lambda: process_emulator.requests["compute.instances.insert"]
        )
        began = time.monotonic()
        await cluster.close()
        assert time.monotonic() - began < 45
        with pytest.raises(GCEError, match="closed while it was starting"):
            await starting

    asyncio.run(main())
    wait_until(lambda: not process_emulator.leftovers())


def test_cancelled_while_starting(process_emulator, settings):
    async def main():
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(GCECluster(asynchronous=True, **settings), 0.2)

    asyncio.run(main())
    wait_until(lambda: not process_emulator.leftovers())


@pytest.mark.parametrize("seconds", [0, 0.05, 0.3])
def test_closed_by_whoever_waits_no_longer(process_emulator, settings, seconds):
    """Cancelled while the first workers are asked for, `async with` never gets to its exit."""

    async def main():
        cluster = GCECluster(n_workers=2, asynchronous=True, **settings)
        entering = asyncio.ensure_future(cluster.__aenter__())
        await asyncio.to_thread(
            wait_until, lambda: process_emulator.requests["compute.instances.bulkInsert"]
        )
        await asyncio.sleep(seconds)
        if entering.cancel():
            await asyncio.wait({entering})
        else:
            await cluster.close()
        assert cluster.status.name == "closed"

    asyncio.run(main())
    wait_until(lambda: not process_emulator.leftovers())


async def test_one_who_waits_no_longer_takes_nothing_with_him(process_emulator, settings):
    async with GCECluster(n_workers=1, asynchronous=True, **settings) as cluster:
        for _ in range(3):
            waiting = asyncio.ensure_future(cluster._correct_state())
            await asyncio.sleep(0)
            waiting.cancel()
        cluster.scale(2)
        await cluster
        assert len(cluster.workers) == 2
        # Closing right after a correction: the watcher has just been told to look.
        cluster.scale(0)
        await cluster
    await asyncio.to_thread(wait_until, lambda: not process_emulator.leftovers())


def test_options_too_large_for_metadata_cost_nothing(process_emulator, settings):
    with pytest.raises(SettingsError, match="worker_options is too large"):
        GCECluster(worker_options={"resources": {"x" * 300_000: 1}}, **settings)
    assert not process_emulator.requests["compute.instances.insert"]


def test_a_wrong_keyword_costs_no_call(process_emulator, settings):
    with pytest.raises(SettingsError, match="n_workers"):
        GCECluster(n_wokers=3, **settings)
    assert not process_emulator.requests


def test_zones_are_tried_in_order(process_emulator, settings):
    with GCECluster(zone=["us-central1-z", "us-central1-f"], **settings) as cluster:
        assert cluster.scheduler.contact_address.count(".us-central1-f.c.") == 1
    with pytest.raises(SettingsError, match="none offers z9-standard-1") as caught:
        GCECluster(zone=["us-central1-a"], **{**settings, "machine_type": "z9-standard-1"})
    assert caught.value.key == "zone"
    assert process_emulator.requests["compute.instances.insert"] == 1


def test_a_name_that_is_taken_is_refused(process_emulator, settings):
    """Closing the second cluster would delete the first one's machines."""
    with GCECluster(name="grid", **settings) as cluster:
        assert cluster.name == "grid"
        assert all(name.startswith("grid-") for name in instances(process_emulator))
        with pytest.raises(SettingsError, match="a cluster of this name has 1 instances"):
            GCECluster(name="grid", **settings)
        assert len(instances(process_emulator)) == 1
    # Its machines may still be stopping: nobody waits for them to use the name again.
    with GCECluster(name="grid", **settings) as cluster:
        assert cluster.status.name == "running"


async def test_what_is_closed_stays_closed(process_emulator, settings):
    cluster = GCECluster(asynchronous=True, **settings)
    await cluster.close()
    with pytest.raises(GCEError, match="is closed; make a new one"):
        await cluster
    assert not process_emulator.requests


@pytest.mark.parametrize(
    ("account", "left"),
    [("default", set()), (None, {"TERMINATED"})],
    ids=["deleted", "powered off"],
)
def test_machines_end_themselves_when_dask_has_ended(process_emulator, settings, account, left):
    """With a service account by deletion, without one by powering off, and nobody asked them to."""

    def end_soon(dask_scheduler):
        async def end():
            await dask_scheduler.retire_workers(close_workers=True)
            await dask_scheduler.close()

        dask_scheduler.loop.call_later(0.2, end)

    with GCECluster(n_workers=1, service_account=account, **settings) as cluster:
        with Client(cluster, set_as_default=False) as client:
            client.wait_for_workers(1)
            # Nobody watches, as if the client's process had died.
            cluster.loop.add_callback(cluster._watching.cancel)
            client.run_on_scheduler(end_soon)
        wait_until(lambda: {each["status"] for each in process_emulator.instances()} == left)
