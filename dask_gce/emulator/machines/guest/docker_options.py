"""The options of docker's verbs and what they look like.

Pure: words in, options out. What they mean is :mod:`docker` and :mod:`containers`.

Source: https://docs.docker.com/reference/cli/docker/
"""

from __future__ import annotations

from dataclasses import dataclass, field

__all__ = ["DockerError", "Options", "RunOptions", "parse_run", "parse_verb"]

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


#: The options of the other verbs that take a value, and those without one, each with its long form.
_OF_VERBS: dict[str, tuple[dict[str, str], dict[str, str]]] = {
    "pull": (
        {"--platform": "--platform"},
        {
            **dict.fromkeys(("-a", "--all-tags"), "--all-tags"),
            **dict.fromkeys(("-q", "--quiet"), "--quiet"),
            "--disable-content-trust": "--disable-content-trust",
        },
    ),
    "inspect": (
        {**dict.fromkeys(("-f", "--format"), "--format"), "--type": "--type"},
        dict.fromkeys(("-s", "--size"), "--size"),
    ),
    "rm": (
        {},
        {
            **dict.fromkeys(("-f", "--force"), "--force"),
            **dict.fromkeys(("-l", "--link"), "--link"),
            **dict.fromkeys(("-v", "--volumes"), "--volumes"),
        },
    ),
    "stop": (
        {
            **dict.fromkeys(("-t", "--time", "--timeout"), "--timeout"),
            **dict.fromkeys(("-s", "--signal"), "--signal"),
        },
        {},
    ),
    "kill": (dict.fromkeys(("-s", "--signal"), "--signal"), {}),
    "logs": (
        {
            **dict.fromkeys(("-n", "--tail"), "--tail"),
            "--since": "--since",
            "--until": "--until",
        },
        {
            **dict.fromkeys(("-f", "--follow"), "--follow"),
            **dict.fromkeys(("-t", "--timestamps"), "--timestamps"),
            "--details": "--details",
        },
    ),
    "wait": ({}, {}),
    "ps": (
        {
            **dict.fromkeys(("-f", "--filter"), "--filter"),
            **dict.fromkeys(("-n", "--last"), "--last"),
            "--format": "--format",
        },
        {
            **dict.fromkeys(("-a", "--all"), "--all"),
            **dict.fromkeys(("-l", "--latest"), "--latest"),
            **dict.fromkeys(("-q", "--quiet"), "--quiet"),
            **dict.fromkeys(("-s", "--size"), "--size"),
            "--no-trunc": "--no-trunc",
        },
    ),
    "version": (dict.fromkeys(("-f", "--format"), "--format"), {}),
    "info": (dict.fromkeys(("-f", "--format"), "--format"), {}),
    "login": (
        {
            **dict.fromkeys(("-u", "--username"), "--username"),
            **dict.fromkeys(("-p", "--password"), "--password"),
        },
        {"--password-stdin": "--password-stdin"},
    ),
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
class Options:
    """What a verb was told.

    Parameters
    ----------
    options : dict of str to list of str
        The values of each option, in its long form.
    flags : set of str
        The options without a value that are on, in their long form.
    plain : list of str
        The other words, byte for byte.
    """

    options: dict[str, list[str]] = field(default_factory=dict)
    flags: set[str] = field(default_factory=set)
    plain: list[str] = field(default_factory=list)

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


@dataclass
class RunOptions(Options):
    """What ``docker run`` was told.

    Parameters
    ----------
    options : dict of str to list of str
        The values of each option, in its long form.
    flags : set of str
        The options without a value that are on, in their long form.
    plain : list of str
        The image, the command and its arguments.
    image : str
        The image.
    command : list of str
        The command and its arguments, byte for byte.
    """

    image: str = ""
    command: list[str] = field(default_factory=list)


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
    parsed = _parse(words, VALUED, FLAGS, ordered=True)
    if not parsed.plain:
        raise DockerError(f"'docker {verb}' requires at least 1 argument", 125)
    image, *command = parsed.plain
    return RunOptions(parsed.options, parsed.flags, parsed.plain, image, command)


def parse_verb(verb: str, words: list[str]) -> Options:
    """Read the command line of another verb.

    Parameters
    ----------
    verb : str
        The verb, such as ``"pull"``.
    words : list of str
        The words after it.

    Returns
    -------
    Options
        What they say.

    Raises
    ------
    DockerError
        An option does not exist, or lacks its value.

    Examples
    --------
    >>> parsed = parse_verb("ps", ["-aq", "--filter=name=dask"])
    >>> sorted(parsed.flags), parsed.options
    (['--all', '--quiet'], {'--filter': ['name=dask']})
    """
    return _parse(words, *_OF_VERBS[verb], ordered=False)


def _parse(
    words: list[str], valued: dict[str, str], flags: dict[str, str], *, ordered: bool
) -> Options:
    """Read options and other words; where they are ordered, no option follows those."""
    parsed = Options()
    rest = list(words)
    while rest:
        word = rest.pop(0)
        if word == "--":
            parsed.plain += rest
            break
        if not word.startswith("-") or word == "-":
            parsed.plain.append(word)
            if ordered:
                parsed.plain += rest
                break
            continue
        if word.startswith("--"):
            name, assigned, value = word.partition("=")
            if name in valued:
                if not assigned:
                    if not rest:
                        raise DockerError(f"flag needs an argument: {name}", 125)
                    value = rest.pop(0)
                parsed.options.setdefault(valued[name], []).append(value)
            elif name in flags:
                if value.lower() not in ("false", "0", "f"):
                    parsed.flags.add(flags[name])
            else:
                raise DockerError(f"unknown flag: {name}", 125)
            continue
        letters = word[1:]
        while letters:
            name, letters = f"-{letters[0]}", letters[1:]
            if name in flags:
                parsed.flags.add(flags[name])
            elif name in valued:
                if not letters and not rest:
                    raise DockerError(f"flag needs an argument: '{name[1]}' in {word}", 125)
                value = letters.removeprefix("=") if letters else rest.pop(0)
                parsed.options.setdefault(valued[name], []).append(value)
                letters = ""
            else:
                raise DockerError(f"unknown shorthand flag: '{name[1]}' in {word}", 125)
    return parsed
