"""The pictures of the page about the architecture: ``python docs/pictures/draw.py``.

Owns what is in them. They are written to docs/images, where the pages find them; a test compares
them with what is drawn here.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final

from canvas import KINDS, Canvas

__all__ = ["FOLDER", "PHASES", "PICTURES", "main"]

FOLDER: Final = Path(__file__).parents[1] / "images"

#: The phases of a machine's boot that are drawn: with containers, and without.
PHASES: Final[Mapping[str, tuple[str, ...]]] = {
    "container": (
        "booted",
        "driver-installing",
        "image-pulling",
        "image-ready",
        "environment-building",
        "environment-ready",
        "starting",
        "running",
    ),
    "vm": (
        "booted",
        "driver-installing",
        "environment-building",
        "environment-ready",
        "starting",
        "running",
    ),
}


def _first(lanes: Mapping[str, int], *names: str) -> str:
    """Return which of some lanes is the leftmost."""
    return min(names, key=lanes.__getitem__)


def draw_start() -> str:
    """Return the start of a cluster, as a sequence.

    Returns
    -------
    str
        The picture.
    """
    canvas = Canvas(960, 630, "The start of a cluster, from the first look-up to the first task")
    lanes = {"you": 110, "google": 370, "scheduler": 620, "workers": 850}
    heads = {
        "you": ("Your Python\nGCECluster", "you"),
        "google": ("Google's APIs\nCompute Engine", "google"),
        "scheduler": ("Scheduler's\nmachine", "machine"),
        "workers": ("Workers'\nmachines", "machine"),
    }
    for lane, (words, kind) in heads.items():
        canvas.line((lanes[lane], 74), (lanes[lane], 620), dashed=True)
        canvas.box(lanes[lane] - 80, 24, 160, 50, words, kind)

    def step(y: int, start: str, end: str, words: str, dashed: bool = False) -> None:
        inward = 6 if lanes[start] < lanes[end] else -6
        canvas.arrow((lanes[start] + inward, y), (lanes[end] - inward, y), dashed=dashed)
        # Between the first two lanes that it crosses, not on one of them.
        left, right = sorted(lanes.values())[list(lanes).index(_first(lanes, start, end)) :][:2]
        canvas.words((left + right) // 2, y - 6, words)

    def note(y: int, lane: str, words: str, kind: str, height: int = 42) -> None:
        canvas.box(lanes[lane] - 92, y, 184, height, words, kind)

    step(106, "you", "google", "look up, all at once")
    note(118, "you", "Nothing exists yet\ncertificates are made here", "you")
    step(196, "you", "google", "insert all machines")
    step(222, "google", "scheduler", "machine is made")
    step(248, "google", "workers", "machines are made")
    step(282, "you", "google", "list, each second")
    step(316, "you", "google", "firewall rules")
    note(268, "scheduler", "boots\nimage, then Dask", "machine")
    note(268, "workers", "boot\nbeside the scheduler's", "machine")
    step(358, "you", "scheduler", "connect when its port answers, TLS")
    canvas.box(lanes["you"] - 92, 374, 184, 26, "GCECluster(...) returns", "you")
    step(424, "workers", "scheduler", "register, TLS")
    step(458, "scheduler", "you", "workers have arrived", dashed=True)
    step(492, "you", "google", "setMetadata: keys go")
    step(532, "you", "scheduler", "tasks")
    step(532, "scheduler", "workers", "tasks")
    step(566, "workers", "scheduler", "results", dashed=True)
    step(566, "scheduler", "you", "results", dashed=True)
    canvas.words(240, 606, "Time goes down, answers are dashed.")
    return canvas.to_svg()


def draw_boot() -> str:
    """Return the boot of a machine, by its phases.

    Returns
    -------
    str
        The picture.
    """
    canvas = Canvas(960, 560, "The boot of a machine, by the phases that it reports")
    said = {
        "booted": "the startup script runs",
        "driver-installing": "only with GPUs",
        "image-pulling": "the container image",
        "image-ready": "it is on the disk",
        "environment-building": "what environment names",
        "environment-ready": "versions are compared",
        "starting": "a worker waits for its scheduler",
        "running": "Dask runs",
    }
    rows = {phase: 66 + number * 58 for number, phase in enumerate(PHASES["container"])}
    columns = {"container": 60, "vm": 360}
    titles = {"container": "runtime = container", "vm": "runtime = vm"}
    for runtime, x in columns.items():
        canvas.words(x + 125, 40, titles[runtime], bold=True)
        phases = PHASES[runtime]
        for phase in phases:
            canvas.box(x, rows[phase], 250, 42, f"{phase}\n{said[phase]}", "machine")
        for phase, following in itertools.pairwise(phases):
            canvas.arrow((x + 125, rows[phase] + 42), (x + 125, rows[following]))
    canvas.box(680, 150, 230, 62, "failed: reason\nor no Dask in time", "end")
    canvas.box(680, 316, 230, 62, "Dask ends\nas told, idle, or its time is over", "plain")
    canvas.box(680, 452, 230, 62, "The machine deletes itself\nor powers off, if it may not", "end")
    canvas.arrow((610, 181), (680, 181), words="")
    canvas.arrow((610, rows["running"] + 21), (645, rows["running"] + 21), (645, 347), (680, 347))
    canvas.arrow((795, 378), (795, 452))
    canvas.arrow((910, 181), (935, 181), (935, 483), (910, 483))
    canvas.words(795, 232, "from any phase")
    return canvas.to_svg()


def draw_reach() -> str:
    """Return who may talk to whom.

    Returns
    -------
    str
        The picture.
    """
    canvas = Canvas(960, 560, "Who may talk to whom")
    canvas.box(30, 60, 200, 96, "Your computer\nclient with a certificate,\nbrowser", "you")
    canvas.box(30, 250, 200, 70, "Identity-Aware Proxy\nasks Google who you are", "google")
    canvas.box(30, 420, 200, 70, "Anybody else", "end")
    canvas.box(400, 30, 300, 500, "", "plain")
    canvas.words(550, 52, "VPC network", bold=True, rim=KINDS["plain"][0])
    canvas.box(
        440,
        80,
        220,
        110,
        "Scheduler's machine\nport 8786: TLS, both sides\nport 8787: dashboard, plain",
        "machine",
    )
    canvas.box(440, 270, 220, 62, "Worker's machine\nTLS, both sides", "machine")
    canvas.box(440, 420, 220, 62, "Worker's machine\nTLS, both sides", "machine")
    canvas.box(760, 60, 170, 62, "Compute Engine\nmetadata server", "google")
    canvas.box(760, 200, 170, 62, "Registry, index\nwhere images are", "google")
    canvas.box(760, 340, 170, 62, "Secret Manager\nif you choose it", "google")
    canvas.arrow((230, 100), (440, 100))
    canvas.words(313, 94, "external: your address")
    canvas.arrow((130, 156), (130, 250))
    canvas.words(140, 208, "iap", anchor="start")
    canvas.arrow((230, 285), (330, 285), (330, 160), (440, 160))
    canvas.words(322, 240, "35.235.240.0/20", anchor="end")
    canvas.line((230, 455), (370, 455))
    canvas.line((360, 443), (380, 467))
    canvas.line((360, 467), (380, 443))
    canvas.words(300, 446, "no rule, no way")
    canvas.arrow((550, 270), (550, 190), both=True)
    canvas.words(560, 234, "register, tasks", anchor="start", rim=KINDS["plain"][0])
    canvas.arrow((550, 332), (550, 420), both=True)
    canvas.words(560, 380, "data", anchor="start", rim=KINDS["plain"][0])
    canvas.arrow((480, 420), (480, 345), (425, 345), (425, 135), (440, 135), both=True)
    for y in (91, 231, 371):
        canvas.arrow((700, y), (760, y))
    canvas.words(550, 504, "internal: a client in here is let in", rim=KINDS["plain"][0])
    canvas.words(550, 522, "as the network's rules say", rim=KINDS["plain"][0])
    canvas.words(480, 550, "Certificates are of this cluster only: another cluster's are refused.")
    return canvas.to_svg()


PICTURES: Final[Mapping[str, Callable[[], str]]] = {
    "boot.svg": draw_boot,
    "reach.svg": draw_reach,
    "start.svg": draw_start,
}


def main() -> None:
    """Write all pictures."""
    FOLDER.mkdir(exist_ok=True)
    for name, draw in PICTURES.items():
        (FOLDER / name).write_text(draw(), encoding="utf-8")


if __name__ == "__main__":
    main()
