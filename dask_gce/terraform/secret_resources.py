"""A fixed cluster's certificates in Secret Manager, as resources.

Pure. Machines are told of them in `fixed`.
"""

from __future__ import annotations

from typing import Any

from dask_gce.terraform.expressions import escape
from dask_gce.terraform.fixed_cluster import FixedCluster

__all__ = ["build_secrets"]


def build_secrets(fixed: FixedCluster) -> dict[str, dict[str, Any]]:
    """Return the secrets, what is in them, and who may read them.

    Parameters
    ----------
    fixed : FixedCluster
        The cluster.

    Returns
    -------
    dict
        Resources by kind and name; empty where the machines' metadata has the certificates.
    """
    if fixed.secrets is None:
        return {}
    replicas = [{"location": region} for region in fixed.secrets.regions]
    ids, account = fixed.secrets.ids, escape(fixed.secrets.account)

    def data(role: str) -> str:
        own = f"var.certificates.{role}"
        return (
            "${jsonencode({ca = var.certificates.ca, "
            f"cert = {own}.certificate, key = {own}.key}})}}"
        )

    return {
        "google_secret_manager_secret": {
            role: {
                "secret_id": name,
                "labels": dict(fixed.labels),
                "replication": {"user_managed": {"replicas": replicas}},
            }
            for role, name in ids.items()
        },
        "google_secret_manager_secret_version": {
            role: {
                "secret": f"${{google_secret_manager_secret.{role}.id}}",
                "secret_data": data(role),
            }
            for role in ids
        },
        "google_secret_manager_secret_iam_member": {
            role: {
                "secret_id": f"${{google_secret_manager_secret.{role}.id}}",
                "role": "roles/secretmanager.secretAccessor",
                "member": f"serviceAccount:{account}",
            }
            for role in ids
        },
    }
