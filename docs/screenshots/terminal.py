"""A terminal on which a cluster starts on a local Compute Engine: while it does, and when it has.

Owns a terminal that is just large enough for the programs of this package, and the pictures of it:

    python docs/screenshots/terminal.py
"""

from __future__ import annotations

import contextlib
import os
import pty
import re
import struct
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from fcntl import ioctl
from io import StringIO
from pathlib import Path
from termios import TIOCSWINSZ

from browser import Browser, save_picture, wait_for_text
from rich.ansi import AnsiDecoder
from rich.console import Console
from rich.terminal_theme import DIMMED_MONOKAI

from dask_gce.emulator import ComputeEmulator, Timings
from dask_gce.machine_states import STATES

IMAGES = Path(__file__).parent.parent / "images"

#: Columns and lines of the terminal.
COLUMNS, LINES = 108, 40

PROGRAM = """\
from dask_gce import GCECluster

if __name__ == "__main__":
    with GCECluster(name="grid", n_workers=8, machine_type="e2-standard-4") as cluster:
        cluster.wait_for_workers(8)
"""

#: A page that looks like a terminal; `rich` fills in the rest.
PAGE = """\
<!DOCTYPE html><meta charset="utf-8">
<style>
body {{ margin: 0; background: {background}; }}
pre {{ margin: 0; padding: 14px 18px; display: inline-block; color: {foreground};
       background: {background}; font: 13px/1.35 "DejaVu Sans Mono", monospace; }}
</style>
<pre><code style="font-family: inherit">{code}</code></pre>
"""

#: What programs send: a control sequence, the end or the beginning of a line, or text.
TOKEN = re.compile(r"\x1b\[([0-9;?]*)([A-Za-z])|(\r|\n)|([^\x1b\r\n]+)")


class Screen:
    """What a terminal shows, as lines with their colours."""

    def __init__(self) -> None:
        self.lines = [""]
        self._line = 0
        self._begins = False
        self._rest = ""

    def feed(self, text: str) -> None:
        """Take what a program has written.

        Parameters
        ----------
        text : str
            It, up to anywhere.
        """
        text = self._rest + text
        # A control sequence may be cut in two.
        whole = re.sub(r"\x1b(\[[0-9;?]*)?\Z", "", text)
        self._rest = text[len(whole) :]
        for match in TOKEN.finditer(whole):
            number, command, end, plain = match.groups()
            if command == "A":
                self._line = max(0, self._line - int(number or 1))
            elif command == "K":
                self.lines[self._line] = ""
            elif command == "m":
                self._write(match[0])
            elif end == "\r":
                self._begins = True
            elif end == "\n":
                self._line += 1
                self._begins = True
                if self._line == len(self.lines):
                    self.lines.append("")
            elif plain:
                self._write(plain)

    def _write(self, text: str) -> None:
        if self._begins:
            self.lines[self._line] = ""
        self._begins = False
        self.lines[self._line] += text

    @property
    def text(self) -> str:
        """What it shows, without colours."""
        return re.sub(r"\x1b\[[0-9;]*m", "", "\n".join(self.lines))

    def render(self) -> str:
        """Return a page of HTML that shows it."""
        console = Console(
            file=StringIO(), record=True, width=COLUMNS, force_terminal=True, legacy_windows=False
        )
        for line in AnsiDecoder().decode("\n".join(self.lines).rstrip()):
            console.print(line, soft_wrap=True)
        return console.export_html(theme=DIMMED_MONOKAI, code_format=PAGE, inline_styles=True)


def run(folder: Path, endpoint: str) -> Iterator[Screen]:
    """Run the program on a terminal, and yield what it shows whenever it has written something.

    Parameters
    ----------
    folder : Path
        Where the program is to lie.
    endpoint : str
        The local Compute Engine's.
    """
    (folder / "search.py").write_text(PROGRAM)
    ours, theirs = pty.openpty()
    ioctl(theirs, TIOCSWINSZ, struct.pack("HHHH", LINES, COLUMNS, 0, 0))
    environment = {
        **os.environ,
        "TERM": "xterm-256color",
        "DASK_GCE__API_ENDPOINT": endpoint,
        "XDG_DATA_HOME": str(folder),
    }
    environment.pop("NO_COLOR", None)
    screen = Screen()
    screen.feed("$ python search.py\r\n")
    with subprocess.Popen(
        [sys.executable, "search.py"], cwd=folder, stdout=theirs, stderr=theirs, env=environment
    ) as program:
        os.close(theirs)
        told = b""
        # On Linux the end of a terminal is an error.
        with contextlib.suppress(OSError):
            while data := os.read(ours, 65536):
                # A character may be cut in two.
                told += data
                with contextlib.suppress(UnicodeDecodeError):
                    screen.feed(told.decode())
                    told = b""
                    yield screen
        os.close(ours)
    if program.returncode:
        raise RuntimeError(f"The program ended with {program.returncode}:\n{screen.text}")


def states_of(text: str) -> Counter[str]:
    """Count the states of workers that are shown by name."""
    return Counter(re.findall(rf"-worker-\w+ +({'|'.join(STATES)}) ", text))


def main() -> None:
    """Take the pictures."""
    meanwhile = at_end = ""
    most: tuple[int, int] = (0, 0)
    with (
        tempfile.TemporaryDirectory() as folder,
        ComputeEmulator("process", timings=Timings(stopping=1)) as emulator,
    ):
        for screen in run(Path(folder), emulator.endpoint):
            text = screen.text
            states = states_of(text)
            # The picture in which there is most to see.
            shown = (len(states), min(states.values(), default=0))
            if "━" in text and shown > most:
                most, meanwhile = shown, screen.render()
            if re.search(r"grid: 8 workers.* in ", text):
                at_end = screen.render()
    if not (meanwhile and at_end):
        raise RuntimeError("The terminal has shown no progress.")
    with tempfile.TemporaryDirectory() as folder, Browser(1000, 600, sharpness=1.5) as browser:
        for name, page in (("progress-terminal", meanwhile), ("progress-summary", at_end)):
            file = Path(folder, f"{name}.html")
            file.write_text(page)
            shown_page = browser.open(file.as_uri())
            wait_for_text(shown_page, "python search.py")
            size = save_picture(shown_page.locator("pre"), IMAGES / f"{name}.png", colours=160)
            print(f"{name}.png: {size} bytes")


if __name__ == "__main__":
    main()
