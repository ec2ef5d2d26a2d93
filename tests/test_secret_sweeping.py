"""Secrets of clusters that are gone are found and deleted; those of others never."""

from __future__ import annotations

import asyncio
import getpass
from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import datetime, timedelta, timezone
from typing import Any

import command_line
import pytest
from google.auth.credentials import AnonymousCredentials
from test_cluster_secrets import PLAN, PROJECT

from dask_gce import names as naming
from dask_gce import orphanhood
from dask_gce.cluster_secrets import ClusterSecrets
from dask_gce.emulator import ComputeEmulator, Fault
from dask_gce.inventory import Inventory
from dask_gce.secret_sweeping import (
    SecretRecord,
    delete_secrets,
    find_orphaned_secrets,
    list_secrets,
)
from dask_gce.services import Services

NOW = datetime(2026, 1, 2, 3, 4, 5, tzinfo=timezone.utc)
OLD, NEW = NOW - timedelta(hours=1), NOW - timedelta(minutes=1)
EMPTY = Inventory(PROJECT, (), frozenset())


@pytest.fixture
async def services(emulator: ComputeEmulator) -> AsyncIterator[Services]:
    async with Services(
        PROJECT, credentials=AnonymousCredentials(), endpoint=emulator.endpoint
    ) as made:
        yield made


def record(**changes: Any) -> SecretRecord:
    fields = {"name": "s", "cluster": "grid", "identity": "1", "owner": "me", "client": "here"}
    return SecretRecord(**{**fields, "created": OLD, **changes})


def orphans(secret: SecretRecord, state: str = "unknown", **more: Any) -> bool:
    options = {"owner": "me", "now": NOW, "client_state": lambda mark: state}
    inventory = more.pop("inventory", EMPTY)
    return find_orphaned_secrets([secret], inventory, **{**options, **more}) == [secret]


def test_what_has_no_machines_for_a_while_is_left_over() -> None:
    assert orphans(record())
    assert orphans(record(), "detached")
    assert not orphans(record(created=NEW))
    # Whoever made it is known to be gone, and nobody else makes machines for it.
    assert orphans(record(created=NEW), "gone")
    assert not orphans(record(), "alive")


def test_what_something_declares_is_never_left_over() -> None:
    assert not orphans(record(declared="terraform"), "gone")


def test_others_secrets_are_theirs() -> None:
    assert not orphans(record(owner="you"))
    assert orphans(record(owner="you"), everybody=True)
    assert not orphans(record(owner=""), owner="")


def test_while_a_zone_does_not_answer_nothing_is_known() -> None:
    assert not orphans(record(), inventory=Inventory(PROJECT, (), frozenset({"us-east1-b"})))


async def forgotten(
    services: Services,
    cluster: str = "grid",
    identity: str = "3f9a61c2d4e5f607",
    owner: str = "me",
) -> None:
    """Make a cluster's secrets that nobody sees to any more."""
    labels = {**naming.cluster_labels(cluster, None, owner), naming.ID_LABEL: identity}
    secrets = ClusterSecrets(services, cluster, identity)
    await secrets.create(replace(PLAN, labels=labels))
    secrets.hand_over()


async def test_they_are_listed_and_deleted(emulator: ComputeEmulator, services: Services) -> None:
    await forgotten(services)
    await services.call(
        "secretmanager",
        "POST",
        f"/v1/projects/{PROJECT}/secrets",
        params={"secretId": "somebody-elses"},
        body={"replication": {"automatic": {}}},
    )
    found = await list_secrets(services)
    assert {each.name for each in found} == {"grid-3f9a61c2-scheduler", "grid-3f9a61c2-worker"}
    assert {each.identity for each in found} == {"3f9a61c2d4e5f607"}
    assert abs(found[0].created - datetime.now(timezone.utc)) < timedelta(hours=1)
    assert await list_secrets(services, "3f9a61c2d4e5f607") == found
    assert await list_secrets(services, "another") == []
    await asyncio.gather(delete_secrets(services, found), delete_secrets(services, found))
    assert await list_secrets(services) == []


async def test_a_project_without_secret_manager_has_none(
    emulator: ComputeEmulator, services: Services
) -> None:
    emulator.faults.add(Fault("secretmanager.projects.secrets.list", status=403))
    assert await list_secrets(services) == []


# -- from a shell ---------------------------------------------------------------------------------


def leave(emulator: ComputeEmulator, cluster: str, identity: str, *, ours: bool = True) -> None:
    """Make secrets that no process sees to any more, as this user or as another."""
    owner = naming.label_value(getpass.getuser()) if ours else "eve"

    async def make_them() -> None:
        async with Services(
            PROJECT, credentials=AnonymousCredentials(), endpoint=emulator.endpoint
        ) as services:
            await forgotten(services, cluster, identity, owner)

    asyncio.run(make_them())


def left(emulator: ComputeEmulator) -> set[str]:
    async def look() -> set[str]:
        async with Services(
            PROJECT, credentials=AnonymousCredentials(), endpoint=emulator.endpoint
        ) as services:
            return {each.cluster for each in await list_secrets(services)}

    return asyncio.run(look())


def test_delete_takes_the_secrets_of_a_cluster_too(emulator: ComputeEmulator) -> None:
    command_line.make(emulator, machine={"role": "scheduler"})
    leave(emulator, "grid", "a" * 32)
    leave(emulator, "grid-2", "b" * 32)
    command_line.succeed(emulator, "delete", "grid", "--yes")
    assert left(emulator) == {"grid-2"}


def test_sweep_finds_what_is_left_and_deletes_it_when_told(
    emulator: ComputeEmulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(orphanhood, "GRACE", timedelta(0))
    command_line.make(
        emulator, machine={"role": "scheduler", "cluster": "runs", "identity": "a" * 32}
    )
    leave(emulator, "runs", "a" * 32)
    leave(emulator, "gone", "b" * 32)
    leave(emulator, "hers", "c" * 32, ours=False)
    told = command_line.run(emulator, "sweep").stderr
    assert "Secret gone-bbbbbbbb-worker is left of cluster gone" in told
    assert "dask gce sweep --delete" in told
    assert "hers" not in told
    assert "runs" not in told
    assert left(emulator) == {"runs", "gone", "hers"}
    swept = command_line.read(emulator, "sweep", "--delete")
    assert set(swept["secrets"]) == {"gone-bbbbbbbb-scheduler", "gone-bbbbbbbb-worker"}
    assert left(emulator) == {"runs", "hers"}
    assert "Deleted 2 secrets" in command_line.succeed(
        emulator, "sweep", "--delete", "--all-owners"
    )
    assert left(emulator) == {"runs"}
