"""Who trusts whom: the `security` setting becomes the client's side and the machines' side.

Certificates are made in `tls`; here they, or a user's own, are dealt out, so that each machine gets
its role's key and no other.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Literal

from cryptography import x509
from distributed.security import Security

from dask_gce import expiry
from dask_gce.errors import CredentialsError, SettingsError
from dask_gce.memory_security import MemorySecurity
from dask_gce.startup import Role, Tls
from dask_gce.tls import CLOCK_SKEW, DEFAULT_LIFETIME, ClusterCertificates


@dataclass(frozen=True)
class Trust:
    """Both sides of a cluster's security.

    Parameters
    ----------
    client : distributed.security.Security
        For clients and the cluster object.
    machines : mapping of str to Tls
        For the machines, by role; empty for plain TCP.
    """

    client: Security
    machines: Mapping[Role, Tls] = field(default_factory=dict, repr=False)


def establish_trust(
    security: bool | Security, cluster: str, *, max_lifetime: float = math.inf
) -> Trust:
    """Make what a cluster needs for the `security` it was asked for; reads files, so use a thread.

    Parameters
    ----------
    security : bool or distributed.security.Security
        True for certificates of the cluster's own, False for plain TCP, or the user's own.
    cluster : str
        The cluster's name.
    max_lifetime : float
        Seconds that the cluster may exist. Its own certificates end right after it, so that a key
        which outlives the cluster opens nothing; with infinity, after a week.

    Returns
    -------
    Trust
        Both sides.

    Raises
    ------
    SettingsError
        If the user's own lacks what a machine needs, names a file that cannot be read, or has
        ended.
    """
    if security is True:
        lifetime = DEFAULT_LIFETIME
        if max_lifetime < math.inf:
            # Compute Engine deletes the machines by its own clock.
            lifetime = timedelta(seconds=max_lifetime) + CLOCK_SKEW
        certificates = ClusterCertificates.create(cluster, lifetime=lifetime)
        machines: dict[Role, Tls] = {}
        roles: tuple[Role, Role] = ("scheduler", "worker")
        for role in roles:
            leaf = certificates.leaf(role)
            machines[role] = Tls(certificates.ca_pem, leaf.certificate, leaf.key)
        return Trust(certificates.security("client"), machines)
    if security is False:
        return Trust(client_security(None))
    if not uses_tls(security):
        return Trust(security)
    theirs: dict[Role, Tls] = {
        "scheduler": _read(security, "scheduler"),
        "worker": _read(security, "worker"),
    }
    for whose, tls in (*theirs.items(), ("client", _read(security, "client"))):
        end = end_of(tls)
        if end is not None and end <= datetime.now(timezone.utc):
            raise SettingsError(
                f"security: tls_{whose}_cert ended at {expiry.moment(end)}, so every connection "
                "with it would be refused. Renew it, or use security=True for certificates made "
                "for this cluster.",
                key="security",
            )
    return Trust(security, theirs)


def uses_tls(security: bool | Security) -> bool:
    """Tell whether machines get certificates for the `security` that was asked for.

    Parameters
    ----------
    security : bool or distributed.security.Security
        As in the settings.

    Returns
    -------
    bool
        Whether they do.
    """
    if isinstance(security, bool):
        return security
    return bool(security.require_encryption) or _field(security, "tls_ca_file") is not None


def client_tls(security: Security) -> Tls | None:
    """Return what the client's side of a cluster's security holds; reads files, so use a thread.

    Parameters
    ----------
    security : distributed.security.Security
        The client's side, as `Trust` has it.

    Returns
    -------
    Tls or None
        The client's certificates as PEM text; None for plain TCP.

    Raises
    ------
    SettingsError
        If one of them is missing or cannot be read.
    """
    return _read(security, "client") if uses_tls(security) else None


def client_security(tls: Tls | None) -> Security:
    """Return the ``Security`` of a client that holds these certificates.

    Parameters
    ----------
    tls : Tls or None
        The client's certificates; None for plain TCP.

    Returns
    -------
    distributed.security.Security
        The client's side. Certificates that the Dask configuration names play no part in it.
    """
    # A field that is not named is read from the global dask config.
    fields: dict[str, str | None] = {
        f"tls_{each}_{part}": None
        for each in ("client", "scheduler", "worker")
        for part in ("cert", "key")
    }
    if tls is None:
        return Security(require_encryption=False, tls_ca_file=None, **fields)
    fields |= {"tls_client_cert": tls.certificate, "tls_client_key": tls.key}
    return MemorySecurity(require_encryption=True, tls_ca_file=tls.ca, **fields)


def end_of(*held: Tls | None) -> datetime | None:
    """Return when the first of some certificates ends.

    Parameters
    ----------
    *held : Tls or None
        Certificates with their keys; None for plain TCP.

    Returns
    -------
    datetime.datetime or None
        The moment, in UTC. None if there is none, or none that can be read: Dask says more of
        those.
    """
    ends = []
    for tls in held:
        if tls is not None:
            with contextlib.suppress(ValueError):
                # The first in the text is the one that is shown, authorities follow.
                certificate = x509.load_pem_x509_certificate(tls.certificate.encode())
                ends.append(certificate.not_valid_after_utc)
    return min(ends, default=None)


def explain_refusal(cluster: str, address: str, reason: Exception) -> CredentialsError:
    """Say what it means that a scheduler and this client do not trust each other.

    Parameters
    ----------
    cluster : str
        The cluster's name.
    address : str
        The scheduler's address.
    reason : Exception
        What OpenSSL said.

    Returns
    -------
    CredentialsError
        The error to raise in its place.
    """
    return CredentialsError(
        f"The scheduler of cluster {cluster} at {address} answers, but it and this client do not "
        f"accept each other's certificates: {reason}\nNext step: see that the clocks of both are "
        "right, since certificates have a beginning and an end, and where they are your own "
        "(security), that one authority has signed those of client, scheduler and workers, and "
        "that the scheduler's and the workers' may serve (extended key usage serverAuth)."
    )


def _read(security: Security, role: Role | Literal["client"]) -> Tls:
    ca, certificate, key = (
        _text(security, name, role)
        for name in ("tls_ca_file", f"tls_{role}_cert", f"tls_{role}_key")
    )
    return Tls(ca, certificate, key)


def _field(security: Security, name: str) -> str | None:
    # The attributes come from __slots__ and have no annotations.
    value: str | None = getattr(security, name)
    return value


def _text(security: Security, name: str, role: str) -> str:
    """Return a field of a Security as PEM text, whether it holds that or a path."""
    value = _field(security, name)
    if value is None:
        raise SettingsError(
            f"security: {name} is missing, but the {role} needs it. Give it, use "
            "security=True for certificates made for this cluster, or security=False.",
            key="security",
        )
    if "\n" in value:
        return value
    try:
        return Path(value).read_text(encoding="ascii")
    except (OSError, UnicodeDecodeError) as error:
        raise SettingsError(
            f"security: {name} = {value!r} cannot be read: {error}. Give the path of a PEM file, "
            "or its text.",
            key="security",
        ) from error
