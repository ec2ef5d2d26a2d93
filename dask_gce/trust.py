"""Who trusts whom: the `security` setting becomes the client's side and the machines' side.

Certificates are made in `tls`; here they, or a user's own, are dealt out, so that each machine gets
its role's key and no other.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from distributed.security import Security

from dask_gce.errors import SettingsError
from dask_gce.startup import Role, Tls
from dask_gce.tls import ClusterCertificates


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


def establish_trust(security: bool | Security, cluster: str) -> Trust:
    """Make what a cluster needs for the `security` it was asked for; reads files, so use a thread.

    Parameters
    ----------
    security : bool or distributed.security.Security
        True for certificates of the cluster's own, False for plain TCP, or the user's own.
    cluster : str
        The cluster's name.

    Returns
    -------
    Trust
        Both sides.

    Raises
    ------
    SettingsError
        If the user's own lacks what a machine needs, or names a file that cannot be read.
    """
    if security is True:
        certificates = ClusterCertificates.create(cluster)
        machines: dict[Role, Tls] = {}
        roles: tuple[Role, Role] = ("scheduler", "worker")
        for role in roles:
            leaf = certificates.leaf(role)
            machines[role] = Tls(certificates.ca_pem, leaf.certificate, leaf.key)
        return Trust(certificates.security("client"), machines)
    if security is False:
        # Every field is named: one that is not is read from the global dask config.
        nothing = dict.fromkeys(
            f"tls_{each}_{part}"
            for each in ("client", "scheduler", "worker")
            for part in ("cert", "key")
        )
        return Trust(Security(require_encryption=False, tls_ca_file=None, **nothing))
    if not security.require_encryption and _field(security, "tls_ca_file") is None:
        return Trust(security)
    return Trust(
        security,
        {"scheduler": _read(security, "scheduler"), "worker": _read(security, "worker")},
    )


def _read(security: Security, role: Role) -> Tls:
    ca, certificate, key = (
        _text(security, name, role)
        for name in ("tls_ca_file", f"tls_{role}_cert", f"tls_{role}_key")
    )
    return Tls(ca, certificate, key)


def _field(security: Security, name: str) -> str | None:
    # The attributes come from __slots__ and have no annotations.
    value: str | None = getattr(security, name)
    return value


def _text(security: Security, name: str, role: Role) -> str:
    """Return a field of a Security as PEM text, whether it holds that or a path."""
    value = _field(security, name)
    if value is None:
        raise SettingsError(
            f"security: {name} is missing, but the {role}'s machine needs it. Give it, use "
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
