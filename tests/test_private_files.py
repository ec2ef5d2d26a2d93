"""Files with a secret: whole or not there, and nobody's but their owner's."""

from __future__ import annotations

import errno
import itertools
import os
import shlex
import socket
import stat
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

from dask_gce.errors import CredentialsError
from dask_gce.private_files import delete_private, read_private, write_private

LIMIT = 1000


@pytest.fixture
def path(tmp_path: Path) -> Path:
    # As on macOS, where it is "Application Support".
    return tmp_path / "a folder" / "clusters" / "farm" / "grid.json"


@contextmanager
def umask(mask: int) -> Iterator[None]:
    before = os.umask(mask)
    try:
        yield
    finally:
        os.umask(before)


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def refused(path: Path) -> str:
    with pytest.raises(CredentialsError) as caught:
        read_private(path, LIMIT)
    assert str(path) in str(caught.value)
    return str(caught.value)


# -- writing ----------------------------------------------------------------------------------


@pytest.mark.parametrize("mask", [0, 0o022, 0o777])
def test_a_file_and_its_folders_are_the_owners_alone_whatever_the_umask(
    path: Path, mask: int
) -> None:
    path.parents[2].mkdir()
    with umask(mask):
        write_private(path, b"secret")
    assert mode(path) == 0o600
    assert mode(path.parent) == mode(path.parents[1]) == 0o700
    assert read_private(path, LIMIT) == b"secret"


def test_the_users_folder_is_made_when_there_is_none(path: Path) -> None:
    write_private(path, b"secret")
    assert mode(path.parents[2]) == 0o700


def test_no_byte_is_written_before_the_file_is_closed_to_others(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []
    fchmod = os.fchmod

    def watched(descriptor: int, wanted: int) -> None:
        status = os.fstat(descriptor)
        seen.append((stat.S_IMODE(status.st_mode), status.st_size))
        fchmod(descriptor, wanted)

    monkeypatch.setattr(os, "fchmod", watched)
    with umask(0):
        write_private(path, b"secret")
    assert seen == [(0o600, 0)]


def test_folders_that_were_open_to_others_are_closed(path: Path) -> None:
    path.parent.mkdir(parents=True)
    for folder in (path.parent, path.parents[1]):
        folder.chmod(0o777)
    write_private(path, b"secret")
    assert mode(path.parent) == mode(path.parents[1]) == 0o700


def test_a_link_in_the_files_place_is_replaced_and_not_followed(path: Path, tmp_path: Path) -> None:
    target = tmp_path / "target"
    target.write_text("untouched")
    path.parent.mkdir(parents=True)
    path.symlink_to(target)
    write_private(path, b"secret")
    assert target.read_text() == "untouched"
    assert not path.is_symlink()
    assert read_private(path, LIMIT) == b"secret"


@pytest.mark.parametrize("level", [0, 1])
def test_no_folder_may_be_a_link(path: Path, tmp_path: Path, level: int) -> None:
    elsewhere = tmp_path / "elsewhere"
    (elsewhere / "farm").mkdir(parents=True)
    folder = path.parents[level]
    folder.parent.mkdir(parents=True)
    folder.symlink_to(elsewhere)
    before = sorted(elsewhere.rglob("*"))
    with pytest.raises(CredentialsError, match=r"cannot be written.*XDG_DATA_HOME"):
        write_private(path, b"secret")
    with pytest.raises(CredentialsError, match="cannot be read"):
        read_private(path, LIMIT)
    with pytest.raises(CredentialsError, match="cannot be deleted"):
        delete_private(path)
    assert sorted(elsewhere.rglob("*")) == before


@pytest.mark.parametrize("fault", [OSError(errno.ENOSPC, "No space"), KeyboardInterrupt()])
def test_a_write_that_fails_leaves_what_was_there(
    path: Path, monkeypatch: pytest.MonkeyPatch, fault: BaseException
) -> None:
    write_private(path, b"old")

    def full(descriptor: int) -> None:
        raise fault

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises((CredentialsError, KeyboardInterrupt)) as caught:
        write_private(path, b"new")
    if isinstance(fault, OSError):
        assert "No space" in str(caught.value)
        assert str(path) in str(caught.value)
    assert list(path.parent.iterdir()) == [path]
    assert read_private(path, LIMIT) == b"old"


@pytest.mark.parametrize("act", [lambda path: write_private(path, b"new"), delete_private])
def test_what_a_killed_process_had_begun_goes_in_time(path: Path, act) -> None:
    write_private(path, b"old")
    stale, fresh, others = (
        path.with_name(name) for name in (".grid.1.tmp", ".grid.2.tmp", ".grid-2.1.tmp")
    )
    for each in (stale, fresh, others):
        each.write_bytes(b"half a sec")
    for each in (stale, others):
        os.utime(each, (time.time() - 61, time.time() - 61))
    act(path)
    assert not stale.exists()
    assert fresh.exists()
    assert others.exists()


def test_readers_see_whole_files_only_while_others_write_and_delete(path: Path) -> None:
    contents = [bytes([letter]) * 100_000 for letter in b"ab"]
    write_private(path, contents[0])
    done = threading.Event()
    seen, missing = threading.Event(), threading.Event()

    def write(content: bytes) -> None:
        deadline = time.monotonic() + 30
        for number in itertools.count():
            # Until the reader has come at both kinds of moments.
            enough = number >= 60 and seen.is_set() and missing.is_set()
            if enough or time.monotonic() > deadline:
                break
            write_private(path, content)

    def delete() -> None:
        while not done.is_set():
            delete_private(path)
            done.wait(0.002)

    def read() -> None:
        while not done.is_set():
            try:
                assert read_private(path, 200_000) in contents
                seen.set()
            except FileNotFoundError:
                missing.set()

    with ThreadPoolExecutor(4) as pool:
        others = [pool.submit(read), pool.submit(delete)]
        try:
            for each in [pool.submit(write, content) for content in contents]:
                each.result()
        finally:
            done.set()
        for each in others:
            each.result()
    assert seen.is_set()
    assert missing.is_set()
    assert {entry.name for entry in path.parent.iterdir()} <= {path.name}


# -- reading ----------------------------------------------------------------------------------


def test_a_file_that_is_not_there(path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        read_private(path, LIMIT)
    path.parent.mkdir(parents=True)
    with pytest.raises(FileNotFoundError):
        read_private(path, LIMIT)


@pytest.mark.parametrize("open_to_others", [0o640, 0o620, 0o610, 0o604, 0o602, 0o601])
def test_a_file_that_others_can_use_is_refused_with_the_remedy(
    path: Path, open_to_others: int
) -> None:
    write_private(path, b"secret")
    path.chmod(open_to_others)
    message = refused(path)
    assert f"(mode {open_to_others:04o})" in message
    _, command, wanted, target = shlex.split("run: " + message.split("run: ")[1])
    assert (command, wanted, target) == ("chmod", "600", str(path))
    Path(target).chmod(int(wanted, 8))
    assert read_private(path, LIMIT) == b"secret"


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
def test_not_even_root_reads_what_belongs_to_somebody_else(path: Path) -> None:
    write_private(path, b"secret")
    os.chown(path, 12_345, -1)
    message = refused(path)
    assert "another user (uid 12345)" in message
    assert f"sudo chown 0 {shlex.quote(str(path))}" in message


def test_a_folder_that_belongs_to_somebody_else_is_refused(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_private(path, b"secret")
    owner = os.geteuid()
    monkeypatch.setattr(os, "geteuid", lambda: owner + 1)
    refusal = rf"folder clusters in .* another user \(uid {owner}\)"
    with pytest.raises(CredentialsError, match=refusal):
        read_private(path, LIMIT)
    with pytest.raises(CredentialsError, match=refusal):
        write_private(path, b"new")
    with pytest.raises(CredentialsError, match=refusal):
        delete_private(path)


def test_a_link_is_refused(path: Path, tmp_path: Path) -> None:
    write_private(path, b"secret")
    moved = path.rename(tmp_path / "moved")
    path.symlink_to(moved)
    assert "symbolic link" in refused(path)


@pytest.mark.parametrize("kind", ["pipe", "folder"])
def test_what_is_no_file_is_refused_at_once(path: Path, kind: str) -> None:
    path.parent.mkdir(parents=True)
    if kind == "pipe":
        os.mkfifo(path, 0o600)
    else:
        path.mkdir(0o700)
    assert "no regular file" in refused(path)


def test_a_socket_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "clusters" / "farm" / "grid.json"
    path.parent.mkdir(parents=True)
    # The name of a socket may have a hundred bytes only.
    monkeypatch.chdir(path.parent)
    with closing(socket.socket(socket.AF_UNIX)) as server:
        server.bind(path.name)
        assert "cannot be read" in refused(path)


def test_a_file_that_is_too_large_is_refused(path: Path) -> None:
    write_private(path, bytes(LIMIT))
    assert len(read_private(path, LIMIT)) == LIMIT
    write_private(path, bytes(LIMIT + 1))
    assert f"{LIMIT + 1} bytes" in refused(path)


# -- deleting ---------------------------------------------------------------------------------


def test_deleting_tells_whether_there_was_a_file(path: Path) -> None:
    assert not delete_private(path)
    write_private(path, b"secret")
    assert delete_private(path)
    assert not path.exists()
    assert not delete_private(path)


def test_a_file_that_cannot_be_deleted_is_named_with_the_command(path: Path) -> None:
    path.mkdir(parents=True)
    with pytest.raises(CredentialsError) as caught:
        delete_private(path)
    assert f"rm -r {shlex.quote(str(path))}" in str(caught.value)
