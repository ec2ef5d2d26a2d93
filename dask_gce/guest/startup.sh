#!/bin/bash
# Runs as root at each boot of a dask_gce instance, on Container-Optimized OS and any image with
# docker: fetch the container image, start Dask in it, and end the machine when Dask has ended.
#
# The text is the same for every instance. What differs, and everything a user typed, is metadata
# and read as data: nothing of it is ever part of this script.
set -u

metadata() { # PATH: print a metadata value
  curl --silent --fail --retry 5 --retry-connrefused --header 'Metadata-Flavor: Google' \
    "http://${GCE_METADATA_HOST:-metadata.google.internal}/computeMetadata/v1/instance/$1"
}

phase() { # TEXT: say how far the boot has come, on the serial console and as a guest attribute
  echo "dask-gce phase: $1"
  printf '%s' "$1" | curl --silent --output /dev/null --request PUT --data-binary @- \
    --header 'Metadata-Flavor: Google' \
    "http://${GCE_METADATA_HOST:-metadata.google.internal}/computeMetadata/v1/instance/guest-attributes/dask-gce/phase"
}

delete_self() { # ask Compute Engine to delete this instance; fails if the service account may not
  local token zone
  token=$(metadata service-accounts/default/token |
    sed --quiet 's/.*"access_token" *: *"\([^"]*\)".*/\1/p')
  [ -n "$token" ] || return 1
  zone=$(metadata zone) # projects/NUMBER/zones/ZONE
  # The token goes through standard input, so that no process list shows it.
  printf 'header = "Authorization: Bearer %s"\n' "$token" |
    curl --silent --fail --output /dev/null --max-time 60 --config - --request DELETE \
      "$(metadata attributes/dask-gce-api)/compute/v1/projects/$(metadata attributes/dask-gce-project)/zones/${zone##*/}/instances/$(metadata name)"
}

finish() { # STATUS: a machine without Dask is of no use to anybody
  if [ "$1" -ne 0 ]; then
    # Time for the client to see the phase and read the serial console before both are gone.
    sleep "$(metadata attributes/dask-gce-linger || echo 120)"
  fi
  echo "dask-gce: this machine ends now"
  delete_self || poweroff
  exit "$1"
}

fail() { # REASON
  phase "failed: $1"
  finish 1
}

phase booted
folder=$(mktemp -d)
image=$(metadata attributes/dask-gce-image) || fail "no container image in the metadata"
role=$(metadata attributes/dask-gce-role)

# Container-Optimized OS drops inbound connections on the host itself. Who may reach these ports at
# all is decided by the VPC's firewall. Workers let the system choose their ports.
# https://docs.cloud.google.com/container-optimized-os/docs/how-to/firewall
if command -v iptables >/dev/null; then
  if [ "$role" = scheduler ]; then ports=$(metadata attributes/dask-gce-ports); else ports=1024:65535; fi
  iptables -w -I INPUT -p tcp -m multiport --dports "$ports" -j ACCEPT ||
    echo "dask-gce: could not open the host firewall"
fi

# Google's own registries want credentials, which the instance's service account provides. Without
# one, only public images can be had, and asking for credentials would fail.
registry=${image%%/*}
case $registry in
*-docker.pkg.dev | gcr.io | *.gcr.io)
  if metadata service-accounts/default/email >/dev/null; then
    # docker calls the helper, and both want a home that can be written to.
    export HOME=$folder DOCKER_CONFIG=$folder/docker
    docker-credential-gcr configure-docker --registries "$registry" ||
      fail "docker-credential-gcr could not be configured for $registry"
  fi
  ;;
esac

for attempt in 1 2 3; do
  docker pull --quiet "$image" && break
  [ "$attempt" -lt 3 ] || fail "docker pull of $image failed"
  sleep $((attempt * 2))
done
phase image-ready

# The image's own entry point still runs, inside the environment that start.py prepares.
mkdir "$folder/guest"
docker image inspect --format '{{json .Config.Entrypoint}}' "$image" >"$folder/guest/entrypoint.json" ||
  fail "docker image inspect of $image failed"
metadata attributes/dask-gce-start >"$folder/guest/start.py" || fail "no start program in the metadata"

options=(--rm --network host --volume "$folder/guest:$folder/guest:ro" --entrypoint python3)
[ -z "${GCE_METADATA_HOST:-}" ] || options+=(--env GCE_METADATA_HOST)
docker run "${options[@]}" "$image" "$folder/guest/start.py"
status=$?
[ "$status" -ne 113 ] || finish 1 # start.py has said why
[ "$status" -eq 0 ] || fail "Dask ended with exit status $status"
phase ended
finish 0
