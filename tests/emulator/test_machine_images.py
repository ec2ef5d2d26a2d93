"""What the disk of a process machine holds goes into images, and to the machines made from them."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from machine_bench import (
    Exits,
    make_record,
    new_machine,
    run_script,
    script_output,
    started_kind,
    until,
    until_said,
)

from dask_gce.emulator.machines.disk_copies import copy_tree
from dask_gce.emulator.machines.process import ProcessKind

#: Something of each sort, and something that does not outlive a boot.
WRITE = """#!/bin/sh
cd "$HOME" || exit 1
mkdir -p deep/er
echo kept >deep/er/file
printf '#!/bin/sh\\necho it runs\\n' >program
chmod 700 program
ln -s /etc/hostname link
mkfifo pipe
echo gone >"$TMPDIR/passing"
poweroff
"""

READ = """#!/bin/sh
cd "$HOME" || exit 1
cat deep/er/file
./program
readlink link
ls -A . "$TMPDIR"
echo more >>deep/er/file
"""


@pytest.fixture
async def kind() -> AsyncIterator[ProcessKind]:
    async with started_kind() as made:
        yield made


async def written(kind: ProcessKind):
    """Return a machine that has written to its disk and is off."""
    exits = Exits()
    machine = new_machine(kind, make_record("a", WRITE), exits)
    await machine.boot()
    await until(lambda: exits)
    return machine


async def read(kind: ProcessKind, name: str, contents) -> list[str]:
    """Return what a machine sees that begins with these contents."""
    machine = new_machine(kind, make_record(name, READ))
    machine.contents = contents
    await machine.boot()
    await until_said(machine, "startup-script exit status")
    return script_output(machine).splitlines()


async def test_new_machines_begin_with_what_the_disk_held(kind):
    machine = await written(kind)
    contents = await machine.capture()
    await machine.discard()
    expected = ["kept", "it runs", "/etc/hostname", ".:", "deep", "link", "program"]
    for name in ("b", "c"):
        # Each has a copy of its own: what one adds the next does not see.
        seen = await read(kind, name, contents)
        assert [one for one in seen if one][: len(expected)] == expected
        assert "passing" not in seen
    await contents.discard()
    assert not contents.folder.exists()


async def test_a_machine_that_never_booted_holds_what_it_would_begin_with(kind):
    contents = await (await written(kind)).capture()
    fresh = new_machine(kind, make_record("b"))
    assert await fresh.capture() is None
    fresh.contents = contents
    assert await fresh.capture() is contents


async def test_a_machine_without_contents_begins_empty(kind):
    assert (await run_script(kind, 'ls -A "$HOME"')).strip() == ""


def test_links_are_copied_and_never_followed(tmp_path):
    secret = tmp_path / "secret"
    secret.write_text("secret")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder/file").write_text("secret")
    source, target = tmp_path / "source", tmp_path / "target"
    source.mkdir()
    target.mkdir()
    (source / "file").symlink_to(secret)
    (source / "folder").symlink_to(tmp_path / "folder")
    (source / "left-out").write_text("x")
    os.mkfifo(source / "pipe")
    copy_tree(source, target, uid=None, without={"left-out"})
    assert {one.name: Path(one).is_symlink() for one in target.iterdir()} == {
        "file": True,
        "folder": True,
    }
    with pytest.raises(OSError, match=r"Not a directory|Too many levels"):
        copy_tree(source / "folder", target, uid=None)


def test_copies_are_for_the_new_owner_and_without_special_rights(tmp_path):
    source, target = tmp_path / "source", tmp_path / "target"
    source.mkdir()
    target.mkdir()
    (source / "file").write_text("x")
    (source / "file").chmod(0o4755)
    uid = 4242 if os.geteuid() == 0 else os.geteuid()
    copy_tree(source, target, uid=uid if os.geteuid() == 0 else None)
    found = (target / "file").stat()
    assert (found.st_uid, found.st_mode & 0o7777) == (uid, 0o755)
