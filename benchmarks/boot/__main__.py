"""Measure cold boots of workers in both runtimes, print them, and write docs/boot-times.md."""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "tests"))  # what real machines boot is made for the tests

import machines  # noqa: E402 # only now is it found

from benchmarks.fleet.report import describe_machine  # noqa: E402

from .machines import Bench, make_bench  # noqa: E402
from .timeline import Boot  # noqa: E402

#: What a data scientist's environment might hold; with all that they require.
ENVIRONMENT = ("distributed", "bokeh", "joblib", "numpy", "scikit-learn")
#: The digest under which a machine keeps its environment, and the one of another with the same
#: packages, which the machine therefore builds anew, of what is in uv's cache.
DIGEST, OTHER = "dask-gce-environment", "0123456789abcdef{:02d}"


@dataclass(frozen=True)
class Case:
    """A boot that is measured.

    Parameters
    ----------
    title : str
        Its name in the table.
    bound : float or None
        What is promised of our share, in seconds.
    boots : list of Boot
        What was measured.
    """

    title: str
    bound: float | None
    boots: list[Boot] = field(default_factory=list)

    def median(self, value: Callable[[Boot], float]) -> float:
        """Return the median of something over all boots."""
        return statistics.median(value(boot) for boot in self.boots)

    @property
    def kept(self) -> bool | None:
        """Whether the promise was kept; None if there is none."""
        return None if self.bound is None else self.median(lambda boot: boot.ours) <= self.bound


def packages() -> list[str]:
    """Return an environment as it is installed here, pinned."""
    return machines.pins(machines.requirements(ENVIRONMENT))


def measure_containers(repeats: int) -> Case:
    """Measure workers whose container image is on their machine."""
    case = Case("container, image on the machine", 0.3)
    settings = {"container_image": machines.DASK_IMAGE}
    with make_bench(settings, shared_folders=machines.shared_folders()) as bench:
        case.boots.extend(bench.boot_worker() for _ in range(repeats))
    return case


def measure_environments(repeats: int) -> Sequence[Case]:
    """Measure workers that build their environment, with and without uv's cache."""
    count = len(packages())
    cold = Case(f"vm, {count} packages fetched and installed", None)
    cached = Case(f"vm, {count} packages in uv's cache", 1.0)
    kept = Case(f"vm, environment of {count} packages kept on the machine", None)
    settings: dict[str, Any] = {"runtime": "vm", "environment": packages()}
    with make_bench(settings, shared_folders=machines.shared_folders()) as bench:
        for number in range(repeats):
            _measure_environment(bench, number, cold, cached, kept)
    return cold, cached, kept


def _measure_environment(bench: Bench, number: int, cold: Case, cached: Case, kept: Case) -> None:
    cold.boots.append(bench.boot_worker())
    cached.boots.append(bench.boot_again({DIGEST: OTHER.format(number)}))
    kept.boots.append(bench.boot_again({}))


HEADINGS = ("boot", "until the script starts", "script start to Dask started", "at most")


def rows(cases: Sequence[Case]) -> list[tuple[str, ...]]:
    """Return the table's cells.

    Examples
    --------
    >>> boot = Boot(0.0, [(0.9, "booted"), (1.1, "running")])
    >>> rows([Case("container", 0.3, [boot])])
    [('container', '0.90 s', '0.20 s', '0.3 s: yes')]
    """
    table = []
    for case in cases:
        promise = "-"
        if case.bound is not None:
            promise = f"{case.bound:g} s: {'yes' if case.kept else '**no**'}"
        system, ours = (case.median(get) for get in (lambda boot: boot.system, _ours))
        table.append((case.title, f"{system:.2f} s", f"{ours:.2f} s", promise))
    return table


def _ours(boot: Boot) -> float:
    return boot.ours


def step_rows(cases: Sequence[Case]) -> list[tuple[str, str, str]]:
    """Return how long each phase took, in the order of the phases.

    Examples
    --------
    >>> boot = Boot(0.0, [(1.0, "booted"), (1.25, "starting"), (1.5, "running")])
    >>> step_rows([Case("container", 0.3, [boot])])
    [('container', 'booted', '0.250 s'), ('container', 'starting', '0.250 s')]
    """
    table = []
    for case in cases:
        steps = [boot.steps() for boot in case.boots]
        for phase in steps[0]:
            seconds = statistics.median(step.get(phase, 0.0) for step in steps)
            table.append((case.title, phase, f"{seconds:.3f} s"))
    return table


def as_table(headings: Sequence[str], cells: Sequence[Sequence[str]]) -> str:
    """Return a table in Markdown."""
    lines = [headings, ["---", *["---:"] * (len(headings) - 1)], *cells]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def render(cases: Sequence[Case], repeats: int) -> str:
    """Return the page of the documentation."""
    page = (Path(__file__).parent / "page.md").read_text("utf-8")
    return page.format(
        repeats=repeats,
        table=as_table(HEADINGS, rows(cases)),
        steps=as_table(("boot", "phase", "lasted"), step_rows(cases)),
        machine="\n".join(f"- {line}" for line in describe_machine()),
    )


def main() -> int:
    """Measure, print, write; the exit status is not zero if a promise was not kept."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.boot", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="measure less, and write nothing")
    options = parser.parse_args()
    obstacle = machines.find_obstacle()
    if obstacle is not None:
        print(f"Not measured: {obstacle}.")
        return 0
    repeats = 1 if options.quick else 5
    cases = [measure_containers(repeats), *measure_environments(repeats)]
    print(as_table(HEADINGS, rows(cases)), as_table(("boot", "phase", "lasted"), step_rows(cases)))
    if not options.quick:
        (ROOT / "docs" / "boot-times.md").write_text(render(cases, repeats), "utf-8")
    broken = [case.title for case in cases if case.kept is False]
    for title in broken:
        print(f"BROKEN: {title}")
    return bool(broken)


if __name__ == "__main__":
    sys.exit(main())
