"""Several workers on one machine, each with its share of it."""

from __future__ import annotations

from clusters import PATIENCE
from distributed import Client

from dask_gce.blueprint import Blueprint
from dask_gce.compute import Compute
from dask_gce.credentials import load_credentials
from dask_gce.instance import build_insert, parse_instance
from dask_gce.placement import Location, MachineShape
from dask_gce.settings import Settings

PROJECT, ZONE = "local-project", "us-central1-a"
SHAPE = MachineShape("e2-standard-4", 4, 16 * 2**30)


async def test_the_workers_of_a_machine_register_by_its_name(process_emulator):
    settings = Settings.load(
        project=PROJECT, api_endpoint=process_emulator.endpoint, security=False, processes=2
    )
    plan = Blueprint(settings, PROJECT, "dask-1", "c0ffee")
    here = Location(ZONE, SHAPE)
    async with Compute(
        PROJECT, credentials=load_credentials(settings), endpoint=settings.api_endpoint
    ) as compute:

        async def boot(spec):
            operation = await compute.insert_instance(ZONE, build_insert(spec))
            await compute.wait_operation(operation, 60)
            return parse_instance(await compute.get_instance(ZONE, spec.name)).internal_ip

        try:
            address = f"tcp://{await boot(plan.scheduler('dask-1-s', here))}:8786"
            await boot(plan.worker("dask-1-w", here, address))
            async with Client(address, asynchronous=True, timeout=PATIENCE) as client:
                await client.wait_for_workers(2, timeout=PATIENCE)
                info = await client.scheduler.identity()
        finally:
            for name in ("dask-1-s", "dask-1-w"):
                await compute.delete_instance(ZONE, name)
    workers = {each["name"]: each for each in info["workers"].values()}
    assert set(workers) == {f"dask-1-w{suffix}" for suffix in plan.suffixes}
    for worker in workers.values():
        assert (worker["nthreads"], worker["memory_limit"]) == (2, plan.memory(SHAPE))
