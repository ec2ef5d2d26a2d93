"""What a machine is given to run: the Python environment that Dask starts in.

`requirements` knows the spellings in which a user names packages, `distributions` what this process
has installed, `resolution` makes an `environment` of either, and `shipping` takes the packages
there that no index has. The programs that build all this on a machine are in ``dask_gce/guest/``.
"""
