"""What is different on Container-Optimized OS: where one can write, what runs, who gets in.

Owns the layout of its file systems, its host firewall, and its credential helper for container
registries. The rest of such a machine is like any other.

Sources: https://cloud.google.com/container-optimized-os/docs/concepts/disks-and-filesystem,
https://cloud.google.com/container-optimized-os/docs/how-to/firewall,
https://github.com/GoogleCloudPlatform/docker-credential-gcr
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess

from . import kernel
from .layers import overlay
from .paths import make_folder, within

__all__ = ["close_firewall", "lay_out"]

#: Seconds for setting up the host firewall by a program that a guest may have changed.
FIREWALL_LIMIT = 20.0

_SAFE = kernel.NO_SETUID | kernel.NO_DEVICES

#: What comes in: answers, what stays on the machine, ping, and SSH.
_RULES = """\
*filter
:INPUT DROP [0:0]
:FORWARD DROP [0:0]
:OUTPUT DROP [0:0]
-A INPUT -m state --state RELATED,ESTABLISHED -j ACCEPT
-A INPUT -i lo -j ACCEPT
-A INPUT -p icmp -j ACCEPT
-A INPUT -p tcp -m tcp --dport 22 -j ACCEPT
-A FORWARD -p tcp -j ACCEPT
-A FORWARD -p udp -j ACCEPT
-A FORWARD -p icmp -j ACCEPT
-A OUTPUT -m state --state NEW,RELATED,ESTABLISHED -j ACCEPT
-A OUTPUT -o lo -j ACCEPT
COMMIT
"""

#: A stand-in for docker-credential-gcr: the two of its commands that a start of containers needs.
_HELPER = r"""#!/bin/sh
set -eu
case ${1:-} in
configure-docker)
    folder=${DOCKER_CONFIG:-${HOME:?}/.docker}
    registries='gcr.io us.gcr.io eu.gcr.io asia.gcr.io marketplace.gcr.io'
    for word in "$@"; do
        case $word in
        --registries=*) registries=$(printf %s "${word#*=}" | tr , ' ') ;;
        esac
    done
    mkdir -p "$folder"
    {
        printf '{\n\t"auths": {},\n\t"credHelpers": {\n'
        separator=
        for registry in $registries; do
            printf '%s\t\t"%s": "gcr"' "$separator" "$registry"
            separator=',
'
        done
        printf '\n\t}\n}\n'
    } >"$folder/config.json"
    printf '%s configured to use this credential helper\n' "$folder/config.json" >&2
    ;;
get)
    read -r server || [ -n "$server" ]
    service=http://metadata.google.internal/computeMetadata/v1/instance/service-accounts/default
    token=$(curl -sSf -H Metadata-Flavor:Google "$service/token" |
        sed 's/.*"access_token": *"\([^"]*\)".*/\1/')
    printf '{"ServerURL":"%s","Username":"_dcgcr_2_0_0_token","Secret":"%s"}\n' "$server" "$token"
    ;;
version) echo 'Google Container Registry Docker credential helper 2.1.22' ;;
*)
    echo "docker-credential-gcr: no such command: ${1:-}" >&2
    exit 1
    ;;
esac
"""


def lay_out(lower: str, folder: str, root: str) -> None:
    """Mount what is not read-only on a machine's root.

    Parameters
    ----------
    lower : str
        The root file system that the machine starts from.
    folder : str
        The folder of the machine's disk.
    root : str
        Where the machine's root is mounted, still writable.
    """
    helper = f"{within(root, 'usr/bin')}/docker-credential-gcr"
    with contextlib.suppress(FileNotFoundError):
        os.unlink(helper)
    with open(helper, "x", encoding="utf-8") as file:
        file.write(_HELPER)
    os.chmod(helper, 0o755)  # noqa: S103 # everybody runs it, as there
    # Programs' writable places that start empty: stateful ones from the disk, the others not.
    make_folder(root, "mnt/stateful_partition")
    make_folder(root, "mnt/disks")
    scratch = f"{folder}/stateless"
    os.makedirs(scratch, exist_ok=True)
    kernel.mount("tmpfs", scratch, "tmpfs", _SAFE, "mode=755")
    overlay(f"{lower}/etc", f"{scratch}/etc", f"{scratch}/etc.work", make_folder(root, "etc"))
    for name in ("home", "var"):
        overlay(
            f"{lower}/{name}",
            f"{folder}/{name}.upper",
            f"{folder}/{name}.work",
            make_folder(root, name),
            _SAFE | kernel.NO_PROGRAMS,
        )
    for name in ("google", "toolbox"):
        _bind(f"{folder}/{name}", root, f"var/lib/{name}")
    _bind(f"{folder}/stateful", root, "mnt/stateful_partition")
    for target, mode, more in (
        ("tmp", "1777", kernel.NO_PROGRAMS),
        ("mnt/disks", "755", 0),
        ("var/lib/cloud", "755", 0),
    ):
        place = make_folder(root, target)
        kernel.mount("tmpfs", place, "tmpfs", _SAFE | more, f"mode={mode}")
    # Where the guest agent may run scripts, as its settings on this system say.
    settings = f"{make_folder(root, 'etc/default')}/instance_configs.cfg"
    with open(settings, "a", encoding="utf-8") as file:  # /etc is as the image has it
        file.write("\n[MetadataScripts]\nrun_dir = /var/lib/google\n")


def close_firewall() -> None:
    """Let in what the host firewall lets in; to be called inside the machine."""
    command = shutil.which("iptables-restore")
    if command is None:
        print("This machine has no host firewall: there is no iptables-restore.", flush=True)
        return
    try:
        done = subprocess.run(
            [command],
            input=_RULES,
            capture_output=True,
            text=True,
            check=False,
            timeout=FIREWALL_LIMIT,
        )
    except subprocess.TimeoutExpired as error:
        print(f"The host firewall could not be set up: {error}", flush=True)
        return
    if done.returncode:
        print(f"The host firewall could not be set up: {done.stderr.strip()}", flush=True)


def _bind(source: str, root: str, target: str) -> None:
    os.makedirs(source, exist_ok=True)
    kernel.bind(source, make_folder(root, target))
