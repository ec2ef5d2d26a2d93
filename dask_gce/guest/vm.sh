
# Runtime vm, on Debian and any image with uv or Python: build the Python environment with uv, start
# Dask in it as a user of its own, and end the machine when Dask has ended.
umask 022
chmod 711 "$folder" # for that user to get at the programs
home=/var/lib/dask
if ! mkdir -p "$home/environments" "$home/work" 2>/dev/null || [ ! -w "$home/work" ]; then
  home=${HOME:-$folder}/dask # a machine on which nothing else can be written to
  mkdir -p "$home/environments" "$home/work"
fi
digest=$(attribute environment) || fail "no environment in the metadata"
environment=$home/environments/$digest
# Puts a command line under that user.
user=()

passed() { # SINCE: print the seconds since EPOCHREALTIME was that
  local passed=$((${EPOCHREALTIME//[.,]/} - ${1//[.,]/}))
  printf '%d.%02d' $((passed / 1000000)) $((passed % 1000000 / 10000))
}

make_user() {
  # Dask runs what it gets over the network. It needs no right of root's for that, nor do the
  # packages that are built here.
  if ! getent passwd dask >/dev/null; then
    useradd --system --user-group --no-create-home --home-dir "$home/work" --shell /usr/sbin/nologin dask
  fi
  if setpriv --reuid dask --regid dask --init-groups true 2>/dev/null; then
    user=(setpriv --reuid dask --regid dask --init-groups)
    # Not $home itself, where root keeps uv: whoever owns a folder can replace what is in it.
    chown dask:dask "$home/environments" "$home/work"
  else
    echo "dask-gce: this system has no user dask, so that Dask runs as $(id -un)"
  fi
  export HOME=$home/work
}

keep_private() { # give that user a folder in memory, where start.py writes what nobody else may read
  [ ${#user[@]} -gt 0 ] && rm -rf /run/dask-gce || return 0
  mkdir -m 700 /run/dask-gce && chown dask:dask /run/dask-gce && ln -s /run/dask-gce "$folder/private"
}

find_uv() { # the path of uv is then $uv
  uv=$(command -v uv) && return
  uv=$home/uv/bin/uv
  [ -x "$uv" ] && return
  phase "environment-building: uv"
  if ! python3 -m venv "$home/uv" >"$folder/log" 2>&1; then
    # Debian has the module in a package of its own.
    apt-get update --quiet >>"$folder/log" 2>&1 &&
      DEBIAN_FRONTEND=noninteractive apt-get install --quiet --yes python3-venv >>"$folder/log" 2>&1 &&
      python3 -m venv --clear "$home/uv" >>"$folder/log" 2>&1 ||
      explain "source_image has no uv, and no Python that could install it"
  fi
  "$home/uv/bin/python" -m pip install --quiet --disable-pip-version-check uv >"$folder/log" 2>&1 ||
    explain "uv cannot be installed"
}

explain() { # REASON: fail with what the last command said
  local reason
  cat "$folder/log"
  # A phase is short, and of letters that every terminal has.
  reason=$(tail -n 8 "$folder/log" | LC_ALL=C tr -cd '\12\40-\176' | tr -s '[:space:]' ' ')
  reason=${reason# }
  fail "$1: ${reason:0:600}"
}

build_environment() {
  local begun=$EPOCHREALTIME summary python file options
  summary=$(attribute environment-summary)
  if [ -e "$environment/dask-gce-complete" ]; then
    echo "dask-gce: the environment ($summary) is on this machine already, so it is not built"
    return
  fi
  python=$(attribute python) || fail "no version of Python in the metadata"
  file=$(attribute requirements-file)
  read -ra options <<<"$(attribute install-options)"
  phase environment-building
  # Who boots from a disk image is not to wait for the compiler; one boot alone is quicker without.
  [ "$role" != builder ] || options+=(--compile-bytecode)
  # A build that was interrupted is of no use.
  rm -rf "$environment"
  "${user[@]}" "$uv" venv --quiet --no-progress --python "$python" "$environment" \
    >"$folder/log" 2>&1 || explain "no Python $python"
  case $file in
  requirements.txt | pylock.toml) ;;
  *) fail "no list of packages in the metadata" ;;
  esac
  attribute requirements >"$folder/$file" ||
    fail "no list of packages in the metadata"
  "${user[@]}" "$uv" pip install --quiet --no-progress --python "$environment/bin/python" \
    "${options[@]}" --requirements "$folder/$file" >"$folder/log" 2>&1 ||
    explain "the environment ($summary) cannot be built"
  "${user[@]}" touch "$environment/dask-gce-complete"
  echo "dask-gce: the environment ($summary) took $(passed "$begun") s to build"
}

run_dask() {
  local status
  mkdir "$folder/guest"
  fetch_programs "$folder/guest"
  echo null >"$folder/guest/entrypoint.json"
  printf '%s' "$uv" >"$folder/guest/uv"
  [ -z "$scratch" ] || printf '%s' "$scratch" >"$folder/guest/scratch"
  cd "$home/work" || fail "no folder to work in"
  hand_over
  tell_watch started # which has an end of its own
  hand_secrets |
    PATH=$environment/bin:$PATH "${user[@]}" "$environment/bin/python" "$folder/guest/start.py"
  status=$?
  [ "$status" -ne 113 ] || finish 1 # start.py has said why
  [ "$status" -ne 137 ] || fail "Dask was killed; it may have needed more memory than there is"
  [ "$status" -eq 0 ] || fail "Dask ended with exit status $status"
  phase ended
  finish 0
}

prepare_disks
install_gpu_driver
make_user
keep_private
find_uv
build_environment
[ "$role" != builder ] || seal # where this is to become a disk image, see seal.sh
run_dask
