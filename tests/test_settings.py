"""Settings: one order of sources, every value checked at once, nothing secret shown."""

from __future__ import annotations

import copy
import dataclasses
import inspect
import json
import math
import os
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any

import dask.config
import distributed
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

import dask_gce
from dask_gce import images, schema
from dask_gce.errors import SettingsError
from dask_gce.settings import LOCAL_PROJECT, Settings
from dask_gce.sources import DEFAULTS, SECTIONS

LOCAL = "http://127.0.0.1:8080"
YAML = Path(dask_gce.__file__).with_name("gce.yaml")


@pytest.fixture(autouse=True)
def plain_surroundings(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for variable in list(os.environ):
        if variable.startswith(("DASK_", "GOOGLE_", "CLOUDSDK_")):
            monkeypatch.delenv(variable)
    with dask.config.set({"gce": copy.deepcopy(dict(DEFAULTS))}):
        yield


def refused(key: str, **keywords: Any) -> str:
    with pytest.raises(SettingsError) as caught:
        Settings.load(**keywords)
    assert caught.value.key == key
    return str(caught.value)


# -- where values come from -------------------------------------------------------------------


def test_without_anything_given_every_value_is_a_default() -> None:
    settings = Settings.load()
    assert settings.zone == ("us-central1-a",)
    assert settings.machine_type == ("e2-standard-4",)
    assert settings.source_image == "projects/cos-cloud/global/images/family/cos-stable"
    assert settings.boot_disk_size == 30
    assert settings.start_timeout == 600
    assert settings.security is True
    assert settings.project is None
    assert settings.sources["zone"] == "default"


def test_a_keyword_wins_over_the_configuration_which_wins_over_the_default() -> None:
    with dask.config.set({"gce.n-workers": 3, "gce.name": "from-config"}):
        settings = Settings.load(n_workers=5)
    assert (settings.n_workers, settings.sources["n_workers"]) == (5, "keyword argument")
    assert (settings.name, settings.sources["name"]) == ("from-config", "dask config")
    assert settings.sources["boot_disk_size"] == "default"


def test_none_means_not_given_in_python_and_in_yaml() -> None:
    with dask.config.set({"gce.zone": None, "gce.n-workers": 2}):
        settings = Settings.load(n_workers=None, zone=None)
    assert settings.zone == ("us-central1-a",)
    assert settings.n_workers == 2


def test_false_and_zero_are_given() -> None:
    with dask.config.set({"gce.n-workers": 3}):
        settings = Settings.load(n_workers=0, external_ip=False, security=False)
    assert (settings.n_workers, settings.external_ip, settings.security) == (0, False, False)


def test_keys_may_be_spelled_with_hyphens_or_underscores() -> None:
    with dask.config.set({"gce": {"boot-disk-size": 40, "network_tags": ["dask"]}}):
        settings = Settings.load()
    assert (settings.boot_disk_size, settings.network_tags) == (40, ("dask",))


def test_yaml_and_variables_in_a_fresh_process(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("gce:\n  boot-disk-size: 77GB\n  labels: {team: 42}\n")
    code = """
import json, sys
from dask_gce.settings import Settings
settings = Settings.load()
print(json.dumps([settings.zone, settings.boot_disk_size, settings.labels, settings.external_ip,
    settings.project, dict(settings.sources), sorted(sys.modules)]))
"""
    environment = {
        **os.environ,
        "DASK_CONFIG": str(tmp_path),
        "DASK_GCE__ZONE": '["us-east1-b", "us-east1-c"]',
        "DASK_GCE__EXTERNAL_IP": "false",
        "DASK_GCE__LABELS__OWNER": "ada",
        "GOOGLE_CLOUD_PROJECT": "render-farm",
    }
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
    )
    zone, size, labels, external, project, sources, modules = json.loads(done.stdout)
    assert zone == ["us-east1-b", "us-east1-c"]
    assert (size, external, project) == (77, False, "render-farm")
    assert labels == {"team": "42", "owner": "ada"}
    assert sources["zone"] == "environment variable DASK_GCE__ZONE"
    assert sources["boot_disk_size"] == "dask config"
    assert sources["project"] == "environment variable GOOGLE_CLOUD_PROJECT"
    # Settings are read by every command, so they must not wait for big imports.
    assert not {"google.auth", "aiohttp", "distributed", "requests"} & set(modules)
    assert [file.name for file in tmp_path.iterdir()] == ["mine.yaml"]


def test_an_error_names_the_file_or_the_variable(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("gce:\n  boot_disk_size: many\n")
    code = "from dask_gce.settings import Settings; Settings.load()"
    for extra, place in (
        ({}, str(tmp_path / "mine.yaml")),
        ({"DASK_GCE__BOOT_DISK_SIZE": "huge"}, "environment variable DASK_GCE__BOOT_DISK_SIZE"),
        ({"DASK_gce__zoen": "us-east1-b"}, "environment variable DASK_gce__zoen"),
    ):
        done = subprocess.run(
            [sys.executable, "-c", code],
            env={**os.environ, "DASK_CONFIG": str(tmp_path), **extra},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 1
        assert place in done.stderr.splitlines()[-1]


def test_a_list_from_a_keyword_replaces_that_of_the_configuration() -> None:
    with dask.config.set({"gce.labels": {"team": "a"}}):
        assert Settings.load(labels={"cost": "b"}).labels == {"cost": "b"}


def test_loading_changes_nothing_in_the_dask_configuration() -> None:
    before = copy.deepcopy(dask.config.config)
    Settings.load(zone="us-east1-b", env_vars={"A": "b"}, worker_options={"resources": {"GPU": 1}})
    assert dask.config.config == before


def test_settings_share_nothing_with_what_was_given() -> None:
    options = {"resources": {"GPU": 1}}
    settings = Settings.load(worker_options=options)
    options["resources"]["GPU"] = 2
    assert settings.worker_options == {"resources": {"GPU": 1}}
    with pytest.raises(dataclasses.FrozenInstanceError):
        settings.zone = ("x",)  # type: ignore[misc] # the point of the test


# -- the list of settings ---------------------------------------------------------------------


def test_yaml_fields_and_checks_are_the_same_list_in_the_same_order() -> None:
    fields = [field.name for field in dataclasses.fields(Settings)]
    assert fields == [*DEFAULTS, "sources"]
    assert list(schema.CHECKS) == list(DEFAULTS)


def test_every_default_has_a_comment_and_a_hyphenated_key() -> None:
    # A section is a line without a value, and its settings stand deeper.
    lines = re.findall(r"^ +[a-z-]+: .*", YAML.read_text(), re.MULTILINE)
    assert len(lines) == len(DEFAULTS) + sum(map(len, SECTIONS.values()))
    for line in lines:
        assert re.fullmatch(r"(  ){1,2}[a-z-]+: .*\S +# [A-Z].*", line), line


def test_every_field_is_documented() -> None:
    documented = re.findall(r"^([a-z_]+) : ", inspect.getdoc(Settings) or "", re.MULTILINE)
    assert documented == [field.name for field in dataclasses.fields(Settings)]


def test_the_examples_of_the_documentation_load() -> None:
    page = (Path(__file__).parents[1] / "docs" / "configuration.md").read_text()
    example = re.search(r"```yaml\n(.*?)```", page, re.DOTALL)
    assert example
    with dask.config.set({"gce": yaml.safe_load(example[1])["gce"]}):
        settings = Settings.load()
    assert settings.zone == ("europe-west1-b", "europe-west1-c")
    for another in re.findall(r"```yaml\n(.*?)```", page, re.DOTALL):
        with dask.config.set({"gce": yaml.safe_load(another)["gce"]}):
            Settings.load()
    assert settings.env_vars == {"OMP_NUM_THREADS": "1"}
    variables = dict(re.findall(r"^export (DASK_\w+)='?(.*?)'?$", page, re.MULTILINE))
    with dask.config.set({"gce": dask.config.collect_env(variables)["gce"]}):
        settings = Settings.load()
    assert settings.network_tags == ("dask", "ssh")
    assert (settings.n_workers, settings.labels) == (4, {"team": "data-science"})


# -- what is refused --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ("machinetype", "machine_type"),
        ("zoen", "zone"),
        ("n_worker", "n_workers"),
        ("projectid", "project"),
        ("docker_image", "container_image"),
        ("filesystem_size", "boot_disk_size"),
        ("public_ingress", "external_ip"),
        ("instance_labels", "labels"),
        ("instance_scopes", "scopes"),
    ],
)
def test_an_unknown_keyword_is_refused_with_the_right_one(typed: str, meant: str) -> None:
    message = refused(typed, **{typed: "x"})
    assert f"did you mean {meant!r}?" in message
    assert "keyword argument" in message
    assert meant in DEFAULTS


def test_an_unknown_keyword_unlike_any_other_shows_them_all() -> None:
    message = refused("qqq", qqq=1)
    assert all(key in message for key in DEFAULTS)


def test_an_unknown_key_of_the_configuration_is_refused() -> None:
    with dask.config.set({"gce.machin-type": "e2-standard-4"}):
        message = refused("machin_type")
    assert "dask config" in message
    assert "'machine_type'" in message


@pytest.mark.parametrize("section", [None, 5, "zone", ["zone"]])
def test_a_section_that_is_no_mapping_is_refused(section: object) -> None:
    with dask.config.set({"gce": section}):
        assert "must be a mapping" in refused("gce")


WRONG: list[tuple[str, Any, str]] = [
    ("project", "My Project", "not a project ID"),
    ("project", 123456789012, "project's number"),
    ("zone", "us-central1", "is a region"),
    ("zone", [], "at least one zone"),
    ("zone", ["us-east1-b", "us-east1-b"], "twice"),
    ("zone", 7, "text or a list"),
    ("zone", "us-east1-b\n", "one line"),
    ("allow_cross_zone", 1, "true or false"),
    ("name", "x" * 60, "at most 44"),
    ("name", 5, "must be text"),
    ("name", "", "must be text"),
    ("api_endpoint", "http://compute.example.com", "unencrypted"),
    ("api_endpoint", "http://127.0.0.1.example.com", "unencrypted"),
    ("api_endpoint", "127.0.0.1:8080", "http:// or https://"),
    ("api_endpoint", "http://127.0.0.1:8080/compute/v1", "'http://127.0.0.1:8080'"),
    ("api_endpoint", "https://compute.example.com?key=1", "no path"),
    ("api_endpoint", "http://127.0.0.1:99999", "not an address"),
    ("api_rate", 0, "above zero"),
    ("api_rate", True, "above zero"),
    ("api_rate", math.nan, "above zero"),
    ("api_rate", "20", "above zero"),
    ("api_connections", 0, "from 1 to 256"),
    ("api_connections", 257, "from 1 to 256"),
    ("n_workers", -1, "at least 0"),
    ("n_workers", True, "whole number"),
    ("n_workers", 1.5, "whole number"),
    ("n_workers", "4", "whole number"),
    ("max_workers", 0, "at least 1"),
    ("machine_type", "n2-custom-7-16384", "'n2-custom-8-16384'"),
    ("machine_type", ["e2-standard-4", "e2-standrd-4"], "'e2-standard-4'"),
    ("machine_type", ["e2-small", "e2-small"], "twice"),
    ("machine_type", [], "at least one machine type"),
    ("scheduler_machine_type", "e2-standrd-4", "'e2-standard-4'"),
    ("worker_machine_type", 4, "must be text"),
    ("processes", 0, "at least 1"),
    ("single_node", 1, "true or false"),
    ("workers_on_scheduler", -1, "at least 0"),
    ("nthreads", 0, "at least 1"),
    ("memory_limit", "12 apples", "'12GiB'"),
    ("memory_limit", -1, "'12GiB'"),
    ("memory_limit", math.nan, "'12GiB'"),
    ("memory_limit", "", "'12GiB'"),
    ("memory_limit", True, "'12GiB'"),
    ("source_image", "debian-12", "'debian-cloud/debian-12'"),
    ("source_image", "ours", "'family/ours'"),
    ("source_image", "https://example.com/image", "no boot image"),
    ("boot_disk_size", 5, "from 10 to 65536"),
    ("boot_disk_size", "30.5GB", "whole number"),
    ("boot_disk_size", "30 apples", "'50GB'"),
    ("boot_disk_size", True, "'50GB'"),
    ("boot_disk_size", math.nan, "from 10"),
    ("boot_disk_type", "PD SSD", "not a name"),
    ("worker_accelerator_type", "Tesla T4", "not a name"),
    ("worker_accelerator_count", -1, "of at least 0"),
    ("min_cpu_platform", 5, "must be text"),
    ("reservation", "zones/z/mine", "reservations/NAME"),
    ("confidential", "SEV", "true or false"),
    ("secure_boot", 1, "true or false"),
    ("docker_options", "--cap-add SYS_PTRACE", "list of words"),
    ("docker_options", {"--env": "A"}, "list of words"),
    ("docker_options", [5], "put it in quotes"),
    ("docker_options", ["--env=\0"], "no command line can hold"),
    ("docker_options", ["--env=\ud800"], "no command line can hold"),
    ("docker_options", ["--cap-add"], "--cap-add wants a value"),
    ("docker_options", ["--init", "image"], r"[1] is neither an option"),
    ("docker_options", ["--env", "A=b", "c"], r"[2] is neither an option"),
    ("docker_options", ["--"], r"[0] is neither an option"),
    ("docker_options", ["--entrypoint=sh"], "entry point"),
    ("docker_options", ["--privileged", "--net", "none"], "network"),
    ("docker_options", ["-v/a:/b", "--name", "mine"], "is called dask"),
    ("docker_options", ["-qd"], "--detach is not possible"),
    ("docker_options", ["--restart=always"], "one container"),
    ("shm_size", 0, "'4GiB'"),
    ("shm_size", "much", "'4GiB'"),
    ("shm_size", True, "'4GiB'"),
    ("shm_size", [], "'4GiB'"),
    ("local_ssds", -1, "at least 0"),
    ("version_check", "no", "true or false"),
    ("runtime", "docker", "'container' or 'vm'"),
    ("runtime", True, "'container' or 'vm'"),
    ("environment", "xgboost", "write a list: ['xgboost']"),
    ("environment", "environment.yml", "requirements file"),
    ("environment", {"A": "b"}, "env_vars"),
    ("environment", 5, "list of requirements"),
    ("environment", [5], "put it in quotes"),
    ("environment", [""], "names no package"),
    ("environment", ["dask=2026.8.0"], "is no requirement"),
    ("environment", ["a\nb"], "names no package"),
    ("environment", ["a @ https://me:pw@example.com/a.whl"], "password or token"),
    ("environment", "https://token@example.com/r.txt", "password or token"),
    ("container_image", "--privileged", "no container image"),
    ("container_image", "Ghcr.io/Dask/dask", "lower case"),
    ("container_image", "dask; rm -rf /", "no container image"),
    ("env_vars", ["A=b"], "must be a mapping"),
    ("env_vars", {"A=": "b"}, "cannot be the name"),
    ("env_vars", {"": "b"}, "cannot be the name"),
    ("env_vars", {5: "b"}, "cannot be the name"),
    ("env_vars", {"A": "b\0"}, "NUL"),
    ("env_vars", {"A": None}, "NoneType"),
    ("env_vars", {"A": "\ud800"}, "half a character"),
    ("worker_class", "Nanny", "'distributed.Nanny'"),
    ("worker_class", "my module.Worker", "'distributed.Nanny'"),
    ("worker_class", 5, "'distributed.Nanny'"),
    ("worker_options", {"plugins": [object()]}, "worker_options['plugins'][0] is a object"),
    ("worker_options", {"resources": {5: 1}}, "worker_options['resources']: the key 5"),
    ("worker_options", {"name": "x"}, "'name'"),
    ("worker_options", {"host": "x"}, "'host'"),
    ("worker_options", {"lifetime": math.inf}, "JSON cannot"),
    ("worker_options", "nthreads=1", "must be a mapping"),
    ("scheduler_options", {"dashboard-address": ":1"}, "dashboard_port"),
    ("scheduler_port", 0, "from 1 to 65535"),
    ("dashboard_port", 65536, "from 1 to 65535"),
    ("network", "My Net", "not a name"),
    ("network", "projects/p/regions/r/subnetworks/s", "networks/NAME"),
    ("external_ip", "yes", "true or false"),
    ("network_tags", ["Dask"], "not a name"),
    ("connect", "tunnel", "'auto', 'internal', 'external' or 'iap'"),
    ("connect", True, "'auto', 'internal', 'external' or 'iap'"),
    ("firewall", 0, "true or false"),
    ("allow_ingress_from", "203.0.113.7/24", "'203.0.113.0/24' for the range"),
    ("allow_ingress_from", "203.0.113.7/24", "'203.0.113.7' for the address"),
    ("allow_ingress_from", "everybody", "'203.0.113.0/24', or one address"),
    ("allow_ingress_from", "203.0.113.0/33", "'203.0.113.0/24', or one address"),
    ("allow_ingress_from", "fe80::1%eth0", "leave out the interface"),
    ("allow_ingress_from", [], "leave it out to let this computer in"),
    ("allow_ingress_from", ["198.51.100.7", "198.51.100.7/32"], "twice"),
    ("allow_ingress_from", ["198.51.100.7", "2001:db8::/32"], "both IPv4 and IPv6"),
    ("allow_ingress_from", 167772160, "text or a list"),
    ("client_address_services", "http://checkip.amazonaws.com", "https://"),
    ("client_address_services", "https://", "name a host"),
    ("client_address_services", "https://a.example.com:http", "not an address"),
    ("client_address_services", "https://a.example.com/#ip", "no fragment"),
    ("client_address_services", ["https://a.example.com"] * 2, "twice"),
    ("iap_endpoint", "ws://tunnel.example.com/v4", "unencrypted"),
    ("iap_endpoint", "https://tunnel.cloudproxy.app/v4", "ws:// or wss://"),
    ("iap_endpoint", "wss://tunnel.cloudproxy.app", "'wss://tunnel.cloudproxy.app/v4'"),
    ("iap_endpoint", "wss://tunnel.cloudproxy.app/v4?zone=a", "must end in /v4"),
    ("labels", {"dask-gce-cluster": "x"}, "set by the cluster itself"),
    ("labels", {"team": "Data Science"}, "'data-science'"),
    ("labels", {"Team": "x"}, "label key"),
    ("labels", {f"k{i}": "v" for i in range(61)}, "at most 56"),
    ("labels", {1: "x"}, "label key"),
    ("service_account", "me", "'default'"),
    ("scopes", ["https://example.com/scope"], "'cloud-platform'"),
    ("security", "true", "distributed.Security"),
    ("secrets", "vault", "'metadata' or 'secret-manager'"),
    ("spot", "often", "'fallback'"),
    ("spot", 1, "'fallback'"),
    ("preemption_notice", 120, "true or false"),
    ("sweep_on_start", "yes", "true or false"),
    ("live_prices", "no", "true or false"),
    ("jupyter", "lab", "true or false"),
    ("progress", "bar", "'auto', 'terminal', 'notebook', 'lines' or 'none'"),
    ("progress", True, "'lines' or 'none'"),
    ("spot_fraction", 1.1, "from 0 to 1"),
    ("spot_fraction", True, "from 0 to 1"),
    ("spot_fraction", math.nan, "from 0 to 1"),
    ("min_on_demand", -1, "of at least 0"),
    ("idle_timeout", 0, ".inf for no limit"),
    ("idle_timeout", "for ever", ".inf for no limit"),
    ("idle_timeout", -math.inf, ".inf for no limit"),
    ("no_client_timeout", False, ".inf for no limit"),
    ("death_timeout", math.nan, ".inf for no limit"),
    ("max_hourly_cost", 0, "US dollars above zero"),
    ("max_hourly_cost", math.inf, "US dollars above zero"),
    ("max_hourly_cost", "5", "US dollars above zero"),
    ("max_lifetime", "12 moons", "'10 minutes'"),
    ("max_lifetime", 1e12, "from 30 seconds to 120 days"),
    ("max_lifetime", "121 days", "from 30 seconds to 120 days"),
    ("max_lifetime", 29, "from 30 seconds to 120 days"),
    ("start_timeout", 0, "above zero"),
    ("start_timeout", "ten minutes", "'10 minutes'"),
    ("start_timeout", "", "'10 minutes'"),
    ("worker_start_timeout", math.inf, "above zero"),
    ("worker_start_failure_limit", 0, "at least 1"),
    ("instance_overrides", {"a": {"b": {1, 2}}}, "instance_overrides['a']['b'] is a set"),
]


@pytest.mark.parametrize(("key", "value", "says"), WRONG)
def test_an_impossible_value_is_refused_with_key_source_and_remedy(
    key: str, value: Any, says: str
) -> None:
    message = refused(key, **{key: value})
    assert says in message
    assert key in message
    assert message.endswith("It came from: keyword argument.")


def test_every_setting_with_a_rule_is_tried_with_a_wrong_value() -> None:
    assert {key for key, _, _ in WRONG} >= set(DEFAULTS) - {"api_token_file", "subnetwork"}


@pytest.mark.parametrize(
    ("keywords", "key"),
    [
        ({"nthreads": 2, "worker_options": {"nthreads": 4}}, "nthreads"),
        ({"memory_limit": "2GiB", "worker_options": {"memory_limit": "4GiB"}}, "memory_limit"),
        ({"n_workers": 5, "max_workers": 4}, "n_workers"),
        ({"processes": 2, "worker_options": {"port": 9000}}, "worker_options"),
        ({"processes": 2, "worker_options": {"worker_port": "9000"}}, "worker_options"),
        ({"dashboard_port": 8786}, "dashboard_port"),
        ({"scopes": ["storage-ro"]}, "scopes"),
        ({"spot_fraction": 0.5}, "spot_fraction"),
        ({"min_on_demand": 2}, "min_on_demand"),
        ({"spot": True, "reservation": "mine"}, "spot"),
        ({"spot": "fallback", "single_node": True}, "spot"),
        ({"api_token_file": "token"}, "api_token_file"),
        (
            {"api_token_file": "token", "api_endpoint": "https://compute.example.com"},
            "api_token_file",
        ),
        ({"connect": "external", "external_ip": False}, "connect"),
        ({"connect": "iap", "allow_ingress_from": "198.51.100.7"}, "allow_ingress_from"),
        ({"connect": "internal", "allow_ingress_from": "198.51.100.7"}, "allow_ingress_from"),
        ({"firewall": False, "allow_ingress_from": "198.51.100.7"}, "allow_ingress_from"),
        ({"iap_endpoint": "ws://127.0.0.1:8080/v4"}, "iap_endpoint"),
        ({"iap_endpoint": "wss://localhost/v4"}, "iap_endpoint"),
        ({"iap_endpoint": "wss://a.example.com/v4", "api_endpoint": LOCAL}, "iap_endpoint"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(
    keywords: dict[str, Any], key: str
) -> None:
    refused(key, **keywords)


@pytest.mark.parametrize(
    "keywords",
    [
        {"n_workers": 4, "max_workers": 4},
        {"processes": 1, "worker_options": {"port": 9000}},
        {"processes": 2, "worker_options": {"port": "9000:9100", "worker_port": 0}},
        # Whether that is wise is for the user to know.
        {"processes": 64, "nthreads": 64, "machine_type": "e2-small"},
        {"spot": True, "spot_fraction": 0.5, "min_on_demand": 2},
        {"connect": "iap", "external_ip": False, "firewall": False},
        {"connect": "external", "allow_ingress_from": ["198.51.100.7", "10.0.0.0/8"]},
        {"allow_ingress_from": "198.51.100.7", "external_ip": False},
        {"iap_endpoint": "ws://127.0.0.1:8080/v4", "api_endpoint": LOCAL},
    ],
)
def test_settings_that_go_together_are_accepted(keywords: dict[str, Any]) -> None:
    settings = Settings.load(**keywords)
    assert settings.sources[next(iter(keywords))] in ("keyword argument", "default")


@pytest.mark.parametrize("keywords", [{"connect": "iap"}, {"firewall": False}])
def test_a_keyword_may_pass_over_ranges_of_the_configuration(keywords: dict[str, Any]) -> None:
    ranges = ["198.51.100.0/24"]
    with dask.config.set({"gce.allow-ingress-from": ranges}):
        assert Settings.load(**keywords).allow_ingress_from == tuple(ranges)
        configured = {f"gce.{key}": value for key, value in keywords.items()}
        with dask.config.set(configured):
            refused("allow_ingress_from")
        refused("allow_ingress_from", allow_ingress_from=ranges, **keywords)


@pytest.mark.parametrize(
    ("keywords", "on_scheduler", "n_workers"),
    [
        ({}, 0, 0),
        ({"n_workers": 3, "processes": 2}, 0, 3),
        ({"single_node": True}, 1, 1),
        ({"single_node": True, "processes": 16}, 16, 16),
        ({"single_node": True, "processes": 16, "n_workers": 16}, 16, 16),
        ({"single_node": True, "workers_on_scheduler": 3}, 3, 3),
        # Then processes is for machines that come later.
        ({"single_node": True, "workers_on_scheduler": 3, "processes": 8}, 3, 3),
        ({"single_node": False, "workers_on_scheduler": 2}, 2, 2),
        ({"workers_on_scheduler": 2, "n_workers": 10}, 2, 10),
        ({"workers_on_scheduler": 0, "n_workers": 1}, 0, 1),
        # A cap that leaves no room for another machine is how to stay with one.
        ({"single_node": True, "processes": 4, "max_workers": 4}, 4, 4),
        ({"workers_on_scheduler": 2, "processes": 4, "max_workers": 2}, 2, 2),
        ({"workers_on_scheduler": 1, "worker_options": {"port": 9000}}, 1, 1),
        ({"single_node": True, "processes": 4, "worker_options": {"port": "9000:9100"}}, 4, 4),
    ],
)
def test_workers_on_the_schedulers_machine_are_counted(
    keywords: dict[str, Any], on_scheduler: int, n_workers: int
) -> None:
    settings = Settings.load(**keywords)
    assert (settings.workers_on_scheduler, settings.n_workers) == (on_scheduler, n_workers)
    # What was completed may be given back.
    again = Settings.load(**keywords | {"workers_on_scheduler": on_scheduler})
    assert (again.workers_on_scheduler, again.n_workers) == (on_scheduler, n_workers)


def test_what_follows_for_workers_on_the_scheduler_says_from_where() -> None:
    sources = Settings.load(single_node=True, processes=4).sources
    assert sources["workers_on_scheduler"] == "processes (keyword argument)"
    assert sources["n_workers"] == "workers_on_scheduler (processes (keyword argument))"
    with dask.config.set({"gce.single-node": True, "gce.workers-on-scheduler": 2}):
        settings = Settings.load()
    assert (settings.single_node, settings.n_workers) == (True, 2)
    assert settings.sources["n_workers"] == "workers_on_scheduler (dask config)"


@pytest.mark.parametrize(
    ("keywords", "key", "says"),
    [
        (
            {"single_node": True, "processes": 4, "n_workers": 6},
            "n_workers",
            ["more than the 4", "workers_on_scheduler=6", "single_node=False"],
        ),
        (
            {"single_node": True, "processes": 4, "n_workers": 2},
            "n_workers",
            ["less than the 4", "workers_on_scheduler=2"],
        ),
        ({"workers_on_scheduler": 2, "n_workers": 0}, "n_workers", ["leave n_workers out."]),
        ({"single_node": True, "workers_on_scheduler": 0}, "workers_on_scheduler", ["no worker"]),
        ({"single_node": True, "processes": 4, "max_workers": 3}, "max_workers", ["3", "4"]),
        ({"workers_on_scheduler": 3, "max_workers": 2}, "max_workers", ["2", "3"]),
        (
            {"workers_on_scheduler": 2, "worker_options": {"worker_port": 9000}},
            "worker_options",
            ["2 workers (see workers_on_scheduler)"],
        ),
        (
            {"single_node": True, "worker_options": {"port": 8786}},
            "worker_options",
            ["the scheduler_port of the same machine"],
        ),
        (
            {"single_node": True, "worker_options": {"worker_port": "8787"}},
            "worker_options",
            ["the dashboard_port of the same machine"],
        ),
    ],
)
def test_workers_on_the_scheduler_that_cannot_be_are_refused(
    keywords: dict[str, Any], key: str, says: list[str]
) -> None:
    message = refused(key, **keywords)
    assert all(each in message for each in says), message


def test_deeply_nested_data_ends_in_an_error_not_in_a_recursion() -> None:
    data: dict[str, Any] = {}
    data["self"] = data
    assert "deep" in refused("instance_overrides", instance_overrides=data)


# -- what values become -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("key", "value", "becomes"),
    [
        ("zone", "us-east1-b", ("us-east1-b",)),
        ("zone", ["us-east1-b", "us-east1-c"], ("us-east1-b", "us-east1-c")),
        ("machine_type", ["n2-standard-4", "e2-small"], ("n2-standard-4", "e2-small")),
        ("worker_machine_type", "n2-custom-8-16384", ("n2-custom-8-16384",)),
        ("allow_cross_zone", True, True),
        ("max_workers", 100, 100),
        ("processes", 4, 4),
        ("worker_start_failure_limit", 1, 1),
        ("api_rate", 5, 5.0),
        ("api_rate", math.inf, math.inf),
        ("api_connections", 256, 256),
        ("spot", False, False),
        ("spot", "fallback", "fallback"),
        ("idle_timeout", "1 hour", 3600.0),
        ("idle_timeout", math.inf, math.inf),
        ("no_client_timeout", "inf", math.inf),
        ("max_lifetime", ".inf", math.inf),
        ("max_lifetime", "2 hours", 7200.0),
        ("death_timeout", 5, 5.0),
        ("max_hourly_cost", 3, 3.0),
        ("sweep_on_start", True, True),
        ("boot_disk_size", 50, 50),
        ("boot_disk_size", "50", 50),
        ("boot_disk_size", "50GB", 50),
        ("boot_disk_size", "50 GiB", 50),
        ("boot_disk_size", "1.5TB", 1536),
        ("start_timeout", "2 minutes", 120.0),
        ("start_timeout", 90, 90.0),
        ("start_timeout", timedelta(minutes=2), 120.0),
        ("memory_limit", "12GiB", "12GiB"),
        ("memory_limit", 0.8, 0.8),
        ("memory_limit", "auto", "auto"),
        ("memory_limit", 0, 0),
        ("source_image", "projects/p/global/images/mine", "projects/p/global/images/mine"),
        (
            "source_image",
            "https://www.googleapis.com/compute/v1/projects/p/global/images/family/f",
            "projects/p/global/images/family/f",
        ),
        ("source_image", "family/f", "global/images/family/f"),
        (
            "source_image",
            "example.com:proj/f",
            "projects/example.com:proj/global/images/family/f",
        ),
        ("worker_class", distributed.Nanny, "distributed.nanny.Nanny"),
        ("worker_class", "my_module.Worker", "my_module.Worker"),
        (
            "env_vars",
            {"A": 1, "B": True, "C": 1.5, "D": ""},
            {"A": "1", "B": "true", "C": "1.5", "D": ""},
        ),
        ("labels", {"spot": False, "team": 42}, {"spot": "false", "team": "42"}),
        ("worker_options", {"a": (1, None)}, {"a": [1, None]}),
        ("api_endpoint", "http://127.0.0.1:8080/", "http://127.0.0.1:8080"),
        ("api_endpoint", "http://[::1]:8080", "http://[::1]:8080"),
        ("api_endpoint", "https://compute.example.com", "https://compute.example.com"),
        ("container_image", "localhost:5000/a/b__c:T1", "localhost:5000/a/b__c:T1"),
        ("container_image", "dask@sha256:" + "0" * 64, "dask@sha256:" + "0" * 64),
        ("network", "projects/host/global/networks/n", "projects/host/global/networks/n"),
        ("allow_ingress_from", "203.0.113.7", ("203.0.113.7/32",)),
        ("allow_ingress_from", ["10.0.0.0/255.0.0.0", " 0.0.0.0/0"], ("10.0.0.0/8", "0.0.0.0/0")),
        ("allow_ingress_from", "2001:DB8:0::/48", ("2001:db8::/48",)),
        ("client_address_services", [], ()),
        (
            "client_address_services",
            "https://a.example.com/ip?v=4",
            ("https://a.example.com/ip?v=4",),
        ),
        ("iap_endpoint", "wss://a.example.com:8443/v4/", "wss://a.example.com:8443/v4"),
    ],
)
def test_values_in_every_accepted_spelling(key: str, value: Any, becomes: Any) -> None:
    assert getattr(Settings.load(**{key: value}), key) == becomes


def test_a_class_workers_cannot_import_is_refused() -> None:
    class Mine(distributed.Nanny):
        pass

    assert "workers cannot import it" in refused("worker_class", worker_class=Mine)


def test_scopes_are_written_out_once_there_is_an_account() -> None:
    settings = Settings.load(service_account="default", scopes=["storage-ro", "cloud-platform"])
    assert settings.scopes == (
        "https://www.googleapis.com/auth/devstorage.read_only",
        "https://www.googleapis.com/auth/cloud-platform",
    )


def test_both_machine_types_follow_the_common_one_unless_given() -> None:
    settings = Settings.load(machine_type="n2-standard-8", worker_machine_type=["e2-highmem-4"])
    assert settings.scheduler_machine_type == ("n2-standard-8",)
    assert settings.worker_machine_type == ("e2-highmem-4",)
    assert settings.sources["scheduler_machine_type"] == "machine_type (keyword argument)"


def test_a_subnetwork_tells_its_network() -> None:
    assert Settings.load(subnetwork="mine").network is None
    assert Settings.load(subnetwork="mine", network="ours").network == "ours"
    assert Settings.load().network == "default"


def test_without_containers_the_boot_image_has_a_python() -> None:
    settings = Settings.load(runtime="vm")
    assert settings.container_image is None
    assert settings.source_image == "projects/debian-cloud/global/images/family/debian-12"
    mine = Settings.load(runtime="vm", source_image="family/mine")
    assert mine.source_image == "global/images/family/mine"
    assert Settings.restore(settings.dump()).container_image is None


@pytest.mark.parametrize(
    ("key", "value", "part"),
    [
        ("container_image", "mine:1", "there is no container"),
        ("source_image", "cos-cloud/cos-117-lts", "debian-cloud/debian-12"),
    ],
)
def test_what_is_for_containers_only_contradicts_the_machine_itself(
    key: str, value: str, part: str
) -> None:
    message = refused(key, runtime="vm", **{key: value})
    assert part in message
    assert "keyword argument" in message


def test_the_container_image_follows_the_client() -> None:
    settings = Settings.load()
    assert settings.container_image == images.official_image(dask.__version__, sys.version_info[:2])
    assert images.official_image("2025.9.1", (3, 10)) == "ghcr.io/dask/dask:2025.9.1-py3.10"
    assert Settings.load(container_image="mine:1").container_image == "mine:1"


def test_security_objects_are_kept_as_they_are() -> None:
    security = distributed.Security(require_encryption=False)
    assert Settings.load(security=security).security is security


@given(
    st.dictionaries(
        st.text(st.characters(codec="utf-8", exclude_characters="=\0"), min_size=1),
        st.text(st.characters(codec="utf-8", exclude_characters="\0")),
    )
)
def test_environment_values_arrive_as_they_were_typed(variables: Mapping[str, str]) -> None:
    assert Settings.load(env_vars=variables).env_vars == variables


json_data = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda children: st.lists(children) | st.dictionaries(st.text(), children),
    max_leaves=8,
)


@given(st.dictionaries(st.text(), json_data))
def test_json_data_arrives_as_it_was_given(data: dict[str, Any]) -> None:
    assert Settings.load(instance_overrides=data).instance_overrides == data


@given(st.sampled_from(sorted(DEFAULTS)), json_data)
def test_any_data_is_accepted_or_refused_by_name_never_anything_else(key: str, value: Any) -> None:
    try:
        Settings.load(**{key: value})
    except SettingsError as error:
        assert error.key == key or {error.key, key} == {"dashboard_port", "scheduler_port"}


# -- local or not -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("endpoint", "local"),
    [(None, False), (LOCAL, True), ("http://localhost:1", True), ("https://a.example.com", False)],
)
def test_is_local_means_loopback(endpoint: str | None, local: bool) -> None:
    assert Settings.load(api_endpoint=endpoint).is_local is local


def test_a_local_compute_engine_has_a_project_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    assert Settings.load(api_endpoint=LOCAL).project == LOCAL_PROJECT
    assert Settings.load(api_endpoint=LOCAL, project="mine").project == "mine"
    monkeypatch.setenv("GOOGLE_CLOUD_PROJECT", "from-variable")
    assert Settings.load(api_endpoint=LOCAL).project == "from-variable"


def test_a_wrong_project_in_the_variable_is_refused_by_its_name(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("GOOGLE_CLOUD_PROJECT", "My Project")
    assert "GOOGLE_CLOUD_PROJECT" in refused("project")


# -- secrets ----------------------------------------------------------------------------------


def test_repr_shows_no_secret() -> None:
    settings = Settings.load(
        env_vars={"TOKEN": "hunter2"},
        worker_options={"preload_argv": ["hunter2"]},
        scheduler_options={"key": "hunter2"},
        instance_overrides={"metadata": "hunter2"},
        security=distributed.Security(tls_client_key="hunter2", require_encryption=True),
    )
    for shown in (repr(settings), str(settings)):
        assert "hunter2" not in shown
        assert "TOKEN" in shown
        assert "zone=('us-central1-a',)" in shown


def test_errors_show_no_value_of_an_environment_variable() -> None:
    assert "hunter2" not in refused("env_vars", env_vars={"TOKEN": "hunter2\0"})
    assert "hunter2" not in refused("env_vars", env_vars={"TOKEN": ["hunter2"]})
    assert "hunter2" not in refused("env_vars", env_vars="hunter2")
    assert "hunter2" not in refused("security", security="hunter2")
    assert "hunter2" not in refused("api_endpoint", api_endpoint="https://a:hunter2@b.example")


def test_a_cap_has_room_for_one_machine():
    with pytest.raises(SettingsError, match=r"max_workers .*3 is less than the 4 processes"):
        Settings.load(max_workers=3, processes=4)
