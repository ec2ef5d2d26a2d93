"""Start Dask on this machine. Runs inside the container, with nothing but the standard library.

Everything comes from the metadata server and is data: the environment, the Dask specification. But
not the certificates, which the startup script keeps and hands over through standard input. What
Dask needs as files is written to a private temporary folder, by the user that Dask runs as, whoever
that is: nobody else can read it. In a container, and where Dask has a user of its own, it is in
memory.

A scheduler's machine may have workers too. How Dask, and they, are run is in `supervision.py`.
"""

from __future__ import annotations

import contextlib
import json
import os
import runpy
import signal
import socket
import ssl
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
#: Where the startup script has put this program, and those that go with it.
HERE = Path(__file__).parent
#: Where files that only Dask may read do not reach a disk, if the startup script has made it.
PRIVATE = HERE.parent / "private"
#: There until the startup script has published all that it said; and until when that is waited for.
REPORTING, REPORTED_BY = HERE / "reporting", time.monotonic() + 30.0
#: Exit status after this program has itself published why it failed; startup.sh knows it too.
PHASE_IS_TOLD = 113

#: Variables that change which Dask is found.
MOVING = ("PATH", "PYTHONHOME", "PYTHONPATH")
#: Worker classes that make all workers of a machine.
ONE_FOR_ALL = ("dask_cuda.CUDAWorker", "dask_cuda.cuda_worker.CUDAWorker")
#: Where Container-Optimized OS's driver of GPUs is, in a container.
DRIVER = Path("/usr/local/nvidia")

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
    # What was said before this, and is published after it, would be the last word.
    while REPORTING.exists() and time.monotonic() < REPORTED_BY:
        time.sleep(0.01)
    request = urllib.request.Request(  # noqa: S310
        SERVER + "guest-attributes/dask-gce/phase",
        data=text.encode(),
        method="PUT",
        headers={"Metadata-Flavor": "Google"},
    )
    # Guest attributes can be forbidden by an organization's policy; the console has it too.
    with contextlib.suppress(OSError):
        NO_PROXY.open(request, timeout=10).close()


def reachable(host: str, port: int, keywords: dict[str, Any] | None) -> bool:
    """Tell whether something listens there, by what a Security is made of; None without TLS."""
    try:
        with socket.create_connection((host, port), timeout=3) as connection:
            if keywords is not None:
                greet(connection, keywords)
    except (ssl.SSLEOFError, ssl.SSLZeroReturnError):
        return False
    except ssl.SSLError:
        # Somebody does. What they have against each other is told by Dask.
        return True
    except OSError:
        return False
    return True


def greet(connection: socket.socket, keywords: dict[str, Any]) -> None:
    """Agree on TLS and hear a first word: a Dask server complains of whoever only knocks."""
    # As distributed makes it: the authority is checked, and no host name.
    context = ssl.create_default_context(cafile=keywords["tls_ca_file"])
    context.check_hostname = False
    (key,) = (name for name in keywords if name.endswith("_key"))
    context.load_cert_chain(keywords[key[:-3] + "cert"], keywords[key])
    # A scheduler to which a thousand machines come at once takes its time.
    connection.settimeout(30)
    with context.wrap_socket(connection) as secured:
        if not secured.recv(1):
            raise ConnectionAbortedError


def wait_for_scheduler(
    host: str, port: int, deadline: float, keywords: dict[str, Any] | None
) -> None:
    """Wait for the scheduler's port: a Nanny that finds none gives up after 30 s."""
    while not reachable(host, port, keywords):
        if time.monotonic() > deadline:
            phase(f"failed: no scheduler at {host}:{port}")
            sys.exit(PHASE_IS_TOLD)
        time.sleep(0.1)


def refuse(reason: str) -> None:
    """End with the reason why Dask cannot start, if there is one."""
    if reason:
        phase(f"failed: {reason}")
        sys.exit(PHASE_IS_TOLD)


def write_private(path: Path, text: str) -> None:
    """Write a file that only this user can read."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        file.write(text)


def receive_secrets() -> dict[str, dict[str, str]]:
    """Take what the startup script hands over: certificates, none without TLS."""
    words = metadata("attributes/dask-gce-secrets", default="").split()
    lines = [sys.stdin.readline() for _ in words]
    if not all(lines):
        refuse("the certificates did not arrive")
    # Nobody that is started from here has anything to do with where they came from.
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.close(nothing)
    names = (word.partition("=")[0] for word in words)
    return {name: json.loads(line) for name, line in zip(names, lines)}  # noqa: B905 - as many


def security(role: str, folder: Path, bundle: dict[str, str] | None) -> dict[str, object] | None:
    """Return the keywords of distributed's Security for this role, or None without TLS."""
    if bundle is None:
        return None
    for name in ("ca", "cert", "key"):
        write_private(folder / (name + ".pem"), bundle[name])
    return {
        "require_encryption": True,
        "tls_ca_file": str(folder / "ca.pem"),
        f"tls_{role}_cert": str(folder / "cert.pem"),
        f"tls_{role}_key": str(folder / "key.pem"),
    }


def become_init() -> None:
    """Go on as a child, if this is the first process of its container.

    Processes whose parents have ended become the first one's children, and stay as zombies unless
    it waits for them. This does what ``docker run --init`` would do, which not every system has.
    """
    if os.getpid() != 1:
        return
    child = os.fork()
    if child == 0:
        return
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, lambda number, frame: os.kill(child, number))
    while True:
        ended, status = os.wait()
        if ended == child:
            code = os.waitstatus_to_exitcode(status)
            os._exit(128 - code if code < 0 else code)


def settle(options: dict[str, Any], address: str) -> None:
    """Add to the options of a Dask process where it is."""
    options["host"] = address
    # Bound to this machine's own address, as the comms are, not to every interface.
    if str(options.get("dashboard_address", "")).startswith(":"):
        options["dashboard_address"] = address + options["dashboard_address"]


def several(spec: dict[str, Any], name: str, count: int) -> dict[str, Any]:
    """Return a specification of many workers as `dask spec` reads it, named after the machine."""
    if spec["cls"] in ONE_FOR_ALL and count > 1:
        # It makes a worker for each GPU itself, and gives them the names below.
        return {name: {"cls": spec["cls"], "opts": {**spec["opts"], "name": name}}}
    workers = {}
    for number in range(count):
        worker = f"{name}-{number}"
        workers[worker] = {"cls": spec["cls"], "opts": {**spec["opts"], "name": worker}}
    return workers


def add_preloads(options: dict[str, Any], programs: list[str]) -> None:
    """Add preloads of ours to those that a user chose."""
    given = options.get("preload") or []
    chosen = [given] if isinstance(given, str) else list(given)
    if programs and not chosen:
        # Dask looks into its configuration only when no preload is given.
        programs = ["config_preloads.py", *programs]
    arguments = options.get("preload_argv") or []
    if arguments and not isinstance(arguments[0], str):
        # A list for each preload; one list of texts would be for all of them.
        options["preload_argv"] = [*arguments[: len(chosen)], *([] for _ in programs)]
    if programs:
        options["preload"] = [*chosen, *(str(HERE / program) for program in programs)]


def plan_departure(name: str, contact: str, security: Any) -> dict[str, Any] | None:
    """Return what preemption.py needs to know, None where nobody takes this machine away."""
    if not (HERE / "preemption.py").exists():
        return None
    watched = []
    if metadata("scheduling/preemptible", default="FALSE") == "TRUE":
        watched.append("preempted")
    if metadata("scheduling/on-host-maintenance", default="MIGRATE") == "TERMINATE":
        watched.append("maintenance-event")
    if not watched:
        return None
    return {
        "machine": name,
        "contact": contact,
        "security": security,
        "watched": watched,
        "notice": float(metadata("attributes/dask-gce-notice", default="0")),
        "gpus": int(metadata("attributes/dask-gce-gpus", default="0")),
    }


class Deadline:
    """Ends this program, and all of the container, unless Dask runs in time."""

    def __init__(self) -> None:
        limit = float(metadata("attributes/dask-gce-boot-timeout", default="0"))
        self._timer = threading.Timer(limit, self._give_up, (limit,))
        self._timer.daemon = True
        if limit:
            self._timer.start()

    def _give_up(self, limit: float) -> None:
        phase(f"failed: Dask did not start within {limit:g} s")
        os._exit(PHASE_IS_TOLD)

    def tell(self, text: str) -> None:
        """Publish a phase, of which one is what was waited for."""
        if text == "running":
            self._timer.cancel()
        phase(text)


def hold_lifeline(scheduler: dict[str, Any], keywords: Any, supervisor: Any) -> threading.Event:
    """Have Dask ended when there is no scheduler any more; return what tells that it was."""
    cut = threading.Event()
    patience = json.loads(metadata("attributes/dask-gce-limits", default="{}")).get("death_timeout")
    if patience is None:
        return cut

    def end() -> None:
        cut.set()
        phase(f"ending: death_timeout: no scheduler answered for {patience:g} s")
        supervisor.cut()

    host, port = scheduler["host"], scheduler["port"]
    lifeline = runpy.run_path(str(HERE / "lifeline.py"))["Lifeline"](
        host, port, patience, lambda: reachable(host, port, keywords)
    )
    threading.Thread(target=lifeline.watch, args=(end,), daemon=True).start()
    return cut


def prepare_packages() -> Any:
    """Install what the user's environment names, if it names something."""
    if not metadata("attributes/dask-gce-environment", default=""):
        return None
    # Sent only then.
    found = runpy.run_path(str(HERE / "install.py"))
    packages = found["Packages"](metadata, phase, refuse)
    packages.build()
    return packages


def prepare_local(
    folder: Path,
    address: str,
    scheduler: dict[str, Any],
    bundle: dict[str, str] | None,
    packages: Any,
) -> list[str]:
    """Prepare the workers beside a scheduler; return the arguments of `dask` that start them."""
    text = metadata("attributes/dask-gce-local-spec", default="")
    if not text:
        return []
    mine = folder / "local"
    mine.mkdir(mode=0o700)
    spec = json.loads(text)
    settle(spec["opts"], address)
    spec["opts"]["security"] = security("worker", mine, bundle)
    count = int(metadata("attributes/dask-gce-local-processes"))
    write_private(mine / "spec.json", json.dumps(several(spec, metadata("name"), count)))
    contact = "{}://{}:{}".format(scheduler["protocol"], address, scheduler["port"])
    if packages is not None:
        packages.await_here(mine, contact, spec["opts"]["security"])
    return ["spec", contact, "--spec-file", str(mine / "spec.json")]


def main() -> None:
    """Prepare what Dask needs, run it, and pass on its exit status."""
    become_init()
    deadline_of_boot = Deadline()
    secrets = receive_secrets()
    role = metadata("attributes/dask-gce-role")
    packages = prepare_packages()
    address = metadata("network-interfaces/0/ip")
    spec = json.loads(metadata("attributes/dask-gce-spec"))
    private = PRIVATE if PRIVATE.is_dir() else None
    folder = Path(tempfile.mkdtemp(prefix="dask-gce-", dir=private))

    options = spec["opts"]
    settle(options, address)
    options["security"] = security(role, folder, secrets.get("tls"))
    port = options.get("port", 0)
    arguments = spec.pop("args", [])
    local: list[str] = []
    limits = metadata("attributes/dask-gce-limits", default="")
    if role == "scheduler":
        local = prepare_local(folder, address, options, secrets.get("local-tls"), packages)
        programs = ["keep_local.py"] if local else []
        if packages is not None and packages.wheels:
            packages.serve(folder)
            programs.append("wheelhouse.py")
        if limits:
            programs.append("guard.py")
        # What was sent only where it is wanted.
        optional = ("departures.py", "notebook_server.py")
        programs += [program for program in optional if (HERE / program).exists()]
        add_preloads(options, programs)
    else:
        name = options["name"] = metadata("name")
        processes = int(metadata("attributes/dask-gce-processes"))
        if processes > 1:
            spec = several(spec, name, processes)
    write_private(folder / "spec.json", json.dumps(spec))

    environment = {**os.environ, **(packages.variables if packages is not None else {})}
    # Most images begin with tini, which complains where it is not the first process.
    environment.setdefault("TINI_SUBREAPER", "1")
    with contextlib.suppress(FileNotFoundError):
        environment.setdefault("DASK_TEMPORARY_DIRECTORY", (HERE / "scratch").read_text())
    configuration = metadata("attributes/dask-gce-config", default="")
    if configuration:
        # JSON is YAML. The environment's own variables, of which Dask reads the values, come first.
        write_private(folder / "config.json", configuration)
        environment["DASK_CONFIG"] = str(folder / "config.json")
    environment.update(json.loads(metadata("attributes/dask-gce-env", default="{}")))
    # Last, so that no variable of the user's is in its place.
    environment["DASK_GCE_LIMITS"] = limits or "{}"
    if DRIVER.is_dir():
        # An image need not look there by itself, and what it does look for stays in front.
        for variable, part in (("PATH", "bin"), ("LD_LIBRARY_PATH", "lib64")):
            known = [each for each in environment.get(variable, "").split(":") if each]
            environment[variable] = ":".join([*known, str(DRIVER / part)])
    entrypoint = json.loads((HERE / "entrypoint.json").read_text() or "null") or []

    python, dask = "python3", [*entrypoint, "dask"]
    if role == "worker":
        scheduler = json.loads(metadata("attributes/dask-gce-scheduler"))
        deadline = time.monotonic() + scheduler["timeout"]
    if packages is not None:
        if role == "worker" and packages.wheels:
            wait_for_scheduler(scheduler["host"], scheduler["port"], deadline, options["security"])
            packages.fetch(folder, arguments[0], options["security"], scheduler["timeout"])
        python, dask = packages.python, [*entrypoint, *packages.dask]

    phase("starting")
    start, verdict = dask, None
    client = metadata("attributes/dask-gce-versions", default="")
    moved = any(environment.get(name) != os.environ.get(name) for name in MOVING)
    if client and (entrypoint or moved or python not in ("python3", sys.executable)):
        # What an entry point installs, or variables lead to, counts too.
        write_private(folder / "versions.json", client)
        verdict = folder / "verdict"
        command = dask[len(entrypoint) :]
        start = [*entrypoint, python, str(HERE / "versions.py"), str(folder), *command]
    elif client:
        refuse(runpy.run_path(str(HERE / "versions.py"))["check"](client))
    if role == "worker":
        wait_for_scheduler(scheduler["host"], scheduler["port"], deadline, options["security"])

    supervision = runpy.run_path(str(HERE / "supervision.py"))
    messenger = None
    plan = None
    if role == "worker" and arguments:
        plan = plan_departure(name, arguments[0], options["security"])
    if plan is not None:
        write_private(folder / "preemption.json", json.dumps(plan))
        messenger = supervision["Messenger"]()
        program = [str(HERE / "preemption.py"), str(folder), str(messenger.number)]
        start = [*entrypoint, python, *program, *start[len(entrypoint) :]]
    supervisor = supervision["Supervisor"](
        [*start, "spec", *arguments, "--spec-file", str(folder / "spec.json")],
        [*dask, *local] if local else [],
        environment,
        messenger,
    )
    announcing = threading.Thread(
        target=supervisor.announce,
        args=(
            deadline_of_boot.tell,
            lambda: role != "scheduler" or reachable(address, port, options["security"]),
            verdict,
            packages,
        ),
        daemon=True,
    )
    announcing.start()
    cut = threading.Event()
    if role == "worker":
        cut = hold_lifeline(scheduler, options["security"], supervisor)
    status: int = supervisor.run()
    if cut.is_set():
        sys.exit(0)
    if verdict is not None and verdict.exists():
        refuse(verdict.read_text())
    sys.exit(status)


if __name__ == "__main__":
    main()
