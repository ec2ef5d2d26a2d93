"""A certificate authority for one cluster, and one certificate for each role in it.

Owns how the certificates look: algorithm, names, extensions, lifetime. Everything is PEM text in
memory. Where the text goes (metadata of a VM, a file that only its owner may read) is left to
`startup` and `cluster`.

What this protects, and what it does not: Dask's TLS asks of the other side one thing only, that
its certificate was signed by this cluster's authority, in both directions. It does not compare host
names, since addresses are not known when certificates are made. So every holder of a key of this
cluster is inside, whatever its role; other clusters, and everyone else, are outside. The one line
between the roles is the extended key usage: the client's certificate is no server certificate, so
whoever steals it cannot answer in place of the scheduler or a worker.

There are no name constraints: they would bind an authority whose key is gone before anybody could
use it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime, timedelta, timezone
from typing import TYPE_CHECKING, Literal, NoReturn, get_args

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

if TYPE_CHECKING:
    from distributed.security import Security

__all__ = ["CLOCK_SKEW", "DEFAULT_LIFETIME", "ClusterCertificates", "Leaf", "Role"]

Role = Literal["scheduler", "worker", "client"]

#: Longer than a working week with its weekend, so longer than most clusters live; short enough that
#: a key found in an old log or disk image opens nothing.
DEFAULT_LIFETIME = timedelta(days=7)

#: How far a machine's clock may be behind ours. Kerberos allows the same five minutes
#: (`RFC 4120, section 8.2 <https://www.rfc-editor.org/rfc/rfc4120#section-8.2>`_).
CLOCK_SKEW = timedelta(minutes=5)

# Schedulers and workers both listen and connect; a client only connects.
_USAGES = {
    "scheduler": (ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH),
    "worker": (ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH),
    "client": (ExtendedKeyUsageOID.CLIENT_AUTH,),
}


class _Unpicklable:
    """Keep private keys out of pickles, and so out of the messages Dask sends around."""

    def __reduce__(self) -> NoReturn:
        raise TypeError(f"{type(self).__name__} holds a private key and is not pickled")


@dataclass(frozen=True)
class Leaf(_Unpicklable):
    """A role's certificate and its private key.

    Parameters
    ----------
    certificate : str
        The certificate, PEM text.
    key : str
        The private key, unencrypted PKCS #8, PEM text. It is not part of the representation.
    """

    certificate: str = field(repr=False)
    key: str = field(repr=False)


@dataclass(frozen=True)
class ClusterCertificates(_Unpicklable):
    """All certificates of one cluster; made by :meth:`create`.

    The private key of the authority is gone once the three certificates are signed: nothing can add
    a certificate to the cluster later, not even its owner.

    Parameters
    ----------
    cluster : str
        Name of the cluster.
    not_after : datetime.datetime
        When the certificates end, in UTC.
    ca_pem : str
        The authority's certificate, PEM text; no secret.
    scheduler : Leaf
        What the scheduler shows.
    worker : Leaf
        What every worker and nanny shows.
    client : Leaf
        What clients, and the cluster object itself, show.

    Examples
    --------
    >>> certificates = ClusterCertificates.create("dask-3f9a")
    >>> certificates.ca_pem.splitlines()[0]
    '-----BEGIN CERTIFICATE-----'
    >>> certificates.security("client").require_encryption
    True
    """

    cluster: str
    not_after: datetime
    ca_pem: str = field(repr=False)
    scheduler: Leaf = field(repr=False)
    worker: Leaf = field(repr=False)
    client: Leaf = field(repr=False)

    @classmethod
    def create(
        cls,
        cluster: str,
        *,
        lifetime: timedelta = DEFAULT_LIFETIME,
        now: datetime | None = None,
    ) -> ClusterCertificates:
        """Make an authority and sign a certificate for each role.

        Takes less than a millisecond: the keys are ECDSA P-256, not RSA.

        Parameters
        ----------
        cluster : str
            Name of the cluster, a DNS label (RFC 1035).
        lifetime : datetime.timedelta
            How long the certificates are valid. New connections fail once they have ended.
        now : datetime.datetime, optional
            The moment to count from, with a time zone; the present by default.

        Returns
        -------
        ClusterCertificates
            The authority's certificate and the three leaves.

        Raises
        ------
        ValueError
            If the lifetime is not positive, or the name is empty, too long or not ASCII.

        Notes
        -----
        The extensions are those which `RFC 5280, section 4.2
        <https://www.rfc-editor.org/rfc/rfc5280#section-4.2>`_ asks of authorities and end entities,
        so that OpenSSL accepts them in its strict mode, Python 3.13's default.
        """
        if lifetime <= timedelta(0):
            raise ValueError(f"lifetime must be positive, not {lifetime}")
        start = now or datetime.now(timezone.utc)
        not_before, not_after = start - CLOCK_SKEW, start + lifetime

        ca_key = ec.generate_private_key(ec.SECP256R1())
        ca_name = _name(cluster, "certificate authority")

        def sign(
            name: x509.Name, public: ec.EllipticCurvePublicKey, *extensions: _Extension
        ) -> x509.Certificate:
            builder = (
                x509.CertificateBuilder()
                .issuer_name(ca_name)
                .subject_name(name)
                .public_key(public)
                # 159 random bits: positive in 20 octets, the most there may be (RFC 5280, 4.1.2.2).
                .serial_number(x509.random_serial_number())
                .not_valid_before(not_before)
                .not_valid_after(not_after)
            )
            authority = x509.AuthorityKeyIdentifier.from_issuer_public_key(ca_key.public_key())
            subject = x509.SubjectKeyIdentifier.from_public_key(public)
            for extension, critical in (*extensions, (authority, False), (subject, False)):
                builder = builder.add_extension(extension, critical=critical)
            return builder.sign(ca_key, hashes.SHA256())

        ca = sign(
            ca_name,
            ca_key.public_key(),
            # No authority below this one.
            (x509.BasicConstraints(ca=True, path_length=0), True),
            (_key_usage("key_cert_sign", "crl_sign"), True),
        )
        leaves = {role: _leaf(cluster, role, sign) for role in get_args(Role)}
        return cls(cluster=cluster, not_after=not_after, ca_pem=_pem(ca), **leaves)

    def leaf(self, role: Role) -> Leaf:
        """Return the certificate and key of a role.

        Parameters
        ----------
        role : {"scheduler", "worker", "client"}
            The role.

        Returns
        -------
        Leaf
            The certificate and its key.

        Raises
        ------
        ValueError
            If there is no such role.
        """
        if role not in get_args(Role):
            raise ValueError(f"no role {role!r}; the roles are {', '.join(get_args(Role))}")
        leaf: Leaf = getattr(self, role)
        return leaf

    def security(self, role: Role) -> Security:
        """Build Dask's ``Security`` for one role, holding no other role's key.

        Parameters
        ----------
        role : {"scheduler", "worker", "client"}
            The role.

        Returns
        -------
        distributed.security.Security
            Encryption required, PEM text in memory. Paths to certificates in the user's dask config
            play no part in it; ciphers and TLS versions from there do.
        """
        from dask_gce.memory_security import MemorySecurity

        # A field that is not named is read from the global dask config.
        fields: dict[str, str | None] = {
            f"tls_{each}_{part}": None for each in get_args(Role) for part in ("cert", "key")
        }
        leaf = self.leaf(role)
        fields |= {f"tls_{role}_cert": leaf.certificate, f"tls_{role}_key": leaf.key}
        return MemorySecurity(require_encryption=True, tls_ca_file=self.ca_pem, **fields)


_Extension = tuple[x509.ExtensionType, bool]


def _leaf(cluster: str, role: str, sign: Callable[..., x509.Certificate]) -> Leaf:
    key = ec.generate_private_key(ec.SECP256R1())
    certificate = sign(
        _name(cluster, role),
        key.public_key(),
        (x509.BasicConstraints(ca=False, path_length=None), True),
        (_key_usage("digital_signature"), True),
        (x509.ExtendedKeyUsage(_USAGES[role]), False),
        # Nobody resolves this name; it tells a reader of logs and captures which cluster and role
        # it was. ".internal" is reserved for private use (ICANN, July 2024).
        (
            x509.SubjectAlternativeName([x509.DNSName(f"{role}.{cluster}.dask-gce.internal")]),
            False,
        ),
    )
    secret = key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
    return Leaf(certificate=_pem(certificate), key=secret.decode())


def _name(cluster: str, role: str) -> x509.Name:
    return x509.Name(
        [
            x509.NameAttribute(NameOID.ORGANIZATION_NAME, cluster),
            x509.NameAttribute(NameOID.COMMON_NAME, role),
        ]
    )


def _key_usage(*granted: str) -> x509.KeyUsage:
    usages = (
        "digital_signature",
        "content_commitment",
        "key_encipherment",
        "data_encipherment",
        "key_agreement",
        "key_cert_sign",
        "crl_sign",
        "encipher_only",
        "decipher_only",
    )
    return x509.KeyUsage(**{usage: usage in granted for usage in usages})


def _pem(certificate: x509.Certificate) -> str:
    return certificate.public_bytes(serialization.Encoding.PEM).decode()
