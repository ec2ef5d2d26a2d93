"""Tell which TCP ports of some addresses are open, by trying every one.

Owns the looking only. Runs on any machine, with nothing but the standard library: as a program with
the targets as JSON, or as the startup script of an instance whose metadata has them.
"""

from __future__ import annotations

import json
import resource
import select
import socket
import sys
import time
import urllib.request

#: Seconds for the last answer. A packet that got lost is sent again after one.
PATIENCE = 1.6
#: Ports that are tried at a time, if so many files may be open.
BATCH = 16_384

_METADATA = "http://metadata.google.internal/computeMetadata/v1/instance"


def scan(host: str, ports: list[int] | None) -> list[int]:
    """Return the ports of a host that accept connections; of all of them if none are named."""
    wanted = ports or list(range(1, 65536))
    size = min(BATCH, _raise_limit() - 64)
    return [
        port
        for start in range(0, len(wanted), size)
        for port in _scan(host, wanted[start : start + size])
    ]


def _scan(host: str, ports: list[int]) -> list[int]:
    found, waiting = [], {}
    with select.epoll() as answers:
        try:
            for port in ports:
                each = socket.socket()
                each.setblocking(False)
                waiting[each.fileno()] = each, port
                each.connect_ex((host, port))
                answers.register(each, select.EPOLLOUT)
            deadline = time.monotonic() + PATIENCE
            # What has come is looked at also when this process was kept waiting itself.
            while come := answers.poll(max(0.0, deadline - time.monotonic())) if waiting else []:
                for number, _ in come:
                    each, port = waiting.pop(number)
                    answers.unregister(number)
                    with each:
                        if each.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == 0:
                            found.append(port)
        finally:
            for each, _ in waiting.values():
                each.close()
    return sorted(found)


def _raise_limit() -> int:
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    return int(most)


def _metadata(path: str, data: bytes | None = None) -> str:
    request = urllib.request.Request(  # noqa: S310 # the metadata server speaks nothing else
        f"{_METADATA}/{path}",
        data=data,
        headers={"Metadata-Flavor": "Google"},
        method="GET" if data is None else "PUT",
    )
    with urllib.request.urlopen(request, timeout=60) as answer:  # noqa: S310
        return str(answer.read(), "utf-8")


def main() -> None:
    """Scan what the command line names, or the metadata; say what was found in the same way."""
    named = sys.argv[1] if sys.argv[1:] else _metadata("attributes/targets")
    with socket.create_server(("", 0)) as control:
        # To know that nothing found is not for want of looking.
        own = control.getsockname()[1]
        seen = scan("127.0.0.1", [1, own]) == [own]
    found = json.dumps([seen, [scan(host, ports) for host, ports in json.loads(named)]])
    if sys.argv[1:]:
        print(found)
    else:
        _metadata("guest-attributes/test/result", found.encode())


if __name__ == "__main__":
    main()
