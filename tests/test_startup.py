"""What an instance is told: constant programs, and everything else as data."""

from __future__ import annotations

import json
import shutil
import subprocess

import pytest

from dask_gce.errors import SettingsError
from dask_gce.startup import (
    SECRET_ITEMS,
    TOTAL_LIMIT,
    VALUE_LIMIT,
    LocalWorkers,
    Payload,
    Tls,
    build_metadata,
    guest_file,
    scheduler_spec,
    startup_script,
    worker_spec,
)

NASTY = "a 'b' \"c\" $HOME $(reboot) `reboot` \\ \n\t\r ünï ☃ 💥 ;&|<>*?!#~ %s {}"


def payload(**changes):
    fields = {
        "role": "worker",
        "project": "p",
        "container_image": "ghcr.io/dask/dask:latest",
        "spec": {"cls": "distributed.Nanny", "args": ["tls://s:8786"], "opts": {}},
    }
    return Payload(**{**fields, **changes})


def test_nothing_a_user_typed_is_part_of_a_program():
    plain = build_metadata(payload())
    nasty = build_metadata(
        payload(
            container_image=NASTY,
            env_vars={"A": NASTY},
            spec={"cls": NASTY, "opts": {NASTY: NASTY}},
        )
    )
    for program in ("startup-script", "dask-gce-program-start"):
        assert nasty[program] == plain[program]
    assert nasty["dask-gce-image"] == NASTY
    assert json.loads(nasty["dask-gce-env"]) == {"A": NASTY}
    assert json.loads(nasty["dask-gce-spec"]) == {"cls": NASTY, "opts": {NASTY: NASTY}}


def test_guest_attributes_are_enabled():
    assert build_metadata(payload())["enable-guest-attributes"] == "TRUE"


def test_each_machine_gets_only_its_own_key():
    items = build_metadata(payload(tls=Tls("ca", "certificate", "key")))
    assert json.loads(items["dask-gce-tls"]) == {"ca": "ca", "cert": "certificate", "key": "key"}
    assert items["dask-gce-secrets"] == "tls"
    assert SECRET_ITEMS & items.keys() == {"dask-gce-tls"}
    plain = build_metadata(payload())
    assert not any("tls" in key or "secrets" in key for key in plain)


def test_secrets_elsewhere_are_named_and_not_told():
    tls, local = Tls("ca", "certificate", "hidden"), Tls("ca", "certificate", "hidden")
    items = build_metadata(
        payload(
            role="scheduler",
            tls=tls,
            local=LocalWorkers({"cls": "distributed.Nanny", "opts": {}}, 1, local),
            secrets={"scheduler": "projects/p/secrets/s", "worker": "projects/p/secrets/w"},
            secrets_endpoint="http://127.0.0.1:1",
        )
    )
    assert items["dask-gce-secrets"] == "tls=projects/p/secrets/s local-tls=projects/p/secrets/w"
    assert items["dask-gce-secrets-api"] == "http://127.0.0.1:1"
    assert not SECRET_ITEMS & items.keys()
    assert "hidden" not in json.dumps(items)


def test_secrets_are_in_no_representation():
    shown = repr(payload(tls=Tls("ca", "certificate", "private"), env_vars={"TOKEN": "hidden"}))
    assert "private" not in shown
    assert "hidden" not in shown


def test_the_limit_of_a_value_names_the_setting():
    with pytest.raises(SettingsError, match="env_vars is too large") as caught:
        build_metadata(payload(env_vars={"BIG": "x" * VALUE_LIMIT}))
    assert caught.value.key == "env_vars"


def test_the_limit_of_an_instance_names_the_largest():
    spec = {"cls": "c", "opts": {"big": "x" * (VALUE_LIMIT - 100)}}
    with pytest.raises(SettingsError, match="worker_options is too large") as caught:
        build_metadata(
            payload(spec=spec, env_vars={"BIG": "x" * (TOTAL_LIMIT - VALUE_LIMIT - 1000)})
        )
    assert caught.value.key == "worker_options"


def test_a_users_options_win_for_workers_but_not_over_the_schedulers_address():
    worker = worker_spec(
        worker_class="distributed.Nanny",
        scheduler_address="tls://s:8786",
        nthreads=4,
        memory_limit=1,
        options={"nthreads": 2, "resources": {"GPU": 1}},
    )
    assert worker["opts"] == {
        "nthreads": 2,
        "memory_limit": 1,
        "dashboard_address": ":0",
        "resources": {"GPU": 1},
    }
    scheduler = scheduler_spec(
        protocol="tls", port=1, dashboard_port=2, options={"port": 9, "idle_timeout": "1h"}
    )
    assert scheduler["opts"] == {
        "protocol": "tls",
        "port": 1,
        "dashboard_address": ":2",
        "idle_timeout": "1h",
    }


def test_the_script_is_valid_bash():
    bash = shutil.which("bash")
    if bash is None:
        pytest.skip("no bash on this machine")
    subprocess.run([bash, "-n"], input=startup_script("vm", seals=True), text=True, check=True)


@pytest.mark.parametrize("name", ["start.py", "supervision.py"])
def test_the_start_program_needs_only_the_standard_library_of_python_3_10(name):
    program = guest_file(name)
    compile(program, name, "exec")
    assert "dask_gce" not in program
