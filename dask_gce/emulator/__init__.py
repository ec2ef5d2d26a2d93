"""A local Compute Engine: the v1 API on loopback, and a real machine behind every instance."""
