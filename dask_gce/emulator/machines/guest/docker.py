"""A stand-in for ``docker``: the verbs, and what it answers.

Owns images and messages; the options of ``docker run`` are :mod:`docker_options`, and running a
command as a container is :mod:`container_runs`. There is no image and no container engine behind
it: an image exists when its name matches one of the emulator's patterns, and a container is the
command itself, in an environment as clean as a container's.

Source of options and words: https://docs.docker.com/reference/cli/docker/
"""

from __future__ import annotations

import fnmatch
import json
import os
import sys
from collections.abc import Callable
from typing import Any, NoReturn

from . import containers
from .container_runs import run_attached, run_detached
from .docker_options import DockerError, RunOptions, parse_run

__all__ = ["docker"]


def image_error(image: str) -> str | None:
    """Say, in docker's words, that an image does not exist.

    Parameters
    ----------
    image : str
        The reference as it was typed.

    Returns
    -------
    str or None
        The sentence; None for an image that exists.
    """
    with open(f"{os.environ['LOCAL_GCE_BIN']}/.images", encoding="utf-8") as file:
        patterns = json.load(file)
    tagged = image if ":" in image.rpartition("/")[2] or "@" in image else f"{image}:latest"
    if any(fnmatch.fnmatchcase(name, one) for one in patterns for name in (image, tagged)):
        return None
    repository = tagged.partition("@")[0].rpartition(":")[0]
    if any(fnmatch.fnmatchcase(repository, one.rpartition(":")[0]) for one in patterns):
        return f"manifest for {tagged} not found: manifest unknown: manifest unknown"
    return (
        f"pull access denied for {repository}, repository does not exist or may require "
        "'docker login': denied: requested access to the resource is denied"
    )


def _run(words: list[str], *, start: bool = True) -> int:
    parsed = parse_run(words, "run" if start else "create")
    error = image_error(parsed.image)
    if error is not None:
        print(f"Unable to find image '{parsed.image}' locally", file=sys.stderr)
        raise DockerError(f"Error response from daemon: {error}.", 125)
    entrypoint = parsed.last("--entrypoint")
    command = ([entrypoint] if entrypoint else []) + parsed.command
    if not command:
        raise DockerError("Error response from daemon: no command specified", 125)
    try:
        container = containers.create(
            image=parsed.image,
            command=command,
            name=parsed.last("--name"),
            environment=_environment(parsed),
            folder=parsed.last("--workdir"),
            restart=parsed.last("--restart", "no"),
            transient="--rm" in parsed.flags,
            volumes=parsed.options.get("--volume", []) + _mounts(parsed),
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
    images = [word for word in words if not word.startswith("-")]
    if len(images) != 1:
        raise DockerError("'docker pull' requires exactly 1 argument")
    error = image_error(images[0])
    if error is not None:
        raise DockerError(f"Error response from daemon: {error}")
    if "-q" in words or "--quiet" in words:
        print(images[0])
    else:
        print(f"Status: Downloaded newer image for {images[0]}\n{images[0]}")
    return 0


def _format(words: list[str]) -> tuple[str | None, list[str]]:
    template, rest, plain = None, list(words), []
    while rest:
        word = rest.pop(0)
        if word in ("-f", "--format", "--type") and rest:
            value = rest.pop(0)
            template = value if word != "--type" else template
        elif word.startswith("--format="):
            template = word.partition("=")[2]
        elif not word.startswith("-"):
            plain.append(word)
    return template, plain


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


def _image_details(image: str) -> dict[str, Any] | None:
    if image_error(image) is not None:
        return None
    return {
        "Id": f"sha256:{containers.digest(image)}",
        "RepoTags": [image],
        "Architecture": {"x86_64": "amd64", "aarch64": "arm64"}.get(os.uname().machine, ""),
        "Os": "linux",
        "Config": {"Entrypoint": None, "Cmd": None, "Env": None, "WorkingDir": "", "User": ""},
    }


def _inspect(words: list[str], *, images_only: bool = False) -> int:
    template, names = _format(words)
    shown = []
    for name in names:
        container = None if images_only else containers.find(name)
        details = container.details() if container else _image_details(name)
        if details is None:
            kind = "image" if images_only else "object"
            raise DockerError(f"Error: No such {kind}: {name}")
        shown.append(details)
    if template is None:
        print(json.dumps(shown, indent=4))
    else:
        print("\n".join(_fill(template, details) for details in shown))
    return 0


def _image(words: list[str]) -> int:
    verbs: dict[str, Callable[[list[str]], int]] = {
        "inspect": lambda rest: _inspect(rest, images_only=True),
        "pull": _pull,
    }
    if words and words[0] in verbs:
        return verbs[words[0]](words[1:])
    return 0 if words[:1] in (["ls"], ["rm"], ["prune"]) else _unknown(f"image {words[:1]}")


def _container(words: list[str]) -> int:
    if words and words[0] in _VERBS:
        return _VERBS[words[0]](words[1:])
    return _unknown(" ".join(["container", *words[:1]]))


def _named(words: list[str], valued: tuple[str, ...] = ()) -> list[containers.Container]:
    rest, found = list(words), []
    while rest:
        word = rest.pop(0)
        if word in valued:
            del rest[:1]
        elif not word.startswith("-"):
            container = containers.find(word)
            if container is None:
                raise DockerError(f"Error response from daemon: No such container: {word}")
            found.append(container)
    return found


def _stop(words: list[str]) -> int:
    grace = 10.0
    for flag in ("-t", "--time", "--timeout"):
        if flag in words[:-1]:
            grace = float(words[words.index(flag) + 1])
    for container in _named(words, ("-t", "--time", "--timeout", "-s", "--signal")):
        container.stop(grace)
        print(container.name)
    return 0


def _kill(words: list[str]) -> int:
    name = "KILL"
    for flag in ("-s", "--signal"):
        if flag in words[:-1]:
            name = words[words.index(flag) + 1]
    for container in _named(words, ("-s", "--signal")):
        container.send(name)
        print(container.name)
    return 0


def _rm(words: list[str]) -> int:
    force = bool({"-f", "--force", "-fv", "-vf"} & set(words))
    try:
        for container in _named(words):
            container.remove(force=force)
            print(container.name)
    except DockerError:
        if not force:
            raise
    except containers.ContainerError as refusal:
        raise DockerError(f"Error response from daemon: {refusal}") from refusal
    return 0


def _logs(words: list[str]) -> int:
    for container in _named(words, ("-n", "--tail", "--since", "--until")):
        log = container.log()
        if log is None:
            raise DockerError(
                "Error response from daemon: configured logging driver does not support reading "
                "(the container is attached: its output went to whoever started it)"
            )
        sys.stdout.flush()
        sys.stdout.buffer.write(log)
    return 0


def _wait(words: list[str]) -> int:
    for container in _named(words):
        print(container.wait())
    return 0


def _ps(words: list[str]) -> int:
    template, _ = _format(words)
    everything = any(word in ("-a", "--all", "-aq", "-qa") for word in words)
    quiet = any(word in ("-q", "--quiet", "-aq", "-qa") for word in words)
    shown = [one for one in containers.everything() if everything or one.running()]
    if quiet:
        print("".join(f"{one.id[:12]}\n" for one in shown), end="")
        return 0
    if template is None:
        template = "{{.ID}}   {{.Image}}   {{.Status}}   {{.Names}}"
        print("CONTAINER ID   IMAGE   STATUS   NAMES")
    for one in shown:
        status = "Up" if one.running() else f"Exited ({one.status()})"
        row = {"ID": one.id[:12], "Image": one.image, "Names": one.name, "Status": status}
        print(_fill(template, row))
    return 0


def _version(words: list[str]) -> int:
    details = {"Client": {"Version": "27.5.1"}, "Server": {"Version": "27.5.1"}}
    template, _ = _format(words)
    if template is None:
        print("Client:\n Version: 27.5.1\n\nServer:\n Engine:\n  Version: 27.5.1")
    else:
        print(_fill(template, details))
    return 0


def _info(words: list[str]) -> int:
    print("Server:\n Server Version: 27.5.1\n Storage Driver: none (local Compute Engine)")
    return 0


def _login(words: list[str]) -> int:
    if "--password-stdin" in words:
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
