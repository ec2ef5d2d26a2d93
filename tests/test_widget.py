"""What a notebook shows of a cluster: its machines, escaped, and as much of many as of few."""

from __future__ import annotations

from typing import NoReturn

import dask
import pytest
from clusters import cluster_on, until
from html_reader import Page

from dask_gce.emulator import Fault
from dask_gce.events import EventLog
from dask_gce.html_tables import render_link
from dask_gce.machine_states import MachineState
from dask_gce.machine_tables import SHOWN, MachineList, render_machines
from dask_gce.state_board import StateBoard
from dask_gce.widget import WidgetCluster

EVIL = '<script>alert("x")</script>'


class NeverWhole(StateBoard):
    """Is never asked for all of its machines."""

    def machines(self) -> NoReturn:
        raise AssertionError("all machines were looked at")


def board_of(running: int, failed: int = 0) -> StateBoard:
    log, board = EventLog(), NeverWhole()
    log.listen(board.take)
    board.expect(running)
    for number in range(running + failed):
        name = f"dask-1f-worker-{number:04}"
        log.note(name, "requested")
        log.note(name, "running")
        if number < running:
            log.note(name, "ready")
        else:
            log.note(name, "failed", EVIL)
    return board


def test_no_more_of_many_machines_than_of_few():
    assert render_machines(board_of(0)) == ""
    few, many = render_machines(board_of(30)), render_machines(board_of(5000))
    # The numbers are longer, and that is all.
    assert abs(len(many) - len(few)) < 20
    page = Page(many)
    assert "5000 running" in page.text
    assert page.text.count("dask-1f-worker-") == SHOWN
    assert f"and {5000 - SHOWN} more" in page.text


def test_what_failed_is_shown_first_and_is_data():
    html = render_machines(board_of(100, failed=2))
    assert EVIL not in html
    page = Page(html)
    assert "100 running, 2 failed" in page.text
    assert f"failed: {EVIL}" in page.text
    assert page.text.index("dask-1f-worker-0101") < page.text.index("dask-1f-worker-0099")


def test_lists_of_machines_and_events_are_tables():
    log, board = EventLog(), StateBoard()
    log.listen(board.take)
    for number in range(300):
        log.note(f"m-{number}", "requested", EVIL)
    machines = MachineList(board.machines())
    assert isinstance(machines[0], MachineState)
    assert repr(machines[:2]) == "m-0 requested\nm-1 requested"
    assert repr(MachineList()) == "no machines"
    page = Page(machines._repr_html_())
    assert "m-199requested" in page.text
    assert "m-200requested" not in page.text
    assert "and 100 more" in page.text

    assert EVIL not in log._repr_html_()
    page = Page(log._repr_html_())
    # The last ones are of interest.
    assert f"m-299requested{EVIL}" in page.text
    assert "m-199requested" not in page.text
    assert "and 200 earlier" in page.text
    Page(EventLog()._repr_html_())


def test_only_web_addresses_are_links():
    assert render_link("") == ""
    assert "<a" not in render_link("javascript:alert(1)")
    assert 'href="http://h/?a=1&amp;b=&quot;"' in render_link('http://h/?a=1&b="')


async def test_a_cluster_shows_its_machines(paper_workers):
    async with cluster_on(paper_workers, n_workers=3, name="grid") as cluster:
        await until(lambda: cluster._board.counts("worker").get("booting") == 3)
        html = cluster._repr_html_()
        page = Page(html)
        assert "3 booting, 1 running" in page.text
        for name in cluster.worker_spec:
            assert name in page.text
        assert f"Way to it: {cluster.scheduler.approach.route}" in page.text
        assert f'<a href="{cluster.dashboard_link}" target="_blank">' in html
        assert "Cost: about $" in page.text
        assert {each.state for each in cluster.machines if each.role == "worker"} == {"booting"}
        assert isinstance(cluster.machines, MachineList)
        # What comes from outside is data, whoever has written it.
        name = next(iter(cluster.worker_spec))
        cluster.events.note(name, "booting", EVIL)
        assert EVIL not in cluster._repr_html_()
        assert EVIL in Page(cluster._repr_html_()).text
    assert "running" not in Page(cluster._repr_html_()).text


async def test_the_widget_has_a_table_of_machines_that_follows_them(paper_workers):
    pytest.importorskip("ipywidgets", reason="ipywidgets is not installed")
    with dask.config.set({"distributed.deploy.cluster-repr-interval": "20ms"}):
        async with cluster_on(paper_workers) as cluster:
            tab = cluster._widget()
            assert cluster._widget() is tab
            *_, machines = tab.children
            assert [tab.get_title(number) for number in range(3)] == [
                "Status",
                "Scaling",
                "Machines",
            ]
            assert "1 running" in Page(machines.value).text
            await cluster.scale(2)
            (first, second) = cluster.worker_spec
            await until(lambda: "2 booting, 1 running" in machines.value)
            assert first in machines.value
            assert second in machines.value


async def test_a_machine_that_was_refused_is_shown_with_the_reason(paper_workers):
    refused = Fault(
        "compute.instances.insert",
        status=400,
        reason="invalid",
        message=EVIL,
        match=lambda name: "-worker-" in name,
    )
    async with cluster_on(paper_workers) as cluster:
        paper_workers.faults.add(refused)
        cluster.scale(1)
        await until(lambda: cluster.failures)
        html = cluster._repr_html_()
        assert EVIL not in html
        assert "1 failed" in Page(html).text


def test_the_link_to_jupyter_is_shown_without_its_token():
    class Cluster(WidgetCluster):
        jupyter_link = "http://127.0.0.1:8787/jupyter/lab?token=abc"

        def __init__(self):
            pass

        def __del__(self):
            pass

    assert Cluster()._jupyter_address() == "http://127.0.0.1:8787/jupyter/lab"
