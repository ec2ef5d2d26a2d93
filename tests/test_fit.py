"""Workers that do not fit their machines are refused before anything is created."""

from __future__ import annotations

import pytest

from dask_gce.errors import SettingsError
from dask_gce.fit import check_fit
from dask_gce.placement import Location, MachineShape
from dask_gce.settings import Settings

GIB = 2**30
A, B = "us-central1-a", "us-central1-b"


def shape(name, cpus, gib):
    return MachineShape(name, cpus, int(gib * GIB))


STANDARD = shape("e2-standard-4", 4, 16)
HIGHCPU = shape("e2-highcpu-16", 16, 16)
CUSTOM = shape("e2-custom-16-49152", 16, 48)


def check(*shapes, workers=(STANDARD,), **settings):
    check_fit(
        Settings.load(**settings),
        [Location(zone, each) for zone in (A, B) for each in shapes],
        [Location(zone, each) for zone in (A, B) for each in workers],
    )


def refused(*shapes, **settings):
    with pytest.raises(SettingsError) as caught:
        check(*shapes, **settings)
    return caught.value.key, str(caught.value)


@pytest.mark.parametrize(
    ("machine", "settings"),
    [
        (HIGHCPU, {"single_node": True, "processes": 16, "nthreads": 1, "memory_limit": "1GB"}),
        (HIGHCPU, {"single_node": True, "processes": 8, "nthreads": 2}),
        (HIGHCPU, {"workers_on_scheduler": 16}),
        (CUSTOM, {"single_node": True, "processes": 16, "nthreads": 1, "memory_limit": "3GB"}),
        (STANDARD, {"single_node": True}),
        (STANDARD, {"workers_on_scheduler": 4, "memory_limit": 0}),
        (STANDARD, {"workers_on_scheduler": 2, "memory_limit": "auto"}),
        (STANDARD, {"workers_on_scheduler": 2, "memory_limit": 0.4}),
        (STANDARD, {"workers_on_scheduler": 1, "memory_limit": "0.8"}),
        (shape("e2-micro", 2, 1), {"single_node": True, "processes": 2}),
    ],
)
def test_what_fits_passes(machine, settings):
    check(machine, **settings)


@pytest.mark.parametrize(
    ("machine", "settings", "key", "says"),
    [
        (
            CUSTOM,
            {"single_node": True, "processes": 32, "nthreads": 1, "memory_limit": "3GB"},
            "processes",
            ["= 32 (keyword argument)", "32 vCPUs", "89.41 GiB", "'e2-custom-32-98304'", "=16,"],
        ),
        (
            HIGHCPU,
            {"single_node": True, "processes": 16, "memory_limit": "1GiB"},
            "processes",
            ["16.00 GiB", "leaves 15.20 GiB", "processes=15", "'e2-standard-16'"],
        ),
        (
            STANDARD,
            {"workers_on_scheduler": 5, "n_workers": 20},
            "workers_on_scheduler",
            ["5 workers of 1 thread", "4 vCPUs", "workers_on_scheduler=4", "'e2-standard-8'"],
        ),
        (
            STANDARD,
            {"single_node": True, "nthreads": 8},
            "nthreads",
            ["1 worker of 8 threads", "nthreads=4", "'e2-standard-8'"],
        ),
        (
            STANDARD,
            {"single_node": True, "worker_options": {"nthreads": 8}},
            "worker_options",
            ["nthreads = 8", "nthreads=4 in worker_options,"],
        ),
        (
            STANDARD,
            {"single_node": True, "memory_limit": "20GB"},
            "memory_limit",
            ["'20GB'", "memory_limit='15564MiB'", "'e2-highmem-4'"],
        ),
        (
            STANDARD,
            {"single_node": True, "processes": 2, "memory_limit": 0.8},
            "processes",
            ["25.60 GiB", "processes=1", "at most 0.475"],
        ),
        # No machine type of the series is as large as that.
        (STANDARD, {"workers_on_scheduler": 64}, "workers_on_scheduler", ["(machine_type)"]),
    ],
)
def test_what_does_not_fit_beside_the_scheduler_is_refused_with_a_remedy(
    machine, settings, key, says
):
    found, message = refused(machine, **settings)
    assert found == key
    assert machine.name in message
    assert all(each in message for each in says), message


def test_the_setting_of_the_schedulers_machine_type_is_named():
    _, message = refused(STANDARD, workers_on_scheduler=8, scheduler_machine_type="e2-standard-4")
    assert "scheduler_machine_type='e2-standard-8'" in message


def test_every_machine_type_of_a_list_must_do():
    key, message = refused(HIGHCPU, STANDARD, workers_on_scheduler=8)
    assert key == "workers_on_scheduler"
    assert "e2-standard-4 has 4 vCPUs" in message
    assert "e2-highcpu-16 has" not in message
    assert message.endswith("or leave e2-standard-4 out.")
    # Twice the same, in two zones, is one.
    assert message.count("e2-standard-4 has") == 1


@pytest.mark.parametrize(
    ("settings", "says", "remedy"),
    [
        (
            {"workers_on_scheduler": 40, "nthreads": 8},
            "nthreads = 8 (",
            {"nthreads": 1, "workers_on_scheduler": 4},
        ),
        (
            {"workers_on_scheduler": 2, "nthreads": 8, "memory_limit": 1},
            "nthreads = 8 (",
            {"nthreads": 2, "memory_limit": 0.475},
        ),
        # What is not set is nothing to blame.
        (
            {"workers_on_scheduler": 40, "memory_limit": 1},
            "memory_limit = 1 (",
            {"memory_limit": 0.237, "workers_on_scheduler": 4},
        ),
        (
            {"single_node": True, "processes": 3, "nthreads": 2, "memory_limit": "20GB"},
            "nthreads = 2 (",
            {"nthreads": 1, "memory_limit": "5188MiB"},
        ),
        # A share would become an amount, of which other machines have less.
        (
            {"workers_on_scheduler": 1, "memory_limit": 1},
            "memory_limit = 1 (",
            {"memory_limit": 0.95},
        ),
    ],
)
def test_where_not_even_one_fits_all_that_has_to_change_is_told(settings, says, remedy):
    _, message = refused(STANDARD, **settings)
    assert message.startswith(says)
    told = " and ".join(f"{key}={value!r}" for key, value in remedy.items())
    assert message.rpartition("Use ")[2].startswith((f"{told}, or ", f"{told}.")), message
    check(STANDARD, **{**settings, **remedy})


def test_every_machine_type_is_reckoned_with_in_the_remedy():
    small = shape("e2-standard-2", 2, 8)
    _, message = refused(STANDARD, small, workers_on_scheduler=4, nthreads=2)
    assert "Use workers_on_scheduler=1, or" in message
    _, message = refused(STANDARD, small, workers_on_scheduler=1, nthreads=8, memory_limit="40GB")
    assert "Use nthreads=2 and memory_limit='7782MiB', or" in message


def test_a_larger_machine_is_not_smaller_in_anything():
    _, message = refused(shape("n1-standard-1", 1, 3.75), workers_on_scheduler=2)
    assert "machine_type='n1-standard-2'" in message


@pytest.mark.parametrize(
    ("settings", "key", "says"),
    [
        (
            {"processes": 4, "memory_limit": "5GB"},
            "processes",
            ["4 workers with a memory_limit of 5GB", "processes=3", "machine_type='e2-highmem-4'"],
        ),
        (
            {"memory_limit": "20GB", "worker_machine_type": "e2-standard-4"},
            "memory_limit",
            ["worker_machine_type='e2-highmem-4'"],
        ),
    ],
)
def test_memory_that_a_workers_machine_lacks_is_refused(settings, key, says):
    found, message = refused(HIGHCPU, **settings)
    assert found == key
    assert all(each in message for each in says), message


@pytest.mark.parametrize(
    "settings",
    [
        # More threads than vCPUs may be meant, for work that waits.
        {"processes": 4, "nthreads": 16},
        {"processes": 4, "memory_limit": "3GB"},
        # A share is Dask's business.
        {"memory_limit": 1},
        {"processes": 4, "memory_limit": 0.9},
        {"processes": 2, "memory_limit": 0},
        # No worker of a single node is there.
        {"single_node": True, "workers_on_scheduler": 1, "processes": 9, "memory_limit": "9GB"},
    ],
)
def test_what_may_be_meant_passes_on_a_workers_machine(settings):
    check(CUSTOM, **settings)
