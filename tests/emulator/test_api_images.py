"""Images of a project: made of disks, found by family, and what their disks hold."""

from __future__ import annotations

import pytest
from rest import PROJECT, ZONE, ObservedKind, Refused, Rest, boot_disk, instance

from dask_gce.emulator import ComputeEmulator, Fault, Timings
from dask_gce.emulator.machine import Contents

DISK = f"zones/{ZONE}/disks/a"
IMAGES = "global/images"


class Noted(Contents):
    """Contents that are a word, and that remember whether they were removed."""

    def __init__(self, word: str) -> None:
        self.word = word
        self.discarded = False

    async def discard(self) -> None:
        assert not self.discarded
        self.discarded = True


class Shelves(ObservedKind):
    """Paper machines whose disks hold a word: what they began with, and their name."""

    def __init__(self) -> None:
        super().__init__()
        self.made: list[Noted] = []

    def create(self, record, address, on_exit):
        machine = super().create(record, address, on_exit)

        async def capture():
            before = machine.contents.word if machine.contents else ""
            self.made.append(Noted(f"{before}/{machine.record.name}"))
            return self.made[-1]

        machine.capture = capture
        return machine

    @property
    def alive(self) -> list[str]:
        """What is held at the moment."""
        return [one.word for one in self.made if not one.discarded]


@pytest.fixture
def rest(emulator):
    return Rest(emulator)


def stop(rest: Rest, name: str = "a") -> None:
    rest.wait(rest.post(f"zones/{ZONE}/instances/{name}/stop"))


def make(rest: Rest, name: str, **fields):
    """Make an image and return it."""
    query = {"forceCreate": "true"} if fields.pop("force", False) else {}
    body = {"name": name, "sourceDisk": DISK, **fields}
    body = {key: value for key, value in body.items() if value is not None}
    done = rest.wait(rest.post(IMAGES, body, **query))
    assert "error" not in done, done
    return rest.get(f"{IMAGES}/{name}")


def test_an_image_of_a_stopped_machine(rest):
    rest.insert()
    stop(rest)
    fields = {"family": "ours", "labels": {"team": "x"}, "description": "a description"}
    operation = rest.post(IMAGES, {"name": "i", "sourceDisk": DISK, **fields})
    assert operation["targetLink"].endswith(f"projects/{PROJECT}/{IMAGES}/i")
    rest.wait(operation)
    image = rest.get(f"{IMAGES}/i")
    disk = rest.get(DISK)
    assert {key: image[key] for key in fields} == fields
    assert (image["status"], image["diskSizeGb"]) == ("READY", "10")
    assert (image["sourceDisk"], image["sourceDiskId"]) == (disk["selfLink"], disk["id"])
    assert image["licenses"] == disk["licenses"]
    assert image["architecture"] == "X86_64"
    assert image["storageLocations"] == ["us"]
    assert rest.get(f"{IMAGES}/family/ours") == image
    assert rest.get(f"zones/{ZONE}/imageFamilyViews/ours") == {"image": image}
    assert rest.get(IMAGES, filter="labels.team = x")["items"] == [image]
    assert f"image i in {PROJECT} exists" in rest.emulator.leftovers()


def test_the_disk_of_a_machine_that_runs_is_refused_unless_forced(rest):
    rest.insert()
    with pytest.raises(Refused) as caught:
        make(rest, "i")
    assert caught.value.reason == "resourceInUseByAnotherResource"
    assert make(rest, "i", force=True)["status"] == "READY"


@pytest.mark.parametrize(
    ("fields", "status"),
    [
        ({"name": "Upper"}, 400),
        ({"family": "Upper"}, 400),
        ({"labels": {"UPPER": "x"}}, 400),
        ({"sourceDisk": f"zones/{ZONE}/disks/nothing"}, 404),
        ({"sourceDisk": "zones/nowhere/disks/a"}, 400),
        ({"sourceDisk": "a"}, 400),
        ({"sourceImage": "global/images/nothing"}, 400),
        ({"sourceDisk": None}, 400),
        ({"sourceDisk": None, "sourceImage": "global/images/nothing"}, 404),
        ({"name": "taken"}, 409),
    ],
)
def test_what_no_image_can_be_made_of(rest, fields, status):
    rest.insert()
    stop(rest)
    make(rest, "taken")
    with pytest.raises(Refused) as caught:
        make(rest, **{"name": "i", **fields})
    assert caught.value.status == status
    assert [one["name"] for one in rest.get(IMAGES)["items"]] == ["taken"]


def test_the_newest_of_a_family_that_is_not_deprecated(rest):
    rest.insert()
    stop(rest)
    for name in ("i-1", "i-2"):
        make(rest, name, family="ours")
    assert rest.get(f"{IMAGES}/family/ours")["name"] == "i-2"
    link = "global/images/i-1"
    rest.wait(rest.post(f"{IMAGES}/i-2/deprecate", {"state": "DEPRECATED", "replacement": link}))
    deprecated = rest.get(f"{IMAGES}/i-2")["deprecated"]
    assert (deprecated["state"], deprecated["replacement"]) == ("DEPRECATED", link)
    assert rest.get(f"{IMAGES}/family/ours")["name"] == "i-1"
    rest.wait(rest.post(f"{IMAGES}/i-2/deprecate", {"state": "ACTIVE"}))
    assert rest.get(f"{IMAGES}/family/ours")["name"] == "i-2"
    for name in ("i-1", "i-2"):
        rest.wait(rest.delete(f"{IMAGES}/{name}"))
    with pytest.raises(Refused):
        rest.get(f"{IMAGES}/family/ours")


def test_labels_change_by_their_fingerprint(rest):
    rest.insert()
    stop(rest)
    image = make(rest, "i", labels={"a": "b"})
    change = {"labels": {"c": "d"}, "labelFingerprint": image["labelFingerprint"]}
    rest.wait(rest.post(f"{IMAGES}/i/setLabels", change))
    assert rest.get(f"{IMAGES}/i")["labels"] == {"c": "d"}
    with pytest.raises(Refused) as caught:
        rest.post(f"{IMAGES}/i/setLabels", change)
    assert caught.value.status == 412


def test_an_image_that_is_being_made_is_of_no_use_yet(discovery):
    with ComputeEmulator("paper", timings=Timings(imaging=3600)) as emulator:
        rest = Rest(emulator)
        rest.insert()
        stop(rest)
        rest.post(IMAGES, {"name": "i", "sourceDisk": DISK, "family": "ours"})
        assert rest.get(f"{IMAGES}/i")["status"] == "PENDING"
        from_it = instance("b", disks=[boot_disk(sourceImage="global/images/i")])
        for verb, path, body in (
            ("DELETE", f"{IMAGES}/i", None),
            ("POST", f"zones/{ZONE}/instances", from_it),
        ):
            with pytest.raises(Refused) as caught:
                rest.call(verb, path, body)
            assert caught.value.reason == "resourceNotReady"
        with pytest.raises(Refused) as caught:
            rest.get(f"{IMAGES}/family/ours")
        assert caught.value.status == 404


def test_an_image_that_fails_never_was(rest):
    rest.insert()
    stop(rest)
    error = {"code": "INTERNAL_ERROR", "message": "Internal error."}
    rest.emulator.faults.add(Fault("compute.images.insert", operation_errors=[error]))
    done = rest.wait(rest.post(IMAGES, {"name": "i", "sourceDisk": DISK}))
    assert done["error"]["errors"] == [error]
    assert "items" not in rest.get(IMAGES)


def test_googles_own_images_stay_as_they_are(rest):
    rest.insert()
    stop(rest)
    theirs = "/compute/v1/projects/cos-cloud/global/images"
    with pytest.raises(Refused):
        rest.post(theirs, {"name": "i", "sourceDisk": DISK})
    image = rest.call("GET", theirs)["items"][0]["name"]
    with pytest.raises(Refused):
        rest.delete(f"{theirs}/{image}")


def test_machines_boot_from_an_image_of_the_project(rest):
    rest.insert()
    stop(rest)
    make(rest, "i", family="ours")
    for number, link in enumerate(("global/images/i", "global/images/family/ours")):
        name = f"b-{number}"
        rest.insert(name=name, disks=[boot_disk(sourceImage=link)])
        disk = rest.get(f"zones/{ZONE}/disks/{name}")
        assert disk["sourceImage"].endswith(f"projects/{PROJECT}/global/images/i")
        assert rest.instance(name)["disks"][0]["licenses"] == disk["licenses"]
    too_small = instance("c", disks=[boot_disk(sourceImage="global/images/i", diskSizeGb="5")])
    with pytest.raises(Refused):
        rest.post(f"zones/{ZONE}/instances", too_small)
    with pytest.raises(Refused) as caught:
        rest.insert(name="c", disks=[boot_disk(sourceImage="global/images/nothing")])
    assert caught.value.status == 404


def test_what_a_disk_holds_goes_from_machine_to_image_to_machine(discovery):
    kind = Shelves()
    with ComputeEmulator(kind) as emulator:
        rest = Rest(emulator)
        rest.insert()
        stop(rest)
        make(rest, "i")
        rest.insert(name="b", disks=[boot_disk(sourceImage="global/images/i")])
        assert kind.machines["b"].contents.word == "/a"
        # A disk that is made first, and an image of an image, hold the same.
        rest.wait(rest.post(f"zones/{ZONE}/disks", {"name": "d", "sourceImage": "global/images/i"}))
        make(rest, "j", sourceDisk=None, sourceImage="global/images/i")
        assert kind.alive == ["/a"]
        # A disk that outlives its instance holds what that left on it.
        kept = {"source": f"zones/{ZONE}/disks/d", "boot": True, "autoDelete": False}
        rest.insert(name="e", disks=[kept])
        assert kind.machines["e"].contents.word == "/a"
        rest.wait(rest.delete(f"zones/{ZONE}/instances/e"))
        assert kind.alive == ["/a", "/a/e"]
        rest.insert(name="f", disks=[kept])
        assert kind.machines["f"].contents.word == "/a/e"
        make(rest, "k", sourceDisk=f"zones/{ZONE}/disks/d", force=True)
        assert kind.alive == ["/a", "/a/e", "/a/e/f"]
        # What nobody holds any more is removed.
        for name in ("i", "j", "k"):
            rest.wait(rest.delete(f"{IMAGES}/{name}"))
        assert kind.alive == ["/a", "/a/e"]
        rest.wait(rest.delete(f"zones/{ZONE}/instances/b"))
        assert kind.alive == ["/a/e"]
        for name in ("a", "f"):
            rest.wait(rest.delete(f"zones/{ZONE}/instances/{name}"))
        assert kind.alive == ["/a/e/f"]
        rest.wait(rest.delete(f"zones/{ZONE}/disks/d"))
        assert not kind.alive
        assert not emulator.leftovers()
