"""The campaign of dead clients: whatever a client was doing when it died, nothing is left.

A seed draws a script: settings, what a client does one after another, and the moment of its death,
as a point in what it does (before its third request arrives, when its fifth has been answered, two
seconds into a computation). The client is a process of its own and is killed, or cut off from
everybody, or put to sleep like a closed laptop. From then on nobody of ours is alive but the local
Compute Engine and its machines::

    python tests/dead_clients.py --runs 200 --seed 0            # killed
    python tests/dead_clients.py --runs 50 --seed 0 --cut       # cut off, and let back later
    python tests/dead_clients.py --runs 50 --seed 0 --sleep     # asleep, and woken later
    python tests/dead_clients.py --only 17                      # one seed again

Within its limits every machine, disk, firewall rule and secret must be gone. Where the machines
act as no account, which could delete them, they must be off, and one ``dask gce sweep`` leaves
nothing. Each run is told as a line of JSON, all together as a table. Owns the scripts, the moments
and the judgement; what a client does is in `played_client`, its connections in `silent_line`.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from silent_line import Line, Point

from dask_gce.emulator import ComputeEmulator, Fault, Timings

Mode = Literal["kill", "cut", "sleep"]

ZONES = ("us-central1-a", "us-central1-b", "europe-west1-b")
DELETE = "compute.instances.delete"

#: Whom the machines act as, if they act as anybody.
ACCOUNT = "dask@local-project.iam.gserviceaccount.com"

#: What has become of a client.
STATES = {"kill": "killed", "cut": "cut", "sleep": "asleep"}

#: What a client does.
DEEDS = (
    "create",
    "scale",
    "adapt",
    "await_workers",
    "compute",
    "submit",
    "rest",
    "leave_client",
    "close",
)

#: Workers' machines of a cluster at most, for the sake of the computer that runs all of them.
MACHINES = 3

#: Seconds that a machine whose Dask failed stays.
LINGER = 2.0

#: Seconds for which a sign of life of a cluster's object counts. It gives one every 3 s.
ATTENDED = 10.0

#: Seconds that machines get to start.
START = 60.0

#: Seconds that a scheduler's machine takes over what would outlive the cluster.
ENDING = 30.0

#: Seconds after which a client that says nothing counts as gone. It says something every 5 s.
SILENCE = 12.0

#: Has a scheduler's machine not wait for long for a client whose connection has not ended.
IMPATIENCE = f"""
import sys
def dask_setup(scheduler):
    sys.modules["guard"].SILENCE = {SILENCE}
"""

#: Seconds that whatever is timed by the limits may take beside, on a busy computer.
SLACK = 90.0

#: Seconds for a client's script until its moment, which it may not reach.
LONGEST_SCRIPT = 240.0

#: Seconds that a client gets to end in order, once it is let back.
RETURN = 120.0

#: Seconds for which there must be nothing before nothing is believed to be left.
QUIET = 1.0


@dataclass(frozen=True)
class Moment:
    """When a client dies."""

    #: Number of the step that it has begun.
    step: int
    #: In the course of which request since then; None for a time.
    point: Point | None
    request: int
    #: Seconds after that, or after the beginning of the step.
    delay: float

    def __str__(self) -> str:
        if self.point is None:
            return f"{self.delay:g} s into it"
        return f"request {self.request} {self.point}, {self.delay:g} s later"


@dataclass(frozen=True)
class Script:
    """All that a seed decides."""

    seed: int
    mode: Mode
    settings: dict[str, Any]
    timings: dict[str, float]
    steps: tuple[tuple[str, tuple[Any, ...]], ...]
    moment: Moment
    #: What befalls the scheduler's machine when the client is dead, and how much later.
    mishap: tuple[str, float] | None
    #: How often Compute Engine refuses a machine's own deletion.
    refusals: int
    #: What the machines' account may not do, beside deleting a machine.
    denied: tuple[str, ...]

    @property
    def deed(self) -> str:
        """What the client does when it dies."""
        return self.steps[self.moment.step][0]

    @property
    def lifetime(self) -> float:
        """Seconds after which Compute Engine deletes machines that run."""
        seconds: float = self.settings["max_lifetime"] * self.timings["run_duration_scale"]
        return seconds

    @property
    def bound(self) -> float:
        """Seconds within which everything must be gone, from the death on."""
        timeouts = [self.settings.get(key, 0.0) for key in ("idle_timeout", "no_client_timeout")]
        held = [each for each in timeouts if each not in (0.0, float("inf"))]
        death = self.settings["death_timeout"]
        # A machine that boots while the client dies counts from its own beginning.
        by_itself = max(held, default=self.lifetime) + (0.0 if death == float("inf") else death)
        beside = ATTENDED + ENDING + LINGER + self.timings["stopping"] + SLACK
        if self.mode != "kill":
            beside += SILENCE
        if "secrets" in self.settings:
            # Until there is a machine to delete them they are made to end by themselves.
            beside += START * len(self.settings["zone"])
        return max(by_itself, self.lifetime) + beside

    @property
    def may_delete(self) -> bool:
        """Whether the machines act as an account, which may delete them, and are on to do so."""
        is_off = self.mishap is not None and self.mishap[0] in ("power_off", "host_error")
        return self.settings.get("service_account") is not None and not is_off

    @property
    def may_tidy(self) -> bool:
        """Whether the scheduler's machine is there at the end and may delete what is no machine."""
        return not self.denied and (self.mishap is None or self.mishap[0] != "delete")

    @property
    def detached(self) -> bool:
        """Whether the cluster is to outlive its client."""
        return not self.settings.get("shutdown_on_close", True)

    def __str__(self) -> str:
        lines = [f"seed {self.seed} ({self.mode}): {self.settings}, {self.timings}"]
        lines += [f"{n:3} {deed}{arguments}" for n, (deed, arguments) in enumerate(self.steps)]
        lines.append(
            f"step {self.moment.step}, {self.moment}; then {self.mishap}, {self.refusals} "
            f"refusals, denied {self.denied}"
        )
        return "\n".join(lines)


def write_script(seed: int, mode: Mode = "kill") -> Script:
    """Return the script of a seed.

    Parameters
    ----------
    seed : int
        The seed.
    mode : {"kill", "cut", "sleep"}
        What becomes of the client.
    """
    draw = random.Random(f"{seed} {mode}")  # noqa: S311  # it guards nothing
    settings: dict[str, Any] = {
        "zone": list(draw.sample(ZONES, draw.choice((1, 1, 2, 3)))),
        "machine_type": "e2-small",
        "worker_class": draw.choice(("distributed.Worker", "distributed.Nanny")),
        "nthreads": 1,
        "memory_limit": "500MiB",
        "n_workers": draw.choice((0, 1, 2)),
        "allow_cross_zone": draw.random() < 0.3,
        "start_timeout": START,
        "worker_start_timeout": START,
        "idle_timeout": draw.choice((6.0, 10.0)),
        "no_client_timeout": draw.choice((3.0, 6.0)),
        "max_lifetime": 60.0,
        "death_timeout": draw.choice((3.0, 6.0)),
        "quiet": True,
    }
    if mode != "kill":
        settings["scheduler_options"] = {"preload": IMPATIENCE}
    if draw.random() < 0.7:
        settings["service_account"] = ACCOUNT
        if draw.random() < 0.4:
            settings["secrets"] = "secret-manager"
    single = draw.random() < 0.2
    if single:
        settings["single_node"] = True
    elif draw.random() < 0.4:
        settings["spot"] = draw.choice((True, "fallback"))
    if draw.random() < 0.2:
        # It is to outlive its client, so that only its own end is left.
        settings["shutdown_on_close"] = False
        settings["name"] = f"left-{seed}"
        del settings["no_client_timeout"]
    elif draw.random() < 0.2:
        # One limit has to be enough.
        left = draw.choice(("idle_timeout", "no_client_timeout", "max_lifetime"))
        for key in ("idle_timeout", "no_client_timeout"):
            if key != left:
                settings[key] = float("inf")
    if draw.random() < 0.15:
        settings["death_timeout"] = float("inf")
    slow = draw.random() < 0.5
    timings = {
        "provisioning": 0.5 if slow else 0.05,
        "staging": 0.3 if slow else 0.05,
        "booting": draw.choice((0.0, 2.0)),
        "deleting": 0.5 if slow else 0.05,
        "creating": 0.5 if slow else 0.02,
        "latency": 0.1 if slow else 0.005,
        "stopping": draw.choice((1.0, 4.0)),
        # The scheduler's machine ends a cluster a moment before Compute Engine ends its machines,
        # and needs this moment to take the rest away. Of a day it is a minute.
        "run_duration_scale": 1.5,
    }
    steps = [("create", (draw.random() < 0.7,))]
    for _ in range(draw.randint(1, 4)):
        steps.append(_draw_step(draw))
    if draw.random() < 0.8:
        steps.append(("close", ()))
    point = draw.choice((None, None, "asked", "sent", "answered"))
    last = len(steps) - 1
    step = draw.choice((0, last, *2 * [*range(1, last + 1)]))
    moment = Moment(
        step,
        point,
        # A start takes some twenty requests, what follows fewer.
        draw.randint(1, 30 if step == 0 else 4 if step == last else 6),
        round(draw.uniform(0, 8 if step == 0 else 1.2 if step == last else 2.5), 2)
        if point is None
        else draw.choice((0.0, 0.0, round(draw.random(), 2))),
    )
    if mode != "kill" and step < last:
        # Whoever is let back is to learn what has happened meanwhile.
        steps.insert(last if steps[last][0] == "close" else last + 1, ("learn", ()))
    mishap = None
    if draw.random() < 0.2:
        kind = draw.choice(("host_error", "power_off", "delete"))
        mishap = (kind, round(draw.uniform(0, 4), 2))
    denied: tuple[str, ...] = ()
    if settings.get("service_account") and draw.random() < 0.2:
        # The one permission that is needed is that to delete the machine.
        denied = ("compute.firewalls.*", "secretmanager.secrets.delete")
    return Script(
        seed,
        mode,
        settings,
        timings,
        tuple(steps),
        moment,
        mishap,
        draw.choice((0, 0, 0, 0, 1, 3)),
        denied,
    )


def _draw_step(draw: random.Random) -> tuple[str, tuple[Any, ...]]:
    deed = draw.choice(
        ("scale", "scale", "scale", *DEEDS[2:-1]),
    )
    arguments: tuple[Any, ...] = ()
    if deed == "scale":
        arguments = (draw.randint(0, MACHINES),)
    elif deed == "adapt":
        arguments = (draw.randint(0, 1), draw.randint(1, MACHINES))
    elif deed == "await_workers":
        arguments = (1,)
    elif deed == "compute":
        arguments = (draw.randint(1, 20), round(draw.uniform(0, 0.3), 2))
    elif deed == "submit":
        arguments = (draw.randint(1, 20), draw.choice((0.5, 10.0)))
    elif deed == "rest":
        arguments = (round(draw.uniform(0, 3), 2),)
    return deed, arguments


class Leak(AssertionError):
    """Something is left that must not be."""


@dataclass
class Report:
    """What became of a run."""

    seed: int
    mode: str
    deed: str
    moment: str
    #: What became of the client: it was killed, or had ended before.
    client: str = ""
    #: Machines that there were at its death, by their status.
    machines: dict[str, int] = field(default_factory=dict)
    #: Seconds from its death until nothing was left, or until all machines were off.
    seconds: float | None = None
    #: What a sweep had to take away.
    swept: list[str] = field(default_factory=list)
    #: Clusters that there were.
    clusters: int = 0
    #: Faults injected, beside the client's death.
    faults: int = 0
    #: What the client said of it, once it was let back.
    said: list[str] = field(default_factory=list)
    #: What is wrong; empty if nothing is.
    wrong: str = ""


class Client:
    """The client's process.

    Parameters
    ----------
    plan : dict
        What it is to do.
    folder : Path
        Where its data and what it prints goes.
    """

    def __init__(self, plan: dict[str, Any], folder: Path) -> None:
        environment = {**os.environ, "XDG_DATA_HOME": str(folder / "data"), "TMPDIR": str(folder)}
        self.errors = folder / "errors"
        with self.errors.open("wb") as errors:
            self._process = subprocess.Popen(
                [sys.executable, str(Path(__file__).with_name("played_client.py"))],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                env=environment,
                start_new_session=True,
            )
        assert self._process.stdin is not None
        with self._process.stdin as stdin:
            stdin.write(json.dumps(plan).encode())
        self.said: list[list[str]] = []
        self.ended = threading.Event()
        self._listening = threading.Thread(target=self._listen, name="client's words")
        self._on_step: Callable[[int], object] = lambda number: None

    def start(self, on_step: Callable[[int], object]) -> None:
        """Listen to it; call something with the number of each step that it begins."""
        self._on_step = on_step
        self._listening.start()

    def _listen(self) -> None:
        assert self._process.stdout is not None
        with self._process.stdout as words:
            for line in words:
                # A word that was cut off is its last.
                with contextlib.suppress(ValueError):
                    word, *more = json.loads(line)
                    if word == "step":
                        self._on_step(int(more[0]))
                    else:
                        self.said.append([word, *more])
        self._process.wait()
        self.ended.set()

    @property
    def status(self) -> int | None:
        """Its exit status, None while it lives."""
        return self._process.poll()

    def signal(self, number: int) -> None:
        """Send a signal to it and all that it has started."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, number)

    def close(self) -> None:
        """End it in any case."""
        self.signal(signal.SIGCONT)
        self.signal(signal.SIGKILL)
        self._listening.join()


def play(script: Script) -> Report:
    """Play a script.

    Parameters
    ----------
    script : Script
        What happens.

    Returns
    -------
    Report
        What became of it; what is wrong is in it.
    """
    report = Report(script.seed, script.mode, script.deed, str(script.moment))
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="dead-client-")))
        emulator = stack.enter_context(ComputeEmulator(timings=Timings(**script.timings)))
        api = int(emulator.endpoint.rpartition(":")[2])
        line = stack.enter_context(Line(api, folder))
        for permission in script.denied:
            emulator.permissions.deny(permission, member=f"serviceAccount:{ACCOUNT}")
        client = Client(
            {
                "settings": {
                    "project": "local-project",
                    "api_endpoint": emulator.endpoint,
                    **script.settings,
                },
                "steps": script.steps,
                "linger": LINGER,
                "attended": ATTENDED,
                "line": str(line.control),
            },
            folder,
        )
        stack.callback(client.close)
        try:
            _Run(script, report, emulator, line, client).run()
        except Leak as leak:
            told = [f"{word}: {' '.join(more)[:500]}" for word, *more in client.said]
            report.wrong = "\n".join(
                [str(leak), str(script), *told, client.errors.read_text(errors="replace")[-3000:]]
            )
            report.wrong += "\n" + _consoles(emulator)
        report.said = [" ".join(words)[:200] for words in client.said]
    return report


def _consoles(emulator: ComputeEmulator) -> str:
    return "\n".join(
        f"{each['name']}: {each['status']} {each['labels']}" for each in emulator.instances()
    )


class _Run:
    """One run, from the client's first step to the judgement."""

    def __init__(
        self,
        script: Script,
        report: Report,
        emulator: ComputeEmulator,
        line: Line,
        client: Client,
    ) -> None:
        self.script = script
        self.report = report
        self.emulator = emulator
        self.line = line
        self.client = client
        self._struck = threading.Event()
        self._timers: list[threading.Timer] = []
        self._came_back = False
        #: When a cluster that is there has been there for some time already.
        self._began = time.time()

    def run(self) -> None:
        try:
            self.client.start(self._note_step)
            self._await_moment()
            died = time.monotonic()
            self._began = time.time()
            self._look_at_death()
            self._mishap()
            self._await_end(died)
            if self.report.client in ("cut", "asleep"):
                self._let_back()
            self._sweep()
        finally:
            for timer in self._timers:
                timer.cancel()

    # -- the moment -------------------------------------------------------------------------------

    def _note_step(self, number: int) -> None:
        moment = self.script.moment
        if number != moment.step:
            return
        if moment.point is None or not moment.delay:
            strike: Callable[[], object] = self._strike
        else:

            def strike() -> None:
                self._later(moment.delay)

        if moment.point is None:
            self._later(moment.delay)
        else:
            self.line.arm(moment.point, moment.request, strike)

    def _later(self, seconds: float) -> None:
        timer = threading.Timer(seconds, self._strike)
        self._timers.append(timer)
        timer.start()

    def _strike(self) -> None:
        """Kill the client, or cut it off, or put it to sleep."""
        if self.script.mode == "kill":
            self.client.signal(signal.SIGKILL)
        elif self.script.mode == "sleep":
            self.client.signal(signal.SIGSTOP)
        else:
            self.line.cut()
        self._struck.set()

    def _await_moment(self) -> None:
        deadline = time.monotonic() + LONGEST_SCRIPT
        while not self._struck.is_set() and not self.client.ended.is_set():
            if time.monotonic() > deadline:
                # Without a request there is no such moment: now is one too.
                self._strike()
            time.sleep(0.005)
        if self.script.mode == "kill" and self._struck.is_set():
            self.client.ended.wait(SLACK)

    def _look_at_death(self) -> None:
        # Its end, and not the moment: that may have come when it was ending anyway.
        if self.client.ended.is_set() and self.client.status != -signal.SIGKILL:
            self.report.client = f"had ended with status {self.client.status}"
        else:
            self.report.client = STATES[self.script.mode]
        for each in self.emulator.instances():
            status = each["status"]
            self.report.machines[status] = self.report.machines.get(status, 0) + 1
        self.report.clusters = int(bool(self.emulator.requests["compute.firewalls.insert"]))

    def _mishap(self) -> None:
        """Let happen what befalls everybody else."""
        if self.script.refusals:
            self.report.faults += self.script.refusals
            self.emulator.faults.add(Fault(DELETE, status=503, times=self.script.refusals))
        if self.script.mishap is None:
            return
        kind, delay = self.script.mishap
        time.sleep(delay)
        for each in self.emulator.instances():
            is_on = each["status"] in ("RUNNING", "STAGING", "PROVISIONING")
            if each["labels"].get("dask-gce-role") == "scheduler" and is_on:
                options = {"user": "colleague@example.org"} if kind == "delete" else {}
                # It may have gone by itself in this instant.
                with contextlib.suppress(Exception):
                    getattr(self.emulator, kind)(each["name"], **options)
                    self.report.faults += 1

    # -- the judgement ----------------------------------------------------------------------------

    def _await_end(self, died: float) -> None:
        """Wait until nobody's machines run any more, and where they can, until nothing is left."""
        quiet_since = None
        while True:
            now = time.monotonic()
            if not self._costs():
                quiet_since = quiet_since or now
                if now - quiet_since > QUIET:
                    break
            else:
                quiet_since = None
            if now - died > self.script.bound:
                raise Leak(
                    f"{now - died:.0f} s after the end of the client, limit "
                    f"{self.script.bound:.0f} s, there is:\n" + "\n".join(self.emulator.leftovers())
                )
            time.sleep(0.05)
        if self.report.seconds is None:
            self.report.seconds = round(quiet_since - died, 2)

    def _costs(self) -> list[str]:
        """Return what must go by itself."""
        left = self.emulator.leftovers()
        if not self.script.may_delete:
            return [
                each
                for each in left
                if not each.endswith("TERMINATED")
                and not each.startswith(("disk ", "firewall rule ", "secret "))
                and "was not discarded" not in each
            ] + [each for each in left if "runs as process" in each]
        if not self.script.may_tidy:
            return [each for each in left if not each.startswith(("firewall rule ", "secret "))]
        return left

    def _let_back(self) -> None:
        """Let the client back; it must find its way out and leave nothing."""
        if self.script.mode == "cut":
            self.line.mend()
        else:
            self.client.signal(signal.SIGCONT)
        if self.client.ended.is_set():
            return  # it had given up, and said what it left
        if not self.client.ended.wait(LONGEST_SCRIPT + RETURN):
            raise Leak("the client that was let back did not come to its end")
        if self.client.status != 0:
            raise Leak(f"the client that was let back ended with status {self.client.status}")
        self._came_back = True
        words = {word for word, *_ in self.client.said}
        created = any(
            word == "event" and "requested" in " ".join(m) for word, *m in self.client.said
        )
        if created and ("learn", ()) in self.script.steps and not words & {"learned", "error"}:
            raise Leak("the client that was let back has not learned that its cluster has ended")
        # What it was about to ask for may have arrived with it.
        self._await_end(time.monotonic())

    def _sweep(self) -> None:
        """Have what is left swept, by another process; nothing may be left then."""
        left = [
            each
            for each in self.emulator.leftovers()
            if each.startswith(("instance ", "firewall ", "secret "))
        ]
        if not left:
            return
        if self._came_back and not self.script.detached:
            raise Leak("the client that was let back left:\n" + "\n".join(left))
        self.report.swept = sorted({each.split()[0] for each in left})
        if self.script.detached:
            # Whoever could connect to it may still want it, until the end that it was given.
            time.sleep(max(0.0, self._began + self.script.settings["max_lifetime"] - time.time()))
        environment = {
            **os.environ,
            "DASK_GCE__API_ENDPOINT": self.emulator.endpoint,
            "DASK_GCE__PROJECT": "local-project",
        }
        done = subprocess.run(
            [sys.executable, "-m", "dask", "gce", "sweep", "--delete"],
            env=environment,
            capture_output=True,
            text=True,
            timeout=SLACK,
            check=False,
        )
        deadline = time.monotonic() + SLACK
        while still := self.emulator.leftovers():
            if time.monotonic() > deadline:
                raise Leak(
                    "after a sweep there is:\n"
                    + "\n".join([*still, "before it:", *left, done.stdout, done.stderr])
                )
            time.sleep(0.05)


# -- the campaign ---------------------------------------------------------------------------------


def run_alone(seed: int, mode: Mode) -> Report:
    """Play a seed in a process of its own, whose end shows what is left on this computer."""
    longest = LONGEST_SCRIPT + RETURN + 4 * SLACK + 120
    try:
        done = subprocess.run(
            [sys.executable, __file__, "--play", str(seed), "--mode", mode],
            capture_output=True,
            text=True,
            timeout=longest,
            check=False,
        )
        return Report(**json.loads(done.stdout.splitlines()[-1]))
    except subprocess.TimeoutExpired:
        wrong = f"no end within {longest:g} s"
    except (IndexError, ValueError, TypeError):
        wrong = f"exit status {done.returncode}\n{done.stdout}\n{done.stderr}"
    script = write_script(seed, mode)
    return Report(seed, mode, script.deed, str(script.moment), wrong=wrong)


def play_alone(seed: int, mode: Mode) -> Report:
    """Play a seed here; what it leaves on this computer is wrong as well."""
    from leftovers import Snapshot, adopt_orphans

    adopt_orphans(True)
    with tempfile.TemporaryDirectory() as folder:
        os.environ["TMPDIR"] = tempfile.tempdir = folder
        snapshot = Snapshot(Path(folder))
        report = play(write_script(seed, mode))
        if not report.wrong and (left := snapshot.leftovers()):
            report.wrong = "left on this computer:\n" + "\n".join(left)
    return report


def summarize(reports: list[Report]) -> str:
    """Return the figures of a campaign as a Markdown table."""
    rows = [
        "| the client | while it | runs | clusters | faults beside | nothing left after: median, "
        "longest | swept | resources left |",
        "|---|---|--:|--:|--:|--:|--:|--:|",
    ]
    for mode in dict.fromkeys(each.mode for each in reports):
        of_mode = [each for each in reports if each.mode == mode]
        groups = [(deed, [r for r in of_mode if r.deed == deed]) for deed in DEEDS]
        for deed, group in [*groups, ("all", of_mode)]:
            if group:
                rows.append(_row(mode, deed, group))
    return "\n".join(rows)


def _row(mode: str, deed: str, group: list[Report]) -> str:
    times = sorted(each.seconds for each in group if each.seconds is not None)
    took = f"{statistics.median(times):.1f} s, {times[-1]:.1f} s" if times else "-"
    return (
        f"| {STATES[mode]} | {deed} | {len(group)} | {sum(each.clusters for each in group)} | "
        f"{sum(each.faults for each in group)} | {took} | "
        f"{sum(bool(each.swept) for each in group)} | {sum(bool(each.wrong) for each in group)} |"
    )


@contextlib.contextmanager
def _told(path: Path | None) -> Iterator[Callable[[Report], None]]:
    with contextlib.ExitStack() as stack:
        file = stack.enter_context(path.open("w", encoding="utf-8")) if path else sys.stdout

        def tell(report: Report) -> None:
            print(json.dumps(vars(report)), file=file, flush=True)

        yield tell


def main() -> int:
    """Play seeds from the command line."""
    parser = argparse.ArgumentParser(description="Kill clients, and look what is left.")
    parser.add_argument("--runs", type=int, default=20, help="how many seeds")
    parser.add_argument("--seed", type=int, default=0, help="the first of them")
    parser.add_argument("--jobs", type=int, default=1, help="how many at a time")
    parser.add_argument("--mode", choices=("kill", "cut", "sleep"), default="kill")
    parser.add_argument("--cut", dest="mode", action="store_const", const="cut")
    parser.add_argument("--sleep", dest="mode", action="store_const", const="sleep")
    parser.add_argument("--only", type=int, help="play this seed, and print its script")
    parser.add_argument("--play", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--lines", type=Path, help="file for the lines of JSON")
    arguments = parser.parse_args()
    if arguments.play is not None:
        print(json.dumps(vars(play_alone(arguments.play, arguments.mode))))
        return 0
    if arguments.only is not None:
        print(write_script(arguments.only, arguments.mode), flush=True)
        seeds = [arguments.only]
    else:
        seeds = [*range(arguments.seed, arguments.seed + arguments.runs)]
    reports: list[Report] = []
    with _told(arguments.lines) as tell, ThreadPoolExecutor(arguments.jobs) as pool:
        for report in pool.map(lambda seed: run_alone(seed, arguments.mode), seeds):
            reports.append(report)
            tell(report)
    print(summarize(reports))
    failed = [each for each in reports if each.wrong]
    for each in failed:
        print(f"\nseed {each.seed} ({each.mode}): {each.wrong}")
    return bool(failed)


if __name__ == "__main__":
    sys.exit(main())
