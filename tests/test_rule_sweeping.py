"""Firewall rules that nobody needs go, and none that somebody may need."""

from __future__ import annotations

from datetime import timedelta

import pytest
from clusters import until
from fleets import OTHER_ZONE, QUICK, Cloud
from records import NOON, compute_of, insert, labels_of, machine, record

from dask_gce import removal, tags
from dask_gce.emulator import Fault
from dask_gce.errors import GCEError
from dask_gce.inventory import Inventory, delete_cluster, list_clusters
from dask_gce.reach.admission import Rule
from dask_gce.reach.firewall_rules import Mark, Network, build_rule
from dask_gce.reach.own_rules import OwnRule, list_own_rules
from dask_gce.rule_sweeping import delete_orphaned_rules, find_orphaned_rules, list_rules

LIST, DELETE = "compute.firewalls.list", "compute.firewalls.delete"
IDENTITY, OTHER = "a" * 32, "b" * 32
HOUR = timedelta(hours=1)
FORBIDDEN = {"status": 403, "reason": "forbidden", "message": "You may not."}


def state_of(mark):
    """Judge marks that say what they are."""
    return mark or "unknown"


def own(
    suffix="",
    *,
    age=2 * HOUR,
    client="",
    owner="ada",
    expires=None,
    purpose="clients",
    declared="",
):
    mark = Mark("grid", IDENTITY, owner, client, expires, declared)
    name = tags.rule_name("grid", IDENTITY, purpose, suffix)
    return OwnRule(Rule(name, created=NOON - age), mark, "p")


def reasons(*rules, clusters=(), unreachable=(), everybody=True, **more):
    there = Inventory("p", tuple(clusters), frozenset(unreachable))
    found = find_orphaned_rules(
        rules, there, now=NOON, everybody=everybody, client_state=state_of, **more
    )
    return [each.reason for each in found]


# -- which ----------------------------------------------------------------------------------------


def test_a_rule_whose_cluster_has_no_machines_is_left_over_after_a_while():
    assert reasons(own()) == ["is of cluster grid, which has no machines"]
    # Rules come first, and machines may take their time.
    assert not reasons(own(age=HOUR / 4))
    assert not reasons(OwnRule(Rule("r"), Mark("grid", IDENTITY), "p"))


@pytest.mark.parametrize("client", ["unknown", "detached"])
def test_whose_process_is_not_known_to_have_ended_is_given_time(client):
    assert not reasons(own(client=client, age=HOUR / 5))
    assert reasons(own(client=client))
    assert reasons(own(client=client, age=HOUR / 5, expires=int(NOON.timestamp()))) == [
        "is of a cluster that was to end"
    ]
    assert not reasons(own(client=client, age=HOUR / 5, expires=int(NOON.timestamp()) + 1))


def test_what_a_dead_process_made_is_left_over_at_once():
    assert "has ended" in reasons(own(client="gone", age=HOUR / 60))[0]


def test_what_a_living_process_made_is_never():
    expired = int(NOON.timestamp()) - 1
    assert not reasons(own(client="alive", age=100 * HOUR, expires=expired))


def test_what_something_declares_is_never():
    assert reasons(own(client="gone"))
    assert not reasons(own(client="gone", declared="terraform"))


@pytest.mark.parametrize("purpose", ["clients", "machines"])
@pytest.mark.parametrize("client", ["gone", "unknown"])
def test_a_cluster_with_machines_needs_its_rules(purpose, client):
    there = record(machine("head", "scheduler"), identity=IDENTITY)
    assert not reasons(own(purpose=purpose, client=client), clusters=[there])
    assert not reasons(own("v6", client=client), clusters=[there])
    another = record(machine("head", "scheduler"), identity=OTHER)
    assert reasons(own(purpose=purpose, client=client), clusters=[another])


def test_who_had_joined_and_has_ended_needs_none():
    there = record(machine("head", "scheduler"), identity=IDENTITY)
    for suffix in ("7c2e", "7c2e-v6"):
        assert "let in a process" in reasons(own(suffix, client="gone"), clusters=[there])[0]
        assert not reasons(own(suffix, client="unknown"), clusters=[there])
        assert not reasons(own(suffix, client="alive"), clusters=[there])


def test_while_a_zone_does_not_answer_none_is():
    assert not reasons(own(), own(client="gone"), unreachable=[OTHER_ZONE])


def test_everybodys_must_be_said(monkeypatch):
    monkeypatch.setenv("LOGNAME", "Ada")
    rules = own(), own(owner="bob"), own(owner="")
    assert len(reasons(*rules)) == 3
    assert len(reasons(*rules, everybody=False)) == 1
    assert len(reasons(*rules, everybody=False, owner="Bob")) == 1
    assert len(reasons(*rules, everybody=False, owner="")) == 0


# -- in a cloud -----------------------------------------------------------------------------------


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


async def make_rule(compute, cluster="grid", identity=IDENTITY, suffix="", **mark):
    name = tags.rule_name(cluster, identity, "clients", suffix)
    body = build_rule(
        name,
        Network("local-project", "default"),
        Mark(cluster, identity, **mark),
        ranges=["203.0.113.7"],
        target_tag=tags.scheduler_tag(cluster, identity),
        ports=[(8786, 8786)],
    )
    await compute.wait_operation(await compute.insert_firewall(body), 60)
    return name


async def names_of(compute):
    return [each.rule.name for each in await list_own_rules(compute)]


async def test_left_over_rules_go_and_others_stay(cloud, compute):
    gone = await make_rule(compute, owner="ada", expires=1)
    stays = await make_rule(compute, "other", OTHER, owner="ada")
    theirs = {"name": "theirs", "network": "global/networks/default"}
    await compute.insert_firewall({**theirs, "allowed": [{"IPProtocol": "icmp"}]})
    rules = await list_rules(compute)
    assert [each.rule.name for each in rules] == [gone, stays]
    orphans = find_orphaned_rules(rules, await list_clusters(compute), owner="ada")
    assert [each.to_json() for each in orphans] == [
        {
            "name": gone,
            "project": "local-project",
            "cluster": "grid",
            "id": IDENTITY,
            "owner": "ada",
            "reason": "is of a cluster that was to end",
        }
    ]
    await delete_orphaned_rules(compute, orphans)
    await until(lambda: not any("operation" in each for each in cloud.leftovers()))
    assert await names_of(compute) == [stays]
    # Again, when it is gone already.
    await delete_orphaned_rules(compute, orphans)


async def test_what_cannot_be_deleted_is_told(cloud, compute):
    name = await make_rule(compute, expires=1)
    orphans = find_orphaned_rules(
        await list_rules(compute), await list_clusters(compute), everybody=True
    )
    cloud.faults.add(Fault(DELETE, **FORBIDDEN))
    with pytest.raises(GCEError, match=f"gcloud compute firewall-rules delete {name}"):
        await delete_orphaned_rules(compute, orphans)


async def test_who_may_not_look_sees_none(cloud, compute):
    await make_rule(compute, expires=1)
    cloud.faults.add(Fault(LIST, **FORBIDDEN))
    assert await list_rules(compute) == []


async def test_whoever_deletes_a_cluster_deletes_its_rules(cloud, compute):
    await make_rule(compute)
    await make_rule(compute, suffix="7c2e", client="somebody-else")
    other = await make_rule(compute, identity=OTHER)
    await insert(cloud, compute, "head", labels_of("grid", "scheduler", IDENTITY))
    (found,) = (await list_clusters(compute)).clusters
    assert found.rule_projects == ("local-project",)
    await delete_cluster(compute, found)
    await until(lambda: not any("operation" in each for each in cloud.leftovers()))
    assert await names_of(compute) == [other]
    assert cloud.requests[LIST] == 2


async def test_machines_go_also_where_rules_do_not(cloud, compute):
    name = await make_rule(compute)
    await insert(cloud, compute, "head", labels_of("grid", "scheduler", IDENTITY))
    (found,) = (await list_clusters(compute)).clusters
    cloud.faults.add(Fault(DELETE, **FORBIDDEN))
    with pytest.raises(GCEError, match=name):
        await delete_cluster(compute, found)
    assert cloud.alive() == set()
    assert await names_of(compute) == [name]
