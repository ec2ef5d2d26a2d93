"""Stand-ins for the host commands that a startup script calls and that would change the host.

Owns what each of them records and answers; ``docker`` has a module of its own. The fence of
:mod:`sandbox` would stop the real commands too, but with an error, where a real machine obeys.

Run as ``commands.main(NAME)`` with the arguments in ``sys.argv[1:]``.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable

from . import machine_files as machine

__all__ = ["COMMANDS", "main"]

#: Services that a machine of Compute Engine's images has running.
SERVICES = frozenset(
    {
        "chrony",
        "containerd",
        "cron",
        "dbus",
        "docker",
        "google-guest-agent",
        "google-guest-agent-manager",
        "google-osconfig-agent",
        "google-shutdown-scripts",
        "google-startup-scripts",
        "rsyslog",
        "ssh",
        "sshd",
        "systemd-journald",
        "systemd-logind",
        "systemd-networkd",
        "systemd-resolved",
        "systemd-timesyncd",
    }
)


def _obey(words: list[str]) -> int:
    return 0


def _iptables(words: list[str]) -> int:
    if "-C" in words or "--check" in words:
        # The rule is there if an earlier call appended or inserted it.
        import json

        rule = [word for word in words if word not in ("-C", "--check")]
        with open(f"{machine.disk()}/calls", encoding="utf-8") as calls:
            for line in calls:
                call = json.loads(line)
                if call["command"] in ("iptables", "ip6tables") and rule == [
                    word
                    for word in call["arguments"]
                    if word not in ("-A", "--append", "-I", "--insert")
                ]:
                    return 0
        print("iptables: Bad rule (does a matching rule exist in that chain?).", file=sys.stderr)
        return 1
    if "-S" in words or "--list-rules" in words:
        print("-P INPUT DROP\n-P FORWARD DROP\n-P OUTPUT DROP")
    return 0


def _mount(words: list[str]) -> int:
    if not words:
        with open("/proc/mounts", encoding="utf-8") as mounts:
            sys.stdout.write(mounts.read())
    return 0


def _nvidia_smi(words: list[str]) -> int:
    gpus = os.environ.get("LOCAL_GCE_GPUS", "").split()
    for number, name in enumerate(gpus):
        print(f"GPU {number}: {name} (UUID: GPU-{number:08d})")
    if not gpus:
        print("NVIDIA-SMI has failed because it couldn't communicate with the NVIDIA driver.")
    return 0 if gpus else 9


def _packages(words: list[str]) -> int:
    print("Reading package lists...")
    return 0


def _dpkg(words: list[str]) -> int:
    if "--print-architecture" in words:
        print({"x86_64": "amd64", "aarch64": "arm64"}.get(os.uname().machine, os.uname().machine))
        return 0
    changing = {"-i", "--install", "-r", "--remove", "-P", "--purge", "--configure", "--unpack"}
    return 0 if changing & set(words) else machine.call_real("dpkg", words)


def _sysctl(words: list[str]) -> int:
    keys = [word for word in words if not word.startswith("-")]
    for key in keys:
        name, assigned, value = key.partition("=")
        if not assigned:
            path = "/proc/sys/" + name.replace(".", "/")
            try:
                with open(path, encoding="utf-8") as setting:
                    value = setting.read().strip()
            except OSError:
                print(f"sysctl: cannot stat {path}: No such file or directory", file=sys.stderr)
                return 1
        print(value if "-n" in words else f"{name} = {value}")
    return 0


def _systemctl(words: list[str]) -> int:
    plain = [word for word in words if not word.startswith("-")]
    verb, units = (plain[0], plain[1:]) if plain else ("list-units", [])
    if verb in ("poweroff", "halt", "reboot", "kexec"):
        machine.press("reboot" if verb in ("reboot", "kexec") else "poweroff")
    if verb == "is-system-running":
        print("running")
    known = [unit.removesuffix(".service") in SERVICES for unit in units]
    if verb in ("is-active", "is-enabled"):
        good, bad = ("active", "inactive") if verb == "is-active" else ("enabled", "not-found")
        if "--quiet" not in words and "-q" not in words:
            print("\n".join(good if one else bad for one in known))
        return 0 if any(known) else (3 if verb == "is-active" else 1)
    if verb == "status":
        for unit, one in zip(units, known, strict=True):
            print(f"{unit}: active (running)" if one else f"Unit {unit} could not be found.")
        return 0 if all(known) else 4
    if verb in ("start", "stop", "restart", "reload", "try-restart", "enable", "disable"):
        # Also the unit files that a script believes to have written: /etc took none.
        for unit, one in zip(units, known, strict=True):
            if not one:
                print(f"Failed to {verb} {unit}: Unit {unit} not found.", file=sys.stderr)
        return 0 if all(known) else (1 if verb in ("enable", "disable") else 5)
    return 0


def _service(words: list[str]) -> int:
    if len(words) > 1:
        return _systemctl([words[1], words[0]])
    return 0


def _poweroff(words: list[str]) -> int:
    machine.press("reboot" if "--reboot" in words else "poweroff")
    return 0


def _reboot(words: list[str]) -> int:
    machine.press("poweroff" if {"-p", "--poweroff", "--halt"} & set(words) else "reboot")
    return 0


def _init(words: list[str]) -> int:
    if words and words[0] in ("0", "6"):
        machine.press("reboot" if words[0] == "6" else "poweroff")
    return 0


def _shutdown(words: list[str]) -> int:
    import signal

    pending = f"{machine.disk()}/run/shutdown.pid"
    if "-c" in words:
        try:
            with open(pending, encoding="ascii") as file:
                os.kill(int(file.read()), signal.SIGTERM)
        except (OSError, ValueError):
            return 1
        return 0
    word = "reboot" if {"-r", "--reboot"} & set(words) else "poweroff"
    times = [one for one in words if not one.startswith("-")]
    minutes = _minutes(times[0] if times else "+1")
    if minutes is None:
        print(f"Failed to parse time specification: {times[0]}", file=sys.stderr)
        return 1
    if not minutes:
        machine.press(word)
        return 0
    if os.fork() == 0:
        os.setsid()
        with open(pending, "w", encoding="ascii") as file:
            file.write(str(os.getpid()))
        for descriptor in range(3):
            os.dup2(os.open("/dev/null", os.O_RDWR), descriptor)
        time.sleep(minutes * 60)
        machine.press(word)
        os._exit(0)
    print(f"Shutdown scheduled in {minutes} minutes, use 'shutdown -c' to cancel.")
    return 0


def _minutes(text: str) -> int | None:
    if text == "now":
        return 0
    if text.lstrip("+").isdecimal():
        return int(text.lstrip("+"))
    hour, colon, minute = text.partition(":")
    if colon and hour.isdecimal() and minute.isdecimal():
        now = time.localtime()
        return (int(hour) * 60 + int(minute) - now.tm_hour * 60 - now.tm_min) % 1440
    return None


def _sudo(words: list[str]) -> int:
    environment = dict(os.environ)
    rest = list(words)
    while rest:
        word = rest[0]
        name, assigned, value = word.partition("=")
        if word == "--":
            rest.pop(0)
            break
        if word in (
            "-u",
            "--user",
            "-g",
            "--group",
            "-C",
            "-D",
            "-h",
            "-p",
            "-R",
            "-r",
            "-t",
            "-T",
        ):
            del rest[:2]
        elif word.startswith("-"):
            rest.pop(0)
        elif assigned and name.isidentifier():
            environment[name] = value
            rest.pop(0)
        else:
            break
    if not rest:
        if {"-i", "-s", "--login", "--shell"} & set(words):
            rest = ["/bin/sh"]
        else:
            return 0
    return _become(rest, environment)


def _su(words: list[str]) -> int:
    for flag in ("-c", "--command"):
        if flag in words[:-1]:
            return _become(["/bin/sh", "-c", words[words.index(flag) + 1]], dict(os.environ))
    if "--" in words[:-1]:
        return _become(words[words.index("--") + 1 :], dict(os.environ))
    return _become(["/bin/sh"], dict(os.environ))


def _become(command: list[str], environment: dict[str, str]) -> int:
    try:
        os.execvpe(command[0], command, environment)  # noqa: S606 # the guest asked for it
    except OSError as error:
        print(f"{command[0]}: {error.strerror}", file=sys.stderr)
        return 127 if isinstance(error, FileNotFoundError) else 126


def _hostname(words: list[str]) -> int:
    name = machine.hostname()
    short, _, domain = name.partition(".")
    options = {word for word in words if word.startswith("-")}
    if options & {"-f", "--fqdn", "--long", "-A", "--all-fqdns"}:
        print(name)
    elif options & {"-d", "--domain"}:
        print(domain)
    elif options & {"-i", "--ip-address", "-I", "--all-ip-addresses"}:
        print(machine.address())
    elif not [word for word in words if not word.startswith("-")]:
        print(short)
    return 0


def _getent(words: list[str]) -> int:
    if len(words) < 2 or words[0] not in ("hosts", "ahosts", "ahostsv4"):
        return machine.call_real("getent", words)
    status = 0
    names = machine.table()
    names |= dict.fromkeys(("metadata.google.internal", "metadata"), "169.254.169.254")
    for name in words[1:]:
        found = names.get(name.lower())
        if found is None:
            if len(words) == 2:
                return machine.call_real("getent", words)
            status = 2
        elif words[0] == "hosts":
            print(f"{found:<15} {name}")
        else:
            for kind in ("STREAM", "DGRAM", "RAW"):
                print(f"{found:<15} {kind:<6} {name if kind == 'STREAM' else ''}".rstrip())
    return status


def _logger(words: list[str]) -> int:
    tag, text, rest = "root", [], list(words)
    while rest:
        word = rest.pop(0)
        if word in ("-t", "--tag") and rest:
            tag = rest.pop(0)
        elif word in ("-p", "--priority", "-f", "--file") and rest:
            rest.pop(0)
        elif not word.startswith("-"):
            text.append(word)
    said = " ".join(text) if text else sys.stdin.read()
    machine.say("\n".join(f"{tag}: {line}" for line in said.splitlines()))
    return 0


def _journalctl(words: list[str]) -> int:
    print("-- No entries --")
    return 0


def _credential_gcr(words: list[str]) -> int:
    if words[:1] == ["get"]:
        print('{"Username": "_dcgcr_token", "Secret": "local"}')
    elif words[:1] == ["configure-docker"]:
        print("Docker configuration file updated.", file=sys.stderr)
    return 0


def _docker(words: list[str]) -> int:
    from .docker import docker

    return docker(words)


#: What stands in for each command.
COMMANDS: dict[str, Callable[[list[str]], int]] = {
    **dict.fromkeys(
        (
            *("addgroup", "adduser", "groupadd", "useradd", "usermod", "userdel", "chpasswd"),
            *("chgrp", "chown", "cos-extensions", "crontab", "firewall-cmd", "loginctl", "losetup"),
            *("iptables-restore", "ip6tables-restore", "nft", "ufw", "modprobe", "umount"),
            *("mdadm", "mkfs", "mkfs.ext3", "mkfs.ext4", "mkfs.xfs", "mkswap", "swapon", "swapoff"),
            *("passwd", "timedatectl", "hostnamectl", "update-alternatives", "ldconfig"),
        ),
        _obey,
    ),
    **dict.fromkeys(("apt", "apt-get", "dnf", "yum", "snap", "zypper", "apk"), _packages),
    **dict.fromkeys(("iptables", "ip6tables"), _iptables),
    **dict.fromkeys(("poweroff", "halt"), _poweroff),
    **dict.fromkeys(("init", "telinit"), _init),
    **dict.fromkeys(("su", "runuser"), _su),
    "docker": _docker,
    "docker-credential-gcr": _credential_gcr,
    "dpkg": _dpkg,
    "getent": _getent,
    "hostname": _hostname,
    "journalctl": _journalctl,
    "logger": _logger,
    "mount": _mount,
    "nvidia-smi": _nvidia_smi,
    "reboot": _reboot,
    "service": _service,
    "shutdown": _shutdown,
    "sudo": _sudo,
    "sysctl": _sysctl,
    "systemctl": _systemctl,
}


def main(name: str) -> None:
    """Do what a command would, and exit with its status.

    Parameters
    ----------
    name : str
        The command.
    """
    words = sys.argv[1:]
    machine.record_call(name, words)
    try:
        status = COMMANDS[name](words)
        sys.stdout.flush()
    except BrokenPipeError:
        os._exit(141)  # as a command that SIGPIPE ended
    sys.exit(status)
