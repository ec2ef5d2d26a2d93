"""Whether the process that made a cluster lives: wrong in no case, unknown if in doubt."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from dask_gce import client, names
from dask_gce.client import client_mark, client_state, current_user

SLEEP = "import sys, time; print(flush=True); time.sleep(60)"
TELL = "from dask_gce.client import client_mark; print(client_mark())"


def parts():
    """Return the mark of this process in its four parts."""
    return client_mark().split("-")


@pytest.fixture
def child():
    """Return a process that lives."""
    with subprocess.Popen([sys.executable, "-c", SLEEP], stdout=subprocess.PIPE) as process:
        process.stdout.readline()
        yield process
        process.kill()


def mark_of(pid):
    host, boot, _, _ = parts()
    return f"{host}-{boot}-{pid}-{client._start(pid)}"


def test_a_mark_is_a_label_value_and_lasts():
    names.check_label(names.CLIENT_LABEL, client_mark())
    assert re.fullmatch(r"[0-9a-f]{8}-[0-9a-f]{8}-\d+-\d+", client_mark())
    assert client_mark() == client_mark()
    assert len(client_mark()) <= 50


def test_this_process_and_another_live(child):
    assert client_state(client_mark()) == "alive"
    assert client_state(mark_of(child.pid)) == "alive"


def test_a_mark_made_by_another_process_is_read_here():
    told = subprocess.run([sys.executable, "-c", TELL], capture_output=True, text=True, check=True)
    assert told.stdout.split("-")[:2] == parts()[:2]
    assert client_state(told.stdout.strip()) == "gone"


def test_a_process_that_ended_is_gone_waited_for_or_not(child):
    mark = mark_of(child.pid)
    child.kill()
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
    assert client_state(mark) == "gone"
    child.wait()
    assert client_state(mark) == "gone"


def test_a_number_that_was_given_again_is_another_process(child):
    host, boot, pid, start = mark_of(child.pid).split("-")
    assert client_state(f"{host}-{boot}-{pid}-{int(start) - 1}") == "gone"


def test_what_is_of_another_host_or_no_mark_is_unknown():
    host, boot, pid, start = parts()
    other = format(int(host, 16) ^ 1, "08x")
    assert client_state(f"{other}-{boot}-{pid}-{start}") == "unknown"
    for text in ("", "me", f"{host}-{boot}-{pid}", f"{host}-{boot}-0-1", f"{host}-{boot}--1-1"):
        assert client_state(text) == "unknown"
    assert client_state(f"{host}-{boot}-{'9' * 12}-1") == "unknown"


def test_a_detached_cluster_has_no_process():
    assert client_mark(detached=True) == client_state("detached") == "detached"


@pytest.fixture
def on_linux(tmp_path, monkeypatch):
    """Show another computer: its boot, its identity, its namespace."""
    if not sys.platform.startswith("linux"):
        pytest.skip("needs /proc")
    (tmp_path / "sys/kernel/random").mkdir(parents=True)
    (tmp_path / "self/ns").mkdir(parents=True)
    (tmp_path / "self/stat").touch()

    def show(boot="1", machine="m", outermost=True, namespace="1"):
        (tmp_path / "sys/kernel/random/boot_id").write_text(f"{boot}\n")
        (tmp_path / "machine-id").write_text(machine)
        # Their files have numbers, as namespaces do.
        file, link = tmp_path / f"namespace-{namespace}", tmp_path / "self/ns/pid"
        file.touch()
        link.unlink(missing_ok=True)
        link.symlink_to(file)
        number = file.stat().st_ino
        monkeypatch.setattr(client, "_OUTERMOST", number if outermost else number + 1)
        monkeypatch.setattr(client, "_PROC", tmp_path)
        monkeypatch.setattr(client, "_MACHINE_ID", tmp_path / "machine-id")
        monkeypatch.setattr(Path, "readlink", lambda path: Path(str(os.getpid())))
        return client._host()

    return show


def test_a_computer_that_started_again_has_lost_its_processes(on_linux):
    host = on_linux(boot="1")
    on_linux(boot="2")
    assert client_state(f"{host.name}-{host.boot}-{os.getpid()}-1") == "gone"


@pytest.mark.parametrize("kind", [{"outermost": False}, {"machine": ""}])
def test_a_container_that_started_again_is_another(on_linux, kind):
    host = on_linux(boot="1", **kind)
    on_linux(boot="2", **kind)
    assert client_state(f"{host.name}-{host.boot}-{os.getpid()}-1") == "unknown"


def test_containers_and_computers_differ(on_linux, monkeypatch):
    seen = {on_linux().name, on_linux(machine="n").name, on_linux(outermost=False).name}
    seen.add(on_linux(outermost=False, namespace="2").name)
    monkeypatch.setattr(client.socket, "gethostname", lambda: "elsewhere")
    seen.add(on_linux().name)
    assert len(seen) == 5


def test_processes_that_are_not_shown_are_unknown(on_linux, tmp_path, monkeypatch):
    host = on_linux()
    mark = f"{host.name}-{host.boot}-{os.getpid()}-1"
    # The number is taken, but /proc shows nobody: somebody else's, hidden.
    assert client_state(mark) == "unknown"
    gone = f"{host.name}-{host.boot}-999999999-1"
    assert client_state(gone) == "gone"
    monkeypatch.setattr(Path, "readlink", lambda path: Path("1"))
    assert client_state(gone) == "unknown"


def test_a_program_may_have_any_name(on_linux, tmp_path):
    on_linux()
    fields = ["S", *map(str, range(4, 60))]
    (tmp_path / "77").mkdir()
    (tmp_path / "77/stat").write_text(f"77 (a) R 1 (b)) {' '.join(fields)}\n")
    assert client._start(77) == 22


def test_without_proc_psutil_tells(tmp_path, monkeypatch, child):
    monkeypatch.setattr(client, "_PROC", tmp_path / "none")
    assert client_state(client_mark()) == "alive"
    mark = mark_of(child.pid)
    assert int(mark.split("-")[3]) == pytest.approx(time.time(), abs=60)
    assert client_state(mark) == "alive"
    child.kill()
    child.wait()
    assert client_state(mark) == "gone"
    assert not psutil.pid_exists(child.pid)


def test_a_user_without_a_name_is_nobody(monkeypatch):
    monkeypatch.setenv("LOGNAME", "ada")
    assert current_user() == "ada"
    for variable in ("LOGNAME", "USER", "LNAME", "USERNAME"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setattr(os, "getuid", lambda: 987_654_321)
    assert current_user() == ""
