"""The machine image: made once, whole or not at all, of this host's own Debian."""

from __future__ import annotations

import json
import os
import shutil
import sys
import threading
import time
from pathlib import Path

import pytest
from machines import image_folder, needs_namespaces, write_archive

from dask_gce.emulator.machines.namespace import debian, images, store

MONTH = 31 * 86400


def say_nothing(line: str) -> None:
    """Tell nobody how far it is."""


def test_a_folder_is_made_once(tmp_path):
    made = []

    def build(folder: Path) -> None:
        made.append(folder)
        (folder / "file").write_text("content")

    for _ in range(2):
        assert images.make_once(tmp_path / "a" / "b", build, say_nothing) == tmp_path / "a" / "b"
    assert len(made) == 1
    assert (tmp_path / "a/b/file").read_text() == "content"


def test_a_folder_that_cannot_be_made_is_not_there(tmp_path):
    def fail(folder: Path) -> None:
        (folder / "file").write_text("half of it")
        raise RuntimeError("no more space")

    with pytest.raises(RuntimeError, match="no more space"):
        images.make_once(tmp_path / "a", fail, say_nothing)
    assert [each.name for each in tmp_path.iterdir()] == ["lock"]


def test_what_a_killed_builder_left_is_not_used(tmp_path):
    half = tmp_path / "a.building"
    half.mkdir()
    (half / "old").write_text("half of it")
    images.make_once(tmp_path / "a", lambda folder: (folder / "new").touch(), say_nothing)
    assert [each.name for each in (tmp_path / "a").iterdir()] == ["new"]
    assert not half.exists()


def test_two_builders_make_one_folder(tmp_path):
    begun, waiting, made, told = threading.Event(), threading.Event(), [], []

    def build(folder: Path) -> None:
        made.append(folder)
        begun.set()
        assert waiting.wait(60)

    def say(line: str) -> None:
        told.append(line)
        waiting.set()

    first = threading.Thread(target=images.make_once, args=(tmp_path / "a", build, say_nothing))
    first.start()
    assert begun.wait(60)
    images.make_once(tmp_path / "a", build, say)
    first.join()
    assert len(made) == 1
    assert told == ["Waiting for another process that makes this."]


def test_what_nobody_asked_for_in_a_month_goes(tmp_path):
    for name, age in (("old", MONTH), ("young", 0)):
        (tmp_path / name).mkdir()
        os.utime(tmp_path / name, (time.time() - age,) * 2)
    images.make_once(tmp_path / "new", lambda folder: None, say_nothing)
    assert sorted(each.name for each in tmp_path.iterdir()) == ["lock", "new", "young"]


def test_asking_for_a_folder_keeps_it(tmp_path):
    (tmp_path / "old").mkdir()
    os.utime(tmp_path / "old", (0, 0))
    images.make_once(tmp_path / "old", lambda folder: None, say_nothing)
    assert time.time() - (tmp_path / "old").stat().st_mtime < MONTH


def test_another_recipe_is_another_image(tmp_path, monkeypatch):
    before = images.image_folder()
    recipe = tmp_path / "recipe"
    shutil.copytree(images.RECIPE, recipe)
    monkeypatch.setattr(images, "RECIPE", recipe)
    assert images.image_folder() == before
    with (recipe / "packages.txt").open("a") as packages:
        packages.write("vim\n")
    assert images.image_folder() != before
    assert images.image_folder().parent == before.parent


@pytest.fixture
def host(tmp_path, monkeypatch):
    """Return a folder with a Debian's os-release and apt sources, and no programs at all."""
    if sys.platform != "linux":
        pytest.skip("the machine image takes Linux")
    (tmp_path / "os-release").write_text('ID=debian\nVERSION_CODENAME="bookworm"\n# no field\n')
    (tmp_path / "bin").mkdir()
    (tmp_path / "sources.list").write_text("deb file:/srv/debian bookworm main\n")
    monkeypatch.setattr(debian, "_OS_RELEASE", tmp_path / "os-release")
    monkeypatch.setattr(debian, "_APT", tmp_path)
    monkeypatch.setattr(debian, "_PATH", str(tmp_path / "bin"))
    monkeypatch.setattr(debian.os, "geteuid", lambda: 0)
    return tmp_path


def program(host: Path, name: str, *lines: str) -> None:
    """Put a shell script on the host's PATH."""
    (host / "bin" / name).write_text("\n".join(["#!/bin/sh", *lines, ""]))
    (host / "bin" / name).chmod(0o755)


def test_every_obstacle_has_a_remedy(host, monkeypatch):
    program(host, "unshare")
    assert debian.find_obstacle() == "There is no mmdebstrap here. Run: apt-get install mmdebstrap"
    program(host, "mmdebstrap")
    assert debian.find_obstacle() is None
    (host / "sources.list").write_text("# nothing\n\n")
    assert "Add your mirror" in str(debian.find_obstacle())
    (host / "sources.list.d").mkdir()
    (host / "sources.list.d" / "debian.sources").write_text("Types: deb\n")
    assert debian.find_obstacle() is None
    monkeypatch.setattr(debian.os, "geteuid", lambda: 1000)
    assert debian.find_obstacle() == "This takes root. Run the local Compute Engine as root."
    (host / "os-release").write_text("ID=fedora\n")
    assert "Debian" in str(debian.find_obstacle())
    (host / "os-release").unlink()
    assert "Debian" in str(debian.find_obstacle())


def test_an_obstacle_is_told_before_anything_is_made(host, monkeypatch):
    monkeypatch.setattr(images, "image_folder", lambda: host / "cache" / "image")
    with pytest.raises(RuntimeError, match="apt-get install mmdebstrap util-linux"):
        images.ensure_image(say_nothing)
    assert not (host / "cache" / "image").exists()


def test_mmdebstrap_gets_the_hosts_sources_and_says_how_far_it_is(host):
    program(host, "apt-config", "echo 'Acquire::http::Proxy \"proxy:80\";'", "echo 'APT \"\";'")
    program(host, "mmdebstrap")
    program(
        host,
        "unshare",
        f'printf "%s\\n" "$@" >{host}/arguments',
        f"/bin/cp {host}/debian.apt.conf {host}/configuration",
        "echo 'I: extracting archives...' >&2",
        "echo 'details' >&2",
    )
    said: list[str] = []
    debian.bootstrap(host / "debian", ["systemd", "curl"], said.append)
    assert said == ["Extracting archives..."]
    arguments = (host / "arguments").read_text().splitlines()
    assert arguments[-3:] == ["bookworm", str(host / "debian"), str(host / "sources.list")]
    assert "--include=systemd,curl" in arguments
    assert (host / "configuration").read_text() == 'Acquire::http::Proxy "proxy:80";\n'
    assert not (host / "debian.apt.conf").exists()


def test_what_mmdebstrap_could_not_do_is_told(host):
    program(host, "apt-config")
    program(host, "mmdebstrap")
    program(host, "unshare", "echo 'E: no route to the mirror'", "exit 25")
    with pytest.raises(RuntimeError, match="E: no route to the mirror"):
        debian.bootstrap(host / "debian", [], say_nothing)
    assert not (host / "debian.apt.conf").exists()


@needs_namespaces
def test_only_what_is_written_to_folders_stays(tmp_path):
    root = image_folder() / "root"
    mounts = Path("/proc/self/mounts").read_text()
    write = "echo kept > /srv/folder/file; echo lost > /etc/lost; rm /etc/os-release; cat /dev/null"
    store.run_in_image(root, ["sh", "-c", write], {str(tmp_path): "/srv/folder"})
    assert (tmp_path / "file").read_text() == "kept\n"
    assert (root / "etc/os-release").is_symlink()
    assert not (root / "etc/lost").exists()
    assert not list((root / "tmp").iterdir())
    assert Path("/proc/self/mounts").read_text() == mounts


@needs_namespaces
def test_what_fails_in_the_image_is_told():
    with pytest.raises(RuntimeError, match="no such luck"):
        store.run_in_image(image_folder() / "root", ["sh", "-c", "echo no such luck; exit 3"], {})


@needs_namespaces
def test_the_firmware_is_compute_engines_also_where_the_host_shows_its_own():
    look = (
        "set -e; cd /sys; mkdir -p devices/virtual/dmi/id; cd devices/virtual/dmi/id; "
        "echo 'of the host' > product_name; echo 0123 > /etc/machine-id; machine-identity; "
        "cd; cat /sys/devices/virtual/dmi/id/product_name; dmidecode -s system-serial-number; "
        "systemd-detect-virt; systemd-detect-virt --container || echo no container"
    )
    said = store.run_in_image(image_folder() / "root", ["sh", "-c", look], {})
    assert said.splitlines() == [
        "Google Compute Engine",
        "GoogleCloud-0123",
        "google",
        "none",
        "no container",
    ]


@needs_namespaces
def test_archives_are_loaded_into_a_store(tmp_path):
    root, made = image_folder() / "root", tmp_path / "store"
    layer = tmp_path / "layer.tar"
    store.run_in_image(
        root, ["tar", "-cf", "/srv/out/layer.tar", "/etc/motd"], {str(tmp_path): "/srv/out"}
    )
    names = ["localhost/one:1", "example.org/two:2"]
    archive = write_archive(tmp_path / "image.tar", names, {"Cmd": ["true"]}, [layer])
    store.load_images(root, made, [archive])
    listing = json.loads((made / "overlay-images/images.json").read_text())
    assert sorted(name for image in listing for name in image["names"]) == sorted(names)
