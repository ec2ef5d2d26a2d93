"""A cluster from a shell: made by one process, used by others, deleted by yet another."""

from __future__ import annotations

import json
import os
import pty
import signal
import subprocess
import sys

import pytest
from clusters import DELETE, INSERT, refuse, wait_until, worker_machines
from command_line import environment, make, names, process, run, run_process

from dask_gce.connections import connection_path, list_connections
from dask_gce.emulator import Fault

# Up to twenty processes one after another, each of which imports for a second or two.
pytestmark = pytest.mark.timeout(600)

#: Small, quick, and without a Nanny for each worker.
QUICK = ("--machine-type", "e2-small", "--worker-class", "distributed.Worker")

COMPUTE = """
from dask.distributed import Client
from dask_gce import GCECluster

with GCECluster.from_name("grid", quiet=True) as cluster, Client(cluster) as client:
    client.wait_for_workers(1)
    print(client.submit(sum, range(10)).result())
"""


@pytest.fixture(autouse=True)
def data_folder(tmp_path, monkeypatch):
    """Keep connection files here, those of the commands as well."""
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))


# -- a life ---------------------------------------------------------------------------------------


def test_a_cluster_lives_from_process_to_process(process_emulator):
    endpoint = process_emulator.endpoint
    output, _ = run_process(endpoint, "create", "grid", *QUICK, "--n-workers", "1")
    assert output.startswith("Created grid in project local-project, with 1 of 1 workers.\n")
    assert 'GCECluster.from_name("grid")' in output
    assert "dask gce delete grid" in output
    assert "Ends:       after 20 min without work (idle_timeout); 1 d after it was made" in output
    assert "no_client_timeout" not in output  # which it has none of
    assert list_connections() == [("local-project", "grid")]

    found = subprocess.run(
        [sys.executable, "-c", COMPUTE],
        check=True,
        capture_output=True,
        text=True,
        timeout=300,
        env=environment(endpoint),
    )
    assert found.stdout == "45\n"

    output, _ = run_process(endpoint, "scale", "grid", "2", "--json")
    scaled = {"name": "grid", "project": "local-project", "workers": 2, "workers_wanted": 2}
    assert json.loads(output) == scaled
    assert len(worker_machines(process_emulator)) == 2

    output, _ = run_process(endpoint, "dashboard", "grid", "--no-open")
    assert output.startswith("http://127.")
    assert_logs(process_emulator)

    run_process(endpoint, "scale", "grid", "0")
    assert not worker_machines(process_emulator)
    run_process(endpoint, "delete", "grid", "--yes")
    assert not names(process_emulator)
    assert not list_connections()
    wait_until(lambda: not process_emulator.leftovers())


def assert_logs(emulator) -> None:
    """Check that the logs of scheduler and workers are there, each line once and in order."""
    scheduler, *_ = (name for name in names(emulator) if "-scheduler-" in name)
    worker = min(worker_machines(emulator))
    lines = run_process(emulator.endpoint, "logs", "grid")[0].splitlines()
    found = {line.partition(": ")[0] for line in lines}
    assert found == {scheduler, *worker_machines(emulator)}
    began = next(n for n, line in enumerate(lines) if "Scheduler at:" in line)
    assert began < next(n for n, line in enumerate(lines) if f"name: {worker}" in line)

    output, _ = run_process(
        emulator.endpoint, "logs", "grid", "--machine", worker, "--tail", "2", "--json"
    )
    assert [json.loads(line)["machine"] for line in output.splitlines()] == [worker] * 2
    _, errors = run_process(emulator.endpoint, "logs", "grid", "--machine", "x", status=2)
    assert "There are no logs of 'x'" in errors

    arguments = ["logs", "grid", "-f", "--machine", scheduler, "--tail", "1"]
    with process(emulator.endpoint, *arguments) as following:
        assert following.stdout
        first = following.stdout.readline().removesuffix("\n")
        # The last line there was, and nothing keeps the scheduler from saying more meanwhile.
        said = [line for line in lines if line.startswith(f"{scheduler}: ")]
        now = run_process(emulator.endpoint, "logs", "grid", "--machine", scheduler)[0].splitlines()
        assert first in (said[-1], *now[len(said) :])
        run_process(emulator.endpoint, "scale", "grid", "3")
        while "Register worker" not in (line := following.stdout.readline()):
            assert line.startswith(f"{scheduler}: ")
        following.send_signal(signal.SIGINT)
        following.communicate(timeout=200)
    assert following.returncode == 130


def test_a_name_is_drawn_and_workers_need_not_be_waited_for(paper_workers):
    output, _ = run_process(
        paper_workers.endpoint, "create", *QUICK, "--n-workers", "2", "--no-wait", "--json"
    )
    made = json.loads(output)
    assert (made["workers"], made["workers_wanted"]) == (0, 2)
    limits = {"idle_timeout": 1200, "no_client_timeout": None, "max_lifetime": 86400}
    assert made["limits"] == limits
    assert made["name"].startswith("dask-")
    assert len(worker_machines(paper_workers)) == 2
    run_process(paper_workers.endpoint, "scale", made["name"], "3", "--no-wait")
    assert len(worker_machines(paper_workers)) == 3
    run_process(paper_workers.endpoint, "delete", made["name"], "--yes")


# -- what fails -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("number", "when"),
    [
        (signal.SIGINT, "asked"),
        (signal.SIGINT, "running"),
        (signal.SIGINT, "waiting"),
        (signal.SIGTERM, "asked"),
        (signal.SIGTERM, "waiting"),
    ],
)
def test_interrupted_while_it_is_created(paper_workers, number, when):
    def reached() -> bool:
        if when == "asked":
            return bool(paper_workers.requests[INSERT])
        if when == "running":
            return any(each["status"] == "RUNNING" for each in paper_workers.instances())
        return bool(list_connections())

    arguments = ["create", "grid", *QUICK, "--n-workers", "1"]
    with process(paper_workers.endpoint, *arguments) as running:
        wait_until(reached)
        running.send_signal(number)
        output, errors = running.communicate(timeout=200)
    assert running.returncode == 128 + number, errors
    assert "Interrupted." in errors
    assert "Traceback" not in errors
    assert not output
    assert not names(paper_workers)
    assert not list_connections()


def test_a_terminal_that_is_closed_leaves_nothing(paper_workers):
    ours, theirs = pty.openpty()
    with subprocess.Popen(
        [sys.executable, "-m", "dask", "gce", "create", "grid", *QUICK, "--n-workers", "1"],
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        env=environment(paper_workers.endpoint, TERM="xterm"),
    ) as running:
        os.close(theirs)
        told = b""
        while b"of 1 workers" not in told:
            told += os.read(ours, 4096)
        # Nothing can be written from here on.
        os.close(ours)
        running.send_signal(signal.SIGHUP)
    assert running.returncode == 128 + signal.SIGHUP
    assert not names(paper_workers)
    assert not list_connections()


def test_a_cluster_that_nobody_can_be_told_of_is_not_left(paper_workers):
    reading, writing = os.pipe()
    os.close(reading)
    command = [sys.executable, "-m", "dask", "gce", "create", *QUICK]
    ended = subprocess.run(
        command, stdout=writing, env=environment(paper_workers.endpoint), timeout=200, check=False
    )
    os.close(writing)
    assert ended.returncode == 1
    assert not names(paper_workers)
    assert not list_connections()


def test_impatience_does_not_leave_anything(paper_workers):
    # Nothing goes before it has had its second Ctrl-C.
    paper_workers.faults.add(Fault(DELETE, status=503, times=10**6))
    arguments = ["create", "grid", *QUICK, "--n-workers", "1"]
    with process(paper_workers.endpoint, *arguments) as running:
        assert running.stderr
        # Before, there is none to delete.
        wait_until(paper_workers.instances)
        running.send_signal(signal.SIGINT)
        wait_until(lambda: paper_workers.requests[DELETE])
        running.send_signal(signal.SIGINT)
        # After the progress of a busy computer.
        while not (line := running.stderr.readline()).startswith("Still cleaning up"):
            assert line.startswith("Creating grid: ")
        paper_workers.faults.clear()
        _, errors = running.communicate(timeout=200)
    assert running.returncode == 130, errors
    assert not names(paper_workers)
    assert not list_connections()


def test_a_cluster_whose_workers_fail_is_not_left_half_made(paper_workers):
    refuse(paper_workers, times=100)
    arguments = ["create", "grid", *QUICK, "--n-workers", "1"]
    output, errors = run_process(paper_workers.endpoint, *arguments, status=1)
    assert "Invalid value." in errors
    assert not output
    assert not names(paper_workers)
    assert not list_connections()


def test_a_scheduler_that_fails_leaves_nothing(emulator):
    # Who may not look at networks learns from the machine that there is none.
    emulator.permissions.deny("compute.networks.get")
    arguments = ["create", "grid", *QUICK, "--network", "nowhere"]
    _, errors = run_process(emulator.endpoint, *arguments, status=1)
    assert "nowhere" in errors
    assert not names(emulator)


def test_connecting_without_what_it_takes_says_what_is_missing(emulator):
    def refused(*arguments: str, status: int) -> str:
        result = run(emulator, *arguments)
        assert result.exit_code == status
        return result.stderr

    assert "No cluster 'grid' runs" in refused("scale", "grid", "1", status=3)
    make(emulator, s={"role": "scheduler"})
    for command in (["scale", "grid", "1"], ["logs", "grid"]):
        assert "no connection file for cluster 'grid'" in refused(*command, status=1)
    path = connection_path("grid", "local-project")
    path.parent.mkdir(parents=True)
    path.write_text("{}", encoding="utf-8")
    path.chmod(0o644)
    assert f"chmod 600 {path}" in refused("scale", "grid", "1", status=1)
