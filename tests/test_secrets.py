"""No private key is anywhere but where it must be, while a cluster lives and after."""

from __future__ import annotations

import asyncio
import http.client
import json
import logging
import os
import traceback
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import dask
import pytest
from clusters import PATIENCE, settings, until
from distributed import Client
from distributed.core import rpc
from google.auth.credentials import AnonymousCredentials

from dask_gce import GCECluster, scrubbing
from dask_gce.emulator import ComputeEmulator, Fault
from dask_gce.errors import APIError
from dask_gce.probing import UNREACHABLE
from dask_gce.secret_sweeping import list_secrets
from dask_gce.services import Services
from dask_gce.startup import SECRET_ITEMS

METADATA, SECRET_MANAGER = "metadata", "secret-manager"


def wanted(emulator: ComputeEmulator, secrets: str, **more: Any) -> dict[str, Any]:
    """Return the settings of an encrypted cluster."""
    account = {"service_account": "default"} if secrets == SECRET_MANAGER else {}
    return settings(
        emulator, security=True, secrets=secrets, machine_type="e2-standard-2", **account, **more
    )


@asynccontextmanager
async def working(
    emulator: ComputeEmulator, secrets: str, **more: Any
) -> AsyncIterator[tuple[GCECluster, Client]]:
    """Make a cluster that works, and whose machines are scrubbed."""
    wishes = wanted(emulator, secrets, **{"n_workers": 1, **more})
    async with GCECluster(**wishes) as cluster, Client(cluster, asynchronous=True) as client:
        if wishes["n_workers"]:
            await client.wait_for_workers(wishes["n_workers"], timeout=PATIENCE)
            assert await client.submit(lambda: 42) == 42
        await until(lambda: not in_metadata(emulator))
        yield cluster, client


def in_metadata(emulator: ComputeEmulator) -> set[str]:
    """Return the items with keys that are in the metadata of some instance."""
    found = set()
    for each in emulator.instances():
        found |= {item["key"] for item in each["metadata"]["items"]} & SECRET_ITEMS
    return found


def pieces(cluster: GCECluster) -> list[str]:
    """Return what would be found of each private key, wherever it were."""
    prepared = cluster._prepared
    assert prepared is not None
    assert prepared.client_tls is not None
    held = [*prepared.blueprint.tls.values(), prepared.client_tls]
    lines = [line for tls in held for line in tls.key.splitlines() if not line.startswith("-")]
    assert len(lines) >= 6
    # A line broken elsewhere would still show its middle.
    return [line[4:-4] for line in lines]


def processes() -> Iterator[str]:
    """Return what the system shows of all processes, to everybody or to root."""
    for folder in Path("/proc").glob("[0-9]*"):
        for name in ("cmdline", "environ"):
            try:
                yield (folder / name).read_bytes().decode(errors="replace")
            except OSError:
                continue  # it has ended, or is somebody else's


def everything() -> Callable[[], str]:
    """Return what tells what code on a machine learns from its surroundings; to be run there."""

    def tell() -> str:
        connection = http.client.HTTPConnection(os.environ["GCE_METADATA_HOST"])
        path = "/computeMetadata/v1/?recursive=true"
        connection.request("GET", path, headers={"Metadata-Flavor": "Google"})
        metadata = connection.getresponse().read().decode()
        connection.close()
        return metadata + repr(dict(os.environ)) + repr(dask.config.config)

    return tell


async def shown(emulator: ComputeEmulator, cluster: GCECluster, client: Client) -> dict[str, str]:
    """Return all that is shown to somebody, by where it is shown."""
    prepared, fleet = cluster._prepared, cluster._fleet
    assert prepared is not None
    assert fleet is not None
    compute, blueprint = prepared.compute, prepared.blueprint
    places = {
        "instances": json.dumps(emulator.instances()),
        "logs": repr(await cluster.get_logs(machines=True)),
        "worker logs": repr(await client.get_worker_logs()),
        "scheduler logs": repr(await client.get_scheduler_logs()),
        "on workers": repr(await client.run(everything())),
        "on the scheduler": repr(await client.run_on_scheduler(everything())),
        "scheduler info": repr(await client.scheduler.identity()),
        "events": "\n".join(map(str, cluster.events)),
        "configuration": repr(dask.config.config),
        "environment": repr(dict(os.environ)),
        "processes": "\n".join(processes()),
        "cluster": repr(cluster) + str(cluster) + cluster._repr_html_(),
        "scheduler": repr(cluster.scheduler) + repr(vars(cluster.scheduler)),
        "workers": repr(cluster.workers) + repr(cluster.worker_spec) + repr(cluster.new_spec),
        "settings": repr(cluster.settings) + repr(cluster.settings.dump()),
        "prepared": repr(prepared) + repr(blueprint) + repr(vars(cluster)),
        "fleet": repr(vars(fleet)) + repr(fleet.members) + repr(vars(fleet._scrubbing or fleet)),
        "security": repr(cluster.security) + repr(blueprint.tls) + repr(prepared.client_tls),
    }
    for name, member in fleet.members.items():
        zone = member.zone
        text, _ = await compute.get_serial_port_output(zone, name)
        places[f"console of {name}"] = text
        assert "dask-gce phase: running" in text
        places[f"guest attributes of {name}"] = repr(await compute.get_guest_attributes(zone, name))
        try:
            await compute.set_instance_metadata(
                zone, name, {"fingerprint": "b2xk", "items": [{"key": "k", "value": "v"}]}
            )
        except APIError as error:
            places[f"refusal of {name}"] = "".join(traceback.format_exception(error))
    return places


@contextmanager
def logged_by_google(handler: logging.Handler) -> Iterator[None]:
    """Have Google's libraries log what they do, of which they tell nobody by themselves."""
    logger = logging.getLogger("google")
    before = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.DEBUG)
    try:
        yield
    finally:
        logger.setLevel(before)
        logger.removeHandler(handler)


@pytest.mark.parametrize("secrets", [METADATA, SECRET_MANAGER])
async def test_no_key_is_shown_anywhere(
    process_emulator: ComputeEmulator, secrets: str, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.DEBUG), logged_by_google(caplog.handler):
        more = {"silence_logs": False, "worker_class": "distributed.Nanny"}
        async with working(process_emulator, secrets, **more) as (cluster, client):
            keys = pieces(cluster)
            places = await shown(process_emulator, cluster, client)
            assert all(places.values())
            assert any(place.startswith("refusal of") for place in places)
    # Structured handlers write out what is attached to records.
    places["log"] = "\n".join(f"{each.getMessage()} {vars(each)}" for each in caplog.records)
    assert "Sending request for google.cloud.compute_v1.InstancesClient.Insert" in places["log"]
    found = [(place, key[:6]) for place, text in places.items() for key in keys if key in text]
    assert not found


async def answer_of(cluster: GCECluster) -> str:
    """Return which scheduler speaks TLS with this cluster's client; none where it boots."""
    security = cluster.security.get_connection_args("client")
    remote = rpc(str(cluster.scheduler.address), connection_args=security)
    try:
        return str((await asyncio.wait_for(remote.identity(), 30))["id"])
    except (*UNREACHABLE, asyncio.TimeoutError):
        return ""
    finally:
        await remote.close_rpc()


@pytest.mark.parametrize("secrets", [METADATA, SECRET_MANAGER])
async def test_a_machine_that_boots_again_still_has_its_key(
    process_emulator: ComputeEmulator, secrets: str
) -> None:
    async with working(process_emulator, secrets) as (cluster, client):
        (worker,) = cluster.worker_spec
        before = (await client.scheduler.identity())["workers"]
        await boot_again(process_emulator, cluster, worker)

        async def is_new() -> bool:
            workers = (await client.scheduler.identity())["workers"]
            return bool(workers) and workers.keys() != before.keys()

        deadline = asyncio.get_running_loop().time() + PATIENCE
        while not await is_new():
            assert asyncio.get_running_loop().time() < deadline
            await asyncio.sleep(0.1)
        assert await client.submit(lambda: 43, pure=False) == 43
        assert not in_metadata(process_emulator)
        assert [*cluster.worker_spec] == [worker]


async def boot_again(emulator: ComputeEmulator, cluster: GCECluster, name: str) -> None:
    """Reset a machine, as a user might."""
    assert cluster._fleet is not None
    zone = cluster._fleet.members[name].zone
    project = cluster._ready.compute.project
    path = f"/compute/v1/projects/{project}/zones/{zone}/instances/{name}/reset"

    def reset() -> None:
        connection = http.client.HTTPConnection(emulator.endpoint.partition("://")[2])
        connection.request("POST", path)
        assert connection.getresponse().status == 200
        connection.close()

    await asyncio.to_thread(reset)


async def test_a_scheduler_that_boots_again_still_has_its_key(
    process_emulator: ComputeEmulator,
) -> None:
    async with working(process_emulator, METADATA, n_workers=0) as (cluster, client):
        identity = (await client.scheduler.identity())["id"]
        await boot_again(process_emulator, cluster, cluster._scheduler.name)
        deadline = asyncio.get_running_loop().time() + PATIENCE
        # Until it goes down it is the same one that answers.
        while await answer_of(cluster) in ("", identity):
            assert asyncio.get_running_loop().time() < deadline
            await asyncio.sleep(0.1)


async def test_both_keys_of_a_single_node_go(process_emulator: ComputeEmulator) -> None:
    one = {"single_node": True, "processes": 1}
    async with working(process_emulator, METADATA, **one) as (cluster, client):
        assert [*cluster.workers] == []
        assert len((await client.scheduler.identity())["workers"]) == 1


# -- clusters that outlive their process ----------------------------------------------------------


def staying(emulator: ComputeEmulator, secrets: str, **more: Any) -> GCECluster:
    wishes = {**wanted(emulator, secrets), "n_workers": 0, "name": "grid", **more}
    return GCECluster(**wishes, shutdown_on_close=False)


async def joined() -> GCECluster:
    return await GCECluster.from_name("grid", asynchronous=True, quiet=True)


async def test_whoever_leaves_a_cluster_scrubs_it_first(
    process_emulator: ComputeEmulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scrubbing, "LEAVE_WITHIN", PATIENCE)
    async with staying(process_emulator, METADATA):
        pass
    assert not in_metadata(process_emulator)
    await (await joined()).shutdown()
    await until(lambda: not process_emulator.leftovers())


async def test_whoever_joins_a_cluster_scrubs_what_others_could_not(
    process_emulator: ComputeEmulator,
) -> None:
    refused = Fault("compute.instances.setMetadata", status=403, reason="forbidden", times=1000)
    process_emulator.faults.add(refused)
    async with staying(process_emulator, METADATA) as cluster:
        await until(lambda: [each for each in cluster.events if each.what == "unscrubbed"])
    assert in_metadata(process_emulator) == {"dask-gce-tls"}
    process_emulator.faults.clear()
    cluster = await joined()
    await until(lambda: not in_metadata(process_emulator))
    await cluster.shutdown()
    await until(lambda: not process_emulator.leftovers())


async def test_secrets_stay_with_a_cluster_that_stays_and_go_when_it_goes(
    process_emulator: ComputeEmulator,
) -> None:
    services = Services(
        "local-project",
        credentials=AnonymousCredentials(),
        endpoint=process_emulator.endpoint,
    )
    async with services:
        async with staying(process_emulator, SECRET_MANAGER):
            pass
        assert len(await list_secrets(services)) == 2
        cluster = await joined()
        assert await answer_of(cluster)
        await cluster.close()
        assert len(await list_secrets(services)) == 2
        # Whoever comes next makes machines that read them, too.
        cluster = await joined()
        await cluster.scale(1)
        await cluster.wait_for_workers(1, PATIENCE)
        await cluster.shutdown()
        assert await list_secrets(services) == []
    await until(lambda: not process_emulator.leftovers())
