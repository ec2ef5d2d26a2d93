"""The two clusters that are compared, each made to use the local Compute Engine.

Owns what a user would type to get the same from either, and how each tells what it knows.
"""

from __future__ import annotations

import functools
import logging
from typing import Any, Protocol

from .cloud import MACHINE_TYPE, PROJECT, ZONE

#: A Debian with Docker, for whoever brings no image of their own.
IMAGE = "projects/debian-cloud/global/images/family/debian-12"


class Contender(Protocol):
    """One way to run Dask on Compute Engine."""

    name: str

    def prepare(self, endpoint: str) -> None:
        """Import what it needs, which is not measured, and lead it to an endpoint."""

    def make(self, workers: int, *, plain: bool = False) -> Any:
        """Return an asynchronous cluster that is not started; plain workers have no nanny."""

    def known_running(self, cluster: Any) -> int:
        """Return of how many workers' machines the cluster knows that they are RUNNING."""


class Ours:
    """GCECluster. A hundred calls at a time, and more a second than Google's quota allows."""

    name = "ours"

    def prepare(self, endpoint: str) -> None:
        """Import Google's client as well, which the first cluster of a process would do."""
        from google.cloud import compute_v1

        import dask_gce.cluster

        self._modules = compute_v1, dask_gce.cluster
        self._endpoint = endpoint

    def make(self, workers: int, *, plain: bool = False) -> Any:
        """Return a cluster that is not started."""
        from dask_gce import GCECluster

        options: dict[str, Any] = {}
        if plain:
            options = {"worker_class": "distributed.Worker", "nthreads": 1}
        return GCECluster(
            n_workers=workers,
            project=PROJECT,
            zone=ZONE,
            machine_type=MACHINE_TYPE,
            api_endpoint=self._endpoint,
            api_rate=1000,
            api_connections=100,
            asynchronous=True,
            silence_logs=logging.ERROR,
            quiet=True,
            **options,
        )

    def known_running(self, cluster: Any) -> int:
        """Count the workers' instances that were seen RUNNING."""
        members = () if cluster._fleet is None else cluster._fleet.members.values()
        return sum(
            member.running_since is not None and "-worker-" in member.name for member in members
        )


class Rival:
    """dask-cloudprovider's GCPCluster, changed only so that it reaches the local Compute Engine."""

    name = "rival"

    def prepare(self, endpoint: str) -> None:
        """Import it and lead it to the endpoint, without credentials."""
        import google.auth
        import googleapiclient.discovery
        from google.auth.credentials import AnonymousCredentials

        googleapiclient.discovery.build = functools.partial(
            googleapiclient.discovery.build,
            client_options={"api_endpoint": f"{endpoint}/compute/v1/"},
        )
        google.auth.default = lambda scopes=None: (AnonymousCredentials(), PROJECT)

        from dask_cloudprovider.gcp import instances

        # It would ask a metadata server by name whether it runs on Google's machines.
        instances.is_inside_gce = lambda: False

    def make(self, workers: int, *, plain: bool = False) -> Any:
        """Return a cluster that is not started, on images that have Docker."""
        from dask_cloudprovider.gcp import GCPCluster

        options: dict[str, Any] = {}
        if plain:
            options = {"worker_class": "distributed.Worker", "worker_options": {"nthreads": 1}}
        cluster = GCPCluster(
            n_workers=workers,
            projectid=PROJECT,
            zone=ZONE,
            machine_type=MACHINE_TYPE,
            source_image=IMAGE,
            bootstrap=False,
            # With its own defaults it raises a TypeError.
            scheduler_ngpus=0,
            worker_ngpus=0,
            asynchronous=True,
            silence_logs=logging.ERROR,
            **options,
        )
        cluster.quiet = True
        return cluster

    def known_running(self, cluster: Any) -> int:
        """Count the workers whose last look showed RUNNING."""
        looks = [
            getattr(worker, "gcp_inst", None)
            for worker in cluster._created
            if worker is not cluster.scheduler
        ]
        return sum(
            bool(look and look.get("items") and look["items"][0]["status"] == "RUNNING")
            for look in looks
        )


CONTENDERS: dict[str, type[Contender]] = {"ours": Ours, "rival": Rival}
