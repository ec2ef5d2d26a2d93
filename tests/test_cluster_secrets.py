"""A cluster's secrets: made before its machines, read by them alone, gone on every way out."""

from __future__ import annotations

import asyncio
import base64
import json
from collections import Counter
from collections.abc import Iterator
from datetime import datetime, timedelta, timezone
from typing import Any

import pytest
from clusters import cluster_on, until
from google.auth.credentials import AnonymousCredentials
from scripted_api import run_python

from dask_gce import GCECluster
from dask_gce.cluster_secrets import ClusterSecrets
from dask_gce.compute import Compute
from dask_gce.emulator import ComputeEmulator, Fault
from dask_gce.errors import GCEError, PermissionDenied, SettingsError
from dask_gce.secret_calls import SecretPlan
from dask_gce.services import Services
from dask_gce.settings import Settings
from dask_gce.startup import SECRET_ITEMS, Tls

PROJECT = "local-project"
ROLES = {"scheduler": Tls("ca", "cert", "key s"), "worker": Tls("ca", "cert", "key w")}
END = datetime.now(timezone.utc) + timedelta(days=2)
PLAN = SecretPlan(
    bundles=ROLES,
    account="robot@local-project.iam.gserviceaccount.com",
    regions=["us-central1"],
    labels={"dask-gce-cluster": "grid", "dask-gce-id": "3f9a61c2d4e5f607"},
    end=END,
    patience=600,
)
CREATE = "secretmanager.projects.secrets.create"
ADD = "secretmanager.projects.secrets.addVersion"
POLICY = "secretmanager.projects.secrets.setIamPolicy"
DELETE = "secretmanager.projects.secrets.delete"


@pytest.fixture
def services(emulator: ComputeEmulator) -> Iterator[Services]:
    made = Services(PROJECT, credentials=AnonymousCredentials(), endpoint=emulator.endpoint)
    yield made
    made.close_now()


def listed(services: Services) -> list[dict[str, Any]]:
    answer = services.call_now("secretmanager", "GET", f"/v1/projects/{PROJECT}/secrets")
    found: list[dict[str, Any]] = answer.get("secrets", [])
    return found


async def look(services: Services) -> list[dict[str, Any]]:
    return await asyncio.to_thread(listed, services)


def asked(emulator: ComputeEmulator, before: Counter[str]) -> Counter[str]:
    return emulator.requests - before


def make(services: Services, **options: Any) -> ClusterSecrets:
    return ClusterSecrets(services, "grid", "3f9a61c2d4e5f607", **options)


def end_of(secret: dict[str, Any]) -> datetime:
    return datetime.fromisoformat(str(secret["expireTime"]).replace("Z", "+00:00"))


async def test_there_is_one_for_each_role(services: Services) -> None:
    secrets = make(services)
    await secrets.create(PLAN)
    found = {each["name"].rpartition("/")[2]: each for each in await look(services)}
    assert set(found) == {"grid-3f9a61c2-scheduler", "grid-3f9a61c2-worker"}
    for name, each in found.items():
        assert each["labels"] == PLAN.labels
        # Google deletes it, whatever happens to everybody else: soon, if there is no machine.
        assert timedelta(0) < end_of(each) - datetime.now(timezone.utc) <= timedelta(minutes=12)
        assert each["replication"] == {"userManaged": {"replicas": [{"location": "us-central1"}]}}
        path = f"/v1/projects/{PROJECT}/secrets/{name}"
        policy = await services.call("secretmanager", "GET", f"{path}:getIamPolicy")
        assert policy["bindings"] == [
            {
                "role": "roles/secretmanager.secretAccessor",
                "members": ["serviceAccount:robot@local-project.iam.gserviceaccount.com"],
            }
        ]
        kept = await services.call("secretmanager", "GET", f"{path}/versions/1:access")
        role = name.rpartition("-")[2]
        assert json.loads(base64.b64decode(kept["payload"]["data"])) == {
            "ca": "ca",
            "cert": "cert",
            "key": ROLES[role].key,  # type: ignore[index]
        }
    await secrets.prolong()
    # Not before the cluster ends.
    for each in await look(services):
        assert timedelta(0) < end_of(each) - END <= timedelta(hours=1)
    await secrets.delete()
    assert await look(services) == []
    await secrets.close()


async def test_what_was_never_made_is_not_deleted(
    emulator: ComputeEmulator, services: Services
) -> None:
    before = emulator.requests
    secrets = make(services)
    await secrets.delete()
    secrets.delete_now()
    assert not asked(emulator, before)


async def test_whoever_ends_a_cluster_of_others_deletes_them(services: Services) -> None:
    first = make(services)
    await first.create(PLAN)
    await make(services, exist=True).delete()
    assert await look(services) == []
    # Whom nobody told deletes nothing twice in vain.
    await first.delete()


@pytest.mark.parametrize("method", [CREATE, ADD, POLICY])
async def test_what_fails_half_way_is_deleted(
    emulator: ComputeEmulator, services: Services, method: str
) -> None:
    emulator.faults.add(Fault(method, status=403, reason="forbidden"))
    secrets = make(services)
    with pytest.raises(PermissionDenied, match="secret"):
        await secrets.create(PLAN)
    await secrets.delete()
    assert await look(services) == []
    assert not emulator.faults.unused()


async def test_a_lost_answer_does_no_harm(emulator: ComputeEmulator, services: Services) -> None:
    for method in (CREATE, ADD, POLICY):
        emulator.faults.add(Fault(method, drop="after"))
    secrets = make(services)
    await secrets.create(PLAN)
    assert len(await look(services)) == 2
    await secrets.delete()
    assert not emulator.faults.unused()


async def test_a_request_on_its_way_is_not_overtaken(
    emulator: ComputeEmulator, services: Services
) -> None:
    emulator.faults.add(Fault(CREATE, delay=0.5, times=2))
    secrets = make(services)
    before = emulator.requests
    creating = asyncio.create_task(secrets.create(PLAN))
    await until(lambda: services._under_way)
    creating.cancel()
    with pytest.raises(asyncio.CancelledError):
        await creating
    await secrets.delete()
    assert await look(services) == []
    assert asked(emulator, before)[CREATE]


async def test_what_cannot_be_deleted_is_told(
    emulator: ComputeEmulator, services: Services, caplog: pytest.LogCaptureFixture
) -> None:
    secrets = make(services)
    await secrets.create(PLAN)
    emulator.faults.add(Fault(DELETE, status=403, reason="forbidden", times=2))
    await secrets.delete()
    assert "gcloud secrets delete grid-3f9a61c2-worker --project local-project" in caplog.text
    await secrets.delete()
    assert await look(services) == []


# -- with a cluster -------------------------------------------------------------------------------


def wanted(**more: Any) -> dict[str, Any]:
    return {
        "security": True,
        "secrets": "secret-manager",
        "service_account": "default",
        "n_workers": 0,
        **more,
    }


def test_machines_need_an_account_that_reaches_them() -> None:
    with pytest.raises(SettingsError, match="service_account") as caught:
        Settings.load(zone="us-central1-a", secrets="secret-manager")
    assert caught.value.key == "service_account"
    with pytest.raises(SettingsError, match="cloud-platform") as caught:
        Settings.load(
            zone="us-central1-a",
            secrets="secret-manager",
            service_account="default",
            scopes=["compute"],
        )
    assert caught.value.key == "scopes"
    # Without certificates there is nothing to keep.
    Settings.load(zone="us-central1-a", secrets="secret-manager", security=False)


async def test_a_cluster_makes_them_first_and_removes_them_last(
    process_emulator: ComputeEmulator,
) -> None:
    services = Services(
        PROJECT, credentials=AnonymousCredentials(), endpoint=process_emulator.endpoint
    )
    before = process_emulator.requests
    async with services:
        async with cluster_on(process_emulator, **wanted(n_workers=2)) as cluster:
            await cluster.scale(2)
            found = await look(services)
            assert len(found) == 2
            identity = cluster._ready.blueprint.identity
            assert all(each["labels"]["dask-gce-id"] == identity for each in found)
            for machine in process_emulator.instances():
                items = {each["key"]: each["value"] for each in machine["metadata"]["items"]}
                assert not SECRET_ITEMS & items.keys()
                assert items["dask-gce-secrets"].startswith(f"tls=projects/{PROJECT}/secrets/")
                assert machine["creationTimestamp"]
        assert await look(services) == []
    made = asked(process_emulator, before)
    # However many machines there are.
    assert {made[each] for each in (CREATE, ADD, POLICY, DELETE)} == {2}
    assert not made["compute.instances.setMetadata"]


async def test_a_cluster_that_fails_leaves_none(
    emulator: ComputeEmulator, services: Services
) -> None:
    emulator.faults.add(
        Fault("compute.instances.insert", status=400, reason="invalid", message="Invalid value.")
    )
    with pytest.raises(GCEError, match="Invalid value"):
        await cluster_on(emulator, **wanted())
    assert await look(services) == []
    assert asked(emulator, Counter())[CREATE] == 2


async def test_a_cluster_whose_secrets_are_refused_makes_no_machine(
    emulator: ComputeEmulator, services: Services
) -> None:
    emulator.faults.add(Fault(CREATE, status=403, reason="forbidden", times=2))
    with pytest.raises(PermissionDenied):
        await cluster_on(emulator, **wanted())
    assert not emulator.requests["compute.instances.insert"]
    assert await look(services) == []


async def test_a_project_without_a_default_account_is_told_what_to_do(
    emulator: ComputeEmulator, services: Services, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def without(compute: Compute) -> dict[str, Any]:
        return {"name": compute.project}

    monkeypatch.setattr(Compute, "get_project", without)
    with pytest.raises(SettingsError, match="gcloud iam service-accounts list") as caught:
        await cluster_on(emulator, **wanted())
    assert caught.value.key == "service_account"
    assert not emulator.requests["compute.instances.insert"]
    assert await look(services) == []


async def test_a_start_that_is_interrupted_leaves_none(
    emulator: ComputeEmulator, services: Services
) -> None:
    starting = asyncio.ensure_future(_start(cluster_on(emulator, **wanted())))
    await until(lambda: emulator.requests["compute.instances.insert"])
    assert len(await look(services)) == 2
    starting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await starting
    assert await look(services) == []


async def _start(cluster: GCECluster) -> None:
    await cluster


def test_an_interpreter_that_ends_leaves_none(
    process_emulator: ComputeEmulator,
) -> None:
    services = Services(
        PROJECT, credentials=AnonymousCredentials(), endpoint=process_emulator.endpoint
    )
    run_python(
        """
        import logging, os, sys
        from distributed.deploy.spec import SpecCluster
        from dask_gce import GCECluster
        cluster = GCECluster(
            api_endpoint=sys.argv[1], machine_type="e2-small", n_workers=0, quiet=True,
            secrets="secret-manager", service_account="default", silence_logs=logging.CRITICAL,
        )
        # Nobody closes it.
        """,
        process_emulator.endpoint,
    )
    assert listed(services) == []
    assert process_emulator.requests[CREATE] == 2
    services.close_now()
