"""Ways to a cluster's machines: ``dashboard`` for a browser, ``ssh`` for a shell.

Owns how gcloud is called: with a list of arguments, never through a shell. Keys, host names and
Identity-Aware Proxy, where a machine has no external address, are gcloud's business.
"""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import closing
from http.client import HTTPConnection, HTTPException
from typing import TYPE_CHECKING

import click

from dask_gce.cli.cloud import find, open_compute
from dask_gce.cli.interruption import run_while_wanted, terminable
from dask_gce.cli.options import cluster_argument, identity_option, json_option, project_option
from dask_gce.cli.output import note, print_json

if TYPE_CHECKING:
    from dask_gce.cluster_records import ClusterRecord, Machine

__all__ = ["choose_machine", "dashboard", "ssh"]

#: Seconds that a machine which can be reached needs to answer, at most.
ANSWERS_WITHIN = 3.0

#: Seconds until a tunnel must stand. gcloud may have to make a key and wait for it to spread.
TUNNEL_WITHIN = 120.0

#: Seconds that a tunnel gets to end by itself.
ENDS_WITHIN = 5.0


@click.command()
@cluster_argument
@click.option("--no-open", is_flag=True, help="Print the address, but open no browser.")
@click.option(
    "--port",
    type=click.IntRange(1, 65_535),
    metavar="PORT",
    help="Port of a tunnel on this computer; by default the dashboard's own, or any free one.",
)
@identity_option
@project_option
@json_option
def dashboard(
    name: str,
    no_open: bool,
    port: int | None,
    identity: str | None,
    project: str | None,
    as_json: bool,
) -> None:
    """Open the dashboard of a cluster.

    If the scheduler's machine cannot be reached from here, a tunnel is made with gcloud compute
    ssh; it stands until Ctrl-C. With --json no browser is opened.

    \b
      dask gce dashboard grid
      dask gce dashboard grid --no-open --port 9000
    """
    record = run_while_wanted(_find(name, identity, project))
    machine = choose_machine(record)
    remote = _dashboard_port(record)
    for host in (machine.external_ip, machine.internal_ip):
        if host is not None and _answers(host, remote):
            _present(host, remote, as_json=as_json, tunnel=False, browse=not (no_open or as_json))
            return
    if not machine.on or machine.internal_ip is None:
        raise click.ClickException(
            f"The scheduler's machine {machine.name} is {machine.status}, so there is no dashboard."
        )
    if port is not None and not _is_free(port):
        # What answers there is not the other end of the tunnel.
        raise click.UsageError(f"Port {port} of this computer is taken; choose another --port.")
    local = port or _free_port(remote)
    command = _gcloud_ssh(record, machine)
    forward = f"127.0.0.1:{local}:{machine.internal_ip}:{remote}"
    options = ["-N", "-o", "ExitOnForwardFailure=yes", "-L", forward]
    note(f"{machine.name} cannot be reached from here; opening a tunnel. Ctrl-C closes it.")
    # gcloud's own words are no result.
    with (
        terminable(),
        subprocess.Popen([*command, "--", *options], stdout=sys.stderr.fileno()) as tunnel,
    ):
        try:
            _wait_for(tunnel, local)
            _present(
                "127.0.0.1", local, as_json=as_json, tunnel=True, browse=not (no_open or as_json)
            )
            tunnel.wait()
        finally:
            _end(tunnel)
    raise click.ClickException(f"The tunnel has closed: gcloud ended with {tunnel.returncode}.")


@click.command()
@cluster_argument
@click.argument("arguments", metavar="[-- ARGUMENTS...]", nargs=-1, type=click.UNPROCESSED)
@click.option("--machine", metavar="MACHINE", help="Machine to go to, instead of the scheduler's.")
@identity_option
@project_option
def ssh(
    name: str,
    arguments: Sequence[str],
    machine: str | None,
    identity: str | None,
    project: str | None,
) -> None:
    """Log in to a machine of a cluster, through gcloud.

    What follows -- goes to ssh: options of its own, or a command. The exit status is gcloud's.

    \b
      dask gce ssh grid
      dask gce ssh grid --machine grid-worker-7c2e -- sudo docker logs dask
    """
    record = run_while_wanted(_find(name, identity, project))
    command = _gcloud_ssh(record, choose_machine(record, machine))
    sys.stdout.flush()
    sys.stderr.flush()
    # In place of this process, so that the terminal and its signals are ssh's alone.
    os.execv(command[0], [*command, *(["--", *arguments] if arguments else [])])  # noqa: S606  # a list, no shell


async def _find(name: str, identity: str | None, project: str | None) -> ClusterRecord:
    async with open_compute(project) as compute:
        return await find(compute, name, identity)


def choose_machine(record: ClusterRecord, name: str | None = None) -> Machine:
    """Choose a machine of a cluster.

    Parameters
    ----------
    record : ClusterRecord
        The cluster.
    name : str or None
        The machine's name; None for the scheduler's.

    Returns
    -------
    Machine
        The machine.

    Raises
    ------
    click.ClickException
        If the cluster has none of that name, or no scheduler.
    """
    if name is None:
        if record.scheduler is None:
            raise click.ClickException(
                f"Cluster {record.name} has no scheduler. To see its machines: "
                f"dask gce show {record.name}"
            )
        return record.scheduler
    for machine in record.machines:
        if machine.name == name:
            return machine
    there = ", ".join(each.name for each in record.machines)
    raise click.UsageError(f"Cluster {record.name} has no machine {name!r}; it has: {there}")


def _gcloud_ssh(record: ClusterRecord, machine: Machine) -> list[str]:
    gcloud = shutil.which("gcloud")
    if gcloud is None:
        raise click.ClickException(
            "gcloud was not found on PATH. To install it: https://cloud.google.com/sdk/docs/install"
        )
    place = ["--project", record.project, "--zone", machine.zone]
    return [gcloud, "compute", "ssh", machine.name, *place]


# -- the dashboard --------------------------------------------------------------------------------


def _dashboard_port(record: ClusterRecord) -> int:
    """Return the port that the cluster was made with, or else that of the configuration."""
    from dask_gce.connections import list_connections, load_connection
    from dask_gce.settings import Settings

    if (record.project, record.name) in list_connections():
        made_with = load_connection(record.name, record.project)
        if made_with.identity == record.identity:
            return int(made_with.settings["dashboard_port"])
    return Settings.load(project=record.project).dashboard_port


def _answers(host: str, port: int) -> bool:
    """Tell whether a scheduler of Dask answers there; some networks have others at that address."""
    with closing(HTTPConnection(host, port, timeout=ANSWERS_WITHIN)) as connection:
        try:
            connection.request("GET", "/health")
            answer = connection.getresponse()
            return answer.status == 200 and answer.read(16).strip() == b"ok"
        except (OSError, HTTPException):
            return False


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        # As ssh does: a port that was left a moment ago is free.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


def _free_port(wanted: int) -> int:
    """Return the wanted port if it is free on this computer, or else any; ssh takes no zero."""
    if _is_free(wanted):
        return wanted
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _wait_for(tunnel: subprocess.Popen[bytes], port: int) -> None:
    deadline = time.monotonic() + TUNNEL_WITHIN
    while not _answers("127.0.0.1", port):
        if tunnel.poll() is not None:
            raise click.ClickException(
                f"The tunnel could not be opened: gcloud ended with {tunnel.returncode}; "
                "what it said is above."
            )
        if time.monotonic() > deadline:
            raise click.ClickException(
                f"No dashboard answered through the tunnel within {TUNNEL_WITHIN:g} s."
            )
        time.sleep(0.2)


def _end(tunnel: subprocess.Popen[bytes]) -> None:
    tunnel.terminate()
    try:
        tunnel.wait(ENDS_WITHIN)
    except subprocess.TimeoutExpired:
        tunnel.kill()


def _present(host: str, port: int, *, as_json: bool, tunnel: bool, browse: bool) -> None:
    address = f"http://{host}:{port}/status"
    if as_json:
        print_json({"address": address, "tunnel": tunnel})
    else:
        click.echo(address)
    if browse:
        import webbrowser

        if not webbrowser.open(address):
            note("No browser could be opened; the address is above.")
