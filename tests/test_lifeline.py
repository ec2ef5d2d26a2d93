"""A worker's machine ends when its scheduler is gone, also if the worker does not notice."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Iterator
from typing import Any

import pytest
from clusters import PATIENCE, cluster_on, until, worker_machines
from distributed import Client
from guests import Guest
from records import compute_of

from dask_gce import GCECluster
from dask_gce.connections import connection_path
from dask_gce.emulator import ComputeEmulator
from dask_gce.startup import Limits, Payload, worker_spec
from dask_gce.tags import rule_filter

#: A `dask` that is connected to its scheduler and does nothing more, whatever it is told.
HUNG = """#!{python}
# {output} {status}
import signal, socket, sys, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
address = sys.argv[2]
host, _, port = address.partition("://")[2].rpartition(":")
connection = socket.create_connection((host, int(port)))
connection.sendall(b"x")
time.sleep(1000)
"""
#: One that is not even connected.
LOST = HUNG.replace('connection.sendall(b"x")', 'connection.sendall(b"x"); connection.close()')


class Scheduler:
    """What listens, and can vanish."""

    def __init__(self) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self._open: list[socket.socket] = []
        #: Set when a worker is connected, and how often somebody has asked since for an answer.
        self.joined = threading.Event()
        self.asked = 0
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            self.asked += 1
            if connection.recv(1):
                self.asked = 0
                self._open.append(connection)
                self.joined.set()
            else:
                connection.close()

    def vanish(self) -> None:
        """Leave nobody to answer."""
        with contextlib.suppress(OSError):  # it may have vanished already
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for each in self._open:
            each.close()


@pytest.fixture
def scheduler() -> Iterator[Scheduler]:
    made = Scheduler()
    yield made
    made.vanish()


def payload(scheduler: Scheduler, **limits: float) -> Payload:
    spec = worker_spec(
        worker_class="distributed.Nanny",
        scheduler_address=f"tcp://127.0.0.1:{scheduler.port}",
        nthreads=1,
        memory_limit=None,
        options={},
    )
    place = {"host": "127.0.0.1", "port": scheduler.port, "timeout": PATIENCE}
    return Payload("worker", "p", None, spec, scheduler=place, limits=Limits(**limits))


async def test_a_worker_that_hangs_ends_with_its_scheduler(tmp_path, scheduler):
    guest = Guest(tmp_path, dask=HUNG, GRACE=0.2)

    async def leave(process: Any) -> None:
        await until(scheduler.joined.is_set)
        scheduler.vanish()

    status, _, console = await guest.run(payload(scheduler, death_timeout=1.0), leave)
    assert status == 0, console
    assert "dask-gce phase: ending: death_timeout: no scheduler answered for 1 s" in console


@pytest.mark.parametrize("dask", [HUNG, LOST])
async def test_a_scheduler_that_is_there_is_enough(tmp_path, scheduler, dask):
    guest = Guest(tmp_path, dask=dask, GRACE=0.2)

    async def stay(process: Any) -> None:
        await until(scheduler.joined.is_set)
        if dask is LOST:
            # Whoever has no connection asks, time and again, and is content with an answer.
            await until(lambda: scheduler.asked >= 3)
        else:
            done = threading.Event()
            threading.Timer(3.0, done.set).start()
            await until(done.is_set)
            # Nobody has been asked anything meanwhile.
            assert scheduler.asked == 0
        assert process.returncode is None
        scheduler.vanish()

    status, _, console = await guest.run(payload(scheduler, death_timeout=1.0), stay)
    assert status == 0, console


def detached(emulator: ComputeEmulator, **options: Any) -> GCECluster:
    """Return a cluster of which this process soon knows nothing any more."""
    return cluster_on(emulator, name="grid", n_workers=1, shutdown_on_close=False, **options)


def forget() -> None:
    """Delete what this computer knows of the cluster, which nobody has looked for since."""
    connection_path("grid", "local-project").unlink()


async def test_the_machines_of_a_scheduler_that_broke_down_end_and_go(process_emulator):
    options = {"service_account": "default", "scopes": ["cloud-platform"], "death_timeout": 2}
    cluster = detached(process_emulator, **options)
    async with cluster:
        await cluster.wait_for_workers(1, timeout=PATIENCE)
        (worker,) = worker_machines(process_emulator)
        scheduler = next(
            each["name"] for each in process_emulator.instances() if each["name"] != worker
        )
    process_emulator.host_error(scheduler)
    await until(lambda: all(each["name"] == scheduler for each in process_emulator.instances()))
    # With its client gone nobody is left to delete what is off, and its rules: they are swept.
    (instance,) = process_emulator.instances()
    assert instance["status"] == "TERMINATED"
    process_emulator.delete(scheduler, user="the sweep")
    async with compute_of(process_emulator) as compute:
        for rule in await compute.list_firewalls(rule_filter()):
            await compute.delete_firewall(rule["name"])
    await until(lambda: not process_emulator.leftovers())
    forget()


async def test_a_cluster_whose_client_is_gone_goes_without_a_trace(process_emulator):
    def shorten(dask_scheduler: Any) -> None:
        # From its start on it would depend on how long the client takes to connect.
        dask_scheduler.extensions["dask-gce-guard"]._limits["no_client_timeout"] = 2.0

    options = {"service_account": "default", "scopes": ["cloud-platform"]}
    cluster = detached(process_emulator, no_client_timeout="10 minutes", **options)
    async with cluster:
        await cluster.wait_for_workers(1, timeout=PATIENCE)
        async with Client(cluster, asynchronous=True) as client:
            await client.run_on_scheduler(shorten)
    await until(lambda: not process_emulator.leftovers())
    forget()
