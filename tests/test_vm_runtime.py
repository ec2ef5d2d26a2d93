"""The startup script without containers: what it builds, when it does not, and what it says."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from pathlib import Path
from typing import Any

import pytest
from startup_scripts import LATE_CURL

from dask_gce.boot.environment import Environment
from dask_gce.emulator.machines.metadata import MetadataServer
from dask_gce.emulator.record import InstanceRecord
from dask_gce.startup import Payload, build_metadata

#: A command that writes down how it was called, does what uv or Python would, and ends as planned.
COMMAND = """#!{python} -IS
import json, os, shutil, sys, time
folder, me = {folder!r}, os.path.abspath(sys.argv[0])
name, words = os.path.basename(me), sys.argv[1:]
call = [name, *words]
with open(folder + "/calls", "a") as calls:
    calls.write(json.dumps(call) + "\\n")
plan = json.load(open(folder + "/plan.json"))
said, status = plan.get(" ".join(call[:3])) or plan.get(" ".join(call[:2])) or ["", 0]
print(said, file=sys.stderr)
def put(path):
    os.makedirs(os.path.dirname(path), exist_ok=True)
    shutil.copy(me, path)
if name == "setpriv":
    if status:
        sys.exit(status)
    words = words[words.index("--init-groups") + 1:]
    os.execvp(words[0], words)
elif name == "uv" and words[0] == "venv":
    put(words[-1] + "/bin/python")
elif name == "uv":
    text = open(words[words.index("--requirements") + 1]).read()
    json.dump(text, open(folder + "/requirements", "w"))
elif name == "python3" and status == 0:
    put(words[-1] + "/bin/python")
elif name == "python" and words[:2] == ["-m", "pip"]:
    put(os.path.dirname(me) + "/uv")
elif name == "python":
    guest = os.path.dirname(words[0])
    while os.path.exists(guest + "/reporting"):  # start.py waits for this, too
        time.sleep(0.01)
    texts = {{each: open(guest + "/" + each).read() for each in os.listdir(guest)}}
    before = [json.loads(line) for line in open(folder + "/calls")]
    about = dict(before=before, texts=texts, environment=dict(os.environ), folder=os.getcwd())
    about["beside"] = os.listdir(os.path.dirname(guest))
    about["stdin"] = sys.stdin.read()
    json.dump(about, open(folder + "/guest.json", "w"))
    status = plan.get("dask", 0)
sys.exit(status)
"""

COMMANDS = ("setpriv", "useradd", "getent", "chown", "apt-get", "python3", "poweroff", "sleep")
NASTY = "dask  # $(touch /tmp/x) `id` \"'; rm -rf /\n"


class Machine:
    """A machine on which uv and the system's own commands are stand-ins."""

    def __init__(self, folder: Path, *, uv: bool = True, **plan: Any) -> None:
        self.folder = folder
        for name in ("bin", "tmp"):
            (folder / name).mkdir()
        for name in COMMANDS + (("uv",) if uv else ()):
            program = folder / "bin" / name
            program.write_text(COMMAND.format(python=sys.executable, folder=str(folder)))
            program.chmod(0o755)
        self.plan(**plan)

    def plan(self, **plan: Any) -> None:
        """Say what commands answer; a word of two commands is joined by two underscores."""
        known = {name.replace("__", " "): value for name, value in plan.items()}
        (self.folder / "plan.json").write_text(json.dumps(known))

    def called(self, *words: str) -> list[list[str]]:
        calls = [json.loads(line) for line in (self.folder / "calls").read_text().splitlines()]
        return [call[len(words) :] for call in calls if call[: len(words)] == [*words]]

    @property
    def home(self) -> Path:
        return self.folder / "home"

    def read(self, name: str) -> Any:
        return json.loads((self.folder / name).read_text())

    async def boot(self, environment: Environment) -> tuple[int, list[str], str]:
        """Run the startup script; return its status, the phases and the whole console."""
        spec = {"cls": "distributed.Scheduler", "opts": {}}
        items = build_metadata(Payload("scheduler", "p", None, spec, environment=environment))
        script = items["startup-script"]
        assert "/var/lib/dask" in script
        script = script.replace("/var/lib/dask", str(self.home))
        script = script.replace("/run/dask-gce", str(self.folder / "memory"))
        (self.folder / "startup-script").write_text(script)
        (self.folder / "calls").write_text("")
        resource = {
            "name": "dask-1-scheduler-2",
            "id": "1",
            "machineType": "zones/us-east1-b/machineTypes/e2-small",
            "zone": "projects/p/zones/us-east1-b",
            "networkInterfaces": [{"networkIP": "127.0.0.1", "network": "global/networks/default"}],
            "metadata": {"items": [{"key": k, "value": v} for k, v in items.items()]},
        }
        record = InstanceRecord("p", 1, "us-east1-b", resource)
        server = MetadataServer(record, "127.0.0.1", users=[os.getuid()])
        await server.start()
        try:
            process = await asyncio.create_subprocess_exec(
                *("bash", str(self.folder / "startup-script")),
                env={
                    "PATH": f"{self.folder / 'bin'}:/usr/bin:/bin",
                    "GCE_METADATA_HOST": f"127.0.0.1:{server.port}",
                    "TMPDIR": str(self.folder / "tmp"),
                    "HOME": "/nowhere",
                    "LANG": "C.UTF-8",
                },
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.STDOUT,
            )
            output, _ = await process.communicate()
        finally:
            await server.close()
        console = output.decode()
        mark = "dask-gce phase: "
        phases = [line[len(mark) :] for line in console.splitlines() if line.startswith(mark)]
        assert process.returncode is not None
        return process.returncode, phases, console


def environment(text: str = "dask\n", **changes: Any) -> Environment:
    options = {"python": "3.11", "file": "requirements.txt", "summary": "sync: 30 packages"}
    return Environment(**{**options, "text": text, **changes})


async def test_an_environment_is_built_and_dask_started_in_it(tmp_path: Path) -> None:
    machine, wanted = Machine(tmp_path), environment(NASTY, options=("--no-deps",))
    status, phases, console = await machine.boot(wanted)
    assert (status, phases) == (0, ["booted", "environment-building", "ended"]), console
    place = str(machine.home / "environments" / wanted.digest)
    (venv,) = machine.called("uv", "venv")
    assert venv[-3:] == ["--python", "3.11", place]
    (install,) = machine.called("uv", "pip", "install")
    assert install[install.index("--python") + 1] == f"{place}/bin/python"
    assert "--no-deps" in install
    assert machine.read("requirements") == NASTY
    guest = machine.read("guest.json")
    assert {"start.py", "install.py", "uv", "entrypoint.json"} <= guest["texts"].keys()
    assert guest["texts"]["uv"] == str(tmp_path / "bin" / "uv")
    assert guest["texts"]["entrypoint.json"] == "null\n"
    assert guest["environment"]["PATH"].startswith(f"{place}/bin:")
    assert guest["environment"]["HOME"] == str(machine.home / "work")
    assert guest["folder"] == str(machine.home / "work")
    assert "the environment (sync: 30 packages) took" in console


async def test_what_the_script_says_is_published_before_what_dask_says(tmp_path: Path) -> None:
    machine = Machine(tmp_path)
    (tmp_path / "bin" / "curl").write_text(LATE_CURL.format(folder=tmp_path))
    (tmp_path / "bin" / "curl").chmod(0o755)
    status, phases, console = await machine.boot(environment())
    assert (status, phases) == (0, ["booted", "environment-building", "ended"]), console
    assert machine.read("guest.json")["before"].count(["published"]) == 2


async def test_all_of_it_is_done_by_a_user_without_rights(tmp_path: Path) -> None:
    machine = Machine(tmp_path, getent__passwd=["", 2])
    await machine.boot(environment())
    assert [call[-1] for call in machine.called("useradd")] == ["dask"]
    user = ["--reuid", "dask", "--regid", "dask", "--init-groups"]
    run = [Path(call[5]).name for call in machine.called("setpriv") if call[:5] == user]
    assert run == ["true", "uv", "uv", "touch", "python"]
    # Root's uv is not in a folder of that user's, who could put another in its place.
    owned = [f"{machine.home}/environments", f"{machine.home}/work"]
    memory = machine.folder / "memory"
    assert machine.called("chown", "dask:dask") == [owned, [str(memory)]]
    # What only that user may read is in memory, at each boot anew.
    assert memory.stat().st_mode & 0o777 == 0o700
    assert "private" in machine.read("guest.json")["beside"]


async def test_where_nobody_can_become_that_user_the_machine_says_so(tmp_path: Path) -> None:
    machine = Machine(tmp_path, **{"setpriv__--reuid": ["", 1]})
    status, phases, console = await machine.boot(environment())
    assert (status, phases[-1]) == (0, "ended"), console
    assert "this system has no user dask" in console


async def test_what_is_built_is_not_built_again(tmp_path: Path) -> None:
    machine, wanted = Machine(tmp_path), environment()
    await machine.boot(wanted)
    status, phases, console = await machine.boot(wanted)
    assert (status, phases) == (0, ["booted", "ended"])
    assert "is on this machine already" in console
    assert not machine.called("uv")
    _, phases, _ = await machine.boot(environment("other\n"))
    assert "environment-building" in phases


async def test_what_was_interrupted_is_built_anew(tmp_path: Path) -> None:
    machine, wanted = Machine(tmp_path), environment()
    half = machine.home / "environments" / wanted.digest / "half"
    half.mkdir(parents=True)
    _, phases, _ = await machine.boot(wanted)
    assert "environment-building" in phases
    assert not half.exists()


@pytest.mark.parametrize(
    ("plan", "reason"),
    [
        ({"uv__venv": ["no interpreter", 2]}, "no Python 3.11: no interpreter"),
        (
            {"uv__pip__install": ["╰  No solution\n  ╰─▶ there is no dusk" + "!" * 2000, 1]},
            "the environment (sync: 30 packages) cannot be built: No solution there is no dusk",
        ),
        ({"dask": 137}, "Dask was killed; it may have needed more memory than there is"),
        ({"dask": 3}, "Dask ended with exit status 3"),
    ],
)
async def test_a_failure_is_told_with_its_reason(
    tmp_path: Path, plan: dict[str, Any], reason: str
) -> None:
    machine = Machine(tmp_path, **plan)
    status, phases, _ = await machine.boot(environment())
    assert status == 1
    assert phases[-1].startswith(f"failed: {reason}")
    assert len(phases[-1]) < 800
    assert phases[-1].isascii()
    assert machine.called("poweroff") == [[]]
    # What failed is not taken for complete by the next boot.
    machine.plan()
    _, phases, _ = await machine.boot(environment())
    assert phases[-1] == "ended"


async def test_a_machine_without_uv_gets_it_from_its_own_python(tmp_path: Path) -> None:
    machine = Machine(tmp_path, uv=False)
    status, phases, console = await machine.boot(environment())
    assert (status, phases[-1]) == (0, "ended"), console
    assert phases[1] == "environment-building: uv"
    assert machine.called("python3", "-m", "venv") == [[str(machine.home / "uv")]]
    assert not machine.called("apt-get")
    assert machine.read("guest.json")["texts"]["uv"] == str(machine.home / "uv" / "bin" / "uv")


async def test_debians_python_is_completed_first(tmp_path: Path) -> None:
    machine = Machine(tmp_path, uv=False, **{"python3__-m": ["ensurepip is not available", 1]})
    status, phases, _ = await machine.boot(environment())
    assert status == 1
    assert "no uv, and no Python that could install it: ensurepip" in phases[-1]
    assert [call[-1] for call in machine.called("apt-get", "install")] == ["python3-venv"]
    assert len(machine.called("python3")) == 2
