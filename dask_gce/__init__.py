"""Dask clusters on Google Compute Engine."""
