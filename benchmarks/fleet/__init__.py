"""Clusters of up to a thousand machines: ours, the floor, and dask-cloudprovider's GCPCluster.

``python -m benchmarks.fleet`` measures everything in one run and writes docs/performance.md. Each
measurement is a process of its own (`measure`) with an emulator in another (`cloud`), so that no
one's imports, threads or leaks are another's. What is compared and what it means is in `figures`.
"""
