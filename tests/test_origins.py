"""What people did by hand before there was this package, done with it.

A grid search above which a decorator stands, a cluster that several functions share, one large
machine with a container of workers, and a script that moves from a computer's own cores to a
cluster that exists already. The page docs/recipes.md shows the same to users.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from textwrap import indent
from typing import Any

import dask
import joblib
import numpy as np
import pytest
from clusters import BULK, DELETE, INSERT, wait_until, worker_machines
from command_line import environment, run_process
from distributed import Client, get_worker
from sklearn.datasets import load_digits
from sklearn.model_selection import GridSearchCV
from sklearn.svm import SVC

from dask_gce import GCECluster, requires_cluster
from dask_gce.errors import SettingsError

#: The machine that once was asked to run 32 workers of one thread, and one on which they fit.
TOO_SMALL, LARGE_ENOUGH = "e2-custom-16-49152", "e2-custom-32-98304"

#: 32 workers of one thread and 3 GB beside their scheduler.
ONE_MACHINE = {"single_node": True, "processes": 32, "nthreads": 1, "memory_limit": "3GB"}

#: Workers share a process where their number matters, and not their nannies.
CHEAP = {"worker_class": "distributed.Worker", "quiet": True}

PARAMETERS = {"C": [0.1, 1, 10], "gamma": [1e-4, 1e-3]}
IMPOSSIBLE = {"C": [-1]}
FOLDS = 3
FITS = FOLDS * 6


@dataclass(frozen=True)
class Found:
    """What a search has found."""

    parameters: dict[str, Any]
    score: float


def digits():
    """Return some of scikit-learn's handwritten digits."""
    images, labels = load_digits(return_X_y=True)
    return images[:300], labels[:300]


def search_with(client, data, parameters=PARAMETERS):
    """Search on a cluster; return what was found, and how many fits were made by which worker."""

    def judge(model, images, labels):
        # There is no worker elsewhere: a fit that is not made on the cluster is an error.
        number = int(str(get_worker().name).rpartition("-")[2], 16)
        return {"accuracy": model.score(images, labels), "worker": number}

    search = GridSearchCV(
        SVC(),
        parameters,
        cv=FOLDS,
        scoring=judge,
        refit="accuracy",
        error_score="raise",
        # joblib counts the workers only at the start.
        pre_dispatch="all",
    )
    with joblib.parallel_config("dask", client=client):
        search.fit(*data)
    fits = Counter(
        int(number)
        for fold in range(FOLDS)
        for number in search.cv_results_[f"split{fold}_test_worker"]
    )
    return Found(search.best_params_, search.best_score_), fits


@pytest.fixture(scope="module")
def expected():
    """Return what the search finds without Dask."""
    search = GridSearchCV(SVC(), PARAMETERS, cv=FOLDS).fit(*digits())
    return Found(search.best_params_, search.best_score_)


def run_program(endpoint, folder, text, **variables):
    """Run a program in a process of its own; return what it prints last."""
    path = folder / "program.py"
    path.write_text(text, encoding="utf-8")
    process = subprocess.run(
        [sys.executable, str(path)],
        check=False,
        capture_output=True,
        text=True,
        timeout=200,
        cwd=folder,
        env=environment(endpoint, DASK_TEMPORARY_DIRECTORY=str(folder), **variables),
    )
    assert process.returncode == 0, process.stderr
    assert "Traceback" not in process.stderr
    return process.stdout.splitlines()[-1]


def workers_of(client):
    """Return what the scheduler knows of its workers."""
    return list(client.scheduler_info(n_workers=-1)["workers"].values())


def assert_on_their_way_out(emulator):
    """Check that no machine is left that anybody would pay for."""
    assert {each["status"] for each in emulator.instances()} <= {"STOPPING"}
    assert emulator.requests[DELETE] >= len(emulator.instances())
    wait_until(lambda: not emulator.leftovers())


# -- a decorated grid search ----------------------------------------------------------------------


def test_a_machine_that_is_too_small_is_refused_and_a_larger_one_named(light):
    @requires_cluster(
        machine_type=TOO_SMALL, api_endpoint=light.endpoint, zone="us-central1-a", **ONE_MACHINE
    )
    def search(parameters, client=None):
        pytest.fail("it has no cluster")

    with pytest.raises(SettingsError) as caught:
        search(PARAMETERS)
    assert caught.value.key == "processes"
    assert re.findall("machine_type='(.*?)'", str(caught.value)) == [LARGE_ENOUGH]
    assert not light.requests[INSERT] + light.requests[BULK]
    assert not light.instances()


def test_a_decorated_search_on_one_machine_of_32_workers(light, expected):
    @requires_cluster(
        machine_type=LARGE_ENOUGH, api_endpoint=light.endpoint, **ONE_MACHINE, **CHEAP
    )
    def search(parameters, client=None):
        client.wait_for_workers(32)
        (machine,) = light.instances()
        assert machine["machineType"].endswith(f"/zones/us-central1-a/machineTypes/{LARGE_ENOUGH}")
        workers = workers_of(client)
        assert {each["name"] for each in workers} == {f"{machine['name']}-{n}" for n in range(32)}
        assert {(each["nthreads"], each["memory_limit"]) for each in workers} == {(1, 3 * 10**9)}
        return search_with(client, digits(), parameters)

    found, fits = search(PARAMETERS)
    assert found == expected
    assert fits.total() == FITS
    assert len(fits) > 1
    assert (light.requests[INSERT], light.requests[BULK], light.requests[DELETE]) == (1, 0, 1)
    assert_on_their_way_out(light)


def test_a_decorated_search_that_fails_leaves_nothing(light):
    @requires_cluster(
        machine_type=LARGE_ENOUGH, api_endpoint=light.endpoint, **ONE_MACHINE, **CHEAP
    )
    def search(parameters, client=None):
        return search_with(client, digits(), parameters)

    with pytest.raises(ValueError, match="The 'C' parameter of SVC must be"):
        search(IMPOSSIBLE)
    assert (light.requests[INSERT], light.requests[DELETE]) == (1, 1)
    assert_on_their_way_out(light)


def test_a_decorated_search_on_32_machines(light, expected):
    @requires_cluster(
        n_workers=32, nthreads=1, machine_type="e2-small", api_endpoint=light.endpoint, **CHEAP
    )
    def search(parameters, client=None):
        client.wait_for_workers(32)
        workers = workers_of(client)
        assert {each["name"] for each in workers} == worker_machines(light)
        assert [each["nthreads"] for each in workers] == [1] * 32
        return search_with(client, digits(), parameters)

    found, fits = search(PARAMETERS)
    assert found == expected
    assert fits.total() == FITS
    assert len(fits) > 1
    assert (light.requests[INSERT], light.requests[BULK], light.requests[DELETE]) == (1, 1, 33)
    assert_on_their_way_out(light)


DECORATED = """
import json

import joblib
from sklearn.datasets import load_digits
from sklearn.model_selection import GridSearchCV
from sklearn.svm import SVC

from dask_gce import requires_cluster


@requires_cluster(
    single_node=True, machine_type="e2-highcpu-16", processes=16, nthreads=1, memory_limit="0.9GB"
)
def run(parameters, client=None):
    images, labels = load_digits(return_X_y=True)
    search = GridSearchCV(SVC(), parameters, cv=3)
    with joblib.parallel_config("dask"):
        search.fit(images[:300], labels[:300])
    workers = len(client.scheduler_info(n_workers=-1)["workers"])
    return workers, search.best_params_, search.best_score_


print(json.dumps(run(PARAMETERS)))
"""


def test_a_decorated_search_finds_the_same_without_machines(emulator, tmp_path, expected):
    program = DECORATED.replace("PARAMETERS", repr(PARAMETERS))
    output = run_program(
        emulator.endpoint, tmp_path, program, DASK_GCE__REQUIRES_CLUSTER__LOCAL="1"
    )
    workers, *best = json.loads(output)
    assert workers == 16
    assert Found(*best) == expected
    assert not emulator.requests


# -- a cluster that several functions share -------------------------------------------------------


def build_data_set(client):
    """Let the cluster build what is to be learnt from; return it."""

    def read(part, parts):
        images, labels = load_digits(return_X_y=True)
        return images[:300][part::parts] / 16, labels[:300][part::parts], get_worker().name

    parts = client.gather(client.map(read, range(8), parts=8))
    images, labels, names = zip(*parts, strict=True)
    assert len(set(names)) > 1
    return np.concatenate(images), np.concatenate(labels)


@pytest.mark.parametrize("parameters", [{"C": [1, 10]}, IMPOSSIBLE], ids=["fine", "fails"])
def test_functions_share_a_cluster_that_ends_with_the_last(light, parameters):
    cluster = GCECluster(n_workers=2, machine_type="e2-small", api_endpoint=light.endpoint, **CHEAP)
    client = Client(cluster)
    error, found = None, None
    try:
        client.wait_for_workers(2)
        data = build_data_set(client)
        found, fits = search_with(client, data, parameters)
        assert fits.total() == 2 * FOLDS
    except ValueError as failure:
        error = failure
    finally:
        client.close()
        cluster.close()
    if parameters is IMPOSSIBLE:
        assert "The 'C' parameter of SVC must be" in str(error)
    else:
        assert error is None
        alone = GridSearchCV(SVC(), parameters, cv=FOLDS).fit(*data)
        assert found == Found(alone.best_params_, alone.best_score_)
    assert (light.requests[INSERT], light.requests[BULK], light.requests[DELETE]) == (1, 1, 3)
    assert_on_their_way_out(light)


# -- one machine with a container of workers ------------------------------------------------------

CONTAINER = {
    "single_node": True,
    "machine_type": "e2-highcpu-16",
    "nthreads": 1,
    "memory_limit": "1GB",
    "container_image": "registry.hub.docker.com/team/dask:1.0",
    "network_tags": ["dask-server"],
    "env_vars": {"TEAM": "grid & 'search' $HOME", "LEVEL": 3},
    "quiet": True,
}


def metadata_of(machine):
    return {each["key"]: each["value"] for each in machine["metadata"]["items"]}


def assert_container(emulator):
    """Check that one machine was asked for as it should be; return its name."""
    assert (emulator.requests[INSERT], emulator.requests[BULK]) == (1, 0)
    (machine,) = emulator.instances()
    assert machine["machineType"].endswith("/machineTypes/e2-highcpu-16")
    assert machine["tags"]["items"][0] == "dask-server"
    assert metadata_of(machine)["dask-gce-image"] == CONTAINER["container_image"]
    return machine["name"]


def test_sixteen_workers_in_a_container_take_one_request(light):
    with (
        GCECluster(
            processes=16,
            worker_class="distributed.Worker",
            api_endpoint=light.endpoint,
            **CONTAINER,
        ) as cluster,
        Client(cluster) as client,
    ):
        client.wait_for_workers(16)
        name = assert_container(light)
        workers = workers_of(client)
        assert {each["name"] for each in workers} == {f"{name}-{n}" for n in range(16)}
        assert {(each["nthreads"], each["memory_limit"]) for each in workers} == {(1, 10**9)}
    assert_on_their_way_out(light)


def test_work_is_distributed_over_the_workers_of_a_container(light):
    def work(number):
        time.sleep(0.1)
        return number * number, os.getpid(), get_worker().name

    with (
        GCECluster(processes=4, api_endpoint=light.endpoint, **CONTAINER) as cluster,
        Client(cluster) as client,
    ):
        client.wait_for_workers(4)
        name = assert_container(light)
        assert client.scheduler.address.startswith("tls://")
        workers = workers_of(client)
        assert all(each["nanny"].startswith("tls://") for each in workers)
        assert {(each["nthreads"], each["memory_limit"]) for each in workers} == {(1, 10**9)}

        results = client.gather(client.map(work, range(40)))
        assert [each[0] for each in results] == [number * number for number in range(40)]
        assert {each[1] for each in results} == set(client.run(os.getpid).values())
        assert {each[2] for each in results} == {f"{name}-{n}" for n in range(4)}
        assert len({each[1] for each in results}) == 4
        for variable, value in CONTAINER["env_vars"].items():
            assert set(client.run(os.getenv, variable).values()) == {str(value)}
    assert light.requests[DELETE] == 1
    assert_on_their_way_out(light)


# -- from a computer's own cores to a cluster -----------------------------------------------------

#: What the page for users says, of which one line and one command are changed.
PAGE = (Path(__file__).parents[1] / "docs" / "recipes.md").read_text(encoding="utf-8")
SECTION = PAGE.partition("## From your own computer to a cluster that exists\n")[2]
SCRIPT, CHANGE = re.findall(r"^```python\n(.*?)^```", SECTION, re.MULTILINE | re.DOTALL)
COMMANDS = re.findall(r"^dask gce (.*)$", SECTION, re.MULTILINE)
HERE = "LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address='127.0.0.1:0')"


def fits_seen(endpoint):
    """Return how many fits the cluster has made so far."""
    with (
        dask.config.set({"gce.api-endpoint": endpoint}),
        GCECluster.from_name("grid", quiet=True) as cluster,
        Client(cluster) as client,
    ):
        return client.run_on_scheduler(
            lambda dask_scheduler: sum(
                prefix.state_counts["memory"]
                for name, prefix in dask_scheduler.task_prefixes.items()
                if "fit_and_score" in name
            )
        )


def test_a_script_moves_to_a_cluster_that_exists(light, tmp_path):
    endpoint = light.endpoint
    create, delete = map(shlex.split, COMMANDS)
    run_process(endpoint, *create)
    assert len(worker_machines(light)) == 8

    here = run_program(endpoint, tmp_path, SCRIPT.replace("LocalCluster()", HERE))
    assert "{'C': 10, 'gamma': 0.001}" in here

    line = "    client = Client(LocalCluster())\n"
    assert line in SCRIPT
    there = run_program(endpoint, tmp_path, SCRIPT.replace(line, indent(CHANGE, "    ")))
    assert there == here
    assert fits_seen(endpoint) == 12

    assert len(worker_machines(light)) == 8
    run_process(endpoint, *delete, "--yes")
    assert_on_their_way_out(light)
