"""Options of ``docker run`` that a user adds: which there can be, and how they travel.

A word is data from here to docker's own argument vector. No shell ever splits or expands it.

Source of the options: https://docs.docker.com/reference/cli/docker/container/run/
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

from dask_gce.errors import SettingsError

__all__ = ["check_docker_options", "option_names", "render_docker_options"]

#: Options that take no value; all others do.
_FLAGS: Final = frozenset(
    {
        *("--detach", "--disable-content-trust", "--help", "--init", "--interactive"),
        *("--no-healthcheck", "--oom-kill-disable", "--privileged", "--publish-all", "--quiet"),
        *("--read-only", "--rm", "--sig-proxy", "--tty", "--use-api-socket"),
    }
)
_SHORT_FLAGS: Final = frozenset("ditPq")

_ONE_CONTAINER: Final = "the machine runs one container and ends when it has ended"
_FOREGROUND: Final = "the machine watches the container until it ends, without a terminal"
#: Options that would break what the machine does with the container, and why they are refused.
_REFUSED: Final[Mapping[str, str]] = {
    "--entrypoint": "the machine's own program has to start first; it runs the image's entry point",
    "--network": "Dask needs the network of the machine itself",
    "--net": "Dask needs the network of the machine itself",
    "--name": "the container is called dask",
    "--cidfile": "a file of the first boot would stop the second",
    "--rm": "why a container ended is asked when it has",
    "--restart": _ONE_CONTAINER,
    "--detach": _FOREGROUND,
    "--attach": _FOREGROUND,
    "--interactive": _FOREGROUND,
    "--tty": _FOREGROUND,
    "--sig-proxy": _FOREGROUND,
    "--detach-keys": _FOREGROUND,
    "--pull": "the image is fetched before; name another tag in container_image for a newer one",
    "--help": "nothing would run",
}
_LONG: Final = {"a": "--attach", "d": "--detach", "i": "--interactive", "t": "--tty"}


def check_docker_options(key: str, value: Any) -> tuple[str, ...]:
    """Check words that are added to ``docker run``.

    Parameters
    ----------
    key : str
        The setting.
    value : object
        A list of words, each option and each value a word of its own or joined by ``=``.

    Returns
    -------
    tuple of str
        The words, unchanged.

    Raises
    ------
    SettingsError
        If it is no list of words, if docker would take a word for the image, or if an option would
        break what the machine does.

    Examples
    --------
    >>> check_docker_options("docker_options", ["--cap-add", "SYS_PTRACE", "--ulimit=core=-1"])
    ('--cap-add', 'SYS_PTRACE', '--ulimit=core=-1')
    """
    # A single word is what a command line has for a list of one.
    words = [value] if isinstance(value, str) and len(value.split()) == 1 else value
    if not isinstance(words, list | tuple):
        raise SettingsError(
            f"{key} must be a list of words, such as ['--cap-add', 'SYS_PTRACE'].", key=key
        )
    for position, word in enumerate(words):
        if not isinstance(word, str):
            raise SettingsError(
                f"{key}[{position}] is a {type(word).__name__}; put it in quotes.", key=key
            )
        # A surrogate has no bytes, and no command line can hold a NUL.
        if "\0" in word or any("\ud800" <= letter <= "\udfff" for letter in word):
            raise SettingsError(
                f"{key}[{position}] has a character that no command line can hold.", key=key
            )
    for name in _names(key, words):
        if reason := _REFUSED.get(name):
            raise SettingsError(f"{key}: {name} is not possible: {reason}.", key=key)
    return tuple(words)


def option_names(words: Sequence[str]) -> tuple[str, ...]:
    """Return the names of the options among checked words, without their values.

    Parameters
    ----------
    words : sequence of str
        What `check_docker_options` returned.

    Returns
    -------
    tuple of str
        The names.

    Examples
    --------
    >>> option_names(["--env", "TOKEN=secret", "-v/a:/a", "--init"])
    ('--env', '-v', '--init')
    """
    return tuple(_names("docker_options", words))


def render_docker_options(words: Sequence[str]) -> str:
    r"""Write words as lines that bash's ``printf %b`` turns back into them, byte for byte.

    Parameters
    ----------
    words : sequence of str
        The words.

    Returns
    -------
    str
        A line for each word.

    Examples
    --------
    >>> render_docker_options(["--label", "two\nlines \\n"])
    '--label\ntwo\\nlines \\\\n\n'
    """
    return "".join(word.replace("\\", "\\\\").replace("\n", "\\n") + "\n" for word in words)


def _names(key: str, words: Sequence[str]) -> Iterator[str]:
    """Yield the option of each word or pair of words, read as docker does."""
    rest = list(words)
    while rest:
        word = rest.pop(0)
        name, assigned, _ = word.partition("=")
        if not word.startswith("-") or word in ("-", "--"):
            raise SettingsError(
                f"{key}[{len(words) - len(rest) - 1}] is neither an option nor the value of one, "
                "so docker would take it for the image. Write each option and its value as words "
                "of their own.",
                key=key,
            )
        if word.startswith("--"):
            yield name
            wants_value = not assigned and name not in _FLAGS
        else:
            wants_value = False
            # Flags of one letter may be joined; the first that is none takes the rest as its value.
            for position, letter in enumerate(word[1:], 1):
                name = f"-{letter}"
                yield _LONG.get(letter, name)
                if letter not in _SHORT_FLAGS:
                    wants_value = position == len(word) - 1
                    break
        if wants_value:
            if not rest:
                raise SettingsError(f"{key}: {name} wants a value.", key=key)
            rest.pop(0)
