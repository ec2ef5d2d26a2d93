"""Real machines: systemd, Google's guest agent, cloud-init and containers, as on Compute Engine.

What they have in common with quick machines, and what keeps them apart from the host and from each
other, is tested in `test_namespace_machine` and `test_namespace_network`.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import subprocess
import sys
import time
from pathlib import Path

import pytest
from machines import DASK_IMAGE, needs_namespaces
from rest import PROJECT, ZONE, Rest, boot_disk

from dask_gce.emulator import ComputeEmulator

pytestmark = [needs_namespaces, pytest.mark.timeout(300)]

#: Seconds for an operating system to boot, run containers and end; on a quiet host they are few.
PATIENCE = 240.0

DEBIAN = "projects/debian-cloud/global/images/family/debian-12"
#: The last that the script runner says, and the last that cloud-init says.
SCRIPT_DONE, CLOUD_INIT_DONE = "Finished running startup scripts.", "Datasource DataSourceGCE."


class Cloud(Rest):
    """A local Compute Engine in which machines boot and say something on their consoles."""

    def boot(self, name: str = "m", machine_type: str = "e2-medium", **metadata: str) -> None:
        """Insert an instance; metadata by key, with underscores for hyphens."""
        items = [{"key": key.replace("_", "-"), "value": text} for key, text in metadata.items()]
        disk = boot_disk()
        disk["initializeParams"]["sourceImage"] = DEBIAN
        self.insert(
            name=name,
            machineType=f"zones/{ZONE}/machineTypes/{machine_type}",
            disks=[disk],
            metadata={"items": items},
        )

    def do(self, verb: str, name: str = "m") -> None:
        """Have something done to an instance."""
        self.wait(self.post(f"zones/{ZONE}/instances/{name}/{verb}"))

    def console(self, name: str = "m") -> str:
        """Return what a machine has said so far."""
        contents: str = self.get(f"zones/{ZONE}/instances/{name}/serialPort")["contents"]
        return contents

    def until_said(self, text: str, times: int = 1, name: str = "m") -> str:
        """Wait until a machine has said something; return all that it has said."""
        deadline = time.monotonic() + PATIENCE
        while (said := self.console(name)).count(text) < times:
            assert time.monotonic() < deadline, f"{text!r} was not said:\n{said}"
            time.sleep(0.05)
        return said

    def until_off(self, name: str = "m") -> str:
        """Wait until an instance is TERMINATED; return all that it has said."""
        deadline = time.monotonic() + PATIENCE
        while self.instance(name)["status"] != "TERMINATED":
            assert time.monotonic() < deadline, self.console(name)
            time.sleep(0.05)
        return self.console(name)


@pytest.fixture
def cloud(namespace_emulator: ComputeEmulator) -> Cloud:
    return Cloud(namespace_emulator)


def script(*lines: str) -> str:
    """Return a script of these lines."""
    return "\n".join(["#!/bin/bash", *lines, ""])


def said_by_script(console: str) -> list[str]:
    """Return what the startup script printed, line by line."""
    mark = "startup-script: "
    return [line.partition(mark)[2] for line in console.splitlines() if mark in line]


def test_systemd_boots_and_nothing_fails(cloud):
    look = "systemctl is-system-running --wait; systemctl --failed --plain --no-legend; echo looked"
    # Not part of the boot, for whose end it waits.
    cloud.boot(startup_script=script("cat /proc/1/comm", f"systemd-run bash -c '{look}'"))
    # systemd says the command, too, when it starts it.
    said = cloud.until_said("]: looked\n")
    assert "systemd" in said_by_script(said)
    assert [line.partition("]: ")[2] for line in said.splitlines() if " bash[" in line] == [
        "running",
        "looked",
    ]


def test_googles_script_runner_runs_the_startup_script(cloud):
    cloud.boot(startup_script=script("echo out", "echo err >&2", "id -un", "exit 3"))
    said = cloud.until_said(SCRIPT_DONE)
    assert "google_metadata_script_runner" in said
    assert sorted(said_by_script(said)) == ["err", "out", "root"]
    assert "startup-script exit status 3" in said


def test_a_machine_knows_its_name_and_its_metadata_server(cloud):
    url = "http://metadata.google.internal/computeMetadata/v1/instance/name"
    cloud.boot(
        startup_script=script(
            "hostname -f",
            f"echo $(curl --silent --header 'Metadata-Flavor: Google' {url})",
            "getent hosts metadata.google.internal",
            f"getent hosts m.{ZONE}.c.{PROJECT}.internal",
        )
    )
    said = said_by_script(cloud.until_said(SCRIPT_DONE))
    hostname = f"m.{ZONE}.c.{PROJECT}.internal"
    assert said[:2] == [hostname, "m"]
    assert said[2].split()[0] == "169.254.169.254"
    assert said[3].split()[0] == cloud.instance("m")["networkInterfaces"][0]["networkIP"]


def test_a_stop_runs_the_shutdown_script_and_the_disk_stays(cloud):
    cloud.boot(
        startup_script=script("cat /var/lib/note 2>&- || echo first boot"),
        shutdown_script=script("echo going down", "echo was on > /var/lib/note"),
    )
    cloud.until_said(SCRIPT_DONE)
    cloud.do("stop")
    assert "shutdown-script: going down" in cloud.until_off()
    cloud.do("start")
    assert said_by_script(cloud.until_said(SCRIPT_DONE, times=2)) == ["first boot", "was on"]


def test_a_reset_boots_again_without_a_shutdown_script(cloud):
    cloud.boot(
        startup_script=script("echo boots"), shutdown_script=script("echo going down in order")
    )
    cloud.until_said(SCRIPT_DONE)
    cloud.do("reset")
    said = cloud.until_said(SCRIPT_DONE, times=2)
    assert said_by_script(said).count("boots") == 2
    assert "going down in order" not in said


def test_a_guest_reboots_and_powers_off(cloud):
    cloud.boot(
        startup_script=script(
            "if mkdir /var/lib/booted; then systemctl reboot; else echo again; poweroff; fi"
        ),
        shutdown_script=script("echo going down"),
    )
    said = cloud.until_off()
    assert said.count("shutdown-script: going down") == 2
    assert said.index("startup-script: again") > said.index("shutdown-script: going down")


def test_cloud_init_does_what_user_data_says(cloud):
    user_data = {
        "write_files": [{"path": "/etc/note", "content": "written by cloud-init\n"}],
        "bootcmd": ["echo bootcmd was here"],
        "runcmd": ["cat /etc/note", ["echo", "a b", "$HOME"], "systemctl start docker"],
    }
    cloud.boot(user_data=f"#cloud-config\n{json.dumps(user_data)}\n")
    said = cloud.until_said(CLOUD_INIT_DONE)
    for text in ("bootcmd was here", "written by cloud-init", "a b $HOME"):
        assert text in said
    assert "WARNING" not in said


def test_without_user_data_there_is_no_cloud_init(cloud):
    cloud.boot(startup_script=script("echo done"))
    assert "cloud-init[" not in cloud.until_said("Startup finished")


MEMORY = "from distributed.system import MEMORY_LIMIT; print(MEMORY_LIMIT)"


def test_containers_run_as_docker_would_run_them(cloud):
    run = "docker run --rm --network host"
    cloud.boot(
        startup_script=script(
            f"docker pull --quiet {DASK_IMAGE} >/dev/null && echo pulled",
            f"{run} --memory 300m {DASK_IMAGE} python3 -c '{MEMORY}'",
            f"{run} {DASK_IMAGE} python3 -c '{MEMORY}'",
            f"{run} --volume /etc/hostname:/a:ro {DASK_IMAGE} sh -c 'id -u; cat /a; hostname'",
            f"docker run -d --network host --name kept {DASK_IMAGE} echo in the log >/dev/null",
            "docker wait kept",
            "docker logs kept",
            f"{run} {DASK_IMAGE} sh -c 'exit 7'; echo status $?",
        )
    )
    said = said_by_script(cloud.until_said(SCRIPT_DONE))
    assert said[0] == "pulled"
    assert int(said[1]) == 300 * 2**20
    assert int(said[2]) <= 4 * 2**30  # of an e2-medium, and not of the host
    assert said[3:] == ["1000", "m", "m", "0", "in the log", "status 7"]


def test_a_container_that_takes_too_much_memory_is_killed(cloud):
    take = "bytearray(400 * 2**20)"
    cloud.boot(
        startup_script=script(
            f"docker run --rm --memory 100m {DASK_IMAGE} python3 -c '{take}'; echo status $?",
            "echo the machine goes on",
        )
    )
    said = said_by_script(cloud.until_said(SCRIPT_DONE))
    assert said[-2:] == ["status 137", "the machine goes on"]


def test_environments_are_built_from_the_hosts_wheels(cloud):
    cloud.boot(
        startup_script=script(
            "uv venv --quiet /opt/environment",
            "uv pip install --quiet --python /opt/environment distributed",
            "/opt/environment/bin/python -c 'import distributed; print(distributed.__version__)'",
        )
    )
    said = said_by_script(cloud.until_said(SCRIPT_DONE))
    assert said == [importlib.metadata.version("distributed")]


GCP_CLUSTER = Path(__file__).with_name("gcp_cluster.py")


@pytest.mark.skipif(
    importlib.util.find_spec("dask_cloudprovider") is None,
    reason="dask-cloudprovider is not installed; it is in the extra 'test'",
)
def test_dask_cloudproviders_cluster_boots_on_our_machines(cloud, discovery):
    cloud.wait(
        cloud.post(
            "global/firewalls",
            {
                "name": "dask",
                "network": "global/networks/default",
                "allowed": [{"IPProtocol": "tcp", "ports": ["8786-8787"]}],
                "sourceRanges": ["0.0.0.0/0"],
            },
        )
    )
    done = subprocess.run(
        [sys.executable, str(GCP_CLUSTER), cloud.emulator.endpoint, PROJECT, ZONE, DASK_IMAGE],
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-5000:]
    # It writes booleans as words, which Compute Engine takes as well.
    assert all("is no boolean: '" in fault for fault in discovery.take())
    answer = json.loads(next(line for line in done.stdout.splitlines() if line.startswith("{")))
    assert answer["sum"] == sum(range(100))
    assert sorted(answer["hosts"]) == sorted(answer["workers"])
    assert len(answer["workers"]) == 2
