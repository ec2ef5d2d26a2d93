"""Runs hundreds of Dask workers in one process: what a light host boots, a program of its own.

Owns the workers: each has the address, the name, the certificates and the Dask specification of an
instance of its own, and lives in this process with all the others. What machines they are, and when
they boot and end, is told by the emulator (:mod:`light`) in lines of JSON::

    {"boot": KEY, "name": NAME, "address": ADDRESS, "metadata": {...}}
    {"stop": KEY, "grace": SECONDS}    let a worker end in order
    {"kill": KEY}                      cut its power
    {"show": KEY, "preempted": BOOL, "maintenance": EVENT}   as the metadata server would

and this answers, once a worker has ended for whatever reason, with ``{"off": KEY}``, and on the way
there with ``{"phase": KEY, "text": TEXT}``. When the emulator hangs up, this process ends.
"""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import json
import logging
import os
import resource
import time
import urllib.request
from typing import Any

import dask
import distributed

#: What costs each worker a timer, a thread or a port, and tells nothing about a cluster.
CONFIG = {
    "distributed.worker.profile.enabled": False,
    "distributed.worker.memory.target": False,
    "distributed.worker.memory.spill": False,
    "distributed.worker.memory.pause": False,
    "distributed.worker.memory.terminate": False,
    "distributed.worker.use-file-locking": False,
    "distributed.worker.preload": [],
    "distributed.admin.tick.interval": "10s",
    "distributed.admin.tick.limit": "60s",
    "distributed.admin.system-monitor.interval": "60s",
    "distributed.admin.system-monitor.disk": False,
    "distributed.admin.system-monitor.gil.enabled": False,
    "distributed.diagnostics.nvml": False,
    # Hundreds of handshakes take their turn in one process.
    "distributed.comm.timeouts.connect": "120s",
}

#: How many workers connect to their schedulers at a time.
AT_A_TIME = 32

#: Seconds between two knocks at a scheduler's port, as guests make them.
KNOCK = 0.25

#: Seconds that are left to a machine that is preempted without a notice, and before maintenance.
WITHOUT_NOTICE, MAINTENANCE = 25.0, 60.0

#: What the ports of a worker are is decided here.
OURS = frozenset({"host", "port", "name", "security", "dashboard", "dashboard_address"})


class LightWorker(distributed.Worker):
    """A worker without a web server."""

    def start_http_server(self, *args: Any, **kwargs: Any) -> None:
        """Do nothing: a web server for each of a thousand workers is never asked."""


class SharedSecurity(distributed.Security):
    """TLS settings whose contexts are made once, not once for every worker."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        self._made: dict[Any, Any] = {}

    def _get_tls_context(self, tls: dict[str, Any], purpose: Any) -> Any:
        if purpose not in self._made:
            self._made[purpose] = super()._get_tls_context(tls, purpose)
        return self._made[purpose]


class Knock:
    """Knocks at one scheduler's port for all workers that wait for it."""

    def __init__(self, host: str, port: int) -> None:
        self.waiting = 0
        self.answered = asyncio.ensure_future(self._knock(host, port))

    @staticmethod
    async def _knock(host: str, port: int) -> None:
        while True:
            with contextlib.suppress(OSError, asyncio.TimeoutError):
                _, writer = await asyncio.wait_for(asyncio.open_connection(host, port), 3)
                writer.close()
                return
            await asyncio.sleep(KNOCK)


class Boot:
    """One boot of one instance: its workers from the first to the last moment."""

    def __init__(self, host: Host, key: int, name: str, address: str, metadata: dict[str, str]):
        self._host = host
        self._key = key
        self._name = name
        self._address = address
        self._metadata = metadata
        self._workers: list[LightWorker] = []
        self._living = asyncio.ensure_future(self._live())
        self._following = asyncio.ensure_future(self._follow())
        self._grace: float | None = None
        self._telling: list[asyncio.Future[None]] = []

    def show(self, preempted: bool, maintenance: str) -> None:
        """Tell the scheduler if the machine will be taken away, as guests do."""
        if preempted:
            seconds, why = float(self._metadata.get("dask-gce-notice", WITHOUT_NOTICE)), "preempted"
        elif maintenance.startswith("TERMINATE"):
            seconds, why = MAINTENANCE, "maintenance"
        else:
            return
        self._telling.append(asyncio.ensure_future(self._tell(seconds, why)))

    async def _tell(self, seconds: float, why: str) -> None:
        ends = time.monotonic() + seconds
        while (left := ends - time.monotonic()) > 0:
            with contextlib.suppress(OSError):
                if self._workers and await self._workers[0].scheduler.dask_gce_leave(
                    machine=self._name, seconds=left, why=why
                ):
                    return
            await asyncio.sleep(KNOCK)

    def end(self, grace: float | None) -> None:
        """End the workers: in order within some seconds, or at once."""
        self._grace = grace
        self._living.cancel()

    async def _live(self) -> None:
        self._say("starting")
        spec = json.loads(self._metadata["dask-gce-spec"])
        scheduler = json.loads(self._metadata["dask-gce-scheduler"])
        await self._host.wait_for(scheduler["host"], scheduler["port"], scheduler["timeout"])
        options = {
            **_for_workers(spec["opts"]),
            "host": self._address,
            "security": self._host.security(self._metadata),
            "dashboard": False,
        }
        async with self._host.turn:
            for name in self._names():
                self._workers.append(LightWorker(*spec["args"], name=name, **options))
                await self._workers[-1]
        self._say("running")
        await asyncio.gather(*(worker.finished() for worker in self._workers))

    def _names(self) -> list[str]:
        processes = int(self._metadata.get("dask-gce-processes", 1))
        if processes == 1:
            return [self._name]
        return [f"{self._name}-{number}" for number in range(processes)]

    async def _follow(self) -> None:
        await asyncio.wait({self._living})
        if self._living.cancelled():
            await self._end_workers()
        elif (error := self._living.exception()) is not None:
            logging.error("%s failed", self._name, exc_info=error)
            await self._end_workers()
            self._say(f"failed: {type(error).__name__}: {error}")
            await self._host.linger(self._key, float(self._metadata.get("dask-gce-linger", 120)))
        else:
            self._say("ended")
        for telling in self._telling:
            telling.cancel()
        self._host.forget(self._key)

    async def _end_workers(self) -> None:
        grace = 0.0 if self._grace is None else self._grace
        for worker in self._workers:
            if self._grace is None and worker.batched_stream.comm is not None:
                # Who loses power does not say goodbye.
                worker.batched_stream.abort()
        closing = [
            asyncio.ensure_future(worker.close(timeout=grace, executor_wait=False, nanny=False))
            for worker in self._workers
        ]
        if closing:
            _, late = await asyncio.wait(closing, timeout=grace + 1)
            for task in late:
                task.cancel()

    def _say(self, text: str) -> None:
        self._host.report({"phase": self._key, "text": text})


class Host:
    """All workers of this process."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer
        self._boots: dict[int, Boot] = {}
        self._ended: dict[int, asyncio.Event] = {}
        self._knocks: dict[tuple[str, int], Knock] = {}
        self._securities: dict[tuple[str, ...], SharedSecurity] = {}
        self.turn = asyncio.Semaphore(AT_A_TIME)

    async def serve(self) -> None:
        """Carry out orders until there is nobody who gives them."""
        while line := await self._reader.readline():
            order = json.loads(line)
            if "boot" in order:
                key = order.pop("boot")
                self._ended[key] = asyncio.Event()
                self._boots[key] = Boot(self, key, **order)
                continue
            if "show" in order:
                boot = self._boots.get(order.pop("show"))
                if boot is not None:
                    boot.show(**order)
                continue
            key = order.get("stop", order.get("kill"))
            if key in self._boots:  # it may have ended by itself a moment ago
                self._ended[key].set()
                self._boots[key].end(order.get("grace"))

    def report(self, words: dict[str, Any]) -> None:
        """Tell the emulator something."""
        self._writer.write(json.dumps(words).encode() + b"\n")

    def forget(self, key: int) -> None:
        """Say that a machine is off."""
        del self._boots[key], self._ended[key]
        self.report({"off": key})

    async def linger(self, key: int, seconds: float) -> None:
        """Let time pass, unless the machine is told to end."""
        with contextlib.suppress(asyncio.TimeoutError):
            await asyncio.wait_for(self._ended[key].wait(), seconds)

    async def wait_for(self, host: str, port: int, timeout: float) -> None:
        """Wait until a scheduler's port answers."""
        knock = self._knocks.get((host, port))
        if knock is None:
            knock = self._knocks[host, port] = Knock(host, port)
        knock.waiting += 1
        try:
            await asyncio.wait_for(asyncio.shield(knock.answered), timeout)
        except asyncio.TimeoutError:
            raise TimeoutError(f"no scheduler at {host}:{port}") from None
        finally:
            knock.waiting -= 1
            if not knock.waiting:
                knock.answered.cancel()
                self._knocks.pop((host, port), None)

    def security(self, metadata: dict[str, str]) -> SharedSecurity | None:
        """Return the TLS settings of an instance, or None without TLS."""
        if "dask-gce-tls" not in metadata:
            return None
        bundle = json.loads(metadata["dask-gce-tls"])
        texts = tuple(bundle[name] for name in ("ca", "cert", "key"))
        if texts not in self._securities:
            ca, certificate, key = texts
            self._securities[texts] = SharedSecurity(
                require_encryption=True,
                tls_ca_file=ca,
                tls_worker_cert=certificate,
                tls_worker_key=key,
            )
        return self._securities[texts]


def _for_workers(options: dict[str, Any]) -> dict[str, Any]:
    """Return those options that are not for a nanny."""
    nanny = inspect.signature(distributed.Nanny).parameters
    worker = inspect.signature(distributed.Worker).parameters
    return {
        key: value
        for key, value in options.items()
        if key not in OURS and (key in worker or key not in nanny)
    }


def _metadata(key: str) -> str:
    server = os.environ["GCE_METADATA_HOST"]
    request = urllib.request.Request(  # our own metadata server
        f"http://{server}/computeMetadata/v1/instance/attributes/{key}",
        headers={"Metadata-Flavor": "Google"},
    )
    with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request) as answer:
        return str(answer.read(), "utf-8")


async def main() -> None:
    """Report to the emulator and serve it."""
    logging.getLogger("distributed").setLevel(logging.WARNING)
    # Each worker has a listener and a handful of connections.
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(ValueError, OSError):  # macOS has no number for "all"
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    port, token = _metadata("light-port"), _metadata("light-token")
    reader, writer = await asyncio.open_connection("127.0.0.1", int(port), limit=2**24)
    writer.write(f"{token}\n".encode())
    with dask.config.set(CONFIG):
        await Host(reader, writer).serve()
    writer.close()


if __name__ == "__main__":
    asyncio.run(main())
