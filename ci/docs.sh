#!/usr/bin/env bash
# Build the documentation; a warning is an error.
set -euo pipefail
cd "$(dirname "$0")/.."

"${VENV:-.venv}/bin/python" -m sphinx --builder html --fail-on-warning --keep-going --quiet docs docs/_build/html
echo "docs/_build/html/index.html"
