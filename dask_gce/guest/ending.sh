
# The end of a machine, whatever it comes of: what nobody else would delete goes, then the machine
# itself. Nothing here waits for ever.

ask() { # VERB URL [OPTION...]: call one of Google's APIs as the service account, and print its answer
  local pause answer status reason
  for pause in 1 2 4 8 16 32 0; do
    answer=$(bearer | curl --silent --max-time 20 --config - --request "$1" \
      --write-out '\n%{http_code}' "${@:3}" "$2")
    status=${answer##*$'\n'}
    answer=${answer%$'\n'*}
    case $1-$status in
    *-2??) printf '%s\n' "$answer" && return ;;
    DELETE-404) return 0 ;; # somebody else was quicker
    # Without a token, which the metadata server may be late with, it is 401.
    *-401 | *-408 | *-429 | *-5?? | *-000) ;;
    *) break ;;
    esac
    [ "$pause" -eq 0 ] || sleep "$pause"
  done
  reason=$(sed -n 's/.*"message" *: *"\([^"]*\)".*/\1/p' <<<"$answer" | head -n 1 | LC_ALL=C tr -cd '\40-\176')
  echo "dask-gce: $1 ${2#*://*/} is not possible (status $status): ${reason:0:300}" >&2
  return 1
}

matches() { # FIELD URL FILTER FIELDS: print a field of all that a list request finds, page by page
  local page token=
  while
    page=$(ask GET "$2" --get --data-urlencode "filter=$3" --data-urlencode "fields=$4,nextPageToken" \
      ${token:+--data-urlencode "pageToken=$token"}) || return 1
    # Answers come in many lines or in one.
    grep --only-matching "\"$1\" *: *\"[^\"]*\"" <<<"$page" | sed 's/.*"\([^"]*\)"$/\1/'
    token=$(sed -n 's/.*"nextPageToken" *: *"\([^"]*\)".*/\1/p' <<<"$page")
    [ -n "$token" ]
  do :; done
}

delete_machines() { # URL FILTER: delete the other machines of the cluster, for as long as there are some
  local round found machine self jobs place='projects/[^/]*/zones/[^/]*/instances/'
  self=$(metadata name) || return
  for round in 1 2 3; do
    found=$(matches selfLink "$1/aggregated/instances" "$2" 'items/*/instances/selfLink') || return
    jobs=()
    while read -r machine; do
      [ "${machine##*/}" != "$self" ] || continue
      machine=${1%/projects/*}/projects/${machine#*/projects/}
      if [ "$round" -eq 1 ] && [ ${#jobs[@]} -eq 0 ]; then
        # Who may not delete one may delete none.
        ask DELETE "$machine" >/dev/null </dev/null || return
        jobs+=(0)
      else
        ask DELETE "$machine" >/dev/null </dev/null &
        jobs+=("$!")
        # Not all of a thousand at once.
        [ $((${#jobs[@]} % 16)) -ne 0 ] || wait "$!"
      fi
    done < <(grep --only-matching "/${place}[-a-z0-9]*\$" <<<"$found")
    [ ${#jobs[@]} -gt 0 ] || return 0
    # One that was still on its way was in no list, and the last of these are not deleted yet.
    sleep 10
  done
}

has_another_scheduler() { # URL FILTER: whether the cluster goes on with another than this machine
  local self found
  self=$(metadata name) || return
  found=$(matches selfLink "$1/aggregated/instances" \
    "$2 AND (labels.dask-gce-role = \"scheduler\") AND (status != TERMINATED)" \
    'items/*/instances/selfLink') || return
  [ -n "$found" ] && grep --quiet --invert-match "/instances/$self\$" <<<"$found"
}

remove_cluster() { # with the scheduler's machine, delete what would outlive the cluster
  local leavings compute secrets kind project what rule machines
  leavings=$(metadata attributes/dask-gce-leavings) || return 0
  metadata service-accounts/default/email >/dev/null || return 0
  compute=$(metadata attributes/dask-gce-api)/compute/v1/projects
  # Workers are told to end, and a client that closes its cluster deletes all of it, this machine first
  # or last: what can go in order is to go in order.
  sleep 10
  machines=$(sed -n 's/^machines //p' <<<"$leavings")
  # One that came late, when the cluster had moved to another zone, has nothing to say for it.
  if [ -n "$machines" ] && has_another_scheduler "$compute/${machines%% *}" "${machines#* }"; then
    echo "dask-gce: the cluster has another scheduler, so that it is left alone"
    return
  fi
  while read -r kind project what; do
    # Without a filter a list would be of everything.
    [ -n "$what" ] || continue
    case $kind in
    machines) delete_machines "$compute/$project" "$what" ;;
    rules)
      for rule in $(matches name "$compute/$project/global/firewalls" "$what" items/name); do
        ask DELETE "$compute/$project/global/firewalls/$rule" >/dev/null
      done
      ;;
    secret)
      secrets=$(metadata attributes/dask-gce-secrets-api)
      ask DELETE "$secrets/v1/projects/$project/secrets/$what" >/dev/null
      ;;
    esac
  done <<<"$leavings"
}

delete_self() { # ask Compute Engine to delete this instance; fails if the service account may not
  local zone
  metadata service-accounts/default/email >/dev/null || return 1
  zone=$(metadata zone) # projects/NUMBER/zones/ZONE
  ask DELETE "$(metadata attributes/dask-gce-api)/compute/v1/projects/$(metadata attributes/dask-gce-project)/zones/${zone##*/}/instances/$(metadata name)" >/dev/null
}

switch_off() { # whatever the system has against it
  poweroff && return
  sleep 10
  poweroff --force && return
  sleep 10
  poweroff --force --force
}

end_machine() {
  echo "dask-gce: this machine ends now"
  [ "$(metadata attributes/dask-gce-role)" != scheduler ] || remove_cluster
  if delete_self; then
    # It takes a moment. If it fails after all, only this ends the machine.
    sleep 600
    echo "dask-gce: the machine was not deleted, so it powers off"
  fi
  switch_off
}

finish() { # STATUS: a machine without Dask is of no use to anybody
  tell_watch ending
  settle
  if [ "$1" -ne 0 ]; then
    # Time for the client to see the phase and read the serial console before both are gone.
    sleep "$(metadata attributes/dask-gce-linger || echo 120)"
  fi
  end_machine
  tell_watch over
  exit "$1"
}

tell_watch() { # WORD: tell whoever watches this script how far it has come
  (echo "$1" >&8) 2>/dev/null
}

is_running() { # whether Dask runs, or is about to: start.py has an end of its own
  [ "$(metadata guest-attributes/dask-gce/phase)" = running ] && return
  # An engine that hangs runs nothing.
  command -v docker >/dev/null &&
    [ "$(timeout 60 docker container inspect --format '{{.State.Running}}' dask 2>/dev/null)" = true ]
}

watch() { # end the machine if this script hangs, or is killed
  local limit word status last=booting
  limit=$(metadata attributes/dask-gce-boot-timeout)
  while :; do
    IFS= read -r ${limit:+-t "$limit"} word
    status=$?
    if [ "$status" -eq 0 ]; then
      case $word in
      started) limit= ;;
      ending) limit=3600 ;;
      over) return ;;
      esac
      last=$word
      continue
    fi
    if [ "$status" -le 128 ]; then
      # The script is gone, and all that it began. A system that goes down takes this along soon.
      read -rt 60 <> <(:)
      echo "dask-gce: the startup script was ended"
    elif [ "$last" = booting ] && is_running; then
      limit=
      continue
    elif [ "$last" = booting ]; then
      phase "failed: Dask did not start within $limit s"
    else
      echo "dask-gce: the end of this machine hangs"
    fi
    end_machine
    return
  done
}
