"""Private keys go from the metadata of machines that have read them, and nothing else does."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

import pytest
from clusters import PATIENCE
from fleets import (
    OTHER_ZONE,
    WORKER,
    ZONE,
    Cloud,
    a_fleet,
    gone,
    look_until,
    numbered,
    request,
    running,
    until,
    workers,
)

from dask_gce import scrubbing
from dask_gce.emulator import Fault
from dask_gce.fleet import Fleet
from dask_gce.startup import SECRET_ITEMS

KEY = "-----BEGIN PRIVATE KEY-----"
SECRETIVE = replace(
    WORKER,
    metadata={
        "startup-script": "true",
        "dask-gce-tls": f'{{"key": "{KEY}"}}',
        "dask-gce-local-tls": f'{{"key": "{KEY}"}}',
        "dask-gce-secrets": "tls local-tls",
    },
    overrides={"metadata": {"items": [{"key": "ssh-keys", "value": "me:ssh-ed25519 AAAA me"}]}},
)
STAYS = {"startup-script", "dask-gce-secrets", "ssh-keys"}


@pytest.fixture
async def cloud() -> AsyncIterator[Cloud]:
    async with Cloud() as running:
        yield running
        await gone(running)


@pytest.fixture
async def fleet(cloud: Cloud) -> AsyncIterator[Fleet]:
    async with a_fleet(cloud.endpoint, scrubs=True) as fleet:
        yield fleet


def items(cloud: Cloud, name: str) -> dict[str, str]:
    """Return what is in a machine's metadata."""
    (found,) = (each for each in cloud.instances() if each["name"] == name)
    return {each["key"]: each["value"] for each in found["metadata"]["items"]}


def clean(cloud: Cloud, *names: str) -> bool:
    return all(not SECRET_ITEMS & items(cloud, name).keys() for name in names)


async def ready(fleet: Fleet, *names: str, **changes: Any) -> None:
    """Have machines that run and do what they were made for."""
    await request(fleet, workers(*names, template=SECRETIVE, **changes))
    await running(fleet, *names)
    for name in names:
        fleet.mark_ready(name)


def scrubbed(fleet: Fleet) -> bool:
    assert fleet._scrubbing is not None
    return fleet._scrubbing.due == 0


async def test_keys_go_once_a_machine_is_ready_and_all_else_stays(
    cloud: Cloud, fleet: Fleet
) -> None:
    await request(fleet, workers("vm", "late", template=SECRETIVE))
    await running(fleet, "vm", "late")
    await fleet.look()
    # Nobody takes anything from a machine that may not have read it.
    assert not cloud.asked("instances.setMetadata")
    before = items(cloud, "vm")
    assert before.keys() == STAYS | SECRET_ITEMS
    fleet.mark_ready("vm")
    await look_until(fleet, lambda: scrubbed(fleet))
    assert items(cloud, "vm") == {key: before[key] for key in STAYS}
    assert items(cloud, "late") == before
    assert KEY not in repr(vars(fleet._scrubbing))


async def test_it_costs_a_request_a_machine_and_two_for_each_content(
    cloud: Cloud, fleet: Fleet
) -> None:
    names = numbered(20)
    await ready(fleet, *names)
    looks = len(cloud.asked("instances.list"))
    await look_until(fleet, lambda: scrubbed(fleet))
    assert clean(cloud, *names)
    assert len(cloud.asked("instances.setMetadata")) == 20
    assert len(cloud.asked("instances.get")) == 2
    # The lists are those that watch the machines.
    assert looks > 0
    before = len(cloud.log)
    await fleet.look()
    (look,) = cloud.log[before:]
    assert look.method_id == "compute.instances.list"
    assert "items" not in look.response["items"][0]["metadata"]


async def test_few_go_at_a_time(fleet: Fleet, monkeypatch: pytest.MonkeyPatch) -> None:
    verb = fleet.compute.set_instance_metadata
    now = most = 0

    async def counted(*arguments: Any) -> Any:
        nonlocal now, most
        now += 1
        most = max(most, now)
        try:
            return await verb(*arguments)
        finally:
            now -= 1

    monkeypatch.setattr(fleet.compute, "set_instance_metadata", counted)
    await ready(fleet, *numbered(12))
    await look_until(fleet, lambda: scrubbed(fleet))
    assert most == scrubbing.LANES


async def test_what_somebody_else_changes_meanwhile_is_kept(cloud: Cloud, fleet: Fleet) -> None:
    verb = fleet.compute.set_instance_metadata
    arrived, go = asyncio.Event(), asyncio.Event()

    async def late(*arguments: Any) -> Any:
        arrived.set()
        await go.wait()
        return await verb(*arguments)

    fleet.compute.set_instance_metadata = late  # type: ignore[method-assign]
    await ready(fleet, "vm")
    await look_until(fleet, arrived.is_set)
    found = await fleet.compute.get_instance(ZONE, "vm", "metadata")
    theirs = [*found["metadata"]["items"], {"key": "added", "value": "meanwhile"}]
    change = {"fingerprint": found["metadata"]["fingerprint"], "items": theirs}
    await fleet.compute.wait_operation(await verb(ZONE, "vm", change), 60)
    go.set()
    await look_until(fleet, lambda: scrubbed(fleet))
    assert items(cloud, "vm").keys() == STAYS | {"added"}
    refused = [each.status for each in cloud.asked("instances.setMetadata")]
    assert refused.count(412) == 1


async def test_what_passes_is_tried_again(
    cloud: Cloud, fleet: Fleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scrubbing, "SCRUB_AGAIN", 0.01)
    cloud.faults.add(Fault("compute.instances.setMetadata", status=503, times=3))
    cloud.faults.add(Fault("compute.instances.get", status=503, times=2))
    await ready(fleet, "vm")
    await look_until(fleet, lambda: scrubbed(fleet))
    assert clean(cloud, "vm")
    assert not cloud.faults.unused()


@pytest.mark.parametrize(
    ("refusal", "role"),
    [
        ({"status": 403, "reason": "forbidden"}, "roles/compute.instanceAdmin.v1"),
        # As Compute Engine says it to those who may not act as the machines' account.
        (
            {
                "status": 400,
                "reason": "badRequest",
                "message": "The user does not have access to service account 'a@b.c'. User: 'd'.",
            },
            "--role=roles/iam.serviceAccountUser",
        ),
    ],
    ids=["metadata", "account"],
)
async def test_who_may_not_is_told_once_what_to_do(
    cloud: Cloud,
    fleet: Fleet,
    caplog: pytest.LogCaptureFixture,
    refusal: dict[str, Any],
    role: str,
) -> None:
    cloud.faults.add(Fault("compute.instances.setMetadata", times=100, **refusal))
    await ready(fleet, *numbered(9))
    await look_until(fleet, lambda: scrubbed(fleet))
    fleet.mark_ready("vm-0")
    for _ in range(3):
        await fleet.look()
    assert len(cloud.asked("instances.setMetadata")) <= scrubbing.LANES
    (told,) = (each for each in caplog.records if each.levelno >= logging.WARNING)
    assert "compute.instances.setMetadata" in told.getMessage()
    assert 'secrets="secret-manager"' in told.getMessage()
    assert role in told.getMessage()
    (event,) = (each for each in fleet.events if each.what == "unscrubbed")
    assert "local-project" in str(event)
    cloud.faults.clear()


async def test_a_machine_that_is_deleted_is_forgotten(cloud: Cloud, fleet: Fleet) -> None:
    await ready(fleet, "vm", "other")
    await fleet.delete("vm")
    await look_until(fleet, lambda: scrubbed(fleet))
    assert clean(cloud, "other")


async def test_machines_in_several_zones_are_scrubbed(cloud: Cloud, fleet: Fleet) -> None:
    await ready(fleet, "here")
    await ready(fleet, "there", zone=OTHER_ZONE)
    await look_until(fleet, lambda: scrubbed(fleet))
    assert clean(cloud, "here", "there")


async def test_closing_does_not_wait_for_it(cloud: Cloud) -> None:
    arrived = asyncio.Event()

    async def never(*arguments: Any) -> Any:
        arrived.set()
        await asyncio.Event().wait()

    async with a_fleet(cloud.endpoint, scrubs=True) as fleet:
        fleet.compute.set_instance_metadata = never  # type: ignore[method-assign]
        await ready(fleet, "vm")
        await look_until(fleet, arrived.is_set)
    await until(lambda: not cloud.alive())


async def test_who_leaves_scrubs_first(cloud: Cloud, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scrubbing, "LEAVE_WITHIN", PATIENCE)
    async with a_fleet(cloud.endpoint, scrubs=True) as fleet:
        await ready(fleet, *numbered(5))
        await fleet.leave()
        assert clean(cloud, *numbered(5))


async def test_who_leaves_does_not_wait_for_ever(
    cloud: Cloud, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(scrubbing, "LEAVE_WITHIN", 0.05)
    cloud.faults.add(Fault("compute.instances.setMetadata", status=503, times=1000))
    async with a_fleet(cloud.endpoint, scrubs=True) as fleet:
        await ready(fleet, "vm")
        await fleet.leave()
        assert "1 machines of cluster dask-1 have their keys in their metadata" in caplog.text
        cloud.faults.clear()


async def test_without_keys_nothing_is_asked(cloud: Cloud) -> None:
    async with a_fleet(cloud.endpoint) as fleet:
        await ready(fleet, "vm")
        for _ in range(3):
            await fleet.look()
    assert not cloud.asked("instances.setMetadata")
    assert not cloud.asked("instances.get")
