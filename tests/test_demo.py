"""The demonstration shows what is true, and says so when something is not."""

from __future__ import annotations

import contextlib
import io
import re
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from http.client import HTTPConnection
from pathlib import Path

import dask
import psutil
import pytest
import validated
from click.testing import CliRunner
from discovery import VALIDATOR
from rich.console import Console
from sklearn.datasets import load_digits
from sklearn.model_selection import GridSearchCV, train_test_split
from sklearn.svm import SVC

from dask_gce import demo
from dask_gce.cli import gce
from dask_gce.grid_search import FITS


def perfect() -> demo.Outcome:
    return demo.Outcome(2, best_parameters={"C": 1}, accuracy=0.9, fits=Counter(a=FITS - 1, b=1))


def test_nothing_falls_short_of_perfect():
    assert perfect().shortcomings() == []


@pytest.mark.parametrize(
    ("field", "value", "sentence"),
    [
        ("best_parameters", {}, "The search found no parameters."),
        ("fits", Counter(a=1, b=1), f"Workers did 2 of {FITS} fits."),
        ("fits", Counter(a=FITS), "1 of 2 workers took part."),
        ("leftovers", ["process 7"], "Left behind: process 7"),
    ],
)
def test_every_shortcoming_is_told(field, value, sentence):
    outcome = perfect()
    setattr(outcome, field, value)
    assert outcome.shortcomings() == [sentence]


def test_verdict_claims_nothing_that_is_not_true():
    outcome = perfect()
    outcome.leftovers = ["file x"]
    written = io.StringIO()
    demo._tell_verdict(Console(file=written), outcome)
    assert "Left behind: file x" in written.getvalue()
    assert "nothing left behind" not in written.getvalue()


def test_ctrl_c_ends_what_runs_on_as_soon_as_it_is_told_of():
    class Pressed(Console):
        def print(self, *objects: object, **options: object) -> None:
            super().print(*objects, **options)
            raise KeyboardInterrupt

    written = io.StringIO()
    try:
        demo._run_on(Pressed(file=written))
    except KeyboardInterrupt:
        pytest.fail("it ends the command, and not what runs on")
    assert "Ctrl-C ends it" in written.getvalue()


def test_command_fails_if_the_cluster_does():
    with dask.config.set({"gce.boot-disk-type": "pd-nowhere"}):
        answer = CliRunner().invoke(gce, ["demo"])
    assert answer.exit_code == 1
    assert "Error: " in answer.stderr
    assert "nowhere" in answer.stderr


def test_command_wants_at_least_one_worker():
    answer = CliRunner().invoke(gce, ["demo", "--workers", "0"])
    assert answer.exit_code == 2
    assert "--workers" in answer.stderr


@pytest.mark.parametrize(
    ("arguments", "status", "text"),
    [
        (["--help"], 0, "--address-file"),
        (["--machines", "steam"], 2, "invalid choice: 'steam'"),
    ],
)
def test_emulator_command_takes_the_options_of_the_module(arguments, status, text):
    answer = CliRunner().invoke(gce, ["emulator", *arguments])
    assert answer.exit_code == status
    assert text in answer.output


# -- Ended from outside

# A demonstration is processes that import for seconds each.
patient = pytest.mark.timeout(600)


@contextlib.contextmanager
def running(tmp_path: Path, *arguments: str) -> Iterator[subprocess.Popen[str]]:
    """Run the command with a temporary folder by which its processes can be told."""
    report = tmp_path / "report"
    process = subprocess.Popen(
        [sys.executable, validated.__file__, str(report), "dask", "gce", "demo", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={"TMPDIR": str(tmp_path), "HOME": str(tmp_path), "PATH": "/usr/bin:/bin"},
    )
    with process:
        try:
            yield process
        finally:
            if process.poll() is None:
                process.kill()
    before = VALIDATOR.exchanges
    VALIDATOR.read(report)
    assert VALIDATOR.exchanges - before > 5


def read_until(process: subprocess.Popen[str], text: str) -> str:
    assert process.stdout
    read = ""
    for line in process.stdout:
        read += line
        if text in line:
            return read
    raise AssertionError(f"{text!r} never came:\n{read}")


def processes_of(folder: Path) -> list[psutil.Process]:
    found = []
    for process in psutil.process_iter():
        try:
            if str(folder) in " ".join([*process.cmdline(), *process.environ().values()]):
                found.append(process)
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue
    return found


def without_dask() -> tuple[dict[str, object], float]:
    """Return the best parameters and the accuracy of the same search in this process."""
    images, digits = load_digits(return_X_y=True)
    train, test, train_digits, test_digits = train_test_split(
        images, digits, test_size=0.3, random_state=0
    )
    parameters = {
        "C": [1e-4, 1, 1e4],
        "gamma": [1e-3, 1, 1e3],
        "class_weight": [None, "balanced"],
    }
    search = GridSearchCV(SVC(kernel="rbf"), parameters, cv=3).fit(train, train_digits)
    return search.best_params_, search.score(test, test_digits)


@patient
def test_demo_finds_what_the_search_finds_without_dask_and_ends_when_interrupted(tmp_path):
    with running(tmp_path, "--workers", "2", "--keep") as process:
        read = read_until(process, "The cluster runs on.")
        address = re.search(r"Dashboard: http://(127[\d.]+):(\d+)(/\S+)", read)
        assert address, read
        host, port, path = address.groups()
        with contextlib.closing(HTTPConnection(host, int(port), timeout=60)) as connection:
            connection.request("GET", path)
            assert connection.getresponse().status == 200
        process.send_signal(signal.SIGINT)
        rest = process.stdout.read() if process.stdout else ""
        assert process.wait(60) == 0, rest

    best, accuracy = without_dask()
    named = ", ".join(f"{name}={best[name]}" for name in sorted(best))
    assert f"Best parameters: {named}\n" in read
    assert f"Test accuracy: {accuracy:.4f}\n" in read
    fits = re.findall(r"Took part: dask-\w+-worker-\w+, (\d+) fits\n", read)
    assert len(fits) == 2
    assert sum(map(int, fits)) == FITS
    for phase in ("Data", "Local Compute Engine", "Scheduler", "Workers", "Search"):
        assert re.search(rf"^{phase}: .*, [\d.]+ s$", read, re.MULTILINE), phase
    assert "tls://127." in read
    assert rest.splitlines()[-1] == "nothing left behind"
    assert processes_of(tmp_path) == []
    assert not list(tmp_path.glob("dask-gce-demo-*"))


@patient
def test_terminated_demo_takes_its_machines_with_it(tmp_path):
    with running(tmp_path, "--workers", "1") as process:
        read_until(process, "Dashboard: ")
        assert len(processes_of(tmp_path)) > 1
        process.send_signal(signal.SIGTERM)
        rest = process.stdout.read() if process.stdout else ""
        assert process.wait(60) == 128 + signal.SIGTERM, rest
    assert processes_of(tmp_path) == []
    assert not list(tmp_path.glob("dask-gce-demo-*"))
