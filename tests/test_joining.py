"""``dask gce join``: what is let in, what is refused, and that no key is ever shown."""

from __future__ import annotations

import json
import stat
from dataclasses import replace
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest
from command_line import make, run

from dask_gce.connection_content import Connection, render
from dask_gce.connections import connection_path, list_connections, load_connection
from dask_gce.settings import Settings
from dask_gce.startup import Tls
from dask_gce.tls import ClusterCertificates, Leaf

PASSWORD = "hunter2-is-no-good"
PROJECT = "local-project"


@pytest.fixture(autouse=True)
def data_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep connection files here."""
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))


def tls(certificates: ClusterCertificates, leaf: Leaf) -> Tls:
    """Return what a role holds."""
    return Tls(certificates.ca_pem, leaf.certificate, leaf.key)


def connection(endpoint: str | None, **more: Any) -> Connection:
    """Return what it takes to join the cluster grid."""
    made = ClusterCertificates.create("grid")
    settings = Settings.load(api_endpoint=endpoint, env_vars={"PASSWORD": PASSWORD}).dump()
    whole = Connection(
        cluster="grid",
        project=PROJECT,
        identity="a" * 32,
        owner="ada",
        client_tls=tls(made, made.client),
        worker_tls=tls(made, made.worker),
        settings=settings,
    )
    return replace(whole, **more)


def text(whole: Connection) -> str:
    """Return what is piped."""
    return render(whole).decode()


def refused(emulator: Any, given: str | bytes, *options: str, status: int = 1) -> str:
    """Return why something is refused; nothing is kept of it, and nothing shown."""
    before = list_connections()
    result = run(emulator, "join", "-", *options, input=given)
    assert result.exit_code == status, result.output
    assert list_connections() == before
    assert PASSWORD not in result.output
    assert "PRIVATE" not in result.output
    return str(result.stderr)


@pytest.mark.parametrize("declared", [False, True])
def test_what_was_piped_can_be_joined_from_here(emulator, declared):
    more = {"declared": "terraform"} if declared else {}
    make(emulator, s={"role": "scheduler", **more}, w=more)
    whole = connection(emulator.endpoint)
    result = run(emulator, "join", "-", input=text(whole))
    assert result.exit_code == 0, result.output
    assert result.stdout == (
        f"Cluster grid of project {PROJECT} can be joined from here: it is running, with 2 "
        "machines.\n"
    )
    assert ("terraform destroy" in result.stderr) is declared
    assert load_connection("grid") == whole
    assert stat.S_IMODE(connection_path("grid", PROJECT).stat().st_mode) == 0o600
    for secret in (PASSWORD, whole.client_tls.key.splitlines()[1]):
        assert secret not in result.output


def test_a_file_will_do_and_that_others_can_read_it_is_said(emulator, tmp_path):
    make(emulator, s={"role": "scheduler"})
    file = tmp_path / "it's grid.json"
    file.write_text(text(connection(emulator.endpoint)), "utf-8")
    file.chmod(0o600)
    result = run(emulator, "join", str(file), "--json")
    assert result.stderr == ""
    told = json.loads(result.stdout)
    assert told == {
        "name": "grid",
        "project": PROJECT,
        "id": "a" * 32,
        "state": "running",
        "machines": 1,
        "declared": None,
        "file": str(connection_path("grid", PROJECT)),
    }
    file.chmod(0o644)
    result = run(emulator, "join", str(file))
    assert "can be read by others" in result.stderr
    assert run(emulator, "join", str(tmp_path / "none.json")).exit_code == 2


def test_terraforms_output_is_taken_in_each_of_its_forms(emulator):
    make(emulator, s={"role": "scheduler"})
    content = json.loads(text(connection(emulator.endpoint)))
    all_outputs = {"connection": {"sensitive": True, "type": [], "value": content}, "dashboard": {}}
    for given in (content, json.dumps(content), all_outputs):
        result = run(emulator, "join", "-", input=json.dumps(given))
        assert result.exit_code == 0, result.output
        assert load_connection("grid").identity == "a" * 32


@pytest.mark.parametrize(
    "given",
    [
        b"",
        b"\xff\xfe",
        b"null",
        b"[]",
        PASSWORD.encode(),
        json.dumps({"PASSWORD": PASSWORD}).encode(),
        json.dumps({"connection": {"value": None}}).encode(),
        json.dumps({"connection": {"value": {"version": 1, "cluster": PASSWORD}}}).encode(),
        b"[" * 100_000,
    ],
    ids=range(9),
)
def test_what_is_no_connection_is_refused_without_a_word_of_it(emulator, given):
    said = refused(emulator, given)
    assert "This is no connection to a cluster" in said
    assert "terraform output -json connection" in said


def test_what_a_newer_version_wrote_is_refused(emulator):
    content = {**json.loads(text(connection(emulator.endpoint))), "version": 2}
    assert "newer dask_gce" in refused(emulator, json.dumps(content))


def test_certificates_that_ended_or_fit_nothing_are_refused(emulator):
    make(emulator, s={"role": "scheduler"})
    past = datetime.now(timezone.utc) - timedelta(days=2)
    old = ClusterCertificates.create("grid", now=past, lifetime=timedelta(days=1))
    ended = connection(
        emulator.endpoint, client_tls=tls(old, old.client), worker_tls=tls(old, old.worker)
    )
    assert "ended at" in refused(emulator, text(ended))

    new = ClusterCertificates.create("grid")
    swapped = Tls(new.ca_pem, new.client.certificate, new.worker.key)
    mixed = connection(emulator.endpoint, client_tls=swapped)
    assert "do not belong together" in refused(emulator, text(mixed))
    broken = connection(emulator.endpoint, client_tls=Tls("none", "none", PASSWORD))
    assert "cannot be read" in refused(emulator, text(broken))


def test_a_cluster_that_is_not_there_or_elsewhere_is_refused(emulator):
    whole = connection(emulator.endpoint)
    assert "No cluster 'grid' runs" in refused(emulator, text(whole), status=3)
    # Another of its name.
    make(emulator, s={"role": "scheduler", "identity": "b" * 32})
    assert "grid" in refused(emulator, text(whole), status=3)


def test_credentials_go_nowhere_that_the_configuration_does_not_name(emulator):
    make(emulator, s={"role": "scheduler"})
    before = emulator.requests.copy()
    whole = connection(emulator.endpoint)
    said = refused(None, text(whole), status=2)
    assert f"DASK_GCE__API_ENDPOINT={emulator.endpoint}" in said
    assert emulator.requests == before
    assert "the Compute API at Google" in refused(emulator, text(connection(None)), status=2)
    # A tunnel is asked for with the same credentials.
    elsewhere = "wss://tunnels.example/v4"
    of_google = connection(None)
    led = replace(of_google, settings={**of_google.settings, "iap_endpoint": elsewhere})
    assert f"DASK_GCE__IAP_ENDPOINT={elsewhere}" in refused(None, text(led), status=2)
    assert emulator.requests == before


def test_another_cluster_that_can_be_joined_is_kept_unless_it_is_gone(emulator):
    make(emulator, s={"role": "scheduler"}, t={"role": "scheduler", "identity": "b" * 32})
    first, second = (connection(emulator.endpoint, identity=each * 32) for each in "ab")
    assert run(emulator, "join", "-", input=text(first)).exit_code == 0
    said = refused(emulator, text(second))
    assert "--replace" in said
    assert load_connection("grid").identity == "a" * 32
    assert run(emulator, "join", "-", "--replace", input=text(second)).exit_code == 0
    assert load_connection("grid").identity == "b" * 32

    # A file that leads nowhere stands in nobody's way; that is so after each new generation.
    assert run(emulator, "delete", "grid", "--id", "a", "--yes").exit_code == 0
    gone = connection(emulator.endpoint, identity="c" * 32)
    connection_path("grid", PROJECT).write_bytes(render(gone))
    assert run(emulator, "join", "-", input=text(second)).exit_code == 0
    assert load_connection("grid").identity == "b" * 32
