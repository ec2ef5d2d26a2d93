"""The floor: the same machines by a direct client, which does nothing but what must be done.

It has no SpecCluster, credentials, retries or record of what it made, asks for everything at once,
and knows the scheduler's name before it exists. No cluster can be faster; the question is how close
one comes.
"""

from __future__ import annotations

import asyncio
import json
import time
import uuid
from collections.abc import Callable, Coroutine
from typing import Any

import aiohttp

from .cloud import MACHINE_TYPE, PROJECT, ZONE, Cloud
from .contenders import IMAGE

#: Runs one Dask process. A worker waits for its scheduler's port, as a nanny would not.
SCRIPT = """\
#!/usr/bin/env python
import json, os, socket, time, urllib.request
from pathlib import Path

def metadata(path):
    request = urllib.request.Request(
        "http://" + os.environ["GCE_METADATA_HOST"] + "/computeMetadata/v1/instance/" + path,
        headers={"Metadata-Flavor": "Google"},
    )
    return urllib.request.urlopen(request).read().decode()

plan = json.loads(metadata("attributes/plan"))
plan["spec"]["opts"]["host"] = metadata("network-interfaces/0/ip")
while plan["wait"]:
    try:
        socket.create_connection((plan["wait"], 8786), timeout=3).close()
        break
    except OSError:
        time.sleep(0.25)
Path("spec.json").write_text(json.dumps(plan["spec"]))
os.execvp("dask", ["dask", "spec", *plan["arguments"], "--spec-file", "spec.json"])
"""


class Direct:
    """A handful of calls on one HTTP session.

    Parameters
    ----------
    cloud : Cloud
        The local Compute Engine.
    """

    def __init__(self, cloud: Cloud) -> None:
        self._zone = f"{cloud.endpoint}/compute/v1/projects/{PROJECT}/zones/{ZONE}"
        self._run = uuid.uuid4().hex[:8]
        self.scheduler = f"floor-{self._run}-scheduler"
        self.session = aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=100))

    async def call(self, method: str, path: str, body: Any = None, **query: str) -> Any:
        """Make one call and return its answer."""
        async with self.session.request(
            method, f"{self._zone}/{path}", json=body, params=query
        ) as answer:
            answer.raise_for_status()
            return await answer.json()

    async def finish(self, operation: Any) -> None:
        """Wait for the end of an operation."""
        while operation["status"] != "DONE":
            operation = await self.call("POST", f"operations/{operation['name']}/wait")
        assert "error" not in operation, operation["error"]

    def worker(self, number: int) -> str:
        """Return the name of a worker."""
        return f"floor-{self._run}-worker-{number:04}"

    def body(self, role: str, plan: Any) -> dict[str, Any]:
        """Return an instance without a name."""
        items = {"startup-script": SCRIPT, "plan": json.dumps(plan)}
        image = {"sourceImage": IMAGE}
        return {
            "machineType": MACHINE_TYPE,
            "disks": [{"boot": True, "autoDelete": True, "initializeParams": image}],
            "networkInterfaces": [{"network": "global/networks/default"}],
            "labels": {"floor": self._run, "role": role},
            "metadata": {"items": [{"key": key, "value": text} for key, text in items.items()]},
        }

    async def insert(self, workers: int, security: Any = None) -> None:
        """Make a scheduler and workers at the same moment; return when all run."""
        tls = {} if security is None else _tls(security)
        scheduler = {
            "wait": "",
            "arguments": [],
            "spec": {
                "cls": "distributed.Scheduler",
                "opts": {**tls, "protocol": "tls", "port": 8786},
            },
        }
        worker = {
            "wait": f"{self.scheduler}.{ZONE}.c.{PROJECT}.internal",
            "arguments": [f"tls://{self.scheduler}.{ZONE}.c.{PROJECT}.internal:8786"],
            "spec": {"cls": "distributed.Nanny", "opts": tls},
        }
        first = {**self.body("scheduler", scheduler), "name": self.scheduler}
        first["machineType"] = f"zones/{ZONE}/machineTypes/{MACHINE_TYPE}"
        bulk = {
            "count": str(workers),
            "minCount": "1",
            "perInstanceProperties": {self.worker(number): {} for number in range(workers)},
            "instanceProperties": self.body("worker", worker),
        }
        operations = await asyncio.gather(
            self.call("POST", "instances", first),
            self.call("POST", "instances/bulkInsert", bulk),
        )
        await asyncio.gather(*map(self.finish, operations))

    async def running(self) -> dict[str, str]:
        """Return the addresses of all instances that are RUNNING, by name; one call."""
        listed: dict[str, Any] = {"nextPageToken": ""}
        found: dict[str, str] = {}
        while "nextPageToken" in listed:
            token = listed["nextPageToken"]
            listed = await self.call(
                "GET",
                "instances",
                filter=f"(labels.floor = {self._run}) (status = RUNNING)",
                fields="items(name,networkInterfaces/networkIP),nextPageToken",
                maxResults="500",
                **({"pageToken": token} if token else {}),
            )
            for item in listed.get("items", ()):
                found[item["name"]] = item["networkInterfaces"][0]["networkIP"]
        return found

    async def delete(self, workers: int) -> None:
        """Delete everything, a hundred at a time."""
        names = [self.scheduler, *map(self.worker, range(workers))]
        # The session has a hundred connections; the rest waits for them.
        await asyncio.gather(*(self.call("DELETE", f"instances/{name}") for name in names))


def _tls(security: Any) -> dict[str, Any]:
    names = (
        "tls_ca_file",
        *(f"tls_{r}_{p}" for r in ("scheduler", "worker") for p in ("cert", "key")),
    )
    settings = {name: getattr(security, name) for name in names}
    return {"security": {"require_encryption": True, **settings}}


async def first(cloud: Cloud, workers: int) -> dict[str, float]:
    """Measure the time from nothing to the first result."""
    from distributed import Client, Security

    start = time.perf_counter()
    security = Security.temporary()
    direct = Direct(cloud)
    async with direct.session:
        await direct.insert(1, security)
        address = (await direct.running())[direct.scheduler]
        while True:
            try:
                _, writer = await asyncio.open_connection(address, 8786)
                writer.close()
                break
            except OSError:
                await asyncio.sleep(0.02)
        async with Client(f"tls://{address}:8786", security=security, asynchronous=True) as client:
            assert await client.submit(sum, range(10)) == 45
            seconds = time.perf_counter() - start
        await direct.delete(1)
    return {"seconds": seconds}


async def many(cloud: Cloud, workers: int) -> dict[str, float]:
    """Measure how long it takes to know that all run, with how many calls, and to delete them."""
    start = time.perf_counter()
    direct = Direct(cloud)
    async with direct.session:
        await direct.insert(workers)
        assert len(await direct.running()) == workers + 1
        known = time.perf_counter() - start
        calls = cloud.calls()
        start = time.perf_counter()
        await direct.delete(workers)
        closed = time.perf_counter() - start
    return {"known": known, "calls": sum(calls.values()), "closed": closed}


#: What has a floor that can be measured; that of the others is nought.
FLOORS: dict[str, Callable[[Cloud, int], Coroutine[Any, Any, dict[str, float]]]] = {
    "first": first,
    "many": many,
}
