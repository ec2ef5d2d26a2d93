"""What keeps a namespace machine from its host: a guest that is root and means no good at all.

That machines write to their own disks only, and die of their own size only, is tested in
`test_namespace_machine`; here guests try to get further. Every test is such that a host on which
the attempt succeeded would not be harmed.
"""

from __future__ import annotations

import errno
import os
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from rest import ZONE
from test_namespace_machine import (
    Machines,
    needs_namespaces,
    quick_kind,
    running,
    wait_until,
)

from dask_gce.emulator.machines.namespace.kind import NamespaceKind
from dask_gce.emulator.machines.namespace.obstacles import BASE
from dask_gce.emulator.machines.namespace.vpc.cgroups import ROOT, unified_only
from dask_gce.emulator.machines.namespace.vpc.device_filter import attach_filter
from dask_gce.emulator.machines.namespace.vpc.paths import make_folder, within


def unified_folder() -> Path:
    """Return where control groups of version 2 are."""
    return Path(ROOT) if unified_only() else Path(ROOT, "unified")


def is_removed(group: Path) -> bool:
    """Remove a control group; tell whether that worked. It shows nobody before nobody is in it."""
    try:
        group.rmdir()
    except OSError as error:
        assert error.errno == errno.EBUSY, error
        return False
    return True


COS = "projects/cos-cloud/global/images/family/cos-stable"


@pytest.fixture
def machines() -> Iterator[Machines]:
    with running(quick_kind()) as machines:
        yield machines


def test_links_of_a_machine_lead_nowhere_but_into_the_machine(tmp_path):
    root = tmp_path / "root"
    (root / "usr/lib").mkdir(parents=True)
    for name, link in {
        "etc": "/usr/lib",
        "lib": "usr/lib",
        "up": "../../../..",
        "usr/back": "../etc/x",
        "circle": "/circle",
    }.items():
        (root / name).symlink_to(link)
    for path, place in {
        "/etc/hosts": "/usr/lib/hosts",
        "lib": "/usr/lib",
        "up/etc/hosts": "/usr/lib/hosts",
        "usr/back": "/usr/lib/x",
        "not/there": "/not/there",
        "/../a/./b/../c": "/a/c",
    }.items():
        assert within(str(root), path) == f"{root}{place}"
    with pytest.raises(OSError, match="symbolic links"):
        within(str(root), "circle")


def test_a_folder_is_made_where_a_guest_has_left_what_cannot_be_gone_through(tmp_path):
    root = tmp_path / "root"
    root.mkdir()
    (root / "etc").symlink_to("/nowhere/else")
    (root / "tmp").symlink_to("/tmp/below")
    (root / "mnt").write_text("a file")
    for path, place in {
        "etc/default": "/nowhere/else/default",
        "tmp": "/tmp",
        "mnt/disks": "/mnt/disks",
        "new/folder": "/new/folder",
    }.items():
        assert make_folder(str(root), path) == f"{root}{place}"
        assert Path(f"{root}{place}").is_dir()


@needs_namespaces
@pytest.mark.parametrize("image", ["projects/debian-cloud/global/images/family/debian-12", COS])
@pytest.mark.parametrize("circle", [False, True])
def test_a_boot_does_not_follow_a_guests_links_to_the_host(image, circle):
    kind = quick_kind()
    # What it removes first is as large as the host has it.
    kind.hidden.append("/var/lib")
    # Not below /tmp, which the guest makes a link as well: every link would end there.
    with tempfile.TemporaryDirectory(dir="/var/tmp") as place:
        folders = [Path(place, name) for name in ("etc", "lib", "mnt", "tmp")]
        for folder in folders:
            folder.mkdir()
            folder.chmod(0o700)
        with running(kind) as machines:
            boot_with_links(machines, image, folders, circle)
        assert [list(folder.iterdir()) for folder in folders] == [[]] * 4
        assert {folder.stat().st_mode & 0o7777 for folder in folders} == {0o700}


def boot_with_links(machines: Machines, image: str, folders: list[Path], circle: bool) -> None:
    etc, lib, mnt, tmp = folders
    # Root remounts what is read-only, and lets go of what is busy.
    script = f"""#!/bin/bash
[ -e /seen ] && {{ cat /etc/hostname; exit; }}
mount -o remount,rw / && touch /seen
umount -l /etc /var/lib/* /var /mnt/* /tmp 2>/dev/null
for pair in /etc:{etc} /var/lib:{lib} /mnt:{mnt} /tmp:{"/tmp/below" if circle else tmp}
do rm -rf ${{pair%:*}}; ln -s ${{pair#*:}} ${{pair%:*}}; done
echo linked
"""
    machines.boot("a", script, image=image)
    machines.until_said("a", "startup-script: linked")
    machines.act("a", "reset")
    wanted = "startup-script: a\n" if "debian" in image else "startup-script"
    machines.until_said("a", wanted, 1 if "debian" in image else 2)


@needs_namespaces
def test_a_guest_cannot_open_the_hosts_devices_whatever_it_allows_itself(machines):
    # The kernel's log, which every host has; to open it to write changes nothing.
    script = """#!/bin/bash
mknod /log c 1 11
allow=/sys/fs/cgroup/devices/devices.allow
if [ -e $allow ]; then echo 'c *:* rwm' >$allow; echo a >$allow; fi
: >/log && echo opened
echo tried
"""
    lines = machines.run("a", script)
    assert any("Operation not permitted" in one for one in lines), lines
    assert "opened" not in lines
    assert lines[-1] == "tried"


@needs_namespaces
@pytest.mark.skipif(
    not unified_folder().is_dir(), reason="this host has no control groups, version 2"
)
def test_where_version_2_is_alone_its_filter_keeps_the_hosts_devices_away():
    group = unified_folder() / f"dask-gce-test-{os.getpid()}"
    script = f"""echo $$ >{group}/cgroup.procs
mknod log c 1 11 && echo made
: >log && echo opened
: >/dev/null && head -c 1 /dev/urandom | wc -c
"""
    group.mkdir()
    try:
        attach_filter(str(group), [(1, 3), (1, 9), (136, None)])
        with tempfile.TemporaryDirectory() as folder:
            done = subprocess.run(
                ["bash", "-c", script], check=False, capture_output=True, text=True, cwd=folder
            )
    finally:
        wait_until(lambda: is_removed(group), "nobody is in the group, and it is removed")
    assert done.stdout.split() == ["made", "1"]
    assert "Operation not permitted" in done.stderr


@needs_namespaces
def test_a_guest_cannot_give_itself_memory(machines):
    script = """#!/bin/bash
for file in memory/memory.memsw.limit_in_bytes memory/memory.limit_in_bytes memory.max
do [ -e /sys/fs/cgroup/$file ] && echo 8G >/sys/fs/cgroup/$file; done 2>/dev/null
head -c 1500M /dev/zero | tail -c 1400M | wc -c
echo tried
"""
    small = f"zones/{ZONE}/machineTypes/e2-micro"
    lines = machines.run("a", script, machineType=small)
    assert lines[-2:] == ["0", "tried"], lines


@needs_namespaces
def test_a_guest_lacks_the_rights_that_reach_beyond_it(machines):
    (line,) = machines.run("a", "grep CapBnd /proc/self/status")
    mask = int(line.split()[1], 16)
    # DAC_READ_SEARCH opens files by numbers, also those of the host; the others change its kernel.
    for number in (2, 16, 17, 25, 34):
        assert not mask >> number & 1, number


@needs_namespaces
@pytest.mark.skipif(
    Path("/var/tmp").stat().st_dev != Path("/").stat().st_dev,
    reason="quick machines see the root file system of the host, of which /var/tmp is not a part",
)
def test_quick_machines_see_nobodys_home_nor_credentials(monkeypatch):
    # Not in the folder of tests: of /tmp a machine sees nothing in any case, as is shown last.
    with (
        tempfile.TemporaryDirectory(dir="/var/tmp") as folder,
        tempfile.NamedTemporaryFile(dir="/tmp") as passing,
    ):
        home, gcloud, key = (Path(folder, name) for name in ("home", "gcloud", "key.json"))
        for secret in (home / ".ssh/id_rsa", gcloud / "credentials.db", key):
            secret.parent.mkdir(exist_ok=True, parents=True)
            secret.write_text("secret")
        home.chmod(0o711)
        monkeypatch.setenv("HOME", str(home))
        monkeypatch.setenv("CLOUDSDK_CONFIG", str(gcloud))
        monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(key))
        script = f"""#!/bin/bash
umount --all-targets --quiet {home} {BASE} /root /home
ls -A /root /home {home} {gcloud} {BASE} {folder}
stat --format %a {home} && mkdir -p {home}/x && echo writes
rm -r {home} && mkdir {home} && ls -A {home}
unshare --mount sh -c "umount -l /tmp && ls -A /tmp && echo nothing there"
"""
        with running(NamespaceKind(quick=True)) as machines:
            lines = machines.run("a", script)
            machines.act("a", "reset")
            machines.until_said("a", "startup-script exit status", 2)
            again = machines.console("a")
        shown = [one for one in lines if one and not one.endswith(":")]
        assert shown == ["gcloud", "home", "711", "writes", "nothing there"]
        secrets = ("id_rsa", "credentials.db", "key.json", Path(passing.name).name)
        assert not any(one in again for one in secrets)


@needs_namespaces
def test_a_shared_folder_can_lie_in_a_home():
    with tempfile.TemporaryDirectory(dir="/root", prefix="dask-gce-test-") as folder:
        Path(folder, "file").write_text("shared")
        kind = NamespaceKind(quick=True, shared_folders={f"{folder}/there": Path(folder)})
        with running(kind) as machines:
            assert machines.run("a", f"cat {folder}/there/file; echo; ls /root") == [
                "shared",
                Path(folder).name,
            ]
