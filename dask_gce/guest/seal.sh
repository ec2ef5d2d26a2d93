
# Role builder: what is on this machine becomes a disk image. The text of container.sh or vm.sh, which
# follows, prepares it as it would any machine, and calls this where it would start Dask.

owns_system() { # whether this is root, and root of a system of its own; not in a user namespace
  local first outside count
  # Only the first namespace has all users there are, as themselves (user_namespaces(7)).
  [ "$(id -u)" -eq 0 ] && read -r first outside count </proc/self/uid_map &&
    [ "$first $outside $count" = "0 0 4294967295" ]
}

clean() { # take away what must not be the same on two machines, and what is nobody's business
  # An empty machine-id is drawn anew at the next boot (machine-id(5)); a missing one is something else.
  [ ! -w /etc/machine-id ] || : >/etc/machine-id
  # The guest agent makes new ones where there are none. On Container-Optimized OS /etc is in memory.
  rm -f /etc/ssh/ssh_host_*_key* /mnt/stateful_partition/etc/ssh/ssh_host_*_key*
  rm -f /root/.bash_history /root/.ssh/authorized_keys /home/*/.bash_history /home/*/.ssh/authorized_keys
  # What cloud-init has done once it would not do again.
  rm -rf /var/lib/cloud/instance /var/lib/cloud/instances /var/lib/cloud/sem
  # Whoever has a log open goes on writing to it; a journal that is cut short would be a broken one.
  rm -rf /var/log/journal/*
  find /var/log -type f -exec truncate --size 0 {} +
}

seal() {
  phase sealing
  # Nobody gives a builder a key. But what it boots from may be the disk of one that had some.
  rm -rf "$folder" "$state"
  # A machine that shares its system with others has nothing to clean, and must not.
  if owns_system; then clean; fi
  sync
  phase sealed
  settle # or the end of the system could be quicker
  tell_watch over
  poweroff
  exit 0
}
