"""The stand-ins for host commands: they record, answer like the real ones, pass on every byte."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dask_gce.emulator.machines import layout
from dask_gce.emulator.machines.guest.container_runs import kill_detached
from dask_gce.emulator.machines.guest.containers import end_all, keepers
from dask_gce.emulator.machines.guest.docker_options import DockerError, parse_run
from dask_gce.emulator.machines.layout import Layout
from dask_gce.emulator.machines.supervision import isolated_python

IMAGE = "ghcr.io/dask/dask:2026.8.0-py3.11"
MACHINES = Path(layout.__file__).parent
FULL_NAME = "m1.us-central1-a.c.local-project.internal"

#: Prints what a process was given, so that nothing is lost on the way to the test.
TELL = (
    "import json, os, sys; sys.stdin.read(); "
    "print(json.dumps([sys.argv[1:], dict(os.environ), os.getcwd()]))"
)


class Host:
    """The stand-ins of a machine that is not there: its files and its environment."""

    def __init__(self, folder: Path) -> None:
        layout = Layout(folder, shared=False)
        layout.prepare(["ghcr.io/dask/*", "python:3.11-slim"])
        layout.write_hosts({"127.18.0.2": [FULL_NAME, "m1"], "127.18.0.3": ["m2"]})
        machine = layout.add_machine("m1", None)
        self.disk = machine / "disk"
        (self.disk / "run").mkdir()
        self.environment = layout.environment(machine, FULL_NAME, "127.18.0.2", 1)

    def start(self, *command: str | bytes, **options: object) -> subprocess.Popen[bytes]:
        program = os.fsdecode(command[0])
        found = Path(self.environment["LOCAL_GCE_BIN"]) / program
        return subprocess.Popen(
            [found if found.exists() else program, *command[1:]],
            env={**self.environment, **options.pop("env", {})},
            cwd=self.disk,
            stdin=options.pop("stdin", subprocess.DEVNULL),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            **options,
        )

    def call(self, *command: str | bytes, **options: object) -> tuple[int, str, str]:
        with self.start(*command, **options) as process:
            output, errors = process.communicate()
        return process.returncode, output.decode(), errors.decode()

    def say(self, *command: str) -> str:
        status, output, errors = self.call(*command)
        assert status == 0, errors
        return output

    def calls(self) -> list[tuple[str, list[str]]]:
        lines = (self.disk / "calls").read_text("ascii").splitlines()
        return [(call["command"], call["arguments"]) for call in map(json.loads, lines)]


@pytest.fixture
def host(tmp_path: Path) -> Host:
    folder = tmp_path / "a folder with $pecial 'characters'"
    folder.mkdir()
    return Host(folder)


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Host:
    return Host(tmp_path_factory.mktemp("stand-ins"))


# What changes the host is recorded and otherwise ignored


@pytest.mark.parametrize(
    "command",
    [
        "iptables -A INPUT -p tcp -j ACCEPT",
        "nft add table inet x",
        "mount --bind /var/lib/nvidia /var/lib/nvidia",
        "systemctl daemon-reload",
        "systemctl restart docker.service",
        "service docker start",
        "apt-get install -y nothing",
        "modprobe nvidia",
        "useradd -m dask",
        "mkfs.ext4 -F /dev/sdb",
        "cos-extensions install gpu",
        "docker-credential-gcr configure-docker --registries europe-docker.pkg.dev",
    ],
)
def test_what_would_change_the_host_is_recorded_and_succeeds(host, command):
    name, *words = command.split()
    assert host.call(name, *words)[0] == 0
    assert host.calls() == [(name, words)]


def test_a_firewall_rule_is_there_once_it_was_added(host):
    rule = ["INPUT", "-p", "tcp", "--dport", "8786", "-j", "ACCEPT"]
    assert host.call("iptables", "-C", *rule)[0] == 1
    assert host.call("iptables", "-A", *rule)[0] == 0
    assert host.call("iptables", "-C", *rule)[0] == 0


def test_systemctl_knows_which_services_such_a_machine_has(host):
    assert host.say("systemctl", "is-active", "docker") == "active\n"
    assert host.call("systemctl", "is-active", "-q", "nothing")[:2] == (3, "")
    status, _, errors = host.call("systemctl", "start", "nothing.service")
    assert status == 5
    assert "Unit nothing.service not found" in errors


def test_sudo_runs_the_rest(host):
    assert host.say("sudo", "-n", "-u", "root", "A=1 2", "sh", "-c", 'echo "$A"') == "1 2\n"
    assert host.call("sudo", "--", "no-such-command")[0] == 127


def test_names_are_those_of_the_machine(host):
    assert host.say("hostname") == "m1\n"
    assert host.say("hostname", "-f") == f"{FULL_NAME}\n"
    assert host.say("hostname", "-I") == "127.18.0.2\n"
    assert host.say("getent", "hosts", "m2").split() == ["127.18.0.3", "m2"]
    assert host.say("getent", "passwd", "root").startswith("root:")
    assert host.call("getent", "hosts", "m3.invalid")[0] == 2


def test_the_power_button_and_the_console_are_pipes_to_the_machine(host):
    for pipe in ("power", "log"):
        os.mkfifo(host.disk / "run" / pipe)
    for pipe, command, word in (
        ("power", ["shutdown", "-r", "now"], b"reboot\n"),
        ("power", ["poweroff"], b"poweroff\n"),
        ("log", ["logger", "-t", "dask", "hello", "you"], b"dask: hello you\n"),
    ):
        reader = os.open(host.disk / "run" / pipe, os.O_RDWR)
        try:
            assert host.call(*command)[0] == 0
            assert os.read(reader, 100) == word
        finally:
            os.close(reader)


def test_a_stand_in_outside_a_machine_says_so(host):
    with_none = {name: value for name, value in host.environment.items() if "DISK" not in name}
    done = subprocess.run(
        [f"{host.environment['LOCAL_GCE_BIN']}/poweroff"],
        env=with_none,
        capture_output=True,
        check=False,
    )
    assert done.returncode == 1
    assert b"only inside a local Compute Engine machine" in done.stderr


# docker


def tell(host: Host, *words: str, program: str = TELL) -> tuple[list[str], dict[str, str], str]:
    output = host.say("docker", "run", *words[:-1], IMAGE, "python", "-c", program, words[-1])
    arguments, environment, folder = json.loads(output)
    return arguments, environment, folder


anything = st.binary(max_size=200).filter(lambda data: b"\0" not in data)


# Each example is three processes, one after another.
@pytest.mark.timeout(600)
@settings(max_examples=15, database=None, suppress_health_check=list(HealthCheck))
@given(
    arguments=st.lists(anything, max_size=5),
    values=st.lists(st.text(st.characters(exclude_characters="\0", codec="utf-8")), max_size=5),
)
def test_arguments_and_values_arrive_byte_for_byte(shared, arguments, values):
    options = [f"--env=V{n}={value}" for n, value in enumerate(values)]
    status, output, errors = shared.call(
        "docker", "run", "--rm", *options, IMAGE, "python", "-c", TELL, *arguments
    )
    assert status == 0, errors
    told, environment, _ = json.loads(output)
    assert [os.fsencode(argument) for argument in told] == arguments
    assert [environment[f"V{n}"] for n in range(len(values))] == values


def test_large_and_awkward_values_arrive(host):
    value = "a b\n'\"$(touch /x)`id`\\ ü 😀" + "x" * 100_000
    arguments, environment, _ = tell(host, "-e", f"A={value}", value[:1000])
    assert arguments == [value[:1000]]
    assert environment["A"] == value


def test_a_container_sees_only_what_it_is_given(host):
    host.environment |= {"SECRET": "s", "PASSED": "p"}
    file = host.disk / "file"
    file.write_text("# a comment\n\nF=1 2=3\nPASSED\nNOT_SET\n", "utf-8")
    _, environment, folder = tell(
        host, "--env-file", str(file), "-e", "A=", "-e", "B=x=y", "-w", str(host.disk / "w"), ""
    )
    assert environment["F"] == "1 2=3"
    assert (environment["A"], environment["B"], environment["PASSED"]) == ("", "x=y", "p")
    assert "SECRET" not in environment
    assert "NOT_SET" not in environment
    assert environment["HOSTNAME"] == "m1"
    assert environment["PATH"].split(":")[0] == str(Path(sys.executable).parent)
    assert folder == str(host.disk / "w")


def test_the_startup_scripts_usual_options_are_understood():
    parsed = parse_run(
        [
            *("--rm", "-dit", "--name", "dask", "--net=host", "--network", "host", "-eA=1"),
            *("-e", "B", "--env-file", "f", "-v/a:/a:ro", "--mount", "type=bind,src=/b,dst=/b"),
            *("--entrypoint", "x", "-w", "/", "-u", "0", "--shm-size=1g", "-m", "2g", "--cpus=2"),
            *("--log-driver", "none", "--log-opt", "a=b", "--ulimit", "nofile=1:1"),
            *("--cap-add", "ALL", "--privileged", "--init", "--pull", "always", "--label", "a=b"),
            *("--restart=on-failure:3", "--gpus", "all", "--device", "/dev/x", "-p", "1:1"),
            *("--add-host", "a:1", "--hostname", "h", "--tmpfs", "/x", "--read-only"),
            *("--security-opt", "x", "--", "image", "--not-an-option", "-x"),
        ]
    )
    assert parsed.image == "image"
    assert parsed.command == ["--not-an-option", "-x"]
    assert parsed.options["--env"] == ["A=1", "B"]
    assert parsed.options["--volume"] == ["/a:/a:ro"]
    assert {"--rm", "--detach", "--interactive", "--tty", "--privileged"} <= parsed.flags
    assert parsed.last("--restart") == "on-failure:3"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--bogus", "i"], "unknown flag: --bogus"),
        (["-dz", "i"], "unknown shorthand flag: 'z' in -dz"),
        (["-e"], "flag needs an argument"),
        (["--rm"], "at least 1 argument"),
    ],
)
def test_a_wrong_command_line_is_an_error_as_with_docker(words, message):
    with pytest.raises(DockerError, match=message) as caught:
        parse_run(words)
    assert caught.value.status == 125


@pytest.mark.parametrize(
    ("image", "message"),
    [
        ("ghcr.io/dask/dask", None),
        ("python:3.11-slim", None),
        ("python:3.9", "manifest for python:3.9 not found: manifest unknown"),
        ("nobody/nothing", "pull access denied for nobody/nothing, repository does not exist"),
    ],
)
def test_an_image_exists_when_a_pattern_says_so(host, image, message):
    pulled = host.call("docker", "pull", image)
    ran = host.call("docker", "run", image, "true")
    inspected = host.call("docker", "image", "inspect", "-f", "{{json .Config.Entrypoint}}", image)
    if message is None:
        assert (pulled[0], ran[0], inspected[:2]) == (0, 0, (0, "null\n"))
        assert host.say("docker", "inspect", "--format={{json .Config.Env}}", image) == "null\n"
    else:
        assert (pulled[0], ran[0], inspected[0]) == (1, 125, 1)
        assert f"Error response from daemon: {message}" in pulled[2]
        assert message in ran[2]


@pytest.mark.parametrize(
    ("command", "status"),
    [
        (["sh", "-c", "exit 7"], 7),
        (["sh", "-c", "kill -9 $$"], 137),
        (["no-such-command"], 127),
        (["/etc/hosts"], 126),
    ],
)
def test_the_status_of_the_command_is_dockers(host, command, status):
    code, _, errors = host.call("docker", "run", "--rm", IMAGE, *command)
    assert code == status
    assert ('exec: "no-such-command": executable file not found' in errors) == (status == 127)
    assert host.say("docker", "ps", "-aq") == ""


def test_standard_input_is_read_only_with_interactive(host):
    for option, output in (("-i", "words"), ("--rm", "")):
        process = host.start("docker", "run", option, IMAGE, "cat", stdin=subprocess.PIPE)
        with process:
            assert process.communicate(b"words")[0].decode() == output


def test_signals_are_passed_on_and_the_rest_of_the_container_ends_with_it(host):
    script = "trap 'echo got it; exit 5' TERM; setsid sleep 1000 & echo $!; while :; do wait; done"
    with host.start("docker", "run", IMAGE, "sh", "-c", script) as process:
        assert process.stdout is not None
        left_behind = int(process.stdout.readline())
        process.send_signal(signal.SIGTERM)
        assert process.communicate()[0] == b"got it\n"
    assert process.returncode == 5
    with pytest.raises(ProcessLookupError):
        os.kill(left_behind, 0)


SLOW_KEEPER = """
import sys, time
sys.path.insert(0, sys.argv.pop(1))
from guest import containers
from guest.commands import main
write = containers.Container.write
def write_late(container, name, value):
    if name == "pid":
        time.sleep(0.5)
    write(container, name, value)
containers.Container.write = write_late
main("docker")
"""


def test_a_signal_while_a_container_starts_is_passed_on(host):
    script = "trap 'echo got it; exit 5' TERM; echo ready; while :; do sleep 0.01; done"
    program = [*isolated_python(), "-c", SLOW_KEEPER, str(MACHINES)]
    with host.start(*program, "run", IMAGE, "sh", "-c", script) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        process.send_signal(signal.SIGTERM)
        assert process.communicate()[0] == b"got it\n"
    assert process.returncode == 5


@pytest.fixture
def detached(host: Host) -> Iterator[Host]:
    yield host
    for container in host.say("docker", "ps", "-aq").split():
        host.call("docker", "rm", "-f", container)


def test_a_detached_container_lives_until_it_is_stopped(detached):
    host = detached
    script = "trap 'exit 3' TERM; echo out; echo err >&2; while :; do sleep 0.01; done"
    identity = host.say("docker", "run", "-d", "--name", "w", IMAGE, "sh", "-c", script).strip()
    assert len(identity) == 64
    status, _, errors = host.call("docker", "run", "--name", "w", IMAGE, "true")
    assert status == 125
    assert '"/w" is already in use' in errors
    deadline = time.monotonic() + 30
    while host.call("docker", "logs", "w")[1] != "out\nerr\n" and time.monotonic() < deadline:
        time.sleep(0.02)
    assert host.say("docker", "logs", "w") == "out\nerr\n"
    assert host.say("docker", "ps", "--format", "{{.Names}}") == "w\n"
    assert host.say("docker", "inspect", "-f", "{{.State.Running}}", "w") == "true\n"
    assert host.call("docker", "rm", "w")[0] == 1
    waiting = threading.Thread(target=lambda: told.append(host.say("docker", "wait", "w")))
    told: list[str] = []
    waiting.start()
    assert host.say("docker", "stop", "-t", "30", "w") == "w\n"
    waiting.join(30)
    assert told == ["3\n"]
    assert host.say("docker", "inspect", "-f", "{{.State.ExitCode}}", identity[:12]) == "3\n"
    assert host.say("docker", "rm", "w") == "w\n"
    assert host.call("docker", "logs", "w")[0] == 1


def test_a_restart_policy_restarts_until_it_is_satisfied(detached):
    host = detached
    script = "echo again; exit 4"
    policy = "--restart=on-failure:2"
    host.say("docker", "run", "-d", "--name", "w", policy, IMAGE, "sh", "-c", script)
    assert host.say("docker", "wait", "w") == "4\n"
    assert host.say("docker", "logs", "w") == "again\n" * 3
    host.say("docker", "run", "-d", "--name", "x", "--restart=always", IMAGE, "sleep", "1000")
    assert host.say("docker", "stop", "x") == "x\n"
    assert host.say("docker", "inspect", "-f", "{{.State.Status}}", "x") == "exited\n"


def test_a_detached_command_that_does_not_exist_fails_at_once(detached):
    status, _, errors = detached.call("docker", "run", "-d", IMAGE, "no-such-command")
    assert status == 127
    assert "executable file not found" in errors


def test_a_volume_elsewhere_is_explained(host):
    status, _, errors = host.call("docker", "run", "-v", f"{host.disk}:/data", IMAGE, "true")
    assert status == 125
    assert "must be the same as on the machine" in errors
    same = f"{host.disk}/new:{host.disk}/new:rw"
    assert host.say("docker", "run", "-v", same, IMAGE, "ls", str(host.disk / "new")) == ""
    assert host.call("docker", "run", "-v", "named:/x", IMAGE, "true")[0] == 125


def test_an_image_is_on_the_machine_once_it_was_pulled(host):
    inspect = ("docker", "image", "inspect", IMAGE)
    assert host.call(*inspect)[2] == f"Error: No such image: {IMAGE}\n"
    lines = host.say("docker", "pull", IMAGE).splitlines()
    assert lines[0] == "2026.8.0-py3.11: Pulling from dask/dask"
    layers = [line.partition(":")[0] for line in lines if line.endswith("Pulling fs layer")]
    assert len(set(layers)) == 3
    assert [f"{layer}: Pull complete" in lines for layer in layers] == [True] * 3
    assert lines[-2:] == [f"Status: Downloaded newer image for {IMAGE}", IMAGE]
    assert host.call(*inspect)[0] == 0
    again = host.say("docker", "pull", IMAGE)
    assert "Pull complete" not in again
    assert f"Status: Image is up to date for {IMAGE}" in again
    assert host.say("docker", "pull", "-q", IMAGE) == f"{IMAGE}\n"


def test_a_run_pulls_an_image_that_is_not_there(host):
    status, output, errors = host.call("docker", "run", "--rm", "python:3.11-slim", "echo", "x")
    assert (status, output) == (0, "x\n")
    assert "Unable to find image 'python:3.11-slim' locally\n" in errors
    assert "3.11-slim: Pulling from library/python\n" in errors
    assert host.call("docker", "run", "--rm", "python:3.11-slim", "true") == (0, "", "")


@pytest.mark.parametrize("verb", ["pull", "rm", "logs", "ps", "stop", "inspect"])
def test_a_verb_refuses_options_that_docker_does_not_know(host, verb):
    status, _, errors = host.call("docker", verb, "--bogus", "x")
    assert status == 125
    assert "unknown flag: --bogus" in errors


def test_a_log_is_followed_to_the_containers_end(detached):
    host = detached
    script = "echo one; echo two; read word <go; echo $word"
    os.mkfifo(host.disk / "home" / "go")
    host.say("docker", "run", "-d", "--name", "w", IMAGE, "sh", "-c", script)
    deadline = time.monotonic() + 30
    while host.say("docker", "logs", "w") != "one\ntwo\n":
        assert time.monotonic() < deadline
        time.sleep(0.02)
    with host.start("docker", "logs", "--follow", "--tail", "1", "w") as following:
        assert following.stdout is not None
        assert following.stdout.readline() == b"two\n"
        (host.disk / "home" / "go").write_text("three\n")
        assert following.communicate()[0] == b"three\n"


def test_scratch_in_memory_is_a_folder_of_the_machines(host):
    path = host.disk / "private"
    words = ["--tmpfs", f"{path}:mode=1770,size=1m", IMAGE, "touch", f"{path}/file"]
    host.say("docker", "run", "--rm", *words)
    assert (path / "file").exists()
    assert path.stat().st_mode & 0o7777 == 0o1770
    status, _, errors = host.call("docker", "run", "--tmpfs", "/proc/x", IMAGE, "true")
    assert status == 125
    assert "no such folder on the machine" in errors


def test_containers_outlive_a_boot_but_do_not_run_any_more(detached):
    host = detached
    host.say("docker", "run", "-d", "--name", "w", IMAGE, "sleep", "1000")
    kill_detached(str(host.disk))
    end_all(str(host.disk))
    state = "{{.State.Running}} {{.State.ExitCode}} {{.State.OOMKilled}}"
    assert host.say("docker", "container", "inspect", "-f", state, "w") == "false 137 false\n"
    assert '"/w" is already in use' in host.call("docker", "run", "--name", "w", IMAGE, "true")[2]


def test_an_unknown_verb_is_an_error(host):
    status, _, errors = host.call("docker", "swarm", "init")
    assert status == 1
    assert "docker swarm" in errors


def test_detached_containers_can_be_killed_without_a_parent(host):
    # As on systems without subreapers: the container is nobody's child here either.
    ended = host.call("docker", "run", "-d", IMAGE, "true")[1].strip()
    assert host.call("docker", "wait", ended)[:2] == (0, "0\n")
    command = ["sh", "-c", "sleep 1000 & wait"]
    host.call("docker", "run", "-d", "--restart", "always", "--name", "one", IMAGE, *command)
    (keeper,) = [psutil.Process(pid) for pid in keepers(str(host.disk))]
    deadline = time.monotonic() + 30
    while len(keeper.children(recursive=True)) < 2:
        assert time.monotonic() < deadline
        time.sleep(0.005)
    family = [keeper, *keeper.children(recursive=True)]
    bystander = subprocess.Popen(["/bin/sleep", "1000"])
    stale = host.disk / "docker" / "stale"
    stale.mkdir()
    (stale / "keeper").write_text(str(bystander.pid))
    kill_detached(str(host.disk))
    assert bystander.poll() is None
    bystander.kill()
    bystander.wait()
    assert not psutil.wait_procs(family, timeout=30)[1]
