#!/usr/bin/env bash
# Make the virtual environment if there is none, and install this package with some extras:
#
#   ci/setup.sh test lint
#
# PYTHON chooses the Python (by default the first that is new enough), VENV the folder.
set -euo pipefail
cd "$(dirname "$0")/.."

venv=${VENV:-.venv}

die() {
    printf '%s\n' "$@" >&2
    exit 1
}

new_enough() {
    "$1" -c 'import sys; sys.exit(sys.version_info < (3, 10))' 2>/dev/null
}

choose_python() {
    if [ -n "${PYTHON:-}" ]; then
        new_enough "$PYTHON" || die "PYTHON=$PYTHON is not a Python 3.10 or newer."
        return
    fi
    for PYTHON in python3 python3.13 python3.12 python3.11 python3.10; do
        if new_enough "$PYTHON"; then return; fi
    done
    die "No Python 3.10 or newer is on PATH. Name one: make PYTHON=/path/to/python ..."
}

make_venv() {
    if "$PYTHON" -c 'import ensurepip' 2>/dev/null; then
        "$PYTHON" -m venv --clear "$venv"
    elif "$PYTHON" -c 'import virtualenv' 2>/dev/null; then
        "$PYTHON" -m virtualenv --clear --quiet "$venv"
    else
        die "$PYTHON cannot make virtual environments: it has neither ensurepip nor virtualenv." \
            "On Debian and Ubuntu: apt install python3-venv" \
            "Elsewhere: $PYTHON -m pip install --user virtualenv" \
            "Or name another Python: make PYTHON=/path/to/python ..."
    fi
}

# A folder is not enough: its Python may have been removed, or the last attempt interrupted.
if ! "$venv/bin/python" -m pip --version >/dev/null 2>&1; then
    choose_python
    echo "Making $venv with $("$PYTHON" --version) ..."
    make_venv
fi

extras=$(IFS=,; echo "$*")
echo "Installing dask-gce[$extras] into $venv ..."
"$venv/bin/python" -m pip install --quiet --disable-pip-version-check --editable ".[$extras]"
