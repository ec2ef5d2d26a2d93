"""The demonstration: a grid search on a cluster of local machines, from nothing to nothing.

Owns what is reported while it runs, and the verdict at the end; what is searched is in
`grid_search`. It uses the cluster and the local Compute Engine as any user would, and it alone
decides that their work was good: a result that is missing, a worker that did nothing, anything left
behind is a shortcoming.
"""

from __future__ import annotations

import contextlib
import importlib
import logging
import os
import re
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil
from distributed import Client
from rich.console import Console

from dask_gce.cluster import GCECluster
from dask_gce.emulator import ComputeEmulator, Timings
from dask_gce.errors import GCEError
from dask_gce.grid_search import FITS, Digits, build_search, load_digits
from dask_gce.progress.display import describe

if TYPE_CHECKING:
    from sklearn.model_selection import GridSearchCV

__all__ = ["Outcome", "run"]

PROJECT = "local-project"
ZONE = "us-central1-a"
MACHINE_TYPE = "e2-standard-2"

#: Local machines boot in a second. The cluster's own defaults are made for a minute.
EAGER = {"interval": "250 ms", "wait_count": 40, "target_duration": "250 ms"}

#: At the end the scheduler goes first. Dask's nannies would wait for it to come back until they are
#: killed, which on Google's machines is nobody's concern and here would be the user's time.
TIMINGS = Timings(stopping=1.0)

#: Seconds until the cluster must have all its workers, and until the last instance must be gone.
DEADLINE = 60.0


@dataclass
class Outcome:
    """What the demonstration has shown.

    Parameters
    ----------
    workers : int
        Workers that were asked for.
    best_parameters : dict
        The best parameters found; empty before the search has ended.
    accuracy : float
        Share of the held-out digits that were recognised, 0 to 1.
    fits : collections.Counter
        Fits done, by worker name.
    seconds : dict
        Duration of each phase, in seconds.
    leftovers : list of str
        What still existed at the end.
    """

    workers: int
    best_parameters: dict[str, Any] = field(default_factory=dict)
    accuracy: float = 0.0
    fits: Counter[str] = field(default_factory=Counter)
    seconds: dict[str, float] = field(default_factory=dict)
    leftovers: list[str] = field(default_factory=list)

    def shortcomings(self) -> list[str]:
        """Return what fell short, in sentences; empty if all went well.

        Returns
        -------
        list of str
            One sentence for each shortcoming.
        """
        found = []
        if not self.best_parameters:
            found.append("The search found no parameters.")
        if self.fits.total() < FITS:
            found.append(f"Workers did {self.fits.total()} of {FITS} fits.")
        if len(self.fits) < self.workers:
            found.append(f"{len(self.fits)} of {self.workers} workers took part.")
        return found + [f"Left behind: {each}" for each in self.leftovers]


class _Report:
    """Say what goes on: in place on a terminal, one line for each change elsewhere."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self.seconds: dict[str, float] = {}

    @contextlib.contextmanager
    def phase(self, title: str) -> Iterator[Callable[[str], None]]:
        """Time a phase; yield a function that tells how far it has come."""
        start = time.monotonic()
        last = ""
        with self.console.status(title) as status:

            def tell(text: str) -> None:
                nonlocal last
                status.update(f"{title}: {text}")
                if text != last and not self.console.is_terminal:
                    self.console.print(f"  {text}", highlight=False)
                last = text

            if not self.console.is_terminal:
                self.console.print(f"{title} ...")
            yield tell
        self.seconds[title] = time.monotonic() - start
        self.console.print(f"{title}: {last or 'done'}, {self.seconds[title]:.1f} s")


def run(workers: int = 2, *, keep: bool = False, console: Console | None = None) -> Outcome:
    """Boot a local Compute Engine and a cluster, search, and remove everything again.

    Parameters
    ----------
    workers : int
        Workers to scale up to.
    keep : bool
        Whether to leave the cluster running after the search, until Ctrl-C.
    console : rich.console.Console, optional
        Where to report to; standard output by default.

    Returns
    -------
    Outcome
        What was found, who did it, how long it took and what is left.

    Raises
    ------
    GCEError
        If the cluster does not come up.
    """
    console = console or Console()
    report = _Report(console)
    outcome = Outcome(workers, seconds=report.seconds)
    children = _children()
    with _own_temporary_folder() as folder, contextlib.ExitStack() as stack:
        with report.phase("Data") as tell:
            digits, search = load_digits(), build_search()
            tell(f"{len(digits.train[1])} digits to learn from, {len(digits.test[1])} held out")
        with report.phase("Local Compute Engine") as tell:
            emulator = stack.enter_context(ComputeEmulator("process", timings=TIMINGS))
            tell(emulator.endpoint)
        with report.phase("Scheduler") as tell:
            cluster = stack.enter_context(
                GCECluster(
                    n_workers=0,
                    project=PROJECT,
                    zone=ZONE,
                    machine_type=MACHINE_TYPE,
                    api_endpoint=emulator.endpoint,
                    silence_logs=logging.WARNING,
                    quiet=True,
                )
            )
            client = Client(cluster)
            stack.callback(client.close)
            tell(cluster.scheduler_address)
        console.print(f"Dashboard: {cluster.dashboard_link}", highlight=False, soft_wrap=True)

        with report.phase("Workers") as tell:
            cluster.adapt(minimum=0, maximum=workers, **EAGER)
            _demand_workers(cluster, client, workers, tell)
        with report.phase("Search") as tell:
            outcome.fits = _fit(search, digits, cluster, client, tell)
        outcome.best_parameters = search.best_params_
        outcome.accuracy = search.score(*digits.test)
        _tell_result(console, outcome)
        if keep:
            _run_on(console)

        with report.phase("Clean up"):
            client.close()
            cluster.close()
            outcome.leftovers = _wait_until_empty(emulator)
            stack.close()
            outcome.leftovers += [f"process {each.pid}" for each in _children() - children]
            outcome.leftovers += [f"file {each.name}" for each in folder.iterdir()]
    _tell_verdict(console, outcome)
    return outcome


def _demand_workers(
    cluster: GCECluster, client: Client, workers: int, tell: Callable[[str], None]
) -> None:
    """Give the cluster a reason to grow, and wait until it has."""
    deadline = time.monotonic() + DEADLINE
    # More than one worker would get done in the time it takes the others to boot.
    futures = client.map(_warm_up, range(100 * workers), pure=False)
    try:
        while (count := len(cluster.scheduler_info["workers"])) < workers:
            tell(describe(cluster.board, workers))
            if time.monotonic() > deadline:
                raise GCEError(
                    f"{count} of {workers} workers came within {DEADLINE:g} s. "
                    "Is the computer busy? Try fewer: --workers 1"
                )
            time.sleep(0.1)
    finally:
        client.cancel(futures)
    tell(f"{workers} of {workers}")


def _warm_up(_: int) -> None:
    """Import on the worker what the search needs, so that its timing is the search's alone."""
    importlib.import_module("sklearn.svm")
    time.sleep(0.2)


def _fit(
    search: GridSearchCV,
    digits: Digits,
    cluster: GCECluster,
    client: Client,
    tell: Callable[[str], None],
) -> Counter[str]:
    """Run the search on the cluster; return the number of fits by worker name."""
    import joblib

    client.get_task_stream()  # starts the record
    start = time.time()
    done = threading.Event()
    fits: Counter[str] = Counter()

    def count() -> None:
        fits.clear()
        fits.update(_count_fits(cluster, client, start))
        tell(f"{fits.total()} of {FITS} fits, {len(fits)} workers")

    def watch() -> None:
        while not done.wait(0.25):
            count()

    with ThreadPoolExecutor(1, thread_name_prefix="demo-progress") as pool:
        watching = pool.submit(watch)
        try:
            with joblib.parallel_config("dask", client=client, wait_for_workers_timeout=DEADLINE):
                search.fit(*digits.train)
        finally:
            done.set()
        watching.result()
    count()
    return fits


def _count_fits(cluster: GCECluster, client: Client, start: float) -> Counter[str]:
    """Read from the scheduler's record which worker did how many fits since a moment."""
    names = {
        address: str(worker["name"])
        for address, worker in cluster.scheduler_info["workers"].items()
    }
    fits: Counter[str] = Counter()
    for task in client.get_task_stream(start=start):
        # joblib names its tasks, for example, batch_of__fit_and_score_1_calls-1e88b8...
        calls = re.match(r"batch_of__fit_and_score_(\d+)_calls", str(task["key"]))
        if calls and task["status"] == "OK":
            fits[names.get(task["worker"], task["worker"])] += int(calls[1])
    return fits


def _run_on(console: Console) -> None:
    """Wait for Ctrl-C, which may come as soon as it is told of."""
    with contextlib.suppress(KeyboardInterrupt):
        console.print("The cluster runs on. Ctrl-C ends it.")
        threading.Event().wait()


def _tell_result(console: Console, outcome: Outcome) -> None:
    best = ", ".join(f"{name}={value}" for name, value in sorted(outcome.best_parameters.items()))
    console.print(f"Best parameters: {best}")
    console.print(f"Test accuracy: {outcome.accuracy:.4f}")
    for name, fits in sorted(outcome.fits.items()):
        console.print(f"Took part: {name}, {fits} fits", highlight=False)


def _tell_verdict(console: Console, outcome: Outcome) -> None:
    console.print(f"Total: {sum(outcome.seconds.values()):.1f} s")
    for shortcoming in outcome.shortcomings():
        console.print(shortcoming, style="red", highlight=False)
    if not outcome.leftovers:
        console.print("nothing left behind", style="green")


@contextlib.contextmanager
def _own_temporary_folder() -> Iterator[Path]:
    """Let this process and its children make temporary files where nobody else does."""
    before, variable = tempfile.tempdir, os.environ.get("TMPDIR")
    with tempfile.TemporaryDirectory(prefix="dask-gce-demo-") as folder:
        # The machines may be other users than this one, and their folders are in here.
        Path(folder).chmod(0o711)
        tempfile.tempdir = os.environ["TMPDIR"] = folder
        try:
            yield Path(folder)
        finally:
            tempfile.tempdir = before
            if variable is None:
                del os.environ["TMPDIR"]
            else:
                os.environ["TMPDIR"] = variable


def _children() -> set[psutil.Process]:
    return set(psutil.Process().children(recursive=True))


def _wait_until_empty(emulator: ComputeEmulator) -> list[str]:
    """Return what the local Compute Engine still has once it has had time to delete it."""
    deadline = time.monotonic() + DEADLINE
    while (left := emulator.leftovers()) and time.monotonic() < deadline:
        time.sleep(0.05)
    return list(left)
