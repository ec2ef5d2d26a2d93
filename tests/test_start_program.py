"""The program that starts Dask on an instance hands over exactly what the metadata says."""

from __future__ import annotations

import asyncio
import io
import json
import runpy
import socket
import sys
import time
from types import SimpleNamespace

import pytest
from distributed.comm import listen
from guests import WITNESS, Guest
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from dask_gce.boot.environment import Environment
from dask_gce.startup import Payload, Tls, scheduler_spec, worker_spec
from dask_gce.tls import ClusterCertificates

#: A `dask` that stays until it has been published that it runs.
STAYING = WITNESS.replace(
    "sys.exit(",
    """
import time, urllib.request
url = "http://" + os.environ["GCE_METADATA_HOST"] + "/computeMetadata/v1/instance/"
url += "guest-attributes/dask-gce/phase"
phase = urllib.request.Request(url, headers=dict([("Metadata-Flavor", "Google")]))
while urllib.request.urlopen(phase).read() != b"running":
    time.sleep(0.02)
sys.exit(""",
)


@pytest.fixture
def guest(tmp_path):
    return Guest(tmp_path)


def payload(**changes):
    fields = {
        "role": "scheduler",
        "project": "p",
        "container_image": "ghcr.io/dask/dask:latest",
        "spec": scheduler_spec(protocol="tls", port=8786, dashboard_port=8787, options={}),
    }
    return Payload(**{**fields, **changes})


#: What an environment can hold, with what shells, URLs and JSON find difficult made likely.
VALUES = st.text(
    st.characters(exclude_categories=["Cs"], exclude_characters="\0")
    | st.sampled_from(list(" '\"$`\\\n\t\r;&|<>*?!#~%{}()=")),
    max_size=200,
) | st.sampled_from(["$(reboot)", "`reboot`", "${HOME}", "x" * 10_000, "ünï ☃ 💥" * 900])
NAMES = st.from_regex(r"[A-Z_][A-Z0-9_]{3,30}", fullmatch=True).map(lambda name: "V_" + name)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | VALUES,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(VALUES, inner, max_size=3),
    max_leaves=6,
)


# Each example is a process.
@pytest.mark.timeout(600)
@given(
    environment=st.dictionaries(NAMES, VALUES, max_size=8),
    options=st.dictionaries(NAMES, JSON, max_size=8),
)
@hypothesis_settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_environment_and_options_arrive_byte_for_byte(guest, environment, options):
    spec = scheduler_spec(protocol="tls", port=8786, dashboard_port=8787, options=options)
    status, seen, output = asyncio.run(guest.run(payload(env_vars=environment, spec=spec)))
    assert status == 0, output
    assert {name: seen["environment"][name] for name in environment} == environment
    assert {name: seen["spec"]["opts"][name] for name in options} == options


async def test_addresses_are_the_machines_own(guest):
    _, seen, _ = await guest.run(payload())
    assert seen["spec"]["opts"]["host"] == "127.0.0.1"
    assert seen["spec"]["opts"]["dashboard_address"] == "127.0.0.1:8787"
    assert seen["spec"]["opts"]["security"] is None
    assert "name" not in seen["spec"]["opts"]


async def test_certificates_become_private_files(guest):
    _, seen, output = await guest.run(payload(tls=Tls("the ca", "the certificate", "the key")))
    assert seen["files"] == {
        "tls_ca_file": ["the ca", 0o600],
        "tls_scheduler_cert": ["the certificate", 0o600],
        "tls_scheduler_key": ["the key", 0o600],
    }
    assert seen["spec"]["opts"]["security"]["require_encryption"] is True
    assert seen["mode"] == 0o600
    assert "the key" not in output


async def test_certificates_that_do_not_arrive_are_told(guest):
    tls = Tls("the ca", "the certificate", "the key")
    status, seen, output = await guest.run(payload(tls=tls), handed="")
    assert (status, seen) == (113, None)
    assert "dask-gce phase: failed: the certificates did not arrive" in output


async def test_what_dask_starts_cannot_read_where_they_came_from(tmp_path):
    look = "assert os.fstat(0).st_rdev == os.stat(os.devnull).st_rdev\nsys.exit("
    guest = Guest(tmp_path, dask=WITNESS.replace("sys.exit(", look))
    status, seen, output = await guest.run(payload(tls=Tls("ca", "certificate", "the key")))
    assert status == 0, output
    shown = json.dumps([seen["environment"], seen["arguments"], seen["spec"]])
    assert "the key" not in shown


async def test_a_worker_is_called_like_its_instance_and_waits_for_the_scheduler(tmp_path):
    guest = Guest(tmp_path, dask=STAYING)
    with socket.create_server(("127.0.0.1", 0)) as scheduler:
        port = scheduler.getsockname()[1]
        _, seen, output = await guest.run(
            payload(
                role="worker",
                spec=worker_spec(
                    worker_class="distributed.Nanny",
                    scheduler_address=f"tls://127.0.0.1:{port}",
                    nthreads=1,
                    memory_limit=None,
                    options={},
                ),
                scheduler={"host": "127.0.0.1", "port": port, "timeout": 5},
            )
        )
    assert seen["spec"]["opts"]["name"] == "dask-1-worker-2"
    assert seen["arguments"][:2] == ["spec", f"tls://127.0.0.1:{port}"]
    assert "dask-gce phase: running" in output


@pytest.mark.parametrize("others", [False, True])
async def test_a_scheduler_that_is_waited_for_has_nothing_to_complain_of(guest, caplog, others):
    certificates = ClusterCertificates.create("grid")
    leaf = certificates.worker
    if others:
        # What these two have against each other is Dask's to tell, which says it at once.
        certificates = ClusterCertificates.create("another")

    async def hear(comm):
        comm.abort()

    security = certificates.security("scheduler")
    async with listen("tls://127.0.0.1:0", hear, **security.get_listen_args("scheduler")) as there:
        port = int(there.contact_address.rpartition(":")[2])
        status, seen, output = await guest.run(
            payload(
                role="worker",
                tls=Tls(certificates.ca_pem, leaf.certificate, leaf.key),
                scheduler={"host": "127.0.0.1", "port": port, "timeout": 120},
            )
        )
    assert status == 0, output
    assert seen is not None
    complaints = [each.getMessage() for each in caplog.records if each.levelname == "WARNING"]
    assert bool(complaints) == others, complaints


async def test_several_workers_of_one_machine_are_numbered(guest):
    options = {"resources": {"GPU": 1}, "preload": ["a 'b' $HOME"]}
    with socket.create_server(("127.0.0.1", 0)) as scheduler:
        port = scheduler.getsockname()[1]
        status, seen, output = await guest.run(
            payload(
                role="worker",
                spec=worker_spec(
                    worker_class="distributed.Nanny",
                    scheduler_address=f"tls://127.0.0.1:{port}",
                    nthreads=2,
                    memory_limit=10**9,
                    options=options,
                ),
                scheduler={"host": "127.0.0.1", "port": port, "timeout": 5},
                processes=3,
            )
        )
    assert status == 0, output
    assert seen["arguments"][:2] == ["spec", f"tls://127.0.0.1:{port}"]
    assert list(seen["spec"]) == [f"dask-1-worker-2-{number}" for number in range(3)]
    for name, each in seen["spec"].items():
        assert each["cls"] == "distributed.Nanny"
        assert each["opts"] == {
            **options,
            "name": name,
            "host": "127.0.0.1",
            "security": None,
            "nthreads": 2,
            "memory_limit": 10**9,
            "dashboard_address": "127.0.0.1:0",
        }


async def test_a_worker_without_a_scheduler_gives_up(guest):
    # Nobody listens there, and nobody is given the port.
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        port = silent.getsockname()[1]
        status, seen, output = await guest.run(
            payload(role="worker", scheduler={"host": "127.0.0.1", "port": port, "timeout": 0.5})
        )
    assert status == 113  # startup.sh knows that the reason is told
    assert seen is None
    assert f"dask-gce phase: failed: no scheduler at 127.0.0.1:{port}" in output


def test_nothing_is_published_before_what_the_startup_script_has_said(guest):
    said = runpy.run_path(str(guest.folder / "guest" / "start.py"))["phase"]
    reporting = guest.folder / "guest" / "reporting"
    reporting.touch()
    happened = []

    def published(request, timeout):
        happened.append(request.data)
        return io.BytesIO()

    def wait(seconds):
        happened.append("waited")
        reporting.unlink()

    said.__globals__["NO_PROXY"] = SimpleNamespace(open=published)
    said.__globals__["time"] = SimpleNamespace(sleep=wait, monotonic=time.monotonic)
    said("starting")
    assert happened == ["waited", b"starting"]


async def test_the_exit_status_is_dasks(tmp_path):
    status, _, _ = await Guest(tmp_path, status=9).run(payload())
    assert status == 9


async def test_the_images_entry_point_runs_in_between(guest):
    marker = guest.folder / "entered"
    wrapper = guest.folder / "bin" / "enter"
    wrapper.write_text(f'#!/bin/sh\ntouch {marker}\nexec "$@"\n')
    wrapper.chmod(0o755)
    (guest.folder / "guest" / "entrypoint.json").write_text(json.dumps(["enter"]))
    status, seen, output = await guest.run(payload())
    assert status == 0, output
    assert marker.exists()
    assert seen is not None


@pytest.mark.parametrize("python", ["2.7", f"{sys.version_info[0]}.{sys.version_info[1]}"])
async def test_another_python_is_named_where_packages_cannot_be_added(guest, python):
    # No machine asks an index for it.
    text = "--no-index\nthere-is-no-such-package==1.0\n"
    environment = Environment(python, "requirements.txt", text, summary="sync: 1 package")
    status, seen, output = await guest.run(payload(environment=environment))
    assert (status, seen) == (113, None)
    assert "(sync: 1 package) cannot be added to the container image" in output
    assert ("(the client has 2.7)" in output) is (python == "2.7")
