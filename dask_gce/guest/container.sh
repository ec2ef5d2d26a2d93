
# Runtime container, on Container-Optimized OS and any image with docker: fetch the container image,
# start Dask in it, and end the machine when Dask has ended.
image=$(metadata attributes/dask-gce-image) || fail "no container image in the metadata"

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
fetch_programs "$folder/guest"

options=(--rm --network host --volume "$folder/guest:$folder/guest:ro" --entrypoint python3)
[ -z "${GCE_METADATA_HOST:-}" ] || options+=(--env GCE_METADATA_HOST)
docker run "${options[@]}" "$image" "$folder/guest/start.py"
status=$?
[ "$status" -ne 113 ] || finish 1 # start.py has said why
[ "$status" -eq 0 ] || fail "Dask ended with exit status $status"
phase ended
finish 0
