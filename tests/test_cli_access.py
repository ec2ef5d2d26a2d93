"""``ssh``, ``dashboard``, ``logs --boot`` and ``config``: what leads to machines and settings."""

from __future__ import annotations

import json
import signal
import socket
import stat
import threading
import webbrowser
from contextlib import closing, contextmanager
from http.client import HTTPConnection
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import dask
import pytest
from clusters import PATIENCE, settings, wait_until
from command_line import make, process, program, read, run, run_process, succeed
from fleets import OTHER_ZONE
from ports import quiet_port
from test_cli_inventory import remember

from dask_gce import GCECluster
from dask_gce.cli.logs import new_lines
from dask_gce.emulator import ComputeEmulator
from dask_gce.emulator.machines.paper import PaperKind

#: Writes down how it was called, and ends with a status of its own.
GCLOUD = """
import json, pathlib, sys
pathlib.Path(__file__).with_name("called").write_text(json.dumps(sys.argv[1:]))
print("to ssh")
sys.exit(7)
"""

#: Answers at the near end of the tunnel that it is asked for, as a scheduler at its far end would.
TUNNEL = """
import http.server, json, pathlib, sys
pathlib.Path(__file__).with_name("called").write_text(json.dumps(sys.argv[1:]))

class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()
        self.wfile.write(b"ok")
    def log_message(self, *arguments):
        pass

host, port, *_ = sys.argv[sys.argv.index("-L") + 1].split(":")
print("gcloud says something")
http.server.HTTPServer((host, int(port)), Handler).serve_forever()
"""


class OnThisHost(PaperKind):
    """Machines that are this host: what a test listens on at 127.0.0.1 is theirs."""

    def allocate(self, record, requested=None):
        return "127.0.0.1"

    def external_address(self, internal):
        return internal


class Health(BaseHTTPRequestHandler):
    """What a scheduler's dashboard answers."""

    def do_GET(self) -> None:
        self.send_response(200)
        self.end_headers()
        self.wfile.write(b"ok" if self.path == "/health" else b"something else")

    def log_message(self, *arguments: object) -> None:
        pass


@contextmanager
def answering(host: str, handler: type[BaseHTTPRequestHandler] = Health):
    """Answer at an address, as a scheduler does or otherwise."""
    with HTTPServer((host, 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield server.server_port
        finally:
            server.shutdown()
            thread.join()


def called(folder) -> list[str]:
    """Return the arguments that the fake gcloud was called with."""
    arguments: list[str] = json.loads((folder / "called").read_text())
    return arguments


def internal_ip(emulator: ComputeEmulator, name: str) -> str:
    (found,) = (each for each in emulator.instances() if each["name"] == name)
    address: str = found["networkInterfaces"][0]["networkIP"]
    return address


# -- ssh ------------------------------------------------------------------------------------------


@pytest.fixture
def grid(emulator):
    """Return a local Compute Engine with a cluster of two machines."""
    make(emulator, s={"role": "scheduler"}, w={"zone": OTHER_ZONE})
    return emulator


def test_ssh_becomes_gcloud_with_every_argument_as_it_was(grid, tmp_path):
    path = program(tmp_path, "gcloud", GCLOUD)
    strange = ["-v", "echo \"$HOME\" 'a b'; `id`", "ü\n"]
    output, _ = run_process(grid.endpoint, "ssh", "grid", "--", *strange, status=7, PATH=path)
    assert output == "to ssh\n"
    place = ["--project", "local-project", "--zone", "us-central1-a"]
    assert called(tmp_path) == ["compute", "ssh", "s", *place, "--", *strange]
    run_process(grid.endpoint, "ssh", "grid", "--machine", "w", status=7, PATH=path)
    assert called(tmp_path) == ["compute", "ssh", "w", *place[:-1], OTHER_ZONE]


def test_ssh_says_what_it_lacks(grid, tmp_path):
    _, errors = run_process(grid.endpoint, "ssh", "grid", status=1, PATH=str(tmp_path))
    assert "gcloud was not found on PATH" in errors
    result = run(grid, "ssh", "grid", "--machine", "x")
    assert result.exit_code == 2
    assert "no machine 'x'; it has: s, w" in result.stderr


# -- dashboard ------------------------------------------------------------------------------------


def test_dashboard_is_opened_where_it_answers(grid, tmp_path, monkeypatch):
    from dask_gce.cli import dashboard

    # Machines of paper have addresses at which nobody is.
    host = "127.0.0.1"
    monkeypatch.setattr(dashboard, "choose_machine", lambda record: _at(host))
    browser = program(
        tmp_path,
        "browser",
        "import pathlib, sys\npathlib.Path(__file__).with_name('opened').write_text(sys.argv[1])\n",
    )
    monkeypatch.setenv("BROWSER", f"{browser.partition(':')[0]}/browser %s")
    with (
        answering(host) as port,
        dask.config.set({"gce.dashboard-port": port, "gce.connect": "internal"}),
    ):
        address = f"http://{host}:{port}/status"
        assert succeed(grid, "dashboard", "grid", "--no-open") == f"{address}\n"
        assert not (tmp_path / "opened").exists()
        assert read(grid, "dashboard", "grid") == {"address": address, "tunnel": False}
        assert succeed(grid, "dashboard", "grid") == f"{address}\n"
    assert (tmp_path / "opened").read_text() == address


def test_no_command_line_has_the_token_of_jupyter(tmp_path, monkeypatch):
    from dask_gce.cli.browsing import open_browser

    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    asked: list[str] = []
    monkeypatch.setattr(webbrowser, "open", lambda address: asked.append(address) or True)
    assert open_browser("http://127.0.0.1:8787/status", secret=False)
    assert open_browser("http://127.0.0.1:8787/jupyter/lab?token=t0k&b=<", secret=True)
    plain, opened = asked
    assert plain == "http://127.0.0.1:8787/status"
    assert opened.startswith("file:///")
    assert "t0k" not in opened
    page = Path(opened.removeprefix("file://"))
    assert stat.S_IMODE(page.stat().st_mode) == 0o600
    assert stat.S_IMODE(page.parent.stat().st_mode) == 0o700
    assert 'url=http://127.0.0.1:8787/jupyter/lab?token=t0k&amp;b=&lt;"' in page.read_text()


def _at(host: str):
    from records import machine

    return machine("s", "scheduler", internal_ip=host)


def test_dashboard_port_is_the_one_that_the_cluster_was_made_with(grid, tmp_path, monkeypatch):
    from dask_gce.cli import dashboard

    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    monkeypatch.setattr(dashboard, "choose_machine", lambda record: _at("127.0.0.1"))
    with answering("127.0.0.1") as port:
        with dask.config.set({"gce.dashboard-port": port, "gce.connect": "internal"}):
            remember()
        assert f":{port}/" in succeed(grid, "dashboard", "grid", "--no-open")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_dashboard_makes_a_tunnel_until_it_is_interrupted(grid, tmp_path, number):
    path = program(tmp_path, "gcloud", TUNNEL)
    port = str(quiet_port())
    arguments = ["dashboard", "grid", "--json", "--no-open", "--port", port]
    with process(grid.endpoint, *arguments, PATH=path) as running:
        assert running.stdout
        told = "".join(running.stdout.readline() for _ in range(4))
        running.send_signal(number)
        rest, errors = running.communicate(timeout=200)
    assert json.loads(told + rest) == {"address": f"http://127.0.0.1:{port}/status", "tunnel": True}
    assert running.returncode == 128 + number
    assert "port 8787 at 198.18.0.2, its external address. The way is external, since" in errors
    assert "Opening a tunnel" in errors
    assert "gcloud says something" not in told + rest
    forward = f"127.0.0.1:{port}:{internal_ip(grid, 's')}:8787"
    place = ["--project", "local-project", "--zone", "us-central1-a"]
    options = ["-N", "-o", "ExitOnForwardFailure=yes", "-L", forward]
    assert called(tmp_path) == ["compute", "ssh", "s", *place, "--", *options]
    # The tunnel has ended with it.
    with socket.create_server(("127.0.0.1", int(port))):
        pass


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_dashboard_is_shown_by_the_way_of_clients_until_it_is_interrupted(light, number):
    port = str(quiet_port())
    arguments = ["dashboard", "grid", "--json", "--no-open", "--port", port]
    with GCECluster(**settings(light, asynchronous=False, name="grid", external_ip=False)):
        with process(light.endpoint, *arguments) as running:
            assert running.stdout
            told = "".join(running.stdout.readline() for _ in range(4))
            address = f"http://127.0.0.1:{port}/status"
            assert json.loads(told) == {"address": address, "tunnel": True}
            with closing(HTTPConnection("127.0.0.1", int(port), timeout=PATIENCE)) as connection:
                connection.request("GET", "/health")
                assert connection.getresponse().read() == b"ok"
            running.send_signal(number)
            rest, errors = running.communicate(timeout=200)
        assert running.returncode == 128 + number
        assert rest == ""
        assert "a tunnel of Identity-Aware Proxy" in errors
        assert "Traceback" not in errors
    assert light.tunnels.connects
    with socket.create_server(("127.0.0.1", int(port))):
        pass


def test_where_no_tunnel_of_the_proxy_leads_gcloud_may_know_a_way(grid, tmp_path):
    path = program(tmp_path, "gcloud", GCLOUD)
    more = {"PATH": path, "DASK_GCE__CONNECT": "iap"}
    _, errors = run_process(grid.endpoint, "dashboard", "grid", status=1, **more)
    assert "FAILED_TO_CONNECT_TO_BACKEND" in errors
    assert "could not be opened: gcloud ended with 7" in errors


def test_what_is_no_dashboard_is_not_shown():
    with (
        ComputeEmulator(OnThisHost()) as emulator,
        answering("127.0.0.1", BaseHTTPRequestHandler) as port,
    ):
        make(emulator, s={"role": "scheduler"})
        with dask.config.set({"gce.dashboard-port": port, "gce.connect": "iap"}):
            result = run(emulator, "dashboard", "grid", "--no-open")
    assert result.exit_code == 1
    assert f"What listens at port {port} of s is no dashboard of Dask" in result.stderr
    assert not result.stdout


def test_no_tunnel_leads_to_what_is_at_its_port_already(grid, tmp_path):
    path = program(tmp_path, "gcloud", TUNNEL)
    with answering("127.0.0.1") as port:
        arguments = ["dashboard", "grid", "--no-open", "--port", str(port)]
        output, errors = run_process(grid.endpoint, *arguments, status=2, PATH=path)
    assert f"Port {port} of this computer is taken" in errors
    assert not output
    assert not (tmp_path / "called").exists()


def test_a_machine_that_is_off_has_no_dashboard(emulator):
    overrides = {"scheduling": {"automaticRestart": False}}
    make(emulator, s={"role": "scheduler", "overrides": overrides})
    wait_until(lambda: emulator.instances()[0]["status"] == "RUNNING")
    emulator.host_error("s")
    wait_until(lambda: emulator.instances()[0]["status"] == "TERMINATED")
    result = run(emulator, "dashboard", "grid")
    assert result.exit_code == 1
    assert "machine s is TERMINATED, so" in result.stderr


def test_a_tunnel_that_fails_is_told(grid, tmp_path):
    path = program(tmp_path, "gcloud", GCLOUD)
    _, errors = run_process(grid.endpoint, "dashboard", "grid", status=1, PATH=path)
    assert "could not be opened: gcloud ended with 7" in errors


# -- logs of the boot -----------------------------------------------------------------------------


@pytest.fixture
def booted(process_emulator):
    """Return a local Compute Engine with two machines that have booted."""
    script = "printf 'one\\ntwo\\033[31m red\\033[0m\\nthree\\n'"
    metadata = {"metadata": {"items": [{"key": "startup-script", "value": script}]}}
    make(
        process_emulator,
        s={"role": "scheduler", "overrides": metadata},
        w={"overrides": metadata},
    )
    return process_emulator


def test_serial_consoles_are_printed(booted):
    text = wait_for(
        lambda: succeed(booted, "logs", "grid", "--boot", color=True),
        "s: startup-script: three",
        "w: startup-script: three",
    )
    assert "s: startup-script: two red\n" in text
    assert "\x1b" not in text
    one = succeed(booted, "logs", "grid", "--boot", "--machine", "w", "--tail", "1")
    assert len(one.splitlines()) == 1
    assert not one.startswith("w: ")
    lines = succeed(booted, "logs", "grid", "--boot", "--machine", "s", "--json").splitlines()
    assert {"machine": "s", "line": "startup-script: three"} in list(map(json.loads, lines))
    succeed(booted, "delete", "grid", "--yes")


def test_serial_consoles_are_followed_until_the_machines_are_gone(booted):
    with process(booted.endpoint, "logs", "grid", "--boot", "-f") as running:
        assert running.stdout
        seen: list[str] = []
        for line in running.stdout:
            seen.append(line)
            if {"s: startup-script: three\n", "w: startup-script: three\n"} <= set(seen):
                break
        succeed(booted, "delete", "grid", "--yes")
        rest, errors = running.communicate(timeout=200)
    assert running.returncode == 0, errors
    assert (
        sum(line == "s: startup-script: three\n" for line in seen + rest.splitlines(keepends=True))
        == 1
    )


def wait_for(look, *texts: str) -> str:
    from time import monotonic, sleep

    deadline = monotonic() + 60
    while not all(text in (found := look()) for text in texts):
        assert monotonic() < deadline, found
        sleep(0.1)
    return found


@pytest.mark.parametrize(
    ("before", "now", "new"),
    [
        ("", "ab", "ab"),
        ("ab", "ab", ""),
        ("ab", "abc", "c"),
        ("abab", "ababab", "ab"),
        ("abc", "bcd", "d"),
        ("abc", "xyz", "xyz"),
        ("aab", "abaa", "aa"),
    ],
)
def test_only_new_lines_are_printed(before, now, new):
    assert new_lines(list(before), list(now)) == list(new)


# -- config ---------------------------------------------------------------------------------------


def test_config_tells_each_value_and_where_it_comes_from(emulator, tmp_path):
    (tmp_path / "own.yaml").write_text("gce:\n  machine-type: e2-small\n", encoding="utf-8")
    more = {"DASK_CONFIG": str(tmp_path), "DASK_GCE__ENV_VARS": "{'TOKEN': 'hunter2'}"}
    output, _ = run_process(emulator.endpoint, "config", "--project", "proj-1", "--json", **more)
    found = json.loads(output)["settings"]
    assert found["machine_type"]["value"] == ["e2-small"]
    assert str(tmp_path / "own.yaml") in found["machine_type"]["source"]
    assert found["project"] == {"value": "proj-1", "source": "--project"}
    assert found["api_endpoint"]["source"] == "environment variable DASK_GCE__API_ENDPOINT"
    assert found["env_vars"] == {
        "value": {"TOKEN": "..."},
        "source": "environment variable DASK_GCE__ENV_VARS",
    }
    assert found["boot_disk_size"] == {"value": 30, "source": "default"}
    output, _ = run_process(emulator.endpoint, "config", **more)
    assert "hunter2" not in output
    (line,) = (line for line in output.splitlines() if line.startswith("machine-type "))
    assert line.split()[1] == '["e2-small"]'
    assert not emulator.requests
