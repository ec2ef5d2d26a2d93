"""The board tells of each machine what the events have told, and counts what it tells."""

from __future__ import annotations

import pickle
from collections import Counter
from datetime import datetime, timedelta, timezone

import pytest
from clusters import cluster_on, until
from hypothesis import given
from hypothesis import strategies as st

from dask_gce import state_board
from dask_gce.events import Event, EventLog
from dask_gce.machine_states import BOOTING_STATES, ENDED_STATES, STATES, MachineFacts
from dask_gce.state_board import StateBoard

START = datetime(2026, 1, 2, 3, 4, 5, tzinfo=timezone.utc)
CLUSTER = "dask-1f"
SCHEDULER, WORKER, OTHER = "dask-1f-scheduler-5e", "dask-1f-worker-9c", "dask-1f-worker-2a"


def at(seconds: float) -> datetime:
    return START + timedelta(seconds=seconds)


def play(board: StateBoard, *events: str, name: str = WORKER, begin: float = 0) -> None:
    """Let a machine have events, a second apart; a colon is before the reason."""
    for seconds, event in enumerate(events):
        what, _, why = event.partition(": ")
        board.take(Event(name, what, why, at(begin + seconds)))


def state(board: StateBoard, name: str = WORKER) -> str:
    (machine,) = [each for each in board.machines() if each.name == name]
    return str(machine)


def test_a_machine_goes_through_all_states():
    board = StateBoard()
    play(
        board,
        "requested: e2-small in us-central1-a",
        "provisioning",
        "running",
        "booting: image-pulling: 1 of 3 layers",
        "booting: starting",
        "ready",
        "retired",
        "deleted",
    )
    (machine,) = board.machines()
    assert list(machine.times) == [*STATES[:7], "deleted"]
    assert [machine.seconds(each) for each in machine.times] == list(range(8))
    assert machine.seconds("failed") is None
    assert machine.since == at(7)
    assert machine.age(at(9)) == 2
    assert pickle.loads(pickle.dumps(machine)) == machine  # noqa: S301


@pytest.mark.parametrize(
    ("events", "shown"),
    [
        (["requested"], "requested"),
        (["requested", "running"], "booting"),
        (["requested", "booting: booted"], "booting: booted"),
        (["requested", "booting: driver-installing"], "image: driver-installing"),
        (["requested", "booting: environment-building: uv"], "image: environment-building: uv"),
        (["requested", "booting: image-ready"], "image: image-ready"),
        (["requested", "booting: running"], "starting"),
        (["requested", "booting: \x1b[31mbooted\x1b[0m"], "booting: booted"),
        # News that come late take nothing back.
        (["requested", "ready", "running", "booting: starting"], "running"),
        (["requested", "booting: starting", "running"], "starting"),
        (["requested", "ready", "leaving: maintenance in 9 s"], "leaving: maintenance in 9 s"),
        (["requested", "ready", "preempting: soon"], "leaving: soon"),
        (["requested", "ready", "retired", "kept: it holds results"], "running: it holds results"),
        (["requested", "running", "retired", "kept: no answer"], "booting: no answer"),
        (["requested", "running", "retired", "kept: no answer", "ready"], "running"),
        (["requested", "failed: no room", "deleted"], "failed: no room"),
        (
            ["requested", "ready", "lost: it no longer exists", "deleted"],
            "lost: it no longer exists",
        ),
        (["requested", "ready", "disconnected"], "running: disconnected"),
        (["requested", "ready", "disconnected", "reconnected"], "running"),
        (["requested", "moved: to e2-small"], "failed: moved to e2-small"),
        (["requested", "blocked: whatever"], "requested"),
    ],
)
def test_states_follow_events(events, shown):
    board = StateBoard()
    play(board, *events)
    assert state(board) == f"{WORKER} {shown}"


def test_who_was_never_asked_for_is_no_machine():
    board = StateBoard()
    play(board, "running", "ready")
    assert board.machines() == []


def test_what_is_known_of_a_machine_is_told():
    facts = MachineFacts(
        "worker", "us-east1-b", "e2-standard-4", 4, 16 * 2**30, spot=True, workers=2
    )
    board = StateBoard({WORKER: facts}.get)
    play(board, "requested", "ready")
    (machine,) = board.machines()
    assert (machine.zone, machine.machine_type, machine.spot) == (
        "us-east1-b",
        "e2-standard-4",
        True,
    )
    assert board.workers_by_state() == {"running": 2}
    assert board.counts() == {"running": 1}


def test_a_machine_of_another_process_was_asked_for_when_it_was_made():
    made = MachineFacts("worker", requested=at(-60))
    board = StateBoard({WORKER: made}.get)
    play(board, "found", "ready")
    (machine,) = board.machines()
    assert machine.seconds("running") == 61


def test_a_closed_cluster_has_no_machine():
    board = StateBoard(cluster=CLUSTER)
    play(board, "requested", "ready", name=SCHEDULER)
    play(board, "requested")
    play(board, "requested", "failed: no room", name=OTHER)
    play(board, "deleted", name=CLUSTER, begin=9)
    assert board.counts() == {"deleted": 2, "failed": 1}


def test_the_summary_has_the_time_from_asking_to_the_last():
    facts = MachineFacts("worker", cores=4, memory=16 * 2**30)
    board = StateBoard(lambda name: facts)
    assert board.summary() == "no workers"
    board.expect(8, at(0))
    for number in range(8):
        assert board.growing
        play(board, "requested", "ready", name=f"dask-1f-worker-{number}", begin=33 + number)
    assert not board.growing
    assert board.summary() == "8 workers, 32 cores, 128 GB in 41 s"
    # One that is lost and replaced was not asked for.
    play(board, "lost: gone", name="dask-1f-worker-0", begin=60)
    assert not board.growing
    assert board.summary() == "7 workers, 28 cores, 112 GB in 41 s"
    play(board, "requested", "ready", name="dask-1f-worker-8", begin=70)
    # The next ones have a time of their own.
    board.expect(9, at(100))
    assert board.growing
    play(board, "requested", "ready", name="dask-1f-worker-9", begin=102)
    assert board.summary() == "9 workers, 36 cores, 144 GB in 3 s"
    board.expect(2, at(200))
    assert not board.growing


def test_asking_for_more_meanwhile_goes_on_from_the_first():
    board = StateBoard()
    board.expect(1, at(0))
    board.expect(2, at(5))
    play(board, "requested", "ready", name=WORKER, begin=6)
    assert board.growing
    play(board, "requested", "ready", name=OTHER, begin=8)
    assert board.summary() == "2 workers in 9 s"


def test_whoever_is_content_with_fewer_waits_no_more():
    board = StateBoard()
    board.expect(2, at(0))
    play(board, "requested", "ready")
    board.expect(1, at(5))
    assert not board.growing
    # That took until it came, and not until nobody wanted the other any more.
    assert board.summary() == "1 worker in 1 s"
    began = board.began
    board.expect(3, at(9))
    assert board.began == at(9)
    board.expect(1, at(11))
    # Nothing has come of it.
    assert not board.growing
    assert board.began == began
    assert board.summary() == "1 worker in 1 s"


def test_workers_that_were_there_before_have_no_time():
    board = StateBoard()
    for name in (SCHEDULER, WORKER, OTHER):
        play(board, "found", "running", name=name)
    board.expect(2, at(2))
    assert board.growing
    for name in (SCHEDULER, WORKER, OTHER):
        play(board, "ready", name=name, begin=3)
    assert not board.growing
    assert board.began == at(2)
    assert board.summary() == "2 workers"
    # Those have one that are asked for here.
    board.expect(3, at(10))
    play(board, "requested", "ready", name="w3", begin=13)
    assert board.summary() == "3 workers in 4 s"
    play(board, "found", name="w4", begin=20)
    board.expect(4, at(21))
    play(board, "ready", name="w4", begin=22)
    assert board.summary() == "4 workers"
    # And while others are on their way that were found.
    play(board, "found", name="w5", begin=30)
    board.expect(5, at(31))
    board.expect(6, at(32))
    board.expect(4, at(33))
    assert not board.growing
    assert board.summary() == "4 workers"
    board.expect(6, at(40))
    play(board, "ready", name="w5", begin=41)
    play(board, "requested", "ready", name="w6", begin=42)
    assert board.summary() == "6 workers in 3 s"


def test_giving_up_holds_until_somebody_asks_again():
    board = StateBoard(cluster=CLUSTER)
    board.expect(2, at(0))
    play(board, "gave up: \x1b[31mno room", name=CLUSTER)
    assert board.gave_up == "no room"
    board.expect(2, at(9))
    assert board.gave_up == ""


def test_what_is_of_interest_comes_first():
    board = StateBoard()
    play(board, "requested", "failed: long ago", name="old")
    board.expect(5, at(50))
    play(board, "requested", "ready", name="done", begin=51)
    play(board, "requested", "ready", name="latest", begin=52)
    play(board, "requested", name="asked", begin=51)
    play(board, "requested", "booting: image-pulling", name="busy", begin=51)
    play(board, "requested", "failed: no room", name="broken", begin=60)
    assert [each.name for each in board.pick(9)] == ["broken", "busy", "asked", "latest", "done"]
    assert [each.name for each in board.pick(2)] == ["broken", "busy"]
    assert board.failures() == 1


def test_only_some_of_those_that_are_no_more_are_remembered(monkeypatch):
    monkeypatch.setattr(state_board, "KEPT", 3)
    board = StateBoard()
    for number in range(9):
        play(board, "requested", "ready", "deleted", name=f"w{number}")
    assert [each.name for each in board.machines()] == ["w6", "w7", "w8"]
    assert board.counts() == {"deleted": 3}


def test_the_end_of_those_that_are_forgotten_is_nobody_elses():
    board = StateBoard(cluster=CLUSTER)
    for name in (SCHEDULER, WORKER, OTHER):
        play(board, "requested", "ready", name=name)
    broken = [f"dask-1f-worker-{number}" for number in range(state_board.KEPT + 1)]
    for name in broken:
        play(board, "requested", "failed: no room", name=name)
    # As when many fail at once: all have failed before the first is removed.
    for name in broken:
        for what in (*STATES[1:], "gave up", "moved", "retired"):
            play(board, what, name=name, begin=9)
    assert board.counts() == {"running": 3, "failed": state_board.KEPT}
    assert board.scheduler().state == "running"
    assert board.gave_up == ""
    play(board, "deleted", name=CLUSTER, begin=12)
    assert board.counts() == {"deleted": 3, "failed": state_board.KEPT - 3}


WHATS = ("requested", "found", "provisioning", "running", "booting", "ready", "leaving", "retired")
WHATS += ("kept", "deleted", "failed", "lost", "moved", "disconnected", "reconnected", "gave up")


@given(
    st.lists(
        st.tuples(
            st.sampled_from([SCHEDULER, WORKER, OTHER, CLUSTER]),
            st.sampled_from(WHATS),
            st.sampled_from(["", "booted", "image-pulling", "starting"]),
        )
    )
)
def test_what_is_counted_is_what_is_there(events):
    facts = {WORKER: MachineFacts("worker", cores=2, memory=3, workers=2)}
    board, version = StateBoard(facts.get, CLUSTER), 0
    for seconds, (name, what, why) in enumerate(events):
        before = board.machines()
        board.take(Event(name, what, why, at(seconds)))
        machines = board.machines()
        assert (machines == before) <= (board.version - version <= 1)
        version = board.version
        assert board.counts() == Counter(each.state for each in machines)
        workers = Counter[str]()
        for each in machines:
            workers[each.state] += each.workers
        assert board.workers_by_state() == +workers
        assert len(board.pick(2)) <= 2
        assert {each.name for each in board.pick(99)} <= {each.name for each in machines}
        for each in machines:
            assert each.state in each.times
            assert each.times[each.state] <= each.since <= at(seconds)
            assert (each.state in BOOTING_STATES) <= (each.since == max(each.times.values()))
            assert (each.state in ENDED_STATES) <= (each.since == max(each.times.values()))


def test_several_listen_and_one_that_fails_disturbs_nobody(caplog):
    log, heard = EventLog(), []

    def fail(event: Event) -> None:
        raise ValueError("too much")

    ends = [log.listen(each) for each in (heard.append, fail, heard.append)]
    log.note("vm-1", "requested")
    assert [each.what for each in heard] == ["requested", "requested"]
    assert "too much" in caplog.text
    ends[0]()
    ends[0]()
    log.note("vm-1", "ready")
    assert [each.what for each in heard] == ["requested", "requested", "ready"]
    ends[2]()
    log.note("vm-1", "deleted")
    assert len(heard) == 3


def test_the_last_events_are_read_as_of_a_list():
    log = EventLog()
    for what in ("requested", "running", "ready"):
        log.note("vm-1", what)
    assert log[-1].what == "ready"
    assert [each.what for each in log[-2:]] == ["running", "ready"]
    assert log[:] == list(log)
    assert log[::-2] == [log[2], log[0]]
    assert log[9:] == []
    with pytest.raises(IndexError):
        log[3]


async def test_a_cluster_tells_the_states_of_its_machines(light):
    async with cluster_on(light, n_workers=2) as cluster:
        await cluster.wait_for_workers(2)
        machines = {each.name: each for each in cluster.machines}
        assert set(machines) == {cluster.scheduler.name, *cluster.worker_spec}
        assert {each.state for each in machines.values()} == {"running"}
        for each in machines.values():
            assert (each.role == "scheduler") == (each.name == cluster.scheduler.name)
            assert (each.zone, each.machine_type) == ("us-central1-a", "e2-small")
            assert (each.cores, each.memory) == (2, 2 * 2**30)
            assert each.workers == (each.role == "worker")
            assert each.seconds("running") > 0
        assert cluster.summary().startswith("2 workers, 4 cores, 4 GB in ")
        assert cluster.board.wanted_workers == 2
        cluster.scale(1)
        await until(lambda: cluster.board.counts().get("deleted") == 1)
        assert cluster.summary().startswith("1 worker, 2 cores, 2 GB")
    assert cluster.board.counts() == {"deleted": 3}


async def test_workers_are_counted_where_a_machine_has_several(light):
    async with cluster_on(light, n_workers=3, processes=2) as cluster:
        assert cluster.board.wanted_workers == 4
        await cluster.wait_for_workers(4)
        assert cluster.board.running_workers == 4
        assert cluster.board.counts("worker") == {"running": 2}
        assert cluster.summary().startswith("4 workers, 4 cores, 4 GB in ")
