"""Disk images: made on a machine that goes again, whatever happens, and booted from."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest
from clusters import PATIENCE, hold_first, until
from command_line import read, run, run_process, succeed
from records import compute_of
from startup_scripts import ScriptedMachine

from dask_gce import exit, image_build, names, removal, sweeping
from dask_gce.cli import removal as asking
from dask_gce.disk_images import list_images
from dask_gce.emulator import ComputeEmulator, Fault, Timings
from dask_gce.emulator.machines.paper import PaperKind, PaperMachine
from dask_gce.errors import APIError, GCEError, InstanceError, SettingsError, StartTimeout
from dask_gce.image_build import build_image, builder_spec, image_name
from dask_gce.inventory import list_clusters
from dask_gce.settings import Settings
from dask_gce.startup import Payload, guest_file

IMAGE = "registry.example/dask:1"
INSERT = "compute.images.insert"


@pytest.fixture(autouse=True)
def soon(monkeypatch):
    """Look after milliseconds how far it has come."""
    monkeypatch.setattr(image_build, "INTERVAL", 0.02)
    monkeypatch.setattr(removal, "FIRST_PAUSE", 0.02)


class Builder(PaperMachine):
    """A machine that says what the startup script would say."""

    phases: tuple[str, ...] = ("booted", "image-ready", "sealing", "sealed")
    tells = True
    ends = True

    async def boot(self) -> None:
        await super().boot()
        if self.record.metadata.get("dask-gce-role") != "builder":
            return
        for phase in self.phases:
            self.record.serial.write(f"dask-gce phase: {phase}\n".encode())
            if self.tells:
                self.record.guest_attributes["dask-gce"] = {"phase": phase}
        if self.ends:
            self.on_exit("poweroff")


class Builders(PaperKind):
    """Makes them."""

    def __init__(self, **ways: object) -> None:
        super().__init__()
        self._cls = type("Builder", (Builder,), ways)

    def create(self, record, address, on_exit):
        machine = self._cls(record, address, on_exit, self)
        self._machines.add(machine)
        return machine


@pytest.fixture
def cloud(discovery) -> Iterator[Callable[..., ComputeEmulator]]:
    """Return what boots a local Compute Engine whose builders behave in some way."""
    opened = []

    def boot(timings: Timings | None = None, **ways: object) -> ComputeEmulator:
        opened.append(ComputeEmulator(Builders(**ways), timings=timings))
        return opened[-1].__enter__()

    yield boot
    for emulator in opened:
        emulator.__exit__(None, None, None)


def settings_of(**more) -> Settings:
    return Settings.load(machine_type="e2-small", container_image=IMAGE, **more)


def left(emulator: ComputeEmulator) -> list[str]:
    """Return what is left in the project but for images."""
    return [one for one in emulator.leftovers() if not one.startswith("image ")]


def images(emulator: ComputeEmulator) -> list[str]:
    """Return the images of the project."""
    return [one for one in emulator.leftovers() if one.startswith("image ")]


async def build(emulator: ComputeEmulator, **more):
    async with compute_of(emulator) as compute:
        options = {
            key: more.pop(key) for key in ("name", "family", "timeout", "tell") if key in more
        }
        return await build_image(compute, settings_of(**more), **options)


# -- what is made ---------------------------------------------------------------------------------


async def test_an_image_is_made_and_nothing_else_stays(cloud):
    emulator = cloud()
    told = []
    made = await build(emulator, family="ours", labels={"team": "x"}, tell=told.append)
    assert made.name.startswith("ours-2")
    assert (made.family, made.runtime, made.status) == ("ours", "container", "READY")
    assert (made.project, made.disk_size) == ("local-project", 30)
    assert made.source_family == "projects/local-project/global/images/family/ours"
    assert IMAGE in made.description
    assert "sealed" in told
    assert told[-1] == "deleting the machine"
    await until(lambda: not left(emulator))
    async with compute_of(emulator) as compute:
        assert await list_images(compute) == [made]
        (shown,) = await compute.list_images()
        assert shown["labels"]["team"] == "x"
        # A cluster boots from what was printed.
        for source in (made.source_family, made.source_image, "family/ours"):
            spec = settings_of(source_image=source).source_image
            assert spec in (made.source_family, made.source_image, "global/images/family/ours")


def test_the_builder_is_a_clusters_machine_but_for_its_role():
    from dask_gce.blueprint import Blueprint
    from dask_gce.placement import Location, MachineShape

    blueprint = Blueprint(settings_of(), "p", "dask-image-1", "a" * 32, "ada", "", 2_000_000_000)
    location = Location("us-central1-a", MachineShape("e2-small", 2, 2**31))
    spec = builder_spec(blueprint, location)
    assert spec.name == "dask-image-1"
    assert spec.metadata["dask-gce-role"] == "builder"
    assert spec.metadata["dask-gce-image"] == IMAGE
    script = spec.metadata["startup-script"]
    parts = ("startup.sh", "ending.sh", "begin.sh", "seal.sh", "container.sh")
    assert script == "".join(map(guest_file, parts))
    assert "dask-gce-boot-timeout" not in spec.metadata  # it takes as long as it takes
    assert spec.labels[names.CLUSTER_LABEL] == "dask-image-1"
    assert spec.expires == 2_000_000_000
    assert not [key for key in spec.metadata if "tls" in key]


@pytest.mark.parametrize("runtime", ["container", "vm"])
def test_both_runtimes_end_in_an_image_for_a_builder(runtime):
    lines = guest_file(f"{runtime}.sh").rstrip().splitlines()
    assert lines[-2].startswith('[ "$role" != builder ] || seal')
    assert lines[-1] == "run_dask"


async def test_a_machine_that_was_off_before_it_was_asked_is_believed_by_its_console(cloud):
    made = await build(cloud(tells=False))
    assert made.status == "READY"


async def test_another_place_is_tried_where_one_has_no_machine_to_give(cloud):
    emulator = cloud()
    emulator.capacity.set("us-central1-a", instances=0)
    told = []
    await build(emulator, zone=["us-central1-a", "us-central1-b"], tell=told.append)
    assert [one.rpartition(" ")[2] for one in told if one.startswith("starting")] == [
        "us-central1-a",
        "us-central1-b",
    ]
    await until(lambda: not left(emulator))


# -- nothing leaks --------------------------------------------------------------------------------


async def test_a_builder_that_fails_is_deleted_and_its_console_told(cloud):
    emulator = cloud(phases=("booted", "failed: docker pull of it failed"), ends=False)
    with pytest.raises(InstanceError) as caught:
        await build(emulator)
    assert "docker pull of it failed" in str(caught.value)
    assert "The builder dask-image-" in str(caught.value)
    await until(lambda: not emulator.leftovers())


async def test_a_builder_that_ends_too_early_is_a_failure(cloud):
    emulator = cloud(phases=("booted",))
    with pytest.raises(InstanceError, match="was not built"):
        await build(emulator)
    await until(lambda: not emulator.leftovers())
    assert not emulator.requests[INSERT]


async def test_a_builder_that_takes_too_long_is_deleted(cloud):
    emulator = cloud(phases=("booted",), ends=False)
    with pytest.raises(StartTimeout, match=r"Last boot phase: booted"):
        await build(emulator, timeout=0.5)
    await until(lambda: not emulator.leftovers())


async def test_a_builder_that_somebody_deletes_is_told(cloud):
    emulator = cloud(phases=("booted",), ends=False)
    task = asyncio.ensure_future(build(emulator))
    await until(lambda: emulator.requests["compute.instances.getGuestAttributes"])
    (builder,) = emulator.instances()
    emulator.delete(builder["name"], user="colleague@example.org")
    with pytest.raises(InstanceError, match="no longer exists"):
        await asyncio.wait_for(task, PATIENCE)
    await until(lambda: not emulator.leftovers())


async def test_an_image_that_cannot_be_made_leaves_nothing(cloud):
    emulator = cloud()
    error = {"code": "INTERNAL_ERROR", "message": "Internal error."}
    emulator.faults.add(Fault(INSERT, operation_errors=[error]))
    with pytest.raises(GCEError, match="could not insert image dask-gce-"):
        await build(emulator)
    await until(lambda: not emulator.leftovers())


async def test_an_image_of_somebody_else_is_left_alone(cloud):
    """Somebody may take the name while the builder builds."""
    emulator = cloud()
    taken = {"status": 409, "reason": "alreadyExists", "message": "It already exists."}
    await build(emulator, name="theirs")
    lookups = emulator.requests["compute.images.get"]
    emulator.faults.add(
        Fault("compute.images.get", status=404, reason="notFound", message="No.", times=1)
    )
    emulator.faults.add(Fault(INSERT, **taken))
    with pytest.raises(APIError):
        await build(emulator, name="theirs")
    assert emulator.requests["compute.images.get"] == lookups + 2
    assert images(emulator) == ["image theirs in local-project exists"]
    await until(lambda: not left(emulator))


@pytest.mark.parametrize(
    "moment",
    ["compute.instances.insert", "compute.instances.getGuestAttributes", INSERT],
)
async def test_cancelled_it_leaves_nothing(cloud, moment):
    # An image is done before its disk is gone, so that it stays if nobody deletes it.
    emulator = cloud(Timings(imaging=0.3, deleting=2), ends=moment == INSERT)
    task = asyncio.ensure_future(build(emulator))
    await until(lambda: emulator.requests[moment])
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asyncio.wait_for(task, PATIENCE)
    await until(lambda: not emulator.leftovers())


async def test_what_cannot_be_deleted_is_told_with_the_first_failure(cloud, monkeypatch):
    monkeypatch.setattr(removal, "CERTAIN_WITHIN", 0.2)
    emulator = cloud(phases=("failed: no",), ends=False)
    refused = {"status": 403, "reason": "forbidden", "message": "Not allowed."}
    emulator.faults.add(Fault("compute.instances.delete", **refused, times=10**6))
    with pytest.raises(GCEError) as caught:
        await build(emulator)
    assert "was not built" in str(caught.value)
    assert "gcloud compute instances list" in str(caught.value)


async def test_an_image_is_told_whose_builder_cannot_be_deleted(cloud, monkeypatch):
    monkeypatch.setattr(removal, "CERTAIN_WITHIN", 0.2)
    emulator = cloud()
    refused = {"status": 403, "reason": "forbidden", "message": "Not allowed."}
    emulator.faults.add(Fault("compute.instances.delete", **refused, times=10**6))
    with pytest.raises(GCEError) as caught:
        await build(emulator, name="done")
    assert "source-image: projects/local-project/global/images/done" in str(caught.value)
    assert "The machine that made it may be left." in str(caught.value)
    assert "gcloud compute instances list" in str(caught.value)
    assert images(emulator) and left(emulator)


async def test_cancelled_with_the_image_done_it_deletes_the_builder_and_tells(cloud, caplog):
    emulator = cloud()
    async with compute_of(emulator) as compute:
        held, leave = hold_first(compute, "delete_instance")
        task = asyncio.ensure_future(build_image(compute, settings_of(), name="done"))
        await asyncio.wait_for(held.wait(), PATIENCE)
        task.cancel()
        leave.set()
        with pytest.raises(asyncio.CancelledError):
            await asyncio.wait_for(task, PATIENCE)
    await until(lambda: not left(emulator))
    assert images(emulator) == ["image done in local-project exists"]
    assert "Image done is made" in caplog.text


async def test_a_builder_without_a_client_is_an_orphan(cloud):
    emulator = cloud(phases=("booted",), ends=False)
    task = asyncio.ensure_future(build(emulator))
    await until(lambda: emulator.requests["compute.instances.getGuestAttributes"])
    async with compute_of(emulator) as compute:
        inventory = await list_clusters(compute)
        (record,) = inventory.clusters
        assert record.state == "building"
        assert [machine.role for machine in record.machines] == ["builder"]
        assert record.expires is not None
        assert not sweeping.find_orphans(inventory)
        (orphan,) = sweeping.find_orphans(inventory, client_state=lambda mark: "gone")
        assert orphan.record == record
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    await until(lambda: not emulator.leftovers())


async def test_at_the_interpreters_exit_the_builder_is_deleted(cloud):
    # Other tests have theirs, too.
    before = set(exit._duties)
    emulator = cloud(phases=("booted",), ends=False)
    task = asyncio.ensure_future(build(emulator))
    await until(lambda: emulator.requests["compute.instances.getGuestAttributes"])
    (duty,) = (duty for owner, duty in exit._duties.items() if owner not in before)
    await asyncio.to_thread(duty.action)
    with pytest.raises(InstanceError, match="no longer exists"):
        await asyncio.wait_for(task, PATIENCE)
    assert set(exit._duties) == before
    await until(lambda: not emulator.leftovers())


# -- names ----------------------------------------------------------------------------------------


def test_names_sort_by_time_and_are_names():
    assert names.check_name(image_name("dask-gce")).startswith("dask-gce-20")
    for wrong in ("Upper", "x" * 60, ""):
        with pytest.raises(SettingsError, match="family"):
            image_name(wrong)


async def test_a_name_that_is_taken_is_refused_before_anything_costs_money(cloud):
    emulator = cloud()
    await build(emulator, name="taken")
    before = emulator.requests["compute.instances.insert"]
    with pytest.raises(SettingsError, match="dask gce image delete taken"):
        await build(emulator, name="taken")
    assert emulator.requests["compute.instances.insert"] == before


# -- from a shell ---------------------------------------------------------------------------------


def test_build_list_and_delete_from_a_shell(cloud):
    emulator = cloud()
    options = ("--container-image", IMAGE, "--machine-type", "e2-small")
    text = succeed(emulator, "image", "build", "--name", "first", *options)
    assert "source-image: projects/local-project/global/images/family/dask-gce\n" in text
    assert "source-image: projects/local-project/global/images/first\n" in text
    made = read(emulator, "image", "build", "--name", "second", "--family", "ours", *options)
    assert (made["name"], made["family"], made["status"]) == ("second", "ours", "READY")
    listed = read(emulator, "image", "list")
    assert [one["name"] for one in listed["images"]] == ["second", "first"]
    assert listed["images"][0] == made
    lines = succeed(emulator, "image", "list").splitlines()
    assert lines[1].split()[:3] == ["second", "ours", "container"]
    assert lines[1].split()[-4:] == ["30", "GB", "1.0", "GB"]
    assert succeed(emulator, "image", "delete", "first", "second", "--yes") == (
        "Deleted first.\nDeleted second.\n"
    )
    assert "No images for clusters" in run(emulator, "image", "list").stderr
    asyncio.run(until(lambda: not emulator.leftovers()))


def test_only_what_was_made_here_is_deleted(cloud, monkeypatch):
    emulator = cloud()
    options = ("--container-image", IMAGE, "--machine-type", "e2-small")
    succeed(emulator, "image", "build", "--name", "mine", *options)

    async def make() -> None:
        async with compute_of(emulator) as compute:
            source = "global/images/mine"
            operation = await compute.insert_image({"name": "theirs", "sourceImage": source})
            await compute.wait_operation(operation, PATIENCE)

    asyncio.run(make())
    assert [one["name"] for one in read(emulator, "image", "list")["images"]] == ["mine"]
    for wrong in (["theirs"], ["mine", "nothing"]):
        result = run(emulator, "image", "delete", *wrong, "--yes")
        assert result.exit_code == 1
        assert "there are: mine" in result.stderr
    result = run(emulator, "image", "delete", "mine")
    assert result.exit_code == 2
    assert "--yes" in result.stderr
    monkeypatch.setattr(asking, "_is_asked", lambda: True)
    assert run(emulator, "image", "delete", "mine", input="n\n").exit_code == 1
    assert len(images(emulator)) == 2
    assert run(emulator, "image", "delete", "mine", input="y\n").exit_code == 0
    assert len(images(emulator)) == 1


@pytest.mark.parametrize(
    ("options", "text"),
    [
        (["--timeout", "soon"], "--timeout"),
        (["--timeout", "0"], "from a minute to a day"),
        (["--timeout", "40 days"], "from a minute to a day"),
        (["--family", "Ours"], "family = 'Ours'"),
        (["--name", "Mine"], "name = 'Mine'"),
        (["--machine-type", "huge"], "machine_type"),
        (["--n-workers", "2"], "No such option"),
    ],
)
def test_wrong_usage_makes_nothing(cloud, options, text):
    emulator = cloud()
    result = run(emulator, "image", "build", *options)
    assert result.exit_code == 2, result.output
    assert text in result.stderr
    assert not emulator.requests["compute.instances.insert"]


def test_a_failed_build_ends_with_one(cloud):
    emulator = cloud(phases=("failed: no",), ends=False)
    result = run(emulator, "image", "build", "--container-image", IMAGE)
    assert result.exit_code == 1
    assert "Last boot phase: failed: no." in result.stderr
    assert not result.stdout
    asyncio.run(until(lambda: not emulator.leftovers()))


# -- the script that is run -----------------------------------------------------------------------


def test_the_recipe_runs_on_a_machine(process_emulator):
    """From the startup script to the image, and a machine that begins with what it left."""
    endpoint = process_emulator.endpoint
    options = ("--container-image", IMAGE, "--machine-type", "e2-small", "--name", "i", "--json")
    output, _ = run_process(endpoint, "image", "build", *options)
    assert json.loads(output)["status"] == "READY"
    assert "Deleted i." in succeed(process_emulator, "image", "delete", "i", "--yes")
    asyncio.run(until(lambda: not process_emulator.leftovers()))


async def test_a_builder_is_off_when_it_has_said_that_it_is_ready(tmp_path):
    """What it had not said by then would never be said."""
    machine = ScriptedMachine(tmp_path)
    machine.publish_slowly()
    (tmp_path / "image").touch()
    spec = {"cls": "distributed.Scheduler", "opts": {}}
    status = await machine.boot(Payload("scheduler", "p", IMAGE, spec), builder=True)
    assert (status, machine.published) == (0, "sealed"), machine.console
    assert machine.phases == ["booted", "image-ready", "sealing", "sealed"]
    assert len(machine.called("published")) == 4
    assert machine.calls[-1] == ["poweroff"]
    assert machine.called("docker", "run") == []


@pytest.mark.skipif(shutil.which("unshare") is None, reason="there is no unshare")
def test_only_the_root_of_a_system_cleans_it(tmp_path):
    program = tmp_path / "program.sh"
    program.write_text(guest_file("seal.sh") + "owns_system && echo owns || echo shares\n")
    enter = ["unshare", "--user", "--map-root-user"]
    if subprocess.run([*enter, "true"], capture_output=True, check=False).returncode != 0:
        pytest.skip("there are no user namespaces here")
    run = partial(subprocess.run, capture_output=True, text=True, check=True)
    assert run([*enter, "bash", str(program)]).stdout == "shares\n"
    outermost = Path("/proc/self/uid_map").read_text().split() == ["0", "0", "4294967295"]
    owns = os.geteuid() == 0 and outermost
    assert run(["bash", str(program)]).stdout == ("owns\n" if owns else "shares\n")


def test_interrupted_from_a_shell_it_leaves_nothing(cloud):
    from command_line import process

    emulator = cloud(phases=("booted",), ends=False)
    options = ("--container-image", IMAGE, "--machine-type", "e2-small")
    with process(emulator.endpoint, "image", "build", *options) as running:
        asked = "compute.instances.getGuestAttributes"
        asyncio.run(until(lambda: emulator.requests[asked] or running.poll() is not None))
        running.send_signal(2)
        output, errors = running.communicate(timeout=PATIENCE)
    assert (running.returncode, output) == (130, "")
    assert "Interrupted." in errors
    asyncio.run(until(lambda: not emulator.leftovers()))
