"""The certificate of the emulator's TLS listener: made for one emulator, known to nobody else.

Owns: making it, and what Python's ssl needs of it. The certificates of clusters are no concern of
this: they come from the package that is tested here.
"""

from __future__ import annotations

import datetime
import ipaddress
import ssl
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

__all__ = ["Certificate"]

#: How long it is valid, longer than any emulator lives.
_LIFETIME = datetime.timedelta(days=30)

#: What clocks of the same host may differ by, seen from a container or a virtual machine.
_SKEW = datetime.timedelta(hours=1)


@dataclass(frozen=True)
class Certificate:
    """A certificate for 127.0.0.1 and localhost, signed by itself.

    Parameters
    ----------
    pem : str
        The certificate, as clients need it who are to trust it.
    context : ssl.SSLContext
        What serves TLS with it.
    """

    pem: str
    context: ssl.SSLContext = field(repr=False)

    @classmethod
    def make(cls) -> Certificate:
        """Make a new one, with a P-256 key that is in memory only once it is loaded.

        Returns
        -------
        Certificate
            The certificate.
        """
        from cryptography import x509
        from cryptography.hazmat.primitives import hashes, serialization
        from cryptography.hazmat.primitives.asymmetric import ec
        from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

        key = ec.generate_private_key(ec.SECP256R1())
        name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "local Compute Engine")])
        now = datetime.datetime.now(datetime.timezone.utc)
        certificate = (
            x509.CertificateBuilder()
            .subject_name(name)
            .issuer_name(name)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - _SKEW)
            .not_valid_after(now + _LIFETIME)
            .add_extension(
                x509.SubjectAlternativeName(
                    [
                        x509.IPAddress(ipaddress.IPv4Address("127.0.0.1")),
                        x509.DNSName("localhost"),
                    ]
                ),
                critical=False,
            )
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
            .sign(key, hashes.SHA256())
        )
        pem = certificate.public_bytes(serialization.Encoding.PEM)
        secret = key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        # Python's ssl reads keys from files only; the folder is its owner's alone.
        with tempfile.TemporaryDirectory(prefix="local-gce-tls-") as folder:
            chain = Path(folder, "chain.pem")
            chain.touch(mode=0o600)
            chain.write_bytes(pem + secret)
            context.load_cert_chain(chain)
        return cls(pem.decode(), context)
