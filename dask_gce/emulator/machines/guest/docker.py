"""A stand-in for ``docker``: the verbs, and what it answers.

Owns the verbs and messages; their options are :mod:`docker_options`, images :mod:`docker_images`,
and running a command as a container is :mod:`container_runs`. There is no container engine behind
it: a container is the command itself, in an environment as clean as a container's.

Source of options and words: https://docs.docker.com/reference/cli/docker/
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from typing import Any, NoReturn

from . import containers, docker_images
from .container_runs import run_attached, run_detached
from .docker_options import DockerError, RunOptions, parse_run, parse_verb
from .new_containers import create

__all__ = ["docker"]


def _run(words: list[str], *, start: bool = True) -> int:
    parsed = parse_run(words, "run" if start else "create")
    if not docker_images.is_here(parsed.image):
        print(f"Unable to find image '{parsed.image}' locally", file=sys.stderr)
        error = docker_images.image_error(parsed.image)
        if error is not None:
            raise DockerError(f"Error response from daemon: {error}.", 125)
        docker_images.pull(parsed.image, lambda line: print(line, file=sys.stderr))
    entrypoint = parsed.last("--entrypoint")
    command = ([entrypoint] if entrypoint else []) + parsed.command
    if not command:
        raise DockerError("Error response from daemon: no command specified", 125)
    try:
        container = create(
            image=parsed.image,
            command=command,
            name=parsed.last("--name"),
            environment=_environment(parsed),
            folder=parsed.last("--workdir"),
            restart=parsed.last("--restart", "no"),
            transient="--rm" in parsed.flags,
            volumes=parsed.options.get("--volume", []) + _mounts(parsed),
            scratch=parsed.options.get("--tmpfs", []),
        )
    except containers.ContainerError as refusal:
        raise DockerError(f"Error response from daemon: {refusal}", 125) from refusal
    if "--detach" in parsed.flags:
        return run_detached(container)
    return run_attached(container, stdin="--interactive" in parsed.flags)


def _environment(parsed: RunOptions) -> dict[str, str]:
    given: dict[str, str] = {}
    for path in parsed.options.get("--env-file", []):
        try:
            with open(path, encoding="utf-8", errors="surrogateescape") as file:
                lines = file.read().split("\n")
        except OSError as error:
            raise DockerError(f"open {path}: {str(error.strerror).lower()}", 125) from error
        given |= _variables([line.lstrip() for line in lines if line.strip() and line[0] != "#"])
    return given | _variables(parsed.options.get("--env", []))


def _variables(entries: list[str]) -> dict[str, str]:
    given: dict[str, str] = {}
    for entry in entries:
        name, assigned, value = entry.partition("=")
        if assigned:
            given[name] = value
        elif name in os.environ:  # "-e NAME" passes the caller's value on
            given[name] = os.environ[name]
    return given


def _mounts(parsed: RunOptions) -> list[str]:
    volumes = []
    for mount in parsed.options.get("--mount", []):
        fields = dict(part.partition("=")[::2] for part in mount.split(","))
        source = fields.get("source", fields.get("src", ""))
        target = fields.get("target", fields.get("destination", fields.get("dst", "")))
        if fields.get("type") == "bind":
            volumes.append(f"{source}:{target}")
    return volumes


def _pull(words: list[str]) -> int:
    parsed = parse_verb("pull", words)
    if len(parsed.plain) != 1:
        raise DockerError("'docker pull' requires exactly 1 argument")
    (image,) = parsed.plain
    error = docker_images.image_error(image)
    if error is not None:
        raise DockerError(f"Error response from daemon: {error}")
    quiet = "--quiet" in parsed.flags
    docker_images.pull(image, (lambda line: None) if quiet else print)
    print(image)
    return 0


def _fill(template: str, thing: dict[str, Any]) -> str:
    filled = template
    while "{{" in filled:
        before, _, rest = filled.partition("{{")
        expression, closed, after = rest.partition("}}")
        *function, path = expression.split() or [""]
        value: Any = thing
        for key in path.strip(".").split(".") if path.strip(".") else []:
            if not isinstance(value, dict) or key not in value:
                raise DockerError(f'template: :1: map has no entry for key "{key}"')
            value = value[key]
        if not closed or function not in ([], ["json"]):
            raise DockerError(
                f"template parsing error: {{{{{expression}}}}} is not understood here"
            )
        shown = json.dumps(value) if function or not isinstance(value, str) else value
        return before + shown + _fill(after, thing)
    return filled


def _inspect(words: list[str], kind: str = "object") -> int:
    parsed = parse_verb("inspect", words)
    shown = []
    for name in parsed.plain:
        container = None if kind == "image" else containers.find(name)
        image = None if container or kind == "container" else docker_images.details(name)
        details = container.details() if container else image
        if details is None:
            raise DockerError(f"Error: No such {kind}: {name}")
        shown.append(details)
    template = parsed.last("--format", "")
    if not template:
        print(json.dumps(shown, indent=4))
    else:
        print("\n".join(_fill(template, details) for details in shown))
    return 0


def _image(words: list[str]) -> int:
    verbs: dict[str, Callable[[list[str]], int]] = {
        "inspect": lambda rest: _inspect(rest, "image"),
        "pull": _pull,
    }
    if words and words[0] in verbs:
        return verbs[words[0]](words[1:])
    return 0 if words[:1] in (["ls"], ["rm"], ["prune"]) else _unknown(f"image {words[:1]}")


def _container(words: list[str]) -> int:
    if words[:1] == ["inspect"]:
        return _inspect(words[1:], "container")
    if words and words[0] in _VERBS:
        return _VERBS[words[0]](words[1:])
    return _unknown(" ".join(["container", *words[:1]]))


def _named(names: list[str]) -> list[containers.Container]:
    found = []
    for name in names:
        container = containers.find(name)
        if container is None:
            raise DockerError(f"Error response from daemon: No such container: {name}")
        found.append(container)
    return found


def _stop(words: list[str]) -> int:
    parsed = parse_verb("stop", words)
    for container in _named(parsed.plain):
        container.stop(float(parsed.last("--timeout", "10")))
        print(container.name)
    return 0


def _kill(words: list[str]) -> int:
    parsed = parse_verb("kill", words)
    for container in _named(parsed.plain):
        container.send(parsed.last("--signal", "KILL"))
        print(container.name)
    return 0


def _rm(words: list[str]) -> int:
    parsed = parse_verb("rm", words)
    force = "--force" in parsed.flags
    try:
        for container in _named(parsed.plain):
            container.remove(force=force)
            print(container.name)
    except DockerError:
        if not force:
            raise
    except containers.ContainerError as refusal:
        raise DockerError(f"Error response from daemon: {refusal}") from refusal
    return 0


def _logs(words: list[str]) -> int:
    parsed = parse_verb("logs", words)
    if len(parsed.plain) != 1:
        raise DockerError("'docker logs' requires exactly 1 argument")
    (container,) = _named(parsed.plain)
    if container.log() is None:
        raise DockerError(
            "Error response from daemon: configured logging driver does not support reading "
            "(the container is attached: its output went to whoever started it)"
        )
    tail, shown, first = parsed.last("--tail", "all"), 0, True
    while True:
        running = container.running()
        log = container.log() or b""
        if first and tail.isdecimal():
            kept = log.splitlines(keepends=True)
            shown = len(log) - sum(map(len, kept[max(0, len(kept) - int(tail)) :]))
        sys.stdout.flush()
        sys.stdout.buffer.write(log[shown:])
        sys.stdout.buffer.flush()
        shown, first = len(log), False
        if not running or "--follow" not in parsed.flags:
            return 0
        time.sleep(0.05)


def _wait(words: list[str]) -> int:
    for container in _named(parse_verb("wait", words).plain):
        print(container.wait())
    return 0


def _ps(words: list[str]) -> int:
    parsed = parse_verb("ps", words)
    everything = "--all" in parsed.flags
    shown = [one for one in containers.everything() if everything or one.running()]
    if "--quiet" in parsed.flags:
        print("".join(f"{one.id[:12]}\n" for one in shown), end="")
        return 0
    template = parsed.last("--format", "")
    if not template:
        template = "{{.ID}}   {{.Image}}   {{.Status}}   {{.Names}}"
        print("CONTAINER ID   IMAGE   STATUS   NAMES")
    for one in shown:
        status = "Up" if one.running() else f"Exited ({one.status()})"
        row = {"ID": one.id[:12], "Image": one.image, "Names": one.name, "Status": status}
        print(_fill(template, row))
    return 0


def _version(words: list[str]) -> int:
    details = {"Client": {"Version": "27.5.1"}, "Server": {"Version": "27.5.1"}}
    template = parse_verb("version", words).last("--format", "")
    if not template:
        print("Client:\n Version: 27.5.1\n\nServer:\n Engine:\n  Version: 27.5.1")
    else:
        print(_fill(template, details))
    return 0


def _info(words: list[str]) -> int:
    parse_verb("info", words)
    print("Server:\n Server Version: 27.5.1\n Storage Driver: none (local Compute Engine)")
    return 0


def _login(words: list[str]) -> int:
    if "--password-stdin" in parse_verb("login", words).flags:
        sys.stdin.read()
    print("Login Succeeded")
    return 0


def _unknown(verb: str) -> NoReturn:
    raise DockerError(f"docker: unknown command: docker {verb}\n\nRun 'docker --help' for more")


#: What each verb does.
_VERBS: dict[str, Callable[[list[str]], int]] = {
    "container": _container,
    "image": _image,
    "info": _info,
    "inspect": _inspect,
    "kill": _kill,
    "login": _login,
    "logs": _logs,
    "ps": _ps,
    "pull": _pull,
    "rm": _rm,
    "run": _run,
    "stop": _stop,
    "version": _version,
    "wait": _wait,
}


def docker(words: list[str]) -> int:
    """Do what ``docker`` would.

    Parameters
    ----------
    words : list of str
        The words after ``docker``.

    Returns
    -------
    int
        The exit status.
    """
    if words[:1] in (["--version"], ["-v"]):
        print("Docker version 27.5.1, build local")
        return 0
    try:
        if not words or words[0] not in _VERBS:
            _unknown(words[0] if words else "")
        return _VERBS[words[0]](words[1:])
    except DockerError as error:
        prefix = "docker: " if words[0] == "run" else ""
        print(f"{prefix}{error}", file=sys.stderr)
        if error.status == 125:
            print("\nRun 'docker run --help' for more information", file=sys.stderr)
        return error.status
