"""The spellings in which a user names the packages of an environment.

Owns what one requirement, and the setting ``environment``, may be. Nothing here reads a file or
asks an index: that a folder is there, or that a package exists, is found out by `resolution` and
by the machine.

Sources: `Dependency specifiers
<https://packaging.python.org/en/latest/specifications/dependency-specifiers/>`_, `pylock.toml
<https://packaging.python.org/en/latest/specifications/pylock-toml/>`_ and
`requirements files
<https://pip.pypa.io/en/stable/reference/requirements-file-format/>`_.
"""

from __future__ import annotations

import re
from pathlib import PurePath
from typing import Any, Final
from urllib.parse import parse_qsl, urlsplit

from packaging.requirements import InvalidRequirement, Requirement

from dask_gce.errors import SettingsError

__all__ = [
    "SYNC",
    "check_environment",
    "has_credentials",
    "is_local",
    "is_lock_file",
    "is_requirements_file",
    "parse_requirement",
    "secret",
    "split_path",
]

#: The word for: whatever this process has.
SYNC: Final = "sync"

_LOCK: Final = re.compile(r"pylock(\.[^.]+)?\.toml")
_URL: Final = re.compile(r"\b[a-z][a-z0-9+.-]*://[^\s'\"]+", re.IGNORECASE)
# Of signed URLs and the like.
_KEY: Final = re.compile(r"token|signature|^sig$|secret|password|passwd|key|credential", re.I)
_LOCAL: Final = re.compile(r"(?:\.{0,2}[/\\]|\.{1,2}(?:\[|$)|~|[A-Za-z]:[/\\]|file:)")
_EXTRAS: Final = re.compile(r"(?P<path>.+?)(?:\[(?P<extras>[^]]*)\])?")


def check_environment(key: str, value: Any) -> str | tuple[str, ...]:
    """Check the setting ``environment``.

    Parameters
    ----------
    key : str
        The setting to name in errors.
    value : str or path or list of str
        ``"sync"``, the path of a requirements file or of a ``pylock.toml``, or requirements.

    Returns
    -------
    str or tuple of str
        The word or the path as text, or the requirements.

    Raises
    ------
    SettingsError
        If it is none of these, or has a password in it.

    Examples
    --------
    >>> check_environment("environment", ["xgboost", "./mine"])
    ('xgboost', './mine')
    """
    if isinstance(value, str | PurePath):
        return _check_path(key, str(value))
    if isinstance(value, dict):
        raise SettingsError(
            f"{key} is a mapping; it names packages. Variables of the environment are env_vars.",
            key=key,
        )
    if not isinstance(value, list | tuple):
        raise SettingsError(
            f"{key} = {value!r} must be a list of requirements such as ['xgboost'], the path of a "
            f"requirements.txt or pylock.toml, or {SYNC!r}.",
            key=key,
        )
    for item in value:
        if not isinstance(item, str):
            raise SettingsError(
                f"{key} has {item!r} in it, which is no requirement; put it in quotes, such as "
                "'xgboost==2.1'.",
                key=key,
            )
        parse_requirement(item, key=key)
    return tuple(item.strip() for item in value)


def _check_path(key: str, value: str) -> str:
    if value == SYNC or is_lock_file(value) or is_requirements_file(value):
        return value
    if has_credentials(value):
        raise secret(key)
    raise SettingsError(
        f"{key} = {value!r} must be {SYNC!r}, the path of a requirements file (NAME.txt) or of a "
        f"pylock.toml. To name packages, write a list: [{value!r}].",
        key=key,
    )


def is_lock_file(path: str) -> bool:
    """Tell whether a path is that of a lock file, by its name.

    Parameters
    ----------
    path : str
        A path.

    Returns
    -------
    bool
        Whether it is called as a lock file must be.

    Examples
    --------
    >>> is_lock_file("a/pylock.toml"), is_lock_file("pylock.gpu.toml"), is_lock_file("uv.lock")
    (True, True, False)
    """
    return _LOCK.fullmatch(_name(path)) is not None


def is_requirements_file(path: str) -> bool:
    """Tell whether a path is that of a requirements file, by its name.

    Parameters
    ----------
    path : str
        A path.

    Returns
    -------
    bool
        Whether its name ends in ``.txt``.

    Examples
    --------
    >>> is_requirements_file("requirements.txt"), is_requirements_file("requirements")
    (True, False)
    """
    return _name(path).endswith(".txt") and "://" not in path


def _name(path: str) -> str:
    return re.split(r"[/\\]", path)[-1]


def is_local(requirement: str) -> bool:
    """Tell whether a requirement is a folder of this machine.

    Parameters
    ----------
    requirement : str
        What the user wrote.

    Returns
    -------
    bool
        Whether it is a path, or a ``file:`` URL.

    Examples
    --------
    >>> is_local("./mine"), is_local("."), is_local("mine @ file:///src/mine"), is_local("mine")
    (True, True, True, False)
    """
    _, at, url = requirement.partition("@")
    return bool(_LOCAL.match(requirement) or (at and url.strip().startswith("file:")))


def parse_requirement(text: str, *, key: str = "environment") -> Requirement | None:
    """Parse a requirement.

    Parameters
    ----------
    text : str
        What the user wrote.
    key : str
        The setting to name in errors.

    Returns
    -------
    Requirement or None
        The requirement; None for a path, of which only the file system knows what it is.

    Raises
    ------
    SettingsError
        If it is none, or has a password in it.

    Examples
    --------
    >>> parse_requirement("dask[distributed]==2026.8.0").name
    'dask'
    """
    if has_credentials(text):
        raise secret(key)
    if not text.strip() or not text.isprintable():
        raise SettingsError(f"{key} has {text!r} in it, which names no package.", key=key)
    if _LOCAL.match(text):
        return None
    try:
        return Requirement(text)
    except InvalidRequirement as error:
        reason = str(error).partition("\n")[0]
        raise SettingsError(
            f"{key}: {text!r} is no requirement ({reason}); write it as pip takes it, such as "
            "'xgboost', 'xgboost>=2' or 'mine @ git+https://HOST/PATH@COMMIT'.",
            key=key,
        ) from error


def split_path(requirement: str) -> tuple[str, tuple[str, ...]]:
    """Split a local requirement into its path and its extras.

    Parameters
    ----------
    requirement : str
        A requirement of which `is_local` holds.

    Returns
    -------
    path : str
        The path; a ``file:`` URL as it is.
    extras : tuple of str
        Its extras.

    Examples
    --------
    >>> split_path("./mine[fast, gpu]")
    ('./mine', ('fast', 'gpu'))
    """
    if not _LOCAL.match(requirement):
        parsed = Requirement(requirement)
        return str(parsed.url), tuple(sorted(parsed.extras))
    found = _EXTRAS.fullmatch(requirement.strip())
    if found is None:
        return requirement, ()
    extras = (found["extras"] or "").split(",")
    return found["path"], tuple(each.strip() for each in extras if each.strip())


def has_credentials(text: str) -> bool:
    """Tell whether there is a URL with a password or a token in a text.

    Parameters
    ----------
    text : str
        A requirement, a URL, or a line of a requirements file.

    Returns
    -------
    bool
        Whether there is. The user name of SSH, which is no secret, does not count.

    Examples
    --------
    >>> has_credentials("mine @ git+https://TOKEN@example.com/mine.git")
    True
    >>> has_credentials("mine @ git+ssh://git@example.com/mine.git")
    False
    >>> has_credentials("https://storage.googleapis.com/b/mine.whl?X-Goog-Signature=1234")
    True
    """
    for url in _URL.findall(text):
        try:
            parts = urlsplit(url)
            has_password, user = parts.password is not None, parts.username
        except ValueError:
            return True  # whatever it is, it goes nowhere
        if has_password or (user and "ssh" not in parts.scheme):
            return True
        if any(_KEY.search(name) for name, _ in parse_qsl(parts.query)):
            return True
    return False


def secret(key: str) -> SettingsError:
    """Make the error about a password, without what was typed.

    Parameters
    ----------
    key : str
        The setting to name.

    Returns
    -------
    SettingsError
        The error.
    """
    return SettingsError(
        f"{key} has a URL with a password or token in it. It would be readable in the metadata of "
        "every machine; take it out, and let the machines' service account read a private index, "
        "or build the package here by naming its folder.",
        key=key,
    )
