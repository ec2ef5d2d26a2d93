"""The figures as text and as a page of the documentation, with the machine that made them."""

from __future__ import annotations

import importlib.metadata
import os
import platform
from collections.abc import Sequence
from datetime import datetime, timezone
from pathlib import Path

import psutil

from .figures import Figure, Value

#: What the figures depend on, beside this package.
PACKAGES = (
    "dask-gce",
    "distributed",
    "dask-cloudprovider",
    "google-cloud-compute",
    "google-api-python-client",
    "aiohttp",
)


def show(value: Value | None, unit: str) -> str:
    """Return a number as people read it.

    Examples
    --------
    >>> show(Value(26.82), "s"), show(Value(0.0041), "s"), show(Value(275.3, "model"), "s")
    ('26.8 s', '4.1 ms', '275 s (model)')
    >>> show(Value(2296.0), "bytes"), show(Value(3920.4), ""), show(None, "s")
    ('2.3 kB', '3,920', '-')
    """
    if value is None:
        return "-"
    number = value.number
    if unit == "bytes":
        number, unit = number / 1000, "kB"
    elif unit == "s" and 0 < number < 0.1:
        number, unit = number * 1000, "ms"
    elif unit == "ms" and number >= 1000:
        number, unit = number / 1000, "s"
    text = f"{number:,.0f}" if not unit or number >= 100 else f"{number:.1f}"
    note = f" ({value.note})" if value.note else ""
    return f"{text} {unit}".rstrip() + note


def show_ratio(ratio: float | None) -> str:
    """Return a ratio as people read it.

    Examples
    --------
    >>> show_ratio(1.0842), show_ratio(23.7), show_ratio(None)
    ('1.08', '24', '-')
    """
    if ratio is None:
        return "-"
    return f"{ratio:.2f}" if ratio < 10 else f"{ratio:,.0f}"


def show_promise(figure: Figure) -> str:
    """Return what is promised, and whether it is kept."""
    if figure.bound is None:
        return "-"
    promise = show(Value(figure.bound), figure.unit)
    if figure.times_floor is not None:
        promise = f"{figure.times_floor:g} x floor"
    return f"{promise}: {'yes' if figure.reached else '**no**'}"


HEADINGS = ("figure", "GCPCluster", "floor", "GCECluster", "of the floor", "better", "at most")


def rows(figures: Sequence[Figure]) -> list[tuple[str, ...]]:
    """Return the table's cells."""
    return [
        (
            figure.title,
            show(figure.rival, figure.unit),
            show(figure.floor, figure.unit),
            show(figure.ours, figure.unit),
            show_ratio(figure.over_floor),
            show_ratio(figure.better_than_rival),
            show_promise(figure),
        )
        for figure in figures
    ]


def render_text(figures: Sequence[Figure]) -> str:
    """Return the table for a terminal."""
    table = [HEADINGS, *rows(figures)]
    widths = [max(len(row[column]) for row in table) for column in range(len(HEADINGS))]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if column == 0 else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in table
    ).replace("**", "")


def render_table(figures: Sequence[Figure]) -> str:
    """Return the table as Markdown."""
    lines = [HEADINGS, ("---", *["---:"] * (len(HEADINGS) - 1)), *rows(figures)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def describe_machine() -> list[str]:
    """Return what the figures were made on, a line each."""
    memory = psutil.virtual_memory().total / 2**30
    versions = []
    for package in PACKAGES:
        try:
            versions.append(f"{package} {importlib.metadata.version(package)}")
        except importlib.metadata.PackageNotFoundError:
            versions.append(f"no {package}")
    return [
        f"{_processor()}, {os.cpu_count()} cores, {memory:.0f} GiB of memory",
        f"{platform.system()} {platform.release()} ({platform.machine()}), "
        f"Python {platform.python_version()}",
        ", ".join(versions),
        f"{datetime.now(timezone.utc):%Y-%m-%d}",
    ]


def _processor() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text("utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or "unknown processor"


#: The page, with a name in braces for whatever the measurements tell.
PAGE = (Path(__file__).parent / "page.md").read_text("utf-8")
