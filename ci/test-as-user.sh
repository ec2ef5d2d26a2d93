#!/usr/bin/env bash
# Started as root: run the demo, and the tests of what depends on root's powers, once more as an
# ordinary user, from a fresh copy and with a fresh environment. Arguments for pytest choose other
# tests. Started as an ordinary user there is nothing to add to `make test`.
set -euo pipefail
cd "$(dirname "$0")/.."

user=nobody
tests=${*:-"-m 'not gcloud' tests/emulator tests/test_cluster.py tests/test_credentials.py"}

skip() {
    echo "test-as-user: skipped, $*"
    exit 0
}

[ "$(id -u)" = 0 ] || skip "you are not root, so 'make test' was run as an ordinary user"
command -v runuser >/dev/null || skip "there is no runuser command"

as_user() {
    runuser -u "$user" -- env -i PATH=/usr/local/bin:/usr/bin:/bin HOME="$copy" LANG=C.UTF-8 "$@"
}

copy=$(mktemp -d /tmp/dask-gce-user.XXXXXX)
trap 'rm -rf "$copy"' EXIT
tar --create --exclude=./.venv --exclude=./.git --exclude=__pycache__ . | tar --extract --directory "$copy"
chown -R "$user": "$copy"

# root's own Python may lie in a folder that others cannot read.
python=
for candidate in /usr/bin/python3 /usr/local/bin/python3; do
    if as_user "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 10))' 2>/dev/null; then
        python=$candidate
        break
    fi
done
[ -n "$python" ] || skip "$user can run no Python 3.10 or newer"

if ! "$python" -c 'import ensurepip' 2>/dev/null; then
    command -v apt-get >/dev/null || skip "$python has no ensurepip"
    apt-get install --yes --quiet python3-venv >/dev/null || skip "python3-venv could not be installed"
fi

as_user make --directory "$copy" PYTHON="$python" demo
as_user make --directory "$copy" PYTHON="$python" test ARGS="$tests"

# How root's machines are fenced in without user namespaces takes a Python that others can run too.
chmod 711 "$copy"
(cd "$copy" && .venv/bin/python -m pytest tests/emulator/test_machine_fence.py)
