"""GPUs: asked for, given a driver, and one Dask worker for each."""

from __future__ import annotations

import logging
import os
import subprocess

import pytest
from distributed import Client
from guests import Guest
from test_hardware import TCP, bodies, location

from dask_gce import GCECluster
from dask_gce.blueprint import Blueprint
from dask_gce.boot.versions import expectation
from dask_gce.bulk import build_bulk_insert
from dask_gce.errors import SettingsError
from dask_gce.fit import check_fit
from dask_gce.gpus import check_gpus, complete_for_gpus
from dask_gce.hardware import check_hardware
from dask_gce.placement import MachineShape
from dask_gce.settings import Settings
from dask_gce.startup import Payload, startup_script, worker_spec

T4 = "nvidia-tesla-t4"
CUDA = "dask_cuda.CUDAWorker"
NANNY = "distributed.Nanny"


def complete(worker="g2-standard-24", scheduler="e2-small", **settings):
    """Return settings as a cluster of such machines has them."""
    given = Settings.load(**{"container_image": "rapids:1", **settings})
    places = [location(scheduler)], [location(each) for each in worker.split()]
    check_hardware(given, *places)
    check_gpus(given, *places)
    done = complete_for_gpus(given, *places)
    check_fit(done, *places)
    return done


def refusal(key, *args, **settings):
    with pytest.raises(SettingsError) as caught:
        complete(*args, **settings)
    assert caught.value.key == key
    return str(caught.value)


# -- the request ----------------------------------------------------------------------------------


def test_gpus_are_added_to_the_workers_only():
    scheduler, worker = bodies(
        "n1-standard-8", worker_accelerator_type=T4, worker_accelerator_count=2
    )
    assert worker["guestAccelerators"] == [
        {
            "acceleratorType": f"zones/us-central1-a/acceleratorTypes/{T4}",
            "acceleratorCount": 2,
        }
    ]
    assert worker["scheduling"]["onHostMaintenance"] == "TERMINATE"
    assert "guestAccelerators" not in scheduler
    assert "onHostMaintenance" not in scheduler["scheduling"]


def test_one_is_added_unless_told_how_many():
    worker = bodies("n1-standard-8", worker_accelerator_type=T4)[1]
    assert worker["guestAccelerators"][0]["acceleratorCount"] == 1


def test_gpus_that_come_with_a_machine_type_are_not_asked_for():
    for body in bodies("a2-highgpu-1g", "g2-standard-4"):
        assert "guestAccelerators" not in body
        assert body["scheduling"]["onHostMaintenance"] == "TERMINATE"


def test_many_machines_are_asked_for_at_once():
    settings = Settings.load(worker_accelerator_type=T4, reservation="mine", secure_boot=True)
    blueprint = Blueprint(settings, "p", "dask-1", "id")
    specs = [blueprint.worker(name, location("n1-standard-8"), TCP) for name in ("a", "b")]
    body = build_bulk_insert(specs)
    assert body is not None
    accelerators = body["instanceProperties"]["guestAccelerators"]
    assert accelerators == [{"acceleratorType": T4, "acceleratorCount": 1}]


def test_the_machine_knows_how_many_there_are():
    blueprint = Blueprint(Settings.load(), "p", "dask-1", "id")
    metadata = blueprint.worker("w", location("g2-standard-24"), TCP).metadata
    assert metadata["dask-gce-gpus"] == "2"
    assert metadata["install-nvidia-driver"] == "True"
    assert "dask-gce-gpus" not in blueprint.scheduler("s", location("e2-small")).metadata


@pytest.mark.parametrize(
    ("machine_type", "kind", "count", "key", "part"),
    [
        ("e2-standard-8", T4, 1, "worker_accelerator_type", "e2-standard-8 can have no GPUs"),
        ("n2-standard-8", T4, 1, "worker_accelerator_type", "n1-standard-8"),
        ("g2-standard-8", T4, 1, "worker_accelerator_type", "comes with its GPUs (1 of nvidia-l4"),
        ("n1-standard-8", T4, 3, "worker_accelerator_count", "1, 2, 4"),
        ("n1-standard-16", "nvidia-tesla-v100", 1, "worker_accelerator_count", "at most 12 vCPUs"),
        ("n1-standard-32", "nvidia-tesla-p4-vws", 1, "worker_accelerator_count", "at most 24"),
    ],
)
def test_what_cannot_be_added_is_refused(machine_type, kind, count, key, part):
    settings = {"worker_accelerator_type": kind, "worker_accelerator_count": count}
    assert part in refusal(key, machine_type, **settings)


def test_a_type_that_is_newer_than_the_tables_is_left_to_google():
    settings = complete(
        "n1-standard-8", worker_accelerator_type="nvidia-z9", worker_accelerator_count=3
    )
    assert settings.processes == 3


# -- one worker for each --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("machine_type", "more", "gpus"),
    [
        ("g2-standard-4", {}, 1),
        ("g2-standard-24", {}, 2),
        ("a2-highgpu-8g", {}, 8),
        ("n1-standard-16", {"worker_accelerator_type": T4, "worker_accelerator_count": 4}, 4),
    ],
)
def test_a_machine_has_a_worker_for_each_gpu(machine_type, more, gpus):
    settings = complete(machine_type, **more)
    assert (settings.processes, settings.worker_class) == (gpus, CUDA)
    if gpus > 1:
        assert settings.sources["processes"] == f"{gpus} GPUs of {machine_type}"
    blueprint = Blueprint(settings, "p", "dask-1", "id")
    assert len(blueprint.suffixes) == (gpus if gpus > 1 else 0)
    shape = location(machine_type).shape
    assert blueprint.nthreads(shape) == 1
    assert blueprint.memory(shape) == shape.usable_memory // gpus
    restored = Settings.restore(settings.dump())
    assert (restored.processes, restored.worker_class) == (gpus, CUDA)


def test_without_gpus_nothing_follows():
    settings = complete("e2-standard-4")
    assert (settings.processes, settings.worker_class) == (1, NANNY)


def test_what_the_user_chose_wins():
    settings = complete(worker_class="distributed.Worker")
    assert (settings.processes, settings.worker_class) == (1, "distributed.Worker")
    settings = complete(worker_class=NANNY, processes=4)
    assert (settings.processes, settings.worker_class) == (4, NANNY)
    settings = complete(nthreads=3, memory_limit="4GiB", processes=2)
    assert (settings.processes, settings.worker_class) == (2, CUDA)
    assert Blueprint(settings, "p", "c", "i").nthreads(location("g2-standard-24").shape) == 3


def test_numbers_that_do_not_agree_are_refused():
    assert "leave processes out to have 2" in refusal("processes", processes=4)
    message = refusal("worker_machine_type", "g2-standard-24 g2-standard-8")
    assert "g2-standard-24 has 2, g2-standard-8 has 1" in message
    message = refusal("worker_machine_type", "g2-standard-8 e2-standard-4")
    assert "e2-standard-4 has 0" in message
    settings = complete("g2-standard-24 g2-standard-8", worker_class=NANNY)
    assert settings.processes == 1


def test_the_rules_of_several_workers_hold_then_too():
    assert "max_workers" in refusal("max_workers", "a2-highgpu-8g", max_workers=4)
    message = refusal("worker_options", worker_options={"worker_port": 9000})
    assert "2 workers" in message
    assert "'GPU=1'" in refusal("worker_options", worker_options={"resources": {"GPU": 1}})


def test_a_single_node_has_them_all():
    settings = complete("e2-small", "g2-standard-24", single_node=True)
    assert settings.workers_on_scheduler == settings.n_workers == settings.processes == 2
    assert settings.worker_class == CUDA
    settings = complete("e2-small", "n1-standard-16", single_node=True, worker_accelerator_type=T4)
    blueprint = Blueprint(settings, "p", "dask-1", "id")
    body = blueprint.scheduler("s", location("n1-standard-16"))
    assert body.hardware.accelerator_type == T4
    assert body.metadata["dask-gce-gpus"] == "1"


def test_an_image_without_dask_cuda_is_refused():
    for settings in ({}, {"runtime": "vm", "source_image": "family/mine"}):
        key = "environment" if settings else "container_image"
        assert "dask-cuda" in refusal(key, container_image=None, **settings)
    assert complete(container_image=None, env_vars={"EXTRA_PIP_PACKAGES": "dask-cuda"})
    assert complete(container_image=None, environment=["dask-cuda"])


def test_gpus_that_come_with_a_machine_type_may_be_named():
    for kind in ("nvidia-l4", "nvidia-l4-vws"):
        named = {"worker_accelerator_type": kind, "worker_accelerator_count": 2}
        settings = complete("g2-standard-24", **named)
        assert (settings.processes, settings.worker_class) == (2, CUDA)
        blueprint = Blueprint(settings, "p", "dask-1", "id")
        worker = blueprint.worker("w", location("g2-standard-24"), TCP)
        assert worker.metadata["dask-gce-gpus"] == "2"
        assert worker.hardware.accelerator_type == kind
    assert "leave it out" in refusal(
        "worker_accelerator_type", "g2-standard-24", worker_accelerator_type="nvidia-l4"
    )


def test_a_series_that_is_newer_than_the_tables_is_left_to_google():
    newer = {"worker_accelerator_type": T4, "worker_accelerator_count": 2}
    assert complete("n9-standard-8", **newer).processes == 2


def test_a_tpu_is_no_gpu():
    shape = MachineShape.parse(
        {
            "name": "ct5lp-hightpu-4t",
            "guestCpus": 112,
            "memoryMb": 196608,
            "accelerators": [{"guestAcceleratorType": "ct5lp", "guestAcceleratorCount": 4}],
        }
    )
    assert (shape.gpus, shape.gpu_type) == (0, "")


def test_an_image_without_a_driver_is_refused(caplog):
    message = refusal("source_image", container_image=None, runtime="vm", environment=["dask-cuda"])
    assert "deeplearning-platform-release" in message
    # Whether a driver is signed depends on the image; who asks for it is told.
    image = "deeplearning-platform-release/common-cu128-ubuntu-2204-nvidia-570"
    with caplog.at_level(logging.WARNING, logger="dask_gce.gpus"):
        complete(source_image=image, boot_disk_size=50)
        assert not caplog.records
        complete(source_image=image, boot_disk_size=50, secure_boot=True)
    assert "secure_boot" in caplog.text and "no signature" in caplog.text


# -- on the machine -------------------------------------------------------------------------------


def spec(**changes):
    return worker_spec(
        worker_class=CUDA,
        scheduler_address=changes.pop("address", TCP),
        nthreads=1,
        memory_limit=10**9,
        options={},
    )


@pytest.fixture
def guest(tmp_path):
    return Guest(tmp_path)


@pytest.mark.parametrize(("gpus", "name"), [(1, "dask-1-worker-2"), (4, "dask-1-worker-2")])
async def test_one_process_makes_the_workers_of_all_gpus(guest, gpus, name, listener):
    payload = Payload(
        "worker",
        "p",
        "rapids:1",
        spec(),
        scheduler={"host": "127.0.0.1", "port": listener, "timeout": 60},
        processes=gpus,
    )
    status, seen, output = await guest.run(payload)
    assert status == 0, output
    made = seen["spec"] if gpus == 1 else seen["spec"][name]
    assert made["cls"] == CUDA
    # dask-cuda adds -0, -1 and so on itself, where there are several.
    assert made["opts"]["name"] == name
    assert gpus == 1 or list(seen["spec"]) == [name]


@pytest.mark.parametrize(("gpus", "name"), [(1, "dask-1-worker-2-0"), (4, "dask-1-worker-2")])
def test_workers_beside_a_scheduler_have_the_names_of_such(guest, gpus, name):
    program = {"__name__": "start"}
    text = (guest.folder / "guest" / "start.py").read_text()
    exec(compile(text.replace("Path(__file__)", "Path('.')"), "start.py", "exec"), program)  # noqa: S102 # ours
    made = program["several"]({"cls": CUDA, "opts": {}}, "dask-1-worker-2", gpus)
    assert [each["opts"]["name"] for each in made.values()] == [name]


async def test_a_machine_without_dask_cuda_says_so(guest, listener):
    payload = Payload(
        "worker",
        "p",
        "rapids:1",
        spec(),
        scheduler={"host": "127.0.0.1", "port": listener, "timeout": 60},
        versions=expectation("container", "rapids:1", ["dask-cuda-that-nobody-has"]),
    )
    status, seen, output = await guest.run(payload)
    assert status == 113 and seen is None
    assert "this machine has no dask-cuda-that-nobody-has, which worker_class needs" in output


@pytest.fixture
def listener():
    """Return a port where something listens, as a scheduler would."""
    import socket

    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


#: What the script calls, as it is on Container-Optimized OS with a GPU.
STAND_INS = {
    "curl": "cat >/dev/null",
    "cos-extensions": "exit ${INSTALLED-0}",
    "mount": "exit ${MOUNTED-0}",
    "nvidia-smi": (
        "[ ${FOUND-2} -gt 0 ] || exit 9\n"
        'for n in $(seq ${FOUND-2}); do echo "GPU $n: NVIDIA L4 (UUID: GPU-$n)"; done'
    ),
    "sleep": "",
}


class Machine:
    """A folder with stand-ins for what the driver's step of the startup script calls."""

    def __init__(self, folder, without=()):
        self.folder = folder
        for name, text in STAND_INS.items():
            if name not in without:
                program = folder / name
                program.write_text(f'#!/bin/sh\necho "{name} $*" >>{folder}/calls\n{text}\n')
                program.chmod(0o755)
        # As far as it begins: with whoever tells of phases, and nobody who ends this computer.
        script = startup_script("container")
        self.script = script[: script.index("exec 8> >(watch)")] + (
            'finish() { exit "$1"; }\n'
            f"folder={folder} known=\n"
            "install_gpu_driver\n"
            'printf "%s\\n" "options:" "${gpu_options[@]}"\n'
        )

    def run(self, gpus=2, **variables):
        (self.folder / "attributes").mkdir()
        if gpus:
            (self.folder / "attributes" / "gpus").write_text(str(gpus))
        done = subprocess.run(
            ["bash", "-c", self.script],
            check=False,
            env={"PATH": f"{self.folder}:/usr/bin:/bin", **variables},
            capture_output=True,
            text=True,
        )
        output, _, options = done.stdout.partition("options:\n")
        return done.returncode, output, options.split()

    @property
    def calls(self):
        return (self.folder / "calls").read_text().splitlines()


def test_container_optimized_os_gets_a_driver_and_names_the_devices(tmp_path):
    machine = Machine(tmp_path)
    status, output, options = machine.run()
    assert status == 0, output
    assert output.splitlines()[0] == "dask-gce phase: driver-installing"
    assert "cos-extensions install gpu -- --version=default" in machine.calls
    mounts = [call for call in machine.calls if call.startswith("mount")]
    assert mounts == [
        "mount --bind /var/lib/nvidia /var/lib/nvidia",
        "mount -o remount,exec /var/lib/nvidia",
    ]
    devices = [options[at + 1] for at, word in enumerate(options) if word == "--device"]
    assert devices == ["/dev/nvidiactl", "/dev/nvidia-uvm", "/dev/nvidia0", "/dev/nvidia1"]
    assert "/var/lib/nvidia/lib64:/usr/local/nvidia/lib64:ro" in options
    assert "--gpus" not in options


def test_without_gpus_nothing_is_installed(tmp_path):
    machine = Machine(tmp_path)
    status, output, options = machine.run(gpus=0)
    assert (status, output, options) == (0, "", [])


def test_an_image_with_a_driver_leaves_it_to_docker(tmp_path):
    status, _, options = Machine(tmp_path, without=["cos-extensions"]).run()
    assert (status, options) == (0, ["--gpus", "all"])


@pytest.mark.parametrize(
    ("without", "variables", "reason"),
    [
        ([], {"INSTALLED": "1"}, "cos-extensions could not install the driver"),
        ([], {"MOUNTED": "1"}, "the driver of the GPUs, in /var/lib/nvidia, could not be mounted"),
        ([], {"FOUND": "1"}, "the driver finds 1 of this machine's 2 GPUs"),
        (["cos-extensions"], {"FOUND": "0"}, "the driver of the GPUs did not come up"),
        (["cos-extensions", "nvidia-smi"], {}, "source_image has no driver for the GPUs"),
    ],
)
def test_a_driver_that_is_not_there_is_told(tmp_path, without, variables, reason):
    status, output, _ = Machine(tmp_path, without).run(**variables)
    assert status == 1
    assert f"dask-gce phase: failed: {reason}" in output


# -- the whole way --------------------------------------------------------------------------------

#: dask-cuda's class as far as it concerns a cluster: a worker for each GPU, named after itself.
STAND_IN = """
import asyncio, os
from distributed import Nanny

class CUDAWorker:
    def __init__(self, scheduler=None, name=None, nthreads=1, **options):
        count = int(os.environ["GPUS"])
        self.nannies = [
            Nanny(
                scheduler,
                name=name if count == 1 else f"{name}-{number}",
                nthreads=nthreads,
                env={"CUDA_VISIBLE_DEVICES": str(number)},
                **options,
            )
            for number in range(count)
        ]

    def __await__(self):
        return self._start().__await__()

    async def _start(self):
        await asyncio.gather(*self.nannies)
        return self

    async def finished(self):
        await asyncio.gather(*(nanny.finished() for nanny in self.nannies))

    async def close(self, **options):
        await asyncio.gather(*(nanny.close(**options) for nanny in self.nannies))
"""


@pytest.fixture
def dask_cuda(tmp_path):
    """Return a folder with something that is called dask-cuda."""
    (tmp_path / "dask_cuda").mkdir()
    (tmp_path / "dask_cuda" / "__init__.py").write_text(STAND_IN)
    (tmp_path / "dask_cuda-0.dist-info").mkdir()
    (tmp_path / "dask_cuda-0.dist-info" / "METADATA").write_text("Name: dask-cuda\nVersion: 0\n")
    return tmp_path


def test_a_cluster_computes_with_a_worker_for_each_gpu(process_emulator, dask_cuda):
    with GCECluster(
        api_endpoint=process_emulator.endpoint,
        scheduler_machine_type="e2-small",
        worker_machine_type="g2-standard-24",
        container_image="rapids:1",
        env_vars={"PYTHONPATH": str(dask_cuda), "GPUS": 2},
        n_workers=2,
        quiet=True,
    ) as cluster:
        assert cluster.settings.processes == 2
        with Client(cluster) as client:
            client.wait_for_workers(2, timeout=240)
            seen = client.run(lambda: os.environ["CUDA_VISIBLE_DEVICES"])
            assert sorted(seen.values()) == ["0", "1"]
            found = {each["name"] for each in client.scheduler_info()["workers"].values()}
        (machine,) = cluster.worker_spec
        assert found == {f"{machine}-0", f"{machine}-1"}
