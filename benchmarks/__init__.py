"""What the package promises in seconds, calls and bytes, measured: see docs/performance.md."""
