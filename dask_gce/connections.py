"""The files by which other processes join clusters.

Owns where they are. What is in one is the matter of `connection_content`; that nobody but its owner
ever reads or exchanges it is seen to in `private_files`; when it is written, and when it goes, is
decided by `cluster`.

A file holds the private keys of the cluster's client and workers. It exists only for clusters that
are asked to outlive their process. All functions here block: use a thread on an event loop.
"""

from __future__ import annotations

import stat
import time
from contextlib import suppress
from pathlib import Path
from typing import Final

from platformdirs import user_data_path

from dask_gce import names
from dask_gce.client_variables import PemFiles
from dask_gce.connection_content import (
    Connection,
    check_end,
    parse,
    parse_json,
    render,
    useless,
)
from dask_gce.errors import CredentialsError, SettingsError
from dask_gce.private_files import delete_private, read_private, write_private

__all__ = [
    "connection_path",
    "delete_connection",
    "forget_connection",
    "list_connections",
    "load_connection",
    "save_certificates",
    "save_connection",
]

# Settings that fit into metadata, of which Compute Engine takes half a MiB an instance, fit in here
# also when JSON takes six characters for one.
_LIMIT: Final = 4 * 2**20
#: Seconds after which the cluster of a file must be there: it may be written before the machines.
SETTLED: Final = 900.0
# In no project ID, so that a domain-scoped one has a folder's name that every system accepts.
_FOR_COLON: Final = "_"


def connection_path(name: str, project: str) -> Path:
    """Return where the connection file of a cluster is, whether it exists or not.

    Parameters
    ----------
    name : str
        The cluster's name.
    project : str
        The project ID.

    Returns
    -------
    pathlib.Path
        A path in the user's data folder.

    Raises
    ------
    SettingsError
        If one of the two is no such name.

    Examples
    --------
    >>> connection_path("grid", "example.com:farm").parts[-3:]
    ('clusters', 'example.com_farm', 'grid.json')
    """
    names.check_cluster_name(name)
    folder = names.check_project(project).replace(":", _FOR_COLON)
    return _root() / folder / f"{name}.json"


def save_connection(connection: Connection) -> Path:
    """Write a cluster's connection file, in place of one that may be there.

    Parameters
    ----------
    connection : Connection
        What to write.

    Returns
    -------
    pathlib.Path
        The file. At no moment does it hold half of the content, or let others read it.

    Raises
    ------
    SettingsError
        If the cluster or the project has no proper name.
    CredentialsError
        If it cannot be written.
    """
    path = connection_path(connection.cluster, connection.project)
    content = render(connection)
    if len(content) > _LIMIT:
        raise CredentialsError(
            f"The connection file {path} would have {len(content)} bytes, and {_LIMIT} are the "
            "most. Put large data into a bucket or the container image rather than into settings."
        )
    write_private(path, content)
    return path


def save_certificates(connection: Connection) -> PemFiles | None:
    """Write the certificates of a cluster's clients as files that Dask's configuration can name.

    They lie beside the connection file, as private as that, and go with it.

    Parameters
    ----------
    connection : Connection
        What holds them.

    Returns
    -------
    PemFiles or None
        Where they are; None if there are none, for plain TCP.

    Raises
    ------
    CredentialsError
        If they cannot be written.
    """
    tls = connection.client_tls
    if tls is None:
        return None
    files = _pem_files(connection_path(connection.cluster, connection.project))
    for path, text in (
        (files.authority, tls.ca),
        (files.certificate, tls.certificate),
        (files.key, tls.key),
    ):
        write_private(path, text.encode())
    return files


def _pem_files(path: Path) -> PemFiles:
    """Return where the certificates are that belong to a connection file."""
    return PemFiles(
        *(path.with_name(f"{path.stem}.{each}.pem") for each in ("ca", "client", "client-key"))
    )


def load_connection(name: str, project: str | None = None) -> Connection:
    """Read a cluster's connection file.

    Parameters
    ----------
    name : str
        The cluster's name.
    project : str, optional
        The project ID; by default the one that has a file for this name.

    Returns
    -------
    Connection
        What it holds, checked.

    Raises
    ------
    SettingsError
        If `name` or `project` is no such name, or if several projects have a file for it.
    CredentialsError
        If there is no file, if others could read or change it, if it cannot be understood, or if
        its certificates have ended.
    """
    if project is None:
        project = _only_project(names.check_cluster_name(name))
    path = connection_path(name, project)
    try:
        content = read_private(path, _LIMIT)
    except FileNotFoundError:
        raise _missing(name, str(path), project) from None
    connection = parse(path, content)
    if (connection.cluster, connection.project) != (name, project):
        raise useless(
            path, f"it is for cluster {connection.cluster!r} in project {connection.project!r}"
        )
    check_end(path, connection)
    return connection


def delete_connection(name: str, project: str, identity: str | None = None) -> bool:
    """Delete a cluster's connection file, and the certificates that were written beside it.

    Parameters
    ----------
    name : str
        The cluster's name.
    project : str
        The project ID.
    identity : str, optional
        What tells the cluster from another of that name, whose file is left alone.

    Returns
    -------
    bool
        Whether there was one.

    Raises
    ------
    SettingsError
        If one of the two is no such name.
    CredentialsError
        If it cannot be deleted.
    """
    path = connection_path(name, project)
    if identity is not None:
        # What cannot be read is of no use to another cluster either.
        with suppress(CredentialsError, FileNotFoundError):
            content = parse_json(read_private(path, _LIMIT))
            if isinstance(content, dict) and content.get("identity", identity) != identity:
                return False
    files = _pem_files(path)
    for each in (files.key, files.certificate, files.authority):
        delete_private(each)
    return delete_private(path)


def forget_connection(connection: Connection) -> bool:
    """Delete the connection file of a cluster that Compute Engine does not know any more.

    Parameters
    ----------
    connection : Connection
        What was read from the file.

    Returns
    -------
    bool
        Whether it was deleted; False if the cluster may only be about to come, if the file is for
        another cluster by now, or if it cannot be deleted.
    """
    path = connection_path(connection.cluster, connection.project)
    try:
        if time.time() - path.lstat().st_mtime < SETTLED:
            return False
        return delete_connection(connection.cluster, connection.project, connection.identity)
    except (CredentialsError, OSError):
        return False


def list_connections() -> list[tuple[str, str]]:
    """List the clusters that have a connection file; none of the files is opened.

    Returns
    -------
    list of tuple of str
        Project and name of each, in alphabetical order.
    """
    found = []
    for path in _root().glob("*/*.json"):
        project, name = path.parent.name.replace(_FOR_COLON, ":"), path.stem
        # Whatever else lies there is no matter of ours.
        with suppress(SettingsError, OSError):
            if path == connection_path(name, project) and stat.S_ISREG(path.lstat().st_mode):
                found.append((project, name))
    return sorted(found)


def _root() -> Path:
    return user_data_path("dask-gce", appauthor=False) / "clusters"


def _only_project(name: str) -> str:
    projects = [project for project, listed in list_connections() if listed == name]
    if not projects:
        raise _missing(name, str(_root() / "*" / f"{name}.json"))
    if len(projects) > 1:
        raise SettingsError(
            f"project: several projects have a cluster {name!r}: {', '.join(projects)}. Tell which "
            "one is meant.",
            key="project",
        )
    return projects[0]


def _missing(name: str, place: str, project: str = "") -> CredentialsError:
    where, option = (f" in project {project}", f" --project {project}") if project else ("", "")
    return CredentialsError(
        f"There is no connection file for cluster {name!r}{where}; it was looked for at {place}. "
        "The cluster may well run: copy the file from the machine and account that made the "
        "cluster, and store it with dask gce join FILE. Without the file it can be ended, but not "
        f"joined: dask gce delete {name}{option}"
    )
