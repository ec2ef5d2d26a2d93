"""Fixtures for tests of programs that use clusters: a local Compute Engine, and a cluster on it.

pytest loads this module in every run of whoever has the package installed, so that it imports
nothing that a run without these fixtures does not need.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from dask_gce.cluster import GCECluster
    from dask_gce.emulator import ComputeEmulator

__all__ = ["gce_cluster", "gce_emulator"]

#: What the local Compute Engine's machines can be made of.
KINDS = ("light", "process", "paper", "paper-workers", "namespace", "namespace-quick")

#: The marker that holds a cluster's settings.
MARKER = "gce_cluster"


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the option that says what machines are made of.

    Parameters
    ----------
    parser : pytest.Parser
        pytest's own.
    """
    group = parser.getgroup("gce", "Dask clusters on a local Compute Engine")
    group.addoption(
        "--gce-machines",
        choices=KINDS,
        default=KINDS[0],
        help="What the machines of gce_emulator are made of (default: %(default)s).",
    )


def pytest_configure(config: pytest.Config) -> None:
    """Make the marker known.

    Parameters
    ----------
    config : pytest.Config
        pytest's own.
    """
    config.addinivalue_line(
        "markers", f"{MARKER}(**settings): settings of the cluster that gce_cluster makes."
    )


@pytest.fixture
def gce_emulator(
    pytestconfig: pytest.Config, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[ComputeEmulator]:
    """Give a test a local Compute Engine of its own, which all clusters made meanwhile use.

    It is opened in a tenth of a second. So each test has its own, and neither machines nor faults
    or quotas of one reach another. Clusters, programs and ``dask gce`` find it by the setting
    ``api-endpoint``, which is set in Dask's configuration and in the environment; what they keep in
    files goes to a temporary folder. What the test leaves open is closed.

    Parameters
    ----------
    pytestconfig : pytest.Config
        What the command line says.
    tmp_path_factory : pytest.TempPathFactory
        Where temporary folders are.

    Yields
    ------
    ComputeEmulator
        The local Compute Engine.
    """
    import dask.config

    # Its import registers the defaults, over which the endpoint goes.
    import dask_gce.settings  # noqa: F401
    from dask_gce.emulator import ComputeEmulator

    folder = tmp_path_factory.mktemp("dask-gce")
    with (
        ComputeEmulator(str(pytestconfig.getoption("gce_machines"))) as emulator,
        pytest.MonkeyPatch.context() as patch,
        dask.config.set({"gce.api-endpoint": emulator.endpoint}),
    ):
        patch.setenv("DASK_GCE__API_ENDPOINT", emulator.endpoint)
        patch.setenv("XDG_DATA_HOME", str(folder))
        yield emulator
        _close_clusters(emulator.endpoint)


@pytest.fixture
def gce_cluster(
    request: pytest.FixtureRequest, gce_emulator: ComputeEmulator
) -> Iterator[GCECluster]:
    """Give a test a cluster with a worker, on a local Compute Engine of its own.

    Settings come from the marker, ``@pytest.mark.gce_cluster(n_workers=2)``: of a test, its class
    or its module, where the nearest counts most. All its workers are there when the test begins.

    Parameters
    ----------
    request : pytest.FixtureRequest
        The test.
    gce_emulator : ComputeEmulator
        The local Compute Engine.

    Yields
    ------
    GCECluster
        The cluster, for synchronous use; closed after the test.

    Raises
    ------
    pytest.UsageError
        If the marker has something that is no setting, or if machines are of paper, so that there
        would be none of the workers that it waits for.
    """
    from dask_gce.cluster import GCECluster

    keywords: dict[str, Any] = {"n_workers": 1, "quiet": True}
    # The nearest comes first.
    for marker in reversed(list(request.node.iter_markers(MARKER))):
        if marker.args:
            raise pytest.UsageError(
                f"@pytest.mark.{MARKER}{marker.args!r}: settings have names, as n_workers=2."
            )
        keywords.update(marker.kwargs)
    if keywords.get("asynchronous"):
        raise pytest.UsageError(
            f"@pytest.mark.{MARKER}(asynchronous=True): a fixture has no event loop of the test's. "
            "Take gce_emulator, and in the test: async with GCECluster(asynchronous=True) as ..."
        )
    kind = str(request.config.getoption("gce_machines"))
    if kind == "paper" or (kind == "paper-workers" and keywords["n_workers"] != 0):
        raise pytest.UsageError(
            f"--gce-machines={kind}: gce_cluster waits for workers, and on paper none ever comes. "
            "Take gce_emulator, or --gce-machines=light."
        )
    with GCECluster(**keywords) as cluster:
        if cluster.settings.n_workers:
            cluster.wait_for_workers(cluster.settings.n_workers)
        yield cluster


def _close_clusters(endpoint: str) -> None:
    """Close the clusters that a test has left open: their machines go with their Compute Engine."""
    from distributed.deploy.spec import SpecCluster

    from dask_gce.cluster import GCECluster
    from dask_gce.exit import do_now

    for cluster in list(SpecCluster._instances):
        if not isinstance(cluster, GCECluster) or cluster.asynchronous:
            continue
        if cluster.settings.api_endpoint == endpoint:
            # Whatever is wrong with it was the test's to see.
            with contextlib.suppress(Exception):
                cluster.close()
    # An asynchronous one may have lost its event loop. What the interpreter would do for it when
    # it ends, when nobody answers here any more, is done now.
    with contextlib.suppress(Exception):
        do_now(endpoint)
