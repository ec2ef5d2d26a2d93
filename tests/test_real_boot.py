"""A cluster in containers on machines with systemd: it computes, adapts, and survives a reset."""

from __future__ import annotations

import dask
import pytest
import requests
from adapting import LONG, see_it_adapt
from clusters import wait_until, worker_machines
from distributed import Client
from machines import DASK_IMAGE, needs_namespaces
from test_secrets import in_metadata

from dask_gce import GCECluster
from dask_gce.emulator import ComputeEmulator

pytestmark = [
    needs_namespaces,
    pytest.mark.timeout(600),
    # The machines' Python may differ from this one by a release that only mends.
    pytest.mark.filterwarnings("ignore::distributed.versions.VersionMismatchWarning"),
]


def test_two_workers_compute_adapt_and_come_back(namespace_emulator: ComputeEmulator) -> None:
    emulator = namespace_emulator

    def where() -> str:
        import socket

        return socket.gethostname()

    with (
        GCECluster(
            api_endpoint=emulator.endpoint,
            container_image=DASK_IMAGE,
            machine_type="e2-medium",
            n_workers=2,
            worker_start_timeout=LONG,
            quiet=True,
        ) as cluster,
        Client(cluster) as client,
    ):
        client.wait_for_workers(2, timeout=LONG)
        assert cluster.scheduler_address.startswith("tls://")

        def everywhere() -> set[str]:
            return set(client.run(where).values())

        names = worker_machines(emulator)
        assert everywhere() == names
        squares = client.map(lambda number: number**2, range(100), pure=False)
        assert client.submit(sum, squares).result(LONG) == 328350

        # Nobody who may look at instances sees a key, and yet the reset below does no harm.
        wait_until(lambda: not in_metadata(emulator), LONG)
        reset = min(names)
        before = set(client.scheduler_info(n_workers=-1)["workers"])

        def is_back() -> bool:
            known = set(client.scheduler_info(n_workers=-1)["workers"])
            return len(known) == 2 and known != before

        # Nobody is to give a machine up that is only slow.
        with (
            dask.config.set({"distributed.deploy.lost-worker-timeout": f"{LONG} s"}),
            requests.Session() as session,
        ):
            session.trust_env = False
            (machine,) = [each for each in emulator.instances() if each["name"] == reset]
            session.post(f"{machine['selfLink']}/reset", timeout=60).raise_for_status()
            wait_until(is_back, LONG)
        assert everywhere() == worker_machines(emulator) == names
        see_it_adapt(emulator, cluster, client)
    wait_until(lambda: emulator.instances() == [], LONG)
