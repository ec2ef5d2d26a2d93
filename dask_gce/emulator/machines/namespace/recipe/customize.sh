#!/bin/sh
# Make a machine of a fresh Debian: customize.sh ROOT. mmdebstrap runs it when all packages are there.
set -eu
root=$1
recipe=$(dirname "$0")

cp -R --no-preserve=ownership,mode "$recipe/files/." "$root/"
for program in usr/local/bin/docker usr/local/sbin/dmidecode usr/local/sbin/machine-identity \
  usr/local/sbin/systemd-detect-virt etc/systemd/system-generators/cloud-init-generator; do
  chmod 755 "$root/$program"
done
# PATH differs between units, shells and sudo; this folder is on all of them.
ln -s ../local/bin/docker "$root/usr/bin/docker"
chroot "$root" groupadd --system docker
mkdir -p "$root/opt/store" "$root/srv/wheels"

chroot "$root" systemctl --quiet enable docker.service machine-identity.service

# Never of use here, or slow. Some would change the host: kernel settings, formats of programs and
# the file systems of the kernel are not the machine's own.
chroot "$root" systemctl --quiet mask \
  apt-daily.timer apt-daily-upgrade.timer dpkg-db-backup.timer e2scrub_all.timer \
  e2scrub_reap.service fstrim.timer \
  console-getty.service getty.target getty-static.service getty@tty1.service \
  cloud-init-local.service cloud-init-hotplugd.socket \
  podman-auto-update.timer podman-auto-update.service podman-restart.service podman.service \
  podman.socket \
  proc-sys-fs-binfmt_misc.automount systemd-binfmt.service \
  sys-fs-fuse-connections.mount sys-kernel-config.mount sys-kernel-debug.mount \
  sys-kernel-tracing.mount dev-hugepages.mount kmod-static-nodes.service \
  systemd-modules-load.service systemd-sysctl.service systemd-random-seed.service \
  systemd-pstore.service systemd-repart.service systemd-firstboot.service \
  systemd-logind.service systemd-update-utmp.service systemd-update-utmp-runlevel.service \
  systemd-udevd.service systemd-udev-trigger.service systemd-udev-settle.service \
  systemd-ask-password-console.path systemd-ask-password-wall.path systemd-initctl.socket \
  systemd-journald-audit.socket systemd-machine-id-commit.service systemd-tmpfiles-clean.timer \
  systemd-pcrphase.service systemd-pcrphase-sysinit.service
chroot "$root" systemctl set-default --quiet multi-user.target

# The launcher writes these for each machine.
: >"$root/etc/machine-id"
rm -f "$root/etc/hostname" "$root/etc/hosts" "$root/etc/resolv.conf"
