"""A folder for ``PYTHONPATH``: the interpreter finds ``sitecustomize`` here, and nothing else."""
