"""What commands tell while they wait, and what they complete."""

from __future__ import annotations

import os
import pty
import subprocess
import sys

import pytest
from clusters import cluster_on, refuse, until
from command_line import environment
from test_cli import completions
from test_cli_inventory import remember

from dask_gce.cli import progress
from dask_gce.cli.progress import Progress, following
from dask_gce.progress import lines, showing


def test_nothing_is_told_of_what_is_quick(capsys):
    line = Progress("Creating grid")
    line.tell("preparing")
    line.close()
    assert capsys.readouterr() == ("", "")


def test_each_change_is_told_once_where_nobody_watches(capsys, monkeypatch):
    monkeypatch.setattr(progress, "SILENCE", 0)
    line = Progress("Creating grid")
    for text in ("preparing", "preparing", "1 of 2 workers"):
        line.tell(text)
    line.close()
    told = "Creating grid: preparing\nCreating grid: 1 of 2 workers\n"
    assert capsys.readouterr() == ("", told)


def test_a_terminal_has_one_line_that_goes_away():
    program = (
        "import time; from dask_gce.cli import progress; progress.SILENCE = 0\n"
        "line = progress.Progress('Creating grid'); line.tell('preparing')\n"
        "time.sleep(0.3); line.close(); print('done')"
    )
    ours, theirs = pty.openpty()
    with subprocess.Popen(
        [sys.executable, "-c", program],
        stdout=theirs,
        stderr=theirs,
        env=environment("http://127.0.0.1:1", TERM="xterm"),
    ) as running:
        os.close(theirs)
        told = b""
        while b"done" not in told:
            told += os.read(ours, 4096)
    os.close(ours)
    assert running.returncode == 0
    assert b"Creating grid: preparing" in told
    # Back to the line's beginning, and the line erased.
    assert told.rstrip().endswith(b"\r\x1b[1A\x1b[2Kdone")


async def test_how_far_the_machines_are_is_told(paper_workers, capsys, monkeypatch):
    monkeypatch.setattr(showing, "INTERVAL", 0.01)
    monkeypatch.setattr(showing, "SILENCE", 0)
    monkeypatch.setattr(lines, "FIRST_PAUSE", 0)
    told = ""

    def is_told(text: str) -> bool:
        nonlocal told
        told += capsys.readouterr().err
        return text in told

    cluster = cluster_on(paper_workers, n_workers=1)
    async with following(cluster, "Creating grid", 1):
        await until(lambda: is_told("Creating grid: preparing\n"))
        await cluster
        (worker,) = cluster.worker_spec
        await until(lambda: is_told("Creating grid: 0 of 1 workers running, 1 booting\n"))
        cluster.events.note(worker, "booting", "image-\x1b[31mpulling")
        await until(lambda: is_told("1 getting its image (image-pulling)\n"))
        cluster.events.note(worker, "ready")
    assert is_told("Creating grid: 1 worker, 2 cores, 2 GB in ")
    await cluster.close()


async def test_what_goes_wrong_is_told_at_once(paper_workers, capsys, monkeypatch):
    monkeypatch.setattr(showing, "SILENCE", 1000)
    refuse(paper_workers)
    told = ""

    def is_told() -> bool:
        nonlocal told
        told += capsys.readouterr().err
        return "failed" in told

    async with cluster_on(paper_workers) as cluster, following(cluster, "Scaling grid", 1):
        cluster.scale(1)
        await until(is_told)
    assert "Invalid value." in told
    assert "requested" not in told


async def test_nothing_is_told_to_who_wants_to_hear_nothing(paper_workers, capsys, monkeypatch):
    monkeypatch.setattr(showing, "SILENCE", 0)
    refuse(paper_workers)
    async with (
        cluster_on(paper_workers, progress="none") as cluster,
        following(cluster, "Scaling grid", 1),
    ):
        cluster.scale(1)
        await until(lambda: cluster.failures)
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("line", "offered"),
    [
        ("dask gce delete gr", ["grid", "group"]),
        ("dask gce scale gri", ["grid"]),
        ("dask gce show --project other gr", []),
        ("dask gce ssh n", ["net"]),
    ],
)
def test_names_of_clusters_complete(tmp_path, monkeypatch, line, offered):
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    for name in ("grid", "group", "net"):
        remember(name=name)
    # Nobody is asked: nothing answers at the endpoint.
    assert completions(line, DASK_GCE__API_ENDPOINT="http://127.0.0.1:1") == offered
