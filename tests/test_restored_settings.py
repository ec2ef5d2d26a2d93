"""Settings that were written down: the same again, wherever they are read."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import dask
import pytest
from distributed.security import Security
from hypothesis import given
from hypothesis import strategies as st

from dask_gce.errors import SettingsError
from dask_gce.settings import Settings
from dask_gce.sources import DEFAULTS

#: None of them the default.
UNUSUAL: dict[str, Any] = {
    "project": "example.com:farm",
    "zone": ["us-east1-b", "us-east1-c"],
    "allow_cross_zone": True,
    "name": "grid",
    "api_endpoint": "http://127.0.0.1:8080",
    "api_token_file": "/tmp/token",
    "api_rate": math.inf,
    "api_connections": 4,
    "n_workers": 4,
    "max_workers": 40,
    "machine_type": "n2-standard-8",
    "scheduler_machine_type": ["e2-small", "n2-custom-2-4096"],
    "worker_machine_type": "c3-highcpu-4",
    "processes": 2,
    "workers_on_scheduler": 1,
    "nthreads": 3,
    "memory_limit": 0.5,
    "spot": "fallback",
    "spot_fraction": 0.5,
    "min_on_demand": 2,
    "preemption_notice": False,
    "worker_accelerator_type": "nvidia-tesla-t4",
    "worker_accelerator_count": 2,
    "local_ssds": 2,
    "min_cpu_platform": "Intel Skylake",
    "confidential": True,
    "secure_boot": True,
    "source_image": "family/mine",
    "boot_disk_size": "50GB",
    "boot_disk_type": "pd-ssd",
    "environment": ["xgboost==2.1", "./mine"],
    "container_image": "example.com/dask:1",
    "docker_options": ["--label", "a=b c\n\\"],
    "shm_size": "2GiB",
    "version_check": False,
    "env_vars": {"N": 1, "GREETING": "it's $HOME\n\u2603", "YES": True},
    "worker_class": "distributed.Worker",
    "worker_options": {"resources": {"GPU": 1}, "preload": ("a", "b")},
    "scheduler_options": {"idle_timeout": None},
    "scheduler_port": 1234,
    "dashboard_port": 1235,
    "jupyter": True,
    "subnetwork": "projects/host/regions/us-east1/subnetworks/inner",
    "external_ip": False,
    "network_tags": "dask",
    "connect": "iap",
    "firewall": False,
    "client_address_services": [],
    "iap_endpoint": "ws://127.0.0.1:8080/v4",
    "labels": {"team": 7},
    "service_account": "default",
    "scopes": ["storage-ro", "compute-rw"],
    "security": False,
    "secrets": "secret-manager",
    "idle_timeout": math.inf,
    "no_client_timeout": "3 minutes",
    "max_lifetime": math.inf,
    "death_timeout": 7,
    "sweep_on_start": True,
    "max_hourly_cost": 2.5,
    "live_prices": False,
    "start_timeout": "3 minutes",
    "worker_start_timeout": 77,
    "worker_start_failure_limit": 9,
    "progress": "lines",
    "instance_overrides": {"description": "x", "nested": [{"deep": [None, 1.5]}]},
}
#: What does not go together with the others.
ALONE: dict[str, Any] = {
    "reservation": "projects/p/reservations/mine",
    "allow_ingress_from": ["198.51.100.7", "10.0.0.0/8"],
}


def as_file(settings: Settings) -> Any:
    """Send settings through a file."""
    return json.loads(json.dumps(settings.dump(), allow_nan=False))


def values(settings: Settings) -> dict[str, Any]:
    return {
        field.name: getattr(settings, field.name)
        for field in dataclasses.fields(settings)
        if field.name != "sources"
    }


@pytest.fixture
def another_machine(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Return a configuration in which everything is different, and a hostile environment."""
    monkeypatch.setenv("GOOGLE_CLOUD_PROJECT", "somebody-elses")
    monkeypatch.setenv("DASK_GCE__MACHINE_TYPE", "n1-standard-96")
    config = {
        "gce.project": "mine",
        "gce.zone": "asia-east1-a",
        "gce.max-workers": 5,
        "gce.nthreads": 7,
        "gce.processes": 3,
        "gce.machine-type": "n1-standard-1",
        "gce.scheduler-machine-type": "n1-standard-1",
        "gce.subnetwork": "mine",
        "gce.service-account": "default",
        "gce.env-vars": {"MINE": "1"},
        "gce.no-such-setting": 1,
    }
    with dask.config.set(config):
        yield


@pytest.mark.parametrize("given_values", [{}, UNUSUAL, {"single_node": True, "processes": 4}])
def test_settings_are_the_same_again_under_another_configuration(
    given_values: dict[str, Any], request: pytest.FixtureRequest
) -> None:
    settings = Settings.load(**given_values)
    written = as_file(settings)
    assert set(written) == set(DEFAULTS)
    request.getfixturevalue("another_machine")
    restored = Settings.restore(written)
    assert values(restored) == values(settings)
    assert set(restored.sources.values()) == {"connection file"}


@pytest.mark.parametrize("key", sorted(UNUSUAL | ALONE))
def test_each_setting_is_the_same_again(key: str) -> None:
    need = {
        "api_token_file": {"api_endpoint": UNUSUAL["api_endpoint"]},
        "iap_endpoint": {"api_endpoint": UNUSUAL["api_endpoint"]},
        "jupyter": {"environment": ["jupyterlab"]},
        "scopes": {"service_account": "default"},
        "secrets": {"service_account": "default"},
        "spot_fraction": {"spot": True},
        "min_on_demand": {"spot": True},
        "worker_accelerator_count": {"worker_accelerator_type": "nvidia-tesla-t4"},
    }
    settings = Settings.load(**{key: (UNUSUAL | ALONE)[key], **need.get(key, {})})
    assert getattr(settings, key) != getattr(Settings.load(), key), "not unusual"
    assert values(Settings.restore(as_file(settings))) == values(settings)


@given(st.dictionaries(st.text(min_size=1), st.text()))
def test_environment_variables_are_the_same_to_the_byte(variables: dict[str, str]) -> None:
    try:
        settings = Settings.load(env_vars=variables)
    except SettingsError:  # names with "=", NUL characters, half characters
        return
    assert Settings.restore(as_file(settings)).env_vars == settings.env_vars


@pytest.mark.usefixtures("another_machine")
def test_what_is_missing_has_its_default_and_not_the_readers() -> None:
    restored = Settings.restore({})
    assert restored.project is None
    assert restored.max_workers is None
    assert restored.zone == ("us-central1-a",)
    assert restored.scheduler_machine_type == ("e2-standard-4",)
    assert restored.env_vars == {}
    assert set(restored.sources.values()) >= {"default"}
    assert "connection file" not in restored.sources.values()


def test_what_is_not_known_is_ignored() -> None:
    assert Settings.restore({"flavour": "vanilla", "processes": 2}).processes == 2


@pytest.mark.parametrize(
    "key", ["zone", "machine_type", "processes", "security", "env_vars", "start_timeout"]
)
def test_null_is_refused_where_a_value_is_needed(key: str) -> None:
    with pytest.raises(
        SettingsError, match=rf"{key} \(connection file\) must not be null"
    ) as caught:
        Settings.restore({key: None})
    assert caught.value.key == key


def test_no_network_beside_a_subnetwork_is_nothing_wrong() -> None:
    assert Settings.restore({"network": None, "subnetwork": "inner"}).network is None


def test_a_wrong_value_is_told_with_its_source() -> None:
    with pytest.raises(SettingsError, match=r"processes = 'two'.*It came from: the file") as caught:
        Settings.restore({"processes": "two"}, source="the file")
    assert caught.value.key == "processes"


def test_rules_between_settings_lock_nobody_out_of_a_running_cluster() -> None:
    contradiction = {"n_workers": 10, "max_workers": 5}
    with pytest.raises(SettingsError):
        Settings.load(**contradiction)
    assert Settings.restore(contradiction).n_workers == 10


@pytest.mark.parametrize(
    ("security", "written"),
    [
        (Security(require_encryption=True), True),
        (Security(require_encryption=False, tls_ca_file="ca.pem"), True),
        (Security(require_encryption=False), False),
    ],
)
def test_of_a_users_own_certificates_only_their_being_there_is_written(
    security: Security, written: bool
) -> None:
    assert Settings.load(security=security).dump()["security"] is written


def test_a_files_path_is_written_so_that_it_is_right_elsewhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    settings = Settings.load(api_endpoint="http://127.0.0.1:8080", api_token_file="token")
    assert settings.dump()["api_token_file"] == str(tmp_path / "token")
    monkeypatch.setenv("HOME", "/home/ada")
    settings = Settings.load(api_endpoint="http://127.0.0.1:8080", api_token_file="~/token")
    assert settings.dump()["api_token_file"] == "/home/ada/token"


def test_what_is_written_shares_nothing_with_the_settings() -> None:
    settings = Settings.load(worker_options={"resources": {"GPU": 1}}, env_vars={"A": "1"})
    written = settings.dump()
    written["worker_options"]["resources"]["GPU"] = 2
    written["env_vars"]["A"] = "2"
    assert settings.worker_options == {"resources": {"GPU": 1}}
    assert settings.env_vars == {"A": "1"}
