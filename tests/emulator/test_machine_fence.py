"""A process machine never changes its host, also when the emulator is root."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from machine_bench import (
    console,
    make_record,
    new_machine,
    run_script,
    script_output,
    started_kind,
    until_said,
)

from dask_gce.emulator.machines.fence import probe_fence
from dask_gce.emulator.machines.guest.sandbox import landlock_abi
from dask_gce.emulator.machines.supervision import Supervision

#: The user without any right, by convention.
NOBODY = 65534

needs_landlock = pytest.mark.skipif(not landlock_abi(), reason="the kernel has no Landlock")
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="this is about root")


@pytest.fixture
def victim(tmp_path: Path) -> Path:
    """A folder of the host's, with a file in it that everybody may write."""
    folder = tmp_path / "host"
    folder.mkdir(mode=0o777)
    (folder / "file").write_text("as it was\n")
    for path in (folder, folder / "file"):
        path.chmod(0o777)
    for parent in tmp_path.parents[:3]:
        parent.chmod(parent.stat().st_mode | 0o011)
    tmp_path.chmod(0o711)
    return folder


@pytest.fixture
def kept() -> Iterator[Path]:
    """A folder that root made where its distribution's files are."""
    folder = Path("/usr/local/lib/dask-gce-fence-test")
    folder.mkdir(exist_ok=True)
    yield folder
    folder.rmdir()


@pytest.fixture
def sleeper() -> Iterator[subprocess.Popen[bytes]]:
    """A process of the host's."""
    with subprocess.Popen(["/bin/sleep", "1000"]) as process:
        yield process
        process.kill()


def present(*paths: str) -> list[str]:
    return [path for path in paths if Path(path).exists()]


def look(folder: Path) -> dict[str, tuple[int, int, int]]:
    found = {}
    for path in (folder, *folder.rglob("*")):
        status = path.lstat()
        found[str(path)] = status.st_mode, status.st_uid, status.st_mtime_ns
    return found


ATTACKS = """
cd {folder}
echo changed > file; echo more >> file; truncate -s 0 file; dd if=/dev/zero of=file count=1
echo new > new; mkdir folder; mkfifo pipe; ln -s / link; ln file hard; mv file elsewhere
rm -f file; rm -rf {folder}; cp /etc/hosts copy; install -m 755 /bin/true true
mv $HOME {folder}/home; python3 -c 'import os; os.rename("file", "$HOME/file")'
python3 -c 'import socket; socket.socket(socket.AF_UNIX).bind("socket")'
echo still here
"""


@needs_landlock
async def test_a_guest_cannot_write_outside_its_folder_even_where_anybody_may(victim):
    before = look(victim)
    async with started_kind() as kind:
        text = await run_script(kind, ATTACKS.format(folder=victim))
    assert text.endswith("still here")
    assert look(victim) == before
    assert (victim / "file").read_text() == "as it was\n"


@needs_root
async def test_root_outside_is_nobody_there(victim, kept):
    for path, mode in ((victim, 0o755), (victim / "file", 0o644)):
        path.chmod(mode)
    # Should the fence ever fail, this must not ruin the host: what is tried there is harmless.
    paths = ["/etc/hosts", "/var/lib", "/root", str(kept), str(victim), str(victim / "file")]
    before = {path: os.lstat(path) for path in paths}
    script = (
        "id -u; echo '# fence test' >> /etc/hosts; touch /etc/hosts; rm -rf " + str(kept) + "\n"
        "mkdir /var/lib/dask-gce-fence-test; echo x > /root/dask-gce-fence-test\n"
        f"cd {victim}; for path in . file; do\n"
        "/bin/chmod 777 $path; touch $path; /bin/chown 0:0 $path; chattr +i $path\n"
        "python3 -c 'import os, sys; os.utime(sys.argv[1])' $path\n"
        'python3 -c \'import os, sys; os.setxattr(sys.argv[1], "user.x", b"x")\' $path\n'
        "unshare --user --map-root-user /bin/chmod 777 $path\n"
        "done\n"
        f"/bin/mount -t tmpfs none {victim} && echo failure: mount\n"
        "unshare --mount true && echo failure: unshare\n"
        "python3 -c 'import os, socket; socket.sethostname(os.uname().nodename)' &&\n"
        "echo failure: name\n"
        "python3 -c 'import os; os.setuid(65533)' && echo failure: setuid\n"
        "kill -0 1 && echo failure: signal; cat /proc/1/environ > $HOME/x && echo failure: environ"
    )
    async with started_kind() as kind:
        text = await run_script(kind, script)
    after = {path: os.lstat(path) for path in paths}
    assert text.split("\n")[0] == "0"
    assert "failure" not in text
    for path in paths:
        # In these anybody of the host may make something at any time.
        times = () if path in ("/var/lib", "/root") else ("st_mtime_ns", "st_ctime_ns")
        for what in ("st_mode", "st_uid", "st_gid", *times):
            assert getattr(after[path], what) == getattr(before[path], what), (path, what)
    assert not present("/var/lib/dask-gce-fence-test", "/root/dask-gce-fence-test")


@needs_root
async def test_root_that_cannot_give_up_its_power_is_refused(monkeypatch):
    monkeypatch.setattr(Supervision, "can_map", lambda self, uid: False)
    monkeypatch.setattr(Supervision, "can_become", lambda self, uid: False)
    with pytest.raises(RuntimeError, match=r"user\.max_user_namespaces.* ordinary user"):
        async with started_kind():
            pass


@needs_root
@pytest.mark.parametrize("landlock", [True, False])
async def test_without_user_namespaces_a_guest_of_root_is_an_ordinary_user(
    monkeypatch, victim, landlock
):
    """As in a container, whose rules forbid user namespaces."""
    monkeypatch.setattr(Supervision, "can_map", lambda self, uid: False)
    if not landlock:
        monkeypatch.setattr("dask_gce.emulator.machines.fence.landlock_abi", lambda: 0)
    try:
        async with started_kind() as kind:
            victim.chmod(0o755)
            (victim / "file").chmod(0o644)
            secret = victim / "secret"
            secret.write_text("of root's")
            secret.chmod(0o600)
            before = look(victim)
            machine = new_machine(kind, make_record("m", "id -u; cat " + str(secret)))
            text = await run_script(kind, "id -u; cat /etc/shadow " + ATTACKS.format(folder=victim))
            await machine.boot()
            await until_said(machine, "exit status 1")
            assert "is an ordinary user" in console(machine)
            assert "of root's" not in console(machine)
            assert look(victim) == before
    except RuntimeError as error:
        pytest.skip(f"another user cannot run this Python: {error}")
    assert int(text.split("\n")[0]) > 10**9
    assert text.endswith("still here")


@pytest.mark.skipif(landlock_abi() < 6, reason="the kernel's Landlock lets signals through")
async def test_a_guest_can_signal_only_its_own_machine(sleeper):
    async with started_kind() as kind:
        other = new_machine(kind, make_record("other", "echo up; sleep 1000"))
        await other.boot()
        await until_said(other, "startup-script: up")
        script = f"kill -9 {sleeper.pid} || echo refused; kill -9 {other.pid} || echo refused"
        assert (await run_script(kind, script)).count("refused") == 2
        assert other.pid is not None
    assert sleeper.poll() is None


@needs_root
async def test_shared_memory_of_killed_guests_is_removed():
    names = ["/dev/shm/dask-gce-fence-test-a", "/dev/shm/dask-gce-fence-test-b"]
    async with started_kind() as kind:
        for name in names:
            machine = new_machine(kind, make_record("m", f"echo x > {name} && echo made; sleep 99"))
            await machine.boot()
            await until_said(machine, "startup-script: made")
        assert present(*names) == names
    assert not present(*names)


@needs_root
async def test_guests_see_neither_each_others_metadata_nor_disks_nor_processes():
    async with started_kind() as kind:
        script = "echo precious > $HOME/file; (sleep 99 &); echo up"
        one = new_machine(kind, make_record("one", script, secret="s3cret"))
        await one.boot()
        await until_said(one, "startup-script: up")
        assert one.folder is not None
        home = one.folder / "disk" / "home"
        (port,) = re.findall(r"metadata server on port (\d+)", console(one))
        ask = "curl -s -H Metadata-Flavor:Google"
        text = await run_script(
            kind,
            f"{ask} http://{one.address}:{port}/computeMetadata/v1/instance/attributes/secret\n"
            f"ls {home}; cat {home}/file; cat /proc/{one.pid}/environ; kill -9 {one.pid}; "
            f"{ask} http://metadata.google.internal/computeMetadata/v1/instance/attributes/secret",
            name="two",
            secret="its own",
        )
        assert "s3cret" not in text
        assert "precious" not in text
        assert "Only this machine" in text
        assert text.count("Permission denied") >= 3
        assert text.endswith("its own")
        assert one.pid is not None
        assert len(kind.users) == 2
        await one.discard()
        assert len(kind.users) == 1


@pytest.mark.skipif(sys.platform != "linux", reason="semaphores are no files elsewhere")
async def test_semaphores_of_killed_guests_are_removed():
    script = (
        "exec python3 -c 'import multiprocessing, time\n"
        'lock = multiprocessing.get_context("spawn").Lock()\n'
        "print(lock._semlock.name, flush=True)\n"
        "time.sleep(1000)'"
    )
    async with started_kind() as kind:
        machine = new_machine(kind, make_record("m", script))
        await machine.boot()
        await until_said(machine, f"/{kind.layout.folder.name}-")
        semaphore = "/dev/shm/sem." + script_output(machine).removeprefix("/")
        assert present(semaphore)
        await machine.kill()
        assert not present(semaphore)


@pytest.mark.skipif(sys.platform != "linux", reason="semaphores are no files elsewhere")
async def test_semaphores_that_nobody_could_remove_go_with_the_emulator():
    script = (
        "exec python3 -c 'import multiprocessing, os, signal\n"
        "from multiprocessing import resource_tracker\n"
        'lock = multiprocessing.get_context("spawn").Lock()\n'
        "print(lock._semlock.name, flush=True)\n"
        "os.kill(resource_tracker._resource_tracker._pid, signal.SIGKILL)\n"
        "os.kill(os.getpid(), signal.SIGKILL)'"
    )
    async with started_kind() as kind:
        machine = new_machine(kind, make_record("m", script))
        await machine.boot()
        await until_said(machine, "exit status")
        name = script_output(machine).split("\n")[0].removeprefix("/")
        assert present(f"/dev/shm/sem.{name}")
        await machine.discard()
    assert not present(f"/dev/shm/sem.{name}")


async def test_what_a_program_needs_it_may_write():
    script = (
        "echo > /dev/null; echo > /dev/tty; echo one > $HOME/one; mv $HOME/one $TMPDIR/two\n"
        "echo to stdout > /dev/stdout; f=$(mktemp -d) && chmod 700 $f && ln -s $f $HOME/link\n"
        "python3 -c 'import multiprocessing; multiprocessing.Lock(); print(\"semaphores\")'\n"
        "cat $TMPDIR/two; curl -sf file:///etc/hosts > /dev/null && echo reads"
    )
    async with started_kind() as kind:
        text = await run_script(kind, script)
    lines = text.split("\n")
    assert [line for line in lines if "/dev/tty" not in line] == [
        "to stdout",
        "semaphores",
        "one",
        "reads",
    ]


async def test_without_landlock_an_ordinary_user_is_warned_and_root_is_refused(monkeypatch):
    monkeypatch.setattr("dask_gce.emulator.machines.fence.landlock_abi", lambda: 0)
    monkeypatch.setattr(Supervision, "can_become", lambda self, uid: False)
    if os.geteuid() == 0:
        with pytest.raises(RuntimeError, match="ordinary user"):
            async with started_kind():
                pass
        monkeypatch.setattr(os, "geteuid", lambda: NOBODY)
    fence = probe_fence(lambda uid: True, lambda uid: False)
    assert fence.landlock == 0
    assert "whatever its user can" in fence.warnings[0]


@pytest.mark.parametrize(
    ("abi", "gaps"), [(1, {"signal", "empty"}), (3, {"signal"}), (5, {"signal"}), (6, set())]
)
def test_an_ordinary_user_is_warned_of_what_landlock_lets_through(monkeypatch, abi, gaps):
    monkeypatch.setattr("dask_gce.emulator.machines.fence.landlock_abi", lambda: abi)
    monkeypatch.setattr(os, "geteuid", lambda: NOBODY)
    (warning,) = probe_fence(lambda uid: True, lambda uid: False).warnings
    always = {"sockets", "modes and times", "shared memory"}
    told = {word for word in (*always, "signal", "empty") if word in warning}
    assert told == always | gaps


async def test_the_warning_is_on_the_console(monkeypatch):
    monkeypatch.setattr("dask_gce.emulator.machines.fence.landlock_abi", lambda: 0)
    monkeypatch.setattr(os, "geteuid", lambda: NOBODY)
    async with started_kind() as kind:
        machine = new_machine(kind, make_record("m"))
        await machine.boot()
        await until_said(machine, "warning: the kernel has no Landlock")


ORDINARY = """
import asyncio, json, os, sys
from machine_bench import *

async def main():
    async with started_kind() as kind:
        text = await run_script(kind, sys.argv[1])
        print(json.dumps([os.getuid(), str(kind.layout.folder), text, kind.fence.warnings]))

asyncio.run(main())
"""


@needs_root
@needs_landlock
def test_an_ordinary_user_gets_the_same_machines(victim):
    """The whole emulator side runs as nobody, with an interpreter that nobody can read."""
    here = Path(__file__).parent
    site = [path for path in sys.path if path.endswith("site-packages")]
    environment = {
        "PATH": os.environ["PATH"],
        "PYTHONPATH": os.pathsep.join([str(here), str(here.parents[1]), *site]),
        "PYTHONDONTWRITEBYTECODE": "1",
        "TMPDIR": str(victim),
    }
    for python in (sys.executable, "/usr/bin/python3"):
        attempt = [
            python,
            "-c",
            "import aiohttp, dask_gce.emulator.machines.process, machine_bench",
        ]
        try:
            usable = subprocess.run(
                attempt,
                user=NOBODY,
                group=NOBODY,
                env=environment,
                capture_output=True,
                check=False,
            )
        except PermissionError:
            continue
        if usable.returncode == 0:
            break
    else:
        pytest.skip("nobody can run no Python here that has aiohttp")
    script = "id -u; echo mine > $HOME/x && cat $HOME/x; echo x > $LOCAL_GCE_HOSTS || echo fenced\n"
    script += "/bin/chmod 640 $LOCAL_GCE_HOSTS && echo changed a mode"
    done = subprocess.run(
        [python, "-W", "error", "-c", ORDINARY, script],
        user=NOBODY,
        group=NOBODY,
        extra_groups=[],
        env=environment,
        cwd="/",
        capture_output=True,
        check=False,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    uid, folder, text, warnings = json.loads(done.stdout)
    assert uid == NOBODY
    assert text.split("\n")[:2] == [str(NOBODY), "mine"]
    assert text.endswith("fenced\nchanged a mode")
    assert "modes and times" in warnings[0]
    assert not Path(folder).exists()
    assert sorted(path.name for path in victim.iterdir()) == ["file"]


async def test_the_record_of_calls_takes_anything():
    async with started_kind() as kind:
        machine = new_machine(
            kind, make_record("m", "iptables -A 'a b' '\"' 'ü' \"$(printf 'x\\ny')\" '' '\\'")
        )
        await machine.boot()
        await until_said(machine, "exit status 0")
        assert script_output(machine) == ""
        assert machine.folder is not None
        calls = (machine.folder / "disk" / "calls").read_text("ascii").splitlines()
    (call,) = map(json.loads, calls)
    assert call["command"] == "iptables"
    assert call["arguments"] == ["-A", "a b", '"', "ü", "x\ny", "", "\\"]
