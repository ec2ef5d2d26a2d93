#!/usr/bin/env bash
# Run every benchmark; each says what it measured, on what, and fails if a promise is broken.
set -euo pipefail
cd "$(dirname "$0")/.."

for benchmark in benchmarks/*.py; do
    echo "== $benchmark"
    "${VENV:-.venv}/bin/python" "$benchmark"
done
