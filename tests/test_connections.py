"""Connection files: what another process needs to join a cluster, and nothing for anybody else."""

from __future__ import annotations

import json
import os
import pickle
import stat
import subprocess
import sys
import traceback
from collections.abc import Callable
from dataclasses import replace
from datetime import datetime, timedelta, timezone
from functools import partial
from pathlib import Path
from typing import Any

import dask
import pytest
from distributed.comm import connect, listen
from distributed.security import Security
from leftovers import Snapshot, used_by_others

from dask_gce.boot.environment import Environment
from dask_gce.boot.wheels import Wheel
from dask_gce.connection_content import Connection
from dask_gce.connections import (
    connection_path,
    delete_connection,
    list_connections,
    load_connection,
    save_connection,
)
from dask_gce.errors import CredentialsError, SettingsError
from dask_gce.settings import Settings
from dask_gce.startup import Tls
from dask_gce.tls import ClusterCertificates, Leaf
from dask_gce.trust import client_tls, establish_trust

PASSWORD = "hunter2-is-no-good"


@pytest.fixture(autouse=True)
def data_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    return tmp_path / "data"


def make(cluster: str = "grid", project: str = "farm", **settings: Any) -> Connection:
    loaded = Settings.load(
        **{
            "env_vars": {"PASSWORD": PASSWORD},
            "worker_options": {"preload": PASSWORD},
            "scheduler_options": {"preload": PASSWORD},
            "instance_overrides": {"description": PASSWORD},
            **settings,
        }
    )
    trust = establish_trust(loaded.security, cluster)
    return Connection(
        cluster=cluster,
        project=project,
        identity="a" * 32,
        owner="Ada Lovelace",
        client_tls=client_tls(trust.client),
        worker_tls=trust.machines.get("worker"),
        settings=loaded.dump(),
    )


def change(path: Path, edit: Callable[[dict[str, Any]], Any]) -> None:
    """Let somebody's editor loose on a file."""
    content = json.loads(path.read_text())
    edit(content)
    path.write_text(json.dumps(content))


def refused(name: str = "grid", project: str | None = "farm") -> str:
    with pytest.raises(CredentialsError) as caught:
        load_connection(name, project)
    return str(caught.value)


def secrets_of(connection: Connection) -> list[str]:
    keys = [tls.key for tls in (connection.client_tls, connection.worker_tls) if tls]
    # Each line of a key by itself, but for the first and the last that all keys have.
    return [PASSWORD, *(line for key in keys for line in key.splitlines()[1:-1])]


# -- there and back ---------------------------------------------------------------------------


@pytest.mark.parametrize("security", [True, False])
def test_what_was_saved_is_loaded(security: bool) -> None:
    connection = make(security=security, zone=["us-east1-b", "us-east1-c"], api_rate=float("inf"))
    path = save_connection(connection)
    assert path == connection_path("grid", "farm")
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert load_connection("grid", "farm") == load_connection("grid") == connection
    assert (connection.client_tls is not None) == security


def test_the_environment_of_later_machines_is_that_of_the_first() -> None:
    wheel = Wheel("mine-1.0-py3-none-any.whl", 7, "ab" * 32, Path("/home/ada/mine.whl"))
    environment = Environment("3.11", "requirements.txt", "dask\n", ("--no-deps",), (wheel,), "2")
    path = save_connection(replace(make(), environment=environment))
    loaded = load_connection("grid").environment
    assert loaded is not None
    assert loaded.items() == environment.items()
    # Whoever joins cannot send it: it is on the scheduler.
    assert [each.path for each in loaded.wheels] == [None]
    for wrong in ("dask", {"python": "3.11"}, {**environment.dump(), "wheels": 5}):
        change(path, partial(dict.update, environment=wrong))
        assert "environment is missing or not what dask_gce writes" in refused()


def test_the_file_is_json_with_a_version() -> None:
    def no_constant(name: str) -> None:
        raise AssertionError(f"{name} is no JSON")

    path = save_connection(make(api_rate=float("inf")))
    content = json.loads(path.read_text(), parse_constant=no_constant)
    assert content["version"] == 1
    assert content["settings"]["env_vars"] == {"PASSWORD": PASSWORD}


def test_saving_again_replaces() -> None:
    save_connection(make())
    second = replace(make(), identity="b" * 32)
    save_connection(second)
    assert load_connection("grid") == second


def test_settings_are_those_of_the_cluster_and_not_of_the_reader() -> None:
    save_connection(make(zone="us-east1-b", processes=2))
    with dask.config.set({"gce.max-workers": 5, "gce.zone": "asia-east1-a", "gce.project": "mine"}):
        settings = load_connection("grid").restore_settings()
    assert settings.max_workers is None
    assert settings.zone == ("us-east1-b",)
    assert (settings.name, settings.project) == ("grid", "farm")
    assert settings.processes == 2


async def test_the_clients_side_opens_a_connection_and_the_configurations_does_not() -> None:
    certificates = ClusterCertificates.create("grid")
    other = ClusterCertificates.create("other")

    def tls(leaf: Leaf) -> Tls:
        return Tls(certificates.ca_pem, leaf.certificate, leaf.key)

    connection = replace(
        make(), client_tls=tls(certificates.client), worker_tls=tls(certificates.worker)
    )
    save_connection(connection)
    config = {
        "ca-file": other.ca_pem,
        "client.cert": other.client.certificate,
        "client.key": other.client.key,
        "worker.cert": other.worker.certificate,
        "worker.key": other.worker.key,
    }
    with dask.config.set({f"distributed.comm.tls.{key}": each for key, each in config.items()}):
        security = load_connection("grid").security()
        assert security.tls_worker_key is None
        assert security.require_encryption

        async def answer(comm: Any) -> None:
            await comm.write("welcome")
            await comm.close()

        server = certificates.security("scheduler").get_listen_args("scheduler")
        async with listen("tls://127.0.0.1:0", answer, **server) as listener:
            comm = await connect(listener.contact_address, **security.get_connection_args("client"))
            assert await comm.read() == "welcome"
            await comm.close()
            with pytest.raises(OSError):
                await connect(
                    listener.contact_address,
                    timeout=0.5,
                    **Security(require_encryption=True).get_connection_args("client"),
                )


def test_without_tls_the_configurations_certificates_are_left_out() -> None:
    save_connection(make(security=False))
    with dask.config.set({"distributed.comm.tls.ca-file": "ca.pem"}):
        security = load_connection("grid").security()
    assert not security.require_encryption
    assert security.tls_ca_file is None


def test_a_users_own_certificates_are_written_out(tmp_path: Path) -> None:
    certificates = ClusterCertificates.create("grid")
    fields = {"tls_ca_file": certificates.ca_pem}
    for role in ("client", "scheduler", "worker"):
        leaf = certificates.leaf(role)
        fields |= {f"tls_{role}_cert": leaf.certificate, f"tls_{role}_key": leaf.key}
    for name, text in fields.items():
        (tmp_path / name).write_text(text)
    own = Security(require_encryption=True, **{name: str(tmp_path / name) for name in fields})
    save_connection(make(security=own))
    for name in fields:
        (tmp_path / name).unlink()
    loaded = load_connection("grid")
    assert loaded.client_tls is not None
    assert loaded.worker_tls is not None
    assert loaded.client_tls.key == certificates.client.key
    assert loaded.worker_tls.key == certificates.worker.key
    assert loaded.restore_settings().security is True


def test_a_users_own_without_the_clients_part_is_refused() -> None:
    own = Security(require_encryption=True, tls_ca_file="a\nb")
    with pytest.raises(SettingsError, match="tls_client_cert is missing, but the client"):
        client_tls(own)


# -- which file -------------------------------------------------------------------------------


def test_a_file_is_in_its_projects_folder(data_folder: Path) -> None:
    root = data_folder / "dask-gce" / "clusters"
    assert connection_path("grid", "farm") == root / "farm" / "grid.json"
    # Colons are not allowed in file names everywhere.
    assert connection_path("grid", "example.com:farm") == root / "example.com_farm" / "grid.json"


@pytest.mark.parametrize(
    "name", ["../farm/grid", "/etc/passwd", "", ".", "grid.json", "Grid", "a\0b"]
)
def test_no_name_leads_out_of_the_folder(name: str) -> None:
    connection = make()
    acts: list[Callable[[], Any]] = [
        lambda: connection_path(name, "farm"),
        lambda: load_connection(name),
        lambda: load_connection(name, "farm"),
        lambda: load_connection("grid", name),
        lambda: delete_connection(name, "farm"),
        lambda: delete_connection("grid", name),
        lambda: save_connection(replace(connection, cluster=name)),
    ]
    if name != "Grid":
        acts.append(lambda: save_connection(replace(connection, project=name)))
    for act in acts:
        with pytest.raises(SettingsError):
            act()


def test_a_missing_file_is_told_with_the_place_and_what_to_do() -> None:
    for project in ("farm", None):
        message = refused(project=project)
        assert str(connection_path("grid", project or "x").parents[1]) in message
        assert "may well run" in message
        assert "copy the file" in message
        assert "dask gce delete grid" in message
    assert str(connection_path("grid", "farm")) in refused()


def test_a_name_in_several_projects_needs_the_project() -> None:
    connections = [make(project=project) for project in ("farm", "example.com:farm")]
    for each in connections:
        save_connection(each)
    with pytest.raises(SettingsError, match=r"example\.com:farm, farm") as caught:
        load_connection("grid")
    assert caught.value.key == "project"
    assert [load_connection("grid", each.project) for each in connections] == connections


def test_a_file_under_another_clusters_name_is_refused() -> None:
    path = save_connection(make())
    path.rename(connection_path("other", "farm"))
    assert "is for cluster 'grid' in project 'farm'" in refused("other")


def test_clusters_are_listed_whatever_else_lies_there(data_folder: Path) -> None:
    assert list_connections() == []
    for name, project in (("night", "farm"), ("grid", "farm"), ("grid", "example.com:farm")):
        save_connection(make(name, project))
    # What others have put there, and what was never finished.
    root = data_folder / "dask-gce" / "clusters"
    (root / "notes.json").write_text("{}")
    (root / "a:b").mkdir()
    for junk in ("farm/Grid.json", "farm/notes.txt", "farm/.grid.7.tmp", "a:b/grid.json"):
        (root / junk).write_text("{}")
    (root / "farm" / "folder.json").mkdir()
    (root / "farm" / "link.json").symlink_to(root / "farm" / "grid.json")
    # Broken ones are listed: they are asked for by name, and then there is an error to read.
    connection_path("broken", "farm").write_text("no JSON")
    assert list_connections() == [
        ("example.com:farm", "grid"),
        ("farm", "broken"),
        ("farm", "grid"),
        ("farm", "night"),
    ]


def test_what_is_deleted_is_gone() -> None:
    save_connection(make())
    assert delete_connection("grid", "farm")
    assert not delete_connection("grid", "farm")
    assert list_connections() == []
    assert "no connection file" in refused()


# -- files that are not as they should be -----------------------------------------------------


def test_a_file_that_others_can_read_is_refused() -> None:
    path = save_connection(make())
    path.chmod(0o644)
    assert f"chmod 600 {path}" in refused()
    assert f"chmod 600 {path}" in refused(project=None)


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "null", '"text"', "{}", "NaN", "\xff", "[" * 99_999]
)
def test_what_was_never_a_connection_file_is_refused(text: str) -> None:
    path = save_connection(make())
    path.write_bytes(text.encode("latin-1"))
    message = refused()
    assert "not what dask_gce writes" in message
    assert f"rm {path}" in message


def test_a_newer_format_asks_for_an_update() -> None:
    path = save_connection(make())
    change(path, lambda content: content.update(version=2, settings=None))
    assert "newer dask_gce" in refused()


def test_more_than_is_known_is_left_alone_and_less_has_its_default() -> None:
    path = save_connection(make(zone="us-east1-b"))

    def age(content: dict[str, Any]) -> None:
        content["flavour"] = "vanilla"
        content["settings"]["flavour"] = {"of": "settings"}
        del content["settings"]["boot_disk_size"]

    change(path, age)
    settings = load_connection("grid").restore_settings()
    assert settings.zone == ("us-east1-b",)
    assert settings.boot_disk_size == 30


PARTS = ("version", "cluster", "project", "identity", "owner", "client_tls", "settings")


@pytest.mark.parametrize("key", PARTS)
@pytest.mark.parametrize("wrong", [-7, None, [], True, [PASSWORD]])
def test_a_wrong_part_is_refused(key: str, wrong: Any) -> None:
    path = save_connection(make())
    change(path, lambda content: content.update({key: wrong}))
    message = refused()
    assert str(path) in message
    if key == "version":
        assert "it is not what dask_gce writes" in message
    elif key == "client_tls" and wrong is None:
        assert "contradict" in message
    else:
        assert f"{key} is missing or not what dask_gce writes" in message


@pytest.mark.parametrize("key", PARTS)
def test_a_missing_part_is_refused(key: str) -> None:
    path = save_connection(make())
    change(path, lambda content: content.pop(key))
    assert ("contradict" if key == "client_tls" else "dask_gce writes") in refused()


@pytest.mark.parametrize(
    ("key", "wrong"),
    [("zone", None), ("processes", "two"), ("env_vars", [PASSWORD]), ("security", "yes")],
)
def test_a_wrong_setting_is_named(key: str, wrong: Any) -> None:
    path = save_connection(make())
    change(path, lambda content: content["settings"].update({key: wrong}))
    assert f"its setting {key!r}" in refused()


@pytest.mark.parametrize("part", ["client_tls", "worker_tls"])
def test_certificates_that_contradict_the_settings_are_refused(part: str) -> None:
    path = save_connection(make())
    change(path, lambda content: content.update({part: None}))
    assert "contradict" in refused()


@pytest.mark.parametrize("part", ["client_tls", "worker_tls"])
def test_a_certificate_that_cannot_be_read_is_refused(part: str) -> None:
    path = save_connection(make())
    change(path, lambda content: content[part].update(certificate=content[part]["key"]))
    assert "a certificate in it cannot be read" in refused()


def test_certificates_that_have_ended_are_told() -> None:
    certificates = ClusterCertificates.create(
        "grid",
        lifetime=timedelta(days=7),
        now=datetime.now(timezone.utc) - timedelta(days=7, minutes=1),
    )
    ended = Tls(certificates.ca_pem, certificates.worker.certificate, certificates.worker.key)
    save_connection(replace(make(), worker_tls=ended))
    message = refused()
    assert f"ended at {certificates.not_after:%Y-%m-%d %H:%M} UTC" in message
    assert "dask gce delete grid" in message


def test_more_than_can_be_read_again_is_not_written() -> None:
    large = make(instance_overrides={"description": "x" * 5_000_000})
    with pytest.raises(CredentialsError, match="are the most"):
        save_connection(large)
    assert list_connections() == []


# -- nothing shown ----------------------------------------------------------------------------


def test_no_secret_is_shown_by_what_is_printed() -> None:
    connection = make()
    shown = f"{connection!r} {connection} {connection.security()!r} {connection.restore_settings()}"
    assert "grid" in shown
    assert not [each for each in secrets_of(connection) if each in shown]


def test_no_secret_is_shown_by_an_error_whatever_is_broken() -> None:
    connection = make()
    path = save_connection(connection)
    whole = path.read_text()
    secrets = secrets_of(connection)
    content = json.loads(whole)
    broken = [whole[:end] for end in range(0, len(whole) - 2, len(whole) // 40)]
    # Everything in everything else's place, at the top and one level below.
    for key in content:
        for other in content.values():
            broken.append(json.dumps({**content, key: other}))
            if isinstance(content[key], dict):
                broken += [
                    json.dumps({**content, key: {**content[key], inner: other}})
                    for inner in content[key]
                ]
    told = 0
    for text in broken:
        path.write_text(text)
        try:
            load_connection("grid", "farm")
        except CredentialsError as error:
            told += 1
            shown = "".join(traceback.format_exception(error)) + repr(error)
            assert not [each for each in secrets if each in shown], text
    assert told > len(broken) // 2


def test_a_connection_is_not_pickled() -> None:
    with pytest.raises(TypeError, match="private keys"):
        pickle.dumps(make())


# -- the tests' own net -----------------------------------------------------------------------


def test_a_file_that_a_test_leaves_is_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("leftovers.PATIENCE", 0.0)
    snapshot = Snapshot(tmp_path)
    path = save_connection(make())
    assert f"file {path}" in snapshot.leftovers()
    delete_connection("grid", "farm")
    assert not [each for each in snapshot.leftovers() if each.startswith("file")]


SHARE = """
import mmap, os, sys
with open(sys.argv[1] + ".new", "wb+") as file:
    file.truncate(8)
    shared = mmap.mmap(file.fileno(), 8)
# As sem_open(3) does it.
os.link(sys.argv[1] + ".new", sys.argv[1])
os.unlink(sys.argv[1] + ".new")
print(flush=True)
sys.stdin.read()
"""


@pytest.mark.skipif(not Path("/dev/shm").exists(), reason="needs /dev/shm")
def test_shared_memory_is_seen_unless_only_other_programs_use_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("leftovers.PATIENCE", 0.0)
    snapshot = Snapshot(tmp_path)
    path = Path("/dev/shm") / f"dask-gce-tests-{os.getpid()}"
    command = [sys.executable, "-c", SHARE, str(path)]
    told = f"shared memory {path}"
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        assert told in snapshot.leftovers()
        assert told not in used_by_others({process.pid})
        assert told in used_by_others({os.getpid()})
        with monkeypatch.context() as patch:
            patch.setattr("leftovers.used_by_others", lambda own: used_by_others({os.getpid()}))
            assert told not in snapshot.leftovers()
        process.communicate()
    # What nobody uses may well be left by the test.
    assert told in snapshot.leftovers()
    path.unlink()
    assert told not in snapshot.leftovers()
