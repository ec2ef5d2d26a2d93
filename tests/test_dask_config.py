"""What the client has changed of distributed's configuration applies to its machines as well."""

from __future__ import annotations

import dask.config
import distributed
import pytest
from clusters import cluster_on
from distributed import Client

from dask_gce.boot.dask_config import STAYS, changed_configuration
from dask_gce.emulator import ComputeEmulator


def test_nothing_changed_is_nothing_shipped():
    defaults = dask.config.merge(*dask.config.defaults)
    with dask.config.set({"distributed": defaults["distributed"]}):
        assert changed_configuration() == {}


def test_only_what_differs_is_shipped_whichever_way_it_is_spelt():
    before = changed_configuration()
    assert distributed
    with dask.config.set(
        {
            "distributed.worker.memory.target": 0.5,
            "distributed.scheduler.allowed_failures": 7,
            "distributed.worker.lifetime.duration": None,
            "array.chunk-size": "1 MiB",
            "gce.project": "mine",
        }
    ):
        assert changed_configuration() == dask.config.merge(
            before,
            {
                "distributed": {
                    "worker": {"memory": {"target": 0.5}},
                    "scheduler": {"allowed-failures": 7},
                }
            },
        )


@pytest.mark.parametrize("key", sorted(STAYS))
def test_what_is_about_this_computer_stays(key):
    before = changed_configuration()
    with dask.config.set({key: "/home/me/secret"}):
        assert changed_configuration() == before


def test_what_is_no_data_stays():
    before = changed_configuration()
    with dask.config.set({"distributed.worker.memory.target": object()}):
        assert changed_configuration() == before


async def test_a_machine_has_the_client_s_configuration(process_emulator: ComputeEmulator) -> None:
    def look() -> object:
        import dask.config

        return dask.config.get("distributed.worker.memory.target")

    with dask.config.set({"distributed.worker.memory.target": 0.41}):
        async with (
            cluster_on(process_emulator, n_workers=1) as cluster,
            Client(cluster, asynchronous=True) as client,
        ):
            await client.wait_for_workers(1)
            assert list((await client.run(look)).values()) == [0.41]
            assert await client.run_on_scheduler(look) == 0.41


async def test_a_variable_of_the_user_s_own_comes_first(process_emulator: ComputeEmulator) -> None:
    def look() -> object:
        import dask.config

        return dask.config.get("distributed.worker.memory.target")

    variables = {"DASK_DISTRIBUTED__WORKER__MEMORY__TARGET": "0.3"}
    with dask.config.set({"distributed.worker.memory.target": 0.41}):
        async with (
            cluster_on(process_emulator, n_workers=1, env_vars=variables) as cluster,
            Client(cluster, asynchronous=True) as client,
        ):
            await client.wait_for_workers(1)
            assert list((await client.run(look)).values()) == [0.3]
