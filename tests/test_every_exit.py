"""However a process ends that has a cluster, no machine is left.

Each case is a process of its own; the local Compute Engine outlives it and tells what is left.
"""

from __future__ import annotations

import signal
import subprocess
import sys
import time

import pytest

PREAMBLE = """
import asyncio, sys, threading, time
from dask_gce import GCECluster
settings = dict(api_endpoint={endpoint!r}, machine_type="e2-small", quiet=True)
def ready():
    print("ready", flush=True)
"""


def run(emulator, program, *, interrupt_at=None):
    """Run a program; interrupt it once, when the emulator has seen a call."""
    process = subprocess.Popen(
        [sys.executable, "-c", PREAMBLE.format(endpoint=emulator.endpoint) + program],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    with process:
        try:
            if interrupt_at is not None:
                deadline = time.monotonic() + 30
                while not emulator.requests[interrupt_at]:
                    assert time.monotonic() < deadline
                    time.sleep(0.01)
                process.send_signal(signal.SIGINT)
            output, errors = process.communicate(timeout=60)
        finally:
            process.kill()
    return process.returncode, output, errors


def assert_all_gone(emulator):
    deadline = time.monotonic() + 10
    while left := emulator.leftovers():
        assert time.monotonic() < deadline, left
        time.sleep(0.05)
    assert emulator.requests["compute.instances.insert"] > 0


@pytest.mark.parametrize(
    "program",
    [
        pytest.param("cluster = GCECluster(n_workers=1, **settings)", id="no close"),
        pytest.param(
            "cluster = GCECluster(n_workers=1, **settings)\nraise ValueError('mine')",
            id="exception",
        ),
        pytest.param(
            "async def main():\n"
            "    global cluster\n"
            "    cluster = await GCECluster(n_workers=1, asynchronous=True, **settings)\n"
            "asyncio.run(main())",
            id="asynchronous",
        ),
        pytest.param(
            "cluster = GCECluster(n_workers=1, **settings)\n"
            "from distributed import Client\nclient = Client(cluster)\n"
            "client.submit(sum, [1]).result()",
            id="with client",
        ),
    ],
)
def test_exit_without_close(process_emulator, program):
    began = time.monotonic()
    _, _, errors = run(process_emulator, program)
    assert time.monotonic() - began < 30
    assert "cannot schedule new futures" not in errors
    assert_all_gone(process_emulator)


def test_a_forked_child_deletes_nothing(process_emulator):
    program = """
import os
cluster = GCECluster(**settings)
child = os.fork()
if child == 0:
    sys.exit()
os.waitpid(child, 0)
print([each["status"] for each in json.load(urllib.request.urlopen(
    settings["api_endpoint"] + "/compute/v1/projects/local-project/zones/us-central1-a/instances"
))["items"]])
cluster.close()
"""
    _, output, errors = run(process_emulator, "import json, urllib.request" + program)
    assert output == "['RUNNING']\n", errors
    assert_all_gone(process_emulator)


def test_interrupt_in_the_constructor(process_emulator):
    status, _, errors = run(
        process_emulator,
        "GCECluster(n_workers=1, scheduler_options={'preload': 'import time; time.sleep(60)'},"
        " **settings)",
        interrupt_at="compute.instances.insert",
    )
    assert status != 0
    assert "KeyboardInterrupt" in errors
    assert_all_gone(process_emulator)
