"""Guests of namespace machines that do what a test tells them, by metadata and guest attributes."""

from __future__ import annotations

import time
from typing import Any

import pytest
from clusters import PATIENCE
from rest import ZONE, Refused, Rest

from dask_gce.emulator import ComputeEmulator
from dask_gce.emulator.machines.namespace.obstacles import find_obstacle

#: For tests that boot machines with a network of their own.
NEEDS_NAMESPACES = pytest.mark.skipif(
    find_obstacle() is not None, reason=str(find_obstacle() or "namespaces are to be had")
)

#: What every guest's startup script does.
_AGENT = r"""#!/bin/bash
base=http://metadata.google.internal/computeMetadata/v1/instance
ask() { curl --silent --show-error --header 'Metadata-Flavor: Google' "$@"; }
etag= last=
while :; do
  url="$base/attributes/command?wait_for_change=true&last_etag=$etag"
  line=$(ask --dump-header /run/headers "$url") || { sleep 0.1; continue; }
  etag=$(sed --quiet 's/\r$//; s/^etag: //Ip' /run/headers)
  number=${line%% *}
  [ "$number" = "$last" ] && continue
  last=$number
  output=$(bash -c "${line#* }" 2>&1)
  printf '%s %s %s' "$number" "$?" "$output" |
    ask --output /dev/null --request PUT --data-binary @- "$base/guest-attributes/test/result"
done
"""


class Guest:
    """One machine whose guest waits for commands."""

    def __init__(
        self, rest: Rest, name: str = "a", *, external: bool = True, **fields: Any
    ) -> None:
        interface: dict[str, Any] = {"network": fields.pop("network", "global/networks/default")}
        if external:
            interface["accessConfigs"] = [{"type": "ONE_TO_ONE_NAT", "name": "external-nat"}]
        interface |= fields.pop("interface", {})
        self._rest = rest
        self._path = f"zones/{ZONE}/instances/{name}"
        self._count = 0
        self.name = name
        items = {"startup-script": _AGENT, "enable-guest-attributes": "TRUE", "command": "0 true"}
        rest.insert(
            name=name,
            machineType=f"zones/{ZONE}/machineTypes/e2-small",
            networkInterfaces=[interface],
            serviceAccounts=[{"email": "default", "scopes": [_SCOPE]}],
            metadata={"items": [{"key": key, "value": value} for key, value in items.items()]},
            **fields,
        )
        resource = rest.instance(name)["networkInterfaces"][0]
        self.address: str = resource["networkIP"]
        self.external: str = resource["accessConfigs"][0]["natIP"] if external else ""

    def tell(self, command: str) -> None:
        """Have a command run, of which the guest may not live to tell the outcome."""
        self._count += 1
        metadata = self._rest.instance(self.name)["metadata"]
        for item in metadata["items"]:
            if item["key"] == "command":
                item["value"] = f"{self._count} {command}"
        self._rest.wait(self._rest.post(f"{self._path}/setMetadata", metadata))

    def attempt(self, command: str) -> tuple[int, str]:
        """Return the exit status and the output of a command."""
        self.tell(command)
        deadline = time.monotonic() + PATIENCE
        while time.monotonic() < deadline:
            try:
                found = self._rest.get(f"{self._path}/getGuestAttributes", queryPath="test/")
            except Refused:
                found = {"queryValue": {"items": [{"value": "0 0 "}]}}
            number, status, output = found["queryValue"]["items"][0]["value"].split(" ", 2)
            if int(number) == self._count:
                return int(status), output.strip()
            time.sleep(0.02)
        console = self._rest.get(f"{self._path}/serialPort")["contents"]
        raise AssertionError(f"{self.name} does not answer: {console}")

    def run(self, command: str) -> str:
        """Return the output of a command that succeeds."""
        status, output = self.attempt(command)
        assert status == 0, output
        return output

    def reaches(self, address: str, port: int, seconds: float = 0.5) -> bool:
        """Tell whether a connection is accepted; packets that are dropped take the whole time."""
        command = f"timeout {seconds} bash -c '</dev/tcp/{address}/{port}'"
        return self.attempt(command)[0] == 0

    def serve(self, port: int, program: str = "") -> None:
        """Listen on a port; a program gets ``connection`` and ``peer``, and answers."""
        body = program or "connection.sendall(peer[0].encode())"
        lines = [
            "import socket",
            f"server = socket.create_server(('', {port}))",
            "while True:",
            "    connection, peer = server.accept()",
            "    with connection:",
            *(f"        {line}" for line in body.splitlines()),
        ]
        script = "\n".join(lines)
        self.run(
            f"cat > /run/serve-{port}.py <<'END'\n{script}\nEND\n"
            f"python3 /run/serve-{port}.py > /run/serve-{port}.log 2>&1 &\n"
            f"until bash -c '</dev/tcp/127.0.0.1/{port}' 2>/dev/null; do sleep 0.02; done"
        )


_SCOPE = "https://www.googleapis.com/auth/cloud-platform"


def open_port(rest: Rest, name: str = "web", port: int = 8000, **fields: Any) -> None:
    """Let everybody in on a port, unless other fields say otherwise."""
    rule = {
        "name": name,
        "network": "global/networks/default",
        "allowed": [{"IPProtocol": "tcp", "ports": [str(port)]}],
        **fields,
    }
    rest.wait(rest.post("global/firewalls", rule))


def emulate(**options: Any) -> ComputeEmulator:
    """Return an emulator of namespace machines that boot at once."""
    return ComputeEmulator("namespace-quick", **options)
