"""A cluster as Terraform declares it: request bodies become resources of the google provider.

Nothing is made here and nothing of Terraform is run: what comes out are files.
"""
