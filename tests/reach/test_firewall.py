"""A cluster's firewall rules come with it and go with it, over HTTP."""

from __future__ import annotations

import asyncio
import logging
import shlex

import pytest
from clusters import until
from fleets import QUICK, Cloud
from networks import make_network
from records import compute_of

import dask_gce.exit
from dask_gce.emulator import Fault
from dask_gce.errors import (
    AlreadyExists,
    GCEError,
    PermissionDenied,
    QuotaExceeded,
    SettingsError,
    TransportError,
)
from dask_gce.reach.firewall import Firewall
from dask_gce.reach.firewall_needs import LASTING_TAG, Needs
from dask_gce.reach.firewall_rules import Mark, parse_mark
from dask_gce.reach.networks import survey
from dask_gce.reach.own_rules import list_own_rules
from dask_gce.settings import Settings

LIST, INSERT = "compute.firewalls.list", "compute.firewalls.insert"
DELETE = "compute.firewalls.delete"
IDENTITY = "3f9a61c2" + "0" * 24
MARK = Mark("grid", IDENTITY, "ada", "1a-2b-3-4")
CLIENTS, MACHINES = "grid-3f9a61c2-clients", "grid-3f9a61c2-machines"
HERE = ("203.0.113.7",)
FORBIDDEN = {"status": 403, "reason": "forbidden", "message": "You may not."}


@pytest.fixture(autouse=True)
def exit_duties(monkeypatch):
    """Forget at a test's end what it left to be done at the interpreter's: its cloud is gone."""
    monkeypatch.setattr(dask_gce.exit, "_duties", {})


@pytest.fixture
async def cloud():
    async with Cloud(QUICK) as running:
        yield running


@pytest.fixture
async def compute(cloud):
    async with compute_of(cloud) as compute:
        yield compute


async def look(compute, *, clients=HERE, suffix="", **settings):
    """Find out what a cluster with these settings needs."""
    loaded = Settings.load(project="local-project", **settings)
    found = await survey(compute, loaded)
    return Needs(loaded, compute.project, MARK, found, tuple(clients), suffix)


async def firewall_of(compute, **more):
    return Firewall(compute, await look(compute, **more))


async def rules(compute, project=None):
    """Return the rules of clusters that there are."""
    return [each.rule.name for each in await list_own_rules(compute, project=project)]


def operations(cloud):
    """Return what goes on in the cloud."""
    return [each for each in cloud.leftovers() if each.startswith("operation ")]


# -- which rules ----------------------------------------------------------------------------------


async def test_in_the_default_network_only_clients_need_a_rule(cloud, compute):
    firewall = await firewall_of(compute)
    assert cloud.requests[LIST] == 1
    await firewall.create()
    assert firewall.recorded == (CLIENTS,)
    (rule,) = await list_own_rules(compute)
    assert rule.mark == MARK
    assert [str(each) for each in rule.rule.source_ranges] == ["203.0.113.7/32"]
    assert rule.rule.target_tags == {"grid-3f9a61c2-scheduler"}
    assert rule.rule.tcp == ((8786, 8786), (8787, 8787))
    assert "203.0.113.7" in str(firewall.events)
    await firewall.remove()
    await until(lambda: not operations(cloud))
    assert await rules(compute) == []
    assert cloud.requests[DELETE] == 1


async def test_from_inside_the_default_network_nothing_is_made(cloud, compute):
    firewall = await firewall_of(compute, clients=())
    await firewall.create()
    await firewall.remove()
    assert not (cloud.requests[INSERT] or cloud.requests[DELETE])
    assert firewall.explain_missing() == ""


async def test_who_is_let_in_already_needs_no_rule(cloud, compute):
    wide = {
        "name": "wide",
        "network": "global/networks/default",
        "allowed": [{"IPProtocol": "tcp", "ports": ["8000-9000"]}],
        "sourceRanges": ["203.0.113.0/24"],
        "targetTags": ["dask"],
    }
    await compute.insert_firewall(wide)
    assert (await look(compute, network_tags="dask")).missing == ()
    assert [each.purpose for each in (await look(compute)).missing] == ["clients"]
    # The overrides have the last word on tags.
    for override, count in (({"items": ["dask"]}, 0), ({"items": []}, 1), ({}, 0), (None, 1)):
        needs = await look(compute, network_tags="dask", instance_overrides={"tags": override} | {})
        assert len(needs.missing) == count, override


async def test_a_network_without_rules_needs_one_for_its_machines_too(cloud, compute):
    await make_network(cloud)
    firewall = await firewall_of(compute, subnetwork="inner")
    await firewall.create()
    clients, machines = await list_own_rules(compute)
    assert (clients.rule.name, machines.rule.name) == (CLIENTS, MACHINES)
    assert clients.rule.network == machines.rule.network == "inner"
    assert machines.rule.source_tags == machines.rule.target_tags == {"grid-3f9a61c2"}
    assert machines.rule.tcp == ((1024, 65_535),)
    # Another cluster's tags are none of ours.
    assert len((await look(compute, subnetwork="inner")).missing) == 0
    other = Mark("other", "b" * 32)
    found = (await look(compute, subnetwork="inner")).survey
    needs = Needs(Settings.load(project="p"), "p", other, found, HERE)
    assert len(needs.missing) == 2
    await firewall.remove()


async def test_a_network_whose_machines_are_let_in_to_one_another_needs_none(cloud, compute):
    inner = {
        "name": "inner-allow",
        "allowed": [{"IPProtocol": "all"}],
        "sourceRanges": ["10.7.0.0/16"],
    }
    await make_network(cloud, "inner", "local-project", inner)
    assert (await look(compute, clients=(), subnetwork="inner")).missing == ()


async def test_ports_are_those_of_the_settings(compute):
    needs = await look(compute, scheduler_port=700, dashboard_port=9999)
    assert [each.ports for each in needs] == [
        ((700, 700), (9999, 9999)),
        ((700, 700), (1024, 65_535)),
    ]


async def test_addresses_of_both_versions_take_two_rules(cloud, compute):
    firewall = await firewall_of(compute, clients=["203.0.113.7", "2001:db8::/32", "10.0.0.0/8"])
    await firewall.create()
    assert await rules(compute) == [CLIENTS, f"{CLIENTS}-v6"]
    await firewall.remove()


async def test_a_subnetwork_that_is_none_is_told(compute):
    with pytest.raises(SettingsError, match="has none of this name in us-central1"):
        await look(compute, subnetwork="nowhere")


async def test_a_shared_network_has_its_rules_in_the_host_project(cloud, compute):
    await make_network(cloud, "shared", "a-host")
    path = "projects/a-host/regions/us-central1/subnetworks/shared"
    firewall = await firewall_of(compute, subnetwork=path)
    await firewall.create()
    assert await rules(compute) == []
    assert await rules(compute, "a-host") == [CLIENTS, MACHINES]
    # By another process too, which has nothing but the list.
    other = await firewall_of(compute, subnetwork=path)
    await other.remove(everybodys=True)
    await until(lambda: not operations(cloud))
    assert await rules(compute, "a-host") == []
    await firewall.remove()


# -- refusals -------------------------------------------------------------------------------------


async def test_who_may_not_make_rules_is_told_the_command(cloud, compute):
    cloud.faults.add(Fault(INSERT, **FORBIDDEN))
    firewall = await firewall_of(compute)
    with pytest.raises(PermissionDenied, match="firewall=False") as caught:
        await firewall.create()
    (command,) = [
        line for line in str(caught.value).splitlines() if line.startswith("gcloud compute fire")
    ]
    words = shlex.split(command)
    assert words[:5] == ["gcloud", "compute", "firewall-rules", "create", "dask-gce-clients"]
    assert words[words.index("--source-ranges") + 1] == "203.0.113.7/32"
    assert words[words.index("--allow") + 1] == "tcp:8786,tcp:8787"
    assert words[words.index("--target-tags") + 1] == LASTING_TAG
    assert f"network_tags=['{LASTING_TAG}']" in str(caught.value)
    # There is nothing to remove, and nobody asks.
    await firewall.remove()
    assert not cloud.requests[DELETE]


async def test_the_command_lets_in_what_it_should(cloud, compute):
    await make_network(cloud)
    needs = await look(compute, subnetwork="inner")
    network = needs.survey.network
    for need in needs.missing:
        body = needs._body(need, network, f"by-hand-{need.purpose}", LASTING_TAG)
        await compute.insert_firewall(body)
    assert (await look(compute, subnetwork="inner", network_tags=LASTING_TAG)).missing == ()


async def test_of_a_shared_network_the_host_project_is_told(cloud, compute):
    await make_network(cloud, "shared", "a-host")
    cloud.faults.add(Fault(INSERT, **FORBIDDEN, times=2))
    path = "projects/a-host/regions/us-central1/subnetworks/shared"
    with pytest.raises(PermissionDenied, match="shared by project a-host") as caught:
        await (await firewall_of(compute, subnetwork=path)).create()
    assert "--project a-host --network shared" in str(caught.value)


async def test_a_quota_that_is_used_up_is_told(cloud, compute):
    cloud.faults.add(Fault(INSERT, status=403, reason="quotaExceeded", message="FIREWALLS."))
    with pytest.raises(QuotaExceeded, match="dask gce sweep --delete --project local-project"):
        await (await firewall_of(compute)).create()


async def test_a_project_with_as_many_rules_as_it_may_have_gets_no_more(cloud, compute):
    # Those that the default network brings are four.
    cloud.quota.set("global", "FIREWALLS", 4)
    with pytest.raises(QuotaExceeded, match="a quota of them") as caught:
        await (await firewall_of(compute)).create()
    assert "Limit: 4.0 globally" in str(caught.value)
    cloud.quota.set("global", "FIREWALLS", 5)
    firewall = await firewall_of(compute)
    await firewall.create()
    assert await rules(compute) == [CLIENTS]
    await firewall.remove()


async def test_a_rule_of_that_name_is_left_alone(cloud, compute):
    taken = {"name": CLIENTS, "network": "global/networks/default"}
    await compute.insert_firewall({**taken, "allowed": [{"IPProtocol": "icmp"}]})
    firewall = await firewall_of(compute)
    with pytest.raises(AlreadyExists, match=f"firewall-rules delete {CLIENTS}"):
        await firewall.create()
    await firewall.remove(everybodys=True)
    assert not cloud.requests[DELETE]


async def test_a_rule_that_does_not_come_to_be_is_told(cloud, compute):
    error = {"code": "QUOTA_EXCEEDED", "message": "Quota 'FIREWALLS' exceeded."}
    cloud.faults.add(Fault(INSERT, operation_errors=[error]))
    firewall = await firewall_of(compute)
    failures = []
    firewall.failed = failures.append
    await firewall.create()
    await until(lambda: failures)
    # By its class a scheduler would look for another zone.
    assert type(failures[0]) is GCEError
    assert "dask gce sweep" in str(failures[0])
    assert firewall.recorded == ()
    await firewall.remove()


async def test_who_may_not_look_may_still_make(cloud, compute):
    cloud.faults.add(Fault(LIST, **FORBIDDEN))
    firewall = await firewall_of(compute)
    await firewall.create()
    # The default network is believed to be as it comes.
    assert firewall.recorded == (CLIENTS,)
    await firewall.remove()
    await until(lambda: not operations(cloud))


async def test_who_may_neither_look_nor_make_is_told(cloud, compute, caplog):
    await make_network(cloud)
    cloud.faults.add(Fault(LIST, **FORBIDDEN), Fault(INSERT, **FORBIDDEN, times=2))
    firewall = await firewall_of(compute, subnetwork="inner")
    with pytest.raises(PermissionDenied, match="dask-gce-clients"):
        await firewall.create()
    # Whether machines reach one another will show: the rule may be there.
    cloud.faults.add(Fault(LIST, **FORBIDDEN), Fault(INSERT, **FORBIDDEN))
    firewall = await firewall_of(compute, subnetwork="inner", clients=())
    await firewall.create()
    assert "no rule could be made" in caplog.text
    assert "may not let in the cluster's machines to one another" in firewall.explain_missing()


async def test_a_subnetwork_that_may_not_be_seen_is_told(cloud, compute):
    await make_network(cloud)
    seeing = Fault("compute.subnetworks.get", **FORBIDDEN)
    cloud.faults.add(seeing)
    with pytest.raises(GCEError, match="network='projects/HOST"):
        await (await firewall_of(compute, subnetwork="inner")).create()
    cloud.faults.add(seeing)
    firewall = await firewall_of(compute, subnetwork="inner", network="inner")
    await firewall.create()
    # In which range they are is not known, so they get a rule.
    assert firewall.recorded == (CLIENTS, MACHINES)
    await firewall.remove()


# -- no rules wanted ------------------------------------------------------------------------------


async def test_without_rules_of_ours_what_is_missing_is_named(cloud, compute):
    await make_network(cloud)
    firewall = await firewall_of(compute, subnetwork="inner", firewall=False)
    await firewall.create()
    await firewall.remove()
    assert not (cloud.requests[INSERT] or cloud.requests[DELETE])
    assert str(firewall.events).count("no rule is seen that lets in") == 2
    text = firewall.explain_missing()
    assert "does not let in 203.0.113.7 to the scheduler (tcp 8786, 8787)" in text
    assert "gcloud compute firewall-rules create dask-gce-machines" in text


async def test_where_nobody_is_known_who_comes_it_is_said_what_it_takes(compute):
    firewall = await firewall_of(compute, clients=(), firewall=False)
    assert "has to let your address in to tcp 8786 and 8787" in firewall.explain_missing()


async def test_a_rule_that_keeps_out_is_named(compute):
    deny = {
        "name": "shut",
        "network": "global/networks/default",
        "denied": [{"IPProtocol": "tcp"}],
        "priority": 900,
    }
    await compute.insert_firewall(deny)
    firewall = await firewall_of(compute)
    await firewall.create()
    assert "Firewall rule shut of network default keeps out" in firewall.explain_missing()
    await firewall.remove()


# -- an end ---------------------------------------------------------------------------------------


async def test_what_was_asked_for_goes_although_nobody_heard_the_answer(cloud, compute):
    cloud.faults.add(Fault(INSERT, delay=0.3))
    firewall = await firewall_of(compute)
    creating = asyncio.ensure_future(firewall.create())
    await until(lambda: cloud.requests[INSERT])
    creating.cancel()
    await asyncio.wait({creating})
    assert firewall.recorded == (CLIENTS,)
    await firewall.remove()
    await until(lambda: not operations(cloud))
    assert await rules(compute) == []
    assert firewall.recorded == ()


@pytest.mark.parametrize("late", [0.0, 0.5])
async def test_what_nobody_heard_the_answer_of_is_asked_for_again(cloud, compute, late):
    if late:
        cloud.faults.add(Fault(INSERT, delay=late))
    firewall = await firewall_of(compute)
    for _ in range(2):
        # As a scheduler does that moves to another zone meanwhile.
        asked = cloud.requests[INSERT]
        creating = asyncio.ensure_future(firewall.create())
        await until(lambda asked=asked: cloud.requests[INSERT] > asked)
        creating.cancel()
        await asyncio.wait({creating})
    await firewall.create()
    assert cloud.requests[INSERT] == 3
    assert firewall.recorded == (CLIENTS,)
    assert await rules(compute) == [CLIENTS]
    await firewall.remove()
    await until(lambda: not operations(cloud))
    assert await rules(compute) == []
    # Another one of that name is another request.
    await firewall.create()
    assert await rules(compute) == [CLIENTS]
    await firewall.remove()
    await until(lambda: not operations(cloud))


async def test_a_rule_that_cannot_be_deleted_is_tried_again(cloud, compute):
    firewall = await firewall_of(compute)
    await firewall.create()
    cloud.faults.add(Fault(DELETE, **FORBIDDEN))
    with pytest.raises(GCEError, match=f"gcloud compute firewall-rules delete {CLIENTS}"):
        await firewall.remove()
    assert firewall.recorded == (CLIENTS,)
    # By two at once, too.
    await asyncio.gather(firewall.remove(), firewall.remove())
    await firewall.remove()
    assert cloud.requests[DELETE] == 3


async def test_somebody_elses_deletion_is_no_error(cloud, compute):
    firewall = await firewall_of(compute)
    await firewall.create()
    await compute.delete_firewall(CLIENTS)
    await until(lambda: not operations(cloud))
    await firewall.remove()


async def test_a_cluster_that_stays_keeps_what_it_needs(cloud, compute):
    firewall = await firewall_of(compute)
    await firewall.create()
    await firewall.leave()
    assert await rules(compute) == [CLIENTS]
    # Not at the interpreter's exit either.
    await asyncio.to_thread(dask_gce.exit._do_all)
    assert await rules(compute) == [CLIENTS]
    await (await firewall_of(compute)).remove(everybodys=True)


@pytest.mark.parametrize("stays", [False, True])
async def test_at_the_interpreters_exit_rules_go_with_the_cluster(cloud, compute, stays):
    firewall = await firewall_of(compute)
    await firewall.create()
    firewall.delete_at_exit = not stays
    await asyncio.to_thread(firewall._end)
    assert firewall.recorded == ((CLIENTS,) if stays else ())
    await firewall.remove()


async def test_what_the_exit_cannot_delete_is_told(cloud, compute, caplog):
    firewall = await firewall_of(compute)
    await firewall.create()
    cloud.faults.add(Fault(DELETE, **FORBIDDEN))
    with caplog.at_level(logging.ERROR):
        await asyncio.to_thread(firewall.remove_now)
    assert f"firewall-rules delete {CLIENTS} --project local-project" in caplog.text
    await firewall.remove()


# -- who joins ------------------------------------------------------------------------------------


async def test_who_joins_from_where_nobody_is_let_in_has_a_rule_until_they_leave(cloud, compute):
    maker = await firewall_of(compute)
    await maker.create()
    await maker.leave()
    assert (await look(compute, suffix="7c2e")).missing == ()
    joiner = await firewall_of(compute, clients=["198.51.100.9"], suffix="7c2e")
    await joiner.create()
    assert await rules(compute) == [CLIENTS, f"{CLIENTS}-7c2e"]
    await joiner.leave()
    await until(lambda: not operations(cloud))
    assert await rules(compute) == [CLIENTS]
    # Whoever ends the cluster ends it for all.
    joiner = await firewall_of(compute, clients=["198.51.100.9"], suffix="7c2e")
    await joiner.create()
    await maker.remove(everybodys=True)
    await until(lambda: not operations(cloud))
    assert await rules(compute) == []
    await joiner.leave()


@pytest.mark.parametrize("source", [HERE[0], "198.51.100.9"])
async def test_who_joins_and_ends_it_at_the_interpreters_exit_ends_it_for_all(
    cloud, compute, source
):
    maker = await firewall_of(compute, clients=[*HERE, "2001:db8::/32"])
    await maker.create()
    await maker.leave()
    made = await rules(compute)
    assert made == [CLIENTS, f"{CLIENTS}-v6"]
    for ends in (False, True):
        # A process of its own, which is over then.
        async with compute_of(cloud) as theirs:
            # From where everybody is let in already, too.
            joiner = await firewall_of(theirs, clients=[source], suffix="7c2e")
            await joiner.create()
            if ends:  # until somebody says so, a cluster is its maker's
                joiner.delete_at_exit = True
            await asyncio.to_thread(dask_gce.exit._do_all)
        await until(lambda: not operations(cloud))
        assert joiner.recorded == ()
        assert await rules(compute) == ([] if ends else made)


async def test_who_joins_and_may_make_no_rule_tries_without(cloud, compute, caplog):
    joiner = await firewall_of(compute, suffix="7c2e")
    cloud.faults.add(Fault(INSERT, **FORBIDDEN))
    await joiner.create()
    assert "no rule could be made" in caplog.text
    assert joiner.recorded == ()


async def test_a_cluster_is_ended_by_whoever_may(cloud, compute, caplog):
    maker = await firewall_of(compute)
    await maker.create()
    await maker.leave()
    ender = await firewall_of(compute)
    # Who may not list knows the names of those that the cluster itself has made.
    cloud.faults.add(Fault(LIST, **FORBIDDEN))
    await ender.remove(everybodys=True)
    await until(lambda: not operations(cloud))
    assert await rules(compute) == []
    # Who may do neither is told how to look.
    cloud.faults.add(Fault(LIST, **FORBIDDEN), Fault(DELETE, **FORBIDDEN, times=3))
    await ender.remove(everybodys=True)
    assert "Firewall rules may be left" in caplog.text
    cloud.faults.add(Fault(LIST, status=400, reason="invalid", message="No.", times=2))
    with pytest.raises(GCEError, match="may be left in project local-project"):
        await ender.remove(everybodys=True)


async def test_what_is_named_like_ours_is_not_ours(compute):
    theirs = {"name": CLIENTS, "network": "global/networks/default", "description": "mine"}
    await compute.insert_firewall({**theirs, "allowed": [{"IPProtocol": "icmp"}]})
    assert parse_mark("mine") is None
    assert await rules(compute) == []


async def test_an_answer_that_never_comes_is_an_error(cloud, compute, monkeypatch):
    firewall = await firewall_of(compute)

    async def silent(*arguments):
        raise TransportError("No answer.")

    with monkeypatch.context() as patch:
        patch.setattr(compute, "insert_firewall", silent)
        with pytest.raises(TransportError):
            await firewall.create()
    # It may be there.
    assert firewall.recorded == (CLIENTS,)
    await firewall.remove()
