"""One machine that is a whole cluster, for real: scheduler and workers in it."""

from __future__ import annotations

import asyncio
import dataclasses
import os
import signal
import time

import pytest
from clusters import BULK, INSERT, PATIENCE, cluster_on, until, worker_machines
from distributed import Client

from dask_gce.blueprint import Blueprint
from dask_gce.compute import Compute
from dask_gce.credentials import load_credentials
from dask_gce.errors import SettingsError
from dask_gce.instance import build_insert, parse_instance
from dask_gce.placement import Location, MachineShape
from dask_gce.settings import Settings
from dask_gce.trust import establish_trust

PROJECT, ZONE = "local-project", "us-central1-a"
HERE = Location(ZONE, MachineShape("e2-standard-4", 4, 16 * 2**30))
NAME = "dask-1-s"


async def test_scheduler_and_workers_share_a_machine(process_emulator):
    settings = Settings.load(
        project=PROJECT,
        api_endpoint=process_emulator.endpoint,
        single_node=True,
        processes=2,
        worker_class="distributed.Worker",
        scheduler_port=8790,
        env_vars={"DASK_DISTRIBUTED__SCHEDULER__PRELOAD": MINE},
    )
    trust = establish_trust(True, "dask-1")
    plan = Blueprint(settings, PROJECT, "dask-1", "c0ffee")
    plan = dataclasses.replace(plan, tls=trust.machines)
    async with Compute(
        PROJECT, credentials=load_credentials(settings), endpoint=settings.api_endpoint
    ) as compute:
        operation = await compute.insert_instance(ZONE, build_insert(plan.scheduler(NAME, HERE)))
        await compute.wait_operation(operation, 60)
        try:
            host = parse_instance(await compute.get_instance(ZONE, NAME)).internal_ip
            address = f"tls://{host}:8790"
            async with Client(
                address, asynchronous=True, timeout=PATIENCE, security=trust.client
            ) as client:
                await client.wait_for_workers(2, timeout=PATIENCE)
                await look(client, plan, host)
                await lose(client)
        finally:
            await compute.delete_instance(ZONE, NAME)


#: Dask's configuration has a preload, as text; ours must not take its place.
MINE = "def dask_setup(scheduler): scheduler.mine = True"


async def look(client, plan, host):
    """Look at the workers, and at how they are kept."""
    workers = (await client.scheduler.identity())["workers"].values()
    assert {each["name"] for each in workers} == {NAME + each for each in plan.local_suffixes}
    share = plan.local_share(HERE.shape)
    for each in workers:
        assert (each["nthreads"], each["host"]) == (2, host)
        assert each["memory_limit"] <= share.memory
    assert await client.submit(sum, range(10)) == 45
    assert await client.run_on_scheduler(lambda dask_scheduler: dask_scheduler.mine)
    assert not await client.scheduler.workers_to_close(n=2)


async def lose(client):
    """Kill the workers' process, and see it come back."""
    lost = set((await client.run(os.getpid)).values())
    assert len(lost) == 1
    # From outside: a worker that ends itself may be gone before it has answered.
    for pid in lost:
        os.kill(pid, signal.SIGKILL)
    deadline = time.monotonic() + 60
    found = lost
    while not found or found & lost:
        assert time.monotonic() < deadline
        await asyncio.sleep(0.1)
        found = set((await client.run(os.getpid, on_error="ignore")).values())


async def test_a_cluster_on_one_machine_costs_one_request(process_emulator):
    async with cluster_on(
        process_emulator, single_node=True, machine_type="e2-standard-4", processes=2
    ) as cluster:
        await cluster.wait_for_workers(2)
        assert process_emulator.requests[INSERT] == 1
        assert process_emulator.requests[BULK] == 0
        (machine,) = process_emulator.instances()
        names = {machine["name"] + suffix for suffix in ("-0", "-1")}
        assert cluster.plan == cluster.requested == cluster.observed == names
        async with Client(cluster, asynchronous=True) as client:
            assert await client.submit(sum, range(10)) == 45
    assert {each["status"] for each in process_emulator.instances()} <= {"STOPPING"}


async def test_what_does_not_fit_is_refused_before_anything_is_created(emulator):
    with pytest.raises(SettingsError, match="e2-custom-32-98304") as caught:
        await cluster_on(
            emulator,
            single_node=True,
            machine_type="e2-custom-16-49152",
            processes=32,
            nthreads=1,
            memory_limit="3GB",
        )
    assert caught.value.key == "processes"
    assert not emulator.requests[INSERT]


async def test_a_single_node_grows_and_shrinks_back(light):
    async with cluster_on(
        light, single_node=True, machine_type="e2-standard-4", processes=2
    ) as cluster:
        await cluster.wait_for_workers(2)
        cluster.scale(6)
        await cluster.wait_for_workers(6)
        assert len(worker_machines(light)) == 2
        # A scheduler's machine stays, so its workers do.
        cluster.scale(0)
        await until(lambda: not worker_machines(light))
        await until(lambda: len(cluster.observed) == 2)
        assert cluster.observed == cluster.plan


async def test_adaptive_lets_machines_go_though_a_local_worker_is_missing(light):
    async with cluster_on(
        light, single_node=True, machine_type="e2-standard-4", processes=2, nthreads=1
    ) as cluster:
        local = list(cluster.scheduler_info["workers"])
        assert len(local) == 2
        cluster.scale(6)
        await cluster.wait_for_workers(6)
        await cluster.scheduler_comm.retire_workers(workers=local, close_workers=True)
        await until(lambda: len(cluster.scheduler_info["workers"]) == 4)
        assert cluster.plan == cluster.requested == cluster.observed
        cluster.adapt(minimum=0, maximum=6, interval="100ms", wait_count=2)
        await until(lambda: not worker_machines(light))
