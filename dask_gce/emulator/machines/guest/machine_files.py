"""What a stand-in command knows of the machine it runs on, and the record it keeps of its calls.

Owns the environment variables by which a guest's process finds its machine, the ``calls`` file, the
power switch and the console. The commands themselves are in :mod:`commands` and :mod:`docker`.

The stand-ins start dozens of times in a startup script, so this module imports next to nothing.
"""

from __future__ import annotations

import os
import sys
import time
from _json import encode_basestring_ascii
from collections.abc import Sequence

__all__ = ["address", "call_real", "disk", "hostname", "press", "record_call", "say", "table"]

#: The variables that every process of a machine must have; a container inherits exactly these.
VARIABLES = (
    "CURL_HOME",
    "GCE_METADATA_HOST",
    "GCE_METADATA_IP",
    "GCE_METADATA_ROOT",
    "LOCAL_GCE_ADDRESS",
    "LOCAL_GCE_BIN",
    "LOCAL_GCE_DISK",
    "LOCAL_GCE_HOSTNAME",
    "LOCAL_GCE_HOSTS",
)


def _variable(name: str) -> str:
    try:
        return os.environ[name]
    except KeyError:
        sys.exit(
            f"{name} is not set: this stand-in works only inside a local Compute Engine machine"
        )


def disk() -> str:
    """Return the folder that is the machine's disk."""
    return _variable("LOCAL_GCE_DISK")


def hostname() -> str:
    """Return the machine's zonal DNS name."""
    return _variable("LOCAL_GCE_HOSTNAME")


def address() -> str:
    """Return the machine's address."""
    return _variable("LOCAL_GCE_ADDRESS")


def table() -> dict[str, str]:
    """Return the name table: the address of every name."""
    names = {}
    with open(_variable("LOCAL_GCE_HOSTS"), encoding="utf-8") as hosts:
        for line in hosts:
            known, *aliases = line.split()
            names.update(dict.fromkeys(aliases, known))
    return names


def record_call(command: str, arguments: Sequence[str]) -> None:
    """Add a line of JSON to the machine's ``calls`` file.

    Parameters
    ----------
    command : str
        The command's name.
    arguments : sequence of str
        Its arguments; bytes that are no UTF-8 are kept as surrogates.
    """
    words = ", ".join(encode_basestring_ascii(word) for word in arguments)
    line = (
        f'{{"time": {time.time():.3f}, "command": {encode_basestring_ascii(command)}, '
        f'"arguments": [{words}]}}\n'
    )
    # One write to a file opened for appending: calls at the same time do not mix.
    descriptor = os.open(f"{disk()}/calls", os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    os.write(descriptor, line.encode())
    os.close(descriptor)


def press(word: str) -> None:
    """Press the machine's power switch.

    Parameters
    ----------
    word : str
        ``"poweroff"`` or ``"reboot"``.
    """
    _send("power", f"{word}\n".encode())


def say(text: str) -> None:
    """Write lines to the serial console.

    Parameters
    ----------
    text : str
        The lines.
    """
    for line in text.splitlines():
        # A pipe takes up to PIPE_BUF bytes in one piece.
        _send("log", f"{line}\n".encode(errors="surrogateescape")[:4096])


def _send(pipe: str, data: bytes) -> None:
    descriptor = os.open(f"{disk()}/run/{pipe}", os.O_WRONLY)
    os.write(descriptor, data)
    os.close(descriptor)


def call_real(command: str, arguments: Sequence[str]) -> int:
    """Become the host's own command of that name.

    Parameters
    ----------
    command : str
        The name.
    arguments : sequence of str
        Its arguments.

    Returns
    -------
    int
        127, if the host has no such command; else it does not return.
    """
    own = _variable("LOCAL_GCE_BIN")
    for folder in os.environ.get("PATH", os.defpath).split(":"):
        path = f"{folder}/{command}"
        if folder != own and os.access(path, os.X_OK):
            os.execv(path, [command, *arguments])  # noqa: S606 # the guest asked for it
    print(f"{command}: command not found", file=sys.stderr)
    return 127
