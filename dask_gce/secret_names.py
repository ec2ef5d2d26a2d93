"""The names that a cluster's secrets have in Secret Manager.

They follow from the cluster's name and identity, so that whoever knows the cluster can name them,
and machines can be told of them before they are made. Their life is in `cluster_secrets`.
"""

from __future__ import annotations

from dask_gce.startup import Role

__all__ = ["secret_id", "version_name"]

#: How much of an identity tells clusters of one name apart.
_SHOWN = 8


def secret_id(cluster: str, identity: str, role: Role) -> str:
    """Return the name of the secret that holds the certificates of a role.

    Parameters
    ----------
    cluster : str
        The cluster's name.
    identity : str
        Its identity.
    role : {"scheduler", "worker"}
        The role.

    Returns
    -------
    str
        The name, far below the 255 characters that Secret Manager allows.

    Examples
    --------
    >>> secret_id("grid", "3f9a61c2d4e5f607", "worker")
    'grid-3f9a61c2-worker'
    """
    return f"{cluster}-{identity[:_SHOWN]}-{role}"


def version_name(project: str, cluster: str, identity: str, role: Role) -> str:
    """Return the name of what a machine of a role reads.

    Parameters
    ----------
    project : str
        Project ID.
    cluster : str
        The cluster's name.
    identity : str
        Its identity.
    role : {"scheduler", "worker"}
        The role.

    Returns
    -------
    str
        The first version: unlike "latest" everybody sees it as soon as it is there
        (https://docs.cloud.google.com/secret-manager/docs/access-secret-version).

    Examples
    --------
    >>> version_name("my-project", "grid", "3f9a61c2d4e5f607", "worker")
    'projects/my-project/secrets/grid-3f9a61c2-worker/versions/1'
    """
    return f"projects/{project}/secrets/{secret_id(cluster, identity, role)}/versions/1"
