"""An authority of a user's own, which goes on signing: for certificates that a cluster never makes.

Owns leaves that begin and end when a test wants, in Dask's ``Security``.
"""

from __future__ import annotations

from datetime import datetime, timedelta, timezone

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
from distributed.security import Security

_NOW = datetime.now(timezone.utc)
# What OpenSSL's strict mode, Python 3.13's default, asks of an authority.
_SIGNS = x509.KeyUsage(
    digital_signature=False,
    content_commitment=False,
    key_encipherment=False,
    data_encipherment=False,
    key_agreement=False,
    key_cert_sign=True,
    crl_sign=True,
    encipher_only=False,
    decipher_only=False,
)


class Authority:
    """One that signs whatever it is asked to."""

    def __init__(self, name: str) -> None:
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = _name(name)
        self.pem = self._sign(
            self._name,
            self._key.public_key(),
            _NOW - timedelta(days=365),
            _NOW + timedelta(days=365),
            x509.BasicConstraints(ca=True, path_length=0),
            _SIGNS,
        )

    def leaf(
        self,
        role: str,
        *,
        start: datetime = _NOW - timedelta(hours=1),
        end: datetime = _NOW + timedelta(days=2),
    ) -> tuple[str, str]:
        """Return a role's certificate and key; a client's may not serve."""
        key = ec.generate_private_key(ec.SECP256R1())
        usages = [ExtendedKeyUsageOID.CLIENT_AUTH]
        if role != "client":
            usages.append(ExtendedKeyUsageOID.SERVER_AUTH)
        certificate = self._sign(
            _name(role), key.public_key(), start, end, x509.ExtendedKeyUsage(usages)
        )
        secret = key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
        return certificate, secret.decode()

    def security(self, **leaves: tuple[str, str]) -> Security:
        """Return Dask's ``Security`` with the leaves of some roles."""
        fields = {"tls_ca_file": self.pem}
        for role, (certificate, key) in leaves.items():
            fields |= {f"tls_{role}_cert": certificate, f"tls_{role}_key": key}
        return Security(require_encryption=True, **fields)

    def _sign(
        self,
        name: x509.Name,
        public: ec.EllipticCurvePublicKey,
        start: datetime,
        end: datetime,
        *extensions: x509.ExtensionType,
    ) -> str:
        own = x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key())
        builder = (
            x509.CertificateBuilder()
            .issuer_name(self._name)
            .subject_name(name)
            .public_key(public)
            .serial_number(x509.random_serial_number())
            .not_valid_before(start)
            .not_valid_after(end)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(public), critical=False)
            .add_extension(own, critical=False)
        )
        for extension in extensions:
            builder = builder.add_extension(extension, critical=True)
        certificate = builder.sign(self._key, hashes.SHA256())
        return certificate.public_bytes(serialization.Encoding.PEM).decode()


def _name(common: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common)])
