"""The front page of this documentation, as it was built: ``python docs/screenshots/docs.py``.

Builds the documentation into a folder of its own, serves it on loopback, and takes the picture.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from browser import Browser, save_picture, wait_for_text

ROOT = Path(__file__).parents[2]
PICTURE = ROOT / "docs" / "images" / "docs.png"


class _Quiet(SimpleHTTPRequestHandler):
    """A file server that does not tell of each request."""

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""


def take(built: Path, picture: Path) -> int:
    """Take the picture of the front page.

    Parameters
    ----------
    built : Path
        The documentation as HTML.
    picture : Path
        Where to write it.

    Returns
    -------
    int
        Its size in bytes.
    """
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(_Quiet, directory=built)) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            with Browser(width=1240, height=860) as browser:
                page = browser.open(f"http://127.0.0.1:{server.server_port}/index.html")
                wait_for_text(page, "Dask clusters on Google Compute Engine")
                return save_picture(page, picture, colours=128)
        finally:
            server.shutdown()
            thread.join()


def main() -> None:
    """Build the documentation, and take the picture."""
    with tempfile.TemporaryDirectory() as folder:
        built = Path(folder) / "html"
        command = [sys.executable, "-m", "sphinx", "--builder", "html", "--quiet"]
        subprocess.run([*command, str(ROOT / "docs"), str(built)], check=True)
        print(f"{PICTURE.name}: {take(built, PICTURE):,} bytes")


if __name__ == "__main__":
    main()
