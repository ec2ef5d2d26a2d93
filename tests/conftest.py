"""What every test has: Google's discovery document as a witness, and a clean place to leave.

Owns: the validator over every exchange of every emulator, the check that a test leaves nothing, the
fixtures `emulator`, `process_emulator`, `namespace_emulator`, `light` and `paper_workers`. The work
is done by `discovery`, `leftovers` and `machines`.
"""

from __future__ import annotations

import asyncio
import shutil
import signal
import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import distributed
import machines
import pytest
from clusters import wait_until
from discovery import VALIDATOR, Validator
from hypothesis import settings
from leftovers import DATA_FOLDER, Snapshot, adopt_orphans, other_tasks

# Importing these registers their defaults in dask.config, which no test is to do.
import dask_gce.settings
from dask_gce.emulator import ComputeEmulator, Timings

_ = dask_gce.settings, distributed

# An example's time says more about the machine than about the code. And no run has examples of its
# own: what one shows, the next one shows too.
settings.register_profile("the same each time", deadline=None, derandomize=True)
settings.load_profile("the same each time")


def pytest_configure(config: pytest.Config) -> None:
    """Give the run a temporary folder of its own and let the validator listen."""
    config.stash[_FOLDER] = Path(tempfile.mkdtemp(prefix="dask-gce-tests-"))
    config.stash[_MONKEYPATCH] = patch = pytest.MonkeyPatch()
    patch.setenv("TMPDIR", str(config.stash[_FOLDER]))
    # Where connection files are: never the developer's own.
    patch.setenv("XDG_DATA_HOME", str(config.stash[_FOLDER] / DATA_FOLDER))
    patch.setattr(tempfile, "tempdir", str(config.stash[_FOLDER]))
    ComputeEmulator.default_observers.append(VALIDATOR)
    adopt_orphans(True)
    # A shell's background job ignores these, and so would the programs that tests interrupt.
    if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    if signal.getsignal(signal.SIGHUP) == signal.SIG_IGN:
        signal.signal(signal.SIGHUP, signal.SIG_DFL)


def pytest_unconfigure(config: pytest.Config) -> None:
    """Undo it."""
    adopt_orphans(False)
    ComputeEmulator.default_observers.remove(VALIDATOR)
    config.stash[_MONKEYPATCH].undo()
    shutil.rmtree(config.stash[_FOLDER], ignore_errors=True)


_FOLDER = pytest.StashKey[Path]()
_MONKEYPATCH = pytest.StashKey[pytest.MonkeyPatch]()


@pytest.fixture(autouse=True)
def nothing_left(request: pytest.FixtureRequest) -> Iterator[None]:
    """Fail a test that leaves processes, threads, sockets, files or changed settings."""
    snapshot = Snapshot(request.config.stash[_FOLDER])
    yield
    leftovers = snapshot.leftovers()
    assert not leftovers, "the test left:\n" + "\n".join(leftovers)


#: Seconds for the tasks that a test has ended to have ended: each takes a few turns of its loop,
#: and on which one it is is settled by the order in which sockets and threads are heard.
LAST_TURNS = 2.0


@pytest.fixture(autouse=True)
async def no_task_left(nothing_left: None) -> AsyncIterator[None]:
    """Fail a test that leaves tasks in its loop."""
    before = other_tasks()
    yield
    if ending := other_tasks() - before:
        await asyncio.wait(ending, timeout=LAST_TURNS)
    tasks = other_tasks() - before
    assert not tasks, f"the test left tasks: {tasks}"


@pytest.fixture(autouse=True)
def discovery(nothing_left: None) -> Iterator[Validator]:
    """Fail a test during which an exchange was not Compute Engine v1.

    A test that sends something wrong on purpose takes the faults with ``discovery.take()``.
    """
    VALIDATOR.take()
    yield VALIDATOR
    faults = VALIDATOR.take()
    assert not faults, "not Compute Engine v1:\n" + "\n".join(faults[:20])


@pytest.fixture
def emulator(discovery: Validator) -> Iterator[ComputeEmulator]:
    """Return a local Compute Engine whose machines are paper."""
    before = discovery.exchanges
    with ComputeEmulator("paper") as running:
        yield running
        heard = discovery.exchanges - before
        # All of them but for those that their clients did not wait for.
        assert heard >= sum(running.requests.values()) // 2, "the validator does not listen"


@pytest.fixture
def process_emulator(discovery: Validator) -> Iterator[ComputeEmulator]:
    """Return a local Compute Engine whose machines are processes."""
    with ComputeEmulator("process") as running:
        yield running
    assert not running.leftovers()


@pytest.fixture
def namespace_emulator(discovery: Validator) -> Iterator[ComputeEmulator]:
    """Return a local Compute Engine with real machines; a test that asks `needs_namespaces`."""
    from dask_gce.emulator.machines.namespace.kind import NamespaceKind

    kind = NamespaceKind(
        image=machines.image_folder(),
        shared_folders=machines.shared_folders(),
    )
    # A power button that is pressed on a busy host: what runs then must not be cut off.
    with ComputeEmulator(kind, timings=Timings(stopping=30)) as running:
        yield running
    assert not running.leftovers()


@pytest.fixture
def light(discovery: Validator) -> Iterator[ComputeEmulator]:
    """Return a local Compute Engine whose Dask workers are real, but share two processes."""
    with ComputeEmulator("light", timings=Timings(stopping=1)) as running:
        yield running
        wait_until(lambda: not running.leftovers())


@pytest.fixture
def paper_workers(discovery: Validator) -> Iterator[ComputeEmulator]:
    """Return a local Compute Engine whose scheduler is real, and whose workers boot for ever."""
    with ComputeEmulator("paper-workers", timings=Timings(stopping=1)) as running:
        yield running
        wait_until(lambda: not running.leftovers())
