"""The kinds of machines the local Compute Engine can boot."""
