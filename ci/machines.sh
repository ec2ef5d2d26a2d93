#!/usr/bin/env bash
# Make what tests on real machines need, before the first of them: the machine image, wheels,
# container images; and fetch the schema of Terraform's google provider, and Prefect. Takes a few minutes the first time and a second later. Where it cannot be done
# this says why and succeeds: the tests are skipped then, and say so too.
set -uo pipefail
cd "$(dirname "$0")/.."

python=${VENV:-.venv}/bin/python

"$python" tests/terraform/schema.py || echo "terraform: the export's attributes are not checked"
"$python" tests/runners.py || true # it has said why

skip() {
    echo "machines: skipped, $*"
    exit 0
}

[ "$(uname)" = Linux ] || skip "real machines take Linux"
[ "$(id -u)" = 0 ] || skip "real machines take root"
grep -qs '^ID=debian$' /etc/os-release || skip "real machines take a Debian"
command -v apt-get >/dev/null || skip "there is no apt-get"

missing=()
need() { # COMMAND PACKAGE
    command -v "$1" >/dev/null || missing+=("$2")
}
need mmdebstrap mmdebstrap
need nft nftables
need ip iproute2
need unshare util-linux
need chromium chromium

if [ ${#missing[@]} -gt 0 ]; then
    echo "machines: installing ${missing[*]} ..."
    export DEBIAN_FRONTEND=noninteractive
    install=(apt-get install --yes --quiet --no-install-recommends "${missing[@]}")
    # The lists of packages may be missing or old; fetching them takes longer than both together.
    "${install[@]}" >/dev/null 2>&1 || apt-get update --quiet >/dev/null 2>&1
    output=$("${install[@]}" 2>&1) || skip "apt-get could not install ${missing[*]}: ${output##*$'\n'}"
fi

"$python" tests/machines.py || echo "machines: their tests are skipped"
"$python" tests/container_images.py || echo "images: building them is not tested"
