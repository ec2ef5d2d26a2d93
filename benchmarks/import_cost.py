"""What importing the package costs, beside importing distributed.

The promise: ``import dask_gce`` costs at most 60 ms more than ``import distributed`` and does not
import google-cloud-compute. Fresh interpreters take turns, so that both meet the same machine in
the same state; the medians are compared.
"""

from __future__ import annotations

import os
import platform
import statistics
import subprocess
import sys

ROUNDS = 15
PROMISE = 60.0  # milliseconds

STATEMENTS = {
    "distributed": "import distributed",
    "dask_gce": "import distributed, dask_gce",
    "GCECluster": "import distributed; from dask_gce import GCECluster",
}

PROGRAM = """
import sys, time
start = time.perf_counter()
{statement}
print((time.perf_counter() - start) * 1000, "google.cloud.compute_v1" in sys.modules)
"""


def measure(statement: str) -> tuple[float, bool]:
    """Return how many milliseconds a statement takes, and whether it imports Google's client."""
    answer = subprocess.run(
        [sys.executable, "-c", PROGRAM.format(statement=statement)],
        check=True,
        capture_output=True,
        text=True,
    ).stdout.split()
    return float(answer[0]), answer[1] == "True"


def main() -> int:
    """Measure, print, and return an exit status that is not zero if the promise is broken."""
    samples: dict[str, list[float]] = {name: [] for name in STATEMENTS}
    imported: set[str] = set()
    for statement in STATEMENTS.values():
        measure(statement)  # writes the byte code
    for _ in range(ROUNDS):
        for name, statement in STATEMENTS.items():
            milliseconds, google = measure(statement)
            samples[name].append(milliseconds)
            if google:
                imported.add(name)

    medians = {name: statistics.median(values) for name, values in samples.items()}
    print(
        f"{platform.system()} {platform.machine()}, {os.cpu_count()} CPUs, "
        f"Python {platform.python_version()}, median of {ROUNDS} fresh interpreters"
    )
    base = medians["distributed"]
    for name, median in medians.items():
        spread = f"{min(samples[name]):.0f} to {max(samples[name]):.0f}"
        print(
            f"{STATEMENTS[name]:55} {median:6.0f} ms ({spread}), "
            f"{median - base:+5.0f} ms, {median / base:.2f} times"
        )

    broken = []
    if medians["dask_gce"] - base > PROMISE:
        broken.append(f"import dask_gce costs more than {PROMISE:.0f} ms")
    if imported:
        broken.append(f"google.cloud.compute_v1 is imported by: {', '.join(sorted(imported))}")
    for each in broken:
        print(f"BROKEN: {each}")
    return bool(broken)


if __name__ == "__main__":
    sys.exit(main())
