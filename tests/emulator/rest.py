"""A bare REST client for the tests of the API server: one connection a request, nothing hidden."""

from __future__ import annotations

import http.client
import json
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import urlencode, urlsplit

from machine_bench import until

from dask_gce.emulator import ComputeEmulator
from dask_gce.emulator.machine import GuestExit
from dask_gce.emulator.machines.paper import PaperKind, PaperMachine
from dask_gce.emulator.record import InstanceRecord

PROJECT = "my-project"
ZONE = "us-central1-a"
IMAGE = "projects/cos-cloud/global/images/family/cos-stable"
ACCOUNT = {"email": "default", "scopes": ["https://www.googleapis.com/auth/cloud-platform"]}


class Refused(Exception):
    """The answer was an error."""

    def __init__(self, status: int, body: dict[str, Any]) -> None:
        super().__init__(f"{status}: {body['error']['message']}")
        self.status = status
        self.error = body["error"]
        # The younger APIs have none.
        self.reason = body["error"].get("errors", [{}])[0].get("reason")
        self.message = body["error"]["message"]


class Rest:
    """Calls the emulator.

    Parameters
    ----------
    emulator : ComputeEmulator
        The emulator.
    """

    def __init__(self, emulator: ComputeEmulator) -> None:
        self.emulator = emulator

    def raw(
        self,
        verb: str,
        path: str,
        *,
        body: bytes | None = None,
        query: dict[str, Any] | None = None,
        headers: dict[str, str] | None = None,
    ) -> tuple[int, bytes, dict[str, str]]:
        """Return status, body and headers of an answer."""
        netloc = urlsplit(self.emulator.endpoint).netloc
        connection = http.client.HTTPConnection(netloc, timeout=60)
        try:
            url = path + (f"?{urlencode(query)}" if query else "")
            connection.request(verb, url, body=body, headers=headers or {})
            response = connection.getresponse()
            return response.status, response.read(), dict(response.getheaders())
        finally:
            connection.close()

    def call(self, verb: str, path: str, body: Any = None, **options: Any) -> Any:
        """Return the JSON of an answer; `path` is below the project unless it begins with a slash.

        Raises
        ------
        Refused
            The answer is an error.
        """
        if not path.startswith("/"):
            path = f"/compute/v1/projects/{PROJECT}/{path}".rstrip("/")
        data = None if body is None else json.dumps(body).encode()
        status, text, _ = self.raw(verb, path, body=data, **options)
        answer = json.loads(text) if text else None
        if status >= 400:
            raise Refused(status, answer)
        return answer

    def get(self, path: str, **query: Any) -> Any:
        """Return the JSON of a GET."""
        return self.call("GET", path, query=query)

    def post(self, path: str, body: Any = None, **query: Any) -> Any:
        """Return the JSON of a POST."""
        return self.call("POST", path, body, query=query)

    def delete(self, path: str, **query: Any) -> Any:
        """Return the JSON of a DELETE."""
        return self.call("DELETE", path, query=query)

    def wait(self, operation: dict[str, Any]) -> dict[str, Any]:
        """Return an operation when it is done."""
        path = urlsplit(operation["selfLink"]).path
        done: dict[str, Any] = self.call("POST", f"{path}/wait")
        assert done["status"] == "DONE", done
        return done

    def insert(self, **fields: Any) -> dict[str, Any]:
        """Insert an instance and return its operation, done."""
        return self.wait(self.post(f"zones/{ZONE}/instances", instance(**fields)))

    def instance(self, name: str) -> dict[str, Any]:
        """Return an instance."""
        found: dict[str, Any] = self.get(f"zones/{ZONE}/instances/{name}")
        return found

    def names(self, collection: str = "instances", **query: Any) -> list[str]:
        """Return the names in a zonal list."""
        found = self.get(f"zones/{ZONE}/{collection}", **query)
        return [one["name"] for one in found.get("items", [])]


def instance(name: str = "a", **fields: Any) -> dict[str, Any]:
    """Return the body of an insert."""
    return {
        "name": name,
        "machineType": f"zones/{ZONE}/machineTypes/e2-standard-4",
        "disks": [boot_disk()],
        "networkInterfaces": [{"network": "global/networks/default"}],
        **fields,
    }


def properties(**fields: Any) -> dict[str, Any]:
    """Return the ``instanceProperties`` of a bulk insert."""
    found = instance(machineType="e2-standard-4")
    del found["name"]
    return {**found, **fields}


def boot_disk(**fields: Any) -> dict[str, Any]:
    """Return a boot disk; keywords go to its ``initializeParams``, `autoDelete` to the disk."""
    return {
        "boot": True,
        "autoDelete": fields.pop("autoDelete", True),
        "initializeParams": {"sourceImage": IMAGE, **fields},
    }


class ObservedMachine(PaperMachine):
    """A paper machine that remembers what was done to it, when, and what its instance showed."""

    def __init__(
        self, record: InstanceRecord, address: str, on_exit: GuestExit, kind: ObservedKind
    ) -> None:
        super().__init__(record, address, on_exit, kind)
        self.deeds: list[str] = []
        self.moments: list[float] = []
        self.statuses: list[str] = []
        self.broken = kind.broken
        self._held = kind.held

    async def boot(self) -> None:
        await self._note("boot")
        if self.broken:
            raise OSError("no such device")
        await super().boot()

    async def stop(self, grace: float) -> None:
        await self._note("stop", f" {grace:g}")
        await super().stop(grace)

    async def kill(self) -> None:
        await self._note("kill")
        await super().kill()

    async def _note(self, deed: str, detail: str = "") -> None:
        self.deeds.append(deed + detail)
        self.moments.append(time.monotonic())
        self.statuses.append(self.record.resource["status"])
        await until(lambda: not self._held[deed])


class ObservedKind(PaperKind):
    """Paper machines that a test can look at.

    Parameters
    ----------
    broken : bool
        Whether its machines cannot boot.
    """

    def __init__(self, *, broken: bool = False) -> None:
        super().__init__()
        self.broken = broken
        self.held: Counter[str] = Counter()
        self.machines: dict[str, ObservedMachine] = {}

    @contextmanager
    def holding(self, deed: str) -> Iterator[None]:
        """Let no machine get past ``boot``, ``stop`` or ``kill`` before the end of the context.

        What passes can be looked at meanwhile, however long a look takes.
        """
        self.held[deed] += 1
        try:
            yield
        finally:
            self.held[deed] -= 1

    def token(self, name: str) -> str:
        """Return the access token that the metadata server of a machine would hand out."""
        return self.machines[name].record.access_token

    def create(self, record: InstanceRecord, address: str, on_exit: GuestExit) -> ObservedMachine:
        machine = ObservedMachine(record, address, on_exit, self)
        self._machines.add(machine)
        self.machines[record.name] = machine
        return machine
