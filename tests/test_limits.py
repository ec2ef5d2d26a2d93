"""A cluster ends by itself, says so before, and nothing is left of it."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import pytest
from clusters import DELETE, cluster_on, until, worker_machines
from distributed import Client

from dask_gce import GCECluster, names
from dask_gce.countdown import NAMES, Limits, Status, named_limit, notice
from dask_gce.emulator import Fault
from dask_gce.errors import ClusterEnded, GCEError, SettingsError

SET_SCHEDULING = "compute.instances.setScheduling"
SET_LABELS = "compute.instances.setLabels"
OPEN = {"instance_overrides": {"scheduling": {"maxRunDuration": None}}}


def told(cluster: GCECluster, what: str) -> list[str]:
    return [event.why for event in cluster.events if event.what == what]


# -- the words ----------------------------------------------------------------


@pytest.mark.parametrize(
    "answer",
    [None, 3, {}, {"ends_in": None}, {"ends_in": []}],
)
def test_what_is_no_status_is_none(answer):
    assert Status.parse(answer) is None


def test_a_status_is_read_as_far_as_it_can_be():
    odd = {"idle_timeout": "soon", "no_client_timeout": float("nan"), "max_lifetime": True}
    answer = {"ends_in": odd, "ending": None, "leaving": [], "recomputed": "3"}
    assert Status.parse(answer) == Status()
    full = {"ends_in": {"idle_timeout": -1, "max_lifetime": 5}, "ending": "x", "recomputed": 2}
    assert Status.parse(full) == Status(Limits(0.0, None, 5.0), "x", {}, 2)


def test_the_nearest_end_is_shown_and_counts_down():
    limits = Limits(idle_timeout=90, no_client_timeout=None, max_lifetime=30)
    assert limits.nearest == ("max_lifetime", 30)
    assert limits.after(60) == Limits(30, None, 0)
    assert limits.to_json() == dict(zip(NAMES, (90, None, 30), strict=True))
    assert "ends in 30 s: max_lifetime" in limits.render_row()
    assert Limits().nearest is None and Limits().render_row() == ""


@pytest.mark.parametrize(
    ("reason", "limit"),
    [
        ("idle_timeout: it idled", "idle_timeout"),
        ("max_lifetime", "max_lifetime"),
        ("bored: it idled", ""),
        ("", ""),
    ],
)
def test_a_reason_names_its_limit(reason, limit):
    assert named_limit(reason) == limit


@pytest.mark.parametrize("limit", NAMES)
def test_an_end_is_told_in_time_but_not_at_once(limit):
    assert notice(limit, 10) == 2
    assert notice(limit, 1e9) in (120, 600)


# -- the end ------------------------------------------------------------------


async def test_an_idle_cluster_ends_and_leaves_nothing(paper_workers):
    def shorten(dask_scheduler: Any) -> None:
        # From its start on it would depend on how long the client takes to connect.
        dask_scheduler.extensions["dask-gce-guard"]._limits["idle_timeout"] = 4.0

    wanted = {"n_workers": 1, "idle_timeout": "10 minutes", "service_account": None}
    async with cluster_on(paper_workers, **wanted) as cluster:
        waiting = asyncio.ensure_future(cluster.wait_for_workers(1))
        async with Client(cluster, asynchronous=True) as client:
            await client.run_on_scheduler(shorten)
        await until(lambda: told(cluster, "ended"))
        with pytest.raises(ClusterEnded) as ended:
            await waiting
        assert ended.value.limit == "idle_timeout"
        with pytest.raises(ClusterEnded):
            cluster.scale(2)
        with pytest.raises(ClusterEnded):
            await cluster.keep_alive()
        with pytest.raises(ClusterEnded):
            await cluster.extend_lifetime("2 days")
        # Who hears of it before is told what to do about it.
        assert all("cluster.keep_alive()" in each for each in told(cluster, "ending"))
        # And it does not take close() for all to be gone.
        await until(lambda: told(cluster, "cleared"))
        await until(lambda: not paper_workers.leftovers())
        assert cluster.limits == Limits()
        assert "ends in" not in repr(cluster) + cluster._repr_html_()


async def play(client: Client, **changes: Any) -> None:
    """Have the scheduler tell what the test wants, instead of what its guard knows."""

    def install(dask_scheduler: Any) -> None:
        async def attend(who: str, patience: float) -> Any:
            dask_scheduler.attended = who, patience
            return dask_scheduler.status_told

        told = getattr(dask_scheduler, "status_told", {"ends_in": {}, "ending": ""})
        dask_scheduler.status_told = None if changes.get("silent") else {**told, **changes}
        dask_scheduler.handlers["dask_gce_attend"] = attend

    await client.run_on_scheduler(install)


async def test_each_approach_is_told_once_and_again_after_a_reset(paper_workers):
    async with (
        cluster_on(paper_workers, n_workers=0) as cluster,
        Client(cluster, asynchronous=True) as client,
    ):
        await play(client, ends_in={"idle_timeout": 60.0, "max_lifetime": 7200.0})
        await until(lambda: told(cluster, "ending"))
        assert cluster.limits.nearest[0] == "idle_timeout"
        assert "ends in " in repr(cluster) and "idle_timeout)" in repr(cluster)
        assert "ends in " in cluster._repr_html_()
        # Nearer, it is not told again.
        await play(client, ends_in={"idle_timeout": 50.0, "max_lifetime": 7200.0})
        await until(lambda: (cluster.limits.idle_timeout or 60) < 51)
        assert len(told(cluster, "ending")) == 1
        await play(client, ends_in={"idle_timeout": None, "max_lifetime": 7200.0})
        await until(lambda: cluster.limits.nearest[0] == "max_lifetime")
        await play(client, ends_in={"idle_timeout": 60.0, "max_lifetime": 599.0})
        await until(lambda: len(told(cluster, "ending")) == 3)
        assert ["(idle" in each for each in told(cluster, "ending")] == [True, True, False]
        # What machines are about to leave is heard on the same way.
        await play(client, recomputed=2)
        await until(lambda: told(cluster, "recomputed"))
        await play(client, recomputed=5)
        await until(lambda: len(told(cluster, "recomputed")) == 2)
        assert [each[0] for each in told(cluster, "recomputed")] == ["2", "3"]


async def test_a_scheduler_without_limits_is_asked_once(paper_workers):
    async with (
        cluster_on(paper_workers, n_workers=0, max_lifetime=float("inf")) as cluster,
        Client(cluster, asynchronous=True) as client,
    ):
        await play(client, silent=True)
        await until(lambda: not cluster._is_guarded)
        await client.run_on_scheduler(
            lambda dask_scheduler: str(dask_scheduler.handlers.pop("dask_gce_keep_alive"))
        )
        with pytest.raises(GCEError, match="keeps no limits"):
            await cluster.keep_alive()
        # Nothing is left of what was told before.
        await cluster.extend_lifetime(3600)  # it has all the time there is
        assert cluster.limits.max_lifetime is None
        assert not told(cluster, "ending")


async def test_a_scheduler_that_vanishes_when_its_end_was_told_has_ended(paper_workers):
    async with cluster_on(paper_workers, n_workers=0) as cluster:
        async with Client(cluster, asynchronous=True) as client:
            await play(client, ends_in={"no_client_timeout": 1.0})
            await until(lambda: cluster.limits.no_client_timeout is not None)
        (scheduler,) = paper_workers.instances()
        paper_workers.power_off(scheduler["name"])
        await until(lambda: told(cluster, "ended"))
        with pytest.raises(ClusterEnded, match="no_client_timeout") as ended:
            await cluster.wait_for_workers(1)
        assert isinstance(ended.value.__cause__, GCEError)
        await until(lambda: not paper_workers.leftovers())


async def test_nothing_is_told_of_ends_that_passed_while_the_computer_slept(
    paper_workers, monkeypatch
):
    async with (
        cluster_on(paper_workers, n_workers=0) as cluster,
        Client(cluster, asynchronous=True) as client,
    ):
        await play(client, silent=True)
        # From now on nobody else sets what was told.
        await until(lambda: not cluster._is_guarded)
        word = Status(Limits(idle_timeout=100.0, max_lifetime=500.0))
        with monkeypatch.context() as patched:
            patched.setattr(cluster, "_joined", True)
            # Its monotonic clock has stood still.
            cluster._word, cluster._heard_at = (time.monotonic(), word), time.time() - 9000
            assert cluster.limits == Limits(max_lifetime=0.0)
            cluster._review()
            assert not told(cluster, "ending") and not told(cluster, "ended")
            cluster._heard_at = time.time()
            cluster._review()
            assert len(told(cluster, "ending")) == 2
            cluster._word = None


async def test_it_is_too_late_to_keep_a_cluster_alive_that_ends(paper_workers):
    def end(dask_scheduler: Any) -> None:
        dask_scheduler.extensions["dask-gce-guard"].ending = "idle_timeout: it idled"

    async with cluster_on(paper_workers, n_workers=0) as cluster:
        async with Client(cluster, asynchronous=True) as client:
            await play(client, silent=True)
            await until(lambda: not cluster._is_guarded)
            await client.run_on_scheduler(end)
        with pytest.raises(ClusterEnded, match="idle_timeout"):
            await cluster.keep_alive()
        await until(lambda: told(cluster, "cleared"))


async def test_a_scheduler_that_vanishes_early_is_lost(paper_workers):
    async with cluster_on(paper_workers, n_workers=0) as cluster:
        (scheduler,) = paper_workers.instances()
        paper_workers.power_off(scheduler["name"])
        await until(lambda: told(cluster, "lost"))
        assert not told(cluster, "ended")
        with pytest.raises(GCEError) as lost:
            await cluster.wait_for_workers(1)
        assert not isinstance(lost.value, ClusterEnded)


async def test_what_cannot_be_deleted_at_the_end_is_deleted_again(paper_workers, monkeypatch):
    monkeypatch.setattr("dask_gce.limits.CLEAR_AGAIN", 0.1)
    async with (
        cluster_on(paper_workers, n_workers=0) as cluster,
        Client(cluster, asynchronous=True) as client,
    ):
        clear, attempts = cluster._remove_machines_and_rules, []

        async def fail_first() -> None:
            attempts.append(time.monotonic())
            if len(attempts) == 1:
                raise GCEError("No.")
            await clear()

        monkeypatch.setattr(cluster, "_remove_machines_and_rules", fail_first)
        await play(client, ending="max_lifetime: it is over")
        await until(lambda: told(cluster, "cleared"))
        assert len(attempts) == 2
        await until(lambda: not paper_workers.leftovers())
        monkeypatch.undo()


# -- more time ----------------------------------------------------------------


async def test_keep_alive_holds_the_end_off(paper_workers):
    async with cluster_on(paper_workers, n_workers=0, idle_timeout="5 minutes") as cluster:
        await until(lambda: cluster.limits.idle_timeout is not None)
        await cluster.keep_alive("1 hour")
        assert cluster.limits.idle_timeout is None
        with pytest.raises(SettingsError, match="keep_alive"):
            await cluster.keep_alive("a while")
        with pytest.raises(SettingsError, match="extend_lifetime"):
            await cluster.extend_lifetime(-1)


async def test_more_time_is_for_clusters_whose_machines_have_no_limit(paper_workers):
    async with cluster_on(paper_workers, n_workers=1, **OPEN) as cluster:
        await until(lambda: cluster.limits.max_lifetime is not None)
        with pytest.raises(SettingsError, match="left"):
            await cluster.extend_lifetime("1 hour")
        await cluster.extend_lifetime("48 hours")
        assert cluster.limits.max_lifetime > 40 * 3600
        assert paper_workers.requests[SET_SCHEDULING] == 0
        ends = {each["name"]: end_of(each) for each in paper_workers.instances()}
        cluster.scale(2)
        await until(lambda: len(worker_machines(paper_workers)) == 2)
        (new,) = [each for each in paper_workers.instances() if each["name"] not in ends]
        assert end_of(new) == max(ends.values()) > time.time() + 40 * 3600
        # From when on it is told again.
        assert told(cluster, "extended")


def end_of(instance: dict[str, Any]) -> int:
    return int(instance["labels"][names.EXPIRES_LABEL])


def limits_of(emulator: Any) -> set[str]:
    return {each["scheduling"]["maxRunDuration"]["seconds"] for each in emulator.instances()}


async def test_compute_engine_refuses_more_time_and_all_stays_as_it_was(paper_workers):
    async with cluster_on(paper_workers, n_workers=2) as cluster:
        await until(lambda: len(worker_machines(paper_workers)) == 2)
        before = [(each["scheduling"], each["labels"]) for each in paper_workers.instances()]
        with pytest.raises(GCEError, match="max_lifetime") as refused:
            await cluster.extend_lifetime("48 hours")
        assert "cannot be changed while the instance is running" in str(refused.value)
        # What is refused for one is not asked for all.
        assert paper_workers.requests[SET_SCHEDULING] == 1
        after = [(each["scheduling"], each["labels"]) for each in paper_workers.instances()]
        assert after == before
        assert cluster.limits.max_lifetime <= 24 * 3600


async def test_where_compute_engine_allows_it_all_machines_get_more_time(paper_workers):
    paper_workers.lenient.add(SET_SCHEDULING)
    async with cluster_on(paper_workers, n_workers=2) as cluster:
        await until(lambda: len(worker_machines(paper_workers)) == 2)
        before = limits_of(paper_workers)
        # The labels are refused when all machines have been changed, which is taken back.
        paper_workers.faults.add(Fault(SET_LABELS, status=400, reason="invalid", message="No."))
        with pytest.raises(GCEError, match="No"):
            await cluster.extend_lifetime("48 hours")
        assert limits_of(paper_workers) == before
        await cluster.extend_lifetime("48 hours")
        assert all(int(each) > 40 * 3600 for each in limits_of(paper_workers))
        assert cluster.limits.max_lifetime > 40 * 3600


async def test_certificates_that_end_before_are_a_reason_to_refuse(paper_workers):
    async with cluster_on(paper_workers, n_workers=0, security=True, **OPEN) as cluster:
        with pytest.raises(GCEError, match="certificates"):
            await cluster.extend_lifetime("48 hours")
        assert paper_workers.requests[SET_LABELS] == 0
        assert paper_workers.requests[DELETE] == 0
