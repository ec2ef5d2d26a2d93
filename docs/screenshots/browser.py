"""A browser without a screen, for the pictures in the documentation and for tests.

Owns how Chromium is found, started and ended, that it reaches nothing beyond this computer, and how
a small PNG is written. Which page is looked at, and what it must show, is its caller's matter:

    with Browser() as browser:
        page = browser.open("http://127.0.0.1:8888/lab")
        wait_for_text(page, "Launcher")
        save_picture(page, Path("docs/images/lab.png"))

A page is Playwright's (`playwright.sync_api.Page`), so that everything else that a person does in a
browser is done by its methods: `page.get_by_text("NEW").click()`. It is not to be used where an
event loop runs in the same thread.
"""

from __future__ import annotations

import io
import shutil
from pathlib import Path
from types import TracebackType

from PIL import Image
from playwright.sync_api import Locator, Page, sync_playwright

__all__ = ["Browser", "find_chromium", "save_picture", "wait_for_text"]

#: Seconds that something may take to be seen, on a computer that has other things to do.
PATIENCE = 120.0

#: What Debian, Ubuntu, Fedora and Google call it.
NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")

#: Bytes that a picture in the documentation may have.
SMALL = 150_000

FLAGS = (
    "--no-sandbox",  # it is root's in a container, and shows only pages of ours
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    # Nothing beyond this computer has an address.
    "--host-resolver-rules=MAP * ~NOTFOUND , EXCLUDE 127.* , EXCLUDE localhost",
)


def find_chromium() -> str | None:
    """Return the path of a Chromium of this computer, None if there is none."""
    return next((found for name in NAMES if (found := shutil.which(name))), None)


class Browser:
    """A Chromium with a profile of its own, which goes with it.

    Parameters
    ----------
    width, height : int
        Size of its pages, in pixels of CSS.
    sharpness : float
        Pixels of a picture for each of CSS.

    Raises
    ------
    FileNotFoundError
        If this computer has no Chromium.
    """

    def __init__(self, width: int = 1280, height: int = 800, sharpness: float = 1.0) -> None:
        path = find_chromium()
        if path is None:
            raise FileNotFoundError(f"None of {', '.join(NAMES)} is on PATH.")
        self._playwright = sync_playwright().start()
        try:
            self._browser = self._playwright.chromium.launch(executable_path=path, args=FLAGS)
            self._context = self._browser.new_context(
                viewport={"width": width, "height": height}, device_scale_factor=sharpness
            )
            self._context.set_default_timeout(PATIENCE * 1000)
        except BaseException:
            self._playwright.stop()
            raise

    def __enter__(self) -> Browser:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def open(self, address: str) -> Page:
        """Open a page in a new tab, and return it when it is loaded.

        What it loads by and by is to be waited for with `wait_for_text`.
        """
        page = self._context.new_page()
        page.goto(address, wait_until="load")
        return page

    def close(self) -> None:
        """End it, with all its pages."""
        try:
            self._context.close()
            self._browser.close()
        finally:
            self._playwright.stop()


def wait_for_text(page: Page | Locator, text: str, patience: float = PATIENCE) -> Locator:
    """Wait until a text can be seen on a page, or in a part of one, and return where.

    Parameters
    ----------
    page : Page or Locator
        Where to look; in frames of it: ``page.frame_locator(...)``.
    text : str
        The text, or a part of it.
    patience : float
        Seconds after which Playwright's ``TimeoutError`` is raised.
    """
    found = page.get_by_text(text).first
    found.wait_for(state="visible", timeout=patience * 1000)
    return found


def save_picture(page: Page | Locator, path: Path, colours: int = 256) -> int:
    """Write a page as it is seen, or one part of it, as a small PNG.

    Parameters
    ----------
    page : Page or Locator
        What to show.
    path : Path
        Where to write it.
    colours : int
        How many colours it may have; the fewer, the smaller.

    Returns
    -------
    int
        Its size in bytes.

    Raises
    ------
    ValueError
        If it is larger than a page of the documentation should load; nothing is written.
    """
    seen = Image.open(io.BytesIO(page.screenshot(animations="disabled", caret="hide")))
    written = io.BytesIO()
    few = seen.convert("RGB").quantize(colours, dither=Image.Dither.NONE)
    few.save(written, "PNG", optimize=True)
    if written.tell() > SMALL:
        raise ValueError(
            f"{path.name} has {written.tell():,} bytes, more than {SMALL:,}: show a smaller part, "
            "or fewer colours"
        )
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(written.getvalue())
    return written.tell()
