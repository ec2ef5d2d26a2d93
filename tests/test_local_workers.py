"""Workers on the scheduler's machine: they come when it answers, and go when it does."""

from __future__ import annotations

import asyncio
import json
import re
import signal
from types import SimpleNamespace

import pytest
from clusters import until
from guests import Guest
from ports import quiet_port

from dask_gce.startup import (
    LocalWorkers,
    Payload,
    Tls,
    build_metadata,
    guest_file,
    scheduler_spec,
    worker_spec,
)

#: A `dask` that is a scheduler, which answers a moment later, or workers that do what is planned:
#: end with a status, or stay until they are told. Either writes down what it sees.
DASK = """#!{python}
import json, os, signal, socket, sys, time
output = {output!r}
file = sys.argv[sys.argv.index("--spec-file") + 1]
spec = json.load(open(file))
role = "scheduler" if "cls" in spec else "workers"
def say(**what):
    line = json.dumps({{"role": role, "at": time.monotonic(), "pid": os.getpid(), **what}}) + "\\n"
    os.write(log, line.encode())
log = os.open(output + ".log", os.O_WRONLY | os.O_APPEND | os.O_CREAT)
def told(number, frame):
    say(told=number)
    if not os.path.exists(output + ".deaf"):
        time.sleep(json.load(open(output + ".takes")).get(role, 0))
        os._exit(0 if role == "scheduler" else 3)
signal.signal(signal.SIGTERM, told)
each = spec["opts"] if role == "scheduler" else next(iter(spec.values()))["opts"]
files = {{name: [open(path).read(), os.stat(path).st_mode & 0o777]
         for name, path in (each["security"] or {{}}).items() if isinstance(path, str)}}
say(started=sys.argv[1:], spec=spec, files=files)
if role == "scheduler":
    time.sleep(0.2)
    server = socket.create_server((each["host"], each["port"]))
plan = json.load(open(output + "." + role))
# The last line may be in the midst of being written by the other.
lines = [json.loads(line) for line in open(output + ".log") if line.endswith("\\n")]
done = sum(1 for line in lines if "started" in line and line["role"] == role)
act = plan[min(done, len(plan)) - 1]
while act == "stay":
    time.sleep(0.01)
    if role == "scheduler" and os.path.exists(output + ".end"):
        act = 7
say(ended=act)
os._exit(act)
"""


class Machine(Guest):
    """A guest whose scheduler stays, and whose workers follow a plan."""

    def __init__(self, folder, *workers, scheduler="stay", **changes):
        super().__init__(folder, dask=DASK, **changes)
        self._file("scheduler").write_text(json.dumps([scheduler]))
        self._file("workers").write_text(json.dumps(workers))
        self.takes()

    def _file(self, kind):
        return self.output.with_name(f"{self.output.name}.{kind}")

    def end(self):
        """Let the scheduler end, with status 7."""
        self._file("end").touch()

    def takes(self, **seconds):
        """Let a role take its time when it is told to end."""
        self._file("takes").write_text(json.dumps(seconds))

    def be_deaf(self):
        """Let signals do nothing."""
        self._file("deaf").touch()

    def log(self, role=None, what=None):
        """Return what was written down."""
        file = self._file("log")
        # The last line may be in the midst of being written.
        whole, _, _ = (file.read_text() if file.exists() else "").rpartition("\n")
        lines = [json.loads(line) for line in whole.splitlines()]
        return [
            line
            for line in lines
            if role in (None, line["role"]) and (what is None or what in line)
        ]

    async def until(self, role, what, count=1):
        """Wait until something was written down so often."""
        await until(lambda: len(self.log(role, what)) >= count)


def payload(*, options=None, tls=None, worker_tls=None, processes=2, **scheduler_options):
    port = quiet_port()
    return Payload(
        role="scheduler",
        project="p",
        container_image="ghcr.io/dask/dask:latest",
        spec=scheduler_spec(
            protocol="tls", port=port, dashboard_port=8787, options=scheduler_options
        ),
        ports=(port, 8787),
        tls=tls,
        local=LocalWorkers(
            worker_spec(
                worker_class="distributed.Nanny",
                scheduler_address=None,
                nthreads=1,
                memory_limit=10**9,
                options=options or {},
            ),
            processes,
            worker_tls,
        ),
    )


async def run(machine, payload, then):
    """Run a machine; do something while it runs; return its exit status and its console."""
    status, _, output = await machine.run(payload, during=then)
    return status, output


async def test_they_start_once_the_scheduler_answers(tmp_path):
    machine = Machine(tmp_path, "stay")

    async def then(process):
        await machine.until("workers", "started")
        machine.end()

    plan = payload(options={"resources": {"GPU": 1}, "preload": ["a 'b' $HOME"]}, processes=3)
    status, output = await run(machine, plan, then)
    assert status == 7, output
    scheduler, workers = machine.log(what="started")
    assert (scheduler["role"], workers["role"]) == ("scheduler", "workers")
    port = plan.spec["opts"]["port"]
    assert workers["started"][:2] == ["spec", f"tls://127.0.0.1:{port}"]
    assert list(workers["spec"]) == [f"dask-1-worker-2-{number}" for number in range(3)]
    for name, each in workers["spec"].items():
        assert each == {
            "cls": "distributed.Nanny",
            "opts": {
                "nthreads": 1,
                "memory_limit": 10**9,
                "resources": {"GPU": 1},
                "preload": ["a 'b' $HOME"],
                "name": name,
                "host": "127.0.0.1",
                "security": None,
                "dashboard_address": "127.0.0.1:0",
            },
        }
    assert output.count("dask-gce phase: running") == 1


async def test_a_single_one_has_a_number_too(tmp_path):
    machine = Machine(tmp_path, 0)

    async def then(process):
        await machine.until("workers", "ended")
        machine.end()

    await run(machine, payload(processes=1), then)
    (workers,) = machine.log("workers", "started")
    assert list(workers["spec"]) == ["dask-1-worker-2-0"]


async def test_each_role_has_its_own_certificate(tmp_path):
    machine = Machine(tmp_path, 0)

    async def then(process):
        await machine.until("workers", "ended")
        machine.end()

    own, others = Tls("the ca", "scheduler's", "its key"), Tls("the ca", "worker's", "their key")
    _, output = await run(machine, payload(tls=own, worker_tls=others), then)
    scheduler, workers = machine.log(what="started")
    assert scheduler["files"] == {
        "tls_ca_file": ["the ca", 0o600],
        "tls_scheduler_cert": ["scheduler's", 0o600],
        "tls_scheduler_key": ["its key", 0o600],
    }
    assert workers["files"] == {
        "tls_ca_file": ["the ca", 0o600],
        "tls_worker_cert": ["worker's", 0o600],
        "tls_worker_key": ["their key", 0o600],
    }
    assert "key" not in output


async def test_they_start_again_after_pauses_that_grow(tmp_path):
    machine = Machine(tmp_path, 3, 3, 3, 3, 0, **{"AGAIN, AGAIN_AT_MOST": "0.2, 0.6"})

    async def then(process):
        await machine.until("workers", "ended", count=5)
        machine.end()

    status, output = await run(machine, payload(), then)
    assert status == 7
    starts = [line["at"] for line in machine.log("workers", "started")]
    ends = [line["at"] for line in machine.log("workers", "ended")]
    pauses = [start - end for end, start in zip(ends, starts[1:], strict=False)]
    assert len(pauses) == 4
    for pause, least in zip(pauses, [0.2, 0.4, 0.6, 0.6], strict=True):
        assert pause >= least
    # How much longer they take is the machine's business.
    told = re.findall(r"ended with exit status 3; they start again in (.*) s", output)
    assert told == ["0.2", "0.4", "0.6", "0.6"]


async def test_after_a_while_a_failure_is_a_first_one(tmp_path):
    machine = Machine(tmp_path, 3, 3, 3, 0, STEADY=0, **{"AGAIN, AGAIN_AT_MOST": "0.1, 9"})

    async def then(process):
        await machine.until("workers", "ended", count=4)
        machine.end()

    _, output = await run(machine, payload(), then)
    assert output.count("they start again in 0.1 s") == 3


async def test_those_that_were_let_go_stay_away(tmp_path):
    machine = Machine(tmp_path, 0, **{"AGAIN, AGAIN_AT_MOST": "0.01, 0.01"})

    async def then(process):
        await machine.until("workers", "ended")
        await asyncio.sleep(0.3)
        machine.end()

    status, _ = await run(machine, payload(), then)
    assert status == 7
    assert len(machine.log("workers", "started")) == 1


async def test_they_end_with_the_scheduler(tmp_path):
    machine = Machine(tmp_path, "stay")

    async def then(process):
        await machine.until("workers", "started")
        machine.end()

    status, _ = await run(machine, payload(), then)
    assert status == 7
    assert [line["told"] for line in machine.log("workers", "told")] == [signal.SIGTERM]


async def test_what_does_not_end_is_killed(tmp_path):
    machine = Machine(tmp_path, "stay", GRACE=1.5)

    async def then(process):
        await machine.until("workers", "started")
        machine.be_deaf()
        machine.end()

    status, _ = await run(machine, payload(), then)
    assert status == 7
    assert machine.log("workers", "told")
    assert not machine.log("workers", "ended")


@pytest.mark.parametrize("slow", ["scheduler", "workers"])
async def test_signals_reach_both_once_and_nothing_starts_again(tmp_path, slow):
    machine = Machine(tmp_path, "stay", **{"AGAIN, AGAIN_AT_MOST": "0.01, 0.01"})
    machine.takes(**{slow: 0.5})

    async def then(process):
        await machine.until("workers", "started")
        process.send_signal(signal.SIGTERM)

    status, output = await run(machine, payload(), then)
    assert status == 0
    assert "start again" not in output
    for role in ("scheduler", "workers"):
        assert [line["told"] for line in machine.log(role, "told")] == [signal.SIGTERM]
    assert len(machine.log("workers", "started")) == 1


async def test_without_a_scheduler_there_are_none(tmp_path):
    machine = Machine(tmp_path, "stay", scheduler=5)

    async def then(process):
        await machine.until("scheduler", "ended")

    status, _ = await run(machine, payload(), then)
    assert status == 5


# -- what the scheduler is told of them -------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "preload", "arguments"),
    [
        ({}, [], None),
        ({"preload": "mine"}, ["mine"], None),
        ({"preload": ["mine", "yours"], "preload_argv": ["--all"]}, ["mine", "yours"], ["--all"]),
        ({"preload": ["mine"], "preload_argv": [["--a"]]}, ["mine"], [["--a"], []]),
    ],
)
async def test_a_preload_joins_those_of_the_user(tmp_path, given, preload, arguments):
    machine = Machine(tmp_path, 0)

    async def then(process):
        await machine.until("workers", "ended")
        machine.end()

    await run(machine, payload(**given), then)
    (scheduler,) = machine.log("scheduler", "started")
    options = scheduler["spec"]["opts"]
    if preload:
        assert options["preload"][:-1] == preload
    else:
        # Dask looks into its configuration only when no preload is given.
        assert options["preload"][0].endswith("/config_preloads.py")
    assert options["preload"][-1].endswith("/keep_local.py")
    assert options.get("preload_argv") == arguments


def test_the_host_opens_the_ports_that_the_system_may_choose():
    plan = payload()
    assert build_metadata(plan)["dask-gce-ports"] == "1024:65535"
    low = Payload(**{**vars(plan), "ports": (443, 8787)})
    assert build_metadata(low)["dask-gce-ports"] == "443,1024:65535"
    alone = Payload(**{**vars(plan), "local": None, "ports": (443, 8787)})
    items = build_metadata(alone)
    assert items["dask-gce-ports"] == "443,8787"
    assert not any("local" in key for key in items)


def test_secrets_of_theirs_are_in_no_representation():
    plan = payload(options={"token": "hidden"}, worker_tls=Tls("ca", "certificate", "private"))
    assert "hidden" not in repr(plan)
    assert "private" not in repr(plan)


def test_scaling_down_asks_for_none_of_them():
    scope: dict[str, object] = {}
    exec(compile(guest_file("keep_local.py"), "keep_local.py", "exec"), scope)  # noqa: S102 # ours
    assert "dask_gce" not in guest_file("keep_local.py")
    plugin = scope["KeepLocal"]()
    here, there = SimpleNamespace(host="10.0.0.2"), SimpleNamespace(host="10.0.0.20")
    scheduler = SimpleNamespace(address="tls://10.0.0.2:8786")
    assert plugin.valid_workers_downscaling(scheduler, [here, there]) == [there]
