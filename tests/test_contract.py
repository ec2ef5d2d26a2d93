"""What Dask documents and does for its clusters holds for GCECluster.

Each test is a sentence of the documentation of SpecCluster, Cluster or Adaptive. Where something
differs on purpose, the test says so. More of it is tested elsewhere: `scale` in test_scaling, TLS,
security and cancelled starts in test_cluster, failing starts in test_failed_starts.
"""

from __future__ import annotations

import asyncio
import logging
import time

import dask
import pytest
from clusters import (
    DELETE,
    INSERT,
    PATIENCE,
    cluster_on,
    refuse,
    settings,
    until,
    worker_machines,
)
from distributed import Client
from distributed.core import Status
from distributed.deploy.adaptive import Adaptive
from distributed.deploy.spec import SpecCluster, close_clusters
from html_reader import Page

import dask_gce.exit
from dask_gce import GCECluster
from dask_gce.emulator import Fault
from dask_gce.errors import APIError, GCEError, SettingsError


class Fixed(Adaptive):
    """Wants as many workers as it is told."""

    def __init__(self, *args, wanted=0, **options):
        self.wanted = wanted
        super().__init__(*args, **options)

    async def target(self):
        return self.wanted


# -- a life ---------------------------------------------------------------------------------------


async def passes(cluster, status):
    """Wait for a state that may last but a few turns of the loop on a quick machine."""
    for _ in range(1_000_000):
        if cluster.status == status:
            return
        await asyncio.sleep(0)
    pytest.fail(f"{cluster.status} is not {status}, and was not")


async def test_a_cluster_goes_from_created_to_closed(paper_workers):
    cluster = cluster_on(paper_workers, name="grid")
    assert (cluster.status, cluster.name) == (Status.created, "grid")
    assert cluster.scheduler_address == "<Not Connected>"
    assert repr(cluster) == "grid(grid, '<Not Connected>', workers=0, threads=0, memory=0 B)"
    assert cluster.plan == cluster.requested == cluster.observed == set()
    starting = asyncio.ensure_future(cluster._start())
    await passes(cluster, Status.starting)
    await starting
    assert cluster.status == Status.running
    assert cluster in SpecCluster._instances
    closing = asyncio.ensure_future(cluster.close())
    await passes(cluster, Status.closing)
    await closing
    assert cluster.status == Status.closed
    with pytest.raises(GCEError, match="closed"):
        cluster.scale(1)
    assert not cluster.plan


async def test_it_can_be_closed_twice_and_by_two_at_once(paper_workers):
    cluster = await cluster_on(paper_workers, n_workers=2)
    await asyncio.gather(cluster.close(), cluster.close())
    await cluster.close()
    assert cluster.status == Status.closed

    refused = Fault(INSERT, status=400, reason="invalid", message="Invalid value.")
    paper_workers.faults.add(refused)
    cluster = cluster_on(paper_workers)
    with pytest.raises(APIError, match="Invalid value"):
        await cluster
    assert cluster.status == Status.closed
    await cluster.close()


async def test_it_can_be_closed_while_it_scales(paper_workers):
    cluster = await cluster_on(paper_workers)
    cluster.scale(3)
    await cluster.close()
    assert not worker_machines(paper_workers)
    cluster = await cluster_on(paper_workers, n_workers=2)
    cluster.adapt(Adaptive=Fixed, wanted=4, interval="10ms")
    await until(lambda: len(worker_machines(paper_workers)) == 4)
    cluster.scale(0)
    await cluster.close()
    assert not worker_machines(paper_workers)


def test_with_closes_whatever_happens(paper_workers):
    with (
        pytest.raises(ZeroDivisionError),
        GCECluster(**settings(paper_workers, asynchronous=False)) as cluster,
    ):
        assert cluster.status == Status.running
        1 / 0  # noqa: B018
    assert cluster.status == Status.closed
    cluster.close()


async def test_async_with_closes_whatever_happens(paper_workers):
    with pytest.raises(ZeroDivisionError):
        async with cluster_on(paper_workers) as cluster:
            assert cluster.status == Status.running
            1 / 0  # noqa: B018
    assert cluster.status == Status.closed


async def test_with_is_not_for_asynchronous_clusters(paper_workers):
    async with cluster_on(paper_workers) as cluster:
        with pytest.raises(TypeError, match="async with"), cluster:
            pass


async def test_awaiting_again_returns_it_again(paper_workers):
    cluster = await cluster_on(paper_workers, n_workers=1)
    try:
        assert await cluster is cluster
        assert all(each is cluster for each in await asyncio.gather(cluster, cluster))
        assert await cluster.scale(1) is None
        assert paper_workers.requests[INSERT] == 2
    finally:
        await cluster.close()


def test_dask_closes_its_clusters_at_exit(paper_workers):
    cluster = GCECluster(**settings(paper_workers, asynchronous=False))
    assert cluster in SpecCluster._instances
    close_clusters()
    assert cluster.status == Status.closed


async def test_one_that_is_to_stay_is_left_alone_at_exit(paper_workers):
    async with cluster_on(paper_workers, shutdown_on_close=False) as cluster:
        dask_gce.exit._do_all()
        close_clusters()
        assert cluster.status == Status.running
        assert paper_workers.requests[DELETE] == 0
        await cluster.shutdown()


async def test_clusters_of_one_name_are_equal(paper_workers):
    async with cluster_on(paper_workers, name="grid") as cluster:
        same, other = cluster_on(paper_workers, name="grid"), cluster_on(paper_workers, name="net")
        assert cluster == same
        assert cluster != other
        assert cluster != "grid"
        assert len({cluster, same, other}) == 3
        for each in (same, other):
            await each.close()


def test_logs_are_silenced_while_it_lives(paper_workers):
    logger = logging.getLogger("distributed")
    before = [logger.level, *(handler.level for handler in logger.handlers)]
    with GCECluster(**settings(paper_workers, asynchronous=False, silence_logs=logging.CRITICAL)):
        now = [logger.level, *(handler.level for handler in logger.handlers)]
        assert now != before
        assert logging.CRITICAL in now
    assert [logger.level, *(handler.level for handler in logger.handlers)] == before


def test_a_cluster_and_its_clients_share_a_loop(paper_workers):
    with (
        GCECluster(**settings(paper_workers, asynchronous=False)) as cluster,
        Client(cluster) as client,
    ):
        assert cluster.loop is client.loop

        async def answer():
            return 42

        assert cluster.sync(answer) == 42


async def test_a_cluster_says_what_it_does_unless_it_is_quiet(paper_workers, capsys):
    async with cluster_on(paper_workers, quiet=False) as cluster:
        told = capsys.readouterr().out
        assert "Starting the scheduler" in told
        assert cluster.scheduler_address in told
        assert told.splitlines() == [line for _, line in cluster._cluster_manager_logs]
    # At its end it says what it has cost.
    assert " machine minutes in " in capsys.readouterr().out
    async with cluster_on(paper_workers) as cluster:
        assert not capsys.readouterr().out
        assert cluster._cluster_manager_logs


# -- what is known --------------------------------------------------------------------------------


async def test_the_scheduler_is_known_and_knows_its_cluster(light):
    async with (
        cluster_on(light, n_workers=2, scheduler_sync_interval="20ms") as cluster,
        Client(cluster, asynchronous=True) as client,
    ):
        await client.wait_for_workers(2)
        identity = await client.scheduler.identity()
        known = cluster.scheduler_info
        assert known["id"] == identity["id"]
        assert known["services"] == identity["services"]
        assert set(known["workers"]) == set(identity["workers"])
        assert cluster.scheduler_address == identity["address"]
        assert str(identity["services"]["dashboard"]) in cluster.dashboard_link

        info = await client.get_metadata("cluster-manager-info")
        assert info["name"] == cluster.name
        assert info["type"].endswith("GCECluster")
        cluster.name = "renamed"

        deadline = time.monotonic() + PATIENCE
        while (await client.get_metadata("cluster-manager-info"))["name"] != "renamed":
            assert time.monotonic() < deadline


async def test_plan_requested_and_observed(light):
    async with cluster_on(light) as cluster:
        light.faults.add(Fault(INSERT, delay=0.5, match=lambda name: "-worker-" in name))
        cluster.scale(1)
        assert len(cluster.plan) == 1
        assert not cluster.requested
        await cluster
        assert cluster.requested == cluster.plan
        assert not cluster.observed
        await cluster.wait_for_workers(1)
        assert cluster.plan == cluster.requested == cluster.observed
        assert cluster.plan == set(cluster.workers) == set(cluster.worker_spec)
        await cluster.scale(0)
        assert not cluster.plan
        await until(lambda: not cluster.requested and not cluster.observed)


async def test_logs_of_all_or_of_some(light):
    async with cluster_on(light, n_workers=2) as cluster:
        await cluster.wait_for_workers(2)
        workers = set(cluster.scheduler_info["workers"])
        logs = await cluster.get_logs()
        assert set(logs) == {"Cluster", "Scheduler", *workers}
        assert "Starting the scheduler" in logs["Cluster"]
        Page(logs._repr_html_())
        assert list(await cluster.get_logs(scheduler=False, workers=False)) == ["Cluster"]
        assert list(await cluster.get_logs(cluster=False, workers=False)) == ["Scheduler"]
        assert not await cluster.get_logs(cluster=False, scheduler=False, workers=False)
        one = sorted(workers)[:1]
        assert list(await cluster.get_logs(cluster=False, scheduler=False, workers=one)) == one


def test_a_client_of_its_own(light):
    with GCECluster(**settings(light, asynchronous=False, n_workers=1)) as cluster:
        with cluster.get_client() as client:
            assert client.cluster is cluster
            assert cluster.get_client() is client
            assert client.submit(sum, [1, 2]).result() == 3
        with Client(cluster.scheduler_address) as other, cluster.get_client() as client:
            assert client is not other


async def test_it_shows_itself_with_few_workers_and_with_many(light):
    async with cluster_on(light, n_workers=2) as cluster:
        await cluster.wait_for_workers(2)
        text = repr(cluster)
        assert text.startswith(f"{cluster.name}({cluster.name}, 'tcp://127.")
        assert "workers=2, threads=4, memory=" in text
        page = Page(cluster._repr_html_())
        assert "GCECluster" in page.text
        assert "Workers: 2 " in page.text
        assert "Total threads: 4 " in page.text
        for name in cluster.plan:
            assert name in page.text

        # Numbers tell of all; only some are listed, since each costs time on the event loop.
        few = dict(cluster.scheduler_info["workers"])
        (address, worker), *_ = few.items()
        many = {f"{address}{n}": {**worker, "name": f"w-{n:04}"} for n in range(1000)}
        try:
            cluster.scheduler_info["workers"].update(many)
            known = cluster.scheduler_info
            page = Page(cluster._repr_html_())
        finally:
            for each in many:
                del cluster.scheduler_info["workers"][each]
        assert cluster.scheduler_info is known
        assert "Workers: 1002 " in page.text
        assert "Total threads: 2004 " in page.text
        assert 10 < page.text.count("w-0") <= 40
        assert "Workers: 2<" in cluster._scaling_status()
        cluster.scale(3)
        assert "Workers: 2 / 3<" in cluster._scaling_status()
        assert "Manual" in cluster._scaling_status()
        cluster.adapt(interval="1h")
        assert "Adaptive" in cluster._scaling_status()


async def test_its_widget_scales_it(paper_workers):
    widgets = pytest.importorskip("ipywidgets", reason="ipywidgets is not installed")
    async with cluster_on(paper_workers) as cluster:
        tab = cluster._widget()
        assert isinstance(tab, widgets.Tab)
        _, scaling, _ = tab.children
        _, accordion = scaling.children
        manual, adaptive = accordion.children
        request, scale = manual.children
        request.value = 2
        scale.click()
        assert len(cluster.plan) == 2
        _, maximum, adapt = adaptive.children
        maximum.value = 5
        adapt.click()
        assert cluster._adaptive.maximum == 5


async def test_without_widgets_it_still_shows_itself(paper_workers, monkeypatch):
    async with cluster_on(paper_workers) as cluster:
        # As when ipywidgets is not installed.
        monkeypatch.setattr(cluster, "_cached_widget", None, raising=False)
        shown = []
        display = pytest.importorskip("IPython.display", reason="IPython is not installed")
        monkeypatch.setattr(display, "display", lambda bundle, raw: shown.append(bundle))
        cluster._ipython_display_()
        # How long it still has is counted down between the two.
        assert (
            shown[0]["text/plain"].partition("ends in")[0] == repr(cluster).partition("ends in")[0]
        )
        Page(shown[0]["text/html"])


# -- waiting --------------------------------------------------------------------------------------


async def test_waiting_ends_in_time(paper_workers):
    async with cluster_on(paper_workers, n_workers=1) as cluster:
        for n in (0, -1, 1.5, "1"):
            with pytest.raises(ValueError, match="positive integer"):
                await cluster.wait_for_workers(n)
        with pytest.raises(asyncio.TimeoutError, match="0 of 2 workers"):
            await cluster.wait_for_workers(2, timeout="100ms")
        async with Client(cluster, asynchronous=True) as client:
            with pytest.raises(asyncio.TimeoutError, match="1 machines are still on their way"):
                await client.wait_for_workers(2, timeout=0.1)


async def test_waiting_ends_with_the_cluster(paper_workers):
    cluster = await cluster_on(paper_workers, n_workers=1)
    waiting = asyncio.ensure_future(cluster.wait_for_workers(1))
    await asyncio.sleep(0.1)
    assert not waiting.done()
    await cluster.close()
    with pytest.raises(GCEError, match="was closed; 0 workers had arrived"):
        await waiting


async def test_waiting_for_what_is_there_does_not_wait(light):
    """Also when more have failed than are wanted."""
    async with cluster_on(light, n_workers=1) as cluster:
        await cluster.wait_for_workers(1)
        refuse(light)
        cluster.scale(2)
        await until(lambda: cluster._recovery.exhausted)
        await cluster.wait_for_workers(1, timeout=5)


# -- adapting -------------------------------------------------------------------------------------


async def test_adapt_counts_workers_cores_or_memory(paper_workers):
    """A worker on an e2-small has 2 threads and 1.75 GiB: 2 GiB, less what the system keeps."""
    async with cluster_on(paper_workers) as cluster:
        assert cluster._memory_per_worker() == 1.75 * 2**30

        def bounds(**options):
            adaptive = cluster.adapt(interval="1h", **options)
            return adaptive.minimum, adaptive.maximum

        assert bounds() == (0, float("inf"))
        assert bounds(minimum=2, maximum=7) == (2, 7)
        assert bounds(minimum_cores=3, maximum_cores=9) == (2, 4)
        assert bounds(minimum_memory="4 GiB", maximum_memory="8 GiB") == (3, 4)
        assert bounds(minimum=1, minimum_cores=5, minimum_memory="1 GiB", maximum_cores=10) == (
            3,
            5,
        )


async def test_adapt_keeps_between_minimum_and_maximum(light):
    async with (
        cluster_on(light) as cluster,
        Client(cluster, asynchronous=True) as client,
    ):
        adaptive = cluster.adapt(
            minimum=1, maximum=3, interval="30ms", wait_count=5, target_duration="10ms"
        )
        await client.wait_for_workers(1)

        def nap(number):
            time.sleep(0.05)
            return number

        assert await client.gather(client.map(nap, range(150))) == list(range(150))
        assert max(told["n"] for _, told in adaptive.log if told["status"] == "up") == 3
        await until(lambda: len(cluster.plan) == 1)
        await until(lambda: worker_machines(light) == cluster.plan == cluster.observed)
        assert not cluster.failures


async def test_adapt_takes_a_class_and_its_options(paper_workers):
    async with cluster_on(paper_workers) as cluster:
        adaptive = cluster.adapt(Adaptive=Fixed, wanted=2, interval="20ms", wait_count=1)
        assert isinstance(adaptive, Fixed)
        await until(lambda: len(cluster.plan) == 2)
        adaptive.wanted = 1
        await until(lambda: len(cluster.plan) == 1)


async def test_adapting_anew_with_a_lower_maximum_takes_workers_away(light):
    async with cluster_on(light) as cluster:
        fast = {"interval": "30ms", "wait_count": 1}
        cluster.adapt(Adaptive=Fixed, wanted=9, maximum=3, **fast)
        await until(lambda: len(cluster.observed) == 3)
        first = cluster._adaptive
        cluster.adapt(Adaptive=Fixed, wanted=9, maximum=1, **fast)
        await until(lambda: len(cluster.observed) == 1)
        assert first.periodic_callback is None
        await until(lambda: worker_machines(light) == cluster.plan)


async def test_scaling_while_adapting_lasts_until_the_next_decision(paper_workers):
    """As with any cluster of Dask's: who wants to scale by hand stops adapting."""
    async with cluster_on(paper_workers) as cluster:
        adaptive = cluster.adapt(Adaptive=Fixed, wanted=1, interval="1h", wait_count=1)
        await adaptive.adapt()
        cluster.scale(3)
        await cluster
        assert len(cluster.plan) == 3
        await adaptive.adapt()
        assert len(cluster.plan) == 1
        adaptive.stop()
        cluster.scale(2)
        await until(lambda: len(worker_machines(paper_workers)) == 2)
        assert len(cluster.plan) == 2


async def test_adapting_asks_anew_after_failures(paper_workers):
    async with cluster_on(paper_workers) as cluster:
        refuse(paper_workers)
        cluster.scale(1)
        await until(lambda: cluster._recovery.exhausted)
        cluster.adapt(minimum=2, interval="20ms")
        await until(lambda: len(worker_machines(paper_workers)) == 2)


async def test_adapting_ends_with_the_cluster(paper_workers):
    async with cluster_on(paper_workers) as cluster:
        adaptive = cluster.adapt(interval="10ms")
        await until(lambda: adaptive.state == "running")
        periodic = adaptive.periodic_callback
    assert adaptive.state == "stopped"
    assert not periodic.is_running()


# -- workers --------------------------------------------------------------------------------------


async def test_a_worker_that_the_user_retires_is_replaced(light):
    """SpecCluster makes up for it when it is next awaited; here that is not needed."""
    with dask.config.set({"distributed.deploy.lost-worker-timeout": "100ms"}):
        async with (
            cluster_on(light, n_workers=2) as cluster,
            Client(cluster, asynchronous=True) as client,
        ):
            await client.wait_for_workers(2)
            retired = sorted(cluster.plan)[0]
            await client.scheduler.retire_workers(names=[retired], close_workers=True)
            await until(lambda: retired not in cluster.plan)
            await until(lambda: len(cluster.plan) == 2 and cluster.observed == cluster.plan)
            await until(lambda: worker_machines(light) == cluster.plan)


async def test_restarting_workers_costs_no_machine(process_emulator):
    async with (
        cluster_on(process_emulator, n_workers=1, worker_class="distributed.Nanny") as cluster,
        Client(cluster, asynchronous=True) as client,
    ):
        await client.wait_for_workers(1)
        plan = cluster.plan
        await client.restart(timeout=PATIENCE)
        assert await client.submit(sum, [1, 2]) == 3
        # The cluster hears of workers on another way than the client of its results.
        await until(lambda: cluster.observed == plan)
        assert cluster.plan == plan
        assert not cluster.failures
        assert process_emulator.requests[INSERT] == 2


class Numbered(GCECluster):
    """A cluster whose workers have names of the user's own."""

    def _new_worker_name(self, worker_number):
        return f"{self.name}-worker-number-{worker_number}"


async def test_names_of_workers_can_be_chosen(light):
    async with Numbered(**settings(light, n_workers=2)) as cluster:
        await cluster.wait_for_workers(2)
        assert cluster.observed == {f"{cluster.name}-worker-number-{n}" for n in (0, 1)}


async def test_failures_and_events_are_told(light):
    async with cluster_on(light, name="grid") as cluster:
        assert cluster.failures == []
        refuse(light)
        cluster.scale(1)
        await until(lambda: cluster.failures)
        (failure,) = cluster.failures
        assert isinstance(failure, APIError)
        (event,) = [event for event in cluster.events if event.what == "failed"]
        assert event.instance.startswith("grid-worker-")
        assert event.why
        assert event.why in str(failure)
        assert str(event) in repr(cluster.events)


def test_what_is_no_number_of_workers_is_refused_before_the_first_call(paper_workers):
    for wrong in (-1, "many", 2.5):
        with pytest.raises(SettingsError) as caught:
            GCECluster(**settings(paper_workers, n_workers=wrong))
        assert caught.value.key == "n_workers"
    assert not paper_workers.requests
