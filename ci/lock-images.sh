#!/bin/bash
# Lock the packages of the container images: each requirements.in into the requirements.txt beside it.
# What is locked stays as it is where it can; arguments go to uv:
#   ci/lock-images.sh --upgrade
#   ci/lock-images.sh --upgrade-package dask==2026.8.0 --upgrade-package distributed==2026.8.0
set -euo pipefail
cd "$(dirname "$0")/.."

for source in images/requirements.in images/gpu/requirements.in; do
  lock=${source%.in}.txt
  options=(--universal --python-version 3.10)
  # NVIDIA's packages are for one system, and the image has one Python.
  [[ $source != images/gpu/* ]] ||
    options=(--python-version 3.12 --python-platform x86_64-manylinux_2_28)
  # Which index the packages came from is the business of whoever builds the image. Hashes say
  # that they are the same everywhere.
  uv pip compile --quiet --generate-hashes --no-header --no-annotate --no-emit-index-url \
    --no-emit-find-links --no-emit-build-options "${options[@]}" "$@" \
    --output-file "$lock" "$source"
  # By this line a test knows whether the lock is that of its source.
  sed -i '/^# sha256 of requirements.in:/d' "$lock"
  digest=$(sha256sum "$source")
  printf '# sha256 of requirements.in: %s\n' "${digest%% *}" | cat - "$lock" >"$lock.new"
  mv "$lock.new" "$lock"
done
