"""``logs``: what a cluster's machines say, of Dask or of their boot.

Owns which lines are new when the same log is read again, and how they are printed. Dask's logs come
through the scheduler; what machines write to their serial consoles comes from Compute Engine.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NoReturn

import click

from dask_gce.cli.cloud import find, open_compute, read_connection
from dask_gce.cli.interruption import run_while_wanted
from dask_gce.cli.options import cluster_argument, identity_option, json_option, project_option
from dask_gce.terminal import harmless

if TYPE_CHECKING:
    from dask_gce.cluster_records import Machine
    from dask_gce.compute import Compute
    from dask_gce.connection_content import Connection
    from dask_gce.reach.approach import Approach

__all__ = ["logs", "new_lines"]

#: Seconds between looks when logs are followed. Compute Engine counts each as a request.
INTERVAL = 2.0

#: Prints lines of a machine.
Show = Callable[[str, Sequence[str]], None]


@click.command()
@cluster_argument
@click.option("--follow", "-f", is_flag=True, help="Go on with what is new, until Ctrl-C.")
@click.option("--boot", is_flag=True, help="Serial consoles, which need no connection file.")
@click.option("--machine", metavar="MACHINE", help="Of this machine or worker only.")
@click.option(
    "--tail", type=click.IntRange(min=0), metavar="N", help="Begin with the last N lines of each."
)
@identity_option
@project_option
@json_option
def logs(
    name: str,
    follow: bool,
    boot: bool,
    machine: str | None,
    tail: int | None,
    identity: str | None,
    project: str | None,
    as_json: bool,
) -> None:
    """Print the logs of a cluster.

    Without --boot these are Dask's logs of the scheduler and the workers, read through the
    scheduler with the file that create leaves on the computer where it ran. With --boot it is what
    the machines write to their serial consoles, from the first second of their boot.

    Lines begin with the machine's name if there are several. With --json each line is a JSON object
    with the machine and the line.

    \b
      dask gce logs grid --tail 20
      dask gce logs grid --boot -f
    """
    if identity is not None and not boot:
        raise click.UsageError("--id is for --boot; the connection file knows its cluster.")
    if boot:
        run_while_wanted(_boot(name, identity, project, machine, follow, tail, as_json))
    else:
        run_while_wanted(_dask(name, project, machine, follow, tail, as_json))


def _printer(as_json: bool, several: bool) -> Show:
    def show(machine: str, lines: Sequence[str]) -> None:
        for line in map(harmless, lines):
            if as_json:
                click.echo(json.dumps({"machine": machine, "line": line}, ensure_ascii=False))
            else:
                click.echo(f"{machine}: {line}" if several else line)

    return show


def _last(lines: Sequence[str], count: int | None) -> Sequence[str]:
    return lines if count is None else lines[max(0, len(lines) - count) :]


# -- serial consoles ------------------------------------------------------------------------------


async def _boot(
    name: str,
    identity: str | None,
    project: str | None,
    machine: str | None,
    follow: bool,
    tail: int | None,
    as_json: bool,
) -> None:
    from dask_gce.cli.access import choose_machine

    async with open_compute(project) as compute:
        record = await find(compute, name, identity)
        machines = record.machines if machine is None else (choose_machine(record, machine),)
        show = _printer(as_json, len(machines) > 1)
        await asyncio.gather(*(_console(compute, each, follow, tail, show) for each in machines))


async def _console(
    compute: Compute, machine: Machine, follow: bool, tail: int | None, show: Show
) -> None:
    """Print a serial console; its last line only once it is complete, or nothing follows."""
    from dask_gce.errors import NotFound

    offset, rest = 0, ""
    while True:
        try:
            text, offset = await compute.get_serial_port_output(machine.zone, machine.name, offset)
        except NotFound:
            # Deleted meanwhile.
            text, follow = "", False
        *lines, rest = (rest + text).split("\n")
        if not follow and rest:
            lines.append(rest)
        show(machine.name, _last(lines, tail))
        if not follow:
            return
        tail = None
        await asyncio.sleep(INTERVAL)


# -- Dask's logs ----------------------------------------------------------------------------------


async def _dask(
    name: str,
    project: str | None,
    machine: str | None,
    follow: bool,
    tail: int | None,
    as_json: bool,
) -> None:
    from distributed.core import rpc

    connection, scheduler, approach = await _look_up(name, project)
    try:
        address = await _reach(connection, scheduler, approach)
        arguments = connection.security().get_connection_args("client")
        show = _printer(as_json, True)
        async with rpc(address, connection_args=arguments) as remote:
            await _print(remote, name, scheduler.name, machine, follow, tail, show)
    finally:
        await approach.close()


async def _print(
    remote: Any,
    name: str,
    scheduler: str,
    machine: str | None,
    follow: bool,
    tail: int | None,
    show: Show,
) -> None:
    known: dict[str, Sequence[str]] = {}
    while True:
        try:
            found = await _read(remote, scheduler)
        except OSError as error:
            raise click.ClickException(
                f"The scheduler of {name} at {remote.address} does not answer: {error}. What its "
                f"machine says: dask gce logs {name} --boot --machine {scheduler}"
            ) from error
        if machine is not None:
            # A machine with several workers has their logs.
            found = {
                each: lines
                for each, lines in found.items()
                if machine in (each, each.rpartition("-")[0])
            } or _refuse(machine, found)
        for each, lines in found.items():
            show(each, new_lines(known[each], lines) if each in known else _last(lines, tail))
        known.update(found)
        if not follow:
            return
        await asyncio.sleep(INTERVAL)


async def _look_up(name: str, project: str | None) -> tuple[Connection, Machine, Approach]:
    """Return what the connection file says, the scheduler's machine, and the way to it."""
    from dask_gce.cli.access import choose_machine
    from dask_gce.preparation import find_route
    from dask_gce.reach.approach import Approach
    from dask_gce.settings import Settings

    connection = await read_connection(name, project)
    # The way is that of whoever asks.
    settings = connection.restore_settings().with_way_of(Settings.load())
    async with open_compute(connection.project) as compute:
        record, route = await asyncio.gather(
            find(compute, name, connection.identity), find_route(compute, settings)
        )
    approach = Approach(route, settings, connection.project, security=connection.security())
    return connection, choose_machine(record), approach


async def _reach(connection: Connection, scheduler: Machine, approach: Approach) -> str:
    """Return the address at which the scheduler answers."""
    from dask_gce.reunion import as_instance

    port = int(connection.settings["scheduler_port"])
    await approach.open(as_instance(scheduler))
    obstacle = await approach.find_obstacle()
    place = approach.address(port)
    if not obstacle and place is not None:
        return f"{'tls' if connection.client_tls else 'tcp'}://{place[0]}:{place[1]}"
    raise click.ClickException(
        f"The scheduler on {scheduler.name} cannot be reached from here: "
        f"{approach.describe(port)} was asked, and {obstacle.rstrip('.')}. The way is "
        f"{approach.route}; another one may help (DASK_GCE__CONNECT=iap). For what its machine "
        f"says: dask gce logs {connection.cluster} --boot"
    )


async def _read(remote: Any, scheduler: str) -> dict[str, list[str]]:
    """Return the lines of the scheduler and of each worker, by name, oldest first."""
    from dask_gce.log_reading import read_dask_logs

    workers = (await remote.identity())["workers"]
    told = await read_dask_logs(remote, list(workers))
    if told.obstacle:
        raise OSError(told.obstacle)
    found = {scheduler: told.scheduler}
    for address, entries in told.workers.items():
        found[str(workers[address]["name"])] = entries
    return {
        name: [line for entry in entries for line in entry.text.splitlines()]
        for name, entries in found.items()
    }


def _refuse(machine: str, found: Mapping[str, object]) -> NoReturn:
    raise click.UsageError(
        f"There are no logs of {machine!r}; there are: {', '.join(sorted(found))}. "
        "For machines without Dask: --boot"
    )


def new_lines(before: Sequence[str], now: Sequence[str]) -> Sequence[str]:
    """Return what a log has gained that keeps only its last lines.

    Parameters
    ----------
    before : sequence of str
        What it was.
    now : sequence of str
        What it is.

    Returns
    -------
    sequence of str
        The lines that have come; all of it if nothing of what it was is left.

    Examples
    --------
    >>> new_lines(["a", "b", "b"], ["b", "b", "c"])
    ['c']
    """
    for dropped in range(len(before)):
        kept = before[dropped:]
        # The first line alone tells most of the time.
        if now[:1] == kept[:1] and now[: len(kept)] == kept:
            return now[len(kept) :]
    return now
