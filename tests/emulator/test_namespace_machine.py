"""Namespace machines: they boot, have their type's size, end in every way, and leave nothing."""

from __future__ import annotations

import asyncio
import errno
import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest
from machine_bench import Exits, make_record, until
from rest import PROJECT, ZONE, Rest, boot_disk, instance

import dask_gce
from dask_gce.emulator import ComputeEmulator, Timings
from dask_gce.emulator.machines.namespace import machine as namespace_machine
from dask_gce.emulator.machines.namespace import obstacles, vpc_process
from dask_gce.emulator.machines.namespace.fabric import Fabric
from dask_gce.emulator.machines.namespace.images import image_folder
from dask_gce.emulator.machines.namespace.kind import NamespaceKind
from dask_gce.emulator.machines.namespace.obstacles import BASE, find_obstacle
from dask_gce.emulator.machines.namespace.vpc import cgroups, cos
from dask_gce.emulator.machines.namespace.vpc.cgroups import group_folders
from dask_gce.emulator.machines.namespace.vpc_process import VPCProcess, VPCProcessGone

OBSTACLE = find_obstacle() or (
    None if importlib.util.find_spec("dnslib") else "dask-gce[namespace] is not installed"
)
needs_namespaces = pytest.mark.skipif(OBSTACLE is not None, reason=str(OBSTACLE))
needs_power_commands = pytest.mark.skipif(
    shutil.which("poweroff", path="/usr/sbin:/sbin") is None,
    reason="this host has no poweroff, and so a quick machine has none",
)
needs_image = pytest.mark.skipif(
    not image_folder().exists(), reason="the machine image is not made; run ci/machines.sh"
)

#: Seconds for anything to happen; it takes milliseconds.
PATIENCE = 60.0

DEBIAN = "projects/debian-cloud/global/images/family/debian-12"


def wait_until(condition: Callable[[], object], what: str) -> None:
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline, f"in {PATIENCE:g} s it did not happen: {what}"
        time.sleep(0.01)


class Machines(Rest):
    """Calls an emulator, and reads serial consoles."""

    def boot(self, name: str, script: str, *, image: str = DEBIAN, **fields) -> None:
        shutdown = fields.pop("shutdown", "")
        items = [
            {"key": "startup-script", "value": script},
            *([{"key": "shutdown-script", "value": shutdown}] if shutdown else []),
        ]
        disk = boot_disk()
        disk["initializeParams"]["sourceImage"] = image
        fields.setdefault("machineType", f"zones/{ZONE}/machineTypes/e2-small")
        done = self.insert(name=name, disks=[disk], metadata={"items": items}, **fields)
        assert "error" not in done, done

    def act(self, name: str, verb: str) -> None:
        done = self.wait(self.post(f"zones/{ZONE}/instances/{name}/{verb}"))
        assert "error" not in done, done

    def remove(self, name: str) -> None:
        done = self.wait(self.delete(f"zones/{ZONE}/instances/{name}"))
        assert "error" not in done, done

    def console(self, name: str) -> str:
        return str(self.get(f"zones/{ZONE}/instances/{name}/serialPort", start=0)["contents"])

    def until_said(self, name: str, text: str, times: int = 1) -> str:
        try:
            wait_until(lambda: self.console(name).count(text) >= times, text)
        except AssertionError as error:
            raise AssertionError(f"{error}; the console:\n{self.console(name)}") from None
        return self.console(name)

    def until_status(self, name: str, status: str) -> None:
        wait_until(lambda: self.instance(name)["status"] == status, f"{name} is {status}")

    def run(self, name: str, script: str, **fields) -> list[str]:
        """Boot a machine and return the lines that its startup script wrote."""
        self.boot(name, script, **fields)
        text = self.until_said(name, "startup-script exit status")
        lines = text.partition("startup-script exit status")[0].splitlines()
        return [line.partition(": ")[2] for line in lines if line.startswith("startup-script: ")]


def quick_kind() -> NamespaceKind:
    """Return quick machines that also have this environment and this package."""
    source = Path(dask_gce.__file__).parents[1]
    folders = {str(one): one for one in (Path(sys.prefix), Path(sys.base_prefix), source)}
    return NamespaceKind(quick=True, shared_folders=folders)


@contextmanager
def running(kind: NamespaceKind) -> Iterator[Machines]:
    # On a busy host what runs before a power off must not be cut off.
    with ComputeEmulator(kind, timings=Timings(stopping=30)) as emulator:
        yield Machines(emulator)
    assert emulator.leftovers() == []


@pytest.fixture
def kind() -> NamespaceKind:
    return quick_kind()


@pytest.fixture
def machines(kind: NamespaceKind) -> Iterator[Machines]:
    with running(kind) as machines:
        yield machines


def groups(claim: str) -> list[Path]:
    """Return the control groups of an emulator that exist."""
    return [Path(one) for one in group_folders(claim) if Path(one).is_dir()]


def inhabitants(claim: str) -> set[int]:
    """Return the processes of all machines of an emulator, as the host counts."""
    found: set[int] = set()
    for group in groups(claim):
        for folder, _, _ in os.walk(group):
            try:
                found.update(map(int, Path(folder, "cgroup.procs").read_text().split()))
            except OSError as error:
                # A machine has ended meanwhile, perhaps between the opening and the reading.
                assert error.errno in (errno.ENOENT, errno.ENODEV), error
    return found


def runs(pid: int) -> bool:
    """Tell whether a process has not ended; an orphan's corpse waits for the host's init."""
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def claims() -> set[str]:
    try:
        return {one.name for one in Path(BASE).iterdir()}
    except FileNotFoundError:
        return set()


# What needs no root


def test_who_is_not_root_is_told_what_to_do(monkeypatch):
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    if sys.platform == "linux":
        with pytest.raises(
            RuntimeError, match=r"need root: run this as root, or take another kind"
        ):
            ComputeEmulator("namespace-quick").__enter__()


@needs_namespaces
def test_a_missing_tool_is_named_with_its_package(monkeypatch):
    monkeypatch.setattr(obstacles, "_TOOLS", {"no-such-tool": "its-package"})
    with pytest.raises(RuntimeError, match="need no-such-tool: apt-get install its-package"):
        ComputeEmulator("namespace-quick").__enter__()


# The quick variant


@needs_namespaces
def test_the_startup_script_runs_as_google_runs_it(machines):
    machines.boot("a", "#!/bin/bash\necho $PWD ${HOME-no home}\necho oops >&2\nexit 3\n")
    text = machines.until_said("a", "startup-script exit status 3\n")
    assert "startup-script: / no home\n" in text
    assert "startup-script: oops\n" in text
    assert text.endswith("startup-script exit status 3\n")


@needs_namespaces
def test_a_script_without_an_interpreter_is_the_shell_s(machines):
    assert machines.run("a", "echo $0 | sed 's/.*-//'") == ["script"]


@needs_namespaces
def test_the_first_process_has_nothing_of_the_host_s(machines):
    # The three standard ones, two of signals, the requests for power, and the script's output; the
    # other end of that is open for a moment longer.
    count = "until [ $(ls /proc/1/fd | wc -w) -le 7 ]; do sleep 0.02; done; ls /proc/1/fd | wc -w"
    script = f"tr '\\0' '\\n' </proc/1/environ; echo; {count}; hostname; hostname -f"
    lines = machines.run("a", script)
    assert {one.partition("=")[0] for one in lines if "=" in one} == {"PATH"}
    assert lines[-3:] == ["7", "a", f"a.{ZONE}.c.{PROJECT}.internal"]


@needs_namespaces
def test_a_machine_in_a_project_of_a_domain_knows_its_names(machines):
    ask = {"key": "startup-script", "value": "#!/bin/sh\nhostname -f; getent hosts a; echo asked\n"}
    project = "/compute/v1/projects/example.com:p-123456/zones"
    body = instance(metadata={"items": [ask]})
    machines.wait(machines.post(f"{project}/{ZONE}/instances", body))
    path = f"{project}/{ZONE}/instances/a/serialPort"
    wait_until(lambda: "asked" in machines.get(path)["contents"], "it asks for its names")
    said = machines.get(path)["contents"]
    assert said.count(f"a.{ZONE}.c.p-123456.example.com.internal") == 2


@needs_namespaces
def test_what_a_machine_writes_never_reaches_the_host(machines):
    there, passwd = sorted(Path("/usr/local/bin").iterdir()), Path("/etc/passwd").read_text()
    devices = {one: Path(one).stat() for one in ("/dev/null", "/dev/tty", "/dev/urandom")}
    script = """#!/bin/bash
rm -rf /usr/local/bin; ls -d /usr/local/bin
echo evil::0:0::: >>/etc/passwd; tail -1 /etc/passwd
chmod 600 /dev/null /dev/tty; chown 5:5 /dev/urandom
echo 1 >/proc/sys/vm/drop_caches
date --set="$(date)" >/dev/null || echo 'not its clock'
echo here >/var/lib/here; echo here >/tmp/here; hostname changed
mknod /tmp/disk b 8 0; mount -t tmpfs none /mnt; echo done
"""
    lines = machines.run("a", script)
    assert "ls: cannot access '/usr/local/bin': No such file or directory" in lines
    assert "evil::0:0:::" in lines
    assert any("Read-only file system" in one for one in lines)
    assert lines[-2:] == ["not its clock", "done"]
    assert sorted(Path("/usr/local/bin").iterdir()) == there
    assert Path("/etc/passwd").read_text() == passwd
    for path, before in devices.items():
        after = Path(path).stat()
        assert (after.st_mode, after.st_uid) == (before.st_mode, before.st_uid)
    assert not any(Path(one).exists() for one in ("/var/lib/here", "/tmp/here", "/tmp/disk"))
    assert os.uname().nodename != "changed"
    assert machines.run("b", "ls -d /usr/local/bin /var/lib/here")[-1] == "/usr/local/bin"


@needs_namespaces
def test_a_shared_folder_can_be_read_and_not_written(machines):
    script = f"ls {sys.prefix}/bin >/dev/null && echo read\ntouch {sys.prefix}/x"
    lines = machines.run("a", script)
    assert lines[0] == "read"
    assert "Read-only file system" in lines[1]


@needs_namespaces
def test_a_machine_has_the_size_of_its_type_and_dask_sees_it(machines):
    program = (
        "import os, psutil; from distributed import system; from dask.system import CPU_COUNT;"
        "print(system.MEMORY_LIMIT, CPU_COUNT, os.cpu_count(), psutil.virtual_memory().total)"
    )
    script = f"nproc; {sys.executable} -c '{program}'"
    lines = machines.run("a", script, machineType=f"zones/{ZONE}/machineTypes/n1-standard-1")
    memory = 3840 * 2**20
    assert lines == ["1", f"{memory} 1 1 {memory}"]
    lines = machines.run("b", "grep -c ^processor /proc/cpuinfo; grep MemTotal /proc/meminfo")
    assert lines[0] == "2"
    assert lines[1].split() == ["MemTotal:", str(2048 * 1024), "kB"]


@needs_namespaces
def test_a_machine_out_of_memory_loses_a_process_and_its_siblings_nothing(machines):
    machines.boot("b", "echo up", shutdown="echo sibling ends")
    script = f"{sys.executable} -c 'b\"x\" * (5 << 28)'; echo $?"
    small = f"zones/{ZONE}/machineTypes/e2-micro"
    assert machines.run("a", script, machineType=small)[-1] == "137"
    assert machines.instance("a")["status"] == "RUNNING"
    machines.act("b", "stop")
    assert "shutdown-script: sibling ends" in machines.console("b")


@needs_namespaces
def test_a_stop_runs_the_shutdown_script_and_keeps_the_disk(machines):
    script = """#!/bin/sh
echo boot >>/var/lib/boots; wc -l </var/lib/boots
ls /tmp/passing /run/passing 2>/dev/null; touch /tmp/passing /run/passing
trap 'echo asked to end; exit' TERM; echo ready; while :; do sleep 0.01; done
"""
    machines.boot("a", script, shutdown="#!/bin/sh\necho going down\n")
    assert "startup-script: 1\n" in machines.until_said("a", "startup-script: ready\n")
    machines.act("a", "stop")
    assert machines.instance("a")["status"] == "TERMINATED"
    text = machines.console("a")
    assert text.index("shutdown-script: going down") < text.index("startup-script: asked to end")
    machines.act("a", "start")
    text = machines.until_said("a", "startup-script: ready\n", 2)
    assert "startup-script: 2\n" in text
    assert "passing" not in text


@contextmanager
def attaching_late(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Serve no machine that boots before the end of the context."""
    attach, may_go_on = Fabric.attached, threading.Event()

    async def attach_late(fabric: Fabric, *arguments) -> None:
        await asyncio.to_thread(may_go_on.wait, PATIENCE)
        await attach(fabric, *arguments)

    monkeypatch.setattr(Fabric, "attached", attach_late)
    try:
        yield
    finally:
        may_go_on.set()


@needs_namespaces
def test_the_first_thing_that_a_script_does_may_be_a_call_of_the_api(machines, monkeypatch):
    url = f"{machines.emulator.endpoint}/compute/v1/projects/{PROJECT}/zones/{ZONE}/instances"
    script = f"""curl --silent --show-error --fail {url} >/dev/null &
sleep 1; echo has called; wait $!; echo status $?
"""
    with attaching_late(monkeypatch):
        machines.boot("a", script)
        machines.until_said("a", "startup-script: has called")
    assert "startup-script: status 0\n" in machines.until_said("a", "startup-script: status")


@needs_namespaces
def test_a_stop_while_a_machine_is_still_being_attached_is_no_power_cut(machines, monkeypatch):
    with attaching_late(monkeypatch):
        machines.boot("a", "echo up", shutdown="echo begins; sleep 1; echo ends")
        machines.until_said("a", "startup-script: up")
        stop = machines.post(f"zones/{ZONE}/instances/a/stop")
        machines.until_said("a", "shutdown-script: begins")
    machines.wait(stop)
    assert "shutdown-script: ends" in machines.console("a")


SLOW_INIT = """\
import sys, time
sys.path.insert(0, sys.argv[1])
from vpc import init
from vpc.main import main
run = init.run
def run_late(*arguments):
    time.sleep(1)
    run(*arguments)
init.run = run_late
main()
"""


@needs_namespaces
def test_a_power_button_pressed_before_the_first_program_listens_is_not_lost(kind, monkeypatch):
    monkeypatch.setattr(vpc_process, "_PROGRAM", SLOW_INIT)
    with running(kind) as machines:
        machines.boot("a", "sleep 1000", shutdown="echo going down")
        machines.act("a", "stop")
        assert "shutdown-script: going down" in machines.console("a")


@needs_namespaces
def test_a_reset_cuts_the_power(machines):
    machines.boot("a", "echo booted; sleep 1000", shutdown="echo going down")
    machines.until_said("a", "startup-script: booted")
    machines.act("a", "reset")
    text = machines.until_said("a", "startup-script: booted", 2)
    assert "going down" not in text
    assert machines.instance("a")["status"] == "RUNNING"


@needs_namespaces
@needs_power_commands
@pytest.mark.parametrize("command", ["reboot", "shutdown -r now", "reboot -f"])
def test_a_reboot_from_inside_boots_again(machines, command):
    script = f"[ -e /var/lib/seen ] && echo again && exit; touch /var/lib/seen; {command}; sleep 99"
    machines.boot("a", script)
    machines.until_said("a", "startup-script: again")
    assert machines.instance("a")["status"] == "RUNNING"


@needs_namespaces
@needs_power_commands
@pytest.mark.parametrize("command", ["poweroff", "shutdown -h now", "halt -f -p"])
def test_a_power_off_from_inside_ends_the_instance(machines, command):
    machines.boot("a", f"{command}; sleep 99", shutdown="echo going down")
    machines.until_status("a", "TERMINATED")
    assert ("shutdown-script: going down" in machines.console("a")) is ("-f" not in command)


@needs_namespaces
def test_a_discarded_machine_leaves_nothing(machines, kind):
    machines.boot("a", "setsid sleep 1000 & sleep 1000")
    claim = kind.vpc.name
    wait_until(lambda: len(inhabitants(claim)) >= 4, "its processes run")
    folders = list((Path(BASE) / claim / "machines").iterdir())
    assert len(folders) == 1
    inside = inhabitants(claim)
    machines.remove("a")
    assert not folders[0].exists()
    assert inhabitants(claim) == set()
    assert not any(runs(pid) for pid in inside)
    assert [one for group in groups(claim) for one in group.iterdir() if one.is_dir()] == []


@needs_namespaces
def test_an_image_holds_what_a_machine_has_written_and_removed(machines):
    machines.run("a", "rm -r /usr/local/bin; mkdir /srv/kept; touch /srv/kept/file; sync")
    machines.act("a", "stop")
    source = f"projects/{PROJECT}/zones/{ZONE}/disks/a"
    machines.wait(machines.post("global/images", {"name": "made", "sourceDisk": source}))
    image = f"projects/{PROJECT}/global/images/made"
    lines = machines.run("b", "ls /srv/kept; ls -d /usr/local/bin", image=image)
    assert lines[0] == "file"
    assert "No such file" in lines[1]
    machines.wait(machines.delete("global/images/made"))


@needs_namespaces
def test_container_optimized_os_has_little_that_can_be_written(machines):
    script = """#!/bin/bash
touch /usr/x /root/x 2>&1 | grep -c Read-only
for folder in /etc /var /home /tmp /mnt/disks /mnt/stateful_partition /var/lib/{google,docker}
do
    echo -n "$folder "
    cp /bin/true $folder/program && { $folder/program 2>/dev/null && echo runs || echo not; }
done
export HOME=/home
docker-credential-gcr configure-docker --registries=us-docker.pkg.dev,gcr.io 2>/dev/null
cat /home/.docker/config.json | tr -d '\\n\\t'
"""
    lines = machines.run("a", script, image="projects/cos-cloud/global/images/family/cos-stable")
    assert lines[0] == "2"
    assert lines[1:9] == [
        "/etc runs",
        "/var not",
        "/home not",
        "/tmp not",
        "/mnt/disks runs",
        "/mnt/stateful_partition runs",
        "/var/lib/google runs",
        "/var/lib/docker runs",
    ]
    written = json.loads(lines[9])
    assert written["credHelpers"] == {"us-docker.pkg.dev": "gcr", "gcr.io": "gcr"}
    machines.act("a", "reset")
    machines.until_said("a", "startup-script exit status", 2)


@needs_namespaces
def test_on_container_optimized_os_what_is_written_to_etc_is_gone_after_a_boot(machines):
    script = "ls /etc/x /var/x 2>/dev/null; touch /etc/x /var/x; echo done"
    machines.boot("a", script, image="projects/cos-cloud/global/images/family/cos-stable")
    machines.until_said("a", "startup-script: done")
    machines.act("a", "stop")
    machines.act("a", "start")
    text = machines.until_said("a", "startup-script: done", 2)
    assert "startup-script: /var/x\n" in text
    assert "/etc/x" not in text


# The end of emulators


@needs_namespaces
def test_a_closed_emulator_leaves_nothing():
    kind = quick_kind()
    with running(kind) as machines:
        machines.boot("a", "sleep 1000")
        claim, keeper = kind.vpc.name, kind.vpc.pid
        assert claim in claims()
        assert groups(claim)
    assert claim not in claims()
    assert groups(claim) == []
    assert not runs(keeper)
    assert claim not in Path("/proc/self/mountinfo").read_text()


@needs_namespaces
async def test_a_boot_that_is_interrupted_while_it_writes_its_disk_leaves_nothing(
    kind, monkeypatch
):
    begun, closed = threading.Event(), threading.Event()
    install, close = namespace_machine._install, VPCProcess.close

    def install_late(folder: Path, image: Path | None) -> None:
        begun.set()
        assert closed.wait(PATIENCE)
        install(folder, image)

    def close_and_say_so(vpc: VPCProcess) -> None:
        close(vpc)
        closed.set()

    monkeypatch.setattr(namespace_machine, "_install", install_late)
    monkeypatch.setattr(VPCProcess, "close", close_and_say_so)
    await kind.start()
    record = make_record("a")
    boot = asyncio.create_task(kind.create(record, kind.allocate(record), Exits()).boot())
    await until(begun.is_set)
    boot.cancel()
    with pytest.raises(asyncio.CancelledError):
        await boot
    await kind.close()
    assert kind.leftovers() == []


class Address:
    """Where an emulator of another process answers, as far as a client needs to know."""

    def __init__(self, endpoint: str) -> None:
        self.endpoint = endpoint


class Program:
    """An emulator in a process of its own, with a machine that runs."""

    def __init__(self, process: subprocess.Popen[bytes], address: Path) -> None:
        self.process = process
        wait_until(lambda: address.exists() or process.poll() is not None, "the emulator answers")
        Machines(Address(address.read_text().strip())).boot("a", "sleep 1000")
        (self.claim,) = (one for one in claims() if one.startswith(f"dask-gce-{process.pid}-"))
        self.keeper = int((Path(BASE) / self.claim / "keeper").read_text().split()[0])
        wait_until(lambda: len(inhabitants(self.claim)) >= 2, "its machine runs")
        self.inside = inhabitants(self.claim)

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    def gone(self) -> bool:
        return self.claim not in claims() and groups(self.claim) == []


@pytest.fixture
def program(tmp_path: Path) -> Iterator[Program]:
    address = tmp_path / "address"
    command = [sys.executable, "-m", "dask_gce.emulator", "--machines", "namespace-quick"]
    with subprocess.Popen(
        [*command, "--address-file", str(address)], stdout=subprocess.DEVNULL
    ) as process:
        try:
            yield Program(process, address)
        finally:
            process.kill()


@needs_namespaces
def test_a_killed_emulator_takes_its_machines_with_it(program):
    program.kill()
    wait_until(program.gone, "its keeper has cleaned up")
    wait_until(lambda: not runs(program.keeper), "its keeper has ended")
    assert not any(runs(pid) for pid in program.inside)


@needs_namespaces
def test_what_a_killed_keeper_left_is_swept_and_a_living_emulator_s_is_not(program):
    kind = quick_kind()
    with running(kind) as machines:
        machines.boot("b", "echo up; sleep 1000", shutdown="echo going down")
        os.kill(program.keeper, signal.SIGKILL)
        wait_until(lambda: not inhabitants(program.claim), "its machine has ended")
        program.kill()
        with running(quick_kind()):
            assert program.gone()
            assert kind.vpc.name in claims()
        machines.act("b", "stop")
        assert "shutdown-script: going down" in machines.console("b")


@needs_namespaces
def test_a_group_that_somebody_else_removes_at_the_same_time_is_no_error(monkeypatch):
    folder = Path(group_folders(f"dask-gce-test-{os.getpid()}")[0])
    folder.mkdir()

    def open_and_remove(path, **options):
        try:
            return Path(path).open(**options)
        finally:
            folder.rmdir()

    monkeypatch.setattr(cgroups, "open", open_and_remove, raising=False)
    cgroups._kill(str(folder))
    assert not folder.exists()


FORKING = """
import os, signal, sys
from dask_gce.emulator import ComputeEmulator
with ComputeEmulator("namespace-quick") as emulator:
    heir = os.fork()
    if heir == 0:
        signal.pause()
    with open(sys.argv[1] + ".new", "w") as file:
        print(emulator.endpoint, file=file)
    os.rename(sys.argv[1] + ".new", sys.argv[1])
    print(heir, flush=True)
    signal.pause()
"""


@needs_namespaces
def test_a_killed_emulator_is_noticed_though_what_it_has_forked_lives_on(tmp_path):
    address = tmp_path / "address"
    command = [sys.executable, "-W", "ignore", "-c", FORKING, str(address)]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        heir = int(process.stdout.readline())
        try:
            program = Program(process, address)
            program.kill()
            wait_until(program.gone, "its keeper has cleaned up")
            assert runs(heir)
        finally:
            process.kill()
            os.kill(heir, signal.SIGKILL)


@needs_namespaces
def test_an_emulator_whose_vpc_process_hangs_can_be_closed(monkeypatch):
    monkeypatch.setattr(vpc_process, "END_LIMIT", 0.2)
    vpc = VPCProcess()
    vpc.start()
    keeper = psutil.Process(vpc.pid)
    (held,) = keeper.children()
    held.suspend()
    outcome = []

    def ask():
        try:
            vpc.listening()
        except VPCProcessGone as error:
            outcome.append(str(error))

    asking = threading.Thread(target=ask)
    asking.start()
    wait_until(vpc._lock.locked, "somebody waits for an answer")
    vpc.close()
    asking.join(PATIENCE)
    assert len(outcome) == 1
    wait_until(lambda: not runs(held.pid), "the process has ended")
    assert vpc.leftovers() == []


@needs_namespaces
def test_a_program_of_the_guest_s_does_not_hold_up_a_boot(monkeypatch, tmp_path, capsys):
    hanging = tmp_path / "iptables-restore"
    hanging.write_text("#!/bin/sh\nexec sleep 1000\n")
    hanging.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    monkeypatch.setattr(cos, "FIREWALL_LIMIT", 0.1)
    cos.close_firewall()
    assert "could not be set up" in capsys.readouterr().out


# With systemd


@needs_namespaces
@needs_image
def test_systemd_boots_runs_the_scripts_reboots_and_ends():
    script = "#!/bin/bash\n[ -e /var/seen ] && echo again && exit\ntouch /var/seen\nreboot\n"
    with running(NamespaceKind()) as machines:
        machines.boot("a", script, shutdown="#!/bin/bash\necho going down\n")
        text = machines.until_said("a", "startup-script: again")
        assert "shutdown-script: going down" in text
        machines.act("a", "stop")
        assert machines.console("a").count("shutdown-script: going down") == 2
