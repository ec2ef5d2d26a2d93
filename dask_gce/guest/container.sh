
# Runtime container, on Container-Optimized OS and any image with docker: fetch the container image,
# start Dask in it, and end the machine when Dask has ended.
command -v docker >/dev/null || fail "source_image has no docker on it, which the runtime container needs"
image=$(attribute image) || fail "no container image in the metadata"
# What is mounted into the container must be readable for whoever the image's user is.
umask 022
mkdir "$folder/guest"
# What outlives a boot.
kept=/var/lib/dask
{ mkdir -p "$kept" && : >>"$kept/boots"; } 2>/dev/null ||
  { kept=${HOME:-$folder}/dask-gce && mkdir -p "$kept"; }
# What the steps below add to the command line of the container.
options=()

open_firewall() {
  # Container-Optimized OS drops inbound connections on the host itself. Who may reach these ports at
  # all is decided by the VPC's firewall. Workers let the system choose their ports.
  # https://docs.cloud.google.com/container-optimized-os/docs/how-to/firewall
  local ports=1024:65535
  command -v iptables >/dev/null || return 0
  [ "$role" != scheduler ] || ports=$(attribute ports)
  iptables -w -I INPUT -p tcp -m multiport --dports "$ports" -j ACCEPT ||
    echo "dask-gce: could not open the host firewall"
}

log_in() {
  # Google's own registries want credentials, which the instance's service account provides. Without
  # one, only public images can be had, and asking for credentials would fail.
  local registry=${image%%/*}
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
}

look_up() { # whether the machine has the image; its own entry point still runs, inside start.py
  docker image inspect --format '{{json .Config.Entrypoint}}' "$image" \
    >"$folder/guest/entrypoint.json" 2>/dev/null
}

pull() { # one attempt; what is no progress is left in a file
  local line begun=0 ended=0 next=0
  docker pull "$image" 2>&1 | {
    # Where nobody watches, docker writes a line for each step of a layer, podman one for each layer
    # that it begins.
    while IFS= read -r line || [ -n "$line" ]; do
      case $line in
      *": Pulling fs layer" | "Copying blob "*) begun=$((begun + 1)) ;;
      *": Already exists") begun=$((begun + 1)) ended=$((ended + 1)) ;;
      *": Pull complete") ended=$((ended + 1)) ;;
      *": Waiting" | *": Download complete" | *": Verifying Checksum") continue ;;
      *) printf '%s\n' "$line" && continue ;;
      esac
      [ "$SECONDS" -ge "$next" ] || continue
      case $line in
      "Copying blob "*) phase "image-pulling: layer $begun" >&3 ;;
      *": Pull complete") phase "image-pulling: $ended of $begun layers" >&3 ;;
      *) continue ;;
      esac
      next=$((SECONDS + 3))
    done
  } 3>&1 >"$folder/pull"
  return "${PIPESTATUS[0]}"
}

is_hopeless() { # whether what the engine said will be the same at the next attempt
  # Registries refuse whoever comes too often in much the same words, but not for long.
  ! grep --quiet --ignore-case --extended-regexp \
    'toomanyrequests|too many requests|rate limit|quota exceeded' "$folder/pull" &&
    grep --quiet --ignore-case --extended-regexp \
      'manifest unknown|name unknown|not found|no matching manifest|no image found|denied|unauthorized|unauthenticated|forbidden|invalid reference|short-name|no space left' \
      "$folder/pull"
}

fetch_image() {
  local pause reason
  # Engines take their time to look anything up.
  if wait "$looking"; then
    echo "dask-gce: the container image is on this machine already, so it is not pulled"
    phase image-ready
    return
  fi
  for pause in 2 4 8 16 32 0; do
    phase image-pulling
    pull
    # Also if the engine was only late, and has had the image all the time.
    look_up && break
    reason=$(tail -n 1 "$folder/pull" | cut -c 1-400)
    if [ "$pause" -eq 0 ] || is_hopeless; then
      fail "container_image $image cannot be pulled: $reason"
    fi
    echo "dask-gce: $reason; the image is pulled again in $pause s"
    sleep "$pause"
  done
  phase image-ready
}

limit_memory() { # so that what is too much ends the container, and not the system
  local limit total shm
  limit=$(attribute memory) || return 0
  total=$(sed -n 's/^MemTotal: *\([0-9]*\) kB$/\1/p' /proc/meminfo 2>/dev/null)
  # A kernel shows less than the machine type has, by what it keeps for itself from the beginning.
  if [ -n "$total" ] && [ $((total * 1024 - 134217728)) -lt "$limit" ]; then
    limit=$((total * 1024 - 134217728))
  fi
  # As Linux sizes /dev/shm outside of containers (tmpfs(5)); docker's own 64 MB are too few for
  # whoever passes arrays between processes. What is written there counts as the container's memory.
  shm=$(attribute shm-size) || shm=$((limit / 2))
  options+=(--memory "$limit" --shm-size "$shm")
}

add_options() { # the user's, which come last, so that they win
  local line word driver=json-file words=()
  attribute docker-options >"$folder/docker-options" ||
    fail "no docker options in the metadata"
  while IFS= read -r line; do
    printf -v word %b "$line"
    case $word in --log-driver | --log-driver=*) driver= ;; esac
    words[${#words[@]}]=$word
  done <"$folder/docker-options"
  # From these files Google's logging agent sends lines to Cloud Logging; they must not fill the disk.
  [ -z "$driver" ] || options+=(--log-driver "$driver" --log-opt max-size=50m)
  [ ${#words[@]} -eq 0 ] || options+=("${words[@]}")
}

state() { # FIELD: what the engine knows of the container
  docker container inspect --format "{{.State.$1}}" dask 2>/dev/null
}

run() { # run the container to its end; its exit status is then $status
  local attempt
  hand_secrets | docker run "${options[@]}" "$image" "$folder/guest/start.py"
  status=$?
  [ "$status" -eq 125 ] || return 0
  # The engine itself has failed. One that is restarted, as for an update, lets go of whoever watches
  # a container, but not of the container (live-restore).
  for attempt in 1 2 3 4 5 6 7 8 9 10; do
    docker version >/dev/null 2>&1 && break
    sleep "$attempt"
  done
  [ "$(state Running)" = true ] || return 0
  while
    docker logs --follow --tail 0 dask
    # A log ends before the container has, and before its exit status is known.
    [ "$(state Running)" = true ]
  do :; done
  status=$(state ExitCode) || status=125
}

run_dask() {
  local status
  [ -z "$scratch" ] || printf '%s' "$scratch" >"$folder/guest/scratch"
  # Whoever the image's user is writes secrets in memory, where nobody else reads them.
  options+=(--name dask --network host --interactive --entrypoint python3
    --volume "$folder/guest:$folder/guest:ro" --tmpfs "$folder/private:mode=1777,size=16m")
  [ -z "$scratch" ] || options+=(--volume "$scratch:$scratch")
  [ -z "${GCE_METADATA_HOST:-}" ] || options+=(--env GCE_METADATA_HOST)
  [ ${#gpu_options[@]} -eq 0 ] || options+=("${gpu_options[@]}")
  limit_memory
  add_options
  # The container of an earlier boot keeps its name, and on the disk what Dask had spilled.
  [ ! -e "$kept/container" ] || docker rm --force dask >/dev/null 2>&1
  : >"$kept/container"
  hand_over
  run
  case $status in
  0) ;;
  113) finish 1 ;; # start.py has said why
  125) fail "docker run refused to start the container, see docker_options" ;;
  127) fail "container_image $image has no python3" ;;
  *)
    [ "$(state OOMKilled)" != true ] || fail "Dask needed more memory than the container may have"
    # Not every engine knows why.
    [ "$status" -ne 137 ] || fail "Dask was killed; it may have needed more memory than the container may have"
    fail "Dask ended with exit status $status"
    ;;
  esac
  phase ended
  finish 0
}

look_up &
looking=$!
fetch_programs "$folder/guest"
open_firewall
log_in
prepare_disks
install_gpu_driver
fetch_image
[ "$role" != builder ] || seal # where this is to become a disk image, see seal.sh
run_dask
