"""Start Dask on this machine. Runs inside the container, with nothing but the standard library.

Everything comes from the metadata server and is data: the environment, the Dask specification, the
certificates. What Dask needs as files is written to a private temporary folder.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

SERVER = "http://{}/computeMetadata/v1/instance/".format(
    os.environ.get("GCE_METADATA_HOST", "metadata.google.internal")
)
#: Exit status after this program has itself published why it failed; startup.sh knows it too.
PHASE_IS_TOLD = 113

NO_PROXY = urllib.request.build_opener(urllib.request.ProxyHandler({}))


def metadata(path: str, default: str | None = None) -> str:
    """Return a metadata value, or the default when there is none."""
    request = urllib.request.Request(SERVER + path, headers={"Metadata-Flavor": "Google"})  # noqa: S310
    for attempt in range(6):
        try:
            with NO_PROXY.open(request, timeout=10) as answer:
                return str(answer.read(), "utf-8")
        except urllib.error.HTTPError as error:
            if error.code == 404 and default is not None:
                return default
            if error.code == 404 or attempt == 5:
                raise
        except OSError:
            if attempt == 5:
                raise
        time.sleep(0.2 * 2**attempt)
    raise AssertionError("unreachable")


def phase(text: str) -> None:
    """Say how far the boot has come, on the serial console and as a guest attribute."""
    print("dask-gce phase:", text, flush=True)
    request = urllib.request.Request(  # noqa: S310
        SERVER + "guest-attributes/dask-gce/phase",
        data=text.encode(),
        method="PUT",
        headers={"Metadata-Flavor": "Google"},
    )
    # Guest attributes can be forbidden by an organization's policy; the console has it too.
    with contextlib.suppress(OSError):
        NO_PROXY.open(request, timeout=10).close()


def reachable(host: str, port: int) -> bool:
    """Tell whether something listens there."""
    try:
        socket.create_connection((host, port), timeout=3).close()
    except OSError:
        return False
    return True


def wait_for_scheduler(host: str, port: int, deadline: float) -> None:
    """Wait for the scheduler's port: a Nanny that finds none gives up after 30 s."""
    while not reachable(host, port):
        if time.monotonic() > deadline:
            phase(f"failed: no scheduler at {host}:{port}")
            sys.exit(PHASE_IS_TOLD)
        time.sleep(0.1)


def write_private(path: Path, text: str) -> None:
    """Write a file that only this user can read."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        file.write(text)


def security(role: str, folder: Path) -> dict[str, object] | None:
    """Return the keywords of distributed's Security for this role, or None without TLS."""
    ca = metadata("attributes/dask-gce-tls-ca", default="")
    if not ca:
        return None
    for name in ("ca", "cert", "key"):
        write_private(folder / (name + ".pem"), metadata("attributes/dask-gce-tls-" + name))
    return {
        "require_encryption": True,
        "tls_ca_file": str(folder / "ca.pem"),
        f"tls_{role}_cert": str(folder / "cert.pem"),
        f"tls_{role}_key": str(folder / "key.pem"),
    }


def several(spec: dict[str, Any], name: str, count: int) -> dict[str, Any]:
    """Return a specification of many workers as `dask spec` reads it, named after the machine."""
    workers = {}
    for number in range(count):
        worker = f"{name}-{number}"
        workers[worker] = {"cls": spec["cls"], "opts": {**spec["opts"], "name": worker}}
    return workers


def announce(role: str, host: str, port: int, process: subprocess.Popen[bytes]) -> None:
    """Publish the phase `running` once Dask runs; for the scheduler, once its port answers."""
    if role == "scheduler":
        while not reachable(host, port):
            if process.poll() is not None:
                return
            time.sleep(0.1)
    phase("running")


def main() -> None:
    """Prepare what Dask needs, run it, and pass on its exit status."""
    role = metadata("attributes/dask-gce-role")
    address = metadata("network-interfaces/0/ip")
    spec = json.loads(metadata("attributes/dask-gce-spec"))
    folder = Path(tempfile.mkdtemp(prefix="dask-gce-"))

    options = spec["opts"]
    options["host"] = address
    options["security"] = security(role, folder)
    port = options.get("port", 0)
    # Bound to this machine's own address, as the comms are, not to every interface.
    if str(options.get("dashboard_address", "")).startswith(":"):
        options["dashboard_address"] = address + options["dashboard_address"]
    arguments = spec.pop("args", [])
    if role == "worker":
        name = options["name"] = metadata("name")
        processes = int(metadata("attributes/dask-gce-processes"))
        if processes > 1:
            spec = several(spec, name, processes)
    write_private(folder / "spec.json", json.dumps(spec))

    environment = dict(os.environ)
    environment.update(json.loads(metadata("attributes/dask-gce-env", default="{}")))
    entrypoint = json.loads((Path(__file__).parent / "entrypoint.json").read_text() or "null") or []

    phase("starting")
    if role == "worker":
        scheduler = json.loads(metadata("attributes/dask-gce-scheduler"))
        deadline = time.monotonic() + scheduler["timeout"]
        wait_for_scheduler(scheduler["host"], scheduler["port"], deadline)

    command = [*entrypoint, "dask", "spec", *arguments, "--spec-file", str(folder / "spec.json")]
    process = subprocess.Popen(command, env=environment)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda number, frame: process.send_signal(number))
    threading.Thread(target=announce, args=(role, address, port, process), daemon=True).start()
    status = process.wait()
    sys.exit(128 - status if status < 0 else status)


if __name__ == "__main__":
    main()
