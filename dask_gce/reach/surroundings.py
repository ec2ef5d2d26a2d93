"""Where this process runs, as far as Google's metadata server tells.

Owns one question, with one time limit: in which project and networks is this computer, if it is one
of Google's at all? It is asked without a thread, so that nothing is left behind when the time is
over. What follows for the way to a scheduler is the matter of `route`.
"""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import io
import json
import re
import socket
from dataclasses import dataclass
from typing import Final, cast

from dask_gce.settings import Settings
from dask_gce.sources import environment

__all__ = ["PATIENCE", "Surroundings", "look_around", "parse_answer", "parse_surroundings"]

#: Seconds in which all answers must be there. Elsewhere than on Google's machines nobody answers,
#: and some networks swallow what is sent to this address.
PATIENCE: Final = 1.0
#: The same inside a local Compute Engine, whose metadata server is there, however busy it is.
LOCAL_PATIENCE: Final = 60.0

#: By address: looking up a name may take longer than any time limit of ours.
#: https://docs.cloud.google.com/compute/docs/metadata/querying-metadata
_HOST: Final = "169.254.169.254"
_ROOT: Final = "/computeMetadata/v1"
_QUESTIONS: Final = (
    f"{_ROOT}/project/project-id",
    f"{_ROOT}/project/numeric-project-id",
    f"{_ROOT}/instance/network-interfaces/?recursive=true",
)
_LONGEST_ANSWER: Final = 65_536
_NETWORK = re.compile(r"projects/(?P<project>[^/]+)/(?:global/)?networks/(?P<name>[^/]+)")


@dataclass(frozen=True)
class Surroundings:
    """The project and the networks of the machine that this process is on.

    Parameters
    ----------
    project : str
        The machine's project ID.
    number : str
        The number of that project.
    networks : tuple of tuple
        Its networks, each as the number of the project that it belongs to, which with a shared
        VPC is another one, and its name.
    """

    project: str
    number: str
    networks: tuple[tuple[str, str], ...]


async def look_around(settings: Settings) -> Surroundings | None:
    """Ask the metadata server where this process runs.

    Parameters
    ----------
    settings : Settings
        The cluster's settings. For a local Compute Engine no address outside of it is asked.

    Returns
    -------
    Surroundings or None
        None if there is no such server, if it does not answer in time, or not as Google's does.
    """
    host = _server(settings)
    if host is None:
        return None
    asking = asyncio.gather(*(_ask(host, question) for question in _QUESTIONS))
    try:
        patience = LOCAL_PATIENCE if settings.is_local else PATIENCE
        project, number, interfaces = await asyncio.wait_for(asking, patience)
    except (OSError, asyncio.TimeoutError):
        return None
    return parse_surroundings(project, number, interfaces)


def parse_surroundings(
    project: str | None, number: str | None, interfaces: str | None
) -> Surroundings | None:
    """Read the answers of a metadata server.

    Parameters
    ----------
    project : str or None
        What it says of ``project/project-id``; None for no answer.
    number : str or None
        The same of ``project/numeric-project-id``.
    interfaces : str or None
        The same of ``instance/network-interfaces/?recursive=true``.

    Returns
    -------
    Surroundings or None
        None if they are not what Google's server answers.

    Examples
    --------
    >>> parse_surroundings("farm", "7", '[{"network": "projects/7/networks/default"}]')
    Surroundings(project='farm', number='7', networks=(('7', 'default'),))
    >>> parse_surroundings("farm", "7", "<html>")
    """
    if project is None or number is None or interfaces is None:
        return None
    if not re.fullmatch(r"[a-z0-9.:-]+", project) or not re.fullmatch(r"[0-9]+", number):
        return None
    try:
        listed = json.loads(interfaces)
    except (ValueError, RecursionError):
        return None
    paths = (
        [each.get("network") for each in listed if isinstance(each, dict)]
        if isinstance(listed, list)
        else []
    )
    found = [_NETWORK.fullmatch(path) for path in paths if isinstance(path, str)]
    return Surroundings(
        project, number, tuple((each["project"], each["name"]) for each in found if each)
    )


def parse_answer(answer: bytes) -> str | None:
    """Read an answer over HTTP.

    Parameters
    ----------
    answer : bytes
        All that the server sent until it hung up.

    Returns
    -------
    str or None
        Its body; None if that is empty or not complete, or if it is not of Google's metadata
        server.

    Examples
    --------
    >>> parse_answer(b"HTTP/1.1 200 OK\\r\\nMetadata-Flavor: Google\\r\\n"
    ...              b"Content-Length: 4\\r\\n\\r\\nfarm")
    'farm'
    >>> parse_answer(b"HTTP/1.1 302 Found\\r\\nLocation: http://192.0.2.1/login\\r\\n\\r\\n")
    """
    response = http.client.HTTPResponse(cast(socket.socket, _Received(answer)))
    try:
        response.begin()
        # Somebody else's router may answer at this address; Google's server signs its answers.
        if response.status != 200 or response.headers.get("Metadata-Flavor") != "Google":
            return None
        return response.read().decode("utf-8").strip() or None
    # http.client takes what is no number for a number, and says so in more ways than one.
    except (http.client.HTTPException, ValueError, OSError):
        return None
    finally:
        response.close()


class _Received:
    """What was received, in the shape in which ``http.client`` wants it."""

    def __init__(self, content: bytes) -> None:
        self._content = content

    def makefile(self, mode: str) -> io.BytesIO:
        return io.BytesIO(self._content)


async def _ask(host: str, path: str) -> str | None:
    name, _, port = host.rpartition(":") if host.rpartition(":")[2].isdecimal() else (host, "", 80)
    try:
        reader, writer = await asyncio.open_connection(name, int(port))
    except (OSError, ValueError, OverflowError):
        return None
    try:
        writer.write(
            f"GET {path} HTTP/1.1\r\nHost: {host}\r\nMetadata-Flavor: Google\r\n"
            "Connection: close\r\n\r\n".encode("ascii", "replace")
        )
        answer = b""
        while len(answer) <= _LONGEST_ANSWER and (more := await reader.read(_LONGEST_ANSWER)):
            answer += more
        return parse_answer(answer) if len(answer) <= _LONGEST_ANSWER else None
    except OSError:
        return None
    finally:
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()


def _server(settings: Settings) -> str | None:
    """Return which metadata server to ask, if any."""
    if environment("NO_GCE_CHECK").get("NO_GCE_CHECK", "").lower() == "true":
        return None
    # In this order, as Google's own libraries read them.
    named = environment("GCE_METADATA_HOST", "GCE_METADATA_IP")
    if named:
        return next(iter(named.values()))
    # A local Compute Engine names its own to its machines; the other address is somebody else's.
    return None if settings.is_local else _HOST
