"""Process machines: they boot the startup script, stop, die, and leave nothing behind."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import shlex
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import psutil
import pytest
from machine_bench import (
    PATIENCE,
    Exits,
    console,
    make_record,
    new_machine,
    run_script,
    script_output,
    started_kind,
    until,
    until_said,
)

from dask_gce.emulator.machines import supervision
from dask_gce.emulator.machines.layout import Layout
from dask_gce.emulator.machines.process import ProcessKind
from dask_gce.emulator.machines.process_machine import ProcessMachine
from dask_gce.emulator.machines.supervision import Supervision


def runs(process: psutil.Process) -> bool:
    """Tell whether a process has not ended; an orphan's corpse waits for the host's init."""
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


@pytest.fixture
async def kind() -> AsyncIterator[ProcessKind]:
    async with started_kind() as made:
        yield made


async def test_the_startup_script_runs_and_its_output_and_status_are_on_the_console(kind):
    machine = new_machine(kind, make_record("m", "#!/bin/sh\necho hello\necho oops >&2\nexit 3\n"))
    await machine.boot()
    text = await until_said(machine, "exit status")
    assert "startup-script: hello\n" in text
    assert "startup-script: oops\n" in text
    assert text.endswith("startup-script exit status 3\n")


async def test_a_machine_without_a_script_boots_and_stays_on(kind):
    machine = new_machine(kind, make_record("m"))
    await machine.boot()
    pid = machine.pid
    await machine.boot()
    assert machine.pid == pid is not None
    await until_said(machine, machine.address)
    assert "startup-script" not in console(machine)


async def test_a_script_without_an_interpreter_line_is_given_to_the_shell(kind):
    assert await run_script(kind, 'echo "plain $((1 + 1))"') == "plain 2"


async def test_output_of_any_bytes_and_size_arrives_in_order(kind):
    script = (
        "#!/usr/bin/env python3\n"
        "import os\n"
        "os.write(1, b'\\xff\\x00 tail')\n"
        "os.write(1, b' of line\\n')\n"
        "for n in range(20000): print(n, 'x' * 20, flush=n % 1000 == 0)\n"
        "print('unfinished', end='', flush=True)\n"
    )
    machine = new_machine(kind, make_record("m", script))
    await machine.boot()
    await until_said(machine, "exit status 0")
    first, *numbered, last = script_output(machine).encode(errors="surrogateescape").split(b"\n")
    assert first == b"\xff\x00 tail of line"
    assert [int(line.split()[0]) for line in numbered] == list(range(20000))
    assert last == b"unfinished"


async def test_curl_reaches_the_metadata_server_by_its_usual_names(kind):
    script = (
        "for host in metadata.google.internal 169.254.169.254 metadata $GCE_METADATA_HOST; do\n"
        "curl -sf -H Metadata-Flavor:Google http://$host/computeMetadata/v1/instance/name; echo\n"
        "done\n"
    )
    assert await run_script(kind, script, "m17") == "m17\nm17\nm17\nm17"


async def test_files_outlive_a_stop_and_the_script_runs_at_every_boot(kind):
    machine = new_machine(kind, make_record("m", "echo x >> $HOME/boots; wc -l < $HOME/boots"))
    for boot in (1, 2):
        await machine.boot()
        await until_said(machine, f"startup-script: {boot}\n")
        await machine.stop(5)
        assert machine.pid is None
    await machine.discard()
    assert machine.folder is None


async def test_stopping_runs_the_shutdown_script_then_terminates(kind):
    script = "trap 'echo told to end; exit 0' TERM; echo ready; while :; do sleep 0.01; done"
    record = make_record("m", script, shutdown_script="echo last words")
    machine = new_machine(kind, record)
    await machine.boot()
    await until_said(machine, "startup-script: ready")
    await machine.stop(PATIENCE)
    text = console(machine)
    assert text.index("shutdown-script: last words") < text.index("startup-script: told to end")
    assert "shutdown-script exit status 0" in text


SLOW_LOOK = """\
import sys, time
sys.path.insert(0, sys.argv[1])
from guest import processes
from guest.supervisor import main
is_dead = processes._is_dead
def is_dead_by_then(pid):
    time.sleep(0.1)
    return is_dead(pid)
processes._is_dead = is_dead_by_then
main()
"""


async def test_whose_parent_ends_first_has_the_whole_grace(monkeypatch):
    monkeypatch.setattr(supervision, "_PROGRAM", SLOW_LOOK)
    script = (
        "(trap 'sleep 2; echo told to end; exit 0' TERM; echo ready;"
        " while :; do sleep 0.01; done); true"
    )
    async with started_kind() as kind:
        machine = new_machine(kind, make_record("m", script))
        await machine.boot()
        await until_said(machine, "startup-script: ready")
        await machine.stop(PATIENCE)
        assert "startup-script: told to end" in console(machine)


async def test_a_guest_that_will_not_end_is_killed_when_the_grace_is_over(kind):
    script = "trap '' TERM; echo ready; while :; do sleep 1; done"
    record = make_record("m", script, shutdown_script="trap '' TERM; sleep 100")
    machine = new_machine(kind, record)
    await machine.boot()
    await until_said(machine, "startup-script: ready")
    began = time.monotonic()
    await machine.stop(0.5)
    assert 0.5 <= time.monotonic() - began < 30
    assert machine.pid is None


async def test_a_kill_in_the_middle_of_a_stop_cuts_it_short(kind):
    machine = new_machine(kind, make_record("m", "trap '' TERM; echo ready; sleep 1000"))
    await machine.boot()
    await until_said(machine, "startup-script: ready")
    began = time.monotonic()
    stop = asyncio.create_task(machine.stop(60))
    await until_said(machine, "going down")
    await machine.kill()
    await stop
    assert time.monotonic() - began < 30
    assert machine.pid is None


async def test_what_left_its_session_and_its_parent_dies_with_the_machine(kind):
    script = (
        "(setsid sh -c 'echo escaped $$; exec sleep 1000' &)\n"
        "nohup sleep 1000 & echo nohup $!\n"
        "sh -c 'kill -STOP $$' &\n"
    )
    machine = new_machine(kind, make_record("m", script))
    await machine.boot()
    await until_said(machine, "exit status 0")
    init = machine.pid

    def states() -> list[str]:
        states = []
        for process in psutil.Process(init).children(recursive=True):
            with contextlib.suppress(psutil.NoSuchProcess):
                stopped = process.status() == psutil.STATUS_STOPPED
                states.append("stopped" if stopped else process.name())
        return sorted(states)

    # The script does not wait for what it starts.
    await until(lambda: states() == ["sleep", "sleep", "stopped"])
    below = psutil.Process(init).children(recursive=True)
    await machine.kill()
    gone, alive = psutil.wait_procs(below, timeout=0)
    assert len(gone) == len(below)
    assert alive == []


@pytest.mark.parametrize(
    ("command", "how"),
    [
        ("poweroff", "poweroff"),
        ("shutdown -h now", "poweroff"),
        ("systemctl poweroff", "poweroff"),
        ("sudo halt", "poweroff"),
        ("reboot", "reboot"),
        ("shutdown -r now", "reboot"),
        ("systemctl reboot", "reboot"),
        ("init 6", "reboot"),
        ("shutdown -h +5; shutdown -c; shutdown now", "poweroff"),
    ],
)
async def test_the_guest_can_press_its_own_power_button(kind, command, how):
    exits = Exits()
    record = make_record("m", f"{command}; sleep 1000", shutdown_script="echo in order")
    machine = new_machine(kind, record, exits)
    await machine.boot()
    await until(lambda: exits)
    assert exits == [how], console(machine)
    assert machine.pid is None
    assert "shutdown-script: in order" in console(machine)
    await machine.stop(1)
    await machine.kill()
    assert exits == [how]


async def test_many_guests_may_reboot_at_the_same_moment(kind):
    guests = []
    for number in range(40):
        exits = Exits()
        record = make_record(f"m{number}", "reboot; sleep 1000", shutdown_script="echo in order")
        guests.append((new_machine(kind, record, exits), exits))
    await asyncio.gather(*(machine.boot() for machine, _ in guests))
    await until(lambda: all(exits for _, exits in guests))
    for machine, exits in guests:
        assert exits == ["reboot"], console(machine)


async def test_verbs_that_were_asked_for_are_no_exit_of_the_guest(kind):
    exits = Exits()
    machine = new_machine(kind, make_record("m"), exits)
    for end in (machine.stop(5), machine.kill(), machine.kill()):
        await machine.boot()
        await end
    await machine.boot()
    await machine.discard()
    await machine.discard()
    assert exits == []
    with pytest.raises(RuntimeError, match="discarded"):
        await machine.boot()


async def test_a_guest_that_kills_its_init_takes_everything_along(kind):
    exits = Exits()
    script = "sleep 1000 & while [ ! -e $HOME/go ]; do sleep 0.01; done; kill -9 $PPID"
    machine = new_machine(kind, make_record("m", script), exits)
    other = new_machine(kind, make_record("other", "echo up; sleep 1000"))
    await other.boot()
    await until_said(other, "up")
    await machine.boot()
    assert machine.pid is not None
    assert machine.folder is not None
    below = psutil.Process(machine.pid).children(recursive=True)
    (machine.folder / "disk" / "home" / "go").touch()
    await until(lambda: exits)
    assert exits == ["poweroff"]
    assert "Kernel panic" in console(machine)
    assert not any(map(runs, below))
    assert other.pid is not None
    assert psutil.Process(other.pid).children()


async def test_a_stopped_init_is_swept_away(kind, monkeypatch):
    monkeypatch.setattr("dask_gce.emulator.machines.process_machine.PATIENCE", 0.3)
    machine = new_machine(kind, make_record("m", "echo up; sleep 1000"))
    await machine.boot()
    await until_said(machine, "up")
    assert machine.pid is not None
    init = psutil.Process(machine.pid)
    below = init.children(recursive=True)
    init.suspend()
    await machine.kill()
    assert not any(map(runs, [init, *below]))


HANDED_OVER = """\
import os, subprocess, sys, time
sys.path.insert(0, sys.argv[1])
from guest import processes
processes.become_subreaper()
serving = subprocess.Popen([sys.argv[2]])
look = processes.descendants
while not any(map(processes._is_tracker, look(os.getpid()))):
    time.sleep(0.01)
looks = []
def look_while_its_parent_ends(root):
    looks.append(root)
    return [pid for pid in look(root) if len(looks) > 1 or not processes._is_tracker(pid)]
processes.descendants = look_while_its_parent_ends
processes.let_trackers_finish()
print(os.path.exists(sys.argv[3]))
processes.kill_all()
serving.returncode = 0
"""


@pytest.mark.skipif(sys.platform != "linux", reason="nobody waits for trackers elsewhere")
def test_a_tracker_that_is_handed_over_meanwhile_is_waited_for(tmp_path):
    done, serving = tmp_path / "done", tmp_path / "serving"
    tracker = (
        "import pathlib, sys, time; sys.stdin.read(); time.sleep(0.5); pathlib.Path({!r}).touch()"
    )
    command = [sys.executable, "-c", tracker.format(str(done)), "multiprocessing.resource_tracker"]
    # The tracker reads what its parent's other child never writes.
    serving.write_text(f"#!/bin/sh\nsleep 1000 | {shlex.join(command)}\n")
    serving.chmod(0o755)
    machines = str(Path(supervision.__file__).parent)
    program = [sys.executable, "-c", HANDED_OVER, machines, str(serving), str(done)]
    said = subprocess.run(program, check=True, capture_output=True, text=True, timeout=PATIENCE)
    assert said.stdout == "True\n", said.stderr


async def test_a_cancelled_boot_leaves_no_machine_running(kind):
    machine = new_machine(kind, make_record("m", "sleep 1000"))
    for _ in range(5):
        boot = asyncio.create_task(machine.boot())
        while kind.supervision.pid is None or (machine._boot is None and not boot.done()):
            await asyncio.sleep(0)
            boot.cancel()
        with pytest.raises(asyncio.CancelledError):
            await boot
        await machine.kill()
        assert machine.pid is None


async def test_a_boot_that_is_interrupted_while_it_writes_its_disk_leaves_nothing(monkeypatch):
    begun, closed = threading.Event(), threading.Event()
    close = Supervision.close

    def add_late(layout: Layout, *arguments) -> Path:
        begun.set()
        assert closed.wait(PATIENCE)
        folder = layout.folder / "machines" / "1-m"
        folder.mkdir(parents=True)
        return folder

    def close_and_say_so(supervision: Supervision) -> None:
        close(supervision)
        closed.set()

    monkeypatch.setattr(Layout, "add_machine", add_late)
    monkeypatch.setattr(Supervision, "close", close_and_say_so)
    kind = ProcessKind()
    await kind.start()
    boot = asyncio.create_task(new_machine(kind, make_record("m")).boot())
    await until(begun.is_set)
    boot.cancel()
    with pytest.raises(asyncio.CancelledError):
        await boot
    await kind.close()
    assert kind.leftovers() == []


async def test_a_boot_that_is_interrupted_while_all_threads_are_busy_leaves_nothing(
    kind, monkeypatch
):
    greet, busy, may_go_on = ProcessMachine._greeting, threading.Event(), threading.Event()

    def greet_last(machine: ProcessMachine, warnings: tuple[str, ...]) -> list[str]:
        # The next thing that a boot has done in a thread is to fork the machine.
        for _ in range(4):
            kind._executor.submit(may_go_on.wait, PATIENCE)
        busy.set()
        return greet(machine, warnings)

    monkeypatch.setattr(ProcessMachine, "_greeting", greet_last)
    machine = new_machine(kind, make_record("m", "sleep 1000"))
    boot = asyncio.create_task(machine.boot())
    await until(busy.is_set)
    boot.cancel()
    with pytest.raises(asyncio.CancelledError):
        await boot
    may_go_on.set()
    await asyncio.wait_for(machine.kill(), PATIENCE)
    assert machine.pid is None


async def test_the_environment_is_clean_and_the_folders_are_its_own(monkeypatch):
    monkeypatch.setenv("DASK_SECRET", "do not pass")
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", "/nowhere")
    async with started_kind() as kind:
        text = await run_script(kind, "env; cd; pwd; echo; mktemp; stat -c %a $LOCAL_GCE_DISK")
        folder = str(kind.layout.folder)
    assert "do not pass" not in text
    assert "GOOGLE_APPLICATION_CREDENTIALS" not in text
    *_, home, _, temporary, mode = text.split("\n")
    assert home == f"{folder}/machines/1-m/disk/home"
    assert temporary.startswith(f"{folder}/machines/1-m/disk/tmp/")
    assert mode == "700"


async def test_the_guest_inherits_nothing_but_its_three_streams(kind):
    text = await run_script(kind, "python3 -c 'import os; print(sorted(os.listdir(\"/dev/fd\")))'")
    # The fourth is the one that listing opens.
    assert text == "['0', '1', '2', '3']"


async def test_a_machine_whose_folders_were_removed_boots_again(kind):
    machine = new_machine(kind, make_record("m", "rm -rf $HOME $TMPDIR; echo gone"))
    for _ in range(2):
        await machine.boot()
        await until_said(machine, "startup-script: gone")
        await machine.kill()
        machine.record.serial = type(machine.record.serial)()


async def test_each_machine_has_an_address_and_names_of_its_own(kind):
    first = new_machine(kind, make_record("first"))
    await first.boot()
    script = (
        "hostname; hostname -f; getent hosts first | cut -d' ' -f1; python3 -c '\n"
        "import socket\n"
        'print(socket.gethostname(), socket.getfqdn(), socket.gethostbyname("first"))\n'
        'listener = socket.create_server(("", 0))\n'
        "client = socket.create_connection(listener.getsockname())\n"
        "print(listener.getsockname()[0], client.getsockname()[0], listener.accept()[1][0])\n"
        "datagrams = socket.socket(type=socket.SOCK_DGRAM)\n"
        'datagrams.connect(("first", 9))\n'
        "print(*datagrams.getsockname()[:1], *datagrams.getpeername())\n"
        "print(socket.has_ipv6, socket.getaddrinfo(None, 1, flags=socket.AI_PASSIVE)[0][4][0])'"
    )
    machine = new_machine(kind, make_record("second", script))
    await machine.boot()
    await until_said(machine, "exit status 0")
    full = "second.us-central1-a.c.local-project.internal"
    mine, theirs = machine.address, first.address
    assert script_output(machine).split("\n") == [
        "second",
        full,
        theirs,
        f"second {full} {theirs}",
        f"{mine} {mine} {mine}",
        f"{mine} {theirs} 9",
        "False 0.0.0.0",
    ]


async def test_two_kinds_on_one_host_do_not_share_addresses():
    async with started_kind() as one, started_kind() as two:
        first = {one.allocate(make_record(f"m{n}")) for n in range(300)}
        second = {two.allocate(make_record(f"m{n}")) for n in range(300)}
        assert len(first | second) == 600 or first == second == {"127.0.0.1"}


async def test_a_requested_address_must_be_a_free_loopback_address(kind):
    with pytest.raises(ValueError, match=r"127\.0\.0\.0/8"):
        kind.allocate(make_record("m"), "10.128.0.7")
    taken = kind.allocate(make_record("m"))
    if taken != "127.0.0.1":
        with pytest.raises(ValueError, match="in use"):
            kind.allocate(make_record("n"), taken)


async def test_folders_that_forbid_it_are_removed_all_the_same(kind):
    await run_script(kind, "mkdir -p $HOME/a/b; touch $HOME/a/b/c; chmod 0 $HOME/a/b $HOME/a")


async def test_nothing_is_open_after_many_machines():
    async with started_kind() as kind:
        await run_script(kind, "true", "warm")
        before = psutil.Process().num_fds()
        machines = [new_machine(kind, make_record(f"m{n}", "echo up")) for n in range(20)]
        await asyncio.gather(*(machine.boot() for machine in machines))
        for machine in machines:
            await until_said(machine, "exit status 0")
        await asyncio.gather(*(machine.discard() for machine in machines))
        # What the warm machine had open for a moment longer is no more.
        await until(lambda: psutil.Process().num_fds() <= before)


EMULATOR = """
import asyncio, sys
sys.path.insert(0, sys.argv[1])
from machine_bench import *

async def main():
    async with started_kind() as kind:
        script = "setsid sleep 1000 & trap '' TERM; echo up; while :; do sleep 1; done"
        machine = new_machine(kind, make_record("m", script))
        await machine.boot()
        await until_said(machine, "startup-script: up")
        print(kind.layout.folder, kind.supervision.pid, machine.pid, flush=True)
        await asyncio.sleep(1000)

asyncio.run(main())
"""


def test_nothing_survives_the_emulator_when_it_is_killed():
    tests = str(Path(__file__).parent)
    emulator = subprocess.Popen(
        [sys.executable, "-c", EMULATOR, tests], stdout=subprocess.PIPE, text=True
    )
    with emulator:
        assert emulator.stdout is not None
        folder, supervisor, machine = emulator.stdout.readline().split()
        family = psutil.Process(int(supervisor))
        below = [family, *family.children(recursive=True)]
        assert int(machine) in [process.pid for process in below]
        assert len(below) >= 4
        emulator.send_signal(signal.SIGKILL)
    deadline = time.monotonic() + PATIENCE
    while any(map(runs, below)) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not any(map(runs, below))
    assert not Path(folder).exists()


async def test_the_end_of_the_supervisor_is_the_end_of_its_machines(tmp_path):
    exits = Exits()
    async with started_kind() as kind:
        machine = new_machine(kind, make_record("m", "sleep 1000"), exits)
        await machine.boot()
        assert machine.pid is not None
        assert kind.supervision.pid is not None
        family = psutil.Process(kind.supervision.pid).children(recursive=True)
        os.kill(kind.supervision.pid, signal.SIGKILL)
        await until(lambda: exits)
        await until(lambda: not any(map(runs, family)))
        with pytest.raises(RuntimeError, match="supervisor"):
            await machine.boot()


def test_a_machines_listener_is_on_no_other_address():
    # The kernel says what the guest's Python did, not the guest.
    async def listen() -> list[str]:
        async with started_kind() as kind:
            script = (
                "exec python3 -c 'import socket, time\n"
                'server = socket.create_server(("0.0.0.0", 0))\n'
                "print(server.getsockname()[1], flush=True)\n"
                "time.sleep(1000)'"
            )
            machine = new_machine(kind, make_record("m", script))
            await machine.boot()
            await until(lambda: script_output(machine))
            port = int(script_output(machine))
            with socket.create_connection((machine.address, port), 5):
                pass
            assert machine.pid is not None
            below = {one.pid for one in psutil.Process(machine.pid).children(recursive=True)}
            # Others of this host may listen on that port at addresses of their own.
            found = [
                each.laddr.ip
                for each in psutil.net_connections("inet")
                if each.laddr.port == port and not each.raddr and each.pid in {None, *below}
            ]
            assert machine.address in found
            return [ip for ip in found if ip != machine.address]

    assert asyncio.run(listen()) == []


def test_two_who_write_the_name_table_at_once_do_not_disturb_each_other(tmp_path, monkeypatch):
    # As when the first one's caller was interrupted, and let the second have its turn.
    begun, may_go_on, written = (threading.Event() for _ in range(3))
    replace, numbers = Path.replace, itertools.count()

    def replace_in_turn(path: Path, target: Path) -> None:
        if next(numbers):
            may_go_on.set()
            assert written.wait(PATIENCE)
            replace(path, target)
            return
        begun.set()
        assert may_go_on.wait(PATIENCE)
        replace(path, target)
        written.set()

    monkeypatch.setattr(Path, "replace", replace_in_turn)
    layout = Layout(tmp_path, shared=False)
    first = threading.Thread(target=layout.write_hosts, args=({"127.18.0.2": ["a"]},))
    first.start()
    assert begun.wait(PATIENCE)
    # Where the second one waits for the first, nobody else lets that go on.
    letting = threading.Timer(0.2, may_go_on.set)
    letting.start()
    layout.write_hosts({"127.18.0.3": ["b"]})
    for thread in (first, letting):
        thread.join()
    assert layout.hosts.read_text() == "127.18.0.3 b\n"


class StartOfSupervisor:
    """A start that waits for the test, in its thread."""

    def __init__(self) -> None:
        self.begun, self.may_go_on, self.ended = (threading.Event() for _ in range(3))


@pytest.fixture
def supervisor(monkeypatch: pytest.MonkeyPatch) -> Iterator[StartOfSupervisor]:
    """Give a test the time to interrupt the start of a supervisor."""
    held = StartOfSupervisor()
    start = Supervision.start

    def slow(supervision: Supervision) -> None:
        held.begun.set()
        assert held.may_go_on.wait(PATIENCE)
        start(supervision)
        held.ended.set()

    monkeypatch.setattr(Supervision, "start", slow)
    yield held
    held.may_go_on.set()


async def test_an_interrupted_start_leaves_nothing(supervisor):
    kind = ProcessKind()
    start = asyncio.create_task(kind.start())
    await until(supervisor.begun.is_set)
    # As asyncio.run does after a Ctrl-C.
    for task in asyncio.all_tasks() - {asyncio.current_task()}:
        task.cancel()
    supervisor.may_go_on.set()
    with pytest.raises(asyncio.CancelledError):
        await start
    assert supervisor.ended.is_set()
    assert kind.leftovers() == []
    assert not psutil.Process().children()
    await kind.close()


async def test_closing_twice_at_once_and_while_it_starts_leaves_nothing(supervisor):
    kind = ProcessKind()
    start = asyncio.create_task(kind.start())
    await until(supervisor.begun.is_set)
    first = asyncio.create_task(kind.close())
    await asyncio.sleep(0)
    first.cancel()  # it goes on
    closing = asyncio.gather(kind.close(), kind.close())
    await asyncio.sleep(0)
    supervisor.may_go_on.set()
    await closing
    assert kind.leftovers() == []
    assert not psutil.Process().children()
    await start
    await asyncio.wait([first])


async def test_a_kind_can_be_started_again():
    kind = ProcessKind()
    for _ in range(2):
        await kind.start()
        assert await run_script(kind, "echo up") == "up"
        await kind.close()
        assert kind.leftovers() == []
