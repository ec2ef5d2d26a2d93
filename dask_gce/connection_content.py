"""What is in the file by which another process joins a cluster.

Owns its form, and the checks of what was read. Where the files are, and who may read them, is the
matter of `connections`.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NoReturn

from dask_gce import expiry
from dask_gce.boot.environment import Environment
from dask_gce.errors import CredentialsError, SettingsError
from dask_gce.settings import Settings
from dask_gce.startup import Tls
from dask_gce.trust import client_security, end_of

if TYPE_CHECKING:
    from distributed.security import Security

__all__ = ["Connection", "check_end", "parse", "parse_json", "render", "useless"]

_VERSION: Final = 1


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


def useless(path: Path | None, reason: str) -> CredentialsError:
    """Make the error about a file that is of no use.

    Parameters
    ----------
    path : Path or None
        The file; None for what is to become one.
    reason : str
        Why, without anything that is in it.

    Returns
    -------
    CredentialsError
        The error.
    """
    if path is None:
        return CredentialsError(
            f"This is no connection to a cluster: {reason}. Give what terraform output -json "
            "connection prints, or the connection file of the computer and account that made the "
            "cluster."
        )
    return CredentialsError(
        f"The connection file {path} cannot be used: {reason}. Copy it again from the machine and "
        f"account that made the cluster, or delete it: rm {shlex.quote(str(path))}"
    )


def render(connection: Connection) -> bytes:
    """Write what it takes to join a cluster.

    Parameters
    ----------
    connection : Connection
        What to write.

    Returns
    -------
    bytes
        What `parse` reads.
    """
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


def parse(path: Path | None, text: bytes) -> Connection:
    """Read what `render` wrote.

    Parameters
    ----------
    path : Path or None
        The file that it comes from, to be named in errors; None for what is to become one.
    text : bytes
        What is in it.

    Returns
    -------
    Connection
        What it holds, checked.

    Raises
    ------
    CredentialsError
        If it is something else.
    """
    content = parse_json(text)
    version = content.get("version") if isinstance(content, dict) else None
    # True is an int as well.
    if type(version) is not int or version < _VERSION:
        raise useless(path, "it is not what dask_gce writes")
    if version > _VERSION:
        what = "This connection" if path is None else f"The connection file {path}"
        raise CredentialsError(
            f"{what} was written by a newer dask_gce (format {version}, this one reads "
            f"{_VERSION}). Update dask_gce here."
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
        raise useless(path, f"{', '.join(wrong)} is missing or not what dask_gce writes")
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
        raise useless(path, f"its setting {fault!r} is not what dask_gce writes")
    with_tls = settings.security is True
    if {with_tls} != {each is not None for each in tls.values()}:
        raise useless(path, "its certificates and its setting 'security' contradict each other")
    return connection


def parse_json(text: bytes) -> Any:
    """Parse JSON; None if it is none, without an error that would hold the text.

    Parameters
    ----------
    text : bytes
        What is in a file.

    Returns
    -------
    object
        The content.
    """
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


def check_end(path: Path | None, connection: Connection) -> None:
    """Refuse certificates that have ended: the other side would, and say less.

    Parameters
    ----------
    path : Path or None
        The file that holds them, to be named in errors; None for what is to become one.
    connection : Connection
        What it holds.

    Raises
    ------
    CredentialsError
        If one has ended, or cannot be read.
    """
    held = [tls for tls in (connection.client_tls, connection.worker_tls) if tls is not None]
    for tls in held:
        end = end_of(tls)
        if end is None:
            raise useless(path, "a certificate in it cannot be read")
        if end < datetime.now(timezone.utc):
            raise CredentialsError(
                f"The certificates of cluster {connection.cluster!r} ended at "
                f"{expiry.moment(end)}, so nobody can join it any more. Delete it, and make a new "
                f"one: dask gce delete {connection.cluster} --project {connection.project}"
            )
