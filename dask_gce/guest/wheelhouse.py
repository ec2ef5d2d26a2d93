"""Hand out the wheels that no index has, from the scheduler to the workers, over Dask's own TLS.

As a preload of the scheduler this takes them from the client, keeps them on disk for workers that
come later, and installs them for the scheduler itself, which unpickles graphs. Run as a program on
a worker's machine it fetches and installs them before Dask starts. The metadata of each machine
says which wheels there are, how long they are and with what digests; nothing else is accepted.

Runs with Dask but without the package that sent it.
"""

from __future__ import annotations

import asyncio
import hashlib
import importlib
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from distributed import Scheduler, rpc
from distributed.security import Security

#: Bytes of a wheel in one message. A thousand workers may ask at once, and what they are sent waits
#: in the scheduler's memory until they have taken it.
CHUNK = 2**20
#: Seconds until a scheduler that did not answer is asked again.
AGAIN = 0.2
#: Seconds that one question may wait for the wheels to be there.
PATIENCE = 20.0
#: Seconds in which the scheduler may answer the last question, when the time is over.
LAST = 10.0


class Store:
    """The wheels of one machine, on its disk.

    Parameters are those that `install.py` has written down.
    """

    def __init__(self, plan: dict[str, Any]) -> None:
        self.folder = Path(plan["folder"])
        self.wheels = {each["name"]: each for each in plan["wheels"]}
        self._install = plan["install"]
        self._installed = Path(plan["installed"])
        self.folder.mkdir(parents=True, exist_ok=True)

    def path(self, name: str) -> Path:
        """Return where a wheel is, or will be."""
        # Only names of the plan, so that none leads anywhere else; and each under its digest.
        folder = self.folder / str(self.wheels[name]["sha256"])
        folder.mkdir(exist_ok=True)
        return folder / name

    def part(self, name: str) -> Path:
        """Return where as much of a wheel is as has come."""
        return self.path(name).with_suffix(".part")

    def missing(self) -> dict[str, int]:
        """Return the wheels that are not all there, each with the bytes that have come."""
        return {name: self._have(name) for name in self.wheels if not self.path(name).exists()}

    def _have(self, name: str) -> int:
        """Return how much of a wheel has come that was not all there a moment ago."""
        try:
            return self.part(name).stat().st_size
        except FileNotFoundError:
            # None of it; or all of it by now, of which `add` tells whoever begins anew.
            return 0

    def add(self, name: str, offset: int, data: bytes) -> int:
        """Add to a wheel; return how much of it is there, which is less if this did not fit on."""
        wheel = self.wheels[name]
        if self.path(name).exists():
            return int(wheel["size"])
        part, have = self.part(name), self._have(name)
        if offset != have:
            return have
        if have + len(data) > wheel["size"]:
            part.unlink(missing_ok=True)
            raise ValueError(f"{name} is longer than the metadata say")
        with part.open("ab") as file:
            file.write(data)
        have += len(data)
        if have == wheel["size"]:
            if digest_of(part) != wheel["sha256"]:
                part.unlink()
                raise ValueError(f"{name} is not the file that the metadata describes")
            part.replace(self.path(name))
        return have

    def read(self, name: str, offset: int) -> bytes:
        """Return a piece of a wheel."""
        with self.path(name).open("rb") as file:
            file.seek(offset)
            return file.read(CHUNK)

    def install(self) -> None:
        """Install all wheels into the environment that this runs in."""
        if self._installed.exists():
            return
        done = subprocess.run(
            [*self._install, *(str(self.path(name)) for name in self.wheels)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            check=False,
        )
        if done.returncode != 0:
            raise RuntimeError(f"cannot be installed: {done.stdout.strip()}")
        self._installed.touch()


def digest_of(path: Path) -> str:
    """Return the SHA-256 of a file, of which only a piece is in memory at a time."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(CHUNK):
            digest.update(block)
    return digest.hexdigest()


class Wheelhouse:
    """The scheduler's side: takes wheels from the client and gives them to workers."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._ready = asyncio.Event()
        self._error = ""
        # One at a time: pieces come in their order, and the installer runs once.
        self._lock = asyncio.Lock()

    async def begin(self) -> None:
        """Install what an earlier run of this scheduler has got."""
        async with self._lock:
            await self._settle()

    async def _settle(self) -> None:
        if self._store.missing() or self._ready.is_set():
            return
        try:
            await asyncio.to_thread(self._store.install)
        except RuntimeError as error:
            self._error = str(error)
        importlib.invalidate_caches()
        self._ready.set()

    async def state(self, wait: float = 0.0) -> dict[str, Any]:
        """Tell what is missing, once all is there or some seconds have passed."""
        if wait:
            waiting = asyncio.ensure_future(self._ready.wait())
            await asyncio.wait({waiting}, timeout=min(wait, PATIENCE))
            waiting.cancel()
        missing = self._store.missing()
        return {"missing": missing, "ready": self._ready.is_set(), "error": self._error}

    async def put(self, name: str, offset: int, data: bytes) -> int:
        """Take a piece of a wheel."""
        async with self._lock:
            have = await asyncio.to_thread(self._store.add, name, offset, data)
            await self._settle()
            return have

    async def get(self, name: str, offset: int) -> bytes:
        """Give a piece of a wheel."""
        return await asyncio.to_thread(self._store.read, name, offset)


def read_plan(path: str) -> dict[str, Any]:
    """Read what `install.py` has written down."""
    plan: dict[str, Any] = json.loads(Path(path).read_text())
    return plan


async def dask_setup(scheduler: Scheduler) -> None:
    """Let the scheduler answer the questions of clients and workers."""
    house = Wheelhouse(Store(read_plan(os.environ["DASK_GCE_WHEELS"])))
    scheduler.handlers["dask_gce_wheels"] = house.state
    scheduler.handlers["dask_gce_put_wheel"] = house.put
    scheduler.handlers["dask_gce_get_wheel"] = house.get
    await house.begin()


async def fetch(plan: dict[str, Any], install: bool) -> str:
    """Wait for the scheduler to have all wheels, and get them; return what went wrong."""
    security = Security(**plan["security"]) if plan["security"] else Security()
    arguments = security.get_connection_args("worker")
    deadline = time.monotonic() + plan["timeout"]
    while True:
        left = max(0.0, deadline - time.monotonic())
        try:
            async with rpc(
                plan["contact"], connection_args=arguments, timeout=LAST + min(left, PATIENCE)
            ) as scheduler:
                state = await scheduler.dask_gce_wheels(wait=min(left, PATIENCE))
                if state is None:
                    # It listens before it starts its preloads.
                    state = {"missing": {}, "ready": False, "error": ""}
                if state["error"]:
                    return f"on the scheduler they {state['error']}"
                if state["ready"]:
                    if install:
                        await get(Store(plan), scheduler)
                    return ""
                missing = ", ".join(sorted(state["missing"])) or "what it is to hand out"
                reason = f"the client has not sent {missing}"
        except OSError as error:
            reason = f"the scheduler does not answer: {error}"
        if not left:
            return f"{reason} within {plan['timeout']:g} s (worker_start_timeout)"
        await asyncio.sleep(AGAIN)


async def get(store: Store, scheduler: Any) -> None:
    """Get what is missing from a scheduler that has all, and install everything."""
    for name, offset in store.missing().items():
        have = offset
        while have < store.wheels[name]["size"]:
            data = await scheduler.dask_gce_get_wheel(name=name, offset=have)
            if not data:
                raise ValueError(f"{name} is shorter on the scheduler than the metadata say")
            have = store.add(name, have, data)
    store.install()


def main() -> None:
    """Fetch and install what the plan names, or only wait for the scheduler to have it."""
    what, path = sys.argv[1:]
    try:
        reason = asyncio.run(fetch(read_plan(path), what == "fetch"))
    except (OSError, RuntimeError, ValueError) as error:
        reason = str(error)
    if reason:
        sys.exit(reason)


if __name__ == "__main__":
    main()
