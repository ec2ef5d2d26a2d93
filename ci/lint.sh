#!/usr/bin/env bash
# Everything that can be judged without running the tests. All checks run, also after one has failed.
set -uo pipefail
cd "$(dirname "$0")/.."

bin=${VENV:-.venv}/bin
failed=()

check() {
    echo "== $1"
    "${@:2}" || failed+=("$1")
}

check "style" "$bin/ruff" check .
check "format" "$bin/ruff" format --check .
check "types" "$bin/mypy"
check "layers" "$bin/lint-imports" --no-cache --no-logo
check "docstrings" "$bin/python" ci/docstrings.py
check "documentation" ci/docs.sh

if [ ${#failed[@]} -gt 0 ]; then
    echo "Failed: ${failed[*]}" >&2
    exit 1
fi
echo "All checks passed."
