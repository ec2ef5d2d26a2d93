"""What nobody needs goes, and nothing that somebody may need."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import time
import urllib.request
from datetime import datetime, timedelta

import pytest
from clusters import cluster_on, until
from fleets import OTHER_ZONE, QUICK, ZONE, Cloud
from records import AGGREGATED, NOON, compute_of, insert, labels_of, machine, record, status_of

import dask_gce
from dask_gce import names, removal
from dask_gce.client import client_mark, current_user
from dask_gce.connection_content import Connection
from dask_gce.connections import delete_connection, save_connection
from dask_gce.emulator import Fault
from dask_gce.errors import GCEError, SettingsError
from dask_gce.inventory import Inventory, list_clusters
from dask_gce.reach.firewall_rules import Mark, render_mark
from dask_gce.reach.own_rules import list_own_rules
from dask_gce.settings import Settings
from dask_gce.sweeping import delete_orphan, find_orphans

MINUTE = timedelta(minutes=1)
HEAD = machine("head", "scheduler")
DELETE = "compute.instances.delete"


def state_of(mark):
    """Judge marks that say what they are."""
    return mark or "unknown"


def reasons(*records, now=NOON, unreachable=(), everybody=True, **more):
    there = Inventory("p", records, frozenset(unreachable))
    orphans = find_orphans(there, now=now, everybody=everybody, client_state=state_of, **more)
    return [each.reason for each in orphans]


# -- who is one -----------------------------------------------------------------------------------


@pytest.mark.parametrize("client", ["gone", "detached", "unknown"])
def test_what_is_past_its_end_is_an_orphan(client):
    cluster = record(HEAD, client=client, expires=NOON)
    assert reasons(cluster, now=NOON) == ["was to end at 2026-11-20 12:00 UTC"]


def test_what_should_have_been_ended_long_ago_is_one_although_its_process_lives():
    cluster = record(HEAD, client="alive", expires=NOON)
    assert not reasons(cluster, now=NOON + 14 * MINUTE)
    assert reasons(cluster, now=NOON + 15 * MINUTE) == ["was to end at 2026-11-20 12:00 UTC"]


@pytest.mark.parametrize("client", ["detached", "unknown"])
def test_what_has_ended_but_could_not_delete_itself_is_one_at_once(client):
    head = machine("head", "scheduler", status="TERMINATED")
    assert "only off" in reasons(record(head, machine(status="STOPPED"), client=client))[0]
    # It may be about to close, or to make a scheduler.
    assert not reasons(record(head, client="alive"))
    assert not reasons(record(head, machine(), client=client))
    assert not reasons(record(machine(status="TERMINATED"), client=client))
    assert not reasons(record(head, client=client), unreachable=[OTHER_ZONE])


@pytest.mark.parametrize(
    "cluster",
    [
        # It could not delete itself, and is started again.
        record(machine("head", "scheduler", status="TERMINATED"), client="detached"),
        record(machine(created=NOON - 60 * MINUTE), client="detached"),
        record(machine(status="TERMINATED", created=NOON - 60 * MINUTE), client="unknown"),
        record(HEAD, client="gone", expires=NOON),
    ],
)
def test_what_something_declares_is_never_one(cluster):
    assert reasons(cluster)
    assert not reasons(dataclasses.replace(cluster, declared="terraform"))


def test_what_powers_off_is_one_like_what_is_off():
    # The power-off leaves the disk.
    assert reasons(record(machine("head", "scheduler", status="STOPPING"), client="gone"))


def test_what_has_time_left_is_none():
    assert not reasons(record(HEAD, client="detached", expires=NOON + MINUTE))
    assert not reasons(record(HEAD, client="unknown", expires=NOON + MINUTE))


def test_what_a_dead_process_made_is_an_orphan():
    assert "has ended" in reasons(record(HEAD, client="gone"))[0]
    # Whatever other zones do not answer.
    assert reasons(record(HEAD, client="gone"), unreachable=[OTHER_ZONE])


def test_what_this_computer_can_connect_to_was_left_on_purpose():
    left = record(HEAD, project="a-project", client="gone")
    assert reasons(left)
    settings = Settings.load(zone=ZONE, security=False).dump()
    for identity, spared in ((left.identity, True), ("b" * 32, False)):
        save_connection(Connection("grid", "a-project", identity, "ada", None, None, settings))
        assert bool(reasons(left)) is not spared
    delete_connection("grid", "a-project")


@pytest.mark.parametrize(
    "cluster",
    [
        record(HEAD, expires=NOON - MINUTE),
        record(machine(created=NOON - 60 * MINUTE)),
        record(machine(status="TERMINATED", created=NOON - 60 * MINUTE)),
    ],
)
def test_what_a_living_process_made_is_never_one(cluster):
    assert reasons(cluster)
    living = record(*cluster.machines, client="alive", expires=cluster.expires)
    assert not reasons(living)


def test_what_was_to_outlive_its_process_is_none_while_it_has_a_scheduler():
    old = machine(created=NOON - 600 * MINUTE)
    assert not reasons(record(HEAD, old, client="detached"))
    # Nobody can use it without, however it came about: its making may have been killed.
    assert reasons(record(old, client="detached"))


@pytest.mark.parametrize(("status", "reason"), [("RUNNING", "scheduler"), ("TERMINATED", "disks")])
def test_machines_without_a_scheduler_or_off_are_orphans_after_a_while(status, reason):
    old = machine("old", status=status, created=NOON - 60 * MINUTE)
    assert reason in reasons(record(old))[0]
    # The youngest counts: as long as machines come, somebody makes them.
    for minutes, found in ((14, False), (16, True)):
        young = machine("young", status=status, created=NOON - minutes * MINUTE)
        assert bool(reasons(record(old, young))) is found
    # The rest may be where no answer comes from.
    assert not reasons(record(old), unreachable=[OTHER_ZONE])


def test_what_is_in_a_zone_that_does_not_answer_is_never_one():
    assert not reasons(record(HEAD, client="gone"), unreachable=[ZONE])


def test_what_runs_or_ends_already_or_was_labelled_by_hand_is_none():
    assert not reasons(record(HEAD, machine()))
    assert not reasons(record(machine(status="STOPPING"), client="alive"))
    assert not reasons(record(machine(status="STOPPING"), client="unknown"))
    assert not reasons(record(HEAD, client="gone", expires=NOON, identity=""))


def test_everybodys_must_be_said(monkeypatch):
    mine, theirs = record(HEAD, client="gone"), record(HEAD, client="gone", owner="bob")
    nobodys = record(HEAD, client="gone", owner="")
    monkeypatch.setenv("LOGNAME", "Ada")

    def count(**more):
        return len(reasons(mine, theirs, nobodys, **{"everybody": False, **more}))

    assert count() == 1
    assert count(owner="Bob") == 1
    assert count(owner="carl") == count(owner="") == 0
    assert count(everybody=True) == 3


# -- sweeping -------------------------------------------------------------------------------------


@pytest.fixture(autouse=True)
def soon(monkeypatch):
    """Look again after milliseconds."""
    monkeypatch.setattr(removal, "FIRST_PAUSE", 0.02)
    monkeypatch.setattr(removal, "DELETE_AGAIN", 0.1)


@pytest.fixture
async def cloud():
    async with Cloud(QUICK) as running:
        yield running


@pytest.fixture
async def compute(cloud):
    async with compute_of(cloud) as compute:
        yield compute


async def sweep(cloud, dry_run=True, **more):
    """Sweep the whole project; return the clusters."""
    where = {"project": "local-project", "api_endpoint": cloud.endpoint}
    swept = await dask_gce.sweep(dry_run=dry_run, asynchronous=True, **where, **more)
    return list(swept.clusters)


def dead_mark():
    """Return the mark of a process of this computer that is no more: ours, begun earlier."""
    return "-".join([*client_mark().split("-")[:3], "1"])


async def orphaned(cloud, compute, name, zone=ZONE, **more):
    more = {"identity": name[-1] * 32, "client": dead_mark(), **more}
    await insert(cloud, compute, f"{name}-vm", labels_of(name, "scheduler", **more), zone)


async def test_nothing_is_deleted_unless_it_is_said(cloud, compute):
    await orphaned(cloud, compute, "grid-1")
    (orphan,) = await sweep(cloud, owner="ada")
    assert orphan.record.name == "grid-1"
    assert json.loads(json.dumps(orphan.to_json()))["reason"] == orphan.reason
    assert cloud.alive() == {"grid-1-vm"}
    assert cloud.requests[AGGREGATED] == 1


async def test_orphans_go_and_others_stay(cloud, compute):
    await orphaned(cloud, compute, "grid-1")
    await orphaned(cloud, compute, "grid-2", OTHER_ZONE, client="detached", expires="1")
    await orphaned(cloud, compute, "live-3", client=client_mark())
    await orphaned(cloud, compute, "theirs-4", owner="bob")
    # Of equal name, but another's.
    more = {"identity": "5" * 32, "client": client_mark()}
    await insert(cloud, compute, "vm-5", labels_of("grid-1", "scheduler", **more))
    swept = await sweep(cloud, owner="ada", dry_run=False)
    assert [each.record.name for each in swept] == ["grid-1", "grid-2"]
    assert cloud.alive() == {"live-3-vm", "theirs-4-vm", "vm-5"}
    assert [each.record.name for each in await sweep(cloud, everybody=True)] == ["theirs-4"]


async def test_what_came_to_life_meanwhile_stays(cloud, compute):
    await orphaned(cloud, compute, "grid-1")
    (orphan,) = await sweep(cloud, everybody=True)
    assert not await delete_orphan(compute, orphan, client_state=lambda mark: "alive")
    assert cloud.alive() == {"grid-1-vm"}
    assert await delete_orphan(compute, orphan)
    assert not cloud.alive()
    assert not await delete_orphan(compute, orphan)


async def test_only_that_one_of_its_name_goes(cloud, compute):
    await orphaned(cloud, compute, "grid", identity="1" * 32)
    more = {"identity": "2" * 32, "client": dead_mark()}
    await insert(cloud, compute, "second", labels_of("grid", "scheduler", **more))
    first, second = await sweep(cloud, everybody=True)
    assert await delete_orphan(compute, second)
    assert cloud.alive() == {first.record.machines[0].name}


async def test_one_that_cannot_be_deleted_does_not_keep_the_others(cloud, compute):
    await orphaned(cloud, compute, "grid-1")
    await orphaned(cloud, compute, "grid-2")
    denied = {"status": 403, "reason": "forbidden", "message": "You may not."}
    cloud.faults.add(Fault(DELETE, **denied, match=lambda name: name == "grid-1-vm", times=1))
    with pytest.raises(GCEError, match="Instances of cluster grid-1 may be left"):
        await sweep(cloud, everybody=True, dry_run=False)
    assert cloud.alive() == {"grid-1-vm"}


async def test_a_user_without_a_name_has_no_clusters(cloud, compute, monkeypatch):
    for module in ("sweeping", "sweeper"):
        monkeypatch.setattr(f"dask_gce.{module}.current_user", lambda: "")
    await orphaned(cloud, compute, "grid-1", owner="")
    assert find_orphans(await list_clusters(compute)) == []
    with pytest.raises(SettingsError, match="everybody"):
        await sweep(cloud)
    assert len(await sweep(cloud, everybody=True)) == 1


# -- all of it ------------------------------------------------------------------------------------


RULE = {"network": "global/networks/default", "allowed": [{"IPProtocol": "tcp"}]}


async def left_behind(compute, client="", identity="7" * 32):
    """Leave a firewall rule of a cluster that is gone."""
    mark = Mark("gone", identity, names.label_value(current_user()), client or dead_mark())
    rule = {**RULE, "name": f"gone-{identity[:8]}-clients", "description": render_mark(mark)}
    await compute.wait_operation(await compute.insert_firewall(rule), 60)


async def test_one_call_sweeps_machines_rules_and_secrets(emulator):
    where = {"project": "local-project", "api_endpoint": emulator.endpoint}
    async with compute_of(emulator) as compute:
        await orphaned(emulator, compute, "grid-1", owner=current_user())
        await left_behind(compute)
        await left_behind(compute, client_mark(), identity="8" * 32)
        # From a thread whose loop runs, as that of a notebook.
        found = dask_gce.sweep(dry_run=True, **where)
        assert [each.record.name for each in found.clusters] == ["grid-1"]
        assert [each.own.rule.name for each in found.rules] == ["gone-77777777-clients"]
        assert "cluster grid-1 was made by a process" in str(found)
        assert status_of(emulator, "grid-1-vm") == "RUNNING"
        swept = await asyncio.to_thread(dask_gce.sweep, **where)
        assert swept.to_json() == found.to_json()
        assert json.dumps(swept.to_json())
        await until(lambda: status_of(emulator, "grid-1-vm") is None)
        await until(lambda: not any("77777777" in each for each in emulator.leftovers()))
        assert not dask_gce.sweep(**where)
        (left,) = await list_own_rules(compute)
        assert left.rule.name == "gone-88888888-clients"


async def test_a_new_cluster_sweeps_when_it_is_to(emulator):
    async with compute_of(emulator) as compute:
        await orphaned(emulator, compute, "grid-1", owner=current_user())
        await orphaned(emulator, compute, "theirs-2", owner="somebody-else")
        await left_behind(compute)

    def there():
        return {each["name"] for each in emulator.instances() if each["status"] == "RUNNING"}

    # Nobody waits for it: the machines of paper run no scheduler.
    cluster = cluster_on(emulator, sweep_on_start=True)
    starting = asyncio.ensure_future(cluster._start())
    await until(lambda: any(each.what == "swept" for each in cluster.events))
    assert "cluster grid-1 was made by" in str(cluster.events)
    assert "grid-1-vm" not in there()
    assert "theirs-2-vm" in there()
    await cluster.close()
    with pytest.raises(GCEError):
        await starting


async def test_a_sweep_that_fails_is_a_warning(emulator, caplog):
    denied = {"status": 403, "reason": "forbidden", "message": "You may not."}
    emulator.faults.add(Fault(AGGREGATED, **denied))
    cluster = cluster_on(emulator, sweep_on_start=True)
    starting = asyncio.ensure_future(cluster._start())
    await until(lambda: "was not swept" in caplog.text)
    assert not starting.done()
    await cluster.close()
    with pytest.raises(GCEError):
        await starting


def fetch(emulator, path):
    """Return what a list request answers."""
    url = f"{emulator.endpoint}{path}"
    with urllib.request.urlopen(url, timeout=60) as answer:  # noqa: S310 - of this computer
        return json.load(answer)


async def test_whatever_a_cluster_makes_says_whose_it_is_and_until_when(emulator):
    cluster = cluster_on(
        emulator,
        name="grid",
        n_workers=1,
        security=True,
        secrets="secret-manager",
        service_account="dask@local-project.iam.gserviceaccount.com",
        max_lifetime="1 hour",
    )
    compute = "/compute/v1/projects/local-project"
    starting = asyncio.ensure_future(cluster._start())
    try:
        await until(lambda: len(emulator.instances()) == 2)
        await until(lambda: emulator.requests["secretmanager.projects.secrets.patch"] == 2)
        rules = []
        while not rules:
            found = await asyncio.to_thread(fetch, emulator, f"{compute}/global/firewalls")
            rules = [each for each in found["items"] if each["name"].startswith("grid-")]
        disks = await asyncio.to_thread(fetch, emulator, f"{compute}/zones/{ZONE}/disks")
        secrets = await asyncio.to_thread(fetch, emulator, "/v1/projects/local-project/secrets")
        marks = [each["labels"] for each in emulator.instances()]
        marks += [each["labels"] for each in disks["items"]]
        marks += [each["labels"] for each in secrets["secrets"]]
        marks += [json.loads(each["description"]) for each in rules]
        assert len(marks) == 2 + 2 + 2 + 1
        for mark in marks:
            assert mark["dask-gce-cluster"] == "grid"
            assert mark["dask-gce-owner"] == names.label_value(current_user())
            assert mark["dask-gce-client"] == client_mark()
            assert 0 < int(mark["dask-gce-expires"]) - time.time() <= 3600
            assert mark["dask-gce-id"] == marks[0]["dask-gce-id"]
        # Google ends secrets and machines by itself.
        for secret in secrets["secrets"]:
            end = datetime.fromisoformat(secret["expireTime"].replace("Z", "+00:00"))
            assert end.timestamp() - time.time() <= 2 * 3600
        for instance in emulator.instances():
            assert instance["scheduling"]["instanceTerminationAction"] == "DELETE"
    finally:
        await cluster.close()
    with pytest.raises(GCEError):
        await starting
    await until(lambda: not emulator.leftovers())
