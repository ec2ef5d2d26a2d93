"""``list``, ``show``, ``delete`` and ``sweep``: what labels tell, and who is deleted."""

from __future__ import annotations

import getpass
import signal
import time

import click
import pytest
from command_line import make, names, read, run, run_process, succeed
from fleets import OTHER_ZONE
from test_cli import LISTING

from dask_gce import names as naming
from dask_gce import removal
from dask_gce.connection_content import Connection
from dask_gce.connections import connection_path, list_connections, save_connection
from dask_gce.emulator import Fault
from dask_gce.settings import Settings

ATTRIBUTES = "compute.instances.getGuestAttributes"
ME = naming.label_value(getpass.getuser())


def in_hours(hours: int) -> str:
    """Return the label of a time from now, a little late so that a test may take a while."""
    return str(int(time.time()) + hours * 3600 + (30 if hours > 0 else 0))


@pytest.fixture(autouse=True)
def soon(monkeypatch):
    """Look again after milliseconds whether machines are gone."""
    monkeypatch.setattr(removal, "FIRST_PAUSE", 0.02)


@pytest.fixture
def data_folder(tmp_path, monkeypatch):
    """Keep connection files here."""
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    return tmp_path


def remember(identity: str = "a" * 32, name: str = "grid") -> None:
    """Write a connection file."""
    settings = Settings.load(name=name, security=False).dump()
    save_connection(Connection(name, "local-project", identity, ME, None, None, settings))


# -- list and show --------------------------------------------------------------------------------


def test_list_costs_one_call_and_one_for_each_cluster(emulator):
    machines = {}
    for number in range(6):
        zone = {"zone": OTHER_ZONE} if number % 2 else {}
        cluster = {"cluster": f"grid-{number}", "identity": f"{number}" * 32}
        machines[f"s_{number}"] = {**cluster, **zone, "role": "scheduler"}
    make(emulator, **machines)
    before = emulator.requests.copy()
    output, errors = run_process(emulator.endpoint, "list")
    assert emulator.requests - before == {LISTING: 1, ATTRIBUTES: 6}
    assert not errors
    lines = output.splitlines()
    assert lines[0].split() == [
        "NAME",
        "OWNER",
        "AGE",
        "VMS",
        "STATE",
        "ENDS",
        "PER",
        "HOUR",
        "ZONE",
    ]
    assert [line.split()[0] for line in lines[1:]] == [f"grid-{number}" for number in range(6)]


def test_list_shows_whose_what_and_until_when(emulator):
    make(
        emulator,
        s={"role": "scheduler", "owner": "ada", "expires": in_hours(2)},
        w={"owner": "ada", "expires": in_hours(2)},
        other={"cluster": "zebra", "identity": "b" * 32, "owner": "bob", "expires": in_hours(-1)},
    )
    grid, zebra = (line.split() for line in succeed(emulator, "list").splitlines()[1:])
    assert [*grid[:2], *grid[3:7]] == ["grid", "ada", "2", "running", "in", "2h"]
    assert [*zebra[:2], *zebra[3:7]] == ["zebra", "bob", "1", "no-scheduler", "1h", "ago"]
    assert grid[7].startswith("$0.0")
    listed = read(emulator, "list")
    assert listed["clusters"][0]["hourly_price"] == pytest.approx(2 * zebra_price(listed))
    assert [each["name"] for each in listed["clusters"]] == ["grid", "zebra"]
    assert listed["project"] == "local-project"


def zebra_price(listed) -> float:
    price: float = listed["clusters"][1]["hourly_price"]
    return price


def test_an_empty_project_is_no_error(emulator):
    result = run(emulator, "list")
    assert (result.exit_code, result.stdout) == (0, "")
    assert "No clusters in project local-project." in result.stderr
    assert read(emulator, "list")["clusters"] == []


def test_zones_that_did_not_answer_are_named(emulator):
    make(emulator, s={"role": "scheduler"})
    emulator.unreachable.add("europe-west1-b")
    result = run(emulator, "list")
    assert result.exit_code == 0
    assert "europe-west1-b" in result.stderr
    assert "europe-west1-b" in run(emulator, "show", "gird").stderr
    assert read(emulator, "list")["unreachable_zones"] == ["europe-west1-b"]


def test_show_lists_the_machines_and_whether_one_can_connect(emulator, data_folder):
    make(emulator, s={"role": "scheduler"}, w={"zone": OTHER_ZONE})
    text = succeed(emulator, "show", "grid")
    assert "Connect: not from this computer" in text
    (worker,) = (line.split() for line in text.splitlines() if line.startswith("w "))
    assert worker[:5] == ["w", "worker", "RUNNING", "e2-small", OTHER_ZONE]
    remember()
    assert 'GCECluster.from_name("grid")' in succeed(emulator, "show", "grid")
    assert read(emulator, "show", "grid")["connection_file"] is True


def test_a_cluster_that_is_half_made_is_shown_and_can_be_deleted(emulator):
    make(emulator, w={})
    assert "no-scheduler" in succeed(emulator, "show", "grid")
    assert "has no scheduler" in run(emulator, "ssh", "grid").stderr
    succeed(emulator, "delete", "grid", "--yes")
    assert not names(emulator)


# -- delete ---------------------------------------------------------------------------------------


def test_delete_takes_all_machines_and_nothing_else(emulator, data_folder):
    other = {"cluster": "other", "identity": "b" * 32}
    make(emulator, s={"role": "scheduler"}, w={"zone": OTHER_ZONE}, o=other)
    remember()
    remember("b" * 32, "other")
    assert succeed(emulator, "delete", "grid", "--yes") == "Deleted grid: 2 machines.\n"
    assert names(emulator) == {"o"}
    assert list_connections() == [("local-project", "other")]


def test_delete_leaves_the_file_of_another_cluster_of_the_name(emulator, data_folder):
    make(emulator, s={"role": "scheduler"})
    remember("b" * 32)
    succeed(emulator, "delete", "grid", "--yes")
    assert list_connections() == [("local-project", "grid")]


def test_delete_takes_a_file_that_nobody_could_use(emulator, data_folder):
    make(emulator, s={"role": "scheduler"})
    remember()
    connection_path("grid", "local-project").chmod(0o644)
    succeed(emulator, "delete", "grid", "--yes")
    assert not list_connections()


def test_delete_takes_the_file_whatever_secret_manager_says(emulator, data_folder):
    make(emulator, s={"role": "scheduler"})
    remember()
    emulator.faults.add(Fault("secretmanager.projects.secrets.list", status=400, times=1))
    result = run(emulator, "delete", "grid", "--yes")
    assert (result.exit_code, names(emulator)) == (1, set())
    assert "list secrets" in result.stderr
    assert not list_connections()


def test_delete_wants_yes_where_nobody_can_be_asked(emulator):
    make(emulator, s={"role": "scheduler", "owner": "bob"})
    result = run(emulator, "delete", "grid")
    assert result.exit_code == 2
    assert "--yes" in result.stderr
    assert "of bob" in result.stderr
    assert names(emulator) == {"s"}


@pytest.mark.parametrize(("answer", "status"), [("y\n", 0), ("n\n", 1), ("", 130)])
def test_delete_asks_on_a_terminal(emulator, monkeypatch, answer, status):
    make(emulator, s={"role": "scheduler", "owner": ME})
    monkeypatch.setattr("dask_gce.cli.removal._is_asked", lambda: True)
    result = run(emulator, "delete", "grid", input=answer)
    assert result.exit_code == status
    assert "Delete grid (1 machine, " in result.stderr
    assert " of " not in result.stderr.partition("?")[0]
    assert bool(names(emulator)) == bool(status)


def test_ctrl_c_ends_the_question_at_once(emulator, monkeypatch):
    def interrupt(*_, **options):
        try:
            signal.raise_signal(signal.SIGINT)
        except KeyboardInterrupt:
            raise click.Abort from None  # as click does
        pytest.fail("it goes on waiting for the answer")

    make(emulator, s={"role": "scheduler"})
    monkeypatch.setattr("dask_gce.cli.removal._is_asked", lambda: True)
    monkeypatch.setattr(click, "confirm", interrupt)
    result = run(emulator, "delete", "grid")
    assert result.exit_code == 130, result.output
    assert names(emulator) == {"s"}


def test_of_several_names_none_is_deleted_if_one_is_wrong(emulator):
    make(emulator, s={"role": "scheduler"})
    result = run(emulator, "delete", "grid", "gird", "--yes")
    assert result.exit_code == 3
    assert "Did you mean 'grid'?" in result.stderr
    assert names(emulator) == {"s"}


def test_two_clusters_of_one_name_are_told_apart(emulator):
    make(
        emulator,
        s1={"role": "scheduler", "owner": "ada"},
        s2={"role": "scheduler", "owner": "bob", "identity": "b" * 32},
    )
    result = run(emulator, "delete", "grid", "--yes")
    assert result.exit_code == 2
    for text in ("2 clusters", "owner ada", "owner bob", "id aaaaaaaa", "id bbbbbbbb", "--id"):
        assert text in result.stderr
    assert run(emulator, "show", "grid").exit_code == 2
    assert run(emulator, "delete", "grid", "other", "--id", "b", "--yes").exit_code == 2
    assert names(emulator) == {"s1", "s2"}
    deleted = read(emulator, "delete", "grid", "--id", "bbbb", "--yes")["deleted"]
    assert deleted == [{"name": "grid", "id": "b" * 32, "machines": ["s2"]}]
    assert names(emulator) == {"s1"}


def test_what_cannot_be_deleted_is_told(emulator, monkeypatch):
    monkeypatch.setattr(removal, "CERTAIN_WITHIN", 0.5)
    make(emulator, s={"role": "scheduler"})
    refused = Fault(
        "compute.instances.delete",
        status=403,
        reason="forbidden",
        message="Not allowed.",
        times=10**6,
    )
    emulator.faults.add(refused)
    result = run(emulator, "delete", "grid", "--yes")
    assert result.exit_code == 1
    assert "Not allowed." in result.stderr
    assert not result.stdout


@pytest.mark.parametrize("command", [["delete", "grid", "other", "--yes"], ["sweep", "--delete"]])
def test_one_that_cannot_be_deleted_does_not_keep_the_others(emulator, command):
    mine = {"role": "scheduler", "owner": ME, "expires": in_hours(-1)}
    make(emulator, s1=mine, s2={**mine, "cluster": "other", "identity": "b" * 32})
    refused = {"status": 403, "reason": "forbidden", "message": "Not allowed."}
    emulator.faults.add(
        Fault("compute.instances.delete", **refused, match=lambda name: name == "s1", times=1)
    )
    result = run(emulator, *command)
    assert result.exit_code == 1
    assert "Instances of cluster grid may be left" in result.stderr
    assert names(emulator) == {"s1"}


# -- sweep ----------------------------------------------------------------------------------------


def test_sweep_is_dry_unless_told(emulator):
    mine = {"role": "scheduler", "owner": ME}
    make(
        emulator,
        old={**mine, "expires": in_hours(-1)},
        kept={**mine, "cluster": "kept", "identity": "b" * 32, "client": "detached"},
        hers={
            **mine,
            "cluster": "hers",
            "identity": "c" * 32,
            "owner": "eve",
            "expires": in_hours(-1),
        },
    )
    result = run(emulator, "sweep")
    assert result.exit_code == 0
    (line,) = result.stdout.splitlines()[1:]
    assert line.startswith("grid ")
    assert "was to end at" in line
    assert "dask gce sweep --delete" in result.stderr
    assert names(emulator) == {"old", "kept", "hers"}

    swept = read(emulator, "sweep", "--delete")
    assert [each["name"] for each in swept["orphans"]] == ["grid"]
    assert [each["machines"] for each in swept["deleted"]] == [["old"]]
    assert names(emulator) == {"kept", "hers"}

    assert "Deleted 1 of 1 clusters." in succeed(emulator, "sweep", "--delete", "--all-owners")
    assert names(emulator) == {"kept"}
    assert "No orphans" in run(emulator, "sweep", "--all-owners").stderr
