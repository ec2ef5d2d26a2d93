"""The runtime container on real machines: systemd, a read-only root, a container engine."""

from __future__ import annotations

import os
import sys
from typing import Any

import cloudpickle
import dask
import pytest
import requests
from adapting import LONG
from clusters import DELETE, wait_until
from distributed import Client
from machines import DASK_IMAGE, needs_namespaces

from dask_gce import GCECluster
from dask_gce.connections import delete_connection
from dask_gce.emulator import ComputeEmulator
from dask_gce.settings import LOCAL_PROJECT

pytestmark = [
    needs_namespaces,
    pytest.mark.timeout(600),
    # The machines' Python may differ from this one by a release that only mends.
    pytest.mark.filterwarnings("ignore::distributed.versions.VersionMismatchWarning"),
]
# The workers have no such module.
cloudpickle.register_pickle_by_value(sys.modules[__name__])

ZONE = "us-central1-a"
NASTY = "a 'b' \"c\" $HOME $(reboot) `reboot` \\ \\n \n\t ünï ☃\n"
MIB = 2**20


def look() -> dict[str, Any]:
    """Return what a worker sees of its container."""
    from pathlib import Path

    import distributed

    mounts = [line.split() for line in Path("/proc/self/mounts").read_text().splitlines()]
    shm = os.statvfs("/dev/shm")  # the container's own
    folder = next(Path(mount[1]) for mount in mounts if mount[1].endswith("/private"))
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {
        "user": os.getuid(),
        "first": Path("/proc/1/cmdline").read_bytes().split(b"\0")[1].decode(),
        "memory": distributed.system.MEMORY_LIMIT,
        "shared memory": shm.f_blocks * shm.f_frsize,
        "programs": {mount[1]: mount[3].split(",")[0] for mount in mounts if "/guest" in mount[1]},
        "secrets": {path.suffix: oct(path.stat().st_mode & 0o777) for path in files},
        "owners": {path.stat().st_uid for path in files},
        "in memory": {mount[2] for mount in mounts if mount[1] == str(folder)},
        "greeting": os.environ.get("GREETING"),
    }


def leave_an_orphan() -> None:
    """Start a process whose parent ends before it."""
    import subprocess

    subprocess.run(["sh", "-c", "(sleep 0.05; exit 3) & exit 0"], check=True)


def zombies() -> list[str]:
    """Return the processes that have ended and that nobody has waited for."""
    from pathlib import Path

    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            text = (process / "stat").read_text()
        except OSError:
            continue
        if ") Z " in text:
            found.append(text)
    return found


def let_it_be_alone(seconds: float, dask_scheduler: Any) -> None:
    """Shorten the time without a client; from its start on it would depend on the host's pace."""
    dask_scheduler.extensions["dask-gce-guard"]._limits["no_client_timeout"] = seconds


def test_a_container_on_container_optimized_os(namespace_emulator: ComputeEmulator) -> None:
    with (
        # Nobody is to give a machine up that is only slow.
        dask.config.set({"distributed.deploy.lost-worker-timeout": f"{LONG} s"}),
        requests.Session() as session,
        GCECluster(
            api_endpoint=namespace_emulator.endpoint,
            container_image=DASK_IMAGE,
            docker_options=["--env", f"GREETING={NASTY}"],
            machine_type="e2-small",
            shm_size="100 MiB",
            n_workers=1,
            # Its machines, which may delete themselves, are not deleted by the client.
            service_account="default",
            shutdown_on_close=False,
            quiet=True,
        ) as cluster,
        Client(cluster) as client,
    ):
        client.wait_for_workers(1, timeout=LONG)
        (seen,) = client.run(look).values()
        assert seen["user"] == 1000  # the image's own
        assert seen["first"].endswith("/guest/start.py")
        assert seen["memory"] == 2048 * MIB - 256 * MIB
        (worker,) = client.scheduler_info()["workers"].values()
        assert worker["memory_limit"] == seen["memory"]
        assert seen["shared memory"] == 100 * MIB
        assert set(seen["programs"].values()) == {"ro"}
        assert seen["secrets"] == {".pem": "0o600", ".json": "0o600"}
        assert seen["owners"] == {1000}
        assert seen["in memory"] == {"tmpfs"}
        assert seen["greeting"] == NASTY

        client.run(leave_an_orphan)
        wait_until(lambda: list(client.run(zombies).values()) == [[]], LONG)

        session.trust_env = False
        zone = f"{namespace_emulator.endpoint}/compute/v1/projects/{LOCAL_PROJECT}/zones/{ZONE}"
        instance = f"{zone}/instances/{worker['name']}"

        def console() -> str:
            return str(session.get(f"{instance}/serialPort", timeout=60).json()["contents"])

        client.run(print, "said on a worker", flush=True)
        wait_until(lambda: "startup-script: said on a worker" in console(), LONG)

        runs = "dask-gce phase: running"
        wait_until(lambda: runs in console(), LONG)
        before = console().count(runs)
        session.post(f"{instance}/reset", timeout=60).raise_for_status()
        wait_until(lambda: console().count(runs) > before, LONG)
        client.wait_for_workers(1, timeout=LONG)
        assert client.submit(os.getuid).result(LONG) == 1000
        # It is the same machine, whose container of before is gone; nobody had to replace it.
        assert cluster.failures == []
        assert "already in use" not in console()
        deleted = namespace_emulator.requests[DELETE]
        client.run_on_scheduler(let_it_be_alone, 1.0)
    # Nobody is there any more, and of the cluster nothing is left.
    wait_until(lambda: not namespace_emulator.leftovers(), LONG)
    assert namespace_emulator.requests[DELETE] > deleted
    # But the keys that are on this computer, for whoever would have joined it.
    assert delete_connection(cluster.name, LOCAL_PROJECT)
