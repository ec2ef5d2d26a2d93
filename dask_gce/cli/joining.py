"""``join``: what it takes to connect to a cluster, brought here from where the cluster was made.

Owns the reading of it, from a file or a pipe, and the judgement whether it may be kept. Its form is
the matter of `connection_content`, and where it is kept that of `connections`. No part of it is
shown, for it holds private keys.
"""

from __future__ import annotations

import asyncio
import shlex
import ssl
import stat
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from dask_gce.cli.interruption import run_while_wanted
from dask_gce.cli.options import json_option
from dask_gce.cli.output import note, print_json
from dask_gce.cli.removal import tell_declaration

if TYPE_CHECKING:
    from dask_gce.cluster_records import ClusterRecord
    from dask_gce.connection_content import Connection
    from dask_gce.inventory import Inventory
    from dask_gce.settings import Settings

__all__ = ["join"]

#: Bytes that are read at most: as many as a connection file may have, and what JSON adds.
_LIMIT: Final = 8 * 2**20

_STANDARD_INPUT: Final = "-"


@click.command()
@click.argument("file", type=click.Path(exists=True, dir_okay=False, allow_dash=True))
@click.option("--replace", is_flag=True, help="Also in place of another cluster of that name.")
@json_option
def join(file: str, replace: bool, as_json: bool) -> None:
    """Let this computer connect to a cluster that was made elsewhere.

    Takes what Terraform tells of a cluster that dask gce export terraform has declared, or a
    connection file of another computer, from FILE or, with -, from standard input. It holds private
    keys, so it is kept where nobody but you can read it. The cluster must be there.

    \b
      terraform output -json connection | dask gce join -
      dask gce join grid.json
    """
    content = _read(file)
    connection, record, kept = run_while_wanted(_join(content, replace))
    if as_json:
        print_json(
            {
                "name": record.name,
                "project": record.project,
                "id": record.identity,
                "state": record.state,
                "machines": len(record.machines),
                "declared": record.declared or None,
                "file": str(kept),
            }
        )
    else:
        count = len(record.machines)
        machines = "1 machine" if count == 1 else f"{count} machines"
        click.echo(
            f"Cluster {record.name} of project {record.project} can be joined from here: it is "
            f"{record.state}, with {machines}."
        )
        _tell_how_to_go_on(connection, record)
    _warn_of_readers(file)


def _read(file: str) -> bytes:
    if file != _STANDARD_INPUT:
        with Path(file).open("rb") as stream:
            return stream.read(_LIMIT)
    if sys.stdin.isatty():
        note("Reading the connection from the terminal, up to Ctrl-D ...")
    return sys.stdin.buffer.read(_LIMIT)


async def _join(content: bytes, replace: bool) -> tuple[Connection, ClusterRecord, Path]:
    from dask_gce.connections import save_connection
    from dask_gce.inventory import find_cluster, list_clusters
    from dask_gce.preparation import open_compute

    connection = await asyncio.to_thread(_parse, content)
    settings = connection.restore_settings()
    _check_endpoints(settings)
    compute = await open_compute(settings)
    try:
        inventory = await list_clusters(compute, connection.cluster)
    finally:
        await compute.close()
    record = find_cluster(inventory, connection.cluster, identity=connection.identity)
    if not replace:
        await asyncio.to_thread(_refuse_to_replace, connection, inventory)
    return connection, record, await asyncio.to_thread(save_connection, connection)


def _parse(content: bytes) -> Connection:
    """Return the connection; raises no error that would show a part of it."""
    from dask_gce.connection_content import check_end, parse, useless

    connection = parse(None, _unwrap(content))
    check_end(None, connection)
    usable = True
    try:
        connection.security().get_connection_args("client")
    except (ssl.SSLError, ValueError):
        usable = False
    if not usable:
        raise useless(None, "its certificate and its key do not belong together")
    return connection


def _unwrap(content: bytes) -> bytes:
    """Return the connection out of what Terraform prints, in any of its ways."""
    import json

    from dask_gce.connection_content import parse_json

    value: Any = parse_json(content)
    if isinstance(value, dict) and isinstance(value.get("connection"), dict):
        # All outputs: terraform output -json.
        value = value["connection"].get("value")
    if isinstance(value, str):
        # Text with JSON in it: jsonencode().
        return value.encode()
    return content if value is None else json.dumps(value).encode()


def _check_endpoints(settings: Settings) -> None:
    """Send nobody's credentials where only somebody else's text says that Google is."""
    from dask_gce.errors import SettingsError
    from dask_gce.settings import Settings

    own = Settings.load()
    for key, what in (("api_endpoint", "the Compute API"), ("iap_endpoint", "tunnels")):
        here, there = getattr(own, key), getattr(settings, key)
        if here == there or (key == "iap_endpoint" and there is None):
            continue
        choice = f"DASK_GCE__{key.upper()}={there}" if there else f"leave {key} out"
        raise SettingsError(
            f"{key}: this connection leads to {what} at {there or 'Google'}, and the configuration "
            f"here to {here or 'Google'}. Your credentials would go there. If that is meant: "
            f"{choice}",
            key=key,
        )


def _refuse_to_replace(connection: Connection, inventory: Inventory) -> None:
    """Keep what it takes to join another cluster of that name that is still there."""
    from dask_gce.connections import connection_path, load_connection
    from dask_gce.errors import CredentialsError

    try:
        there = load_connection(connection.cluster, connection.project)
    except CredentialsError:
        # There is none, or one that is of no use.
        return
    if there.identity == connection.identity:
        return
    if inventory.unreachable or there.identity in {each.identity for each in inventory.clusters}:
        path = connection_path(connection.cluster, connection.project)
        raise CredentialsError(
            f"This computer can join another cluster {connection.cluster} of project "
            f"{connection.project} already, by {path}, and that one may still run. To join this "
            "one instead: --replace"
        )


def _tell_how_to_go_on(connection: Connection, record: ClusterRecord) -> None:
    project = f" --project {shlex.quote(record.project)}"
    note(f"To work with it: GCECluster.from_name({record.name!r}, project={record.project!r})")
    note(f"To look at it: dask gce show {record.name}{project}")
    if record.declared:
        note(tell_declaration(record))
    if not connection.client_tls:
        note("It has no certificates: whoever reaches its scheduler can use it.")


def _warn_of_readers(file: str) -> None:
    """Tell that a file with keys can be read by others, of which there is a copy now."""
    if file == _STANDARD_INPUT:
        return
    mode = Path(file).stat().st_mode
    if stat.S_IMODE(mode) & (stat.S_IRGRP | stat.S_IROTH):
        note(
            f"{file} holds private keys and can be read by others. It is not needed any more: "
            f"rm {shlex.quote(file)}"
        )
