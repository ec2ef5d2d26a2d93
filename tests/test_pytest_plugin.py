"""What the package's own pytest plugin gives to tests of other projects."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from importlib.metadata import entry_points
from pathlib import Path

from dask_gce import pytest_plugin
from dask_gce.emulator.machines import KINDS

#: Seconds that one run of pytest may take.
LIMIT = 240


def run(folder: Path, program: str = "", *options: str, **variables: str) -> tuple[int, str]:
    """Run tests with nothing of this project's own set up; return how it ended and what it said.

    Nothing but the environment variables that are named.
    """
    if program:
        (folder / "test_theirs.py").write_text(textwrap.dedent(program))
    (folder / "pytest.ini").write_text("[pytest]\naddopts = --strict-markers\n")
    environment = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("PYTEST", "DASK_", "COV_"))
    }
    ended = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *options],
        cwd=folder,
        env=environment | variables,
        check=False,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        timeout=LIMIT,
    )
    return ended.returncode, ended.stdout


def test_pytest_finds_it():
    (found,) = entry_points(group="pytest11", name="dask_gce")
    assert found.load() is pytest_plugin
    assert set(pytest_plugin.KINDS) == set(KINDS)


def test_it_costs_nothing_to_who_does_not_use_it(tmp_path):
    program = """
        import sys

        def test_nothing_is_imported():
            ours = {name for name in sys.modules if name.startswith("dask_gce")}
            assert ours == {"dask_gce", "dask_gce._version", "dask_gce.pytest_plugin"}
            heavy = {"dask", "distributed", "aiohttp", "google", "rich", "yaml", "click"}
            assert not heavy & set(sys.modules)
    """
    # Other plugins that are installed here import whatever they want.
    status, said = run(
        tmp_path, program, "-p", "no:hypothesispytest", "-p", "no:asyncio", "-p", "no:timeout"
    )
    assert status == 0, said


def test_a_cluster_is_there_and_is_the_tests_own(tmp_path):
    program = """
        import asyncio
        import os

        import dask
        import pytest
        from dask.distributed import Client

        from dask_gce import GCECluster

        names = []

        def test_one(gce_cluster, gce_emulator):
            assert len(gce_cluster.scheduler_info["workers"]) == 1
            assert len(gce_emulator.instances()) == 2
            with Client(gce_cluster) as client:
                assert client.submit(sum, [1, 2]).result() == 3
            names.append(gce_cluster.name)

        @pytest.mark.gce_cluster(n_workers=2, machine_type="e2-small")
        class TestSeveral:
            @pytest.mark.gce_cluster(name="grid")
            def test_settings(self, gce_cluster, gce_emulator):
                assert gce_cluster.name == "grid"
                assert gce_cluster.settings.machine_type == ("e2-small",)
                assert gce_cluster.summary().startswith("2 workers, 4 cores, 4 GB")
                # Whatever ran before is not here.
                assert not any(names[0] in each["name"] for each in gce_emulator.instances())

        async def use():
            async with GCECluster(n_workers=1, asynchronous=True, quiet=True) as cluster:
                await cluster.wait_for_workers(1)

        def test_loops_of_ones_own(gce_emulator):
            asyncio.run(use())
            assert gce_emulator.requests["compute.instances.delete"] > 0

        def test_others_find_it(gce_emulator):
            assert os.environ["DASK_GCE__API_ENDPOINT"] == gce_emulator.endpoint
            # It stays open, and is closed when the test has ended.
            names.append(GCECluster(n_workers=1, quiet=True))
            assert gce_emulator.instances()

        def test_nothing_stays():
            assert names[-1].status.name == "closed"
            assert not names[-1].failures
            assert dask.config.get("gce.api-endpoint") is None
            assert "DASK_GCE__API_ENDPOINT" not in os.environ
    """
    status, said = run(tmp_path, program)
    assert status == 0, said
    assert "5 passed" in said


def test_an_asynchronous_cluster_that_stays_open_is_no_burden(tmp_path):
    program = """
        import asyncio
        import pytest
        from dask_gce import GCECluster

        kept = []

        async def leave_open():
            kept.append(await GCECluster(n_workers=1, asynchronous=True, quiet=True))

        def test_one(gce_emulator):
            asyncio.run(leave_open())
            kept.append(gce_emulator)
            assert len(gce_emulator.instances()) == 2

        def test_its_machines_were_told_to_go():
            # One that is still listed as running is told twice.
            assert kept[1].requests["compute.instances.delete"] >= 2

        @pytest.mark.gce_cluster(n_workers=0)
        def test_without_workers(gce_cluster):
            assert gce_cluster.scheduler_info["workers"] == {}
    """
    status, said = run(tmp_path, program)
    assert status == 0, said
    assert "3 passed" in said
    # At its end the interpreter finds nothing to do, and nobody who would not answer.
    assert "cost money" not in said and "Could not delete" not in said


def test_machines_are_made_of_what_is_asked_for(tmp_path):
    program = """
        def test_kind(gce_emulator):
            assert gce_emulator._machines == "paper"

        def test_nobody_waits_for_what_never_comes(gce_cluster):
            pass
    """
    status, said = run(tmp_path, program, "--gce-machines=paper")
    assert status == 1, said
    assert "1 passed, 1 error" in said
    assert "--gce-machines=paper: gce_cluster waits for workers" in said
    status, said = run(tmp_path, program, "--gce-machines=clay")
    assert status == 4, said
    assert "invalid choice: 'clay'" in said


def test_what_is_no_setting_is_refused(tmp_path):
    program = """
        import pytest

        @pytest.mark.gce_cluster(3)
        def test_number(gce_cluster):
            pass

        @pytest.mark.gce_cluster(asynchronous=True)
        def test_loop(gce_cluster):
            pass

        @pytest.mark.gce_cluster(n_worker=3)
        def test_misspelt(gce_cluster):
            pass
    """
    status, said = run(tmp_path, program)
    assert status != 0
    for told in ("settings have names, as n_workers=2", "Take gce_emulator", "'n_worker'"):
        assert told in said
    assert "3 errors" in said
