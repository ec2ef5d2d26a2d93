"""The emulator as an object and as a program: beginning, ending, leaving nothing."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import socket
import stat
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import closing, contextmanager
from ipaddress import ip_address, ip_network
from pathlib import Path

import psutil
import pytest
import validated
from discovery import VALIDATOR
from rest import ZONE, ObservedKind, Refused, Rest, instance

from dask_gce.emulator import ComputeEmulator, Timings
from dask_gce.emulator.machines.paper import PaperKind

LOOPBACK = ip_network("127.0.0.0/8")


def test_it_lives_in_a_thread_of_its_own():
    before = set(threading.enumerate())
    emulator = ComputeEmulator("paper")
    with pytest.raises(RuntimeError, match="not open"):
        assert emulator.endpoint
    with emulator:
        # Of those that were there, a library's may end meanwhile.
        assert len(set(threading.enumerate()) - before) == 1
        rest = Rest(emulator)
        rest.insert()
        assert [one["name"] for one in emulator.instances()] == ["a"]
        assert emulator.leftovers()[0] == f"instance a in my-project/{ZONE} is RUNNING"
        address = emulator.endpoint.removeprefix("http://").split(":")
    assert not set(threading.enumerate()) - before
    assert not emulator.leftovers()
    with pytest.raises(ConnectionRefusedError), closing(socket.socket()) as probe:
        probe.connect((address[0], int(address[1])))


async def test_it_lives_in_the_current_loop():
    before = set(threading.enumerate())
    async with ComputeEmulator("paper") as emulator:
        await asyncio.to_thread(Rest(emulator).insert)
        assert [one["status"] for one in emulator.instances()] == ["RUNNING"]
        assert len(emulator.leftovers()) == 3
    assert not emulator.leftovers()
    # The default executor's threads are asyncio's own.
    new = set(threading.enumerate()) - before
    assert {one.name.partition("_")[0] for one in new} <= {"asyncio"}


@pytest.mark.parametrize("machines", ["paper", "process"])
def test_it_listens_on_loopback_only(machines, discovery):
    with ComputeEmulator(machines) as emulator:
        rest = Rest(emulator)
        rest.insert()
        own = psutil.Process()
        listening = set()
        for process in (own, *own.children(recursive=True)):
            # What a startup script runs may have ended by now; then it is gone, or root's.
            with contextlib.suppress(psutil.NoSuchProcess, psutil.AccessDenied):
                listening |= {
                    connection.laddr
                    for connection in process.net_connections("inet")
                    if connection.status == psutil.CONN_LISTEN
                }
        assert int(emulator.endpoint.rsplit(":", 1)[1]) in {address.port for address in listening}
        # A process machine has a metadata server besides.
        assert len(listening) >= (2 if machines == "process" else 1)
        assert all(ip_address(address.ip) in LOOPBACK for address in listening), listening
        rest.wait(rest.delete(f"zones/{ZONE}/instances/a"))


def test_an_error_inside_still_cleans_up():
    with pytest.raises(KeyboardInterrupt), ComputeEmulator("paper") as emulator:
        Rest(emulator).insert()
        raise KeyboardInterrupt
    assert not emulator.leftovers()


def test_closing_ends_what_goes_on():
    timings = Timings(provisioning=60)
    outcome = []
    with ComputeEmulator("paper", timings=timings) as emulator:
        rest = Rest(emulator)
        operation = rest.post(f"zones/{ZONE}/instances", instance())

        def wait():
            try:
                rest.wait(operation)
            except OSError as error:
                outcome.append(error)

        waiting = threading.Thread(target=wait)
        waiting.start()
        while not emulator.requests["compute.zoneOperations.wait"]:
            time.sleep(0.005)
        assert any("insert" in one for one in emulator.leftovers())
        began = time.monotonic()
    waiting.join()
    assert time.monotonic() - began < 30
    assert len(outcome) == 1
    assert not emulator.leftovers()


async def test_closing_leaves_no_task_in_the_current_loop():
    timings = Timings(provisioning=60)
    before = asyncio.all_tasks()
    async with ComputeEmulator("paper", timings=timings) as emulator:
        await asyncio.to_thread(Rest(emulator).post, f"zones/{ZONE}/instances", instance())
        assert asyncio.all_tasks() > before
    assert asyncio.all_tasks() == before
    assert not emulator.leftovers()


async def test_who_connects_at_the_moment_of_the_closing_is_hung_up_on():
    async with ComputeEmulator("paper") as emulator:
        address, port = emulator.endpoint.removeprefix("http://").split(":")
        with socket.create_connection((address, int(port)), 60) as client:
            # It is accepted in the next turn of the loop; in the one after the closing is first.
            for _ in range(2):
                await asyncio.sleep(0)
            await emulator._tear_down()
            with contextlib.suppress(ConnectionResetError):
                assert await asyncio.to_thread(client.recv, 1) == b""


async def test_a_guest_that_ends_by_itself_during_the_closing_begins_nothing():
    class Ending(ObservedKind):
        async def close(self):
            for machine in self.machines.values():
                machine.on_exit("poweroff")
            await asyncio.sleep(0)
            await super().close()

    before = asyncio.all_tasks()
    async with ComputeEmulator(Ending()) as emulator:
        rest = Rest(emulator)
        await asyncio.to_thread(rest.insert)
    for _ in range(3):
        await asyncio.sleep(0)
    assert asyncio.all_tasks() == before


def test_a_port_that_is_taken_is_an_error_that_leaves_nothing(emulator):
    port = int(emulator.endpoint.rsplit(":", 1)[1])
    with pytest.raises(OSError, match="in use"), ComputeEmulator("paper", port=port):
        pass


def test_a_kind_that_cannot_start_leaves_nothing():
    class Broken(PaperKind):
        closed = 0

        async def start(self):
            raise OSError("no such device")

        async def close(self):
            type(self).closed += 1

    with pytest.raises(OSError, match="no such device"), ComputeEmulator(Broken()):
        pass
    assert Broken.closed


class Slow(PaperKind):
    """Takes its time to start and to close, and writes down when; interrupts whoever opens it."""

    def __init__(self, *, interrupt=False, fails=False):
        super().__init__()
        self.events = []
        self.starting, self.closing = asyncio.Event(), asyncio.Event()
        self._interrupt = interrupt
        self._fails = fails

    async def start(self):
        self.events.append("start")
        self.starting.set()
        if self._interrupt:
            signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)
        try:
            await asyncio.sleep(60)
        finally:
            await asyncio.sleep(0.02)
            self.events.append("started")

    async def close(self):
        self.events.append("close")
        self.closing.set()
        await asyncio.sleep(0.02)
        self.events.append("closed")
        if self._fails:
            raise OSError("no such device")


def in_order(events):
    """Tell whether the start ended before the first close began, and each close before the next."""
    return (
        events[:2] == ["start", "started"]
        and events[2:4] == ["close", "closed"]
        and not (set(events[4::2]) - {"close"} or set(events[5::2]) - {"closed"} or len(events) % 2)
    )


@pytest.mark.parametrize("fails", [False, True])
def test_an_interrupt_while_it_opens_ends_what_was_begun_in_order(fails):
    kind = Slow(interrupt=True, fails=fails)
    emulator = ComputeEmulator(kind)
    with pytest.raises(KeyboardInterrupt), emulator:
        pass
    assert in_order(kind.events), kind.events
    assert not emulator.leftovers()


async def test_a_cancellation_while_it_opens_ends_what_was_begun_in_order():
    kind = Slow(fails=True)
    opening = asyncio.ensure_future(ComputeEmulator(kind).__aenter__())
    await kind.starting.wait()
    opening.cancel()
    await kind.closing.wait()
    # Impatience changes nothing.
    opening.cancel()
    with pytest.raises(asyncio.CancelledError):
        await opening
    assert in_order(kind.events), kind.events


def test_unknown_machines_are_named():
    with pytest.raises(ValueError, match="process, paper"), ComputeEmulator("steam"):
        pass


def test_timings_are_not_negative():
    with pytest.raises(ValueError, match="staging"):
        Timings(staging=-1)


@contextmanager
def started(arguments, address):
    """Run the program until the end of the context; what it answered is validated then."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder, "report")
        command = [sys.executable, validated.__file__, str(report), "dask_gce.emulator"]
        with subprocess.Popen(
            [*command, "--machines", "paper", *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        ) as program:
            deadline = time.monotonic() + 60
            while not address.exists():
                assert program.poll() is None, program.stderr.read()
                assert time.monotonic() < deadline
                time.sleep(0.01)
            yield program
        VALIDATOR.read(report)


class Remote:
    """An emulator that runs elsewhere, for the REST client."""

    def __init__(self, endpoint):
        self.endpoint = endpoint


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_program_prints_its_address_and_ends_on_request(tmp_path, number):
    address = tmp_path / "address"
    with started(["--address-file", str(address)], address) as program:
        endpoint = address.read_text().strip()
        assert program.stdout.readline().strip() == endpoint
        Rest(Remote(endpoint)).insert()
        program.send_signal(number)
        out, error = program.communicate(timeout=60)
    assert (program.returncode, out, error) == (0, "", "")
    assert not list(tmp_path.iterdir())


def test_the_program_makes_a_token_that_only_its_user_may_read(tmp_path):
    address = tmp_path / "address"
    with started(["--address-file", str(address), "--token"], address) as program:
        token = tmp_path / "address.token"
        assert stat.S_IMODE(token.stat().st_mode) == 0o600
        rest = Rest(Remote(address.read_text().strip()))
        with pytest.raises(Refused) as caught:
            rest.get("")
        assert caught.value.status == 401
        headers = {"Authorization": f"Bearer {token.read_text().strip()}"}
        assert rest.call("GET", "", headers=headers)["name"] == "my-project"
        program.terminate()
        out, error = program.communicate(timeout=60)
        assert token.name not in out and error == ""
    assert not list(tmp_path.iterdir())


def test_the_program_takes_its_time(tmp_path):
    address = tmp_path / "address"
    timings = ["provisioning=0", "compute.instances.list=0.3", "latency=0", "staging=0.4"]
    arguments = [part for one in timings for part in ("--timing", one)]
    with started(["--address-file", str(address), *arguments], address) as program:
        rest = Rest(Remote(address.read_text().strip()))
        began = time.monotonic()
        rest.insert()
        inserted = time.monotonic()
        rest.names()
        listed = time.monotonic()
        program.terminate()
        assert program.communicate(timeout=60)[1] == ""
    assert inserted - began >= 0.4 and listed - inserted >= 0.3


def test_the_program_reads_a_token_from_a_private_file_only(tmp_path):
    address, token = tmp_path / "address", tmp_path / "token"
    token.write_text("s3cret\n")
    token.chmod(0o600)
    arguments = ["--address-file", str(address), "--token-file", str(token)]
    with started(arguments, address) as program:
        rest = Rest(Remote(address.read_text().strip()))
        assert rest.raw("GET", "/compute/v1/projects/my-project")[0] == 401
        headers = {"Authorization": "Bearer s3cret"}
        assert rest.raw("GET", "/compute/v1/projects/my-project", headers=headers)[0] == 200
        before = VALIDATOR.exchanges
        program.terminate()
        program.communicate(timeout=60)
    assert token.exists()
    assert VALIDATOR.exchanges == before + 2


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (["--token"], "--address-file"),
        (["--token-file", "{open}"], "chmod 600"),
        (["--token-file", "{empty}"], "no token"),
        (["--token-file", "{absent}"], "No such file"),
        (["--machines", "steam"], "invalid choice"),
        (["--port", "many"], "invalid int"),
        (["--timing", "boots=1"], "there is no timing 'boots'"),
        (["--timing", "latencies=1"], "there is no timing 'latencies'"),
        (["--timing", "booting"], "NAME=SECONDS"),
        (["--timing", "booting=soon"], "NAME=SECONDS"),
        (["--timing", "booting=-1"], "negative"),
        (["--timing", "compute.instances.fly=1"], "no method"),
    ],
)
def test_the_program_refuses_senseless_options(tmp_path, capsys, arguments, word):
    from dask_gce.emulator.__main__ import main

    for name, text in (("open", "s3cret"), ("empty", "")):
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o644 if name == "open" else 0o600)
    filled = [
        one.format(**{name: tmp_path / name for name in ("open", "empty", "absent")})
        for one in arguments
    ]
    with pytest.raises(SystemExit) as caught:
        main(filled)
    assert caught.value.code == 2
    assert word in capsys.readouterr().err


def test_the_program_says_why_it_cannot_listen(emulator, capsys):
    from dask_gce.emulator.__main__ import main

    port = emulator.endpoint.rsplit(":", 1)[1]
    # Its signal handlers need the main thread, which a test has.
    assert main(["--machines", "paper", "--port", port]) == 1
    assert "in use" in capsys.readouterr().err
