"""An HTTP server that answers as a test tells it to, for faults that no healthy API makes.

It runs on threads of its own, so that tests of the synchronous path and of a blocked loop can use
it. Beside it, what every test of the Compute verbs needs: a client, a clock, an instance.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import socket
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qsl, urlsplit

from google.auth.credentials import AnonymousCredentials

from dask_gce.clock import Clock
from dask_gce.compute import Compute

PROJECT = "my-project"
ZONE = "us-central1-a"


@dataclass(frozen=True)
class Request:
    """What arrived."""

    method: str
    path: str
    query: dict[str, str]
    headers: Mapping[str, str]
    body: Any


@dataclass(frozen=True)
class Answer:
    """What goes back: JSON, or text as it is, or nothing at all."""

    json: Any = field(default_factory=dict)
    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)
    text: str | None = None
    delay: float = 0.0
    drop: bool = False


def refusal(status: int, reason: str, message: str = "No.", **headers: str) -> Answer:
    """Answer with Google's error envelope."""
    error = {
        "code": status,
        "message": message,
        "errors": [{"message": message, "domain": "global", "reason": reason}],
    }
    shown = {name.replace("_", "-"): value for name, value in headers.items()}
    return Answer({"error": error}, status, shown)


def operation(name: str = "operation-1", status: str = "RUNNING", **more: Any) -> Answer:
    """Answer with a zonal operation."""
    return Answer(
        {
            "kind": "compute#operation",
            "name": name,
            "status": status,
            "zone": "https://www.googleapis.com/compute/v1/projects/p/zones/z",
            "operationType": "insert",
            "targetLink": "https://www.googleapis.com/compute/v1/projects/p/zones/z/instances/i",
            **more,
        }
    )


class ScriptedAPI:
    """The server; a context manager.

    `script` is called with each request and returns an `Answer`.
    """

    def __init__(self, script: Callable[[Request], Answer]) -> None:
        self.requests: list[Request] = []
        self.connections = 0
        self.most_at_once = 0
        self._at_once = 0
        self._sockets: set[socket.socket] = set()
        lock = threading.Lock()
        api = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            # Headers and body leave in two writes; without this the second waits for an ACK.
            disable_nagle_algorithm = True

            def setup(self) -> None:
                super().setup()
                with lock:
                    api.connections += 1
                api._sockets.add(self.connection)

            def finish(self) -> None:
                api._sockets.discard(self.connection)
                super().finish()

            def log_message(self, format: str, *args: Any) -> None:
                pass

            def _serve(self) -> None:
                parts = urlsplit(self.path)
                length = int(self.headers.get("Content-Length") or 0)
                content = self.rfile.read(length)
                request = Request(
                    self.command,
                    parts.path,
                    dict(parse_qsl(parts.query)),
                    {name.lower(): value for name, value in self.headers.items()},
                    json.loads(content) if content else None,
                )
                with lock:
                    api.requests.append(request)
                    api._at_once += 1
                    api.most_at_once = max(api.most_at_once, api._at_once)
                try:
                    answer = script(request)
                    time.sleep(answer.delay)
                finally:
                    with lock:
                        api._at_once -= 1
                if answer.drop:
                    self.close_connection = True
                    return
                text = json.dumps(answer.json) if answer.text is None else answer.text
                data = text.encode()
                self.send_response(answer.status)
                for name, value in answer.headers.items():
                    self.send_header(name, value)
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            do_GET = do_POST = do_DELETE = _serve

        class Server(ThreadingHTTPServer):
            daemon_threads = False
            request_queue_size = 128

            def handle_error(self, request: Any, client_address: Any) -> None:
                """Stay silent: clients that give up early are part of the tests."""

        self._server = Server(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,))
        self.endpoint = f"http://127.0.0.1:{self._server.server_address[1]}"

    def __enter__(self) -> ScriptedAPI:
        self._thread.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._server.shutdown()
        for connection in list(self._sockets):
            with contextlib.suppress(OSError):  # the client has closed it already
                connection.shutdown(socket.SHUT_RDWR)
        self._server.server_close()
        self._thread.join()


class FastClock(Clock):
    """Sleeping takes no time, but the clock says it did."""

    def __init__(self, now: float = 50.0) -> None:
        self.passed = 0.0
        self.slept: list[float] = []
        # The wall clock's start, on the other one: both count what really passes, or whoever waits
        # for a full minute on the one would find it not quite reached on the other.
        self._start = now - self.monotonic()

    def monotonic(self) -> float:
        return super().monotonic() + self.passed

    def time(self) -> float:
        return self._start + self.monotonic()

    def pause(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.passed += seconds

    async def sleep(self, seconds: float) -> None:
        self.pause(seconds)
        await asyncio.sleep(0)


def make_compute(endpoint: str, **options: Any) -> Compute:
    options.setdefault("credentials", AnonymousCredentials())
    return Compute(PROJECT, endpoint=endpoint, **options)


def instance(name: str, **more: Any) -> dict[str, Any]:
    return {
        "name": name,
        "machineType": f"zones/{ZONE}/machineTypes/e2-standard-2",
        "labels": {"dask-gce-cluster": "c"},
        "disks": [
            {
                "boot": True,
                "autoDelete": True,
                "initializeParams": {
                    "sourceImage": "projects/cos-cloud/global/images/family/cos-stable"
                },
            }
        ],
        "networkInterfaces": [{"network": "global/networks/default"}],
        "metadata": {"items": [{"key": "enable-guest-attributes", "value": "TRUE"}]},
        **more,
    }


def run_python(code: str, *arguments: str, python: str = sys.executable) -> str:
    """Run a program and return what it printed; nothing may go to stderr."""
    done = subprocess.run(
        [python, "-c", textwrap.dedent(code), *arguments],
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
        env={**os.environ, "PYTHONWARNINGS": "error::ResourceWarning,ignore::FutureWarning"},
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    return done.stdout
