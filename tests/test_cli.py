"""The command line as a whole: what is there, how it ends, how it completes."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from pathlib import Path

import click
import pytest
import yaml
from click.testing import CliRunner
from clusters import wait_until
from command_line import make, process, read, run, run_process, succeed
from test_package import modules_after

from dask_gce.cli import _COMMANDS, gce
from dask_gce.cli.interruption import finish, run_to_the_end, terminable
from dask_gce.cli.setting_options import SettingOption, parse_settings
from dask_gce.emulator import Fault
from dask_gce.sources import DEFAULTS

LISTING = "compute.instances.aggregatedList"

#: What `dask --help` may not cost whoever has no use for this package.
HEAVY = ("distributed", "google", "yaml", "rich", "cryptography", "aiohttp", "dask_gce.emulator")


# -- what is there --------------------------------------------------------------------------------


@pytest.mark.parametrize("name", _COMMANDS)
def test_every_command_has_help_with_an_example(name):
    result = CliRunner().invoke(gce, [name, "--help"])
    assert result.exit_code == 0
    if name != "emulator":
        assert f"  dask gce {name}" in result.output


def test_help_lists_all_commands_and_exit_statuses():
    result = CliRunner().invoke(gce, ["--help"])
    for name in _COMMANDS:
        assert f"\n  {name} " in result.output
    assert "3    no cluster of that name" in result.output


def test_help_imports_next_to_nothing():
    statement = (
        "from click.testing import CliRunner; from dask_gce.cli import gce; "
        "CliRunner().invoke(gce, ['--help']); CliRunner().invoke(gce, ['create', '--help'])"
    )
    loaded = modules_after(statement)
    assert "dask_gce.cli.create" in loaded
    assert not [each for each in loaded if each.partition(".")[0] in HEAVY]


def test_every_setting_is_an_option_with_its_comment():
    command = gce.get_command(click.Context(gce), "create")
    options = {each.name: each for each in command.params if isinstance(each, SettingOption)}
    assert set(options) == set(DEFAULTS) - {"name"}
    text = CliRunner().invoke(gce, ["create", "--help"], terminal_width=400).output
    assert "Threads of a worker; null: its share of the vCPUs" in text
    assert "Size of the boot disk in GB" in text
    assert "[default: 30]" in text
    for section in ("Where:", "Network:", "Patience:"):
        assert f"\n{section}\n" in text


def test_values_are_read_as_yaml():
    typed = {
        "env_vars": ["{A: '1', B: a=b c}"],
        "zone": ["us-east1-b", "us-east1-c"],
        "memory_limit": ["0.8"],
        "start_timeout": ["10 minutes"],
        "max_workers": ["null"],
        "external_ip": ["false"],
        "labels": [],
    }
    assert parse_settings(typed) == {
        "env_vars": {"A": "1", "B": "a=b c"},
        "zone": ["us-east1-b", "us-east1-c"],
        "memory_limit": 0.8,
        "start_timeout": "10 minutes",
        "max_workers": None,
        "external_ip": False,
    }


def test_a_value_that_is_no_yaml_is_refused_and_not_repeated():
    result = run(None, "create", "--env-vars", "{PASSWORD: hunter2")
    assert result.exit_code == 2
    assert "--env-vars" in result.stderr
    assert "hunter2" not in result.output
    with pytest.raises(yaml.YAMLError):
        yaml.safe_load("{PASSWORD: hunter2")


# -- how it ends ----------------------------------------------------------------------------------


def test_errors_have_their_exit_status_and_go_to_standard_error(emulator):
    for status, text, *arguments in (
        (2, "No such command 'lits'", "lits"),
        (2, "No such option", "list", "--projcet", "x"),
        (2, "project = 'UPPER'", "list", "--project", "UPPER"),
        (2, "machine_type", "create", "grid", "--machine-type", "huge"),
        (2, "name = 'Grid'", "create", "Grid"),
        (2, "n_workers = [2, 3]", "create", "--n-workers", "2", "--n-workers", "3"),
        (3, "No cluster 'grid' runs in project local-project", "show", "grid"),
        (3, "No cluster 'grid' runs", "delete", "grid", "--yes", "--json"),
    ):
        result = run(emulator, *arguments)
        assert result.exit_code == status, (arguments, result.output)
        assert text in result.stderr
        assert "Traceback" not in result.output
        assert not result.stdout


def test_what_compute_engine_refuses_ends_with_one(emulator):
    message = "Required \x1b]0;title\x07permission\x1b[2J is\r missing."
    refused = {"status": 403, "reason": "forbidden", "message": message}
    emulator.faults.add(Fault(LISTING, **refused))
    result = run(emulator, "list")
    assert result.exit_code == 1
    assert "Required permission is missing." in result.stderr
    assert not set(result.stderr) & {"\x1b", "\x07", "\r"}


def test_a_wrong_configuration_is_told_with_its_place(monkeypatch, tmp_path):
    (tmp_path / "gce.yaml").write_text("gce:\n  zone: nowhere\n", encoding="utf-8")
    for command in ("list", "config"):
        _, errors = run_process("http://127.0.0.1:1", command, status=2, DASK_CONFIG=str(tmp_path))
        assert "zone = 'nowhere'" in errors
        assert str(tmp_path / "gce.yaml") in errors


def test_interrupted_while_it_waits(emulator):
    emulator.faults.add(Fault(LISTING, delay=30))
    with process(emulator.endpoint, "list") as running:
        wait_until(lambda: emulator.requests[LISTING] or running.poll() is not None)
        running.send_signal(2)
        output, errors = running.communicate(timeout=200)
    assert running.returncode == 130
    assert errors.strip() == "Interrupted."
    assert not output


async def test_what_must_be_finished_is_finished():
    go_on, done = asyncio.Event(), []

    async def work() -> None:
        await go_on.wait()
        done.append(True)

    task = asyncio.ensure_future(finish(work()))
    for _ in range(3):
        await asyncio.sleep(0)
        task.cancel()
    await asyncio.sleep(0)
    assert not task.done()
    go_on.set()
    await task
    assert done


def test_a_signal_that_is_ignored_stays_so():
    async def hang_up() -> str:
        os.kill(os.getpid(), signal.SIGHUP)
        await asyncio.sleep(0.05)
        return "done"

    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        assert run_to_the_end(hang_up()) == "done"
        with terminable():
            os.kill(os.getpid(), signal.SIGHUP)
    finally:
        signal.signal(signal.SIGHUP, before)


# -- how it completes -----------------------------------------------------------------------------


def completions(line: str, **more: str) -> list[str]:
    """Return what bash offers at the end of a line."""
    words = line.split(" ")
    answer = subprocess.run(
        [Path(sys.executable).with_name("dask")],
        capture_output=True,
        text=True,
        check=True,
        env={
            **os.environ,
            "COMP_WORDS": line,
            "COMP_CWORD": str(len(words) - 1),
            "_DASK_COMPLETE": "bash_complete",
            **more,
        },
    ).stdout
    return [each.partition(",")[2] for each in answer.splitlines() if each]


def test_commands_and_options_complete():
    assert completions("dask gce sc") == ["scale"]
    assert completions("dask gce create --machine-t") == ["--machine-type"]
    assert completions("dask gce create --external-ip ") == ["true", "false"]


def test_show_and_list_agree(emulator):
    make(emulator, vm={"role": "scheduler"})
    (listed,) = read(emulator, "list")["clusters"]
    more = {"connection_file": False, "firewall_rules": []}
    assert {**listed, **more} == read(emulator, "show", "grid")
    assert "grid" in succeed(emulator, "list")
