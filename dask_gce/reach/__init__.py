"""Reaching the cluster from where this process runs: which way to it, and what guards it.

Owns the route and its reason, this computer's own address, the cluster's firewall rules and the
tunnel through Identity-Aware Proxy (IAP). Leaves certificates to `dask_gce.tls`, and the question
whether a scheduler answers to `dask_gce.probing`.
"""
