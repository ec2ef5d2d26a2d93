"""Logs: what Dask logged and what machines wrote as one text, also of machines that are gone."""

from __future__ import annotations

import asyncio
import os
import re

import dask
import pytest
from clusters import PATIENCE, cluster_on, until, wait_until, worker_machines
from distributed import Client
from distributed.comm import CommClosedError
from hypothesis import given
from hypothesis import strategies as st

from dask_gce import GCECluster, log_reading, machine_logs
from dask_gce.emulator import Fault
from dask_gce.errors import APIError, GCEError, NotFound
from dask_gce.log_reading import Console, read_console, read_consoles
from dask_gce.merged_logs import LogEntry, merge, parse_entries

SERIAL = "compute.instances.getSerialPortOutput"


# -- two texts as one -----------------------------------------------------------------------------


def test_what_the_console_has_is_not_said_twice():
    console = (
        "[    0.1] Linux\n"
        "Nov 22 13:01:18 w script_runner[7]: startup-script: phase: booted\n"
        "Nov 22 13:01:19 w script_runner[7]: startup-script: 13:01:19 - INFO - one\n"
        "startup-script: printed by a task\n"
        "startup-script: 13:01:21 - INFO - three"
    )
    logged = [
        LogEntry(21.0, "13:01:21 - INFO - three"),
        LogEntry(19.0, "13:01:19 - INFO - one"),
        LogEntry(20.0, "13:01:20 - INFO - two"),
        LogEntry(22.0, "13:01:22 - ERROR - four\nTraceback:\n  ..."),
    ]
    lines = merge(console, logged).splitlines()
    assert [line.rpartition(" - ")[2].rpartition(": ")[2] for line in lines] == [
        "[    0.1] Linux",
        "booted",
        "one",
        "printed by a task",
        "two",
        "three",
        "four",
        "Traceback:",
        "  ...",
    ]


def test_the_same_line_counts_as_often_as_it_was_logged():
    twice = [LogEntry(1.0, "again"), LogEntry(2.0, "again"), LogEntry(3.0, "again")]
    assert merge("x: again\nbetween", twice).splitlines() == [
        "x: again",
        "between",
        "again",
        "again",
    ]
    assert merge("", twice).splitlines() == ["again"] * 3
    assert merge("boot", []) == "boot"
    assert merge("", []) == ""


def test_what_would_command_a_terminal_is_taken_out():
    entries = parse_entries([(1.0, "INFO", "\x1b[31mred\x1b[0m"), "no entry", (None, "INFO", "x")])
    assert merge("\x1b]0;title\x07boot\r\nstartup: red\r", entries) == "boot\nstartup: red"


WORDS = st.sampled_from(["a", "b", "a: b", "x\ny", ""])


@given(st.lists(WORDS), st.lists(st.tuples(st.integers(0, 5), WORDS)))
def test_nothing_is_lost_and_consoles_keep_their_order(console, logged):
    text = "\n".join(console)
    merged = merge(text, [LogEntry(float(time), word) for time, word in logged]).splitlines()
    remaining = iter(merged)
    assert all(line in remaining for line in text.splitlines())
    for _, word in logged:
        for line in word.splitlines():
            assert any(each == line or each.endswith(f": {line}") for each in merged)


# -- asking ---------------------------------------------------------------------------------------


class SlowCompute:
    """Answers for some machines, and never for others."""

    def __init__(self, silent: bool) -> None:
        self.silent = silent
        self.under_way = self.most = 0

    async def get_serial_port_output(self, zone: str, name: str, start: int) -> tuple[str, int]:
        assert start == -log_reading.CONSOLE_BYTES
        if self.silent and name == "silent":
            await asyncio.Event().wait()
        self.under_way += 1
        self.most = max(self.most, self.under_way)
        await asyncio.sleep(0)
        self.under_way -= 1
        return f"{zone} {name}", 10


async def test_consoles_are_read_a_few_at_a_time_and_not_for_ever(monkeypatch):
    compute = SlowCompute(silent=False)
    zones = {f"m{number}": "z" for number in range(50)}
    found = await read_consoles(compute, zones)
    assert found == {name: Console(f"z {name}") for name in zones}
    assert 1 < compute.most <= log_reading.CONSOLES_AT_A_TIME
    assert await read_consoles(compute, {}) == {}

    monkeypatch.setattr(log_reading, "CONSOLES_WITHIN", 0.05)
    found = await read_consoles(SlowCompute(silent=True), {"silent": "z", "m": "z"})
    assert found["m"] == Console("z m")
    assert "not told within 0.05 s" in found["silent"].obstacle


class LongConsole:
    """Has a console of which the beginning is not told, or none."""

    async def get_serial_port_output(self, zone: str, name: str, start: int) -> tuple[str, int]:
        if name != "m":
            raise NotFound("Not found.", status=404, reason="notFound")
        return "ond line\nthe third\n", -start + 1


async def test_the_end_of_a_long_console_begins_with_a_whole_line():
    assert await read_console(LongConsole(), "z", "m") == Console("the third\n", cut=True)
    assert "no such machine" in (await read_console(LongConsole(), "z", "other")).obstacle


# -- a cluster's ----------------------------------------------------------------------------------


def test_one_text_of_each_machine_and_the_last_words_of_one_that_died(process_emulator):
    with (
        dask.config.set({"distributed.deploy.lost-worker-timeout": "1s"}),
        GCECluster(
            n_workers=1,
            api_endpoint=process_emulator.endpoint,
            machine_type="e2-small",
            worker_class="distributed.Worker",
            quiet=True,
        ) as cluster,
        Client(cluster) as client,
    ):
        client.wait_for_workers(1, timeout=PATIENCE)
        (name,) = worker_machines(process_emulator)
        (address,) = cluster.scheduler_info["workers"]
        logs = cluster.get_logs()
        assert set(logs) == {"Cluster", "Scheduler", address}
        for key, said in (("Scheduler", "Register worker addr"), (address, "Registered to")):
            lines = logs[key].splitlines()
            assert sum("dask-gce phase: booted" in line for line in lines) == 1
            (line,) = (each for each in lines if said in each)
            assert lines.index(line) > lines.index("startup-script: dask-gce phase: booted")
            assert not re.search(r"^\[", logs[key], re.MULTILINE)
        for named in ([name], name):
            (log,) = (found := cluster.get_logs(False, False, named)).values()
            assert set(found) == {name}
            assert "Registered to" in log

        with pytest.raises((CommClosedError, OSError)):
            client.run(os._exit, 7)
        wait_until(lambda: name in {getattr(each, "name", "") for each in cluster.failures})
        # It is replaced, and deleted.
        wait_until(lambda: name not in cluster._fleet.members)
        log = cluster.get_logs()[name]
        assert "dask-gce phase: booted" in log
        assert "Registered to" in log
        assert re.search(rf"Z {name} (failed|lost): The worker {name} left", log)
        with pytest.raises(GCEError, match=rf"no machine other; it has: .*{name}"):
            cluster.get_logs(workers=["other"])


async def test_machines_without_a_worker_have_logs_and_not_all_consoles_are_read(
    paper_workers, monkeypatch
):
    monkeypatch.setattr(machine_logs, "CONSOLES", 3)
    async with cluster_on(paper_workers, n_workers=5) as cluster:
        await until(lambda: len(worker_machines(paper_workers)) == 5)
        before = paper_workers.requests[SERIAL]
        logs = await cluster.get_logs()
        assert paper_workers.requests[SERIAL] - before == 3
        assert set(logs) == {"Cluster", "Scheduler", *cluster.worker_spec}
        workers = {name: logs[name] for name in cluster.worker_spec}
        assert all(f"{name} requested: e2-small" in log for name, log in workers.items())
        unread = [log for log in workers.values() if "consoles are read of 3 at most" in log]
        assert len(unread) == 3
        assert "phase: booted" in logs["Scheduler"]

        # By name there are as many as are asked for.
        before = paper_workers.requests[SERIAL]
        logs = await cluster.get_logs(False, False, list(workers))
        assert paper_workers.requests[SERIAL] - before == 5
        assert "at most" not in "".join(logs.values())


async def test_what_cannot_be_read_is_told_in_its_place(light):
    async with cluster_on(light, n_workers=1) as cluster:
        await cluster.wait_for_workers(1)
        (address,) = cluster.scheduler_info["workers"]
        name = next(iter(cluster.worker_spec))
        refused = Fault(SERIAL, status=403, reason="forbidden", message="No.", match=name.__eq__)
        light.faults.add(refused, refused)
        logs = await cluster.get_logs()
        assert logs[address].startswith("[the serial console was not read: ")
        assert "did not tell its log" not in logs[address]
        assert "was not read" not in logs["Scheduler"]
        with pytest.raises(APIError):
            await cluster.get_logs(False, False, False, machines=[name])
    # A cluster that is closed still has what it said.
    logs = await cluster.get_logs()
    assert "Starting the scheduler" in logs["Cluster"]
    assert "does not tell what Dask logged: it is not connected" in logs["Scheduler"]


async def test_a_machine_that_was_let_go_has_a_log_by_its_name(light):
    async with cluster_on(light, n_workers=2) as cluster:
        await cluster.wait_for_workers(2)
        before = set(cluster.worker_spec)
        cluster.scale(1)
        await until(lambda: cluster.board.counts().get("deleted"))
        (name,) = before - set(cluster.worker_spec)
        logs = await cluster.get_logs(False, False, [name])
        assert set(logs) == {name}
        lines = logs[name].splitlines()
        assert lines[0].endswith(f"Z {name} requested: e2-small in us-central1-a")
        assert lines[-1].endswith(f"Z {name} deleted")
        # It is not among those that nobody named: many may have come and gone.
        assert name not in await cluster.get_logs()


async def test_logs_of_a_cluster_whose_scheduler_is_gone(paper_workers):
    async with cluster_on(paper_workers, n_workers=1) as cluster:
        (name,) = cluster.worker_spec
        scheduler = cluster.scheduler.name
        paper_workers.delete(scheduler, user="colleague@example.org")
        await until(lambda: cluster._lost is not None)
        logs = await cluster.get_logs()
        assert "colleague@example.org" in logs["Cluster"]
        assert "does not tell what Dask logged: The scheduler " in logs["Scheduler"]
        await until(lambda: name not in cluster._fleet.members)
        assert "Scheduler" in await cluster.get_logs()
        # Its own events are the rest of what is known.
        assert "lost: " in (await cluster.get_logs(workers=[scheduler]))[scheduler]
