"""A program that uses dask-cloudprovider's GCPCluster: gcp_cluster.py ENDPOINT PROJECT ZONE IMAGE.

It is the user's program of that package, told where Compute Engine is and that it needs no
credentials. Prints what its workers computed, and where.
"""

from __future__ import annotations

import functools
import json
import socket
import sys


def main(endpoint: str, project: str, zone: str, image: str) -> None:
    """Compute something with two workers."""
    import google.auth
    import googleapiclient.discovery
    from google.auth.credentials import AnonymousCredentials

    googleapiclient.discovery.build = functools.partial(
        googleapiclient.discovery.build, client_options={"api_endpoint": f"{endpoint}/compute/v1/"}
    )
    google.auth.default = lambda scopes=None: (AnonymousCredentials(), project)

    # It binds what is set above.
    from dask_cloudprovider.gcp import GCPCluster, instances
    from distributed import Client

    # It would ask a name server of the internet for the metadata server's address.
    instances.is_inside_gce = lambda: False
    with (
        GCPCluster(
            n_workers=2,
            projectid=project,
            zone=zone,
            machine_type="e2-medium",
            source_image="projects/debian-cloud/global/images/family/debian-12",
            docker_image=image,
            bootstrap=False,
            # With its own defaults it raises a TypeError.
            scheduler_ngpus=0,
            worker_ngpus=0,
        ) as cluster,
        Client(cluster) as client,
    ):
        client.wait_for_workers(2, timeout=200)
        answer = {
            "sum": client.submit(sum, range(100)).result(),
            "hosts": list(client.run(socket.gethostname).values()),
            "workers": [one["name"] for one in cluster.scheduler_info["workers"].values()],
        }
        print(json.dumps(answer))


if __name__ == "__main__":
    main(*sys.argv[1:])
