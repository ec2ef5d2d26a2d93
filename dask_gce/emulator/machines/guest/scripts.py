"""Running a startup or shutdown script as Google's guest agent does.

Owns the child process that fetches a script from the metadata server, writes it to a fresh folder
and becomes it. When scripts run, and what happens to their output, belongs to :mod:`init`.

Source: https://github.com/GoogleCloudPlatform/guest-agent (google_metadata_script_runner).
"""

from __future__ import annotations

import errno
import http.client
import os
import signal
import sys
from typing import NoReturn

__all__ = ["run_script"]

#: How long the metadata server may take, in seconds.
METADATA_TIMEOUT = 20


def run_script(
    key: str, folder: str, server: tuple[str, int], environment: dict[str, str]
) -> NoReturn:
    """Become a script of the instance's metadata; for a freshly forked process.

    Ends with status 0 where the instance has no such script. A script without an interpreter line
    is given to the shell.

    Parameters
    ----------
    key : str
        The metadata key: ``"startup-script"`` or ``"shutdown-script"``.
    folder : str
        A new folder of its own for the script's file.
    server : tuple of str and int
        Address and port of the metadata server.
    environment : dict of str
        The script's environment.
    """
    script = _fetch(key, server)
    if script is None:
        sys.stdout.flush()
        os._exit(0)
    path = f"{folder}/{key}"
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o700)
    with os.fdopen(descriptor, "wb") as file:
        file.write(script)
    # An interpreter leaves these two ignored for everything it starts, which no init would.
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    try:
        os.execve(path, [path], environment)  # noqa: S606 # it is what the user asked to run
    except OSError as error:
        if error.errno != errno.ENOEXEC:
            os.write(2, f"{error.strerror}\n".encode())
            os._exit(126)
    os.execve("/bin/sh", ["/bin/sh", path], environment)  # noqa: S606 # as above


def _fetch(key: str, server: tuple[str, int]) -> bytes | None:
    connection = http.client.HTTPConnection(*server, timeout=METADATA_TIMEOUT)
    connection.request(
        "GET",
        f"/computeMetadata/v1/instance/attributes/{key}",
        headers={"Metadata-Flavor": "Google"},
    )
    answer = connection.getresponse()
    body = answer.read()
    connection.close()
    return body if answer.status == 200 else None
