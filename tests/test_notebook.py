"""A notebook in a real kernel: what its outputs hold while a cluster comes, and afterwards."""

from __future__ import annotations

from typing import Any

import pytest
from clusters import PATIENCE, is_worker
from html_reader import Page

from dask_gce.emulator import Fault

nbformat = pytest.importorskip("nbformat", reason="nbformat is not installed")
nbclient = pytest.importorskip("nbclient", reason="nbclient is not installed")
pytest.importorskip("ipykernel", reason="ipykernel is not installed")
pytest.importorskip("ipywidgets", reason="ipywidgets is not installed")

SETUP = """
import dask_gce.progress.showing
dask_gce.progress.showing.SILENCE = 0
from dask_gce import GCECluster
settings = dict(api_endpoint={endpoint!r}, machine_type="e2-small", security=False,
                worker_class="distributed.Worker")
"""


class Reader(nbclient.NotebookClient):  # type: ignore[misc]
    """Runs a notebook, and keeps each text that an output had, not only the last."""

    def __init__(self, *cells: str) -> None:
        notebook = nbformat.v4.new_notebook(cells=list(map(nbformat.v4.new_code_cell, cells)))
        super().__init__(notebook, timeout=int(PATIENCE), kernel_name="python3")
        self.shown: list[tuple[int, str, str]] = []

    def process_message(self, message: Any, cell: Any, cell_index: int) -> Any:
        """Take note of what is displayed."""
        if message["msg_type"] in ("display_data", "update_display_data"):
            data = message["content"]["data"]
            self.shown.append((cell_index, data["text/plain"], data.get("text/html", "")))
        return super().process_message(message, cell, cell_index)

    def outputs(self, cell: int) -> list[Any]:
        """Return the outputs of a cell, as they are saved."""
        return list(self.nb.cells[cell].outputs)


def test_progress_widget_and_logs_in_a_notebook(light):
    # Until then a machine is asked for, and nothing more.
    light.faults.add(Fault("compute.instances.insert", delay=5, match=is_worker))
    reader = Reader(
        SETUP.format(endpoint=light.endpoint),
        "cluster = GCECluster(**settings)",
        "cluster.scale(1); cluster.wait_for_workers(1)",
        "cluster",
        "cluster.get_logs()",
        "cluster.events",
        "cluster.machines",
        "silent = GCECluster(n_workers=1, quiet=True, **settings); silent.wait_for_workers(1)",
        "cluster.close(); silent.close()",
        "async with GCECluster(n_workers=1, asynchronous=True, **settings) as cluster:\n"
        "    await cluster.wait_for_workers(1)",
    )
    reader.execute()

    texts = [text for _, text, _ in reader.shown]
    assert any("the scheduler is " in text for text in texts)
    assert any("0 of 1 workers running, 1 requested" in text for text in texts)
    for _, _, html in reader.shown:
        Page(html)
    # One output, which has become the summary.
    (output,) = reader.outputs(2)
    assert "1 worker, 2 cores, 2 GB in " in Page(output.data["text/html"]).text
    assert "1 worker, 2 cores, 2 GB in " in output.data["text/plain"]

    (output,) = reader.outputs(3)
    assert "application/vnd.jupyter.widget-view+json" in output.data
    assert "2 running" in Page(output.data["text/html"]).text
    for cell, said in ((4, "Register worker"), (5, "requested"), (6, "running")):
        (output,) = reader.outputs(cell)
        assert said in Page(output.data["text/html"]).text
    assert reader.outputs(7) == []
    # The event loop of the kernel's own is the cluster's there.
    assert any(index == 9 and text.startswith("Starting ") for index, text, _ in reader.shown)


def test_a_cluster_that_adapts_has_one_output_however_often_it_grows(light):
    light.faults.add(Fault("compute.instances.insert", delay=3, match=is_worker, times=3))
    come = """
import asyncio
while len(cluster.scheduler_info["workers"]) < {0} or cluster._told_of != cluster._board.began:
    await asyncio.sleep(0.1)
await asyncio.sleep(1)
"""
    reader = Reader(
        SETUP.format(endpoint=light.endpoint),
        'cluster = GCECluster(name="grid", **settings)',
        # It grows twice while nobody runs another cell.
        'adaptive = cluster.adapt(minimum=1, maximum=3, interval="100 ms")'
        f"{come.format(1)}adaptive.minimum = 2{come.format(2)}",
        # An output of an earlier cell may be gone.
        f"adaptive.minimum = 3{come.format(3)}",
        "cluster.close()",
    )
    reader.execute()

    told = [text for _, text, _ in reader.shown]
    for summary in ("1 worker, 2 cores, 2 GB", "2 workers, 4 cores, 4 GB", "3 workers"):
        assert any(text.startswith(f"grid: {summary}") for text in told), told
    for cell, workers in ((2, 2), (3, 3)):
        outputs = [each for each in reader.outputs(cell) if each.output_type == "display_data"]
        texts = [each.data["text/plain"].partition(",")[0] for each in outputs]
        assert texts == [f"grid: {workers} workers"]
