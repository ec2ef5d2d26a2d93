"""Workflow runners make clusters by the name of their class, as ``docs/recipes.md`` has it.

The runners are the real ones. Prefect brings seventy packages, and its server takes a minute to
start for the first time, so that this runs only where somebody has installed it:
``pip install prefect prefect-dask``.
"""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest
from clusters import PATIENCE
from ports import quiet_port

needs_prefect = pytest.mark.skipif(
    importlib.util.find_spec("prefect_dask") is None, reason="there is no prefect-dask"
)

FLOW = """
import sys
from prefect import flow, task
from prefect_dask import DaskTaskRunner

@task
def fit(depth):
    return depth * depth

runner = DaskTaskRunner(
    cluster_class="dask_gce.GCECluster",
    cluster_kwargs={"n_workers": 2, "machine_type": "e2-small", "api_endpoint": sys.argv[1]},
)

@flow(task_runner=runner)
def search():
    return [future.result() for future in [fit.submit(depth) for depth in range(5)]]

print("found", search())
"""


@needs_prefect
@pytest.mark.timeout(900)
def test_prefect_runs_a_flow_on_a_cluster_that_it_makes(light, tmp_path: Path) -> None:
    port = quiet_port()
    variables = {
        **{key: value for key, value in os.environ.items() if not key.startswith("PREFECT_")},
        "HOME": str(tmp_path),
        "PREFECT_HOME": str(tmp_path / "prefect"),
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "DO_NOT_TRACK": "1",
        "PREFECT_API_URL": f"http://127.0.0.1:{port}/api",
    }
    command = [sys.executable, "-m", "prefect", "server", "start", "--host", "127.0.0.1"]
    log = tmp_path / "server"
    with log.open("wb") as said:
        server = subprocess.Popen(
            [*command, "--port", str(port)], env=variables, stdout=said, stderr=said
        )
    try:
        deadline = time.monotonic() + 3 * PATIENCE  # it makes a database first
        while True:
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/api/health", timeout=5).close()
                break
            except (urllib.error.URLError, OSError):
                assert server.poll() is None, log.read_text()
                assert time.monotonic() < deadline, log.read_text()
                time.sleep(0.2)
        ran = subprocess.run(
            [sys.executable, "-c", FLOW, light.endpoint],
            env=variables,
            capture_output=True,
            text=True,
            timeout=3 * PATIENCE,
            check=False,
        )
    finally:
        server.terminate()
        server.wait(PATIENCE)
    assert ran.returncode == 0, ran.stderr
    assert "found [0, 1, 4, 9, 16]" in ran.stdout
    assert "dask_gce.cluster.GCECluster" in ran.stdout + ran.stderr
