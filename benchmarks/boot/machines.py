"""Boots of workers on a local Compute Engine of namespace machines, with the time of every line.

Owns making them, one after another, and telling each machine's boots apart.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from dask_gce import GCECluster
from dask_gce.emulator import ComputeEmulator
from dask_gce.emulator.machine import GuestExit
from dask_gce.emulator.machines.namespace.kind import NamespaceKind
from dask_gce.emulator.machines.namespace.machine import NamespaceMachine
from dask_gce.emulator.record import InstanceRecord

from .timeline import LAST, Boot, StampedConsole, read_boot

#: Seconds after which a boot is believed not to come to an end.
PATIENCE = 300.0
PROJECT, ZONE = "benchmark", "us-central1-a"


class StampingKind(NamespaceKind):
    """Namespace machines whose consoles know the time of each line."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.machines: dict[str, tuple[float, InstanceRecord, StampedConsole]] = {}

    def create(self, record: InstanceRecord, address: str, on_exit: GuestExit) -> NamespaceMachine:
        """Make a machine whose console is stamped.

        Parameters
        ----------
        record : InstanceRecord
            The instance.
        address : str
            Its internal address.
        on_exit : callable
            Told when the guest ends by itself.

        Returns
        -------
        NamespaceMachine
            The machine.
        """
        record.serial = console = StampedConsole()
        self.machines[record.name] = (time.monotonic(), record, console)
        return super().create(record, address, on_exit)


class Bench:
    """A cluster whose workers boot one at a time.

    Parameters
    ----------
    kind : StampingKind
        The machines.
    emulator : ComputeEmulator
        The local Compute Engine that has them.
    cluster : GCECluster
        The cluster.
    """

    def __init__(self, kind: StampingKind, emulator: ComputeEmulator, cluster: GCECluster) -> None:
        self._kind = kind
        self._emulator = emulator
        self._cluster = cluster
        self.newest = ""

    def boot_worker(self) -> Boot:
        """Add a worker, and wait until its process of Dask exists."""
        before = set(self._kind.machines)
        self._cluster.scale(len(self._cluster.worker_spec) + 1)
        name = _wait(lambda: next(iter(set(self._kind.machines) - before), None))
        self.newest = str(name)
        asked, _, console = self._kind.machines[self.newest]
        return self._finish(console, asked)

    def boot_again(self, changes: dict[str, str]) -> Boot:
        """Reset the newest worker with other metadata."""
        _, record, console = self._kind.machines[self.newest]
        for item in record.resource["metadata"]["items"]:
            item["value"] = changes.get(item["key"], item["value"])
        asked = time.monotonic()
        path = f"projects/{PROJECT}/zones/{ZONE}/instances/{self.newest}/reset"
        post(self._emulator, path)
        return self._finish(console, asked)

    def _finish(self, console: StampedConsole, asked: float) -> Boot:
        def look() -> Boot | None:
            boot = read_boot(console.lines, asked)
            failed = [text for _, text in boot.phases if text.startswith("failed")]
            if failed:
                raise RuntimeError(f"{self.newest}: {failed[0]}")
            return boot if boot.phases and boot.phases[-1][1] == LAST else None

        found = _wait(look)
        assert isinstance(found, Boot)
        return found


@contextmanager
def make_bench(settings: dict[str, Any], **options: Any) -> Iterator[Bench]:
    """Make a cluster with a scheduler and no workers.

    Parameters
    ----------
    settings : dict
        Settings of the cluster.
    **options
        Options of the machines' kind.

    Yields
    ------
    Bench
        The cluster; gone afterwards.
    """
    kind = StampingKind(**options)
    with ComputeEmulator(kind) as emulator:
        rule = {
            "name": "dask",
            "network": "global/networks/default",
            "sourceRanges": ["0.0.0.0/0"],
            "allowed": [{"IPProtocol": "tcp", "ports": ["8786", "8787"]}],
        }
        post(emulator, f"projects/{PROJECT}/global/firewalls", rule)
        with GCECluster(
            api_endpoint=emulator.endpoint, project=PROJECT, zone=ZONE, quiet=True, **settings
        ) as cluster:
            yield Bench(kind, emulator, cluster)


def post(emulator: ComputeEmulator, path: str, body: dict[str, Any] | None = None) -> None:
    """Send a request, and wait until its operation is done."""
    import requests

    with requests.Session() as session:
        session.trust_env = False
        root = f"{emulator.endpoint}/compute/v1/"
        answer = session.post(root + path, json=body, timeout=60)
        answer.raise_for_status()
        done = session.post(answer.json()["selfLink"] + "/wait", timeout=120)
        done.raise_for_status()


def _wait(look: Any) -> Any:
    deadline = time.monotonic() + PATIENCE
    while (found := look()) is None:
        if time.monotonic() > deadline:
            raise TimeoutError("a machine has not come to its end in time")
        time.sleep(0.02)
    return found
