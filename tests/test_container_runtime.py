"""The runtime container: what the startup script does with image, engine, memory and disks."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import dask
import pytest
import requests
from clusters import PATIENCE, wait_until, worker_machines
from distributed import Client
from hypothesis import given
from hypothesis import strategies as st
from startup_scripts import ScriptedMachine

from dask_gce import GCECluster
from dask_gce.boot.docker_options import (
    check_docker_options,
    option_names,
    render_docker_options,
)
from dask_gce.errors import GCEError, SettingsError
from dask_gce.startup import Payload, guest_file, scheduler_spec, startup_script

IMAGE = "ghcr.io/dask/dask:latest"
GIB = 2**30
NASTY = "a 'b' \"c\" $HOME $(reboot) `reboot` \\ \\n \n\t\r ünï ☃ ;&|<>*?!#~ %s {}\n"

DOCKER_PULLS = [
    "latest: Pulling from dask/dask",
    *(f"{layer}: Pulling fs layer" for layer in ("a3ed95caeb02", "4aab2cbc8ab1", "8ddc19f16526")),
    "8ddc19f16526: Waiting",
    "a3ed95caeb02: Verifying Checksum",
    "a3ed95caeb02: Download complete",
    "a3ed95caeb02: Pull complete",
    "4aab2cbc8ab1: Pull complete",
    "8ddc19f16526: Pull complete",
    "Digest: sha256:0a",
    "Status: Downloaded newer image for ghcr.io/dask/dask:latest",
]
PODMAN_PULLS = [
    "Trying to pull ghcr.io/dask/dask:latest...",
    "Getting image source signatures",
    "Copying blob sha256:0a",
    "Copying blob sha256:0b",
    "Copying config sha256:0c",
    "Writing manifest to image destination",
]


def payload(**changes: Any) -> Payload:
    fields: dict[str, Any] = {
        "role": "scheduler",
        "project": "p",
        "container_image": IMAGE,
        "spec": scheduler_spec(protocol="tls", port=8786, dashboard_port=8787, options={}),
        "ports": (8786, 8787),
        "memory": 15 * GIB,
    }
    return Payload(**{**fields, **changes})


# -- from the first to the last phase -------------------------------------------------------------


async def test_a_boot_goes_through_its_phases_and_ends_the_machine(tmp_path):
    machine = ScriptedMachine(tmp_path)
    assert await machine.boot(payload()) == 0, machine.console
    assert machine.phases == ["booted", "image-pulling", "image-ready", "ended"]
    assert machine.published == "ended"
    assert machine.called("poweroff") == [[]]
    (rule,) = machine.called("iptables")
    assert " ".join(rule) == "-w -I INPUT -p tcp -m multiport --dports 8786,8787 -j ACCEPT"
    assert machine.called("docker", "pull") == [[IMAGE]]


async def test_what_the_script_says_is_published_before_what_the_container_says(tmp_path):
    """An old phase that arrives late would hide why Dask does not start."""
    machine = ScriptedMachine(tmp_path)
    machine.publish_late()
    assert await machine.boot(payload()) == 0, machine.console
    assert machine.guest["before"].count(["published"]) == machine.phases.index("ended") == 3
    assert machine.published == "ended"


async def test_the_container_has_the_machines_network_and_programs_that_anybody_can_read(tmp_path):
    machine = ScriptedMachine(tmp_path)
    assert await machine.boot(payload()) == 0, machine.console
    assert machine.option("--network") == "host"
    assert machine.option("--name") == "dask"
    assert machine.option("--entrypoint") == "python3"
    folder = machine.option("--volume").split(":")[0]
    assert machine.option("--volume") == f"{folder}:{folder}:ro"
    assert machine.options[-2:] == [IMAGE, f"{folder}/start.py"]
    assert machine.guest["folder"] == "0o755"
    assert set(machine.guest["modes"].values()) == {"0o644"}
    assert machine.guest["texts"]["start.py"] == guest_file("start.py")
    assert json.loads(machine.guest["texts"]["entrypoint.json"]) == ["tini", "--"]
    # What must be secret is in memory, where the user of the image, whoever that is, can write.
    private, _, options = machine.option("--tmpfs").partition(":")
    assert private == folder.removesuffix("guest") + "private"
    assert "mode=1777" in options


async def test_a_machine_without_an_engine_says_which_setting_to_change(tmp_path):
    machine = ScriptedMachine(tmp_path)
    (tmp_path / "bin" / "docker").unlink()
    if shutil.which("docker", path="/usr/bin:/bin"):
        pytest.skip("this machine has docker among the system's programs")
    assert await machine.boot(payload()) == 1
    assert machine.phases[-1].startswith("failed: source_image has no docker")


# -- the image ------------------------------------------------------------------------------------


async def test_an_image_that_is_there_is_not_pulled_again(tmp_path):
    machine = ScriptedMachine(tmp_path)
    (tmp_path / "image").touch()
    assert await machine.boot(payload()) == 0, machine.console
    assert machine.phases == ["booted", "image-ready", "ended"]
    assert machine.called("docker", "pull") == []
    assert "is on this machine already" in machine.console


async def test_the_layers_of_docker_are_counted(tmp_path):
    machine = ScriptedMachine(tmp_path, pull=[[DOCKER_PULLS, 0]])
    assert await machine.boot(payload()) == 0, machine.console
    # At once, and then every few seconds.
    assert machine.phases[1:3] == ["image-pulling", "image-pulling: 1 of 3 layers"]
    assert "Verifying Checksum" not in machine.console


async def test_the_layers_of_podman_are_counted(tmp_path):
    machine = ScriptedMachine(tmp_path, pull=[[PODMAN_PULLS, 0]])
    assert await machine.boot(payload()) == 0, machine.console
    assert machine.phases[1:3] == ["image-pulling", "image-pulling: layer 1"]


async def test_layers_that_are_there_count_as_pulled(tmp_path):
    lines = ["0a: Already exists", "0b: Pulling fs layer", "0b: Pull complete"]
    machine = ScriptedMachine(tmp_path, pull=[[lines, 0]])
    assert await machine.boot(payload()) == 0, machine.console
    assert "image-pulling: 2 of 2 layers" in machine.phases


PASSING = [
    "Error response from daemon: Get https://ghcr.io/v2/: net/http: TLS handshake timeout",
    "Error response from daemon: Get https://ghcr.io/v2/: dial tcp: lookup ghcr.io: no such host",
    "Error: initializing source docker://x: pinging container registry: connection refused",
    "Error response from daemon: denied: You have reached your pull rate limit",
    "Error response from daemon: denied: toomanyrequests: retry-after: 1s",
    "Error response from daemon: denied: Quota exceeded for quota metric 'Requests per project'",
    "Error response from daemon: received unexpected HTTP status: 503 Service Unavailable",
    "Cannot connect to the Docker daemon at unix:///var/run/docker.sock.",
]


@pytest.mark.parametrize("reason", PASSING)
async def test_what_passes_is_tried_again(tmp_path, reason):
    machine = ScriptedMachine(tmp_path, pull=[[[reason], 1], [[reason], 1], [DOCKER_PULLS, 0]])
    assert await machine.boot(payload()) == 0, machine.console
    assert machine.called("sleep") == [["2"], ["4"]]
    assert f"dask-gce: {reason}; the image is pulled again in 2 s" in machine.console
    assert machine.phases[-1] == "ended"


LASTING = [
    "Error response from daemon: manifest for dask:x not found: manifest unknown",
    "Error response from daemon: pull access denied for x, repository does not exist",
    "Error response from daemon: Head https://ghcr.io/v2/x: unauthorized",
    "no matching manifest for linux/arm64/v8 in the manifest list entries",
    "Error: initializing source docker://x: reading manifest latest in ghcr.io/x: name unknown",
    "failed to register layer: write /opt/x: no space left on device",
]


@pytest.mark.parametrize("reason", LASTING)
async def test_what_does_not_pass_fails_at_once_and_names_the_setting(tmp_path, reason):
    machine = ScriptedMachine(tmp_path, pull=[[["latest: Pulling from x", reason], 1]])
    assert await machine.boot(payload(linger=7)) == 1
    assert len(machine.called("docker", "pull")) == 1
    assert machine.phases[-1] == f"failed: container_image {IMAGE} cannot be pulled: {reason}"
    # Nothing but the time that the machine stays for its console to be read.
    assert machine.called("sleep") == [["7"]]
    assert machine.called("docker", "run") == []


async def test_attempts_are_bounded_and_their_pauses_grow(tmp_path):
    machine = ScriptedMachine(tmp_path, pull=[[["i/o timeout"], 1]])
    assert await machine.boot(payload(linger=7)) == 1
    assert machine.called("sleep") == [["2"], ["4"], ["8"], ["16"], ["32"], ["7"]]
    assert machine.phases[-1] == f"failed: container_image {IMAGE} cannot be pulled: i/o timeout"


@pytest.mark.parametrize(
    ("image", "registry"),
    [
        ("europe-docker.pkg.dev/p/r/dask:1", "europe-docker.pkg.dev"),
        ("eu.gcr.io/p/dask", "eu.gcr.io"),
        ("ghcr.io/dask/dask:latest", None),
    ],
)
async def test_only_googles_registries_are_logged_in_to(tmp_path, image, registry):
    machine = ScriptedMachine(tmp_path)
    account = [{"email": "a@p.iam.gserviceaccount.com", "scopes": []}]
    status = await machine.boot(payload(container_image=image), serviceAccounts=account)
    assert status == 0, machine.console
    logins = machine.called("docker-credential-gcr", "configure-docker", "--registries")
    assert logins == ([[registry]] if registry else [])
    # Root's own home cannot be written to on Container-Optimized OS.
    assert (machine.homes[-1]["HOME"] == "/nowhere") == (registry is None)


async def test_without_an_account_nobody_logs_in(tmp_path):
    machine = ScriptedMachine(tmp_path)
    await machine.boot(payload(container_image="europe-docker.pkg.dev/p/r/dask:1"))
    assert machine.called("docker-credential-gcr") == []


# -- memory ---------------------------------------------------------------------------------------


async def test_the_container_has_the_memory_that_dask_is_told_of(tmp_path):
    machine = ScriptedMachine(tmp_path)
    assert await machine.boot(payload()) == 0, machine.console
    assert machine.option("--memory") == str(15 * GIB)
    assert machine.option("--shm-size") == str(15 * GIB // 2)


async def test_where_the_kernel_takes_much_the_system_still_has_some(tmp_path):
    machine = ScriptedMachine(tmp_path)
    machine.memory(15 * 2**20)
    assert await machine.boot(payload()) == 0, machine.console
    assert machine.option("--memory") == str(15 * GIB - 128 * 2**20)


async def test_shared_memory_of_ones_own_size(tmp_path):
    machine = ScriptedMachine(tmp_path)
    assert await machine.boot(payload(shm_size=3 * GIB)) == 0, machine.console
    assert machine.option("--shm-size") == str(3 * GIB)


# -- options --------------------------------------------------------------------------------------


async def test_options_arrive_byte_for_byte_after_ours(tmp_path):
    words = ("--label", NASTY, "--env=EMPTY=", "--label", "", "--shm-size", "1g")
    machine = ScriptedMachine(tmp_path)
    assert await machine.boot(payload(docker_options=words)) == 0, machine.console
    assert machine.options[-9:-2] == list(words)
    assert machine.option("--shm-size") == "1g"


@pytest.mark.parametrize("words", [("--log-driver", "gcplogs"), ("--log-driver=gcplogs",)])
async def test_a_log_driver_of_ones_own_goes_without_options_of_another(tmp_path, words):
    machine = ScriptedMachine(tmp_path)
    assert await machine.boot(payload(docker_options=words)) == 0, machine.console
    assert "--log-opt" not in machine.options
    assert "json-file" not in machine.options


async def test_the_log_of_a_container_does_not_fill_the_disk(tmp_path):
    machine = ScriptedMachine(tmp_path)
    assert await machine.boot(payload()) == 0, machine.console
    assert machine.option("--log-driver") == "json-file"
    assert machine.option("--log-opt").startswith("max-size=")


@given(st.lists(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"))))
def test_any_words_survive_as_lines_of_bash(words):
    # As the script reads them.
    script = r'while IFS= read -r line; do printf -v word %b "$line"; printf "%s\0" "$word"; done'
    done = subprocess.run(
        ["bash", "-c", script],
        input=render_docker_options(words).encode(),
        capture_output=True,
        check=True,
    )
    assert done.stdout.decode().split("\0")[:-1] == words


@pytest.mark.parametrize(
    "words",
    [
        [],
        ["--privileged", "--device", "/dev/fuse"],
        ["-v", "/a:/b", "-eA=b", "--ulimit=core=-1"],
        ["-qv", "/a:/b"],
        ["--env", "--name"],
        ["--read-only", "--tmpfs", "/tmp"],
    ],
)
def test_options_that_docker_has_are_taken_as_they_are(words):
    assert check_docker_options("docker_options", words) == tuple(words)


def test_a_single_option_needs_no_list():
    assert check_docker_options("docker_options", "--privileged") == ("--privileged",)


def test_an_error_shows_no_value():
    with pytest.raises(SettingsError) as caught:
        check_docker_options("docker_options", ["--env", "TOKEN", "secret"])
    assert "secret" not in str(caught.value)
    assert option_names(["--env", "TOKEN=secret", "-eA=secret", "--env=B=secret"]) == (
        "--env",
        "-e",
        "--env",
    )


# -- ends -----------------------------------------------------------------------------------------

ENDED = {"Running": False, "Status": "exited", "ExitCode": 0, "OOMKilled": False}


async def test_a_failure_is_told_with_its_status(tmp_path):
    machine = ScriptedMachine(tmp_path, run=[3], state=[ENDED])
    assert await machine.boot(payload(linger=7)) == 1
    assert machine.phases[-1] == "failed: Dask ended with exit status 3"
    assert machine.called("sleep") == [["7"]]
    assert len(machine.called("docker", "run")) == 1


async def test_what_the_start_program_has_told_is_not_told_again(tmp_path):
    machine = ScriptedMachine(tmp_path, run=[113])
    assert await machine.boot(payload(linger=7)) == 1
    assert machine.phases[-1] == "image-ready"


@pytest.mark.parametrize(
    ("known", "says"),
    [
        (True, "Dask needed more memory than the container may have"),
        (False, "Dask was killed; it may have needed more memory than the container may have"),
    ],
)
async def test_a_lack_of_memory_is_called_by_its_name(tmp_path, known, says):
    machine = ScriptedMachine(tmp_path, run=[137], state=[{**ENDED, "OOMKilled": known}])
    assert await machine.boot(payload(linger=7)) == 1
    assert machine.phases[-1] == f"failed: {says}"


async def test_an_image_without_python_is_called_by_its_setting(tmp_path):
    machine = ScriptedMachine(tmp_path, run=[127], state=[ENDED])
    assert await machine.boot(payload(linger=7)) == 1
    assert machine.phases[-1] == f"failed: container_image {IMAGE} has no python3"


async def test_the_container_of_an_earlier_boot_makes_way(tmp_path):
    machine = ScriptedMachine(tmp_path)
    assert await machine.boot(payload()) == 0, machine.console
    assert machine.called("docker", "rm") == []
    assert await machine.boot(payload()) == 0, machine.console
    verbs = [call[1] for call in machine.calls if call[0] == "docker"]
    assert verbs[-2:] == ["rm", "run"]
    assert machine.called("docker", "rm") == [["--force", "dask"]]


async def test_options_that_the_engine_refuses_are_tried_once(tmp_path):
    machine = ScriptedMachine(tmp_path, run=[125])
    assert await machine.boot(payload(linger=7)) == 1
    assert machine.phases[-1].startswith("failed: docker run refused to start the container")
    assert len(machine.called("docker", "run")) == 1


async def test_an_engine_that_is_restarted_does_not_end_the_machine(tmp_path):
    running = {**ENDED, "Running": True, "Status": "running"}
    state = [running, {**ENDED, "ExitCode": 0}]
    machine = ScriptedMachine(tmp_path, run=[125], state=state)
    assert await machine.boot(payload()) == 0, machine.console
    assert machine.called("docker", "logs") == [["--follow", "--tail", "0", "dask"]]
    assert len(machine.called("docker", "run")) == 1
    assert machine.phases[-1] == "ended"


async def test_a_status_counts_when_the_container_has_ended_and_not_its_log(tmp_path):
    running = {**ENDED, "Running": True, "Status": "running"}
    state = [running, running, {**ENDED, "ExitCode": 3}]
    machine = ScriptedMachine(tmp_path, run=[125], state=state)
    assert await machine.boot(payload(linger=7)) == 1
    assert machine.phases[-1] == "failed: Dask ended with exit status 3"


# -- local SSDs -----------------------------------------------------------------------------------


async def test_without_local_ssds_nothing_is_formatted(tmp_path):
    machine = ScriptedMachine(tmp_path)
    assert await machine.boot(payload()) == 0, machine.console
    assert machine.called("mkfs.ext4") == []
    assert "scratch" not in machine.guest["texts"]


@pytest.mark.parametrize("name", ["google-local-nvme-ssd-0", "google-local-ssd-0"])
async def test_a_local_ssd_becomes_dasks_scratch_space(tmp_path, name):
    machine = ScriptedMachine(tmp_path)
    device = machine.add_local_ssd(name)
    assert await machine.boot(payload()) == 0, machine.console
    scratch = str(tmp_path / "scratch")
    assert [call[-1] for call in machine.called("mkfs.ext4")] == [str(device)]
    assert [call[-2:] for call in machine.called("mount")] == [[str(device), scratch]]
    assert machine.guest["texts"]["scratch"] == scratch
    assert f"{scratch}:{scratch}" in machine.options
    # Whoever the image's user is may write there, and remove nothing of others'.
    assert (tmp_path / "scratch").stat().st_mode & 0o7777 == 0o1777


async def test_several_local_ssds_become_one(tmp_path):
    machine = ScriptedMachine(tmp_path, commands=("mdadm",))
    devices = [str(machine.add_local_ssd(f"google-local-nvme-ssd-{n}")) for n in range(3)]
    (tmp_path / "block" / devices[0].rpartition("/")[2] / "holders" / "md127").touch()
    assert await machine.boot(payload()) == 0, machine.console
    stop, create = machine.called("mdadm")
    assert stop == ["--quiet", "--stop", "/dev/md127"]
    assert create[-4:] == ["--raid-devices=3", *devices]
    assert "--level=0" in create
    assert [call[-1] for call in machine.called("mkfs.ext4")] == ["/dev/md0"]


@pytest.mark.parametrize("broken", [False, True])
async def test_without_a_working_mdadm_the_first_is_used(tmp_path, broken):
    machine = (
        ScriptedMachine(tmp_path, commands=("mdadm",), status={"mdadm": 1})
        if broken
        else ScriptedMachine(tmp_path)
    )
    if not broken and shutil.which("mdadm", path="/usr/bin:/bin"):
        pytest.skip("this machine has mdadm among the system's programs")
    devices = [str(machine.add_local_ssd(f"google-local-nvme-ssd-{n}")) for n in range(2)]
    assert await machine.boot(payload()) == 0, machine.console
    assert [call[-1] for call in machine.called("mkfs.ext4")] == devices[:1]
    assert "only the first of 2 local SSDs is used" in machine.console


async def test_a_local_ssd_that_somebody_uses_is_left_alone(tmp_path):
    machine = ScriptedMachine(tmp_path)
    device = machine.add_local_ssd()
    (tmp_path / "mounts").write_text(f"{device} /mnt/data ext4 rw 0 0\n")
    assert await machine.boot(payload()) == 0, machine.console
    assert machine.called("mkfs.ext4") == []


async def test_a_local_ssd_that_is_ours_already_is_used_as_it_is(tmp_path):
    machine = ScriptedMachine(tmp_path)
    device = machine.add_local_ssd()
    (tmp_path / "mounts").write_text(f"{device} {tmp_path / 'scratch'} ext4 rw 0 0\n")
    assert await machine.boot(payload()) == 0, machine.console
    assert machine.called("mkfs.ext4") == []
    assert machine.guest["texts"]["scratch"] == str(tmp_path / "scratch")


async def test_a_local_ssd_that_cannot_be_used_is_no_reason_to_fail(tmp_path):
    machine = ScriptedMachine(tmp_path, status={"mount": 32})
    machine.add_local_ssd()
    assert await machine.boot(payload()) == 0, machine.console
    assert "cannot be used" in machine.console
    assert "scratch" not in machine.guest["texts"]


# -- a cluster ------------------------------------------------------------------------------------


def test_a_clusters_containers_are_as_its_settings_say(process_emulator):
    # Nobody is to give a machine up that is only slow.
    with (
        dask.config.set({"distributed.deploy.lost-worker-timeout": "120 s"}),
        GCECluster(
            api_endpoint=process_emulator.endpoint,
            docker_options=["--env", f"GREETING={NASTY}"],
            n_workers=1,
            quiet=True,
        ) as cluster,
        Client(cluster) as client,
    ):
        client.wait_for_workers(1, timeout=PATIENCE)
        (greeting,) = client.run(lambda: os.environ["GREETING"]).values()
        assert greeting == NASTY
        (key,) = client.run(lambda dask_worker: dask_worker.security.tls_worker_key).values()
        # In the folder that would be in memory in a real container.
        assert Path(key).parents[1].name == "private"

        (name,) = worker_machines(process_emulator)
        _reset(process_emulator, name)
        client.wait_for_workers(1, timeout=PATIENCE)
        assert client.submit(sum, [2, 3]).result(PATIENCE) == 5
        assert worker_machines(process_emulator) == {name}
        assert cluster.failures == []
        logs = cluster.get_logs(machines=[name])
        assert {"Cluster", "Scheduler", name} < set(logs)
        assert set(cluster.get_logs(False, False, False, machines=True)) == {
            each["name"] for each in process_emulator.instances()
        }
        with pytest.raises(GCEError, match="has no machine other; it has: "):
            cluster.get_logs(machines=["other"])
        first, again = logs[name].split("phase: booted")[1:]
    # An image stays where it was pulled.
    assert "phase: image-pulling" in first
    assert "phase: image-pulling" not in again


def _url(emulator, name):
    zone = "compute/v1/projects/local-project/zones/us-central1-a"
    return f"{emulator.endpoint}/{zone}/instances/{name}"


def _console(emulator, name):
    with requests.Session() as session:
        session.trust_env = False
        return session.get(f"{_url(emulator, name)}/serialPort", timeout=60).json()["contents"]


def _reset(emulator, name):
    """Press a machine's reset button, and wait until Dask runs on it again."""
    runs = "dask-gce phase: running"
    wait_until(lambda: runs in _console(emulator, name))
    before = _console(emulator, name).count(runs)
    with requests.Session() as session:
        session.trust_env = False
        session.post(f"{_url(emulator, name)}/reset", timeout=60).raise_for_status()
    wait_until(lambda: _console(emulator, name).count(runs) > before)


# -- the scripts themselves -----------------------------------------------------------------------


@pytest.mark.parametrize("runtime", ["container", "vm"])
def test_the_scripts_hold_no_known_mistake(runtime):
    shellcheck = shutil.which("shellcheck")
    if shellcheck is None:
        pytest.skip("no shellcheck on this machine")
    text = startup_script(runtime)
    done = subprocess.run(
        [shellcheck, "--severity=warning", "-"],
        input=text,
        text=True,
        capture_output=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout
