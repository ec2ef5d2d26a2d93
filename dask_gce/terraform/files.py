"""The files of a fixed cluster: written into a folder, secrets for their owner alone.

Owns their names, and that nothing that is there is overwritten unless that was asked for. Keys that
are there stay also then: new ones are new machines. Everything here blocks.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Mapping
from contextlib import suppress
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, Final

from dask_gce.errors import GCEError
from dask_gce.startup import Tls
from dask_gce.tls import ClusterCertificates
from dask_gce.trust import end_of

__all__ = [
    "CERTIFICATES",
    "ENVIRONMENT",
    "MAIN",
    "read_end",
    "write_certificates",
    "write_files",
]

MAIN: Final = "main.tf.json"
#: Terraform reads these by itself.
CERTIFICATES: Final = "certificates.auto.tfvars.json"
ENVIRONMENT: Final = "environment.auto.tfvars.json"

#: What a repository is not to have: private keys, and Terraform's state and saved plans, which have
#: them too.
_IGNORED: Final = ("*.tfvars.json", "*.tfstate", "*.tfstate.*", "*tfplan*", ".terraform/")


def write_files(
    folder: Path,
    document: Mapping[str, Any],
    *,
    cluster: str,
    days: float | None,
    env_vars: Mapping[str, str],
    overwrite: bool = False,
) -> list[Path]:
    """Write a cluster's files into a folder, which is made if there is none.

    Parameters
    ----------
    folder : pathlib.Path
        The folder.
    document : mapping
        What is in ``main.tf.json``.
    cluster : str
        The cluster's name, which its certificates have.
    days : float or None
        How many days they last; None for a cluster without any.
    env_vars : mapping of str to str
        Environment variables of scheduler and workers.
    overwrite : bool
        Whether to write in place of files that are there.

    Returns
    -------
    list of pathlib.Path
        What was written.

    Raises
    ------
    GCEError
        If there is a file already, or one cannot be written.
    """
    main, environment, certificates = (folder / name for name in (MAIN, ENVIRONMENT, CERTIFICATES))
    written = [main]
    try:
        for path in (main, environment):
            if not overwrite and path.exists():
                raise GCEError(
                    f"The file {path} is there already. Choose another folder, or have it written "
                    "anew: --force"
                )
        folder.mkdir(parents=True, exist_ok=True)
        if _ignore(folder / ".gitignore"):
            written.append(folder / ".gitignore")
        if env_vars:
            _write(environment, {"env_vars": dict(env_vars)}, private=True)
            written.append(environment)
        else:
            # What Terraform does not ask for any more, it would warn of.
            environment.unlink(missing_ok=True)
        # The last, so that who is interrupted before has no cluster that lacks something.
        if days is not None and not certificates.exists():
            written.append(write_certificates(certificates, cluster, days))
        _write(main, document, private=False)
    except OSError as error:
        raise _unwritable(Path(error.filename or folder), error) from error
    return written


def _ignore(path: Path) -> bool:
    """Have git ignore what is secret; tell whether that took a change."""
    # In bytes: git does not ask in which encoding it is, and what is there stays as it is.
    there = path.read_bytes() if path.exists() else b""
    missing = [each for each in map(str.encode, _IGNORED) if each not in there.split()]
    if missing:
        end = b"" if there.endswith(b"\n") or not there else b"\n"
        path.write_bytes(b"\n".join([there + end + missing[0], *missing[1:], b""]))
    return bool(missing)


def write_certificates(path: Path, cluster: str, days: float, *, overwrite: bool = False) -> Path:
    """Write a new set of certificates and private keys, as a file of Terraform's variables.

    Parameters
    ----------
    path : pathlib.Path
        The file, which nobody but its owner will read.
    cluster : str
        The cluster's name.
    days : float
        How many days they last.
    overwrite : bool
        Whether to write in place of a file that is there.

    Returns
    -------
    pathlib.Path
        The file.

    Raises
    ------
    GCEError
        If there is a file already, or it cannot be written.
    """
    try:
        if path.exists() and not overwrite:
            raise GCEError(
                f"The file {path} is there already, perhaps with the keys of a cluster that runs. "
                "Choose another name, or have new ones written in its place: --force"
            )
    except OSError as error:
        raise _unwritable(path, error) from error
    made = ClusterCertificates.create(cluster, lifetime=timedelta(days=days))
    leaves = {"scheduler": made.scheduler, "worker": made.worker, "client": made.client}
    content = {
        "ca": made.ca_pem,
        **{
            role: {"certificate": leaf.certificate, "key": leaf.key}
            for role, leaf in leaves.items()
        },
    }
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _write(path, {"certificates": content}, private=True)
    except OSError as error:
        raise _unwritable(path, error) from error
    return path


def read_end(path: Path) -> datetime | None:
    """Read until when certificates are valid that are there.

    Parameters
    ----------
    path : pathlib.Path
        The file, as `write_certificates` writes it.

    Returns
    -------
    datetime.datetime or None
        When the first of them ends, in UTC; None if that cannot be read.
    """
    try:
        held = json.loads(path.read_bytes())["certificates"]
        shown = [str(held[role]["certificate"]) for role in ("scheduler", "worker", "client")]
    except (OSError, ValueError, LookupError, TypeError):
        return None
    return end_of(*(Tls("", each, "") for each in shown))


def _write(path: Path, content: Mapping[str, Any], *, private: bool) -> None:
    """Write a file in one step, so that nobody ever reads half of it or what is not for them."""
    text = json.dumps(content, indent=2, sort_keys=True, ensure_ascii=False) + "\n"
    descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            if not private:
                # As any other file of the user's.
                umask = os.umask(0)
                os.umask(umask)
                os.fchmod(file.fileno(), 0o666 & ~umask)
            file.write(text)
        Path(name).replace(path)
    except BaseException:
        with suppress(FileNotFoundError):
            Path(name).unlink()
        raise


def _unwritable(path: Path, error: OSError) -> GCEError:
    return GCEError(f"The file {path} cannot be written: {error.strerror}. Choose another folder.")
