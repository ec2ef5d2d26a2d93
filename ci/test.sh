#!/usr/bin/env bash
# Run the tests, once what those on real machines need is there; arguments go to pytest.
set -euo pipefail
cd "$(dirname "$0")/.."

ci/machines.sh
exec "${VENV:-.venv}/bin/python" -m pytest "$@"
