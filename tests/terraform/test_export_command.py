"""``dask gce export``: which files it writes, for whom, and what it does not overwrite."""

from __future__ import annotations

import json
import os
import stat
from datetime import datetime, timedelta, timezone

import dask
import pytest
from click.testing import CliRunner
from command_line import run, succeed
from cryptography import x509

from dask_gce.cli import gce
from dask_gce.terraform.files import read_end
from dask_gce.tls import ClusterCertificates

MAIN = "main.tf.json"
KEYS = "certificates.auto.tfvars.json"
ENVIRONMENT = "environment.auto.tfvars.json"
COMMAND = ("export", "terraform")
GRID = ("--name", "grid", "--n-workers", "2")


def mode(path):
    return stat.S_IMODE(path.stat().st_mode)


@pytest.fixture
def usual_umask():
    before = os.umask(0o022)
    yield
    os.umask(before)


def test_the_files_of_a_cluster_are_written_and_named(emulator, tmp_path, usual_umask):
    folder = tmp_path / "deep" / "grid"
    result = run(emulator, *COMMAND, str(folder), *GRID, "--env-vars", "{A: '1'}")
    assert result.exit_code == 0, result.output
    names = {MAIN, KEYS, ENVIRONMENT, ".gitignore"}
    assert {each.name for each in folder.iterdir()} == names
    assert {each.rpartition("/")[2] for each in result.stdout.split()} == names
    assert mode(folder / MAIN) == 0o644
    assert mode(folder / KEYS) == mode(folder / ENVIRONMENT) == 0o600
    # Plans that are saved have the keys, too.
    assert {"*.tfvars.json", "*tfplan*"} <= {*(folder / ".gitignore").read_text().split()}
    assert json.loads((folder / ENVIRONMENT).read_text()) == {"env_vars": {"A": "1"}}
    document = json.loads((folder / MAIN).read_text())
    assert document["variable"]["n_workers"]["default"] == 2
    assert "idle_timeout" in result.stderr
    assert "allow_ingress_from" in result.stderr
    assert "certificates last 365 days" in result.stderr
    # It was told, and nothing was made.
    assert not emulator.instances()
    assert not [key for key in emulator.requests if key.endswith(("insert", "Insert"))]


def test_keys_are_a_clusters_own_and_last_as_long_as_asked(emulator, tmp_path):
    succeed(emulator, *COMMAND, str(tmp_path), *GRID, "--certificate-days", "30")
    told = json.loads((tmp_path / KEYS).read_text())["certificates"]
    assert told.keys() == {"ca", "scheduler", "worker", "client"}
    now = datetime.now(timezone.utc)
    for role in ("scheduler", "worker", "client"):
        certificate = x509.load_pem_x509_certificate(told[role]["certificate"].encode())
        left = certificate.not_valid_after_utc - now
        assert timedelta(days=29) < left <= timedelta(days=30)
        assert "PRIVATE KEY" in told[role]["key"]


def test_nothing_is_overwritten_unless_asked_and_keys_stay_even_then(emulator, tmp_path):
    succeed(emulator, *COMMAND, str(tmp_path), *GRID, "--env-vars", "{A: '1'}")
    main, keys = ((tmp_path / name).read_text() for name in (MAIN, KEYS))
    again = ("--name", "grid", "--n-workers", "5")
    refused = run(emulator, *COMMAND, str(tmp_path), *again)
    assert refused.exit_code == 1
    assert "--force" in refused.stderr
    assert (tmp_path / MAIN).read_text() == main
    succeed(emulator, *COMMAND, str(tmp_path), *again, "--force")
    assert json.loads((tmp_path / MAIN).read_text())["variable"]["n_workers"]["default"] == 5
    assert (tmp_path / KEYS).read_text() == keys
    # Terraform would warn of values that nobody asks for.
    assert not (tmp_path / ENVIRONMENT).exists()


def test_keys_that_stay_are_told(emulator, tmp_path):
    path = tmp_path / KEYS
    succeed(emulator, *COMMAND, str(tmp_path), *GRID, "--certificate-days", "30")
    again = (*COMMAND, str(tmp_path), *GRID, "--force")
    told = run(emulator, *again).stderr
    assert (
        f"The keys in {path} stay, and are valid until {read_end(path):%Y-%m-%d %H:%M} UTC." in told
    )
    command = f"dask gce export certificates {path} --name grid"
    assert f"{command} --force" in told and "--certificate-days" not in told
    told = run(emulator, *again, "--certificate-days", "60").stderr
    assert "makes no difference" in told
    assert f"{command} --certificate-days 60 --force" in told
    # Some that have ended.
    before = datetime.now(timezone.utc) - timedelta(days=2)
    made = ClusterCertificates.create("grid", lifetime=timedelta(days=1), now=before)
    leaves = {
        role: {"certificate": made.leaf(role).certificate}
        for role in ("scheduler", "worker", "client")
    }
    path.write_text(json.dumps({"certificates": leaves}))
    told = run(emulator, *again).stderr
    assert f"Warning: the keys in {path} stay, but have not been valid since" in told
    for text in ("{}", "[", '{"certificates": {"scheduler": 1}}'):
        path.write_text(text)
        assert "cannot be read" in run(emulator, *again).stderr
    told = run(emulator, *again, "--security", "false").stderr
    assert f"The keys in {path} are of no use" in told and path.exists()


def test_what_git_ignores_already_stays(emulator, tmp_path):
    path = tmp_path / ".gitignore"
    path.write_text("notes\n*.tfstate")
    succeed(emulator, *COMMAND, str(tmp_path), *GRID)
    lines = path.read_text().splitlines()
    assert lines[:2] == ["notes", "*.tfstate"]
    assert "*.tfvars.json" in lines
    assert len(lines) == len(set(lines))
    before = path.read_text()
    assert str(path) not in succeed(emulator, *COMMAND, str(tmp_path), *GRID, "--force")
    assert path.read_text() == before


def test_new_keys_are_a_command_of_their_own(tmp_path):
    path = tmp_path / "other.tfvars.json"

    def command(*more):
        return CliRunner().invoke(gce, ["export", "certificates", str(path), *more])

    assert command("--name", "grid").stdout.strip() == str(path)
    assert mode(path) == 0o600
    first = path.read_text()
    assert command().exit_code == 1
    assert path.read_text() == first
    assert command("--force").exit_code == 0
    assert path.read_text() != first
    assert command("--force", "--name", "Grid").exit_code == 2
    assert command("--force", "--certificate-days", "0").exit_code == 2
    assert not [each for each in tmp_path.iterdir() if each != path]


def test_a_cluster_without_tls_has_no_keys(emulator, tmp_path):
    succeed(emulator, *COMMAND, str(tmp_path), *GRID, "--security", "false")
    assert not (tmp_path / KEYS).exists()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--n-workers", "1"), "has a name that stays"),
        ((*GRID, "--zone", "nowhere"), "zone"),
        ((*GRID, "--network", "nope"), "network = 'nope'"),
        ((*GRID, "--instance-overrides", "{workloadIdentityConfig: {}}"), "has no attribute"),
        ((*GRID, "--colour", "red"), "No such option"),
    ],
)
def test_what_cannot_be_exported_leaves_no_file(emulator, tmp_path, arguments, words):
    folder = tmp_path / "grid"
    result = run(emulator, *COMMAND, str(folder), *arguments)
    assert result.exit_code == 2
    assert words in result.stderr
    assert not folder.exists()


def test_packages_that_only_a_client_could_send_are_refused(emulator, tmp_path):
    package = tmp_path / "package"
    package.mkdir()
    (package / "pyproject.toml").write_text('[project]\nname = "ours"\nversion = "1"\n')
    wanted = f"[dask, distributed, {package}]"
    folder = tmp_path / "grid"
    result = run(emulator, *COMMAND, str(folder), *GRID, "--environment", wanted)
    assert result.exit_code == 2
    assert "no client that could send" in result.stderr
    assert "ours" in result.stderr


def test_a_folder_that_cannot_be_written_is_told(emulator, tmp_path):
    there = tmp_path / "file"
    there.write_text("")
    result = run(emulator, *COMMAND, str(there / "grid"), *GRID)
    assert result.exit_code == 1
    assert "cannot be written" in result.stderr
    assert "Choose another folder" in result.stderr


@pytest.mark.parametrize("command", [(*COMMAND, *GRID), ("export", "certificates")])
def test_a_name_that_is_too_long_is_told(emulator, tmp_path, command):
    result = run(emulator, *command, str(tmp_path / ("x" * 300)))
    assert result.exit_code == 1
    assert "cannot be written: File name too long" in result.stderr
    assert not list(tmp_path.iterdir())


def test_what_git_ignores_may_be_in_any_encoding(emulator, tmp_path):
    path = tmp_path / ".gitignore"
    path.write_bytes(b"caf\xe9\r\n*.tfstate")
    succeed(emulator, *COMMAND, str(tmp_path), *GRID)
    lines = path.read_bytes().splitlines()
    assert lines[:2] == [b"caf\xe9", b"*.tfstate"]
    assert b"*.tfvars.json" in lines and len(lines) == len(set(lines))


def test_settings_come_from_the_configuration_too(emulator, tmp_path):
    with dask.config.set({"gce.name": "grid", "gce.n-workers": 3}):
        succeed(emulator, *COMMAND, str(tmp_path))
    document = json.loads((tmp_path / MAIN).read_text())
    assert document["variable"]["name"]["default"] == "grid"
    assert document["variable"]["n_workers"]["default"] == 3
