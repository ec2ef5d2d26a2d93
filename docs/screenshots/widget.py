"""A notebook while a cluster starts, and the cluster's widget in it, on a local Compute Engine.

Owns the steps and the pictures of them:

    python docs/screenshots/widget.py
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

from browser import Browser, save_picture, wait_for_text
from lab import Lab

from dask_gce.emulator import ComputeEmulator, Timings

IMAGES = Path(__file__).parent.parent / "images"

CELLS = (
    "from dask_gce import GCECluster\n\ncluster = GCECluster(n_workers=3, spot=True)\n"
    "cluster.wait_for_workers(3)",
    "cluster",
)

#: Seconds that machines boot here: time to look at them.
TIMINGS = Timings(provisioning=1, staging=1, booting=6)


def write_notebook(path: Path) -> None:
    """Write a notebook with the cells."""
    cells = [
        {
            "cell_type": "code",
            "id": f"cell-{number}",
            "metadata": {},
            "execution_count": None,
            "outputs": [],
            "source": code,
        }
        for number, code in enumerate(CELLS)
    ]
    kernel = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    path.write_text(
        json.dumps({"cells": cells, "metadata": kernel, "nbformat": 4, "nbformat_minor": 5})
    )


def main() -> None:
    """Take the pictures."""
    with (
        ComputeEmulator("process", timings=TIMINGS) as emulator,
        tempfile.TemporaryDirectory() as folder,
        Lab(
            Path(folder) / "lab",
            {"gce": {"api-endpoint": emulator.endpoint, "machine-type": "e2-standard-4"}},
        ) as lab,
        Browser(1000, 900) as browser,
    ):
        write_notebook(lab.work / "cluster.ipynb")
        page = browser.open(lab.address("lab/tree/cluster.ipynb"))
        page.get_by_text("Python 3 (ipykernel) | Idle").wait_for(state="attached")
        # Nothing but the notebook.
        page.keyboard.press("Control+b")
        first, second = page.locator(".jp-Notebook .jp-CodeCell").all()
        first.locator(".cm-content").click()
        page.keyboard.press("Shift+Enter")
        wait_for_text(first, "the scheduler is booting")
        save_picture(first, IMAGES / "notebook-progress.png", colours=64)
        wait_for_text(first, "3 workers, 12 cores, ")
        page.keyboard.press("Shift+Enter")
        widget = second.locator(".jp-OutputArea-output .widget-tab").first
        widget.get_by_text("Machines:").click()
        save_picture(second, IMAGES / "widget.png", colours=64)


if __name__ == "__main__":
    main()
