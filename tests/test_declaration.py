"""A plan is what a start does: the same requests, and none of them made."""

from __future__ import annotations

import asyncio
import json
import pickle
import re
from collections import Counter
from typing import Any

import pytest
from clusters import cluster_on, until
from command_line import run
from networks import make_network

from dask_gce import GCECluster
from dask_gce.cost.charges import PriceBook, charge_of
from dask_gce.declaration.cluster_plan import ClusterPlan
from dask_gce.emulator import ComputeEmulator, Exchange, Timings
from dask_gce.errors import GCEError, SettingsError

T4 = "nvidia-tesla-t4"
A, B = "us-central1-a", "us-central1-b"

#: What differs between two clusters of the same name and settings, and from one second to the next.
RANDOM = (
    (re.compile(r"\bgrid-(scheduler|worker)-[0-9a-f]+"), r"grid-\1-SUFFIX"),
    (re.compile(r"\b[0-9a-f]{32}\b"), "IDENTITY"),
    # A filter puts quotes around one that looks like a number.
    (re.compile(r'\\+"IDENTITY\\+"'), "IDENTITY"),
    # Its beginning, in the names of rules and secrets.
    (re.compile(r"-[0-9a-f]{8}\b"), "-SHORT"),
    (re.compile(r"\b1[0-9]{9}\b"), "MOMENT"),
    (re.compile(r"\b20[0-9]{2}-[0-9]{2}-[0-9]{2}T[0-9:]{8}Z"), "MOMENT"),
)

VARIANTS: dict[str, dict[str, Any]] = {
    "one worker": {"n_workers": 1},
    "mixed": {"n_workers": 5, "spot": True, "min_on_demand": 2},
    "two zones": {"n_workers": 3, "zone": [B, A], "allow_cross_zone": True},
    "single node": {
        "single_node": True,
        "workers_on_scheduler": 2,
        "machine_type": "e2-standard-4",
    },
    "several on a machine": {"n_workers": 6, "processes": 2, "machine_type": "e2-standard-4"},
    "private": {"n_workers": 2, "external_ip": False, "connect": "iap"},
    "GPUs": {
        "n_workers": 2,
        "scheduler_machine_type": "e2-small",
        "worker_machine_type": "n1-standard-4",
        "worker_accelerator_type": T4,
        "worker_accelerator_count": 1,
        "worker_class": "distributed.Nanny",
    },
    "secrets": {
        "n_workers": 2,
        "secrets": "secret-manager",
        "service_account": "default",
        "machine_type": "e2-standard-2",
    },
    # A bulk insert does not know this field.
    "one by one": {"n_workers": 3, "instance_overrides": {"deletionProtection": False}},
    "without rules": {"n_workers": 2, "firewall": False},
    "at most": {"n_workers": 4, "max_workers": 4, "max_lifetime": float("inf")},
    "environment": {"n_workers": 2, "env_vars": {"A": "it's $HOME"}, "labels": {"team": "blue"}},
}


def mutations(log: list[Exchange]) -> list[Exchange]:
    """Return the exchanges that make something, as a plan has them."""
    return [
        each
        for each in log
        if (
            each.method_id
            in (
                "compute.instances.insert",
                "compute.instances.bulkInsert",
                "compute.firewalls.insert",
            )
            or each.method_id.startswith("secretmanager.")
        )
        and each.verb in ("POST", "PATCH")
    ]


def level(method: str, path: str, query: dict[str, str], body: Any) -> str:
    """Return a request as text, without what is random."""
    wanted = {key: value for key, value in query.items() if key in ("secretId", "updateMask")}
    body = json.loads(json.dumps(body))
    fields = body.get("instanceProperties", body)
    for item in fields.get("metadata", {}).get("items", ()):
        if item["key"] in ("dask-gce-tls", "dask-gce-local-tls"):
            assert set(json.loads(item["value"])) == {"ca", "cert", "key"}
            item["value"] = "SECRET"
    if "payload" in body:
        body["payload"] = "SECRET"
    limit = fields.get("scheduling", {}).get("maxRunDuration")
    if limit is not None:
        limit["seconds"] = "LEFT"
    if "perInstanceProperties" in body:
        body["perInstanceProperties"] = sorted(
            RANDOM[0][0].sub(RANDOM[0][1], name) for name in body["perInstanceProperties"]
        )
    text = json.dumps([method, path, wanted, body], sort_keys=True)
    for pattern, word in RANDOM:
        text = pattern.sub(word, text)
    return text


def levelled(plan: ClusterPlan) -> Counter[str]:
    return Counter(
        level(each.method, each.path, dict(each.query), each.body) for each in plan.requests
    )


@pytest.fixture
def log() -> list[Exchange]:
    return []


@pytest.fixture
def watched(log):
    """Return a local Compute Engine whose requests are written down."""
    quick = Timings(pending=0, creating=0, provisioning=0.01, staging=0.01, deleting=0)
    with ComputeEmulator("paper", timings=quick, observers=[log.append]) as emulator:
        yield emulator


@pytest.mark.parametrize("variant", VARIANTS)
async def test_a_plan_has_the_requests_of_a_start(watched, log, variant):
    settings = {
        "api_endpoint": watched.endpoint,
        "machine_type": "e2-small",
        "name": "grid",
        **VARIANTS[variant],
    }
    if "worker_machine_type" in settings:
        del settings["machine_type"]
    plan = await GCECluster.plan(asynchronous=True, **settings)
    assert plan.feasible, plan.blockers
    assert not mutations(log) and {each.verb for each in log} == {"GET"}
    cluster = GCECluster(asynchronous=True, quiet=True, **settings)
    starting = asyncio.ensure_future(cluster._start())
    try:
        # The scheduler's machine is paper, so that the start comes this far and no further.
        await until(lambda: starting.done() or len(mutations(log)) >= len(plan.requests))
        assert not starting.done(), starting
        asked = Counter(
            level(each.verb, each.path, dict(each.query), each.request) for each in mutations(log)
        )
    finally:
        await cluster.close()
        await asyncio.gather(starting, return_exceptions=True)
    planned = levelled(plan)
    assert planned - asked == Counter() and asked - planned == Counter()
    if not VARIANTS[variant].get("secrets"):
        # In their order, as far as they are not made side by side.
        order = [each.path.rpartition("/")[2] for each in plan.requests]
        assert order == sorted(order, key=lambda one: one == "firewalls")
    wanted = VARIANTS[variant].get("n_workers", 2)
    assert sum(each.workers for each in plan.machines) >= wanted


async def test_no_private_key_is_in_a_plan(emulator):
    for secrets in ("metadata", "secret-manager"):
        plan = await GCECluster.plan(
            asynchronous=True,
            n_workers=2,
            api_endpoint=emulator.endpoint,
            secrets=secrets,
            service_account="default",
            machine_type="e2-standard-2",
        )
        text = json.dumps(plan.to_json())
        assert "BEGIN" not in text and "<private key of scheduler>" in text
        assert "<private key of worker>" in text
        for shown in (str(plan), repr(plan), plan._repr_html_()):
            assert "private key" not in shown


def test_a_plan_for_people(emulator):
    # With a loop or without one.
    plan = GCECluster.plan(
        n_workers=5,
        spot=True,
        min_on_demand=2,
        machine_type="e2-standard-4",
        name="grid",
        api_endpoint=emulator.endpoint,
    )
    text = str(plan)
    assert "nothing has been created" in text and not emulator.leftovers()
    for part in ("2 x worker", "3 x worker", "Spot e2-standard-4", "16.00 GiB", "CPUS", "external"):
        assert part in text
        assert part in plan._repr_html_()
    assert "idle_timeout" in text and "$" in text
    assert [each.role for each in plan.machines] == ["scheduler", *["worker"] * 5]
    assert [each.spot for each in plan.machines] == [False, False, False, True, True, True]
    assert plan.estimate.amount == pytest.approx(
        sum(each.hourly.amount or 0 for each in plan.machines)
    )
    # Also those of Spot machines, of which the table that comes with the package knows nothing.
    assert plan.estimate.complete
    quota = {each.metric: each.needed for each in plan.quota}
    assert quota["INSTANCES"] == quota["IN_USE_ADDRESSES"] == 6
    assert (quota["CPUS"], quota["PREEMPTIBLE_CPUS"]) == (12, 12)
    (scheduler,) = [each for each in plan.addresses if each.name]
    assert scheduler.name.startswith("grid-scheduler-") and scheduler.name in plan.scheduler_address
    assert plan.startup_script.startswith("#!/bin/bash")
    assert plan.firewall_rules[0].body == plan.requests[-1].body
    assert pickle.loads(pickle.dumps(plan)).to_json() == plan.to_json()  # noqa: S301


def test_what_keeps_a_cluster_from_being_made(emulator):
    where = {"api_endpoint": emulator.endpoint, "machine_type": "e2-standard-4", "n_workers": 5}
    emulator.quota.set("us-central1", "CPUS", 10)
    plan = GCECluster.plan(max_hourly_cost=0.3, **where)
    cost, quota = plan.blockers
    assert "max_hourly_cost" in cost and "CPUS in us-central1: 24 are needed" in quota
    assert not plan.feasible and f"Blocker: {quota}" in str(plan)
    assert [each.metric for each in plan.quota if each.fits is False] == ["CPUS"]
    # Dearer than any place: nothing else is known less of it.
    plan = GCECluster.plan(max_hourly_cost=0.001, **where)
    assert "max_hourly_cost" in plan.blockers[0] and len(plan.machines) == 6
    with pytest.raises(SettingsError, match="none offers"):
        GCECluster.plan(**{**where, "machine_type": "z9-standard-1"})
    with pytest.raises(SettingsError, match="no_workers"):
        GCECluster.plan(no_workers=1)
    assert not emulator.leftovers()


def test_firewall_rules_count_for_a_quota(emulator):
    where = {"api_endpoint": emulator.endpoint, "machine_type": "e2-small", "n_workers": 1}
    (quota,) = [each for each in GCECluster.plan(**where).quota if each.metric == "FIREWALLS"]
    assert (quota.region, quota.needed, quota.usage, quota.limit) == ("global", 1, 4, 200)
    emulator.quota.set("global", "FIREWALLS", 4)
    plan = GCECluster.plan(**where)
    assert plan.blockers == ("quota FIREWALLS in global: 1 are needed, and 4 of 4 are used",)
    without = GCECluster.plan(firewall=False, **where)
    assert without.feasible and "FIREWALLS" not in {each.metric for each in without.quota}


async def test_firewall_rules_in_another_project_count_there(emulator):
    await make_network(emulator, "shared", "a-host")
    emulator.quota.set("global", "FIREWALLS", 4)
    plan = GCECluster.plan(
        subnetwork="projects/a-host/regions/us-central1/subnetworks/shared",
        machine_type="e2-small",
        n_workers=1,
        api_endpoint=emulator.endpoint,
    )
    assert {each.project for each in plan.firewall_rules} == {"a-host"}
    assert "FIREWALLS" not in {each.metric for each in plan.quota}
    (unknown,) = plan.unknown
    assert "project a-host" in unknown and "FIREWALLS" in unknown


def test_what_may_not_be_looked_at_is_unknown(emulator):
    for permission in ("compute.regions.get", "compute.projects.get", "compute.firewalls.list"):
        emulator.permissions.deny(permission)
    plan = GCECluster.plan(n_workers=2, machine_type="e2-small", api_endpoint=emulator.endpoint)
    assert plan.feasible
    firewall, quotas = plan.unknown
    assert "compute.firewalls.list" in firewall and "compute.regions.get" in quotas
    assert all(each.limit is None and each.fits is None for each in plan.quota)
    assert "unknown" in str(plan)
    # A rule is made where it is not known that there is one.
    assert plan.firewall_rules


def test_what_overrides_change_of_machines_is_unknown(emulator):
    where = {"api_endpoint": emulator.endpoint, "machine_type": "e2-small", "n_workers": 1}
    typed = {"machineType": "zones/us-central1-a/machineTypes/n2-standard-64", "disks": []}
    plan = GCECluster.plan(instance_overrides=typed, **where)
    (unknown,) = plan.unknown
    assert "disks, machineType in instance_overrides" in unknown
    assert f"Unknown: {unknown}" in str(plan) and plan.estimate.amount is None
    assert plan.requests[0].body["machineType"].endswith("n2-standard-64")
    # What makes no other machine of it is nothing to tell of.
    spot = {"scheduling": {"preemptible": True}}
    plan = GCECluster.plan(instance_overrides=spot, **where)
    assert not plan.unknown and all(each.spot for each in plan.machines)
    needed = {each.metric: each.needed for each in plan.quota}
    assert needed["PREEMPTIBLE_CPUS"] == 4 and "CPUS" not in needed


def test_what_is_doubtful_is_told(emulator):
    where = {"api_endpoint": emulator.endpoint, "machine_type": "e2-small"}
    plan = GCECluster.plan(allow_ingress_from=["0.0.0.0/0"], connect="external", **where)
    assert plan.feasible and "the whole Internet" in plan.warnings[0]
    assert f"Warning: {plan.warnings[0]}" in str(plan)
    plan = GCECluster.plan(firewall=False, **where)
    assert not plan.firewall_rules and "firewall = False" in plan.warnings[0]


async def test_the_plan_of_a_cluster(light):
    async with cluster_on(light, n_workers=2, name="grid") as cluster:
        await cluster.wait_for_workers(2)
        names = {each["name"] for each in light.instances()}
        plan = await cluster.plan()
        assert {each.name for each in plan.machines} == names
        cluster.scale(4)
        plan = await cluster.plan()
        assert names < {each.name for each in plan.machines} and len(plan.machines) == 5
        # What Dask's adaptive object takes it for.
        workers = {each.name for each in plan.machines if each.role == "worker"}
        assert cluster.plan == workers and isinstance(cluster.plan, set)
        assert cluster.plan - workers == set() and repr(cluster.plan) == repr(set(cluster.plan))
        assert pickle.loads(pickle.dumps(cluster.plan)) == workers  # noqa: S301
        await cluster.wait_for_workers(4)
    with pytest.raises(GCEError, match="closed"):
        await cluster.plan()


async def test_the_plan_of_a_cluster_that_was_joined(light, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    settings = {"name": "grid", "security": True, "shutdown_on_close": False}
    async with cluster_on(light, n_workers=2, **settings) as cluster:
        await cluster.wait_for_workers(2)
        made = await cluster.plan()
    again = await GCECluster.from_name("grid", asynchronous=True, quiet=True)
    plan = await again.plan()
    await again.shutdown()
    await until(lambda: not light.leftovers())
    # Nobody has the scheduler's key any more, and a start would have one.
    assert levelled(plan) == levelled(made)
    assert plan.firewall_rules == made.firewall_rules
    # Prices may have been read in between.
    assert {(each.name, each.role, each.zone, each.cores) for each in plan.machines} == {
        (each.name, each.role, each.zone, each.cores) for each in made.machines
    }


async def test_the_plan_of_a_cluster_knows_what_spot_machines_cost(light):
    async with cluster_on(light, n_workers=1, spot=True) as cluster:
        await until(lambda: cluster._book.tariffs[0].live)
        # As before that.
        cluster._book = PriceBook()
        assert not cluster._book.price(
            charge_of(next(iter(cluster.workers.values())).spec)
        ).complete
        plan = await cluster.plan()
        assert [each.spot for each in plan.machines] == [False, True]
        assert plan.estimate.complete


async def test_what_is_there_is_not_counted_twice(light, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))

    def counted(plan, metric):
        (one,) = [each for each in plan.quota if each.metric == metric]
        return one.needed, one.there, one.usage

    async with cluster_on(light, n_workers=2, name="grid", shutdown_on_close=False) as cluster:
        await cluster.wait_for_workers(2)
        plan = await cluster.plan()
        cpus, rules = counted(plan, "CPUS")[2], counted(plan, "FIREWALLS")[2]
        # No more than what is used.
        light.quota.set("us-central1", "CPUS", cpus)
        light.quota.set("global", "FIREWALLS", rules)
        plan = await cluster.plan()
        assert plan.feasible, plan.blockers
        assert counted(plan, "CPUS") == (6, 6, cpus)
        assert counted(plan, "FIREWALLS") == (1, 1, rules)
        assert f"{cpus:.0f} of {cpus:.0f} used, 6 by it" in str(plan)
    again = await GCECluster.from_name("grid", asynchronous=True, quiet=True)
    plan = await again.plan()
    assert plan.feasible, plan.blockers
    assert counted(plan, "CPUS") == (6, 6, cpus)
    assert counted(plan, "FIREWALLS") == (1, 1, rules)
    again.scale(4)
    plan = await again.plan()
    assert counted(plan, "CPUS") == (10, 6, cpus)
    (blocker,) = [each for each in plan.blockers if "CPUS in" in each]
    assert blocker.startswith("quota CPUS in us-central1: 4 more are needed")
    await again.shutdown()
    await until(lambda: not light.leftovers())


async def test_a_plan_within_a_running_loop(emulator):
    where = {"api_endpoint": emulator.endpoint, "machine_type": "e2-small"}
    # As in a notebook; and as somebody may have typed who has made a cluster so.
    plan = GCECluster.plan(1, quiet=True, silence_logs=False, create_mode="create", **where)
    assert plan.limits["no_client_timeout"] == 600
    plan = GCECluster.plan(1, shutdown_on_close=False, **where)
    assert plan.limits["no_client_timeout"] == float("inf")


def test_a_plan_of_many_is_short(emulator):
    where = {"api_endpoint": emulator.endpoint, "machine_type": "e2-small"}
    plan = GCECluster.plan(n_workers=1000, **where)
    assert len(plan.machines) == 1001 and plan.requests[1].body["count"] == "1000"
    assert len(str(plan).splitlines()) < 40


async def test_the_plan_of_a_cluster_that_has_not_started(emulator):
    cluster = cluster_on(emulator, n_workers=3)
    plan = await cluster.plan()
    assert len(plan.machines) == 4 and plan.name == cluster.name
    assert not emulator.leftovers()
    await cluster.close()


# -- the command ----------------------------------------------------------------------------------


def test_the_command_shows_a_plan(emulator):
    arguments = ["plan", "grid", "--n-workers", "3", "--machine-type", "e2-small"]
    result = run(emulator, *arguments)
    assert result.exit_code == 0, result.output
    assert "Plan of cluster grid: nothing has been created." in result.stdout
    assert "3 x worker" in result.stdout
    shown = json.loads(run(emulator, *arguments, "--json").stdout)
    assert shown["feasible"] and len(shown["machines"]) == 4
    assert shown["requests"][0]["body"]["name"].startswith("grid-scheduler-")
    # As create makes it, which stays when the command ends.
    assert shown["limits"]["no_client_timeout"] is None
    script = run(emulator, *arguments, "--startup-script").stdout
    assert script == GCECluster.plan(api_endpoint=emulator.endpoint).startup_script
    assert not emulator.leftovers()


def test_the_command_refuses_a_network_that_is_not_there(emulator):
    arguments = ("plan", "--machine-type", "e2-small", "--network")
    result = run(emulator, *arguments, "nope")
    assert result.exit_code == 2 and "network = 'nope'" in result.stderr
    assert "gcloud compute networks list --project local-project" in result.stderr
    # One that has rules is not asked for.
    assert emulator.requests["compute.networks.get"] == 1
    assert run(emulator, *arguments, "default").exit_code == 0
    assert emulator.requests["compute.networks.get"] == 1


def test_the_command_tells_by_its_status_what_cannot_be_made(emulator):
    emulator.quota.set("us-central1", "INSTANCES", 2)
    result = run(emulator, "plan", "--n-workers", "3", "--machine-type", "e2-small")
    assert result.exit_code == 1
    assert "3 x worker" in result.stdout and "INSTANCES" in result.stderr
    result = run(emulator, "plan", "--machine-type", "z9-standard-1")
    assert result.exit_code == 2 and "none offers" in result.stderr
