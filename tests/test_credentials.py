"""Credentials and projects, with Google's own library and local servers in Google's place.

The metadata server's address is read by google-auth when it is imported, so what concerns it runs
in a process of its own.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import google.auth.transport.requests
import pytest
import requests
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from google.auth.credentials import AnonymousCredentials
from google.oauth2.credentials import Credentials as UserCredentials

from dask_gce.credentials import SCOPE, discover_project, load_credentials
from dask_gce.errors import CredentialsError
from dask_gce.settings import LOCAL_PROJECT, Settings

LOCAL = "http://127.0.0.1:8080"


class Google(BaseHTTPRequestHandler):
    """The token and metadata end points that google-auth asks."""

    asked: list[str]

    def log_message(self, format: str, *args: Any) -> None:
        """Keep quiet."""

    def answer(self, body: bytes, kind: str = "application/json", flavour: str = "Google") -> None:
        self.send_response(200)
        self.send_header("Metadata-Flavor", flavour)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_GET(self) -> None:
        self.asked.append(self.path)
        if self.path.startswith("/computeMetadata/v1/project/project-id"):
            self.answer(b"from-metadata", "text/plain")
        elif "/service-accounts/default/token" in self.path:
            self.answer(b'{"access_token": "vm-token", "expires_in": 3600, "token_type": "Bearer"}')
        elif "/service-accounts/default/" in self.path:
            self.answer(b'{"email": "vm@example.com", "scopes": ["s"], "aliases": ["default"]}')
        else:
            self.answer(b"", "text/plain")

    def do_POST(self) -> None:
        self.asked.append(self.rfile.read(int(self.headers["Content-Length"])).decode())
        self.answer(b'{"access_token": "fresh-token", "expires_in": 3600, "token_type": "Bearer"}')


class Router(Google):
    """Something that answers at the metadata server's address and is none."""

    def do_GET(self) -> None:
        self.asked.append(self.path)
        self.answer(b"<html>log in</html>", "text/html", flavour="none")


def serve(handler: type[Google]) -> Iterator[tuple[str, list[str]]]:
    asked: list[str] = []
    bound = type("Bound", (handler,), {"asked": asked})
    with ThreadingHTTPServer(("127.0.0.1", 0), bound) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield f"127.0.0.1:{server.server_port}", asked
        server.shutdown()
        thread.join()


@pytest.fixture
def server() -> Iterator[tuple[str, list[str]]]:
    yield from serve(Google)


@pytest.fixture
def router() -> Iterator[tuple[str, list[str]]]:
    yield from serve(Router)


@pytest.fixture(autouse=True)
def gcloud(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Give the test an empty gcloud folder and no metadata server."""
    for variable in list(os.environ):
        if variable.startswith(("DASK_", "GOOGLE_", "CLOUDSDK_", "GCLOUD_", "GCE_")):
            monkeypatch.delenv(variable)
    folder = tmp_path / "gcloud"
    (folder / "configurations").mkdir(parents=True)
    monkeypatch.setenv("CLOUDSDK_CONFIG", str(folder))
    # A closed port refuses at once.
    monkeypatch.setenv("GCE_METADATA_HOST", "127.0.0.1:9")
    monkeypatch.setenv("GCE_METADATA_IP", "127.0.0.1:9")
    return folder


@pytest.fixture(scope="session")
def private_key() -> str:
    key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    return key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    ).decode()


def write_key(path: Path, private_key: str, token_uri: str) -> Path:
    content = {
        "type": "service_account",
        "project_id": "from-key",
        "private_key_id": "1",
        "private_key": private_key,
        "client_email": "robot@from-key.iam.gserviceaccount.com",
        "token_uri": token_uri,
    }
    path.write_text(json.dumps(content))
    return path


def write_login(folder: Path, **more: str) -> None:
    content = {
        "type": "authorized_user",
        "client_id": "id",
        "client_secret": "secret",
        "refresh_token": "refresh",
        **more,
    }
    (folder / "application_default_credentials.json").write_text(json.dumps(content))


def configure(folder: Path, name: str, project: str) -> None:
    (folder / "configurations" / f"config_{name}").write_text(
        f"[core]\naccount = ada@example.com\nproject = {project}\n\n[compute]\nzone = 100%a\n"
    )


def run(code: str, **variables: str) -> str:
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        env={**os.environ, **variables},
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout.strip()


# -- credentials ------------------------------------------------------------------------------


def test_a_local_compute_engine_gets_no_credentials_even_where_there_are_some(
    gcloud: Path,
) -> None:
    write_login(gcloud)
    credentials = load_credentials(Settings.load(api_endpoint=LOCAL))
    assert isinstance(credentials, AnonymousCredentials)


def test_a_service_accounts_key_gets_tokens(
    tmp_path: Path,
    private_key: str,
    server: tuple[str, list[str]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    address, asked = server
    key = write_key(tmp_path / "key.json", private_key, f"http://{address}/token")
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(key))
    settings = Settings.load()
    credentials: Any = load_credentials(settings)
    assert credentials.scopes == [SCOPE]
    with requests.Session() as session:
        credentials.refresh(google.auth.transport.requests.Request(session))
    assert credentials.token == "fresh-token"
    assert asked[0].startswith("assertion=")
    assert discover_project(settings) == "from-key"


def test_a_users_login_is_used_without_running_gcloud(
    gcloud: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_login(gcloud)
    program = tmp_path / "bin" / "gcloud"
    program.parent.mkdir()
    program.write_text(f"#!/bin/sh\ntouch {tmp_path}/ran\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")
    monkeypatch.setenv("GOOGLE_CLOUD_QUOTA_PROJECT", "who-pays")
    credentials = load_credentials(Settings.load())
    assert isinstance(credentials, UserCredentials)
    assert credentials.refresh_token == "refresh"
    assert credentials.quota_project_id == "who-pays"
    assert not (tmp_path / "ran").exists()


def test_without_credentials_the_command_that_makes_some_is_named() -> None:
    with pytest.raises(CredentialsError, match="gcloud auth application-default login"):
        load_credentials(Settings.load())


@pytest.mark.parametrize(
    "content",
    [
        "not json: hunter2",
        "[]",
        '{"type": "unheard-of"}',
        '{"type": "authorized_user"}',
        '{"type": "service_account", "private_key": "hunter2"}',
        b"\xff\xfe",
    ],
)
def test_a_broken_file_is_named_but_not_quoted(
    content: str | bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "key.json"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(path))
    with pytest.raises(CredentialsError) as caught:
        load_credentials(Settings.load())
    message = str(caught.value)
    assert str(path) in message
    assert "GOOGLE_APPLICATION_CREDENTIALS" in message
    assert "gcloud auth application-default login" in message
    assert "hunter2" not in message


def test_a_missing_file_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(tmp_path / "gone.json"))
    for function in (load_credentials, discover_project):
        with pytest.raises(CredentialsError, match=r"gone\.json.*No such file"):
            function(Settings.load())


LOAD = """
import google.auth.transport.requests as transport, requests
from dask_gce.credentials import load_credentials, discover_project
from dask_gce.settings import Settings
settings = Settings.load()
credentials = load_credentials(settings)
with requests.Session() as session:
    credentials.refresh(transport.Request(session))
print(credentials.token, discover_project(settings))
"""


def test_on_compute_engine_the_metadata_server_gives_both(server: tuple[str, list[str]]) -> None:
    address, _ = server
    shown = run(LOAD, GCE_METADATA_HOST=address, GCE_METADATA_IP=address)
    assert shown == "vm-token from-metadata"


def test_a_network_that_swallows_packets_delays_but_does_not_hang(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    settings = Settings.load()
    began = time.monotonic()
    # Connections to a socket that never accepts succeed and then stay silent.
    with socket.create_server(("127.0.0.1", 0)) as deaf, ThreadPoolExecutor(2) as threads:
        monkeypatch.setenv("GCE_METADATA_HOST", f"127.0.0.1:{deaf.getsockname()[1]}")
        calls = [threads.submit(call, settings) for call in (load_credentials, discover_project)]
        for call in calls:
            with pytest.raises(CredentialsError):
                call.result()
    assert 1 < time.monotonic() - began < 30


def test_a_federated_identity_that_knows_no_project_leaves_it_to_gcloud(
    gcloud: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = {
        "type": "external_account",
        "audience": "//iam.googleapis.com/locations/global/workforcePools/p/providers/q",
        "subject_token_type": "urn:ietf:params:oauth:token-type:jwt",
        "token_url": "https://sts.googleapis.com/v1/token",
        "credential_source": {"file": str(tmp_path / "subject")},
    }
    path = tmp_path / "federated.json"
    path.write_text(json.dumps(content))
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(path))
    configure(gcloud, "default", "from-gcloud")
    settings = Settings.load()
    assert load_credentials(settings) is not None
    assert discover_project(settings) == "from-gcloud"


# -- the token of a local Compute Engine ------------------------------------------------------


def token_settings(path: Path) -> Settings:
    return Settings.load(api_endpoint=LOCAL, api_token_file=path)


def test_the_token_file_of_a_local_compute_engine_is_used(tmp_path: Path) -> None:
    path = tmp_path / "token"
    path.write_text("let-me-in\n")
    path.chmod(0o600)
    credentials = load_credentials(token_settings(path))
    headers: dict[str, str] = {}
    credentials.before_request(None, "GET", LOCAL, headers)  # type: ignore[no-untyped-call] # google-auth has no types here
    assert headers["authorization"] == "Bearer let-me-in"
    assert "let-me-in" not in repr(credentials)


def test_a_token_file_others_can_read_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "token"
    path.write_text("let-me-in")
    path.chmod(0o640)
    with pytest.raises(CredentialsError, match="chmod 600"):
        load_credentials(token_settings(path))


@pytest.mark.parametrize("content", [b"", b"two words", b"a\r\nX: b", b"\xff", b"x" * 20_000])
def test_a_file_without_a_token_is_refused_and_not_quoted(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "token"
    path.write_bytes(content)
    path.chmod(0o600)
    with pytest.raises(CredentialsError, match="does not hold a token") as caught:
        load_credentials(token_settings(path))
    assert "two words" not in str(caught.value)


def test_a_missing_token_file_and_a_pipe_are_refused(tmp_path: Path) -> None:
    with pytest.raises(CredentialsError, match="No such file"):
        load_credentials(token_settings(tmp_path / "gone"))
    os.mkfifo(tmp_path / "pipe", 0o600)
    with pytest.raises(CredentialsError, match="does not hold a token"):
        load_credentials(token_settings(tmp_path / "pipe"))


# -- the project ------------------------------------------------------------------------------


def test_the_settings_come_first(gcloud: Path) -> None:
    configure(gcloud, "default", "from-gcloud")
    assert discover_project(Settings.load(project="given-project")) == "given-project"
    assert discover_project(Settings.load(api_endpoint=LOCAL)) == LOCAL_PROJECT


def test_a_keys_project_comes_before_gclouds(
    gcloud: Path, tmp_path: Path, private_key: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    configure(gcloud, "default", "from-gcloud")
    key = write_key(tmp_path / "key.json", private_key, "http://127.0.0.1:9/token")
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(key))
    assert discover_project(Settings.load()) == "from-key"


def test_gclouds_project_comes_before_the_metadata_servers(
    gcloud: Path, server: tuple[str, list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GCE_METADATA_HOST", server[0])
    assert discover_project(Settings.load()) == "from-metadata"
    configure(gcloud, "default", "from-gcloud")
    assert discover_project(Settings.load()) == "from-gcloud"


def test_gclouds_active_configuration_counts(gcloud: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_login(gcloud, quota_project_id="who-pays")
    configure(gcloud, "default", "by-default")
    configure(gcloud, "work", "at-work")
    configure(gcloud, "play", "at-play")
    assert discover_project(Settings.load()) == "by-default"
    (gcloud / "active_config").write_text("work")
    assert discover_project(Settings.load()) == "at-work"
    monkeypatch.setenv("CLOUDSDK_ACTIVE_CONFIG_NAME", "play")
    assert discover_project(Settings.load()) == "at-play"
    monkeypatch.setenv("CLOUDSDK_CORE_PROJECT", "from-variable")
    assert discover_project(Settings.load()) == "from-variable"


def test_without_a_project_every_place_looked_at_and_the_remedy_are_named(gcloud: Path) -> None:
    write_login(gcloud)
    with pytest.raises(CredentialsError, match=r"GOOGLE_CLOUD_PROJECT.*gcloud config set project"):
        discover_project(Settings.load())


def test_a_broken_gcloud_configuration_is_not_passed_over(gcloud: Path) -> None:
    (gcloud / "configurations" / "config_default").write_text("project = without-a-section")
    with pytest.raises(CredentialsError, match="config_default cannot be read"):
        discover_project(Settings.load())


def test_a_percent_sign_in_gclouds_configuration_is_only_that(gcloud: Path) -> None:
    configure(gcloud, "default", "50%off")
    with pytest.raises(CredentialsError, match="'50%off' is not a project ID"):
        discover_project(Settings.load())


def test_a_project_number_found_on_the_way_is_refused_with_its_place(gcloud: Path) -> None:
    configure(gcloud, "default", "123456789012")
    with pytest.raises(CredentialsError, match=r"From gcloud's configuration.*give its ID"):
        discover_project(Settings.load())


def test_a_router_at_the_metadata_servers_address_is_asked_once_and_not_believed(
    router: tuple[str, list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    address, asked = router
    monkeypatch.setenv("GCE_METADATA_HOST", address)
    monkeypatch.setenv("GCE_METADATA_IP", address)
    with pytest.raises(CredentialsError, match="No Google credentials"):
        load_credentials(Settings.load())
    assert asked == ["/"]
    with pytest.raises(CredentialsError, match="No project was found"):
        discover_project(Settings.load())
    assert asked[1:] == ["/computeMetadata/v1/project/project-id"]


def test_the_metadata_server_is_not_asked_when_that_is_switched_off(
    server: tuple[str, list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    address, asked = server
    monkeypatch.setenv("GCE_METADATA_HOST", address)
    monkeypatch.setenv("NO_GCE_CHECK", "true")
    with pytest.raises(CredentialsError):
        discover_project(Settings.load())
    assert asked == []


def test_importing_this_imports_no_google_library() -> None:
    code = "import dask_gce.credentials, sys; print({'google.auth', 'requests'} & set(sys.modules))"
    assert run(code) == "set()"
