#!/bin/sh
# Run a program in a throw-away copy of an image: enter.sh ROOT [SOURCE:TARGET ...] -- COMMAND ...
# Whoever starts it gives it mount and process namespaces of its own, with which all of this goes.
set -eu
lower=$1
shift

# Only here is this file system over the image's /tmp, and the copy does not show it.
scratch=$lower/tmp
mount -t tmpfs scratch "$scratch"
root=$scratch/root
mkdir "$scratch/upper" "$scratch/work" "$root"
mount -t overlay image -o "lowerdir=$lower,upperdir=$scratch/upper,workdir=$scratch/work" "$root"

mount -t proc proc "$root/proc"
for name in dev run sys tmp; do mount -t tmpfs "$name" "$root/$name"; done
mkdir -p "$root/dev/shm" "$root/sys/fs/cgroup"
# Made anew: what is mounted from the host could be changed on the host.
mknod -m 666 "$root/dev/null" c 1 3
mknod -m 666 "$root/dev/urandom" c 1 9
ln -s /proc/self/fd "$root/dev/fd"

while [ "$1" != -- ]; do
  mkdir -p "$root/${1##*:}"
  mount --bind "${1%:*}" "$root/${1##*:}"
  shift
done
shift
exec chroot "$root" /usr/bin/env --ignore-environment HOME=/root LC_ALL=C.UTF-8 \
  PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin "$@"
