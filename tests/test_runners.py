"""Workflow runners make clusters by what they are told, as ``docs/recipes.md`` has it.

The runners are the real ones. Prefect is in an environment of its own (`runners`), where this
package is not installed: the flow finds it, and the machines do not, as Google's do not.
"""

from __future__ import annotations

import http.client
import subprocess
import tempfile
import time
from pathlib import Path

import pytest
import runners
from clusters import PATIENCE
from pages import ROOT, read_page
from ports import quiet_port

#: The page's program, on small machines of a local Compute Engine.
FLOW = """
{page}
from dask_gce.emulator import ComputeEmulator

with ComputeEmulator("light") as emulator:
    runner.cluster_kwargs |= {{"machine_type": "e2-small", "api_endpoint": emulator.endpoint}}
    del runner.cluster_kwargs["environment"]  # is here already
    print("found", search())
    assert all(each["status"] != "RUNNING" for each in emulator.instances())
"""


def page_flow() -> str:
    """Return the program of the page."""
    blocks = read_page(ROOT / "docs" / "recipes.md").blocks
    (shown,) = (each.text for each in blocks if "from prefect_dask import" in each.text)
    return shown


def wait_for_server(server: subprocess.Popen[bytes], port: int, log: Path) -> None:
    """Wait until Prefect's server answers; it makes a database first."""
    deadline = time.monotonic() + 3 * PATIENCE
    while True:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=PATIENCE)
        try:
            connection.request("GET", "/api/health")
            if connection.getresponse().status == 200:
                return
        except (OSError, http.client.HTTPException):
            pass
        finally:
            connection.close()
        assert server.poll() is None, log.read_text()
        assert time.monotonic() < deadline, log.read_text()
        time.sleep(0.2)


@pytest.mark.timeout(1200)
def test_prefect_runs_a_flow_on_a_cluster_that_it_makes(tmp_path: Path) -> None:
    if obstacle := runners.find_obstacle():
        pytest.skip(obstacle)
    port, python = quiet_port(), str(runners.python())
    variables = {
        **runners.private(tmp_path),
        "PYTHONPATH": str(ROOT),
        "TMPDIR": tempfile.gettempdir(),
        "PREFECT_API_URL": f"http://127.0.0.1:{port}/api",
        "PREFECT_LOGGING_TO_API_ENABLED": "false",
        # A computer that has other things to do.
        "PREFECT_API_REQUEST_TIMEOUT": "300",
        "PREFECT_SERVER_DATABASE_TIMEOUT": "120",
        "PREFECT_SERVER_DATABASE_CONNECTION_TIMEOUT": "120",
    }
    log = tmp_path / "server"
    flow = tmp_path / "flow.py"
    flow.write_text(FLOW.format(page=page_flow()))
    start = [python, "-m", "prefect", "server", "start", "--no-ui", "--host", "127.0.0.1"]
    with log.open("wb") as said:
        server = subprocess.Popen(
            [*start, "--port", str(port)],
            env=variables,
            stdin=subprocess.DEVNULL,
            stdout=said,
            stderr=said,
        )
    try:
        wait_for_server(server, port, log)
        ran = subprocess.run(
            [python, str(flow)],
            env=variables,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=3 * PATIENCE,
            check=False,
        )
    finally:
        server.terminate()
        try:
            server.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            server.kill()
            server.wait()
            raise
    assert ran.returncode == 0, ran.stderr
    assert "found [0, 1, 4, 9, 16]" in ran.stdout
