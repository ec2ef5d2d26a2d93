"""JupyterLab's Dask sidebar with a cluster on a local Compute Engine, as a person uses it.

Owns the steps, which tests take too, and the pictures of them:

    python docs/screenshots/sidebar.py
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from browser import PATIENCE, Browser, save_picture, wait_for_text
from lab import Lab
from playwright.sync_api import Locator, Page

from dask_gce.emulator import ComputeEmulator

IMAGES = Path(__file__).parent.parent / "images"

#: Work for a dashboard to show, with tasks of several kinds and lengths.
WORK = """\
import time

def load(part): time.sleep(0.3); return part
def fit(part, depth): time.sleep(0.1 + depth / 20); return part * depth

parts = client.map(load, range(12), pure=False)
fits = [client.submit(fit, part, depth, pure=False) for part in parts for depth in range(1, 6)]
sum(client.gather(fits))"""


def configuration(endpoint: str, **kwargs: Any) -> dict[str, Any]:
    """Return what the documentation has people configure, for a local Compute Engine.

    Parameters
    ----------
    endpoint : str
        The local Compute Engine's.
    **kwargs
        What the sidebar's clusters are made with.
    """
    return {
        "labextension": {
            "factory": {
                "module": "dask_gce.jupyterlab",
                "class": "GCECluster",
                "args": [],
                "kwargs": {"n_workers": 2, **kwargs},
            }
        },
        "distributed": {"client": {"security-loader": "dask_gce.jupyterlab.find_security"}},
        "gce": {"api-endpoint": endpoint, "machine-type": "e2-small"},
    }


def open_sidebar(browser: Browser, lab: Lab) -> Page:
    """Open JupyterLab, and in it the Dask sidebar."""
    page = browser.open(lab.address("lab"))
    wait_for_text(page, "Launcher")
    page.locator('[data-id="dask-dashboard-launcher"]').first.click()
    wait_for_text(page, "CLUSTERS")
    return page


def press_new(page: Page) -> Locator:
    """Press NEW, and return the cluster's entry when it is there."""
    page.get_by_role("button", name="NEW", exact=True).click()
    wait_for_text(page, "GCECluster 1")
    return page.locator(".dask-ClusterListingItem").first


def scale(page: Page, entry: Locator, count: int) -> None:
    """Have another number of workers, and wait until the entry shows it."""
    entry.get_by_text("SCALE", exact=True).click()
    dialog = page.get_by_role("dialog")
    dialog.locator("input").first.fill(str(count))
    dialog.get_by_role("button", name="SCALE").click()
    wait_for_text(entry, f"Number of Workers: {count}")


def show_plot(page: Page, name: str) -> None:
    """Open one of the dashboard's plots, and wait until it is drawn."""
    page.get_by_role("button", name=name, exact=True).click()
    canvas = page.frame_locator("iframe").last.locator("canvas").first
    canvas.wait_for(state="visible", timeout=PATIENCE * 1000)


def connect_notebook(page: Page, entry: Locator) -> None:
    """Make a notebook, and connect it by the code that the cluster's entry gives."""
    page.get_by_role("tab", name="Launcher").click()
    page.locator('.jp-LauncherCard[title*="Python 3"]').first.click()
    page.get_by_text("Python 3 (ipykernel) | Idle").wait_for(state="attached")
    entry.locator(".dask-ClusterListingItem-code").click()
    wait_for_text(page, "client = Client(")
    page.keyboard.press("Shift+Enter")
    wait_for_text(page, "Connection method:")


def place_left(page: Page, name: str) -> None:
    """Show a tab, and drag it to the left of the others, which are to be seen too."""
    tab = page.get_by_role("tab", name=name)
    tab.click()
    tab.hover()
    page.mouse.down()
    # Out of the row of tabs, in which it would only change its place; then to the edge.
    for across, down in ((500, 200), (320, 400), (300, 400)):
        page.mouse.move(across, down, steps=15)
    page.mouse.up()


def run_cell(page: Page, code: str) -> None:
    """Type code into the notebook's last cell and run it."""
    page.locator(".jp-Notebook .jp-CodeCell .cm-content").last.click()
    page.keyboard.insert_text(code)
    page.keyboard.press("Shift+Enter")


def shut_down(entry: Locator) -> None:
    """Press SHUTDOWN, and wait until the entry is gone."""
    entry.get_by_text("SHUTDOWN", exact=True).click()
    entry.wait_for(state="detached", timeout=PATIENCE * 1000)


def main() -> None:
    """Take the pictures."""
    with (
        ComputeEmulator("process") as emulator,
        tempfile.TemporaryDirectory() as folder,
        Lab(Path(folder) / "lab", configuration(emulator.endpoint)) as lab,
        Browser(1280, 760) as browser,
    ):
        page = open_sidebar(browser, lab)
        entry = press_new(page)
        wait_for_text(entry, "Number of Workers: 2")
        connect_notebook(page, entry)
        show_plot(page, "Task Stream")
        place_left(page, "Untitled.ipynb")
        run_cell(page, WORK)
        wait_for_text(page, "990")
        save_picture(page, IMAGES / "jupyterlab.png")


if __name__ == "__main__":
    main()
