"""The options of ``docker run`` and what they look like.

Pure: words in, options out. What they mean is :mod:`docker` and :mod:`containers`.

Source: https://docs.docker.com/reference/cli/docker/container/run/
"""

from __future__ import annotations

from dataclasses import dataclass, field

__all__ = ["DockerError", "RunOptions", "parse_run"]

#: Options of ``docker run`` that take a value, as words of a table.
_VALUED = """
--add-host --annotation --attach --cap-add --cap-drop --cgroup-parent --cgroupns --cidfile
--cpu-shares --cpus --cpuset-cpus --device --dns --domainname --entrypoint --env --env-file
--expose --gpus --group-add --health-cmd --hostname --ip --ipc --label --label-file
--log-driver --log-opt --mac-address --memory --memory-reservation --memory-swap --mount
--name --network --network-alias --oom-score-adj --pid --pids-limit --platform --publish
--pull --restart --runtime --security-opt --shm-size --stop-signal --stop-timeout --sysctl
--tmpfs --ulimit --user --userns --uts --volume --volumes-from --workdir
"""

#: Options without a value.
_FLAGS = """
--detach --init --interactive --no-healthcheck --oom-kill-disable --privileged
--publish-all --quiet --read-only --rm --sig-proxy --tty
"""

#: The long form of every option that takes a value.
VALUED = {
    **{name: name for name in _VALUED.split()},
    "-a": "--attach",
    "-c": "--cpu-shares",
    "-e": "--env",
    "-h": "--hostname",
    "-l": "--label",
    "-m": "--memory",
    "-p": "--publish",
    "-u": "--user",
    "-v": "--volume",
    "-w": "--workdir",
    "--net": "--network",
}

#: The long form of every option without a value; short ones may be joined: ``-dit``.
FLAGS = {
    **{name: name for name in _FLAGS.split()},
    "-d": "--detach",
    "-i": "--interactive",
    "-t": "--tty",
    "-P": "--publish-all",
    "-q": "--quiet",
}


class DockerError(Exception):
    """What docker would say on stderr before it exits.

    Parameters
    ----------
    message : str
        The sentence.
    status : int
        The exit status.
    """

    def __init__(self, message: str, status: int = 1) -> None:
        super().__init__(message)
        self.status = status


@dataclass
class RunOptions:
    """What ``docker run`` was told.

    Parameters
    ----------
    options : dict of str to list of str
        The values of each option, in its long form.
    flags : set of str
        The options without a value that are on, in their long form.
    image : str
        The image.
    command : list of str
        The command and its arguments, byte for byte.
    """

    options: dict[str, list[str]] = field(default_factory=dict)
    flags: set[str] = field(default_factory=set)
    image: str = ""
    command: list[str] = field(default_factory=list)

    def last(self, name: str, default: str = "") -> str:
        """Return the value of an option that counts once.

        Parameters
        ----------
        name : str
            The option, in its long form.
        default : str
            What to return where it was not given.

        Returns
        -------
        str
            The last value given.
        """
        return self.options.get(name, [default])[-1]


def parse_run(words: list[str], verb: str = "run") -> RunOptions:
    """Read the command line of ``docker run``.

    Parameters
    ----------
    words : list of str
        The words after ``docker run``.
    verb : str
        The verb, for the message.

    Returns
    -------
    RunOptions
        What they say.

    Raises
    ------
    DockerError
        An option does not exist, lacks its value, or there is no image.

    Examples
    --------
    >>> parse_run(["--rm", "-it", "-e", "A=1 2", "--net=host", "img", "sh", "-c", "x"]).command
    ['sh', '-c', 'x']
    """
    parsed = RunOptions()
    rest = list(words)
    while rest and rest[0].startswith("-") and rest[0] != "-":
        word = rest.pop(0)
        if word == "--":
            break
        if word.startswith("--"):
            name, assigned, value = word.partition("=")
            if name in VALUED:
                if not assigned:
                    if not rest:
                        raise DockerError(f"flag needs an argument: {name}", 125)
                    value = rest.pop(0)
                parsed.options.setdefault(VALUED[name], []).append(value)
            elif name in FLAGS:
                if value.lower() not in ("false", "0", "f"):
                    parsed.flags.add(FLAGS[name])
            else:
                raise DockerError(f"unknown flag: {name}", 125)
            continue
        letters = word[1:]
        while letters:
            name, letters = f"-{letters[0]}", letters[1:]
            if name in FLAGS:
                parsed.flags.add(FLAGS[name])
            elif name in VALUED:
                if not letters and not rest:
                    raise DockerError(f"flag needs an argument: '{name[1]}' in {word}", 125)
                value = letters.removeprefix("=") if letters else rest.pop(0)
                parsed.options.setdefault(VALUED[name], []).append(value)
                letters = ""
            else:
                raise DockerError(f"unknown shorthand flag: '{name[1]}' in {word}", 125)
    if not rest:
        raise DockerError(f"'docker {verb}' requires at least 1 argument", 125)
    parsed.image, *parsed.command = rest
    return parsed
