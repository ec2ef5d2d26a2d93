#!/bin/sh
# Fill a store of container images with podman, in an image entered by enter.sh: load.sh ARCHIVE ...
set -eu
cat >/tmp/storage.conf <<'END'
[storage]
driver = "overlay"
graphroot = "/opt/store"
runroot = "/run/store"
END
export CONTAINERS_STORAGE_CONF=/tmp/storage.conf
# Also without an image does this make the files that podman looks for in a store it cannot write to.
podman images --quiet >/dev/null
for archive; do podman load --quiet --input "$archive"; done
# What it keeps about containers is of no use to others.
rm -rf /opt/store/libpod /opt/store/tmp /opt/store/overlay-containers
