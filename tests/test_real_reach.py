"""On machines whose firewall rules hold: reachable where it should be, and nowhere else."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import requests
from adapting import LONG
from clusters import until, wait_until
from distributed import Client
from machines import DASK_IMAGE, needs_namespaces

from dask_gce import GCECluster
from dask_gce.emulator import ComputeEmulator
from dask_gce.emulator.machines.addresses import PrivateAddresses
from dask_gce.errors import StartTimeout
from dask_gce.settings import LOCAL_PROJECT

pytestmark = [
    needs_namespaces,
    pytest.mark.timeout(600),
    # The machines' Python may differ from this one by a release that only mends.
    pytest.mark.filterwarnings("ignore::distributed.versions.VersionMismatchWarning"),
]

ZONE = "us-central1-a"
SCAN = Path(__file__).parent / "port_scan.py"
SCHEDULER_PORTS = [8786, 8787]
#: What every machine reaches, and a port beside it.
METADATA = ("169.254.169.254", [80, 81])
#: What attackers try first.
WELL_KNOWN = [22, 80, 111, 443, 2375, 3389, 6443, 8080, 8888, 9100, 10250]


class Cloud:
    """What a colleague could do in the project, besides the cluster."""

    def __init__(self, emulator: ComputeEmulator, session: requests.Session) -> None:
        self._url = f"{emulator.endpoint}/compute/v1/projects/{LOCAL_PROJECT}"
        self._session = session
        session.trust_env = False

    def make(self, path: str, body: dict[str, Any]) -> None:
        answer = self._session.post(f"{self._url}/{path}", json=body, timeout=60)
        answer.raise_for_status()
        operation = answer.json()["selfLink"]
        self._session.post(f"{operation}/wait", timeout=60).raise_for_status()

    def get(self, path: str, **query: str) -> Any:
        answer = self._session.get(f"{self._url}/{path}", params=query, timeout=60)
        return answer.json() if answer.ok else None

    def rules(self) -> dict[str, dict[str, Any]]:
        """Return the firewall rules that do not come with the project."""
        found = self.get("global/firewalls").get("items", [])
        return {each["name"]: each for each in found if not each["name"].startswith("default-")}

    def scan_from_a_machine(self, network: str, targets: list[Any]) -> list[list[int]]:
        """Return what a machine of a network, which is no part of the cluster, finds open."""
        items = {
            "startup-script": f"#!/usr/bin/env python3\n{SCAN.read_text()}",
            "targets": json.dumps(targets),
            "enable-guest-attributes": "TRUE",
        }
        image = "projects/debian-cloud/global/images/family/debian-12"
        interface = {
            "network": f"global/networks/{network}",
            "accessConfigs": [{"type": "ONE_TO_ONE_NAT", "name": "external-nat"}],
        }
        self.make(
            f"zones/{ZONE}/instances",
            {
                "name": "neighbour",
                "machineType": f"zones/{ZONE}/machineTypes/e2-small",
                "disks": [
                    {"boot": True, "autoDelete": True, "initializeParams": {"sourceImage": image}}
                ],
                "networkInterfaces": [interface],
                "tags": {"items": ["app"]},
                "metadata": {"items": [{"key": k, "value": v} for k, v in items.items()]},
            },
        )
        path = f"zones/{ZONE}/instances/neighbour/getGuestAttributes"
        wait_until(lambda: self.get(path, queryPath="test/"), LONG)
        found = self.get(path, queryPath="test/")["queryValue"]["items"][0]["value"]
        return checked(found)


def scan_from_the_internet(emulator: ComputeEmulator, targets: list[Any]) -> list[list[int]]:
    """Return what is open for a program at the client's address."""
    program = [sys.executable, "-I", str(SCAN), json.dumps(targets)]
    done = subprocess.run(
        emulator.client_command(program), check=True, capture_output=True, text=True, timeout=LONG
    )
    return checked(done.stdout)


def checked(text: str) -> list[list[int]]:
    looked, found = json.loads(text)
    assert looked
    assert isinstance(found, list)
    return found


def listening() -> Callable[[], list[tuple[str, int]]]:
    """Return a function that tells where its machine listens; the workers have no such module."""

    def look() -> list[tuple[str, int]]:
        import socket
        import struct
        from pathlib import Path

        found = []
        for table in ("/proc/net/tcp", "/proc/net/tcp6"):
            for line in Path(table).read_text().splitlines()[1:]:
                local, state = line.split()[1], line.split()[3]
                host, port = local.split(":")
                if state == "0A":
                    words = struct.pack(
                        f"={len(host) // 8}I",
                        *(int(host[at : at + 8], 16) for at in range(0, len(host), 8)),
                    )
                    family = socket.AF_INET if len(words) == 4 else socket.AF_INET6
                    found.append((socket.inet_ntop(family, words), int(port, 16)))
        return sorted(found)

    return look


def addresses(emulator: ComputeEmulator) -> tuple[str, str]:
    """Return the internal addresses of the scheduler and of its only worker."""
    found = {
        "-worker-" in each["name"]: each["networkInterfaces"][0]["networkIP"]
        for each in emulator.instances()
    }
    return found[False], found[True]


@pytest.mark.parametrize(
    ("connect", "source", "seen"),
    [("external", "198.51.100.2/32", SCHEDULER_PORTS), ("iap", "35.235.240.0/20", [])],
)
def test_nothing_is_open_that_need_not_be(
    namespace_emulator: ComputeEmulator, connect: str, source: str, seen: list[int]
) -> None:
    emulator = namespace_emulator
    with requests.Session() as session:
        cloud = Cloud(emulator, session)
        # It lets nobody in: neither clients nor workers.
        cloud.make("global/networks", {"name": "lab", "autoCreateSubnetworks": True})
        with (
            GCECluster(
                api_endpoint=emulator.endpoint,
                container_image=DASK_IMAGE,
                machine_type="e2-medium",
                network="lab",
                connect=connect,
                external_ip=connect == "external",
                n_workers=1,
                quiet=True,
            ) as cluster,
            Client(cluster) as client,
        ):
            client.wait_for_workers(1, timeout=LONG)
            assert client.submit(sum, [1, 2]).result(LONG) == 3
            rules = cloud.rules()
            (clients,) = [each for name, each in rules.items() if name.endswith("-clients")]
            (machines,) = [each for name, each in rules.items() if name.endswith("-machines")]
            assert len(rules) == 2
            assert clients["sourceRanges"] == [source]
            assert "sourceRanges" not in machines

            # What the machines listen on, at their internal address and nowhere else.
            scheduler, worker = addresses(emulator)
            # On each there also is the local engine's API, at its loopback address.
            engine = [("127.0.0.1", urlsplit(emulator.endpoint).port)]
            ours = [(scheduler, port) for port in SCHEDULER_PORTS]
            assert client.run_on_scheduler(listening()) == ours + engine
            (found,) = client.run(listening()).values()
            theirs = [each for each in found if each not in engine]
            assert {host for host, _ in theirs} == {worker}
            assert len(theirs) == 3  # nanny, worker, and the worker's own web server

            some = sorted({*WELL_KNOWN, *SCHEDULER_PORTS, *(port for _, port in theirs)})
            outside = PrivateAddresses.external
            with ThreadPoolExecutor(1) as pool:
                inside = pool.submit(
                    cloud.scan_from_a_machine,
                    "lab",
                    [(scheduler, None), (outside(scheduler), some), (worker, some), METADATA],
                )
                internet = scan_from_the_internet(
                    emulator, [(outside(scheduler), None), (outside(worker), some)]
                )
                # The last one shows that it would have found what there is.
                assert inside.result() == [[], [], [], [80]]
            assert internet == [seen, []]
        wait_until(lambda: cloud.rules() == {}, LONG)


def test_the_default_network_takes_one_rule_for_this_computer(
    namespace_emulator: ComputeEmulator,
) -> None:
    with requests.Session() as session:
        cloud = Cloud(namespace_emulator, session)
        with GCECluster(
            api_endpoint=namespace_emulator.endpoint,
            container_image=DASK_IMAGE,
            machine_type="e2-small",
            n_workers=0,
            quiet=True,
        ) as cluster:
            (rule,) = cloud.rules().values()
            assert rule["sourceRanges"] == ["198.51.100.2/32"]
            assert rule["allowed"] == [{"IPProtocol": "tcp", "ports": ["8786", "8787"]}]
            (route,) = [event.why for event in cluster.events if event.what == "route"]
            assert route.startswith("external")
            with Client(cluster) as client:
                assert client.ncores() == {}
                answer = session.get(cluster.dashboard_link, timeout=60)
                assert answer.status_code == 200
        wait_until(lambda: cloud.rules() == {}, LONG)


async def test_without_rules_of_its_own_a_cluster_says_what_is_missing(
    namespace_emulator: ComputeEmulator,
) -> None:
    with requests.Session() as session:
        cloud = Cloud(namespace_emulator, session)
        cloud.make("global/networks", {"name": "lab", "autoCreateSubnetworks": True})
        cluster = GCECluster(
            api_endpoint=namespace_emulator.endpoint,
            container_image=DASK_IMAGE,
            machine_type="e2-small",
            network="lab",
            firewall=False,
            n_workers=0,
            start_timeout=LONG,
            quiet=True,
            asynchronous=True,
        )
        starting = asyncio.ensure_future(_start(cluster))
        try:
            await until(lambda: starting.done() or cluster.scheduler, LONG)
            scheduler = cluster.scheduler
            path = f"zones/{ZONE}/instances/{scheduler.name}/getGuestAttributes"
            await until(
                lambda: starting.done() or "running" in str(cloud.get(path, queryPath="dask-gce/")),
                LONG,
            )
            # Not that it is not there yet: it runs, and who knocks is not let in.
            scheduler._obstacle = ""
            await until(lambda: starting.done() or scheduler._obstacle, LONG)
            cluster._fleet.members[scheduler.name].timeout = 0
            with pytest.raises(StartTimeout) as failure:
                await starting
        finally:
            starting.cancel()
            await asyncio.wait({starting})
        assert cloud.rules() == {}
    said = str(failure.value)
    assert "Last boot phase: running" in said
    assert (
        "The firewall of network lab does not let in the cluster's machines to one another" in said
    )
    assert "With firewall = False the rules are yours to make" in said
    assert "gcloud compute firewall-rules create" in said


async def _start(cluster: GCECluster) -> GCECluster:
    return await cluster
