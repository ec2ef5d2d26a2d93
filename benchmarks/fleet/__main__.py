"""Measure everything in one run, print it, and write docs/performance.md and its picture."""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from .cloud import INSERT, LIST
from .figures import Figure, Results, Value, build_figures, median
from .plot import draw
from .report import PAGE, describe_machine, render_table, render_text, show

ROOT = Path(__file__).parents[2]


@dataclass(frozen=True)
class Plan:
    """How much is measured.

    Parameters
    ----------
    workers : int
        Workers of ours and of the floor.
    sizes : tuple of int
        Workers of the rival, which is too slow for as many.
    repeats : int
        Runs of what is short.
    """

    workers: int
    sizes: tuple[int, int]
    repeats: int

    def runs(self) -> list[tuple[str, str, int]]:
        """Return all runs in order; what is compared takes turns."""
        small, large = self.sizes
        short = [
            ("floor", "first", 1),
            ("ours", "first", 1),
            ("rival", "first", 1),
            ("floor", "many", self.workers),
            ("ours", "many", self.workers),
            ("ours", "acting", 10),
        ]
        once = [
            ("rival", "many", small),
            ("rival", "many", large),
            ("ours", "lost", 40),
            ("rival", "lost", 40),
            ("rival", "acting", 10),
            ("ours", "memory", self.workers),
            ("rival", "memory", small),
            ("ours", "joined", self.workers),
        ]
        return short * self.repeats + once


FULL = Plan(workers=1000, sizes=(100, 300), repeats=3)
QUICK = Plan(workers=1000, sizes=(20, 60), repeats=1)


def run(contender: str, measurement: str, workers: int) -> dict[str, float]:
    """Run one measurement in a process of its own."""
    command = [
        sys.executable,
        "-W",
        "ignore",
        "-m",
        "benchmarks.fleet.measure",
        contender,
        measurement,
        "--workers",
        str(workers),
    ]
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True)
    result: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return result


def measure(plan: Plan) -> Results:
    """Run everything and say so."""
    results: dict[tuple[str, str, int], list[dict[str, float]]] = {}
    runs = plan.runs()
    for number, key in enumerate(runs, 1):
        start = time.monotonic()
        results.setdefault(key, []).append(run(*key))
        contender, measurement, workers = key
        numbers = ", ".join(f"{name} {value:.4g}" for name, value in results[key][-1].items())
        print(
            f"[{number}/{len(runs)}] {contender} {measurement} ({workers}): {numbers}"
            f" [{time.monotonic() - start:.0f} s]",
            flush=True,
        )
    return results


def version_of_rival() -> str:
    """Return the version of dask-cloudprovider."""
    return importlib.metadata.version("dask-cloudprovider")


def write_page(results: Results, figures: list[Figure], plan: Plan) -> None:
    """Write the page and its picture."""
    small, large = plan.sizes
    measured = "\n".join(
        f"| {size} | {show(Value(median(results['rival', 'many', size], 'known')), 's')} "
        f"| {show(Value(median(results['rival', 'many', size], 'calls')), '')} "
        f"| {show(Value(median(results['rival', 'many', size], 'closed')), 's')} |"
        for size in plan.sizes
    )
    page = PAGE.format(
        table=render_table(figures),
        insert=INSERT,
        list=LIST,
        workers=plan.workers,
        repeats=plan.repeats,
        patient=plan.workers / 20,
        busy=median(results["ours", "joined", plan.workers], "busy"),
        rival=version_of_rival(),
        threads=min(32, (os.cpu_count() or 1) + 4),
        small=small,
        large=large,
        measured=measured,
        machine="\n".join(f"- {line}" for line in describe_machine()),
    )
    (ROOT / "docs" / "performance.md").write_text(page, "utf-8")
    (ROOT / "docs" / "performance.svg").write_text(draw(figures), "utf-8")


def main() -> int:
    """Measure, print, write; the exit status is not zero if a promise was not kept."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.fleet", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="measure less, and write nothing")
    options = parser.parse_args()
    plan = QUICK if options.quick else FULL
    results = measure(plan)
    figures = build_figures(results, plan.workers, plan.sizes)
    print(*describe_machine(), "", render_text(figures), sep="\n")
    if not options.quick:
        write_page(results, figures, plan)
    broken = [figure.title for figure in figures if figure.reached is False]
    for title in broken:
        print(f"BROKEN: {title}")
    return bool(broken)


if __name__ == "__main__":
    sys.exit(main())
