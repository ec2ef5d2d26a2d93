#!/usr/bin/env bash
# Run every benchmark; each says what it measured, on what, and fails if a promise is broken.
# Arguments go to all but the first: --quick measures less and writes nothing.
set -uo pipefail
cd "$(dirname "$0")/.."

status=0
echo "== what importing the package costs"
"${VENV:-.venv}/bin/python" benchmarks/import_cost.py || status=1
echo "== what it costs to show a cluster in a notebook"
"${VENV:-.venv}/bin/python" -m benchmarks.widget || status=1
echo "== what a cluster costs, beside the floor and GCPCluster"
"${VENV:-.venv}/bin/python" -m benchmarks.fleet "$@" || status=1
echo "== what goes through a tunnel"
"${VENV:-.venv}/bin/python" -m benchmarks.tunnel "$@" || status=1
echo "== where the time of a boot goes"
ci/machines.sh
"${VENV:-.venv}/bin/python" -m benchmarks.boot "$@" || status=1
exit $status
