"""A machine that runs the real startup script, with an engine and host commands that do as planned.

Owns a folder with stand-ins for what would change this host, and the metadata server beside it. The
script is the one that instances get; only paths of the system lead into the folder instead.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from dask_gce.emulator.machines.metadata import MetadataServer
from dask_gce.emulator.record import InstanceRecord
from dask_gce.startup import Payload, build_metadata, startup_script

#: A command that writes down how it was called, and ends as it was told to.
COMMAND = """#!{python} -IS
import json, os, sys
folder = {folder!r}
name = os.path.basename(sys.argv[0])
with open(folder + "/calls", "a") as calls:
    calls.write(json.dumps([name, *sys.argv[1:]]) + "\\n")
plan = json.load(open(folder + "/plan.json"))
sys.exit(plan["status"].get(name, 0))
"""

#: A container engine: it has an image once a pull went well, and containers that do as planned.
ENGINE = """#!{python} -IS
import json, os, sys, time
folder = {folder!r}
words = sys.argv[1:]
home = dict(HOME=os.environ.get("HOME"), DOCKER_CONFIG=os.environ.get("DOCKER_CONFIG"))
with open(folder + "/calls", "a") as calls:
    calls.write(json.dumps(["docker", *words]) + "\\n")
with open(folder + "/homes", "a") as homes:
    homes.write(json.dumps(home) + "\\n")
plan = json.load(open(folder + "/plan.json"))
def step(name, default):
    steps = plan.get(name) or [default]
    calls = [json.loads(line) for line in open(folder + "/calls")]
    done = sum(call[:2] == ["docker", name] for call in calls)
    return steps[min(done, len(steps)) - 1]
if words[:2] == ["image", "inspect"]:
    if not os.path.exists(folder + "/image"):
        sys.exit("Error: No such image: " + words[-1])
    print(json.dumps(["tini", "--"]))
elif words[0] == "pull":
    lines, status = step("pull", [[], 0])
    for line in lines:
        print(line, file=sys.stdout if status == 0 else sys.stderr, flush=True)
    if status == 0:
        open(folder + "/image", "w").close()
    sys.exit(status)
elif words[0] == "run":
    guest = next(word.split(":")[0] for word in words if word.endswith(":ro"))
    while os.path.exists(guest + "/reporting"):  # start.py waits for this, too
        time.sleep(0.01)
    before = [json.loads(line) for line in open(folder + "/calls")]
    seen = dict(modes={{}}, texts={{}}, before=before)
    for name in sorted(os.listdir(guest)):
        seen["modes"][name] = oct(os.stat(guest + "/" + name).st_mode & 0o777)
        seen["texts"][name] = open(guest + "/" + name).read()
    seen["stdin"] = sys.stdin.read() if "--interactive" in words else None
    seen["folder"] = oct(os.stat(guest).st_mode & 0o777)
    json.dump(seen, open(folder + "/guest.json", "w"))
    sys.exit(step("run", 0))
elif words[:2] == ["container", "inspect"]:
    states = plan.get("state") or []
    calls = [json.loads(line) for line in open(folder + "/calls")]
    done = sum(call[1:3] == ["container", "inspect"] for call in calls)
    state = states[min(done, len(states)) - 1] if states else None
    field = words[words.index("--format") + 1].removeprefix("{{{{.State.").removesuffix("}}}}")
    if state is None:
        sys.exit("Error: No such container: dask")
    print(str(state[field]).lower() if isinstance(state[field], bool) else state[field])
"""

#: A ``curl`` that publishes no phase before Dask is to start, and writes down when it has.
LATE_CURL = """#!/bin/sh
PATH=/usr/bin:/bin
case " $* " in
*" PUT "*) ;;
*) exec curl "$@" ;;
esac
until grep --quiet '^."\\(docker\\|python\\)", .*/start.py"' {folder}/calls; do sleep 0.01; done
curl "$@"
echo '["published"]' >>{folder}/calls
"""

#: A ``curl`` that takes its time to publish, and writes down when it has.
SLOW_CURL = """#!/bin/sh
PATH=/usr/bin:/bin
case " $* " in
*" PUT "*) sleep 0.3 ;;
*) exec curl "$@" ;;
esac
curl "$@"
echo '["published"]' >>{folder}/calls
"""

#: Paths of the system that lead into the machine's folder.
PATHS = {
    "/dev/disk/by-id": "by-id",
    "/proc/mounts": "mounts",
    "/proc/meminfo": "meminfo",
    "/sys/class/block": "block",
    "/mnt/disks/dask-gce": "scratch",
    "/var/lib/dask": "kept",
}

HOST_COMMANDS = ("docker-credential-gcr", "iptables", "mkfs.ext4", "mount", "poweroff", "sleep")


class ScriptedMachine:
    """A machine whose engine does as planned.

    The plan has a list of steps for ``pull`` (lines and status), ``run`` (status) and ``state``
    (what is known of the container), the last of which is repeated, and the ``status`` of commands.
    """

    def __init__(self, folder: Path, *, commands: tuple[str, ...] = (), **plan: Any) -> None:
        self.folder = folder
        for name in ("bin", "by-id", "block", "tmp", "scratch"):
            (folder / name).mkdir()
        for name in ("mounts", "meminfo", "calls", "homes"):
            (folder / name).touch()
        self.memory(16 * 2**20)
        (folder / "plan.json").write_text(json.dumps({"status": {}, **plan}))
        for name in (*HOST_COMMANDS, *commands):
            self._command(name, COMMAND)
        self._command("docker", ENGINE)
        self.console = ""
        #: The guest attribute that tells the phase, as the script left it.
        self.published: str | None = None

    def _command(self, name: str, text: str) -> None:
        program = self.folder / "bin" / name
        program.write_text(text.format(python=sys.executable, folder=str(self.folder)))
        program.chmod(0o755)

    def publish_late(self) -> None:
        """Let no phase be published before Dask is to start."""
        self._command("curl", LATE_CURL)

    def publish_slowly(self) -> None:
        """Let it take a moment until a phase is published."""
        self._command("curl", SLOW_CURL)

    def memory(self, kilobytes: int) -> None:
        """Let the machine have so much memory."""
        (self.folder / "meminfo").write_text(f"MemTotal:  {kilobytes} kB\nMemFree: 5 kB\n")

    def add_local_ssd(self, name: str = "google-local-nvme-ssd-0") -> Path:
        """Give the machine a local SSD; return its device."""
        device = self.folder / f"nvme-{name}"
        device.touch()
        (self.folder / "by-id" / name).symlink_to(device)
        (self.folder / "block" / device.name / "holders").mkdir(parents=True)
        return device

    @property
    def calls(self) -> list[list[str]]:
        """What was called, in order."""
        return [json.loads(line) for line in (self.folder / "calls").read_text().splitlines()]

    def called(self, *words: str) -> list[list[str]]:
        """Return the calls that begin with these words, without them."""
        return [call[len(words) :] for call in self.calls if call[: len(words)] == [*words]]

    @property
    def options(self) -> list[str]:
        """The words of the last ``docker run``."""
        return self.called("docker", "run")[-1]

    def option(self, name: str) -> str:
        """Return the value of an option of the last ``docker run``; the last one counts."""
        at = max(i for i, word in enumerate(self.options) if word == name)
        return self.options[at + 1]

    @property
    def guest(self) -> dict[str, Any]:
        """What the container found in the folder that is mounted for it."""
        found: dict[str, Any] = json.loads((self.folder / "guest.json").read_text())
        return found

    @property
    def homes(self) -> list[dict[str, str | None]]:
        """The homes that the engine's commands had."""
        return [json.loads(line) for line in (self.folder / "homes").read_text().splitlines()]

    @property
    def phases(self) -> list[str]:
        """What the machine told on its console."""
        mark = "dask-gce phase: "
        lines = self.console.splitlines()
        return [line.removeprefix(mark) for line in lines if line.startswith(mark)]

    async def boot(
        self,
        payload: Payload,
        *,
        builder: bool = False,
        without: Collection[str] = (),
        trace: bool = False,
        replacing: Mapping[str, str] | None = None,
        **fields: Any,
    ) -> int:
        """Run the startup script to its end; return its status. A builder's cleans nothing here."""
        items = build_metadata(payload)
        items = {key: value for key, value in items.items() if key not in without}
        script = items["startup-script"]
        if builder:
            items["dask-gce-role"] = "builder"
            script = startup_script("container", seals=True)
            # This system is not the machine's.
            before, cleaning, after = script.partition("  if owns_system; then clean; fi\n")
            assert cleaning
            script = before + after
            self._command("sync", COMMAND)
        for path, name in PATHS.items():
            assert path in script, path
            script = script.replace(path, str(self.folder / name))
        for text, other in (replacing or {}).items():
            assert text in script, text
            script = script.replace(text, other)
        (self.folder / "startup-script").write_text(script)
        resource = {
            "name": "dask-1-worker-2",
            "id": "1",
            "machineType": "zones/us-east1-b/machineTypes/e2-small",
            "zone": "projects/p/zones/us-east1-b",
            "networkInterfaces": [{"networkIP": "127.0.0.1", "network": "global/networks/default"}],
            "metadata": {"items": [{"key": k, "value": v} for k, v in items.items()]},
            **fields,
        }
        record = InstanceRecord("p", 1, "us-east1-b", resource, access_token="the-accounts-token")
        server = MetadataServer(record, "127.0.0.1", users=[os.getuid()])
        await server.start()
        try:
            process = await asyncio.create_subprocess_exec(
                "bash",
                *(["-x"] if trace else []),
                str(self.folder / "startup-script"),
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
        self.console = output.decode()
        self.published = record.guest_attributes.get("dask-gce", {}).get("phase")
        assert process.returncode is not None
        return process.returncode
