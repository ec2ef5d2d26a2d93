"""The file by which another process joins a cluster.

Owns what is in it and where it is. That nobody but its owner ever reads or exchanges it is seen to
in `private_files`; when it is written, and when it goes, is decided by `cluster`.

A file holds the private keys of the cluster's client and workers. It exists only for clusters that
are asked to outlive their process. All functions here block: use a thread on an event loop.
"""

from __future__ import annotations

import json
import shlex
import stat
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NoReturn

from cryptography import x509
from platformdirs import user_data_path

from dask_gce import names
from dask_gce.boot.environment import Environment
from dask_gce.errors import CredentialsError, SettingsError
from dask_gce.private_files import delete_private, read_private, write_private
from dask_gce.settings import Settings
from dask_gce.startup import Tls
from dask_gce.trust import client_security

if TYPE_CHECKING:
    from distributed.security import Security

__all__ = [
    "Connection",
    "connection_path",
    "delete_connection",
    "list_connections",
    "load_connection",
    "save_connection",
]

_VERSION: Final = 1
# Settings that fit into metadata, of which Compute Engine takes half a MiB an instance, fit in here
# also when JSON takes six characters for one.
_LIMIT: Final = 4 * 2**20
# In no project ID, so that a domain-scoped one has a folder's name that every system accepts.
_FOR_COLON: Final = "_"


@dataclass(frozen=True)
class Connection:
    """What it takes to join a cluster, and to add machines to it.

    Parameters
    ----------
    cluster : str
        The cluster's name.
    project : str
        The project ID.
    identity : str
        The label that tells it from another cluster of the same name.
    owner : str
        Who made it; empty if nobody knows.
    client_tls : Tls or None
        The client's certificates; None for plain TCP.
    worker_tls : Tls or None
        The workers' certificates; None for plain TCP.
    settings : mapping of str to object
        All settings of the cluster, as `Settings.dump` writes them.
    environment : Environment or None
        What is installed on the cluster's machines; None for what the container image has.
    """

    cluster: str
    project: str
    identity: str
    owner: str
    client_tls: Tls | None = field(repr=False)
    worker_tls: Tls | None = field(repr=False)
    settings: Mapping[str, Any] = field(repr=False)
    environment: Environment | None = field(default=None, repr=False)

    def __reduce__(self) -> NoReturn:
        raise TypeError("Connection holds private keys and is not pickled")

    def security(self) -> Security:
        """Build the client's side of the cluster's security.

        Returns
        -------
        distributed.security.Security
            For clients. Certificates that the Dask configuration names play no part in it.
        """
        return client_security(self.client_tls)

    def restore_settings(self) -> Settings:
        """Make the cluster's settings again, whatever this process's configuration says.

        Returns
        -------
        Settings
            The settings, with the name and the project that were found when it was made.

        Raises
        ------
        SettingsError
            If a value is none that the setting can have.
        """
        return Settings.restore({**self.settings, "name": self.cluster, "project": self.project})


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
    content = _render(connection)
    if len(content) > _LIMIT:
        raise CredentialsError(
            f"The connection file {path} would have {len(content)} bytes, and {_LIMIT} are the "
            "most. Put large data into a bucket or the container image rather than into settings."
        )
    write_private(path, content)
    return path


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
    connection = _parse(path, content)
    if (connection.cluster, connection.project) != (name, project):
        raise _useless(
            path, f"it is for cluster {connection.cluster!r} in project {connection.project!r}"
        )
    _check_end(path, connection)
    return connection


def delete_connection(name: str, project: str, identity: str | None = None) -> bool:
    """Delete a cluster's connection file.

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
            content = _parse_json(read_private(path, _LIMIT))
            if isinstance(content, dict) and content.get("identity", identity) != identity:
                return False
    return delete_private(path)


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
        "The cluster may well run: copy the file to this place from the machine and account that "
        "made the cluster. Without the file it can be ended, but not joined: "
        f"dask gce delete {name}{option}"
    )


def _useless(path: Path, reason: str) -> CredentialsError:
    return CredentialsError(
        f"The connection file {path} cannot be used: {reason}. Copy it again from the machine and "
        f"account that made the cluster, or delete it: rm {shlex.quote(str(path))}"
    )


def _render(connection: Connection) -> bytes:
    content = {
        "version": _VERSION,
        "cluster": connection.cluster,
        "project": connection.project,
        "identity": connection.identity,
        "owner": connection.owner,
        "client_tls": _render_tls(connection.client_tls),
        "worker_tls": _render_tls(connection.worker_tls),
        "settings": dict(connection.settings),
        "environment": None if connection.environment is None else connection.environment.dump(),
    }
    return (json.dumps(content, indent=2, allow_nan=False) + "\n").encode()


def _render_tls(tls: Tls | None) -> dict[str, str] | None:
    if tls is None:
        return None
    return {"ca": tls.ca, "certificate": tls.certificate, "key": tls.key}


def _parse(path: Path, text: bytes) -> Connection:
    content = _parse_json(text)
    version = content.get("version") if isinstance(content, dict) else None
    # True is an int as well.
    if type(version) is not int or version < _VERSION:
        raise _useless(path, "it is not what dask_gce writes")
    if version > _VERSION:
        raise CredentialsError(
            f"The connection file {path} was written by a newer dask_gce (format "
            f"{version}, this one reads {_VERSION}). Update dask_gce here."
        )
    read = {
        **{key: _parse_text(content.get(key)) for key in ("cluster", "project", "identity")},
        # Somebody who has no entry in the password database has no name.
        "owner": content.get("owner") if isinstance(content.get("owner"), str) else None,
        "settings": content.get("settings") if isinstance(content.get("settings"), dict) else None,
    }
    tls = {key: _parse_tls(content.get(key)) for key in ("client_tls", "worker_tls")}
    optional = {**tls, "environment": _parse_environment(content.get("environment"))}
    wrong = [key for key, value in read.items() if value is None]
    wrong += [
        key for key, value in optional.items() if value is None and content.get(key) is not None
    ]
    if wrong:
        raise _useless(path, f"{', '.join(wrong)} is missing or not what dask_gce writes")
    # Checked above, one by one.
    checked: dict[str, Any] = {**read, **optional}
    connection = Connection(**checked)
    # Only the key is told, and no cause: the value may be anything, also a secret that was moved.
    fault = ""
    try:
        settings = connection.restore_settings()
    except SettingsError as error:
        fault = error.key
    if fault:
        raise _useless(path, f"its setting {fault!r} is not what dask_gce writes")
    with_tls = settings.security is True
    if {with_tls} != {each is not None for each in tls.values()}:
        raise _useless(path, "its certificates and its setting 'security' contradict each other")
    return connection


def _parse_json(text: bytes) -> Any:
    """Parse JSON; None if it is none, without an error that would hold the text."""
    try:
        return json.loads(text.decode())
    except (ValueError, RecursionError):
        return None


def _parse_tls(content: Any) -> Tls | None:
    if not isinstance(content, dict):
        return None
    parts = [_parse_text(content.get(key)) for key in ("ca", "certificate", "key")]
    found = [part for part in parts if part is not None]
    return Tls(*found) if len(found) == len(parts) else None


def _parse_environment(content: Any) -> Environment | None:
    try:
        return Environment.restore(content)
    except (KeyError, TypeError, ValueError):
        return None


def _parse_text(content: Any) -> str | None:
    return content if isinstance(content, str) and content else None


def _check_end(path: Path, connection: Connection) -> None:
    """Refuse certificates that have ended: the other side would, and say less."""
    for tls in (connection.client_tls, connection.worker_tls):
        if tls is None:
            continue
        try:
            certificate = x509.load_pem_x509_certificate(tls.certificate.encode())
        except ValueError:
            # Without the parser's error, which may quote.
            certificate = None
        if certificate is None:
            raise _useless(path, "a certificate in it cannot be read")
        end = certificate.not_valid_after_utc
        if end < datetime.now(timezone.utc):
            raise CredentialsError(
                f"The certificates of cluster {connection.cluster!r} ended at {end:%Y-%m-%d %H:%M} "
                "UTC, so nobody can join it any more. Delete it, and make a new one: "
                f"dask gce delete {connection.cluster} --project {connection.project}"
            )
