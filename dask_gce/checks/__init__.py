"""Whether a project can bear a cluster, found out before one is made.

Owns the checks of ``dask gce check``: each looks at one thing and says that it is well, or that it
failed and which command repairs it, or that this could not be found out. Nothing is ever changed
here. What a cluster finds out by itself before its first machine is in `preparation`.
"""
