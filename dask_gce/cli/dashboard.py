"""``dashboard``: a cluster's dashboard in a browser, or the Jupyter server on the same port.

Owns the way there: the one that clients take (`reach`), and if nobody answers there a tunnel of
gcloud's ssh. Which machine is meant, and how gcloud is called, is the matter of `access`.
"""

from __future__ import annotations

import asyncio
import dataclasses
import socket
import subprocess
import sys
import time
from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass
from http.client import HTTPConnection, HTTPException
from types import MappingProxyType
from typing import TYPE_CHECKING, NoReturn

import click

from dask_gce.cli.access import choose_machine, gcloud_ssh
from dask_gce.cli.cloud import find, open_compute
from dask_gce.cli.interruption import run_to_the_end, run_while_wanted, terminable
from dask_gce.cli.options import cluster_argument, identity_option, json_option, project_option
from dask_gce.cli.output import note, print_json
from dask_gce.errors import TunnelError

if TYPE_CHECKING:
    from dask_gce.cluster_records import ClusterRecord, Machine
    from dask_gce.connection_content import Connection
    from dask_gce.reach.approach import Approach
    from dask_gce.reach.route import Route
    from dask_gce.settings import Settings

__all__ = ["dashboard"]

#: Seconds that a machine which can be reached needs to answer, at most.
ANSWERS_WITHIN = 3.0

#: Seconds until a tunnel must stand. gcloud may have to make a key and wait for it to spread.
TUNNEL_WITHIN = 120.0

#: Seconds that a scheduler has to tell what it is asked.
ASKED_WITHIN = 30.0

#: What is shown if nothing else is asked for.
DASHBOARD = "/status"

#: Seconds that a tunnel gets to end by itself.
ENDS_WITHIN = 5.0


@click.command()
@cluster_argument
@click.option("--jupyter", is_flag=True, help="Open the Jupyter server on the scheduler's machine.")
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
    jupyter: bool,
    no_open: bool,
    port: int | None,
    identity: str | None,
    project: str | None,
    as_json: bool,
) -> None:
    """Open the dashboard of a cluster.

    It is shown by the way that leads to the scheduler: at an address of its machine, or through a
    tunnel of Identity-Aware Proxy (DASK_GCE__CONNECT=iap). Where nobody answers there, a tunnel is
    made with gcloud compute ssh. Tunnels stand until Ctrl-C. With --json no browser is
    opened.

    With --jupyter it is the Jupyter server of a cluster made with jupyter=True. Its address has the
    token that lets in whoever has it.

    \b
      dask gce dashboard grid
      dask gce dashboard grid --jupyter
      dask gce dashboard grid --no-open --port 9000
    """
    way = run_while_wanted(_find_way(name, identity, project, jupyter=jupyter))
    record, machine, remote = way.record, way.machine, way.settings.dashboard_port
    browse = not (no_open or as_json)
    if not machine.on or machine.internal_ip is None:
        raise click.ClickException(
            f"The scheduler's machine {machine.name} is {machine.status}, so there is no dashboard."
        )
    if way.address is not None and _answers(*way.address):
        _present(*way.address, way.path, as_json=as_json, tunnel=False, browse=browse)
        return
    if jupyter and way.route.kind != "iap":
        raise click.ClickException(
            f"The scheduler of {name} does not answer from here, so nobody tells the token of its "
            f"Jupyter server. Looked for: {way.asked}. Another way may help "
            "(DASK_GCE__CONNECT=iap)."
        )
    if port is not None and not _is_free(port):
        # What answers there is not the other end of the tunnel.
        raise _taken(port)
    if way.route.kind == "iap":
        try:
            run_to_the_end(_stand(way, port or _free_port(remote), as_json=as_json, browse=browse))
        except TunnelError as error:
            note(str(error))
    else:
        note(
            f"No dashboard answers from here. Looked for: {way.asked}. The way is {way.route}; "
            "another one may help (DASK_GCE__CONNECT=iap)."
        )
    local = port or _free_port(remote)
    command = gcloud_ssh(record, machine)
    forward = f"127.0.0.1:{local}:{machine.internal_ip}:{remote}"
    options = ["-N", "-o", "ExitOnForwardFailure=yes", "-L", forward]
    note(f"Opening a tunnel to {machine.name} with gcloud compute ssh. Ctrl-C closes it.")
    # gcloud's own words are no result.
    with (
        terminable(),
        subprocess.Popen([*command, "--", *options], stdout=sys.stderr.fileno()) as tunnel,
    ):
        try:
            _wait_for(tunnel, local)
            _present("127.0.0.1", local, DASHBOARD, as_json=as_json, tunnel=True, browse=browse)
            tunnel.wait()
        finally:
            _end(tunnel)
    raise click.ClickException(f"The tunnel has closed: gcloud ended with {tunnel.returncode}.")


@dataclass(frozen=True)
class _Way:
    """How a cluster's dashboard is reached from here."""

    record: ClusterRecord
    machine: Machine
    settings: Settings
    route: Route
    #: Where it is; None if a tunnel leads there, or nothing does.
    address: tuple[str, int] | None
    #: The same in words.
    asked: str
    #: What is to be shown there.
    path: str = DASHBOARD
    #: By which the scheduler tells the token of its Jupyter server; None for the dashboard.
    connection: Connection | None = None

    def approach(self, local_ports: Mapping[int, int] = MappingProxyType({})) -> Approach:
        """Return what takes the way."""
        from distributed.security import Security

        from dask_gce.reach.approach import Approach

        # A dashboard asks for no certificates.
        security = Security() if self.connection is None else self.connection.security()
        project = self.record.project
        return Approach(
            self.route, self.settings, project, security=security, local_ports=local_ports
        )


async def _find_way(name: str, identity: str | None, project: str | None, *, jupyter: bool) -> _Way:
    from dask_gce.preparation import find_route
    from dask_gce.reunion import as_instance

    async with open_compute(project) as compute:
        record = await find(compute, name, identity)
        machine = choose_machine(record)
        connection = await asyncio.to_thread(_load_connection, record)
        settings = await asyncio.to_thread(_settings, record, machine, connection)
        route = await find_route(compute, settings)
    if jupyter:
        _check_jupyter(record, settings, connection)
    held = connection if jupyter else None
    way = _Way(record, machine, settings, route, None, "", connection=held)
    if route.kind == "iap":
        return way
    approach, remote = way.approach(), settings.dashboard_port
    await approach.open(as_instance(machine))
    try:
        address, asked = approach.address(remote), approach.describe(remote)
        path = await _find_path(way, approach)
    finally:
        await approach.close()
    return dataclasses.replace(way, address=address, asked=asked, path=path)


def _load_connection(record: ClusterRecord) -> Connection | None:
    """Return what this user has to connect to the cluster."""
    from dask_gce.connections import list_connections, load_connection

    if (record.project, record.name) in list_connections():
        made_with = load_connection(record.name, record.project)
        if made_with.identity == record.identity:
            return made_with
    return None


def _check_jupyter(
    record: ClusterRecord, settings: Settings, connection: Connection | None
) -> None:
    if connection is None:
        raise click.ClickException(
            f"There is no connection file of {record.name} here, and its scheduler tells the token "
            "of its Jupyter server to nobody else. Copy the file from where the cluster was made."
        )
    if not settings.jupyter:
        raise click.ClickException(
            f"{record.name} has no Jupyter server: it was made without jupyter=True."
        )


async def _find_path(way: _Way, approach: Approach) -> str:
    """Return what is to be shown: the dashboard's path, or the Jupyter server's with its token."""
    if way.connection is None:
        return DASHBOARD
    from distributed.core import rpc

    from dask_gce.jupyter_server import link_to

    place = approach.address(way.settings.scheduler_port)
    if place is None or await approach.find_obstacle():
        return DASHBOARD  # is not shown, since nothing answers
    security = await asyncio.to_thread(way.connection.security)
    scheme = "tcp" if way.connection.client_tls is None else "tls"
    asked = rpc(
        f"{scheme}://{place[0]}:{place[1]}",
        connection_args=security.get_connection_args("client"),
        timeout=ASKED_WITHIN,
    )
    async with asked as scheduler:
        told = await asyncio.wait_for(scheduler.dask_gce_jupyter(), ASKED_WITHIN)
    return link_to("http://scheduler", told["path"], told["token"]).removeprefix("http://scheduler")


def _settings(record: ClusterRecord, machine: Machine, connection: Connection | None) -> Settings:
    """Return what the cluster was made with, and the way that is configured here."""
    from dask_gce.settings import Settings

    reader = Settings.load(project=record.project)
    if connection is not None:
        return connection.restore_settings().with_way_of(reader)
    # Whoever has no connection file knows as much as the machine shows.
    return dataclasses.replace(reader, external_ip=machine.external_ip is not None)


async def _stand(way: _Way, local: int, *, as_json: bool, browse: bool) -> NoReturn:
    """Show the dashboard through a tunnel of Identity-Aware Proxy until that is interrupted."""
    from dask_gce.reunion import as_instance

    remote, name = way.settings.dashboard_port, way.machine.name
    note(f"Opening a tunnel of Identity-Aware Proxy to {name}. Ctrl-C closes it.")
    approach = way.approach({remote: local})
    try:
        try:
            await approach.open(as_instance(way.machine))
        except OSError as error:
            raise _taken(local) from error
        if (failure := await approach.find_tunnel_failure(remote)) is not None:
            raise failure
        if not await asyncio.to_thread(_answers, "127.0.0.1", local):
            raise click.ClickException(
                f"What listens at port {remote} of {name} is no dashboard of Dask. Has the cluster "
                "another dashboard_port? (DASK_GCE__DASHBOARD_PORT)"
            )
        path = await _find_path(way, approach)
        # In a thread, since some browsers return when they are closed.
        await asyncio.to_thread(
            _present, "127.0.0.1", local, path, as_json=as_json, tunnel=True, browse=browse
        )
        while True:
            await asyncio.get_running_loop().create_future()
    finally:
        await approach.close()


def _taken(port: int) -> click.UsageError:
    return click.UsageError(f"Port {port} of this computer is taken; choose another --port.")


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


def _present(host: str, port: int, path: str, *, as_json: bool, tunnel: bool, browse: bool) -> None:
    address = f"http://{host}:{port}{path}"
    if as_json:
        print_json({"address": address, "tunnel": tunnel})
    else:
        click.echo(address)
    if browse:
        from dask_gce.cli.browsing import open_browser

        if not open_browser(address, secret=path != DASHBOARD):
            note("No browser could be opened; the address is above.")
