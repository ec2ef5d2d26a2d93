"""What a bare ``Client()`` needs to find a cluster: as environment variables, and as Dask's YAML.

Pure. No key is in either: they name files, which `connections` writes.
"""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Any

__all__ = ["PemFiles", "render_exports", "render_yaml"]


@dataclass(frozen=True)
class PemFiles:
    """Where the certificates of a cluster's clients are.

    Parameters
    ----------
    authority : pathlib.Path
        The certificate of the cluster's authority.
    certificate : pathlib.Path
        The clients' certificate.
    key : pathlib.Path
        Their private key.
    """

    authority: Path
    certificate: Path
    key: Path


def _configuration(address: str, files: PemFiles | None) -> dict[str, Any]:
    """Return what Dask's configuration has to hold."""
    if files is None:
        return {"scheduler-address": address}
    return {
        "scheduler-address": address,
        "distributed": {
            "comm": {
                "require-encryption": True,
                "tls": {
                    "ca-file": str(files.authority),
                    "client": {"cert": str(files.certificate), "key": str(files.key)},
                },
            }
        },
    }


def render_yaml(address: str, files: PemFiles | None) -> str:
    """Return it as a file of Dask's configuration.

    Parameters
    ----------
    address : str
        The scheduler's address.
    files : PemFiles or None
        Where the certificates are; None for plain TCP.

    Returns
    -------
    str
        YAML, with a line end.

    Examples
    --------
    >>> render_yaml("tcp://10.0.0.2:8786", None)
    'scheduler-address: tcp://10.0.0.2:8786\\n'
    """
    import yaml

    return str(yaml.safe_dump(_configuration(address, files), sort_keys=False))


def render_exports(address: str, files: PemFiles | None) -> str:
    """Return it as lines for a POSIX shell.

    Parameters
    ----------
    address : str
        The scheduler's address.
    files : PemFiles or None
        Where the certificates are; None for plain TCP.

    Returns
    -------
    str
        An ``export`` for each variable, its value quoted.

    Examples
    --------
    >>> files = PemFiles(Path("ca.pem"), Path("it's.pem"), Path("key.pem"))
    >>> print(render_exports("tls://10.0.0.2:8786", files), end="")
    export DASK_SCHEDULER_ADDRESS=tls://10.0.0.2:8786
    export DASK_DISTRIBUTED__COMM__REQUIRE_ENCRYPTION=True
    export DASK_DISTRIBUTED__COMM__TLS__CA_FILE=ca.pem
    export DASK_DISTRIBUTED__COMM__TLS__CLIENT__CERT='it'"'"'s.pem'
    export DASK_DISTRIBUTED__COMM__TLS__CLIENT__KEY=key.pem
    """
    found: dict[str, str] = {}

    def flatten(prefix: str, part: dict[str, Any]) -> None:
        for key, value in part.items():
            name = prefix + key.replace("-", "_").upper()
            if isinstance(value, dict):
                flatten(f"{name}__", value)
            else:
                found[name] = str(value)

    flatten("DASK_", _configuration(address, files))
    return "".join(f"export {name}={shlex.quote(value)}\n" for name, value in found.items())
