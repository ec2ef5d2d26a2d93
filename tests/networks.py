"""Networks that tests make in a local Compute Engine."""

from __future__ import annotations

from typing import Any

import aiohttp

from dask_gce.emulator import ComputeEmulator


async def make_network(
    cloud: ComputeEmulator,
    name: str = "inner",
    project: str = "local-project",
    *firewalls: dict[str, Any],
) -> None:
    """Make a network without any rule, with a subnetwork of that name."""
    root = f"{cloud.endpoint}/compute/v1/projects/{project}"
    async with aiohttp.ClientSession() as session:
        for path, body in (
            ("global/networks", {"name": name, "autoCreateSubnetworks": False}),
            (
                "regions/us-central1/subnetworks",
                {
                    "name": name,
                    "network": f"projects/{project}/global/networks/{name}",
                    "ipCidrRange": "10.7.0.0/20",
                },
            ),
            *(
                ("global/firewalls", {"network": f"global/networks/{name}", **each})
                for each in firewalls
            ),
        ):
            async with session.post(f"{root}/{path}", json=body) as answer:
                assert answer.status == 200, await answer.text()
