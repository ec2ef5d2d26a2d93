"""Spot machines: the mix with others, where they are to be had, and what follows when they go."""

from __future__ import annotations

import math
import time

import pytest
from clusters import BULK, INSERT, PATIENCE, cluster_on, until, worker_machines
from distributed import Client
from hypothesis import example, given
from hypothesis import strategies as st

from dask_gce.emulator import Fault
from dask_gce.errors import InstanceLost, WorkersFailed
from dask_gce.mix import Mix
from dask_gce.preemptions import FIRST_BLOCK, LONGEST_BLOCK, SEEN_FOR, Preemptions
from dask_gce.recovery import TAKEN_FACTOR, Recovery

A, B = "us-central1-a", "us-central1-b"
SMALL, OTHER = "e2-small", "e2-highcpu-2"


# -- the mix --------------------------------------------------------------------------------------


@given(st.integers(0, 2000), st.integers(0, 100), st.integers(0, 20))
@example(100, 29, 0)
def test_as_many_are_on_demand_as_the_settings_say(machines, percent, least):
    share = percent / 100
    wanted = Mix(True, share, least).on_demand(machines)
    # Exact, as whoever writes 0.29 means it.
    assert wanted == min(machines, max(least, -(-machines * (100 - percent) // 100)))
    assert Mix(False, share, least).on_demand(machines) == machines


@given(st.integers(0, 100), st.integers(0, 5), st.integers(1, 60), st.integers(0, 60))
def test_what_can_go_leaves_enough_on_demand(percent, least, machines, leaving):
    mix = Mix(True, percent / 100, least)
    leaving = min(leaving, machines)
    on_demand = mix.on_demand(machines)
    spare = mix.spare(on_demand, machines, leaving=leaving)
    assert on_demand - spare >= mix.on_demand(machines - leaving)
    # And no more of them stay than should, if Spot machines can go instead.
    assert on_demand - spare == mix.on_demand(machines - leaving)


# -- the rate of preemptions ----------------------------------------------------------------------


def test_one_preemption_blocks_nothing():
    assert not Preemptions().note("here", there=0, now=0.0).block


def test_a_share_of_the_machines_blocks_a_place():
    preemptions = Preemptions()
    for second in range(24):
        assert not preemptions.note("here", there=99 - second, now=second).block
    rate = preemptions.note("here", there=75, now=24.0)
    assert (rate.taken, rate.machines, rate.block) == (25, 100, FIRST_BLOCK)
    assert not preemptions.note("there", there=0, now=24.0).block


def test_preemptions_are_forgotten():
    preemptions = Preemptions()
    preemptions.note("here", there=1, now=0.0)
    assert not preemptions.note("here", there=0, now=SEEN_FOR + 1).block


def test_a_block_grows_when_it_was_too_short_and_not_for_ever():
    preemptions, now, lengths = Preemptions(), 0.0, []
    for _ in range(5):
        preemptions.note("here", there=1, now=now)
        block = preemptions.note("here", there=0, now=now).block
        # More of the same burst changes nothing.
        assert preemptions.note("here", there=0, now=now + 1).block == block - 1
        lengths.append(block)
        now += block + 2
    assert lengths == [FIRST_BLOCK, 2 * FIRST_BLOCK, 4 * FIRST_BLOCK, LONGEST_BLOCK, LONGEST_BLOCK]
    # Long after, it is a new story.
    now += LONGEST_BLOCK
    preemptions.note("here", there=1, now=now)
    assert preemptions.note("here", there=0, now=now).block == FIRST_BLOCK


def test_preemptions_of_booting_machines_end_sometime_but_later_than_failures():
    recovery, now = Recovery("dask-1", limit=2, draw=lambda: 1.0), 0.0
    for _ in range(2 * TAKEN_FACTOR):
        assert recovery.exhausted is None
        # Two of one attempt are one.
        recovery.preempted(InstanceLost("x", name="w"), asked=now + 1, now=now + 2)
        recovery.preempted(InstanceLost("x", name="w"), asked=now + 1, now=now + 2)
        now += 2 + recovery.pause(now + 2)
    assert recovery.attempts == 0
    assert "preempted 8 times" in str(recovery.exhausted)
    recovery.reset()
    assert recovery.exhausted is None and recovery.taken == 0


# -- what is asked for ----------------------------------------------------------------------------


def scheduling(emulator, role="worker"):
    """Return how Compute Engine treats the machines of a role, but for those on their way out."""
    return {
        each["name"]: each["scheduling"]
        for each in emulator.instances()
        if f"-{role}-" in each["name"] and each["status"] not in ("STOPPING", "TERMINATED")
    }


def kinds(emulator):
    """Return how many workers' machines are Spot, and how many are not."""
    models = [each["provisioningModel"] for each in scheduling(emulator).values()]
    return models.count("SPOT"), models.count("STANDARD")


def places(emulator):
    """Return where the workers' machines are: zone, type and whether they are Spot."""
    return sorted(
        (
            each["zone"].rpartition("/")[2],
            each["machineType"].rpartition("/")[2],
            each["scheduling"]["provisioningModel"] == "SPOT",
        )
        for each in emulator.instances()
        if "-worker-" in each["name"] and each["status"] not in ("STOPPING", "TERMINATED")
    )


def happened(cluster, what):
    return [event for event in cluster.events if event.what == what]


def workers_of(cluster, *, spot):
    return sorted(
        name for name in cluster.worker_spec if cluster.workers[name].location.spot is spot
    )


async def test_spot_machines_go_when_they_are_taken_and_say_so_before(paper_workers):
    options = {"spot": True, "spot_fraction": 0.5, "n_workers": 4, "max_lifetime": "1 h"}
    async with cluster_on(paper_workers, **options) as cluster:
        await until(lambda: len(worker_machines(paper_workers)) == 4)
        assert kinds(paper_workers) == (2, 2)
        for name, shown in scheduling(paper_workers).items():
            if name in workers_of(cluster, spot=True):
                assert shown["provisioningModel"] == "SPOT"
                assert shown["onHostMaintenance"] == "TERMINATE"
                assert shown["preemptionNoticeDuration"] == {"seconds": "120"}
            else:
                assert shown["onHostMaintenance"] == "MIGRATE"
                assert "preemptionNoticeDuration" not in shown
            assert shown["instanceTerminationAction"] == "DELETE"
            assert shown["automaticRestart"] is False
            assert 0 < int(shown["maxRunDuration"]["seconds"]) <= 3600
        (of_scheduler,) = scheduling(paper_workers, "scheduler").values()
        assert of_scheduler["provisioningModel"] == "STANDARD"
        # Those of one kind are one request.
        assert paper_workers.requests[BULK] == 2
        assert sum("Spot" in each.why for each in happened(cluster, "requested")) == 2


async def test_a_notice_is_not_asked_for_when_it_is_not_wanted(paper_workers):
    options = {"spot": True, "n_workers": 1, "preemption_notice": False}
    async with cluster_on(paper_workers, **options) as cluster:
        await until(lambda: worker_machines(paper_workers))
        (shown,) = scheduling(paper_workers).values()
        assert shown["provisioningModel"] == "SPOT"
        assert "preemptionNoticeDuration" not in shown
        assert not happened(cluster, "unnoticed")


@pytest.mark.parametrize("status", [400, 403])
async def test_a_refused_notice_is_done_without(paper_workers, status):
    refusal = {
        "status": status,
        "reason": "invalid",
        "message": "Invalid value for field 'resource.scheduling.preemptionNoticeDuration': ''.",
    }
    async with cluster_on(paper_workers, spot=True) as cluster:
        paper_workers.faults.add(Fault(BULK, **refusal))
        cluster.scale(2)
        await until(lambda: len(worker_machines(paper_workers)) == 2)
        cluster.scale(4)
        await until(lambda: len(worker_machines(paper_workers)) == 4)
        assert not paper_workers.faults.unused()
        shown = scheduling(paper_workers).values()
        assert all(each["provisioningModel"] == "SPOT" for each in shown)
        assert not any("preemptionNoticeDuration" in each for each in shown)
        # It is asked for once, and told once.
        assert paper_workers.requests[BULK] == 3
        (told,) = happened(cluster, "unnoticed")
        assert "preemptionNoticeDuration" in told.why
        assert not cluster.failures and cluster._recovery.attempts == 0


async def test_a_notice_that_an_operation_refuses_is_done_without(paper_workers):
    error = {"code": "INVALID_USAGE", "message": "preemptionNoticeDuration is not allowed."}
    async with cluster_on(paper_workers, spot=True, worker_start_failure_limit=1) as cluster:
        paper_workers.faults.add(Fault(INSERT, operation_errors=[error]))
        cluster.scale(1)
        await until(lambda: len(worker_machines(paper_workers)) == 1 and cluster.failures)
        await until(lambda: scheduling(paper_workers).keys() == cluster.plan)
        (shown,) = scheduling(paper_workers).values()
        assert "preemptionNoticeDuration" not in shown
        assert cluster._recovery.exhausted is None
        assert len(happened(cluster, "unnoticed")) == 1


async def test_another_refusal_is_none_of_the_notice(paper_workers):
    refusal = {"status": 400, "reason": "invalid", "message": "Invalid value for field 'disks'."}
    async with cluster_on(paper_workers, spot=True) as cluster:
        paper_workers.faults.add(Fault(INSERT, **refusal))
        cluster.scale(1)
        with pytest.raises(WorkersFailed, match="disks"):
            await cluster.wait_for_workers(1, timeout=PATIENCE)
        assert not happened(cluster, "unnoticed")


# -- scaling --------------------------------------------------------------------------------------


@given(st.data())
def test_any_sequence_of_scaling_keeps_the_mix(data):
    """The plan alone, as scale() changes it, between the turns in which machines are asked for."""
    cluster = Planned(data.draw(st.integers(0, 10)) / 10, data.draw(st.integers(0, 4)))
    for machines in data.draw(st.lists(st.integers(0, 30), max_size=8)):
        cluster.scale(machines)
        if data.draw(st.booleans()):
            cluster.ask()
            assert len(cluster.worker_spec) == machines
            assert cluster._count_on_demand() == cluster._mix.on_demand(machines)
            cluster.arrive(data.draw(st.integers(0, 30)))


@given(st.data())
def test_losses_and_scaling_leave_enough_on_demand(data):
    cluster = Planned(data.draw(st.integers(0, 10)) / 10, data.draw(st.integers(0, 4)))
    for machines in data.draw(st.lists(st.integers(0, 20), max_size=6)):
        cluster.scale(machines)
        cluster.ask()
        cluster.arrive(data.draw(st.integers(0, 20)))
        cluster.lose(data.draw(st.lists(st.integers(0, 20), max_size=6)))
        # Before those in their place were asked for.
        fewer = data.draw(st.integers(0, machines))
        cluster.scale(fewer)
        cluster.ask()
        assert len(cluster.worker_spec) == fewer
        assert cluster._count_on_demand() >= cluster._mix.on_demand(fewer)


@given(st.data())
def test_adaptive_decisions_keep_the_mix(data):
    cluster = Planned(data.draw(st.integers(0, 10)) / 10, data.draw(st.integers(0, 4)))
    cluster.scale(data.draw(st.integers(1, 20)))
    cluster.ask()
    everybody = list(cluster.worker_spec)
    for _ in range(data.draw(st.integers(1, 5))):
        idle = data.draw(st.permutations(sorted(cluster.worker_spec)))
        count = data.draw(st.integers(0, len(idle)))
        before = len(cluster.worker_spec)
        chosen = cluster._choose_workers_leaving(idle, idle[:count])
        # With all of them to choose from there are always enough that can go.
        assert len(chosen) == count
        for name in chosen:
            del cluster.worker_spec[name]
        left = before - count
        assert cluster._count_on_demand() >= cluster._mix.on_demand(left)
        assert set(cluster.worker_spec) <= set(everybody)


async def test_scaling_down_and_up_keeps_the_mix(paper_workers):
    options = {"spot": True, "spot_fraction": 0.7, "min_on_demand": 2}
    async with cluster_on(paper_workers, **options) as cluster:
        steps = {1: (0, 1), 10: (7, 3), 4: (2, 2), 3: (1, 2), 6: (4, 2)}
        for machines, expected in steps.items():
            cluster.scale(machines)
            await until(lambda expected=expected: kinds(paper_workers) == expected)
            await cluster
        # What is lost is replaced by its like.
        (lost, _), (other, *_) = workers_of(cluster, spot=False), workers_of(cluster, spot=True)
        paper_workers.host_error(lost)
        paper_workers.host_error(other)
        await until(lambda: not {lost, other} & cluster.plan and kinds(paper_workers) == (4, 2))


async def test_idle_workers_go_first_but_only_those_of_the_right_kind(light):
    options = {"spot": True, "spot_fraction": 0.5, "n_workers": 4}
    async with cluster_on(light, **options) as cluster:
        await cluster.wait_for_workers(4, timeout=PATIENCE)
        last = [name for name in cluster.worker_spec if cluster.workers[name].location.spot][-1]
        async with Client(cluster, asynchronous=True) as client:
            # The one that would go by its age has something; the other Spot one has nothing.
            something = await client.scatter(bytes(1000), workers=[last], hash=False)
            cluster.scale(2)
            await until(lambda: len(worker_machines(light)) == 2)
            assert last in cluster.plan
            assert kinds(light) == (1, 1)
            assert await something == bytes(1000)


async def test_adaptive_clusters_keep_those_on_demand(light):
    options = {"spot": True, "spot_fraction": 0.5, "min_on_demand": 1, "n_workers": 4}
    async with cluster_on(light, **options) as cluster:
        await cluster.wait_for_workers(4, timeout=PATIENCE)
        async with Client(cluster, asynchronous=True) as client:
            # Everybody on demand is idle, and everybody else has results: they would go last.
            spot = workers_of(cluster, spot=True)
            results = await client.scatter([1, 2], workers=spot, hash=False)
            cluster.adapt(minimum=1, maximum=4, interval="50 ms", wait_count=2)
            await until(lambda: len(worker_machines(light)) == 1)
            assert kinds(light) == (0, 1)
            assert await client.gather(results) == [1, 2]


# -- where there are none -------------------------------------------------------------------------


async def test_where_there_are_no_spot_machines_others_do_with_fallback(light):
    light.capacity.set(A, instances=1, spot=True)
    async with cluster_on(light, n_workers=3, zone=A, spot="fallback") as cluster:
        await cluster.wait_for_workers(3, timeout=PATIENCE)
        assert kinds(light) == (1, 2)
        (blocked,) = happened(cluster, "blocked")
        assert blocked.why.startswith(f"Spot {SMALL} in zone {A} for 5 minutes: ")
        assert cluster._recovery.attempts == 0
        # Later ones are on demand too, as long as the block lasts; then they are Spot again.
        light.capacity.clear()
        cluster.scale(4)
        await until(lambda: kinds(light) == (1, 3))
        cluster._prepared.workers._clock = lambda: time.monotonic() + 301
        cluster.scale(5)
        await until(lambda: kinds(light) == (2, 3))
        # Those on demand go first, since Spot machines do as well.
        cluster.scale(2)
        await until(lambda: kinds(light) == (2, 0))


async def test_another_type_is_tried_before_machines_on_demand(light):
    light.capacity.set(A, SMALL, instances=0, spot=True)
    options = {"scheduler_machine_type": "e2-medium", "worker_machine_type": [SMALL, OTHER]}
    async with cluster_on(
        light, n_workers=1, zone=A, machine_type=None, spot="fallback", **options
    ) as cluster:
        await cluster.wait_for_workers(1, timeout=PATIENCE)
        assert places(light) == [(A, OTHER, True)]


async def test_without_fallback_it_waits(paper_workers, monkeypatch):
    async with cluster_on(paper_workers, zone=A, spot=True) as cluster:
        paper_workers.capacity.set(A, instances=0, spot=True)
        cluster.scale(1)
        await until(lambda: cluster._recovery.attempts >= 1)
        paper_workers.capacity.clear()
        await until(lambda: kinds(paper_workers) == (1, 0))


# -- when they are taken --------------------------------------------------------------------------


async def test_a_preempted_machine_is_replaced_by_another_spot_machine(light):
    async with cluster_on(light, n_workers=3, zone=A, spot=True) as cluster:
        await cluster.wait_for_workers(3, timeout=PATIENCE)
        steady(cluster)
        lost = min(cluster.plan)
        light.preempt(lost, notice=0)
        await until(lambda: cluster.failures)
        await until(lambda: kinds(light) == (3, 0) and lost not in cluster.plan)
        (failure,) = cluster.failures
        assert isinstance(failure, InstanceLost) and failure.preempted
        assert "preempted by Compute Engine" in str(failure)
        # It had started, so that nothing is wrong with how it was made.
        assert cluster._recovery.attempts == cluster._recovery.taken == 0
        assert not happened(cluster, "blocked")


async def test_a_place_that_takes_too_many_is_left_alone(light):
    options = {"scheduler_machine_type": "e2-medium", "worker_machine_type": [SMALL, OTHER]}
    async with cluster_on(
        light, n_workers=3, zone=A, machine_type=None, spot=True, **options
    ) as cluster:
        await cluster.wait_for_workers(3, timeout=PATIENCE)
        steady(cluster)
        assert places(light) == [(A, SMALL, True)] * 3
        first, second, _ = sorted(cluster.plan)
        light.preempt(first, notice=0)
        light.preempt(second, notice=0)
        await until(lambda: happened(cluster, "blocked"))
        await until(lambda: len(places(light)) == 3 and not {first, second} & cluster.plan)
        (blocked,) = happened(cluster, "blocked")
        assert blocked.why.startswith(f"Spot {SMALL} in zone {A} for 10 minutes: 2 of ")
        assert (A, OTHER, True) in places(light)
        # Once the block is over, it is the preferred place again.
        cluster._prepared.workers._clock = lambda: time.monotonic() + FIRST_BLOCK + 1
        before = places(light).count((A, SMALL, True))
        cluster.scale(4)
        await until(lambda: places(light).count((A, SMALL, True)) == before + 1)


async def test_a_place_that_takes_too_many_is_better_than_none(paper_workers):
    paper_workers.capacity.set(A, OTHER, instances=0, spot=True)
    options = {"scheduler_machine_type": "e2-medium", "worker_machine_type": [SMALL, OTHER]}
    async with cluster_on(
        paper_workers,
        zone=A,
        machine_type=None,
        spot=True,
        worker_start_failure_limit=1,
        **options,
    ) as cluster:
        known = cluster._prepared.workers
        first = known.choose(A, spot=True)
        known.note_preemption(first, there=0)
        assert known.note_preemption(first, there=0) and known.choose(A, spot=True) != first
        cluster.scale(1)
        # That the other type is refused is no failed attempt, of which there may be one.
        await until(lambda: places(paper_workers) == [(A, SMALL, True)])
        assert cluster._recovery.attempts == 0 and cluster._recovery.exhausted is None


@pytest.mark.parametrize(("spot", "expected"), [("fallback", (1, 2)), (True, (3, 0))])
async def test_with_nowhere_else_to_go_it_depends_on_fallback(light, spot, expected):
    async with cluster_on(light, n_workers=3, zone=A, spot=spot) as cluster:
        await cluster.wait_for_workers(3, timeout=PATIENCE)
        steady(cluster)
        leaving = sorted(cluster.plan)[:2]
        # Both at once, so that neither is replaced before the place is blocked.
        cluster._note_departures({name: {"in": 0, "why": "preempted"} for name in leaving})
        await until(lambda: kinds(light) == expected and not set(leaving) & cluster.plan)
        assert len(happened(cluster, "blocked")) == 1


async def test_a_notice_replaces_a_machine_before_it_is_gone(light):
    async with cluster_on(light, n_workers=2, spot=True) as cluster:
        await cluster.wait_for_workers(2, timeout=PATIENCE)
        steady(cluster)
        leaving, staying = sorted(cluster.plan)
        async with Client(cluster, asynchronous=True) as client:
            (only,) = await client.scatter([42], workers=[leaving], hash=False)
            # Far more than is needed: it goes when its workers have gone.
            light.preempt(leaving, notice=1000)
            await until(lambda: leaving not in cluster.plan)
            assert staying in cluster.plan
            await until(lambda: leaving not in cluster.workers)
            await until(lambda: len(worker_machines(light)) == 2)
            assert await only == 42
        (told,) = happened(cluster, "preempting")
        assert told.instance == leaving
        assert told.why.startswith("preempted by Compute Engine in ")
        assert leaving in {each.instance for each in happened(cluster, "retired")}
        (failure,) = cluster.failures
        assert isinstance(failure, InstanceLost) and failure.preempted and failure.name == leaving
        assert len(cluster.plan) == 2 and kinds(light) == (2, 0)


async def test_a_machine_that_does_not_let_its_workers_go_is_let_go_as_others_are(light):
    async with cluster_on(light, n_workers=2, spot=True) as cluster:
        await cluster.wait_for_workers(2, timeout=PATIENCE)
        steady(cluster)
        leaving, staying = sorted(cluster.plan)
        async with Client(cluster, asynchronous=True) as client:
            (only,) = await client.scatter([42], workers=[leaving], hash=False)
            notice = {leaving: {"in": 0.5, "why": "preempted"}}
            cluster._note_departures(notice)
            assert leaving not in cluster.plan and staying in cluster.plan
            # Whatever is told again changes nothing.
            cluster._note_departures(notice)
            cluster._note_departures({})
            cluster._note_departures(notice)
            await until(lambda: leaving not in cluster.workers)
            assert await only == 42
        assert len(happened(cluster, "preempting")) == len(cluster.failures) == 1


async def test_notice_and_loss_of_one_machine_count_once(light):
    async with cluster_on(light, n_workers=2, zone=A, spot=True) as cluster:
        await cluster.wait_for_workers(2, timeout=PATIENCE)
        steady(cluster)
        noticed, lost = sorted(cluster.plan)
        # It ends by itself before it is taken, so that nothing else is known of it yet.
        light.power_off(lost)
        await until(lambda: lost not in cluster.plan and cluster.failures)
        assert not cluster._preempted
        # The scheduler tells of it still.
        cluster._note_departures({lost: {"in": 1, "why": "preempted"}})
        assert not happened(cluster, "blocked")
        assert len(cluster.failures) == 1
        cluster._note_departures({noticed: {"in": 1, "why": "preempted"}})
        light.preempt(noticed, notice=0)
        await until(lambda: noticed not in cluster.workers)
        (blocked,) = happened(cluster, "blocked")
        assert ": 2 of " in blocked.why
        assert len(cluster.failures) == 2


async def test_maintenance_is_no_preemption(light):
    async with cluster_on(light, n_workers=2, zone=A, spot=True) as cluster:
        await cluster.wait_for_workers(2, timeout=PATIENCE)
        steady(cluster)
        cluster._note_departures(
            {
                **{name: {"in": 0, "why": "maintenance"} for name in cluster.plan},
                cluster.scheduler.name: {"in": 0, "why": "maintenance"},
                "somebody-else": {"in": 0, "why": "maintenance"},
            }
        )
        # Of the scheduler it is said; of the others it is seen to as well.
        assert len(happened(cluster, "leaving")) == 3
        assert len(cluster.failures) == 2
        assert not any(each.preempted for each in cluster.failures)
        assert not happened(cluster, "blocked")
        await until(lambda: len(cluster.plan) == 2)


async def test_adaptive_clusters_decide_anew_whether_they_need_another(light):
    async with cluster_on(light, n_workers=2, spot=True) as cluster:
        await cluster.wait_for_workers(2, timeout=PATIENCE)
        steady(cluster)
        # It decides once, and then not for as long as this takes.
        cluster.adapt(minimum=2, maximum=2, interval="1 h")
        leaving, staying = sorted(cluster.plan)
        cluster._note_departures({leaving: {"in": 0, "why": "preempted"}})
        await until(lambda: leaving not in cluster.workers)
        assert cluster.plan == {staying}


async def test_machines_that_are_taken_while_they_boot_are_asked_for_again(paper_workers):
    options = {"n_workers": 1, "zone": A, "spot": True, "worker_start_failure_limit": 1}
    async with cluster_on(paper_workers, **options) as cluster:
        await until(lambda: happened(cluster, "running") and worker_machines(paper_workers))
        (first,) = cluster.plan
        await until(lambda: any(each.instance == first for each in happened(cluster, "running")))
        paper_workers.preempt(first, notice=0)
        await until(lambda: cluster.plan and first not in cluster.plan)
        # With a limit of one a machine that fails would have been the last.
        assert cluster._recovery.taken == 1 and cluster._recovery.exhausted is None


async def test_a_worker_that_stays_ends_a_row_of_preemptions(light):
    async with cluster_on(light, n_workers=1, zone=A, spot=True) as cluster:
        await cluster.wait_for_workers(1, timeout=PATIENCE)
        # Long before the worker was asked for that is there now.
        cluster._recovery.preempted(InstanceLost("x", name="w"), asked=-1.0, now=0.0)
        assert cluster._recovery.taken == 1
        steady(cluster)
        await until(lambda: cluster._recovery.taken == 0)


async def test_a_machine_that_is_taken_while_it_is_made_is_no_broken_one(paper_workers):
    taken = {"code": "UNSUPPORTED_OPERATION", "message": "The instance was preempted."}
    async with cluster_on(paper_workers, spot=True, worker_start_failure_limit=1) as cluster:
        paper_workers.faults.add(Fault(INSERT, operation_errors=[taken]))
        cluster.scale(1)
        await until(lambda: cluster.failures and worker_machines(paper_workers) == cluster.plan)
        assert cluster._recovery.taken == 1 and cluster._recovery.exhausted is None
        # On demand it would be a failure as any other.
        assert len(cluster._preempted) == 1


async def test_who_joins_knows_which_machines_are_spot(light):
    from dask_gce import GCECluster

    options = {"spot": True, "spot_fraction": 0.5, "n_workers": 4, "security": True}
    async with cluster_on(light, name="grid", shutdown_on_close=False, **options) as maker:
        await maker.wait_for_workers(4, timeout=PATIENCE)
        async with await GCECluster.from_name("grid", asynchronous=True, quiet=True) as joined:
            assert workers_of(joined, spot=True) == workers_of(maker, spot=True)
            assert len(workers_of(joined, spot=True)) == 2
            # Of machines that the other makes later, it is read from the list.
            maker.scale(6)
            await until(lambda: len(joined.worker_spec) == 6)
            await until(lambda: workers_of(joined, spot=True) == workers_of(maker, spot=True))
            assert len(workers_of(joined, spot=True)) == 3
            joined.scale(2)
            await until(lambda: kinds(light) == (1, 1))
        await maker.shutdown()


# -- what helps -----------------------------------------------------------------------------------


def steady(cluster):
    """Let the workers have been there for as long as it takes to count as started."""
    for member in cluster._fleet.members.values():
        if member.ready_since is not None:
            member.ready_since = -math.inf


class Planned:
    """The part of a cluster that plans, with machines that are but names."""

    from dask_gce.plan import PlannedCluster as _Plan

    _trim, _fill = _Plan._trim, _Plan._fill
    _mix, _count_on_demand = _Plan._mix, _Plan._count_on_demand
    _is_next_spot = _Plan._is_next_spot
    _choose_leaving = _Plan._choose_leaving
    _choose_workers_leaving = _Plan._choose_workers_leaving

    def __init__(self, fraction, least):
        self.settings = self
        self.spot, self.spot_fraction, self.min_on_demand = True, fraction, least
        self.worker_spec, self.workers, self._on_demand = {}, {}, set()
        self._target, self._made, self._arrived = 0, 0, set()

    def new_worker_spec(self):
        self._made += 1
        return {f"w{self._made}": {}}

    def _registered(self):
        return dict.fromkeys(self._arrived, 1)

    def _machine_of(self, worker):
        return worker

    def scale(self, machines):
        self._target = machines
        self._trim(machines)
        self._fill()

    def ask(self):
        for name in self.worker_spec:
            if name not in self.workers:
                if not self._is_next_spot():
                    self._on_demand.add(name)
                self.workers[name] = name

    def lose(self, numbers):
        for number in numbers:
            if self.worker_spec:
                lost = list(self.worker_spec)[number % len(self.worker_spec)]
                del self.worker_spec[lost]
                self._fill()

    def arrive(self, count):
        self._arrived |= set(list(self.worker_spec)[::-1][:count])
