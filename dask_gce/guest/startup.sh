#!/bin/bash
# Runs as root at each boot of a dask_gce instance. This first part is what both runtimes share, as are
# ending.sh and begin.sh, which follow; after them comes the text of container.sh or vm.sh, which starts
# Dask and ends the machine when Dask ends.
#
# The text is the same for every instance. What differs, and everything a user typed, is metadata
# and read as data: nothing of it is ever part of this script.
set -u

metadata() { # PATH [OPTION...]: print a metadata value
  curl --silent --fail --max-time 60 --retry 5 --retry-connrefused --header 'Metadata-Flavor: Google' "${@:2}" \
    "http://${GCE_METADATA_HOST:-metadata.google.internal}/computeMetadata/v1/instance/$1"
}

gather() { # NAME...: fetch those of our attributes that there are, over one connection, and the programs
  local name wanted=()
  known=$(metadata attributes/) || fail "the metadata server does not answer"
  known=" ${known//$'\n'/ } "
  for name in $known; do
    [[ " ${*/#/dask-gce-} " != *" $name "* && $name != dask-gce-program-* ]] ||
      wanted+=("${name#dask-gce-}")
  done
  mkdir -m 700 "$folder/attributes"
  local IFS=,
  metadata "attributes/dask-gce-{${wanted[*]}}" --output "$folder/attributes/#1"
}

attribute() { # NAME: print one of our attributes
  if [ -e "$folder/attributes/$1" ]; then
    cat "$folder/attributes/$1"
  else
    # Most of what is asked for and not there does not exist.
    [[ $known == *" dask-gce-$1 "* ]] && metadata "attributes/dask-gce-$1"
  fi
}

report() { # publish the phases that are read, one after another, as a guest attribute; none ends it
  local text
  while IFS= read -r -d '' text && [ -n "$text" ]; do
    # A path is no phase, but a file that is there until all that was said before it is published.
    case $text in /*) rm -f "$text" && continue ;; esac
    printf '%s' "$text" | curl --silent --output /dev/null --max-time 10 --request PUT --data-binary @- \
      --header 'Metadata-Flavor: Google' \
      "http://${GCE_METADATA_HOST:-metadata.google.internal}/computeMetadata/v1/instance/guest-attributes/dask-gce/phase"
  done
}

phase() { # TEXT: say how far the boot has come, on the serial console and as a guest attribute
  echo "dask-gce phase: $1"
  # In a process of its own, which alone suffers if nobody reads any more.
  (printf '%s\0' "$1" >&9)
}

hand_over() { # have start.py publish its phases after all of these
  local file=$folder/guest/reporting
  : >"$file"
  (printf '%s\0' "$file" >&9) || rm -f "$file"
}

bearer() { # print what has curl act as the service account: nothing that a process list or a trace shows
  metadata service-accounts/default/token |
    sed --quiet 's/.*"access_token" *: *"\([^"]*\)".*/header = "Authorization: Bearer \1"/p'
}

settle() { # wait until all phases are published, of which there are no more
  (printf '\0' >&9)
  [ -z "$reporting" ] || wait "$reporting"
}

fail() { # REASON
  phase "failed: $1"
  finish 1
}

read_secret() { # VERSION FILE: fetch a secret from Secret Manager
  local url pause
  url=$(attribute secrets-api)/v1/$1:access
  # It takes a while until everybody knows that this machine may read it.
  for pause in 1 1 2 2 4 4 8 8 15 15 15 15 15 15 0; do
    bearer | curl --silent --show-error --fail --max-time 20 --config - "$url" |
      sed --quiet 's/.*"data" *: *"\([^"]*\)".*/\1/p' | base64 --decode >"$2"
    [ ! -s "$2" ] || return 0
    sleep "$pause"
  done
  return 1
}

keep_secrets() { # have the certificates and keys of this machine where they outlive a boot, for root alone
  local id word name fresh=()
  umask 077
  state=/var/lib/dask-gce/secrets
  { mkdir -p "$state" && [ -w "$state" ]; } 2>/dev/null ||
    { state=${HOME:-$folder}/dask-gce-secrets && mkdir -p "$state"; }
  chmod 700 "$state"
  secrets=$(attribute secrets)
  # What is on the disk may be all there is: no silence of the metadata server's is to cost it.
  id=$(metadata id) || fail "the metadata server does not answer"
  # A disk may come from another machine.
  if [ -z "$secrets" ] || { [ -s "$state/machine" ] && [ "$id" != "$(cat "$state/machine")" ]; }; then
    rm -rf "${state:?}"/*
  fi
  # A boot that was cut short may have left some halves.
  rm -f "$state"/*.new
  for word in $secrets; do
    name=${word%%=*}
    if [[ $known == *" dask-gce-$name "* ]]; then
      metadata "attributes/dask-gce-$name" --output "$state/$name.new"
    elif [ "$name" != "$word" ] && [ ! -s "$state/$name" ]; then
      read_secret "${word#*=}" "$state/$name.new" ||
        fail "the service account cannot read the secret ${word#*=}"
    else
      # It is in the metadata of a first boot only.
      [ -s "$state/$name" ] || fail "this machine has no certificates: neither in its metadata nor on its disk"
      continue
    fi
    [ -s "$state/$name.new" ] || fail "the certificates could not be read"
    fresh+=("$name")
  done
  [ ${#fresh[@]} -gt 0 ] || return 0
  printf '%s' "$id" >"$state/machine.new"
  fresh+=(machine)
  # A machine that is reset a moment later must have them: they may be nowhere else by then.
  sync "$state"/*.new
  for name in "${fresh[@]}"; do
    mv "$state/$name.new" "$state/$name"
  done
  sync "$state"
}

hand_secrets() { # print what start.py reads from its standard input: a line for each, and no more
  local word
  for word in $secrets; do
    cat "$state/${word%%=*}"
    echo
  done
}

fetch_programs() { # FOLDER: write the programs that start.py and its like consist of
  local name
  for name in $(attribute programs); do
    attribute "program-$name" >"$1/${name//-/_}.py" ||
      fail "the program $name is not in the metadata"
  done
}

prepare_disks() { # make local SSDs Dask's scratch space: its folder, if there is one, is then $scratch
  local disk device holder disks=() mount=/mnt/disks/dask-gce
  scratch=
  if grep --quiet --no-messages " $mount " /proc/mounts; then
    scratch=$mount
    return
  fi
  # https://docs.cloud.google.com/compute/docs/disks/format-mount-local-ssd
  for disk in /dev/disk/by-id/google-local-nvme-ssd-* /dev/disk/by-id/google-local-ssd-*; do
    case $disk in *-part[0-9]*) continue ;; esac
    [ -e "$disk" ] || continue # no disk is called like that
    device=$(readlink -f "$disk")
    # One that is in use already is somebody else's.
    grep --quiet "^$device" /proc/mounts || disks+=("$device")
  done
  [ ${#disks[@]} -gt 0 ] || return 0
  device=${disks[0]}
  if [ ${#disks[@]} -gt 1 ] && command -v mdadm >/dev/null; then
    for disk in "${disks[@]}"; do
      for holder in "/sys/class/block/${disk##*/}/holders/"*; do
        # What the boot before a reset left, which the system has put together again.
        [ ! -e "$holder" ] || mdadm --quiet --stop "/dev/${holder##*/}"
      done
    done
    device=/dev/md0
    mdadm --create "$device" --run --force --level=0 "--raid-devices=${#disks[@]}" "${disks[@]}" ||
      device=${disks[0]}
  fi
  if [ "$device" = "${disks[0]}" ] && [ ${#disks[@]} -gt 1 ]; then
    echo "dask-gce: the system has no working mdadm, so only the first of ${#disks[@]} local SSDs is used"
  fi
  # What is spilled there is of no use after a crash, so nothing is kept for one: no journal.
  if mkdir -p "$mount" && mkfs.ext4 -q -F -m 0 -O ^has_journal "$device" &&
    mount -o discard,noatime "$device" "$mount" && chmod 1777 "$mount"; then
    scratch=$mount
  else
    echo "dask-gce: the local SSD $device cannot be used; Dask's scratch space is the boot disk"
  fi
}

install_gpu_driver() { # see to the driver of this machine's GPUs; containers get them by $gpu_options
  local count number found give_up=30
  gpu_options=()
  count=$(attribute gpus) || return 0
  phase driver-installing
  if command -v cos-extensions >/dev/null; then
    # https://docs.cloud.google.com/container-optimized-os/docs/how-to/run-gpus
    cos-extensions install gpu -- --version=default ||
      fail "cos-extensions could not install the driver of the GPUs"
    # It is on a file system from which nothing may be executed.
    { mount --bind /var/lib/nvidia /var/lib/nvidia && mount -o remount,exec /var/lib/nvidia; } ||
      fail "the driver of the GPUs, in /var/lib/nvidia, could not be mounted"
    PATH=$PATH:/var/lib/nvidia/bin
    # Docker has no hook for GPUs there, so that devices and libraries are named one by one.
    gpu_options=(--volume /var/lib/nvidia/lib64:/usr/local/nvidia/lib64:ro
      --volume /var/lib/nvidia/bin:/usr/local/nvidia/bin:ro
      --device /dev/nvidiactl --device /dev/nvidia-uvm)
    for ((number = 0; number < count; number++)); do
      gpu_options+=(--device "/dev/nvidia$number")
    done
  else
    # Deep Learning images install it at their first boot, while this runs:
    # https://docs.cloud.google.com/deep-learning-vm/docs/create-vm-instance-gpu
    [ ! -d /opt/deeplearning ] || give_up=900
    until nvidia-smi >/dev/null 2>&1; do
      [ "$give_up" -eq 30 ] && ! command -v nvidia-smi >/dev/null &&
        fail "source_image has no driver for the GPUs"
      [ "$give_up" -gt 0 ] || fail "the driver of the GPUs did not come up"
      give_up=$((give_up - 1))
      sleep 1
    done
    gpu_options=(--gpus all)
  fi
  found=$(LD_LIBRARY_PATH=/var/lib/nvidia/lib64 nvidia-smi --list-gpus | grep --count '^GPU ')
  [ "$found" -ge "$count" ] || fail "the driver finds $found of this machine's $count GPUs"
}
